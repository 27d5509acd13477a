//! Adding and removing tunnels while the client runs, as `relay start` does when its file changes.

use std::sync::Arc;
use std::time::Duration;

use relay_protocol::message::MAX_TUNNELS;
use relay_protocol::webhook::Table;
use tokio::sync::watch;
use tokio::time::timeout;

use super::answer::Problem;
use crate::client::TunnelOptions;
use crate::control::board::{Board, Status, Tunnel};
use crate::upstream::address::{Scheme, UpstreamAddr};
use crate::value::{duration, subdomain};
use crate::webhooks::WebhookOptions;

/// How long the relay has to give a tunnel, or to take it back.
const PATIENCE: Duration = Duration::from_secs(15);

/// The longest name of a tunnel. Some scripts make one of a whole URL and a UUID.
const NAME: usize = 128;

/// The tunnels of a client, as its inspector changes them.
#[derive(Debug)]
pub(super) struct Tunnels {
    pub(super) wanted: watch::Sender<Vec<TunnelOptions>>,
    pub(super) board: Board,
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
            all.push(options);
            added = Ok(label);
            true
        });
        let label = added?;
        let undo = Undo { wanted: Some(&self.wanted), label: Some(label.clone()), before: None };
        let tunnel = self.settled(&label, |_| true).await?;
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
        let (upstream, subdomain) = (options.upstream.to_string(), options.subdomain.clone());
        // What was refused before says nothing of what is asked for now.
        self.board.keep_refused(|refused| refused != name);
        let mut before = None;
        self.with(name, |all, at| {
            let Some(known) = all.get_mut(at) else { return };
            before = Some(known.clone());
            known.upstream = options.upstream;
            known.subdomain = options.subdomain.or_else(|| known.subdomain.take());
        })?;
        let label = before.as_ref().and_then(|options| options.label.clone());
        // Without a name of its own it is called as the relay calls it, from now on.
        let called = label.as_ref().or(subdomain.as_ref()).map_or(name, |name| name).to_owned();
        let undo = Undo { wanted: Some(&self.wanted), label, before };
        let is_so = |tunnel: &Tunnel| {
            tunnel.upstream == upstream && subdomain.as_ref().is_none_or(|subdomain| tunnel.name == *subdomain)
        };
        let tunnel = self.settled(&called, is_so).await?;
        undo.forget();
        Ok(tunnel)
    }

    /// Gives a tunnel back, and waits until it no longer answers.
    pub(super) async fn remove(&self, name: &str) -> Result<(), Problem> {
        self.with(name, |all, at| drop(all.remove(at)))?;
        let is_gone = |status: &Status| status.tunnels.iter().all(|tunnel| tunnel.tunnel != name).then_some(());
        timeout(PATIENCE, self.board.until(is_gone)).await.map_err(|_| Problem::RelayAway)
    }

    /// Does something to the options of the tunnel that is called so.
    fn with(&self, name: &str, change: impl FnOnce(&mut Vec<TunnelOptions>, usize)) -> Result<(), Problem> {
        // The only one of a client has no name of its own: it is called as the relay calls it.
        let is_nameless = self.board.status().tunnels.iter().any(|tunnel| tunnel.tunnel == name && tunnel.name == name);
        let found = self.wanted.send_if_modified(|all| {
            let called = |label: Option<&str>| all.iter().position(|options| options.label.as_deref() == label);
            let at = called(Some(name)).or_else(|| is_nameless.then(|| called(None)).flatten());
            at.map(|at| change(all, at)).is_some()
        });
        if found { Ok(()) } else { Err(Problem::NoTunnel(name.to_owned())) }
    }

    /// Waits until a tunnel answers as it `is` wanted, or is refused.
    async fn settled(&self, name: &str, is: impl Fn(&Tunnel) -> bool) -> Result<Tunnel, Problem> {
        let settled = self.board.until(|status| {
            let refused = status.refused.iter().find(|refused| refused.tunnel == name);
            if let Some(refused) = refused {
                return Some(Err(Problem::TunnelRefused(refused.reason.clone())));
            }
            status.tunnels.iter().find(|tunnel| tunnel.tunnel == name && is(tunnel)).cloned().map(Ok)
        });
        timeout(PATIENCE, settled).await.unwrap_or(Err(Problem::RelayAway))
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

/// Takes back what was asked for of a tunnel unless it came true: also where whoever asked for it has gone meanwhile.
struct Undo<'a> {
    /// None once it came true.
    wanted: Option<&'a watch::Sender<Vec<TunnelOptions>>>,
    label: Option<String>,
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
        wanted.send_modify(|all| match self.before.take() {
            Some(before) => all
                .iter_mut()
                .filter(|options| options.label == self.label)
                .for_each(|options| *options = before.clone()),
            None => all.retain(|options| options.label != self.label),
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
    #![allow(clippy::unwrap_used, clippy::panic)]

    use super::*;
    use crate::webhooks::built_in;

    fn tunnels(remote: bool) -> Tunnels {
        Tunnels { wanted: watch::Sender::default(), board: Board::new(), own: 4040, remote, table: built_in() }
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
}
