//! `relay-server init`: what a new relay needs: a configuration, two DNS records, and a token.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use crate::config::{CertificateSource, Config, ConfigError, ServeArgs};
use crate::control::{Reply, Request};
use crate::dns::{self, PlaceError};
use crate::log::harmless;
use crate::store::{NewToken, TokenLimits};
use crate::token_cli::{CliError, Output, ask};

/// What is written, but for what was said on the command line.
const TEMPLATE: &str = include_str!("relay-server.toml");

/// The flags of `relay-server init`.
#[derive(Args, Clone, Debug)]
pub struct InitArgs {
    /// The file to write [default: relay-server.toml]
    #[arg(long, value_name = "FILE", env = "RELAY_SERVER_CONFIG")]
    pub config: Option<PathBuf>,
    /// The relay's own host name; tunnels live at *.DOMAIN
    #[arg(long, value_name = "DOMAIN", env = "RELAY_DOMAIN")]
    pub domain: String,
    /// Get and renew certificates by itself; EMAIL is told of trouble with them. By this you agree to the authority's terms
    #[arg(long, value_name = "EMAIL", required_unless_present = "cert", conflicts_with = "cert")]
    pub acme: Option<String>,
    /// Instead, a certificate chain (PEM) for DOMAIN and *.DOMAIN
    #[arg(long, value_name = "FILE", requires = "key")]
    pub cert: Option<PathBuf>,
    /// Its key (PEM)
    #[arg(long, value_name = "FILE", requires = "cert")]
    pub key: Option<PathBuf>,
    /// With --acme, have this name server take the record that proves the domain, by DNS updates (RFC 2136)
    #[arg(long, value_name = "SERVER", requires = "acme", conflicts_with = "dns_hook")]
    pub dns_update: Option<String>,
    /// The key for that (TSIG), as tsig-keygen writes it
    #[arg(long, value_name = "FILE", requires = "dns_update")]
    pub dns_update_key_file: Option<PathBuf>,
    /// With --acme, have this program set the record that proves the domain
    #[arg(long, value_name = "PROGRAM", requires = "acme")]
    pub dns_hook: Option<PathBuf>,
    /// Have tunnels at https://DOMAIN/t/NAME, for webhooks alone: with --acme, one address record is then enough
    #[arg(long)]
    pub path_mode: bool,
    /// The address under which the world reaches this machine, where it does not know it by itself; may be repeated
    #[arg(long, value_name = "IP")]
    pub public_ip: Vec<IpAddr>,
    /// Where tokens and names are kept [default: /var/lib/relay for root, else ~/.local/share/relay]
    #[arg(long, value_name = "DIR", env = "RELAY_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// What to call the first token: who or what will use it
    #[arg(long, value_name = "NAME", default_value = "first")]
    pub token: String,
    /// Write over a file that is there
    #[arg(long)]
    pub force: bool,
    /// For people, or one JSON object
    #[arg(long, value_name = "FORM", value_enum, default_value_t)]
    pub output: Output,
}

/// Why there is not everything that a new relay needs.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// Somebody has written a configuration already.
    #[error("{} is there already, and nothing was done: give --force to write over it, or another --config", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be written.
    #[error("cannot write {}: {error}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// What was said makes no configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The records would have no address.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The file is written, but there is no token.
    #[error("{} is written, but there is no token: {error}", path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// Why.
        error: CliError,
    },
    /// All is done and nobody was told.
    #[error("it was done, but the outcome could not be written to stdout: {0}")]
    Output(#[from] io::Error),
}

/// What was made. These fields are what scripts read: they are not renamed.
#[derive(Debug, Serialize)]
struct Made {
    /// The file.
    config: PathBuf,
    /// What the parent zone has to have.
    records: Vec<String>,
    /// The secret; none where there is a token of that name already.
    token: Option<String>,
    /// The command that comes next.
    serve: String,
}

/// Writes the file, makes the token, and says what is left to do.
///
/// # Errors
/// [`InitError`] says what is missing.
pub async fn run(args: &InitArgs) -> Result<(), InitError> {
    let path = args.config.clone().unwrap_or_else(|| "relay-server.toml".into());
    // What is wrong is known before anything is written.
    let config = resolve(args)?;
    let args = InitArgs { domain: config.domain.clone(), ..args.clone() };
    let public = dns::seen_as(&config.public_ips, config.https)?;
    let records = records(&config, &public);
    write(&path, &text(&args), args.force)?;
    let new =
        NewToken { name: args.token.clone(), reserve: Vec::new(), expires_at: None, limits: TokenLimits::default() };
    let directory = config.data_dir.as_deref().unwrap_or(Path::new(""));
    let (token, why) = match ask(directory, Request::CreateToken(new)).await {
        Ok(Reply::Created { secret, .. }) => (Some(secret.expose().to_owned()), None),
        // As when it is run again with --force: what is there goes on.
        Err(CliError::Refused { message }) => (None, Some(message)),
        Ok(_) => return Err(InitError::Token { path, error: CliError::Unexpected }),
        Err(error) => return Err(InitError::Token { path, error }),
    };
    let serve = format!("relay-server serve --config {}", path.display());
    show(&Made { config: path, records, token, serve }, why.as_deref(), args.output, &mut io::stdout().lock())?;
    Ok(())
}

/// What the server makes of it.
fn resolve(args: &InitArgs) -> Result<Config, ConfigError> {
    Config::resolve(&ServeArgs {
        domain: Some(args.domain.clone()),
        acme: args.acme.clone(),
        cert: args.cert.clone(),
        key: args.key.clone(),
        dns_update: args.dns_update.clone(),
        dns_update_key_file: args.dns_update_key_file.clone(),
        dns_hook: args.dns_hook.clone(),
        path_mode: args.path_mode,
        public_ip: args.public_ip.iter().map(IpAddr::to_string).collect(),
        data_dir: args.data_dir.clone(),
        ..ServeArgs::default()
    })
}

/// The file: the template, with what was said in the place of its examples.
fn text(args: &InitArgs) -> String {
    let list = args.public_ip.iter().map(IpAddr::to_string).collect::<Vec<_>>();
    // Whoever runs the relay may be somewhere else then.
    let path = |path: &Option<PathBuf>| {
        let path = path.as_ref().map(|path| std::path::absolute(path).unwrap_or_else(|_| path.clone()));
        path.map(|path| toml::Value::from(path.display().to_string()))
    };
    let said = [
        ("domain", Some(toml::Value::from(args.domain.clone()))),
        ("acme", args.acme.clone().map(toml::Value::from)),
        ("cert", path(&args.cert)),
        ("key", path(&args.key)),
        ("dns_update", args.dns_update.clone().map(toml::Value::from)),
        ("dns_update_key_file", path(&args.dns_update_key_file)),
        ("dns_hook", path(&args.dns_hook)),
        ("path_mode", args.path_mode.then_some(toml::Value::Boolean(true))),
        ("public_ip", Some(list).filter(|list| !list.is_empty()).map(toml::Value::from)),
        ("data_dir", path(&args.data_dir)),
    ];
    let line = |line: &str| {
        let key = line.trim_start_matches('#').split(" = ").next().unwrap_or_default();
        match said.iter().find(|(said, value)| *said == key && value.is_some()) {
            Some((key, Some(value))) => format!("{key} = {value}\n"),
            _ => format!("{line}\n"),
        }
    };
    let text: String = TEMPLATE.lines().map(line).collect();
    // An example that would be another machine's.
    text.replace("ns-relay.example.com", &dns::default_name(&args.domain))
}

/// The records: two that hand the domain over, or where others serve it those of the names themselves.
fn records(config: &Config, public: &[IpAddr]) -> Vec<String> {
    let own = match &config.certificate {
        CertificateSource::Acme(acme) => acme.dns.own(),
        CertificateSource::Files { .. } | CertificateSource::Development { .. } => None,
    };
    match own {
        Some(own) => dns::records(&config.domain, &own.name, public),
        None if config.path_mode => dns::address_records(&config.domain, public).collect(),
        None => dns::own_records(&config.domain, public),
    }
}

fn write(path: &Path, text: &str, force: bool) -> Result<(), InitError> {
    let failed = |error| InitError::Write { path: path.to_owned(), error };
    if force && path.exists() {
        // In its place, so that it stays readable by whom it was, and by nobody else.
        let written = OpenOptions::new().write(true).truncate(true).open(path).and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        });
        return written.map_err(failed);
    }
    let mut file = OpenOptions::new().create_new(true).write(true).open(path).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => InitError::Exists { path: path.to_owned() },
        _ => failed(error),
    })?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)
}

fn show(made: &Made, why: Option<&str>, output: Output, out: &mut impl Write) -> io::Result<()> {
    if output == Output::Json {
        return writeln!(out, "{}", serde_json::to_string(made).map_err(io::Error::from)?);
    }
    writeln!(out, "{} is written.\n\nSet these records where the domain's others are:\n", made.config.display())?;
    made.records.iter().try_for_each(|record| writeln!(out, "    {}", harmless(record)))?;
    let ports = if made.records.iter().any(|record| record.contains(" NS ")) { "53 (UDP and TCP), 443" } else { "443" };
    writeln!(out, "\nOpen ports {ports} and 80, then run the relay, and see whether the world reaches it:\n")?;
    writeln!(out, "    {}\n    {}", made.serve, made.serve.replace(" serve ", " doctor "))?;
    match (&made.token, why) {
        (Some(token), _) => writeln!(out, "\nThe first token, which is shown only this once:\n\n    {token}"),
        (None, why) => writeln!(out, "\nNo token was made: {}.", why.unwrap_or("the relay does not say why")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;
    use crate::config::{DnsConfig, FileConfig};
    use crate::limits::Limits;

    fn args(domain: &str) -> InitArgs {
        InitArgs {
            config: None,
            domain: domain.to_owned(),
            acme: Some("me@example.org".to_owned()),
            cert: None,
            key: None,
            dns_update: None,
            dns_update_key_file: None,
            dns_hook: None,
            path_mode: false,
            public_ip: vec!["198.51.100.4".parse().unwrap()],
            data_dir: Some("/d".into()),
            token: "first".to_owned(),
            force: false,
            output: Output::Text,
        }
    }

    fn read(text: &str) -> Result<Config, ConfigError> {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("relay-server.toml");
        std::fs::write(&path, text).unwrap();
        Config::resolve(&ServeArgs { config: Some(path), ..ServeArgs::default() })
    }

    /// Whether a line is a setting that is not in use.
    fn option(line: &str) -> Option<&str> {
        line.strip_prefix('#').filter(|rest| !rest.starts_with([' ', '#']) && !rest.is_empty())
    }

    #[test]
    fn what_is_written_is_what_was_said() {
        let config = read(&text(&args("hooks.example.net"))).unwrap();
        assert_eq!((config.domain.as_str(), config.data_dir.as_deref()), ("hooks.example.net", Some(Path::new("/d"))));
        assert_eq!(config.public_ips, ["198.51.100.4".parse::<IpAddr>().unwrap()]);
        let CertificateSource::Acme(acme) = &config.certificate else { panic!("{config:?}") };
        let server = &acme.dns.own().unwrap().name;
        assert_eq!((acme.email.as_str(), server.as_str()), ("me@example.org", "ns-hooks.example.net"));
        assert_eq!(
            records(&config, &config.public_ips),
            ["hooks.example.net. NS ns-hooks.example.net.", "ns-hooks.example.net. A 198.51.100.4"]
        );
        let files =
            InitArgs { acme: None, cert: Some("a\"b.pem".into()), key: Some("k.pem".into()), ..args("a.example") };
        let config = read(&text(&files)).unwrap();
        // As it is from wherever the relay is started.
        let there = std::env::current_dir().unwrap().join("a\"b.pem");
        assert!(matches!(&config.certificate, CertificateSource::Files { cert, .. } if *cert == there));
        assert_eq!(records(&config, &config.public_ips), ["a.example. A 198.51.100.4", "*.a.example. A 198.51.100.4"]);
        let paths = read(&text(&InitArgs { path_mode: true, ..args("a.example") })).unwrap();
        assert!(matches!(&paths.certificate, CertificateSource::Acme(acme) if acme.dns == DnsConfig::AtOurPort));
        assert_eq!(records(&paths, &paths.public_ips), ["a.example. A 198.51.100.4"]);
        let key_file = Some("tsig.key".into());
        let updates =
            InitArgs { dns_update: Some("192.0.2.1".into()), dns_update_key_file: key_file, ..args("a.example") };
        let updates = read(&text(&updates)).unwrap();
        assert!(matches!(&updates.certificate, CertificateSource::Acme(acme)
            if matches!(&acme.dns, DnsConfig::Updates(update) if update.key_file.is_some())));
        let hook = read(&text(&InitArgs { dns_hook: Some("/h".into()), ..args("a.example") })).unwrap();
        assert!(
            matches!(&hook.certificate, CertificateSource::Acme(acme) if matches!(acme.dns, DnsConfig::Hook { .. }))
        );
    }

    #[test]
    fn each_option_is_valid_when_it_is_taken_into_use() {
        let text = text(&args("relay.example.com"));
        let lines: Vec<&str> = text.lines().collect();
        let (mut seen, mut section) = (0, "");
        for (at, line) in lines.iter().enumerate() {
            let Some(set) = option(line) else { continue };
            if set.starts_with('[') {
                section = set;
                continue;
            }
            seen += 1;
            // Those that need each other stand together.
            let key = set.split(" = ").next().unwrap();
            let mut used = lines.clone();
            let together: &[&str] = match key {
                "cert" | "key" => &["cert", "key"],
                "acme_eab_kid" | "acme_eab_key_file" => &["acme_eab_kid", "acme_eab_key_file"],
                "proxy_protocol" => &["trusted_proxies"],
                "dns_update" | "dns_update_key_file" => &["dns_update", "dns_update_key_file"],
                _ if ["[alert]", "[traces]"].contains(&section) => &["url"],
                _ => &[],
            };
            let mut theirs = "";
            for (other, line) in lines.iter().enumerate() {
                let Some(set) = option(line) else { continue };
                theirs = if set.starts_with('[') { set } else { theirs };
                let its = set.split(" = ").next().unwrap();
                if other == at || set == section || (theirs == section && together.contains(&its)) {
                    used[other] = set;
                }
            }
            if together.contains(&"cert") {
                used.retain(|line| !line.starts_with("acme = "));
            }
            let read = read(&used.join("\n"));
            assert!(read.is_ok(), "{line}: {}", read.unwrap_err());
        }
        assert!(seen > 60, "{seen} options");
    }

    #[test]
    fn the_limits_are_those_of_the_code_and_of_the_page() {
        let text = text(&args("relay.example.com"));
        let (_, limits) = text.split_once("#[limits]\n").unwrap();
        let page = include_str!("../../../docs/configuration.md");
        let (_, page) = page.split_once("[limits]\n").unwrap();
        let (documented, _) = page.split_once("```").unwrap();
        let limits: String = limits.lines().map(|line| format!("{}\n", option(line).unwrap())).collect();
        assert_eq!(limits, documented);
        let config = read(&format!("domain = 'a.example'\nhttps = 'off'\n[limits]\n{limits}")).unwrap();
        assert_eq!(format!("{:?}", config.limits), format!("{:?}", Limits::default()));
    }

    #[test]
    fn every_setting_has_its_line() {
        // What the file can have is what the reader expects of one that it does not know.
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("relay-server.toml");
        std::fs::write(&path, "nobody_knows = 1\n").unwrap();
        let error = FileConfig::read(&path).unwrap_err().to_string();
        let (_, known) = error.split_once("expected one of ").unwrap();
        let known: Vec<&str> = known.split('`').skip(1).step_by(2).collect();
        assert!(known.len() > 20, "{error}");
        for key in known {
            let lines = [format!("#{key} = "), format!("{key} = "), format!("#[{key}]")];
            let there = TEMPLATE.lines().any(|line| lines.iter().any(|wanted| line.starts_with(wanted)));
            assert!(there, "{key} is not in the template");
        }
    }

    #[test]
    fn a_file_that_is_there_stays_unless_it_is_forced() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("relay-server.toml");
        write(&path, "one", false).unwrap();
        assert!(matches!(write(&path, "two", false), Err(InitError::Exists { .. })));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one");
        write(&path, "two", true).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "two");
        let nowhere = place.path().join("none/relay-server.toml");
        assert!(matches!(write(&nowhere, "one", false), Err(InitError::Write { .. })));
    }
}
