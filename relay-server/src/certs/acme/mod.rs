//! Certificates from an authority on the internet, asked for by the relay itself (ACME, RFC 8555).
//!
//! One task asks for the first certificate, and for each next one in time. The one in use stays until another works. That
//! the domain is ours is proved by a [record in DNS](challenge) (DNS-01, section 8.4), which alone is accepted for a
//! wildcard: in [our own](crate::dns), unless the operator has another place for it. Without a wildcard it is proved at the
//! port where the domain is served.

mod authority;
mod challenge;
mod domains;
mod hook;
mod kept;
mod order;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join;
use instant_acme::CertificateIdentifier;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, Der, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::prelude::{FromDer as _, GeneralName, ParsedExtension, X509Certificate};

pub(crate) use self::authority::is_secure;
use self::authority::{Directory, Way};
use self::challenge::ChallengeError;
pub(crate) use self::challenge::{Challenge, Publisher};
pub use self::challenge::{DnsConfig, OwnDns};
pub use self::domains::DomainError;
pub(crate) use self::domains::{Domains, record_of};
pub(crate) use self::hook::Hook;
use self::kept::Kept;
use self::order::Issued;
use super::{Certificates, certified_key, files};
use crate::Shared;
use crate::clock::unix_now;
use crate::dns::{self, Delegation, Parent};
use crate::outgoing::{Outgoing, OutgoingError};
use crate::store::Name;

/// The waits after one failure, two, and so on; the last one holds for all further ones. Authorities count failures by
/// the hour: Let's Encrypt allows five of a name.
const RETRIES_S: [u64; 5] = [60, 300, 900, 1800, 3600];

/// The first wait for the zone above to hand the domain over, and the longest; each is twice the one before. Nobody counts
/// how often its name servers are asked, and somebody waits who is just setting the record.
const DELEGATION: [Duration; 2] = [Duration::from_secs(10), Duration::from_secs(600)];

/// An authority may want a certificate renewed earlier than it said (RFC 9773, section 4.3); and clocks jump.
const LOOK_AGAIN: Duration = Duration::from_secs(6 * 3600);

/// An order that has not ended by then never will. It is taken up again.
const ATTEMPT: Duration = Duration::from_secs(15 * 60);

/// How the relay gets its certificate by itself (ACME, RFC 8555), and what this takes of DNS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcmeConfig {
    /// Whom the authority writes to.
    pub email: String,
    /// The authority's directory, an https URL.
    pub directory: String,
    /// Further roots (PEM) that are trusted when the directory is asked.
    pub ca: Option<PathBuf>,
    /// The account that the authority wants ours bound to.
    pub external_account: Option<ExternalAccount>,
    /// Where account, order and certificate are kept.
    pub dir: PathBuf,
    /// How the world sees the records that prove the domain.
    pub dns: DnsConfig,
}

/// An account that was made by hand at an authority (RFC 8555, section 7.3.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExternalAccount {
    /// What the authority calls its key.
    pub id: String,
    /// The file with the key, in base64.
    pub key_file: PathBuf,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum AcmeError {
    /// What has to outlive the process, or a key.
    #[error("cannot use {}: {error}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// The key for the external account.
    #[error("{} does not hold a key in base64, as authorities give it for external account binding", path.display())]
    ExternalKey {
        /// The file.
        path: PathBuf,
    },
    /// There is none, and the authority wants one.
    #[error("{url} takes no accounts but those bound to one of its own: give --acme-eab-kid and --acme-eab-key-file")]
    NeedsExternalAccount {
        /// The authority's directory.
        url: String,
    },
    /// Something that should be a directory.
    #[error("{url} is not what ACME expects: {reason}")]
    Directory {
        /// Where it was asked for.
        url: String,
        /// What is there.
        reason: String,
    },
    /// What is signed goes only where nobody listens.
    #[error("{url} is not https")]
    Insecure {
        /// Where it would have gone.
        url: String,
    },
    /// The way to the authority.
    #[error(transparent)]
    Outgoing(#[from] OutgoingError),
    /// The authority has not found what it looked for.
    #[error("the authority does not see that the domain is yours: {reason}")]
    Refused {
        /// Its words.
        reason: String,
    },
    /// What proves the domain is not to be seen.
    #[error("the record that proves the domain is not to be seen: {0}")]
    Challenge(#[from] ChallengeError),
    /// The name server that is to take updates, by what is known before it is asked.
    #[error(transparent)]
    Updates(#[from] dns::UpdateError),
    /// A custom domain.
    #[error(transparent)]
    Domain(#[from] DomainError),
    /// Nothing that we could do.
    #[error("the authority does not offer a challenge by TLS (TLS-ALPN-01)")]
    NoChallengeAtOurPort,
    /// Nothing that we could do.
    #[error("the authority does not offer a challenge by DNS")]
    NoChallenge,
    /// The exchange with the authority.
    #[error(transparent)]
    Acme(#[from] instant_acme::Error),
    /// A key or a request cannot be made.
    #[error("cannot make a certificate request: {0}")]
    Request(#[from] rcgen::Error),
    /// What was issued cannot be used.
    #[error("the authority's certificate cannot be used: {reason}")]
    Unusable {
        /// What is wrong with it.
        reason: String,
    },
    /// What was issued is old already.
    #[error("the new certificate is due to be renewed already: is the clock of this machine right?")]
    Clock,
    /// It took too long.
    #[error("the authority was not done after {} minutes", ATTEMPT.as_secs() / 60)]
    Slow,
    /// The zone above leads elsewhere, so that no order is made: the authority would count it as a failure.
    #[error(
        "no certificate was asked for, because {domain} does not lead to this machine: {found}. Set there: {records}; or, \
         where its other records are to stay, {challenge} in place of the first"
    )]
    Undelegated {
        /// What is to be handed over.
        domain: String,
        /// What the zone above has instead.
        found: String,
        /// What it should have.
        records: String,
        /// What it should have at least.
        challenge: String,
    },
    /// Where the world sees this machine.
    #[error(transparent)]
    Place(#[from] dns::PlaceError),
    /// The zone cannot be made.
    #[error("the zone cannot be served: {0}")]
    Zone(String),
}

/// What is known of the world around, for custom domains.
#[derive(Clone, Debug)]
pub(crate) struct Around {
    /// None where nobody is to be asked.
    pub(crate) lookup: Option<dns::Lookup>,
    /// Where the world reaches this machine, as far as that is known.
    pub(crate) public: Vec<IpAddr>,
}

/// Who keeps the certificate fresh.
#[derive(Debug)]
pub(crate) struct Acme {
    config: AcmeConfig,
    /// The domain first.
    names: Vec<String>,
    /// What is to be in DNS for the relay to be reached, for whoever has to be told.
    records: Vec<String>,
    certificates: Arc<Certificates>,
    challenge: Challenge,
    domains: Arc<Domains>,
    /// Who has to hand the domain over; none where nobody is to be asked.
    parent: Option<Parent>,
    kept: Kept,
    /// Held while there may be no account yet, so that not each of several orders makes one.
    joining: tokio::sync::Mutex<()>,
    way: Way,
}

impl Acme {
    /// Takes up what is kept. Blocks on the file system.
    pub(crate) fn open(
        config: &AcmeConfig,
        domain: &str,
        records: Vec<String>,
        challenge: Challenge,
        parent: Option<Parent>,
        around: Around,
    ) -> Result<Self, AcmeError> {
        let way = Way::new(Outgoing::new(config.ca.as_deref())?);
        let kept = Kept::open(&config.dir, &config.directory)?;
        let path = kept.certificate();
        let first = match path.exists().then(|| files::read_pair(path, path)) {
            Some(Ok(first)) => Some(first),
            Some(Err(error)) => {
                tracing::warn!(%error, "the certificate that was kept cannot be used, another one is asked for");
                None
            }
            None => None,
        };
        let mut names = vec![domain.to_owned()];
        if !challenge.is_at_our_port() {
            names.push(format!("*.{domain}"));
        }
        let certificates = Arc::new(Certificates::of(first));
        let Around { lookup, public } = around;
        let domains = Arc::new(Domains::open(&config.dir, &kept, certificates.clone(), lookup, public)?);
        let (config, joining) = (config.clone(), tokio::sync::Mutex::default());
        Ok(Self { config, names, records, certificates, challenge, domains, parent, kept, joining, way })
    }

    fn domain(&self) -> &str {
        self.names.first().map_or("", String::as_str)
    }

    /// What it keeps fresh.
    pub(crate) fn certificates(&self) -> &Arc<Certificates> {
        &self.certificates
    }

    /// The custom domains that it keeps fresh.
    pub(crate) fn domains(&self) -> &Arc<Domains> {
        &self.domains
    }

    /// Keeps the certificates fresh for as long as the relay lives, or until another process does.
    pub(crate) async fn run(self, shared: Arc<Shared>) {
        let both = Box::pin(join(self.keep_fresh(&shared), self.domains.keep_fresh(&self, &shared)));
        shared.while_in_charge(both).await;
    }

    async fn keep_fresh(&self, shared: &Shared) {
        // How often the authority was asked in vain, and how often the zone above was looked at.
        let (mut failures, mut looks) = (0, 0_u32);
        // What the process before this one has left behind.
        Box::pin(self.challenge.withdraw(&self.kept)).await;
        loop {
            if failures == 0 && looks == 0 {
                self.wait_until_due().await;
            }
            let attempt = Box::pin(tokio::time::timeout(ATTEMPT, self.obtain()));
            let attempt = attempt.await.unwrap_or(Err(AcmeError::Slow));
            // However it has ended.
            Box::pin(self.challenge.withdraw(&self.kept)).await;
            self.certificates.prove(self.domain(), None);
            let error = match attempt {
                Err(error) => error,
                Ok(()) => {
                    shared.metrics.certificates_obtained.inc();
                    if self.own_due() > unix_now() {
                        (failures, looks) = (0, 0);
                        continue;
                    }
                    // Asking at once for another would never end.
                    AcmeError::Clock
                }
            };
            shared.metrics.certificate_failures.inc();
            let planned = if let AcmeError::Undelegated { .. } | AcmeError::Domain(_) = error {
                looks += 1;
                let [first, longest] = DELEGATION;
                first.saturating_mul(2_u32.saturating_pow(looks - 1)).min(longest)
            } else {
                failures += 1;
                RETRIES_S.get(failures - 1).or(RETRIES_S.last()).copied().map_or(LOOK_AGAIN, Duration::from_secs)
            };
            // Up to a tenth more, so that those who failed together do not come back together.
            let planned = planned.mul_f64(1.0 + fastrand::f64() / 10.0);
            let wait = planned.max(self.way.take_pause().unwrap_or_default());
            self.complain(&error, wait);
            tokio::time::sleep(wait).await;
        }
    }

    fn complain(&self, error: &AcmeError, wait: Duration) {
        let retry_s = wait.as_secs();
        if let (AcmeError::Refused { .. }, true) = (error, self.challenge.is_own()) {
            let records = self.records.join(" | ");
            tracing::error!(%error, retry_s, records, "no certificate: are these records in the parent zone, and does port 53 reach this machine?");
        } else if let (AcmeError::Refused { .. } | AcmeError::Domain(_), true) =
            (error, self.challenge.is_at_our_port())
        {
            let records = self.records.join(" | ");
            tracing::error!(%error, retry_s, records, "no certificate: are these records there, and does port 443 reach this relay?");
        } else {
            tracing::error!(%error, retry_s, "no certificate");
        }
        self.certificates.set_trouble(Some(error.to_string()));
    }

    /// Waits until another certificate is due. Looks now and then, because the answer can change.
    async fn wait_until_due(&self) {
        loop {
            let Some((leaf, names_fit)) = self.current() else {
                let records = self.records.join(" | ");
                let authority = &self.config.directory;
                if self.challenge.is_own() {
                    tracing::info!(
                        authority,
                        records,
                        "asking for the first certificate; the parent zone has to have these records"
                    );
                } else {
                    tracing::info!(
                        authority,
                        records,
                        "asking for the first certificate; these records lead to the relay"
                    );
                }
                self.certificates.set_trouble(Some(format!("waiting for {authority}")));
                return;
            };
            if !names_fit || self.kept.issued_by().as_deref() != Some(&*self.config.directory) {
                return;
            }
            let due = self.due(&leaf).await;
            let Ok(left) = u64::try_from(due.saturating_sub(unix_now())) else { return };
            if left == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_secs(left).min(LOOK_AGAIN)).await;
        }
    }

    /// The certificate in use, and whether it is for our names.
    fn current(&self) -> Option<(CertificateDer<'static>, bool)> {
        let current = self.certificates.current()?;
        let leaf = current.cert.first()?;
        Some((leaf.clone(), covers(leaf, &self.names)))
    }

    /// When the next certificate is due as long as the authority says nothing else, in seconds since 1970.
    fn own_due(&self) -> i64 {
        self.current().and_then(|(leaf, _)| due_between(&leaf, None)).unwrap_or_default()
    }

    /// When the next certificate is due, in seconds since 1970.
    async fn due(&self, leaf: &CertificateDer<'_>) -> i64 {
        let window = match self.way.directory(&self.config.directory).await {
            Ok(directory) => {
                self.challenge.set_issuers(&directory.meta.caa_identities);
                match identifier(leaf) {
                    Some(id) => self.way.window(&directory, &id.to_string()).await,
                    None => None,
                }
            }
            Err(error) => {
                // It is needed only when a certificate is due.
                tracing::debug!(%error, "cannot ask when to renew");
                None
            }
        };
        due_between(leaf, window).unwrap_or_default()
    }

    async fn obtain(&self) -> Result<(), AcmeError> {
        self.check_delegation().await?;
        let directory = self.way.directory(&self.config.directory).await?;
        self.check(&directory)?;
        self.challenge.set_issuers(&directory.meta.caa_identities);
        let old = self.current().map(|(leaf, _)| leaf);
        // Only to the authority that it comes from.
        let ours = self.kept.issued_by().as_deref() == Some(&*self.config.directory) && directory.renews();
        let replaces = old.as_ref().filter(|_| ours).and_then(identifier);
        let Issued { key, chain } = order::obtain(self, replaces).await?;
        let usable = read(&key, &chain, &self.names);
        if usable.is_err() {
            // Its order would only give it again.
            self.kept.order().set(None)?;
        }
        let usable = usable?;
        // In use first: a full disk is no reason to show an old one. Its order leads to it once more.
        self.certificates.put(usable);
        self.kept.set_certificate(&self.config.directory, &key, &chain)?;
        self.kept.order().set(None)?;
        self.certificates.set_trouble(None);
        self.domains.wake();
        let until = self.certificates.validity().map(|validity| validity.not_after.to_string()).unwrap_or_default();
        tracing::info!(domain = self.domain(), until, "a new certificate is in use");
        Ok(())
    }

    /// Whether the authority will be led here. Where that cannot be told, it is for the authority to say.
    async fn check_delegation(&self) -> Result<(), AcmeError> {
        if self.challenge.is_at_our_port()
            && let Ok(domain) = Name::parse(self.domain())
        {
            self.domains.check_address(&domain).await?;
        }
        let (Some(parent), Some(own)) = (&self.parent, self.config.dns.own()) else { return Ok(()) };
        match parent.look().await {
            Ok(Delegation { handed: Some(_), .. }) => Ok(()),
            Ok(missing) => Err(AcmeError::Undelegated {
                domain: self.domain().to_owned(),
                found: missing.to_string(),
                records: self.records.join(" | "),
                challenge: dns::challenge_record(self.domain(), &own.name),
            }),
            Err(error) => {
                tracing::warn!(%error, "cannot see whether the zone above leads here; asking the authority all the same");
                Ok(())
            }
        }
    }

    fn check(&self, directory: &Directory) -> Result<(), AcmeError> {
        if directory.meta.external_account_required
            && self.config.external_account.is_none()
            && self.kept.account().is_none()
        {
            return Err(AcmeError::NeedsExternalAccount { url: self.config.directory.clone() });
        }
        if let Some(terms) = directory.meta.terms_of_service.as_deref().filter(|_| self.kept.account().is_none()) {
            tracing::info!(terms, "making an account, by which the authority's terms are agreed to");
        }
        Ok(())
    }
}

/// What the authority with this directory is called in CAA records; nothing where it does not say.
///
/// # Errors
/// [`AcmeError`] where there is no such directory.
pub(crate) async fn issuers(outgoing: Outgoing, directory: &str) -> Result<Vec<String>, AcmeError> {
    Ok(Way::new(outgoing).directory(directory).await?.meta.caa_identities)
}

/// When a certificate is to be renewed: in the window that its authority names, else at two thirds of its life and up to a
/// thirtieth later. Where in it is chance, but the same after a restart, so that those that were issued together are not
/// renewed together. Never in the first third, because an authority that errs would issue for ever.
fn due_between(leaf: &CertificateDer<'_>, window: Option<(i64, i64)>) -> Option<i64> {
    let chance = f64::from(leaf.last().copied()?) / 256.0;
    let (_, leaf) = X509Certificate::from_der(leaf).ok()?;
    let (begin, end) = (leaf.validity().not_before.timestamp(), leaf.validity().not_after.timestamp());
    let third = end.saturating_sub(begin) / 3;
    let (from, to) = window.unwrap_or_else(|| {
        let two_thirds = begin.saturating_add(third * 2);
        (two_thirds, two_thirds.saturating_add(third / 10))
    });
    let (from, to) = (from.min(end), to.min(end));
    Some(from.saturating_add(fraction_of(to.saturating_sub(from), chance)).max(begin.saturating_add(third)))
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "seconds of a certificate's life are few"
)]
fn fraction_of(seconds: i64, fraction: f64) -> i64 {
    (seconds as f64 * fraction) as i64
}

/// Key and chain as they are going to be used, if they can be.
fn read(key: &str, chain: &str, names: &[String]) -> Result<CertifiedKey, AcmeError> {
    let unusable = |reason: String| AcmeError::Unusable { reason };
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|error| unusable(error.to_string()))?;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(chain.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| unusable(error.to_string()))?;
    let leaf = chain.first().ok_or_else(|| unusable("it is empty".to_owned()))?;
    if !covers(leaf, names) {
        return Err(unusable(format!("it is not for {}", names.join(" and "))));
    }
    certified_key(chain, key).map_err(|error| unusable(error.to_string()))
}

/// Whether a certificate is for all of these names.
pub(crate) fn covers(leaf: &CertificateDer<'_>, names: &[String]) -> bool {
    let Ok((_, leaf)) = X509Certificate::from_der(leaf) else { return false };
    let Ok(Some(alternatives)) = leaf.subject_alternative_name() else { return false };
    let has = |name: &String| {
        let mut all = alternatives.value.general_names.iter();
        all.any(|other| matches!(other, GeneralName::DNSName(other) if other.eq_ignore_ascii_case(name)))
    };
    names.iter().all(has)
}

/// How an authority calls a certificate (RFC 9773, section 4.1).
fn identifier(leaf: &CertificateDer<'_>) -> Option<CertificateIdentifier<'static>> {
    let (_, leaf) = X509Certificate::from_der(leaf).ok()?;
    let authority = leaf.iter_extensions().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(found) => found.key_identifier.as_ref().map(|id| id.0),
        _ => None,
    })?;
    let id = CertificateIdentifier::new(Der::from_slice(authority), Der::from_slice(leaf.tbs_certificate.raw_serial()));
    Some(id.into_owned())
}

/// Where Let's Encrypt can be asked: for certificates, and for such that nobody trusts, to try things out.
pub(crate) const LETS_ENCRYPT: [&str; 2] =
    ["https://acme-v02.api.letsencrypt.org/directory", "https://acme-staging-v02.api.letsencrypt.org/directory"];

/// Where the certificate is kept, with its key, below [that directory](directory).
pub(crate) fn certificate(directory: &Path) -> PathBuf {
    directory.join("certificate.pem")
}

/// The place of everything below the data directory.
pub(crate) fn directory(data: &Path) -> PathBuf {
    data.join("acme")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;

    #[test]
    fn renewal_is_at_two_thirds_or_as_the_authority_says() {
        let leaf = |days: i64| {
            let mut params = rcgen::CertificateParams::new(["relay.example.com".to_owned()]).unwrap();
            params.not_before = rcgen::date_time_ymd(2030, 1, 1);
            params.not_after = params.not_before + Duration::from_secs(days as u64 * 24 * 3600);
            let key = rcgen::KeyPair::generate().unwrap();
            let begin = params.not_before.unix_timestamp();
            (params.self_signed(&key).unwrap().der().clone(), begin)
        };
        let day = 24 * 3600;
        for life in [90, 6] {
            let (leaf, begin) = leaf(life);
            let due = due_between(&leaf, None).unwrap() - begin;
            assert!((life * day * 2 / 3..=life * day * 7 / 10).contains(&due), "{due} of {life} days");
            assert_eq!(due_between(&leaf, None).unwrap() - begin, due, "as before");
        }
        let (leaf, begin) = leaf(90);
        let between =
            |from: i64, to: i64| due_between(&leaf, Some((begin + from * day, begin + to * day))).unwrap() - begin;
        assert!((40 * day..=41 * day).contains(&between(40, 41)), "it has been revoked, perhaps");
        assert_eq!(between(-5, -4), 30 * day, "an authority that errs");
        assert_eq!(between(200, 300), 90 * day);
    }

    #[test]
    fn a_certificate_is_taken_only_with_its_key_and_for_all_names() {
        let names = ["relay.example.com", "*.relay.example.com"].map(str::to_owned);
        let good = rcgen::generate_simple_self_signed(names.to_vec()).unwrap();
        let (key, chain) = (good.signing_key.serialize_pem(), good.cert.pem());
        assert!(read(&key, &chain, &names).is_ok());
        let other = rcgen::generate_simple_self_signed([names[0].clone()]).unwrap();
        for (key, chain) in [
            (&*key, ""),
            ("", &*chain),
            (&other.signing_key.serialize_pem(), &chain),
            (&other.signing_key.serialize_pem(), &other.cert.pem()),
        ] {
            assert!(matches!(read(key, chain, &names), Err(AcmeError::Unusable { .. })));
        }
    }
}
