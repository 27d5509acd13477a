//! Descriptors on their way from one process to another (unix(7), `SCM_RIGHTS`): they travel with a line of text.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::cmsg_space;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::UnixStream;

/// Descriptors in one message: listeners for three addresses, two for each of the name server's, the lock and the control
/// socket. The kernel's own limit is 253.
const MOST: usize = 64;

/// Bytes of the line.
const MAX_LINE: usize = 64 * 1024;

/// Sends a line, and descriptors with it.
pub(crate) async fn send(stream: &mut UnixStream, line: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let socket = &*stream;
    let send = || -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MOST))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if descriptors.len() > MOST || !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(io::Error::other("too many listeners to hand over"));
        }
        Ok(sendmsg(socket, &[IoSlice::new(line)], &mut control, SendFlags::empty())?)
    };
    let sent = socket.async_io(Interest::WRITABLE, send).await?;
    stream.write_all(line.get(sent..).unwrap_or_default()).await
}

/// Receives a line, without its end, and the descriptors that came with it. Programs that are started do not inherit them.
pub(crate) async fn receive(stream: &UnixStream) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let (mut line, mut descriptors) = (Vec::new(), Vec::new());
    loop {
        let mut piece = [0; 4096];
        let receive = || -> io::Result<usize> {
            let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MOST))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let received = recvmsg(stream, &mut [IoSliceMut::new(&mut piece)], &mut control, RecvFlags::empty())?;
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(rights) = message {
                    descriptors.extend(rights);
                }
            }
            Ok(received.bytes)
        };
        let received = stream.async_io(Interest::READABLE, receive).await?;
        line.extend_from_slice(piece.get(..received).unwrap_or_default());
        if line.pop_if(|last| *last == b'\n').is_some() {
            break;
        }
        if received == 0 || line.len() > MAX_LINE {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    descriptors.iter().try_for_each(|descriptor| fcntl_setfd(descriptor, FdFlags::CLOEXEC))?;
    Ok((line, descriptors))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use std::os::fd::AsFd as _;

    use rustix::io::fcntl_getfd;
    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[tokio::test]
    async fn a_listener_is_the_same_at_the_other_end() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        send(&mut ours, b"one\n", &[listener.as_fd()]).await.unwrap();
        // It waits in the queue, for whoever accepts.
        let _caller = std::net::TcpStream::connect(address).unwrap();
        drop(listener);

        let (line, mut descriptors) = receive(&theirs).await.unwrap();
        assert_eq!((&line[..], descriptors.len()), (&b"one"[..], 1));
        assert!(fcntl_getfd(&descriptors[0]).unwrap().contains(FdFlags::CLOEXEC));
        let listener = std::net::TcpListener::from(descriptors.pop().unwrap());
        assert_eq!(listener.local_addr().unwrap(), address);
        listener.accept().expect("the connection was not lost");

        ours.write_all(b"more\n").await.unwrap();
        let mut more = [0; 5];
        theirs.read_exact(&mut more).await.unwrap();
        drop(ours);
        assert_eq!(receive(&theirs).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn too_many_are_an_error() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let (mut ours, _theirs) = UnixStream::pair().unwrap();
        assert!(send(&mut ours, b"\n", &[listener.as_fd(); MOST + 1]).await.is_err());
    }
}
