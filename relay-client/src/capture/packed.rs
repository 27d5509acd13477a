//! How an exchange lies in the history's file.
//!
//! ```text
//!   summary   numbers, then texts, each with a byte behind it that no text has: what lists show and look for
//!   record    numbers, lengths, and then every byte: heads, bodies and trailers, as on the wire
//! ```
//!
//! Many of each are one value for SQLite: to write a row or a column costs every request, and to read one every line of a
//! list.

use std::time::Duration;

use bytes::Bytes;
use memchr::memchr2_iter;
use memchr::memmem::Finder;
use relay_protocol::message::{HeaderList, Payload, RequestHead, ResponseHead};
use relay_protocol::webhook::Verdict;
use serde::Deserialize as _;
use serde::de::value::{Error as ValueError, StrDeserializer};

use super::entry::Entry;
use super::exchange::{Exchange, Part, Summary, Timings};

/// Behind each text. No text in UTF-8 has such a byte.
const END: u8 = 0xff;

/// Instead of a text that is not there. Nor such a byte.
const NONE: u8 = 0xfe;

/// How many numbers a summary begins with.
const NUMBERS: usize = 8;

fn put(packed: &mut Vec<u8>, number: u64) {
    packed.extend_from_slice(&number.to_le_bytes());
}

/// The greatest number stands for none.
fn optional(number: Option<u64>) -> u64 {
    number.unwrap_or(u64::MAX)
}

fn take(packed: &mut &[u8]) -> Option<u64> {
    let (number, rest) = packed.split_first_chunk()?;
    *packed = rest;
    Some(u64::from_le_bytes(*number))
}

fn take_optional(packed: &mut &[u8]) -> Option<Option<u64>> {
    take(packed).map(|number| Some(number).filter(|number| *number != u64::MAX))
}

/// Microseconds as a summary has them.
fn milliseconds(micros: u64) -> f64 {
    Duration::from_micros(micros).as_secs_f64() * 1e3
}

/// Appends a summary, which its id is no part of.
pub(super) fn pack(summary: &Summary<&str>, packed: &mut Vec<u8>) {
    let micros = summary.duration_ms.map(|time| (time * 1e3).round() as u64);
    for number in [
        summary.at_ms,
        optional(summary.status.map(u64::from)),
        optional(micros),
        optional(summary.allowed_ms),
        summary.request_size,
        optional(summary.response_size),
        summary.attempt.into(),
        optional(summary.inbox_attempt.map(u64::from)),
    ] {
        put(packed, number);
    }
    for text in [
        summary.tunnel,
        Some(summary.method),
        Some(summary.path),
        summary.error,
        summary.provider,
        summary.provider_name,
        summary.event_id,
        summary.event_type,
        summary.verdict.map(Verdict::as_str),
        Some(summary.remote),
        summary.replay_of,
    ] {
        match text {
            Some(text) => packed.extend_from_slice(text.as_bytes()),
            None => packed.push(NONE),
        }
        packed.push(END);
    }
}

/// Appends a summary to others.
pub(super) fn pack_summary(summary: &Summary<&str>, packed: &mut Vec<u8>) {
    let begin = packed.len();
    put(packed, 0);
    let behind = packed.len();
    pack(summary, packed);
    let len = (packed.len() - behind) as u64;
    if let Some(place) = packed.get_mut(begin..behind) {
        place.copy_from_slice(&len.to_le_bytes());
    }
}

/// The summaries that were packed together, as far as they are not damaged.
pub(super) fn summaries(mut packed: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let len = usize::try_from(take(&mut packed)?).ok()?;
        let (summary, rest) = packed.split_at_checked(len)?;
        packed = rest;
        Some(summary)
    })
}

/// The summary of this id; none where it is damaged.
pub(super) fn unpack<'a>(id: &'a str, mut packed: &'a [u8]) -> Option<Summary<&'a str>> {
    let numbers = &mut packed;
    let at_ms = take(numbers)?;
    let status = take_optional(numbers)?.and_then(|status| u16::try_from(status).ok());
    let (duration_us, allowed_ms) = (take_optional(numbers)?, take_optional(numbers)?);
    let (request_size, response_size) = (take(numbers)?, take_optional(numbers)?);
    let attempt = u32::try_from(take(numbers)?).ok()?;
    let inbox_attempt = take_optional(numbers)?.and_then(|attempt| u32::try_from(attempt).ok());
    let mut texts = packed.split(|byte| *byte == END);
    let mut optional = || match texts.next()? {
        [NONE] => Some(None),
        text => std::str::from_utf8(text).ok().map(Some),
    };
    let tunnel = optional()?;
    let (method, path) = (optional()??, optional()??);
    let (error, provider, provider_name) = (optional()?, optional()?, optional()?);
    let (event_id, event_type, verdict) = (optional()?, optional()?, optional()?);
    let (remote, replay_of) = (optional()??, optional()?);
    // What a later version says is not known.
    let verdict = verdict.and_then(|text| Verdict::deserialize(StrDeserializer::<ValueError>::new(text)).ok());
    let duration_ms = duration_us.map(milliseconds);
    Some(Summary {
        id,
        tunnel,
        at_ms,
        method,
        path,
        status,
        error,
        duration_ms,
        allowed_ms,
        provider,
        provider_name,
        event_id,
        event_type,
        verdict,
        request_size,
        response_size,
        remote,
        replay_of,
        attempt,
        inbox_attempt,
    })
}

/// Whether a text stands in one of those of a packed summary, in any case of ASCII's letters.
pub(super) fn says(packed: &[u8], wanted: &str) -> bool {
    packed.get(NUMBERS * size_of::<u64>()..).is_some_and(|texts| has(texts, wanted))
}

/// Whether a text stands somewhere, in any case of ASCII's letters.
pub(super) fn has(texts: &[u8], wanted: &str) -> bool {
    let wanted = wanted.as_bytes();
    let Some(first) = wanted.first() else { return true };
    let mut places = memchr2_iter(first.to_ascii_lowercase(), first.to_ascii_uppercase(), texts);
    places.any(|at| texts.get(at..at + wanted.len()).is_some_and(|found| found.eq_ignore_ascii_case(wanted)))
}

/// Appends an id to others.
pub(super) fn pack_id(id: &str, ids: &mut Vec<u8>) {
    ids.extend_from_slice(id.as_bytes());
    ids.push(END);
}

/// The ids that were packed together.
pub(super) fn ids(packed: &[u8]) -> impl DoubleEndedIterator<Item = &str> + Clone {
    let ids = packed.strip_suffix(&[END]).unwrap_or(packed).split(|byte| *byte == END);
    ids.map(|id| std::str::from_utf8(id).unwrap_or_default())
}

/// All of an exchange that its summary does not say.
pub(super) struct Record<'a> {
    edge_ms: u64,
    upstream_us: Option<u64>,
    request_is_cut: bool,
    response_is_cut: bool,
    /// As [`pack_record`] has them.
    parts: [Option<&'a [u8]>; 7],
}

/// Appends an exchange's record.
pub(super) fn pack_record(entry: &Entry, packed: &mut Vec<u8>) {
    pack_lengths(entry, packed);
    parts(entry).iter().flatten().for_each(|part| packed.extend_from_slice(part));
}

/// Appends what a record begins with, and returns the lengths of the [`parts`] that follow it.
pub(super) fn pack_lengths(entry: &Entry, packed: &mut Vec<u8>) -> [usize; 7] {
    let upstream_us = entry.upstream.and_then(|time| u64::try_from(time.as_micros()).ok());
    put(packed, entry.edge_ms.into());
    put(packed, optional(upstream_us));
    put(packed, entry.request.is_truncated().into());
    put(packed, entry.response.as_ref().is_some_and(|response| response.is_truncated()).into());
    let parts = parts(entry);
    parts.iter().for_each(|part| put(packed, optional(part.map(|part| part.len() as u64))));
    parts.map(|part| part.map_or(0, <[u8]>::len))
}

/// All bytes of an exchange, in their order in a record.
pub(super) fn parts(entry: &Entry) -> [Option<&[u8]>; 7] {
    let (request, response) = (&entry.request, entry.response.as_ref());
    [
        Some(request.head()),
        Some(request.body()),
        Some(&request.trailers),
        response.map(|response| response.head()),
        response.map(|response| response.body()),
        response.map(|response| response.trailers.as_ref()),
        entry.annotation.reason.as_deref().map(str::as_bytes),
    ]
}

/// The records that were packed together, as far as they are not damaged.
pub(super) fn records(mut packed: &[u8]) -> impl Iterator<Item = Record<'_>> {
    std::iter::from_fn(move || {
        let (edge_ms, upstream_us) = (take(&mut packed)?, take_optional(&mut packed)?);
        let (request_is_cut, response_is_cut) = (take(&mut packed)? != 0, take(&mut packed)? != 0);
        let mut lengths = [None; 7];
        for length in &mut lengths {
            *length = take_optional(&mut packed)?;
        }
        let mut parts = [None; 7];
        for (part, length) in parts.iter_mut().zip(lengths) {
            let Some(length) = length else { continue };
            let (bytes, rest) = packed.split_at_checked(usize::try_from(length).ok()?)?;
            (*part, packed) = (Some(bytes), rest);
        }
        Some(Record { edge_ms, upstream_us, request_is_cut, response_is_cut, parts })
    })
}

impl Record<'_> {
    /// Whether this stands in one of its bodies.
    pub(super) fn has(&self, wanted: &Finder<'_>) -> bool {
        let [_, request, _, _, response, ..] = self.parts;
        [request, response].into_iter().flatten().any(|body| wanted.find(body).is_some())
    }

    /// The whole exchange; none where it is damaged.
    pub(super) fn exchange(&self, summary: Summary) -> Option<Exchange> {
        let [request_head, request_body, request_trailers, head, body, trailers, reason] = self.parts;
        let request = Part {
            head: decode::<RequestHead>(request_head?)?,
            body: request_body?.to_vec(),
            body_size: summary.request_size,
            body_truncated: self.request_is_cut,
            trailers: list(request_trailers)?,
        };
        let response = match head {
            None => None,
            Some(head) => Some(Part {
                head: decode::<ResponseHead>(head)?,
                body: body?.to_vec(),
                body_size: summary.response_size?,
                body_truncated: self.response_is_cut,
                trailers: list(trailers)?,
            }),
        };
        let timings = Timings {
            edge_ms: self.edge_ms,
            upstream_ms: self.upstream_us.map(milliseconds),
            total_ms: summary.duration_ms,
        };
        let reason = reason.map(|reason| String::from_utf8_lossy(reason).into_owned());
        Some(Exchange { reason, timings, request, response, summary })
    }
}

fn decode<T: Payload>(bytes: &[u8]) -> Option<T> {
    T::from_bytes(&Bytes::copy_from_slice(bytes)).ok()
}

fn list(trailers: Option<&[u8]>) -> Option<HeaderList> {
    match trailers? {
        [] => Some(HeaderList::new()),
        trailers => decode(trailers),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// What lists show comes back, whatever strangers choose for it.
        #[test]
        fn a_summary_comes_back(
            texts in proptest::collection::vec(proptest::option::of("\\PC{0,8}|[\\x00-\\x20]{0,3}"), 11),
            numbers in proptest::array::uniform4(0..u64::MAX),
            status in proptest::option::of(100_u16..600),
            micros in proptest::option::of(0..1_u64 << 40),
        ) {
            let text = |i: usize| texts[i].as_deref();
            let summary = Summary {
                id: "01A",
                tunnel: text(0),
                at_ms: numbers[0],
                method: text(1).unwrap_or_default(),
                path: text(2).unwrap_or_default(),
                status,
                error: text(3),
                duration_ms: micros.map(milliseconds),
                allowed_ms: Some(numbers[1]),
                provider: text(4),
                provider_name: text(5),
                event_id: text(6),
                event_type: text(7),
                verdict: Some(Verdict::NoSecret),
                request_size: numbers[2],
                response_size: Some(numbers[3]),
                remote: text(8).unwrap_or_default(),
                replay_of: text(9),
                attempt: 3,
                inbox_attempt: status.map(u32::from),
            };
            let mut packed = Vec::new();
            pack(&summary, &mut packed);
            prop_assert_eq!(unpack("01A", &packed), Some(summary.clone()));
            let mut together = Vec::new();
            (0..2).for_each(|_| pack_summary(&summary, &mut together));
            prop_assert_eq!(summaries(&together).collect::<Vec<_>>(), [&packed, &packed]);
            for wanted in texts[..10].iter().flatten() {
                prop_assert!(says(&packed, &wanted.to_ascii_uppercase()));
            }
            // A damaged one is none, or another one.
            for end in 0..packed.len() {
                let _ = unpack("01A", &packed[..end]);
            }
        }

        /// Whatever stands in the file is read or left out.
        #[test]
        fn nothing_in_the_file_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (unpack("", &bytes), ids(&bytes).count(), summaries(&bytes).count(), records(&bytes).count());
        }
    }
}
