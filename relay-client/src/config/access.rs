//! What the command line and the files say of who may call a tunnel.

use std::num::NonZeroU32;
use std::path::Path;

use relay_protocol::access::Access;
use relay_protocol::network::Network;
use relay_protocol::oidc::Oidc;
use serde::{Deserialize, Deserializer, de};

use super::{ConfigError, File};
use crate::access::{CaFile, CredentialError, KeySource, authorities, basic, key};
use crate::cli::AccessArgs;
use crate::secret::SecretSource;
use crate::value::byte_count;

/// What one place says: the table `[access]` as it was written, or the flags.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct AccessKeys {
    #[serde(deserialize_with = "several")]
    allow: Option<Vec<Network>>,
    #[serde(deserialize_with = "several")]
    deny: Option<Vec<Network>>,
    #[serde(deserialize_with = "several")]
    basic_auth: Option<Vec<SecretSource>>,
    #[serde(deserialize_with = "several")]
    api_key: Option<Vec<KeySource>>,
    #[serde(deserialize_with = "several")]
    allow_method: Option<Vec<String>>,
    #[serde(deserialize_with = "several")]
    allow_path: Option<Vec<String>>,
    #[serde(deserialize_with = "several")]
    client_ca: Option<Vec<CaFile>>,
    /// As a whole: the secret of one place is not for the issuer that another names.
    oidc: Option<OidcKeys>,
    rate_limit: Option<NonZeroU32>,
    #[serde(deserialize_with = "bytes")]
    body_limit: Option<u64>,
}

/// What one place says of a login: the table `[access.oidc]`, or the flags.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct OidcKeys {
    issuer: String,
    client_id: String,
    /// None where it is not for the relay that is named elsewhere.
    client_secret: Option<SecretSource>,
    #[serde(default, deserialize_with = "several")]
    allow: Option<Vec<String>>,
    #[serde(default, deserialize_with = "several")]
    skip: Option<Vec<String>>,
}

impl OidcKeys {
    /// What holds. Fetches the secret.
    fn settle(self) -> Result<Oidc, CredentialError> {
        let secret = self.client_secret.ok_or(CredentialError::NoClientSecret)?.read()?;
        Ok(Oidc {
            issuer: self.issuer,
            client_id: self.client_id,
            allow: self.allow.unwrap_or_default(),
            skip: self.skip.unwrap_or_default(),
            secret: Some(secret),
        })
    }
}

impl From<AccessArgs> for AccessKeys {
    fn from(typed: AccessArgs) -> Self {
        fn given<T>(all: Vec<T>) -> Option<Vec<T>> {
            Some(all).filter(|all| !all.is_empty())
        }
        // Neither is given without the other.
        let oidc = typed.oidc.zip(typed.oidc_client_id).map(|(issuer, client_id)| OidcKeys {
            issuer,
            client_id,
            client_secret: typed.oidc_client_secret,
            allow: given(typed.oidc_allow),
            skip: given(typed.oidc_skip),
        });
        Self {
            allow: given(typed.allow),
            deny: given(typed.deny),
            basic_auth: given(typed.basic_auth),
            api_key: given(typed.api_key),
            allow_method: given(typed.allow_method),
            allow_path: given(typed.allow_path),
            client_ca: given(typed.client_ca),
            oidc,
            rate_limit: typed.rate_limit,
            body_limit: typed.body_limit,
        }
    }
}

impl AccessKeys {
    /// This, and where it says nothing, what a lower place says.
    pub(super) fn or(self, lower: Self) -> Self {
        Self {
            allow: self.allow.or(lower.allow),
            deny: self.deny.or(lower.deny),
            basic_auth: self.basic_auth.or(lower.basic_auth),
            api_key: self.api_key.or(lower.api_key),
            allow_method: self.allow_method.or(lower.allow_method),
            allow_path: self.allow_path.or(lower.allow_path),
            client_ca: self.client_ca.or(lower.client_ca),
            oidc: self.oidc.or(lower.oidc),
            rate_limit: self.rate_limit.or(lower.rate_limit),
            body_limit: self.body_limit.or(lower.body_limit),
        }
    }

    /// What holds. Fetches the credentials.
    ///
    /// # Errors
    /// Where one is not to be had, or a rule is none.
    pub(crate) fn settle(self) -> Result<Access, ConfigError> {
        let wrong = |place| move |source: CredentialError| ConfigError::Credential { place, source };
        let basics = self.basic_auth.iter().flatten().map(basic).collect::<Result<_, _>>();
        let keys = self.api_key.iter().flatten().map(key).collect::<Result<_, _>>();
        let authorities = self.client_ca.iter().flatten().map(authorities).collect::<Result<Vec<_>, _>>();
        let methods = self.allow_method.into_iter().flatten().map(|method| method.to_ascii_uppercase());
        let access = Access {
            allow: self.allow.unwrap_or_default(),
            deny: self.deny.unwrap_or_default(),
            basic: basics.map_err(wrong("basic_auth"))?,
            keys: keys.map_err(wrong("api_key"))?,
            methods: methods.collect(),
            paths: self.allow_path.unwrap_or_default(),
            client_ca: authorities.map_err(wrong("client_ca"))?.concat(),
            oidc: self.oidc.map(OidcKeys::settle).transpose().map_err(wrong("oidc"))?.map(Box::new),
            rate: self.rate_limit.map(NonZeroU32::get),
            body: self.body_limit,
        };
        access.extras()?;
        Ok(access)
    }

    /// Those that it names.
    fn sources(&mut self) -> impl Iterator<Item = (&'static str, &mut SecretSource)> {
        let pairs = self.basic_auth.iter_mut().flatten().map(|source| ("basic_auth", source));
        let keys = self.api_key.iter_mut().flatten().map(|key| ("api_key", &mut key.source));
        let files = self.client_ca.iter_mut().flatten().map(|file| ("client_ca", &mut file.0));
        let secrets = self.oidc.iter_mut().filter_map(|oidc| oidc.client_secret.as_mut()).map(|one| ("oidc", one));
        pairs.chain(keys).chain(files).chain(secrets)
    }

    /// The secret that a relay would be told is not for the one that another place names.
    pub(super) fn keep_secret(&mut self) {
        if let Some(oidc) = &mut self.oidc {
            oidc.client_secret = None;
        }
    }
}

impl File {
    /// Takes the places of credentials as seen from the file. One that is `strangers` has bounds.
    ///
    /// # Errors
    /// Where it goes beyond them.
    pub(super) fn settle_access(&mut self, file: &Path, strangers: bool) -> Result<(), ConfigError> {
        let directory = file.parent().unwrap_or(Path::new(""));
        let tables = self.tunnels.values_mut().map(|table| &mut table.access).chain([&mut self.access]);
        for (place, source) in tables.flatten().flat_map(AccessKeys::sources) {
            let seen = source.seen_from(directory, strangers);
            seen.map_err(|error| ConfigError::Credential { place, source: error.into() })?;
        }
        Ok(())
    }

    /// Takes from the user's `own` file what that says of who may call: a file that may be a stranger's adds rules, and
    /// changes none. True where it would have.
    pub(super) fn yield_access(&mut self, own: &Self) -> bool {
        let Some(own) = &own.access else { return false };
        let mut would_change = false;
        let tables = self.tunnels.values_mut().map(|table| &mut table.access).chain([&mut self.access]);
        for keys in tables.flatten() {
            let both = own.clone().or(keys.clone());
            would_change |= both != keys.clone().or(own.clone());
            *keys = both;
        }
        would_change
    }

    /// Whether a credential itself stands in it.
    pub(super) fn has_credential_text(&mut self) -> bool {
        let tables = self.tunnels.values_mut().map(|table| &mut table.access).chain([&mut self.access]);
        tables.flatten().flat_map(AccessKeys::sources).any(|(_, source)| source.is_text())
    }
}

/// One, or a list of them.
fn several<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Option<Vec<T>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "one value or a list of them, as docs/access.md has them")]
    enum Several<T> {
        One(T),
        All(Vec<T>),
    }
    match Several::deserialize(from)? {
        Several::One(one) => Ok(Some(vec![one])),
        // It would take the place of what stands below it, and so let in everybody.
        Several::All(all) if all.is_empty() => {
            Err(de::Error::custom("an empty list says nothing of who may call; leave the key out"))
        }
        Several::All(all) => Ok(Some(all)),
    }
}

/// A number of bytes, with or without a unit.
fn bytes<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a number of bytes, or a size such as \"1MiB\"")]
    enum Size {
        Number(u64),
        Text(String),
    }
    match Size::deserialize(from)? {
        Size::Number(bytes) => Ok(Some(bytes)),
        Size::Text(text) => byte_count(&text).map(Some).map_err(de::Error::custom),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;

    fn keys(text: &str) -> AccessKeys {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn a_place_above_changes_what_it_names_and_opens_nothing_else() {
        let lower =
            keys("allow = '10.0.0.0/8'\nbasic_auth = 'ann:secret'\nallow_method = ['post', 'PUT']\nrate_limit = 5");
        let upper = keys("allow = ['192.0.2.1', '2001:db8::/32']\nbody_limit = '1MiB'\nallow_path = '/hooks/*'");
        let access = upper.or(lower).settle().unwrap();
        assert_eq!(
            access.to_string(),
            "allow=192.0.2.1,2001:db8::/32 basic-auth=1 methods=POST,PUT paths=/hooks/* rate-limit=5 body-limit=1MiB"
        );
        assert!(AccessKeys::default().settle().unwrap().is_open());
    }

    #[test]
    fn what_is_no_rule_is_refused() {
        for text in ["allow = 'office'", "alow = '10.0.0.1'", "rate_limit = 0", "body_limit = 'much'", "basic_auth = 3"]
        {
            assert!(toml::from_str::<AccessKeys>(text).is_err(), "{text}");
        }
        for key in ["allow", "deny", "basic_auth", "api_key", "allow_method", "allow_path", "client_ca"] {
            let error = toml::from_str::<AccessKeys>(&format!("{key} = []")).unwrap_err().to_string();
            assert!(error.contains("leave the key out"), "{error}");
        }
        for (text, said) in [
            ("basic_auth = 'secret'", "basic_auth: VALUE: it is a name and a password, written NAME:PASSWORD"),
            ("allow_path = 'hooks'", "\"hooks\" is no path"),
            ("allow_method = 'a b'", "\"A B\" is no method"),
            ("api_key = 'Host=x'", "\"host\" is no header"),
            ("body_limit = 0", "at least one"),
        ] {
            let error = keys(text).settle().unwrap_err().to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
