//! How a webhook comes into its inbox: it is stored, and tried at once where its client is there.
//!
//! One task does both and is the relay's own, so that a sender who hangs up leaves nothing half done.

use std::sync::Arc;

use relay_protocol::message::RequestHead;
use tokio::sync::oneshot;

use super::Open;
use super::attempt::{Answer, Source, Webhook};
use super::delivery;
use super::records::{AcceptError, Accepted, New, Take};
use super::spool::Body;
use crate::Shared;
use crate::session::registry::Tunnel;

/// What its sender is to be told, as it becomes known.
#[derive(Debug)]
pub(crate) struct Arrival {
    /// Whether it is on disk.
    pub(crate) stored: oneshot::Receiver<Result<Accepted, AcceptError>>,
    /// The app's answer, if that comes from the first attempt.
    pub(crate) answer: oneshot::Receiver<Answer>,
}

/// Takes in a webhook, of which `new` is what is stored and `head` what is sent; who delivers it is decided here. `room` is
/// given back when it is over.
pub(crate) fn take(
    shared: &Arc<Shared>,
    inbox: Arc<Open>,
    new: New,
    head: RequestHead,
    tunnel: Option<Arc<Tunnel>>,
    room: impl Send + 'static,
) -> Arrival {
    let (tell, stored) = oneshot::channel();
    let (wanted, answer) = oneshot::channel();
    let owner = shared.clone();
    shared.spawn(async move {
        arrive(&owner, &inbox, new, head, tunnel, (tell, wanted)).await;
        drop(room);
    });
    Arrival { stored, answer }
}

type Told = (oneshot::Sender<Result<Accepted, AcceptError>>, oneshot::Sender<Answer>);

async fn arrive(
    shared: &Arc<Shared>,
    inbox: &Arc<Open>,
    mut new: New,
    head: RequestHead,
    tunnel: Option<Arc<Tunnel>>,
    (tell, wanted): Told,
) {
    let settings = inbox.settings();
    // Where as many are under way as may be, it waits with the others.
    let live = tunnel.and_then(|tunnel| Some((tunnel, inbox.live.try_acquire().ok()?)));
    new.take = match &live {
        None => Take::No,
        Some(_) if settings.inbox.ordered => Take::IfFirst,
        Some(_) => Take::Now,
    };
    let trailers = new.trailers.clone();
    let source = match &new.body {
        Body::Inline { bytes, .. } => Some(Source::Bytes(bytes.clone())),
        Body::Spooled { .. } => None,
    };
    let mut accepted = shared.inboxes.records().accept(new).await;
    shared.metrics.inbox_accepted.inc_by(accepted.is_ok().into());
    let due = match &mut accepted {
        Ok(Accepted::Stored { due } | Accepted::Newer { due, .. }) => due.take(),
        Ok(Accepted::Delivered { .. }) | Err(_) => None,
    };
    let waits = matches!(accepted, Ok(Accepted::Stored { .. } | Accepted::Newer { .. }));
    // Nobody listens where the sender is gone, which was told nothing and sends it again.
    let _ = tell.send(accepted);
    let (Some(due), Some((tunnel, _place))) = (due, live) else {
        if waits {
            inbox.wake();
        }
        return;
    };
    let body = match source {
        Some(source) => source,
        None => match shared.inboxes.records().spool().open(due.id).await {
            Ok(file) => Source::File(file),
            Err(error) => {
                // It is there, and the next attempt finds it.
                tracing::warn!(id = %due.id, %error, "the body of a webhook cannot be read now");
                return delivery::put_back(shared, inbox, due, delivery::BROKEN).await;
            }
        },
    };
    delivery::attempt(shared, inbox, &tunnel, due, Webhook { head, body, trailers }, Some(wanted)).await;
}
