//! Health, metrics and the admin API, on an address of their own.

pub(crate) mod api;
mod guard;
pub(crate) mod metrics;
mod problem;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use self::api::Api;
use crate::Shared;
use crate::clock::unix_millis;
use crate::clock::unix_now;

/// Connections at once; a scraper and a health check need two.
const CONNECTIONS: usize = 64;

/// Serves until the relay has closed, so that a drain can be watched, or until another process does.
pub(crate) async fn serve(shared: Arc<Shared>, listener: Arc<TcpListener>, api: Option<Api>) {
    let api = api.map(Arc::new);
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    while let Some(accepted) = shared.while_in_charge(listener.accept()).await {
        let Ok((tcp, peer)) = accepted else {
            // Out of descriptors, most likely. Waiting lets connections end; spinning would not.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let Ok(place) = places.clone().try_acquire_owned() else { continue };
        let (owner, api) = (shared.clone(), api.clone());
        shared.spawn(async move {
            let shared = owner.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let (shared, api) = (shared.clone(), api.clone());
                async move {
                    Ok::<_, Infallible>(match api.filter(|_| api::is_below(request.uri().path())) {
                        Some(api) => api.answer(peer.ip(), request).await,
                        None => answer(&shared, &request).await,
                    })
                }
            });
            let mut builder = http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(owner.limits().head).max_buf_size(16 * 1024);
            let connection = builder.serve_connection(TokioIo::new(tcp), service);
            // A scraper that goes away is no event.
            let _ = owner.closing.run_until_cancelled(connection).await;
            drop(place);
        });
    }
}

async fn answer(shared: &Shared, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET is served here\n".into());
    }
    match request.uri().path() {
        "/healthz" => text(StatusCode::OK, "ok\n".into()),
        "/readyz" => match readiness(shared) {
            Ok(None) => text(StatusCode::OK, "ready\n".into()),
            Ok(Some(trouble)) => text(StatusCode::OK, format!("ready, but {trouble}\n")),
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
        _ => text(StatusCode::NOT_FOUND, "there is /healthz, /readyz, /metrics and /api/v1\n".into()),
    }
}

/// What else whoever asks should know.
pub(crate) fn readiness(shared: &Shared) -> Result<Option<String>, String> {
    if shared.stopping.is_cancelled() {
        return Err("the relay shuts down".to_owned());
    }
    shared.store.health().and_then(|()| shared.inboxes.records().health()).map_err(|error| error.to_string())?;
    // Behind a proxy nobody sees it.
    shared.config.https.map_or(Ok(None), |_| shared.certificates.health(unix_now()))
}

async fn metrics(shared: &Shared) -> Result<String, std::fmt::Error> {
    let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
    let expires = shared.certificates.validity().map_or(0, |validity| validity.not_after.timestamp());
    let mut gauges = vec![
        ("sessions", "Clients that are connected", count(shared.sessions.count())),
        ("tunnels", "Names that a connected client serves", count(shared.registry.online())),
        ("connections", "Public connections that are open", count(shared.places.taken())),
        (
            "certificate_expires_seconds",
            "When the certificate expires, in seconds since 1970; 0 where there is none",
            u64::try_from(expires).unwrap_or(0),
        ),
    ];
    // The rest is told also where they cannot be read: readiness says why.
    if let Ok(totals) = shared.inboxes.records().totals().await {
        let oldest = totals.oldest_at.map_or(0, |at| u64::try_from(unix_millis() - at).unwrap_or(0) / 1000);
        gauges.extend([
            ("inboxes", "Tunnel names that have an inbox", totals.inboxes),
            ("inbox_waiting", "Webhooks that wait in inboxes", totals.waiting),
            ("inbox_dead", "Dead letters in inboxes", totals.dead),
            ("inbox_bytes", "Bytes of what waits and of dead letters", totals.bytes),
            ("inbox_oldest_seconds", "Age of the webhook that has waited longest", oldest),
        ]);
    }
    shared.metrics.text(&gauges)
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
