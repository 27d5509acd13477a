//! A small HTTP/1.1 server on a free port of loopback: the service behind a tunnel where the client itself answers.

use std::{io, net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

/// Connections at once. The tunnel's own pool is far smaller; this bounds everybody else on this
/// machine, who wait in the listener's backlog.
const CONNECTIONS: usize = 256;
/// A silent connection ends after this: nothing but a stalled peer takes longer on loopback.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// A listener on a free port of 127.0.0.1.
#[derive(Debug)]
pub(crate) struct LocalServer {
    listener: TcpListener,
    addr: SocketAddr,
}

impl LocalServer {
    /// Takes a free port; connections wait until [`LocalServer::run`].
    ///
    /// # Errors
    /// Where loopback gives none.
    pub(crate) async fn bind() -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let addr = listener.local_addr()?;
        Ok(Self { listener, addr })
    }

    /// Where it listens.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Serves until `shutdown` is done. Open connections end with it: by then the tunnel in front
    /// has been drained.
    pub(crate) async fn run<A, F>(self, answer: A, shutdown: impl Future<Output = ()>)
    where
        A: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
        F: Future<Output = Result<Response<Full<Bytes>>, hyper::Error>> + Send + 'static,
    {
        let mut connections = JoinSet::new();
        let mut shutdown = std::pin::pin!(shutdown);
        loop {
            tokio::select! {
                () = &mut shutdown => return,
                Some(_) = connections.join_next() => {}
                accepted = self.listener.accept(), if connections.len() < CONNECTIONS => match accepted {
                    Ok((tcp, _)) => {
                        connections.spawn(serve(tcp, answer.clone()));
                    }
                    // Out of descriptors, mostly: give others time to close some.
                    Err(error) => {
                        tracing::warn!(%error, "a connection of the tunnel cannot be accepted");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
            }
        }
    }
}

async fn serve<A, F>(tcp: TcpStream, answer: A)
where
    A: Fn(Request<Incoming>) -> F,
    F: Future<Output = Result<Response<Full<Bytes>>, hyper::Error>>,
{
    let _ = tcp.set_nodelay(true);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(tcp), service_fn(answer));
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a connection of the tunnel was lost");
    }
}
