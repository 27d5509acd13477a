//! Adding and removing tunnels while the client runs, as `relay start` does when its file changes.

use std::sync::Arc;

use relay_protocol::message::MAX_TUNNELS;
use relay_protocol::webhook::Table;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout_at};

use super::answer::Problem;
use super::limits::{NAME, PATIENCE};
use crate::control::board::{Board, Status, Tunnel};
use crate::options::TunnelOptions;
use crate::upstream::address::{Scheme, UpstreamAddr};
use crate::value::{duration, subdomain};
use crate::webhooks::WebhookOptions;

/// The tunnels of a client, as its inspector changes them.
#[derive(Debug)]
pub(super) struct Tunnels {
    pub(super) wanted: watch::Sender<Vec<TunnelOptions>>,
    pub(super) board: Board,
    /// One permit, of whoever adds or changes one until that came true or was given up: what others are given would else
    /// be made of what may yet be taken back.
    pub(super) turn: Semaphore,
    /// The inspector's own port.
    pub(super) own: u16,
    /// They may lead to more than the ports of this machine.
    pub(super) remote: bool,
    /// What is known of those who may call them.
    pub(super) table: Arc<Table>,
}

/// A tunnel as it is asked for, each part as a person would write it.
#[derive(Debug, Default)]
pub(super) struct Wish {
    pub(super) name: Option<String>,
    pub(super) upstream: String,
    pub(super) subdomain: Option<String>,
    pub(super) host_header: Option<String>,
    pub(super) timeout: Option<String>,
}

impl Tunnels {
    /// The tunnel that is called so, while it answers.
    pub(super) fn get(&self, name: &str) -> Result<Tunnel, Problem> {
        let tunnels = self.board.status().tunnels;
        tunnels.into_iter().find(|tunnel| tunnel.tunnel == name).ok_or_else(|| Problem::NoTunnel(name.to_owned()))
    }

    /// Adds a tunnel, and waits until it answers. One that the relay refuses is not asked for again, nor is one of whoever
    /// no longer waits for it.
    pub(super) async fn add(&self, wish: Wish) -> Result<Tunnel, Problem> {
        let (given, mut options) = (wish.name.clone(), self.options(wish)?);
        let until = Instant::now() + PATIENCE;
        let _turn = self.turn(until).await?;
        let known = self.board.status();
        let mut added = Err(Problem::TooManyTunnels);
        self.wanted.send_if_modified(|all| {
            let is_taken = |name: &str| {
                all.iter().any(|other| other.label.as_deref() == Some(name))
                    || known.tunnels.iter().any(|tunnel| tunnel.tunnel == name)
            };
            let label = match &given {
                Some(given) if is_taken(given) => {
                    added = Err(Problem::TunnelExists(given.clone()));
                    return false;
                }
                Some(given) => given.clone(),
                None => unused(&options.upstream.to_string(), is_taken),
            };
            if all.len() >= MAX_TUNNELS {
                return false;
            }
            options.label = Some(label.clone());
            all.push(options.clone());
            added = Ok(label);
            true
        });
        let label = added?;
        let undo = Undo { wanted: Some(&self.wanted), asked: options, before: None };
        let tunnel = self.settled(&label, until, |_| true).await?;
        undo.forget();
        Ok(tunnel)
    }

    /// Changes where a tunnel leads and, where one is asked for, its name, and waits until it is so; where that comes to
    /// nothing, it is as before. Its other settings stay: they may be secrets that whoever asks does not know.
    pub(super) async fn change(&self, name: &str, wish: Wish) -> Result<Tunnel, Problem> {
        if let Some(other) = wish.name.as_ref().filter(|other| *other != name) {
            let reason = format!("it is {other:?} in the body and {name:?} in the path, and cannot be changed");
            return Err(Problem::Parameter { name: "name", reason });
        }
        let options = self.options(wish)?;
        let until = Instant::now() + PATIENCE;
        let _turn = self.turn(until).await?;
        let (upstream, subdomain) = (options.upstream.to_string(), options.subdomain.clone());
        let (asked, before) = self.with(name, |all, at| {
            let known = all.get_mut(at)?;
            // What was refused before says nothing of what is asked for now.
            self.board.keep_refused(|refused| refused != name);
            let before = known.clone();
            known.upstream = options.upstream;
            known.subdomain = options.subdomain.or_else(|| known.subdomain.take());
            Some((known.clone(), before))
        })?;
        // Without a name of its own it is called as the relay calls it, from now on.
        let called = asked.label.as_ref().or(subdomain.as_ref()).map_or(name, |name| name).to_owned();
        let undo = Undo { wanted: Some(&self.wanted), asked, before: Some(before) };
        let is_so = |tunnel: &Tunnel| {
            tunnel.upstream == upstream && subdomain.as_ref().is_none_or(|subdomain| tunnel.name == *subdomain)
        };
        let tunnel = self.settled(&called, until, is_so).await?;
        undo.forget();
        Ok(tunnel)
    }

    /// Gives a tunnel back, and waits until it no longer answers.
    pub(super) async fn remove(&self, name: &str) -> Result<(), Problem> {
        self.with(name, |all, at| (at < all.len()).then(|| drop(all.remove(at))))?;
        let is_gone = |status: &Status| status.tunnels.iter().all(|tunnel| tunnel.tunnel != name).then_some(());
        timeout_at(Instant::now() + PATIENCE, self.board.until(is_gone)).await.map_err(|_| Problem::RelayAway)
    }

    /// Whose turn it is.
    async fn turn(&self, until: Instant) -> Result<impl Drop, Problem> {
        let turn = timeout_at(until, self.turn.acquire()).await;
        turn.ok().and_then(Result::ok).ok_or(Problem::RelayAway)
    }

    /// Does something to the options of the tunnel that is called so.
    fn with<T>(
        &self,
        name: &str,
        change: impl FnOnce(&mut Vec<TunnelOptions>, usize) -> Option<T>,
    ) -> Result<T, Problem> {
        // The only one of a client has no name of its own: it is called as the relay calls it.
        let is_nameless = self.board.status().tunnels.iter().any(|tunnel| tunnel.tunnel == name && tunnel.name == name);
        let mut changed = None;
        self.wanted.send_if_modified(|all| {
            let called = |label: Option<&str>| all.iter().position(|options| options.label.as_deref() == label);
            let at = called(Some(name)).or_else(|| is_nameless.then(|| called(None)).flatten());
            changed = at.and_then(|at| change(all, at));
            changed.is_some()
        });
        changed.ok_or_else(|| Problem::NoTunnel(name.to_owned()))
    }

    /// Waits until a tunnel answers as it `is` wanted, or is refused.
    async fn settled(&self, name: &str, until: Instant, is: impl Fn(&Tunnel) -> bool) -> Result<Tunnel, Problem> {
        let settled = self.board.until(|status| {
            let refused = status.refused.iter().find(|refused| refused.tunnel == name);
            if let Some(refused) = refused {
                return Some(Err(Problem::TunnelRefused(refused.reason.clone())));
            }
            status.tunnels.iter().find(|tunnel| tunnel.tunnel == name && is(tunnel)).cloned().map(Ok)
        });
        timeout_at(until, settled).await.unwrap_or(Err(Problem::RelayAway))
    }

    fn options(&self, wish: Wish) -> Result<TunnelOptions, Problem> {
        let wrong = |name| move |error: &dyn std::fmt::Display| Problem::Parameter { name, reason: error.to_string() };
        let upstream: UpstreamAddr = wish.upstream.parse().map_err(|error| wrong("addr")(&error))?;
        let port = upstream.host_port().map(|at| at.port);
        if !self.remote && (!upstream.is_loopback() || upstream.scheme() == Scheme::Unix) {
            return Err(Problem::RemoteUpstream(upstream.to_string()));
        }
        if upstream.is_loopback() && port == Some(self.own) {
            return Err(Problem::OwnUpstream(upstream.to_string()));
        }
        if let Some(name) = wish.name.as_ref().filter(|name| !is_name(name)) {
            let reason = format!("{name:?} is not 1 to {NAME} characters of visible ASCII and spaces");
            return Err(Problem::Parameter { name: "name", reason });
        }
        let mut options = TunnelOptions::new(upstream);
        options.webhooks = WebhookOptions::of(self.table.clone());
        if let Some(text) = wish.subdomain {
            options.subdomain = Some(subdomain(&text).map_err(|error| wrong("subdomain")(&error))?);
        }
        if let Some(text) = wish.host_header {
            options.host_header = text.parse().map_err(|error| wrong("host_header")(&error))?;
        }
        if let Some(text) = wish.timeout {
            options.timeout = Some(duration(&text).map_err(|error| wrong("timeout")(&error))?);
        }
        Ok(options)
    }
}

/// Takes back what was asked for of a tunnel unless it came true: also where whoever asked for it has gone meanwhile. What
/// others have made of the tunnel since, as a file does that was read again, stays.
struct Undo<'a> {
    /// None once it came true.
    wanted: Option<&'a watch::Sender<Vec<TunnelOptions>>>,
    asked: TunnelOptions,
    /// How it was; none where it was not there.
    before: Option<TunnelOptions>,
}

impl Undo<'_> {
    /// It came true.
    fn forget(mut self) {
        self.wanted = None;
    }
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        let Some(wanted) = self.wanted else { return };
        wanted.send_if_modified(|all| {
            let Some(at) = all.iter().position(|options| *options == self.asked) else { return false };
            drop(all.splice(at..=at, self.before.take()));
            true
        });
    }
}

fn is_name(name: &str) -> bool {
    (1..=NAME).contains(&name.len()) && name.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic())
}

/// A name for a tunnel to there: `http-localhost-3000`. Its random name is remembered for it, so it is the same each time.
fn unused(upstream: &str, is_taken: impl Fn(&str) -> bool) -> String {
    let words = upstream.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    let mut name = words.collect::<Vec<_>>().join("-");
    name.truncate(50);
    let mut numbered = (2..).map(|number: u32| format!("{name}-{number}"));
    if is_taken(&name) { numbered.find(|name| !is_taken(name)).unwrap_or_default() } else { name }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

    use std::time::Duration;

    use futures_util::FutureExt as _;
    use futures_util::future::join_all;

    use super::*;
    use crate::event::Event;
    use crate::webhooks::built_in;

    fn tunnels(remote: bool) -> Tunnels {
        let (wanted, board, turn) = (watch::Sender::default(), Board::new(), Semaphore::new(1));
        Tunnels { wanted, board, turn, own: 4040, remote, table: built_in() }
    }

    fn wish(upstream: &str) -> Wish {
        Wish { upstream: upstream.to_owned(), ..Wish::default() }
    }

    #[test]
    fn only_ports_of_this_machine_are_published_unless_more_is_meant() {
        for (upstream, problem) in [
            ("3000", None),
            ("http://localhost:3000", None),
            ("https://[::1]:3000", None),
            ("192.0.2.1:80", Some("is not a port of this machine")),
            ("http://metadata.internal", Some("is not a port of this machine")),
            ("unix:/run/docker.sock", Some("is not a port of this machine")),
            ("127.0.0.1:4040", Some("is the inspector itself")),
            ("localhost:4040", Some("is the inspector itself")),
            ("ftp://localhost", Some("addr is not understood")),
        ] {
            let found = tunnels(false).options(wish(upstream)).err().map(|problem| problem.to_string());
            assert_eq!(found.is_some(), problem.is_some(), "{upstream}: {found:?}");
            assert!(found.unwrap_or_default().contains(problem.unwrap_or_default()), "{upstream}");
        }
        for upstream in ["192.0.2.1:80", "unix:/run/app.sock"] {
            assert!(tunnels(true).options(wish(upstream)).is_ok(), "{upstream}");
        }
        assert!(tunnels(true).options(wish("4040")).is_err());
    }

    #[test]
    fn what_is_added_has_a_name() {
        assert_eq!(unused("http://localhost:3000", |_| false), "http-localhost-3000");
        assert_eq!(unused("http://[::1]:80", |name| name.len() < 11), "http-1-80-2");
        assert!(is_name(&unused(&format!("http://{}:1", "a".repeat(63)), |_| false)));
        for (name, is_taken) in [("http-localhost:3000-1f", true), ("a (b)", true), ("", false), ("a\u{1b}", false)] {
            let named = Wish { name: Some(name.to_owned()), ..wish("3000") };
            assert_eq!(tunnels(false).options(named).is_ok(), is_taken, "{name:?}");
        }
    }
    /// Those of a client whose relay is away: it has this one, and nothing comes true.
    fn away() -> (Tunnels, Vec<TunnelOptions>) {
        let tunnels = tunnels(false);
        let mut options = tunnels.options(wish("3000")).unwrap();
        options.label = Some("hooks".to_owned());
        tunnels.wanted.send_replace(vec![options.clone()]);
        (tunnels, vec![options])
    }

    #[tokio::test]
    async fn what_was_given_up_does_not_come_true_by_another_change() {
        let (tunnels, before) = away();
        let public = Wish { subdomain: Some("public".to_owned()), ..wish("3001") };
        let mut first = Box::pin(tunnels.change("hooks", public));
        assert!(first.as_mut().now_or_never().is_none());
        assert_ne!(*tunnels.wanted.borrow(), before);
        let mut second = Box::pin(tunnels.change("hooks", wish("3002")));
        assert!(second.as_mut().now_or_never().is_none());
        let mut third = Box::pin(tunnels.add(wish("3003")));
        assert!(third.as_mut().now_or_never().is_none());
        drop(first);
        assert!(second.as_mut().now_or_never().is_none(), "it is its turn");
        drop((second, third));
        assert_eq!(*tunnels.wanted.borrow(), before);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_a_turn_waits_no_longer_than_for_the_relay() {
        let (tunnels, before) = away();
        let begun = Instant::now();
        let changes = (0..5).map(|i| tunnels.change("hooks", wish(&format!("300{i}"))));
        for changed in join_all(changes).await {
            assert!(matches!(changed, Err(Problem::RelayAway)), "{changed:?}");
        }
        assert!(begun.elapsed() < PATIENCE + Duration::from_secs(1));
        assert_eq!(*tunnels.wanted.borrow(), before);
    }

    #[tokio::test]
    async fn what_others_say_of_a_tunnel_meanwhile_stays() {
        let (tunnels, before) = away();
        // A file that was read again.
        let mut read = before.clone();
        read[0].timeout = Some(Duration::from_secs(7));
        let mut changing = Box::pin(tunnels.change("hooks", wish("3001")));
        assert!(changing.as_mut().now_or_never().is_none());
        tunnels.wanted.send_replace(read.clone());
        drop(changing);
        assert_eq!(*tunnels.wanted.borrow(), read);
        // One of the name of one that was to be added.
        let named = || Wish { name: Some("two".to_owned()), ..wish("3002") };
        let mut adding = Box::pin(tunnels.add(named()));
        assert!(adding.as_mut().now_or_never().is_none());
        let mut other = read.clone();
        other[0].label = Some("two".to_owned());
        tunnels.wanted.send_replace(other.clone());
        drop(adding);
        assert_eq!(*tunnels.wanted.borrow(), other);
    }

    #[tokio::test]
    async fn why_one_is_refused_is_kept_until_it_is_changed() {
        let (tunnels, _) = away();
        tunnels.board.observe(&Event::Refused { tunnel: "gone", reason: "it is taken", url: None });
        assert!(matches!(tunnels.change("gone", wish("3001")).await, Err(Problem::NoTunnel(_))));
        assert_eq!(tunnels.board.status().refused.len(), 1);
    }
}
