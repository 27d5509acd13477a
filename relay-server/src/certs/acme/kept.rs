//! What outlives the process: the account, the order under way and the certificate, in a directory of their own.
//!
//! ```text
//!   acme/certificate.pem          the certificate in use with its key, whoever issued it
//!   acme/ca.example-dir/          one for each authority's directory
//!        account.json             who we are there, with the account's key
//!        order.json               what we have asked for and not got yet, with its key
//!        shown.json               records at others' name servers that are to be removed
//!        placed.json              when orders for custom domains were placed in the last hour, and for whose
//!        orders/hooks.example.net.json     as order.json, for a custom domain
//!        failures/hooks.example.net.json   how often that was in vain, and when it is tried again
//! ```

use std::collections::VecDeque;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use instant_acme::AccountCredentials;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::AcmeError;
use crate::certs::replace;
use crate::store::{Name, TokenId};

/// In front of the first line of the certificate's file, before the directory that it comes from.
const FROM: &str = "# Kept by relay-server, which replaces it in time. From ";

/// The directory.
#[derive(Debug)]
pub(super) struct Kept {
    certificate: PathBuf,
    account: PathBuf,
    order: OrderFile,
    shown: PathBuf,
    placed: PathBuf,
    orders: PathBuf,
    failures: PathBuf,
}

/// Where an order under way is kept.
#[derive(Clone, Debug)]
pub(super) struct OrderFile(PathBuf);

impl OrderFile {
    pub(super) fn get(&self) -> Option<KeptOrder> {
        read(&self.0)
    }

    /// None forgets it.
    pub(super) fn set(&self, order: Option<&KeptOrder>) -> Result<(), AcmeError> {
        write(&self.0, order)
    }
}

/// How an authority was asked in vain for a custom domain's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KeptFailures {
    pub(super) failures: usize,
    /// When it is asked again, in seconds since 1970.
    pub(super) due: i64,
}

/// Who we are at an authority.
#[derive(Serialize, Deserialize)]
pub(super) struct KeptAccount {
    pub(super) email: String,
    pub(super) credentials: AccountCredentials,
}

/// What we have asked an authority for.
#[derive(Serialize, Deserialize)]
pub(super) struct KeptOrder {
    pub(super) url: String,
    /// For which names: a relay that goes into path mode wants fewer.
    pub(super) names: Vec<String>,
    /// Of the certificate, in PEM: without it, a certificate that was issued while we were gone is lost.
    pub(super) key: String,
}

/// A TXT record at a name server that is not ours.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Shown {
    pub(super) name: String,
    pub(super) value: String,
}

impl Kept {
    /// Makes what is missing, for this user alone.
    pub(super) fn open(directory: &Path, authority: &str) -> Result<Self, AcmeError> {
        let name =
            authority.trim_start_matches("https://").replace(|c: char| !c.is_ascii_alphanumeric() && c != '.', "-");
        let own = directory.join(name.trim_matches(['-', '.']));
        let [orders, failures] = ["orders", "failures"].map(|name| own.join(name));
        for directory in [&own, &orders, &failures] {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
            made.map_err(|error| at(directory, error))?;
        }
        let certificate = super::certificate(directory);
        let [account, order, shown, placed] =
            ["account.json", "order.json", "shown.json", "placed.json"].map(|name| own.join(name));
        Ok(Self { certificate, account, order: OrderFile(order), shown, placed, orders, failures })
    }

    pub(super) fn account(&self) -> Option<KeptAccount> {
        read(&self.account)
    }

    /// None forgets it.
    pub(super) fn set_account(&self, account: Option<&KeptAccount>) -> Result<(), AcmeError> {
        write(&self.account, account)
    }

    /// The order for the relay's own certificate.
    pub(super) fn order(&self) -> &OrderFile {
        &self.order
    }

    /// That for a custom domain's.
    pub(super) fn order_of(&self, domain: &Name) -> OrderFile {
        OrderFile(self.orders.join(format!("{domain}.json")))
    }

    /// When orders for custom domains were placed of late, and for whose.
    pub(super) fn placed(&self) -> VecDeque<(i64, TokenId)> {
        read(&self.placed).unwrap_or_default()
    }

    pub(super) fn set_placed(&self, placed: &VecDeque<(i64, TokenId)>) -> Result<(), AcmeError> {
        write(&self.placed, Some(placed))
    }

    /// For which custom domains an authority was asked in vain, and how often.
    pub(super) fn failures(&self) -> Vec<(Name, KeptFailures)> {
        let entries = fs::read_dir(&self.failures).into_iter().flatten().flatten();
        let known = entries.filter_map(|entry| {
            let path = entry.path();
            let name = path.file_name()?.to_str()?.strip_suffix(".json")?;
            Some((Name::parse(name).ok()?, read(&path)?))
        });
        known.collect()
    }

    /// None forgets them.
    pub(super) fn set_failures(&self, domain: &Name, failures: Option<KeptFailures>) -> Result<(), AcmeError> {
        write(&self.failures.join(format!("{domain}.json")), failures.as_ref())
    }

    pub(super) fn shown(&self) -> Vec<Shown> {
        read(&self.shown).unwrap_or_default()
    }

    pub(super) fn set_shown(&self, shown: &[Shown]) -> Result<(), AcmeError> {
        write(&self.shown, Some(shown).filter(|shown| !shown.is_empty()))
    }

    /// Where the certificate is, or will be.
    pub(super) fn certificate(&self) -> &Path {
        &self.certificate
    }

    /// Which directory the certificate comes from.
    pub(super) fn issued_by(&self) -> Option<String> {
        issued_by(&self.certificate)
    }

    /// Keeps the certificate in use.
    pub(super) fn set_certificate(&self, authority: &str, key: &str, chain: &str) -> Result<(), AcmeError> {
        keep_certificate(&self.certificate, authority, key, chain)
    }
}

/// Which directory a certificate that is kept comes from.
pub(super) fn issued_by(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().next()?.strip_prefix(FROM).map(str::to_owned)
}

/// Key and chain go into one file, so that they change in one moment.
pub(super) fn keep_certificate(path: &Path, authority: &str, key: &str, chain: &str) -> Result<(), AcmeError> {
    let text = format!("{FROM}{authority}\n{key}{chain}");
    replace(path, &text, 0o600).map_err(|error| at(path, error))
}

/// What cannot be read is as if it were not there: another account or order takes its place.
fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let text = fs::read_to_string(path).ok()?;
    serde_json::from_str(&text)
        .inspect_err(|_| tracing::warn!(file = %path.display(), "it is damaged and made anew"))
        .ok()
}

fn write<T: Serialize + ?Sized>(path: &Path, value: Option<&T>) -> Result<(), AcmeError> {
    let done = match value.map(serde_json::to_string) {
        Some(Ok(text)) => replace(path, &text, 0o600),
        Some(Err(error)) => Err(error.into()),
        None => match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        },
    };
    done.map_err(|error| at(path, error))
}

fn at(path: &Path, error: io::Error) -> AcmeError {
    AcmeError::Io { path: path.to_owned(), error }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn each_authority_has_its_own_and_the_certificate_is_shared() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("acme");
        let one = Kept::open(&directory, "https://ca.example/dir?x=../..").unwrap();
        let two = Kept::open(&directory, "https://ca.example:14000/dir").unwrap();
        let (url, names) = ("https://ca.example/order/1".to_owned(), vec!["relay.example".to_owned()]);
        let order = KeptOrder { url, names, key: "secret".to_owned() };
        one.order().set(Some(&order)).unwrap();
        assert_eq!((one.order().get().unwrap().url, two.order().get().is_some()), (order.url, false));
        assert!(one.issued_by().is_none());
        one.set_certificate("https://ca.example/dir", "key\n", "chain\n").unwrap();
        assert_eq!(two.issued_by().as_deref(), Some("https://ca.example/dir"));
        for file in [&one.order.0, &one.certificate] {
            assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600, "{}", file.display());
        }
        fs::write(&one.order.0, "{").unwrap();
        assert!(one.order().get().is_none());
        one.order().set(None).unwrap();
        one.order().set(None).unwrap();
    }
}
