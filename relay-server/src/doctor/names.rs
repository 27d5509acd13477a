//! The DNS records, as the world sees them.

use std::net::IpAddr;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};

use super::finding::Finding;
use super::patient::Patient;
use crate::certs::acme;
use crate::config::{AcmeConfig, CertificateSource, DnsConfig, OwnDns};
use crate::dns::{self, Delegation, Handed, Lookup, LookupError, Parent};

/// What all of these need.
struct World<'a> {
    patient: &'a Patient,
    lookup: &'a Lookup,
    public: &'a [IpAddr],
    domain: Name,
    /// What of it the relay's own name server has to answer for.
    handed: Option<Handed>,
}

/// Delegation, addresses, wildcard, challenge and CAA, as far as the relay's way to certificates needs them.
pub(super) async fn check(patient: &Patient) -> Vec<Finding> {
    const CHECK: &str = "dns";
    if !patient.is_public() {
        let why =
            "the relay is for this machine alone: it has a development certificate, so nobody else asks for its name";
        return vec![Finding::unknown(CHECK, why)];
    }
    let Some(lookup) = &patient.lookup else {
        return vec![Finding::unknown(CHECK, "nobody is asked for the records, because resolver is off")];
    };
    let public = match &patient.public {
        Ok(public) => &public[..],
        Err(error) => return vec![Finding::wrong(CHECK, error.to_string()).mend(["--public-ip 203.0.113.7"])],
    };
    let domain = match dns::absolute(&patient.config.domain) {
        Ok(domain) => domain,
        Err(error) => return vec![Finding::wrong(CHECK, error.to_string())],
    };
    let mut world = World { patient, lookup, public, domain, handed: None };
    let mut findings = Vec::new();
    let own = patient.own_dns();
    if let Some(own) = own {
        let (handed, finding) = world.delegation(own).await;
        world.handed = handed;
        findings.push(finding);
    }
    findings.push(world.leads_here("dns.address", &world.domain).await);
    let anything = world.domain.prepend_label(format!("doctor-{:016x}", fastrand::u64(..)));
    match anything {
        _ if patient.config.path_mode => {}
        Ok(anything) => findings.push(world.leads_here("dns.wildcard", &anything).await),
        Err(error) => findings.push(Finding::wrong("dns.wildcard", error.to_string())),
    }
    if let Some(own) = own {
        findings.push(world.challenge(own).await);
    }
    if let CertificateSource::Acme(acme) = &patient.config.certificate {
        findings.push(world.caa(acme).await);
    }
    findings
}

impl World<'_> {
    /// Whether the zone above hands over the domain, or the challenge at least.
    async fn delegation(&self, own: &OwnDns) -> (Option<Handed>, Finding) {
        const CHECK: &str = "dns.delegation";
        let domain = &self.patient.config.domain;
        let parent = Parent::new(self.lookup.clone(), domain, &own.name, self.public.to_vec());
        let parent = match parent {
            Ok(parent) => parent,
            Err(error) => return (None, Finding::wrong(CHECK, error.to_string())),
        };
        let records = dns::records(domain, &own.name, self.public);
        let challenge = dns::challenge_record(domain, &own.name);
        let said = match parent.look().await {
            Ok(said) => said,
            Err(error) => {
                let mend = format!("dig +trace NS {domain}");
                return (None, Finding::unknown(CHECK, error.to_string()).mend([mend]));
            }
        };
        let Delegation { zone, handed, behind, astray, .. } = &said;
        let what = match handed {
            None => {
                let found = format!("{domain} does not lead to this machine: {said}");
                let instead = format!("where the records of {domain} are to stay, in place of the first: {challenge}");
                return (None, Finding::wrong(CHECK, found).mend(records).mend([instead]));
            }
            Some(Handed::Domain) => format!("{domain}."),
            Some(Handed::Challenge) => format!("_acme-challenge.{domain}."),
        };
        let finding = match (&behind[..], &astray[..]) {
            ([], []) => Finding::ok(CHECK, format!("the zone {zone} hands {what} over to this machine")),
            ([], astray) => Finding::wrong(
                CHECK,
                format!("the zone {zone} hands {what} over to this machine, and to others that know nothing of it"),
            )
            .mend(astray.iter().map(|record| format!("remove: {record}"))),
            (behind, _) => Finding::wrong(
                CHECK,
                format!("not all name servers of {zone} hand {what} over to this machine: not {}", behind.join(", ")),
            )
            .mend(["wait until it has spread, and run this again"]),
        };
        (*handed, finding)
    }

    /// Whether a name has the addresses of this machine, and no others.
    async fn leads_here(&self, check: &'static str, name: &Name) -> Finding {
        let found = match self.lookup.addresses(name).await {
            Ok(found) => found,
            Err(error) => return self.silence(check, &error),
        };
        let shown = |ips: &[IpAddr]| ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let (here, public) = (shown(&found), shown(self.public));
        let wrong = match &found[..] {
            [] => format!("{name} leads nowhere"),
            found if found.iter().all(|ip| self.public.contains(ip)) => {
                return Finding::ok(check, format!("{name} leads to {here}"));
            }
            _ => format!("{name} leads to {here}, and this machine is {public}"),
        };
        let mend = match (self.patient.own_dns(), self.handed) {
            (Some(own), None) => dns::records(&self.patient.config.domain, &own.name, self.public),
            // The relay answers for it.
            (_, Some(Handed::Domain)) => vec![format!("--public-ip {}", here.replace(", ", " --public-ip "))],
            _ => {
                let domain = &self.patient.config.domain;
                let owner = if *name == self.domain { domain.clone() } else { format!("*.{domain}") };
                let (stray, there): (Vec<_>, Vec<_>) = found.iter().partition(|ip| !self.public.contains(ip));
                let missing: Vec<_> = self.public.iter().copied().filter(|ip| !there.contains(ip)).collect();
                let remove = dns::address_records(&owner, &stray).map(|record| format!("remove: {record}"));
                remove.chain(dns::address_records(&owner, &missing)).collect()
            }
        };
        Finding::wrong(check, wrong).mend(mend)
    }

    /// Whether the world comes to the relay's own name server for the challenge, and so through port 53.
    async fn challenge(&self, own: &OwnDns) -> Finding {
        const CHECK: &str = "dns.challenge";
        let server = dns::absolute(&own.name);
        let (challenge, server) = match dns::challenge_of(&self.domain).and_then(|name| Ok((name, server?))) {
            Ok(names) => names,
            Err(error) => return Finding::wrong(CHECK, error.to_string()),
        };
        // The relay serves it as a zone of its own, and says so at all times; values are there during an order alone.
        let answer = match self.lookup.resolve(&challenge, RecordType::SOA).await {
            Ok(answer) => answer,
            Err(error) => return self.silence(CHECK, &error),
        };
        let is_own = |data: &RData| matches!(data, RData::SOA(soa) if soa.mname == server);
        if answer.answers.iter().any(|record| is_own(&record.data)) {
            let through = self.lookup.resolver().map(|ip| format!(", as {ip} sees it")).unwrap_or_default();
            return Finding::ok(CHECK, format!("the relay's own name server answers for {challenge}{through}"));
        }
        let found = match answer.metadata.response_code {
            ResponseCode::NXDomain => format!("there is no {challenge}"),
            _ => format!("somebody else answers for {challenge}"),
        };
        let domain = &self.patient.config.domain;
        let mend = match self.handed {
            Some(_) => vec!["wait until it has spread, and run this again".to_owned()],
            None => dns::records(domain, &own.name, self.public),
        };
        Finding::wrong(CHECK, found).mend(mend)
    }

    /// Whether a CAA record keeps the authority from issuing (RFC 8659).
    async fn caa(&self, acme: &AcmeConfig) -> Finding {
        const CHECK: &str = "dns.caa";
        let issuers = match acme::issuers(self.patient.outgoing.clone(), &acme.directory).await {
            Ok(issuers) if !issuers.is_empty() => issuers,
            Ok(_) => return Finding::unknown(CHECK, "the authority does not say what it is called in CAA records"),
            Err(error) => return Finding::unknown(CHECK, error.to_string()),
        };
        let mut name = self.domain.clone();
        while !name.is_root() {
            let answer = match self.lookup.resolve(&name, RecordType::CAA).await {
                Ok(answer) => answer,
                Err(error) => return self.silence(CHECK, &error),
            };
            let rules = rules(&answer);
            if !rules.is_empty() {
                let forbidden = forbidden(&rules, &issuers);
                return match forbidden.filter(|what| *what != WILDCARD || acme.dns != DnsConfig::AtOurPort) {
                    None => Finding::ok(CHECK, format!("the CAA records of {name} allow {}", issuers.join(", "))),
                    Some(what) => {
                        let found = format!("the CAA records of {name} do not let {} issue {what}", issuers.join(", "));
                        let is_wild = what == WILDCARD && rules.iter().any(|(tag, _)| tag == "issuewild");
                        let tag = if is_wild { "issuewild" } else { "issue" };
                        let record = |issuer| format!("{name} CAA 0 {tag} \"{issuer}\"");
                        Finding::wrong(CHECK, found).mend(issuers.first().map(record))
                    }
                };
            }
            name = name.base_name();
        }
        Finding::ok(CHECK, format!("no CAA record keeps {} from issuing", issuers.join(", ")))
    }

    /// What it means that a resolver gives no answer.
    fn silence(&self, check: &'static str, error: &LookupError) -> Finding {
        let config = &self.patient.config;
        if let (LookupError::Failed { .. }, CertificateSource::Acme(acme)) = (error, &config.certificate)
            && acme.dns == DnsConfig::AtOurPort
        {
            // As where it was handed over to this relay before that was in path mode.
            let domain = &config.domain;
            let found =
                format!("{error}: whom the zone above names for it does not answer, and this relay answers no DNS");
            let set = dns::address_records(domain, self.public).map(|record| format!("set: {record}"));
            let or = format!("or have the relay answer for it, by --dns-name {}", dns::default_name(domain));
            return Finding::wrong(check, found).mend([format!("remove: {domain}. NS ...")]).mend(set).mend([or]);
        }
        match (error, self.handed, self.patient.status()) {
            // Somebody has been asked by the resolver in vain, and that is the relay.
            (LookupError::Failed { .. }, Some(_), Some(_)) => {
                let ip = self.public.first().map(ToString::to_string).unwrap_or_default();
                Finding::wrong(check, format!("{error}, because it cannot reach the relay's name server"))
                    .mend([format!("let UDP and TCP port 53 through to {ip}, in the firewall and at the provider")])
            }
            (LookupError::Failed { .. }, Some(_), None) => {
                Finding::unknown(check, format!("{error}: the relay answers for it, and does not run"))
            }
            _ => Finding::unknown(check, error.to_string()),
        }
    }
}

/// The certificates of which a rule speaks.
const WILDCARD: &str = "a wildcard certificate";

/// Tag and issuer of each record about who may issue; the issuer is empty where it is nobody.
fn rules(answer: &Message) -> Vec<(String, String)> {
    let rule = |data: &RData| match data {
        RData::CAA(caa) => {
            let value = String::from_utf8_lossy(&caa.value);
            let issuer = value.split(';').next().unwrap_or_default().trim().trim_end_matches('.').to_ascii_lowercase();
            Some((caa.tag.to_ascii_lowercase(), issuer))
        }
        _ => None,
    };
    answer.answers.iter().filter_map(|record| rule(&record.data)).collect()
}

/// Which certificates `rules` keep all of these from issuing, if any (RFC 8659, section 4).
fn forbidden(rules: &[(String, String)], issuers: &[String]) -> Option<&'static str> {
    let of = |wanted: &str| rules.iter().filter(|(tag, _)| tag == wanted).map(|(_, issuer)| issuer).collect::<Vec<_>>();
    let (issue, wild) = (of("issue"), of("issuewild"));
    let allows = |rules: &[&String]| {
        rules.is_empty() || rules.iter().any(|rule| issuers.iter().any(|issuer| issuer.eq_ignore_ascii_case(rule)))
    };
    if !allows(&issue) {
        Some("a certificate")
    } else if !allows(if wild.is_empty() { &issue } else { &wild }) {
        Some(WILDCARD)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;

    #[test]
    fn records_about_issuing_are_read_as_authorities_read_them() {
        let ours = ["ca.example".to_owned(), "other.example".to_owned()];
        for (rules, expected) in [
            (&[][..], None),
            (&[("iodef", "mailto:a@b.example")], None),
            (&[("issue", "ca.example")], None),
            (&[("issue", "CA.example")], None),
            (&[("issue", "third.example"), ("issue", "other.example")], None),
            (&[("issue", "third.example")], Some("a certificate")),
            (&[("issue", "")], Some("a certificate")),
            (&[("issue", "ca.example"), ("issuewild", "")], Some(WILDCARD)),
            (&[("issuewild", "third.example")], Some(WILDCARD)),
            (&[("issuewild", "ca.example"), ("issue", "")], Some("a certificate")),
        ] {
            let rules: Vec<_> = rules.iter().map(|(tag, issuer)| ((*tag).to_owned(), (*issuer).to_owned())).collect();
            assert_eq!(forbidden(&rules, &ours), expected, "{rules:?}");
        }
    }
}
