//! How a relay is that runs, and what it has at this moment, as it tells whoever operates it. Moments are in RFC 3339, UTC.
//! Fields are added and not renamed.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use crate::Shared;
use crate::certs::{CertificateSource, Shown};
use crate::clock::{moment, unix_now};
use crate::config::AdminAddr;
use crate::store::{self, Name, TokenLimits, TokenSummary};

/// What the disk may take to tell what is in inboxes. How the relay is has to be known also where the disk hangs.
const TOTALS_TIME: Duration = Duration::from_secs(1);

/// What a relay that runs says of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Its version.
    pub version: String,
    /// Its process.
    pub process: u32,
    /// Its own public URL.
    pub url: String,
    /// Where HTTPS is served.
    pub https: Option<SocketAddr>,
    /// Where plain HTTP is served.
    pub http: Option<SocketAddr>,
    /// Where health and metrics are served.
    pub admin: Option<AdminAddr>,
    /// Where DNS is answered.
    pub dns: Vec<SocketAddr>,
    /// Whether it takes requests, as `/readyz` says.
    pub ready: bool,
    /// What stands in the way of that, or will.
    pub trouble: Option<String>,
    /// What somebody else has to mend, while the relay itself is well: domains of customers, say.
    #[serde(default)]
    pub note: Option<String>,
    /// Clients that are connected.
    #[serde(default)]
    pub sessions: usize,
    /// Names that they serve.
    #[serde(default)]
    pub tunnels: usize,
    /// Public connections that are open.
    #[serde(default)]
    pub connections: usize,
    /// What was counted since this process began.
    #[serde(default)]
    pub traffic: Traffic,
    /// What waits; none where the disk does not tell.
    #[serde(default)]
    pub inboxes: Option<Depth>,
}

/// What was counted of requests to tunnels since the process began. All but `under_way` only grows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Traffic {
    /// For how long it has been counted: two looks and what lies between them make a rate.
    pub uptime_ms: u64,
    /// Those that have begun and not ended.
    pub under_way: u64,
    /// Those that have ended, by the class of their status, as `2xx`; `none`: the sender went before there was one.
    pub requests: BTreeMap<String, u64>,
    /// Those that the relay has answered itself, by the code of the error.
    pub errors: BTreeMap<String, u64>,
    /// Bytes of the bodies of requests.
    pub received_bytes: u64,
    /// Bytes of the bodies of answers.
    pub sent_bytes: u64,
    /// How long senders have waited for the heads of answers.
    pub head: Waits,
}

/// How often something took how long.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Waits {
    /// In seconds, ascending.
    pub bounds_s: Vec<f64>,
    /// Those up to each bound and beyond the one before, and at last those beyond all.
    pub counts: Vec<u64>,
}

/// What is in all inboxes together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Depth {
    /// Names that have one.
    pub inboxes: u64,
    /// Webhooks that wait.
    pub waiting: u64,
    /// Dead letters.
    pub dead: u64,
    /// Bytes of both.
    pub bytes: u64,
    /// When the oldest came of those that wait.
    pub oldest_at: Option<String>,
}

/// A client that is connected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Its id.
    pub id: String,
    /// Its token's name.
    pub token: String,
    /// Where it comes from.
    pub address: IpAddr,
    /// What it calls itself, with its version; empty until it has said so.
    pub client: String,
    /// Since when.
    pub since: String,
    /// Requests that are under way.
    pub streams: u32,
    /// The names that it serves, in alphabetical order.
    pub tunnels: Vec<String>,
}

/// A name that a connected client serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tunnel {
    /// The name.
    pub name: String,
    /// Its public URL.
    pub url: String,
    /// Whose it is: the token's name.
    pub token: String,
    /// The session's id.
    pub session: String,
    /// Whether webhooks are kept there while the client is away.
    pub inbox: bool,
}

/// A certificate that handshakes show.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// `files`, `acme` or `development`.
    pub source: String,
    /// The custom domain that it is for; none for the relay's own.
    #[serde(default)]
    pub domain: Option<Name>,
    /// The names that it is for; none where there is no certificate yet.
    pub names: Vec<String>,
    /// Who has issued it.
    pub issuer: Option<String>,
    /// From when on it holds.
    pub not_before: Option<String>,
    /// Until when it holds.
    pub not_after: Option<String>,
    /// What stands in the way of the next one, or is wrong with this one.
    pub trouble: Option<String>,
}

/// A token, without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Token {
    /// What people call it.
    pub name: String,
    /// `valid`, `expired` or `revoked`.
    pub state: &'static str,
    /// When it was made.
    pub created_at: String,
    /// When it ends, if ever.
    pub expires_at: Option<String>,
    /// When it was revoked, if it was.
    pub revoked_at: Option<String>,
    /// When it was last used, to the minute.
    pub last_used_at: Option<String>,
    /// What its owner may have.
    #[serde(flatten)]
    pub limits: TokenLimits,
    /// The tunnel names that are its own for good.
    pub reserved: Vec<Name>,
    /// Those that are its own until they have gone unused for 30 days.
    pub leased: Vec<Name>,
    /// Of the reserved ones, those that are for a provider's webhooks, and its id.
    pub providers: BTreeMap<Name, String>,
    /// Bytes that the public has had of its tunnels in this calendar month, in UTC, some seconds ago.
    pub month_bytes: u64,
}

impl Token {
    /// As it is at that moment, in Unix seconds.
    #[must_use]
    pub fn at(TokenSummary { token, reserved, leased, providers, month_bytes }: TokenSummary, now: i64) -> Self {
        let state = match (token.revoked_at, token.expires_at) {
            (Some(_), _) => "revoked",
            (None, Some(at)) if at <= now => "expired",
            _ => "valid",
        };
        Self {
            name: token.name,
            state,
            created_at: moment(token.created_at),
            expires_at: token.expires_at.map(moment),
            revoked_at: token.revoked_at.map(moment),
            last_used_at: token.last_used_at.map(moment),
            limits: token.limits,
            reserved,
            leased,
            providers,
            month_bytes,
        }
    }
}

/// What else there is to know of a relay that takes requests.
#[derive(Debug, Default)]
pub(crate) struct Readiness {
    /// What will stand in the way of that.
    trouble: Option<String>,
    /// What somebody else has to mend.
    note: Option<String>,
}

impl Readiness {
    /// The more urgent of both.
    pub(crate) fn caveat(self) -> Option<String> {
        self.trouble.or(self.note)
    }
}

/// Whether the relay takes requests.
///
/// # Errors
/// Why it does not.
pub(crate) fn readiness(shared: &Shared) -> Result<Readiness, String> {
    if shared.stopping.is_cancelled() {
        return Err("the relay shuts down".to_owned());
    }
    shared.store.health().and_then(|()| shared.inboxes.records().health()).map_err(|error| error.to_string())?;
    // Behind a proxy nobody sees it.
    let Some(_) = shared.config.https else { return Ok(Readiness::default()) };
    Ok(Readiness { trouble: shared.certificates.health(unix_now())?, note: failing_domains(shared) })
}

/// How many custom domains fail; which ones, and why, is not for whoever asks without a token.
fn failing_domains(shared: &Shared) -> Option<String> {
    let (all, failing) = shared.domains.as_ref()?.count();
    let plural = if all == 1 { "domain" } else { "domains" };
    let text = format!(
        "{failing} of {all} custom {plural} cannot have the next certificate: the log, and GET /api/v1/certificates, say why"
    );
    (failing > 0).then_some(text)
}

/// A relay that runs, and where it listens.
#[derive(Clone, Debug)]
pub(crate) struct Present {
    pub(crate) shared: Arc<Shared>,
    pub(crate) https: Option<SocketAddr>,
    pub(crate) http: Option<SocketAddr>,
    pub(crate) admin: Option<AdminAddr>,
    pub(crate) dns: Vec<SocketAddr>,
}

impl Present {
    pub(crate) async fn status(&self) -> Status {
        let shared = &self.shared;
        let (ready, Readiness { trouble, note }) = match readiness(shared) {
            Ok(readiness) => (true, readiness),
            Err(reason) => (false, Readiness { trouble: Some(reason), note: None }),
        };
        let totals = timeout(TOTALS_TIME, shared.inboxes.records().totals()).await.ok().and_then(Result::ok);
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            process: std::process::id(),
            url: shared.public_url(&shared.config.domain),
            https: self.https,
            http: self.http,
            admin: self.admin.clone(),
            dns: self.dns.clone(),
            ready,
            trouble,
            note,
            sessions: shared.sessions.count(),
            tunnels: shared.registry.online(),
            connections: shared.places.taken(),
            traffic: shared.metrics.traffic(),
            inboxes: totals.map(|totals| Depth {
                inboxes: totals.inboxes,
                waiting: totals.waiting,
                dead: totals.dead,
                bytes: totals.bytes,
                oldest_at: totals.oldest_at.map(|at| moment(at / 1000)),
            }),
        }
    }

    /// Those that are connected, in the order in which they came.
    pub(crate) fn sessions(&self) -> Vec<Session> {
        let mut names: BTreeMap<_, Vec<String>> = BTreeMap::new();
        for tunnel in self.shared.registry.tunnels() {
            names.entry(tunnel.session).or_default().push(tunnel.name.clone());
        }
        let mut sessions = self.shared.sessions.list();
        sessions.sort_by_key(|(id, _)| *id);
        let told = sessions.into_iter().map(|(id, session)| {
            let mut tunnels = names.remove(&id).unwrap_or_default();
            tunnels.sort();
            Session { tunnels, ..session }
        });
        told.collect()
    }

    /// The names that they serve, in alphabetical order.
    pub(crate) fn tunnels(&self) -> Vec<Tunnel> {
        let shared = &self.shared;
        let owners: BTreeMap<_, _> =
            shared.sessions.list().into_iter().map(|(id, session)| (id, session.token)).collect();
        let tunnels = shared.registry.tunnels().into_iter().map(|tunnel| Tunnel {
            url: shared.config.tunnel_url(&tunnel.name, shared.https_port),
            token: owners.get(&tunnel.session).cloned().unwrap_or_default(),
            session: tunnel.session.to_string(),
            inbox: shared.inboxes.get(&tunnel.name).is_some(),
            name: tunnel.name.clone(),
        });
        let mut tunnels: Vec<_> = tunnels.collect();
        tunnels.sort_by(|one, other| one.name.cmp(&other.name));
        tunnels
    }

    /// What handshakes show: the relay's own first, then those of custom domains in alphabetical order.
    pub(crate) fn certificates(&self) -> Vec<Certificate> {
        let shared = &self.shared;
        if shared.config.https.is_none() {
            return Vec::new();
        }
        let source = match &shared.config.certificate {
            CertificateSource::Files { .. } => "files",
            CertificateSource::Acme(_) => "acme",
            CertificateSource::Development { .. } => "development",
        };
        let trouble = shared.certificates.health(unix_now()).unwrap_or_else(Some);
        let own = Certificate::of(source, None, shared.certificates.shown(), trouble);
        let domains = shared.domains.iter().flat_map(|domains| domains.list()).map(|(domain, trouble)| {
            let shown = shared.certificates.shown_for(domain.as_str());
            Certificate::of(source, Some(domain), shown, trouble)
        });
        [own].into_iter().chain(domains).collect()
    }
}

impl Certificate {
    fn of(source: &str, domain: Option<Name>, shown: Option<Shown>, trouble: Option<String>) -> Self {
        let (not_before, not_after) = shown.as_ref().map(|shown| (shown.not_before, shown.not_after)).unzip();
        let (names, issuer) = shown.map(|shown| (shown.names, shown.issuer)).unzip();
        Self {
            source: source.to_owned(),
            domain,
            names: names.unwrap_or_default(),
            issuer,
            not_before: not_before.map(moment),
            not_after: not_after.map(moment),
            trouble,
        }
    }
}

/// How a name is held, as it is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct HeldName {
    /// The name.
    pub(crate) name: Name,
    /// The token's name.
    pub(crate) token: String,
    /// `reserved` or `leased`.
    pub(crate) state: &'static str,
    /// The id of the provider whose webhooks it is reserved for.
    pub(crate) provider: Option<String>,
}

/// The names that tokens hold, in alphabetical order.
pub(crate) fn names(tokens: impl IntoIterator<Item = store::TokenSummary>) -> Vec<HeldName> {
    let mut names: Vec<_> = tokens.into_iter().flat_map(names_of).collect();
    names.sort_by(|one, other| one.name.cmp(&other.name));
    names
}

fn names_of(TokenSummary { token, reserved, leased, mut providers, .. }: TokenSummary) -> Vec<HeldName> {
    let reserved = reserved.into_iter().map(|name| (name, "reserved"));
    let leased = leased.into_iter().map(|name| (name, "leased"));
    let held = reserved.chain(leased).map(|(name, state)| {
        let provider = providers.remove(&name);
        HeldName { name, token: token.name.clone(), state, provider }
    });
    held.collect()
}
