//! The name server for the base domain, so that nobody needs another one to prove that the domain is theirs; and, for those
//! who have one, updates of its records.
//!
//! It answers for its zone alone, on the addresses that it is given, over UDP and TCP: no recursion, no transfers. What a
//! stranger sends costs a count, and within its rate one look-up of a fixed few records; see `Zone`.

mod delegation;
mod lookup;
mod place;
mod rate;
mod tsig;
mod update;
mod zone;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::timeout;

pub(crate) use self::delegation::{Delegation, Handed, Parent};
pub use self::lookup::Resolver;
pub(crate) use self::lookup::{Lookup, LookupError, ask};
pub use self::place::PlaceError;
pub(crate) use self::place::{listen_at, seen_as};
use self::rate::Rate;
pub(crate) use self::update::{Change, Updates, with_port};
pub use self::update::{UpdateConfig, UpdateError};
use self::zone::Over;
pub(crate) use self::zone::{Zone, absolute, challenge_of};
use crate::descriptors::{Handle, Sockets, What, handle};
use crate::places::Places;
use crate::{Shared, StartError};

/// Of a question; none has a reason to be longer.
const QUESTION: usize = 4096;
/// Connections at once, of all and of one address. Resolvers come over TCP for what does not fit, which little does.
const CONNECTIONS: (usize, usize) = (256, 16);
/// For a question and its answer, on a connection.
const SILENCE: Duration = Duration::from_secs(10);
/// Questions of one connection.
const QUESTIONS: usize = 100;
/// What is none of ours is answered with this code (RFC 1035, section 4.1.1).
const REFUSED: u8 = 5;
/// A random port is tried again where UDP and TCP do not both have it free.
const TRIES: usize = 20;

/// A name server that is bound and does not answer yet.
#[derive(Debug)]
pub(crate) struct Server {
    zone: Arc<Zone>,
    sockets: Vec<(Arc<UdpSocket>, Arc<TcpListener>)>,
}

impl Server {
    /// Binds each address for UDP and TCP. Port 0 becomes one that is free for both.
    pub(crate) fn bind(addresses: &[SocketAddr], zone: Arc<Zone>, inherited: &mut Sockets) -> Result<Self, StartError> {
        let sockets = addresses.iter().map(|address| {
            let mut tries = 0;
            loop {
                tries += 1;
                match bind(*address, inherited) {
                    Err(_) if address.port() == 0 && tries < TRIES => {}
                    bound => return bound,
                }
            }
        });
        Ok(Self { zone, sockets: sockets.collect::<Result<_, _>>()? })
    }

    /// What another process needs to answer in its place.
    pub(crate) fn offer(&self) -> impl Iterator<Item = (What, Handle)> {
        let handles = self.sockets.iter().flat_map(|(udp, tcp)| [handle(udp), handle(tcp)]);
        handles.map(|handle| (What::Dns, handle))
    }

    /// Where it answers.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.sockets.iter().filter_map(|(udp, _)| udp.local_addr().ok())
    }

    /// Answers in tasks of the relay's, until it closes or another process answers.
    pub(crate) fn serve(self, shared: &Arc<Shared>) {
        let (rate, places) = (Arc::new(Rate::default()), Arc::new(Places::new(CONNECTIONS.0, CONNECTIONS.1)));
        for (udp, tcp) in self.sockets {
            let (owner, zone, rate) = (shared.clone(), self.zone.clone(), rate.clone());
            shared.spawn(async move {
                // Boxed, because the buffer is part of it.
                let answer = Box::pin(answer_datagrams(&owner, &zone, &rate, &udp));
                owner.while_in_charge(answer).await;
            });
            let (owner, zone, places) = (shared.clone(), self.zone.clone(), places.clone());
            shared.spawn(async move {
                let accept = accept(&owner, &zone, &places, &tcp);
                owner.while_in_charge(accept).await;
            });
        }
    }
}

fn bind(address: SocketAddr, inherited: &mut Sockets) -> Result<(Arc<UdpSocket>, Arc<TcpListener>), StartError> {
    let tcp = crate::listen("--dns", What::Dns, address, inherited)?;
    let mut open = || {
        if let Some(there) = inherited.take_udp(What::Dns, tcp.local_addr()?) {
            return there;
        }
        let socket = std::net::UdpSocket::bind(tcp.local_addr()?)?;
        socket.set_nonblocking(true)?;
        UdpSocket::from_std(socket)
    };
    let udp = open().map_err(|error| StartError::Listen { what: "--dns", address, error })?;
    Ok((Arc::new(udp), Arc::new(tcp)))
}

async fn answer_datagrams(shared: &Shared, zone: &Zone, rate: &Rate, socket: &UdpSocket) {
    let mut buffer = [0; QUESTION];
    // Of those that come too fast, every second is told to come over TCP, which a forged sender cannot.
    let mut told = false;
    loop {
        let Ok((length, peer)) = socket.recv_from(&mut buffer).await else {
            // Spinning would not mend it.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let question = buffer.get(..length).unwrap_or_default();
        let answer = if rate.allows(peer.ip(), Instant::now()) {
            answer(shared, zone, question, Over::Udp)
        } else {
            shared.metrics.dns_limited.inc();
            told = !told;
            if told { Zone::come_over_tcp(question) } else { None }
        };
        if let Some(answer) = answer {
            // Who cannot be reached asks again.
            let _ = socket.send_to(&answer, peer).await;
        }
    }
}

async fn accept(shared: &Arc<Shared>, zone: &Arc<Zone>, places: &Places, listener: &TcpListener) {
    loop {
        let Ok((tcp, peer)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let Some(place) = places.enter(peer.ip(), false) else { continue };
        let (owner, zone) = (shared.clone(), zone.clone());
        shared.spawn(async move {
            owner.closing.run_until_cancelled(answer_connection(&owner, &zone, tcp)).await;
            drop(place);
        });
    }
}

/// Answers one question after the other (RFC 7766), until somebody has had enough.
async fn answer_connection(shared: &Shared, zone: &Zone, mut tcp: TcpStream) {
    let mut question = Vec::new();
    for _ in 0..QUESTIONS {
        let exchange = async {
            let length = usize::from(tcp.read_u16().await.ok()?);
            if length > QUESTION {
                return None;
            }
            question.resize(length, 0);
            tcp.read_exact(&mut question).await.ok()?;
            let answer = answer(shared, zone, &question, Over::Tcp)?;
            let framed = [&u16::try_from(answer.len()).ok()?.to_be_bytes(), &answer[..]].concat();
            tcp.write_all(&framed).await.ok()
        };
        if !matches!(timeout(SILENCE, exchange).await, Ok(Some(()))) {
            return;
        }
    }
}

/// Answers one question, and counts it.
fn answer(shared: &Shared, zone: &Zone, question: &[u8], over: Over) -> Option<Vec<u8>> {
    shared.metrics.dns_questions.inc();
    let answer = zone.answer(question, over)?;
    // The response code is the last four bits of the fourth byte (RFC 1035, section 4.1.1).
    if answer.get(3).is_some_and(|byte| byte & 0x0f == REFUSED) {
        shared.metrics.dns_refused.inc();
    }
    Some(answer)
}

/// The name of the server as the parent zone has it, where nobody says another: beside the domain, so that it needs no
/// glue; or below it where the domain is somebody's whole one and all that is beside it is others'.
pub(crate) fn default_name(domain: &str) -> String {
    if domain.matches('.').count() > 1 { format!("ns-{domain}") } else { format!("ns.{domain}") }
}

/// The records that the parent zone has to have.
pub(crate) fn records(domain: &str, server: &str, addresses: &[IpAddr]) -> Vec<String> {
    std::iter::once(format!("{domain}. NS {server}.")).chain(address_records(server, addresses)).collect()
}

/// The records that lead a name to these addresses.
pub(crate) fn address_records(name: &str, addresses: &[IpAddr]) -> impl Iterator<Item = String> {
    let kind = |ip: &IpAddr| if ip.is_ipv4() { "A" } else { "AAAA" };
    addresses.iter().map(move |ip| format!("{name}. {} {ip}", kind(ip)))
}

/// The records of the domain and of what is below it, where somebody else serves them.
pub(crate) fn own_records(domain: &str, addresses: &[IpAddr]) -> Vec<String> {
    let names = [domain.to_owned(), format!("*.{domain}")];
    names.iter().flat_map(|name| address_records(name, addresses)).collect()
}

/// The record that takes the place of the domain's own where only the challenge is handed over.
pub(crate) fn challenge_record(domain: &str, server: &str) -> String {
    format!("_acme-challenge.{domain}. NS {server}.")
}
