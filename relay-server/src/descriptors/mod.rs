//! Descriptors that go from one process to another: listeners, the lock, the control socket.

pub(crate) mod pass;
mod sockets;

use std::os::fd::AsFd;
use std::sync::{Arc, Weak};

pub use self::sockets::{Sockets, What};

/// A descriptor for as long as the relay uses it itself.
pub(crate) type Handle = Weak<dyn AsFd + Send + Sync>;

/// What keeps it open.
pub(crate) type Held = Arc<dyn AsFd + Send + Sync>;

/// A [`Handle`].
pub(crate) fn handle<T: AsFd + Send + Sync + 'static>(descriptor: &Arc<T>) -> Handle {
    let handle: Weak<T> = Arc::downgrade(descriptor);
    handle
}
