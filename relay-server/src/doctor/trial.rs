//! A token with which the doctor is a client, and which ends with the visit.

use std::path::{Path, PathBuf};

use super::patient::Patient;
use crate::clock::unix_now;
use crate::control::{Control, Reply, Request};
use crate::store::{NewToken, Secret, TokenLimits};

/// A token for this alone, which ends by itself where nobody ends it.
const LIFETIME_S: i64 = 300;

/// A token, until it is [ended](Trial::end).
#[derive(Debug)]
pub(super) struct Trial {
    directory: PathBuf,
    name: String,
    secret: Secret,
}

impl Trial {
    /// Has the relay make one; none where there is no data directory.
    pub(super) async fn begin(patient: &Patient) -> Result<Option<Self>, String> {
        let Some(directory) = patient.config.data_dir.clone() else { return Ok(None) };
        let name = format!("doctor-{:016x}", fastrand::u64(..));
        let limits = TokenLimits { max_tunnels: 1, max_names: 1, max_sessions: 1, ..TokenLimits::default() };
        let expires_at = Some(unix_now() + LIFETIME_S);
        let new = NewToken { name: name.clone(), reserve: Vec::new(), expires_at, limits };
        match ask(&directory, Request::CreateToken(new)).await? {
            Reply::Created { secret, .. } => Ok(Some(Self { directory, name, secret })),
            _ => Err("its answer does not fit".to_owned()),
        }
    }

    pub(super) fn secret(&self) -> &str {
        self.secret.expose()
    }

    /// The relay forgets it. An error is a command that does the rest.
    pub(super) async fn end(self) -> Result<(), String> {
        let ended = ask(&self.directory, Request::ForgetToken { token: self.name.clone() }).await;
        ended.map(drop).map_err(|error| format!("relay-server token revoke {}, because: {error}", self.name))
    }
}

async fn ask(directory: &Path, what: Request) -> Result<Reply, String> {
    let relay = Control::find(directory).await.map_err(|error| error.to_string())?;
    let reply = relay.ok_or("it has ended meanwhile")?.request(what).await.map_err(|error| error.to_string())?;
    if let Reply::Refused { message, .. } = reply { Err(message) } else { Ok(reply) }
}
