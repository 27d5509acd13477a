//! The harness: what a test starts and calls.
//!
//! ```no_run
//! # async fn test() {
//! use relay_tests::{App, World};
//!
//! let world = World::start().await;
//! let app = App::echo().await;
//! let tunnel = world.tunnel(&app).await;
//! let answer = world.post(&format!("{}/hooks", tunnel.url()), "hello").await;
//! assert_eq!((answer.status.as_u16(), answer.text()), (200, "hello"));
//! # }
//! ```
//!
//! Everything listens on port 0 of loopback and ends with its handle. Nothing sleeps in order to wait for something
//! else: whoever waits does so for an event, and [`within`] turns an event that never comes into a failure.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on fails by panicking"
)]

pub mod app;
pub mod bind;
pub mod body;
pub mod browser;
pub mod disk;
pub mod issuer;
pub mod machine;
pub mod network;
pub mod parent;
pub mod pebble;
pub mod peer;
pub mod place;
pub mod process;
pub mod strace;
pub mod terminal;
pub mod tools;
pub mod web;
pub mod wire;
pub mod world;

pub use self::app::{App, Seen};
pub use self::bind::Bind;
pub use self::body::{Body, Pipe};
pub use self::browser::Browser;
pub use self::disk::Disk;
pub use self::issuer::Issuer;
pub use self::network::Network;
pub use self::parent::Parent;
pub use self::pebble::Pebble;
pub use self::place::Place;
pub use self::process::{Process, RelayClient, RelayServer};
pub use self::strace::Strace;
pub use self::web::Web;
pub use self::wire::Wire;
pub use self::world::{Answer, Http, World};

use std::time::Duration;

/// How long anything may take before a test gives it up: a cold start beside a running build.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Less than the time-outs for which a test shows that nobody waits, the shortest of which are 10 s, and more than what waits
/// for none of them takes where only a tenth of the machine is left.
pub const AT_ONCE: Duration = Duration::from_secs(9);

/// Waits for something that should come soon; panics where it does not.
#[track_caller]
pub fn within<F: Future>(what: impl std::fmt::Display, future: F) -> impl Future<Output = F::Output> {
    let caller = std::panic::Location::caller();
    async move {
        match tokio::time::timeout(PATIENCE, future).await {
            Ok(output) => output,
            Err(_) => panic!("{caller}: nothing after {PATIENCE:?}: {what}"),
        }
    }
}
