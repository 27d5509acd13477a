//! `/api/v1/inboxes`: what the relay keeps for the client's tunnels. It is asked with the client's token, which does not leave
//! this process.

use http::request::Parts;
use http::{Method, StatusCode};
use hyper::body::Incoming;
use relay_protocol::inbox::api::{Done, Inboxes, Which};

use super::answer::{Answer, Problem, download, json};
use super::limits::{LINES, LINES_MAX};
use super::query::Query;
use super::{Desk, is_get, read_json};
use crate::inboxes::{Action, Api, Listed};

impl Desk {
    /// Answers by the segments of the path behind `inboxes`.
    pub(super) async fn inboxes(
        &self,
        path: &[&str],
        head: &Parts,
        mut query: Query,
        body: Incoming,
    ) -> Result<Answer, Problem> {
        let (state, limit, next) = match path {
            [_] if is_get(head) => (query.take("state"), query.read("limit", limit)?, query.take("before")),
            _ => (None, None, None),
        };
        query.finish()?;
        if let ([], true) = (path, is_get(head)) {
            let Some(api) = &self.inboxes else { return Ok(json(StatusCode::OK, &Inboxes::default())) };
            let mut inboxes = api.list().await?;
            inboxes.retain(|inbox| self.has_tunnel(&inbox.name));
            return Ok(json(StatusCode::OK, &Inboxes { inboxes }));
        }
        match path {
            [name] if is_get(head) => {
                let listed = Listed { state: state.as_deref(), limit: limit.unwrap_or(LINES), next };
                Ok(json(StatusCode::OK, &self.inbox(name)?.page(name, &listed).await?))
            }
            [name, "webhooks", id] if is_get(head) => {
                Ok(json(StatusCode::OK, &self.inbox(name)?.whole(name, id).await?))
            }
            [name, "webhooks", id, "body"] if is_get(head) => {
                let whole = self.inbox(name)?.complete(name, id).await?;
                let body = whole.body().ok_or_else(|| Problem::NoBody((*id).to_owned()))?;
                Ok(download("application/octet-stream", &format!("{id}-request.bin"), body))
            }
            [name, action @ ("retry" | "drop")] if head.method == Method::POST => {
                let which: Which = read_json(body).await?;
                let action = if *action == "retry" { Action::Retry } else { Action::Drop };
                let count = self.inbox(name)?.act(name, action, &which).await?;
                Ok(json(StatusCode::OK, &Done { count }))
            }
            [name, action @ ("pause" | "resume")] if head.method == Method::POST => {
                Ok(json(StatusCode::OK, &self.inbox(name)?.pause(name, *action == "pause").await?))
            }
            [_, "retry" | "drop" | "pause" | "resume"] => Err(Problem::Method("POST")),
            [] | [_] | [_, "webhooks", _] | [_, "webhooks", _, "body"] => Err(Problem::Method("GET, HEAD")),
            _ => Err(Problem::NoPath),
        }
    }

    /// The way to the inbox of one of the client's tunnels, and of no other.
    fn inbox(&self, name: &str) -> Result<&Api, Problem> {
        let api = self.inboxes.as_deref().filter(|_| self.has_tunnel(name));
        api.ok_or_else(|| Problem::NoInbox(name.to_owned()))
    }

    fn has_tunnel(&self, name: &str) -> bool {
        self.control.board.status().tunnels.iter().any(|tunnel| tunnel.name == name)
    }
}

fn limit(text: &str) -> Result<usize, String> {
    let limit = text.parse().ok().filter(|limit| (1..=LINES_MAX).contains(limit));
    limit.ok_or_else(|| format!("it is a number from 1 to {LINES_MAX}"))
}
