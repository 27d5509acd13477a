//! Asks other name servers, to see of a domain what the world sees.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{AddrParseError, IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use futures_util::future::{join, join_all};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::place::PORT;
use super::zone::UDP;

/// How long one server has for one answer, and how often it is asked over UDP, where packets get lost.
const WITHIN: Duration = Duration::from_secs(2);
const TRIES: usize = 2;
/// Servers of a zone that are asked; they are to say the same.
const SERVERS: usize = 4;
/// Aliases of one name, one behind the other.
const ALIASES: usize = 8;
/// Of the resolvers that a machine names (resolv.conf(5), `MAXNS`).
const RESOLVERS: usize = 3;

/// Whom the relay asks for what the world sees of its domain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Resolver {
    /// Those that this machine uses, as `/etc/resolv.conf` names them.
    #[default]
    System,
    /// This one.
    At(SocketAddr),
    /// Nobody, because the domain is known in a network of one's own only.
    Off,
}

impl FromStr for Resolver {
    type Err = AddrParseError;

    fn from_str(text: &str) -> Result<Self, AddrParseError> {
        match text {
            "system" => Ok(Self::System),
            "off" => Ok(Self::Off),
            _ => match text.parse::<IpAddr>() {
                Ok(ip) => Ok(Self::At(SocketAddr::from((ip, PORT)))),
                Err(_) => text.parse().map(Self::At),
            },
        }
    }
}

/// Why it is not known what somebody says.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LookupError {
    /// It does not answer.
    #[error("the name server {server} does not answer")]
    Silent {
        /// Who was asked.
        server: SocketAddr,
    },
    /// It cannot be asked.
    #[error("the name server {server} cannot be asked: {error}")]
    Unreachable {
        /// Who was asked.
        server: SocketAddr,
        /// What the system said.
        error: io::Error,
    },
    /// It answers that it does not know.
    #[error("the name server {server} does not say what {name} is: {code}")]
    Failed {
        /// Who was asked.
        server: SocketAddr,
        /// For what.
        name: Name,
        /// Its words.
        code: ResponseCode,
    },
    /// All of it took too long.
    #[error("the name servers did not answer within {} s", within.as_secs())]
    Slow {
        /// In what time.
        within: Duration,
    },
    /// Nobody says who serves the zone.
    #[error("no name server is known for the zone that {name} is in")]
    NoServers {
        /// The name.
        name: Name,
    },
}

/// A zone, and some of those who serve it.
#[derive(Clone, Debug)]
pub(crate) struct Authority {
    /// The zone's own name.
    pub(crate) zone: Name,
    /// Each of its servers at one address.
    pub(crate) servers: Vec<(Name, IpAddr)>,
}

/// The way to what the world knows: resolvers that ask on behalf of anybody.
#[derive(Clone, Debug)]
pub(crate) struct Lookup {
    resolvers: Vec<SocketAddr>,
}

impl Lookup {
    /// None where nobody is to be asked. Blocks on the file system.
    pub(crate) fn new(resolver: Resolver) -> Option<Self> {
        match resolver {
            Resolver::Off => None,
            Resolver::At(address) => Some(Self { resolvers: vec![address] }),
            Resolver::System => {
                let text = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
                Some(Self { resolvers: resolvers_in(&text) })
            }
        }
    }

    /// The first that is asked.
    pub(crate) fn resolver(&self) -> Option<SocketAddr> {
        self.resolvers.first().copied()
    }

    /// What a resolver says, who asks whom it takes. That there is no such name is an answer.
    pub(crate) async fn resolve(&self, name: &Name, kind: RecordType) -> Result<Message, LookupError> {
        let mut failure = LookupError::NoServers { name: name.clone() };
        for resolver in &self.resolvers {
            match ask(*resolver, name, kind, true).await {
                Ok(answer) => return Ok(answer),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    /// What a name has as TXT records; nothing is an answer.
    pub(crate) async fn texts(&self, name: &Name) -> Result<Vec<String>, LookupError> {
        Ok(texts_in(&self.resolve(name, RecordType::TXT).await?).collect())
    }

    /// Where a name leads; nowhere is an answer.
    pub(crate) async fn addresses(&self, name: &Name) -> Result<Vec<IpAddr>, LookupError> {
        let (v4, v6) = join(self.resolve(name, RecordType::A), self.resolve(name, RecordType::AAAA)).await;
        Ok(addresses_in(&v4?).chain(addresses_in(&v6?)).collect::<BTreeSet<_>>().into_iter().collect())
    }

    /// Where the records of a name are that is proved by a TXT record: behind its aliases (RFC 1034, section 3.6.2). One that
    /// a wildcard gives to every name is none of its own, and gives way once there is a record.
    pub(crate) async fn behind_aliases(&self, name: &Name) -> Result<Name, LookupError> {
        let end = self.last_alias(name).await?;
        if end == *name {
            return Ok(end);
        }
        let Ok(other) = name.base_name().prepend_label(format!("_{:016x}", fastrand::u64(..))) else { return Ok(end) };
        let is_wild = self.last_alias(&other).await.is_ok_and(|theirs| theirs == end);
        Ok(if is_wild { name.clone() } else { end })
    }

    async fn last_alias(&self, name: &Name) -> Result<Name, LookupError> {
        let answer = self.resolve(name, RecordType::TXT).await?;
        let mut end = name.clone();
        for _ in 0..ALIASES {
            let next = answer.answers.iter().find_map(|record| match &record.data {
                RData::CNAME(next) if record.name == end => Some(next.0.clone()),
                _ => None,
            });
            let Some(next) = next else { break };
            end = next;
        }
        Ok(end)
    }

    /// The zone that has the records of `name`, which need not be there.
    pub(crate) async fn authority(&self, name: &Name) -> Result<Authority, LookupError> {
        let nobody = || LookupError::NoServers { name: name.clone() };
        let zone = self.zone_of(name).await?;
        let answer = self.resolve(&zone, RecordType::NS).await?;
        let hosts: Vec<_> = servers_in(&answer, &zone).take(SERVERS).collect();
        let found = join_all(hosts.iter().map(|host| self.addresses(host))).await;
        let first = |(host, found): (&Name, Result<Vec<IpAddr>, _>)| Some((host.clone(), *found.ok()?.first()?));
        let servers: Vec<_> = hosts.iter().zip(found).filter_map(first).collect();
        if servers.is_empty() { Err(nobody()) } else { Ok(Authority { zone, servers }) }
    }

    /// The zone that has the records of `name`.
    async fn zone_of(&self, name: &Name) -> Result<Name, LookupError> {
        let mut above = name.clone();
        loop {
            // Some resolvers leave out of which zone it is that there is no such name, so that the next one up is asked for.
            if let Some(zone) = soa_in(&self.resolve(&above, RecordType::SOA).await?, name) {
                return Ok(zone);
            }
            if above.is_root() {
                return Err(LookupError::NoServers { name: name.clone() });
            }
            above = above.base_name();
        }
    }
}

impl Authority {
    /// Which of its servers do not show all of these TXT records, of those who answer. None where nobody does.
    pub(crate) async fn lacking(&self, name: &Name, values: &[String]) -> Option<Vec<String>> {
        let asked = self.servers.iter().map(|(_, ip)| ask((*ip, PORT).into(), name, RecordType::TXT, false));
        let answers = join_all(asked).await;
        let answers: Vec<_> =
            self.servers.iter().zip(&answers).filter_map(|(at, said)| Some((at, said.as_ref().ok()?))).collect();
        let shows = |answer: &Message| values.iter().all(|value| texts_in(answer).any(|text| text == *value));
        let lacking = answers.iter().filter(|(_, answer)| !shows(answer));
        (!answers.is_empty()).then(|| lacking.map(|((server, ip), _)| format!("{server} ({ip})")).collect())
    }
}

/// The zone that has the records of `name` as an answer has it: of a name that is no zone's own, it is told beside the answer
/// that there is none (RFC 2308).
pub(super) fn soa_in(answer: &Message, name: &Name) -> Option<Name> {
    let mut told = answer.answers.iter().chain(&answer.authorities);
    let zone = told.find(|record| record.record_type() == RecordType::SOA && record.name.zone_of(name))?;
    Some(zone.name.clone())
}

/// The addresses in an answer, those at the end of an alias among them.
pub(crate) fn addresses_in(answer: &Message) -> impl Iterator<Item = IpAddr> {
    answer.answers.iter().filter_map(|record| address_in(&record.data))
}

pub(super) fn address_in(data: &RData) -> Option<IpAddr> {
    match data {
        RData::A(v4) => Some(v4.0.into()),
        RData::AAAA(v6) => Some(v6.0.into()),
        _ => None,
    }
}

/// The TXT records in an answer.
fn texts_in(answer: &Message) -> impl Iterator<Item = String> {
    answer.answers.iter().filter_map(|record| match &record.data {
        RData::TXT(text) => Some(String::from_utf8_lossy(&text.txt_data.concat()).into_owned()),
        _ => None,
    })
}

/// Who serves `zone` as an answer has it, be it that of a server of the zone or of one above.
pub(super) fn servers_in(answer: &Message, zone: &Name) -> impl Iterator<Item = Name> {
    let records = answer.answers.iter().chain(&answer.authorities).filter(move |record| record.name == *zone);
    let hosts = records.filter_map(|record| match &record.data {
        RData::NS(host) => Some(host.0.clone()),
        _ => None,
    });
    hosts.collect::<BTreeSet<_>>().into_iter()
}

/// Asks one server one question. With `recursive` it is to ask others.
pub(crate) async fn ask(
    server: SocketAddr,
    name: &Name,
    kind: RecordType,
    recursive: bool,
) -> Result<Message, LookupError> {
    let mut question = Message::new(fastrand::u16(..), MessageType::Query, OpCode::Query);
    question.metadata.recursion_desired = recursive;
    question.add_query(Query::query(name.clone(), kind));
    let mut edns = Edns::new();
    edns.set_max_payload(UDP);
    question.set_edns(edns);
    let unreachable = |error| LookupError::Unreachable { server, error };
    let bytes = question.to_vec().map_err(|error| unreachable(io::Error::other(error)))?;
    let mut failure = LookupError::Silent { server };
    for _ in 0..TRIES {
        let answer = match timeout(WITHIN, over_udp(server, &bytes, &question)).await {
            Ok(Ok(answer)) if answer.metadata.truncation => timeout(WITHIN, whole(server, &bytes, &question)).await,
            answer => answer,
        };
        match answer {
            Ok(Ok(answer)) => {
                return match answer.metadata.response_code {
                    ResponseCode::NoError | ResponseCode::NXDomain => Ok(answer),
                    code => Err(LookupError::Failed { server, name: name.clone(), code }),
                };
            }
            Ok(Err(error)) => failure = unreachable(error),
            Err(_) => failure = LookupError::Silent { server },
        }
    }
    Err(failure)
}

async fn over_udp(server: SocketAddr, bytes: &[u8], question: &Message) -> io::Result<Message> {
    let any: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { std::net::Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(bytes).await?;
    let mut buffer = [0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // Late answers to other questions, and forged ones, are passed over.
        let read = Message::from_vec(buffer.get(..length).unwrap_or_default());
        if let Some(answer) = read.ok().filter(|answer| answers(answer, question)) {
            return Ok(answer);
        }
    }
}

/// What does not fit into a datagram.
async fn whole(server: SocketAddr, bytes: &[u8], question: &Message) -> io::Result<Message> {
    let answer = Message::from_vec(&over_tcp(server, bytes).await?).map_err(io::Error::other)?;
    let other = || io::Error::other("it answers another question");
    Some(answer).filter(|answer| answers(answer, question)).ok_or_else(other)
}

/// One message and its answer, on a connection of their own (RFC 7766).
pub(super) async fn over_tcp(server: SocketAddr, message: &[u8]) -> io::Result<Vec<u8>> {
    let mut tcp = TcpStream::connect(server).await?;
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    tcp.write_all(&[&length.to_be_bytes(), message].concat()).await?;
    let mut answer = vec![0; usize::from(tcp.read_u16().await?)];
    tcp.read_exact(&mut answer).await?;
    Ok(answer)
}

fn answers(answer: &Message, question: &Message) -> bool {
    answer.metadata.id == question.metadata.id
        && answer.metadata.message_type == MessageType::Response
        && answer.queries == question.queries
}

/// The resolvers that a `resolv.conf` names; the one of this machine where it names none.
fn resolvers_in(text: &str) -> Vec<SocketAddr> {
    let addresses = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let is_one = words.next() == Some("nameserver");
        words.next().filter(|_| is_one)?.parse::<IpAddr>().ok()
    });
    let found: Vec<_> = addresses.take(RESOLVERS).map(|ip| SocketAddr::from((ip, PORT))).collect();
    if found.is_empty() { vec![SocketAddr::from((Ipv4Addr::LOCALHOST, PORT))] } else { found }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;

    #[test]
    fn resolvers_are_an_address_or_a_word() {
        let at = |text: &str| text.parse().map(Resolver::At).unwrap();
        for (text, expected) in [
            ("system", Resolver::System),
            ("off", Resolver::Off),
            ("192.0.2.1", at("192.0.2.1:53")),
            ("192.0.2.1:5353", at("192.0.2.1:5353")),
            ("2001:db8::1", at("[2001:db8::1]:53")),
            ("[2001:db8::1]:5353", at("[2001:db8::1]:5353")),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        assert!("dns.example.com".parse::<Resolver>().is_err());
    }

    #[test]
    fn those_of_the_machine_are_read_as_others_read_them() {
        let text = "# nameserver 192.0.2.9\nsearch example.com\nnameserver 192.0.2.1\nnameserver\t2001:db8::1\n\
                    nameserver fe80::1%eth0\noptions edns0\nnameserver 192.0.2.3\nnameserver 192.0.2.4\n";
        let found: Vec<_> = resolvers_in(text).iter().map(SocketAddr::to_string).collect();
        assert_eq!(found, ["192.0.2.1:53", "[2001:db8::1]:53", "192.0.2.3:53"]);
        assert_eq!(resolvers_in(""), ["127.0.0.1:53".parse().unwrap()]);
    }

    #[tokio::test]
    async fn forged_answers_are_passed_over_and_long_ones_come_over_tcp() {
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            if let Ok(tcp) = tokio::net::TcpListener::bind(udp.local_addr().unwrap()).await {
                break (udp, tcp);
            }
        };
        let server = udp.local_addr().unwrap();
        let serve = async {
            let mut buffer = [0; 512];
            let (length, peer) = udp.recv_from(&mut buffer).await.unwrap();
            let question = Message::from_vec(&buffer[..length]).unwrap();
            assert!(question.metadata.recursion_desired);
            let mut answer = question.clone();
            answer.metadata.message_type = MessageType::Response;
            answer.metadata.id = question.metadata.id.wrapping_add(1);
            udp.send_to(&answer.to_vec().unwrap(), peer).await.unwrap();
            udp.send_to(b"noise", peer).await.unwrap();
            answer.metadata.id = question.metadata.id;
            answer.metadata.truncation = true;
            udp.send_to(&answer.to_vec().unwrap(), peer).await.unwrap();
            let (mut stream, _) = tcp.accept().await.unwrap();
            let mut asked = vec![0; usize::from(stream.read_u16().await.unwrap())];
            stream.read_exact(&mut asked).await.unwrap();
            assert_eq!(asked, buffer[..length]);
            answer.metadata.truncation = false;
            let address = RData::A(Ipv4Addr::new(203, 0, 113, 7).into());
            answer.add_answer(hickory_proto::rr::Record::from_rdata(question.queries[0].name().clone(), 1, address));
            let bytes = answer.to_vec().unwrap();
            stream.write_all(&[&(bytes.len() as u16).to_be_bytes(), &bytes[..]].concat()).await.unwrap();
        };
        let name = Name::from_ascii("relay.example.com.").unwrap();
        let (answer, ()) = tokio::join!(ask(server, &name, RecordType::A, true), serve);
        let found: Vec<_> = addresses_in(&answer.unwrap()).collect();
        assert_eq!(found, [IpAddr::from([203, 0, 113, 7])]);
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_named() {
        let gone = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let name = Name::from_ascii("relay.example.com.").unwrap();
        let error = ask(gone, &name, RecordType::A, true).await.unwrap_err();
        assert!(matches!(error, LookupError::Unreachable { .. }) && error.to_string().contains(&gone.to_string()));
    }
}
