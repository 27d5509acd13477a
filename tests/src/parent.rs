//! The zone above a relay's domain, and the resolver that everybody asks, which follows what the zone hands over.

use std::net::{Ipv4Addr, SocketAddr};
use std::str::FromStr as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{CAA, NS, SOA, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinSet;

use crate::Network;

/// How long who serves a zone that is handed over has for an answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// `example.com.`, on an address of its own. Asked with recursion, it is a resolver that remembers nothing; asked without, it
/// is the zone's own name server.
#[derive(Debug)]
pub struct Parent {
    address: Ipv4Addr,
    zone: Arc<Zone>,
    tasks: JoinSet<()>,
}

#[derive(Debug)]
struct Zone {
    apex: Name,
    records: Mutex<Vec<Record>>,
}

impl Parent {
    /// Serves the zone with its own records alone, on the near end of the cable.
    pub async fn start(network: &Network) -> Self {
        let address = network.another_here(53);
        let zone = Arc::new(Zone { apex: name("example.com."), records: Mutex::default() });
        let parent = SocketAddr::from((address, 53));
        let udp = UdpSocket::bind(parent).await.expect("port 53");
        let tcp = TcpListener::bind(parent).await.expect("port 53");
        let mut tasks = JoinSet::new();
        let of_udp = zone.clone();
        tasks.spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok((length, peer)) = udp.recv_from(&mut buffer).await {
                if let Some(answer) = of_udp.answer(&buffer[..length]).await {
                    let _ = udp.send_to(&answer, peer).await;
                }
            }
        });
        let of_tcp = zone.clone();
        tasks.spawn(async move {
            while let Ok((mut stream, _)) = tcp.accept().await {
                let Ok(length) = stream.read_u16().await else { continue };
                let mut question = vec![0; usize::from(length)];
                if stream.read_exact(&mut question).await.is_ok()
                    && let Some(answer) = of_tcp.answer(&question).await
                {
                    let framed = [&(answer.len() as u16).to_be_bytes(), &answer[..]].concat();
                    let _ = stream.write_all(&framed).await;
                }
            }
        });
        let parent = Self { address, zone, tasks };
        parent.set::<&str>(&[]);
        parent
    }

    /// Where it is asked.
    pub fn address(&self) -> SocketAddr {
        (self.address, 53).into()
    }

    /// From now on nobody answers there.
    pub async fn stop(&mut self) {
        self.tasks.shutdown().await;
    }

    /// From now on the zone has these records beside its own: a name, `A`, `NS`, `TXT` or `CAA`, and what it says.
    pub fn set<T: AsRef<str>>(&self, records: &[T]) {
        let own = ["example.com. NS ns.example.com.".to_owned(), format!("ns.example.com. A {}", self.address)];
        let all = own.iter().map(String::as_str).chain(records.iter().map(AsRef::as_ref));
        *self.zone.records.lock().unwrap() = all.map(record).collect();
    }
}

impl Zone {
    async fn answer(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let question = Message::from_vec(bytes).ok()?;
        let query = question.queries.first()?.clone();
        let mut answer = Message::response(question.metadata.id, OpCode::Query);
        answer.metadata.recursion_desired = question.metadata.recursion_desired;
        answer.metadata.recursion_available = true;
        answer.add_query(query.clone());
        match self.handed_over(query.name()) {
            Some((servers, _)) if question.metadata.recursion_desired => match self.follow(&query, &servers).await {
                Some(theirs) => {
                    answer.metadata.response_code = theirs.metadata.response_code;
                    (answer.answers, answer.authorities) = (theirs.answers, theirs.authorities);
                }
                None => answer.metadata.response_code = ResponseCode::ServFail,
            },
            Some((servers, glue)) => (answer.authorities, answer.additionals) = (servers, glue),
            None => self.own(&query, &mut answer),
        }
        answer.to_vec().ok()
    }

    /// Who serves a name that is not the zone's own, and where, as far as the zone knows that.
    fn handed_over(&self, name: &Name) -> Option<(Vec<Record>, Vec<Record>)> {
        let records = self.records.lock().unwrap();
        let cuts = records.iter().filter(|record| {
            record.record_type() == RecordType::NS && record.name != self.apex && record.name.zone_of(name)
        });
        let lowest = cuts.map(|record| record.name.clone()).max_by_key(Name::num_labels)?;
        let servers: Vec<_> = records
            .iter()
            .filter(|record| record.record_type() == RecordType::NS && record.name == lowest)
            .cloned()
            .collect();
        let is_server =
            |name: &Name| servers.iter().any(|server| matches!(&server.data, RData::NS(ns) if ns.0 == *name));
        let glue = records.iter().filter(|record| record.record_type() == RecordType::A && is_server(&record.name));
        Some((servers.clone(), glue.cloned().collect()))
    }

    /// Asks who serves it, as resolvers do.
    async fn follow(&self, query: &Query, servers: &[Record]) -> Option<Message> {
        let at = servers.iter().find_map(|server| {
            let RData::NS(NS(host)) = &server.data else { return None };
            let records = self.records.lock().unwrap();
            records.iter().find_map(|record| match &record.data {
                RData::A(ip) if record.name == *host => Some(ip.0),
                _ => None,
            })
        })?;
        let mut question = Message::new(77, MessageType::Query, OpCode::Query);
        question.add_query(query.clone());
        let ask = async {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await.ok()?;
            socket.connect((at, 53)).await.ok()?;
            socket.send(&question.to_vec().ok()?).await.ok()?;
            let mut buffer = [0; 4096];
            let length = socket.recv(&mut buffer).await.ok()?;
            Message::from_vec(&buffer[..length]).ok()
        };
        // REFUSED, and answers that are not those of the zone's own server, are worth as much as none.
        tokio::time::timeout(PATIENCE, ask).await.ok()?.filter(|answer| answer.metadata.authoritative)
    }

    fn own(&self, query: &Query, answer: &mut Message) {
        let records = self.records.lock().unwrap();
        answer.metadata.authoritative = true;
        let (name, kind) = (query.name(), query.query_type());
        if !self.apex.zone_of(name) {
            answer.metadata.response_code = ResponseCode::Refused;
            return;
        }
        let soa = || {
            let (server, contact) = (self::name("ns.example.com."), self::name("hostmaster.example.com."));
            Record::from_rdata(self.apex.clone(), 1, RData::SOA(SOA::new(server, contact, 1, 3600, 600, 86_400, 1)))
        };
        let wildcard = Name::from_str("*").unwrap().append_domain(&name.base_name()).unwrap();
        let is_there = records.iter().any(|record| record.name == *name);
        let owner = if is_there { name } else { &wildcard };
        let found = records.iter().filter(|record| record.name == *owner);
        let fitting = found.clone().filter(|record| record.record_type() == kind);
        answer.answers =
            fitting.map(|record| Record::from_rdata(name.clone(), record.ttl, record.data.clone())).collect();
        if kind == RecordType::SOA && *name == self.apex {
            answer.answers.push(soa());
        }
        if answer.answers.is_empty() {
            answer.authorities.push(soa());
            // A name above others is there, too.
            let is_above = records.iter().any(|record| name.zone_of(&record.name));
            if found.count() == 0 && !is_above {
                answer.metadata.response_code = ResponseCode::NXDomain;
            }
        }
    }
}

fn name(text: &str) -> Name {
    Name::from_ascii(text).expect("a name")
}

/// `relay.example.com. NS ns-relay.example.com.` as a record.
fn record(text: &str) -> Record {
    let mut words = text.splitn(3, ' ');
    let (Some(owner), Some(kind), Some(value)) = (words.next(), words.next(), words.next()) else {
        panic!("no record: {text}")
    };
    let data = match kind {
        "A" => RData::A(value.parse::<Ipv4Addr>().expect("an address").into()),
        "NS" => RData::NS(NS(name(value))),
        "TXT" => RData::TXT(TXT::new(vec![value.to_owned()])),
        "CAA" => {
            let issuer = value.strip_prefix("0 issue \"").and_then(|rest| rest.strip_suffix('"'));
            RData::CAA(CAA::new_issue(false, Some(name(issuer.expect("an issuer"))), Vec::new()))
        }
        other => panic!("{other} is not served here"),
    };
    Record::from_rdata(name(owner), 1, data)
}
