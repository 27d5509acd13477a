//! What was typed becomes what is true.
//!
//! First everything that was said is read as it stands: flags and environment by [`crate::cli`] (a
//! flag beats its variable), files by [`Files::load`]. Then [`Settings`] decides what holds: flag
//! before environment before `./relay.toml` before `~/.config/relay/relay.toml` before what
//! [`crate::commands::login`] has stored before default. Nothing after that parses or defaults.
//!
//! ```toml
//! # relay.toml
//! relay = "https://relay.example.com"   # RELAY_URL
//! token = "rly_…"                       # RELAY_TOKEN; better in ~/.config/relay/relay.toml, mode 0600
//! relay_ca = "ca.pem"                   # RELAY_CA_FILE; beside this file
//! relay_addr = "192.0.2.7:443"
//! subdomain = "hooks"
//! host_header = "rewrite"
//! timeout = "10s"
//! upstream_protocol = "http1"
//! output = "text"
//! inspect = "127.0.0.1:4041"
//!
//! [capture]                             # what is kept of requests; only in ~/.config/relay/relay.toml
//! count = 100000
//! bytes = "1GiB"
//! age = "30d"
//! body = "10MiB"
//!
//! [tunnels.web]                         # for `relay start`; what it leaves open, the keys above say
//! upstream = 3000
//! subdomain = "hooks"
//! ```
//!
//! A file in the working directory may have come with a repository, from a stranger. So a token
//! goes only to the relay that it stands beside: where the project's file or a flag names another
//! relay, CA or address, the token of the user's own file stays at home. Nor does such a file tell
//! a relay any secret, or reach for one that it was not meant to have.

mod access;
mod webhooks;

use std::{
    collections::BTreeMap,
    fmt, io,
    net::SocketAddr,
    num::NonZeroU32,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use relay_protocol::access::{Access, AccessError};
use relay_protocol::message::MAX_TUNNELS;
use relay_protocol::webhook::{self, Verify};
use serde::{Deserialize, Deserializer, de};

use self::access::AccessKeys;
use self::webhooks::{WebhookKeys, secrets};
use crate::access::CredentialError;
use crate::capture::store::Limits;
use crate::cli::{ConnectionArgs, DevArgs, OpenArgs, ServiceArgs, SessionArgs, ShowArgs, TunnelArgs, WayArgs};
use crate::inspector::{InspectorAddress, InspectorSettings};
use crate::intake::faults::Faults;
use crate::intake::routes::Route;
use crate::platform::{Base, base_directory, readable_by_others};
use crate::secret::{SecretError, SecretSource};
use crate::session::dial::{RelayUrl, Target, TargetError, Trust};
use crate::upstream::address::{HostPort, UpstreamAddr};
use crate::upstream::rewrite::HostHeader;
use crate::value::{
    InboxChoice, Inspect, Output, Secret, UpstreamProtocol, age, disk_size, domain, duration, inspect, is_table_name,
    size, subdomain,
};
use crate::webhooks::{UnknownProvider, UnknownSetting, VerifyAt, WebhookOptions, built_in, named};

/// What every command that opens a tunnel on a relay elsewhere needs to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The relay.
    pub relay: RelayUrl,
    /// Who we are; a relay may take clients without.
    pub token: Option<Secret>,
    /// The only CA to trust; none for those of this machine.
    pub relay_ca: Option<PathBuf>,
    /// Dialled instead of what the relay's URL names.
    pub relay_addr: Option<HostPort>,
    /// The tunnel.
    pub tunnel: TunnelSettings,
    /// What is printed.
    pub show: ShowSettings,
    /// A fresh random name even if one is remembered.
    pub random: bool,
    /// Take the name over from a live session of the same token.
    pub takeover: bool,
    /// How long to try to come back after the session was lost; none for ever.
    pub max_reconnect_time: Option<Duration>,
}

/// Everything that `relay dev` needs to know.
#[derive(Clone, Debug)]
pub struct DevSettings {
    /// The local service; none for the demo app.
    pub upstream: Option<UpstreamAddr>,
    /// The tunnel.
    pub tunnel: TunnelSettings,
    /// What is printed.
    pub show: ShowSettings,
    /// Where the embedded relay listens for HTTPS; none for its default.
    pub https: Option<SocketAddr>,
    /// Where the embedded relay keeps its CA and its database; none for its default.
    pub data_dir: Option<PathBuf>,
}

/// A tunnel's own settings.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TunnelSettings {
    /// The name asked for; none for a random one.
    pub subdomain: Option<String>,
    /// A domain of one's own that is asked for in its place.
    pub domain: Option<String>,
    /// What the service sees as its name.
    pub host_header: HostHeader,
    /// The deadline of response heads; none for the relay's choice.
    pub timeout: Option<Duration>,
    /// How the service is spoken to.
    pub upstream_protocol: UpstreamProtocol,
    /// What is known of its webhooks.
    pub webhooks: WebhookOptions,
    /// Which requests go elsewhere.
    pub routes: Vec<Route>,
    /// What goes wrong on purpose.
    pub faults: Faults,
    /// Whether the relay keeps its webhooks, and how.
    pub inbox: InboxChoice,
    /// Who may call it.
    pub access: Access,
}

/// A tunnel of `relay start`.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedTunnel {
    /// Its table's name.
    pub label: String,
    /// The local service.
    pub upstream: UpstreamAddr,
    /// Its settings.
    pub settings: TunnelSettings,
}

/// What is printed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShowSettings {
    /// For people or for programs.
    pub output: Output,
    /// Only the URL on standard output, whatever a file says of `output`.
    pub url_only: bool,
    /// Nothing but lines, one for each request.
    pub plain: bool,
    /// The whole terminal, where there is one.
    pub tui: bool,
    /// The public URL as a QR code, too.
    pub qr: bool,
    /// Says as JSON that the tunnel is up, as long as it is.
    pub ready_file: Option<PathBuf>,
    /// Whether requests are kept, so that they can be looked at; if none, they are.
    pub inspect: Option<Inspect>,
    /// How many of them, on the disk.
    pub capture: Limits,
    /// What shows them; none where nothing listens.
    pub inspector: Option<InspectorSettings>,
}

/// The way to a relay elsewhere, and who we are there.
#[derive(Clone, Debug)]
pub(crate) struct Way {
    pub(crate) relay: RelayUrl,
    /// A relay may take clients without.
    pub(crate) token: Option<Secret>,
    /// The only CA to trust; none for those of this machine.
    pub(crate) relay_ca: Option<PathBuf>,
    /// Dialled instead of what the relay's URL names.
    pub(crate) relay_addr: Option<HostPort>,
}

impl Way {
    /// Decides what holds. Things worth knowing are added to `files.warnings`.
    ///
    /// # Errors
    /// Where no relay is named, or the token cannot be one.
    pub(crate) fn new(typed: ConnectionArgs, files: &mut Files) -> Result<Self, ConfigError> {
        if let Some(relay) = &typed.relay {
            files.keep_to(relay);
        }
        let file = &files.file;
        let WayArgs { token, relay_ca, relay_addr } = typed.way;
        let token = token.or_else(|| file.token.clone());
        match &token {
            Some(token) if !token.is_one_word() => return Err(ConfigError::Token),
            Some(_) => {}
            None => files.warnings.extend(files.withheld.take()),
        }
        Ok(Self {
            relay: typed.relay.or_else(|| file.relay.clone()).ok_or(ConfigError::NoRelay)?,
            token,
            relay_ca: relay_ca.or_else(|| file.relay_ca.clone()),
            relay_addr: relay_addr.or_else(|| file.relay_addr.clone()),
        })
    }

    /// What is dialled.
    ///
    /// # Errors
    /// Where the CA cannot be used.
    pub(crate) fn target(self) -> Result<Target, TargetError> {
        let trust = self.relay_ca.as_deref().map_or(Ok(Trust::System), Trust::only)?;
        Ok(Target::new(self.relay, &trust)?.dialling(self.relay_addr))
    }
}

impl Settings {
    /// Decides what holds. Things worth knowing are added to `files.warnings`.
    ///
    /// # Errors
    /// Where no relay is named, or the token cannot be one.
    pub fn new(args: OpenArgs, service: ServiceArgs, files: &mut Files) -> Result<Self, ConfigError> {
        let SessionArgs { takeover, max_reconnect_time, show, connection: typed } = args.session;
        let Way { relay, token, relay_ca, relay_addr } = Way::new(typed, files)?;
        let mut tunnel = TunnelSettings::new(args.tunnel, service, files)?;
        if args.random {
            (tunnel.subdomain, tunnel.domain) = (None, None);
        }
        Ok(Self {
            relay,
            token,
            relay_ca,
            relay_addr,
            tunnel,
            show: ShowSettings::new(show, &files.file)?,
            random: args.random,
            takeover,
            max_reconnect_time,
        })
    }
}

impl Settings {
    /// What a session is for its whole life.
    pub(crate) fn session(&self) -> impl PartialEq + use<> {
        (self.relay.clone(), self.token.clone(), self.relay_ca.clone(), self.relay_addr.clone())
    }
}

impl DevSettings {
    /// Decides what holds for `relay dev`. It has a relay of its own, so nothing of a file that is
    /// about the connection applies.
    ///
    /// # Errors
    /// Where a secret is not to be had, or strangers could reach the inspector.
    pub fn new(args: DevArgs, files: &Files) -> Result<Self, ConfigError> {
        Ok(Self {
            upstream: args.upstream,
            tunnel: TunnelSettings::new(args.tunnel, args.service, files)?,
            show: ShowSettings::new(args.show, &files.file)?,
            https: args.https,
            data_dir: args.data_dir,
        })
    }
}

impl TunnelSettings {
    fn new(typed: TunnelArgs, service: ServiceArgs, files: &Files) -> Result<Self, ConfigError> {
        let file = &files.file;
        Ok(Self {
            domain: typed.domain.clone().or_else(|| file.domain.clone().filter(|_| typed.subdomain.is_none())),
            subdomain: typed.subdomain.or_else(|| file.subdomain.clone().filter(|_| typed.domain.is_none())),
            host_header: service.host_header.or_else(|| file.host_header.clone()).unwrap_or_default(),
            timeout: typed.timeout.or(file.timeout),
            upstream_protocol: service.upstream_protocol.or(file.upstream_protocol).unwrap_or_default(),
            webhooks: WebhookKeys::from(typed.webhooks).or(file.webhooks()).settle(files.table())?,
            routes: routes(&file.routes, &files.table())?,
            faults: typed.fault.or_else(|| file.fault.clone()).unwrap_or_default(),
            inbox: typed.inbox.or_else(|| file.inbox.clone()).unwrap_or_default(),
            access: AccessKeys::from(typed.access).or(file.access.clone().unwrap_or_default()).settle()?,
        })
    }
}

impl ShowSettings {
    fn new(typed: ShowArgs, file: &File) -> Result<Self, ConfigError> {
        let for_people = typed.url_only || typed.tui;
        let output = if for_people { Output::Text } else { typed.output.or(file.output).unwrap_or_default() };
        let inspect = typed.inspect.or(file.inspect);
        let ShowArgs { url_only, plain, tui, qr, ready_file, inspect_token, allow_remote_upstreams, .. } = typed;
        if inspect_token.as_ref().is_some_and(|token| !token.is_one_word()) {
            return Err(ConfigError::InspectToken);
        }
        let address = match inspect {
            Some(Inspect::Off) => None,
            Some(Inspect::At(address)) if !address.ip().is_loopback() && inspect_token.is_none() => {
                return Err(ConfigError::OpenInspector { address });
            }
            Some(Inspect::At(address)) => Some(InspectorAddress::Only(address)),
            None => Some(InspectorAddress::Usual),
        };
        let remote_upstreams = allow_remote_upstreams;
        let inspector = address.map(|address| InspectorSettings { address, token: inspect_token, remote_upstreams });
        let capture = file.capture.limits();
        Ok(Self { output, url_only, plain, tui, qr, ready_file, inspect, capture, inspector })
    }
}

/// A configuration file as it was written. Each key is explained where [`Settings`] holds it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct File {
    #[serde(default, deserialize_with = "parsed")]
    pub(crate) relay: Option<RelayUrl>,
    pub(crate) token: Option<Secret>,
    pub(crate) relay_ca: Option<PathBuf>,
    #[serde(default, deserialize_with = "parsed")]
    pub(crate) relay_addr: Option<HostPort>,
    #[serde(default, deserialize_with = "name")]
    pub(crate) subdomain: Option<String>,
    #[serde(default, deserialize_with = "own_domain")]
    pub(crate) domain: Option<String>,
    #[serde(default, deserialize_with = "parsed")]
    pub(crate) host_header: Option<HostHeader>,
    #[serde(default, deserialize_with = "time")]
    pub(crate) timeout: Option<Duration>,
    pub(crate) upstream_protocol: Option<UpstreamProtocol>,
    pub(crate) output: Option<Output>,
    #[serde(default, deserialize_with = "inspecting")]
    pub(crate) inspect: Option<Inspect>,
    pub(crate) provider: Option<ProviderKey>,
    #[serde(default, deserialize_with = "secrets")]
    pub(crate) secret: Option<Vec<SecretSource>>,
    pub(crate) set: Option<BTreeMap<String, String>>,
    pub(crate) verify: Option<Verify>,
    pub(crate) verify_at: Option<VerifyAt>,
    pub(crate) handshake: Option<bool>,
    #[serde(default, deserialize_with = "parsed")]
    pub(crate) fault: Option<Faults>,
    pub(crate) inbox: Option<InboxChoice>,
    /// Who may call tunnels.
    pub(crate) access: Option<AccessKeys>,
    #[serde(default)]
    pub(crate) capture: Kept,
    /// Which requests go elsewhere.
    #[serde(default)]
    pub(crate) routes: Vec<Route>,
    /// The tunnels of `relay start` by their tables' names.
    #[serde(default, deserialize_with = "tables")]
    pub(crate) tunnels: BTreeMap<String, Table>,
    /// Where each key stands.
    #[serde(skip)]
    pub(crate) places: BTreeMap<String, Place>,
}

/// The table `[capture]` as it was written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Kept {
    count: Option<NonZeroU32>,
    #[serde(default, deserialize_with = "disk")]
    bytes: Option<u64>,
    #[serde(default, deserialize_with = "days")]
    age: Option<Duration>,
    #[serde(default, deserialize_with = "bytes")]
    body: Option<usize>,
}

impl Kept {
    /// With what it leaves open.
    pub(crate) fn limits(&self) -> Limits {
        let open = Limits::default();
        Limits {
            count: self.count.map_or(open.count, NonZeroU32::get),
            bytes: self.bytes.unwrap_or(open.bytes),
            age: self.age.unwrap_or(open.age),
            body: self.body.unwrap_or(open.body),
        }
    }
}

/// What `provider` is in a file.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "a provider such as \"stripe\", or rows of the provider table, [[provider]]")]
pub(crate) enum ProviderKey {
    /// Who sends the webhooks of a tunnel.
    Name(String),
    /// Rows of the provider table, or fields of rows.
    Rows(Vec<toml::Table>),
}

/// A table `[tunnels.NAME]` as it was written.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Table {
    pub(crate) upstream: UpstreamAddr,
    #[serde(default, deserialize_with = "name")]
    pub(crate) subdomain: Option<String>,
    #[serde(default, deserialize_with = "own_domain")]
    pub(crate) domain: Option<String>,
    #[serde(default, deserialize_with = "parsed")]
    pub(crate) host_header: Option<HostHeader>,
    #[serde(default, deserialize_with = "time")]
    pub(crate) timeout: Option<Duration>,
    pub(crate) upstream_protocol: Option<UpstreamProtocol>,
    pub(crate) provider: Option<String>,
    #[serde(default, deserialize_with = "secrets")]
    pub(crate) secret: Option<Vec<SecretSource>>,
    pub(crate) set: Option<BTreeMap<String, String>>,
    pub(crate) verify: Option<Verify>,
    pub(crate) verify_at: Option<VerifyAt>,
    pub(crate) handshake: Option<bool>,
    #[serde(default, deserialize_with = "parsed")]
    pub(crate) fault: Option<Faults>,
    pub(crate) inbox: Option<InboxChoice>,
    pub(crate) access: Option<AccessKeys>,
    pub(crate) routes: Option<Vec<Route>>,
}

/// A line of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    file: PathBuf,
    line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

fn parsed<'de, D: Deserializer<'de>, T: FromStr<Err: fmt::Display>>(from: D) -> Result<Option<T>, D::Error> {
    String::deserialize(from)?.parse().map(Some).map_err(de::Error::custom)
}

fn name<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    subdomain(&String::deserialize(from)?).map(Some).map_err(de::Error::custom)
}

fn own_domain<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    domain(&String::deserialize(from)?).map(Some).map_err(de::Error::custom)
}

fn inspecting<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Inspect>, D::Error> {
    let inspect = inspect(&String::deserialize(from)?).map_err(de::Error::custom)?;
    match inspect {
        Inspect::At(address) if !address.ip().is_loopback() => {
            let text = format!(
                "{address} can be reached from other machines, which a file cannot ask for; write off or an address such \
                 as 127.0.0.1:4040, or use --inspect {address}"
            );
            Err(de::Error::custom(text))
        }
        inspect => Ok(Some(inspect)),
    }
}

fn time<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    duration(&String::deserialize(from)?).map(Some).map_err(de::Error::custom)
}

fn disk<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    disk_size(&String::deserialize(from)?).map(Some).map_err(de::Error::custom)
}

fn bytes<'de, D: Deserializer<'de>>(from: D) -> Result<Option<usize>, D::Error> {
    size(&String::deserialize(from)?).map(Some).map_err(de::Error::custom)
}

fn days<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    age(&String::deserialize(from)?).map(Some).map_err(de::Error::custom)
}

fn tables<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<String, Table>, D::Error> {
    let tables = BTreeMap::<String, Table>::deserialize(from)?;
    if tables.len() > MAX_TUNNELS {
        return Err(de::Error::custom(format_args!("{} tunnels; a session has at most {MAX_TUNNELS}", tables.len())));
    }
    if let Some(name) = tables.keys().find(|name| !is_table_name(name)) {
        let text = format!("{name:?} cannot be a tunnel's table; write at most 63 letters, digits, - and _");
        return Err(de::Error::custom(text));
    }
    let mut taken = BTreeMap::new();
    for (name, table) in &tables {
        if table.domain.is_some() && table.subdomain.is_some() {
            let text = format!("[tunnels.{name}] has both subdomain and domain; leave one of them out");
            return Err(de::Error::custom(text));
        }
        if let Some(other) =
            table.domain.as_ref().or(table.subdomain.as_ref()).and_then(|subdomain| taken.insert(subdomain, name))
        {
            let text = format!(
                "[tunnels.{other}] and [tunnels.{name}] have the same subdomain; choose another for one of them"
            );
            return Err(de::Error::custom(text));
        }
    }
    Ok(tables)
}

/// Where configuration files are looked for.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// `RELAY_CONFIG`: only this file is read, and it must exist.
    pub only: Option<PathBuf>,
    /// The project's file, which a team may commit: `./relay.toml`.
    pub project: Option<PathBuf>,
    /// The user's own: `~/.config/relay/relay.toml`.
    pub user: Option<PathBuf>,
    /// What `relay login` has stored: `~/.config/relay/login.toml`.
    pub login: Option<PathBuf>,
}

impl Places {
    /// Those of this process.
    pub fn of_process() -> Self {
        let config_home = base_directory(Base::Config);
        Self {
            only: std::env::var_os("RELAY_CONFIG").filter(|value| !value.is_empty()).map(PathBuf::from),
            project: Some(PathBuf::from("relay.toml")),
            user: config_home.as_ref().map(|home| home.join("relay/relay.toml")),
            login: config_home.map(|home| home.join("relay/login.toml")),
        }
    }
}

/// What the configuration files say together.
#[derive(Debug, Default)]
pub struct Files {
    pub(crate) file: File,
    /// The project's file, which may be a stranger's.
    project: Option<PathBuf>,
    /// Why a token that a file holds is not used; of interest where there is no other.
    pub(crate) withheld: Option<String>,
    /// The table of providers with what the files add to it; none where that is nothing.
    table: Option<Arc<webhook::Table>>,
    /// What the user should know: a sentence each.
    pub warnings: Vec<String>,
}

impl Files {
    /// Reads the files. Those that do not exist say nothing, except the one that was asked for.
    ///
    /// # Errors
    /// Where a file cannot be read, or says something that is not understood.
    pub fn load(places: &Places) -> Result<Self, ConfigError> {
        let (files, errors) = Self::load_all(places);
        errors.into_iter().next().map_or(Ok(files), Err)
    }

    /// As [`Files::load`], with what could be read, and everything that is wrong.
    pub(crate) fn load_all(places: &Places) -> (Self, Vec<ConfigError>) {
        let (mut files, mut errors) = (Self::default(), Vec::new());
        let mut read = |files: &mut Self, path: &Path, must_exist| {
            files.read(path, must_exist).map_err(|error| errors.push(error)).ok().flatten().unwrap_or_default()
        };
        if let Some(only) = &places.only {
            files.file = read(&mut files, only, true);
            return (files, errors);
        }
        files.project.clone_from(&places.project);
        for path in [&places.login, &places.user, &places.project].into_iter().flatten() {
            let mut upper = read(&mut files, path, false);
            if Some(path) == places.project.as_ref() && upper.capture != Kept::default() {
                // All of a user's clients share one history, and a stranger's file must not shorten it.
                files.warnings.push(format!("{}: [capture] counts only in your own file", path.display()));
                upper.capture = Kept::default();
                upper.places.retain(|key, _| !key.starts_with("capture"));
            }
            if Some(path) == places.project.as_ref() && upper.answers_by(&files.file) && files.file.forget_secrets() {
                files.warnings.push(format!(
                    "{}: its `provider` and `handshake` say what is signed, and so your own file's secrets and settings \
                     are not used here; give them with --secret and --set, or write the same into your own file",
                    path.display()
                ));
            }
            if Some(path) == places.project.as_ref() && upper.yield_access(&files.file) {
                files.warnings.push(format!(
                    "{}: what your own file says of who may call tunnels holds over what this one says of it",
                    path.display()
                ));
            }
            files.put_over(upper);
        }
        (files, errors)
    }

    fn read(&mut self, path: &Path, must_exist: bool) -> Result<Option<File>, ConfigError> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !must_exist => return Ok(None),
            Err(source) => return Err(ConfigError::Read { file: path.to_owned(), source }),
        };
        let mut file: File = toml::from_str(&text).map_err(|error| {
            // The library's own rendering shows the line, and a token may stand on it.
            let before = text.get(..error.span().unwrap_or_default().start).unwrap_or_default();
            let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
            ConfigError::Parse {
                file: path.to_owned(),
                line: before.matches('\n').count() + 1,
                column: before.chars().count() - before.get(..line_start).unwrap_or_default().chars().count() + 1,
                message: error.message().to_owned(),
            }
        })?;
        file.places = places(path, &text);
        if let Some(ProviderKey::Rows(rows)) = file.provider.take_if(|key| matches!(key, ProviderKey::Rows(_))) {
            self.add_providers(path, rows)?;
        }
        if let (Some(ca), Some(directory)) = (&mut file.relay_ca, path.parent()) {
            *ca = directory.join(&*ca);
        }
        file.settle_secrets(path, self.project.as_deref() == Some(path))?;
        file.settle_access(path, self.project.as_deref() == Some(path))?;
        let has_text = file.has_secret_text() || file.has_credential_text();
        let holds = match (&file.token, has_text) {
            (Some(_), _) => Some("a token"),
            (None, true) => Some("a secret"),
            (None, false) => None,
        };
        if let Some(what) = holds.filter(|_| std::fs::metadata(path).is_ok_and(|data| readable_by_others(&data))) {
            self.warnings.push(format!(
                "{0} holds {what} and others on this machine can read it: chmod 600 {0}",
                path.display()
            ));
        }
        Ok(Some(file))
    }

    /// Puts a file over what holds so far: key by key, but the connection as a whole.
    fn put_over(&mut self, upper: File) {
        fn agrees<T: PartialEq>(upper: &Option<T>, lower: &Option<T>) -> bool {
            upper.is_none() || upper == lower
        }
        let mut lower = std::mem::take(&mut self.file);
        let same_relay = agrees(&upper.relay, &lower.relay)
            && agrees(&upper.relay_ca, &lower.relay_ca)
            && agrees(&upper.relay_addr, &lower.relay_addr);
        if !same_relay {
            let place =
                |file: &File, keys: &[&str]| keys.iter().find_map(|key| file.places.get(*key)).map(Place::to_string);
            if lower.token.is_some() && upper.token.is_none() {
                self.withheld = Some(format!(
                    "the token of {} is not used, because {} names another relay, CA or address; set RELAY_TOKEN if you \
                     trust it, or name the same ones beside your token",
                    place(&lower, &["token"]).unwrap_or_default(),
                    place(&upper, &CONNECTION).unwrap_or_default(),
                ));
            }
            lower.forget_connection();
        }
        if upper.token.is_some() {
            self.withheld = None;
        }
        let mut places = lower.places;
        if !upper.tunnels.is_empty() {
            places.retain(|key, _| !key.starts_with("tunnels."));
        }
        places.extend(upper.places);
        self.file = File {
            relay: upper.relay.or(lower.relay),
            token: upper.token.or(lower.token),
            relay_ca: upper.relay_ca.or(lower.relay_ca),
            relay_addr: upper.relay_addr.or(lower.relay_addr),
            // Whichever of the two the upper one has.
            domain: upper.domain.clone().or(lower.domain.filter(|_| upper.subdomain.is_none())),
            subdomain: upper.subdomain.or(lower.subdomain.filter(|_| upper.domain.is_none())),
            host_header: upper.host_header.or(lower.host_header),
            timeout: upper.timeout.or(lower.timeout),
            upstream_protocol: upper.upstream_protocol.or(lower.upstream_protocol),
            output: upper.output.or(lower.output),
            inspect: upper.inspect.or(lower.inspect),
            provider: upper.provider.or(lower.provider),
            routes: if upper.routes.is_empty() { lower.routes } else { upper.routes },
            fault: upper.fault.or(lower.fault),
            inbox: upper.inbox.or(lower.inbox),
            // A file that says one thing of it opens nothing that another has closed.
            access: match (upper.access, lower.access) {
                (Some(upper), Some(lower)) => Some(upper.or(lower)),
                (upper, lower) => upper.or(lower),
            },
            secret: upper.secret.or(lower.secret),
            set: upper.set.or(lower.set),
            verify: upper.verify.or(lower.verify),
            verify_at: upper.verify_at.or(lower.verify_at),
            handshake: upper.handshake.or(lower.handshake),
            capture: if upper.capture == Kept::default() { lower.capture } else { upper.capture },
            // Those of one file: what a project's file has no word of does not start with it.
            tunnels: if upper.tunnels.is_empty() { lower.tunnels } else { upper.tunnels },
            places,
        };
    }

    /// The tunnels of `relay start`: those of the highest file that has any, with these names, or all where none is given.
    ///
    /// # Errors
    /// [`ConfigError::NoTunnel`], [`ConfigError::UnknownTunnel`], and where a secret is not to be had.
    pub fn tunnels(&self, names: &[String]) -> Result<Vec<NamedTunnel>, ConfigError> {
        let known = &self.file.tunnels;
        if known.is_empty() {
            return Err(ConfigError::NoTunnel);
        }
        if let Some(name) = names.iter().find(|name| !known.contains_key(*name)) {
            let known = known.keys().cloned().collect::<Vec<_>>().join(", ");
            return Err(ConfigError::UnknownTunnel { name: name.clone(), known });
        }
        let is_asked = |label: &String| names.is_empty() || names.contains(label);
        let asked = known.iter().filter(|(label, _)| is_asked(label));
        asked.map(|(label, table)| self.file.tunnel(label, table, self.table())).collect()
    }

    /// All that is known of providers.
    pub(crate) fn table(&self) -> Arc<webhook::Table> {
        self.table.clone().unwrap_or_else(built_in)
    }

    /// Adds rows to the provider table.
    ///
    /// # Errors
    /// [`ConfigError::Providers`].
    fn add_providers(&mut self, path: &Path, rows: Vec<toml::Table>) -> Result<(), ConfigError> {
        let wrong = |problem: String| ConfigError::Providers { file: path.to_owned(), problem };
        // What is fetched is for the user to say, and not for a stranger.
        if self.project.as_deref() == Some(path)
            && let Some(key) = FETCHED.into_iter().find(|key| rows.iter().any(|row| names(row, key)))
        {
            return Err(wrong(format!(
                "`{key}` names a page to fetch, which only a file of your own may do; write the row into \
                 ~/.config/relay/relay.toml"
            )));
        }
        let decides = self.project.as_deref() == Some(path)
            && USES_SECRETS.into_iter().any(|key| rows.iter().any(|row| names(row, key)));
        if decides && self.file.forget_secrets() {
            self.warnings.push(format!(
                "{}: its [[provider]] rows say what is signed, and so your own file's secrets and settings are not used \
                 here; give them with --secret and --set, or write the rows into your own file",
                path.display()
            ));
        }
        let mut table = webhook::Table::clone(&self.table());
        table.add_rows(rows).map_err(|error| wrong(error.to_string()))?;
        self.table = Some(Arc::new(table));
        Ok(())
    }

    /// Forgets what the files say of another relay than this one, and where a project's file says that it is: whoever
    /// names a relay and a token himself means that relay, and not one that a stranger's file puts in its place.
    pub(crate) fn keep_to(&mut self, relay: &RelayUrl) {
        let is_projects = |key: &str| {
            self.project.is_some() && self.file.places.get(key).map(|place| &place.file) == self.project.as_ref()
        };
        let (ca, addr) = (is_projects("relay_ca"), is_projects("relay_addr"));
        if ca {
            self.file.relay_ca = None;
        }
        if addr {
            self.file.relay_addr = None;
        }
        let Some(other) = self.file.relay.clone().filter(|other| other != relay) else { return };
        if self.file.token.is_some() {
            let place = self.file.places.get("token").map(Place::to_string).unwrap_or_default();
            self.withheld = Some(format!(
                "the token of {place} belongs to {other} and is not sent to {relay}; give one with RELAY_TOKEN"
            ));
        }
        self.file.forget_connection();
    }
}

/// These routes, whose providers there are.
fn routes(routes: &[Route], table: &webhook::Table) -> Result<Vec<Route>, ConfigError> {
    if routes.len() > MAX_ROUTES {
        return Err(ConfigError::TooManyRoutes(routes.len()));
    }
    let mut providers = routes.iter().filter_map(|route| route.which.provider.as_deref());
    providers.try_for_each(|provider| named(table, provider).map(drop))?;
    Ok(routes.to_vec())
}

/// Most routes of one tunnel.
const MAX_ROUTES: usize = 100;

/// The keys of a provider's row that name pages to fetch.
const FETCHED: [&str; 2] = ["key_url", "confirm"];

/// The keys of a provider's row that say what becomes of a secret: what is signed with it, and for whom.
const USES_SECRETS: [&str; 2] = ["signature", "handshake"];

/// Whether there is such a key in a table, at any depth.
fn names(table: &toml::Table, key: &str) -> bool {
    fn within(value: &toml::Value, key: &str) -> bool {
        match value {
            toml::Value::Table(table) => names(table, key),
            toml::Value::Array(values) => values.iter().any(|value| within(value, key)),
            _ => false,
        }
    }
    table.iter().any(|(name, value)| name == key || within(value, key))
}

/// The keys that lead to a relay, and belong together.
const CONNECTION: [&str; 3] = ["relay", "relay_ca", "relay_addr"];

impl File {
    /// A tunnel with what its table leaves open. A name is nobody's default: two tunnels cannot share it.
    ///
    /// # Errors
    /// Where a secret is not to be had, or a provider is not known.
    pub(crate) fn tunnel(
        &self,
        label: &str,
        table: &Table,
        providers: Arc<webhook::Table>,
    ) -> Result<NamedTunnel, ConfigError> {
        let settings = TunnelSettings {
            subdomain: table.subdomain.clone(),
            domain: table.domain.clone(),
            host_header: table.host_header.clone().or_else(|| self.host_header.clone()).unwrap_or_default(),
            timeout: table.timeout.or(self.timeout),
            upstream_protocol: table.upstream_protocol.or(self.upstream_protocol).unwrap_or_default(),
            webhooks: self.webhooks_of(label, table).or(self.webhooks()).settle(providers.clone())?,
            routes: routes(table.routes.as_ref().unwrap_or(&self.routes), &providers)?,
            faults: table.fault.clone().or_else(|| self.fault.clone()).unwrap_or_default(),
            inbox: table.inbox.clone().or_else(|| self.inbox.clone()).unwrap_or_default(),
            access: table.access.clone().unwrap_or_default().or(self.access.clone().unwrap_or_default()).settle()?,
        };
        Ok(NamedTunnel { label: label.to_owned(), upstream: table.upstream.clone(), settings })
    }

    /// Whoever was to be told secrets is part of it, too.
    fn forget_connection(&mut self) {
        (self.relay, self.token, self.relay_ca, self.relay_addr) = (None, None, None, None);
        self.verify_at = None;
        self.tunnels.values_mut().for_each(|table| table.verify_at = None);
        let tables = self.tunnels.values_mut().map(|table| &mut table.access).chain([&mut self.access]);
        tables.flatten().for_each(AccessKeys::keep_secret);
        let is_gone = |key: &str| key == "token" || key.ends_with("verify_at") || CONNECTION.contains(&key);
        self.places.retain(|key, _| !is_gone(key));
    }
}

/// The line of each key of a file that has been understood; of those of a tunnel under `tunnels.NAME.KEY`.
fn places(file: &Path, text: &str) -> BTreeMap<String, Place> {
    type Keys<V> = BTreeMap<toml::Spanned<String>, V>;
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Tables {
        tunnels: Keys<Keys<de::IgnoredAny>>,
        capture: Keys<de::IgnoredAny>,
    }
    let place = |key: toml::Spanned<String>, table: &str| {
        let line = text.get(..key.span().start).unwrap_or_default().matches('\n').count() + 1;
        (format!("{table}{}", key.into_inner()), Place { file: file.to_owned(), line })
    };
    let keys: Keys<de::IgnoredAny> = toml::from_str(text).unwrap_or_default();
    let tables: Tables = toml::from_str(text).unwrap_or_default();
    let inner = tables.tunnels.into_iter().flat_map(|(name, keys)| {
        let table = format!("tunnels.{}.", name.into_inner());
        keys.into_keys().map(|key| place(key, &table)).collect::<Vec<_>>()
    });
    let capture: Vec<_> = tables.capture.into_keys().map(|key| place(key, "capture.")).collect();
    inner.chain(capture).chain(keys.into_keys().map(|key| place(key, ""))).collect()
}

/// Why there is no configuration. All of these are usage errors.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file exists and cannot be read, or was asked for and does not exist.
    #[error("cannot read the configuration {}: {source}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// What reading it said.
        source: io::Error,
    },
    /// A file says something that is not understood.
    #[error("{}:{line}:{column}: {message}", file.display())]
    Parse {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The column in characters, from 1.
        column: usize,
        /// What is wrong, and what was expected.
        message: String,
    },
    /// Nobody said which relay.
    #[error(
        "no relay is named; run relay login https://relay.example.com once, or use --relay, or set RELAY_URL (relay dev \
         needs none)"
    )]
    NoRelay,
    /// No file has a tunnel.
    #[error("no configuration file has a tunnel; write [tunnels.web] and upstream = 3000 into relay.toml")]
    NoTunnel,
    /// A tunnel that no table describes.
    #[error("there is no [tunnels.{name}] in the configuration; its tunnels are {known}")]
    UnknownTunnel {
        /// The name that was typed.
        name: String,
        /// Those that there are.
        known: String,
    },
    /// A secret is not to be had, or not meant for the file that asks for it.
    #[error("{place}: {source}")]
    Secret {
        /// Who says that there is one.
        place: String,
        /// Why it is not.
        source: SecretError,
    },
    /// A file that may be a stranger's says that a relay is to be told secrets.
    #[error(
        "{place}: a file that may have come with a project cannot say that the relay is told your secrets; use          --verify-at edge, or say it in your own relay.toml"
    )]
    Tells {
        /// Where it says so.
        place: String,
    },
    /// A name and a password, or a key, that a tunnel is to ask for is none, or not to be had.
    #[error("{place}: {source}")]
    Credential {
        /// The key of the file, or the flag, that says so.
        place: &'static str,
        /// Why.
        source: CredentialError,
    },
    /// It is no rule of who may call a tunnel.
    #[error("access: {0}")]
    Access(#[from] AccessError),
    /// The rows that a file adds to the provider table do not fit.
    #[error("{}: [[provider]]: {problem}", file.display())]
    Providers {
        /// The file.
        file: PathBuf,
        /// What is wrong, and where.
        problem: String,
    },
    /// A tunnel has more of them than there is room for.
    #[error("{0} routes; a tunnel has at most {MAX_ROUTES}")]
    TooManyRoutes(usize),
    /// No row of the table has the name of a tunnel's provider.
    #[error(transparent)]
    UnknownProvider(#[from] UnknownProvider),
    /// What is said beside a tunnel's secrets means nothing.
    #[error(transparent)]
    UnknownSetting(#[from] UnknownSetting),
    /// More than a relay can be told.
    #[error("verify_at edge: {0}")]
    Told(#[from] webhook::WebhooksError),
    /// The token is empty or not one word. It is not shown.
    #[error(
        "the token is empty or not one word of letters, digits and _; look at --token, RELAY_TOKEN, relay.toml or relay login"
    )]
    Token,
    /// The inspector's token is empty or not one word. It is not shown.
    #[error("the inspector's token is not one word of visible ASCII; look at --inspect-token or RELAY_INSPECT_TOKEN")]
    InspectToken,
    /// Whoever reaches this machine could read every request.
    #[error(
        "--inspect {address} can be reached from other machines; give it a token with RELAY_INSPECT_TOKEN or \
         --inspect-token, or an address of this machine alone, such as 127.0.0.1:{}", address.port()
    )]
    OpenInspector {
        /// Where it was to listen.
        address: SocketAddr,
    },
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use tempfile::TempDir;

    use super::*;
    use crate::cli::{Cli, Command, ConnectionArgs, WayArgs};

    /// A directory with these two files.
    fn places(project: &str, user: &str) -> (TempDir, Places) {
        let directory = TempDir::new().unwrap();
        let write = |name: &str, text: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            set_mode(&path, 0o600);
            Some(path)
        };
        let places =
            Places { only: None, project: write("relay.toml", project), user: write("user.toml", user), login: None };
        (directory, places)
    }

    fn set_mode(path: &Path, mode: u32) {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    }

    fn args(flags: &[&str]) -> (OpenArgs, ServiceArgs) {
        let cli = Cli::from_arguments(["relay", "http", "3000"].iter().chain(flags)).unwrap();
        let Command::Http(mut args) = cli.command else { panic!("another command") };
        // What the environment of the test says does not count.
        let typed = |flag: &str| flags.contains(&flag);
        let ConnectionArgs { relay, way: WayArgs { token, relay_ca, .. } } = &mut args.open.session.connection;
        if !typed("--secret") {
            args.open.tunnel.webhooks.credentials.secrets.clear();
        }
        relay.take_if(|_| !typed("--relay"));
        token.take_if(|_| !typed("--token"));
        relay_ca.take_if(|_| !typed("--relay-ca"));
        (args.open, args.service)
    }

    fn decide(flags: &[&str], files: &mut Files) -> Result<Settings, ConfigError> {
        let (open, service) = args(flags);
        Settings::new(open, service, files)
    }

    fn settle(project: &str, user: &str, flags: &[&str]) -> (Settings, Vec<String>) {
        let (_directory, places) = places(project, user);
        let mut files = Files::load(&places).unwrap();
        let settings = decide(flags, &mut files).unwrap();
        (settings, files.warnings)
    }

    #[test]
    fn every_key_is_read() {
        let text = r#"
            relay = "https://relay.example.com"
            token = "rly_abc"
            relay_ca = "ca.pem"
            relay_addr = "192.0.2.7:443"
            subdomain = "Hooks"
            host_header = "app.test"
            timeout = "1m30s"
            upstream_protocol = "h2c"
            output = "json"
        "#;
        let (directory, places) = places(text, "");
        let mut files = Files::load(&places).unwrap();
        let settings = decide(&[], &mut files).unwrap();
        assert_eq!(settings.relay.to_string(), "https://relay.example.com");
        assert_eq!(settings.token.unwrap().expose(), "rly_abc");
        assert_eq!(settings.relay_ca, Some(directory.path().join("ca.pem")));
        assert_eq!(settings.relay_addr.unwrap().to_string(), "192.0.2.7:443");
        let expected = TunnelSettings {
            subdomain: Some("hooks".to_owned()),
            host_header: "app.test".parse().unwrap(),
            timeout: Some(Duration::from_secs(90)),
            upstream_protocol: UpstreamProtocol::H2c,
            ..TunnelSettings::default()
        };
        assert_eq!((settings.tunnel, settings.show.output), (expected, Output::Json));
        assert_eq!(files.warnings, [""; 0]);
    }

    #[test]
    fn flags_beat_the_project_beats_the_user() {
        let user = "relay = 'a.example'\ntoken = 'user'\ndomain = 'user.example'\ntimeout = '1s'\noutput = 'json'";
        let project = "subdomain = 'project'\ntimeout = '2s'";
        let (settings, warnings) = settle(project, user, &["--timeout", "3s"]);
        assert_eq!(settings.relay.to_string(), "https://a.example");
        assert_eq!(settings.token.unwrap().expose(), "user");
        assert_eq!((settings.tunnel.subdomain.as_deref(), settings.tunnel.domain), (Some("project"), None));
        assert_eq!(settings.tunnel.timeout, Some(Duration::from_secs(3)));
        assert_eq!(settings.show.output, Output::Json);
        assert_eq!(warnings, [""; 0]);
        let (settings, _) = settle(project, user, &["--random"]);
        assert_eq!((settings.tunnel.subdomain, settings.tunnel.domain), (None, None));
        let (settings, _) = settle("", user, &[]);
        assert_eq!(settings.tunnel.domain.as_deref(), Some("user.example"));
        let (settings, _) = settle(project, user, &["--domain", "Own.example"]);
        assert_eq!((settings.tunnel.subdomain, settings.tunnel.domain.as_deref()), (None, Some("own.example")));
    }

    #[test]
    fn a_token_stays_with_its_relay() {
        let user = "relay = 'a.example'\ntoken = 'secret'\nrelay_ca = 'a.pem'\nrelay_addr = 'x:1'";
        for (project, flags, sent) in [
            ("", &[][..], true),
            ("relay = 'https://A.example:443'", &[], true),
            ("relay = 'evil.example'", &[], false),
            ("relay_addr = 'evil.example:443'\nrelay = 'a.example'", &[], false),
            ("relay_ca = 'evil.pem'", &["--relay", "a.example"], false),
            ("", &["--relay", "a.example"], true),
            ("", &["--relay", "b.example"], false),
        ] {
            let (settings, warnings) = settle(project, user, flags);
            assert_eq!(settings.token.is_some(), sent, "{project} {flags:?}");
            assert_eq!(warnings.len(), usize::from(!sent), "{warnings:?}");
            assert!(!warnings.concat().contains("secret"));
            assert_eq!(settings.relay_addr.is_some_and(|addr| addr.to_string() == "x:1"), sent);
        }
        for (project, flags) in
            [("", &["--relay", "b.example", "--token", "own"][..]), ("relay = 'b.example'", &["--token", "own"])]
        {
            let (settings, warnings) = settle(project, user, flags);
            assert_eq!((settings.token.unwrap().expose(), warnings.len()), ("own", 0));
        }
        // Who names relay and token is not led elsewhere under that name.
        let astray = "relay = 'a.example'\nrelay_ca = 'evil.pem'\nrelay_addr = 'evil.example:443'";
        for project in [astray, "relay_ca = 'evil.pem'\nrelay_addr = 'evil.example:443'"] {
            let (settings, _) = settle(project, "", &["--relay", "a.example", "--token", "own"]);
            assert!(settings.relay_ca.is_none() && settings.relay_addr.is_none(), "{project}");
        }
    }

    #[test]
    fn secrets_come_from_one_place_and_a_tunnel_may_have_its_own() {
        let user = "relay = 'a.example'\nsecret = ['a', 'b']\nset = { webhook_id = '1' }\nhandshake = true\n";
        let (settings, _) = settle("", user, &[]);
        let webhooks = settings.tunnel.webhooks;
        let exposed = |webhooks: &WebhookOptions| {
            webhooks.credentials.secrets.iter().map(|secret| secret.expose().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(exposed(&webhooks), ["a", "b"]);
        assert_eq!(webhooks.credentials.settings["webhook_id"], "1");
        assert_eq!((webhooks.verify, webhooks.verify_at, webhooks.handshake), (Verify::Warn, VerifyAt::Client, true));
        let (settings, _) = settle("verify = 'reject'", user, &["--secret", "c", "--verify-at", "edge"]);
        let webhooks = settings.tunnel.webhooks;
        assert_eq!(exposed(&webhooks), ["c"]);
        assert_eq!((webhooks.verify, webhooks.verify_at), (Verify::Reject, VerifyAt::Edge));
        let (settings, _) = settle("", "relay = 'a.example'", &[]);
        assert_eq!(settings.tunnel.webhooks, WebhookOptions::default());

        let project = "secret = 'whsec_above'\n[tunnels.a]\nupstream = 1\n[tunnels.b]\nupstream = 2\nsecret = '@b.txt'\nverify = 'off'";
        let (directory, places) = places(project, user);
        std::fs::write(directory.path().join("b.txt"), "whsec_own\n").unwrap();
        let tunnels = Files::load(&places).unwrap().tunnels(&[]).unwrap();
        let webhooks = |at: usize| &tunnels[at].settings.webhooks;
        assert_eq!(
            (exposed(webhooks(0)), exposed(webhooks(1))),
            (vec!["whsec_above".to_owned()], vec!["whsec_own".to_owned()])
        );
        assert_eq!((webhooks(0).verify, webhooks(1).verify), (Verify::Warn, Verify::Off));
        assert!(webhooks(1).handshake);
        assert!(!format!("{tunnels:?}").contains("whsec_"));
    }

    #[test]
    fn a_strangers_file_reaches_for_no_secret_and_gives_none_away() {
        for (project, hint) in [
            ("secret = 'env:RELAY_TOKEN'", "relay.toml:1: secret: env:RELAY_TOKEN: "),
            ("\nsecret = ['x', '@/etc/hostname']", "relay.toml:2: secret: @/etc/hostname: "),
            ("[tunnels.web]\nupstream = 1\nsecret = '@../user.toml'", "relay.toml:3: secret: "),
            ("verify_at = 'edge'", "relay.toml:1: verify_at: "),
            ("[tunnels.web]\nupstream = 1\nverify_at = 'edge'", "relay.toml:3: verify_at: "),
        ] {
            let (_directory, mut places) = places(project, "");
            let error = Files::load(&places).expect_err(project).to_string();
            assert!(error.contains(hint), "{project}: {error}");
            (places.only, places.project) = (places.project.take(), None);
            assert!(Files::load(&places).is_ok(), "{project}: who names the file means it");
        }
        // Nor does it lead what the user has said of the own relay to another.
        let user =
            "relay = 'a.example'\nsecret = 's'\nverify_at = 'edge'\n[tunnels.web]\nupstream = 1\nverify_at = 'edge'";
        for (project, at) in [("", VerifyAt::Edge), ("relay = 'evil.example'", VerifyAt::Client)] {
            let (_directory, places) = places(project, user);
            let mut files = Files::load(&places).unwrap();
            assert_eq!(decide(&[], &mut files).unwrap().tunnel.webhooks.verify_at, at, "{project}");
            assert_eq!(files.tunnels(&[]).unwrap()[0].settings.webhooks.verify_at, at, "{project}");
        }
    }

    #[test]
    fn a_client_secret_stays_with_its_issuer_and_its_relay() {
        let oidc = |issuer: &str, secret: &str| {
            format!("[access.oidc]\nissuer = 'https://{issuer}.example'\nclient_id = 'i'\nclient_secret = '{secret}'\n")
        };
        let user = format!("relay = 'a.example'\n{}", oidc("own", "s3cret"));
        let settled = |project: &str| {
            let (_directory, places) = places(project, &user);
            let access =
                decide(&[], &mut Files::load(&places).unwrap()).map(|settings| settings.tunnel.access.oidc.unwrap());
            access
                .map(|oidc| (oidc.issuer, oidc.secret.unwrap().expose().to_owned()))
                .map_err(|error| error.to_string())
        };
        let own = Ok(("https://own.example".to_owned(), "s3cret".to_owned()));
        assert_eq!(settled(""), own);
        // What a project says of another issuer does not hold, in whole or in part.
        assert_eq!(settled(&oidc("evil", "theirs")), own);
        // Another relay is not told, and the tunnel is not open to everybody there either.
        let error = settled("relay = 'evil.example'").unwrap_err();
        assert!(error.contains("no client_secret") && !error.contains("s3cret"), "{error}");
        let (_directory, places) = places("", &user);
        let mut files = Files::load(&places).unwrap();
        let flags = "--oidc https://b.example --oidc-client-id b --oidc-client-secret t --oidc-allow @b.example --oidc-skip /h/*";
        let typed = decide(&flags.split(' ').collect::<Vec<_>>(), &mut files).unwrap().tunnel.access;
        assert_eq!(typed.to_string(), "oidc=https://b.example oidc-allow=@b.example oidc-skip=/h/*");
    }

    #[test]
    fn a_strangers_file_opens_nothing_that_the_user_has_closed() {
        let user = "relay = 'a.example'\n[access]\nallow = '192.0.2.1'\nrate_limit = 5";
        for (project, access, warnings) in [
            ("", "allow=192.0.2.1 rate-limit=5", 0),
            ("access = { allow = '0.0.0.0/0', allow_path = '/a' }", "allow=192.0.2.1 paths=/a rate-limit=5", 1),
            ("access = { allow = '192.0.2.1', allow_path = '/a' }", "allow=192.0.2.1 paths=/a rate-limit=5", 0),
            ("[tunnels.web]\nupstream = 1\naccess.rate_limit = 900", "allow=192.0.2.1 rate-limit=5", 1),
        ] {
            let (_directory, mut places) = places(project, user);
            let mut files = Files::load(&places).unwrap();
            assert_eq!(decide(&[], &mut files).unwrap().tunnel.access.to_string(), access, "{project}");
            if let Ok(tunnels) = files.tunnels(&[]) {
                assert_eq!(tunnels[0].settings.access.to_string(), access, "{project}");
            }
            assert_eq!(files.warnings.len(), warnings, "{project}: {:?}", files.warnings);
            // A flag is the user's own.
            let typed = decide(&["--allow", "::1"], &mut files).unwrap().tunnel.access.to_string();
            assert!(typed.starts_with("allow=::1 "), "{project}: {typed}");
            (places.only, places.project) = (places.project.take(), None);
            assert!(Files::load(&places).unwrap().warnings.is_empty(), "{project}");
        }
    }

    #[test]
    fn a_strangers_rows_have_nothing_signed_with_a_secret_of_the_users() {
        let user = "relay = 'a.example'\nsecret = 'own'\nset = { verify_token = 'own' }\nhandshake = true\n\
                    [tunnels.mine]\nupstream = 1\nsecret = 'own'";
        let oracle = "[[provider]]\nid = 'github'\n[[provider.handshake]]\nwhen = { method = 'GET' }\n\
                      text = '{signed:query:q}'";
        let reader =
            "[[provider]]\nid = 'mine'\nname = 'M'\n[[provider.signature]]\nscheme = 'equal'\nfrom = 'header:x'";
        let harmless = "[[provider]]\nid = 'github'\nlimit_ms = 1000";
        for (project, holds) in [(oracle, false), (reader, false), (harmless, true), ("", true)] {
            let (_directory, mut places) = places(project, user);
            let mut files = Files::load(&places).unwrap();
            let said = files.warnings.iter().filter(|warning| warning.contains("are not used here")).count();
            assert_eq!(said, usize::from(!holds), "{project}: {:?}", files.warnings);
            let webhooks = decide(&[], &mut files).unwrap().tunnel.webhooks;
            assert_eq!(webhooks.credentials.secrets.len(), usize::from(holds), "{project}");
            assert_eq!(webhooks.credentials.settings.len(), usize::from(holds), "{project}");
            let tunnel = &files.tunnels(&[]).unwrap()[0].settings.webhooks;
            assert_eq!(tunnel.credentials.secrets.len(), usize::from(holds), "{project}");
            // What the project has itself, and what is typed, it may use.
            let typed = decide(&["--secret", "typed"], &mut Files::load(&places).unwrap()).unwrap();
            assert_eq!(typed.tunnel.webhooks.credentials.secrets.len(), 1);
            (places.only, places.project) = (places.project.take(), None);
            assert!(Files::load(&places).unwrap().warnings.is_empty(), "{project}: who names the file means it");
        }
    }

    #[test]
    fn a_strangers_file_has_no_handshake_answered_with_a_secret_of_the_users() {
        let own = "relay = 'a.example'\nsecret = 'own'\n";
        let answers = format!("{own}handshake = true\nprovider = 'x'");
        let tunnel = "[tunnels.mine]\nupstream = 1\nhandshake = true\nsecret = 'own'";
        for (project, user, holds) in [
            ("provider = 'x'\nhandshake = true", own, false),
            ("handshake = true", own, false),
            ("[tunnels.a]\nupstream = 1\nhandshake = true", own, false),
            ("provider = 'x'", &format!("{own}handshake = true"), false),
            ("provider = 'x'", &format!("{own}{tunnel}"), false),
            ("provider = 'meta-whatsapp'", &answers, false),
            ("[tunnels.a]\nupstream = 1\nprovider = 'meta-whatsapp'", &answers, false),
            // What only judges tells nobody anything.
            ("provider = 'stripe'\nverify = 'reject'", own, true),
            ("provider = 'x'\nhandshake = true", &answers, true),
            ("handshake = false", &answers, true),
            ("subdomain = 'a'", &answers, true),
        ] {
            let (_directory, places) = places(project, user);
            let mut files = Files::load(&places).unwrap();
            let said = files.warnings.iter().filter(|warning| warning.contains("are not used here")).count();
            assert_eq!(said, usize::from(!holds), "{project}: {:?}", files.warnings);
            let webhooks = decide(&[], &mut files).unwrap().tunnel.webhooks;
            assert_eq!(webhooks.credentials.secrets.len(), usize::from(holds), "{project}");
            for tunnel in files.tunnels(&[]).unwrap_or_default() {
                assert_eq!(tunnel.settings.webhooks.credentials.secrets.len(), usize::from(holds), "{project}");
            }
        }
    }

    #[test]
    fn what_was_stored_comes_last_and_stays_with_its_relay() {
        let stored = "relay = 'a.example'\ntoken = 'stored'";
        for (project, user, token) in [
            ("", "", Some("stored")),
            ("subdomain = 'x'", "timeout = '1s'", Some("stored")),
            ("", "relay = 'a.example'", Some("stored")),
            ("", "relay = 'b.example'\ntoken = 'user'", Some("user")),
            ("", "relay = 'b.example'", None),
            ("relay = 'b.example'", "", None),
            ("relay = 'b.example'", "token = 'user'", None),
        ] {
            let (directory, mut places) = places(project, user);
            let login = directory.path().join("login.toml");
            std::fs::write(&login, stored).unwrap();
            set_mode(&login, 0o600);
            places.login = Some(login);
            let mut files = Files::load(&places).unwrap();
            let settings = decide(&[], &mut files).unwrap();
            assert_eq!(settings.token.as_ref().map(Secret::expose), token, "{project} {user}");
            assert_eq!(files.warnings.len(), usize::from(token.is_none()), "{:?}", files.warnings);
        }
    }

    #[test]
    fn mistakes_are_shown_with_their_place() {
        for (text, place, hint) in [
            ("\n\nrelai = 'x'", ":3:1:", "`relay`"),
            ("timeout = '10'", ":1:11:", "10s"),
            ("timeout = 10", ":1:11:", "string"),
            ("relay = 'http://relay.example'", ":1:9:", "https://"),
            ("subdomain = 'a.b'", ":1:13:", "no dot"),
            ("domain = 'hooks'", ":1:10:", "--subdomain NAME"),
            ("[tunnels]\na = {upstream=1,subdomain='x',domain='x.example'}", ":1:", "leave one of them out"),
            ("[tunnels]\na = {upstream=1,domain='x.y'}\nb = {upstream=2,domain='X.y'}", ":1:", "[tunnels.b]"),
            ("host_header = 'a b'", ":1:15:", "preserve"),
            ("upstream_protocol = 'h3'", ":1:21:", "h2c"),
            ("output = 'yaml'", ":1:10:", "json"),
            ("relay_addr = '1.2.3.4'", ":1:14:", "PORT"),
            ("é = 1", ":1:", "invalid"),
            ("token = 'rly_secret\n", ":1:", ""),
            ("token = 'rly_secret' x", ":1:", ""),
            ("[tunnels.web]\nupstraem = 1", ":2:1:", "`upstream`"),
            ("[tunnels.web]\nsubdomain = 'x'", ":1:", "upstream"),
            ("[tunnels.web]\nupstream = 70000", ":2:12:", "a port"),
            ("[tunnels.web]\nupstream = 'localhost'", ":2:12:", "no port"),
            ("[tunnels.'a b']\nupstream = 1", ":1:", "letters"),
            ("tunnels = 3", ":1:11:", "map"),
            ("inbox = 3", ":1:9:", "ordered,ack=200"),
            ("inbox = 'ordered,no'", ":1:9:", "\"no\" says nothing"),
            ("inbox = 'ack=@/etc/passwd'", ":1:9:", "says nothing"),
            ("[tunnels.web]\nupstream = 1\n[tunnels.web.inbox]\norder = true", ":4:1:", "`how`"),
            ("[inbox]\nack = { stauts = 200 }", ":2:9:", "`status`"),
            ("[inbox]\nack = { status = 404 }", ":1:", "200 to 299"),
            ("[inbox]\nignore = [{ unless = 'x' }]", ":2:13:", "`provider`"),
            ("[inbox]\nignore = [{ provider = 'strip' }]", ":1:", "is it stripe?"),
            ("[inbox]\nignore = [{}]", ":1:", "every webhook"),
            ("secret = 3", ":1:10:", "@FILE"),
            ("verify = 'maybe'", ":1:10:", "reject"),
            ("set = 'a'", ":1:7:", "map"),
            ("[tunnels]\na = {upstream=1,subdomain='x'}\nb = {upstream=2,subdomain='X'}", ":1:", "[tunnels.b]"),
        ] {
            let (directory, places) = places(text, "");
            let error = Files::load(&places).expect_err(text).to_string();
            let file = directory.path().join("relay.toml");
            assert!(error.starts_with(&format!("{}{place}", file.display())), "{text}: {error}");
            assert!(error.contains(hint) && !error.contains("rly_secret"), "{text}: {error}");
        }
    }

    #[test]
    fn tunnels_have_the_keys_above_them_as_defaults_and_come_from_one_file() {
        let user = "timeout = '9s'\nhost_header = 'preserve'\nsubdomain = 'x'\n[tunnels.home]\nupstream = 1";
        let project = "timeout = '1s'\n[tunnels.web]\nupstream = 3000\nsubdomain = 'Hooks'\n\
                       [tunnels.api]\nupstream = 'unix:/a'\ntimeout = '2s'\nupstream_protocol = 'h2c'";
        let (_directory, places) = places(project, user);
        let files = Files::load(&places).unwrap();
        let tunnels = files.tunnels(&[]).unwrap();
        let labels: Vec<_> = tunnels.iter().map(|tunnel| tunnel.label.as_str()).collect();
        assert_eq!(labels, ["api", "web"]);
        let settings = |subdomain: Option<&str>, timeout, upstream_protocol| TunnelSettings {
            subdomain: subdomain.map(str::to_owned),
            host_header: HostHeader::Preserve,
            timeout: Some(Duration::from_secs(timeout)),
            upstream_protocol,
            ..TunnelSettings::default()
        };
        assert_eq!(tunnels[0].settings, settings(None, 2, UpstreamProtocol::H2c));
        assert_eq!(tunnels[1].settings, settings(Some("hooks"), 1, UpstreamProtocol::Http1));
        assert_eq!(
            (&tunnels[1].upstream, tunnels[0].upstream.to_string().as_str()),
            (&UpstreamAddr::localhost(3000), "unix:/a")
        );
        assert_eq!(files.tunnels(&["web".to_owned()]).unwrap(), tunnels[1..]);
        let unknown = files.tunnels(&["home".to_owned()]).unwrap_err().to_string();
        assert!(unknown.contains("[tunnels.home]") && unknown.contains("api, web"), "{unknown}");
        let (_directory, places) = super::tests::places("", "");
        let none = Files::load(&places).unwrap().tunnels(&[]).unwrap_err().to_string();
        assert!(none.contains("[tunnels.web]"), "{none}");
    }

    /// The blocks of the page are files of the client or of the relay.
    #[test]
    fn the_documented_files_are_understood() {
        let page = include_str!("../../../docs/configuration.md");
        let page = page.split("## Configuration of the relay").next().unwrap();
        let page = [page, include_str!("../../../docs/inbox.md"), include_str!("../../../docs/access.md")].concat();
        let blocks: Vec<_> = page.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
        assert!(blocks.len() >= 2, "{blocks:?}");
        for block in blocks {
            let (_directory, places) = places(block, "");
            Files::load(&places).unwrap();
        }
    }

    #[test]
    fn an_inbox_can_be_a_table() {
        let project = "[tunnels.web]\nupstream = 1\n[tunnels.web.inbox]\nhow = 'ordered,limit=9'\n\
                       ack = { headers = { content-type = 'text/xml' }, body = '<Ok/>' }\n\
                       ignore = [{ provider = 'github', type = 'push' }, { when = { 'json:/livemode' = 'false' } }]";
        let (_directory, places) = places(project, "");
        let tunnels = Files::load(&places).unwrap().tunnels(&[]).unwrap();
        let inbox = tunnels[0].settings.inbox.0.as_ref().unwrap();
        assert_eq!(inbox.to_string(), "ordered,ack=202,limit=9,ignore=2");
        let ack = inbox.ack.as_ref().unwrap();
        let headers = vec![("content-type".to_owned(), "text/xml".to_owned())];
        assert_eq!((ack.status, &ack.headers, ack.body.as_str()), (202, &headers, "<Ok/>"));
        assert_eq!(inbox.ignore[0].kind.as_deref(), Some("push"));
    }

    #[test]
    fn a_file_that_was_asked_for_stands_alone_and_must_exist() {
        let (directory, mut places) = places("subdomain = 'project'", "relay = 'a.example'");
        places.only = places.user.clone();
        let mut files = Files::load(&places).unwrap();
        assert_eq!(decide(&[], &mut files).unwrap().tunnel.subdomain, None);
        places.only = Some(directory.path().join("missing.toml"));
        assert!(Files::load(&places).expect_err("missing").to_string().contains("missing.toml"));
        (places.only, places.project) = (None, Some(directory.path().join("missing.toml")));
        Files::load(&places).unwrap();
        Files::load(&Places::default()).unwrap();
    }

    #[test]
    fn a_token_that_others_can_read_is_worth_a_word() {
        let (_directory, places) = places("", "token = 'secret'");
        set_mode(places.user.as_ref().unwrap(), 0o640);
        let warnings = Files::load(&places).unwrap().warnings;
        assert!(warnings[0].contains("chmod 600") && !warnings[0].contains("secret"), "{warnings:?}");
    }

    #[test]
    fn a_token_is_one_word() {
        for bad in ["", " ", "a b", "a\r\nx: y", "ü"] {
            let mut files = Files::default();
            let error = decide(&["--relay", "a.example", "--token", bad], &mut files);
            assert!(matches!(error, Err(ConfigError::Token)), "{bad:?}");
        }
    }

    #[test]
    fn a_relay_must_be_named() {
        let error = decide(&[], &mut Files::default()).expect_err("no relay");
        assert!(error.to_string().contains("RELAY_URL"), "{error}");
    }
}
