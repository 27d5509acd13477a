//! The clock, held against that of the certificate authority, which has to be right: certificates begin and end, signatures
//! of webhooks have an age.

use bytes::Bytes;
use http::Request;
use http::header::DATE;
use rustls::CertificateError;

use super::finding::Finding;
use super::patient::Patient;
use crate::certs::acme;
use crate::clock::unix_now;
use crate::config::CertificateSource;
use crate::outgoing::OutgoingError;

const CHECK: &str = "clock";

/// The mildest of what is signed with the time, and is refused where it is older, allows a few minutes.
const OFF_S: i64 = 60;

/// Compares this machine's time with the `Date` of the authority's directory.
pub(super) async fn check(patient: &Patient) -> Finding {
    let url = match &patient.config.certificate {
        CertificateSource::Acme(acme) => &acme.directory,
        CertificateSource::Files { .. } if patient.lookup.is_none() => {
            return Finding::unknown(CHECK, "nobody outside is asked for the time, because resolver is off");
        }
        CertificateSource::Files { .. } => acme::LETS_ENCRYPT[0],
        CertificateSource::Development { .. } => {
            return Finding::unknown(CHECK, "nobody is asked for the time by a relay that is for this machine alone");
        }
    };
    let request = match Request::get(url).body(Bytes::new()) {
        Ok(request) => request,
        Err(error) => return Finding::unknown(CHECK, error.to_string()),
    };
    match patient.outgoing.send(request).await {
        Ok(response) => {
            let date = response.headers().get(DATE).and_then(|date| date.to_str().ok());
            match date.and_then(seconds) {
                Some(theirs) => compare(unix_now(), theirs, url),
                None => Finding::unknown(CHECK, format!("{url} does not say what time it is")),
            }
        }
        Err(error) if is_about_time(&error) => {
            Finding::wrong(CHECK, format!("{error}: is the time of this machine right?")).mend([MEND])
        }
        Err(error) => Finding::unknown(CHECK, error.to_string()),
    }
}

const MEND: &str = "timedatectl set-ntp true";

fn compare(ours: i64, theirs: i64, url: &str) -> Finding {
    match ours.saturating_sub(theirs) {
        off if off.abs() <= OFF_S => Finding::ok(CHECK, format!("within {OFF_S} s of {url}")),
        off => {
            let way = if off > 0 { "ahead of" } else { "behind" };
            Finding::wrong(CHECK, format!("this machine is {} s {way} {url}", off.abs())).mend([MEND])
        }
    }
}

/// A date of HTTP (RFC 9110, section 5.6.7), in seconds since 1970.
fn seconds(date: &str) -> Option<i64> {
    jiff::fmt::rfc2822::parse(date).ok().map(|date| date.timestamp().as_second())
}

/// Whether a certificate was refused because it has not begun, or has ended.
fn is_about_time(error: &OutgoingError) -> bool {
    let OutgoingError::Connect { error, .. } = error else { return false };
    let fault = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
    use CertificateError::{Expired, ExpiredContext, NotValidYet, NotValidYetContext};
    matches!(
        fault,
        Some(rustls::Error::InvalidCertificate(
            Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. }
        ))
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::super::finding::Verdict;
    use super::*;

    #[test]
    fn a_minute_is_forgiven_and_more_is_told() {
        let theirs = seconds("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        assert_eq!(theirs, 784_111_777);
        assert_eq!(compare(theirs + 60, theirs, "u").verdict, Verdict::Ok);
        let ahead = compare(theirs + 61, theirs, "u");
        assert!(ahead.verdict == Verdict::Wrong && ahead.found == "this machine is 61 s ahead of u", "{ahead:?}");
        assert!(compare(theirs - 3600, theirs, "u").found.contains("3600 s behind"));
        assert_eq!(seconds("yesterday"), None);
    }

    #[test]
    fn a_certificate_that_has_not_begun_is_the_clocks_fault() {
        let error = |fault| OutgoingError::Connect {
            to: "ca.example:443".to_owned(),
            error: std::io::Error::new(std::io::ErrorKind::InvalidData, rustls::Error::InvalidCertificate(fault)),
        };
        assert!(
            is_about_time(&error(CertificateError::NotValidYet)) && is_about_time(&error(CertificateError::Expired))
        );
        assert!(!is_about_time(&error(CertificateError::UnknownIssuer)));
    }
}
