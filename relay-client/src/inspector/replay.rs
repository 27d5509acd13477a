//! Sending a recorded request once more, as it came or changed. It goes to the service of a tunnel of this client and
//! nowhere else.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TE, TRAILER, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderName, HeaderValue, Method};
use relay_protocol::message::HeaderList;
use serde::{Deserialize, Serialize};

use super::Desk;
use super::answer::Problem;
use super::records::Records;
use crate::capture::replay::{Replay, Resign};
use crate::capture::saved::base;
use crate::capture::text;
use crate::door::LocalError;

/// What says how a message is framed, and is not for anybody to write.
const OWN: [HeaderName; 5] = [CONNECTION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE];

/// What is to be different.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Changes {
    method: Option<String>,
    path: Option<String>,
    headers: Option<Vec<(String, String)>>,
    body: Option<String>,
    body_base64: Option<String>,
    resign: Option<bool>,
    tunnel: Option<String>,
}

/// What became of it.
#[derive(Debug, Serialize)]
pub(super) struct Done {
    /// The new exchange's.
    id: String,
    /// Whether it was signed anew.
    signed: bool,
    /// None where the service did not answer.
    status: Option<u16>,
    /// A stable code.
    error: Option<&'static str>,
}

impl From<LocalError> for Problem {
    fn from(error: LocalError) -> Self {
        match error {
            LocalError::NoTunnel(name) => Self::NoTunnel(name),
            LocalError::Ended => Self::Ended,
            LocalError::Replay(_) | LocalError::Request(_) => Self::NoReplay(error.to_string()),
        }
    }
}

impl Changes {
    /// As it came, to this tunnel where one is named.
    pub(super) fn none(tunnel: Option<String>) -> Self {
        Self { tunnel, ..Self::default() }
    }

    /// Of a body, which may be empty where nothing is to be different.
    pub(super) fn read(body: &Bytes) -> Result<Self, Problem> {
        if body.is_empty() {
            return Ok(Self::default());
        }
        serde_json::from_slice(body).map_err(|error| Problem::Json(error.to_string()))
    }
}

impl Desk {
    /// Sends the request of this id once more, and waits for the answer.
    pub(super) async fn replay(&self, id: &str, changes: Changes) -> Result<Done, Problem> {
        let (id, resign) = (id.to_owned(), changes.resign);
        let (mut replay, tunnel) = self
            .records
            .look(move |records| {
                let tunnel = changes.tunnel.clone();
                Ok((changed(records, &id, changes)?, tunnel))
            })
            .await?;
        if tunnel.is_some() {
            replay.tunnel = tunnel;
        }
        let resign = match resign {
            None => Resign::Stale,
            Some(true) => Resign::Always,
            Some(false) => Resign::Never,
        };
        let tunnel = match replay.tunnel.take() {
            Some(tunnel) => tunnel,
            None => self.only_tunnel()?,
        };
        let answer = self.door.ask(&tunnel, replay, resign).await?;
        let status = answer.status.map(|status| status.as_u16());
        Ok(Done { id: answer.id, signed: answer.signed, status, error: answer.error })
    }

    fn only_tunnel(&self) -> Result<String, Problem> {
        let mut tunnels = self.control.board.status().tunnels;
        match (tunnels.pop(), tunnels.is_empty()) {
            (Some(only), true) => Ok(only.tunnel),
            _ => Err(Problem::NoReplay("it is not known which tunnel it came through; name one".to_owned())),
        }
    }
}

/// The request of this id, with what is to be different.
fn changed(records: &Records, id: &str, changes: Changes) -> Result<Replay, Problem> {
    let wrong = |name: &'static str, reason: &str| Problem::Parameter { name, reason: reason.to_owned() };
    let mut exchange = records.get(id)?;
    let body = match (changes.body, changes.body_base64) {
        (None, None) => None,
        (Some(text), None) => Some(text.into_bytes()),
        (None, Some(text)) => Some(STANDARD.decode(text).map_err(|error| wrong("body_base64", &error.to_string()))?),
        (Some(_), Some(_)) => return Err(wrong("body", "it is given twice")),
    };
    let before = Replay::of(&exchange).ok().map(Box::new);
    if let Some(body) = body {
        // Whatever of the old one was not kept is not missed.
        (exchange.request.body, exchange.request.body_truncated) = (body, false);
    }
    let mut replay = Replay::of(&exchange).map_err(|error| Problem::NoReplay(error.to_string()))?;
    if let Some(method) = changes.method {
        replay.method = Method::from_bytes(method.as_bytes()).map_err(|error| wrong("method", &error.to_string()))?;
    }
    if let Some(path) = changes.path {
        if !path.starts_with('/') || path.contains(|c: char| c.is_control() || c == ' ' || c == '#') {
            return Err(wrong("path", "it begins with a slash, and has no spaces"));
        }
        replay.url = format!("{}{path}", base(&replay.url, &replay.headers).unwrap_or_default());
    }
    if let Some(headers) = changes.headers {
        replay.headers = relined(&replay.headers, headers)?;
    }
    replay.before = before;
    Ok(replay)
}

/// The headers that are asked for. One that is as it was has the bytes that it had, whatever was shown of them.
fn relined(before: &HeaderList, wanted: Vec<(String, String)>) -> Result<HeaderList, Problem> {
    let wrong = |reason: String| Problem::Parameter { name: "headers", reason };
    let mut headers = HeaderList::new();
    for (name, value) in wanted {
        let name: HeaderName = name.parse().map_err(|_| wrong(format!("{name:?} is no name")))?;
        // It is the tunnel's own.
        if name == HOST {
            continue;
        }
        if OWN.contains(&name) {
            return Err(wrong(format!("{name} is said by itself, where it is due; leave it out")));
        }
        let known = before.iter().find(|(known, bytes)| *known == name && text(bytes.as_bytes()) == value);
        let bytes = match known {
            Some((_, bytes)) => bytes.clone(),
            None if name == CONTENT_LENGTH && value.parse::<u64>().is_err() => {
                return Err(wrong("content-length is a number, and is set by itself".to_owned()));
            }
            None => HeaderValue::from_bytes(value.as_bytes())
                .map_err(|_| wrong(format!("the value of {name} has characters that none can have")))?,
        };
        headers.push((name, bytes));
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn headers_that_were_only_shown_keep_their_bytes() {
        let odd = (HeaderName::from_static("x-odd"), HeaderValue::from_bytes(b"\xff").unwrap());
        let wanted = |list: &[(&str, &str)]| {
            let owned = list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            relined(&vec![odd.clone()], owned)
        };
        let found = wanted(&[("X-Odd", "\u{ff}"), ("host", "other"), ("x-new", "\u{ff}")]).unwrap();
        let found: Vec<_> = found.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
        assert_eq!(found, [("x-odd", &b"\xff"[..]), ("x-new", "\u{ff}".as_bytes())]);
        for wrong in [("transfer-encoding", "chunked"), ("a b", "c"), ("a", "b\r\nc: d"), ("content-length", "x")] {
            assert!(wanted(&[wrong]).is_err(), "{wrong:?}");
        }
    }
}
