//! How a webhook comes into its inbox: it is stored, and tried at once where its client is there.
//!
//! One task does both and is the relay's own, so that a sender who hangs up leaves nothing half done.

use std::sync::Arc;

use relay_protocol::message::RequestHead;
use tokio::sync::oneshot;
use tokio_util::sync::DropGuard;

use super::Open;
use super::attempt::{Answer, Source, Webhook};
use super::delivery;
use super::records::{AcceptError, Accepted, New, Take};
use super::spool::Body;
use crate::Shared;
use crate::cause::Cause;
use crate::tunnels::Tunnel;

/// Bytes of bodies in memory are counted by so many.
pub(super) const UNIT: u64 = 64 * 1024;

/// What its sender is to be told, as it becomes known.
#[derive(Debug)]
pub(crate) struct Arrival {
    /// Whether it is on disk.
    pub(crate) stored: oneshot::Receiver<Result<Accepted, AcceptError>>,
    /// The app's answer, or why the client does not let it in, if that comes from the first attempt.
    pub(crate) answer: oneshot::Receiver<Result<Answer, Cause>>,
    /// Nobody waits any more, so that what has not been stored by now need not be.
    pub(crate) abandons: DropGuard,
}

/// Takes in a webhook, of which `new` is what is stored and `head` what is sent; who delivers it is decided here. `room` is
/// given back when it is on disk. None where the disk is behind with too many.
pub(crate) fn take(
    shared: &Arc<Shared>,
    inbox: Arc<Open>,
    new: New,
    head: RequestHead,
    tunnel: Option<Arc<Tunnel>>,
    room: impl Send + 'static,
) -> Option<Arrival> {
    let place = shared.inboxes.arriving.clone().try_acquire_owned().ok()?;
    let (tell, stored) = oneshot::channel();
    let (wanted, answer) = oneshot::channel();
    let abandons = new.abandoned.clone().drop_guard();
    let owner = shared.clone();
    shared.spawn(async move {
        arrive(&owner, &inbox, new, head, tunnel, (place, room), (tell, wanted)).await;
    });
    Some(Arrival { stored, answer, abandons })
}

type Told = (oneshot::Sender<Result<Accepted, AcceptError>>, oneshot::Sender<Result<Answer, Cause>>);

async fn arrive(
    shared: &Arc<Shared>,
    inbox: &Arc<Open>,
    mut new: New,
    head: RequestHead,
    tunnel: Option<Arc<Tunnel>>,
    room: impl Send,
    (tell, wanted): Told,
) {
    let settings = inbox.settings();
    let trailers = new.trailers.clone();
    let source = match &new.body {
        Body::Inline { bytes, .. } => Some(Source::Bytes(bytes.clone())),
        Body::Spooled { .. } => None,
    };
    // Where as many are under way as may be, it waits with the others.
    let live = tunnel.and_then(|tunnel| {
        let size = if source.is_some() { new.body.size() } else { 0 };
        let units = u32::try_from(size.div_ceil(UNIT).max(1)).unwrap_or(u32::MAX);
        let place = (inbox.live.try_acquire().ok()?, shared.inboxes.sending.try_acquire_many(units).ok()?);
        Some((tunnel, place))
    });
    new.take = match &live {
        None => Take::No,
        Some(_) if settings.inbox.ordered => Take::IfFirst,
        Some(_) => Take::Now,
    };
    let mut accepted = shared.inboxes.records().accept(new).await;
    shared.metrics.inbox_accepted.inc_by(accepted.is_ok().into());
    drop(room);
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
