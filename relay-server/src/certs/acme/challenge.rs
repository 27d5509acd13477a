//! The TXT records that prove the domain (DNS-01, RFC 8555, section 8.4): who shows them to the world, and whether it sees
//! them.
//!
//! ```text
//!   our name server ────────────────────────────────────────────────▶ the authority looks
//!   another one, by updates ─┐
//!   a program ───────────────┴─▶ all servers of the zone show them ─▶ the authority looks
//! ```
//!
//! Where one name is all that a certificate is for, no record is needed: it is proved [at our port](Publisher::Nobody).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::ProtoError;
use hickory_proto::rr::Name;
use tokio::time::{Instant, sleep};

use super::AcmeError;
use super::hook::{Hook, HookError, Task};
use super::kept::{Kept, Shown};
use crate::dns::{self, Change, Lookup, UpdateError, Updates, Zone};

/// How long the servers of a zone have to show a record. Some providers take minutes.
const SEEN_WITHIN: Duration = Duration::from_secs(300);

/// How often they are asked.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Records that are remembered because they could not be removed. Each order has two.
const LEFT: usize = 20;

/// Who shows them.
#[derive(Debug)]
pub(crate) enum Publisher {
    /// The relay's own name server.
    Own(Arc<Zone>),
    /// Another name server, which takes updates.
    Updates(Box<Updates>),
    /// A program.
    Hook(Hook),
    /// There are none: what proves the domain is shown where it is served (TLS-ALPN-01, RFC 8737).
    Nobody,
}

/// The records of one domain. All values are at one name.
#[derive(Debug)]
pub(crate) struct Challenge {
    name: Name,
    publisher: Publisher,
    /// None where nobody is to be asked.
    lookup: Option<Lookup>,
}

/// Why the world does not see a record.
#[derive(Debug, thiserror::Error)]
pub enum ChallengeError {
    /// The name server.
    #[error(transparent)]
    Update(#[from] UpdateError),
    /// The program.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// It was set, and is not there.
    #[error(
        "the authority was not asked to look, because the name servers of the zone do not show the TXT records of {name} \
         after {} s: {}. Both values have to be there at once", SEEN_WITHIN.as_secs(), servers.join(", ")
    )]
    Unseen {
        /// Where.
        name: String,
        /// Who does not show it.
        servers: Vec<String>,
    },
}

impl Challenge {
    /// # Errors
    /// Where the domain is no name.
    pub(crate) fn new(domain: &str, publisher: Publisher, lookup: Option<Lookup>) -> Result<Self, ProtoError> {
        let name = dns::challenge_of(&dns::absolute(domain)?)?;
        Ok(Self { name, publisher, lookup })
    }

    /// Whether the relay is the name server.
    pub(super) fn is_own(&self) -> bool {
        matches!(self.publisher, Publisher::Own(_))
    }

    /// Whether there are records at all.
    pub(super) fn is_at_our_port(&self) -> bool {
        matches!(self.publisher, Publisher::Nobody)
    }

    /// Has our name server say who may issue; what others say is theirs.
    pub(super) fn set_issuers(&self, issuers: &[String]) {
        if let Publisher::Own(zone) = &self.publisher {
            zone.set_issuers(issuers);
        }
    }

    /// Returns once the world can see these values.
    ///
    /// # Errors
    /// Where it will not.
    pub(super) async fn show(&self, kept: &Kept, values: Vec<String>) -> Result<(), AcmeError> {
        if let Publisher::Own(zone) = &self.publisher {
            zone.set_challenge(values);
            return Ok(());
        }
        let name = self.behind_aliases().await;
        // Noted first, so that what was half done is undone, too.
        let mut shown = kept.shown();
        shown.extend(values.iter().map(|value| Shown { name: name.to_ascii(), value: value.clone() }));
        shown.sort();
        shown.dedup();
        kept.set_shown(&shown)?;
        self.publish(&name, &values).await?;
        self.wait_until_seen(&name, &values).await?;
        Ok(())
    }

    async fn publish(&self, name: &Name, values: &[String]) -> Result<(), ChallengeError> {
        match &self.publisher {
            Publisher::Own(_) | Publisher::Nobody => {}
            Publisher::Updates(updates) => drop(updates.change(Change::Add, name, values).await?),
            Publisher::Hook(hook) => {
                for value in values {
                    hook.run(Task::Present, &name.to_ascii(), value).await?;
                }
            }
        }
        Ok(())
    }

    /// Removes what was shown, now or before a restart. What cannot be removed is tried again the next time.
    pub(super) async fn withdraw(&self, kept: &Kept) {
        if let Publisher::Own(zone) = &self.publisher {
            return zone.set_challenge(Vec::new());
        }
        let shown = kept.shown();
        if shown.is_empty() {
            return;
        }
        let mut left = Vec::new();
        for record in shown {
            if let Err(error) = self.remove(&record).await {
                let Shown { name, value } = &record;
                tracing::warn!(%error, name, value, "a TXT record could not be removed; it can be removed by hand");
                left.push(record);
            }
        }
        left.drain(..left.len().saturating_sub(LEFT));
        if let Err(error) = kept.set_shown(&left) {
            tracing::warn!(%error, "which TXT records are removed could not be noted");
        }
    }

    async fn remove(&self, Shown { name, value }: &Shown) -> Result<(), ChallengeError> {
        match &self.publisher {
            Publisher::Own(_) | Publisher::Nobody => {}
            Publisher::Updates(updates) => {
                let name = dns::absolute(name).unwrap_or_else(|_| self.name.clone());
                updates.change(Change::Remove, &name, std::slice::from_ref(value)).await?;
            }
            Publisher::Hook(hook) => hook.run(Task::Cleanup, name, value).await?,
        }
        Ok(())
    }

    /// Where the records have to be: the name may be an alias of one that others serve.
    async fn behind_aliases(&self) -> Name {
        let Some(lookup) = &self.lookup else { return self.name.clone() };
        lookup.behind_aliases(&self.name).await.unwrap_or_else(|error| {
            tracing::debug!(%error, "cannot see whether the name of the challenge is an alias");
            self.name.clone()
        })
    }

    /// Authorities count failures, so that they are not asked to look before there is something to be seen. Where that cannot
    /// be told, it is for the authority to say.
    async fn wait_until_seen(&self, name: &Name, values: &[String]) -> Result<(), ChallengeError> {
        let Some(lookup) = &self.lookup else { return Ok(()) };
        let authority = match lookup.authority(name).await {
            Ok(authority) => authority,
            Err(error) => {
                tracing::warn!(%error, "cannot see whether the TXT records are there; asking the authority all the same");
                return Ok(());
            }
        };
        let begin = Instant::now();
        loop {
            let Some(servers) = authority.lacking(name, values).await else {
                // As behind a firewall that lets only the resolver be asked.
                tracing::warn!(%name, "no name server of the zone answers; asking the authority all the same");
                return Ok(());
            };
            if servers.is_empty() {
                return Ok(());
            }
            if begin.elapsed() > SEEN_WITHIN {
                return Err(ChallengeError::Unseen { name: name.to_string(), servers });
            }
            sleep(LOOK_EVERY).await;
        }
    }
}

/// How the world sees the records that prove the domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DnsConfig {
    /// The relay is the name server of the domain, or of the challenge's name alone.
    Own(OwnDns),
    /// Another name server takes updates.
    Updates(dns::UpdateConfig),
    /// A program sets them.
    Hook {
        /// The program.
        program: PathBuf,
    },
    /// It does not see any: the certificate is for the domain alone, without a wildcard, and it is proved at the port where it is
    /// served.
    AtOurPort,
}

/// The relay's own name server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnDns {
    /// Where it listens; empty for port 53 of the public addresses.
    pub listen: Vec<std::net::SocketAddr>,
    /// Its name in the parent zone.
    pub name: String,
}

impl DnsConfig {
    /// The relay's own name server, where it is that.
    pub fn own(&self) -> Option<&OwnDns> {
        match self {
            Self::Own(own) => Some(own),
            Self::Updates(_) | Self::Hook { .. } | Self::AtOurPort => None,
        }
    }
}
