//! The two directions of a stream.

use std::collections::VecDeque;
use std::task::{Context, Waker};

use bytes::{Bytes, BytesMut};

use super::MAX_INTERIM;
use super::window::Window;
use crate::frame::{self, Frame, MAX_DATA, StreamId};

/// Bytes of body that we put into one frame: four of them fill, with what WebSocket and the frames themselves add, four TLS
/// records (of 16 KiB, RFC 8446, section 5.1) and no fifth one.
const SLICE: usize = MAX_DATA - 16;

/// One piece of a direction, in the order in which the other end will see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// A head, as [`message`](crate::message) encodes it.
    Head {
        /// Its bytes.
        head: Bytes,
        /// A 1xx response; the final head is still to come.
        interim: bool,
    },
    /// Part of the body, never empty.
    Data(Bytes),
    /// The end, with the trailers; empty for none.
    End(Bytes),
}

/// What we send on a stream.
///
/// ```text
///            head                 end                    the frame with the end is written
///   Head ───────────▶ Body ───────────────▶ Ending ────────────────────────────────────▶ Ended
/// ```
#[derive(Debug)]
pub(super) struct SendHalf {
    pub(super) state: SendState,
    /// The credits of an `Open` frame, until it is written.
    pub(super) opening: Option<Credits>,
    queue: VecDeque<Item>,
    /// Interim heads so far.
    interim_heads: usize,
    /// Body bytes in `queue`.
    queued: usize,
    /// Body bytes that the peer lets us write.
    credit: u64,
    /// The stream is in the list of those that have something to write.
    pub(super) scheduled: bool,
    pub(super) waker: Option<Waker>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SendState {
    Head,
    Body,
    Ending,
    Ended,
}

/// What an `Open` frame says beside the head.
#[derive(Clone, Copy, Debug)]
pub(super) struct Credits {
    pub(super) request: u32,
    pub(super) response: u32,
}

/// What became of a stream's turn to write.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// There is more that may be written now.
    More,
    /// Nothing more may be written before the application or the peer does something.
    Waiting,
    /// The direction has ended.
    Ended,
}

impl SendHalf {
    pub(super) const fn new(credit: u32, opening: Option<Credits>) -> Self {
        Self {
            state: SendState::Head,
            opening,
            queue: VecDeque::new(),
            interim_heads: 0,
            queued: 0,
            credit: credit as u64,
            scheduled: false,
            waker: None,
        }
    }

    /// False for an interim head too many.
    pub(super) fn push_head(&mut self, head: Bytes, interim: bool) -> bool {
        if !interim {
            self.state = SendState::Body;
        } else if self.interim_heads == MAX_INTERIM {
            return false;
        } else {
            self.interim_heads += 1;
        }
        self.queue.push_back(Item::Head { head, interim });
        true
    }

    /// Takes as much of `bytes` as credit and `room` allow.
    pub(super) fn push_data(&mut self, bytes: &mut Bytes, room: usize) -> usize {
        let credit = usize::try_from(self.credit).unwrap_or(usize::MAX).saturating_sub(self.queued);
        let taken = bytes.len().min(credit).min(room);
        if taken > 0 {
            let piece = bytes.split_to(taken);
            self.queued += taken;
            match self.queue.back_mut() {
                Some(Item::Data(last)) if last.len() + taken <= SMALL => *last = join(std::mem::take(last), &piece),
                _ => self.queue.push_back(Item::Data(piece)),
            }
        }
        taken
    }

    pub(super) fn push_end(&mut self, trailers: Bytes) {
        self.queue.push_back(Item::End(trailers));
        self.state = SendState::Ending;
    }

    /// Adds credit; false when the sum is more than any window can be.
    pub(super) fn grant(&mut self, bytes: u32) -> bool {
        self.credit += u64::from(bytes);
        self.credit <= u64::from(u32::MAX)
    }

    pub(super) const fn queued(&self) -> usize {
        self.queued
    }

    /// Whether a turn would write something.
    pub(super) fn is_ready(&self) -> bool {
        match self.queue.front() {
            None => false,
            Some(Item::Data(_)) => self.credit > 0,
            Some(Item::Head { .. } | Item::End(_)) => true,
        }
    }

    /// Forgets everything that is not written yet. Returns the body bytes that it held.
    pub(super) fn clear(&mut self) -> usize {
        self.queue = VecDeque::new();
        self.state = SendState::Ended;
        std::mem::take(&mut self.queued)
    }

    /// Writes the stream's share of one round: its head, one frame of its body, its end.
    pub(super) fn write(&mut self, stream: StreamId, out: &mut BytesMut) -> Turn {
        let mut had_data = false;
        while let Some(item) = self.queue.front_mut() {
            match item {
                Item::Head { head, interim } => {
                    let (head, interim) = (std::mem::take(head), *interim);
                    self.queue.pop_front();
                    let last = !interim && self.take_plain_end();
                    match self.opening.take() {
                        Some(Credits { request, response }) => {
                            Frame::Open { stream, request_credit: request, response_credit: response, last, head }
                        }
                        None => Frame::Head { stream, interim, last, head },
                    }
                    .encode(out);
                    // One head a turn: a turn's frames are then never more than a message holds.
                    if interim && !self.queue.is_empty() {
                        return Turn::More;
                    }
                }
                Item::Data(bytes) => {
                    let len = bytes.len().min(SLICE).min(usize::try_from(self.credit).unwrap_or(usize::MAX));
                    if had_data || len == 0 {
                        return if len == 0 { Turn::Waiting } else { Turn::More };
                    }
                    had_data = true;
                    let chunk = bytes.split_to(len);
                    self.credit -= len as u64;
                    self.queued -= len;
                    let last = if bytes.is_empty() {
                        self.queue.pop_front();
                        self.take_plain_end()
                    } else {
                        false
                    };
                    frame::data(out, stream, last, &chunk);
                }
                Item::End(trailers) => {
                    let trailers = std::mem::take(trailers);
                    self.queue.pop_front();
                    self.state = SendState::Ended;
                    Frame::End { stream, trailers }.encode(out);
                }
            }
        }
        if self.state == SendState::Ended { Turn::Ended } else { Turn::Waiting }
    }

    /// An end without trailers needs no frame of its own.
    fn take_plain_end(&mut self) -> bool {
        let plain = matches!(self.queue.front(), Some(Item::End(trailers)) if trailers.is_empty());
        if plain {
            self.queue.pop_front();
            self.state = SendState::Ended;
        }
        plain
    }
}

/// What we receive on a stream.
///
/// ```text
///           final head                end
///   Head ───────────────▶ Body ───────────────▶ Ended
///
///   Any ── our reset ──▶ Cut
/// ```
#[derive(Debug)]
pub(super) struct RecvHalf {
    pub(super) state: RecvState,
    pub(super) window: Window,
    queue: VecDeque<Item>,
    /// Small pieces behind the queue, gathered so that a peer cannot make us hold one allocation per byte.
    tail: BytesMut,
    pub(super) waker: Option<Waker>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RecvState {
    Head,
    Body,
    Ended,
    /// What was unread was thrown away, so this must never read as a complete message, even if the end was there.
    Cut,
}

/// Small pieces that wait for the link become one: fewer frames, and not one allocation for each byte.
fn join(last: Bytes, piece: &[u8]) -> Bytes {
    let mut joined = match last.try_into_mut() {
        Ok(own) if own.capacity() <= SMALL => own,
        Ok(own) => BytesMut::from(&own[..]),
        Err(shared) => BytesMut::from(&shared[..]),
    };
    joined.extend_from_slice(piece);
    joined.freeze()
}

/// Pieces shorter than this are gathered while nobody reads or writes them.
const SMALL: usize = 1024;

impl RecvHalf {
    pub(super) fn new(window: Window) -> Self {
        Self { state: RecvState::Head, window, queue: VecDeque::new(), tail: BytesMut::new(), waker: None }
    }

    pub(super) fn push_head(&mut self, head: Bytes, interim: bool) {
        self.queue.push_back(Item::Head { head, interim });
        if !interim {
            self.state = RecvState::Body;
        }
    }

    /// Keeps `bytes`, which are a slice of a message of `message_len` bytes.
    pub(super) fn push_data(&mut self, bytes: Bytes, message_len: usize) {
        if bytes.len() < SMALL && !(self.queue.is_empty() && self.tail.is_empty()) {
            self.tail.extend_from_slice(&bytes);
            if self.tail.len() >= SMALL {
                self.flush_tail();
            }
        } else {
            self.flush_tail();
            self.queue.push_back(Item::Data(own(bytes, message_len)));
        }
    }

    pub(super) fn push_end(&mut self, trailers: Bytes) {
        self.flush_tail();
        self.queue.push_back(Item::End(trailers));
        self.state = RecvState::Ended;
    }

    pub(super) fn pop(&mut self) -> Option<Item> {
        self.queue.pop_front().or_else(|| (!self.tail.is_empty()).then(|| Item::Data(self.tail.split().freeze())))
    }

    /// Interim heads that nobody has read yet.
    pub(super) fn interim_heads(&self) -> usize {
        self.queue.iter().filter(|item| matches!(item, Item::Head { interim: true, .. })).count()
    }

    /// Bytes of heads and trailers that nobody has read yet.
    pub(super) fn unread_heads(&self) -> usize {
        self.queue.iter().map(Item::head_len).sum()
    }

    /// Throws away what is unread, and what would still come.
    pub(super) fn cut(&mut self) {
        self.clear();
        self.state = RecvState::Cut;
    }

    pub(super) fn clear(&mut self) {
        self.queue = VecDeque::new();
        self.tail = BytesMut::new();
    }

    fn flush_tail(&mut self) {
        if !self.tail.is_empty() {
            self.queue.push_back(Item::Data(std::mem::take(&mut self.tail).freeze()));
        }
    }
}

impl Item {
    /// Bytes that no window counts.
    pub(super) fn head_len(&self) -> usize {
        match self {
            Self::Head { head, .. } => head.len(),
            Self::End(trailers) => trailers.len(),
            Self::Data(_) => 0,
        }
    }
}

/// A piece of a message that may be kept for long: a copy, where the piece alone would hold more than twice its own
/// length in memory.
pub(super) fn own(piece: Bytes, message_len: usize) -> Bytes {
    if piece.len() * 2 < message_len { Bytes::copy_from_slice(&piece) } else { piece }
}

/// Notes whom to wake, without cloning the waker that is already noted.
pub(super) fn note(slot: &mut Option<Waker>, cx: &Context<'_>) {
    match slot {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *slot = Some(cx.waker().clone()),
    }
}
