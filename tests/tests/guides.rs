//! The guides to providers' webhooks: what they say is what the table of providers says, and their commands work as pasted.
//!
//! Facts stand between markers, so that they are written by this test: `WRITE_GUIDES=1 cargo test -p relay-tests --test guides`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

use relay_tests::process::{Ended, binary, run};
use relay_tests::{App, Place, Process, RelayClient};
use serde::Deserialize;

const TABLE: &str = include_str!("../../protocol/src/webhook/providers.toml");

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/webhooks")
}

/// The guides by their files' names, without the page that leads to them.
fn guides() -> BTreeMap<String, String> {
    let files = std::fs::read_dir(folder()).unwrap().map(|file| file.unwrap().path());
    let pages = files.filter(|file| file.extension().is_some_and(|kind| kind == "md"));
    let pages = pages.map(|file| (file.file_name().unwrap().to_str().unwrap().to_owned(), read(&file)));
    pages.filter(|(name, _)| name != "README.md").collect()
}

fn read(file: &Path) -> String {
    std::fs::read_to_string(file).unwrap()
}

mod facts {
    use super::*;

    #[derive(Deserialize)]
    struct Rows {
        provider: Vec<Row>,
    }

    /// What of a row of the table its users want to know.
    #[derive(Deserialize)]
    struct Row {
        id: String,
        name: String,
        docs: Option<String>,
        #[serde(default, rename = "match")]
        matches: Vec<Condition>,
        #[serde(default)]
        event_id: Vec<String>,
        limit_ms: Option<u64>,
        retries: Option<String>,
        secret: Option<Secret>,
        #[serde(default)]
        settings: BTreeMap<String, String>,
        #[serde(default)]
        signature: Vec<Signature>,
        #[serde(default)]
        handshake: Vec<Handshake>,
        source: BTreeMap<String, String>,
    }

    type Condition = BTreeMap<String, toml::Value>;

    #[derive(Deserialize)]
    struct Secret {
        prefix: Option<String>,
        at: String,
    }

    #[derive(Deserialize)]
    struct Signature {
        scheme: String,
        from: String,
        content: Option<String>,
        timestamp: Option<Timestamp>,
        #[serde(default)]
        when: Condition,
        only_secret: Option<String>,
    }

    #[derive(Deserialize)]
    struct Timestamp {
        past: Option<u64>,
    }

    #[derive(Deserialize)]
    struct Handshake {
        app: Option<String>,
    }

    /// As the relay reads it.
    fn table() -> &'static relay_protocol::webhook::Table {
        static TABLE: LazyLock<relay_protocol::webhook::Table> =
            LazyLock::new(|| relay_protocol::webhook::Table::built_in().unwrap());
        &TABLE
    }

    fn rows() -> Vec<Row> {
        toml::from_str::<Rows>(TABLE).unwrap().provider
    }

    /// A place of a request in words.
    fn place(text: &str) -> String {
        let (kind, name) = text.split_once(':').unwrap_or((text, ""));
        match kind {
            "header" => format!("the header `{name}`"),
            "json" | "number" => format!("`{}` in the body", name.trim_start_matches('/').replace('/', ".")),
            "form" => format!("the form's field `{name}`"),
            "query" => format!("the query's `{name}`"),
            _ => format!("the {kind}"),
        }
    }

    fn condition(all: &Condition) -> String {
        let each = all.iter().map(|(at, what)| match what {
            toml::Value::Boolean(true) => place(at),
            toml::Value::Boolean(false) => format!("no {}", place(at).trim_start_matches("the ")),
            what => format!("{} that is `{}`", place(at), what.as_str().unwrap()),
        });
        each.collect::<Vec<_>>().join(" and ")
    }

    /// Without those that say nothing new.
    fn joined(texts: impl Iterator<Item = String>, between: &str) -> String {
        let mut all: Vec<String> = Vec::new();
        texts.for_each(|text| {
            if !all.contains(&text) {
                all.push(text);
            }
        });
        all.join(between)
    }

    impl Signature {
        fn words(&self) -> String {
            let at = place(&self.from);
            let old = self.timestamp.as_ref().map(|time| time.past.unwrap_or(300));
            let old = old.map(|seconds| format!(", {} old at most", duration(seconds * 1000))).unwrap_or_default();
            let when =
                if self.when.is_empty() { String::new() } else { format!(" where there is {}", condition(&self.when)) };
            let only = self.only_secret.as_ref().map(|prefix| format!(", for secrets that begin with `{prefix}`"));
            let old = old + &when + &only.unwrap_or_default();
            match (self.scheme.as_str(), &self.content) {
                ("equal", _) => format!("the secret itself, as {at}"),
                (scheme, Some(content)) if content.len() <= 60 && !content.contains('\n') => {
                    format!("`{scheme}` of `{content}`, in {at}{old}")
                }
                (scheme, Some(_)) => format!("`{scheme}` of several fields, in {at}{old}"),
                (scheme, None) => format!("a token (`{scheme}`), in {at}{old}"),
            }
        }
    }

    fn duration(ms: u64) -> String {
        match ms {
            ms if ms % 60_000 == 0 && ms > 60_000 => format!("{} min", ms / 60_000),
            ms if ms % 1000 == 0 => format!("{} s", ms / 1000),
            ms => format!("{} s", ms as f64 / 1e3),
        }
    }

    impl Row {
        /// What is known of it, with a mark where somebody else says so.
        fn marked(&self, fact: &str, text: String) -> String {
            let source = self.source.get(fact).map_or("", String::as_str);
            let is_others = source.starts_with("second:") || source.starts_with("memory:");
            if is_others && !text.is_empty() { text + " \\*" } else { text }
        }

        fn waits(&self) -> Option<String> {
            self.limit_ms.map(|limit| self.marked("limit", duration(limit)))
        }

        fn secret(&self) -> String {
            let Some(Secret { prefix, at }) = &self.secret else {
                let words = if self.signature.is_empty() { "not judged" } else { "a key of its own, which is fetched" };
                return words.to_owned();
            };
            let prefix = prefix.as_ref().map(|prefix| format!("; it begins with `{prefix}`")).unwrap_or_default();
            format!("{at}{prefix}")
        }

        fn facts(&self, samples: &[String]) -> String {
            let recognised = joined(self.matches.iter().map(condition), ", or ");
            let mut lines = vec![("recognised by", self.marked("match", recognised))];
            let signed = joined(self.signature.iter().map(Signature::words), "; or ");
            lines.push(("signed", self.marked("signature", signed)));
            lines.push(("secret", self.secret()));
            let settings = self.settings.iter().map(|(name, at)| format!("`--set {name}=...`: {at}"));
            lines.push(("beside it", joined(settings, "; ")));
            lines.push((
                "waits",
                self.waits().map_or_else(
                    || "not known; the relay waits 30 s".to_owned(),
                    |limit| {
                        let until = table().get(&self.id).and_then(|row| row.answer_within()).unwrap();
                        let until = u64::try_from(until.as_millis()).unwrap();
                        format!("{limit}; the relay has answered after {}", duration(until))
                    },
                ),
            ));
            let retries = self.retries.clone().map(|retries| self.marked("retries", retries));
            lines.push(("sends again", retries.unwrap_or_else(|| "not known".to_owned())));
            let ids =
                self.event_id.iter().map(|text| match text.strip_prefix('{').and_then(|text| text.strip_suffix('}')) {
                    Some(at) if !at.contains('{') => place(at),
                    _ => format!("`{text}`"),
                });
            lines.push(("event's id", self.marked("event", joined(ids, ", or "))));
            let asks = self.handshake.iter().map(|handshake| match &handshake.app {
                Some(why) => format!("only your service can answer: {why}"),
                None => "`--handshake` answers".to_owned(),
            });
            lines.push(("checks the URL first", self.marked("handshake", joined(asks, "; "))));
            lines.push(("samples", joined(samples.iter().map(|event| format!("`{event}`")), ", ")));
            lines.push(("documentation", self.docs.iter().map(|url| format!("<{url}>")).collect()));
            let mut table = "| | |\n|---|---|\n".to_owned();
            for (what, is) in lines.iter().filter(|(_, is)| !is.is_empty()) {
                writeln!(table, "| {what} | {} |", is.replace('|', "\\|")).unwrap();
            }
            if table.contains("\\*") {
                table.push_str("\n\\* by others than its own documentation or library\n");
            }
            table
        }
    }

    /// The page with this between its markers.
    fn filled(page: &str, (begin, end): (&str, &str), between: &str) -> String {
        let (before, rest) = page.split_once(begin).unwrap_or_else(|| panic!("no {begin} in {page}"));
        let (_, after) = rest.split_once(end).unwrap_or_else(|| panic!("no {end} in {page}"));
        format!("{before}{begin}\n{between}{end}{after}")
    }

    /// The samples of each sender.
    async fn samples() -> BTreeMap<String, Vec<String>> {
        let listed = run("relay", ["trigger", "--list"]).await;
        let mut all: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut sender = String::new();
        for line in listed.stdout.lines() {
            match line.strip_prefix("  ") {
                Some(event) => all.entry(sender.clone()).or_default().push(event.trim().to_owned()),
                None => line.split(' ').next().unwrap().clone_into(&mut sender),
            }
        }
        assert!(all["stripe"].len() > 5, "{listed:?}");
        all
    }

    fn title(page: &str) -> &str {
        page.lines().next().and_then(|line| line.strip_prefix("# ")).expect("a title")
    }

    #[tokio::test]
    async fn are_those_of_the_table() {
        let (rows, samples, mut wanted) = (rows(), samples().await, Vec::new());
        let guides = guides();
        for (file, page) in &guides {
            let id = file.strip_suffix(".md").unwrap();
            let row = rows.iter().find(|row| row.id == id).unwrap_or_else(|| panic!("{file}: no provider has this id"));
            let facts = row.facts(samples.get(id).map_or(&[], Vec::as_slice));
            let marker = format!("<!-- facts: {id} -->");
            wanted.push((file.clone(), filled(page, (&marker, "<!-- end of facts -->"), &format!("\n{facts}\n"))));
        }
        let mut titles: Vec<_> = guides.iter().map(|(file, page)| (title(page), file)).collect();
        titles.sort_by_key(|(title, _)| title.to_lowercase());
        let links: Vec<_> = titles.iter().map(|(title, file)| format!("[{title}]({file})")).collect();
        let mut table =
            "| provider | `--provider` | waits | signed with | samples |\n|---|---|---|---|--:|\n".to_owned();
        let mut sorted: Vec<_> = rows.iter().collect();
        sorted.sort_by_key(|row| row.name.to_lowercase());
        for row in sorted {
            let file = format!("{}.md", row.id);
            let link = guides.contains_key(&file).then_some(file).or(row.docs.clone());
            let name = link.map_or(row.name.clone(), |link| format!("[{}]({link})", row.name));
            let (waits, count) = (row.waits().unwrap_or_default(), samples.get(&row.id).map_or(0, Vec::len));
            writeln!(table, "| {name} | `{}` | {waits} | {} | {count} |", row.id, row.secret()).unwrap();
        }
        let index = read(&folder().join("README.md"));
        let index =
            filled(&index, ("<!-- guides -->", "<!-- end of guides -->"), &format!("\n{}\n\n", links.join(" · ")));
        let index = filled(&index, ("<!-- table -->", "<!-- end of table -->"), &format!("\n{table}\n"));
        wanted.push(("README.md".to_owned(), index));
        for (file, wanted) in wanted {
            let path = folder().join(&file);
            if std::env::var_os("WRITE_GUIDES").is_some() {
                std::fs::write(&path, wanted).unwrap();
            } else {
                let command = "WRITE_GUIDES=1 cargo test -p relay-tests --test guides";
                assert!(
                    read(&path) == wanted,
                    "docs/webhooks/{file} is not what the table says; write it with {command}"
                );
            }
        }
    }
}

mod commands {
    use super::*;

    /// The commands of this product on a page, in their order, and what they are told by the environment.
    fn of(page: &str) -> Vec<String> {
        let (mut lines, mut is_command) = (Vec::new(), false);
        for line in page.lines().map(str::trim) {
            match line {
                "```console" => is_command = true,
                line if line.starts_with("```") => is_command = false,
                line if is_command && (line.starts_with("relay ") || line.starts_with("export ")) => {
                    lines.push(line.to_owned());
                }
                _ => {}
            }
        }
        lines
    }

    /// The configuration of projects on a page, and the variables that it names.
    fn projects(page: &str) -> impl Iterator<Item = (String, Vec<String>)> {
        let blocks = page.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap().to_owned());
        blocks.filter(|block| block.starts_with("[tunnels")).map(|block| {
            let variables = block.split("\"env:").skip(1).map(|rest| rest.split('"').next().unwrap().to_owned());
            let variables = variables.collect();
            (block, variables)
        })
    }

    #[tokio::test]
    async fn the_configuration_of_a_project_holds() {
        let page = read(&folder().join("README.md"));
        let mut count = 0;
        for (file, variables) in projects(&page) {
            let reader = Reader::new().await;
            let project = reader.place.home.path().join("project");
            std::fs::create_dir(&project).unwrap();
            std::fs::write(project.join("relay.toml"), &file).unwrap();
            let set: String = variables.iter().map(|name| format!("export {name}=whsec_a\n")).collect();
            let ended = reader.shell(&format!("{set}cd project\nrelay config check --output json")).await.wait().await;
            assert_eq!(ended.code(), 0, "{file}\n{ended:?}");
            assert!(ended.stdout.contains("\"from\":\"relay.toml:"), "it was not read: {ended:?}");
            count += 1;
        }
        assert!(count > 0);
    }

    /// A terminal of somebody who follows a guide.
    struct Reader {
        place: Place,
        app: App,
        /// What the lines so far have exported.
        exported: String,
        tunnel: Option<RelayClient>,
    }

    impl Reader {
        async fn new() -> Self {
            let (place, app) = (Place::new().await, App::recording().await);
            let file = place.home.path().join(".config/relay/relay.toml");
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            let (relay, ca) = (&place.relay, place.relay.ca_file());
            let way = [("relay", &*relay.url), ("token", &place.token), ("relay_ca", ca.to_str().unwrap())];
            let mut way: String = way.iter().map(|(name, value)| format!("{name} = {value:?}\n")).collect();
            writeln!(way, "relay_addr = \"{}\"", relay.https).unwrap();
            std::fs::write(&file, way).unwrap();
            Self { place, app, exported: String::new(), tunnel: None }
        }

        async fn shell(&self, line: &str) -> Process {
            let directory = binary("relay").await.parent().unwrap().display().to_string();
            let script = format!("PATH={directory}:$PATH\n{}{line}", self.exported);
            Process::spawn_in(self.place.home.clone(), "/bin/sh", ["-euc", &script], &[]).await
        }

        /// Runs a line as it stands there, but for the port.
        async fn follow(&mut self, line: &str) -> Option<Ended> {
            let address = self.app.addr().to_string();
            let line = line.replace("localhost:3000", &address).replace(" 3000", &format!(" {address}"));
            if line.starts_with("export ") {
                writeln!(self.exported, "{line}").unwrap();
                return None;
            }
            if !line.starts_with("relay http ") {
                return Some(self.shell(&line).await.wait().await);
            }
            if let Some(mut before) = self.tunnel.take() {
                before.process.terminate().await;
            }
            let process = self.shell(&format!("exec {line} --output json")).await;
            self.tunnel = Some(RelayClient::of(process).await);
            None
        }
    }

    #[tokio::test]
    async fn work_as_they_are_pasted() {
        let index = ("README.md".to_owned(), read(&folder().join("README.md")));
        for (file, page) in guides().into_iter().chain([index]) {
            let mut reader = Reader::new().await;
            for line in of(&page) {
                if let Some(ended) = reader.follow(&line).await {
                    assert_eq!(ended.code(), 0, "{file}: {line}: {ended:?}");
                }
            }
            assert!(reader.app.requests() > 0, "{file}: nothing has reached the service");
            if let Some(mut tunnel) = reader.tunnel.take() {
                tokio::time::timeout(Duration::from_secs(30), tunnel.process.terminate()).await.expect("it ends");
            }
        }
    }
}
