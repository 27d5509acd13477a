//! What was typed: flags, environment, and `relay-server.toml`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use http::{HeaderName, HeaderValue, Uri};
use relay_protocol::oidc::is_issuer;
use relay_protocol::webhook::Secret;
use relay_protocol::webhook::mask::MASK;
use serde::Deserialize;

use super::{ConfigError, HttpMode, duration};
use crate::alert::Alert;
use crate::limits::Limits;
use crate::log::LogFormat;
use crate::oidc::OidcConfig;
use crate::traces::Traces;

/// The flags of `relay-server serve`.
#[derive(Args, Clone, Debug, Default)]
pub struct ServeArgs {
    /// The configuration file
    #[arg(long, value_name = "FILE", env = "RELAY_SERVER_CONFIG")]
    pub config: Option<PathBuf>,
    /// The relay's own host name; tunnels live at *.DOMAIN
    #[arg(long, value_name = "DOMAIN", env = "RELAY_DOMAIN")]
    pub domain: Option<String>,
    /// Where to serve HTTPS [default: 0.0.0.0:443]
    #[arg(long, value_name = "ADDR")]
    pub https: Option<String>,
    /// Where to serve plain HTTP [default: 0.0.0.0:80]
    #[arg(long, value_name = "ADDR|off")]
    pub http: Option<String>,
    /// What plain HTTP is for: sending everybody to HTTPS, or serving a proxy in front
    #[arg(long, value_name = "MODE")]
    pub http_mode: Option<HttpMode>,
    /// Where to serve health, metrics, the admin API and the dashboard [default: 127.0.0.1:9180]
    #[arg(long, value_name = "ADDR|unix:PATH|off")]
    pub admin: Option<String>,
    /// The port in public URLs, where a proxy or NAT changes it
    #[arg(long, value_name = "PORT")]
    pub public_port: Option<u16>,
    /// Where tokens and names are kept [default: /var/lib/relay for root, else ~/.local/share/relay]
    #[arg(long, value_name = "DIR", env = "RELAY_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// The certificate chain (PEM), for DOMAIN and *.DOMAIN; reloaded when it changes
    #[arg(long, value_name = "FILE", requires = "key")]
    pub cert: Option<PathBuf>,
    /// The certificate's key (PEM)
    #[arg(long, value_name = "FILE", requires = "cert")]
    pub key: Option<PathBuf>,
    /// Get and renew a certificate for DOMAIN and *.DOMAIN by itself, or with --path-mode for DOMAIN alone, from Let's
    /// Encrypt; EMAIL is told of trouble with it. By this you agree to the authority's terms
    #[arg(long, value_name = "EMAIL", conflicts_with = "cert")]
    pub acme: Option<String>,
    /// The ACME directory of another authority
    #[arg(long, value_name = "URL", conflicts_with = "acme_staging")]
    pub acme_directory: Option<String>,
    /// Ask Let's Encrypt's staging service, whose certificates nobody trusts, to try things out
    #[arg(long)]
    pub acme_staging: bool,
    /// Further roots (PEM) that are trusted when the directory is asked, for an authority of one's own
    #[arg(long, value_name = "FILE")]
    pub acme_ca: Option<PathBuf>,
    /// The key id of an external account, for authorities that want one
    #[arg(long, value_name = "ID", requires = "acme_eab_key_file")]
    pub acme_eab_kid: Option<String>,
    /// The file with that account's key, in base64
    #[arg(long, value_name = "FILE", requires = "acme_eab_kid")]
    pub acme_eab_key_file: Option<PathBuf>,
    /// Where to answer DNS for DOMAIN, with --acme; may be repeated [default: port 53 of the public addresses, or nowhere
    /// with --path-mode]
    #[arg(long, value_name = "ADDR")]
    pub dns: Vec<String>,
    /// The name server's name in the parent zone [default: ns-DOMAIN]
    #[arg(long, value_name = "NAME")]
    pub dns_name: Option<String>,
    /// Instead of answering DNS, have this program set and remove the records that prove DOMAIN: it is called as lego calls
    /// it, PROGRAM present|cleanup NAME VALUE
    #[arg(long, value_name = "PROGRAM", conflicts_with_all = ["dns", "dns_name", "dns_update"])]
    pub dns_hook: Option<PathBuf>,
    /// Instead of answering DNS, have this name server do it, which takes updates (RFC 2136)
    #[arg(long, value_name = "HOST[:PORT]", conflicts_with_all = ["dns", "dns_name"])]
    pub dns_update: Option<String>,
    /// The key that it wants (TSIG), in a file as tsig-keygen writes it
    #[arg(long, value_name = "FILE")]
    pub dns_update_key_file: Option<PathBuf>,
    /// The address under which the world reaches this machine, behind NAT; may be repeated
    #[arg(long, value_name = "IP")]
    pub public_ip: Vec<String>,
    /// The name server that is asked what the world sees of DOMAIN, before a certificate is; off where the public DNS does
    /// not know it [default: those of this machine]
    #[arg(long, value_name = "ADDR|off")]
    pub resolver: Option<String>,
    /// A proxy whose X-Forwarded-For is believed, as an address or a network; may be repeated
    #[arg(long, value_name = "CIDR")]
    pub trusted_proxy: Vec<String>,
    /// Trusted proxies begin each connection with a header of the PROXY protocol, version 1 or 2, and pass bytes on
    #[arg(long)]
    pub proxy_protocol: bool,
    /// Have tunnels at https://DOMAIN/t/NAME, for webhooks alone, where there can be no *.DOMAIN
    #[arg(long)]
    pub path_mode: bool,
    /// The longest wait for a response's head where neither the tunnel nor the sender's provider has one [default: 30s]
    #[arg(long, value_name = "DURATION")]
    pub timeout: Option<String>,
    /// Where strangers can report abuse of a tunnel: an https, http or mailto URL, to which error pages lead
    #[arg(long, value_name = "URL")]
    pub report_url: Option<String>,
    /// Threads that serve requests [default: half of the cores]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// How logs look
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    pub log: LogFormat,
    /// Take the place of the relay that runs on the same data directory, which ends what it has under way and then stops;
    /// `relay-server upgrade` has that one start this
    #[arg(long)]
    pub take_over: bool,
}

/// `relay-server.toml`. Every key is optional; flags come first.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileConfig {
    /// As `--domain`.
    pub domain: Option<String>,
    /// As `--https`.
    pub https: Option<String>,
    /// As `--http`.
    pub http: Option<String>,
    /// As `--http-mode`.
    pub http_mode: Option<HttpMode>,
    /// As `--admin`.
    pub admin: Option<String>,
    /// As `--public-port`.
    pub public_port: Option<u16>,
    /// As `--data-dir`.
    pub data_dir: Option<PathBuf>,
    /// As `--cert`.
    pub cert: Option<PathBuf>,
    /// As `--key`.
    pub key: Option<PathBuf>,
    /// As `--acme`.
    pub acme: Option<String>,
    /// As `--acme-directory`.
    pub acme_directory: Option<String>,
    /// As `--acme-staging`.
    #[serde(default)]
    pub acme_staging: bool,
    /// As `--acme-ca`.
    pub acme_ca: Option<PathBuf>,
    /// As `--acme-eab-kid`.
    pub acme_eab_kid: Option<String>,
    /// As `--acme-eab-key-file`.
    pub acme_eab_key_file: Option<PathBuf>,
    /// As `--dns`.
    #[serde(default)]
    pub dns: Vec<String>,
    /// As `--dns-name`.
    pub dns_name: Option<String>,
    /// As `--dns-hook`.
    pub dns_hook: Option<PathBuf>,
    /// As `--dns-update`.
    pub dns_update: Option<String>,
    /// As `--dns-update-key-file`.
    pub dns_update_key_file: Option<PathBuf>,
    /// As `--public-ip`.
    #[serde(default)]
    pub public_ip: Vec<String>,
    /// As `--resolver`.
    pub resolver: Option<String>,
    /// As `--trusted-proxy`.
    #[serde(default)]
    pub trusted_proxies: Vec<String>,
    /// As `--proxy-protocol`.
    #[serde(default)]
    pub proxy_protocol: bool,
    /// As `--path-mode`.
    #[serde(default)]
    pub path_mode: bool,
    /// As `--timeout`.
    pub timeout: Option<String>,
    /// As `--report-url`.
    pub report_url: Option<String>,
    /// As `--threads`.
    pub threads: Option<usize>,
    /// Whom to tell of backlogs and dead letters.
    pub alert: Option<FileAlert>,
    /// Where exchanges are traced.
    pub traces: Option<FileTraces>,
    /// Whom tunnels may have the relay ask who somebody is.
    pub oidc: Option<FileOidc>,
    /// Limits that differ from the defaults.
    #[serde(default)]
    pub limits: FileLimits,
}

/// What a configuration file says of alerts. Durations are texts such as `30s`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileAlert {
    /// [`Alert::url`].
    pub url: Secret,
    /// [`Alert::secret`].
    pub secret: Option<Secret>,
    /// [`Alert::waiting`].
    pub waiting: Option<u64>,
    /// [`Alert::oldest`].
    pub oldest: Option<String>,
    /// [`Alert::every`].
    pub every: Option<String>,
}

impl FileAlert {
    pub(super) fn resolve(self) -> Result<Alert, ConfigError> {
        // Neither is shown: many a URL lets in whoever knows it.
        let invalid = |key, expected| ConfigError::Invalid { key, value: MASK.to_owned(), expected };
        let mut alert = Alert::to(self.url.expose());
        web_url(&alert.url).ok_or_else(|| invalid("alert.url", "a URL such as https://example.com/alerts"))?;
        if let Some(secret) = self.secret {
            let is_one = Alert::can_sign(&secret)?;
            is_one.then_some(()).ok_or_else(|| {
                invalid("alert.secret", "a secret of Standard Webhooks: whsec_ and 24 to 64 bytes in base64")
            })?;
            alert.secret = Some(secret);
        }
        if let Some(waiting) = self.waiting {
            let expected = "a number of webhooks from 1 on";
            let zero = ConfigError::Invalid { key: "alert.waiting", value: waiting.to_string(), expected };
            alert.waiting = (waiting > 0).then_some(waiting).ok_or(zero)?;
        }
        if let Some(text) = self.oldest {
            alert.oldest = duration("alert.oldest", &text)?;
        }
        if let Some(text) = self.every {
            alert.every = duration("alert.every", &text)?;
        }
        Ok(alert)
    }
}

/// What a configuration file says of traces.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileTraces {
    /// [`Traces::url`].
    pub url: Secret,
    /// [`Traces::headers`].
    #[serde(default)]
    pub headers: BTreeMap<String, Secret>,
    /// [`Traces::sample`]; all of them where nothing is said.
    pub sample: Option<f64>,
    /// [`Traces::follow`].
    #[serde(default)]
    pub follow: bool,
}

impl FileTraces {
    pub(super) fn resolve(self) -> Result<Traces, ConfigError> {
        let invalid = |key, expected| ConfigError::Invalid { key, value: MASK.to_owned(), expected };
        let url = web_url(&self.url)
            .ok_or_else(|| invalid("traces.url", "a collector's URL such as http://127.0.0.1:4318/v1/traces"))?;
        let headers = self.headers.into_iter().map(|(name, value)| {
            let value = HeaderValue::try_from(value.expose()).ok().map(|mut value| {
                value.set_sensitive(true);
                value
            });
            HeaderName::try_from(name).ok().zip(value)
        });
        let headers = headers.collect::<Option<_>>();
        let headers = headers.ok_or_else(|| invalid("traces.headers", "headers such as { x-api-key = \"…\" }"))?;
        let sample = self.sample.unwrap_or(1.0);
        if !(0.0..=1.0).contains(&sample) {
            let expected = "a share of all requests from 0.0 to 1.0";
            return Err(ConfigError::Invalid { key: "traces.sample", value: sample.to_string(), expected });
        }
        Ok(Traces { url, headers, sample, follow: self.follow })
    }
}

/// What a configuration file says of logins.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileOidc {
    /// [`OidcConfig::issuers`].
    #[serde(default)]
    pub issuers: Vec<String>,
    /// [`OidcConfig::ca`].
    pub ca: Option<PathBuf>,
}

impl FileOidc {
    pub(super) fn resolve(self) -> Result<OidcConfig, ConfigError> {
        if let Some(value) = self.issuers.iter().find(|url| !is_issuer(url)).cloned() {
            let expected = "an issuer's https URL without ? and #, such as https://accounts.example.com";
            return Err(ConfigError::Invalid { key: "oidc.issuers", value, expected });
        }
        Ok(OidcConfig { issuers: self.issuers, ca: self.ca })
    }
}

/// What can be asked over HTTP.
fn web_url(text: &Secret) -> Option<Uri> {
    let uri = Uri::try_from(text.expose()).ok()?;
    (matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some()).then_some(uri)
}

/// The limits that a configuration file can change. Durations are texts such as `30s`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileLimits {
    /// [`Limits::connections`].
    pub connections: Option<usize>,
    /// [`Limits::connections_per_address`].
    pub connections_per_address: Option<usize>,
    /// [`Limits::handshake`].
    pub handshake: Option<String>,
    /// [`Limits::head`].
    pub head: Option<String>,
    /// [`Limits::head_bytes`].
    pub head_bytes: Option<usize>,
    /// [`Limits::headers`].
    pub headers: Option<usize>,
    /// [`Limits::body_bytes`].
    pub body_bytes: Option<u64>,
    /// [`Limits::keep_alive`].
    pub keep_alive: Option<String>,
    /// [`Limits::body_idle`].
    pub body_idle: Option<String>,
    /// [`Limits::write_idle`].
    pub write_idle: Option<String>,
    /// [`Limits::response_idle`].
    pub response_idle: Option<String>,
    /// [`Limits::upgrade_idle`].
    pub upgrade_idle: Option<String>,
    /// [`Limits::http2_streams`].
    pub http2_streams: Option<u32>,
    /// [`Limits::client_wait`].
    pub client_wait: Option<String>,
    /// [`Limits::client_waiters`].
    pub client_waiters: Option<usize>,
    /// [`Limits::session_streams`].
    pub session_streams: Option<u32>,
    /// [`Limits::hello`].
    pub hello: Option<String>,
    /// [`Limits::sessions`].
    pub sessions: Option<usize>,
    /// [`Limits::session_tunnels`].
    pub session_tunnels: Option<usize>,
    /// [`Limits::domains`].
    pub domains: Option<usize>,
    /// [`Limits::resume`].
    pub resume: Option<String>,
    /// [`Limits::resume_keys`].
    pub resume_keys: Option<usize>,
    /// [`Limits::refusals_per_minute`].
    pub refusals_per_minute: Option<u32>,
    /// [`Limits::logins_per_minute`].
    pub logins_per_minute: Option<u32>,
    /// [`Limits::login`].
    pub login: Option<String>,
    /// [`Limits::verify_body`].
    pub verify_body: Option<usize>,
    /// [`Limits::verify_bytes`].
    pub verify_bytes: Option<usize>,
    /// [`Limits::inbox_body`].
    pub inbox_body: Option<u64>,
    /// [`Limits::inbox_count`].
    pub inbox_count: Option<u64>,
    /// [`Limits::inbox_bytes`].
    pub inbox_bytes: Option<u64>,
    /// [`Limits::inbox_live`].
    pub inbox_live: Option<usize>,
    /// [`Limits::inbox_live_bytes`].
    pub inbox_live_bytes: Option<u64>,
    /// [`Limits::inboxes_per_token`].
    pub inboxes_per_token: Option<u64>,
    /// [`Limits::inbox_token_bytes`].
    pub inbox_token_bytes: Option<u64>,
    /// [`Limits::inbox_total_bytes`].
    pub inbox_total_bytes: Option<u64>,
    /// [`Limits::inbox_free`].
    pub inbox_free: Option<u64>,
    /// [`Limits::inbox_ack`].
    pub inbox_ack: Option<String>,
    /// [`Limits::inbox_retry`].
    pub inbox_retry: Option<String>,
    /// [`Limits::inbox_delivered`].
    pub inbox_delivered: Option<String>,
    /// [`Limits::inbox_delivered_count`].
    pub inbox_delivered_count: Option<u64>,
    /// [`Limits::inbox_delivered_bytes`].
    pub inbox_delivered_bytes: Option<u64>,
    /// [`Limits::inbox_dead`].
    pub inbox_dead: Option<String>,
    /// [`Limits::drain`].
    pub drain: Option<String>,
}

impl FileConfig {
    /// Reads a configuration file.
    ///
    /// # Errors
    /// [`ConfigError::Read`], [`ConfigError::Parse`].
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError::Read { path: path.to_owned(), error })?;
        toml::from_str(&text).map_err(|error| ConfigError::Parse { path: path.to_owned(), error: Box::new(error) })
    }
}

impl FileLimits {
    pub(super) fn apply(self, mut limits: Limits) -> Result<Limits, ConfigError> {
        let set = |slot: &mut Duration, key: &'static str, text: Option<String>| -> Result<(), ConfigError> {
            if let Some(text) = text {
                *slot = duration(key, &text)?;
            }
            Ok(())
        };
        set(&mut limits.handshake, "limits.handshake", self.handshake)?;
        set(&mut limits.head, "limits.head", self.head)?;
        set(&mut limits.keep_alive, "limits.keep_alive", self.keep_alive)?;
        set(&mut limits.body_idle, "limits.body_idle", self.body_idle)?;
        set(&mut limits.write_idle, "limits.write_idle", self.write_idle)?;
        set(&mut limits.response_idle, "limits.response_idle", self.response_idle)?;
        set(&mut limits.upgrade_idle, "limits.upgrade_idle", self.upgrade_idle)?;
        set(&mut limits.client_wait, "limits.client_wait", self.client_wait)?;
        set(&mut limits.hello, "limits.hello", self.hello)?;
        set(&mut limits.resume, "limits.resume", self.resume)?;
        set(&mut limits.login, "limits.login", self.login)?;
        set(&mut limits.inbox_ack, "limits.inbox_ack", self.inbox_ack)?;
        set(&mut limits.inbox_retry, "limits.inbox_retry", self.inbox_retry)?;
        set(&mut limits.inbox_delivered, "limits.inbox_delivered", self.inbox_delivered)?;
        set(&mut limits.inbox_dead, "limits.inbox_dead", self.inbox_dead)?;
        set(&mut limits.drain, "limits.drain", self.drain)?;
        limits.inbox_body = self.inbox_body.unwrap_or(limits.inbox_body);
        limits.inbox_count = self.inbox_count.unwrap_or(limits.inbox_count);
        limits.inbox_bytes = self.inbox_bytes.unwrap_or(limits.inbox_bytes);
        limits.inbox_live = self.inbox_live.unwrap_or(limits.inbox_live).min(tokio::sync::Semaphore::MAX_PERMITS);
        limits.inbox_live_bytes = self.inbox_live_bytes.unwrap_or(limits.inbox_live_bytes);
        limits.inboxes_per_token = self.inboxes_per_token.unwrap_or(limits.inboxes_per_token);
        limits.inbox_token_bytes = self.inbox_token_bytes.unwrap_or(limits.inbox_token_bytes);
        limits.inbox_total_bytes = self.inbox_total_bytes.unwrap_or(limits.inbox_total_bytes);
        limits.inbox_free = self.inbox_free.unwrap_or(limits.inbox_free);
        limits.inbox_delivered_count = self.inbox_delivered_count.unwrap_or(limits.inbox_delivered_count);
        limits.inbox_delivered_bytes = self.inbox_delivered_bytes.unwrap_or(limits.inbox_delivered_bytes);
        limits.connections = self.connections.unwrap_or(limits.connections);
        limits.connections_per_address = self.connections_per_address.unwrap_or(limits.connections_per_address);
        limits.head_bytes = self.head_bytes.unwrap_or(limits.head_bytes).clamp(1024, 48 * 1024);
        limits.headers = self.headers.unwrap_or(limits.headers).clamp(10, relay_protocol::message::MAX_HEADERS - 16);
        limits.body_bytes = self.body_bytes.unwrap_or(limits.body_bytes);
        limits.http2_streams = self.http2_streams.unwrap_or(limits.http2_streams).max(1);
        limits.client_waiters = self.client_waiters.unwrap_or(limits.client_waiters);
        // The most that a session's budget has room for; see `relay_protocol::mux::Limits`.
        limits.session_streams = self.session_streams.unwrap_or(limits.session_streams).clamp(1, 1024);
        limits.sessions = self.sessions.unwrap_or(limits.sessions);
        limits.session_tunnels =
            self.session_tunnels.unwrap_or(limits.session_tunnels).clamp(1, relay_protocol::message::MAX_TUNNELS);
        limits.domains = self.domains.unwrap_or(limits.domains);
        limits.resume_keys = self.resume_keys.unwrap_or(limits.resume_keys);
        limits.verify_body = self.verify_body.unwrap_or(limits.verify_body);
        limits.verify_bytes = self.verify_bytes.unwrap_or(limits.verify_bytes);
        limits.logins_per_minute = self.logins_per_minute.unwrap_or(limits.logins_per_minute).max(1);
        limits.refusals_per_minute = self.refusals_per_minute.unwrap_or(limits.refusals_per_minute).max(1);
        Ok(limits)
    }
}
