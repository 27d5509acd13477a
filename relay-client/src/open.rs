//! From settings to a client: what all commands that open a tunnel on a relay share.

use crate::{
    client::{Client, TunnelOptions},
    config::Settings,
    dial::{Target, TargetError, Trust},
    names::Names,
    service::Destination,
};

/// The client that these settings describe, with one tunnel to `upstream`.
///
/// # Errors
/// Where the relay's CA cannot be used.
pub fn client(upstream: impl Into<Destination>, settings: Settings) -> Result<Client, TargetError> {
    let trust = settings.relay_ca.as_deref().map_or(Ok(Trust::System), Trust::only)?;
    let names = Names::here(&settings.relay, settings.token.as_ref());
    let target = Target::new(settings.relay, &trust)?.dialling(settings.relay_addr);
    let mut client = Client::new(target).tunnel(TunnelOptions {
        label: None,
        upstream: upstream.into(),
        subdomain: settings.tunnel.subdomain,
        timeout: settings.tunnel.timeout,
        host_header: settings.tunnel.host_header,
        protocol: settings.tunnel.upstream_protocol,
        takeover: settings.takeover,
        local_url: None,
    });
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
