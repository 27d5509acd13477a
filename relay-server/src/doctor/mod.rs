//! `relay-server doctor`: what is wrong between the world and the relay, from the outside in, and what mends it.
//!
//! ```text
//!   names ─▶ the challenge ─▶ ports ─▶ certificate ─▶ clock ─▶ disk ─▶ the connect endpoint ─▶ a tunnel through its own public URL
//! ```
//!
//! It reads what `serve` reads, asks the relay that runs on the data directory, and looks from this machine: at name servers
//! of others, and at its own public URL. Where none runs, it says what can be said without one. Each check is a file.

mod certificate;
mod challenge;
mod clock;
mod disk;
mod endpoint;
mod finding;
mod handshake;
mod holder;
mod names;
mod patient;
mod ports;
mod trial;
mod tunnel;

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;

use self::finding::{Finding, Verdict};
use self::patient::Patient;
use crate::config::{Config, ConfigError, ServeArgs};
use crate::outgoing::OutgoingError;
use crate::token_cli::Output;

/// The flags of `relay-server doctor`.
#[derive(Args, Clone, Debug)]
pub struct DoctorArgs {
    /// What `serve` is given.
    #[command(flatten)]
    pub serve: ServeArgs,
    /// Trust these roots (PEM), too, because clients are given them with their --relay-ca
    #[arg(long, value_name = "FILE")]
    pub relay_ca: Option<PathBuf>,
    /// For people, or one JSON object per line
    #[arg(long, value_name = "FORM", value_enum, default_value_t)]
    pub output: Output,
}

/// Why nothing could be looked at.
#[derive(Debug, thiserror::Error)]
pub enum DoctorError {
    /// Flags or file.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Whom to trust.
    #[error(transparent)]
    Roots(#[from] OutgoingError),
    /// Nobody hears of it.
    #[error("cannot write to stdout: {0}")]
    Output(#[from] io::Error),
}

/// Looks at everything, and tells each finding as soon as it is there. How many things are wrong.
///
/// # Errors
/// [`DoctorError`] where nothing could be looked at.
pub async fn run(args: &DoctorArgs) -> Result<usize, DoctorError> {
    let patient = Patient::new(Config::resolve(&args.serve)?, args.relay_ca.as_deref()).await?;
    let mut told = Told { output: args.output, wrong: 0, unknown: 0 };
    told.all([patient.relay()])?;
    told.all(names::check(&patient).await)?;
    told.all(challenge::check(&patient).await)?;
    told.all(ports::check(&patient).await)?;
    told.all(certificate::check(&patient).await)?;
    told.all([clock::check(&patient).await])?;
    told.all(disk::check(&patient).await)?;
    let (endpoint, session) = endpoint::check(&patient).await;
    told.all([endpoint])?;
    told.all([tunnel::check(&patient, session).await])?;
    let Told { wrong, unknown, .. } = told;
    match (wrong, unknown) {
        (0, 0) => eprintln!("Nothing is wrong."),
        (0, _) => eprintln!("Nothing is wrong as far as it can be told: {unknown} could not."),
        _ => eprintln!("{wrong} wrong; {unknown} could not be told."),
    }
    Ok(wrong)
}

/// What was found so far.
struct Told {
    output: Output,
    wrong: usize,
    unknown: usize,
}

impl Told {
    fn all(&mut self, findings: impl IntoIterator<Item = Finding>) -> io::Result<()> {
        let mut out = io::stdout().lock();
        for finding in findings {
            match finding.verdict {
                Verdict::Ok | Verdict::Note => {}
                Verdict::Wrong => self.wrong += 1,
                Verdict::Unknown => self.unknown += 1,
            }
            finding.write(&mut out, self.output)?;
        }
        out.flush()
    }
}
