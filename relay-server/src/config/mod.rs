//! What is true, out of what was typed: nothing after [`Config::resolve`] parses, defaults or reads the environment again.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;
use relay_protocol::webhook::TableError;
use serde::{Deserialize, Serialize};

mod typed;

pub use self::typed::{FileAlert, FileConfig, FileLimits, FileOidc, FileTraces, ServeArgs};
pub use crate::alert::Alert;
pub use crate::certs::CertificateSource;
pub use crate::certs::acme::{AcmeConfig, DnsConfig, ExternalAccount, OwnDns};
use crate::dns::Resolver;
pub use crate::dns::UpdateConfig;
pub use crate::limits::{HTTP2_WINDOW, Limits};
pub use crate::log::LogFormat;
pub use crate::oidc::OidcConfig;
pub use crate::traces::Traces;
pub use relay_protocol::network::{Network, NetworkError};

/// Where paths of tunnels begin, in path mode.
pub(crate) const PATH_START: &str = "/t/";

/// Where health, metrics, the admin API and the dashboard are served; written as `127.0.0.1:9180`, or `unix:/var/lib/relay/admin.sock`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum AdminAddr {
    /// For whoever reaches that address.
    Tcp(SocketAddr),
    /// For the relay's own user and root, at that file.
    Unix(PathBuf),
}

impl AdminAddr {
    /// The address, where it is no file.
    #[must_use]
    pub fn tcp(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(address) => Some(*address),
            Self::Unix(_) => None,
        }
    }
}

impl From<SocketAddr> for AdminAddr {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

impl TryFrom<String> for AdminAddr {
    type Error = std::net::AddrParseError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        match text.strip_prefix("unix:") {
            Some(path) => Ok(Self::Unix(path.into())),
            None => text.parse().map(Self::Tcp),
        }
    }
}

impl From<AdminAddr> for String {
    fn from(address: AdminAddr) -> Self {
        address.to_string()
    }
}

impl fmt::Display for AdminAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Everything that the relay needs to know to run.
#[derive(Clone, Debug)]
pub struct Config {
    /// The relay's own host; tunnels live one label below it. Lower case, without a trailing dot.
    pub domain: String,
    /// Where HTTPS is served.
    pub https: Option<SocketAddr>,
    /// Where plain HTTP is served.
    pub http: Option<SocketAddr>,
    /// What plain HTTP is for.
    pub http_mode: HttpMode,
    /// Where health and metrics are served; loopback, or a network that is trusted.
    pub admin: Option<AdminAddr>,
    /// The port in public URLs where it is neither 443 nor the one that HTTPS is bound to.
    pub public_port: Option<u16>,
    /// Where tokens, names and the control socket live; `None` keeps them in memory for as long as the process lives.
    pub data_dir: Option<PathBuf>,
    /// Where the certificate comes from.
    pub certificate: CertificateSource,
    /// The addresses under which the world reaches this machine; empty where it knows them by itself.
    pub public_ips: Vec<IpAddr>,
    /// Whom the relay asks for what the world sees of its domain.
    pub resolver: Resolver,
    /// Proxies whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<Network>,
    /// Whether connections of trusted proxies begin with a header of the PROXY protocol, version 1 or 2, which names the
    /// sender: one without is closed, and what HTTP says of senders is the sender's own word.
    pub proxy_protocol: bool,
    /// Whether tunnels are below the relay's own host, at `/t/NAME`, and for webhooks alone.
    pub path_mode: bool,
    /// The name of the tunnel that also answers on `localhost`, for `relay dev`.
    pub localhost_tunnel: Option<String>,
    /// Whom the relay tells of backlogs and dead letters.
    pub alert: Option<Alert>,
    /// Where exchanges are traced.
    pub traces: Option<Traces>,
    /// Whom tunnels may have the relay ask who somebody is.
    pub oidc: OidcConfig,
    /// Where strangers can report what they find at a tunnel: an `https`, `http` or `mailto` URL that error pages lead to.
    pub report_url: Option<String>,
    /// Threads that serve requests, where the relay is a program of its own.
    ///
    /// One does the work of two here with a fifth less CPU, because exchanges then meet in the same batch; more than
    /// one pays off only where one core is not enough.
    pub threads: usize,
    /// See [`Limits`].
    pub limits: Limits,
}

impl Config {
    /// A relay on this machine alone, as tests want it: HTTPS and plain HTTP on free ports of 127.0.0.1, everything
    /// kept in memory, and a certificate of a development CA that is made in `directory`, or found there. Plain HTTP
    /// serves tunnels, too: callers that cannot be made to trust the CA name the tunnel in `Host`.
    ///
    /// Below `localhost` every domain is this machine (RFC 6761, section 6.3), so that with `relay.localhost` our client
    /// needs no other address.
    pub fn on_loopback(domain: impl Into<String>, directory: impl Into<PathBuf>) -> Self {
        let free = Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        Self {
            domain: domain.into(),
            https: free,
            http: free,
            http_mode: HttpMode::Serve,
            admin: None,
            public_port: None,
            data_dir: None,
            certificate: CertificateSource::Development { dir: directory.into() },
            public_ips: Vec::new(),
            resolver: Resolver::Off,
            trusted_proxies: Vec::new(),
            proxy_protocol: false,
            path_mode: false,
            localhost_tunnel: None,
            alert: None,
            traces: None,
            oidc: OidcConfig::default(),
            report_url: None,
            threads: 1,
            limits: Limits::default(),
        }
    }
}

/// What plain HTTP is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum HttpMode {
    /// Every request is sent to HTTPS.
    #[default]
    Redirect,
    /// Requests are served, for a proxy in front that terminates TLS.
    Serve,
}

/// Why a configuration is not usable.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// The file is not what it should be. The text names line and column, and what was expected.
    #[error("{}: {error}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and what.
        error: Box<toml::de::Error>,
    },
    /// A value that is missing.
    #[error("{key} is missing: give {flag}, or {key} in the configuration file")]
    Missing {
        /// The key in the file.
        key: &'static str,
        /// The flag with an example.
        flag: &'static str,
    },
    /// A value that is not what it should be.
    #[error("{key} = {value:?} is not {expected}")]
    Invalid {
        /// The key in the file; the flag is the same with dashes.
        key: &'static str,
        /// What was typed.
        value: String,
        /// What was expected, with an example.
        expected: &'static str,
    },
    /// Public listeners need a certificate.
    #[error(
        "no certificate: give --acme you@example.com, or --cert and --key. A development certificate is made only where \
         every listener is on loopback, and {0} is not"
    )]
    NoCertificate(SocketAddr),
    /// The authority would look for the proof where the relay is not.
    #[error(
        "with --acme in path mode the relay shows that the domain is its own at port 443, and {0}: give --public-port 443 \
         where something passes the bytes of that port on, or another proof by --dns-name, --dns-update or --dns-hook, or \
         leave --acme out where a proxy has the certificate"
    )]
    NotAtOurPort(String),
    /// What is known of providers cannot be read.
    #[error(transparent)]
    Providers(#[from] TableError),
}

impl Config {
    /// Settles flags and file into what is true.
    ///
    /// # Errors
    /// [`ConfigError`] names the key, what was typed, and what was expected.
    pub fn resolve(args: &ServeArgs) -> Result<Self, ConfigError> {
        let file = args.config.as_deref().map(FileConfig::read).transpose()?.unwrap_or_default();
        let domain = args
            .domain
            .clone()
            .or(file.domain.clone())
            .ok_or(ConfigError::Missing { key: "domain", flag: "--domain relay.example.com" })?;
        let domain = parse_domain("domain", &domain)?;
        let data_dir = args.data_dir.clone().or(file.data_dir.clone()).unwrap_or_else(default_data_dir);
        let acme = acme(args, &file, &domain, &data_dir)?;
        let https = listener("https", args.https.clone().or(file.https), Some(([0, 0, 0, 0], 443).into()))?;
        let http = listener("http", args.http.clone().or(file.http), Some(([0, 0, 0, 0], 80).into()))?;
        let admin = admin(args.admin.clone().or(file.admin))?;
        let certificate = match (acme, args.cert.clone().or(file.cert), args.key.clone().or(file.key)) {
            (Some(acme), ..) => CertificateSource::Acme(Box::new(acme)),
            (None, Some(cert), Some(key)) => CertificateSource::Files { cert, key },
            (None, Some(_), None) => return Err(ConfigError::Missing { key: "key", flag: "--key FILE" }),
            (None, None, Some(_)) => return Err(ConfigError::Missing { key: "cert", flag: "--cert FILE" }),
            (None, None, None) => match https.filter(|addr| !addr.ip().is_loopback()) {
                Some(public) => return Err(ConfigError::NoCertificate(public)),
                None => CertificateSource::Development { dir: crate::certs::dev_directory(&data_dir) },
            },
        };
        let public_ips = if args.public_ip.is_empty() { &file.public_ip } else { &args.public_ip };
        let public_ips = public_ips.iter().map(|text| {
            let expected = "an address such as 203.0.113.7";
            text.parse().map_err(|_| ConfigError::Invalid { key: "public_ip", value: text.clone(), expected })
        });
        let resolver = args.resolver.as_ref().or(file.resolver.as_ref()).map(|text| {
            let expected = "the address of a name server such as 192.0.2.1, or off, or system";
            text.parse().map_err(|_| ConfigError::Invalid { key: "resolver", value: text.clone(), expected })
        });
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let networks = args.trusted_proxy.iter().chain(&file.trusted_proxies).map(|text| {
            let invalid = |_: NetworkError| ConfigError::Invalid {
                key: "trusted_proxies",
                value: text.clone(),
                expected: relay_protocol::network::EXPECTED,
            };
            text.parse().map_err(invalid)
        });
        let trusted_proxies = networks.collect::<Result<Vec<_>, _>>()?;
        let proxy_protocol = args.proxy_protocol || file.proxy_protocol;
        if proxy_protocol && trusted_proxies.is_empty() {
            return Err(ConfigError::Missing { key: "trusted_proxies", flag: "--trusted-proxy 10.0.0.0/8" });
        }
        let public_port = args.public_port.or(file.public_port);
        if let CertificateSource::Acme(acme) = &certificate
            && acme.dns == DnsConfig::AtOurPort
        {
            // Port 0 is a free one, of which nobody in the world knows.
            match (https, public_port) {
                (None, _) => return Err(ConfigError::NotAtOurPort("HTTPS is off".to_owned())),
                (Some(https), None) if ![0, 443].contains(&https.port()) => {
                    return Err(ConfigError::NotAtOurPort(format!("HTTPS is at port {}", https.port())));
                }
                (_, Some(port)) if port != 443 => {
                    return Err(ConfigError::NotAtOurPort(format!("the world comes to port {port}")));
                }
                _ => {}
            }
        }
        let mut limits = file.limits.apply(Limits::default())?;
        if let Some(timeout) = args.timeout.as_deref().or(file.timeout.as_deref()) {
            limits.deadline = duration("timeout", timeout)?;
        }
        Ok(Self {
            domain,
            https,
            http,
            http_mode: args.http_mode.or(file.http_mode).unwrap_or_default(),
            admin,
            public_port,
            data_dir: Some(data_dir),
            certificate,
            public_ips: public_ips.collect::<Result<_, _>>()?,
            resolver: resolver.transpose()?.unwrap_or_default(),
            trusted_proxies,
            proxy_protocol,
            path_mode: args.path_mode || file.path_mode,
            localhost_tunnel: None,
            alert: file.alert.map(FileAlert::resolve).transpose()?,
            traces: file.traces.map(FileTraces::resolve).transpose()?,
            oidc: file.oidc.map(FileOidc::resolve).transpose()?.unwrap_or_default(),
            report_url: args.report_url.clone().or(file.report_url).map(report_url).transpose()?,
            threads: args.threads.or(file.threads).unwrap_or(cores / 2).max(1),
            limits,
        })
    }

    /// The public URL of the tunnel of a name, or of a custom domain, without a trailing slash.
    pub fn tunnel_url(&self, name: &str, https_port: u16) -> String {
        if name.contains('.') {
            self.public_url(name, https_port)
        } else if self.path_mode {
            [&self.public_url(&self.domain, https_port), PATH_START, name].concat()
        } else {
            self.public_url(&format!("{name}.{}", self.domain), https_port)
        }
    }

    /// The public URL of a host, without a trailing slash.
    pub fn public_url(&self, host: &str, https_port: u16) -> String {
        match self.public_port.unwrap_or(https_port) {
            443 => format!("https://{host}"),
            port => format!("https://{host}:{port}"),
        }
    }
}

/// A duration as people write it: `500ms`, `10s`, `5m`, `1h`, `30d`.
pub(crate) fn duration(key: &'static str, text: &str) -> Result<Duration, ConfigError> {
    let invalid =
        || ConfigError::Invalid { key, value: text.to_owned(), expected: "a duration such as 500ms, 10s, 5m or 1h" };
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(invalid)?;
    let (number, unit) = text.split_at_checked(digits).ok_or_else(invalid)?;
    let number: u64 = number.parse().map_err(|_| invalid())?;
    let seconds = |unit: u64| number.checked_mul(unit).filter(|s| *s <= 10 * 365 * 86400).map(Duration::from_secs);
    match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" => seconds(1),
        "m" => seconds(60),
        "h" => seconds(3600),
        "d" => seconds(86400),
        _ => None,
    }
    .filter(|duration| !duration.is_zero())
    .ok_or_else(invalid)
}

/// What is said of ACME; none where certificates come from files, which a flag can say against the file.
fn acme(args: &ServeArgs, file: &FileConfig, domain: &str, data_dir: &Path) -> Result<Option<AcmeConfig>, ConfigError> {
    let invalid = |key, value: &str, expected| ConfigError::Invalid { key, value: value.to_owned(), expected };
    let Some(email) = args.acme.as_ref().or(file.acme.as_ref().filter(|_| args.cert.is_none())) else {
        return Ok(None);
    };
    if !email.split_once('@').is_some_and(|(user, host)| !user.is_empty() && host.contains('.') && !host.contains('@'))
    {
        return Err(invalid("acme", email, "the address of whom to tell of trouble, such as you@example.com"));
    }
    if args.acme.is_none() && file.cert.is_some() {
        return Err(invalid("acme", email, "for a relay that has a certificate from cert: leave one of them out"));
    }
    let [production, staging] = crate::certs::acme::LETS_ENCRYPT;
    let directory = match args.acme_directory.as_ref().filter(|_| !args.acme_staging) {
        Some(url) => url,
        None if args.acme_staging => staging,
        None => match &file.acme_directory {
            Some(url) if !file.acme_staging => url,
            None if !file.acme_staging => production,
            Some(url) => {
                return Err(invalid("acme_directory", url, "for a relay with acme_staging: leave one of them out"));
            }
            None => staging,
        },
    };
    if !crate::certs::acme::is_secure(directory) {
        return Err(invalid("acme_directory", directory, "an https URL such as https://acme.example.com/directory"));
    }
    let key_id = args.acme_eab_kid.clone().or(file.acme_eab_kid.clone());
    let external_account = match (key_id, args.acme_eab_key_file.clone().or(file.acme_eab_key_file.clone())) {
        (Some(id), Some(key_file)) => Some(ExternalAccount { id, key_file }),
        (None, None) => None,
        (Some(_), None) => {
            return Err(ConfigError::Missing { key: "acme_eab_key_file", flag: "--acme-eab-key-file FILE" });
        }
        (None, Some(_)) => return Err(ConfigError::Missing { key: "acme_eab_kid", flag: "--acme-eab-kid ID" }),
    };
    Ok(Some(AcmeConfig {
        email: email.clone(),
        directory: directory.to_owned(),
        ca: args.acme_ca.clone().or(file.acme_ca.clone()),
        external_account,
        dir: crate::certs::acme::directory(data_dir),
        dns: dns(args, file, domain)?,
    }))
}

/// What is said of how the domain is proved. Flags that say how come before all that the file says of it.
fn dns(args: &ServeArgs, file: &FileConfig, domain: &str) -> Result<DnsConfig, ConfigError> {
    let invalid = |key, value: &str, expected| ConfigError::Invalid { key, value: value.to_owned(), expected };
    let said = !args.dns.is_empty() || args.dns_name.is_some() || args.dns_hook.is_some() || args.dns_update.is_some();
    let in_file = |set: bool| set && !said;
    let hook = args.dns_hook.as_ref().or(file.dns_hook.as_ref().filter(|_| in_file(true)));
    let update = args.dns_update.as_ref().or(file.dns_update.as_ref().filter(|_| in_file(true)));
    let key_file = args.dns_update_key_file.clone().or(file.dns_update_key_file.clone());
    let own_in_file = in_file(!file.dns.is_empty() || file.dns_name.is_some());
    match (hook, update) {
        (Some(hook), other) if other.is_some() || own_in_file => {
            let expected = "for a relay with dns, dns_name or dns_update: leave one of them out";
            Err(invalid("dns_hook", &hook.display().to_string(), expected))
        }
        (None, Some(server)) if own_in_file => {
            Err(invalid("dns_update", server, "for a relay with dns or dns_name: leave one of them out"))
        }
        (Some(hook), _) => Ok(DnsConfig::Hook { program: hook.clone() }),
        (None, Some(server)) => {
            let expected = "a name server such as ns1.example.com, 192.0.2.1 or 192.0.2.1:5353";
            let server = crate::dns::with_port(server).ok_or_else(|| invalid("dns_update", server, expected))?;
            Ok(DnsConfig::Updates(UpdateConfig { server, key_file }))
        }
        (None, None) if key_file.is_some() && !said => {
            Err(ConfigError::Missing { key: "dns_update", flag: "--dns-update ns1.example.com" })
        }
        // Who has paths in the place of names needs no wildcard, and often has nothing to say in DNS.
        (None, None) if (args.path_mode || file.path_mode) && !said && !own_in_file => Ok(DnsConfig::AtOurPort),
        (None, None) => own_dns(args, file, domain).map(DnsConfig::Own),
    }
}

fn own_dns(args: &ServeArgs, file: &FileConfig, domain: &str) -> Result<OwnDns, ConfigError> {
    let expected = "an address and port such as 203.0.113.7:53";
    let invalid = |text: &String| ConfigError::Invalid { key: "dns", value: text.clone(), expected };
    let listen = if args.dns.is_empty() { &file.dns } else { &args.dns };
    let listen = listen.iter().map(|text| text.parse().map_err(|_| invalid(text)));
    let name = args.dns_name.as_ref().or(file.dns_name.as_ref());
    let name = name.map(|name| parse_domain("dns_name", name)).transpose()?;
    Ok(OwnDns {
        listen: listen.collect::<Result<_, _>>()?,
        name: name.unwrap_or_else(|| crate::dns::default_name(domain)),
    })
}

/// Nothing else is a link that a stranger should be led to.
fn report_url(text: String) -> Result<String, ConfigError> {
    let is_one = ["https://", "http://", "mailto:"].iter().any(|scheme| {
        text.strip_prefix(scheme)
            .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_graphic()))
    });
    let expected = "an https, http or mailto URL such as https://example.com/abuse";
    if is_one { Ok(text) } else { Err(ConfigError::Invalid { key: "report_url", value: text, expected }) }
}

fn parse_domain(key: &'static str, text: &str) -> Result<String, ConfigError> {
    let domain = text.trim_end_matches('.').to_ascii_lowercase();
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if domain.len() <= 189 && domain.parse::<Ipv4Addr>().is_err() && domain.split('.').all(label) {
        Ok(domain)
    } else {
        Err(ConfigError::Invalid { key, value: text.to_owned(), expected: "a host name such as relay.example.com" })
    }
}

fn listener(
    key: &'static str,
    text: Option<String>,
    default: Option<SocketAddr>,
) -> Result<Option<SocketAddr>, ConfigError> {
    match text.as_deref() {
        None => Ok(default),
        Some("off") => Ok(None),
        Some(text) => text.parse().map(Some).map_err(|_| ConfigError::Invalid {
            key,
            value: text.to_owned(),
            expected: "an address and port such as 0.0.0.0:443 or [::]:443, or off",
        }),
    }
}

/// An address, or a Unix socket; off leads to none.
fn admin(text: Option<String>) -> Result<Option<AdminAddr>, ConfigError> {
    let Some(path) = text.as_deref().and_then(|text| text.strip_prefix("unix:")) else {
        let usual = SocketAddr::from(([127, 0, 0, 1], 9180));
        return listener("admin", text, Some(usual)).map(|address| address.map(AdminAddr::Tcp));
    };
    if Path::new(path).is_absolute() {
        return Ok(Some(AdminAddr::Unix(path.into())));
    }
    let expected = "an absolute path, as in unix:/var/lib/relay/admin.sock";
    Err(ConfigError::Invalid { key: "admin", value: format!("unix:{path}"), expected })
}

/// Where a service keeps its data.
const SERVICE_DIR: &str = "/var/lib/relay";

/// Where a relay keeps its data when nobody says: the system's place for a service, the user's for a trial.
pub fn default_data_dir() -> PathBuf {
    let home = std::env::var_os("HOME").map(PathBuf::from);
    match home {
        // The home of the user that the packages make for the service is that place.
        Some(home) if home != Path::new("/root") && home != Path::new(SERVICE_DIR) => home.join(".local/share/relay"),
        _ => PathBuf::from(SERVICE_DIR),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;

    fn args() -> ServeArgs {
        ServeArgs {
            domain: Some("Relay.Example.COM.".into()),
            https: Some("127.0.0.1:0".into()),
            data_dir: Some("/d".into()),
            ..ServeArgs::default()
        }
    }

    #[test]
    fn flags_come_before_the_file_and_defaults_last() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("relay-server.toml");
        std::fs::write(&path, "domain = 'other.example'\nhttp = 'off'\n[limits]\nhead = '3s'\n").unwrap();
        let config = Config::resolve(&ServeArgs { config: Some(path), ..args() }).unwrap();
        assert_eq!(config.domain, "relay.example.com");
        assert_eq!((config.http, config.limits.head), (None, Duration::from_secs(3)));
        assert_eq!(config.admin, Some(SocketAddr::from(([127, 0, 0, 1], 9180)).into()));
        assert_eq!(admin(Some("off".into())).unwrap(), None);
        let socket = admin(Some("unix:/var/lib/relay/admin.sock".into())).unwrap();
        assert_eq!(socket, Some(AdminAddr::Unix("/var/lib/relay/admin.sock".into())));
        assert_eq!(socket.clone().unwrap().to_string().try_into(), Ok(socket.unwrap()));
        assert!(admin(Some("unix:admin.sock".into())).is_err(), "from where would that be?");
    }

    #[test]
    fn mistakes_name_the_key_the_line_and_what_was_expected() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("relay-server.toml");
        std::fs::write(&path, "domain = 'a.example'\nhtps = '1'\n").unwrap();
        let error = Config::resolve(&ServeArgs { config: Some(path), ..args() }).unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains("htps") && error.contains("expected"), "{error}");
        for (bad, key) in [
            (ServeArgs { https: Some("443".into()), ..args() }, "https"),
            (ServeArgs { domain: Some("a_b".into()), ..args() }, "domain"),
            (ServeArgs { timeout: Some("10".into()), ..args() }, "timeout"),
            (ServeArgs { trusted_proxy: vec!["10.0.0.0/33".into()], ..args() }, "trusted_proxies"),
            (ServeArgs { proxy_protocol: true, ..args() }, "trusted_proxies is missing"),
            (ServeArgs { report_url: Some("javascript:alert(1)".into()), ..args() }, "report_url"),
            (ServeArgs { report_url: Some("https://example.com/a b".into()), ..args() }, "report_url"),
        ] {
            let error = Config::resolve(&bad).unwrap_err().to_string();
            assert!(error.starts_with(key), "{error}");
        }
    }

    #[test]
    fn the_documented_file_is_valid_and_shows_the_defaults() {
        let page = include_str!("../../../docs/configuration.md");
        let (_, page) = page.split_once("## Configuration of the relay").unwrap();
        let (_, rest) = page.split_once("```toml\n").unwrap();
        let (example, _) = rest.split_once("```").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("relay-server.toml");
        std::fs::write(&path, example).unwrap();
        let config = Config::resolve(&ServeArgs { config: Some(path), ..ServeArgs::default() }).unwrap();
        assert_eq!(format!("{:?}", config.limits), format!("{:?}", Limits::default()));
        assert_eq!((config.https.unwrap().port(), config.http.unwrap().port()), (443, 80));
    }

    #[test]
    fn the_documented_keys_of_acme_are_valid() {
        let page = include_str!("../../../docs/configuration.md");
        let (_, example) = page.split_once("```toml\nacme = ").unwrap();
        let (example, _) = example.split_once("```").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("relay-server.toml");
        let resolve = |text: &str, args: ServeArgs| {
            std::fs::write(&path, text).unwrap();
            Config::resolve(&ServeArgs { config: Some(path.clone()), ..args })
                .map(|config| (config.certificate, config.public_ips, config.resolver))
        };
        let (source, public_ips, resolver) = resolve(&format!("acme = {example}"), args()).unwrap();
        let CertificateSource::Acme(acme) = source else { panic!() };
        assert_eq!(acme.directory, crate::certs::acme::LETS_ENCRYPT[0]);
        let own = acme.dns.own().unwrap();
        assert_eq!((acme.email.as_str(), own.listen.len(), public_ips.len()), ("you@example.com", 1, 1));
        assert_eq!(resolver, Resolver::At("192.0.2.53:53".parse().unwrap()));
        assert!(acme.external_account.is_some() && acme.ca.is_some());
        assert_eq!((own.name.as_str(), &acme.dir), ("ns-relay.example.com", &PathBuf::from("/d/acme")));

        let of = |args| match resolve("acme = 'me@example.org'\nacme_staging = true\n", args).unwrap().0 {
            CertificateSource::Acme(acme) => (acme.email, acme.directory, acme.dns.own().unwrap().name.clone()),
            other => panic!("{other:?}"),
        };
        let staging = crate::certs::acme::LETS_ENCRYPT[1].to_owned();
        assert_eq!(of(args()), ("me@example.org".to_owned(), staging, "ns-relay.example.com".to_owned()));
        let own = ServeArgs {
            acme_directory: Some("https://ca.example/dir".into()),
            domain: Some("example.com".into()),
            ..args()
        };
        assert_eq!((of(own.clone()).1.as_str(), of(own).2.as_str()), ("https://ca.example/dir", "ns.example.com"));
        // Flags against the file.
        let files = ServeArgs { cert: Some("c".into()), key: Some("k".into()), ..args() };
        assert!(matches!(resolve("acme = 'me@example.org'\n", files).unwrap().0, CertificateSource::Files { .. }));
        for (bad, key) in [
            ("acme = 'you'\n", "acme"),
            ("acme = 'a@b.example'\ncert = 'c'\nkey = 'k'\n", "acme"),
            ("acme = 'a@b.example'\nacme_directory = 'http://ca.example/dir'\n", "acme_directory"),
            ("acme = 'a@b.example'\nacme_eab_kid = 'k'\n", "acme_eab_key_file"),
            ("acme = 'a@b.example'\ndns = ['53']\n", "dns"),
            ("acme = 'a@b.example'\ndns_hook = 'h'\ndns_name = 'ns.b.example'\n", "dns_hook"),
            ("acme = 'a@b.example'\ndns_hook = 'h'\ndns_update = '192.0.2.1'\n", "dns_hook"),
            ("acme = 'a@b.example'\ndns_update = '192.0.2.1'\ndns = ['192.0.2.1:53']\n", "dns_update"),
            ("acme = 'a@b.example'\ndns_update = '192.0.2.1:x'\n", "dns_update"),
            ("acme = 'a@b.example'\ndns_update_key_file = 'f'\n", "dns_update"),
            ("acme = 'a@b.example'\npublic_ip = ['relay.example.com']\n", "public_ip"),
            ("resolver = 'dns.example.com'\n", "resolver"),
        ] {
            let error = resolve(bad, args()).unwrap_err().to_string();
            assert!(error.starts_with(key), "{error}");
        }
    }

    #[test]
    fn the_domain_is_proved_where_it_is_said() {
        let page = include_str!("../../../docs/configuration.md");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("relay-server.toml");
        let dns = |text: &str, args: ServeArgs| {
            std::fs::write(&path, format!("acme = 'a@b.example'\n{text}")).unwrap();
            match Config::resolve(&ServeArgs { config: Some(path.clone()), ..args }).unwrap().certificate {
                CertificateSource::Acme(acme) => acme.dns,
                other => panic!("{other:?}"),
            }
        };
        let documented = |begin: &str| {
            let (_, example) = page.split_once(&format!("```toml\n{begin}")).unwrap();
            format!("{begin}{}", example.split_once("```").unwrap().0)
        };
        let hook = documented("dns_hook = ");
        let DnsConfig::Hook { program } = dns(&hook, args()) else { panic!() };
        assert_eq!(program, Path::new("/etc/relay/dns-hook"));
        let update = documented("dns_update = ");
        let DnsConfig::Updates(found) = dns(&update, args()) else { panic!() };
        let key_file = Some("/etc/relay/tsig.key".into());
        assert_eq!(found, UpdateConfig { server: "ns1.example.com:53".to_owned(), key_file });
        // Flags against the file.
        let flag = ServeArgs { dns_hook: Some("h".into()), ..args() };
        assert!(matches!(dns(&update, flag), DnsConfig::Hook { .. }));
        let flag = ServeArgs { dns_name: Some("ns.b.example".into()), ..args() };
        assert!(dns(&update, flag.clone()).own().is_some() && dns(&hook, flag).own().is_some());
        for (typed, server) in [
            ("192.0.2.1", "192.0.2.1:53"),
            ("192.0.2.1:5353", "192.0.2.1:5353"),
            ("2001:db8::1", "[2001:db8::1]:53"),
            ("[2001:db8::1]:5353", "[2001:db8::1]:5353"),
            ("ns1.example.com.:5353", "ns1.example.com.:5353"),
        ] {
            let flag = ServeArgs { dns_update: Some(typed.into()), ..args() };
            let DnsConfig::Updates(found) = dns("", flag) else { panic!() };
            assert_eq!(found, UpdateConfig { server: server.to_owned(), key_file: None });
        }
    }

    /// Every limit can be set, and none of them sets another.
    #[test]
    fn the_file_changes_each_limit() {
        let page = include_str!("../../../docs/configuration.md");
        let (_, page) = page.split_once("[limits]\n").unwrap();
        let (documented, _) = page.split_once("```").unwrap();
        let fields = |limits: &Limits| -> Vec<(String, String)> {
            let shown = format!("{limits:#?}");
            let lines = shown.lines().filter_map(|line| line.trim().trim_end_matches(',').split_once(": "));
            lines.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
        };
        let default = fields(&Limits::default());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("relay-server.toml");
        let mut set = Vec::new();
        for line in documented.lines() {
            let (key, value) = line.split_once(" = ").unwrap();
            let value = if value.starts_with('"') { "\"7s\"" } else { "77" };
            // 77 bytes are no head.
            let value = if key == "head_bytes" { "2048" } else { value };
            std::fs::write(&path, format!("[limits]\n{key} = {value}\n")).unwrap();
            let limits = Config::resolve(&ServeArgs { config: Some(path.clone()), ..args() }).unwrap().limits;
            let changed: Vec<_> = fields(&limits).into_iter().zip(&default).filter(|(now, was)| now != *was).collect();
            let [((name, now), _)] = &changed[..] else { panic!("{key}: {changed:?}") };
            assert_eq!((name.as_str(), now.as_str()), (key, value.trim_matches('"')));
            set.push(name.clone());
        }
        // The deadline has a key and a flag of its own.
        let all: Vec<_> = default.into_iter().map(|(name, _)| name).filter(|name| name != "deadline").collect();
        assert_eq!(set, all, "documented in the order of the code, each once");
    }

    #[test]
    fn alerts_are_as_the_page_shows_them_and_mistakes_show_no_secret() {
        let page = include_str!("../../../docs/configuration.md");
        let (_, rest) = page.split_once("[alert]\n").unwrap();
        let (example, _) = rest.split_once("```").unwrap();
        let read = |alert: &str| {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("relay-server.toml");
            std::fs::write(&path, format!("[alert]\n{alert}")).unwrap();
            Config::resolve(&ServeArgs { config: Some(path), ..args() })
        };
        let alert = read(example).unwrap().alert.unwrap();
        let usual = Alert { secret: alert.secret.clone(), ..Alert::to(alert.url.expose()) };
        assert!(alert.secret.is_some());
        assert_eq!(format!("{alert:?}"), format!("{usual:?}"));
        assert!(!format!("{alert:?}").contains("whsec_") && !format!("{alert:?}").contains("https"), "{alert:?}");
        for (bad, key) in [
            ("url = 'sesame'", "alert.url"),
            ("url = 'ftp://host/sesame'", "alert.url"),
            ("url = '/sesame'", "alert.url"),
            ("url = 'https://host/'\nsecret = 'whsec_sesame!'", "alert.secret"),
            ("url = 'https://host/'\nwaiting = 0", "alert.waiting"),
            ("url = 'https://host/'\noldest = '15'", "alert.oldest"),
        ] {
            let error = read(bad).unwrap_err().to_string();
            assert!(error.starts_with(key) && !error.contains("sesame"), "{error}");
        }
    }

    #[test]
    fn traces_are_as_the_pages_show_them_and_mistakes_show_no_secret() {
        let read = |traces: &str| {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("relay-server.toml");
            std::fs::write(&path, format!("[traces]\n{traces}")).unwrap();
            Config::resolve(&ServeArgs { config: Some(path), ..args() })
        };
        for page in [include_str!("../../../docs/configuration.md"), include_str!("../../../docs/tracing.md")] {
            let (_, rest) = page.split_once("[traces]\n").unwrap();
            let (example, _) = rest.split_once("```").unwrap();
            // What stands for a key is none.
            let traces = read(&example.replace('…', "sesame")).unwrap().traces.unwrap();
            assert_eq!((traces.url.path(), traces.headers.len()), ("/v1/traces", 1));
            assert!(!format!("{traces:?}").contains("sesame"), "{traces:?}");
        }
        assert_eq!(read("url = 'http://localhost:4318/v1/traces'").unwrap().traces.unwrap().sample, 1.0);
        for (bad, key) in [
            ("url = 'sesame'", "traces.url"),
            ("url = 'http://host/'\nheaders = { 'sesame key' = '1' }", "traces.headers"),
            ("url = 'http://host/'\nheaders = { x-key = \"sesame\\n\" }", "traces.headers"),
            ("url = 'http://host/'\nsample = 1.5", "traces.sample"),
            ("url = 'http://host/'\nsample = nan", "traces.sample"),
        ] {
            let error = read(bad).unwrap_err().to_string();
            assert!(error.starts_with(key) && !error.contains("sesame"), "{error}");
        }
    }

    #[test]
    fn a_domain_is_proved_at_port_443_alone() {
        let at = |https: &str, public_port| {
            let acme = Some("you@example.com".into());
            let args = ServeArgs { https: Some(https.into()), acme, path_mode: true, public_port, ..args() };
            Config::resolve(&args).err().map(|error| error.to_string())
        };
        for (https, public_port, why) in [
            ("0.0.0.0:443", None, None),
            ("127.0.0.1:8443", Some(443), None),
            ("127.0.0.1:8443", None, Some("port 8443")),
            ("0.0.0.0:443", Some(8443), Some("port 8443")),
            ("off", None, Some("HTTPS is off")),
            ("off", Some(443), Some("HTTPS is off")),
        ] {
            let said = at(https, public_port);
            assert_eq!(said.is_some(), why.is_some(), "{https} {public_port:?}: {said:?}");
            assert!(said.is_none_or(|said| why.is_some_and(|why| said.contains(why))), "{https} {public_port:?}");
        }
    }

    #[test]
    fn a_public_listener_needs_a_certificate() {
        let public = ServeArgs { https: Some("0.0.0.0:443".into()), ..args() };
        assert!(matches!(Config::resolve(&public), Err(ConfigError::NoCertificate(_))));
        assert!(matches!(Config::resolve(&args()).unwrap().certificate, CertificateSource::Development { .. }));
    }
}
