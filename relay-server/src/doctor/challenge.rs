//! Whether the domain can be proved where the relay is not the name server: at another one that takes updates, or by a
//! program.

use std::path::Path;

use rustix::fs::{Access, access};

use super::finding::Finding;
use super::patient::Patient;
use crate::config::{CertificateSource, DnsConfig, UpdateConfig};
use crate::dns::{self, UpdateError, Updates};

const CHECK: &str = "dns.challenge";

/// None where the relay answers for the challenge itself: that is seen with [its names](super::names), or at its port.
pub(super) async fn check(patient: &Patient) -> Option<Finding> {
    let CertificateSource::Acme(acme) = &patient.config.certificate else { return None };
    match &acme.dns {
        DnsConfig::Own(_) => None,
        DnsConfig::Updates(settings) => Some(updates(patient, settings).await),
        DnsConfig::Hook { program } => Some(hook(program)),
        DnsConfig::AtOurPort => None,
    }
}

/// Whether the name server would let the relay change the record. Nothing is changed.
async fn updates(patient: &Patient, settings: &UpdateConfig) -> Finding {
    let challenge = dns::absolute(&patient.config.domain).and_then(|domain| dns::challenge_of(&domain));
    let mut name = match challenge {
        Ok(name) => name,
        Err(error) => return Finding::wrong(CHECK, error.to_string()),
    };
    if let Some(lookup) = &patient.lookup {
        name = lookup.behind_aliases(&name).await.unwrap_or(name);
    }
    let tried = match Updates::new(settings) {
        Ok(updates) => updates.try_out(&name).await,
        Err(error) => Err(error),
    };
    match tried {
        Ok(zone) => Finding::ok(CHECK, format!("{} lets the relay set {name} in the zone {zone}", settings.server)),
        Err(error) => {
            let mend = match &error {
                UpdateError::Key(_) => {
                    Some("the key that the server knows, as tsig-keygen writes it, in that file".to_owned())
                }
                UpdateError::Clock { .. } => Some("timedatectl set-ntp true".to_owned()),
                UpdateError::NotServed { .. } => Some(format!("--dns-update with the primary server of {name}")),
                _ => None,
            };
            Finding::wrong(CHECK, error.to_string()).mend(mend)
        }
    }
}

/// Whether the program can be run. What it does is seen with the next certificate.
fn hook(program: &Path) -> Finding {
    let shown = program.display();
    let found = match (program.is_file(), access(program, Access::EXEC_OK)) {
        (true, Ok(())) => {
            return Finding::ok(CHECK, format!("{shown} can be run; the relay runs it for each certificate"));
        }
        (false, _) => {
            return Finding::wrong(CHECK, format!("there is no program {shown}")).mend(["--dns-hook PROGRAM"]);
        }
        (true, Err(error)) => format!("{shown} cannot be run: {error}"),
    };
    Finding::wrong(CHECK, found).mend([format!("chmod +x {shown}")])
}
