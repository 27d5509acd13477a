//! What whoever calls the inspector can make it hold, and for how long.
//!
//! Of requests that is at most [`CONNECTIONS`] × ([`HEAD`] + [`BODY`]), 1 GiB.

use std::time::Duration;

/// Connections at once; others wait in the backlog. A browser needs six.
pub(super) const CONNECTIONS: usize = 64;

/// Of these, those from one other machine.
pub(super) const CONNECTIONS_EACH: usize = 16;

/// The longest head of a request, in bytes.
pub(super) const HEAD: usize = 32 << 10;

/// How long a head may take. So long, too, a connection stays on which nothing is asked.
pub(super) const HEAD_TIME: Duration = Duration::from_secs(5);

/// The longest body of a request, in bytes: one of the largest that are recorded, in base64 and JSON.
pub(super) const BODY: usize = 16 << 20;

/// How long a body may take.
pub(super) const BODY_TIME: Duration = Duration::from_secs(30);

/// How long whoever has asked for something may take to read a part of it.
pub(super) const UNREAD: Duration = Duration::from_secs(30);

/// How long those who are being answered may take for the rest once the client has ended.
pub(super) const FAREWELL: Duration = Duration::from_secs(1);

/// Those at once who are told of everything, or wait for something.
pub(super) const WATCHERS: usize = 32;

/// News that are told together.
pub(super) const TOGETHER: usize = 256;

/// Lines of a list where nobody says how many.
pub(super) const LINES: usize = 200;

/// Lines of a list at most.
pub(super) const LINES_MAX: usize = 1000;

/// How many ids of a long list are looked up at once.
pub(super) const PAGE: usize = 500;

/// The longest name of a tunnel, in bytes. Some scripts make one of a whole URL and a UUID.
pub(super) const NAME: usize = 128;

/// How long the relay has to give a tunnel, or to take it back, and those who are before it to have theirs.
pub(super) const PATIENCE: Duration = Duration::from_secs(15);
