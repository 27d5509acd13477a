//! Health, metrics, the admin API and the dashboard, on an address of their own.

pub(crate) mod api;
mod gauges;
mod guard;
pub(crate) mod listener;
pub(crate) mod metrics;
mod page;
mod problem;
mod process;
mod refusals;

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio_io_timeout::TimeoutStream;

use self::api::Api;
use self::gauges::Gauges;
use self::listener::{Caller, Listener};
use crate::Shared;
use crate::places::{Place, Places};
use crate::status::{Readiness, readiness};

/// Connections at once; a scraper and a health check need two, and a browser six.
const CONNECTIONS: usize = 64;

/// Of these, those from one other machine, which so leaves the rest to others.
const CONNECTIONS_EACH: usize = 32;

/// Serves until the relay has closed, so that a drain can be watched, or until another process does.
pub(crate) async fn serve(shared: Arc<Shared>, listener: Listener, api: Option<Api>) {
    let api = api.map(Arc::new);
    let places = Places::new(CONNECTIONS, CONNECTIONS_EACH);
    while let Some(accepted) = shared.while_in_charge(listener.accept()).await {
        let Ok(accepted) = accepted else {
            // Out of descriptors, most likely. Waiting lets connections end; spinning would not.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let Some((stream, caller)) = accepted else { continue };
        let Some(place) = enter(&places, caller) else { continue };
        let (owner, api) = (shared.clone(), api.clone());
        shared.spawn(async move {
            let shared = owner.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let (shared, api) = (shared.clone(), api.clone());
                async move {
                    let (head, body) = request.into_parts();
                    Ok::<_, Infallible>(match api {
                        Some(api) if api::is_below(head.uri.path()) => api.answer(caller, head, body).await,
                        api => match api.and_then(|api| api.page(&head)) {
                            Some(file) => file,
                            None => answer(&shared, &head).await,
                        },
                    })
                }
            });
            let limits = owner.limits();
            let mut builder = http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(limits.head).max_buf_size(16 * 1024);
            // Who asks and reads nothing would have its place for ever.
            let mut stream = TimeoutStream::new(stream);
            stream.set_write_timeout(Some(limits.write_idle));
            let connection = builder.serve_connection(TokioIo::new(Box::pin(stream)), service);
            // A scraper that goes away is no event.
            let _ = owner.closing.run_until_cancelled(connection).await;
            drop(place);
        });
    }
    if !shared.handed_over.is_cancelled() {
        listener.remove();
    }
}

/// A place for a connection, if there is one. Through this machine anybody comes: by SSH, a proxy, or a socket.
fn enter(places: &Places, caller: Caller) -> Option<Place> {
    let address = match caller {
        Caller::At(address) => address.to_canonical(),
        Caller::Local { .. } => Ipv4Addr::LOCALHOST.into(),
    };
    places.enter(address, address.is_loopback())
}

async fn answer(shared: &Arc<Shared>, head: &Parts) -> Response<Full<Bytes>> {
    if !matches!(head.method, Method::GET | Method::HEAD) {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET is served here\n".into());
    }
    match head.uri.path() {
        "/healthz" => text(StatusCode::OK, "ok\n".into()),
        "/readyz" => match readiness(shared).map(Readiness::caveat) {
            Ok(None) => text(StatusCode::OK, "ready\n".into()),
            Ok(Some(caveat)) => text(StatusCode::OK, format!("ready, but {caveat}\n")),
            Err(reason) => text(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}\n")),
        },
        "/metrics" => match metrics(shared).await {
            Ok(metrics) => {
                let mut response = text(StatusCode::OK, metrics);
                let kind = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
                response.headers_mut().insert(CONTENT_TYPE, kind);
                response
            }
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        },
        _ => text(StatusCode::NOT_FOUND, "there is /, /healthz, /readyz, /metrics and /api/v1\n".into()),
    }
}

async fn metrics(shared: &Arc<Shared>) -> Result<String, std::fmt::Error> {
    // The rest is told also where they cannot be read: readiness says why.
    let totals = shared.inboxes.records().totals().await.ok();
    let reader = shared.clone();
    // Disks can hang, and a process can have many descriptors to count.
    let read = tokio::task::spawn_blocking(move || Gauges::read(&reader, totals.as_ref()));
    shared.metrics.text(&read.await.map_err(|_| std::fmt::Error)?)
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_other_machine_leaves_room() {
        let places = Places::new(CONNECTIONS, CONNECTIONS_EACH);
        let at = |address: [u8; 4]| enter(&places, Caller::At(address.into()));
        let taken: Vec<_> = (0..CONNECTIONS).filter_map(|_| at([192, 0, 2, 7])).collect();
        assert_eq!(taken.len(), CONNECTIONS_EACH);
        let local = |_| enter(&places, Caller::Local { user: 0, process: None });
        let others: Vec<_> = (0..CONNECTIONS - CONNECTIONS_EACH - 1).filter_map(local).collect();
        assert!(at([192, 0, 2, 8]).is_some());
        drop((taken, others));
        assert_eq!((0..2 * CONNECTIONS).map_while(|_| at([127, 0, 0, 1])).collect::<Vec<_>>().len(), CONNECTIONS);
    }
}
