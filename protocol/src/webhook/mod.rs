//! Webhooks understood: who sent a request, what it is about, how long its sender waits, and whether it was signed by
//! who it says it is from.
//!
//! Nothing here knows a provider: what is known of each is a row of `providers.toml`, and a user's own file can add rows
//! and replace fields of them. Everything is a function of a [`Request`], the row and the time, without a socket, a clock
//! or a file, so that the edge, the client and a command that reads a file judge alike.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use http::{HeaderName, HeaderValue, Method};
//! use relay_protocol::webhook::{Credentials, Request, Table, Verdict};
//!
//! let table = Table::built_in()?;
//! let headers = [(HeaderName::from_static("stripe-signature"), HeaderValue::from_static("t=1,v1=00"))];
//! let request = Request::new(&Method::POST, "https://t.example/hook", &headers, b"{\"type\": \"invoice.paid\"}");
//! let provider = table.recognise(&request).ok_or("nobody's")?;
//! assert_eq!(provider.id, "stripe");
//! assert_eq!(provider.event(&request).kind.as_deref(), Some("invoice.paid"));
//! let now = "2026-01-01T00:00:00Z".parse()?;
//! assert_eq!(provider.judge(&request, &Credentials::default(), now).verdict, Verdict::Malformed);
//! # Ok(())
//! # }
//! ```
//!
//! | file | holds |
//! |---|---|
//! | `providers.toml` | what is known of each provider, and from where |
//! | `table` | the rows: reading them, recognising, events, deadlines |
//! | `request`, `json` | a request, the places in it where providers put things, and how to put something there |
//! | `condition`, `template` | the two small languages of the table: what must hold, of a row, a route or a filter, and what is composed of what |
//! | `credentials` | what the user knows: secrets and settings |
//! | `scheme` | the handful of ways to sign, as arithmetic over bytes |
//! | `signature`, `token`, `time` | judging a request by a rule of the table |
//! | `sign` | signing one by the same rule |
//! | `mask` | what others must not read of a request |
//! | `explain` | what was done to a request whose signature does not fit |
//! | `handshake` | how an endpoint is confirmed |
//! | `told` | what a client tells its relay of a tunnel's webhooks |
//! | `verdict` | what is found of a signature, and how a relay tells it to a client |

mod condition;
mod credentials;
mod explain;
mod handshake;
mod json;
pub mod mask;
mod request;
mod scheme;
mod sign;
mod signature;
mod table;
mod template;
mod time;
mod token;
mod told;
mod verdict;

pub(crate) use self::condition::like;
pub use self::{
    condition::{Conditions, Filter},
    credentials::{Credentials, Secret, Settings},
    handshake::Reply,
    request::{Draft, ReplaceError, Request},
    scheme::KeyPair,
    sign::SignError,
    table::{Answer, Confidence, Event, Fact, OnDeadline, Provider, Source, Table, TableError},
    token::{Unsigned, signed_claims},
    told::{MAX_SECRETS, MAX_SETTINGS, MAX_TOLD, Verify, Webhooks, WebhooksError},
    verdict::{Judgement, NoVerdict, Verdict, plain},
};
