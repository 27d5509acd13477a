//! `relay start`: the tunnels of the configuration file over one session, which change with the file.
//!
//! ```text
//!   files ── changed, and at rest ──▶ read ── right ──▶ the client's tunnels
//!                                        └── wrong ──▶ said, and nothing changes
//! ```

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tokio::time::{MissedTickBehavior, interval};

use crate::cli::{OpenArgs, ServiceArgs, StartArgs};
use crate::client::ClientError;
use crate::commands::open;
use crate::config::{ConfigError, Files, NamedTunnel, Places, Settings, ShowSettings};
use crate::event::Event;
use crate::options::TunnelOptions;
use crate::session::dial::TargetError;
use crate::session::probe::Probe;
use crate::terminal::screen::Screen;

/// How often the files are looked at. Looking is asking for their time and their size.
const PERIOD: Duration = Duration::from_millis(500);

/// Why `relay start` did not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The relay's CA cannot be used.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The session ended.
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// What was typed, and what holds.
#[derive(Debug)]
pub struct Start {
    args: StartArgs,
    places: Places,
    settings: Settings,
    tunnels: Vec<NamedTunnel>,
    /// The files as they were read.
    stamp: Stamp,
}

impl Start {
    /// Reads the files and decides what holds. Returns what the files say besides, too.
    ///
    /// # Errors
    /// Where a file is wrong, or has no tunnel of a name that was typed.
    pub fn new(args: StartArgs, places: Places) -> Result<(Self, Files), ConfigError> {
        let stamp = Stamp::of(&places);
        let mut files = Files::load(&places)?;
        let settings = settings(&args, &mut files)?;
        let tunnels = files.tunnels(&args.names)?;
        Ok((Self { args, places, settings, tunnels, stamp }, files))
    }

    /// What is printed.
    pub fn show(&self) -> &ShowSettings {
        &self.settings.show
    }

    /// Runs until `shutdown` ends.
    ///
    /// # Errors
    /// [`StartError`] says what is in the way.
    pub async fn run(self, screen: Screen, shutdown: impl Future<Output = ()>) -> Result<(), StartError> {
        let mut client = open::without_tunnel(self.settings.clone())?;
        for options in self.options(self.tunnels.clone()) {
            client = client.tunnel(options);
        }
        let client = screen.prove(client, Probe::new());
        let tunnels = client.tunnels();
        let mut observer = screen.clone();
        let mut of_files = labels(&tunnels.borrow());
        let follow = self.follow(&screen, |wanted| {
            let before = std::mem::replace(&mut of_files, labels(&wanted));
            tunnels.send_modify(|all| {
                // Those that were added through the inspector's API stay.
                all.retain(|other| !before.contains(&other.label) && !of_files.contains(&other.label));
                all.extend(wanted);
            });
        });
        tokio::select! {
            result = client.run(&mut observer, shutdown) => Ok(result?),
            never = follow => match never {},
        }
    }

    /// Reads the files anew whenever they have changed.
    async fn follow(&self, screen: &Screen, mut change: impl FnMut(Vec<TunnelOptions>)) -> std::convert::Infallible {
        let mut tick = interval(PERIOD);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut read, mut seen) = (self.stamp.clone(), self.stamp.clone());
        loop {
            tick.tick().await;
            let now = Stamp::of(&self.places);
            // Not while somebody still writes.
            if now == seen && now != read {
                read = now.clone();
                match self.read() {
                    Ok((settings, tunnels)) => {
                        if self.settings.session() != settings.session() {
                            screen.show(&Event::Notice(RESTART));
                        }
                        screen.show(&Event::Notice("the configuration was read again"));
                        change(self.options(tunnels));
                    }
                    Err(error) => screen.show(&Event::Rejected { reason: &error.to_string() }),
                }
            }
            seen = now;
        }
    }

    /// What the files say now. A tunnel that was named and whose table has gone is one that has gone.
    fn read(&self) -> Result<(Settings, Vec<NamedTunnel>), ConfigError> {
        let mut files = Files::load(&self.places)?;
        let settings = settings(&self.args, &mut files)?;
        let mut tunnels = files.tunnels(&[])?;
        tunnels.retain(|tunnel| self.args.names.is_empty() || self.args.names.contains(&tunnel.label));
        if tunnels.is_empty() { Err(ConfigError::NoTunnel) } else { Ok((settings, tunnels)) }
    }

    fn options(&self, tunnels: Vec<NamedTunnel>) -> Vec<TunnelOptions> {
        let takeover = self.args.session.takeover;
        let options =
            |tunnel: NamedTunnel| open::options(Some(tunnel.label), tunnel.upstream.into(), tunnel.settings, takeover);
        tunnels.into_iter().map(options).collect()
    }
}

fn labels(tunnels: &[TunnelOptions]) -> Vec<Option<String>> {
    tunnels.iter().map(|tunnel| tunnel.label.clone()).collect()
}

const RESTART: &str =
    "the relay, the token or the way to the relay has changed in the configuration; that takes a restart";

fn settings(args: &StartArgs, files: &mut Files) -> Result<Settings, ConfigError> {
    let open = OpenArgs { session: args.session.clone(), ..OpenArgs::default() };
    Settings::new(open, ServiceArgs::default(), files)
}

/// Which files there are, and how they were left. An editor that puts a new file in the place of the old one changes it as
/// much as one that writes into it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamp(Vec<Option<(Option<SystemTime>, u64, u64)>>);

impl Stamp {
    fn of(places: &Places) -> Self {
        let all = [&places.only, &places.project, &places.user, &places.login];
        Self(all.into_iter().map(|place: &Option<PathBuf>| stamp(place.as_deref()?)).collect())
    }
}

fn stamp(file: &Path) -> Option<(Option<SystemTime>, u64, u64)> {
    let data = std::fs::metadata(file).ok()?;
    Some((data.modified().ok(), data.len(), crate::platform::file_number(&data)))
}
