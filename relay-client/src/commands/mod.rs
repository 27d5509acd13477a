//! A file for each command that does more than print.
//!
//! ```text
//!   cli, config ─▶ run, listen, start, wait, status, login, check, verify, dev ─▶ client
//!                  requests, show, export, replay ─▶ capture::history
//!                  inbox ─▶ outgoing ─▶ the relay's API
//!                  trigger, send ─▶ delivery ─▶ outgoing ─▶ a public URL, or any other
//! ```

pub mod check;
pub mod delivery;
#[cfg(feature = "embedded")]
mod demo;
#[cfg(feature = "embedded")]
pub mod dev;
pub mod export;
pub mod inbox;
pub mod listen;
pub mod login;
pub mod open;
pub mod pages;
mod prompt;
pub mod replay;
pub mod requests;
pub mod run;
pub mod send;
pub mod show;
pub mod start;
pub mod status;
mod test_secret;
pub mod trigger;
pub mod verify;
pub mod wait;
