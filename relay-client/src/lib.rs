//! The client: a public URL for a service on this machine.
//!
//! ```text
//!   the relay's WebSocket ──▶ session ──▶ upstream ──▶ the local service
//!                                │
//!                                └──▶ whoever observes: the terminal, a test
//! ```
//!
//! Programs embed [`Tunnel`] or [`Client`]; the `relay` command is a thin shell around them.

pub mod address;
mod atomic;
pub mod check;
pub mod cli;
mod client;
pub mod config;
#[cfg(feature = "embedded")]
mod demo;
#[cfg(feature = "embedded")]
pub mod dev;
pub mod dial;
pub mod listen;
pub mod login;
pub mod names;
pub mod open;
pub mod pages;
pub mod platform;
pub mod probe;
mod prompt;
mod qr;
pub mod rewrite;
pub mod run;
pub mod screen;
pub mod service;
mod services;
mod session;
mod socket;
pub mod start;
mod state_line;
pub mod terminal;
mod traffic;
mod tunnel;
mod upstream;
pub mod value;
mod watch;

pub use self::client::{Client, ClientError, TunnelOptions};
pub use self::session::{ConnectError, Observer};
pub use self::tunnel::{Exchange, Tunnel};
