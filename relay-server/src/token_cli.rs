//! `relay-server token …`: tokens and reserved names, for the operator and for scripts.
//!
//! What a script wants is alone on stdout; what a person is told besides goes to stderr.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::{Args, Subcommand, ValueEnum};
use relay_protocol::inbox::{Inbox, sized};
use relay_protocol::network::Network;
use relay_protocol::webhook::{Table, TableError};
use thiserror::Error;

use crate::clock::{moment, unix_now};
use crate::control::{Control, ControlError, Reply, Request, webhooks};
use crate::status::Token;
use crate::store::{LimitChange, Name, NewToken, TokenLimits};
use crate::table;

/// What can be done with tokens.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token and print it, and only it, on stdout: it is shown this once
    ///
    /// If a revoked token had the same name, the new one takes over its tunnel names.
    #[command(after_help = "Example: RELAY_TOKEN=$(relay-server token create alice --reserve hooks --expires 30d)")]
    Create {
        /// What to call it: who or what will use it
        name: String,
        /// Tunnel names that are to be its own for good
        #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
        reserve: Vec<Name>,
        /// How long it is valid: 90m, 12h, 30d, 4w [default: until it is revoked]
        #[arg(long, value_name = "TIME")]
        expires: Option<Lifetime>,
        /// What its owner may have.
        #[command(flatten)]
        limits: LimitArgs,
    },
    /// Change what a token's owner may have, at once; without a flag, say what that is
    ///
    /// What is beyond a new limit goes on, and no more is let in.
    Limit {
        /// The token's name
        name: String,
        /// What its owner may have.
        #[command(flatten)]
        limits: LimitArgs,
    },
    /// Show all tokens with the tunnel names they hold, never the secrets
    List {
        /// For people, or one JSON object per line
        #[arg(long, value_enum, default_value_t)]
        output: Output,
    },
    /// End a token and its sessions, at once and for good
    ///
    /// Its reserved tunnel names rest for 30 days. A new token of the same name gets them back.
    Revoke {
        /// The token's name
        name: String,
    },
    /// Make tunnel names a token's own for good
    ///
    /// Once more for the same token: the provider, or that there is none, is that of the last time.
    Reserve {
        /// The token's name
        name: String,
        /// The tunnel names, or domains of its owner's such as hooks.customer.com
        #[arg(required = true, value_name = "TUNNEL")]
        names: Vec<Name>,
        /// Whose webhooks they are for: the relay answers its handshakes while the client is away, where that needs no
        /// secret
        #[arg(long, value_name = "PROVIDER")]
        provider: Option<ProviderId>,
        /// Keep webhooks that come while no client is there, also before the first one, and deliver them when one is; how,
        /// in words such as ordered,ack=200. Without it an inbox that is there stays as it is
        #[arg(long, value_name = "HOW", num_args = 0..=1, require_equals = true, default_missing_value = "on")]
        inbox: Option<Inbox>,
    },
    /// Give up reserved tunnel names; they rest for 30 days before another token may have them
    ///
    /// Their inboxes are closed.
    Release {
        /// The tunnel names
        #[arg(required = true, value_name = "TUNNEL")]
        names: Vec<Name>,
        /// Also where webhooks that were not delivered are forgotten with them
        #[arg(long)]
        forget_webhooks: bool,
    },
}

/// What a token's owner may have.
#[derive(Args, Clone, Debug, Default)]
pub struct LimitArgs {
    /// Tunnels open at the same time [20 for a new token]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_tunnels: Option<u32>,
    /// Tunnel names held at the same time, random ones aside [20 for a new token]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_names: Option<u32>,
    /// Sessions (running clients) at the same time [20 for a new token]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_sessions: Option<u32>,
    /// Requests of the public in a second, to all of its tunnels [off for a new token]
    #[arg(long, value_name = "N|off")]
    max_rate: Option<Most<u32>>,
    /// Those under way at the same time [off for a new token]
    #[arg(long, value_name = "N|off")]
    max_streams: Option<Most<u32>>,
    /// Bytes of their bodies and their answers' in a calendar month (UTC), such as 10GiB [off for a new token]
    #[arg(long, value_name = "SIZE|off")]
    max_bytes: Option<Most<Size>>,
    /// The longest body of a request, such as 10MiB [off for a new token]
    #[arg(long, value_name = "SIZE|off")]
    max_body: Option<Most<Size>>,
    /// Where requests to its tunnels may come from, whoever they let in themselves, such as 203.0.113.0/24; can be given
    /// several times [off for a new token]
    #[arg(long, value_name = "CIDR,…|off", value_delimiter = ',')]
    allow: Vec<Most<Network>>,
}

impl LimitArgs {
    fn change(self) -> LimitChange {
        let bytes = |most: Option<Most<Size>>| most.map(|most| most.0.map(|size| size.0));
        LimitChange {
            max_tunnels: self.max_tunnels,
            max_names: self.max_names,
            max_sessions: self.max_sessions,
            max_rate: self.max_rate.map(|most| most.0),
            max_streams: self.max_streams.map(|most| most.0),
            max_bytes: bytes(self.max_bytes),
            max_body: bytes(self.max_body),
            // `off` alone leaves none.
            allow: Some(self.allow)
                .filter(|all| !all.is_empty())
                .map(|all| all.into_iter().filter_map(|one| one.0).collect()),
        }
    }
}

/// A limit, or `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Most<T>(Option<T>);

impl<T: FromStr> FromStr for Most<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, T::Err> {
        if text == "off" { Ok(Self(None)) } else { text.parse().map(|most| Self(Some(most))) }
    }
}

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Size(u64);

/// Why a text is no number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("expected a number of bytes, such as 10GiB, 500MiB or 4096, or off")]
pub struct SizeError;

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        relay_protocol::inbox::size(text).map(Self).ok_or(SizeError)
    }
}

/// In which form a list is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// A table.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Why a command was not carried out.
#[derive(Debug, Error)]
pub enum CliError {
    /// The relay or its store could not be reached.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// It said no.
    #[error("{message}")]
    Refused {
        /// Why.
        message: String,
    },
    /// The body of a webhook is gone.
    #[error("the webhook was delivered, and its body is not kept any more")]
    Gone,
    /// There are no such webhooks.
    #[error(
        "no such webhook is in the inbox {0}, so nothing was done; relay-server inbox list {0} shows those that are"
    )]
    Nothing(Name),
    /// Not all that waited was delivered.
    #[error(
        "none waits any more, and {count} became dead letters; relay-server inbox list {name} --state dead shows why"
    )]
    Died {
        /// How many were not.
        count: u64,
        /// In which inbox.
        name: Name,
    },
    /// There is still something in an inbox.
    #[error("{left} {} still; relay-server inbox list {name} says why", if *left == 1 { "webhook waits" } else { "webhooks wait" })]
    Waits {
        /// How many.
        left: u64,
        /// In which inbox.
        name: Name,
    },
    /// Nobody delivers.
    #[error("no relay runs on {}, so that nothing is delivered; start it first", directory.display())]
    NotRunning {
        /// The data directory.
        directory: PathBuf,
    },
    /// What is known of providers cannot be read.
    #[error(transparent)]
    Providers(#[from] TableError),
    /// The relay answered another question than was asked.
    #[error("the relay gave an answer that does not fit the request; restart it, so that both are of one version")]
    Unexpected,
    /// It was done, but the outcome could not be printed.
    #[error("it was done, but the outcome could not be written to stdout: {0}")]
    Output(#[from] io::Error),
}

/// Carries out a command on the relay whose data directory this is.
///
/// # Errors
///
/// [`CliError`] says what was not done, and why.
pub async fn run(command: TokenCommand, data_dir: &Path) -> Result<(), CliError> {
    run_to(command, data_dir, &mut io::stdout(), &mut io::stderr()).await
}

/// Has the relay whose data directory this is do one thing.
pub(crate) async fn ask(data_dir: &Path, request: Request) -> Result<Reply, CliError> {
    answered(Control::open(data_dir).await?.request(request).await?)
}

fn answered(reply: Reply) -> Result<Reply, CliError> {
    match reply {
        Reply::Refused { message, .. } => Err(CliError::Refused { message }),
        reply => Ok(reply),
    }
}

async fn run_to(
    command: TokenCommand,
    data_dir: &Path,
    out: &mut impl Write,
    talk: &mut impl Write,
) -> Result<(), CliError> {
    let now = unix_now();
    let ask = async |request| ask(data_dir, request).await;
    match command {
        TokenCommand::Create { name, reserve, expires, limits } => {
            let limits = limits.change().apply(TokenLimits::default());
            let expires_at = expires.map(|lifetime| now.saturating_add(lifetime.seconds()));
            let new = NewToken { name, reserve, expires_at, limits };
            let control = Control::open(data_dir).await?;
            let is_running = control.is_running();
            let Reply::Created { secret, token } = answered(control.request(Request::CreateToken(new)).await?)? else {
                return Err(CliError::Unexpected);
            };
            if !is_running {
                // Whoever has mistaken the directory, or the user, would look for it at the client.
                writeln!(talk, "No relay runs on {}: the token is for one that is started there.", data_dir.display())?;
            }
            let until = token.expires_at.map_or("it is revoked".to_owned(), moment);
            writeln!(talk, "Token {:?}, valid until {until}. It is shown only this once:", token.name)?;
            writeln!(out, "{}", secret.expose())?;
        }
        TokenCommand::Limit { name, limits } => {
            let limit = Request::LimitToken { token: name.clone(), change: limits.change() };
            let Reply::Limited { limits } = ask(limit).await? else {
                return Err(CliError::Unexpected);
            };
            writeln!(out, "The token {name:?} may have {}.", allowed(&limits))?;
        }
        TokenCommand::List { output } => {
            let Reply::Tokens { tokens } = ask(Request::ListTokens).await? else {
                return Err(CliError::Unexpected);
            };
            if tokens.is_empty() {
                writeln!(talk, "There are no tokens; `relay-server token create NAME` makes one.")?;
            }
            let lines: Vec<Token> = tokens.into_iter().map(|token| Token::at(token, now)).collect();
            match output {
                Output::Text => {
                    let rows: Vec<_> = lines.iter().map(row).collect();
                    table::write(out, ["TOKEN", "STATE", "CREATED", "ENDS", "LAST USED", "TUNNEL NAMES"], &rows)?;
                }
                Output::Json => {
                    for line in &lines {
                        writeln!(out, "{}", serde_json::to_string(line).map_err(io::Error::from)?)?;
                    }
                }
            }
        }
        TokenCommand::Revoke { name } => {
            ask(Request::RevokeToken { token: name.clone() }).await?;
            writeln!(talk, "The token {name:?} is revoked, and its sessions are ended.")?;
        }
        TokenCommand::Reserve { name, names, provider, inbox } => {
            let labels = listed(&names);
            let (provider, its) = provider.map(|ProviderId { id, name }| (id, name)).unzip();
            let how = inbox.as_ref().map(|inbox| format!(", with an inbox ({inbox})")).unwrap_or_default();
            ask(Request::Reserve { token: name.clone(), names, provider, inbox }).await?;
            let webhooks = its.map(|its| format!(", for the webhooks of {its}")).unwrap_or_default();
            writeln!(talk, "Reserved for the token {name:?}: {labels}{webhooks}{how}.")?;
        }
        TokenCommand::Release { names, forget_webhooks: forget } => {
            let labels = listed(&names);
            // A domain is whosever DNS says that it is.
            let rest = if names.iter().all(Name::is_domain) { "" } else { ", to rest for 30 days" };
            let Reply::Released { closed, forgotten } = ask(Request::Release { names, forget }).await? else {
                return Err(CliError::Unexpected);
            };
            let inboxes = match (closed, forgotten) {
                (0, _) => String::new(),
                (_, 0) => " Inboxes are closed; nothing in them had still to be delivered.".to_owned(),
                _ => format!(" Inboxes are closed, and forgotten are {}.", webhooks(forgotten)),
            };
            writeln!(talk, "Released{rest}: {labels}.{inboxes}")?;
        }
    }
    out.flush()?;
    Ok(())
}

// ---- lists -----------------------------------------------------------------------------------------

fn row(token: &Token) -> [String; 6] {
    let ends = token.revoked_at.as_ref().or(token.expires_at.as_ref());
    let [ends, used] = [ends, token.last_used_at.as_ref()].map(|at| at.map_or("never", String::as_str).to_owned());
    let reserved = token.reserved.iter().map(|name| match token.providers.get(name) {
        Some(provider) => format!("{name} (reserved, {provider})"),
        None => format!("{name} (reserved)"),
    });
    let names = reserved.chain(token.leased.iter().map(Name::to_string)).collect::<Vec<_>>().join(", ");
    [token.name.clone(), token.state.to_owned(), token.created_at.clone(), ends, used, names]
}

/// What a token may have, as a sentence has it.
fn allowed(limits: &TokenLimits) -> String {
    let TokenLimits { max_tunnels, max_names, max_sessions, max_rate, max_streams, max_bytes, max_body, allow } =
        limits;
    let most = |most: &Option<u32>| most.map_or("any number of".to_owned(), |most| most.to_string());
    let bytes = max_bytes.map_or("any number of bytes".to_owned(), sized);
    let body = max_body.map_or("any length".to_owned(), |most| format!("at most {}", sized(most)));
    let allow = match allow.as_slice() {
        [] => "anywhere".to_owned(),
        networks => networks.iter().map(Network::to_string).collect::<Vec<_>>().join(", "),
    };
    format!(
        "{max_tunnels} tunnels, {max_names} names and {max_sessions} sessions, {} requests per second, {} requests under way, \
         {bytes} a month, and bodies of {body}, from {allow}",
        most(max_rate),
        most(max_streams)
    )
}

fn listed(names: &[Name]) -> String {
    names.iter().map(Name::as_str).collect::<Vec<_>>().join(", ")
}

// ---- whose webhooks a name is for ------------------------------------------------------------------

/// A provider that this relay knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProviderId {
    id: String,
    name: String,
}

/// Why a text names no provider.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ProviderError {
    /// None has that id.
    #[error("no provider is called that; docs/providers.md tells where all of them are")]
    Unknown,
    /// What is known of providers cannot be read.
    #[error(transparent)]
    Table(#[from] TableError),
}

impl FromStr for ProviderId {
    type Err = ProviderError;

    fn from_str(text: &str) -> Result<Self, ProviderError> {
        let table = Table::built_in()?;
        let provider = table.get(text).ok_or(ProviderError::Unknown)?;
        Ok(Self { id: provider.id.clone(), name: provider.name.clone() })
    }
}

// ---- how long a token is valid ---------------------------------------------------------------------

/// How long a token is valid, in whole seconds: at least one, at most a hundred years.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime(i64);

impl Lifetime {
    /// Beyond this somebody mistyped, or means "for ever", which is the default.
    const MAX_SECONDS: i64 = 36_525 * 24 * 60 * 60;

    /// In seconds.
    #[must_use]
    pub fn seconds(self) -> i64 {
        self.0
    }
}

/// Why a text is not a lifetime.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LifetimeError {
    /// It does not read as one.
    #[error("expected a whole number and a unit, such as 90m, 12h, 30d or 4w")]
    Form,
    /// It would be over at once.
    #[error("a token must be valid for some time")]
    Zero,
    /// It is longer than anybody means.
    #[error("at most a hundred years (36525d); leave it out for a token that does not expire")]
    TooLong,
}

impl FromStr for Lifetime {
    type Err = LifetimeError;

    fn from_str(text: &str) -> Result<Self, LifetimeError> {
        let (digits, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or(LifetimeError::Form)?;
        let unit: i64 = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 60 * 60,
            "d" => 24 * 60 * 60,
            "w" => 7 * 24 * 60 * 60,
            _ => return Err(LifetimeError::Form),
        };
        // `parse` alone would let a sign pass.
        if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
            return Err(LifetimeError::Form);
        }
        let number: i64 = digits.parse().map_err(|_| LifetimeError::TooLong)?;
        match number.checked_mul(unit) {
            Some(0) => Err(LifetimeError::Zero),
            Some(seconds) if seconds <= Self::MAX_SECONDS => Ok(Self(seconds)),
            _ => Err(LifetimeError::TooLong),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use clap::Parser;
    use proptest::prelude::*;

    use super::*;
    use crate::store::{AuthError, Secret, Store};

    #[derive(Debug, Parser)]
    struct Program {
        #[command(subcommand)]
        command: TokenCommand,
    }

    /// What a command prints: stdout, stderr.
    async fn run(data_dir: &Path, line: &str) -> Result<(String, String), String> {
        let arguments = std::iter::once("token").chain(line.split_whitespace());
        let program = Program::try_parse_from(arguments).map_err(|error| error.to_string())?;
        let (mut out, mut talk) = (Vec::new(), Vec::new());
        let done = run_to(program.command, data_dir, &mut out, &mut talk).await;
        done.map_err(|error| error.to_string())?;
        Ok((String::from_utf8(out).unwrap(), String::from_utf8(talk).unwrap()))
    }

    #[tokio::test]
    async fn create_prints_the_token_and_only_the_token() {
        let directory = tempfile::tempdir().unwrap();
        let (out, talk) = run(directory.path(), "create alice --reserve hooks,api --expires 30d").await.unwrap();
        let secret = Secret::parse(out.strip_suffix('\n').unwrap()).unwrap();
        assert_eq!(out.lines().count(), 1);
        assert!(!talk.contains(secret.expose()));

        let store = Store::open(directory.path()).await.unwrap();
        let token = store.authenticate(&secret, unix_now()).await.unwrap();
        let lifetime = token.expires_at.unwrap() - token.created_at;
        assert!((0..=5).contains(&(30 * 86_400 - lifetime).abs()), "{lifetime}");
        assert_eq!(token.limits, TokenLimits::default());
        store.close().await;

        run(directory.path(), "revoke alice").await.unwrap();
        let store = Store::open(directory.path()).await.unwrap();
        assert_eq!(store.authenticate(&secret, unix_now()).await, Err(AuthError::Revoked));
    }

    #[tokio::test]
    async fn lists_are_for_people_or_for_programs() {
        let directory = tempfile::tempdir().unwrap();
        let (out, talk) = run(directory.path(), "list").await.unwrap();
        assert_eq!(out, "");
        assert!(talk.contains("token create"), "{talk}");

        run(directory.path(), "create alice --max-tunnels 3 --max-names 4 --max-sessions 5").await.unwrap();
        run(directory.path(), "create continuous-integration --expires 1w").await.unwrap();
        run(directory.path(), "reserve alice hooks API").await.unwrap();
        let (_, talk) = run(directory.path(), "reserve alice forms --provider dropbox").await.unwrap();
        assert_eq!(talk, "Reserved for the token \"alice\": forms, for the webhooks of Dropbox.\n");
        run(directory.path(), "release hooks").await.unwrap();
        run(directory.path(), "revoke continuous-integration").await.unwrap();

        let (text, _) = run(directory.path(), "list").await.unwrap();
        let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[0][..2], ["TOKEN", "STATE"]);
        assert_eq!(rows[1][..2], ["alice", "valid"]);
        assert_eq!(rows[1][3..], ["never", "never", "api", "(reserved),", "forms", "(reserved,", "dropbox)"]);
        assert_eq!(rows[2][..2], ["continuous-integration", "revoked"]);

        let (json, _) = run(directory.path(), "list --output json").await.unwrap();
        let alice: serde_json::Value = serde_json::from_str(json.lines().next().unwrap()).unwrap();
        let created = alice["created_at"].as_str().unwrap();
        assert_eq!(
            alice,
            serde_json::json!({
                "name": "alice", "state": "valid", "created_at": created, "expires_at": null,
                "revoked_at": null, "last_used_at": null, "max_tunnels": 3, "max_names": 4,
                "max_sessions": 5, "max_rate": null, "max_streams": null, "max_bytes": null,
                "max_body": null, "allow": [],
                "month_bytes": 0, "reserved": ["api", "forms"], "leased": [],
                "providers": {"forms": "dropbox"},
            })
        );
        assert!(created.parse::<jiff::Timestamp>().is_ok());
    }

    #[tokio::test]
    async fn refusals_say_why() {
        let directory = tempfile::tempdir().unwrap();
        run(directory.path(), "create alice").await.unwrap();
        for (line, why) in [
            ("create alice", "there is a token named \"alice\" already"),
            ("create a/b", "a token name has"),
            ("create bob --reserve www", "kept for the relay itself"),
            ("create bob --reserve a_b", "'_' is none of them"),
            ("create bob --expires -1d", "unexpected argument"),
            ("create bob --expires=-1d", "such as 90m"),
            ("create bob --max-names 0", "0 is not in 1.."),
            ("create bob --max-rate 0", "max_rate is at least 1"),
            ("limit alice --max-bytes 0", "max_bytes is at least 1"),
            ("limit alice --max-body 0", "max_body is at least 1"),
            ("limit alice --allow office", "such as 10.0.0.0/8"),
            ("limit alice --max-bytes ten", "such as 10GiB"),
            ("limit bob", "no token named \"bob\""),
            ("reserve bob hooks", "no token named \"bob\""),
            ("reserve alice", "required"),
            ("reserve alice hooks --provider Slack", "no provider is called that"),
            ("release hooks", "is not reserved"),
            ("revoke bob", "no token named \"bob\""),
        ] {
            let error = run(directory.path(), line).await.unwrap_err();
            assert!(error.contains(why), "{line}: {error}");
        }
    }

    #[test]
    fn lifetimes() {
        for (text, seconds) in [("1s", 1), ("90m", 5400), ("12h", 43_200), ("30d", 2_592_000), ("2w", 1_209_600)] {
            assert_eq!(text.parse(), Ok(Lifetime(seconds)));
        }
        for text in ["", "d", "30", "-1d", "+1d", "1.5h", "1 d", "1y", "1\u{e9}", "\u{e9}"] {
            assert_eq!(text.parse::<Lifetime>(), Err(LifetimeError::Form), "{text:?}");
        }
        assert_eq!("0d".parse::<Lifetime>(), Err(LifetimeError::Zero));
        assert_eq!("36525d".parse(), Ok(Lifetime(Lifetime::MAX_SECONDS)));
        for text in ["36526d", "9223372036854775807w", "99999999999999999999s"] {
            assert_eq!(text.parse::<Lifetime>(), Err(LifetimeError::TooLong), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn a_lifetime_is_positive_and_bounded(text in "[0-9]{0,22}[smhdwé-]?") {
            if let Ok(Lifetime(seconds)) = text.parse::<Lifetime>() {
                prop_assert!((1..=Lifetime::MAX_SECONDS).contains(&seconds));
            }
        }
    }
}
