//! What a client tells its relay of a tunnel's webhooks: extras of a [`TunnelSpec`](crate::message::TunnelSpec), as
//! `PROTOCOL.md` lists them. A relay that does not know them leaves them alone, so a client that needs one of them asks
//! [`Webhooks::are_known`] of the relay's Welcome.

use std::{fmt, str::FromStr};

use serde::Deserialize;

use super::credentials::{Credentials, Secret};
use crate::message::Extra;

/// Most secrets of one tunnel: the current one, those that it is taking the place of, and some room.
pub const MAX_SECRETS: usize = 8;

/// Most settings of one tunnel; no provider has more than three.
pub const MAX_SETTINGS: usize = 16;

/// Most bytes of all that is said of one tunnel's webhooks. The longest secrets are public keys, of some 800 bytes.
pub const MAX_TOLD: usize = 16 * 1024;

/// Most bytes of a provider's id.
const MAX_ID: usize = 64;

const PROVIDER: u16 = 1;
const HANDSHAKE: u16 = 2;
const VERIFY: u16 = 3;
const SECRET: u16 = 4;
const SETTING: u16 = 5;

/// In the Welcome: the relay knows all of the above.
const KNOWN: u16 = 1;

/// What a relay is to know of a tunnel's webhooks. Debug output shows neither secrets nor settings.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Webhooks {
    /// Whose webhooks the tunnel is for, as the provider's [id](super::Provider::id); `None`: whoever is recognised.
    pub provider: Option<String>,
    /// Its handshakes may be answered for the client while that is away.
    pub handshake: bool,
    /// What the relay does about signatures.
    pub verify: Verify,
    /// What it needs for both. Published keys stay at home: the relay takes nobody's word for them.
    pub credentials: Credentials,
}

/// What is done about a request that is not signed as its provider signs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verify {
    /// Nothing is judged.
    #[default]
    Off,
    /// It is passed on with the verdict.
    Warn,
    /// It is answered with 401, and the app does not hear of it.
    Reject,
}

impl Verify {
    /// As options and the wire write it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Warn => "warn",
            Self::Reject => "reject",
        }
    }
}

impl fmt::Display for Verify {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Verify {
    type Err = WebhooksError;

    fn from_str(text: &str) -> Result<Self, WebhooksError> {
        let all = [Self::Off, Self::Warn, Self::Reject];
        all.into_iter().find(|verify| verify.as_str() == text).ok_or_else(|| WebhooksError::Verify(text.to_owned()))
    }
}

/// What cannot be said of a tunnel's webhooks. A secret or setting that is at fault is not shown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WebhooksError {
    /// Of a provider there is one, and so on.
    #[error("the {0} of a tunnel's webhooks is given twice")]
    Twice(&'static str),
    /// It is no text.
    #[error("the {0} of a tunnel's webhooks is not text in UTF-8")]
    NotText(&'static str),
    /// It is no provider's id.
    #[error("{0:?} names no provider: its id has lower-case letters, digits and hyphens, 64 at most")]
    Provider(String),
    /// It says nothing, and something stands there.
    #[error("a handshake of a tunnel's webhooks has no value")]
    Handshake,
    /// It is no way to deal with signatures.
    #[error("{0:?} is none of off, warn and reject")]
    Verify(String),
    /// It is not of that form.
    #[error("a setting of a tunnel's webhooks is written NAME=VALUE")]
    Setting,
    /// An empty one is none: a variable was not set, and everybody knows it.
    #[error("a secret of a tunnel's webhooks is empty")]
    EmptySecret,
    /// More than there is room for.
    #[error("a tunnel has at most {MAX_SECRETS} secrets and {MAX_SETTINGS} settings, of {MAX_TOLD} bytes in all")]
    TooMuch,
}

impl fmt::Debug for Webhooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { provider, handshake, verify, credentials } = self;
        let settings: Vec<&String> = credentials.settings.keys().collect();
        f.debug_struct("Webhooks")
            .field("provider", provider)
            .field("handshake", handshake)
            .field("verify", verify)
            .field("secrets", &credentials.secrets.len())
            .field("settings", &settings)
            .finish()
    }
}

impl Webhooks {
    /// The extras that say so.
    ///
    /// # Errors
    /// [`WebhooksError`]: the relay would refuse it.
    pub fn extras(&self) -> Result<Vec<Extra>, WebhooksError> {
        let Credentials { secrets, settings, .. } = &self.credentials;
        let extra = |tag, value: &str| Extra { tag, value: value.as_bytes().to_vec() };
        let mut extras = Vec::new();
        extras.extend(self.provider.as_deref().map(|id| extra(PROVIDER, id)));
        extras.extend(self.handshake.then(|| extra(HANDSHAKE, "")));
        extras.extend((self.verify != Verify::Off).then(|| extra(VERIFY, self.verify.as_str())));
        extras.extend(secrets.iter().map(|secret| extra(SECRET, secret.expose())));
        extras.extend(settings.iter().map(|(name, value)| extra(SETTING, &format!("{name}={value}"))));
        // What can be said is what can be read.
        Self::of(&extras).map(|_| extras)
    }

    /// What a tunnel's extras say; unknown tags are left alone.
    ///
    /// # Errors
    /// [`WebhooksError`] says what is wrong with one of them.
    pub fn of(extras: &[Extra]) -> Result<Self, WebhooksError> {
        let mut this = Self::default();
        let (mut verify, mut bytes) = (None, 0_usize);
        for Extra { tag, value } in extras.iter().filter(|extra| (PROVIDER..=SETTING).contains(&extra.tag)) {
            let text = |what| std::str::from_utf8(value).map_err(|_| WebhooksError::NotText(what));
            bytes = bytes.saturating_add(value.len());
            match *tag {
                PROVIDER => {
                    let id = text("provider")?;
                    let is_id = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
                    if id.is_empty() || id.len() > MAX_ID || !id.bytes().all(is_id) {
                        return Err(WebhooksError::Provider(id.chars().take(MAX_ID).collect()));
                    }
                    once(this.provider.replace(id.to_owned()), "provider")?;
                }
                HANDSHAKE if !value.is_empty() => return Err(WebhooksError::Handshake),
                HANDSHAKE => this.handshake = true,
                VERIFY => once(verify.replace(text("verify")?.parse()?), "verify")?,
                SECRET => {
                    let secret = text("secret")?;
                    if secret.trim().is_empty() {
                        return Err(WebhooksError::EmptySecret);
                    }
                    this.credentials.secrets.push(Secret::from(secret));
                }
                _ => {
                    let (name, value) = text("setting")?.split_once('=').ok_or(WebhooksError::Setting)?;
                    if name.is_empty() {
                        return Err(WebhooksError::Setting);
                    }
                    once(this.credentials.settings.insert(name.to_owned(), value.to_owned()), "setting")?;
                }
            }
            let Credentials { secrets, settings, .. } = &this.credentials;
            if secrets.len() > MAX_SECRETS || settings.len() > MAX_SETTINGS || bytes > MAX_TOLD {
                return Err(WebhooksError::TooMuch);
            }
        }
        this.verify = verify.unwrap_or_default();
        Ok(this)
    }

    /// What a relay says in its Welcome that knows these extras.
    #[must_use]
    pub const fn known() -> Extra {
        Extra { tag: KNOWN, value: Vec::new() }
    }

    /// Whether the relay knows these extras, by the extras of its Welcome. One that does not judges nothing and answers
    /// no handshake, and does not say so.
    #[must_use]
    pub fn are_known(welcome: &[Extra]) -> bool {
        welcome.iter().any(|extra| extra.tag == KNOWN)
    }
}

fn once<T>(before: Option<T>, what: &'static str) -> Result<(), WebhooksError> {
    before.map_or(Ok(()), |_| Err(WebhooksError::Twice(what)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use proptest::prelude::*;

    use super::*;

    fn extra(tag: u16, value: &[u8]) -> Extra {
        Extra { tag, value: value.to_vec() }
    }

    fn all() -> Webhooks {
        Webhooks {
            provider: Some("standard-webhooks".into()),
            handshake: true,
            verify: Verify::Reject,
            credentials: Credentials {
                secrets: vec!["whsec_canary1".into(), "-----BEGIN\ncanary2\n".into()],
                settings: [("token".to_owned(), "a=canary3".to_owned())].into(),
                ..Credentials::default()
            },
        }
    }

    #[test]
    fn what_is_told_is_what_is_heard() {
        for webhooks in [Webhooks::default(), all()] {
            let mut extras = webhooks.extras().unwrap();
            extras.push(extra(77, b"of a later version"));
            assert_eq!(Webhooks::of(&extras), Ok(webhooks));
        }
        assert_eq!(Webhooks::default().extras(), Ok(Vec::new()), "a tunnel that needs nothing says nothing");
    }

    #[test]
    fn nothing_that_is_printed_tells_a_secret() {
        let spec = crate::message::TunnelSpec { extra: all().extras().unwrap(), ..Default::default() };
        let shown = format!("{:?} {:?} {spec:?}", all(), all().credentials);
        assert!(!shown.contains("canary") && !shown.contains("99, 97, 110"), "{shown}");
        assert!(shown.contains("standard-webhooks"), "{shown}");
    }

    #[test]
    fn each_mistake_is_named() {
        let long = vec![b'a'; MAX_TOLD];
        let secrets: Vec<_> = (0..=MAX_SECRETS).map(|_| extra(SECRET, b"s")).collect();
        for (extras, error) in [
            (vec![extra(PROVIDER, b"a"), extra(PROVIDER, b"a")], WebhooksError::Twice("provider")),
            (vec![extra(PROVIDER, b"A B")], WebhooksError::Provider("A B".into())),
            (vec![extra(PROVIDER, b"")], WebhooksError::Provider("".into())),
            (vec![extra(PROVIDER, b"\xff")], WebhooksError::NotText("provider")),
            (vec![extra(HANDSHAKE, b"1")], WebhooksError::Handshake),
            (vec![extra(VERIFY, b"Warn")], WebhooksError::Verify("Warn".into())),
            (vec![extra(VERIFY, b"off"), extra(VERIFY, b"warn")], WebhooksError::Twice("verify")),
            (vec![extra(SECRET, b" \n")], WebhooksError::EmptySecret),
            (secrets, WebhooksError::TooMuch),
            (vec![extra(SECRET, &long), extra(SECRET, b"s")], WebhooksError::TooMuch),
            (vec![extra(SETTING, b"token")], WebhooksError::Setting),
            (vec![extra(SETTING, b"=x")], WebhooksError::Setting),
            (vec![extra(SETTING, b"a=1"), extra(SETTING, b"a=2")], WebhooksError::Twice("setting")),
        ] {
            assert_eq!(Webhooks::of(&extras), Err(error));
        }
        let webhooks = Webhooks { provider: Some("Stripe".into()), ..Webhooks::default() };
        assert!(webhooks.extras().is_err(), "a client hears of it before its relay does");
    }

    proptest! {
        #[test]
        fn whatever_is_heard_can_be_told(extras in prop::collection::vec((0..8u16, prop::collection::vec(any::<u8>(), 0..9)), 0..9)) {
            let extras: Vec<_> = extras.into_iter().map(|(tag, value)| Extra { tag, value }).collect();
            if let Ok(webhooks) = Webhooks::of(&extras) {
                prop_assert_eq!(Webhooks::of(&webhooks.extras().unwrap()), Ok(webhooks));
            }
        }
    }
}
