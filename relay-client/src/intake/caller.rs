//! A request that has come through a tunnel, as everybody on its way to the service looks at it.

use std::future::pending;
use std::panic::resume_unwind;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use relay_protocol::exchange::content_length;
use relay_protocol::inbox::Delivery;
use relay_protocol::link::Stream;
use relay_protocol::message::RequestHead;
use relay_protocol::mux::StreamError;
use relay_protocol::webhook::{Event, Provider, Request};
use tokio::task::spawn_blocking;

use crate::upstream::{Gathered, RequestBody, SHORT, expects_continue, send_continue};
use crate::webhooks::WebhookOptions;

/// A request and who has sent it.
#[derive(Debug)]
pub(super) struct Caller<'a> {
    pub(super) stream: &'a Stream,
    pub(super) head: &'a RequestHead,
    pub(super) body: &'a RequestBody,
    /// When it came.
    pub(super) at: Timestamp,
    webhooks: &'a WebhookOptions,
    /// What its sender has called.
    url: &'a str,
    /// As its sender has made it: with its body, once that is here and if it is short.
    request: Request<'a>,
    whole: &'a OnceLock<Bytes>,
    /// Whether all of it has been looked at.
    is_seen: bool,
    /// Who has sent it and what has happened, as far as what was looked at says so.
    known: Option<(Arc<Provider>, Arc<Event>)>,
}

/// When the relay received it: what waited in an inbox was signed for that moment, and not for this one.
fn received(head: &RequestHead) -> Timestamp {
    let waited = Delivery::of(&head.headers).map_or(0, |delivery| delivery.age_s);
    let waited = i64::try_from(waited).map(SignedDuration::from_secs).unwrap_or_default();
    let now = Timestamp::now();
    now.checked_sub(waited).unwrap_or(now)
}

impl<'a> Caller<'a> {
    /// Of a stream's request, and what came with its head. `url` is what its sender has called; `whole` takes up its body.
    pub(super) async fn new(
        stream: &'a Stream,
        head: &'a RequestHead,
        body: &'a RequestBody,
        webhooks: &'a WebhookOptions,
        url: &'a str,
        whole: &'a OnceLock<Bytes>,
    ) -> Self {
        let request = Request::new(&head.method, url, &head.headers, &[]);
        let at = received(head);
        let mut caller = Self { stream, head, body, at, webhooks, url, request, whole, is_seen: false, known: None };
        caller.look_again().await;
        caller
    }

    /// Who has sent it, as far as what is here of it says so.
    pub(super) fn sender(&self) -> Option<&Arc<Provider>> {
        self.known.as_ref().map(|(sender, _)| sender)
    }

    /// Who has sent it and what has happened, as far as what is here of it says so.
    pub(super) fn known(&self) -> Option<&(Arc<Provider>, Arc<Event>)> {
        self.known.as_ref()
    }

    /// The same.
    pub(super) fn into_known(self) -> Option<(Arc<Provider>, Arc<Event>)> {
        self.known
    }

    /// As its sender has made it: its head, and its body if that is here and short.
    pub(super) fn request(&self) -> &Request<'a> {
        &self.request
    }

    /// Whether all of it has been looked at.
    pub(super) fn is_seen(&self) -> bool {
        self.is_seen
    }

    /// Finds out who has sent it, if more of it is here than before.
    pub(super) async fn look_again(&mut self) {
        let is_whole = self.body.is_whole();
        if self.is_seen || !is_whole && self.known.is_some() {
            return;
        }
        self.is_seen = is_whole;
        if let Some(whole) = self.body.whole().filter(|whole| whole.len() <= SHORT) {
            let RequestHead { method, headers, .. } = self.head;
            self.request = Request::new(method, self.url, headers, self.whole.get_or_init(|| whole));
        }
        let (pinned, table) = (self.webhooks.pinned().cloned(), self.webhooks.table.clone());
        let find = move |request: &Request<'_>| {
            let sender = pinned.or_else(|| table.recognise(request).cloned())?;
            let event = sender.event(request);
            Some((sender, Arc::new(event)))
        };
        self.known = self.look(find).await;
    }

    /// Looks at all of it that is here. A long body is looked at in another thread, because every exchange of this one
    /// would wait for that.
    pub(super) async fn look<T: Send + 'static>(&self, look: impl FnOnce(&Request<'_>) -> T + Send + 'static) -> T {
        let long = || self.body.whole().filter(|whole| whole.len() > SHORT);
        let Some(whole) = self.whole.get().map_or_else(long, |_| None) else { return look(&self.request) };
        let (method, headers) = (self.head.method.clone(), self.head.headers.clone());
        let url = self.url.to_owned();
        let looked = spawn_blocking(move || look(&Request::new(&method, &url, &headers, &whole)));
        match looked.await.map_err(tokio::task::JoinError::try_into_panic) {
            Ok(found) => found,
            Err(Ok(panic)) => resume_unwind(panic),
            // The program ends.
            Err(Err(_)) => pending().await,
        }
    }

    /// Waits until all of it is here, as far as its body is no longer than that.
    ///
    /// # Errors
    /// The request is gone.
    pub(super) async fn hold(&mut self, most: usize) -> Result<Gathered, StreamError> {
        if content_length(self.head).is_some_and(|length| length > most as u64) {
            return Ok(Gathered::TooLong);
        }
        self.body.keep_up_to(most);
        if !self.body.is_whole() && expects_continue(self.head) {
            send_continue(self.stream);
        }
        let gathered = self.body.gather().await?;
        self.look_again().await;
        Ok(gathered)
    }
}
