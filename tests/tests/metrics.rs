//! What Prometheus makes of what a relay tells, of the alert rules and of the dashboard.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use relay_tests::tools::{app_file, output, program, python};
use relay_tests::{App, Place, Process, within};
use serde_json::Value;
use tokio::process::Command;

/// The values of these labels are words of the relay's own.
const LABELS: [&str; 9] = ["class", "database", "error", "kind", "le", "outcome", "quota", "version", "what"];

/// A file of `deploy/`.
fn deploy(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(name).canonicalize().unwrap()
}

fn promtool(directory: &Path, words: &[&str]) -> Command {
    let mut promtool = Command::new(program("promtool"));
    promtool.args(words).current_dir(directory);
    promtool
}

/// The rules of `prometheus-alerts.yaml`.
async fn alerts() -> Vec<Value> {
    let mut read = python();
    read.args(["-c", "import json, sys, yaml; print(json.dumps(yaml.safe_load(open(sys.argv[1]))))"]);
    let file: Value = serde_json::from_str(&output(read.arg(deploy("prometheus-alerts.yaml"))).await).unwrap();
    let groups = file["groups"].as_array().unwrap();
    groups.iter().flat_map(|group| group["rules"].as_array().unwrap()).cloned().collect()
}

/// The panels of the dashboard, rows among them.
fn panels() -> Vec<Value> {
    let text = fs::read_to_string(deploy("grafana-dashboard.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let source = &dashboard["templating"]["list"][0];
    assert_eq!((&source["name"], &source["type"]), (&"datasource".into(), &"datasource".into()));
    dashboard["panels"].as_array().unwrap().clone()
}

/// What a dashboard asks, as Grafana sends it.
fn asked(panels: &[Value]) -> Vec<String> {
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    let asked = targets.map(|target| target["expr"].as_str().unwrap());
    asked
        .map(|expr| expr.replace("$__rate_interval", "5m").replace("$job", "relay").replace("$instance", ".*"))
        .collect()
}

/// The metrics that an expression is about.
fn named(expr: &str) -> impl Iterator<Item = &str> {
    let words = expr.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("relay_") || word.starts_with("process_"))
}

/// The metrics in the first column of the tables of `docs/metrics.md`.
fn documented(page: &str) -> BTreeSet<&str> {
    let first = page.lines().filter_map(|line| line.strip_prefix("| `")?.split(" | ").next());
    first.flat_map(|names| names.split('`').filter(|name| name.contains('_'))).collect()
}

/// The names in the documentation of what was scraped.
fn families(scraped: &BTreeSet<String>) -> BTreeSet<&str> {
    let histogram = |name: &str| scraped.contains(&format!("{name}_bucket"));
    let family = |name: &'_ String| {
        let parts = ["_bucket", "_sum", "_count"].map(|part| name.strip_suffix(part).map(str::len));
        let length = parts.into_iter().flatten().find(|length| histogram(&name[..*length]));
        length.unwrap_or(name.len())
    };
    scraped.iter().map(|name| &name[..family(name)]).collect()
}

#[tokio::test]
async fn each_alert_fires_when_it_should_and_not_before() {
    let place = tempfile::tempdir().unwrap();
    let rules = place.path().join("prometheus-alerts.yaml");
    let text = fs::read_to_string(deploy("prometheus-alerts.yaml")).unwrap();
    let cases = fs::read_to_string(app_file("prometheus-alerts.test.yaml")).unwrap();
    fs::write(place.path().join("cases.yaml"), &cases).unwrap();
    fs::write(&rules, &text).unwrap();
    output(&mut promtool(place.path(), &["check", "rules", "prometheus-alerts.yaml"])).await;
    let test = || promtool(place.path(), &["test", "rules", "cases.yaml"]);
    output(&mut test()).await;

    for alert in alerts().await {
        let name = alert["alert"].as_str().unwrap();
        assert!(cases.contains(&format!("alertname=\"{name}\"")), "nothing makes {name} fire");
        for text in ["summary", "action"] {
            assert!(alert["annotations"][text].as_str().is_some_and(|text| text.ends_with('.')), "{text} of {name}");
        }
        assert!(matches!(alert["labels"]["severity"].as_str(), Some("critical" | "warning")), "{name}");
    }

    // One that never fires is noticed, and one that fires too soon.
    for (right, wrong) in
        [("relay_inbox_oldest_seconds > 900", "relay_inbox_oldest_seconds > 90000"), ("> 0.05", "> 0.005")]
    {
        assert!(text.contains(right));
        fs::write(&rules, text.replace(right, wrong)).unwrap();
        let tested = test().output().await.unwrap();
        assert!(!tested.status.success(), "{wrong}: {tested:?}");
    }
}

#[tokio::test]
async fn what_is_shown_and_warned_of_and_written_down_is_what_a_relay_tells() {
    let page = include_str!("../../docs/metrics.md");
    let place = Place::new().await;
    let app = App::echo().await;
    let _client = place.client(&app, "not-a-label", &["--inbox"]).await;
    assert_eq!(place.post("not-a-label", "/nor-this", "1").await.code(), 200);

    // Prometheus as the page sets it up.
    let home = Arc::new(tempfile::tempdir().unwrap());
    let (_, config) = page.split_once("```yaml\n").unwrap();
    let (config, _) = config.split_once("```").unwrap();
    let config = config.replace("127.0.0.1:9180", &place.relay.admin.unwrap().to_string()).replace(
        "/usr/share/doc/relay-server/examples/prometheus-alerts.yaml",
        deploy("prometheus-alerts.yaml").to_str().unwrap(),
    );
    let config = format!("global: {{scrape_interval: 1s, scrape_timeout: 1s}}\n{config}");
    fs::write(home.path().join("prometheus.yml"), config).unwrap();
    let words = ["--config.file=prometheus.yml", "--storage.tsdb.path=data", "--web.listen-address=127.0.0.1:0"];
    let prometheus = program("prometheus").display().to_string();
    let mut prometheus = Process::spawn_in(home.clone(), &prometheus, words, &[]).await;
    let line = prometheus.error_line("\"Listening on\"").await;
    let address = line.rsplit("address=").next().unwrap();
    let server = format!("http://{address}");
    let query = async |expr: &str| -> Value {
        let words = ["query", "instant", "-o", "json", &server, expr];
        serde_json::from_str(&output(&mut promtool(home.path(), &words)).await).unwrap()
    };
    within("a scrape", async { while query("up{job=\"relay\"} == 1").await == Value::Array(Vec::new()) {} }).await;

    let series = query("{job=\"relay\"}").await;
    let mut scraped = BTreeSet::new();
    for one in series.as_array().unwrap() {
        let labels = one["metric"].as_object().unwrap();
        let name = labels["__name__"].as_str().unwrap();
        for (label, value) in
            labels.iter().filter(|(label, _)| !["__name__", "instance", "job"].contains(&label.as_str()))
        {
            assert!(LABELS.contains(&label.as_str()), "{one}");
            assert!(!value.as_str().unwrap().contains("label"), "{one}");
        }
        if name != "up" && !name.starts_with("scrape_") {
            scraped.insert(name.to_owned());
        }
    }
    assert_eq!(documented(page), families(&scraped), "docs/metrics.md, and what is told");

    // What the one webhook has left.
    for expr in [
        "relay_exchange_head_seconds_count == 1",
        "relay_inbox_commit_duration_seconds_count > 0",
        "relay_disk_available_bytes > 0",
        "process_resident_memory_bytes > 1e6",
    ] {
        assert_ne!(query(expr).await, Value::Array(Vec::new()), "{expr}");
    }

    let panels = panels();
    let rows: Vec<_> = panels.iter().filter(|panel| panel["type"] == "row").map(|row| row["title"].clone()).collect();
    assert_eq!(rows, ["Traffic", "Errors", "Latency", "Inbox", "Certificates", "Process"]);
    let ids: HashSet<_> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len());
    let sources = panels.iter().filter_map(|panel| panel.get("datasource"));
    assert!(sources.into_iter().all(|source| source["uid"] == "${datasource}"));
    let shown = asked(&panels);
    assert!(shown.len() > 50);
    for expr in &shown {
        // It fails where that is no expression.
        query(expr).await;
    }
    let alerts = alerts().await;
    let warned = alerts.iter().map(|alert| alert["expr"].as_str().unwrap());
    for expr in shown.iter().map(String::as_str).chain(warned) {
        for name in named(expr) {
            assert!(scraped.contains(name), "{name}, which no relay tells, in {expr}");
        }
    }
    // The other way: nobody has to ask for what is told.
    let shown: HashSet<_> = shown.iter().flat_map(|expr| named(expr)).collect();
    let hidden: Vec<_> = families(&scraped)
        .into_iter()
        .filter(|family| !shown.contains(family) && !shown.contains(format!("{family}_bucket").as_str()))
        .collect();
    assert!(hidden.is_empty(), "the dashboard lacks {hidden:?}");
    prometheus.terminate().await;
}
