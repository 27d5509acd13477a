//! Requests by which a provider checks an endpoint before it uses it, and what answers them.

use std::{collections::BTreeMap, fmt};

use http::{HeaderName, HeaderValue, StatusCode};
use jiff::Timestamp;
use serde::Deserialize;

use super::{
    condition::Conditions,
    credentials::Credentials,
    request::{Place, Request},
    signature::KeyUrl,
    table::Provider,
    template::{Scope, Template},
    verdict::Verdict,
};

/// The longest answer, in bytes. What is sent back is mostly what somebody sent, and no challenge is longer.
const ANSWER_MAX: usize = 1024;

/// The longest challenge that is signed, in bytes.
const CHALLENGE_MAX: usize = 64;

/// A row of `[[provider.handshake]]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Handshake {
    pub(super) when: Conditions,
    #[serde(default)]
    signed: Signed,
    /// Places that must say the same as a template, such as a token that the user has chosen.
    #[serde(default)]
    equal: BTreeMap<Place, Template>,
    /// The characters of the provider's challenges, where they are fewer than those of a token.
    challenge: Option<String>,
    /// The status for a request that is not the provider's.
    refuse: Option<u16>,
    status: Option<u16>,
    text: Option<Template>,
    json: Option<BTreeMap<String, Json>>,
    #[serde(default)]
    headers: BTreeMap<String, Template>,
    /// What the app itself must see, though it could be answered, and why.
    app: Option<String>,
    /// What must be fetched for the handshake to be complete.
    confirm: Option<KeyUrl>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Signed {
    /// Nothing is signed.
    #[default]
    No,
    /// The signature must be right if we have a secret; the answer gives nothing away if we have none.
    WhenKnown,
    /// The answer proves something.
    Always,
}

/// A value of an answer in JSON.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Json {
    Number(i64),
    Text(Template),
}

/// What a handshake is answered with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// This answers it. The headers forbid a browser to take the body for anything but what it says.
    Answer {
        /// The status.
        status: StatusCode,
        /// All that the answer needs but its length.
        headers: Vec<(HeaderName, HeaderValue)>,
        /// At most 1 KiB.
        body: Vec<u8>,
        /// A page that must be fetched too, on a host of the provider's, by whoever may make outgoing calls.
        confirm: Option<String>,
    },
    /// It is not the provider's: this status says so.
    Refuse {
        /// The status.
        status: StatusCode,
        /// Why, in words.
        reason: String,
    },
    /// Only the app can answer it.
    LeaveToApp {
        /// Why, in words.
        reason: String,
    },
}

impl Provider {
    /// Answers a handshake of this provider's; `None` for every other request.
    ///
    /// No answer is made that would need a secret which is not given, or one that the app chooses: such a request is left
    /// to the app.
    #[must_use]
    pub fn handshake(&self, request: &Request<'_>, credentials: &Credentials, now: Timestamp) -> Option<Reply> {
        let handshake = self.handshake.iter().find(|handshake| handshake.when.hold(request))?;
        Some(handshake.reply(self, request, credentials, now).unwrap_or_else(|reply| reply))
    }

    /// Whether a request may be one of this provider's handshakes, by whatever of it does not ask for the body.
    #[must_use]
    pub fn may_be_handshake(&self, request: &Request<'_>) -> bool {
        self.handshake.iter().any(|handshake| handshake.when.may_hold(request))
    }
}

impl Handshake {
    pub(super) fn templates(&self) -> impl Iterator<Item = &Template> {
        let json = self.json.iter().flatten().filter_map(|(_, value)| match value {
            Json::Text(template) => Some(template),
            Json::Number(_) => None,
        });
        self.equal.values().chain(&self.text).chain(json).chain(self.headers.values())
    }

    fn reply(
        &self,
        provider: &Provider,
        request: &Request<'_>,
        credentials: &Credentials,
        now: Timestamp,
    ) -> Result<Reply, Reply> {
        let leave = |reason: &dyn fmt::Display| Reply::LeaveToApp { reason: reason.to_string() };
        let refuse = |reason: &dyn fmt::Display| Reply::Refuse {
            status: self.refuse.and_then(|code| StatusCode::from_u16(code).ok()).unwrap_or(StatusCode::UNAUTHORIZED),
            reason: reason.to_string(),
        };
        if let Some(why) = &self.app {
            return Err(leave(why));
        }
        if self.signed == Signed::Always || (self.signed == Signed::WhenKnown && !credentials.secrets.is_empty()) {
            let judgement = provider.judge(request, credentials, now);
            match judgement.verdict {
                Verdict::Valid => {}
                Verdict::NoSecret | Verdict::Unsupported => return Err(leave(&judgement.reason)),
                _ => return Err(refuse(&judgement.reason)),
            }
        }
        let sign = |text: &[u8]| provider.sign_text(credentials, text).filter(|_| self.is_challenge(text));
        let scope = Scope { sign: Some(&sign), ..Scope::of(request, &credentials.settings) };
        for (place, wanted) in &self.equal {
            let wanted = wanted.bytes(&scope).map_err(|lacking| leave(&lacking))?;
            let given = place.one(request).ok().flatten().unwrap_or_default();
            if aws_lc_rs::constant_time::verify_slices_are_equal(&given, &wanted).is_err() {
                return Err(refuse(&format!("{place} is not what it should be")));
            }
        }
        let confirm = match &self.confirm {
            None => None,
            Some(url) => Some(url.on_its_host(&scope).map_err(|judgement| refuse(&judgement.reason))?),
        };
        let (content_type, body) = self.body(&scope).map_err(|lacking| leave(&lacking))?;
        if body.len() > ANSWER_MAX {
            return Err(leave(&format!("its answer would have more than {ANSWER_MAX} bytes")));
        }
        let mut headers = vec![(http::header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"))];
        headers.extend(content_type.map(|value| (http::header::CONTENT_TYPE, HeaderValue::from_static(value))));
        for (name, template) in &self.headers {
            let Some(text) = template.text(&scope) else { continue };
            let pair = HeaderName::from_bytes(name.as_bytes()).ok().zip(HeaderValue::from_str(&text).ok());
            headers.push(pair.ok_or_else(|| leave(&format!("its answer would have a header {name} that is none")))?);
        }
        let status = self.status.and_then(|code| StatusCode::from_u16(code).ok()).unwrap_or(StatusCode::OK);
        Ok(Reply::Answer { status, headers, body, confirm })
    }

    /// Whether a text may be signed for whoever asks: one that could be a webhook's body would make us forge webhooks.
    fn is_challenge(&self, text: &[u8]) -> bool {
        let allowed = |byte: &u8| match &self.challenge {
            Some(characters) => characters.as_bytes().contains(byte),
            None => byte.is_ascii_alphanumeric() || b"-_.+/=".contains(byte),
        };
        (1..=CHALLENGE_MAX).contains(&text.len()) && text.iter().all(allowed)
    }

    fn body(&self, scope: &Scope<'_, '_>) -> Result<(Option<&'static str>, Vec<u8>), super::template::Lacking> {
        if let Some(text) = &self.text {
            return Ok((Some("text/plain; charset=utf-8"), text.bytes(scope)?));
        }
        let Some(json) = &self.json else { return Ok((None, Vec::new())) };
        let mut object = serde_json::Map::new();
        for (name, value) in json {
            let value = match value {
                Json::Number(number) => (*number).into(),
                Json::Text(template) => String::from_utf8_lossy(&template.bytes(scope)?).into_owned().into(),
            };
            object.insert(name.clone(), value);
        }
        Ok((Some("application/json"), serde_json::Value::Object(object).to_string().into_bytes()))
    }
}
