//! Certificates for custom domains: names of others' that lead to the relay, each proved and renewed by itself, at the
//! relay's own port (TLS-ALPN-01, RFC 8737).
//!
//! ```text
//!   a token's by the operator's word ─────────────┐
//!   a token's by a record that only it can name ──┴─▶ leads here ─▶ order ─▶ shown to who asks for the domain
//! ```
//!
//! Authorities count orders and failures by account, so that nothing is asked for before both are seen, again with each
//! renewal, and only so much in an hour.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, DirBuilder};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};
use tokio::time::timeout;

use super::order::{self, Issued};
use super::{ATTEMPT, Acme, AcmeError, DELEGATION, LOOK_AGAIN, RETRIES_S, due_between, read};
use crate::Shared;
use crate::certs::{Certificates, files, replace};
use crate::clock::unix_now;
use crate::dns::{self, Lookup, LookupError};
use crate::store::{AuthError, Name, Owner, TokenId};

/// Orders in an hour. Let's Encrypt allows an account 300 in three hours, and some are for the relay itself.
const ORDERS: usize = 50;
/// Those of one token, so that nobody's domains keep those of others waiting.
const ORDERS_EACH: usize = 10;
const HOUR_S: i64 = 3600;
/// The longest wait for what fails again and again. Most of it is the domain's owner's to mend, as a CAA record.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// For one look whether a domain is a client's, who waits for that.
const PROOF: Duration = Duration::from_secs(5);

/// Domains that are looked up at once because clients name them; others wait.
const LOOKS: usize = 8;

/// The custom domains, and how their certificates are.
#[derive(Debug)]
pub(crate) struct Domains {
    directory: PathBuf,
    certificates: Arc<Certificates>,
    /// None where nobody is to be asked.
    lookup: Option<Lookup>,
    /// Where the world reaches this machine; empty where that is not known.
    public: Vec<IpAddr>,
    states: Mutex<BTreeMap<Name, State>>,
    /// When the orders of the last hour were made, and for whom.
    orders: Mutex<VecDeque<(i64, TokenId)>>,
    /// For those who look up what clients name.
    turns: Semaphore,
    changed: Notify,
}

#[derive(Clone, Debug, Default)]
struct State {
    /// When it is next looked after, in seconds since 1970.
    due: i64,
    /// How often the authority was asked in vain.
    failures: usize,
    /// How often, since then, nothing was to be asked for.
    looks: u32,
    /// What has stood in the way since the last certificate, or of the first.
    trouble: Option<String>,
}

/// Why a domain has no certificate, or no tunnel.
#[derive(Debug, thiserror::Error)]
pub enum DomainError {
    /// Nobody has said that it is the token's.
    #[error("{domain} is not known to be yours: there is no TXT record {record} with the value {value}")]
    Unproven {
        /// The domain.
        domain: Name,
        /// Where the record has to be.
        record: String,
        /// What it has to say.
        value: String,
    },
    /// It cannot be looked up.
    #[error("it cannot be seen whether {domain} is yours: {reason}")]
    Unseen {
        /// The domain.
        domain: Name,
        /// Why.
        reason: String,
    },
    /// Senders do not come to this machine.
    #[error("{domain} does not lead to this machine ({here}) but {found}")]
    Astray {
        /// The domain.
        domain: Name,
        /// Where it leads.
        found: String,
        /// Where it should.
        here: String,
    },
    /// As much as may be has been asked for.
    #[error("as many certificates as may be were asked for within an hour: {ORDERS}, or {ORDERS_EACH} for one token")]
    Often,
    /// It is nobody's any more.
    #[error("{domain} belongs to no token any more")]
    Nobodys {
        /// The domain.
        domain: Name,
    },
}

/// The name of the record that shows whose a domain is.
pub(crate) fn record_of(domain: &Name) -> String {
    format!("_relay-challenge.{domain}")
}

impl Domains {
    /// Takes up the certificates that are kept. Blocks on the file system.
    pub(super) fn open(
        directory: &Path,
        certificates: Arc<Certificates>,
        lookup: Option<Lookup>,
        public: Vec<IpAddr>,
    ) -> Result<Self, AcmeError> {
        let directory = directory.join("domains");
        let at = |error: io::Error| AcmeError::Io { path: directory.clone(), error };
        DirBuilder::new().recursive(true).mode(0o700).create(&directory).map_err(at)?;
        let mut states = BTreeMap::new();
        for entry in fs::read_dir(&directory).map_err(at)?.flatten() {
            let path = entry.path();
            let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".pem"));
            let Some(name) = name.and_then(|name| Name::parse(name).ok()) else { continue };
            match files::read_pair(&path, &path) {
                Ok(pair) => {
                    let due = pair.cert.first().and_then(|leaf| due_between(leaf, None)).unwrap_or_default();
                    states.insert(name.clone(), State { due, ..State::default() });
                    certificates.put_for(name.as_str(), pair);
                }
                Err(error) => tracing::warn!(%error, "a certificate that was kept cannot be used"),
            }
        }
        let (states, orders) = (Mutex::new(states), Mutex::default());
        let turns = Semaphore::new(LOOKS);
        Ok(Self { directory, certificates, lookup, public, states, orders, turns, changed: Notify::new() })
    }

    /// From now on the domain is to have a certificate. False where there are as many as may be already.
    pub(crate) fn want(&self, domain: &Name, most: usize) -> bool {
        let mut states = self.states();
        let is_full = states.len() >= most;
        match states.entry(domain.clone()) {
            Entry::Vacant(_) if is_full => return false,
            Entry::Vacant(entry) => drop(entry.insert(State::default())),
            // What stood in the way may have been mended. An authority is not asked earlier for that.
            Entry::Occupied(mut entry) if entry.get().looks > 0 => {
                let state = entry.get_mut();
                (state.due, state.looks) = (0, 0);
            }
            Entry::Occupied(_) => return true,
        }
        drop(states);
        self.changed.notify_one();
        true
    }

    /// Somebody has given the domain up: it is seen whose it is now.
    pub(crate) fn look_again(&self, domain: &Name) {
        if let Some(state) = self.states().get_mut(domain) {
            state.due = 0;
        }
        self.changed.notify_one();
    }

    /// How many there are, and in the way of how many certificates something stands.
    pub(crate) fn count(&self) -> (usize, usize) {
        let states = self.states();
        (states.len(), states.values().filter(|state| state.trouble.is_some()).count())
    }

    /// All of them, with what stands in the way of the next certificate of each.
    pub(crate) fn list(&self) -> Vec<(Name, Option<String>)> {
        self.states().iter().map(|(domain, state)| (domain.clone(), state.trouble.clone())).collect()
    }

    /// Something has changed: whoever waits looks again.
    pub(super) fn wake(&self) {
        self.changed.notify_one();
    }

    /// Whether the world sees the record that shows that `domain` belongs to whoever has this value.
    ///
    /// # Errors
    /// Where it does not, or where that cannot be told.
    pub(crate) async fn check_proof(&self, domain: &Name, value: &str) -> Result<(), DomainError> {
        let record = record_of(domain);
        let unseen = |reason: String| DomainError::Unseen { domain: domain.clone(), reason };
        let lookup = self.lookup.as_ref().ok_or_else(|| unseen("the relay asks nobody for names".to_owned()))?;
        let name = dns::absolute(&record).map_err(|error| unseen(error.to_string()))?;
        let look = async {
            // It is never closed.
            let _turn = self.turns.acquire().await.map_err(|error| unseen(error.to_string()))?;
            lookup.texts(&name).await.map_err(|error| unseen(error.to_string()))
        };
        let slow = |_| Err(unseen(format!("the name servers did not answer within {} s", PROOF.as_secs())));
        let texts = timeout(PROOF, look).await.unwrap_or_else(slow)?;
        let unproven = || DomainError::Unproven { domain: domain.clone(), record, value: value.to_owned() };
        if texts.iter().any(|text| text == value) { Ok(()) } else { Err(unproven()) }
    }

    /// Whether whoever looks the domain up comes to this machine. Where that cannot be told, it is for the authority to say.
    async fn check_address(&self, domain: &Name) -> Result<(), DomainError> {
        let Some(lookup) = self.lookup.as_ref().filter(|_| !self.public.is_empty()) else { return Ok(()) };
        let Ok(name) = dns::absolute(domain.as_str()) else { return Ok(()) };
        let found = match lookup.addresses(&name).await {
            Ok(found) => found,
            Err(error @ LookupError::Failed { .. }) => {
                return Err(DomainError::Unseen { domain: domain.clone(), reason: error.to_string() });
            }
            Err(_) => return Ok(()),
        };
        let shown = |ips: &[IpAddr]| ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        if !found.is_empty() && found.iter().all(|ip| self.public.contains(ip)) {
            return Ok(());
        }
        let there = if found.is_empty() { "nowhere".to_owned() } else { format!("to {}", shown(&found)) };
        Err(DomainError::Astray { domain: domain.clone(), found: there, here: shown(&self.public) })
    }

    /// Keeps the certificates fresh, once the relay has its own: one after the other.
    pub(super) async fn keep_fresh(&self, acme: &Acme, shared: &Shared) {
        loop {
            let now = unix_now();
            let next = self.next().filter(|_| acme.certificates.current().is_some());
            let Some((domain, due)) = next else {
                self.changed.notified().await;
                continue;
            };
            if due > now {
                let wait = Duration::from_secs(u64::try_from(due - now).unwrap_or_default()).min(LOOK_AGAIN);
                // Whichever comes first.
                let _ = timeout(wait, self.changed.notified()).await;
                continue;
            }
            let attempt = Box::pin(timeout(ATTEMPT, self.obtain(acme, shared, &domain)));
            let attempt = attempt.await.unwrap_or(Err(AcmeError::Slow));
            self.certificates.prove(domain.as_str(), None);
            match attempt {
                Ok(due) if due > unix_now() => self.set(&domain, State { due, ..State::default() }),
                Ok(_) => self.fail(shared, acme, &domain, &AcmeError::Clock),
                Err(AcmeError::Domain(DomainError::Nobodys { .. })) => self.forget(&domain),
                Err(error) => self.fail(shared, acme, &domain, &error),
            }
        }
    }

    fn next(&self) -> Option<(Name, i64)> {
        let states = self.states();
        states.iter().map(|(domain, state)| (domain.clone(), state.due)).min_by_key(|(_, due)| *due)
    }

    fn set(&self, domain: &Name, state: State) {
        self.states().insert(domain.clone(), state);
    }

    fn forget(&self, domain: &Name) {
        self.states().remove(domain);
        self.certificates.take_from(domain.as_str());
        match fs::remove_file(self.path(domain)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, %domain, "the certificate of a domain that is nobody's any more was not removed");
            }
            _ => tracing::info!(%domain, "a custom domain is nobody's any more"),
        }
    }

    fn fail(&self, shared: &Shared, acme: &Acme, domain: &Name, error: &AcmeError) {
        shared.metrics.certificate_failures.inc();
        let mut state = self.states().get(domain).cloned().unwrap_or_default();
        state.trouble = Some(error.to_string());
        let wait = if let AcmeError::Domain(_) = error {
            // Nobody counts how often name servers are asked.
            let [first, longest] = DELEGATION;
            state.looks = state.looks.saturating_add(1);
            first.saturating_mul(2_u32.saturating_pow(state.looks - 1)).min(longest)
        } else {
            state.looks = 0;
            state.failures += 1;
            let wait =
                RETRIES_S.get(state.failures - 1).or(RETRIES_S.last()).copied().map_or(LOOK_AGAIN, Duration::from_secs);
            let beyond = u32::try_from(state.failures.saturating_sub(RETRIES_S.len())).unwrap_or(u32::MAX);
            wait.saturating_mul(2_u32.saturating_pow(beyond)).min(LONGEST)
        };
        let wait = wait.max(acme.way.take_pause().unwrap_or_default());
        let retry_s = i64::try_from(wait.mul_f64(1.0 + fastrand::f64() / 10.0).as_secs()).unwrap_or(HOUR_S);
        state.due = unix_now().saturating_add(retry_s);
        self.set(domain, state);
        tracing::error!(%domain, %error, retry_s, "no certificate for a custom domain");
    }

    /// When the certificate that it gets is to be renewed.
    async fn obtain(&self, acme: &Acme, shared: &Shared, domain: &Name) -> Result<i64, AcmeError> {
        let token = self.check_owner(shared, domain).await?;
        self.check_address(domain).await?;
        self.count_order(token)?;
        let names = [domain.as_str().to_owned()];
        let Issued { key, chain } = order::obtain_at_our_port(acme, domain.as_str(), &self.certificates).await?;
        let usable = read(&key, &chain, &names)?;
        let due = usable.cert.first().and_then(|leaf| due_between(leaf, None)).unwrap_or_default();
        self.certificates.put_for(domain.as_str(), usable);
        let path = self.path(domain);
        if let Err(error) = replace(&path, &format!("{key}{chain}"), 0o600) {
            // It is in use all the same. Another one would not be kept either, and the authority counts them.
            tracing::error!(%error, %domain, "the certificate of a custom domain was not kept: the next start asks for another one");
        }
        shared.metrics.certificates_obtained.inc();
        tracing::info!(%domain, "a certificate for a custom domain is in use");
        Ok(due)
    }

    /// Whose the domain is still, by the operator's word or by the record.
    async fn check_owner(&self, shared: &Shared, domain: &Name) -> Result<TokenId, AcmeError> {
        let unseen = |reason: String| DomainError::Unseen { domain: domain.clone(), reason };
        let owner = shared.store.owner(domain, unix_now()).await.map_err(|error| unseen(error.to_string()))?;
        match owner {
            None => Err(DomainError::Nobodys { domain: domain.clone() }.into()),
            Some(Owner { reserved: true, token }) => Ok(token),
            Some(Owner { token, .. }) => match shared.store.check_token(token, unix_now()).await {
                Ok(()) => {
                    self.check_proof_of(shared, domain, token).await?;
                    Ok(token)
                }
                Err(AuthError::Store(error)) => Err(unseen(error.to_string()).into()),
                Err(_) => Err(DomainError::Nobodys { domain: domain.clone() }.into()),
            },
        }
    }

    /// Whether the world sees the record of this token.
    ///
    /// # Errors
    /// As [`Domains::check_proof`].
    pub(crate) async fn check_proof_of(
        &self,
        shared: &Shared,
        domain: &Name,
        token: TokenId,
    ) -> Result<(), DomainError> {
        let value = shared.store.domain_proof(token, domain).await;
        let value = value.map_err(|error| DomainError::Unseen { domain: domain.clone(), reason: error.to_string() })?;
        self.check_proof(domain, &value).await
    }

    fn count_order(&self, token: TokenId) -> Result<(), DomainError> {
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        let now = unix_now();
        orders.retain(|(at, _)| now.saturating_sub(*at) < HOUR_S);
        let own = orders.iter().filter(|(_, of)| *of == token).count();
        if orders.len() >= ORDERS || own >= ORDERS_EACH {
            return Err(DomainError::Often);
        }
        orders.push_back((now, token));
        Ok(())
    }

    fn path(&self, domain: &Name) -> PathBuf {
        self.directory.join(format!("{domain}.pem"))
    }

    fn states(&self) -> MutexGuard<'_, BTreeMap<Name, State>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
