//! The certificate: the one on the disk, and the one that the relay shows.

use std::path::{Path, PathBuf};

use rustls::client::danger::ServerCertVerifier as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::finding::Finding;
use super::handshake::shake_hands;
use super::patient::{Patient, Way};
use crate::certs::{acme, read_pair};
use crate::clock::{moment, unix_now};
use crate::config::CertificateSource;

/// A certificate of whose life less than a sixth is left was to be renewed long ago: that is due when a third is left.
const LEFT: i64 = 6;

/// What is on the disk, and what is shown to those who connect.
pub(super) async fn check(patient: &Patient) -> Vec<Finding> {
    let mut findings = Vec::new();
    let kept = match &patient.config.certificate {
        CertificateSource::Files { cert, key } => Some((cert.clone(), key.clone())),
        CertificateSource::Acme(acme) => Some((acme::certificate(&acme.dir), acme::certificate(&acme.dir))),
        CertificateSource::Development { .. } => None,
    };
    let mut leaf = None;
    if let Some((cert, key)) = kept {
        let (found, finding) = on_disk(patient, &cert, &key);
        leaf = found.map(|leaf| (leaf, cert));
        findings.push(finding);
    }
    if patient.config.https.is_some() {
        findings.push(served(patient, leaf).await);
    }
    findings
}

fn on_disk(patient: &Patient, cert: &Path, key: &Path) -> (Option<CertificateDer<'static>>, Finding) {
    const CHECK: &str = "certificate.file";
    let by_itself = matches!(patient.config.certificate, CertificateSource::Acme(_));
    if by_itself && !cert.try_exists().unwrap_or(true) {
        let finding = match patient.status() {
            Some(status) => {
                let trouble = status.trouble.as_deref().unwrap_or("it has just been asked for");
                Finding::wrong(CHECK, format!("there is none yet: {trouble}"))
            }
            None => Finding::unknown(CHECK, "there is none yet; the relay asks for one once it runs"),
        };
        return (None, finding);
    }
    let pair = match read_pair(cert, key) {
        Ok(pair) => pair,
        Err(error) => return (None, Finding::wrong(CHECK, error.to_string())),
    };
    let path = cert.display().to_string();
    let Some(leaf) = pair.cert.first() else { return (None, Finding::wrong(CHECK, format!("{path} is empty"))) };
    let fault = ServerName::try_from(patient.config.domain.clone()).ok().and_then(|name| {
        let others = pair.cert.get(1..).unwrap_or_default();
        patient.judge.verify_server_cert(leaf, others, &name, &[], UnixTime::now()).err()
    });
    (Some(leaf.clone()), judge(patient, CHECK, &path, leaf, fault))
}

/// What those see who connect to the relay.
async fn served(patient: &Patient, kept: Option<(CertificateDer<'static>, PathBuf)>) -> Finding {
    const CHECK: &str = "certificate.served";
    let domain = &patient.config.domain;
    let Way { addresses, detour } = patient.way(domain).await;
    if let ([], Some(why)) = (&addresses[..], &detour) {
        return Finding::unknown(CHECK, format!("where {domain} is reached is not known: {why}"));
    }
    let shown = match shake_hands(&addresses, domain, patient).await {
        Ok(shown) => shown,
        Err(error) => {
            let found = format!("no TLS with {domain}: {error}");
            // Without a relay there is nothing to be shown; without a certificate it shows none.
            return if patient.status().is_some() {
                Finding::wrong(CHECK, found)
            } else {
                Finding::unknown(CHECK, found)
            };
        }
    };
    let Some(leaf) = shown.chain.first() else { return Finding::wrong(CHECK, "no certificate is shown") };
    if let Some((_, path)) = kept.filter(|(kept, _)| kept != leaf) {
        let peer = shown.stream.get_ref().0.peer_addr().map(|peer| peer.to_string()).unwrap_or_default();
        let found =
            format!("{peer} shows another certificate for {domain} than is in {}: {}", path.display(), name(leaf));
        let mend = match patient.status() {
            Some(_) => "is that this machine? If it is, the log of the relay says why it does not take the file",
            None => "another program terminates TLS there: stop it, or put the relay behind it (docs/self-hosting.md)",
        };
        return Finding::wrong(CHECK, found).mend([mend]);
    }
    judge(patient, CHECK, domain, leaf, shown.fault)
}

/// What is to be thought of a certificate; `fault` is what a client has against it and its chain.
fn judge(
    patient: &Patient,
    check: &'static str,
    what: &str,
    leaf: &CertificateDer<'_>,
    fault: Option<rustls::Error>,
) -> Finding {
    let domain = &patient.config.domain;
    let Ok((_, parsed)) = X509Certificate::from_der(leaf) else {
        return Finding::wrong(check, format!("{what}: the certificate cannot be read"));
    };
    let (begin, end) = (parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp());
    let (now, until) = (unix_now(), moment(end));
    let renew = |finding: Finding| match &patient.config.certificate {
        CertificateSource::Acme(_) => {
            finding.mend(["see /readyz and the log of the relay, which say why it was not renewed"])
        }
        _ => finding.mend(["renew it; the relay takes the new files without a restart"]),
    };
    if end < now {
        return renew(Finding::wrong(check, format!("{what}: the certificate has expired at {until}")));
    }
    if begin > now {
        let found = format!("{what}: the certificate holds from {} on only", moment(begin));
        return Finding::wrong(check, found).mend(["timedatectl set-ntp true"]);
    }
    let mut names = vec![domain.clone()];
    if !patient.config.path_mode {
        names.push(format!("*.{domain}"));
    }
    if !acme::covers(leaf, &names) {
        let found = format!("{what}: the certificate is not for {}", names.join(" and "));
        return Finding::wrong(check, found).mend([format!("get one for {}", names.join(" and "))]);
    }
    if let Some(fault) = fault {
        let issuer = name(leaf);
        let finding =
            Finding::wrong(check, format!("{what}: clients do not trust the certificate of {issuer}: {fault}"));
        return match &patient.config.certificate {
            CertificateSource::Acme(acme) if acme.directory == acme::LETS_ENCRYPT[1] => {
                finding.mend(["serve without --acme-staging: its certificates are for trials"])
            }
            CertificateSource::Files { cert, .. } => finding.mend([
                format!("put the certificates between it and its root into {}, behind it", cert.display()),
                "where clients have --relay-ca FILE, run this with it, too".to_owned(),
            ]),
            _ => finding.mend(["where clients have --relay-ca FILE, run this with it, too"]),
        };
    }
    let days = end.saturating_sub(now) / (24 * 3600);
    let found = format!("{what}: for {}, of {}, until {until} ({days} days)", names.join(" and "), name(leaf));
    if end.saturating_sub(now) < end.saturating_sub(begin) / LEFT {
        return renew(Finding::wrong(check, found));
    }
    Finding::ok(check, found)
}

/// Who has issued it.
fn name(leaf: &CertificateDer<'_>) -> String {
    let Ok((_, leaf)) = X509Certificate::from_der(leaf) else { return "somebody".to_owned() };
    let issuer = leaf.issuer();
    let part = issuer.iter_common_name().chain(issuer.iter_organization()).find_map(|part| part.as_str().ok());
    part.map_or_else(|| issuer.to_string(), str::to_owned)
}
