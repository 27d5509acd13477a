//! A public HTTPS URL for a service on this machine, through a relay of your own: the client, as a library.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use relay_client::Tunnel;
//!
//! let tunnel = Tunnel::builder().relay("https://relay.example.com").token("rly_…").upstream(3000).open().await?;
//! println!("{} leads to port 3000", tunnel.url());
//! tunnel.close().await?;
//! # Ok(()) }
//! ```
//!
//! A [`Tunnel`] lives in a task of its own, in the tokio runtime that it was opened in, and comes back by itself with the
//! same URL when the network, the relay or the machine was away. There may be any number of them in a process.
//!
//! # Who answers
//!
//! [`TunnelBuilder::upstream`] forwards to a port, [`TunnelBuilder::serve`] calls a handler in this process, without a
//! port, and [`TunnelBuilder::capture`] keeps requests for a test that wants to see them:
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use http::{Request, Response};
//! use relay_client::{Body, Tunnel};
//!
//! let mut tunnel = Tunnel::builder()
//!     .from_env() // RELAY_URL, RELAY_TOKEN, RELAY_CA_FILE
//!     .serve(|request: Request<Body>| async move { Response::new(format!("you asked for {}", request.uri())) })
//!     .capture()
//!     .open()
//!     .await?;
//! // … make a provider call tunnel.url() …
//! let request = tunnel.next_request().await.ok_or("the tunnel has ended")?;
//! assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", "/hooks"));
//! # Ok(()) }
//! ```
//!
//! # What happens to it
//!
//! [`Tunnel::status`] tells when the relay is lost and when it is back, and [`Tunnel::exchange`] of each request that
//! was answered, with its status, its duration and an error's code. [`Tunnel::close`] waits for what is under way;
//! dropping the tunnel does not, and does not block.
//!
//! # A relay for tests
//!
//! A test needs no relay elsewhere: `relay_server::Relay::start` runs one inside the test.
//!
//! # What is stable
//!
//! What this page lists is the library, and follows semantic versioning. The modules that it does not show are the
//! `relay` program's own, and may change with every version.
//!
//! # Inside
//!
//! ```text
//!   the relay's WebSocket ──▶ session ──▶ upstream ──▶ the service
//!                                │
//!                                └──▶ whoever observes: a program, a terminal
//! ```

mod access;
mod atomic;
#[doc(hidden)]
pub mod capture;
#[doc(hidden)]
pub mod cli;
#[doc(hidden)]
pub mod client;
#[doc(hidden)]
pub mod commands;
#[doc(hidden)]
pub mod config;
#[doc(hidden)]
pub mod control;
mod door;
mod event;
mod fetch;
mod inboxes;
#[doc(hidden)]
pub mod inspector;
#[doc(hidden)]
pub mod intake;
mod keys;
mod options;
mod outgoing;
#[doc(hidden)]
pub mod platform;
#[doc(hidden)]
pub mod samples;
#[doc(hidden)]
pub mod secret;
#[doc(hidden)]
pub mod session;
#[doc(hidden)]
pub mod terminal;
mod tunnel;
#[doc(hidden)]
pub mod upstream;
#[doc(hidden)]
pub mod value;
#[doc(hidden)]
pub mod webhooks;

#[doc(hidden)]
pub use self::client::Client;
pub use self::client::ClientError;
#[doc(hidden)]
pub use self::event::{Event, Observer};
#[doc(hidden)]
pub use self::options::TunnelOptions;
pub use self::session::ConnectError;
pub use self::tunnel::builder::{OpenError, TunnelBuilder};
pub use self::tunnel::received::ReceivedRequest;
pub use self::tunnel::{Exchange, ReplayError, Replayed, Status, Tunnel};
pub use self::upstream::service::{Body, BodyError, BoxError};
pub use self::value::UpstreamProtocol;

/// The guide's code compiles.
#[cfg(all(doctest, feature = "embedded"))]
#[doc = include_str!("../../docs/sdk.md")]
struct Guide;
