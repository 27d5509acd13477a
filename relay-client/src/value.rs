//! What a setting can say, wherever it is written: on the command line, in the environment or in a file.

use std::net::{Ipv4Addr, SocketAddr};
use std::{collections::BTreeMap, fmt, fs::symlink_metadata, path::PathBuf, str::FromStr, time::Duration};

use aws_lc_rs::digest::{SHA256, digest};
use http::header::CONTENT_LENGTH;
use http::{HeaderName, HeaderValue, StatusCode};
use jiff::{SignedDuration, Timestamp};
use relay_protocol::inbox::{Ack, Inbox, InboxError};
use relay_protocol::webhook::Filter;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::capture::saved::{self, SavedAnswer, origin};
use crate::webhooks::{built_in, named};

/// How the upstream is spoken to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum UpstreamProtocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2 without an upgrade ("prior knowledge", RFC 9113, section 3.3), as gRPC servers speak.
    H2c,
}

/// The choice of `--output`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Output {
    /// For people.
    #[default]
    Text,
    /// For programs: one JSON object per line.
    Json,
}

/// The choice of `--inbox`, and of `inbox` in a file: whether the relay keeps webhooks, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InboxChoice(pub Option<Inbox>);

/// `off`, or the words that an [`Inbox`] reads.
impl FromStr for InboxChoice {
    type Err = InboxError;

    fn from_str(text: &str) -> Result<Self, InboxError> {
        if text == "off" { Ok(Self(None)) } else { text.parse().map(|inbox| Self(Some(inbox))) }
    }
}

impl fmt::Display for InboxChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            None => f.write_str("off"),
            Some(inbox) => inbox.fmt(f),
        }
    }
}

/// The same as it is typed: with `ack=@FILE` too, which is an answer as [`SavedAnswer`] reads it.
///
/// # Errors
/// Where it is not understood, or there is no such answer.
pub fn inbox(text: &str) -> Result<InboxChoice, InboxChoiceError> {
    let (files, words): (Vec<&str>, Vec<&str>) = text.split(',').partition(|word| word.trim().starts_with("ack=@"));
    let mut choice: InboxChoice = words.join(",").parse()?;
    if let (Some(file), Some(inbox)) = (files.last().and_then(|word| word.trim().strip_prefix("ack=@")), &mut choice.0)
    {
        let unread = |problem: String| InboxChoiceError::File { file: file.to_owned(), problem };
        let bytes = saved::load(file.as_ref()).map_err(|error| unread(error.to_string()))?;
        let answer = SavedAnswer::read(&bytes).map_err(|error| unread(error.to_string()))?;
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).map_err(|_| unread("it is not text".to_owned()));
        // The relay says by itself how long the body is.
        let said = answer.headers.iter().filter(|(name, _)| name != CONTENT_LENGTH);
        let line =
            |(name, value): &(HeaderName, HeaderValue)| text(value.as_bytes()).map(|value| (name.to_string(), value));
        let headers = said.map(line).collect::<Result<_, InboxChoiceError>>()?;
        inbox.ack = Some(Ack { status: answer.status.as_u16(), headers, body: text(answer.body)? });
        inbox.extra()?;
    }
    Ok(choice)
}

/// A value of `--inbox` that is not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InboxChoiceError {
    /// It says something that no inbox can do.
    #[error(transparent)]
    Inbox(#[from] InboxError),
    /// The acknowledgement is in no file.
    #[error("{file}: {problem}")]
    File {
        /// Where it was to be.
        file: String,
        /// What about it.
        problem: String,
    },
}

/// In a file: `true`, `false`, the words, or a table.
///
/// ```toml
/// [tunnels.hooks.inbox]
/// how = "ordered,limit=100"
/// ack = { status = 200, headers = { content-type = "text/xml" }, body = "<Ok/>" }
/// ignore = [{ provider = "github", type = "push" }, { when = { "json:/livemode" = "false" } }]
/// ```
impl<'de> Deserialize<'de> for InboxChoice {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(InboxForms)
    }
}

struct InboxForms;

impl<'de> Visitor<'de> for InboxForms {
    type Value = InboxChoice;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("true, false, words such as \"ordered,ack=200\", or a table with how, ack and ignore")
    }

    fn visit_bool<E: de::Error>(self, is_kept: bool) -> Result<InboxChoice, E> {
        Ok(InboxChoice(is_kept.then(Inbox::default)))
    }

    fn visit_str<E: de::Error>(self, words: &str) -> Result<InboxChoice, E> {
        words.parse().map_err(E::custom)
    }

    fn visit_map<M: MapAccess<'de>>(self, map: M) -> Result<InboxChoice, M::Error> {
        let InboxTable { how, ack, ignore } = InboxTable::deserialize(MapAccessDeserializer::new(map))?;
        let mut inbox: Inbox = how.parse().map_err(de::Error::custom)?;
        // The relay does not know the rows that a file adds.
        let mut providers = ignore.iter().filter_map(|filter| filter.provider.as_deref());
        providers.try_for_each(|provider| named(&built_in(), provider).map(drop)).map_err(de::Error::custom)?;
        inbox.ignore = ignore;
        if let Some(AckTable { status, headers, body }) = ack {
            inbox.ack = Some(Ack { status, headers: headers.into_iter().collect(), body });
        }
        inbox.extra().map_err(de::Error::custom)?;
        Ok(InboxChoice(Some(inbox)))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct InboxTable {
    #[serde(default)]
    how: String,
    ack: Option<AckTable>,
    #[serde(default)]
    ignore: Vec<Filter>,
}

/// What it leaves out is as [`Ack::default`] has it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AckTable {
    #[serde(default = "accepted")]
    status: u16,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    #[serde(default)]
    body: String,
}

fn accepted() -> u16 {
    Ack::default().status
}

/// The choice of `--inspect`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inspect {
    /// No requests are kept, and there is no inspector.
    Off,
    /// They are, and it listens there.
    At(SocketAddr),
}

impl fmt::Display for Inspect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::At(address) => address.fmt(f),
        }
    }
}

/// Reads `off`, or an address to listen on.
///
/// # Errors
/// Everything else, with a hint.
pub fn inspect(text: &str) -> Result<Inspect, InspectError> {
    if text == "off" {
        return Ok(Inspect::Off);
    }
    listen_address(text).map(Inspect::At).map_err(|ListenAddressError { input }| InspectError { input })
}

/// A value of `--inspect` that is not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{input:?} is neither off nor an address to listen on; write 127.0.0.1:4040, [::1]:4040 or only a port")]
pub struct InspectError {
    input: String,
}

/// Reads `127.0.0.1:8443`, `[::1]:8443`, `:8443` or `8443`. A port alone is one of 127.0.0.1: what a client listens on
/// for its user is nobody else's business.
///
/// # Errors
/// Everything else, with a hint.
pub fn listen_address(text: &str) -> Result<SocketAddr, ListenAddressError> {
    let port = text.strip_prefix(':').unwrap_or(text);
    let local = port.parse().map(|port: u16| (Ipv4Addr::LOCALHOST, port).into());
    local.or_else(|_| text.parse()).map_err(|_| ListenAddressError { input: text.to_owned() })
}

/// An address to listen on that is not one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{input:?} is not an address to listen on; write 127.0.0.1:8443, [::1]:8443 or only a port")]
pub struct ListenAddressError {
    input: String,
}

/// A token. It is sent to the relay and shown to nobody.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub struct Secret(String);

impl Secret {
    /// The token itself, for the one header that carries it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The SHA-256 of the token: names it without telling it.
    pub fn sha256(&self) -> [u8; 32] {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest(&SHA256, self.0.as_bytes()).as_ref());
        hash
    }

    /// What stands in a header is one word of visible ASCII (RFC 6750, section 2.1).
    pub(crate) fn is_one_word(&self) -> bool {
        !self.0.is_empty() && self.0.bytes().all(|byte| byte.is_ascii_graphic())
    }
}

impl From<String> for Secret {
    /// Without the newline that came with a file or a variable.
    fn from(text: String) -> Self {
        Self(text.trim().to_owned())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// The longest time that can be asked for.
const DURATION_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Reads `10s`, `500ms`, `1m30s`, `2 min`: more than zero, at most a day.
///
/// # Errors
/// Everything else, with a hint.
pub fn duration(text: &str) -> Result<Duration, DurationError> {
    let error = || DurationError { input: text.to_owned() };
    let duration = text.trim().parse::<SignedDuration>().map_err(|_| error())?;
    let duration = Duration::try_from(duration).map_err(|_| error())?;
    let allowed = Duration::from_millis(1)..=DURATION_MAX;
    if allowed.contains(&duration) { Ok(duration) } else { Err(error()) }
}

/// A time that was not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{input:?} is not a time from 1ms to 24h; write a number and a unit, as in 10s, 500ms or 1m30s")]
pub struct DurationError {
    input: String,
}

/// The longest time that requests can be kept: ten years.
const AGE_MAX: u64 = 3653;

/// Reads `30d`, or what [`duration`] does.
///
/// # Errors
/// Everything else, with a hint.
pub fn age(text: &str) -> Result<Duration, AgeError> {
    let days = text.strip_suffix('d').and_then(|days| days.parse().ok()).filter(|days| (1..=AGE_MAX).contains(days));
    let days = days.map(|days| Duration::from_secs(days * 24 * 60 * 60));
    days.or_else(|| duration(text).ok()).ok_or_else(|| AgeError { input: text.to_owned() })
}

/// A time that was not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{input:?} is not a time up to {AGE_MAX}d; write a number of days, as in 30d, or a shorter time, as in 12h")]
pub struct AgeError {
    input: String,
}

/// The most bytes of a disk that requests can take.
const DISK_MAX: u64 = 1 << 40;

/// Reads a number of bytes, as [`size`] does, from 1 MiB to 1 TiB, with GiB and TiB beside the smaller units.
///
/// # Errors
/// Everything else, with a hint.
pub fn disk_size(text: &str) -> Result<u64, DiskSizeError> {
    let units = [("GiB", 1 << 30), ("TiB", 1 << 40)];
    let large =
        units.into_iter().find_map(|(unit, bytes)| Some((text.strip_suffix(unit)?.parse::<u64>().ok()?, bytes)));
    let bytes = match large {
        Some((number, unit)) => number.checked_mul(unit),
        None => size(text).ok().and_then(|size| u64::try_from(size).ok()),
    };
    let allowed = 1 << 20..=DISK_MAX;
    bytes.filter(|bytes| allowed.contains(bytes)).ok_or_else(|| DiskSizeError { input: text.to_owned() })
}

/// Reads a number of bytes of any size: `4096`, `64KiB`, `16MiB`, `1GiB`.
///
/// # Errors
/// Everything else, with a hint.
pub fn byte_count(text: &str) -> Result<u64, ByteCountError> {
    relay_protocol::inbox::size(text).ok_or_else(|| ByteCountError { input: text.to_owned() })
}

/// A number of bytes that was not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{input:?} is not a number of bytes, alone or with a unit, as in 64KiB, 16MiB or 1GiB")]
pub struct ByteCountError {
    input: String,
}

/// A size that was not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{input:?} is not a size from 1MiB to 1TiB; write a number and a unit, as in 500MiB or 1GiB")]
pub struct DiskSizeError {
    input: String,
}

/// The most bytes of a request's body that can be kept.
const SIZE_MAX: usize = 256 << 20;

/// Reads a number of bytes: `4096`, `64KiB`, `16MiB`, at most 256 MiB.
///
/// # Errors
/// Everything else, with a hint.
pub fn size(text: &str) -> Result<usize, SizeError> {
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let unit = match unit {
        "" => Some(1),
        "KiB" => Some(1 << 10),
        "MiB" => Some(1 << 20),
        _ => None,
    };
    let size = digits.parse::<usize>().ok().zip(unit).and_then(|(number, unit)| number.checked_mul(unit));
    size.filter(|size| *size <= SIZE_MAX).ok_or_else(|| SizeError { input: text.to_owned() })
}

/// A size that was not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{input:?} is not a size up to 256MiB; write a number of bytes, or one with a unit, as in 64KiB or 16MiB")]
pub struct SizeError {
    input: String,
}

/// A file that may be removed, and be written anew: one that is not there yet, or a regular one. A pipe, a device or a
/// link stands for something else than itself, as `/dev/stdout` does.
///
/// # Errors
/// Everything else.
pub fn replaceable(file: PathBuf) -> Result<PathBuf, ReplaceableError> {
    match symlink_metadata(&file) {
        Ok(found) if !found.is_file() => Err(ReplaceableError),
        _ => Ok(file),
    }
}

/// Something that stands where a file is to be written, and must not be replaced by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is not a regular file, and would be replaced; name a file of its own, which need not be there")]
pub struct ReplaceableError;

/// Reads `KEY=VALUE`.
///
/// # Errors
/// Where there is no key, or no `=`.
pub fn setting(text: &str) -> Result<(String, String), SettingError> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(SettingError),
    }
}

/// A setting that was not understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is not KEY=VALUE, as in webhook_id=1")]
pub struct SettingError;

/// Reads a URL of HTTP, and leaves it as it is written: some sign it so.
///
/// # Errors
/// What has another scheme, no host, or white space in it.
pub fn web_url(text: &str) -> Result<String, UrlError> {
    let odd = |c: char| c.is_whitespace() || c.is_control();
    match origin(text) {
        Some(_) if !text.contains(odd) => Ok(text.to_owned()),
        _ => Err(UrlError { input: text.to_owned() }),
    }
}

/// A URL that nobody can have called.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{input:?} is not the URL of a webhook; write it whole, as in https://hooks.relay.example.com/path")]
pub struct UrlError {
    input: String,
}

/// Reads the path of a request, with a query or without.
///
/// # Errors
/// What begins with no slash, or has white space or a fragment in it.
pub fn request_path(text: &str) -> Result<String, PathError> {
    let odd = |c: char| c.is_whitespace() || c.is_control() || c == '#';
    if text.starts_with('/') && !text.contains(odd) { Ok(text.to_owned()) } else { Err(PathError) }
}

/// A path that cannot be requested.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is not the path of a request: it begins with a slash, as in /hooks")]
pub struct PathError;

/// Reads a time in seconds since 1970-01-01T00:00:00Z.
///
/// # Errors
/// Everything else, and years beyond 9999.
pub fn unix_time(text: &str) -> Result<Timestamp, UnixTimeError> {
    let seconds = text.parse().ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
    seconds.ok_or_else(|| UnixTimeError { input: text.to_owned() })
}

/// A time that was not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{input:?} is not a time in whole seconds since 1970, as `date +%s` prints it")]
pub struct UnixTimeError {
    input: String,
}

/// Reads the status of a final answer: 200 to 599.
///
/// # Errors
/// Everything else, with a hint.
pub fn final_status(text: &str) -> Result<StatusCode, StatusError> {
    let status = text.parse::<u16>().ok().filter(|status| matches!(status, 200..=599));
    status.and_then(|status| StatusCode::from_u16(status).ok()).ok_or_else(|| StatusError { input: text.to_owned() })
}

/// A status that no answer can have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{input:?} is not the status of an answer; write a number from 200 to 599")]
pub struct StatusError {
    input: String,
}

/// Reads one line of a header section: `Name: value`.
///
/// # Errors
/// What is no header, and what belongs to a connection or says how long a body is.
pub fn header(text: &str) -> Result<(HeaderName, HeaderValue), HeaderError> {
    let error = || HeaderError::Syntax { input: text.to_owned() };
    let (name, value) = text.split_once(':').ok_or_else(error)?;
    let name: HeaderName = name.trim().parse().map_err(|_| error())?;
    let value = HeaderValue::from_str(value.trim_matches([' ', '\t'])).map_err(|_| error())?;
    let own = ["connection", "content-length", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"];
    if own.contains(&name.as_str()) || name.as_str().starts_with("proxy-") {
        return Err(HeaderError::Own { name });
    }
    Ok((name, value))
}

/// A header that cannot be sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// It is none.
    #[error("{input:?} is not a header; write 'Name: value'")]
    Syntax {
        /// What was typed.
        input: String,
    },
    /// It is about the connection or the length of the body (RFC 9110, section 7.6.1).
    #[error("{name} is said by itself, where it is due; leave it out")]
    Own {
        /// The header's name.
        name: HeaderName,
    },
}

/// Reads a tunnel's name in any case: one DNS label (RFC 1123, section 2.1).
///
/// # Errors
/// Everything else, with a hint.
pub fn subdomain(text: &str) -> Result<String, SubdomainError> {
    let name = text.to_ascii_lowercase();
    if is_label(&name) { Ok(name) } else { Err(SubdomainError { input: text.to_owned() }) }
}

/// Reads a domain of one's own in any case: two DNS labels or more.
///
/// # Errors
/// Everything else, with a hint.
pub fn domain(text: &str) -> Result<String, DomainError> {
    let name = text.trim_end_matches('.').to_ascii_lowercase();
    let is_number = name.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
    let is_domain = name.contains('.') && name.len() <= 253 && name.split('.').all(is_label) && !is_number;
    if is_domain { Ok(name) } else { Err(DomainError { input: text.to_owned() }) }
}

/// Reads what a tunnel is called: a name below the relay's domain, or a domain of one's own.
///
/// # Errors
/// Everything else, with a hint.
pub fn public_name(text: &str) -> Result<String, SubdomainError> {
    domain(text).or_else(|_| subdomain(text))
}

/// What a tunnel may be called on this machine: letters, digits, `-` and `_`, at most 63.
pub(crate) fn is_table_name(name: &str) -> bool {
    matches!(name.len(), 1..=63) && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}

/// Letters, digits and inner hyphens, at most 63, in lower case.
pub(crate) fn is_label(name: &str) -> bool {
    matches!(name.len(), 1..=63)
        && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        && !name.starts_with('-')
        && !name.ends_with('-')
}

/// Reads the id of a webhook in an inbox.
///
/// # Errors
/// Everything else, with a hint.
pub fn webhook_id(text: &str) -> Result<String, WebhookIdError> {
    if is_webhook_id(text) { Ok(text.to_owned()) } else { Err(WebhookIdError) }
}

/// An id as the relay writes them, which is safe in a path.
pub(crate) fn is_webhook_id(text: &str) -> bool {
    text.len() == 26 && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// An id that no webhook has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an id has 26 letters and digits, as relay inbox list NAME shows")]
pub struct WebhookIdError;

/// A name that cannot be a tunnel's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{input:?} cannot be a tunnel's name; write at most 63 letters, digits and hyphens, with no hyphen at either end \
     and no dot"
)]
pub struct SubdomainError {
    input: String,
}

/// Not a domain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{input:?} is not a domain such as hooks.example.com; for a name below the relay's own, use --subdomain NAME")]
pub struct DomainError {
    input: String,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;

    #[test]
    fn secrets_do_not_print() {
        let secret = Secret::from("  rly_abc\n".to_owned());
        assert_eq!((secret.expose(), format!("{secret:?}").as_str()), ("rly_abc", "Secret(…)"));
        assert_ne!(secret.sha256(), Secret::from("rly_abd".to_owned()).sha256());
    }

    #[test]
    fn durations_sizes_and_names() {
        for (text, milliseconds) in [("10s", 10_000), ("500ms", 500), ("1m30s", 90_000), ("24h", 86_400_000)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(milliseconds)));
        }
        for bad in ["", "10", "0s", "-1s", "25h", "1us", "10 parsecs", "99999999999999999999s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        for (text, bytes) in [("0", 0), ("4096", 4096), ("64KiB", 65536), ("256MiB", 256 << 20)] {
            assert_eq!(size(text), Ok(bytes));
        }
        for bad in ["", "MiB", "-1", "1 MiB", "1kb", "257MiB", "99999999999999999999"] {
            assert!(size(bad).is_err(), "{bad}");
        }
        for (text, days) in [("30d", 30), ("1d", 1), ("24h", 1)] {
            assert_eq!(age(text), Ok(Duration::from_secs(days * 86_400)));
        }
        for (text, bytes) in [("1MiB", 1 << 20), ("1048576", 1 << 20), ("2GiB", 2 << 30), ("1TiB", 1 << 40)] {
            assert_eq!(disk_size(text), Ok(bytes));
        }
        for bad in ["", "d", "0d", "-1d", "1.5d", "3654d", "99999999999999999999d", "30"] {
            assert!(age(bad).is_err(), "{bad}");
        }
        for bad in ["", "GiB", "1023KiB", "2TiB", "1 GiB", "1GB", "99999999999999999999GiB"] {
            assert!(disk_size(bad).is_err(), "{bad}");
        }
        assert_eq!(subdomain("My-App2"), Ok("my-app2".to_owned()));
        for bad in ["", "-a", "a-", "a.b", "a_b", "ü", &"a".repeat(64)] {
            assert!(subdomain(bad).is_err(), "{bad}");
        }
        assert_eq!(domain("Hooks.Customer.example."), Ok("hooks.customer.example".to_owned()));
        for bad in
            ["", "hooks", ".", "a..b", "*.a.example", "a_b.example", "203.0.113.7", "a.example:443", &"a.".repeat(130)]
        {
            assert!(domain(bad).is_err(), "{bad}");
        }
        assert_eq!((public_name("a.b").unwrap().as_str(), public_name("A").unwrap().as_str()), ("a.b", "a"));
        assert!(public_name("a_b").is_err());
    }

    #[test]
    fn an_inspector_is_off_or_somewhere() {
        for (text, shown) in [("off", "off"), ("4041", "127.0.0.1:4041"), (":0", "127.0.0.1:0"), ("[::1]:1", "[::1]:1")]
        {
            assert_eq!(inspect(text).unwrap().to_string(), shown);
        }
        for bad in ["", "on", "localhost:4040", "127.0.0.1", "65536"] {
            assert!(inspect(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn answers_are_final_and_their_headers_safe() {
        for good in [200, 204, 302, 451, 599] {
            assert_eq!(final_status(&good.to_string()).unwrap().as_u16(), good);
        }
        for bad in ["", "0", "101", "199", "600", "2000", "OK"] {
            assert!(final_status(bad).is_err(), "{bad}");
        }
        let (name, value) = header("X-Any:\t a: b ").unwrap();
        assert_eq!((name.as_str(), value.as_bytes()), ("x-any", &b"a: b"[..]));
        assert_eq!(header("x-empty:").unwrap().1, "");
        for bad in ["", "x", ": a", "a b: c", "a: b\r\nc: d", "a\nb: c", "Content-Length: 1", "Connection: close"] {
            assert!(header(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_acknowledgement_can_be_in_a_file() {
        let directory = tempfile::TempDir::new().unwrap();
        let file = directory.path().join("ack.http");
        let ack = |text: &str| {
            std::fs::write(&file, text).unwrap();
            inbox(&format!("ordered, ack=@{},rate=7", file.display()))
        };
        let taken =
            ack("HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\nContent-Length: 9\r\n\r\n<Ok/>").unwrap().0.unwrap();
        let headers = vec![("content-type".to_owned(), "text/xml".to_owned())];
        assert_eq!(taken.ack, Some(Ack { status: 200, headers, body: "<Ok/>".to_owned() }));
        assert!(taken.ordered && taken.rate == 7);
        for (text, hint) in [
            ("HTTP/1.1 500 No\n\n", "200 to 299"),
            ("HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n", "transfer-encoding"),
            ("<Ok/>\n", "status line"),
            (&format!("HTTP/1.1 200 OK\n\n{}", "x".repeat(9000)), "8192 bytes"),
        ] {
            let error = ack(text).unwrap_err().to_string();
            assert!(error.contains(hint), "{text:.40}: {error}");
        }
        assert!(inbox("ack=@/nowhere/ack.http").unwrap_err().to_string().starts_with("/nowhere/ack.http: "));
        // A file that may be a stranger's reads no other.
        assert!("ack=@/nowhere/ack.http".parse::<InboxChoice>().is_err());
    }
}
