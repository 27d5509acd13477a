//! What `relay trigger` and `relay send` have in common: where a webhook goes, what it is signed with, and what came of it.

use std::io;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, StatusCode};
use jiff::Timestamp;
use relay_protocol::webhook::{Credentials, Draft, Fact, Provider, ReplaceError, Request, SignError};
use serde::Serialize;

use crate::capture::saved::{Headers, SavedError, halves, origin};
use crate::cli::{DeliveryArgs, Exit};
use crate::commands::test_secret::{self, TestSecretError};
use crate::commands::wait::others;
use crate::config::{ConfigError, Files};
use crate::control::board::{Status, Tunnel};
use crate::control::{Ask, Asked, ControlError, Found, PATIENCE, ask_all};
use crate::event::Body;
use crate::outgoing::{Answer, BODY_MAX, SendError, send};
use crate::samples::SampleError;
use crate::secret::ReadError;
use crate::session::dial::{Peer, RelayUrl, RelayUrlError, Target, TargetError, Trust};
use crate::terminal::{Shown, answer_body, json_line, print, tell};
use crate::upstream::address::AddressError;
use crate::value::Output;
use crate::webhooks::{UnknownProvider, ask};

/// How long an answer is waited for where the provider gives up sooner, or nobody knows when it does.
const PATIENT: Duration = Duration::from_secs(30);

/// What a setting is that a sample needs and nobody has given.
const SETTING: &str = "relay-test";

/// Why nothing was sent.
#[derive(Debug, thiserror::Error)]
pub enum DeliveryError {
    /// Nobody has that name.
    #[error(
        "no samples of {wanted:?} are known{}; relay trigger --list shows whose are, and relay send signs a body of yours",
        if .near.is_empty() { String::new() } else { format!(": {}", ask(.near)) }
    )]
    Sender {
        /// As it was written.
        wanted: String,
        /// Those that are called alike.
        near: Vec<String>,
    },
    /// The sender has no such sample.
    #[error("no sample of {sender} is called {wanted:?}; there are {}", .known.join(", "))]
    Sample {
        /// Whose.
        sender: String,
        /// As it was written.
        wanted: String,
        /// Those that there are.
        known: Vec<String>,
    },
    /// No provider has that name.
    #[error(transparent)]
    Provider(#[from] UnknownProvider),
    /// Samples of that provider have no signature.
    #[error("there is no secret for tests of {0}: nobody else can sign what it sends")]
    Theirs(String),
    /// Nobody is named, and nobody is recognised.
    #[error("say whose webhook it is, as in --provider stripe")]
    NoProvider,
    /// The kind of an event does not stand where it could be put.
    #[error("the type of an event of {0} stands in its body, and that is sent as it is; leave --type out")]
    TypeInBody(String),
    /// The body is not there.
    #[error("{file}: {problem}")]
    File {
        /// Where it was looked for.
        file: String,
        /// Why.
        problem: ReadError,
    },
    /// A saved request is none.
    #[error("{file}: {problem}")]
    Saved {
        /// Where it is.
        file: String,
        /// Why.
        problem: SavedError,
    },
    /// There is no tunnel of that name.
    #[error("no running client has a tunnel {wanted}; {}", others(.known))]
    NoTunnel {
        /// Its name.
        wanted: String,
        /// The tunnels that there are.
        known: Vec<String>,
    },
    /// There are several.
    #[error("there are several tunnels; choose one with --tunnel: {}", .0.join(", "))]
    Several(Vec<String>),
    /// There is none.
    #[error("no tunnel is open on this machine; start one, as with `relay http 3000`, or say where to with --to URL")]
    None,
    /// Running clients cannot be looked for.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// What clients say of a tunnel is not understood.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The URL leads nowhere.
    #[error(transparent)]
    Url(#[from] RelayUrlError),
    /// TLS cannot be set up.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// A secret is not to be had.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// No secret could be made.
    #[error(transparent)]
    TestSecret(#[from] TestSecretError),
    /// It cannot be signed.
    #[error("{0}")]
    Sign(#[from] SignError),
    /// A secret that verifies cannot sign.
    #[error("{0} signs with a private key: give that one to --secret, as PKCS #8 in PEM or base64, or leave it out")]
    Private(String),
    /// What is to be put into the body has no place there.
    #[error("--override: {0}")]
    Replace(#[from] ReplaceError),
    /// A sample that is built in is wrong.
    #[error(transparent)]
    Filling(#[from] SampleError),
    /// Nobody is reached.
    #[error(transparent)]
    Send(#[from] SendError),
    /// The client that has the tunnel does not sign it.
    #[error("the client of process {pid} did not sign it: {problem}; say what it is signed with by --secret")]
    Client {
        /// Its process.
        pid: u32,
        /// Why.
        problem: io::Error,
    },
    /// The app does not take it.
    #[error("{failed} of {sent} were not answered with 2xx")]
    NotTaken {
        /// How many it did not take.
        failed: usize,
        /// How many there were.
        sent: usize,
    },
    /// The result cannot be printed.
    #[error("cannot write to standard output: {0}")]
    Output(#[from] io::Error),
}

impl From<&DeliveryError> for Exit {
    fn from(error: &DeliveryError) -> Self {
        use DeliveryError as Error;
        match error {
            Error::Sender { .. }
            | Error::Sample { .. }
            | Error::Provider(_)
            | Error::NoProvider
            | Error::TypeInBody(_)
            | Error::File { .. }
            | Error::Saved { .. }
            | Error::Several(_)
            | Error::Url(_)
            | Error::Config(_)
            | Error::Sign(_)
            | Error::Private(_)
            | Error::Replace(_) => Self::Usage,
            _ => Self::Failed,
        }
    }
}

/// Where webhooks go.
#[derive(Debug)]
pub(super) struct Destination {
    target: Target,
    /// The public URL.
    url: String,
    /// Nothing of it was typed that would follow the host, or the tunnel's own URL.
    is_bare: bool,
    /// The client that has the tunnel, and what the tunnel is called on this machine.
    tunnel: Option<(Box<Asked>, String)>,
}

impl Destination {
    /// What was typed, or else the tunnel that there is.
    ///
    /// # Errors
    /// Where there is none, or several.
    pub(super) async fn find(args: &DeliveryArgs) -> Result<Self, DeliveryError> {
        let (target, url, base, tunnel) = match &args.to {
            Some(url) => {
                let (server, _) = halves(url);
                let target = Target::new(RelayUrl::of_any_server(server)?, &Trust::System)?.naming(Peer::Server);
                (target, url.clone(), origin(url).map(str::to_owned), None)
            }
            None => {
                let (client, tunnel) = tunnel(args.tunnel.as_deref()).await?;
                let Status { relay_ca, relay_addr, .. } = &client.status;
                let trust = relay_ca.as_deref().map_or(Ok(Trust::System), |ca| Trust::only(ca.as_ref()))?;
                let addr = relay_addr.as_ref().map(|addr| addr.parse()).transpose()?;
                let target = Target::new(halves(&tunnel.url).0.parse()?, &trust)?.dialling(addr);
                (target, tunnel.url.clone(), Some(tunnel.url), Some((client, tunnel.tunnel)))
            }
        };
        let url = match (&args.path, &base) {
            (Some(path), Some(base)) => format!("{base}{path}"),
            _ => url,
        };
        Ok(Self { target, is_bare: base.is_some_and(|base| base == url), url, tunnel })
    }

    /// The URL of a request whose own request line says `target`: its path where no other was typed, and its query.
    pub(super) fn url(&self, target: &str) -> String {
        let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
        let mut url = if self.is_bare { format!("{}{path}", self.url) } else { self.url.clone() };
        if let Some(query) = query {
            url.push(if url.contains('?') { '&' } else { '?' });
            url.push_str(query);
        }
        url
    }
}

/// The tunnel of this name, or the only one, and its client.
async fn tunnel(wanted: Option<&str>) -> Result<(Box<Asked>, Tunnel), DeliveryError> {
    let is_it = |tunnel: &&Tunnel| wanted.is_none_or(|wanted| tunnel.tunnel == wanted || tunnel.name == wanted);
    let (mut known, mut found) = (Vec::new(), Vec::new());
    for client in ask_all(&Ask::Status, PATIENCE).await? {
        match client {
            Found::Answers(client) => {
                let tunnels = &client.status.tunnels;
                known.extend(tunnels.iter().map(|tunnel| tunnel.tunnel.clone()));
                let of_it: Vec<_> = tunnels.iter().filter(is_it).cloned().collect();
                found.extend(of_it.split_first().map(|(first, others)| (client, first.clone(), others.len())));
            }
            Found::Silent { pid, why } => tell(&format!("the client of process {pid} {why}")),
        }
    }
    match (found.pop(), found.is_empty(), wanted) {
        (Some((client, tunnel, 0)), true, _) => Ok((client, tunnel)),
        (Some(_), ..) => Err(DeliveryError::Several(known)),
        (None, _, Some(wanted)) if !known.is_empty() => {
            Err(DeliveryError::NoTunnel { wanted: wanted.to_owned(), known })
        }
        (None, ..) => Err(DeliveryError::None),
    }
}

/// A webhook that is still to be signed.
#[derive(Clone, Debug)]
pub(super) struct Parcel {
    pub(super) method: Method,
    /// What its own request line says.
    pub(super) target: String,
    pub(super) headers: Headers,
    pub(super) body: Vec<u8>,
    /// Whether its provider signs such a request.
    pub(super) signed: bool,
}

/// Signs as a provider does.
#[derive(Debug)]
pub(super) struct Signer<'t> {
    provider: &'t Provider,
    args: &'t DeliveryArgs,
    files: &'t Files,
    /// What the tunnel is called on this machine, where there is one.
    tunnel: Option<&'t str>,
    /// What was typed, or stands in a file. Secrets come to it when they are needed, which they are not where the client
    /// signs: it may have been given some that are not to be had here.
    credentials: Credentials,
    hand: Hand<'t>,
}

/// Who signs.
#[derive(Debug)]
enum Hand<'t> {
    /// The client that has the tunnel, with what it was given, where it was given something for that.
    Client(&'t Asked, &'t str),
    /// This process.
    Own,
    /// Nobody but the provider can, or it does not.
    Nobody,
}

impl<'t> Signer<'t> {
    /// With what was typed, or what the tunnel's client knows, or what stands in a file for that tunnel, and otherwise with a
    /// secret of our own, which the user is told.
    pub(super) fn new(provider: &'t Provider, args: &'t DeliveryArgs, files: &'t Files, to: &'t Destination) -> Self {
        let tunnel = to.tunnel.as_ref().map(|(_, tunnel)| &**tunnel);
        let settings = files.settings(args.credentials.clone(), tunnel);
        let hand = match &to.tunnel {
            _ if provider.new_secret().is_none() => Hand::Nobody,
            Some((client, tunnel)) if args.credentials.secrets.is_empty() => Hand::Client(client, tunnel),
            _ => Hand::Own,
        };
        Self { provider, args, files, tunnel, credentials: Credentials { settings, ..Credentials::default() }, hand }
    }

    /// Whether anybody can sign.
    fn signs(&self) -> bool {
        !matches!(self.hand, Hand::Nobody)
    }

    /// Takes what was typed or stands in a file, or a secret of our own, where there is no other, and tells the user.
    fn need_secret(&mut self) -> Result<(), DeliveryError> {
        let (provider, typed) = (self.provider, &self.args.credentials);
        let Some(new) = provider.new_secret().filter(|_| self.credentials.secrets.is_empty()) else { return Ok(()) };
        let is_pair = new.is_pair();
        // Of a provider with a key pair the files have the half that verifies.
        if !is_pair || !typed.secrets.is_empty() {
            self.credentials.secrets = self.files.credentials(typed.clone(), self.tunnel)?.secrets;
        }
        if self.credentials.secrets.is_empty() {
            let ours = test_secret::of(provider, new)?;
            tell(&if is_pair {
                format!(
                    "signed with a key pair for tests; give the app this as {}'s public key: {}",
                    provider.name, ours.public
                )
            } else {
                format!(
                    "signed with a secret for tests, because none of {}'s is given; give this to the app as that: {}",
                    provider.name, ours.public
                )
            });
            self.credentials.secrets = vec![ours.private];
        }
        Ok(())
    }

    /// A setting, which is made up where it is not given.
    pub(super) fn setting(&mut self, name: &str) -> &str {
        let settings = &mut self.credentials.settings;
        settings.entry(name.to_owned()).or_insert_with(|| {
            tell(&format!("{name} is {SETTING}; --set {name}=VALUE says another"));
            SETTING.to_owned()
        })
    }

    async fn sign(&mut self, parcel: &Parcel, url: &str, now: Timestamp) -> Result<Draft, DeliveryError> {
        let request = Request::new(&parcel.method, url, &parcel.headers, &parcel.body);
        if !self.signs() || !parcel.signed {
            return Ok((&request).into());
        }
        if let Hand::Client(client, tunnel) = &self.hand {
            let (id, settings) = (&self.provider.id, self.credentials.settings.clone());
            let signed = client.sign(tunnel, id, settings, &parcel.method, (&request).into()).await;
            let pid = client.status.pid;
            match signed.map_err(|problem| DeliveryError::Client { pid, problem })? {
                Some(draft) => return Ok(draft),
                // It has nothing to sign with.
                None => self.hand = Hand::Own,
            }
        }
        self.need_secret()?;
        match self.provider.sign(&request, &self.credentials, now) {
            Ok(draft) => Ok(draft),
            Err(SignError::OnlyTheProvider(name)) => Err(DeliveryError::Private(name)),
            Err(error) => Err(error.into()),
        }
    }
}

/// Puts headers in the stead of those of their name.
pub(super) fn put(headers: &mut Headers, new: &[(HeaderName, HeaderValue)]) {
    headers.retain(|(name, _)| new.iter().all(|(other, _)| other != name));
    headers.extend(new.iter().cloned());
}

/// What became of a webhook. In JSON these are the fields.
#[derive(Debug, Serialize)]
struct Report<'a> {
    provider: &'a str,
    event_type: Option<String>,
    event_id: Option<String>,
    signed: bool,
    method: &'a str,
    url: &'a str,
    /// None where there was no answer.
    status: Option<u16>,
    /// Why there was none.
    error: Option<String>,
    duration_ms: u64,
    /// What the answer says, as far as it is kept.
    #[serde(flatten)]
    body: Body<'a>,
    body_size: u64,
    body_truncated: bool,
}

/// Signs, sends and reports webhooks one after the other, as `next` makes them.
///
/// # Errors
/// [`DeliveryError`] at the first that cannot be sent, and in the end where not all were taken.
pub(super) async fn deliver(
    args: &DeliveryArgs,
    to: &Destination,
    mut signer: Signer<'_>,
    next: impl Fn(Timestamp) -> Result<Parcel, DeliveryError>,
) -> Result<(), DeliveryError> {
    let provider = signer.provider;
    if !signer.signs() {
        tell(&if provider.facts().contains(&Fact::Signature) {
            format!("only {} itself can sign its requests: this is sent without a signature", provider.name)
        } else {
            format!("{} does not sign its requests, and so this has no signature", provider.name)
        });
    }
    let within = provider.limit().unwrap_or(PATIENT).max(PATIENT);
    let (mut failed, sent) = (0, usize::from(args.times));
    for _ in 0..args.times {
        let now = Timestamp::now();
        let parcel = next(now)?;
        let method = &parcel.method;
        let mut draft = signer.sign(&parcel, &to.url(&parcel.target), now).await?;
        // A signature that was typed is meant, be it a wrong one.
        let mut made: Headers = draft.headers.iter().filter(|line| !parcel.headers.contains(line)).cloned().collect();
        put(&mut draft.headers, &args.headers);
        made.retain(|line| !draft.headers.contains(line));
        let event = provider.event(&Request::new(method, &draft.url, &draft.headers, &draft.body));
        let path = draft.url.get(origin(&draft.url).map_or(0, str::len)..).unwrap_or_default();
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        let answer =
            match send(&to.target, method, &path, &draft.headers, draft.body, within, (u64::MAX, BODY_MAX)).await {
                Ok(answer) => Ok(answer),
                Err(error @ (SendError::Late(_) | SendError::Broken(_))) => Err(error),
                Err(error) => return Err(error.into()),
            };
        failed += usize::from(!answer.as_ref().is_ok_and(|answer| answer.status.is_success()));
        let (kept, size, took): (&[u8], _, _) = match &answer {
            Ok(Answer { body, size, took, .. }) => (body, *size, *took),
            Err(SendError::Late(after)) => (b"", 0, *after),
            Err(_) => (b"", 0, Duration::ZERO),
        };
        let truncated = size > kept.len() as u64;
        let report = Report {
            provider: &provider.id,
            event_type: event.kind,
            event_id: event.id,
            signed: parcel.signed && signer.signs() && made.is_empty(),
            method: method.as_str(),
            url: &draft.url,
            status: answer.as_ref().ok().map(|answer| answer.status.as_u16()),
            error: answer.as_ref().err().map(ToString::to_string),
            duration_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            body: Body::new(kept, truncated),
            body_size: size,
            body_truncated: truncated,
        };
        if let Err(error) = print(report.show(args.output).as_bytes()) {
            // Whoever reads has seen enough.
            return if error.kind() == io::ErrorKind::BrokenPipe { Ok(()) } else { Err(error.into()) };
        }
        if let Some(limit) = provider.limit().filter(|limit| took > *limit) {
            tell(&format!("{} would have given up after {} s", provider.name, limit.as_secs_f32()));
        }
    }
    if failed == 0 { Ok(()) } else { Err(DeliveryError::NotTaken { failed, sent }) }
}

impl Report<'_> {
    fn show(&self, output: Output) -> String {
        if output == Output::Json {
            return json_line(self);
        }
        let event = [&self.event_type, &self.event_id].into_iter().flatten().map(|text| format!(" {}", Shown(text)));
        let outcome = match (self.status, &self.error) {
            (Some(status), _) => {
                let reason = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
                format!("{status} {} in {} ms", reason.unwrap_or("").to_lowercase(), self.duration_ms)
            }
            (None, error) => error.clone().unwrap_or_default(),
        };
        let event: String = event.collect();
        let mut text = format!("{}{event}: {} {}: {outcome}\n", self.provider, self.method, Shown(self.url));
        if self.body_size > 0 {
            text.push_str(&answer_body(self.body, self.body_size, self.body_truncated));
        }
        text
    }
}
