//! The relay against nginx, on this machine, in one run: `cargo bench -p relay-tests [-- NAME… --rounds N]`.
//!
//! ```text
//!   load (wrk, our own callers) ──TLS──▶ nginx ───────────────────────────────▶ origin
//!                               ──TLS──▶ relay-server ──wss──▶ relay http ────▶ the same origin
//! ```
//!
//! How to read the table stands in `tests/benches/README.md`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a bench that cannot go on ends at once and says where"
)]

mod inbox;
mod load;
mod measures;
mod table;
mod world;

use std::process::ExitCode;
use std::time::Instant;

use measures::MEASURES;
use table::Table;
use world::World;

/// What goes wrong is told to a person, and ends the measurement that it happened in.
type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// What was asked for.
struct Args {
    names: Vec<String>,
    rounds: usize,
    sessions: usize,
    waiting: usize,
}

fn main() -> ExitCode {
    let args = match Args::parse(std::env::args().skip(1)) {
        Ok(Some(args)) => args,
        Ok(None) => return ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    match run(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Measures, and prints the table; whether everything could be measured.
fn run(args: &Args) -> Result<bool> {
    let mut world = World::new(args.sessions, args.waiting)?;
    let mut table = Table::default();
    let chosen = || MEASURES.iter().filter(|m| args.names.is_empty() || args.names.iter().any(|name| name == m.name));
    println!("{}", world::machine());
    for round in 0..args.rounds {
        // Whoever goes first finds a colder machine, so the two take turns.
        world.nginx_first = round % 2 == 0;
        for measure in chosen() {
            let begun = Instant::now();
            eprint!("[{}/{}] {} … ", round + 1, args.rounds, measure.name);
            match (measure.run)(&world, &mut table) {
                Ok(()) => eprintln!("{:.0} s", begun.elapsed().as_secs_f64()),
                Err(error) => {
                    eprintln!("failed: {error}");
                    table.failed(measure.name, error.to_string());
                }
            }
        }
    }
    println!("\n{table}");
    Ok(table.is_whole())
}

impl Args {
    /// `None` where there is nothing to run.
    fn parse(given: impl Iterator<Item = String>) -> std::result::Result<Option<Self>, String> {
        let mut args = Self { names: Vec::new(), rounds: 1, sessions: 10_000, waiting: 100_000 };
        let (mut given, mut bench) = (given, false);
        while let Some(arg) = given.next() {
            let mut number = || given.next().and_then(|n| n.parse().ok()).filter(|n| *n > 0);
            match arg.as_str() {
                "--bench" => bench = true,
                "--rounds" => args.rounds = number().ok_or("--rounds takes a number, as in --rounds 3")?,
                "--sessions" => args.sessions = number().ok_or("--sessions takes a number, as in --sessions 5000")?,
                "--waiting" => args.waiting = number().ok_or("--waiting takes a number, as in --waiting 1000000")?,
                "--help" | "-h" => {
                    let usage = "cargo bench -p relay-tests -- [NAME…] [--rounds N] [--sessions N] [--waiting N]";
                    println!("{usage}\n\n{}", names());
                    return Ok(None);
                }
                name if MEASURES.iter().any(|m| m.name == name) => args.names.push(arg),
                _ => return Err(format!("{arg:?} is not the name of a measurement. There are:\n{}", names())),
            }
        }
        if !bench {
            println!("Nothing is measured in a build for tests; use `cargo bench -p relay-tests`.");
            return Ok(None);
        }
        Ok(Some(args))
    }
}

fn names() -> String {
    MEASURES.iter().map(|m| format!("  {:8} {}\n", m.name, m.about)).collect()
}
