//! What the zone says: a pure function from one DNS message to its answer.
//!
//! There are two zones, one inside the other, so that either can be delegated to the relay: the base domain with every
//! name below it, and `_acme-challenge` alone, for those who have the other records elsewhere.

use std::net::IpAddr;
use std::sync::{PoisonError, RwLock};

use hickory_proto::ProtoError;
use hickory_proto::op::{Edns, Message, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{CAA, HINFO, NS, SOA, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinEncodable as _, BinEncoder};

/// The most that an answer over UDP has, whatever its question allows: it passes every network whole (RFC 9715).
pub(super) const UDP: u16 = 1232;
/// What every question over UDP allows (RFC 1035, section 4.2.1).
const UDP_WITHOUT_EDNS: u16 = 512;
/// The size of a message's header, and of an answer that says only why there is none.
const HEADER: usize = 12;

/// How long resolvers remember a record, in seconds: a machine that moves is found soon.
const TTL: u32 = 300;
/// How long they remember that there is none: a challenge that was not there yet is there a moment later.
const TTL_NONE: u32 = 5;
/// Challenges are new with every order.
const TTL_CHALLENGE: u32 = 1;

/// How a question came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Over {
    /// By a datagram, whose sender may be forged.
    Udp,
    /// On a connection.
    Tcp,
}

/// The records of the base domain.
#[derive(Debug)]
pub(crate) struct Zone {
    domain: Name,
    challenge: Name,
    server: Name,
    addresses: Vec<IpAddr>,
    serial: u32,
    /// The values of the challenge at present. Base and wildcard have one each, under the same name.
    values: RwLock<Vec<String>>,
    /// Who may issue certificates; everybody where there are none.
    issuers: RwLock<Vec<Name>>,
}

impl Zone {
    /// The zone of `domain`, whose names all lead to `addresses`. `server` is the name server as the parent zone has it.
    /// `serial` should grow from start to start.
    ///
    /// # Errors
    /// Where a name is none.
    pub(crate) fn new(domain: &str, server: &str, addresses: Vec<IpAddr>, serial: u32) -> Result<Self, ProtoError> {
        let domain = absolute(domain)?;
        let challenge = challenge_of(&domain)?;
        let server = absolute(server)?;
        Ok(Self { domain, challenge, server, addresses, serial, values: RwLock::default(), issuers: RwLock::default() })
    }

    /// From now on the challenge has these values.
    pub(crate) fn set_challenge(&self, values: Vec<String>) {
        *self.values.write().unwrap_or_else(PoisonError::into_inner) = values;
    }

    /// From now on only these may issue certificates (RFC 8659). What is no domain name is left out.
    pub(crate) fn set_issuers(&self, issuers: &[String]) {
        // Without the dot at their end, which authorities do not expect there.
        let names = issuers.iter().filter_map(|issuer| Name::from_ascii(issuer).ok());
        *self.issuers.write().unwrap_or_else(PoisonError::into_inner) = names.collect();
    }

    /// The answer to a message; none where it is no question.
    pub(super) fn answer(&self, message: &[u8], over: Over) -> Option<Vec<u8>> {
        match read(message)? {
            Ok((question, query)) => Some(encode(self.reply(&question, &query), &question, over)),
            Err((metadata, fault)) => Some(refusal(metadata, fault)),
        }
    }

    /// An answer that says only: ask again over TCP, where senders cannot be forged. No larger than the question.
    pub(super) fn come_over_tcp(message: &[u8]) -> Option<Vec<u8>> {
        let Ok((question, query)) = read(message)? else { return None };
        let mut reply = reply_to(&question, query);
        reply.metadata.truncation = true;
        Some(encode(reply, &question, Over::Udp))
    }

    fn reply(&self, question: &Message, query: &Query) -> Message {
        let mut reply = reply_to(question, query.clone());
        let (name, kind) = (query.name(), query.query_type());
        let transfer = matches!(kind, RecordType::AXFR | RecordType::IXFR);
        let zone = [&self.challenge, &self.domain].into_iter().find(|zone| zone.zone_of(name));
        let Some(zone) = zone.filter(|_| query.query_class() == DNSClass::IN && !transfer) else {
            reply.metadata.response_code = ResponseCode::Refused;
            return reply;
        };
        if question.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
            reply.metadata.response_code = ResponseCode::BADVERS;
            return reply;
        }
        reply.metadata.authoritative = true;
        let at_apex = name == zone;
        if zone == &self.challenge && !at_apex {
            reply.metadata.response_code = ResponseCode::NXDomain;
        } else {
            // The name as it was asked for, with its capitals: resolvers check that.
            let record = |(ttl, data): (u32, RData)| Record::from_rdata(name.clone(), ttl, data);
            reply.answers = self.records(zone, at_apex, kind).into_iter().map(record).collect();
        }
        if reply.answers.is_empty() {
            reply.authorities.push(Record::from_rdata(zone.clone(), TTL_NONE, self.soa()));
        } else if kind == RecordType::NS && self.domain.zone_of(&self.server) {
            let glue = self.addresses.iter().map(|ip| Record::from_rdata(self.server.clone(), TTL, address(*ip)));
            reply.additionals.extend(glue);
        }
        reply
    }

    /// What is at a name of a zone; nothing where it has no such records.
    fn records(&self, zone: &Name, at_apex: bool, kind: RecordType) -> Vec<(u32, RData)> {
        let in_challenge = zone == &self.challenge;
        match kind {
            // Enough for somebody who looks, and too little for somebody who floods others (RFC 8482).
            RecordType::ANY => vec![(TTL, RData::HINFO(HINFO::new("RFC8482".to_owned(), String::new())))],
            RecordType::SOA if at_apex => vec![(TTL, self.soa())],
            RecordType::NS if at_apex => vec![(TTL, RData::NS(NS(self.server.clone())))],
            RecordType::TXT if in_challenge => {
                let values = self.values.read().unwrap_or_else(PoisonError::into_inner);
                values.iter().map(|value| (TTL_CHALLENGE, RData::TXT(TXT::new(vec![value.clone()])))).collect()
            }
            RecordType::CAA if at_apex && !in_challenge => {
                let issuers = self.issuers.read().unwrap_or_else(PoisonError::into_inner);
                let issue = |name: &Name| (TTL, RData::CAA(CAA::new_issue(false, Some(name.clone()), Vec::new())));
                issuers.iter().map(issue).collect()
            }
            RecordType::A | RecordType::AAAA if !in_challenge => {
                let fitting = self.addresses.iter().filter(|ip| ip.is_ipv4() == (kind == RecordType::A));
                fitting.map(|ip| (TTL, address(*ip))).collect()
            }
            _ => Vec::new(),
        }
    }

    fn soa(&self) -> RData {
        // RFC 2142, section 7; nobody transfers the zone, so that the times are for form's sake.
        let contact = self.domain.prepend_label("hostmaster").unwrap_or_else(|_| self.domain.clone());
        RData::SOA(SOA::new(self.server.clone(), contact, self.serial, 3600, 600, 86_400, TTL_NONE))
    }
}

fn address(ip: IpAddr) -> RData {
    match ip {
        IpAddr::V4(v4) => RData::A(v4.into()),
        IpAddr::V6(v6) => RData::AAAA(v6.into()),
    }
}

/// Where a domain is proved (RFC 8555, section 8.4).
pub(crate) fn challenge_of(domain: &Name) -> Result<Name, ProtoError> {
    domain.prepend_label("_acme-challenge")
}

/// A name as it stands in records, to its root.
pub(crate) fn absolute(name: &str) -> Result<Name, ProtoError> {
    let mut name = Name::from_ascii(name)?;
    name.set_fqdn(true);
    Ok(name)
}

/// One question, or what is wrong with it; none where nobody should be answered.
fn read(bytes: &[u8]) -> Option<Result<(Message, Query), (Metadata, ResponseCode)>> {
    // Looked at before anything is parsed, because the counts say how much that would take.
    let &[id1, id2, flags, _, q1, q2, an1, an2, ns1, ns2, ar1, ar2, ..] = bytes else { return None };
    // Answers are not answered: two servers would talk for ever.
    if flags & 0x80 != 0 {
        return None;
    }
    let code = OpCode::from_u8(flags >> 3 & 0x0f);
    let mut metadata = Metadata::new(u16::from_be_bytes([id1, id2]), hickory_proto::op::MessageType::Response, code);
    metadata.recursion_desired = flags & 1 != 0;
    if code != OpCode::Query {
        return Some(Err((metadata, ResponseCode::NotImp)));
    }
    let counts = [[q1, q2], [an1, an2], [ns1, ns2], [ar1, ar2]].map(u16::from_be_bytes);
    // EDNS and a signature may stand behind the question.
    if !matches!(counts, [1, 0, 0, 0..=2]) {
        return Some(Err((metadata, ResponseCode::FormErr)));
    }
    Some(match Message::from_vec(bytes).map(|message| (message.queries.first().cloned(), message)) {
        Ok((Some(query), message)) => Ok((message, query)),
        _ => Err((metadata, ResponseCode::FormErr)),
    })
}

fn reply_to(question: &Message, query: Query) -> Message {
    let mut reply = Message::response(question.metadata.id, OpCode::Query);
    reply.metadata = Metadata::response_from_request(&question.metadata);
    reply.add_query(query);
    if question.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(UDP);
        reply.set_edns(edns);
    }
    reply
}

fn encode(reply: Message, question: &Message, over: Over) -> Vec<u8> {
    let most = match (over, &question.edns) {
        (Over::Tcp, _) => u16::MAX,
        (Over::Udp, Some(edns)) => edns.max_payload().clamp(UDP_WITHOUT_EDNS, UDP),
        (Over::Udp, None) => UDP_WITHOUT_EDNS,
    };
    let mut bytes = Vec::with_capacity(usize::from(UDP_WITHOUT_EDNS));
    let mut encoder = BinEncoder::new(&mut bytes);
    encoder.set_max_size(most);
    match reply.emit(&mut encoder) {
        Ok(()) => bytes,
        Err(_) => refusal(reply.metadata, ResponseCode::ServFail),
    }
}

/// A header alone.
fn refusal(mut metadata: Metadata, fault: ResponseCode) -> Vec<u8> {
    metadata.response_code = fault;
    metadata.authoritative = false;
    let mut message = Message::response(metadata.id, metadata.op_code);
    message.metadata = metadata;
    let mut bytes = Vec::with_capacity(HEADER);
    // A header always fits.
    let _ = message.emit(&mut BinEncoder::new(&mut bytes));
    bytes
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use hickory_proto::op::MessageType;
    use proptest::prelude::*;

    use super::*;

    fn zone() -> Zone {
        let addresses = ["203.0.113.7", "2001:db8::7"].map(|ip| ip.parse().unwrap());
        let zone = Zone::new("relay.example.com", "ns-relay.example.com", addresses.to_vec(), 7).unwrap();
        zone.set_challenge(vec!["one".to_owned(), "two".to_owned()]);
        zone.set_issuers(&["ca.example".to_owned(), "not a name".repeat(100)]);
        zone
    }

    fn question(name: &str, kind: RecordType) -> Message {
        let mut message = Message::new(77, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        message
    }

    fn ask(zone: &Zone, question: &Message) -> Message {
        let answer = zone.answer(&question.to_vec().unwrap(), Over::Udp).unwrap();
        let answer = Message::from_vec(&answer).unwrap();
        assert_eq!((answer.metadata.id, answer.metadata.message_type), (77, MessageType::Response));
        assert!(!answer.metadata.recursion_available && answer.metadata.recursion_desired);
        answer
    }

    /// The code, whether it is authoritative, and the data of the answers.
    fn says(zone: &Zone, name: &str, kind: RecordType) -> (ResponseCode, bool, Vec<String>) {
        let answer = ask(zone, &question(name, kind));
        let data = answer.answers.iter().map(|record| record.data.to_string()).collect();
        (answer.metadata.response_code, answer.metadata.authoritative, data)
    }

    #[test]
    fn every_name_of_the_domain_leads_to_the_relay() {
        let zone = zone();
        for name in
            ["relay.example.com.", "hooks.relay.example.com.", "HOOKS.Relay.Example.Com.", "a.b.relay.example.com."]
        {
            assert_eq!(
                says(&zone, name, RecordType::A),
                (ResponseCode::NoError, true, vec!["203.0.113.7".to_owned()]),
                "{name}"
            );
            assert_eq!(says(&zone, name, RecordType::AAAA).2, ["2001:db8::7"], "{name}");
            // There is the name, but not the record.
            assert_eq!(says(&zone, name, RecordType::MX), (ResponseCode::NoError, true, Vec::new()), "{name}");
            let asked = question(name, RecordType::A);
            assert!(ask(&zone, &asked).answers[0].name.eq_case(&asked.queries[0].name), "{name}");
        }
        assert_eq!(says(&zone, "relay.example.com.", RecordType::NS).2, ["ns-relay.example.com."]);
        let soa = "ns-relay.example.com. hostmaster.relay.example.com. 7 3600 600 86400 5";
        assert_eq!(says(&zone, "relay.example.com.", RecordType::SOA).2, [soa]);
        assert_eq!(says(&zone, "relay.example.com.", RecordType::CAA).2, ["0 issue \"ca.example\""]);
        assert_eq!(says(&zone, "hooks.relay.example.com.", RecordType::TXT).2, [""; 0]);
    }

    #[test]
    fn the_challenge_is_a_zone_of_its_own() {
        let zone = zone();
        let name = "_Acme-challenge.relay.example.com.";
        let mut both = says(&zone, name, RecordType::TXT).2;
        both.sort();
        assert_eq!(both, ["one", "two"]);
        assert_eq!(says(&zone, name, RecordType::NS).2, ["ns-relay.example.com."]);
        assert_eq!(says(&zone, name, RecordType::A), (ResponseCode::NoError, true, Vec::new()));
        let below = says(&zone, "x._acme-challenge.relay.example.com.", RecordType::TXT);
        assert_eq!(below, (ResponseCode::NXDomain, true, Vec::new()));
        zone.set_challenge(Vec::new());
        let none = ask(&zone, &question(name, RecordType::TXT));
        assert_eq!((none.answers.len(), none.authorities[0].name.to_ascii().to_lowercase()), (0, name.to_lowercase()));
    }

    #[test]
    fn what_is_not_ours_is_refused() {
        let zone = zone();
        let refused = (ResponseCode::Refused, false, Vec::new());
        for (name, kind) in [
            ("example.com.", RecordType::A),
            ("xrelay.example.com.", RecordType::A),
            (".", RecordType::NS),
            ("version.bind.", RecordType::TXT),
            ("relay.example.com.", RecordType::AXFR),
            ("relay.example.com.", RecordType::IXFR),
        ] {
            assert_eq!(says(&zone, name, kind), refused, "{name} {kind}");
        }
        let mut chaos = question("relay.example.com.", RecordType::A);
        chaos.queries[0].set_query_class(DNSClass::CH);
        assert_eq!(ask(&zone, &chaos).metadata.response_code, ResponseCode::Refused);
        let mut update = question("relay.example.com.", RecordType::SOA);
        update.metadata.op_code = OpCode::Update;
        assert_eq!(ask(&zone, &update).metadata.response_code, ResponseCode::NotImp);
        let mut two = question("relay.example.com.", RecordType::A);
        two.add_query(two.queries[0].clone());
        assert_eq!(ask(&zone, &two).metadata.response_code, ResponseCode::FormErr);
        let mut answer = question("relay.example.com.", RecordType::A);
        answer.metadata.message_type = MessageType::Response;
        assert_eq!(zone.answer(&answer.to_vec().unwrap(), Over::Udp), None);
        assert_eq!(zone.answer(b"short", Over::Tcp), None);
    }

    #[test]
    fn edns_is_answered_by_edns() {
        let zone = zone();
        let mut asked = question("relay.example.com.", RecordType::A);
        asked.set_edns(Edns::new());
        assert_eq!(ask(&zone, &asked).edns.unwrap().max_payload(), UDP);
        asked.edns.as_mut().unwrap().set_version(1);
        let answer = ask(&zone, &asked);
        // The code has another meaning in signatures.
        assert_eq!((u16::from(answer.metadata.response_code), answer.answers.len()), (16, 0));
    }

    #[test]
    fn what_does_not_fit_is_cut_and_comes_over_tcp() {
        let zone = zone();
        zone.set_challenge((0..40).map(|number| format!("{number:043}")).collect());
        let asked = question("_acme-challenge.relay.example.com.", RecordType::TXT);
        let cut = ask(&zone, &asked);
        assert!(cut.metadata.truncation && cut.answers.len() < 40);
        let whole = zone.answer(&asked.to_vec().unwrap(), Over::Tcp).unwrap();
        assert_eq!(Message::from_vec(&whole).unwrap().answers.len(), 40);
    }

    fn size_allowed(packet: &[u8]) -> usize {
        let edns = Message::from_vec(packet).ok().and_then(|message| message.edns);
        usize::from(edns.map_or(512, |edns| edns.max_payload().clamp(512, UDP)))
    }

    proptest! {
        #[test]
        fn no_message_is_answered_by_more_than_it_allows(
            label in "[a-z_]{1,20}", below in any::<bool>(), kind in any::<u16>(), payload in any::<Option<u16>>(),
            challenges in 0..60_usize, cut in any::<prop::sample::Index>(), flip in any::<(prop::sample::Index, u8)>(),
        ) {
            let zone = zone();
            zone.set_challenge(vec!["v".repeat(43); challenges]);
            let name = if below { format!("{label}.relay.example.com.") } else { "_acme-challenge.relay.example.com.".to_owned() };
            let mut asked = question(&name, RecordType::from(kind));
            if let Some(payload) = payload {
                let mut edns = Edns::new();
                edns.set_max_payload(payload);
                asked.set_edns(edns);
            }
            let mut packet = asked.to_vec().unwrap();
            for step in 0..3 {
                if let Some(answer) = zone.answer(&packet, Over::Udp) {
                    prop_assert!(answer.len() <= size_allowed(&packet));
                    let read = Message::from_vec(&answer);
                    prop_assert!(read.is_ok(), "{read:?}");
                }
                if let Some(answer) = Zone::come_over_tcp(&packet) {
                    prop_assert!(answer.len() <= packet.len(), "{} for {}", answer.len(), packet.len());
                }
                if step == 0 {
                    let at = flip.0.index(packet.len());
                    packet[at] ^= flip.1;
                } else {
                    packet.truncate(cut.index(packet.len() + 1));
                }
            }
        }

        #[test]
        fn no_bytes_do_harm(packet in prop::collection::vec(any::<u8>(), 0..600)) {
            let zone = zone();
            if let Some(answer) = zone.answer(&packet, Over::Udp) {
                prop_assert!(answer.len() <= size_allowed(&packet));
            }
        }
    }
}
