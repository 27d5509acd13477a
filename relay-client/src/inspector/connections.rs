//! The connections to the inspector: how many there may be, from whom, and for how long.
//!
//! There is room for a few dozen, so a place is worth something: nobody but this machine has more than some of them, who has
//! no token has one for an answer only, and who does not read what he has asked for loses his.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{IpAddr, Ipv6Addr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{Id, JoinSet};
use tokio::time::sleep;
use tokio_io_timeout::TimeoutStream;
use tokio_util::sync::CancellationToken;

use super::Desk;
use super::limits::{CONNECTIONS, CONNECTIONS_EACH, HEAD, HEAD_TIME, UNREAD};

/// Answers whoever connects, until `closing`; then those who are being answered get the rest.
pub(super) async fn serve(listener: TcpListener, desk: Arc<Desk>, closing: CancellationToken) {
    let mut connections = JoinSet::new();
    // Who has each of them.
    let mut peers: HashMap<Id, IpAddr> = HashMap::new();
    loop {
        tokio::select! {
            () = closing.cancelled() => break,
            Some(ended) = connections.join_next_with_id() => {
                let id = ended.map_or_else(|error| error.id(), |(id, ())| id);
                peers.remove(&id);
            }
            accepted = listener.accept(), if peers.len() < CONNECTIONS => match accepted {
                Ok((tcp, from)) => {
                    let peer = machine(from.ip());
                    if !peer.is_loopback() && peers.values().filter(|other| **other == peer).count() >= CONNECTIONS_EACH {
                        tracing::debug!(%peer, "the inspector has enough connections from there");
                        continue;
                    }
                    let task = connections.spawn(converse(tcp, desk.clone(), closing.clone()));
                    peers.insert(task.id(), peer);
                }
                // Out of descriptors, mostly: give others time to close some.
                Err(error) => {
                    tracing::debug!(%error, "the inspector takes no connection");
                    sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// What one stranger has: an address, or with IPv6 the /64 that every host gets.
fn machine(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) if !ip.is_loopback() => Ipv6Addr::from(u128::from(ip) & !u128::from(u64::MAX)).into(),
        ip => ip,
    }
}

/// Answers what comes over one connection.
async fn converse(tcp: TcpStream, desk: Arc<Desk>, closing: CancellationToken) {
    // Where it is refused, answers take longer, and that is all.
    let _ = tcp.set_nodelay(true);
    let service = service_fn(move |request| {
        let desk = desk.clone();
        async move { Ok::<_, Infallible>(desk.answer(request).await) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME).max_buf_size(HEAD);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(impatient(tcp)), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = closing.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection to the inspector broke");
    }
}

/// A connection that fails with [`TimedOut`](std::io::ErrorKind::TimedOut) when nothing of what is to be sent is taken for
/// [`UNREAD`].
fn impatient<S: AsyncRead + AsyncWrite>(stream: S) -> Pin<Box<TimeoutStream<S>>> {
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(UNREAD));
    Box::pin(stream)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
    use tokio::time::{Instant, timeout};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_reads_nothing_is_left_and_who_reads_slowly_is_not() {
        let (near, mut far) = duplex(64);
        let mut near = impatient(near);
        let slow = async {
            let mut read = [0; 64];
            for _ in 0..10 {
                sleep(UNREAD - Duration::from_secs(1)).await;
                far.read_exact(&mut read).await.unwrap();
            }
        };
        let (written, ()) = tokio::join!(near.write_all(&[0; 640 + 64]), slow);
        written.unwrap();
        let start = Instant::now();
        let stalled = timeout(10 * UNREAD, near.write_all(&[0; 1])).await.expect("it is given up");
        assert_eq!(stalled.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(start.elapsed(), UNREAD);
        assert_eq!(far.read(&mut [0; 64]).await.unwrap(), 64, "what was sent is there");
    }

    #[test]
    fn a_machine_is_an_address_or_a_network_of_its_own() {
        for (ip, expected) in [
            ("192.0.2.7", "192.0.2.7"),
            ("::ffff:192.0.2.7", "192.0.2.7"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
            ("::1", "::1"),
            ("::ffff:127.0.0.1", "127.0.0.1"),
        ] {
            assert_eq!(machine(ip.parse().unwrap()).to_string(), expected);
        }
    }
}
