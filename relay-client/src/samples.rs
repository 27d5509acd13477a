//! Webhooks as providers send them, for apps that want one now: files below `samples/`, whose ids and times are filled in
//! when one is sent.
//!
//! A file is a request as [`Saved`] reads it, and the first of a sender is the one that is meant when none is named. The
//! newline at its end is none of the body. In it stand, between double braces:
//!
//! | written | means |
//! |---|---|
//! | `now`, `now:FORMAT` | the time in seconds since 1970, or as strftime writes it in UTC |
//! | `now+60`, `now-60:FORMAT` | so many seconds later or earlier |
//! | `hex:N`, `digits:N`, `alnum:N`, `upper:N`, `uuid` | N random characters of that kind, or a random UUID |
//! | `hex:N#NAME` | the same characters wherever that NAME stands |
//! | `url` | the URL that the request is sent to |
//! | `set:NAME` | one of the provider's settings |
//!
//! The body of a form has a line for each field, `name=value` as it is meant, which is encoded when it is sent. JSON is laid
//! out for who reads it, and sent without the blanks.

use std::collections::HashMap;
use std::fmt::Write as _;

use aws_lc_rs::rand;
use http::Method;
use http::header::CONTENT_TYPE;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use relay_protocol::query::written;

use crate::capture::saved::{Headers, Saved, SavedError};

/// Those who send JSON laid out. With all others an app may verify what it has read and written anew, as those of Zoom and
/// WorkOS do, and with these such an app fails, as it is to.
const LAID_OUT: [&str; 2] = ["stripe", "aws-sns"];

/// A webhook of somebody's.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Who sends it: a provider, or somebody who signs as one.
    pub sender: &'static str,
    /// The id of that provider.
    pub provider: &'static str,
    /// What it is called here: mostly the event's kind, with `-` for what cannot stand in a file's name.
    pub name: &'static str,
    text: &'static str,
}

/// A sample, filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filled {
    /// The method.
    pub method: Method,
    /// What stands in the request line, which is a slash and a query where there is one.
    pub target: String,
    /// All but the signature.
    pub headers: Headers,
    /// The body.
    pub body: Vec<u8>,
}

/// What is wrong with a sample. Those that are built in have nothing wrong: a test fills in each.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SampleError {
    /// Something else stands between braces.
    #[error("{{{{{0}}}}} is nothing that a sample can say")]
    Word(String),
    /// It is no request.
    #[error(transparent)]
    Saved(#[from] SavedError),
    /// The system has no randomness.
    #[error("this machine has no random numbers")]
    Random,
}

/// The samples of a sender, as they follow it in the list below.
pub fn of(sender: &str) -> impl Iterator<Item = &'static Sample> {
    all().filter(move |sample| sample.sender == sender)
}

/// All of them.
pub fn all() -> impl Iterator<Item = &'static Sample> {
    SAMPLES.iter().copied().flatten()
}

/// The letters and digits of a name, because a path, a colon and a hyphen are all the same to who types one.
fn letters(name: &str) -> impl Iterator<Item = char> {
    name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase)
}

impl Sample {
    /// Whether this is what somebody calls it.
    pub fn is_called(&self, name: &str) -> bool {
        letters(self.name).eq(letters(name))
    }

    /// The settings that it says.
    pub fn settings(&self) -> impl Iterator<Item = &'static str> {
        self.text.split("{{set:").skip(1).filter_map(|rest| Some(rest.split_once("}}")?.0))
    }

    /// Fills it in for that URL. A setting that is not given is empty.
    ///
    /// # Errors
    /// [`SampleError`].
    pub fn fill(&self, url: &str, settings: &[(&str, String)], now: Timestamp) -> Result<Filled, SampleError> {
        let text = Filling { url, settings, now, named: HashMap::new() }.fill(self.text)?;
        let saved = Saved::read(text.as_bytes())?;
        let body = saved.body.strip_suffix(b"\n").unwrap_or(saved.body);
        let kind = saved.header(&CONTENT_TYPE).unwrap_or_default();
        let body = if kind.starts_with("application/x-www-form-urlencoded") {
            form(body)
        } else if kind.contains("json") && !LAID_OUT.contains(&self.sender) {
            without_blanks(body)
        } else {
            body.to_vec()
        };
        Ok(Filled { method: saved.method.clone(), target: saved.target.to_owned(), headers: saved.headers, body })
    }
}

/// The fields of a form, which stand in a line each.
fn form(lines: &[u8]) -> Vec<u8> {
    let lines = String::from_utf8_lossy(lines);
    written(lines.lines().map(|line| line.split_once('=').unwrap_or((line, "")))).into_bytes()
}

/// JSON with nothing between its tokens.
fn without_blanks(json: &[u8]) -> Vec<u8> {
    let (mut in_string, mut escaped) = (false, false);
    let stays = |byte: &u8| {
        let stays = in_string || !byte.is_ascii_whitespace();
        in_string ^= *byte == b'"' && !escaped;
        escaped = *byte == b'\\' && !escaped;
        stays
    };
    json.iter().copied().filter(stays).collect()
}

struct Filling<'a> {
    url: &'a str,
    settings: &'a [(&'a str, String)],
    now: Timestamp,
    /// What was random and has a name.
    named: HashMap<String, String>,
}

impl Filling<'_> {
    fn fill(&mut self, text: &str) -> Result<String, SampleError> {
        let mut filled = String::with_capacity(text.len());
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("{{") {
            filled.push_str(before);
            let (word, after) = after.split_once("}}").ok_or_else(|| SampleError::Word(after.to_owned()))?;
            filled.push_str(&self.word(word)?);
            rest = after;
        }
        filled.push_str(rest);
        Ok(filled)
    }

    fn word(&mut self, word: &str) -> Result<String, SampleError> {
        if word == "url" {
            return Ok(self.url.to_owned());
        }
        if let Some(name) = word.strip_prefix("set:") {
            let setting = self.settings.iter().find(|(given, _)| *given == name);
            return Ok(setting.map(|(_, value)| value.clone()).unwrap_or_default());
        }
        if let Some(time) = word.strip_prefix("now") {
            return self.time(time).ok_or_else(|| SampleError::Word(word.to_owned()));
        }
        let (kind, name) = word.split_once('#').map_or((word, None), |(kind, name)| (kind, Some(name)));
        if let Some(known) = name.and_then(|name| self.named.get(name)) {
            return Ok(known.clone());
        }
        let random = random(kind, word)?;
        if let Some(name) = name {
            self.named.insert(name.to_owned(), random.clone());
        }
        Ok(random)
    }

    fn time(&self, word: &str) -> Option<String> {
        let (offset, format) = word.split_once(':').unwrap_or((word, "%s"));
        let offset = if offset.is_empty() { 0 } else { offset.parse().ok()? };
        let time = self.now.checked_add(SignedDuration::from_secs(offset)).ok()?;
        let mut written = String::new();
        // An odd format is an error of writing.
        write!(written, "{}", time.to_zoned(TimeZone::UTC).strftime(format)).ok()?;
        Some(written)
    }
}

fn random(kind: &str, word: &str) -> Result<String, SampleError> {
    let unknown = || SampleError::Word(word.to_owned());
    if kind == "uuid" {
        let mut bytes = [0; 16];
        rand::fill(&mut bytes).map_err(|_| SampleError::Random)?;
        // Version 4 (RFC 9562, section 5.4).
        let number = u128::from_be_bytes(bytes) & !(0xf << 76) & !(0x3 << 62) | (0x4 << 76) | (0x2 << 62);
        let hex = format!("{number:032x}");
        let parts = [0..8, 8..12, 12..16, 16..20, 20..32].map(|range| hex.get(range).unwrap_or_default());
        return Ok(parts.join("-"));
    }
    let (kind, length) = kind.split_once(':').ok_or_else(unknown)?;
    let alphabet: &[u8] = match kind {
        "hex" => b"0123456789abcdef",
        "digits" => b"0123456789",
        "alnum" => b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz",
        "upper" => b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ",
        _ => return Err(unknown()),
    };
    let length = length.parse().ok().filter(|length| (1..=64).contains(length)).ok_or_else(unknown)?;
    let mut bytes = vec![0; length];
    rand::fill(&mut bytes).map_err(|_| SampleError::Random)?;
    // That some come a little more often than others does no harm to a sample.
    let character = |byte: &u8| alphabet.get(usize::from(*byte) % alphabet.len()).copied().map(char::from);
    let mut text: String = bytes.iter().filter_map(character).collect();
    if text.starts_with('0') && kind == "digits" {
        // A number in JSON begins with no zero.
        text.replace_range(..1, "1");
    }
    Ok(text)
}

macro_rules! samples {
    (@of $sender:literal, ($provider:literal $($other:literal)?), $($name:literal)+) => {
        &[$(Sample {
            sender: $sender,
            provider: $provider,
            name: $name,
            text: include_str!(concat!("../samples/", $sender, "/", $name, ".http")),
        }),+] as &[Sample]
    };
    ($($sender:literal $(as $provider:literal)?: $($name:literal)+;)*) => {
        &[$(samples!(@of $sender, ($($provider)? $sender), $($name)+),)*]
    };
}

/// In the order of the table, and of each sender the one first that is meant when none is named.
const SAMPLES: &[&[Sample]] = samples! {
    "stripe":
        "payment_intent.succeeded"
        "payment_intent.payment_failed"
        "checkout.session.completed"
        "invoice.paid"
        "invoice.payment_failed"
        "customer.subscription.created"
        "customer.subscription.updated"
        "customer.subscription.deleted"
        "charge.refunded";
    "github": "push" "pull_request" "issues" "issue_comment" "release" "workflow_run" "ping";
    "shopify": "orders-create" "orders-paid" "orders-cancelled" "products-update" "app-uninstalled";
    "slack": "event_callback" "message" "url_verification" "slash_command" "block_actions";
    "twitch": "channel.follow" "webhook_callback_verification";
    "linear": "Issue";
    "telnyx": "message.received";
    "gitlab": "push" "merge_request";
    "bitbucket": "repo-push" "pullrequest-created";
    "paypal": "PAYMENT.CAPTURE.COMPLETED";
    "sendgrid": "events";
    "twilio": "sms" "message-status" "voice";
    "discord": "application_command" "entitlement_create" "ping";
    "hubspot": "contact.creation" "deal.propertyChange";
    "mandrill": "send";
    "mailchimp": "subscribe";
    "square": "payment.updated";
    "adyen": "AUTHORISATION" "balancePlatform.transfer.created";
    "paddle": "transaction.completed" "subscription.canceled";
    "zoom": "meeting.started" "endpoint.url_validation";
    "zendesk": "ticket.created";
    "typeform": "form_response";
    "calendly": "invitee.created";
    "dropbox": "notification" "verification";
    "xero": "INVOICE.UPDATE";
    "docusign": "envelope-completed";
    "plaid": "TRANSACTIONS.SYNC_UPDATES_AVAILABLE";
    "telegram": "message";
    "line": "message";
    "aws-sns": "Notification" "SubscriptionConfirmation";
    "sentry": "issue.created";
    "pagerduty": "incident.triggered";
    "jira": "issue_created";
    "atlassian-connect": "issue_created";
    "vercel": "deployment.succeeded";
    "coinbase": "onchain.activity.detected";
    "coinbase-commerce": "charge.confirmed";
    "razorpay": "payment.captured";
    "woocommerce": "order.created";
    "grafana": "firing";
    "alertmanager": "firing";
    "notion": "page.content_updated";
    "mux": "video.asset.ready";
    "workos": "user.created";
    "sanity": "create";
    "contentful": "Entry.publish";
    "plivo": "sms";
    "lemon-squeezy": "order_created";
    "gocardless": "payments.confirmed";
    "asana": "task.changed";
    "x": "tweet_create_events" "crc";
    "okta": "user.session.start";
    "event-grid": "Shop.OrderCreated" "SubscriptionValidation";
    "pusher": "channel_occupied";
    "yousign": "signature_request.done";
    "qonto": "transaction.created";
    "fourthwall": "ORDER_PLACED";
    "trello": "updateCard";
    "onfleet": "taskCompleted";
    "nylas": "message.created";
    "smartsheet": "row.updated";
    "webflow": "form_submission";
    "close": "lead.created";
    "chargebee": "subscription_created";
    "standard-webhooks": "order.created";
    "svix" as "standard-webhooks": "invoice.paid";
    "clerk" as "standard-webhooks": "user.created";
    "resend" as "standard-webhooks": "email.delivered";
    "openai" as "standard-webhooks": "response.completed";
    "polar": "order.paid";
    "meta-whatsapp": "whatsapp_message" "page_feed" "subscribe";
    "websub": "feed" "subscribe";
    "intercom": "conversation.user.created";
    "mailgun": "delivered";
    "google-pubsub": "message";
    "microsoft-graph": "created";
    "braintree": "check";
    "dropbox-sign": "signature_request_signed";
    "monday": "create_pulse" "challenge";
    "cloudevents": "order.created" "validation";
};

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use std::collections::BTreeSet;
    use std::path::Path;

    use relay_protocol::webhook::{Credentials, Request, Table, Verdict};

    use super::*;

    const URL: &str = "https://hooks.relay.example.com/hooks";

    fn now() -> Timestamp {
        "2026-01-01T00:00:00.25Z".parse().unwrap()
    }

    #[test]
    fn every_sample_is_what_it_says_and_signed_as_its_provider_signs() {
        let table = Table::built_in().unwrap();
        for sample in all() {
            let name = format!("{}/{}", sample.sender, sample.name);
            let row = table.get(sample.provider).unwrap_or_else(|| panic!("{name}: {}", sample.provider));
            let settings: Vec<_> = sample.settings().map(|name| (name, "relay-test".to_owned())).collect();
            let fill = || sample.fill(URL, &settings, now()).unwrap_or_else(|error| panic!("{name}: {error}"));
            let Filled { method, target, headers, body } = fill();
            assert!(target == "/" || target.starts_with("/?"), "{name}: {target}");
            let url = format!("{URL}{}", target.strip_prefix('/').unwrap());
            let text = String::from_utf8(body.clone()).unwrap();
            let value =
                |name: &str| headers.iter().find(|(given, _)| given == name).map(|(_, value)| value.to_str().unwrap());
            match value("content-type") {
                Some(kind) if kind.contains("json") => {
                    let read: serde_json::Value =
                        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
                    let is_bare = text.len() == read.to_string().len();
                    assert_ne!(is_bare, LAID_OUT.contains(&sample.sender), "{name}: {text}");
                }
                Some(kind) if kind.contains("form") => assert!(!text.contains(['\n', ' ', '{']), "{name}: {text}"),
                Some(_) => {}
                None => assert_eq!(text, "", "{name}"),
            }

            let unsigned = Request::new(&method, &url, &headers, &body);
            let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
            let mut credentials = Credentials { settings, ..Credentials::default() };
            let draft = match row.new_secret().filter(|_| method == Method::POST) {
                Some(pair) => {
                    credentials.secrets = vec![pair.private];
                    let draft =
                        row.sign(&unsigned, &credentials, now()).unwrap_or_else(|error| panic!("{name}: {error}"));
                    credentials.secrets = vec![pair.public.into()];
                    draft
                }
                None => (&unsigned).into(),
            };
            let signed = Request::new(&method, &draft.url, &draft.headers, &draft.body);
            let recognised = table.recognise(&signed).map(|row| row.id.as_str());
            // A check of monday.com has nothing that tells it from another's.
            let wanted = Some(sample.provider).filter(|_| name != "monday/challenge");
            assert_eq!(recognised, wanted, "{name}");
            let handshake = row.handshake(&signed, &credentials, now());
            if !credentials.secrets.is_empty() {
                let judgement = row.judge(&signed, &credentials, now());
                assert_eq!(judgement.verdict, Verdict::Valid, "{name}: {judgement:?}");
            }
            let event = row.event(&signed);
            let untyped = ["telegram", "google-pubsub", "dropbox", "braintree", "websub", "x"];
            if handshake.is_none() && method == Method::POST && !untyped.contains(&sample.provider) {
                let kind = event.kind.as_deref().unwrap_or_else(|| panic!("{name}: no type"));
                assert!(!kind.is_empty() && !kind.starts_with('.') && !kind.ends_with('.'), "{name}: {kind}");
            }
            let again = fill();
            let again = row.event(&Request::new(&method, &url, &again.headers, &again.body));
            assert!(event.id.is_none() || again.id != event.id, "{name}: two events have the id {:?}", event.id);
        }
    }

    #[test]
    fn json_loses_the_blanks_between_its_tokens_alone() {
        let json = br#" { "a b" : [ 1.50 , "\" \\" , null ] ,
            "c" : " { } " } "#;
        assert_eq!(without_blanks(json), br#"{"a b":[1.50,"\" \\",null],"c":" { } "}"#);
    }

    #[test]
    fn every_provider_that_can_be_imitated_has_a_sample() {
        let table = Table::built_in().unwrap();
        let without: Vec<_> = table.iter().map(|row| row.id.as_str()).filter(|id| of(id).next().is_none()).collect();
        // Two whose bodies are tokens, and two forms of authentication that anybody may use.
        assert_eq!(without, ["wix", "dialpad", "basic", "bearer"]);
    }

    #[test]
    fn every_file_is_in_the_list() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("samples");
        let entries =
            |path: &Path| std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
        let files: BTreeSet<_> = entries(&root)
            .iter()
            .flat_map(|directory| entries(directory))
            .map(|file| file.strip_prefix(&root).unwrap().display().to_string())
            .collect();
        let listed: BTreeSet<_> = all().map(|sample| format!("{}/{}.http", sample.sender, sample.name)).collect();
        assert_eq!(files, listed);
    }

    #[test]
    fn words_are_filled_in() {
        let fill = |text: &str| {
            let settings = [("a", "b".to_owned())];
            Filling { url: URL, settings: &settings, now: now(), named: HashMap::new() }.fill(text)
        };
        assert_eq!(fill("{{now}} {{now+60}} {{now:%s%3f}}").unwrap(), "1767225600 1767225660 1767225600250");
        assert_eq!(fill("{{now-1:%Y-%m-%dT%H:%M:%S.%3fZ}}").unwrap(), "2025-12-31T23:59:59.250Z");
        assert_eq!(fill("{{url}} {{set:a}} {{set:c}}}").unwrap(), format!("{URL} b }}"));
        let twice = fill("{{hex:8#x}} {{hex:8#x}} {{hex:8}}").unwrap();
        let words: Vec<_> = twice.split(' ').collect();
        assert!(words[0] == words[1] && words[1] != words[2] && words[0].len() == 8, "{twice}");
        let uuid = fill("{{uuid}}").unwrap();
        assert!(uuid.len() == 36 && uuid.chars().nth(14) == Some('4') && fill("{{uuid}}").unwrap() != uuid, "{uuid}");
        for wrong in ["{{", "{{}}", "{{hex}}", "{{hex:0}}", "{{hex:65}}", "{{now*}}", "{{other}}"] {
            assert!(matches!(fill(wrong), Err(SampleError::Word(_))), "{wrong}: {:?}", fill(wrong));
        }
    }

    #[test]
    fn a_name_is_known_however_its_parts_are_joined() {
        let named = |name: &str| of("shopify").find(|sample| sample.is_called(name)).map(|sample| sample.name);
        for name in ["orders/create", "orders-create", "Orders.Create", "ORDERS_CREATE"] {
            assert_eq!(named(name), Some("orders-create"), "{name}");
        }
        assert_eq!(named("orders"), None);
    }
}
