//! The keys that providers publish, as those do who sign with one key for everybody.
//!
//! ```text
//!   a request names its key ── on a host of the provider's ──▶ Keys ── not known ──▶ Fetcher
//!                                                                └── known, or lately failed ──▶ at once
//! ```
//!
//! Anybody can send a request that names a key, so all of it has a bound: how many are kept, how often is fetched, and
//! for how long. However many requests wait for a key, it is fetched once, and to its end also where they go away: what
//! was begun is paid for.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use relay_protocol::webhook::{Credentials, Judgement, Verdict};
use tokio::sync::SetOnce;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::fetch::{FetchError, Fetcher};

/// How many keys are kept: a provider has one or two at a time.
const KEYS_MAX: usize = 32;

/// How many are fetched in a [`MINUTE`]. Who sends us to more is a stranger who wants us to be a nuisance to a provider.
const FETCHES_MAX: usize = 20;

/// How many more are, of keys that are known: strangers' URLs are not in their way.
const RENEWALS_MAX: usize = 10;

const MINUTE: Duration = Duration::from_secs(60);

/// For how long a key is kept whose provider says nothing of that.
const KEPT: Duration = Duration::from_secs(60 * 60);

/// The longest time for which it is, whatever the provider says.
const KEPT_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// For how long nobody asks again for what could not be had, or may not be kept.
const RESTS: Duration = Duration::from_secs(30);

/// Published keys, fetched when they are asked for.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    fetcher: Arc<Fetcher>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// By their URLs.
    keys: HashMap<String, Place>,
    fetches: Budget,
    renewals: Budget,
    /// Of pages that complete handshakes.
    visits: Budget,
}

/// Where a key is or will be.
#[derive(Debug)]
struct Place {
    key: Arc<SetOnce<Fetched>>,
    /// There was one before.
    is_proven: bool,
    /// What fetches it.
    _task: AbortOnDropHandle<()>,
}

/// When was fetched in the last minute, the earliest first.
#[derive(Debug, Default)]
struct Budget(VecDeque<Instant>);

/// What came of fetching a key.
#[derive(Debug)]
struct Fetched {
    key: Result<Arc<str>, Arc<KeyError>>,
    /// When it is asked for again.
    until: Instant,
}

/// Why a key is not to be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyError {
    /// It was not fetched.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// What was fetched is something else.
    #[error("what stands there is no key")]
    None,
    /// Where it should be, something answers that takes orders.
    #[error("it is not a page of its own")]
    Query,
    /// Too many are asked for.
    #[error("more than {FETCHES_MAX} pages were asked for in a minute")]
    TooMany,
}

impl Keys {
    /// Fetches by other means.
    #[cfg(test)]
    fn by(fetcher: Fetcher) -> Self {
        Self { fetcher: Arc::new(fetcher), known: Mutex::default() }
    }

    /// What is known, and the key that is published at `url`, which [`Provider::key_url`] has found to be the provider's.
    ///
    /// [`Provider::key_url`]: relay_protocol::webhook::Provider::key_url
    ///
    /// # Errors
    /// The judgement on a request whose key is not to be had.
    pub(crate) async fn complete(
        &self,
        credentials: &Arc<Credentials>,
        url: Option<String>,
    ) -> Result<Arc<Credentials>, Judgement> {
        let Some(url) = url.filter(|url| !credentials.published.contains_key(url)) else {
            return Ok(credentials.clone());
        };
        let key = self.get(&url).await.map_err(|error| {
            let reason = format!("its key, which is published at {url}, cannot be fetched: {error}");
            Judgement::of(Verdict::Unsupported, reason)
        })?;
        let mut credentials = Credentials::clone(credentials);
        credentials.published.insert(url, key.to_string());
        Ok(Arc::new(credentials))
    }

    /// Fetches a page that completes a handshake, which [`Provider::handshake`] has found to be the provider's.
    ///
    /// [`Provider::handshake`]: relay_protocol::webhook::Provider::handshake
    ///
    /// # Errors
    /// Where it is not to be had.
    pub(crate) async fn visit(&self, url: &str) -> Result<(), KeyError> {
        if !self.known.lock().unwrap_or_else(PoisonError::into_inner).visits.spend(FETCHES_MAX, Instant::now()) {
            return Err(KeyError::TooMany);
        }
        self.fetcher.get(url).await?;
        Ok(())
    }

    /// The key that is published there: PEM, or a JSON Web Key Set.
    async fn get(&self, url: &str) -> Result<Arc<str>, Arc<KeyError>> {
        // What answers to a query may be made to say anything.
        if url.contains(['?', '#']) {
            return Err(Arc::new(KeyError::Query));
        }
        let fetch = || {
            let (fetcher, url) = (self.fetcher.clone(), url.to_owned());
            async move { fetch(&fetcher, &url).await }
        };
        let key = self.known.lock().unwrap_or_else(PoisonError::into_inner).key(url, Instant::now(), fetch)?;
        key.wait().await.key.clone()
    }
}

async fn fetch(fetcher: &Fetcher, url: &str) -> Fetched {
    let now = Instant::now();
    let page = fetcher.get(url).await;
    let fresh = page.as_ref().map_or(Some(RESTS), |page| page.fresh);
    let key = page.map_err(KeyError::from).and_then(|page| key(&page.body));
    let kept = if key.is_ok() { fresh.unwrap_or(KEPT).clamp(RESTS, KEPT_MAX) } else { RESTS };
    Fetched { key: key.map_err(Arc::new), until: now + kept }
}

impl Known {
    /// The place of a key, where it is or will be once `fetch` is done.
    fn key<F: Future<Output = Fetched> + Send + 'static>(
        &mut self,
        url: &str,
        now: Instant,
        fetch: impl FnOnce() -> F,
    ) -> Result<Arc<SetOnce<Fetched>>, Arc<KeyError>> {
        let is_good = |place: &Place| place.key.get().is_none_or(|fetched| now < fetched.until);
        self.keys.retain(|_, place| place.is_proven() || is_good(place));
        let known = self.keys.get(url);
        if let Some(place) = known.filter(|place| is_good(place)) {
            return Ok(place.key.clone());
        }
        let is_proven = known.is_some_and(Place::is_proven);
        let may = if is_proven { self.renewals.spend(RENEWALS_MAX, now) } else { self.fetches.spend(FETCHES_MAX, now) };
        if !may {
            return Err(Arc::new(KeyError::TooMany));
        }
        if self.keys.len() >= KEYS_MAX && !self.keys.contains_key(url) {
            // First what is no key, then what is kept for the shortest time: a stranger's do not push out the right one. What
            // is under way is wanted by somebody.
            let there =
                self.keys.iter().filter_map(|(url, place)| Some((url, place.is_proven(), place.key.get()?.until)));
            let goes = there.min_by_key(|(_, is_proven, until)| (*is_proven, *until)).map(|(url, ..)| url.clone());
            goes.and_then(|url| self.keys.remove(&url));
        }
        let (key, fetched) = (Arc::new(SetOnce::new()), fetch());
        let place = key.clone();
        let task = tokio::spawn(async move {
            // It is set here alone.
            let _ = place.set(fetched.await);
        });
        let place = Place { key: key.clone(), is_proven, _task: AbortOnDropHandle::new(task) };
        self.keys.insert(url.to_owned(), place);
        Ok(key)
    }
}

impl Place {
    fn is_proven(&self) -> bool {
        self.is_proven || self.key.get().is_some_and(|fetched| fetched.key.is_ok())
    }
}

impl Budget {
    /// Spends one of so many a minute, if one is left.
    fn spend(&mut self, most: usize, now: Instant) -> bool {
        while self.0.front().is_some_and(|earliest| now.saturating_duration_since(*earliest) >= MINUTE) {
            self.0.pop_front();
        }
        let may = self.0.len() < most;
        if may {
            self.0.push_back(now);
        }
        may
    }
}

/// What was fetched, if it is a key from its first byte on: a page that merely has one in it says what somebody else wrote.
fn key(body: &[u8]) -> Result<Arc<str>, KeyError> {
    let text = std::str::from_utf8(body).map_err(|_| KeyError::None)?;
    match text.trim_start() {
        key if key.starts_with("-----BEGIN ") || key.starts_with('{') => Ok(key.into()),
        _ => Err(KeyError::None),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use super::*;
    use crate::session::dial::Trust;
    use crate::session::dial::tests::{Server, answering};

    /// A server of keys that answers so, and how often it was asked.
    async fn publishing(answer: impl Fn(&str) -> String + Send + 'static) -> (Server, Arc<AtomicUsize>, Keys) {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let server = answering("keys.localhost", move |head| {
            count.fetch_add(1, SeqCst);
            answer(head)
        })
        .await;
        let keys = Keys::by(Fetcher::trusting(server.ca.clone()));
        (server, asked, keys)
    }

    fn ok(headers: &str, body: &str) -> String {
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n{headers}\r\n{body}", body.len())
    }

    fn url(server: &Server, path: &str) -> String {
        format!("https://keys.localhost:{}{path}", server.port)
    }

    #[tokio::test]
    async fn a_key_is_fetched_once_for_all_who_wait_and_kept_as_its_provider_says() {
        let (server, asked, keys) = publishing(|head| {
            assert!(head.starts_with("GET /key.pem HTTP/1.1\r\n"), "{head}");
            ok("Cache-Control: public, max-age=7200\r\nAge: 3600\r\n", "-----BEGIN PUBLIC KEY-----")
        })
        .await;
        let url = url(&server, "/key.pem");
        let all = futures_util::future::join_all((0..50).map(|_| keys.get(&url))).await;
        assert!(all.iter().all(|key| key.as_deref().is_ok_and(|key| key == "-----BEGIN PUBLIC KEY-----")), "{all:?}");
        assert_eq!(asked.load(SeqCst), 1);
        let until = |keys: &Keys| keys.known.lock().unwrap().keys[&url].key.get().unwrap().until;
        let left = until(&keys).duration_since(Instant::now());
        assert!(left > Duration::from_secs(3000) && left <= Duration::from_secs(3600), "{left:?}");
        // Whoever waits goes on where the first one has gone away.
        let (server, asked, keys) = publishing(|_| ok("", "{}")).await;
        let url = super::tests::url(&server, "/jwks");
        drop(tokio::time::timeout(Duration::ZERO, keys.get(&url)).await);
        assert_eq!(keys.get(&url).await.unwrap().as_ref(), "{}");
        assert!(asked.load(SeqCst) <= 2);
    }

    #[tokio::test]
    async fn what_is_no_key_is_not_taken_for_one_and_not_asked_for_again_at_once() {
        let long = "{".repeat(65 << 10);
        for (answer, hint) in [
            (ok("", "<Error>-----BEGIN PUBLIC KEY-----</Error>"), "no key"),
            (ok("", &long), "more than 64 KiB"),
            ("HTTP/1.1 302 Found\r\nLocation: https://keys.localhost/\r\nContent-Length: 0\r\n\r\n".into(), "302"),
            ("HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}".into(), "404"),
            ("SSH-2.0-OpenSSH\r\n".into(), "did not answer"),
        ] {
            let (server, asked, keys) = publishing(move |_| answer.clone()).await;
            for _ in 0..3 {
                let error = keys.get(&url(&server, "/key.pem")).await.unwrap_err().to_string();
                assert!(error.contains(hint), "{hint}: {error}");
            }
            assert_eq!(asked.load(SeqCst), 1, "{hint}");
        }
    }

    #[tokio::test]
    async fn only_a_page_of_a_trusted_host_is_fetched() {
        let (server, asked, keys) = publishing(|_| ok("", "{}")).await;
        let plain = format!("http://keys.localhost:{}/key.pem", server.port);
        for (url, hint) in [
            (url(&server, "/key.pem?Action=x"), "page of its own"),
            (plain, "not the URL"),
            ("https://".into(), "host"),
        ] {
            let error = keys.get(&url).await.unwrap_err().to_string();
            assert!(error.contains(hint), "{url}: {error}");
        }
        let strangers = Keys::by(Fetcher::trusting(Trust::System));
        let error = strangers.get(&url(&server, "/key.pem")).await.unwrap_err().to_string();
        assert!(error.contains("no CA that this machine trusts") || error.contains("no trusted CAs"), "{error}");
        assert_eq!(asked.load(SeqCst), 0);
    }

    #[tokio::test]
    async fn a_stranger_cannot_have_it_fetch_or_keep_without_end() {
        let (mut known, start) = (Known::default(), Instant::now());
        let none = |now| async move { Fetched { key: Err(Arc::new(KeyError::None)), until: now + KEPT } };
        let right = known.key("https://right.example/key", start, || async move {
            Fetched { key: Ok("{}".into()), until: start + KEPT }
        });
        right.unwrap().wait().await;
        let mut refused = 0;
        for at in 0..200 {
            let now = start + Duration::from_secs(at);
            match known.key(&format!("https://right.example/{at}"), now, || none(now)) {
                // Whoever asks does not always wait.
                Ok(key) if at % 2 == 0 => drop(key.wait().await),
                Ok(_) => tokio::task::yield_now().await,
                Err(error) => {
                    assert!(matches!(*error, KeyError::TooMany), "{error}");
                    refused += 1;
                }
            }
            assert!(known.keys.len() <= KEYS_MAX && known.fetches.0.len() <= FETCHES_MAX);
        }
        assert!((115..130).contains(&refused), "{refused}");
        assert!(known.keys["https://right.example/key"].key.initialized(), "the right one is still there");
        // Nor can he have it that the right one is not renewed when its time is over.
        let later = start + KEPT + Duration::from_secs(1);
        for at in 0..FETCHES_MAX {
            known.key(&format!("https://right.example/later/{at}"), later, || none(later)).unwrap();
        }
        assert!(known.key("https://right.example/other", later, || none(later)).is_err());
        for _ in 0..2 * RENEWALS_MAX {
            let renewed = known.key("https://right.example/key", later, || none(later));
            assert!(renewed.is_ok(), "it is renewed once, whoever goes away meanwhile");
        }
        known.keys["https://right.example/key"].key.clone().wait().await;
        let again = known.key("https://right.example/key", later + KEPT, || none(later));
        assert!(!again.expect("also after it once was not to be had").initialized());
    }
}
