//! `/api/v1`: what `relay-server` does on a command line, for other programs. Each call becomes a [`Request`] to the same
//! [`Desk`], and its reply JSON; nothing is done here that could not be done there.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS};
use http::request::Parts;
use http::{HeaderValue, Method, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use jiff::Timestamp;
use percent_encoding::percent_decode_str;
use relay_protocol::inbox::api::Which;
use relay_protocol::query::fields;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::listener::Caller;
use super::problem::Problem;
use super::refusals::Refusals;
use super::{guard, page};
use crate::Shared;
use crate::audit::By;
use crate::blocks::Target;
use crate::clock::unix_now;
use crate::control::{Desk, InboxRequest, Reply, Request, Why, secret};
use crate::status::{self, Token};
use crate::store::{Name, NewToken, TokenLimits, TokenSummary};
use relay_protocol::network::{Network, NetworkError};

/// What every path begins with.
const PREFIX: &str = "/api/v1/";

/// All calls, for programs.
const OPENAPI: &str = include_str!("openapi.json");

/// The paths, and the methods that each takes. A star is any name or id.
const CALLS: &[(&str, &str)] = &[
    ("openapi.json", "GET"),
    ("status", "GET"),
    ("sessions", "GET"),
    ("sessions/*", "DELETE"),
    ("tunnels", "GET"),
    ("certificates", "GET"),
    ("audit", "GET"),
    ("blocks", "GET, POST"),
    ("blocks/*", "DELETE"),
    ("tokens", "GET, POST"),
    ("tokens/*", "GET, PATCH, DELETE"),
    ("names", "GET"),
    ("names/*", "PUT, DELETE"),
    ("inboxes", "GET"),
    ("inboxes/*", "GET, DELETE"),
    ("inboxes/*/retry", "POST"),
    ("inboxes/*/drop", "POST"),
    ("inboxes/*/pause", "POST"),
    ("inboxes/*/resume", "POST"),
    ("inboxes/*/webhooks/*", "GET"),
];

/// Bytes of a request's body: a thousand ids of webhooks.
const MAX_BODY: usize = 64 * 1024;

/// How long it may take.
const BODY_TIME: Duration = Duration::from_secs(10);

/// The API of a relay that keeps its data in a directory.
pub(crate) struct Api {
    shared: Arc<Shared>,
    desk: Desk,
    /// Where the secret is.
    directory: PathBuf,
    /// Where it is served; none where that is no address.
    address: Option<SocketAddr>,
    refusals: Refusals,
}

/// What is answered: a status, and JSON where there is any.
type Answer = Result<(StatusCode, Option<Bytes>), Problem>;

/// A token to be made.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenWish {
    name: String,
    #[serde(default)]
    reserve: Vec<Name>,
    expires_at: Option<String>,
    max_tunnels: Option<u32>,
    max_names: Option<u32>,
    max_sessions: Option<u32>,
    max_rate: Option<u32>,
    max_streams: Option<u32>,
    max_bytes: Option<u64>,
    max_body: Option<u64>,
    #[serde(default)]
    allow: Vec<Network>,
}

impl TokenWish {
    fn limits(&self) -> TokenLimits {
        let usual = TokenLimits::default();
        TokenLimits {
            max_tunnels: self.max_tunnels.unwrap_or(usual.max_tunnels),
            max_names: self.max_names.unwrap_or(usual.max_names),
            max_sessions: self.max_sessions.unwrap_or(usual.max_sessions),
            max_rate: self.max_rate,
            max_streams: self.max_streams,
            max_bytes: self.max_bytes,
            max_body: self.max_body,
            allow: self.allow.clone(),
        }
    }
}

/// Whose a name is to be.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NameWish {
    token: String,
    provider: Option<String>,
    inbox: Option<String>,
}

/// What is to be kept out: one of the three.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BlockWish {
    address: Option<String>,
    name: Option<String>,
    token: Option<String>,
    #[serde(default)]
    reason: String,
}

impl BlockWish {
    fn request(self) -> Result<Request, Problem> {
        let target = match (self.address, self.name, self.token) {
            (Some(address), None, None) => {
                let network = address.parse().map_err(|error: NetworkError| Problem::Invalid(format!("{error}.")))?;
                Target::Address(network)
            }
            (None, Some(name), None) => Target::Name(parse_name(&name)?),
            (None, None, Some(token)) => Target::Token(token),
            _ => return Err(Problem::Invalid("One of address, name and token is blocked.".to_owned())),
        };
        Ok(Request::Block { target, reason: self.reason })
    }
}

/// A token that was made, with what its owner will present.
#[derive(Serialize)]
struct MadeToken<'a> {
    secret: &'a str,
    #[serde(flatten)]
    token: Token,
}

/// Whether a path is the API's.
pub(super) fn is_below(path: &str) -> bool {
    path.starts_with("/api/")
}

impl Api {
    /// Of what runs, and keeps its data there; for who calls at that address, or else at a socket.
    pub(crate) fn new(shared: Arc<Shared>, desk: Desk, directory: PathBuf, address: Option<SocketAddr>) -> Self {
        Self { shared, desk, directory, address, refusals: Refusals::default() }
    }

    /// Answers a call.
    pub(super) async fn answer(self: Arc<Self>, caller: Caller, head: Parts, body: Incoming) -> Response<Full<Bytes>> {
        let call = Call { by: caller.into(), api: self };
        let (status, json, problem) = match call.serve(&head, body).await {
            Ok((status, json)) => (status, json, None),
            Err(problem) => {
                call.api.refusals.note(&call.api.shared, &call.by, &problem);
                let error = json!({ "code": problem.code(), "message": problem.to_string(), "hint": problem.hint() });
                let json = json!({ "error": error }).to_string();
                (problem.status(), Some(json.into()), Some(problem))
            }
        };
        let mut response = Response::new(Full::new(json.clone().unwrap_or_default()));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        if json.is_some() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        match problem {
            Some(Problem::Unauthorized) => drop(headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))),
            Some(Problem::Method(allowed)) => drop(headers.insert(ALLOW, HeaderValue::from_static(allowed))),
            // The other process is there for the next connection; of what was not read nobody knows the end.
            Some(Problem::HandedOver | Problem::TooLarge(_) | Problem::Slow) => {
                drop(headers.insert(CONNECTION, HeaderValue::from_static("close")));
            }
            _ => {}
        }
        response
    }

    /// The file of the dashboard at a path, if there is one, for whoever does not come by a stranger's name. A link may lead
    /// there: it holds nothing that is not in every relay.
    pub(super) fn page(&self, head: &Parts) -> Option<Response<Full<Bytes>>> {
        let is_get = matches!(head.method, Method::GET | Method::HEAD);
        guard::check_host(head, self.address).ok().filter(|_| is_get)?;
        page::at(head.uri.path(), &head.headers)
    }

    /// Read anew each time, so that one that is renewed holds at once.
    async fn check_secret(&self, head: &Parts) -> Result<(), Problem> {
        let directory = self.directory.clone();
        let read = tokio::task::spawn_blocking(move || secret::read(&directory)).await;
        let read = read.map_err(|error| Problem::Internal(error.to_string()))?;
        let secret = read.map_err(|error| {
            tracing::error!(%error, "the admin API lets nobody in");
            Problem::Internal("its admin token cannot be read".to_owned())
        })?;
        guard::check_secret(&head.headers, &secret)
    }
}

/// A call, and who has made it.
struct Call {
    by: By,
    api: Arc<Api>,
}

impl Call {
    async fn serve(&self, head: &Parts, body: Incoming) -> Answer {
        guard::check_origin(head, self.api.address)?;
        let path = segments(head.uri.path())?;
        let path: Vec<&str> = path.iter().map(AsRef::as_ref).collect();
        let method = if head.method == Method::HEAD { &Method::GET } else { &head.method };
        let allowed = allowed(&path).ok_or(Problem::NoPath);
        if path == ["openapi.json"] && method == Method::GET {
            return Ok((StatusCode::OK, Some(Bytes::from_static(OPENAPI.as_bytes()))));
        }
        self.api.check_secret(head).await?;
        let allowed = allowed?;
        if !allowed.split(", ").any(|allowed| allowed == method.as_str()) {
            return Err(Problem::Method(allowed));
        }
        if self.api.shared.has_successor() {
            return Err(Problem::HandedOver);
        }
        guard::check_type(&head.headers)?;
        let mut query = Query::of(&head.uri)?;
        match (method, path.as_slice()) {
            (&Method::GET, ["inboxes", name]) => {
                let (state, before, limit) = (query.take("state"), query.take("before"), query.number("limit")?);
                query.finish()?;
                let (inbox, limit) = ((*name).to_owned(), limit.unwrap_or(100));
                let page = InboxRequest::Page { inbox, state, before, limit };
                let Reply::Webhooks(page) = self.inbox(page).await? else { return Err(unexpected()) };
                ok(&page)
            }
            (&Method::GET, ["inboxes", name, "webhooks", id]) => {
                let masked = match query.take("secrets").as_deref() {
                    None | Some("mask") => true,
                    Some("show") => false,
                    Some(_) => return Err(Problem::Invalid("secrets is mask or show.".to_owned())),
                };
                query.finish()?;
                let show = InboxRequest::Show { inbox: (*name).to_owned(), id: (*id).to_owned() };
                let Reply::Webhook(mut webhook) = self.inbox(show).await? else { return Err(unexpected()) };
                if masked {
                    let provider = webhook.webhook.provider.as_deref();
                    let provider = provider.and_then(|id| self.api.shared.providers.get(id).cloned());
                    webhook.mask(provider.as_deref());
                }
                ok(&webhook)
            }
            (&Method::GET, ["audit"]) => {
                let (before, limit) = (query.take("before"), query.number("limit")?.unwrap_or(100));
                query.finish()?;
                let before = before.map(|text| text.parse()).transpose();
                let before = before.map_err(|_| Problem::Invalid("before is the number of an entry.".to_owned()))?;
                let Reply::Audit { entries } = self.ask(Request::Audit { before, limit }).await? else {
                    return Err(unexpected());
                };
                // Where there are fewer, there are no more.
                let next = entries.last().filter(|_| entries.len() == limit).map(|last| last.id);
                ok(&json!({ "entries": entries, "next": next }))
            }
            (&Method::DELETE, ["names", name]) => {
                let forget = match query.take("forget_webhooks").as_deref() {
                    None | Some("false") => false,
                    Some("true") => true,
                    Some(_) => return Err(Problem::Invalid("forget_webhooks is true or false.".to_owned())),
                };
                query.finish()?;
                let release = Request::Release { names: vec![parse_name(name)?], forget };
                let Reply::Released { closed, forgotten } = self.ask(release).await? else { return Err(unexpected()) };
                ok(&json!({ "closed": closed, "forgotten": forgotten }))
            }
            _ => {
                query.finish()?;
                match path.split_first() {
                    Some((&"tokens", rest)) => self.tokens(method, rest, body).await,
                    Some((&"names", rest)) => self.names(method, rest, body).await,
                    Some((&"blocks", rest)) => self.blocks(method, rest, body).await,
                    Some((&"inboxes", rest)) => self.inboxes(method, rest, body).await,
                    _ => self.others(method, &path).await,
                }
            }
        }
    }

    /// What there is at this moment.
    async fn others(&self, method: &Method, path: &[&str]) -> Answer {
        match (method, path) {
            (&Method::GET, ["status"]) => match self.ask(Request::Status).await? {
                Reply::Status(status) => ok(&status),
                _ => Err(unexpected()),
            },
            (&Method::GET, ["sessions"]) => match self.ask(Request::ListSessions).await? {
                Reply::Sessions { sessions } => ok(&json!({ "sessions": sessions })),
                _ => Err(unexpected()),
            },
            (&Method::DELETE, ["sessions", id]) => {
                self.ask(Request::EndSession { session: (*id).to_owned() }).await?;
                Ok((StatusCode::NO_CONTENT, None))
            }
            (&Method::GET, ["tunnels"]) => match self.ask(Request::ListTunnels).await? {
                Reply::Tunnels { tunnels } => ok(&json!({ "tunnels": tunnels })),
                _ => Err(unexpected()),
            },
            (&Method::GET, ["certificates"]) => match self.ask(Request::ListCertificates).await? {
                Reply::Certificates { certificates } => ok(&json!({ "certificates": certificates })),
                _ => Err(unexpected()),
            },
            _ => Err(Problem::NoPath),
        }
    }

    async fn tokens(&self, method: &Method, path: &[&str], body: Incoming) -> Answer {
        match (method, path) {
            (&Method::GET, []) => {
                let now = unix_now();
                let tokens = self.list_tokens().await?.into_iter().map(|token| Token::at(token, now));
                ok(&json!({ "tokens": tokens.collect::<Vec<_>>() }))
            }
            (&Method::POST, []) => self.create_token(read(body).await?).await,
            (&Method::GET, [name]) => self.token(name).await,
            (&Method::PATCH, [name]) => {
                let change = read(body).await?;
                self.ask(Request::LimitToken { token: (*name).to_owned(), change }).await?;
                self.token(name).await
            }
            (&Method::DELETE, [name]) => {
                self.ask(Request::RevokeToken { token: (*name).to_owned() }).await?;
                Ok((StatusCode::NO_CONTENT, None))
            }
            _ => Err(Problem::NoPath),
        }
    }

    async fn token(&self, name: &str) -> Answer {
        let token = self.find_token(name).await?;
        let token = token.ok_or_else(|| unknown(format!("There is no token named {name:?}.")))?;
        ok(&Token::at(token, unix_now()))
    }

    async fn find_token(&self, name: &str) -> Result<Option<TokenSummary>, Problem> {
        match self.ask(Request::FindToken { token: name.to_owned() }).await? {
            Reply::Tokens { tokens } => Ok(tokens.into_iter().next()),
            _ => Err(unexpected()),
        }
    }

    async fn list_tokens(&self) -> Result<Vec<TokenSummary>, Problem> {
        match self.ask(Request::ListTokens).await? {
            Reply::Tokens { tokens } => Ok(tokens),
            _ => Err(unexpected()),
        }
    }

    async fn create_token(&self, wish: TokenWish) -> Answer {
        let (now, limits) = (unix_now(), wish.limits());
        let TokenWish { name, reserve, expires_at, .. } = wish;
        let expires_at = expires_at.map(|text| moment("expires_at", &text)).transpose()?;
        if expires_at.is_some_and(|at| at <= now) {
            return Err(Problem::Invalid("expires_at is over.".to_owned()));
        }
        let new = NewToken { name, reserve, expires_at, limits };
        let Reply::Created { secret, token } = self.ask(Request::CreateToken(new)).await? else {
            return Err(unexpected());
        };
        // It may have taken over the names of one that it replaces.
        let found = self.find_token(&token.name).await?;
        let token = Token::at(found.ok_or_else(unexpected)?, now);
        json_as(StatusCode::CREATED, &MadeToken { secret: secret.expose(), token })
    }

    async fn names(&self, method: &Method, path: &[&str], body: Incoming) -> Answer {
        match (method, path) {
            (&Method::GET, []) => ok(&json!({ "names": status::names(self.list_tokens().await?) })),
            (&Method::PUT, [name]) => {
                let (name, NameWish { token, provider, inbox }) = (parse_name(name)?, read(body).await?);
                if let Some(id) = provider.as_deref().filter(|id| self.api.shared.providers.get(id).is_none()) {
                    return Err(Problem::Invalid(format!("No provider is called {id:?}.")));
                }
                let inbox = inbox.map(|text| text.parse()).transpose();
                let inbox = inbox.map_err(|error| Problem::Invalid(format!("inbox is wrong: {error}.")))?;
                let reserve = Request::Reserve { token: token.clone(), names: vec![name.clone()], provider, inbox };
                self.ask(reserve).await?;
                let mut names = status::names(self.find_token(&token).await?).into_iter();
                ok(&names.find(|held| held.name == name).ok_or_else(unexpected)?)
            }
            _ => Err(Problem::NoPath),
        }
    }

    async fn blocks(&self, method: &Method, path: &[&str], body: Incoming) -> Answer {
        match (method, path) {
            (&Method::GET, []) => match self.ask(Request::ListBlocks).await? {
                Reply::Blocks { blocks } => ok(&json!({ "blocks": blocks })),
                _ => Err(unexpected()),
            },
            (&Method::POST, []) => {
                let block = read::<BlockWish>(body).await?.request()?;
                match self.ask(block).await? {
                    Reply::Blocked { block } => json_as(StatusCode::CREATED, &block),
                    _ => Err(unexpected()),
                }
            }
            (&Method::DELETE, [id]) => {
                let id = id.parse().map_err(|_| unknown(format!("There is no block {id:?}.")))?;
                self.ask(Request::Unblock { id }).await?;
                Ok((StatusCode::NO_CONTENT, None))
            }
            _ => Err(Problem::NoPath),
        }
    }

    async fn inboxes(&self, method: &Method, path: &[&str], body: Incoming) -> Answer {
        let inbox = path.first().map(|name| (*name).to_owned()).unwrap_or_default();
        let request = match (method, path) {
            (&Method::GET, []) => InboxRequest::List,
            (&Method::DELETE, [_]) => InboxRequest::Close { inbox },
            (&Method::POST, [_, "retry"]) => InboxRequest::Retry { inbox, which: read::<Which>(body).await? },
            (&Method::POST, [_, "drop"]) => InboxRequest::Drop { inbox, which: read::<Which>(body).await? },
            (&Method::POST, [_, "pause"]) => InboxRequest::Pause { inbox, paused: true },
            (&Method::POST, [_, "resume"]) => InboxRequest::Pause { inbox, paused: false },
            _ => return Err(Problem::NoPath),
        };
        match self.inbox(request).await? {
            Reply::Inboxes(inboxes) => ok(&inboxes),
            Reply::Inbox(inbox) => ok(&inbox),
            Reply::Done(done) => ok(&done),
            _ => Err(unexpected()),
        }
    }

    async fn inbox(&self, request: InboxRequest) -> Result<Reply, Problem> {
        self.ask(Request::Inbox(request)).await
    }

    /// Has one thing done, which goes on where nobody waits for it any more.
    async fn ask(&self, request: Request) -> Result<Reply, Problem> {
        let (desk, by, (tell, told)) = (self.api.desk.clone(), self.by.clone(), oneshot::channel());
        self.api.shared.spawn(async move { drop(tell.send(desk.ask(&by, request).await)) });
        match told.await {
            Ok(refused @ Reply::Refused { .. }) => Err(Problem::of(refused)),
            Ok(reply) => Ok(reply),
            Err(_) => Err(Problem::Internal("it did not come to an end".to_owned())),
        }
    }
}

/// The methods that a path takes; none where there is no such path.
fn allowed(path: &[&str]) -> Option<&'static str> {
    let is_it = |known: &str| {
        let mut parts = path.iter();
        known.split('/').all(|known| parts.next().is_some_and(|part| known == "*" || known == *part))
            && parts.next().is_none()
    };
    CALLS.iter().find(|(known, _)| is_it(known)).map(|(_, methods)| *methods)
}

/// The parts of a path behind the prefix.
fn segments(path: &str) -> Result<Vec<Cow<'_, str>>, Problem> {
    let path = path.strip_prefix(PREFIX).ok_or(Problem::NoPath)?;
    let decode = |part| percent_decode_str(part).decode_utf8().map_err(|_| Problem::NoPath);
    path.split('/').map(decode).collect()
}

/// The parameters that nobody has asked for yet.
struct Query(Vec<(String, String)>);

impl Query {
    fn of(uri: &Uri) -> Result<Self, Problem> {
        let fields = fields(uri.query().unwrap_or_default());
        fields.map(Self).map_err(|_| Problem::Invalid("A parameter is not UTF-8.".to_owned()))
    }

    fn take(&mut self, name: &str) -> Option<String> {
        let at = self.0.iter().position(|(given, _)| given == name)?;
        Some(self.0.remove(at).1)
    }

    fn number(&mut self, name: &str) -> Result<Option<usize>, Problem> {
        let number = self.take(name).map(|text| text.parse().ok().filter(|number| (1..=1000).contains(number)));
        match number {
            Some(None) => Err(Problem::Invalid(format!("{name} is a number from 1 to 1000."))),
            Some(number) => Ok(number),
            None => Ok(None),
        }
    }

    /// Nothing is left: a parameter that is written wrongly must not be none.
    fn finish(self) -> Result<(), Problem> {
        match self.0.first() {
            Some((name, _)) => Err(Problem::Invalid(format!("There is no parameter {name:?} here, or only one."))),
            None => Ok(()),
        }
    }
}

async fn read<T: DeserializeOwned>(body: Incoming) -> Result<T, Problem> {
    let collected = timeout(BODY_TIME, Limited::new(body, MAX_BODY).collect()).await.map_err(|_| Problem::Slow)?;
    let bytes = collected.map_err(|error| match error.downcast::<LengthLimitError>() {
        Ok(_) => Problem::TooLarge(MAX_BODY),
        Err(error) => Problem::Invalid(format!("The body cannot be read: {error}.")),
    });
    let bytes = bytes?.to_bytes();
    serde_json::from_slice(&bytes).map_err(|error| Problem::Invalid(format!("The body is wrong: {error}.")))
}

fn moment(key: &str, text: &str) -> Result<i64, Problem> {
    let moment: Result<Timestamp, _> = text.parse();
    moment
        .map(Timestamp::as_second)
        .map_err(|_| Problem::Invalid(format!("{key} is a moment such as 2027-01-31T00:00:00Z.")))
}

fn parse_name(name: &str) -> Result<Name, Problem> {
    Name::parse(name).map_err(|error| Problem::Invalid(crate::sentence(&error)))
}

fn unknown(message: String) -> Problem {
    Problem::Refused { why: Why::Unknown, message }
}

fn unexpected() -> Problem {
    Problem::Internal("it answered something else than was asked".to_owned())
}

fn ok(value: &impl Serialize) -> Answer {
    json_as(StatusCode::OK, value)
}

fn json_as(status: StatusCode, value: &impl Serialize) -> Answer {
    let json = serde_json::to_vec(value).map_err(|error| Problem::Internal(error.to_string()))?;
    Ok((status, Some(json.into())))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use serde_json::Value;

    use super::*;

    /// What is served is what the document says, path by path and method by method.
    #[test]
    fn the_document_lists_every_call() {
        let document: Value = serde_json::from_str(OPENAPI).unwrap();
        let mut listed = Vec::new();
        for (path, calls) in document["paths"].as_object().unwrap() {
            let parts = path.strip_prefix(PREFIX).unwrap().split('/');
            let parts: Vec<&str> = parts.map(|part| if part.starts_with('{') { "*" } else { part }).collect();
            let mut methods: Vec<_> = calls.as_object().unwrap().keys().map(|method| method.to_uppercase()).collect();
            methods.sort();
            listed.push((parts.join("/"), methods));
        }
        let mut served: Vec<_> = CALLS
            .iter()
            .map(|(path, methods)| {
                let mut methods: Vec<_> = methods.split(", ").map(str::to_owned).collect();
                methods.sort();
                ((*path).to_owned(), methods)
            })
            .collect();
        listed.sort();
        served.sort();
        assert_eq!(listed, served);
    }

    #[test]
    fn parts_of_a_path_are_decoded_once_they_are_apart() {
        assert_eq!(segments("/api/v1/tokens/a%2Fb%40c").unwrap(), ["tokens", "a/b@c"]);
        assert!(segments("/api/v2/tokens").is_err() && segments("/api/v1/%ff").is_err());
        assert_eq!(allowed(&["tokens", ""]), Some("GET, PATCH, DELETE"));
    }
}
