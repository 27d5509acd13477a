//! How a relay is that runs, as it tells whoever has its data directory.

use std::net::SocketAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{Shared, admin};

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
    pub admin: Option<SocketAddr>,
    /// Where DNS is answered.
    pub dns: Vec<SocketAddr>,
    /// Whether it takes requests, as `/readyz` says.
    pub ready: bool,
    /// What stands in the way of that, or will.
    pub trouble: Option<String>,
}

/// A relay that runs, and where it listens.
#[derive(Clone, Debug)]
pub(crate) struct Present {
    pub(crate) shared: Arc<Shared>,
    pub(crate) https: Option<SocketAddr>,
    pub(crate) http: Option<SocketAddr>,
    pub(crate) admin: Option<SocketAddr>,
    pub(crate) dns: Vec<SocketAddr>,
}

impl Present {
    pub(crate) fn status(&self) -> Status {
        let readiness = admin::readiness(&self.shared);
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            process: std::process::id(),
            url: self.shared.public_url(&self.shared.config.domain),
            https: self.https,
            http: self.http,
            admin: self.admin,
            dns: self.dns.clone(),
            ready: readiness.is_ok(),
            trouble: readiness.unwrap_or_else(Some),
        }
    }
}
