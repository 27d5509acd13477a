//! What of the configuration changes while the relay runs, and what another process is needed for.

use std::sync::{Arc, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinError;

use crate::Shared;
use crate::alert::Alert;
use crate::certs::CertificateError;
use crate::config::{CertificateSource, Config, ConfigError, Network};
use crate::control::Reply;
use crate::limits::Limits;
use crate::succession::Office;

/// What of the configuration changes while the relay runs. Each is read where it is used, or kept for a connection, a session
/// or a look around; so it holds for the next one.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) limits: Arc<Limits>,
    pub(crate) trusted_proxies: Vec<Network>,
    pub(crate) alert: Option<Alert>,
    pub(crate) report_url: Option<String>,
}

impl Live {
    pub(crate) fn of(config: &Config) -> watch::Sender<Arc<Self>> {
        watch::Sender::new(Arc::new(Self {
            limits: Arc::new(config.limits.clone()),
            trusted_proxies: config.trusted_proxies.clone(),
            alert: config.alert.clone(),
            report_url: config.report_url.clone(),
        }))
    }
}

/// What has become of a configuration that was read anew. The names are those of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// These are in force.
    pub changed: Vec<String>,
    /// These are others in the file, and in force as they were: the next process has them.
    pub waiting: Vec<String>,
}

impl Reloaded {
    fn note(&mut self, key: &str, has_changed: bool, is_live: bool) {
        if has_changed {
            if is_live { &mut self.changed } else { &mut self.waiting }.push(key.to_owned());
        }
    }
}

/// Why the configuration stays as it is.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The relay is part of another program, which knows its configuration.
    #[error("the relay is part of another program, which has no configuration to read")]
    Embedded,
    /// It cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Its certificate cannot be used.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// Nobody has read it to its end.
    #[error("it was not read to its end: {0}")]
    Unread(#[from] JoinError),
}

/// Reads the configuration of a relay anew, whoever asks for it.
#[derive(Clone)]
pub struct Reloader {
    pub(crate) shared: Arc<Shared>,
    pub(crate) office: Office,
}

impl std::fmt::Debug for Reloader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reloader").field("office", &self.office).finish_non_exhaustive()
    }
}

impl Reloader {
    /// Reads the configuration, and takes of it what can change. Says in the log what that was, or why nothing was.
    ///
    /// # Errors
    /// [`ReloadError`]; all is as it was.
    pub async fn reload(&self) -> Result<Reloaded, ReloadError> {
        let reader = self.clone();
        // Not on a thread that serves: files may be on a network that hangs.
        let read = tokio::task::spawn_blocking(move || reader.read_and_apply()).await;
        let result = read.unwrap_or_else(|error| Err(error.into()));
        match &result {
            Ok(Reloaded { changed, waiting }) => {
                tracing::info!(?changed, "the configuration was read anew");
                if !waiting.is_empty() {
                    tracing::warn!(
                        ?waiting,
                        "these have changed in the configuration and stay as they were: `relay-server upgrade` starts a process that has them"
                    );
                }
            }
            Err(error) => tracing::error!(%error, "the configuration stays as it was"),
        }
        result
    }

    fn read_and_apply(&self) -> Result<Reloaded, ReloadError> {
        let program = self.office.program().ok_or(ReloadError::Embedded)?;
        // What was read first is not to win over what was read last.
        let _one = program.reading.lock().unwrap_or_else(PoisonError::into_inner);
        let config = (program.read)()?;
        self.shared.take_over_settings(config)
    }

    /// As [`Reloader::reload`], for whoever asks on the control socket.
    pub(crate) async fn reply(&self) -> Reply {
        match self.reload().await {
            Ok(reloaded) => Reply::Reloaded(reloaded),
            Err(error) => Reply::failed(format!("the configuration stays as it was: {error}")),
        }
    }
}

impl Shared {
    /// Takes of a configuration what can change. It blocks.
    fn take_over_settings(&self, new: Config) -> Result<Reloaded, ReloadError> {
        let (old, mut reloaded) = (&self.config, Reloaded::default());
        // First what may be refused.
        let certificate = match (&old.certificate, &new.certificate) {
            (CertificateSource::Files { .. }, CertificateSource::Files { cert, key }) => {
                self.certificates.show(cert, key)?
            }
            (old, new) => {
                reloaded.note("acme", old != new, false);
                false
            }
        };
        reloaded.note("cert", certificate, true);
        for (key, differs) in [
            ("domain", old.domain != new.domain),
            ("https", old.https != new.https),
            ("http", old.http != new.http),
            ("http_mode", old.http_mode != new.http_mode),
            ("admin", old.admin != new.admin),
            ("public_port", old.public_port != new.public_port),
            ("data_dir", old.data_dir != new.data_dir),
            ("proxy_protocol", old.proxy_protocol != new.proxy_protocol),
            ("path_mode", old.path_mode != new.path_mode),
            ("public_ip", old.public_ips != new.public_ips),
            ("resolver", old.resolver != new.resolver),
            ("threads", old.threads != new.threads),
        ] {
            reloaded.note(key, differs, false);
        }
        let (limits, fixed) = keep_fixed(&old.limits, new.limits);
        for key in fixed {
            reloaded.note(&format!("limits.{key}"), true, false);
        }
        let was = self.live.borrow().clone();
        let now = Live {
            limits: Arc::new(limits),
            trusted_proxies: new.trusted_proxies,
            alert: new.alert,
            report_url: new.report_url,
        };
        reloaded.note("limits", was.limits != now.limits, true);
        reloaded.note("trusted_proxies", was.trusted_proxies != now.trusted_proxies, true);
        reloaded.note("alert", was.alert != now.alert, true);
        reloaded.note("report_url", was.report_url != now.report_url, true);
        self.live.send_replace(Arc::new(now));
        Ok(reloaded)
    }
}

/// The new limits, but for those by which something was made when the relay started; and which of these differ.
fn keep_fixed(old: &Limits, new: Limits) -> (Limits, Vec<&'static str>) {
    let differing = [
        ("connections", old.connections != new.connections),
        ("connections_per_address", old.connections_per_address != new.connections_per_address),
        ("session_streams", old.session_streams != new.session_streams),
        ("verify_bytes", old.verify_bytes != new.verify_bytes),
        ("inbox_live", old.inbox_live != new.inbox_live),
        ("inbox_live_bytes", old.inbox_live_bytes != new.inbox_live_bytes),
        ("inbox_free", old.inbox_free != new.inbox_free),
    ];
    let kept = Limits {
        connections: old.connections,
        connections_per_address: old.connections_per_address,
        session_streams: old.session_streams,
        verify_bytes: old.verify_bytes,
        inbox_live: old.inbox_live,
        inbox_live_bytes: old.inbox_live_bytes,
        inbox_free: old.inbox_free,
        ..new
    };
    (kept, differing.into_iter().filter_map(|(key, differs)| differs.then_some(key)).collect())
}
