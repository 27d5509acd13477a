//! `relay dev`: a relay, a tunnel and, where none is given, a service, in one process.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use relay_server::Relay;
use relay_server::config::{Config, OidcConfig};
use relay_server::log::AccessLog;
use relay_server::store::{NewToken, TokenLimits, unix_now};
use tokio_util::sync::CancellationToken;

use crate::client::{Client, ClientError};
use crate::commands::demo;
use crate::config::DevSettings;
use crate::control::Control;
use crate::options::TunnelOptions;
use crate::platform::{Base, base_directory};
use crate::session::dial::{Target, Trust};
use crate::session::probe::Probe;
use crate::terminal::screen::Screen;

/// The base domain: every name below `localhost` is this machine (RFC 6761, section 6.3).
pub const DOMAIN: &str = "relay.localhost";

/// Where HTTPS is served when nobody says.
pub const HTTPS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8443);

/// The tunnel's name when nobody says: the relay is nobody else's, so it need not be a secret.
pub const NAME: &str = "app";

/// What answers where there is no service, as a person is told.
pub const DEMO: &str = "a demo app answers; put your own service behind it: relay dev 3000";

/// Why `relay dev` did not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum DevError {
    /// The relay inside did not start.
    #[error(transparent)]
    Relay(#[from] relay_server::StartError),
    /// The relay inside gave no token.
    #[error(transparent)]
    Token(#[from] relay_server::store::CreateTokenError),
    /// The CA that was just made cannot be used.
    #[error(transparent)]
    Target(#[from] crate::session::dial::TargetError),
    /// The relay's own address is no URL.
    #[error(transparent)]
    Url(#[from] crate::session::dial::RelayUrlError),
    /// The tunnel ended.
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// Runs until `shutdown` ends.
///
/// # Errors
/// [`DevError`] says what is in the way.
pub async fn run(
    settings: DevSettings,
    mut screen: Screen,
    shutdown: impl Future<Output = ()>,
) -> Result<(), DevError> {
    let name = settings.tunnel.subdomain.clone().unwrap_or_else(|| NAME.to_owned());
    let relay = Relay::bind(config(&settings, &name), AccessLog::off()).await?;
    let upstream = settings.upstream.map_or_else(|| demo::service().into(), Into::into);
    let new =
        NewToken { name: "dev".to_owned(), reserve: Vec::new(), expires_at: None, limits: TokenLimits::default() };
    let (token, _) = relay.store().create_token(new, unix_now()).await?;
    let port = relay.https_addr().map_or(HTTPS.port(), |address| address.port());
    let ca_file = relay.ca_file().map(|path| path.to_path_buf()).unwrap_or_default();
    let target = Target::new(relay.url().parse()?, &Trust::only(&ca_file)?)?;
    let address = relay.https_addr().filter(|address| !address.ip().is_unspecified());
    let target = target.dialling(address.and_then(|address| address.to_string().parse().ok()));
    let options = TunnelOptions {
        label: None,
        upstream,
        subdomain: Some(name),
        // The relay says that it has none.
        domain: settings.tunnel.domain,
        timeout: settings.tunnel.timeout,
        host_header: settings.tunnel.host_header,
        protocol: settings.tunnel.upstream_protocol,
        webhooks: settings.tunnel.webhooks,
        routes: settings.tunnel.routes,
        faults: settings.tunnel.faults,
        inbox: settings.tunnel.inbox.0,
        access: settings.tunnel.access,
        takeover: false,
        local_url: Some(format!("https://localhost:{port}")),
    };
    let mut client = Client::new(target)
        .token(token.expose().to_owned().into())
        .ca_file(ca_file.display().to_string())
        .control(Control::new(settings.show.inspect, settings.show.capture))
        .tunnel(options);
    if let Some(inspector) = settings.show.inspector {
        client = client.inspector(inspector);
    }

    let client = screen.prove(client, Probe::new());
    let stop = CancellationToken::new();
    // The tunnel goes first, so that the relay has nothing left to wait for.
    let tunnel = async {
        let result = client.run(&mut screen, shutdown).await;
        stop.cancel();
        result
    };
    let (result, ()) = tokio::join!(tunnel, relay.run(stop.cancelled()));
    Ok(result?)
}

fn config(settings: &DevSettings, name: &str) -> Config {
    let dir = settings.data_dir.clone().unwrap_or_else(default_dir);
    Config {
        https: Some(settings.https.unwrap_or(HTTPS)),
        http: None,
        localhost_tunnel: Some(name.to_owned()),
        // Who runs the relay is who has the tunnel.
        oidc: OidcConfig {
            issuers: settings.tunnel.access.oidc.iter().map(|oidc| oidc.issuer.clone()).collect(),
            ca: None,
        },
        ..Config::on_loopback(DOMAIN, dir.join("ca"))
    }
}

/// Where the CA is kept when nobody says.
fn default_dir() -> PathBuf {
    base_directory(Base::Data).unwrap_or_else(std::env::temp_dir).join("relay-dev")
}
