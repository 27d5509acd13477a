//! What a tunnel is to be, before it is opened.

use std::fmt::Display;
use std::path::PathBuf;
use std::time::Duration;

use http::{Request, Response};
use relay_protocol::access::{Access, ApiKey, Digest};
use relay_protocol::network::Network;
use relay_protocol::oidc::Oidc;

use crate::access::authorities;
use crate::capture::Capture;
use crate::client::{Client, ClientError};
use crate::intake::faults::Faults;
use crate::options::TunnelOptions;
use crate::session::dial::{RelayUrl, Target, Trust};
use crate::tunnel::Tunnel;
use crate::tunnel::received::{BOUNDS, reading_all};
use crate::upstream::address::{HostPort, UpstreamAddr};
use crate::upstream::rewrite::HostHeader;
use crate::upstream::service::{Body, Destination, Service};
use crate::value::{Secret, UpstreamProtocol};

/// What a [`Tunnel`] is to be. Made by [`Tunnel::builder`], done by [`TunnelBuilder::open`].
///
/// Nothing is read from the environment or from files unless a method says so, except that the CAs which this machine
/// trusts are read where no [`TunnelBuilder::ca_file`] is given.
#[derive(Clone, Debug, Default)]
#[must_use = "a tunnel is there once it was opened"]
pub struct TunnelBuilder {
    relay: Option<String>,
    token: Option<Secret>,
    ca_file: Option<PathBuf>,
    relay_addr: Option<String>,
    proxied: bool,
    answers: Option<Answers>,
    capture: bool,
    subdomain: Option<String>,
    domain: Option<String>,
    timeout: Option<Duration>,
    host_header: Option<String>,
    protocol: UpstreamProtocol,
    max_reconnect_time: Option<Duration>,
    takeover: bool,
    fault: Option<String>,
    allow: Vec<String>,
    deny: Vec<String>,
    client_ca: Vec<PathBuf>,
    oidc_allow: Vec<String>,
    oidc_skip: Vec<String>,
    /// What of it needs no parsing.
    access: Access,
}

#[derive(Clone, Debug)]
enum Answers {
    Upstream(String),
    Handler(Service),
}

impl TunnelBuilder {
    /// The relay's URL: `https://relay.example.com`. Required, unless [`TunnelBuilder::from_env`] finds it.
    pub fn relay(mut self, url: impl Into<String>) -> Self {
        self.relay = Some(url.into());
        self
    }

    /// The token, as `relay-server token create` has printed it.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(Secret::from(token.into()));
        self
    }

    /// Trusts the CAs of this PEM file to vouch for the relay, and no others.
    pub fn ca_file(mut self, file: impl Into<PathBuf>) -> Self {
        self.ca_file = Some(file.into());
        self
    }

    /// Dials this `HOST:PORT` instead of what the relay's URL names. The certificate must be valid for the URL all the
    /// same.
    pub fn relay_addr(mut self, address: impl Display) -> Self {
        self.relay_addr = Some(address.to_string());
        self
    }

    /// Takes what was not given from the environment: `RELAY_URL`, `RELAY_TOKEN` and `RELAY_CA_FILE`, and the proxy from
    /// the usual variables (`HTTPS_PROXY`, `NO_PROXY` …). What is given by a method, before or after, comes first.
    pub fn from_env(mut self) -> Self {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        self.relay = self.relay.or_else(|| variable("RELAY_URL"));
        self.token = self.token.or_else(|| variable("RELAY_TOKEN").map(Secret::from));
        let ca_file = || std::env::var_os("RELAY_CA_FILE").filter(|file| !file.is_empty()).map(PathBuf::from);
        self.ca_file = self.ca_file.or_else(ca_file);
        self.proxied = true;
        self
    }

    /// Forwards requests to a service that listens here: `3000`, `"127.0.0.1:3000"`, `"https://localhost:3000"`,
    /// `"unix:/path"`, or a [`SocketAddr`](std::net::SocketAddr).
    pub fn upstream(mut self, address: impl Display) -> Self {
        self.answers = Some(Answers::Upstream(address.to_string()));
        self
    }

    /// Answers requests by this handler, in this process: no port is opened. Requests are handled side by side; one
    /// whose sender has gone, or whose deadline has passed, is dropped where it waits. A panic is answered with 500.
    ///
    /// An answer's body is text, bytes, `()` or a [`Body`].
    pub fn serve<H, F, B>(mut self, handler: H) -> Self
    where
        H: Fn(Request<Body>) -> F + Send + Sync + 'static,
        F: Future<Output = Response<B>> + Send + 'static,
        B: Into<Body>,
    {
        self.answers = Some(Answers::Handler(Service::new("handler", handler)));
        self
    }

    /// Keeps each request for [`Tunnel::next_request`], whoever answers it: the [`TunnelBuilder::upstream`], the handler of
    /// [`TunnelBuilder::serve`], or, without either, an empty 200. What a handler leaves of a body is read before its
    /// answer goes out; of a service's requests is kept what that has read.
    pub fn capture(mut self) -> Self {
        self.capture = true;
        self
    }

    /// Asks for this name below the relay's domain; otherwise it is a random one, which nobody can guess.
    pub fn subdomain(mut self, name: impl Into<String>) -> Self {
        self.subdomain = Some(name.into());
        self
    }

    /// Asks for this domain of one's own instead of a name below the relay's: see "Domains of your own" in
    /// `docs/self-hosting.md`.
    pub fn domain(mut self, domain: impl Into<String>) -> Self {
        self.domain = Some(domain.into());
        self
    }

    /// How long a response's head may take. Otherwise the relay decides.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// What the service sees as its own name: `rewrite` (its own, which is the default), `preserve` (the public one), or
    /// this host. A handler sees the public one by default.
    pub fn host_header(mut self, mode: impl Into<String>) -> Self {
        self.host_header = Some(mode.into());
        self
    }

    /// How the upstream is spoken to; HTTP/1.1 by default.
    pub fn protocol(mut self, protocol: UpstreamProtocol) -> Self {
        self.protocol = protocol;
        self
    }

    /// Gives up when the session has been lost for this long. Otherwise the tunnel comes back whenever it can.
    pub fn max_reconnect_time(mut self, limit: Duration) -> Self {
        self.max_reconnect_time = Some(limit);
        self
    }

    /// Takes the name over where another client with the same token holds it.
    pub fn takeover(mut self) -> Self {
        self.takeover = true;
        self
    }

    /// Makes happen what goes wrong once in a while, to so many of the requests: `drop@5%,500@5%,duplicate@10%`,
    /// `delay=2s@30%`, `reorder@20%`; with `seed=7` among them to the same ones each time. Each word is explained in
    /// `docs/commands.md`.
    pub fn fault(mut self, faults: impl Into<String>) -> Self {
        self.fault = Some(faults.into());
        self
    }

    /// Lets in requests from this address or network only: `203.0.113.0/24`. Can be called several times, as the methods
    /// below can; the relay refuses all other requests, as `docs/access.md` says.
    pub fn allow(mut self, network: impl Display) -> Self {
        self.allow.push(network.to_string());
        self
    }

    /// Lets in no requests from this address or network, though [`TunnelBuilder::allow`] has it.
    pub fn deny(mut self, network: impl Display) -> Self {
        self.deny.push(network.to_string());
        self
    }

    /// Lets in only those who show a client certificate that an authority in this file (PEM) has issued.
    pub fn client_ca(mut self, file: impl Into<PathBuf>) -> Self {
        self.client_ca.push(file.into());
        self
    }

    /// Asks for this name and password. One of these, or of the keys, is enough. The relay is told a hash of it.
    pub fn basic_auth(mut self, name: &str, password: &str) -> Self {
        self.access.basic.push(Digest::of(format!("{name}:{password}").as_bytes()));
        self
    }

    /// Asks for this key as `Authorization: Bearer KEY`.
    pub fn api_key(self, key: &str) -> Self {
        self.api_key_in("authorization", key)
    }

    /// Asks for this key in a header, such as `X-Api-Key`.
    pub fn api_key_in(mut self, header: &str, key: &str) -> Self {
        self.access.keys.push(ApiKey { header: header.to_ascii_lowercase(), key: Digest::of(key.as_bytes()) });
        self
    }

    /// Has people log in, in their browsers, where this issuer of OpenID Connect knows them, with the id and the secret that it
    /// has given out for the tunnel. The relay's operator has to allow the issuer, and the relay is told the secret.
    pub fn oidc(
        mut self,
        issuer: impl Into<String>,
        client_id: impl Into<String>,
        client_secret: impl Into<String>,
    ) -> Self {
        let (issuer, client_id, secret) = (issuer.into(), client_id.into(), Some(client_secret.into().into()));
        self.access.oidc = Some(Oidc { issuer, client_id, allow: Vec::new(), skip: Vec::new(), secret }.into());
        self
    }

    /// Lets in only who has this verified address, `alice@example.com`, or one of this domain, `@example.com`; without, everybody
    /// whom the issuer of [`TunnelBuilder::oidc`] knows.
    pub fn oidc_allow(mut self, person: impl Into<String>) -> Self {
        self.oidc_allow.push(person.into());
        self
    }

    /// Asks for no login at this path, in which `*` stands for anything: `/hooks/*`.
    pub fn oidc_skip(mut self, path: impl Into<String>) -> Self {
        self.oidc_skip.push(path.into());
        self
    }

    /// Lets in requests with this method only.
    pub fn allow_method(mut self, method: &str) -> Self {
        self.access.methods.push(method.to_ascii_uppercase());
        self
    }

    /// Lets in requests for this path only, in which `*` stands for anything: `/hooks/*`.
    pub fn allow_path(mut self, path: impl Into<String>) -> Self {
        self.access.paths.push(path.into());
        self
    }

    /// Lets in this many requests in a second.
    pub fn rate_limit(mut self, requests: u32) -> Self {
        self.access.rate = Some(requests);
        self
    }

    /// Lets in bodies of at most this many bytes.
    pub fn body_limit(mut self, bytes: u64) -> Self {
        self.access.body = Some(bytes);
        self
    }

    /// Opens the tunnel, and returns when the relay takes requests for it. Must be called within a tokio runtime, in
    /// which the tunnel then lives. Dropping the future gives the attempt up.
    ///
    /// # Errors
    /// [`OpenError::Setting`] before anything is dialled, where a setting is missing or wrong, and
    /// [`OpenError::Client`] where the relay gives no tunnel.
    pub async fn open(self) -> Result<Tunnel, OpenError> {
        let relay = self.relay.ok_or_else(|| wrong("relay", &"none is named; call relay(URL)"))?;
        let relay: RelayUrl = relay.parse().map_err(|error| wrong("relay", &error))?;
        let relay_addr: Option<HostPort> =
            self.relay_addr.map(|address| address.parse().map_err(|error| wrong("relay_addr", &error))).transpose()?;
        let host_header: HostHeader = match self.host_header {
            Some(mode) => mode.parse().map_err(|error| wrong("host_header", &error))?,
            None => HostHeader::default(),
        };
        let faults: Faults = match self.fault {
            Some(faults) => faults.parse().map_err(|error| wrong("fault", &error))?,
            None => Faults::default(),
        };
        let networks = |setting, texts: Vec<String>| -> Result<Vec<Network>, OpenError> {
            texts.iter().map(|text| text.parse().map_err(|error| wrong(setting, &error))).collect()
        };
        let authorities = self.client_ca.into_iter().map(|file| authorities(&file.into()));
        let authorities: Vec<_> = authorities.collect::<Result<_, _>>().map_err(|error| wrong("client_ca", &error))?;
        let oidc = match self.access.oidc {
            Some(oidc) => Some(Oidc { allow: self.oidc_allow, skip: self.oidc_skip, ..*oidc }.into()),
            None if self.oidc_allow.is_empty() && self.oidc_skip.is_empty() => None,
            // It would let in everybody.
            None => return Err(wrong("oidc", &"no issuer is named; call oidc(ISSUER, CLIENT_ID, CLIENT_SECRET)")),
        };
        let access = Access {
            oidc,
            allow: networks("allow", self.allow)?,
            deny: networks("deny", self.deny)?,
            client_ca: authorities.concat(),
            ..self.access
        };
        access.extras().map_err(|error| wrong("access", &error))?;
        let destination: Destination = match (self.answers, self.capture) {
            (Some(Answers::Upstream(address)), _) => {
                let address: UpstreamAddr = address.parse().map_err(|error| wrong("upstream", &error))?;
                address.into()
            }
            (Some(Answers::Handler(service)), false) => service.into(),
            (Some(Answers::Handler(service)), true) => reading_all(service).into(),
            (None, true) => reading_all(Service::new("capture", |_| async { Response::new(()) })).into(),
            (None, false) => {
                let what = "nothing answers; call upstream(3000), serve(handler) or capture()";
                return Err(wrong("upstream", &what));
            }
        };
        let trust = match &self.ca_file {
            Some(file) => Trust::only(file).map_err(|error| wrong("ca_file", &error))?,
            None => Trust::System,
        };
        let target = Target::new(relay, &trust).map_err(|error| wrong("ca_file", &error))?.dialling(relay_addr);
        let target = if self.proxied { target } else { target.unproxied() };
        let mut client = Client::new(target);
        if let Some(token) = self.token {
            client = client.token(token);
        }
        if let Some(limit) = self.max_reconnect_time {
            client = client.max_reconnect_time(limit);
        }
        let options = TunnelOptions {
            subdomain: self.subdomain,
            domain: self.domain,
            timeout: self.timeout,
            host_header,
            protocol: self.protocol,
            takeover: self.takeover,
            faults,
            access,
            ..TunnelOptions::new(destination)
        };
        Ok(Tunnel::open(client, options, self.capture.then(|| Capture::within(BOUNDS))).await?)
    }
}

fn wrong(setting: &'static str, reason: &dyn Display) -> OpenError {
    OpenError::Setting { setting, reason: reason.to_string() }
}

/// Why a tunnel was not opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// A setting is missing or wrong.
    #[error("{setting}: {reason}")]
    Setting {
        /// The builder's method.
        setting: &'static str,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// The relay gives no tunnel.
    #[error(transparent)]
    Client(#[from] ClientError),
}
