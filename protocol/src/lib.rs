//! What relay and client agree on.
//!
//! `PROTOCOL.md` beside this crate is the normative description of the wire; golden tests hold the code to it.
//! Data flows through the modules in one direction:
//!
//! | module | holds |
//! |---|---|
//! | [`frame`] | the unit of the wire: a fixed header and a payload |
//! | [`message`] | what the payloads of heads and handshakes say |
//! | [`exchange`] | the rules between those heads and HTTP: hop-by-hop headers, framing, validity |
//! | [`mux`] | the multiplexer: a state machine without sockets and without a clock |
//! | [`link`] | the only I/O: one task drives a mux over one WebSocket |
//! | [`gather`] | fewer and larger reads below TLS |
//! | [`splice`] | an exchange as a pipe of bytes, after an upgrade |
//!
//! Beside the wire stand [`webhook`], what both ends know of those who send the requests, [`inbox`], what they agree on
//! about those that wait, [`access`], who may send any, by [`network`] and by a login ([`oidc`]) among others, and [`trace`],
//! how a request is followed through both.

pub mod access;
pub mod exchange;
pub mod frame;
pub mod gather;
pub mod inbox;
pub mod link;
pub mod message;
pub mod mux;
pub mod network;
pub mod oidc;
pub mod paths;
pub mod query;
pub mod splice;
#[cfg(feature = "testing")]
pub mod testing;
pub mod trace;
pub mod webhook;

/// The WebSocket subprotocol that this version speaks, and the name of the wire in `PROTOCOL.md`.
pub const SUBPROTOCOL: &str = "relay.v1";

/// The path of the connect endpoint on the relay's base domain.
pub const CONNECT_PATH: &str = "/_relay/connect";
