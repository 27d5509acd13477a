//! Whether anybody listens where tunnels forward to.
//!
//! A service is knocked at when its tunnel comes up and when a request was refused, and then once a second until it is
//! there. A knock is a connection that is closed at once: no request is made, and a service that runs is left alone.

use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use tokio::time::timeout;

use crate::upstream::address::UpstreamAddr;
use crate::upstream::socket::{Refused, reach};

/// Between two knocks, and the most that one may take.
pub(crate) const PERIOD: Duration = Duration::from_secs(1);

/// Services that are known. More tunnels than this have no client.
const MOST: usize = 1024;

/// What is known of the services behind a client's tunnels.
#[derive(Debug, Default)]
pub(crate) struct Services(Vec<Service>);

/// The service behind a tunnel.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    /// The tunnel, as it is called on this machine.
    pub(crate) tunnel: String,
    /// Where it forwards to, as people are told.
    pub(crate) upstream: String,
    pub(crate) addr: UpstreamAddr,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Somebody should look.
    Doubtful,
    Up,
    Down,
}

/// What a knock has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Nobody listens, for this reason.
    Down(String),
    /// Somebody listens again.
    Up,
}

impl Services {
    /// A tunnel is up that forwards to this upstream. Whether there is something to knock at.
    pub(crate) fn add(&mut self, tunnel: &str, upstream: &str) -> bool {
        self.remove(tunnel);
        if self.0.len() >= MOST {
            return false;
        }
        // What has no scheme is no address, but says what this program does by itself.
        let Some(addr) = upstream.contains(':').then(|| upstream.parse().ok()).flatten() else { return false };
        self.0.push(Service { tunnel: tunnel.to_owned(), upstream: upstream.to_owned(), addr, state: State::Doubtful });
        true
    }

    /// A tunnel is gone.
    pub(crate) fn remove(&mut self, tunnel: &str) {
        self.0.retain(|service| service.tunnel != tunnel);
    }

    /// A request of this tunnel was refused. Whether that is news.
    pub(crate) fn doubt(&mut self, tunnel: &str) -> bool {
        let is_it = |service: &&mut Service| service.tunnel == tunnel && service.state == State::Up;
        match self.0.iter_mut().find(is_it) {
            Some(service) => {
                service.state = State::Doubtful;
                true
            }
            None => false,
        }
    }

    /// Where to knock now.
    pub(crate) fn due(&self) -> Vec<Service> {
        self.0.iter().filter(|service| service.state != State::Up).cloned().collect()
    }

    /// Takes in what a knock has shown, unless the tunnel has changed meanwhile.
    pub(crate) fn learn(&mut self, knocked_at: &Service, knocked: Result<(), Refused>) -> Option<Change> {
        let same = |known: &&mut Service| known.tunnel == knocked_at.tunnel && known.addr == knocked_at.addr;
        let service = self.0.iter_mut().find(same)?;
        let state = if knocked.is_ok() { State::Up } else { State::Down };
        let before = std::mem::replace(&mut service.state, state);
        match knocked {
            Err(refused) if before != State::Down => Some(Change::Down(refused.to_string())),
            Ok(()) if before == State::Down => Some(Change::Up),
            _ => None,
        }
    }
}

/// Looks whether somebody listens. A service that says nothing for [`PERIOD`] may be there.
pub(crate) async fn knock(addr: &UpstreamAddr) -> Result<(), Refused> {
    let reached = timeout(PERIOD, reach(addr, &AtomicUsize::new(0))).await;
    reached.map_or(Ok(()), |reached| reached.map(drop))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use std::io;

    use super::*;

    fn refused() -> Refused {
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        Refused(vec![("127.0.0.1:3000".to_owned(), refused()), ("[::1]:3000".to_owned(), refused())])
    }

    #[test]
    fn each_change_is_told_once() {
        let mut services = Services::default();
        assert!(services.add("web", "http://localhost:3000"));
        let due = services.due();
        let web = due.first().unwrap();
        let down = Change::Down("connection refused by 127.0.0.1:3000 and [::1]:3000".to_owned());
        assert_eq!(services.learn(web, Err(refused())), Some(down.clone()));
        assert_eq!(services.learn(web, Err(refused())), None);
        assert!(!services.doubt("web"), "known already");
        assert_eq!(services.due().len(), 1, "until it is there");
        assert_eq!(services.learn(web, Ok(())), Some(Change::Up));
        assert!(services.due().is_empty(), "a service that runs is left alone");
        assert!(services.doubt("web") && !services.doubt("api"));
        assert_eq!(services.learn(web, Ok(())), None, "it was another refusal");
        services.doubt("web");
        assert_eq!(services.learn(web, Err(refused())), Some(down));
    }

    #[test]
    fn tunnels_change_and_go() {
        let mut services = Services::default();
        services.add("web", "http://localhost:3000");
        let before = services.due().remove(0);
        services.add("web", "http://localhost:4000");
        assert_eq!(services.learn(&before, Err(refused())), None, "that is not where it forwards to now");
        assert_eq!(services.due().len(), 1);
        services.remove("web");
        assert!(services.due().is_empty());
    }

    #[test]
    fn what_is_no_service_is_not_knocked_at() {
        let mut services = Services::default();
        for upstream in ["listen", "demo"] {
            assert!(!services.add("web", upstream));
        }
        assert!(services.due().is_empty());
    }

    #[tokio::test]
    async fn a_knock_is_heard_where_somebody_listens() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr: UpstreamAddr = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        knock(&addr).await.unwrap();
        drop(listener);
        let said = knock(&addr).await.unwrap_err().to_string();
        assert_eq!(said, format!("connection refused by {}", addr.to_string().trim_start_matches("http://")));
        let directory = tempfile::tempdir().unwrap();
        let addr: UpstreamAddr = format!("unix:{}/app.sock", directory.path().display()).parse().unwrap();
        let said = knock(&addr).await.unwrap_err().to_string();
        assert!(said.starts_with(&addr.to_string()), "{said}");
        let _listener = tokio::net::UnixListener::bind(directory.path().join("app.sock")).unwrap();
        knock(&addr).await.unwrap();
    }
}
