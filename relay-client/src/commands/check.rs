//! `relay config check`: what holds without any flag, where each value comes from, and everything that is wrong.

use std::{ffi::OsString, fmt::Write as _, str::FromStr, time::Duration};

use clap::ValueEnum;
use serde::Serialize;

use crate::secret::SecretSource;
use crate::session::dial::{RelayUrl, Trust};
use crate::upstream::rewrite::HostHeader;
use crate::value::{Output, Secret};
use crate::{
    config::{ConfigError, Files, Places, TunnelSettings},
    terminal::Shown,
};

/// What stands for a secret.
const HIDDEN: &str = "(not shown)";

/// What was found.
#[derive(Debug)]
pub struct Report {
    settings: Vec<Setting>,
    /// What the user should know: a sentence each.
    pub warnings: Vec<String>,
    /// What is wrong, each with its place.
    pub problems: Vec<String>,
}

/// A setting, and who says it. In JSON a line of its own.
#[derive(Debug, Serialize)]
struct Setting {
    setting: String,
    /// None where nobody says anything; secrets are not told.
    value: Option<String>,
    /// `FILE:LINE`, a variable, or `default`.
    from: String,
}

impl Report {
    /// Reads the files and the variables that `variable` knows.
    pub fn new(places: &Places, variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let (mut files, errors) = Files::load_all(places);
        let mut problems: Vec<String> = errors.iter().map(ConfigError::to_string).collect();
        let mut said = |name: &str| {
            let value =
                variable(name)?.into_string().map_err(|_| problems.push(format!("{name}: it is not text"))).ok()?;
            if value.is_empty() {
                problems.push(format!("{name}: it is empty; unset it"));
            }
            Some(value).filter(|value| !value.is_empty())
        };
        let (relay, token, ca) = (said("RELAY_URL"), said("RELAY_TOKEN").map(Secret::from), said("RELAY_CA_FILE"));
        let secret = said("RELAY_SECRET").map(SecretSource::from);
        let relay = relay.and_then(|text| {
            RelayUrl::from_str(&text).map_err(|error| problems.push(format!("RELAY_URL: {error}"))).ok()
        });
        if let Some(relay) = &relay {
            files.keep_to(relay);
        }
        let (file, providers) = (&files.file, files.table());
        let place = |key: &str| file.places.get(key).map_or_else(|| "default".to_owned(), ToString::to_string);
        let setting = |setting: &str, variable: Option<(&str, String)>, value: Option<String>| match variable {
            Some((name, value)) => Setting { setting: setting.to_owned(), value: Some(value), from: name.to_owned() },
            None => Setting { setting: setting.to_owned(), value, from: place(setting) },
        };
        let access = file.access.clone().unwrap_or_default().settle();
        let unsettled = access.as_ref().err().map(ToString::to_string);
        let hidden = |_: &Secret| HIDDEN.to_owned();
        let default = TunnelSettings::default();
        let mut settings = vec![
            setting(
                "relay",
                relay.as_ref().map(|relay| ("RELAY_URL", relay.to_string())),
                file.relay.as_ref().map(ToString::to_string),
            ),
            setting(
                "token",
                token.as_ref().map(|token| ("RELAY_TOKEN", hidden(token))),
                file.token.as_ref().map(hidden),
            ),
            setting(
                "relay_ca",
                ca.clone().map(|ca| ("RELAY_CA_FILE", ca)),
                file.relay_ca.as_ref().map(|ca| ca.display().to_string()),
            ),
            setting("relay_addr", None, file.relay_addr.as_ref().map(ToString::to_string)),
            setting("subdomain", None, file.subdomain.clone()),
            setting("domain", None, file.domain.clone()),
            setting("timeout", None, time(file.timeout)),
            setting("host_header", None, Some(host_header(file.host_header.as_ref().unwrap_or(&default.host_header)))),
            setting("upstream_protocol", None, word(&file.upstream_protocol.unwrap_or_default())),
            setting("output", None, word(&file.output.unwrap_or_default())),
            setting("inspect", None, file.inspect.as_ref().map(ToString::to_string)),
            setting(
                "secret",
                secret.as_ref().map(|_| ("RELAY_SECRET", HIDDEN.to_owned())),
                file.secret.as_ref().map(|_| HIDDEN.to_owned()),
            ),
            setting("set", None, file.set.as_ref().map(|_| HIDDEN.to_owned())),
            setting("verify", None, file.verify.map(|verify| verify.to_string())),
            setting("provider", None, file.provider().map(str::to_owned)),
            setting("verify_at", None, word(&file.verify_at.unwrap_or_default())),
            setting("handshake", None, Some(file.handshake.unwrap_or_default().to_string())),
            setting("fault", None, file.fault.as_ref().map(ToString::to_string)),
            setting("inbox", None, file.inbox.as_ref().map(ToString::to_string)),
            setting("access", None, access.ok().map(|access| access.to_string()).filter(|text| !text.is_empty())),
        ];
        problems.extend(secret.and_then(|secret| secret.read().err()).map(|error| format!("RELAY_SECRET: {error}")));
        problems.extend(file.check_secret(files.table()).err().map(|error| error.to_string()));
        problems.extend(unsettled);
        let limits = file.capture.limits();
        settings.extend([
            setting("capture.count", None, Some(limits.count.to_string())),
            setting("capture.bytes", None, Some(limits.bytes.to_string())),
            setting("capture.age", None, Some(format!("{}s", limits.age.as_secs()))),
            setting("capture.body", None, Some(limits.body.to_string())),
        ]);
        for (label, table) in &file.tunnels {
            let tunnel = match file.tunnel(label, table, providers.clone()) {
                Ok(tunnel) => tunnel,
                Err(error) => {
                    problems.push(error.to_string());
                    continue;
                }
            };
            let of = &tunnel.settings;
            let webhooks = &of.webhooks;
            for (key, value) in [
                ("upstream", Some(tunnel.upstream.to_string())),
                ("subdomain", table.subdomain.clone()),
                ("domain", table.domain.clone()),
                ("timeout", time(of.timeout)),
                ("host_header", Some(host_header(&of.host_header))),
                ("upstream_protocol", word(&of.upstream_protocol)),
                ("secret", webhooks.credentials.secrets.first().map(|_| HIDDEN.to_owned())),
                ("set", webhooks.credentials.settings.first_key_value().map(|_| HIDDEN.to_owned())),
                ("verify", Some(webhooks.verify.to_string())),
                ("provider", webhooks.provider.clone()),
                ("verify_at", word(&webhooks.verify_at)),
                ("handshake", Some(webhooks.handshake.to_string())),
                ("fault", Some(of.faults.to_string()).filter(|faults| !faults.is_empty())),
                ("inbox", of.inbox.0.as_ref().map(ToString::to_string)),
                ("access", Some(of.access.to_string()).filter(|text| !text.is_empty())),
            ] {
                let own = format!("tunnels.{label}.{key}");
                let from = match file.places.get(&own) {
                    Some(place) => place.to_string(),
                    // A name is nobody's default.
                    None if key == "subdomain" || key == "domain" => "default".to_owned(),
                    None => place(key),
                };
                settings.push(Setting { setting: own, value, from });
            }
        }
        problems.dedup();
        let from = |key: &str| settings.iter().find(|setting| setting.setting == key).map_or("", |found| &found.from);
        if token.as_ref().or(file.token.as_ref()).is_some_and(|token| !token.is_one_word()) {
            problems.push(format!("{}: the token is not one word of letters, digits and _", from("token")));
        }
        let ca = ca.map(Into::into).or_else(|| file.relay_ca.clone());
        if let Some(Err(error)) = ca.map(|ca| Trust::only(&ca)) {
            problems.push(format!("{}: {error}", from("relay_ca")));
        }
        let mut warnings = files.warnings;
        if token.is_none() {
            warnings.extend(files.withheld);
        }
        if relay.is_none() && file.relay.is_none() && problems.is_empty() {
            warnings.push(ConfigError::NoRelay.to_string());
        }
        Self { settings, warnings, problems }
    }

    /// What holds, for standard output.
    pub fn show(&self, output: Output) -> String {
        let mut out = String::new();
        let longest = |lengths: &mut dyn Iterator<Item = usize>| lengths.max().unwrap_or(0).min(60);
        let names = longest(&mut self.settings.iter().map(|setting| setting.setting.len()));
        let width = longest(&mut self.settings.iter().filter_map(|setting| setting.value.as_deref()).map(str::len));
        for setting in &self.settings {
            let _ = match output {
                Output::Json => writeln!(out, "{}", serde_json::json!(setting)),
                Output::Text => {
                    let value = setting.value.as_deref().unwrap_or("-");
                    writeln!(out, "{:<names$}  {:<width$}  {}", setting.setting, Shown(value), Shown(&setting.from))
                }
            };
        }
        out
    }
}

fn time(value: Option<Duration>) -> Option<String> {
    value.map(|time| format!("{time:?}"))
}

fn host_header(value: &HostHeader) -> String {
    match value {
        HostHeader::Auto => "auto".to_owned(),
        HostHeader::Rewrite => "rewrite".to_owned(),
        HostHeader::Preserve => "preserve".to_owned(),
        HostHeader::Value(host) => String::from_utf8_lossy(host.as_bytes()).into_owned(),
    }
}

/// As it is written in a file.
fn word(value: &impl ValueEnum) -> Option<String> {
    value.to_possible_value().map(|value| value.get_name().to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use std::{io::Write as _, path::PathBuf};

    use tempfile::TempDir;

    use super::*;

    /// What is said of a project's file, a stored login and variables.
    fn report(project: &str, login: &str, variables: &[(&str, &str)]) -> (TempDir, Report) {
        let directory = TempDir::new().unwrap();
        let write = |name: &str, text: &str| -> Option<PathBuf> {
            let path = directory.path().join(name);
            crate::atomic::replace(&path, true, |new| new.write_all(text.as_bytes())).unwrap();
            Some(path)
        };
        let (project, login) = (write("relay.toml", project), write("login.toml", login));
        let places = Places { project, login, ..Places::default() };
        let report = Report::new(&places, |name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value))
        });
        (directory, report)
    }

    #[test]
    fn secrets_are_looked_for_and_not_shown() {
        let project = "secret = ['whsec_own', '@key.txt']\nset = { webhook_id = 'WH-1' }\n[tunnels.web]\nupstream = 3000\n\
                       [tunnels.api]\nupstream = 4000\nsecret = 'env:RELAY_SECRET_THAT_NOBODY_HAS_SET'\nverify = 'reject'\n";
        let (directory, report) = report(project, "relay = 'a.example'", &[("RELAY_SECRET", "@/nowhere/s.txt")]);
        let problems = report.problems.join("\n");
        let at = |line: usize| format!("{}:{line}", directory.path().join("relay.toml").display());
        for hint in
            ["RELAY_SECRET: @/nowhere/s.txt: ", &at(1), "key.txt: No such file", &at(7), "this variable is not set"]
        {
            assert!(problems.contains(hint), "{hint}: {problems}");
        }
        std::fs::write(directory.path().join("key.txt"), "whsec_other").unwrap();
        let file = directory.path().join("relay.toml");
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
        let places = Places { project: Some(file), ..Places::default() };
        let report = Report::new(&places, |_| None);
        assert_eq!(found(&report, "tunnels.web.secret"), (Some(HIDDEN.to_owned()), at(1)));
        assert_eq!(found(&report, "tunnels.web.verify"), (Some("warn".to_owned()), "default".to_owned()));
        assert!(report.warnings.concat().contains("relay.toml holds a secret"), "{:?}", report.warnings);
        let all = [report.show(Output::Text), report.show(Output::Json), format!("{report:?}")].concat();
        assert!(!all.contains("whsec") && !all.contains("WH-1"), "{all}");
    }

    fn found(report: &Report, setting: &str) -> (Option<String>, String) {
        let found = report.settings.iter().find(|found| found.setting == setting).unwrap();
        (found.value.clone(), found.from.clone())
    }

    #[test]
    fn each_value_has_a_place() {
        let login = "# stored\nrelay = 'a.example'\ntoken = 'rly_stored'\n";
        let (directory, report) =
            report("\nsubdomain = 'Hooks'\nhost_header = 'app.test'", login, &[("RELAY_TOKEN", "rly_own")]);
        assert_eq!((&report.problems, &report.warnings), (&vec![], &vec![]));
        let at = |file: &str, line: usize| format!("{}:{line}", directory.path().join(file).display());
        for (setting, value, from) in [
            ("relay", Some("https://a.example"), at("login.toml", 2)),
            ("token", Some("(not shown)"), "RELAY_TOKEN".to_owned()),
            ("relay_ca", None, "default".to_owned()),
            ("subdomain", Some("hooks"), at("relay.toml", 2)),
            ("host_header", Some("app.test"), at("relay.toml", 3)),
            ("upstream_protocol", Some("http1"), "default".to_owned()),
            ("output", Some("text"), "default".to_owned()),
        ] {
            assert_eq!(found(&report, setting), (value.map(str::to_owned), from), "{setting}");
        }
        let text = [report.show(Output::Text), report.show(Output::Json)].concat();
        assert!(!text.contains("rly_"), "{text}");
        assert!(text.contains("\nsubdomain          hooks  ") && text.contains("\"setting\":\"subdomain\""), "{text}");
    }

    #[test]
    fn tunnels_are_told_with_where_their_settings_come_from() {
        let project = "timeout = '5s'\nsubdomain = 'x'\n[tunnels.web]\nupstream = 3000\nhost_header = 'preserve'\n";
        let (directory, report) = report(project, "relay = 'a.example'", &[]);
        assert_eq!(report.problems, [""; 0]);
        let at = |line: usize| format!("{}:{line}", directory.path().join("relay.toml").display());
        for (key, value, from) in [
            ("upstream", Some("http://localhost:3000"), at(4)),
            ("subdomain", None, "default".to_owned()),
            ("timeout", Some("5s"), at(1)),
            ("host_header", Some("preserve"), at(5)),
            ("upstream_protocol", Some("http1"), "default".to_owned()),
        ] {
            assert_eq!(found(&report, &format!("tunnels.web.{key}")), (value.map(str::to_owned), from), "{key}");
        }
    }

    #[test]
    fn everything_wrong_is_told_at_once() {
        let variables = [("RELAY_URL", "ftp://x"), ("RELAY_CA_FILE", "/nowhere/ca.pem"), ("RELAY_TOKEN", "two words")];
        let (directory, report) = report("\nsubdomain = 'a.b'", "relai = 'x'", &variables);
        let problems = report.problems.join("\n");
        for file in ["relay.toml:2:13: ", "login.toml:1:1: "] {
            assert!(problems.contains(&directory.path().join(file).display().to_string()), "{file}: {problems}");
        }
        for hint in ["RELAY_URL: ", "RELAY_CA_FILE: ", "/nowhere/ca.pem", "RELAY_TOKEN: "] {
            assert!(problems.contains(hint), "{hint}: {problems}");
        }
        assert!(!problems.contains("two words"));
        let (_directory, empty) = super::tests::report("", "", &[("RELAY_URL", "")]);
        assert!(empty.problems[0].contains("unset"), "{:?}", empty.problems);
    }

    #[test]
    fn what_is_not_used_is_explained() {
        let login = "relay = 'a.example'\ntoken = 'rly_stored'\n";
        let (_directory, report) = report("", login, &[("RELAY_URL", "b.example")]);
        assert_eq!(found(&report, "token"), (None, "default".to_owned()));
        assert!(report.warnings[0].contains("login.toml:2"), "{:?}", report.warnings);
        let (_directory, nothing) = super::tests::report("", "", &[]);
        assert!(nothing.warnings[0].contains("relay login"), "{:?}", nothing.warnings);
    }
}
