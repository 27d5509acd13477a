//! A limit for everything that a stranger can grow or hold.

use std::time::Duration;

/// Bytes of a request's body that an HTTP/2 stream holds for a tunnel which does not take them. An upload reaches this
/// much per round trip at most: 2.6 MB/s at 50 ms.
pub const HTTP2_WINDOW: u32 = 128 * 1024;

/// A limit for everything that a stranger can grow or hold, in one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Public connections at once. Each costs about 20 KiB while idle.
    pub connections: usize,
    /// Public connections from one address (one /64 with IPv6) at once.
    pub connections_per_address: usize,
    /// The TLS handshake, with the PROXY header before it.
    pub handshake: Duration,
    /// A request's head, from its first byte; the first one of a connection from the handshake's end.
    pub head: Duration,
    /// Bytes of a request's head.
    pub head_bytes: usize,
    /// Header lines of a request.
    pub headers: usize,
    /// Bytes of a request's body.
    pub body_bytes: u64,
    /// A connection without a request.
    pub keep_alive: Duration,
    /// A request body that does not come.
    pub body_idle: Duration,
    /// A receiver that does not read.
    pub write_idle: Duration,
    /// A response body that does not come.
    pub response_idle: Duration,
    /// An upgraded connection on which nothing moves.
    pub upgrade_idle: Duration,
    /// Streams of one HTTP/2 connection. Each may hold [`HTTP2_WINDOW`] of a request's body that its tunnel has not taken
    /// yet, and the connection as much as all of them together (16 MiB), so that uploads which stall leave the others
    /// room. All connections together hold no more than [`Self::connections`] times that; in practice less, because a
    /// body is held only until its request is answered, and a session has at most [`Self::session_streams`] requests
    /// under way (128 MiB).
    pub http2_streams: u32,
    /// The deadline for a response's head where neither the tunnel nor the sender's provider has one.
    pub deadline: Duration,
    /// How long a request waits for a client that is away.
    pub client_wait: Duration,
    /// Requests of one tunnel that wait for its client.
    pub client_waiters: usize,
    /// Exchanges of one session at once.
    pub session_streams: u32,
    /// The client's [`Hello`](relay_protocol::message::Hello), from the end of the upgrade.
    pub hello: Duration,
    /// Sessions of all tokens together.
    pub sessions: usize,
    /// Tunnels of one session.
    pub session_tunnels: usize,
    /// Custom domains for which the relay gets certificates.
    pub domains: usize,
    /// How long after its end a session can be resumed.
    pub resume: Duration,
    /// Ended sessions that can be resumed; beyond it the earliest cannot of the token that has most of them. Each costs
    /// about 150 bytes.
    pub resume_keys: usize,
    /// Refused connect attempts from one address in a minute, before it has to wait.
    pub refusals_per_minute: u32,
    /// Logins at one tunnel in a minute for which its issuer is asked who somebody is. A sixth of it may fail from one address.
    pub logins_per_minute: u32,
    /// How long a login holds.
    pub login: Duration,
    /// Bytes of a body whose signature is judged here, where its provider has no limit of its own.
    pub verify_body: usize,
    /// Bytes of such bodies at once. Those of at most 64 KiB, which every request may have, do not count. While bodies
    /// arrive, twice as much may be in use. The tunnels of one token have half of it, and less where others need some; of
    /// bodies that did not come with their heads they have as many as a session has requests, an eighth from one address.
    pub verify_bytes: usize,
    /// Bytes of the body of a webhook that goes into an inbox.
    pub inbox_body: u64,
    /// Webhooks that wait in one inbox, dead letters among them.
    pub inbox_count: u64,
    /// Bytes of those, with their heads.
    pub inbox_bytes: u64,
    /// Webhooks of one inbox that are tried as they come. Those beyond wait in the inbox for their first attempt.
    pub inbox_live: usize,
    /// Bytes of the bodies of those, of all inboxes together.
    pub inbox_live_bytes: u64,
    /// Inboxes of one token.
    pub inboxes_per_token: u64,
    /// Bytes in all inboxes of one token, with those of delivered webhooks.
    pub inbox_token_bytes: u64,
    /// Bytes in all inboxes together.
    pub inbox_total_bytes: u64,
    /// Bytes that stay free on the disk: with less, no webhook is accepted. It leaves room to deliver what there is.
    pub inbox_free: u64,
    /// By when a sender whose limit is not known is told that its webhook is accepted.
    pub inbox_ack: Duration,
    /// The wait after the first attempt to deliver a webhook. Each further one doubles it, up to an hour.
    pub inbox_retry: Duration,
    /// How long a webhook that was delivered is remembered, though without its body.
    pub inbox_delivered: Duration,
    /// How many of those of one inbox are remembered.
    pub inbox_delivered_count: u64,
    /// How many bytes of their heads.
    pub inbox_delivered_bytes: u64,
    /// How long a dead letter is kept.
    pub inbox_dead: Duration,
    /// How long a shutdown waits for exchanges to end.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 10_000,
            connections_per_address: 2_000,
            handshake: Duration::from_secs(10),
            head: Duration::from_secs(10),
            head_bytes: 32 * 1024,
            headers: 100,
            body_bytes: 64 << 30,
            keep_alive: Duration::from_secs(75),
            body_idle: Duration::from_secs(30),
            write_idle: Duration::from_secs(30),
            response_idle: Duration::from_secs(300),
            upgrade_idle: Duration::from_secs(3600),
            http2_streams: 128,
            deadline: Duration::from_secs(30),
            client_wait: Duration::from_secs(5),
            client_waiters: 256,
            session_streams: 1024,
            hello: Duration::from_secs(10),
            sessions: 10_000,
            session_tunnels: relay_protocol::message::MAX_TUNNELS,
            domains: 1000,
            resume: Duration::from_secs(600),
            resume_keys: 20_000,
            refusals_per_minute: 60,
            logins_per_minute: 60,
            login: Duration::from_secs(8 * 3600),
            verify_body: 10 << 20,
            verify_bytes: 64 << 20,
            inbox_body: 25 << 20,
            inbox_count: 100_000,
            inbox_bytes: 1 << 30,
            inbox_live: 256,
            inbox_live_bytes: 128 << 20,
            inboxes_per_token: 100,
            inbox_token_bytes: 4 << 30,
            inbox_total_bytes: 16 << 30,
            inbox_free: 256 << 20,
            inbox_ack: Duration::from_millis(4250),
            inbox_retry: Duration::from_secs(5),
            inbox_delivered: Duration::from_secs(3 * 24 * 3600),
            inbox_delivered_count: 10_000,
            inbox_delivered_bytes: 64 << 20,
            inbox_dead: Duration::from_secs(30 * 24 * 3600),
            drain: Duration::from_secs(30),
        }
    }
}
