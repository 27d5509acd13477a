//! Changes the TXT records of a name at another name server (RFC 2136), signed by a key that it knows (RFC 8945).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use hickory_proto::ProtoError;
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::TXT;
use hickory_proto::rr::rdata::tsig::TsigError;
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use tokio::time::timeout;

use super::lookup::{LookupError, ask, over_tcp, soa_in};
use super::place::PORT;
use super::tsig::{FUDGE_S, TsigKey, TsigKeyError, error_in};
use super::zone::absolute;
use crate::clock::unix_now;

/// How long the server has for a change: it may have to tell others first.
const WITHIN: Duration = Duration::from_secs(15);

/// How long resolvers remember the records, in seconds. Some servers take nothing shorter.
const TTL: u32 = 60;

/// Which name server takes updates, and by which key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpdateConfig {
    /// Host and port.
    pub server: String,
    /// A file with the key, as BIND has it; none where the server goes by addresses.
    pub key_file: Option<PathBuf>,
}

/// A name server that takes updates.
#[derive(Clone, Debug)]
pub(crate) struct Updates {
    server: String,
    key: Option<TsigKey>,
}

/// What becomes of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// They are there, beside those that are there.
    Add,
    /// They are gone; others stay.
    Remove,
}

/// Why records were not changed.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// The key.
    #[error(transparent)]
    Key(#[from] TsigKeyError),
    /// The server's name leads nowhere.
    #[error("cannot find the name server {server}: {error}")]
    Unknown {
        /// Host and port.
        server: String,
        /// What the system said.
        error: io::Error,
    },
    /// It cannot be asked.
    #[error("the name server {server} cannot be asked: {error}")]
    Unreachable {
        /// Which one.
        server: SocketAddr,
        /// What the system said.
        error: io::Error,
    },
    /// It does not answer.
    #[error("the name server {server} did not answer within {} s", WITHIN.as_secs())]
    Silent {
        /// Which one.
        server: SocketAddr,
    },
    /// It has no zone for the name.
    #[error("the name server {server} does not serve the zone that {name} is in{reason}")]
    NotServed {
        /// Which one.
        server: SocketAddr,
        /// The name.
        name: String,
        /// What it said instead.
        reason: String,
    },
    /// It has no such key.
    #[error(
        "the name server {server} knows no key {key} of this algorithm (BADKEY): its configuration and the key file \
         have to have the same name and algorithm"
    )]
    UnknownKey {
        /// Which one.
        server: SocketAddr,
        /// The key's name.
        key: String,
    },
    /// It has another key of that name.
    #[error("the name server {server} has another secret for the key {key} than the key file (BADSIG)")]
    WrongSecret {
        /// Which one.
        server: SocketAddr,
        /// The key's name.
        key: String,
    },
    /// Its clock is another one.
    #[error(
        "the clocks of this machine and of the name server {server} are more than {FUDGE_S} s apart (BADTIME): set \
         them right"
    )]
    Clock {
        /// Which one.
        server: SocketAddr,
    },
    /// It may not be done.
    #[error(
        "the name server {server} does not let {who} change {name} in the zone {zone} ({code}). In BIND this line in \
         the zone's block lets a key do that: update-policy {{ grant KEY name {name} TXT; }};"
    )]
    Refused {
        /// Which one.
        server: SocketAddr,
        /// As whom we came.
        who: String,
        /// What was to be changed.
        name: String,
        /// Where.
        zone: String,
        /// Its words.
        code: ResponseCode,
    },
    /// It cannot be done.
    #[error("the name server {server} has not changed {name} in the zone {zone}: {code}")]
    Failed {
        /// Which one.
        server: SocketAddr,
        /// What was to be changed.
        name: String,
        /// Where.
        zone: String,
        /// Its words.
        code: ResponseCode,
    },
    /// Somebody else may have answered.
    #[error("the answer of the name server {server} is not signed by the key {key}, and so not believed")]
    Unsigned {
        /// Which one.
        server: SocketAddr,
        /// The key's name.
        key: String,
    },
    /// A message cannot be made.
    #[error("{name} cannot be changed: {error}")]
    Message {
        /// What was to be changed.
        name: String,
        /// Why.
        error: ProtoError,
    },
}

impl Updates {
    /// Reads the key. Blocks on the file system.
    ///
    /// # Errors
    /// Where the key cannot be used.
    pub(crate) fn new(config: &UpdateConfig) -> Result<Self, UpdateError> {
        let key = config.key_file.as_deref().map(TsigKey::read).transpose()?;
        Ok(Self { server: config.server.clone(), key })
    }

    /// Changes which of these values `name` has as TXT records. The zone in which that was.
    ///
    /// # Errors
    /// [`UpdateError`] says who objects, and to what.
    pub(crate) async fn change(&self, change: Change, name: &Name, values: &[String]) -> Result<Name, UpdateError> {
        let server = self.address().await?;
        let zone = zone_at(server, name).await?;
        let invalid = |error| UpdateError::Message { name: name.to_string(), error };
        let mut message = update(change, &zone, name, values);
        let now = u64::try_from(unix_now()).unwrap_or_default();
        let mac = self.key.as_ref().map(|key| key.sign(&mut message, now)).transpose().map_err(invalid)?;
        let bytes = message.to_vec().map_err(invalid)?;
        let unreachable = |error| UpdateError::Unreachable { server, error };
        // A connection, because nobody but the server can answer there, and because signatures are long.
        let answer = timeout(WITHIN, over_tcp(server, &bytes)).await.map_err(|_| UpdateError::Silent { server })?;
        let answer = answer.map_err(unreachable)?;
        let read = Message::from_vec(&answer).map_err(|error| unreachable(io::Error::other(error)))?;
        if read.metadata.id != message.metadata.id || read.metadata.message_type != MessageType::Response {
            return Err(unreachable(io::Error::other("it answers something else")));
        }
        self.judge(server, &read, name, &zone)?;
        if let (Some(key), Some(mac)) = (&self.key, mac)
            && !key.has_signed(&answer, &mac, u64::try_from(unix_now()).unwrap_or_default())
        {
            return Err(UpdateError::Unsigned { server, key: key.name() });
        }
        Ok(zone)
    }

    /// Whether the server would let us change the name: it is asked to remove what is not there. The zone in which that is.
    ///
    /// # Errors
    /// As [`Updates::change`].
    pub(crate) async fn try_out(&self, name: &Name) -> Result<Name, UpdateError> {
        self.change(Change::Remove, name, &[format!("doctor-{:016x}", fastrand::u64(..))]).await
    }

    async fn address(&self) -> Result<SocketAddr, UpdateError> {
        let unknown = |error| UpdateError::Unknown { server: self.server.clone(), error };
        let mut found = tokio::net::lookup_host(&self.server).await.map_err(unknown)?;
        found.next().ok_or_else(|| unknown(io::Error::other("it has no address")))
    }

    /// What the answer says of us and of the change.
    fn judge(&self, server: SocketAddr, answer: &Message, name: &Name, zone: &Name) -> Result<(), UpdateError> {
        let key = || self.key.as_ref().map(TsigKey::name).unwrap_or_default();
        match error_in(answer) {
            Some(TsigError::BadKey) => return Err(UpdateError::UnknownKey { server, key: key() }),
            Some(TsigError::BadSig) => return Err(UpdateError::WrongSecret { server, key: key() }),
            Some(TsigError::BadTime) => return Err(UpdateError::Clock { server }),
            _ => {}
        }
        let (name, zone) = (name.to_string(), zone.to_string());
        match answer.metadata.response_code {
            ResponseCode::NoError => Ok(()),
            code @ (ResponseCode::Refused | ResponseCode::NotAuth) => {
                let who = match &self.key {
                    Some(key) => format!("the key {}", key.name()),
                    None => "somebody without a key".to_owned(),
                };
                Err(UpdateError::Refused { server, who, name, zone, code })
            }
            code => Err(UpdateError::Failed { server, name, zone, code }),
        }
    }
}

/// Host and port of a name server, as they are typed: the port may be missing.
pub(crate) fn with_port(text: &str) -> Option<String> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Some(SocketAddr::from((ip, PORT)).to_string());
    }
    if text.parse::<SocketAddr>().is_ok() {
        return Some(text.to_owned());
    }
    let (host, port) = text.split_once(':').unwrap_or((text, ""));
    let port = if port.is_empty() { PORT } else { port.parse().ok()? };
    (!host.is_empty() && absolute(host).is_ok()).then(|| format!("{host}:{port}"))
}

/// The zone of the server's that `name` is in.
async fn zone_at(server: SocketAddr, name: &Name) -> Result<Name, UpdateError> {
    let not_served = |reason| UpdateError::NotServed { server, name: name.to_string(), reason };
    match ask(server, name, RecordType::SOA, false).await {
        Ok(answer) if answer.metadata.authoritative => soa_in(&answer, name).ok_or_else(|| not_served(String::new())),
        Ok(_) => Err(not_served(String::new())),
        Err(LookupError::Unreachable { error, .. }) => Err(UpdateError::Unreachable { server, error }),
        Err(LookupError::Failed { code, .. }) => Err(not_served(format!(": {code}"))),
        Err(_) => Err(UpdateError::Silent { server }),
    }
}

/// The message (RFC 2136, section 2): the zone stands where questions do, the changes where authorities do.
fn update(change: Change, zone: &Name, name: &Name, values: &[String]) -> Message {
    let mut message = Message::new(fastrand::u16(..), MessageType::Query, OpCode::Update);
    message.add_query(Query::query(zone.clone(), RecordType::SOA));
    for value in values {
        let data = RData::TXT(TXT::new(vec![value.clone()]));
        let mut record = Record::from_rdata(name.clone(), TTL, data);
        if change == Change::Remove {
            // Section 2.5.4.
            (record.dns_class, record.ttl) = (DNSClass::NONE, 0);
        }
        message.add_authority(record);
    }
    message
}
