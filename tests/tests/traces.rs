//! What a collector of traces, the services behind a tunnel and their senders see of traces.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use http::{Request, StatusCode};
use relay_server::config::Traces;
use relay_tests::app::{Seen, ok};
use relay_tests::body::{empty, full};
use relay_tests::tools::{self, output};
use relay_tests::{App, RelayServer, World, within};
use serde_json::Value;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const ASKING: &str = "b7ad6b7169203331";

fn traces(collector: &App) -> Traces {
    let url = format!("http://{}/v1/traces", collector.addr()).parse().unwrap();
    Traces { url, headers: vec![("x-key".parse().unwrap(), "sesame".parse().unwrap())], sample: 1.0, follow: false }
}

async fn world(traces: Traces) -> World {
    World::with(|config| config.traces = Some(traces)).await
}

/// All spans that a collector has been sent.
fn spans(collector: &App) -> Vec<Value> {
    let of = |seen: &Seen| {
        let sent: Value = serde_json::from_slice(&seen.body).unwrap();
        let scope = &sent["resourceSpans"][0]["scopeSpans"][0];
        scope["spans"].as_array().unwrap_or_else(|| panic!("{sent}")).clone()
    };
    collector.seen().iter().flat_map(of).collect()
}

fn named<'a>(spans: &'a [Value], name: &str) -> &'a Value {
    let mut all = spans.iter().filter(|span| span["name"] == name);
    let span = all.next().unwrap_or_else(|| panic!("no {name} in {spans:#?}"));
    assert!(all.next().is_none(), "several {name} in {spans:#?}");
    span
}

fn attribute<'a>(span: &'a Value, key: &str) -> &'a Value {
    let mut all = span["attributes"].as_array().unwrap().iter();
    let value = &all.find(|one| one["key"] == key).unwrap_or_else(|| panic!("no {key} in {span:#}"))["value"];
    value.get("stringValue").or(value.get("intValue")).unwrap()
}

fn times(span: &Value) -> (u64, u64) {
    let of = |key: &str| span[key].as_str().unwrap().parse().unwrap();
    (of("startTimeUnixNano"), of("endTimeUnixNano"))
}

/// Whether it is the message that OpenTelemetry says, in the form that protobuf gives it as JSON.
const PARSE: &str = "
import sys
from google.protobuf.json_format import Parse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
request = Parse(sys.argv[1], ExportTraceServiceRequest())
print(sum(len(scope.spans) for resource in request.resource_spans for scope in resource.scope_spans))
";

#[tokio::test]
async fn a_request_is_followed_from_the_edge_to_the_service() {
    let (collector, app) = (App::recording().await, App::recording().await);
    let world = world(traces(&collector)).await;
    let tunnel = world.tunnel(&app).await;
    let request = Request::post(world.url(tunnel.name(), "/hooks/a?key=sesame"))
        .header("traceparent", format!("00-{TRACE}-{ASKING}-01"))
        .header("tracestate", "vendor=1")
        .header("authorization", "Bearer sesame")
        .body(full("sesame"))
        .unwrap();
    let (tunnel_name, port) = (tunnel.name().to_owned(), world.https().port().to_string());
    let answer = world.send(request).await;
    assert_eq!(answer.code(), 200);
    assert!(!answer.headers.contains_key("relay-took"), "{answer:?}");
    drop(tunnel);
    // What has not been sent yet is sent at the end.
    world.shutdown().await;

    let sent = collector.last();
    assert_eq!((sent.header("content-type"), sent.header("x-key")), ("application/json", "sesame"));
    let text = std::str::from_utf8(&sent.body).unwrap();
    assert!(!text.contains("sesame"), "no query, no header, no body: {text}");
    assert_eq!(output(tools::python().args(["-c", PARSE, text])).await.trim(), "3");

    let spans = spans(&collector);
    let (edge, way, upstream) = (named(&spans, "POST"), named(&spans, "tunnel"), named(&spans, "upstream"));
    assert!(spans.iter().all(|span| span["traceId"] == TRACE && span["traceState"] == "vendor=1"), "{spans:#?}");
    assert_eq!(edge["parentSpanId"], ASKING);
    assert_eq!((&way["parentSpanId"], &upstream["parentSpanId"]), (&edge["spanId"], &way["spanId"]));
    let service = app.only();
    let parent = format!("00-{TRACE}-{}-01", upstream["spanId"].as_str().unwrap());
    assert_eq!((service.header("traceparent"), service.header("tracestate")), (&*parent, "vendor=1"));
    for (key, value) in [
        ("http.request.method", "POST"),
        ("http.response.status_code", "200"),
        ("url.path", "/hooks/a"),
        ("client.address", "127.0.0.1"),
        ("http.request.body.size", "6"),
        ("url.scheme", "https"),
        ("server.address", &format!("{}.relay.test", tunnel_name)),
        ("server.port", &port),
        ("relay.request.id", service.header("relay-request-id")),
    ] {
        assert_eq!(attribute(edge, key), value, "{key}");
    }
    let all = [edge, way, upstream].map(times);
    for ((from, to), (inner_from, inner_to)) in [(all[0], all[1]), (all[1], all[2])] {
        assert!(from <= inner_from && inner_from < inner_to && inner_to <= to, "{all:?}");
    }
}

#[tokio::test]
async fn what_is_part_of_no_trace_begins_one_and_what_nobody_writes_is_left_as_it_is() {
    let (collector, app) = (App::recording().await, App::recording().await);
    let traced = world(traces(&collector)).await;
    let untraced = world(Traces { sample: 0.0, ..traces(&collector) }).await;
    let unwritten = format!("00-{TRACE}-{ASKING}-00");
    for world in [&traced, &untraced] {
        let tunnel = world.tunnel(&app).await;
        let get = || Request::get(world.url(tunnel.name(), "/"));
        let requests = [
            get(),
            // What cannot be read is worth nothing, and what belongs to it neither.
            get().header("traceparent", "nonsense").header("tracestate", "vendor=1"),
            get().header("traceparent", &unwritten),
        ];
        for request in requests {
            assert_eq!(world.send(request.body(empty()).unwrap()).await.code(), 200);
        }
    }
    traced.shutdown().await;
    untraced.shutdown().await;
    let parent = |seen: &Seen| seen.headers.get("traceparent").map(|value| value.to_str().unwrap().to_owned());
    let parents: Vec<_> = app.seen().iter().map(parent).collect();
    let written: Vec<Value> = spans(&collector).into_iter().filter(|span| span["name"] == "GET").collect();
    assert_eq!(written.len(), 2, "{written:#?}");
    for (index, span) in written.iter().enumerate() {
        assert!(span.get("parentSpanId").is_none(), "{span:#}");
        let begin = format!("00-{}-", span["traceId"].as_str().unwrap());
        assert!(parents[index].as_ref().is_some_and(|parent| parent.starts_with(&begin)), "{parents:?}");
    }
    assert!(!app.seen()[1].headers.contains_key("tracestate"));
    let left = [Some(unwritten.clone()), None, Some("nonsense".to_owned()), Some(unwritten)];
    assert_eq!(parents[2..], left, "byte for byte");
}

#[tokio::test]
async fn strangers_do_not_decide_what_is_written_unless_they_are_let() {
    let (collector, app) = (App::recording().await, App::recording().await);
    let asking = format!("00-{TRACE}-{ASKING}-01");
    for follow in [false, true] {
        let world = world(Traces { sample: 0.0, follow, ..traces(&collector) }).await;
        let tunnel = world.tunnel(&app).await;
        let request = Request::get(world.url(tunnel.name(), "/")).header("traceparent", &asking);
        assert_eq!(world.send(request.body(empty()).unwrap()).await.code(), 200);
        drop(tunnel);
        world.shutdown().await;
        assert_eq!(collector.requests(), usize::from(follow));
        assert_eq!(app.last().header("traceparent") == asking, !follow);
    }
}

#[tokio::test]
async fn all_that_was_traced_is_sent_at_the_end() {
    let collector = App::recording().await;
    let world = world(traces(&collector)).await;
    let mut http = world.http1(&world.host("nobody")).await;
    // More than go into one batch.
    for _ in 0..700 {
        let request = Request::get(world.url("nobody", "/")).body(empty()).unwrap();
        assert_eq!(http.answer(request).await.code(), 404);
    }
    drop(http);
    world.shutdown().await;
    assert_eq!(spans(&collector).len(), 700);
}

#[tokio::test]
async fn failures_say_what_they_were() {
    let collector = App::recording().await;
    let world = world(traces(&collector)).await;
    assert_eq!(world.get(&world.url("nobody", "/")).await.code(), 404);
    let app = App::raw(|_, _| async {}).await;
    let tunnel = world.tunnel(&app).await;
    assert_eq!(world.post(&world.url(tunnel.name(), "/"), "a").await.code(), 502);
    drop(tunnel);
    world.shutdown().await;
    let spans = spans(&collector);
    let unknown = named(&spans, "GET");
    assert_eq!(attribute(unknown, "error.type"), "tunnel-not-found");
    assert!(unknown.get("status").is_none(), "that is the sender's mistake");
    let failed = named(&spans, "POST");
    assert_eq!((attribute(failed, "error.type"), &failed["status"]["code"]), (&"upstream-invalid".into(), &2.into()));
    let (way, upstream) = (named(&spans, "tunnel"), named(&spans, "upstream"));
    assert_eq!((&way["status"]["code"], &upstream["status"]["code"]), (&2.into(), &2.into()));
    // The service may have seen it as its parent.
    assert_eq!(upstream["parentSpanId"], way["spanId"]);
}

#[tokio::test]
async fn a_collector_that_is_away_costs_traces_and_nothing_else() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    // Busy, then taking them, then refusing for good, in either way.
    let collector = App::serve(move |_| {
        let (status, text) = [
            (StatusCode::SERVICE_UNAVAILABLE, ""),
            (StatusCode::OK, "{}"),
            (StatusCode::BAD_REQUEST, ""),
            (StatusCode::OK, "{\"partialSuccess\":{\"rejectedSpans\":\"3\",\"errorMessage\":\"no\"}}"),
        ][counted.fetch_add(1, Relaxed).min(3)];
        async move {
            let mut response = ok(text);
            *response.status_mut() = status;
            response
        }
    })
    .await;
    let world = world(traces(&collector)).await;
    let app = App::echo().await;
    let tunnel = world.tunnel(&app).await;
    for (outcome, count) in [("sent", 1), ("dropped", 1), ("dropped", 2)] {
        assert_eq!(world.post(&world.url(tunnel.name(), "/"), "a").await.text(), "a");
        let line = format!("relay_traces_total{{outcome=\"{outcome}\"}} {count}\n");
        let counted = async { while !world.get_admin("/metrics").await.text().contains(&line) {} };
        within("the outcome", counted).await;
    }
    assert_eq!(asked.load(Relaxed), 4);
    drop(tunnel);
    world.shutdown().await;
}

#[tokio::test]
async fn a_line_of_the_log_names_the_trace() {
    let collector = App::recording().await;
    let home = Arc::new(tempfile::tempdir().unwrap());
    let file = home.path().join("relay.toml");
    let url = format!("http://{}/v1/traces", collector.addr());
    std::fs::write(&file, format!("[traces]\nurl = '{url}'\nheaders = {{ x-key = 'sesame' }}\n")).unwrap();
    let mut relay = RelayServer::spawn_in(home, ["--config", &file.display().to_string()]).await;
    let app = App::echo().await;
    let client = relay.client(&relay.token("me").await, &app.addr().to_string(), &[]).await;
    let way = relay_tests::world::connect_tls(relay.https, &client.host(), &relay.ca_file(), &[b"http/1.1"]).await;
    let request = Request::get(format!("{}/", client.url())).header("traceparent", format!("00-{TRACE}-{ASKING}-01"));
    let answer = relay_tests::Http::one(way).await.answer(request.body(empty()).unwrap()).await;
    assert_eq!(answer.code(), 200);
    let line: Value = serde_json::from_str(&relay.process.error_line("trace_id").await).unwrap();
    assert_eq!((&line["trace_id"], &line["status"]), (&TRACE.into(), &200.into()));
    drop(client);
    relay.process.terminate().await;
    assert_eq!(collector.only().header("x-key"), "sesame");
}
