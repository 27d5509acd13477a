//! What the command line and the files say of webhooks' signatures.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use relay_protocol::webhook::{self, Credentials, Verify};
use serde::{Deserialize, Deserializer};

use super::{ConfigError, File, Files, Place, ProviderKey, Table};
use crate::cli::{CredentialArgs, WebhookArgs};
use crate::secret::SecretSource;
use crate::webhooks::{VerifyAt, WebhookOptions, named};

/// What one place says.
#[derive(Clone, Debug, Default)]
pub(super) struct WebhookKeys {
    provider: Option<String>,
    /// With who says so.
    secrets: Option<(String, Vec<SecretSource>)>,
    settings: Option<BTreeMap<String, String>>,
    verify: Option<Verify>,
    verify_at: Option<VerifyAt>,
    handshake: Option<bool>,
}

impl From<WebhookArgs> for WebhookKeys {
    fn from(typed: WebhookArgs) -> Self {
        let credentials = typed.credentials;
        let given = Some(credentials.secrets).filter(|secrets| !secrets.is_empty());
        Self {
            provider: typed.provider,
            secrets: given.map(|secrets| ("--secret or RELAY_SECRET".to_owned(), secrets)),
            settings: Some(credentials.settings.into_iter().collect()).filter(|set: &BTreeMap<_, _>| !set.is_empty()),
            verify: typed.verify,
            verify_at: typed.verify_at,
            handshake: typed.handshake.then_some(true),
        }
    }
}

impl WebhookKeys {
    /// This, and where it says nothing, what a lower place says.
    pub(super) fn or(self, lower: Self) -> Self {
        Self {
            provider: self.provider.or(lower.provider),
            secrets: self.secrets.or(lower.secrets),
            settings: self.settings.or(lower.settings),
            verify: self.verify.or(lower.verify),
            verify_at: self.verify_at.or(lower.verify_at),
            handshake: self.handshake.or(lower.handshake),
        }
    }

    /// What holds, with the providers of this table. Fetches the secrets.
    pub(super) fn settle(self, table: Arc<webhook::Table>) -> Result<WebhookOptions, ConfigError> {
        let mut settings = WebhookOptions::of(table);
        if let Some(provider) = self.provider {
            settings.provider = Some(named(&settings.table, &provider)?.id.clone());
        }
        if let Some((place, secrets)) = self.secrets {
            let read = secrets.iter().map(SecretSource::read).collect::<Result<_, _>>();
            settings.credentials.secrets = read.map_err(|source| ConfigError::Secret { place, source })?;
        }
        settings.credentials.settings = self.settings.unwrap_or_default();
        settings.check_settings()?;
        let knows = !settings.credentials.secrets.is_empty() || !settings.credentials.settings.is_empty();
        settings.verify = self.verify.unwrap_or(if knows { Verify::Warn } else { Verify::Off });
        settings.verify_at = self.verify_at.unwrap_or_default();
        settings.handshake = self.handshake.unwrap_or_default();
        settings.told().extras()?;
        Ok(settings)
    }
}

impl Files {
    /// What a tunnel's webhooks are signed with: what was typed, or what its table says, or what stands above the tables.
    ///
    /// # Errors
    /// Where a secret is not to be had.
    pub(crate) fn credentials(&self, typed: CredentialArgs, tunnel: Option<&str>) -> Result<Credentials, ConfigError> {
        // They may be for webhooks of somebody else than the tunnel's provider.
        let keys = WebhookKeys { provider: None, ..self.keys(typed, tunnel) };
        Ok(keys.settle(self.table())?.credentials)
    }

    /// Of these, what is no secret.
    pub(crate) fn settings(&self, typed: CredentialArgs, tunnel: Option<&str>) -> webhook::Settings {
        self.keys(typed, tunnel).settings.unwrap_or_default()
    }

    fn keys(&self, typed: CredentialArgs, tunnel: Option<&str>) -> WebhookKeys {
        let table = tunnel.and_then(|label| self.file.tunnels.get_key_value(label));
        let table = table.map(|(label, table)| self.file.webhooks_of(label, table)).unwrap_or_default();
        let typed = WebhookKeys::from(WebhookArgs { credentials: typed, ..WebhookArgs::default() });
        typed.or(table).or(self.file.webhooks())
    }
}

impl File {
    /// Who sends the webhooks of a tunnel that has no word of its own.
    pub(crate) fn provider(&self) -> Option<&str> {
        match &self.provider {
            Some(ProviderKey::Name(name)) => Some(name),
            _ => None,
        }
    }

    /// What the keys above the tables say.
    pub(super) fn webhooks(&self) -> WebhookKeys {
        WebhookKeys {
            provider: self.provider().map(str::to_owned),
            secrets: self.secret.clone().map(|secrets| (self.place("secret"), secrets)),
            settings: self.set.clone(),
            verify: self.verify,
            verify_at: self.verify_at,
            handshake: self.handshake,
        }
    }

    /// What a tunnel's table says.
    pub(super) fn webhooks_of(&self, label: &str, table: &Table) -> WebhookKeys {
        let place = || self.place(&format!("tunnels.{label}.secret"));
        WebhookKeys {
            provider: table.provider.clone(),
            secrets: table.secret.clone().map(|secrets| (place(), secrets)),
            settings: table.set.clone(),
            verify: table.verify,
            verify_at: table.verify_at,
            handshake: table.handshake,
        }
    }

    /// Whether the secrets that the keys above the tables name are to be had.
    ///
    /// # Errors
    /// Where one is not.
    pub(crate) fn check_secret(&self, table: Arc<webhook::Table>) -> Result<(), ConfigError> {
        self.webhooks().settle(table).map(drop)
    }

    /// Whether it, over another file, has handshakes answered that the other one alone would not have answered, or as
    /// another provider's: what is in such an answer may be signed with the other one's secrets, for whoever asks.
    pub(super) fn answers_by(&self, lower: &Self) -> bool {
        let answers = |file: &Self| {
            let mut tables = file.tunnels.values().map(|table| table.handshake);
            file.handshake == Some(true) || tables.any(|handshake| handshake == Some(true))
        };
        let tables = self.tunnels.values().map(|table| table.provider.as_deref());
        let mut providers = tables.chain([self.provider()]).flatten();
        answers(self) && lower.handshake != Some(true)
            || (answers(self) || answers(lower)) && providers.any(|provider| lower.provider() != Some(provider))
    }

    /// Forgets the secrets and the settings that it names. Whether there were any.
    pub(super) fn forget_secrets(&mut self) -> bool {
        let tables = self.tunnels.values_mut().map(|table| (&mut table.secret, &mut table.set));
        let all = tables.chain([(&mut self.secret, &mut self.set)]);
        let had = all.fold(false, |had, (secret, set)| secret.take().is_some() | set.take().is_some() | had);
        self.places.retain(|key, _| !matches!(key.rsplit('.').next(), Some("secret" | "set")));
        had
    }

    /// Whether a secret itself stands in it.
    pub(super) fn has_secret_text(&self) -> bool {
        let tables = self.tunnels.values().map(|table| &table.secret);
        tables.chain([&self.secret]).flatten().flatten().any(SecretSource::is_text)
    }

    /// Takes the places of secrets as seen from the file. One that is `strangers` has bounds.
    pub(super) fn settle_secrets(&mut self, file: &Path, strangers: bool) -> Result<(), ConfigError> {
        let places = self.places.clone();
        let place = |key: &str| said(&places, key);
        let directory = file.parent().unwrap_or(Path::new(""));
        let tables = self.tunnels.iter_mut();
        let tables = tables.map(|(label, table)| (format!("tunnels.{label}."), &mut table.secret, table.verify_at));
        for (above, secrets, at) in tables.chain([(String::new(), &mut self.secret, self.verify_at)]) {
            for secret in secrets.iter_mut().flatten() {
                let seen = secret.seen_from(directory, strangers);
                seen.map_err(|source| ConfigError::Secret { place: place(&format!("{above}secret")), source })?;
            }
            if strangers && at == Some(VerifyAt::Edge) {
                return Err(ConfigError::Tells { place: place(&format!("{above}verify_at")) });
            }
        }
        Ok(())
    }

    fn place(&self, key: &str) -> String {
        said(&self.places, key)
    }
}

/// Where a key stands, for a person.
fn said(places: &BTreeMap<String, Place>, key: &str) -> String {
    places
        .get(key)
        .map_or_else(|| key.to_owned(), |place| format!("{place}: {}", key.rsplit('.').next().unwrap_or(key)))
}

/// A secret, or several while one takes another's place.
pub(super) fn secrets<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<SecretSource>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a secret, @FILE or env:NAME, or a list of them")]
    enum Secrets {
        One(SecretSource),
        Several(Vec<SecretSource>),
    }
    Ok(Some(match Secrets::deserialize(from)? {
        Secrets::One(secret) => vec![secret],
        Secrets::Several(secrets) => secrets,
    }))
}
