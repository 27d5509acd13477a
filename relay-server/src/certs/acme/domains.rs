//! Certificates for custom domains: names of others' that lead to the relay, each proved and renewed by itself, at the
//! relay's own port (TLS-ALPN-01, RFC 8737).
//!
//! ```text
//!   a token's by the operator's word ─────────────┐
//!   a token's by a record that only it can name ──┴─▶ leads here ─▶ order ─▶ shown to who asks for the domain
//! ```
//!
//! Authorities count orders and failures by account, so that nothing is asked for before both are seen, again with each
//! renewal, and only so much in an hour. What was asked for, and in vain, is kept: a relay that restarts often asks no more.
//! A few are asked for at once, so that one which takes its time keeps nobody waiting; first those that have none.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, DirBuilder};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use rustls::pki_types::CertificateDer;
use tokio::sync::{Notify, Semaphore};
use tokio::time::{sleep, timeout};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::kept::{self, Kept, KeptFailures};
use super::order::{self, Issued};
use super::{ATTEMPT, Acme, AcmeError, DELEGATION, LOOK_AGAIN, RETRIES_S, due_between, fraction_of, identifier, read};
use crate::Shared;
use crate::certs::{Certificates, files};
use crate::clock::unix_now;
use crate::dns::{self, Lookup, LookupError};
use crate::store::{AuthError, Held, Name, Owner, TokenId};

/// Orders in an hour. Let's Encrypt allows an account 300 in three hours, and some are for the relay itself.
const ORDERS: usize = 50;
/// Those of one token, so that nobody's domains keep those of others waiting.
const ORDERS_EACH: usize = 10;
const HOUR_S: i64 = 3600;
/// The longest wait for what fails again and again. Most of it is the domain's owner's to mend, as a CAA record.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// For one look whether a domain is a client's, who waits for that.
const PROOF: Duration = Duration::from_secs(5);

/// Domains whose certificates are seen to at once. Each may take as long as [`ATTEMPT`].
const AT_ONCE: usize = 4;

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
    /// When the orders of the last hour were placed, and for whom. As it is kept.
    placed: Mutex<VecDeque<(i64, TokenId)>>,
    /// For those who look up what clients name.
    turns: Semaphore,
    changed: Notify,
}

#[derive(Clone, Debug, Default)]
struct State {
    /// When it is next looked after, in seconds since 1970.
    due: i64,
    /// When its certificate is soon over; 0 where it has none.
    urgent: i64,
    /// How often the authority was asked in vain.
    failures: usize,
    /// How often, since then, nothing was to be asked for.
    looks: u32,
    /// What has stood in the way since the last certificate, or of the first.
    trouble: Option<String>,
    /// Somebody sees to it just now.
    busy: bool,
    /// How often somebody has said that it is, or is not, anybody's.
    asked: u32,
    /// The operator keeps it out.
    blocked: bool,
}

impl State {
    /// Of a domain with this certificate, when nothing is known of it but that.
    fn with(leaf: &CertificateDer<'_>, now: i64) -> Self {
        let due = due_between(leaf, None).unwrap_or_default();
        // The authority may want it sooner (RFC 9773). It is asked at no particular moment, because there may be many.
        let look = now.saturating_add(fraction_of(seconds(LOOK_AGAIN), fastrand::f64()));
        Self { due: due.min(look), urgent: urgent(leaf), ..Self::default() }
    }
}

/// When a certificate is soon over: behind five sixths of its life.
fn urgent(leaf: &CertificateDer<'_>) -> i64 {
    let Ok((_, leaf)) = X509Certificate::from_der(leaf) else { return 0 };
    let (begin, end) = (leaf.validity().not_before.timestamp(), leaf.validity().not_after.timestamp());
    end.saturating_sub(end.saturating_sub(begin) / 6)
}

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
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
    #[error(
        "{domain} does not lead to this machine ({here}) but {found}; where that is this machine all the same, its operator \
         says so by --public-ip"
    )]
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
    /// It, or its token, is kept out.
    #[error("{domain} is blocked by the operator")]
    Blocked {
        /// The domain.
        domain: Name,
    },
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
        kept: &Kept,
        certificates: Arc<Certificates>,
        lookup: Option<Lookup>,
        public: Vec<IpAddr>,
    ) -> Result<Self, AcmeError> {
        let directory = directory.join("domains");
        let at = |error: io::Error| AcmeError::Io { path: directory.clone(), error };
        DirBuilder::new().recursive(true).mode(0o700).create(&directory).map_err(at)?;
        let (mut states, now) = (BTreeMap::<Name, State>::new(), unix_now());
        for entry in fs::read_dir(&directory).map_err(at)?.flatten() {
            let path = entry.path();
            let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".pem"));
            let Some(name) = name.and_then(|name| Name::parse(name).ok()) else { continue };
            match files::read_pair(&path, &path) {
                Ok(pair) => {
                    let state = pair.cert.first().map(|leaf| State::with(leaf, now)).unwrap_or_default();
                    states.insert(name.clone(), state);
                    certificates.put_for(name.as_str(), pair);
                }
                Err(error) => tracing::warn!(%error, "a certificate that was kept cannot be used"),
            }
        }
        for (name, KeptFailures { failures, due }) in kept.failures() {
            let state = states.entry(name).or_default();
            // No longer than it could have been: the clock may have been wrong.
            let due = due.min(now.saturating_add(seconds(LONGEST)));
            (state.failures, state.due) = (failures, due);
            state.trouble = Some("the authority was asked in vain before the relay was started".to_owned());
        }
        let (states, placed) = (Mutex::new(states), Mutex::new(kept.placed()));
        let (turns, changed) = (Semaphore::new(LOOKS), Notify::new());
        Ok(Self { directory, certificates, lookup, public, states, placed, turns, changed })
    }

    /// From now on the domain is to have a certificate. False where there are as many as may be already.
    pub(crate) fn want(&self, domain: &Name, most: usize) -> bool {
        let mut states = self.states();
        let is_full = states.len() >= most;
        match states.entry(domain.clone()) {
            Entry::Vacant(_) if is_full => return false,
            Entry::Vacant(entry) => drop(entry.insert(State::default())),
            Entry::Occupied(mut entry) => {
                let state = entry.get_mut();
                state.asked = state.asked.wrapping_add(1);
                // What stood in the way may have been mended. An authority is not asked earlier for that.
                if state.looks == 0 {
                    return true;
                }
                (state.looks, state.due) = (0, 0);
            }
        }
        drop(states);
        self.changed.notify_one();
        true
    }

    /// Somebody has given the domain up: it is seen whose it is now.
    pub(crate) fn look_again(&self, domain: &Name) {
        if let Some(state) = self.states().get_mut(domain) {
            (state.due, state.asked) = (0, state.asked.wrapping_add(1));
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

    /// Others are kept out than before.
    pub(crate) fn look_at_blocked(&self) {
        self.states().values_mut().filter(|state| state.blocked).for_each(|state| state.due = 0);
        self.changed.notify_one();
    }

    /// Something has changed: whoever waits looks again.
    pub(super) fn wake(&self) {
        self.changed.notify_one();
    }

    /// Whether the world sees the record that shows that `domain` belongs to whoever has this value, and all values that it sees there.
    async fn check_proof(&self, domain: &Name, value: &str) -> Result<Vec<String>, DomainError> {
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
        if texts.iter().any(|text| text == value) { Ok(texts) } else { Err(unproven()) }
    }

    /// Whether whoever looks the domain up comes to this machine. Where that cannot be told, it is for the authority to say.
    pub(super) async fn check_address(&self, domain: &Name) -> Result<(), DomainError> {
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

    /// Keeps the certificates fresh, once the relay has its own.
    pub(super) async fn keep_fresh(&self, acme: &Acme, shared: &Shared) {
        let mut under_way = FuturesUnordered::new();
        loop {
            let now = unix_now();
            let has_room = under_way.len() < AT_ONCE && acme.certificates.current().is_some();
            if let Some((domain, state)) = has_room.then(|| self.take_due(now)).flatten() {
                under_way.push(Box::pin(self.see_to(acme, shared, domain, state)));
                continue;
            }
            let next = self.states().values().filter(|state| !state.busy).map(|state| state.due).min();
            // Where something is due that there is no room for, whatever ends makes some.
            let wait = next.filter(|_| has_room).map_or(LOOK_AGAIN, |due| {
                Duration::from_secs(u64::try_from(due.saturating_sub(now)).unwrap_or_default()).min(LOOK_AGAIN)
            });
            tokio::select! {
                Some(()) = under_way.next() => {}
                () = self.changed.notified() => {}
                () = sleep(wait) => {}
            }
        }
    }

    /// The domain that is to be seen to first: renewals can wait, those that have no certificate, or soon none, cannot.
    fn take_due(&self, now: i64) -> Option<(Name, State)> {
        let mut states = self.states();
        let due = states.iter_mut().filter(|(_, state)| !state.busy && state.due <= now);
        let (domain, state) = due.min_by_key(|(_, state)| (state.urgent > now, state.due))?;
        state.busy = true;
        Some((domain.clone(), state.clone()))
    }

    /// Sees to one domain, which is `busy` until this ends.
    async fn see_to(&self, acme: &Acme, shared: &Shared, domain: Name, before: State) {
        let attempt = Box::pin(timeout(ATTEMPT, self.obtain(acme, shared, &domain)));
        let attempt = attempt.await.unwrap_or(Err(AcmeError::Slow));
        self.certificates.prove(domain.as_str(), None);
        let now = unix_now();
        let state = match attempt {
            Ok(due) if due > now => {
                self.keep_failures(acme, &domain, None);
                let look = now.saturating_add(seconds(LOOK_AGAIN.mul_f64(1.0 + fastrand::f64() / 10.0)));
                let urgent = self.leaf(&domain).map(|leaf| urgent(&leaf)).unwrap_or_default();
                State { due: due.min(look), urgent, ..State::default() }
            }
            Ok(_) => self.fail(shared, acme, &domain, before.clone(), &AcmeError::Clock),
            Err(AcmeError::Domain(DomainError::Nobodys { .. })) => return self.forget(shared, acme, &domain, &before),
            Err(AcmeError::Domain(error @ DomainError::Blocked { .. })) => {
                tracing::info!(%domain, %error, "no certificate for a custom domain");
                let trouble = Some(error.to_string());
                State { due: now.saturating_add(seconds(LOOK_AGAIN)), blocked: true, trouble, ..before.clone() }
            }
            Err(error) => self.fail(shared, acme, &domain, before.clone(), &error),
        };
        let mut states = self.states();
        let Some(known) = states.get_mut(&domain) else { return };
        // Somebody wants it looked at once more. An authority that has just refused is not asked earlier for that.
        let is_wanted = known.asked != before.asked && state.failures <= before.failures;
        let due = if is_wanted { known.due.min(state.due) } else { state.due };
        *known = State { due, busy: false, asked: known.asked, ..state };
    }

    /// Knows nothing of the domain any more, unless it has become somebody's in this moment.
    fn forget(&self, shared: &Shared, acme: &Acme, domain: &Name, before: &State) {
        let mut states = self.states();
        if let Some(state) = states.get_mut(domain).filter(|state| state.asked != before.asked) {
            (state.busy, state.due) = (false, 0);
            drop(states);
            return self.changed.notify_one();
        }
        states.remove(domain);
        self.certificates.take_from(domain.as_str());
        drop(states);
        shared.registry.forget(domain.as_str(), None);
        self.keep_failures(acme, domain, None);
        if let Err(error) = acme.kept.order_of(domain).set(None) {
            tracing::warn!(%error, %domain, "an order for a domain that is nobody's any more was not removed");
        }
        match fs::remove_file(self.path(domain)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, %domain, "the certificate of a domain that is nobody's any more was not removed");
            }
            _ => tracing::info!(%domain, "a custom domain is nobody's any more"),
        }
    }

    /// When it is tried again.
    fn fail(&self, shared: &Shared, acme: &Acme, domain: &Name, before: State, error: &AcmeError) -> State {
        shared.metrics.certificate_failures.inc();
        let mut state = State { blocked: false, trouble: Some(error.to_string()), ..before };
        let is_ours = matches!(error, AcmeError::Domain(_));
        let wait = if is_ours {
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
        let retry_s = seconds(wait.mul_f64(1.0 + fastrand::f64() / 10.0));
        state.due = unix_now().saturating_add(retry_s);
        if !is_ours {
            self.keep_failures(acme, domain, Some(KeptFailures { failures: state.failures, due: state.due }));
        }
        tracing::error!(%domain, %error, retry_s, "no certificate for a custom domain");
        state
    }

    fn keep_failures(&self, acme: &Acme, domain: &Name, failures: Option<KeptFailures>) {
        if let Err(error) = acme.kept.set_failures(domain, failures) {
            tracing::error!(%error, %domain, "how often a certificate was asked for in vain is not kept: the next start may ask at once");
        }
    }

    /// When the domain is to be seen to again: it has got a certificate, or has one that is not to be renewed yet.
    async fn obtain(&self, acme: &Acme, shared: &Shared, domain: &Name) -> Result<i64, AcmeError> {
        let owner = self.owner(shared, domain).await?;
        if shared.blocks.has_name(domain.as_str()) || shared.blocks.has_token(owner.token) {
            return Err(DomainError::Blocked { domain: domain.clone() }.into());
        }
        let (path, authority) = (self.path(domain), &acme.config.directory);
        // Only that authority says when it wants it renewed, or takes another in its place.
        let old = self.leaf(domain).filter(|_| kept::issued_by(&path).as_ref() == Some(authority));
        if let Some(old) = &old {
            let due = acme.due(old).await;
            if due > unix_now() {
                return Ok(due);
            }
        }
        self.check_owner(shared, domain, owner).await?;
        self.check_address(domain).await?;
        let renews = acme.way.directory(authority).await?.renews();
        let replaces = old.as_ref().filter(|_| renews).and_then(identifier);
        let may = || self.count_order(acme, owner.token);
        let Issued { key, chain } = order::obtain_at_our_port(acme, domain, replaces, &may).await?;
        let usable = read(&key, &chain, &[domain.as_str().to_owned()]);
        if usable.is_err() {
            // Its order would only give it again.
            acme.kept.order_of(domain).set(None)?;
        }
        let usable = usable?;
        let leaf = usable.cert.first().cloned();
        self.certificates.put_for(domain.as_str(), usable);
        match kept::keep_certificate(&path, authority, &key, &chain) {
            Ok(()) => acme.kept.order_of(domain).set(None)?,
            // It is in use all the same, and its order leads to it once more.
            Err(error) => tracing::error!(%error, %domain, "the certificate of a custom domain was not kept"),
        }
        shared.metrics.certificates_obtained.inc();
        tracing::info!(%domain, "a certificate for a custom domain is in use");
        Ok(match leaf {
            Some(leaf) => acme.due(&leaf).await,
            None => 0,
        })
    }

    /// The certificate that is shown for a domain.
    fn leaf(&self, domain: &Name) -> Option<CertificateDer<'static>> {
        self.certificates.of_domain(domain.as_str())?.cert.first().cloned()
    }

    /// Whose the domain is.
    async fn owner(&self, shared: &Shared, domain: &Name) -> Result<Owner, AcmeError> {
        let unseen = |reason: String| DomainError::Unseen { domain: domain.clone(), reason };
        let owner = shared.store.owner(domain, unix_now()).await.map_err(|error| unseen(error.to_string()))?;
        let nobodys = || DomainError::Nobodys { domain: domain.clone() }.into();
        let owner = owner.filter(|owner| owner.held != Held::Resting).ok_or_else(nobodys)?;
        if owner.held == Held::Leased {
            match shared.store.check_token(owner.token, unix_now()).await {
                Ok(()) => {}
                Err(AuthError::Store(error)) => return Err(unseen(error.to_string()).into()),
                Err(_) => return Err(nobodys()),
            }
        }
        Ok(owner)
    }

    /// Whether the domain is still whose it was, by the operator's word or by the record.
    async fn check_owner(&self, shared: &Shared, domain: &Name, owner: Owner) -> Result<(), DomainError> {
        match owner.held {
            Held::Reserved => Ok(()),
            Held::Leased | Held::Resting => self.check_proof_of(shared, domain, owner.token).await.map(drop),
        }
    }

    /// Whether the world sees the record of this token, and all values that it sees there.
    ///
    /// # Errors
    /// Where it does not, or where that cannot be told.
    pub(crate) async fn check_proof_of(
        &self,
        shared: &Shared,
        domain: &Name,
        token: TokenId,
    ) -> Result<Vec<String>, DomainError> {
        let value = shared.store.domain_proof(token, domain).await;
        let value = value.map_err(|error| DomainError::Unseen { domain: domain.clone(), reason: error.to_string() })?;
        self.check_proof(domain, &value).await
    }

    fn count_order(&self, acme: &Acme, token: TokenId) -> Result<(), AcmeError> {
        let mut placed = self.placed.lock().unwrap_or_else(PoisonError::into_inner);
        let now = unix_now();
        // Those that are to come are of a clock that was wrong.
        placed.retain(|(at, _)| (0..HOUR_S).contains(&now.saturating_sub(*at)));
        let own = placed.iter().filter(|(_, of)| *of == token).count();
        if placed.len() >= ORDERS || own >= ORDERS_EACH {
            return Err(DomainError::Often.into());
        }
        placed.push_back((now, token));
        // Before it is placed: one that nobody remembers could be placed as often as the relay starts.
        acme.kept.set_placed(&placed)
    }

    fn path(&self, domain: &Name) -> PathBuf {
        self.directory.join(format!("{domain}.pem"))
    }

    fn states(&self) -> MutexGuard<'_, BTreeMap<Name, State>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;

    fn domains(place: &Path) -> (Domains, Kept) {
        let kept = Kept::open(place, "https://ca.example/dir").unwrap();
        let certificates = Arc::new(Certificates::of(None));
        (Domains::open(place, &kept, certificates, None, Vec::new()).unwrap(), kept)
    }

    fn name(text: &str) -> Name {
        Name::parse(text).unwrap()
    }

    #[test]
    fn who_has_no_certificate_comes_before_renewals_and_nobody_twice() {
        let place = tempfile::tempdir().unwrap();
        let (domains, _) = domains(place.path());
        let now = 1000;
        for (domain, due, urgent) in [
            ("renewal.example", 1, 5000),
            ("over.example", 3, 900),
            ("first.example", 2, 0),
            ("later.example", 1001, 0),
        ] {
            domains.states().insert(name(domain), State { due, urgent, ..State::default() });
        }
        let taken: Vec<_> =
            std::iter::from_fn(|| domains.take_due(now)).map(|(domain, _)| domain.to_string()).collect();
        assert_eq!(taken, ["first.example", "over.example", "renewal.example"]);
    }

    #[test]
    fn what_was_asked_in_vain_is_known_after_a_restart() {
        let place = tempfile::tempdir().unwrap();
        let (_, kept) = domains(place.path());
        let now = unix_now();
        let (soon, wrong) = (name("soon.example"), name("wrong.example"));
        kept.set_failures(&soon, Some(KeptFailures { failures: 2, due: now + 60 })).unwrap();
        // By a clock that was a year ahead.
        kept.set_failures(&wrong, Some(KeptFailures { failures: 1, due: now + 365 * 24 * 3600 })).unwrap();
        let (domains, kept) = self::domains(place.path());
        assert!(domains.want(&soon, 10) && domains.take_due(now).is_none());
        let states = domains.states().clone();
        assert_eq!((states[&soon].failures, states[&soon].due), (2, now + 60));
        assert!(states[&wrong].due <= unix_now() + seconds(LONGEST));
        kept.set_failures(&soon, None).unwrap();
        assert_eq!(self::domains(place.path()).0.states().len(), 1);
    }
}
