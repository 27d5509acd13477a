//! What a tunnel's user has said of the webhooks that come through it, and who is known to send some.

use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use relay_protocol::webhook::{Credentials, Fact, Provider, Table, Verify, Webhooks};
use serde::Deserialize;

/// What a tunnel's user has said of the webhooks that come through it.
#[derive(Clone, Debug, PartialEq)]
pub struct WebhookOptions {
    /// All that is known of providers: the built-in table, with what the user's files add.
    pub table: Arc<Table>,
    /// The provider whose webhooks come, by its id in the table; otherwise each request is recognised.
    pub provider: Option<String>,
    /// Secrets and what belongs to them.
    pub credentials: Credentials,
    /// What is done about signatures.
    pub verify: Verify,
    /// Who does it.
    pub verify_at: VerifyAt,
    /// Whether handshakes are answered for the service.
    pub handshake: bool,
}

/// Who judges the signatures of webhooks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum VerifyAt {
    /// The client, which keeps the secrets to itself.
    #[default]
    Client,
    /// The relay, which is told the secrets for as long as the session lasts.
    Edge,
}

impl Default for WebhookOptions {
    fn default() -> Self {
        Self::of(built_in())
    }
}

impl WebhookOptions {
    /// Of the providers of this table, and with nothing else said.
    pub(crate) fn of(table: Arc<Table>) -> Self {
        Self {
            table,
            provider: None,
            credentials: Credentials::default(),
            verify: Verify::default(),
            verify_at: VerifyAt::default(),
            handshake: false,
        }
    }

    /// The provider whose webhooks come, where the user has said so.
    pub(crate) fn pinned(&self) -> Option<&Arc<Provider>> {
        self.table.get(self.provider.as_deref()?)
    }

    /// Why nothing is going to be valid: its provider signs nothing, or there is no secret, or not one can be the provider's.
    pub(crate) fn why_nothing_is_valid(&self) -> Option<String> {
        let provider = self.pinned();
        if let Some(provider) = provider
            && self.verify == Verify::Reject
            && !provider.facts().contains(&Fact::Signature)
        {
            let name = &provider.name;
            return Some(format!(
                "{name} signs nothing, and nothing else is let in: every webhook is answered with 401"
            ));
        }
        if self.verify == Verify::Reject
            && self.credentials.secrets.is_empty()
            && provider.is_none_or(|provider| provider.signs_with_given_secret())
        {
            return Some(
                "without a secret nothing is let in: every webhook is answered with 401; give it by --secret".into(),
            );
        }
        let provider = provider?;
        let refused: Option<Vec<_>> = self.credentials.secrets.iter().map(|secret| provider.refuses(secret)).collect();
        refused?.pop()
    }

    /// Whether each setting means something to some provider, though not to this one where it is inherited: one that was
    /// mistyped would let in what it is to keep out.
    ///
    /// # Errors
    /// [`UnknownSetting`].
    pub(crate) fn check_settings(&self) -> Result<(), UnknownSetting> {
        let known: BTreeSet<&String> = self.table.iter().flat_map(|row| row.settings().keys()).collect();
        let Some(name) = self.credentials.settings.keys().find(|name| !known.contains(name)) else { return Ok(()) };
        Err(match self.pinned() {
            Some(pinned) => UnknownSetting::of(pinned, name),
            None => {
                let known = known.into_iter().cloned().collect();
                UnknownSetting { name: name.clone(), provider: None, known }
            }
        })
    }

    /// What the relay is told of them.
    pub(crate) fn told(&self) -> Webhooks {
        let (verify, credentials) = match self.verify_at {
            VerifyAt::Client => (Verify::Off, Credentials::default()),
            VerifyAt::Edge => (self.verify, self.credentials.clone()),
        };
        Webhooks { provider: self.provider.clone(), handshake: self.handshake, verify, credentials }
    }

    /// The deadline that follows from that, as far as the relay cannot know it because the row is the user's own.
    pub(crate) fn timeout(&self) -> Option<Duration> {
        let own = self.pinned()?.answer_within();
        let known = built_in().get(self.provider.as_deref()?).and_then(|provider| provider.answer_within());
        own.filter(|_| own != known)
    }
}

/// The table without what a user adds. It is read when it is first asked for.
pub(crate) fn built_in() -> Arc<Table> {
    // A test reads the same bytes.
    static TABLE: LazyLock<Arc<Table>> = LazyLock::new(|| Arc::new(Table::built_in().unwrap_or_default()));
    TABLE.clone()
}

/// A setting that nothing asks for, as one that was mistyped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("--set {name}: {}", .provider.as_ref().map_or_else(|| nobody_has(.known), |provider| has_not(provider, .known)))]
pub struct UnknownSetting {
    /// As it was written.
    pub name: String,
    /// The provider that does not have it; none that is known has it otherwise.
    pub provider: Option<String>,
    /// Those that there are.
    pub known: Vec<String>,
}

impl UnknownSetting {
    /// That this provider does not have it.
    pub(crate) fn of(provider: &Provider, name: &str) -> Self {
        let known = provider.settings().keys().cloned().collect();
        Self { name: name.to_owned(), provider: Some(provider.name.clone()), known }
    }
}

fn has_not(provider: &str, known: &[String]) -> String {
    let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
    format!("{provider} has no such setting; it has {known}")
}

fn nobody_has(known: &[String]) -> String {
    format!("no provider has such a setting; there are {}", known.join(", "))
}

/// Names of providers that are proposed for one that is not known.
const PROPOSED: usize = 3;

/// Nobody has that name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no provider is called {wanted:?}; {}", proposals(.near))]
pub struct UnknownProvider {
    /// As it was written.
    pub wanted: String,
    /// Those that are called alike.
    pub near: Vec<String>,
}

fn proposals(near: &[String]) -> String {
    match near {
        [] => "docs/providers.md lists none like it; without --provider the request is recognised".to_owned(),
        near => ask(near),
    }
}

/// Whether one of those was meant.
pub(crate) fn ask(near: &[String]) -> String {
    format!("is it {}?", near.join(", "))
}

/// The provider that a user calls so.
///
/// # Errors
/// [`UnknownProvider`].
pub(crate) fn named<'t>(table: &'t Table, wanted: &str) -> Result<&'t Arc<Provider>, UnknownProvider> {
    table.get(wanted).ok_or_else(|| {
        let near = alike(wanted, table.iter().map(|provider| (&*provider.id, &*provider.name)));
        UnknownProvider { wanted: wanted.to_owned(), near }
    })
}

/// The ids that are most like what somebody has written, each by itself or by its name.
pub(crate) fn alike<'n>(wanted: &str, known: impl IntoIterator<Item = (&'n str, &'n str)>) -> Vec<String> {
    let wanted = wanted.to_lowercase();
    let likeness = |name: &str| strsim::jaro_winkler(&name.to_lowercase(), &wanted);
    let known = known.into_iter().map(|(id, name)| (likeness(id).max(likeness(name)), id));
    let mut near: Vec<_> = known.filter(|(likeness, _)| *likeness > 0.8).collect();
    near.sort_by(|(one, _), (other, _)| other.total_cmp(one));
    near.dedup_by_key(|(_, id)| *id);
    near.into_iter().take(PROPOSED).map(|(_, id)| id.to_owned()).collect()
}
