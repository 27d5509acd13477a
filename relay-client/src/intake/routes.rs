//! Where the requests of a tunnel go that do not all go to one service: its routes, of which the first that fits holds.
//!
//! ```toml
//! [[tunnels.web.routes]]
//! provider = "stripe"
//! type = "invoice.*"
//! when = { path = "/billing*", "json:/livemode" = "false" }
//! upstream = 4000            # or answer = 204, or drop = true
//! ```

use std::cell::LazyCell;

use http::StatusCode;
use relay_protocol::webhook::{Conditions, Event, Filter, Provider, Request, Table};
use serde::Deserialize;

use crate::upstream::Upstream;
use crate::upstream::address::UpstreamAddr;

/// The longest body of an answer that a route gives, in bytes.
const ANSWER_MAX: usize = 64 << 10;

/// Which requests go where.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Written")]
pub struct Route {
    /// Which ones.
    pub which: Filter,
    /// Where they go.
    pub to: To,
}

/// Where a route leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum To {
    /// To this service.
    Upstream(UpstreamAddr),
    /// Nowhere: this answers.
    Answer(StatusCode, String),
    /// Nowhere: what acknowledges a webhook of its provider answers, which for most is an empty 200.
    Drop,
}

/// A route as a file has it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    provider: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    when: Conditions,
    upstream: Option<UpstreamAddr>,
    answer: Option<u16>,
    body: Option<String>,
    #[serde(default)]
    drop: bool,
}

impl TryFrom<Written> for Route {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        let Written { provider, kind, when, upstream, answer, body, drop } = written;
        if body.is_some() && answer.is_none() {
            return Err("a route's body belongs to its answer: write answer = 200 beside it".to_owned());
        }
        let to = match (upstream, answer, drop) {
            (Some(upstream), None, false) => To::Upstream(upstream),
            (None, Some(status), false) => To::Answer(final_status(status)?, body.unwrap_or_default()),
            (None, None, true) => To::Drop,
            _ => return Err("a route has one of upstream = 4000, answer = 204 and drop = true".to_owned()),
        };
        match &to {
            To::Answer(_, body) if body.len() > ANSWER_MAX => {
                Err(format!("an answer of {} bytes; at most {ANSWER_MAX} fit into a route", body.len()))
            }
            To::Answer(StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED, body) if !body.is_empty() => {
                Err("an answer with this status has no body".to_owned())
            }
            _ => Ok(Self { which: Filter { provider, kind, when }, to }),
        }
    }
}

fn final_status(status: u16) -> Result<StatusCode, String> {
    let status = Some(status).filter(|status| (200..=599).contains(status));
    let status = status.and_then(|status| StatusCode::from_u16(status).ok());
    status.ok_or_else(|| "an answer has a status from 200 to 599".to_owned())
}

impl Route {
    /// Whether it is this request's; none where the body must be there to tell. `known` is who of the table has sent it
    /// and what has happened, as far as the request says so, and `anybody` whether anybody of it may have.
    fn fits(
        &self,
        request: &Request<'_>,
        table: &Table,
        known: Known<'_>,
        anybody: impl FnOnce() -> bool,
        body: Body,
    ) -> Option<bool> {
        let Filter { provider, kind, when } = &self.which;
        let is_wanted = |sender: &Provider| provider.as_ref().is_none_or(|wanted| *wanted == sender.id);
        if known.is_some_and(|(sender, _)| !is_wanted(sender)) || !when.may_hold(request) {
            return Some(false);
        }
        let asks_sender = provider.is_some() || kind.is_some();
        let may_be_known = || match provider {
            Some(wanted) => table.get(wanted).is_some_and(|sender| sender.may_have_sent(request)),
            None => anybody(),
        };
        if asks_sender && known.is_none() && !may_be_known() {
            return Some(false);
        }
        let asks_body = when.need_body() || kind.is_some() || (asks_sender && known.is_none());
        match body {
            Body::ToCome if asks_body => return None,
            Body::TooLong if asks_body => return Some(false),
            _ => {}
        }
        let unknown = Event::default();
        let (sender, event) = known.map_or((None, &unknown), |(sender, event)| (Some(sender.id.as_str()), event));
        Some(self.which.matches(sender, request, event))
    }
}

/// Who has sent a request, and what has happened.
pub(super) type Known<'a> = Option<(&'a Provider, &'a Event)>;

/// What is here of the body of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Body {
    /// Not all, but it can be waited for.
    ToCome,
    /// All of it.
    Whole,
    /// Not all, and it is longer than what can be waited for.
    TooLong,
}

/// The routes of a tunnel, with the services that they lead to.
#[derive(Debug, Default)]
pub(crate) struct Routes(Vec<(Route, Option<Upstream>)>);

/// What the routes say of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// This one is the first that fits, counted from 1.
    Route(usize),
    /// None fits.
    None,
    /// It must be here as a whole first.
    Unknown,
}

impl Routes {
    pub(crate) fn new(routes: Vec<Route>, upstream: impl Fn(&UpstreamAddr) -> Upstream) -> Self {
        let with_service = |route: Route| {
            let service = if let To::Upstream(to) = &route.to { Some(upstream(to)) } else { None };
            (route, service)
        };
        Self(routes.into_iter().map(with_service).collect())
    }

    /// Where a request goes.
    pub(super) fn find(&self, request: &Request<'_>, table: &Table, known: Known<'_>, body: Body) -> Way {
        // All are asked for the first route that wants to know.
        let anybody = LazyCell::new(|| table.iter().any(|sender| sender.may_have_sent(request)));
        for (i, (route, _)) in self.0.iter().enumerate() {
            match route.fits(request, table, known, || *anybody, body) {
                Some(true) => return Way::Route(i + 1),
                Some(false) => {}
                None => return Way::Unknown,
            }
        }
        Way::None
    }

    /// Where a way leads, and the service there if it is one.
    pub(super) fn at(&self, way: Way) -> Option<(usize, &To, Option<&Upstream>)> {
        let Way::Route(number) = way else { return None };
        let (route, service) = self.0.get(number.checked_sub(1)?)?;
        Some((number, &route.to, service.as_ref()))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn services(&self) -> impl Iterator<Item = &Upstream> {
        self.0.iter().filter_map(|(_, service)| service.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_a_status_that_is_final() {
        for (status, is) in [(199, false), (200, true), (599, true), (600, false), (999, false), (1000, false)] {
            assert_eq!(toml::from_str::<Route>(&format!("answer = {status}")).is_ok(), is, "{status}");
        }
    }
}
