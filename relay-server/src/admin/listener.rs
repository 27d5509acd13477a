//! Where the admin address is listened on: a TCP address, or a Unix socket for the relay's own user and root.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net as std_unix;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};

use crate::audit::By;
use crate::descriptors::{self, Handle, Sockets, What};

/// What connections come to.
#[derive(Debug)]
pub(crate) enum Listener {
    /// Whoever reaches the address.
    Tcp(Arc<TcpListener>),
    /// Whoever may open the file, which is this process's own to remove where it has made it.
    Unix(Arc<UnixListener>, Option<PathBuf>),
}

/// A connection.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Who has connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Caller {
    /// A program there.
    At(IpAddr),
    /// A program of this machine.
    Local {
        /// Its user's id.
        user: u32,
        /// Its process, where the system knows it.
        process: Option<u32>,
    },
}

impl From<Caller> for By {
    fn from(caller: Caller) -> Self {
        match caller {
            Caller::At(address) => Self::Api { address: address.to_canonical() },
            Caller::Local { user, process } => Self::Command { user, process },
        }
    }
}

impl Listener {
    /// Listens on a Unix socket, whose directory is created (mode 0700) if it is not there. One that is left there by a relay that
    /// was killed gives way; one on which somebody listens does not.
    pub(crate) fn at(path: &Path, sockets: &mut Sockets) -> io::Result<Self> {
        if let Some(there) = sockets.take_unix(What::Admin, path) {
            // A service manager hands over its own at every start, and another relay's is told by its being dead.
            return Ok(Self::Unix(Arc::new(there?), None));
        }
        if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
            DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        match fs::symlink_metadata(path) {
            Ok(there) if !there.file_type().is_socket() => return Err(io::ErrorKind::AlreadyExists.into()),
            Ok(_) => match std_unix::UnixStream::connect(path) {
                Ok(_) => return Err(io::ErrorKind::AddrInUse.into()),
                // Anything else says nothing of whether somebody listens.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)?,
                Err(error) => return Err(error),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let listener = UnixListener::bind(path)?;
        // Until then, who calls is looked at all the same.
        fs::set_permissions(path, Permissions::from_mode(0o600))?;
        Ok(Self::Unix(Arc::new(listener), Some(path.to_owned())))
    }

    /// The address, where it is one.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok(),
            Self::Unix(..) => None,
        }
    }

    /// What another process needs to listen there, too.
    pub(crate) fn offer(&self) -> Handle {
        match self {
            Self::Tcp(listener) => descriptors::handle(listener),
            Self::Unix(listener, _) => descriptors::handle(listener),
        }
    }

    /// The next connection. One to the socket of somebody who is neither root nor the relay's own user is none.
    pub(super) async fn accept(&self) -> io::Result<Option<(Box<dyn Stream>, Caller)>> {
        match self {
            Self::Tcp(listener) => {
                let (tcp, peer) = listener.accept().await?;
                Ok(Some((Box::new(tcp), Caller::At(peer.ip()))))
            }
            Self::Unix(listener, _) => {
                let (unix, _) = listener.accept().await?;
                let Ok(peer) = unix.peer_cred() else { return Ok(None) };
                let user = peer.uid();
                if user != rustix::process::geteuid().as_raw() && user != 0 {
                    return Ok(None);
                }
                let process = peer.pid().and_then(|process| process.try_into().ok());
                Ok(Some((Box::new(unix), Caller::Local { user, process })))
            }
        }
    }

    /// Takes the file away, where no other process listens there.
    pub(super) fn remove(&self) {
        if let Self::Unix(_, Some(path)) = self {
            // One that stays is removed by the next relay.
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;

    #[tokio::test]
    async fn a_socket_is_the_owners_and_gives_way_only_where_nobody_listens() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("run/relay/admin.sock");
        let open = || Listener::at(&path, &mut Sockets::default());
        let first = open().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        assert_eq!(open().unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(first);
        assert!(path.exists(), "as after a relay that was killed");
        let second = open().unwrap();
        let _client = std_unix::UnixStream::connect(&path).unwrap();
        let (_, caller) = second.accept().await.unwrap().unwrap();
        let user = rustix::process::geteuid().as_raw();
        assert_eq!(caller, Caller::Local { user, process: Some(std::process::id()) });
        second.remove();
        assert!(!path.exists());
        let given = std_unix::UnixListener::bind(&path).unwrap();
        let mut sockets = Sockets::default();
        sockets.add(What::Admin, given.into()).unwrap();
        Listener::at(&path, &mut sockets).unwrap().remove();
        assert!(path.exists(), "it is whoever's who has handed it over");
        fs::remove_file(&path).unwrap();
        fs::write(&path, "mine").unwrap();
        assert_eq!(open().unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
    }
}
