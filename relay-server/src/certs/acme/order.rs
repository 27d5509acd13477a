//! One order, from the account that places it to the certificate (RFC 8555, section 7.1).
//!
//! ```text
//!   account ──▶ order ──▶ challenges answered ──▶ finalised ──▶ certificate
//!                 │
//!                 └─ kept with its key: after a restart it goes on where it was
//! ```

use std::time::Duration;

use instant_acme::{
    Account, AuthorizationStatus, CertificateIdentifier, ChallengeStatus, ChallengeType, ExternalAccountKey,
    Identifier, NewAccount, NewOrder, Order, OrderStatus, Problem, RetryPolicy,
};
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::sign::CertifiedKey;

use super::kept::{KeptAccount, KeptOrder, OrderFile};
use super::{Acme, AcmeError, ExternalAccount};
use crate::certs::Certificates;
use crate::store::Name;

/// How long an authority may take to look at a challenge, or to issue.
const PATIENCE: RetryPolicy =
    RetryPolicy::new().initial_delay(Duration::from_millis(500)).backoff(1.5).timeout(Duration::from_secs(180));

/// What an order led to, in PEM.
pub(super) struct Issued {
    pub(super) key: String,
    pub(super) chain: String,
}

/// What a certificate is asked for.
struct Wanted<'a> {
    names: &'a [String],
    /// Instead of which other.
    replaces: Option<CertificateIdentifier<'a>>,
    /// Where its order is kept.
    kept: &'a OrderFile,
    /// Whether an order may be placed, where none is under way.
    may: &'a (dyn Fn() -> Result<(), AcmeError> + Sync),
}

/// Gets a certificate for the names of `acme`, instead of the one that `replaces` names.
pub(super) async fn obtain(acme: &Acme, replaces: Option<CertificateIdentifier<'_>>) -> Result<Issued, AcmeError> {
    let wanted = Wanted { names: &acme.names, replaces, kept: acme.kept.order(), may: &|| Ok(()) };
    let (mut order, key) = start(acme, &wanted).await?;
    let answered = match acme.challenge.is_at_our_port() {
        true => answer_at_our_port(acme.domain(), &acme.certificates, &mut order).await,
        false => answer_challenges(acme, &mut order).await,
    };
    finish(&wanted, order, key, answered).await
}

/// Gets a certificate for one name that leads here, which is proved at the port where it will be shown (TLS-ALPN-01). Where no
/// order for it is under way, `may` says whether one may be placed.
pub(super) async fn obtain_at_our_port(
    acme: &Acme,
    domain: &Name,
    replaces: Option<CertificateIdentifier<'_>>,
    may: &(dyn Fn() -> Result<(), AcmeError> + Sync),
) -> Result<Issued, AcmeError> {
    let (names, kept) = ([domain.as_str().to_owned()], acme.kept.order_of(domain));
    let wanted = Wanted { names: &names, replaces, kept: &kept, may };
    let (mut order, key) = start(acme, &wanted).await?;
    let answered = answer_at_our_port(domain.as_str(), &acme.certificates, &mut order).await;
    finish(&wanted, order, key, answered).await
}

/// From the challenges that were answered to the certificate.
async fn finish(
    wanted: &Wanted<'_>,
    mut order: Order,
    key: KeyPair,
    answered: Result<(), AcmeError>,
) -> Result<Issued, AcmeError> {
    let chain = match answered {
        Ok(()) => issue(wanted, &mut order, &key).await,
        Err(error) => Err(error),
    };
    // A refusal is final for an order; what was only silence is not.
    if matches!(
        &chain,
        Err(AcmeError::Refused { .. }
            | AcmeError::NoChallenge
            | AcmeError::NoChallengeAtOurPort
            | AcmeError::Acme(instant_acme::Error::Api(_)))
    ) {
        wanted.kept.set(None)?;
    }
    Ok(Issued { key: key.serialize_pem(), chain: chain? })
}

async fn answer_at_our_port(domain: &str, certificates: &Certificates, order: &mut Order) -> Result<(), AcmeError> {
    if order.state().status != OrderStatus::Pending {
        return Ok(());
    }
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        if authorization.status != AuthorizationStatus::Valid {
            let mut challenge =
                authorization.challenge(ChallengeType::TlsAlpn01).ok_or(AcmeError::NoChallengeAtOurPort)?;
            let digest = challenge.key_authorization().digest();
            certificates.prove(domain, Some(proof(domain, digest.as_ref())?));
            if challenge.status == ChallengeStatus::Pending {
                challenge.set_ready().await?;
            }
        }
    }
    Ok(())
}

/// What the authority finds at the port (RFC 8737, section 3).
fn proof(domain: &str, digest: &[u8]) -> Result<CertifiedKey, AcmeError> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::new([domain.to_owned()])?;
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let certificate = params.self_signed(&key)?;
    let unusable = |error: rustls::Error| AcmeError::Unusable { reason: error.to_string() };
    let secret = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    let secret = aws_lc_rs::default_provider().key_provider.load_private_key(secret).map_err(unusable)?;
    // Not checked against each other: rustls does not read certificates with that extension.
    Ok(CertifiedKey::new(vec![certificate.der().clone()], secret))
}

async fn start(acme: &Acme, wanted: &Wanted<'_>) -> Result<(Order, KeyPair), AcmeError> {
    match place(&account(acme).await?, wanted).await {
        // It has forgotten us, or we have come back with an old backup.
        Err(AcmeError::Acme(error)) if is(&error, "accountDoesNotExist") => {
            acme.kept.set_account(None)?;
            wanted.kept.set(None)?;
            place(&account(acme).await?, wanted).await
        }
        started => started,
    }
}

async fn account(acme: &Acme) -> Result<Account, AcmeError> {
    let _joining = acme.joining.lock().await;
    let contact = format!("mailto:{}", acme.config.email);
    let builder = Account::builder_with_http(Box::new(acme.way.clone()));
    if let Some(KeptAccount { email, credentials }) = acme.kept.account() {
        let account = builder.from_credentials(credentials).await?;
        if email != acme.config.email {
            account.update_contacts(&[&contact]).await?;
            if let Some(kept) = acme.kept.account() {
                acme.kept.set_account(Some(&KeptAccount { email: acme.config.email.clone(), ..kept }))?;
            }
        }
        return Ok(account);
    }
    let external = acme.config.external_account.as_ref().map(external_key).transpose()?;
    let new = NewAccount { contact: &[&contact], terms_of_service_agreed: true, only_return_existing: false };
    let (account, credentials) = builder.create(&new, acme.config.directory.clone(), external.as_ref()).await?;
    acme.kept.set_account(Some(&KeptAccount { email: acme.config.email.clone(), credentials }))?;
    Ok(account)
}

fn external_key(account: &ExternalAccount) -> Result<ExternalAccountKey, AcmeError> {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    let path = &account.key_file;
    let text = std::fs::read_to_string(path).map_err(|error| AcmeError::Io { path: path.clone(), error })?;
    // Some authorities show it as base64, others as base64url (RFC 4648, section 5).
    let text = text.trim().trim_end_matches('=').replace('+', "-").replace('/', "_");
    let key = URL_SAFE_NO_PAD.decode(text).map_err(|_| AcmeError::ExternalKey { path: path.clone() })?;
    Ok(ExternalAccountKey::new(account.id.clone(), &key))
}

/// The order under way, or a new one.
async fn place(account: &Account, wanted: &Wanted<'_>) -> Result<(Order, KeyPair), AcmeError> {
    let kept = wanted.kept.get().filter(|kept| kept.names == wanted.names);
    if let Some((kept, key)) = kept.and_then(|kept| KeyPair::from_pem(&kept.key).ok().map(|key| (kept, key))) {
        match account.order(kept.url).await {
            Ok(mut order) => {
                if order.state().status != OrderStatus::Invalid {
                    tracing::info!(order = order.url(), "going on with the order of before");
                    return Ok((order, key));
                }
            }
            // It is unknown, as orders are that have expired.
            Err(instant_acme::Error::Api(_)) => {}
            Err(error) => return Err(error.into()),
        }
        wanted.kept.set(None)?;
    }
    (wanted.may)()?;
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let names: Vec<_> = wanted.names.iter().cloned().map(Identifier::Dns).collect();
    let mut order = match wanted.replaces.clone() {
        Some(old) => account.new_order(&NewOrder::new(&names).replaces(old)).await,
        None => account.new_order(&NewOrder::new(&names)).await,
    };
    if matches!(&order, Err(error) if is(error, "alreadyReplaced")) {
        order = account.new_order(&NewOrder::new(&names)).await;
    }
    let order = order?;
    let (url, names) = (order.url().to_owned(), wanted.names.to_vec());
    wanted.kept.set(Some(&KeptOrder { url, names, key: key.serialize_pem() }))?;
    Ok((order, key))
}

async fn issue(wanted: &Wanted<'_>, order: &mut Order, key: &KeyPair) -> Result<String, AcmeError> {
    if order.state().status == OrderStatus::Pending {
        match order.poll_ready(&PATIENCE).await {
            Ok(OrderStatus::Ready) => {}
            Ok(_) | Err(instant_acme::Error::Api(_)) => return Err(why_refused(order).await),
            Err(error) => return Err(error.into()),
        }
    }
    if order.state().status == OrderStatus::Ready {
        let mut params = CertificateParams::new(wanted.names.to_vec())?;
        params.distinguished_name = DistinguishedName::new();
        order.finalize_csr(params.serialize_request(key)?.der()).await?;
    }
    Ok(order.poll_certificate(&PATIENCE).await?)
}

/// All values are there before the first challenge is called ready, because base and wildcard share a name.
async fn answer_challenges(acme: &Acme, order: &mut Order) -> Result<(), AcmeError> {
    if order.state().status != OrderStatus::Pending {
        return Ok(());
    }
    let mut values = Vec::new();
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        if authorization.status != AuthorizationStatus::Valid {
            let challenge = authorization.challenge(ChallengeType::Dns01).ok_or(AcmeError::NoChallenge)?;
            values.push(challenge.key_authorization().dns_value());
        }
    }
    acme.challenge.show(&acme.kept, values).await?;
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        if authorization.status != AuthorizationStatus::Valid
            && let Some(mut challenge) = authorization.challenge(ChallengeType::Dns01)
            && challenge.status == ChallengeStatus::Pending
        {
            challenge.set_ready().await?;
        }
    }
    Ok(())
}

/// What the authority says of the challenges that it did not accept.
async fn why_refused(order: &mut Order) -> AcmeError {
    let mut reasons = Vec::new();
    let told = order.state().error.clone();
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        if authorization.refresh().await.is_ok() {
            let problems = authorization.challenges.iter().filter_map(|challenge| challenge.error.as_ref());
            reasons.extend(problems.map(in_words));
        }
    }
    reasons.extend(told.as_ref().map(in_words).filter(|_| reasons.is_empty()));
    reasons.dedup();
    AcmeError::Refused {
        reason: if reasons.is_empty() { "it does not say why".to_owned() } else { reasons.join("; ") },
    }
}

fn in_words(problem: &Problem) -> String {
    let kind = problem.r#type.as_deref().unwrap_or_default().rsplit(':').next().unwrap_or_default();
    format!("{} ({kind})", problem.detail.as_deref().unwrap_or("no detail"))
}

fn is(error: &instant_acme::Error, kind: &str) -> bool {
    let instant_acme::Error::Api(problem) = error else { return false };
    problem.r#type.as_deref().and_then(|kind| kind.strip_prefix("urn:ietf:params:acme:error:")) == Some(kind)
}
