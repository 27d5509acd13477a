//! What the operator keeps out: addresses, names and tokens. They stand in the store; what each request and each connection is
//! held against is in memory.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering::Acquire, Ordering::Release};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::store::{Name, Store, StoreError, TokenId};
use relay_protocol::network::Network;

/// Blocks that there can be: so many do not slow the relay down.
pub(crate) const MOST: i64 = 10_000;

/// What is kept out.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// Whoever connects from there, or is said to by a trusted proxy.
    Address(Network),
    /// A tunnel name, whoever has it.
    Name(Name),
    /// A token, by its name, and all of its tunnels.
    Token(String),
}

impl Target {
    /// Its kind, and which one: as the store has them.
    pub(crate) fn parts(&self) -> (&'static str, String) {
        match self {
            Self::Address(network) => ("address", network.to_string()),
            Self::Name(name) => ("name", name.to_string()),
            Self::Token(token) => ("token", token.clone()),
        }
    }

    /// As the store has it; none where another version has written it.
    pub(crate) fn from_parts(kind: &str, which: &str) -> Option<Self> {
        Some(match kind {
            "address" => Self::Address(which.parse().ok()?),
            "name" => Self::Name(Name::parse(which).ok()?),
            "token" => Self::Token(which.to_owned()),
            _ => return None,
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, which) = self.parts();
        write!(f, "{kind} {which}")
    }
}

/// A block as it is told. The fields are not renamed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    /// Its number.
    pub id: i64,
    /// What is kept out.
    #[serde(flatten)]
    pub target: Target,
    /// Why, for whoever looks at it later; nobody else is told.
    pub reason: String,
    /// Since when, in RFC 3339, UTC.
    pub at: String,
}

/// What is kept out, as it is looked up.
#[derive(Debug, Default)]
pub(crate) struct Blocks {
    lists: RwLock<Lists>,
    /// There is any. Most relays have none, and every request asks.
    any: AtomicBool,
    /// Says that the lists are others, to those that go on for long.
    changed: watch::Sender<()>,
    /// Held from the reading to the taking, so that what was read first does not win over what was read last.
    loading: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Lists {
    /// By the lengths of the networks that there are, which are few.
    networks: BTreeMap<u8, HashSet<IpAddr>>,
    names: HashSet<Name>,
    tokens: HashSet<TokenId>,
}

impl Blocks {
    /// Takes what the store has.
    ///
    /// # Errors
    /// [`StoreError`]; all is as it was.
    pub(crate) async fn load(&self, store: &Store) -> Result<(), StoreError> {
        let _one = self.loading.lock().await;
        let (blocks, ids) = store.blocks().await?;
        let any = !blocks.is_empty();
        let mut lists = Lists::default();
        for block in blocks {
            match block.target {
                Target::Address(network) => {
                    lists.networks.entry(network.length()).or_default().insert(network.first());
                }
                Target::Name(name) => drop(lists.names.insert(name)),
                Target::Token(token) => lists.tokens.extend(ids.get(&token).into_iter().flatten()),
            }
        }
        *self.lists.write().unwrap_or_else(PoisonError::into_inner) = lists;
        self.any.store(any, Release);
        self.changed.send_replace(());
        Ok(())
    }

    /// None where nothing is kept out.
    fn lists(&self) -> Option<RwLockReadGuard<'_, Lists>> {
        self.any.load(Acquire).then(|| self.lists.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether whoever comes from there is kept out.
    pub(crate) fn has_address(&self, address: IpAddr) -> bool {
        let Some(lists) = self.lists() else { return false };
        let address = address.to_canonical();
        lists.networks.iter().any(|(length, networks)| {
            Network::of(address, *length).is_some_and(|network| networks.contains(&network.first()))
        })
    }

    /// The names that nobody is to have.
    pub(crate) fn names(&self) -> Vec<Name> {
        self.lists().map(|lists| lists.names.iter().cloned().collect()).unwrap_or_default()
    }

    /// Waits until whoever comes from there is kept out.
    pub(crate) async fn until_address(&self, address: IpAddr) {
        let mut changed = self.changed.subscribe();
        while !self.has_address(address) {
            // Its sender is as old as this.
            if changed.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// As [`has_address`](Self::has_address). One whose address is not known may be anybody, and so is kept out where any
    /// address is.
    pub(crate) fn has_sender(&self, address: Option<IpAddr>) -> bool {
        match address {
            Some(address) => self.has_address(address),
            None => self.lists().is_some_and(|lists| !lists.networks.is_empty()),
        }
    }

    /// Whether nobody is to have that name.
    pub(crate) fn has_name(&self, name: &str) -> bool {
        let Some(lists) = self.lists() else { return false };
        !lists.names.is_empty() && Name::parse(name).is_ok_and(|name| lists.names.contains(&name))
    }

    /// Whether that token is worth nothing for now.
    pub(crate) fn has_token(&self, token: TokenId) -> bool {
        self.lists().is_some_and(|lists| lists.tokens.contains(&token))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;
    use crate::store::{NewToken, TokenLimits};

    async fn blocks(store: &Store, targets: &[Target]) -> Blocks {
        for target in targets {
            store.block(target.clone(), "spam".to_owned(), 0).await.unwrap();
        }
        let blocks = Blocks::default();
        blocks.load(store).await.unwrap();
        blocks
    }

    #[tokio::test]
    async fn networks_are_found_by_any_of_their_addresses() {
        let store = Store::in_memory().unwrap();
        let targets =
            ["192.0.2.128/25", "203.0.113.7", "2001:db8::/32"].map(|text| Target::Address(text.parse().unwrap()));
        let blocks = blocks(&store, &targets).await;
        let has = |text: &str| blocks.has_address(text.parse().unwrap());
        assert!(has("192.0.2.129") && has("::ffff:192.0.2.255") && has("203.0.113.7") && has("2001:db8:1::1"));
        assert!(!has("192.0.2.127") && !has("203.0.113.8") && !has("2001:db9::1") && !has("::1"));
        assert!(blocks.has_sender(None) && !blocks.has_sender(Some("192.0.2.127".parse().unwrap())));
        assert!(!Blocks::default().has_sender(None), "nobody is to be found");
        let all = self::blocks(&store, &[Target::Address("0.0.0.0/0".parse().unwrap())]).await;
        assert!(all.has_address("198.51.100.1".parse().unwrap()) && !all.has_address("::1".parse().unwrap()));
    }

    #[tokio::test]
    async fn a_token_is_kept_out_whatever_bears_its_name() {
        let store = Store::in_memory().unwrap();
        let new = |name: &str| NewToken {
            name: name.to_owned(),
            reserve: vec![],
            expires_at: None,
            limits: TokenLimits::default(),
        };
        let (_, first) = store.create_token(new("a"), 0).await.unwrap();
        let (_, other) = store.create_token(new("b"), 0).await.unwrap();
        let blocks = blocks(&store, &[Target::Token("a".to_owned()), Target::Name(Name::parse("shop").unwrap())]).await;
        assert!(blocks.has_token(first.id) && !blocks.has_token(other.id));
        assert!(blocks.has_name("shop") && blocks.has_name("SHOP") && !blocks.has_name("shops"));
        store.revoke_token("a", 0).await.unwrap();
        let (_, second) = store.create_token(new("a"), 0).await.unwrap();
        blocks.load(&store).await.unwrap();
        assert!(blocks.has_token(second.id));
        let unknown = store.block(Target::Token("c".to_owned()), String::new(), 0).await.unwrap_err();
        assert!(unknown.to_string().contains("no token named"), "{unknown}");
    }

    #[tokio::test]
    async fn a_block_is_there_once_and_goes_by_its_number() {
        let store = Store::in_memory().unwrap();
        let target = Target::Address("192.0.2.9/24".parse().unwrap());
        let first = store.block(target.clone(), "one".to_owned(), 0).await.unwrap();
        assert_eq!(first.target.to_string(), "address 192.0.2.0/24", "the network, not one of its hosts");
        let again = store.block(target, "two".to_owned(), 7).await.unwrap();
        assert_eq!((again.id, again.reason.as_str()), (first.id, "two"));
        assert_eq!(store.blocks().await.unwrap().0.len(), 1);
        assert_eq!(store.unblock(first.id).await.unwrap(), Some(again));
        assert_eq!(store.unblock(first.id).await.unwrap(), None);
    }
}
