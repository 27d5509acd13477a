//! Whether the zone above hands the domain over to this machine: as its own name servers say, because a resolver remembers
//! for minutes or hours what was before.
//!
//! ```text
//!   example.com.  ──NS relay.example.com.──▶ here                             the whole domain
//!        │
//!        └── or: relay.example.com. is there, or in a zone of its own
//!                     └──NS _acme-challenge.relay.example.com.──▶ here        the challenge alone
//! ```

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::future::{join, join_all};
use hickory_proto::ProtoError;
use hickory_proto::op::Message;
use hickory_proto::rr::{Name, RecordType};
use tokio::time::timeout;

use super::lookup::{Authority, Lookup, LookupError, address_in, addresses_in, ask, servers_in};
use super::place::PORT;
use super::zone::{absolute, challenge_of};

/// How long is looked. Servers that are silent take a few seconds each.
const WITHIN: Duration = Duration::from_secs(20);

/// Name servers of a name that are looked at. Each takes questions of its own, and the answer that names them is a stranger's.
const HOSTS: usize = 8;

/// What has to be handed over, and to whom.
#[derive(Clone, Debug)]
pub(crate) struct Parent {
    lookup: Lookup,
    domain: Name,
    challenge: Name,
    /// The name server as the parent zone should have it.
    server: Name,
    /// This machine.
    public: Vec<IpAddr>,
}

/// What the zone above says.
#[derive(Clone, Debug)]
pub(crate) struct Delegation {
    /// The zone.
    pub(crate) zone: String,
    /// What it hands over to this machine; none where nothing leads here.
    pub(crate) handed: Option<Handed>,
    /// What it says instead, or of it: records, with where they lead.
    pub(crate) found: Vec<String>,
    /// Servers of the zone that do not say so, though others do.
    pub(crate) behind: Vec<String>,
    /// Records of it that lead elsewhere, beside those that lead here.
    pub(crate) astray: Vec<String>,
}

/// What is handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Handed {
    /// The domain with everything below it.
    Domain,
    /// The name of the challenge, while the records of the domain are elsewhere.
    Challenge,
}

/// What one server says of who serves a name.
#[derive(Debug)]
struct Said {
    server: String,
    hosts: Vec<Host>,
}

/// A name server that somebody names.
#[derive(Debug)]
struct Host {
    name: Name,
    addresses: Vec<IpAddr>,
}

impl Parent {
    /// `server` is the name server's name, `public` its addresses.
    ///
    /// # Errors
    /// Where a name is none.
    pub(crate) fn new(lookup: Lookup, domain: &str, server: &str, public: Vec<IpAddr>) -> Result<Self, ProtoError> {
        let domain = absolute(domain)?;
        let challenge = challenge_of(&domain)?;
        Ok(Self { lookup, challenge, domain, server: absolute(server)?, public })
    }

    /// Looks at it now.
    ///
    /// # Errors
    /// Where it cannot be told, because nobody answers.
    pub(crate) async fn look(&self) -> Result<Delegation, LookupError> {
        // Boxed, because it is big.
        let look = Box::pin(timeout(WITHIN, self.look_up()));
        look.await.unwrap_or(Err(LookupError::Slow { within: WITHIN }))
    }

    async fn look_up(&self) -> Result<Delegation, LookupError> {
        let above = self.lookup.authority(&self.domain.base_name()).await?;
        let whole = self.said(&above, &self.domain).await?;
        if whole.iter().any(|said| self.is_here(said)) {
            return Ok(self.judge(above.zone, Some(Handed::Domain), &self.domain, &whole));
        }
        // Its records are beside those of the zone above, or in a zone of its own.
        let others = self.others(&above, &whole);
        let challenge = match self.said(&others, &self.challenge).await {
            Ok(said) => said,
            // Where it is meant to lead here and does not, nobody else can say more.
            Err(_) if whole.iter().flat_map(|said| &said.hosts).any(|host| host.name == self.server) => Vec::new(),
            Err(error) => return Err(error),
        };
        if challenge.iter().any(|said| self.is_here(said)) {
            return Ok(self.judge(others.zone, Some(Handed::Challenge), &self.challenge, &challenge));
        }
        let mut neither = self.judge(above.zone, None, &self.domain, &whole);
        neither.found.extend(self.judge(others.zone, None, &self.challenge, &challenge).found);
        Ok(neither)
    }

    /// Who has the records of the domain where they are not here.
    fn others(&self, above: &Authority, whole: &[Said]) -> Authority {
        let hosts: Vec<_> = whole.iter().flat_map(|said| &said.hosts).collect();
        if hosts.is_empty() {
            return above.clone();
        }
        let servers = hosts.iter().filter_map(|host| Some((host.name.clone(), *host.addresses.first()?)));
        Authority { zone: self.domain.clone(), servers: servers.collect::<BTreeSet<_>>().into_iter().collect() }
    }

    fn judge(&self, zone: Name, handed: Option<Handed>, name: &Name, said: &[Said]) -> Delegation {
        let hosts = said.iter().flat_map(|said| &said.hosts);
        let found: BTreeSet<_> = hosts.clone().map(|host| format!("{name} NS {} ({host})", host.name)).collect();
        let others = hosts.filter(|host| handed.is_some() && !self.leads_here(host));
        let astray: BTreeSet<_> = others.map(|host| format!("{name} NS {}", host.name)).collect();
        let behind = said.iter().filter(|said| handed.is_some() && !self.is_here(said));
        let behind = behind.map(|said| said.server.clone()).collect();
        let [found, astray] = [found, astray].map(|records| records.into_iter().collect());
        Delegation { zone: zone.to_string(), handed, found, behind, astray }
    }

    fn leads_here(&self, host: &Host) -> bool {
        host.addresses.iter().any(|ip| self.public.contains(ip))
    }

    fn is_here(&self, said: &Said) -> bool {
        said.hosts.iter().any(|host| self.leads_here(host))
    }

    /// What those who serve a zone say of who serves `name`: all who answer, and one at least.
    async fn said(&self, authority: &Authority, name: &Name) -> Result<Vec<Said>, LookupError> {
        let mut failure = LookupError::NoServers { name: name.clone() };
        let mut all = Vec::new();
        let asked = authority.servers.iter().map(|(server, ip)| self.said_by(server, *ip, name));
        for said in join_all(asked).await {
            match said {
                Ok(said) => all.push(said),
                Err(error) => failure = error,
            }
        }
        if all.is_empty() { Err(failure) } else { Ok(all) }
    }

    async fn said_by(&self, server: &Name, ip: IpAddr, name: &Name) -> Result<Said, LookupError> {
        let at = SocketAddr::from((ip, PORT));
        let answer = ask(at, name, RecordType::NS, false).await?;
        let mut hosts = Vec::new();
        for host in servers_in(&answer, name).take(HOSTS) {
            let addresses = self.addresses(&host, &answer, at).await?;
            hosts.push(Host { name: host, addresses });
        }
        Ok(Said { server: format!("{server} ({ip})"), hosts })
    }

    /// Where a name server is: as stands beside its name, else as the same server knows, else as the world does.
    async fn addresses(&self, host: &Name, beside: &Message, at: SocketAddr) -> Result<Vec<IpAddr>, LookupError> {
        let glue = beside.additionals.iter().filter(|record| record.name == *host);
        let glue: Vec<_> = glue.filter_map(|record| address_in(&record.data)).collect();
        if !glue.is_empty() {
            return Ok(glue);
        }
        let own = join(ask(at, host, RecordType::A, false), ask(at, host, RecordType::AAAA, false)).await;
        let own: Vec<_> = [own.0, own.1].iter().flatten().flat_map(addresses_in).collect();
        if own.is_empty() { self.lookup.addresses(host).await } else { Ok(own) }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.addresses[..] {
            [] => f.write_str("which has no address"),
            some => f.write_str(&some.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
        }
    }
}

/// What stands where the zone above does not lead here, in words.
impl fmt::Display for Delegation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.found[..] {
            [] => write!(f, "the zone {} has no NS record for it", self.zone),
            found => write!(f, "the zone {} has {}", self.zone, found.join(" and ")),
        }
    }
}
