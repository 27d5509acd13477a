//! What of the configuration changes while the relay runs, and what another process is needed for.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinError;

use crate::Shared;
use crate::alert::Alert;
use crate::audit::By;
use crate::certs::CertificateError;
use crate::clock::unix_now;
use crate::config::{CertificateSource, Config, ConfigError};
use crate::control::{Request, deeds};
use crate::limits::Limits;
use crate::oidc::{Issuers, OidcError};
use crate::program::Program;
use relay_protocol::network::Network;

/// What of the configuration changes while the relay runs. Each is read where it is used, or kept for a connection, a session
/// or a look around; so it holds for the next one.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) limits: Arc<Limits>,
    pub(crate) trusted_proxies: Vec<Network>,
    pub(crate) alert: Option<Alert>,
    pub(crate) report_url: Option<String>,
    pub(crate) issuers: Arc<Issuers>,
}

impl Live {
    pub(crate) fn of(config: &Config, issuers: Issuers) -> watch::Sender<Arc<Self>> {
        watch::Sender::new(Arc::new(Self {
            issuers: Arc::new(issuers),
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
    /// Nobody could log in with it.
    #[error("oidc: {0}")]
    Oidc(#[from] OidcError),
    /// Nobody has read it to its end.
    #[error("it was not read to its end: {0}")]
    Unread(#[from] JoinError),
}

/// Reads the configuration of a relay anew, whoever asks for it.
#[derive(Clone)]
pub struct Reloader {
    pub(crate) shared: Arc<Shared>,
    pub(crate) program: Option<Arc<Program>>,
}

impl std::fmt::Debug for Reloader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reloader").field("program", &self.program).finish_non_exhaustive()
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

    /// As [`Reloader::reload`], for whoever has sent a signal: nobody is told but the log, and the audit log of what was changed.
    pub async fn reload_by_signal(&self) {
        if self.reload().await.is_err() {
            return;
        }
        let deed = deeds::of(&Request::Reload);
        if let Some(deed) = deed
            && let Err(error) = self.shared.store.note(&By::Signal, deed, unix_now()).await
        {
            tracing::error!(%error, "a reload by a signal is not in the audit log");
        }
    }

    fn read_and_apply(&self) -> Result<Reloaded, ReloadError> {
        let program = self.program.as_ref().ok_or(ReloadError::Embedded)?;
        program.configure(|config| self.shared.take_over_settings(config))
    }
}

impl Shared {
    /// Takes of a configuration what can change. It blocks.
    fn take_over_settings(&self, new: Config) -> Result<Reloaded, ReloadError> {
        let (old, mut reloaded) = (&self.config, Reloaded::default());
        // All of them, so that none is forgotten.
        let Config {
            domain,
            https,
            http,
            http_mode,
            admin,
            public_port,
            data_dir,
            certificate,
            public_ips,
            resolver,
            trusted_proxies,
            proxy_protocol,
            path_mode,
            localhost_tunnel: _,
            alert,
            traces,
            oidc,
            report_url,
            threads,
            limits,
        } = new;
        let was = self.live.borrow().clone();
        // First what may be refused.
        let other_issuers = !was.issuers.are_of(&oidc, old.data_dir.as_deref());
        let issuers = match other_issuers {
            true => Arc::new(Issuers::new(&oidc, old.data_dir.as_deref())?),
            false => was.issuers.clone(),
        };
        let certificate = match (&old.certificate, &certificate) {
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
            ("domain", old.domain != domain),
            ("https", old.https != https),
            ("http", old.http != http),
            ("http_mode", old.http_mode != http_mode),
            ("admin", old.admin != admin),
            ("public_port", old.public_port != public_port),
            ("data_dir", old.data_dir != data_dir),
            ("proxy_protocol", old.proxy_protocol != proxy_protocol),
            ("path_mode", old.path_mode != path_mode),
            ("public_ip", old.public_ips != public_ips),
            ("resolver", old.resolver != resolver),
            ("traces", old.traces != traces),
            ("threads", old.threads != threads),
        ] {
            reloaded.note(key, differs, false);
        }
        let (limits, fixed) = keep_fixed(&old.limits, limits);
        for key in fixed {
            reloaded.note(&format!("limits.{key}"), true, false);
        }
        // Who is a proxy, and how it says who the sender is, go together: one of them alone would have strangers believed.
        let same_header = old.proxy_protocol == proxy_protocol;
        reloaded.note("trusted_proxies", !same_header && was.trusted_proxies != trusted_proxies, false);
        let trusted_proxies = if same_header { trusted_proxies } else { was.trusted_proxies.clone() };
        let now = Live { limits: Arc::new(limits), trusted_proxies, alert, report_url, issuers };
        reloaded.note("limits", was.limits != now.limits, true);
        reloaded.note("trusted_proxies", was.trusted_proxies != now.trusted_proxies, true);
        reloaded.note("alert", was.alert != now.alert, true);
        reloaded.note("report_url", was.report_url != now.report_url, true);
        reloaded.note("oidc", other_issuers, true);
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
