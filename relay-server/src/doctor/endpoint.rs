//! The endpoint where clients connect, at the relay's public URL: a WebSocket handshake as they make it.

use std::time::Duration;

use http::header::{AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL};
use http::{HeaderValue, StatusCode};
use relay_protocol::link::websocket_config;
use relay_protocol::{CONNECT_PATH, SUBPROTOCOL};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::Error as WsError;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use super::finding::Finding;
use super::handshake::shake_hands;
use super::patient::{Patient, Way};
use super::trial::Trial;

const CHECK: &str = "connect";

/// From the request to its answer.
const WITHIN: Duration = Duration::from_secs(10);

const READ_BUFFER: usize = 16 * 1024;

/// A connection on which a session can begin, by a token that is for this alone.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) socket: WebSocketStream<TlsStream<TcpStream>>,
    pub(super) trial: Trial,
}

/// Connects as a client does. Where a relay runs here, by a token that it was asked for; else without one, which a relay
/// refuses in words that are its own.
pub(super) async fn check(patient: &Patient) -> (Finding, Option<Session>) {
    let host = &patient.config.domain;
    let url = patient.config.public_url(host, patient.port());
    let Way { addresses, detour } = patient.way(host).await;
    if let ([], Some(why)) = (&addresses[..], &detour) {
        return (Finding::unknown(CHECK, format!("where {url} is reached is not known: {why}")), None);
    }
    let shown = match shake_hands(&addresses, host, patient).await {
        Ok(shown) => shown,
        Err(error) => {
            let found = format!("{url} is not reached: {error}");
            let finding = match patient.status() {
                Some(_) => Finding::wrong(CHECK, found).mend(["see dns.address and port.https above"]),
                None => Finding::unknown(CHECK, found),
            };
            return (finding, None);
        }
    };
    if let Some(fault) = shown.fault {
        let found = format!("clients end the connection to {url} because of its certificate: {fault}");
        return (Finding::wrong(CHECK, found).mend(["see certificate.served above"]), None);
    }
    let trial = match patient.status() {
        Some(_) => Trial::begin(patient).await,
        None => Ok(None),
    };
    let trial = match trial {
        Ok(trial) => trial,
        Err(error) => return (Finding::unknown(CHECK, format!("the relay gives no token: {error}")), None),
    };
    let asked = ask(patient, host, trial.as_ref(), shown.stream);
    let answered = timeout(WITHIN, asked).await.unwrap_or_else(|_| Err(Refusal::Broken("no answer".to_owned())));
    let detour = detour.map(|why| format!(", at its own address, because {why}")).unwrap_or_default();
    match (answered, trial) {
        (Ok(socket), Some(trial)) => {
            let finding = Finding::ok(CHECK, format!("{url} takes a client{detour}"));
            (finding, Some(Session { socket, trial }))
        }
        (Ok(_), None) => {
            (Finding::wrong(CHECK, format!("{url} takes clients without a token: that is no relay")), None)
        }
        (Err(refusal), trial) => {
            let finding = judge(&url, &detour, &refusal, trial.is_some());
            let left = match trial {
                Some(trial) => trial.end().await.err(),
                None => None,
            };
            (finding.mend(left), None)
        }
    }
}

/// Why there is no session.
#[derive(Debug)]
enum Refusal {
    /// An answer of HTTP, and the code with which a relay says why.
    Answer(StatusCode, Option<String>),
    Broken(String),
}

async fn ask(
    patient: &Patient,
    host: &str,
    trial: Option<&Trial>,
    stream: TlsStream<TcpStream>,
) -> Result<WebSocketStream<TlsStream<TcpStream>>, Refusal> {
    let broken = |error: &dyn std::fmt::Display| Refusal::Broken(error.to_string());
    let url = format!("wss://{}{CONNECT_PATH}", patient.authority(host));
    let mut request = url.into_client_request().map_err(|error| broken(&error))?;
    request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
    if let Some(trial) = trial {
        let mut bearer = HeaderValue::try_from(format!("Bearer {}", trial.secret())).map_err(|error| broken(&error))?;
        bearer.set_sensitive(true);
        request.headers_mut().insert(AUTHORIZATION, bearer);
    }
    // Boxed, because it is big.
    match Box::pin(client_async_with_config(request, stream, Some(websocket_config(READ_BUFFER)))).await {
        Ok((socket, _)) => Ok(socket),
        Err(WsError::Http(response)) => {
            let code = response.headers().get("relay-error").and_then(|code| code.to_str().ok()).map(str::to_owned);
            Err(Refusal::Answer(response.status(), code))
        }
        Err(error) => Err(broken(&error)),
    }
}

fn judge(url: &str, detour: &str, refusal: &Refusal, has_token: bool) -> Finding {
    match refusal {
        Refusal::Answer(StatusCode::UNAUTHORIZED, Some(code)) if !has_token && code == "unauthorized" => {
            Finding::ok(CHECK, format!("{url} is answered by a relay{detour}, which wants a token"))
        }
        Refusal::Answer(StatusCode::UNAUTHORIZED, Some(_)) => {
            let found = format!("{url} is answered by another relay than the one on this data directory{detour}");
            Finding::wrong(CHECK, found).mend(["where does its name lead? See dns.address above"])
        }
        Refusal::Answer(status, Some(code)) => {
            Finding::wrong(CHECK, format!("{url} answers {status} ({code}){detour}"))
        }
        Refusal::Answer(status, None) => {
            let found = format!("{url} is answered by something that is no relay{detour}: {status}");
            Finding::wrong(CHECK, found).mend(["a proxy before the relay has to let WebSocket upgrades through"])
        }
        Refusal::Broken(error) => Finding::wrong(CHECK, format!("{url} lets no WebSocket through{detour}: {error}"))
            .mend(["a proxy before the relay has to let WebSocket upgrades through"]),
    }
}
