//! What a person reads of inboxes and webhooks in one line each: the same words on both ends of a tunnel. How times are
//! written and what has a colour is left to whoever prints them.

use std::borrow::Cow;

use super::api::{Inbox, Tried, Webhook};

/// A piece of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece<'a> {
    /// Its text; a stranger's in part, so that a terminal must not act on it.
    pub text: Cow<'a, str>,
    /// What it is like.
    pub tone: Tone,
}

/// What a piece of a line is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// As it should be.
    Plain,
    /// Somebody has to look at it.
    Bad,
    /// The app's last answer; none where it has given none.
    Status(Option<u16>),
}

impl Piece<'_> {
    fn plain<'a>(text: impl Into<Cow<'a, str>>) -> Piece<'a> {
        Piece { text: text.into(), tone: Tone::Plain }
    }

    fn bad<'a>(text: impl Into<Cow<'a, str>>) -> Piece<'a> {
        Piece { text: text.into(), tone: Tone::Bad }
    }
}

impl Inbox {
    /// Its line; `moment` writes a time.
    pub fn line(&self, moment: impl Fn(&str) -> String) -> Vec<Piece<'_>> {
        let Self { name, token, how, paused, waiting, delivered, dead, oldest_at, .. } = self;
        let mut line = vec![Piece::plain(name)];
        line.extend(token.as_ref().map(|token| Piece::plain(format!("of {token}"))));
        line.push(Piece::plain(format!("{waiting} waiting")));
        line.push(Piece::plain(format!("{delivered} delivered")));
        let tone = if *dead == 0 { Tone::Plain } else { Tone::Bad };
        line.push(Piece { text: format!("{dead} dead").into(), tone });
        line.push(Piece::plain(how));
        line.extend(paused.then(|| Piece::bad("paused")));
        line.extend(oldest_at.as_ref().map(|at| Piece::plain(format!("oldest of {}", moment(at)))));
        line
    }
}

impl Webhook {
    /// Its line; `moment` writes a time.
    pub fn line(&self, moment: impl Fn(&str) -> String) -> Vec<Piece<'_>> {
        let Self { id, state, method, path, first_at, attempts, status, due_at, under_way, reason, .. } = self;
        let tone = if state == "dead" { Tone::Bad } else { Tone::Plain };
        let mut line = vec![Piece::plain(id), Piece::plain(moment(first_at))];
        line.push(Piece { text: format!("{state:<9}").into(), tone });
        let answer = status.map_or_else(|| "---".to_owned(), |status| status.to_string());
        line.push(Piece { text: answer.into(), tone: Tone::Status(*status) });
        line.push(Piece::plain(format!("{method:<4} {path}")));
        let event = [&self.provider, &self.event_type].into_iter().flatten().map(String::as_str);
        let event = event.collect::<Vec<_>>().join(" ");
        line.extend((!event.is_empty()).then(|| Piece::plain(event)));
        let plural = if *attempts == 1 { "" } else { "s" };
        line.extend((*attempts > 0).then(|| Piece::plain(format!("{attempts} attempt{plural}"))));
        if *under_way {
            line.push(Piece::plain("is being tried"));
        } else if state == "waiting" && *attempts > 0 {
            line.extend(due_at.as_ref().map(|at| Piece::plain(format!("next {}", moment(at)))));
        }
        line.extend(reason.as_ref().map(Piece::bad));
        line.extend(self.differs_from.as_ref().map(|id| Piece::plain(format!("differs from {id}"))));
        line
    }
}

impl Tried {
    /// Its line; `moment` writes a time.
    pub fn line(&self, moment: impl Fn(&str) -> String) -> Vec<Piece<'_>> {
        let Self { number, at, duration_ms, status, error } = self;
        let outcome = status.map(|status| status.to_string()).or_else(|| error.clone()).unwrap_or_default();
        let line = [format!("attempt {number}"), moment(at), format!("{duration_ms} ms"), outcome];
        line.map(Piece::plain).into()
    }
}
