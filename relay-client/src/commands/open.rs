//! From settings to a client: what all commands that open a tunnel on a relay share.

use crate::client::names::Names;
use crate::session::dial::{Target, TargetError, Trust};
use crate::upstream::service::Destination;
use crate::{
    client::Client,
    config::{Settings, TunnelSettings},
    control::Control,
    options::TunnelOptions,
};

/// The client that these settings describe, with one tunnel to `upstream`.
///
/// # Errors
/// Where the relay's CA cannot be used.
pub fn client(upstream: impl Into<Destination>, settings: Settings) -> Result<Client, TargetError> {
    let tunnel = options(None, upstream.into(), settings.tunnel.clone(), settings.takeover);
    Ok(without_tunnel(settings)?.tunnel(tunnel))
}

/// The client that these settings describe, but for its tunnels.
pub(crate) fn without_tunnel(settings: Settings) -> Result<Client, TargetError> {
    let trust = settings.relay_ca.as_deref().map_or(Ok(Trust::System), Trust::only)?;
    let names = Names::here(&settings.relay, settings.token.as_ref());
    let target = Target::new(settings.relay, &trust)?.dialling(settings.relay_addr);
    let mut client = Client::new(target).control(Control::new(settings.show.inspect, settings.show.capture));
    if let Some(inspector) = settings.show.inspector {
        client = client.inspector(inspector);
    }
    if !settings.random {
        client = client.remember(names);
    }
    if let Some(token) = settings.token {
        client = client.token(token);
    }
    if let Some(limit) = settings.max_reconnect_time {
        client = client.max_reconnect_time(limit);
    }
    if let Some(ca) = settings.relay_ca {
        let ca = std::path::absolute(&ca).unwrap_or(ca);
        client = client.ca_file(ca.display().to_string());
    }
    Ok(client)
}

/// A tunnel as it was settled.
pub(crate) fn options(
    label: Option<String>,
    upstream: Destination,
    settings: TunnelSettings,
    takeover: bool,
) -> TunnelOptions {
    TunnelOptions {
        label,
        upstream,
        subdomain: settings.subdomain,
        domain: settings.domain,
        timeout: settings.timeout,
        host_header: settings.host_header,
        protocol: settings.upstream_protocol,
        webhooks: settings.webhooks,
        routes: settings.routes,
        faults: settings.faults,
        inbox: settings.inbox.0,
        access: settings.access,
        takeover,
        local_url: None,
    }
}
