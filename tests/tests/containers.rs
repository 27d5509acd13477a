//! The container image, and what runs it: the image is built and started, and what compose and Kubernetes are told is what
//! they and the relay understand.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use relay_tests::process::{Ended, binary};
use relay_tests::tools::{app_file, output, program, python};
use relay_tests::{Process, within};
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Command;
use tokio::time::{Duration, sleep};

/// A file of `deploy/`.
fn deploy(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(name).canonicalize().unwrap()
}

/// Images and containers of a test's own, which go with it.
struct Images {
    place: TempDir,
}

impl Images {
    fn new() -> Self {
        Self { place: tempfile::tempdir().unwrap() }
    }

    /// The words of a command of buildah's.
    fn words<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> Vec<String> {
        let [root, run] = ["images", "run"].map(|name| self.place.path().join(name).display().to_string());
        // No other driver works everywhere.
        let own = ["--storage-driver", "vfs", "--root", &root, "--runroot", &run].map(str::to_owned);
        own.into_iter().chain(words.into_iter().map(str::to_owned)).collect()
    }

    async fn buildah<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> String {
        output(Command::new(program("buildah")).args(self.words(words))).await.trim().to_owned()
    }

    /// Runs a program in a container to its end.
    async fn run(&self, container: &str, words: &[&str]) -> Ended {
        self.start(container, words).await.wait().await
    }

    /// Starts a program in a container, as the image's user.
    async fn start(&self, container: &str, words: &[&str]) -> Process {
        let all = ["run", "--isolation", "chroot", container, "--"].into_iter().chain(words.iter().copied());
        let home = Arc::new(tempfile::tempdir().unwrap());
        Process::spawn_in(home, program("buildah").to_str().unwrap(), self.words(all), &[]).await
    }
}

fn texts(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect()
}

#[tokio::test]
async fn the_image_serves_as_nobody_and_says_whether_it_is_well() {
    let images = Images::new();
    let relay_server = images.place.path().join("relay-server");
    // What only debuggers read is not in what users build either.
    let mut strip = Command::new(program("strip"));
    output(strip.arg("--strip-debug").arg("-o").arg(&relay_server).arg(binary("relay-server").await)).await;
    let stage = images.place.path().join("stage");
    output(Command::new(deploy("image-root")).arg(&relay_server).arg(stage.join("image"))).await;
    let (file, context) = (deploy("Dockerfile").display().to_string(), deploy("..").display().to_string());
    let stage = format!("build={}", stage.display());
    let words = ["--isolation", "chroot", "--format", "docker", "--build-context", &stage, "--file", &file];
    images.buildah(["build", "--tag", "relay"].into_iter().chain(words).chain([context.as_str()])).await;

    let image: Value = serde_json::from_str(&images.buildah(["inspect", "--type", "image", "relay"]).await).unwrap();
    let image = &image["Docker"]["config"];
    let entrypoint = texts(&image["Entrypoint"]);
    let health = texts(&image["Healthcheck"]["Test"]);
    assert_eq!((image["User"].as_str(), health[0]), (Some("10001:10001"), "CMD"));
    let container = images.buildah(["from", "relay"]).await;
    // It is small: beside the program there are libraries and certificates.
    let root = PathBuf::from(images.buildah(["mount", &container]).await);
    let size = output(Command::new(program("du")).args(["--summarize", "--bytes"]).arg(&root)).await;
    let size: u64 = size.split_whitespace().next().unwrap().parse().unwrap();
    let program = relay_server.metadata().unwrap().len();
    assert!(size < program + (8 << 20), "{size} bytes, {program} of which are the program");
    assert!(!root.join("bin/sh").exists() && !root.join("usr/bin/sh").exists());

    let unwell = images.run(&container, &health[1..]).await;
    assert!(unwell.code() != 0 && unwell.stderr.contains("no relay runs on /var/lib/relay"), "{unwell:?}");
    let mut serve = [&entrypoint[..], &texts(&image["Cmd"])[..]].concat();
    serve.extend(["--domain", "relay.test", "--https", "127.0.0.1:0", "--http", "off", "--admin", "127.0.0.1:0"]);
    let mut relay = images.start(&container, &serve).await;
    relay.error_line("the relay is ready").await;
    let well = images.run(&container, &health[1..]).await;
    assert_eq!((well.code(), well.stdout.trim()), (0, "ready"), "{well:?}");
    let token = images.run(&container, &[entrypoint[0], "token", "create", "laptop"]).await;
    assert!(token.code() == 0 && token.stdout.starts_with("rly_"), "{token:?}");
    let backup = images.run(&container, &[entrypoint[0], "backup", "/var/lib/relay/today"]).await;
    assert_eq!(backup.code(), 0, "it has a disk to write on: {backup:?}");
    relay.terminate().await;
    within("the relay's end", async {
        while images.run(&container, &health[1..]).await.code() == 0 {
            sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    images.buildah(["umount", &container]).await;
    images.buildah(["rm", "--all"]).await;
}

/// Runs `relay-server check-config` with the words of `relay-server serve` and these variables.
async fn check(serve: &[&str], variables: &[(&str, &str)]) -> Ended {
    assert_eq!(serve[0], "serve");
    let words = ["check-config"].iter().chain(&serve[1..]);
    let home = Arc::new(tempfile::tempdir().unwrap());
    Process::spawn_in(home, "relay-server", words, variables).await.wait().await
}

#[tokio::test]
async fn compose_and_the_relay_understand_the_example() {
    // Not beside the original: whoever works on that may have a file of variables there.
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("compose.yaml");
    std::fs::copy(deploy("compose.yaml"), &file).unwrap();
    let config = async |variables: &[(&str, &str)]| {
        let mut compose = Command::new(program("docker-compose"));
        compose.arg("--file").arg(&file).arg("config").env_clear().envs(variables.iter().copied());
        compose.env("PATH", std::env::var_os("PATH").unwrap()).output().await.unwrap()
    };
    let variables = [
        ("RELAY_DOMAIN", "relay.example.com"),
        ("RELAY_ACME", "you@example.com"),
        ("RELAY_BIND", "10.0.0.4"),
        ("RELAY_PUBLIC_IP", "203.0.113.7"),
    ];
    for missing in 0..variables.len() {
        let but_one: Vec<_> = variables.iter().copied().filter(|one| *one != variables[missing]).collect();
        let refused = config(&but_one).await;
        assert!(!refused.status.success(), "without {}: {refused:?}", variables[missing].0);
    }
    // As its first lines say.
    let lines: String = variables.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
    std::fs::write(place.path().join(".env"), lines).unwrap();
    let shown = config(&[]).await;
    assert!(shown.status.success(), "{shown:?}");
    let mut read = python();
    read.args(["-c", "import json, sys, yaml; print(json.dumps(yaml.safe_load(sys.argv[1])))"]);
    let shown = output(read.arg(String::from_utf8(shown.stdout).unwrap())).await;
    let relay = &serde_json::from_str::<Value>(&shown).unwrap()["services"]["relay"];
    let domain = relay["environment"]["RELAY_DOMAIN"].as_str().unwrap();
    let checked = check(&texts(&relay["command"]), &[("RELAY_DOMAIN", domain)]).await;
    assert!(checked.code() == 0 && checked.stdout.contains("relay.example.com"), "{checked:?}");
}

#[tokio::test]
async fn kubernetes_and_the_relay_understand_the_manifests() {
    let manifests = deploy("kubernetes.yaml");
    let resources = output(python().arg(app_file("kubernetes.py")).arg(&manifests)).await;
    let resources: Vec<Value> = serde_json::from_str(&resources).unwrap();
    let of = |kind: &str| resources.iter().find(|resource| resource["kind"] == kind).unwrap();
    let place = tempfile::tempdir().unwrap();
    let wrong = place.path().join("wrong.yaml");
    let text = std::fs::read_to_string(&manifests).unwrap();
    std::fs::write(&wrong, text.replace("replicas: 1", "replica: 1")).unwrap();
    let refused = python().arg(app_file("kubernetes.py")).arg(&wrong).output().await.unwrap();
    assert!(!refused.status.success(), "the check would notice nothing");

    // What the relay is told, it understands.
    let file = place.path().join("relay-server.toml");
    std::fs::write(&file, of("ConfigMap")["data"]["relay-server.toml"].as_str().unwrap()).unwrap();
    let spec = &of("Deployment")["spec"];
    let container = &spec["template"]["spec"]["containers"][0];
    let words = texts(&container["args"]);
    let file = file.display().to_string();
    let words: Vec<_> = words.iter().map(|word| word.replace("/etc/relay/relay-server.toml", &file)).collect();
    let checked = check(&words.iter().map(String::as_str).collect::<Vec<_>>(), &[]).await;
    assert_eq!(checked.code(), 0, "{checked:?}");

    // What one names, the others have.
    assert_eq!((spec["replicas"].as_u64(), &spec["strategy"]["type"]), (Some(1), &Value::from("Recreate")));
    assert_eq!(spec["selector"]["matchLabels"], spec["template"]["metadata"]["labels"]);
    assert_eq!(of("Service")["spec"]["selector"], spec["template"]["metadata"]["labels"]);
    let ports: Vec<_> = container["ports"].as_array().unwrap().iter().map(|port| port["name"].clone()).collect();
    for port in of("Service")["spec"]["ports"].as_array().unwrap() {
        assert!(ports.contains(&port["targetPort"]), "{port}");
    }
    for probe in ["livenessProbe", "readinessProbe"] {
        assert!(ports.contains(&container[probe]["httpGet"]["port"]), "{probe}");
    }
    let volumes = spec["template"]["spec"]["volumes"].as_array().unwrap();
    for mount in container["volumeMounts"].as_array().unwrap() {
        assert!(volumes.iter().any(|volume| volume["name"] == mount["name"]), "{mount}");
    }
    assert_eq!(volumes[0]["configMap"]["name"], of("ConfigMap")["metadata"]["name"]);
    assert_eq!(volumes[1]["persistentVolumeClaim"]["claimName"], of("PersistentVolumeClaim")["metadata"]["name"]);
}
