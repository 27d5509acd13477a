//! `relay requests`: what clients on this machine have forwarded, newest last.

use std::io;
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use tokio::time::sleep;

use crate::capture::exchange::{Summary, timestamp};
use crate::capture::history::{FindError, History, Query};
use crate::capture::store::{Place, StoreError};
use crate::capture::{Since, unix_now};
use crate::cli::RequestsArgs;
use crate::control::{Ask, Found, PATIENCE, ask_all};
use crate::terminal::{self, Part, RED, Style, compact, json_line, line_of, outcome_colour, tell};
use crate::value::Output;

/// How often is looked whether others have come.
const LOOK: Duration = Duration::from_millis(200);

/// Why the history is not shown.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// It is not to be had.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What is asked for is not in it.
    #[error(transparent)]
    Find(#[from] FindError),
    /// There is no place for it.
    #[error("the history is kept in XDG_STATE_HOME or below the home directory, and neither is known; set HOME")]
    Homeless,
    /// What was cleared may not be all.
    #[error("the client of process {pid} {why}: what it still has may come again; end it, and clear once more")]
    NotCleared {
        /// The client's process.
        pid: u32,
        /// What it does instead of an answer.
        why: String,
    },
    /// It cannot be printed.
    #[error("cannot write to standard output: {0}")]
    Output(#[from] io::Error),
}

/// The history with everything that has ended by now.
///
/// # Errors
/// [`HistoryError::Homeless`].
pub(crate) async fn open() -> Result<History, HistoryError> {
    // Whoever cannot be asked has nothing to add.
    let _ = ask_all(&Ask::Stored, PATIENCE).await;
    stored()
}

/// The history as it is.
fn stored() -> Result<History, HistoryError> {
    Ok(History::of(Place::of_user().ok_or(HistoryError::Homeless)?))
}

/// Removes everything from the file and from the memory of running clients.
async fn clear() -> Result<(), HistoryError> {
    let asked = ask_all(&Ask::Clear, PATIENCE).await.unwrap_or_default();
    let count = stored()?.clear()?;
    quietly(terminal::print(format!("{count}\n").as_bytes()))?;
    let silent = asked.into_iter().find_map(|found| match found {
        Found::Silent { pid, why } => Some(HistoryError::NotCleared { pid, why }),
        Found::Answers(_) => None,
    });
    silent.map_or(Ok(()), Err)
}

/// Lists requests, or removes them.
///
/// # Errors
/// [`HistoryError`].
pub async fn run(args: RequestsArgs) -> Result<(), HistoryError> {
    if args.clear {
        return clear().await;
    }
    let history = open().await?;
    let RequestsArgs { provider, event_type, status, path, method, tunnel, verdict, text, .. } = args;
    let mut query = Query { provider, event_type, status, path, method, tunnel, verdict, text, ..Query::default() };
    match args.since {
        None | Some(Since::Start) => {}
        Some(Since::Now) => query.since_ms = Some(unix_now()),
        Some(Since::Time { at_ms }) => query.since_ms = Some(at_ms),
        Some(Since::Id { id }) => query.after = Some(id),
    }
    let mut screen = Screen::new(args.output);
    // First what was the last one, so that none is left out.
    let mut last = history.last_stored()?;
    let mut found = history.list(&query, args.limit as usize)?;
    found.reverse();
    if found.is_empty() && !args.follow {
        tell(match last {
            0 => "no request was kept yet; clients do that unless they run with --inspect off",
            _ => "no such request is in the history",
        });
    }
    screen.show(&found)?;
    while args.follow && !screen.is_closed {
        sleep(LOOK).await;
        (last, found) = history.stored_after(last, &query)?;
        screen.show(&found)?;
    }
    Ok(())
}

/// Nobody reads any more: no failure.
pub(crate) fn quietly(printed: io::Result<()>) -> Result<(), HistoryError> {
    match printed {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Where the list goes.
struct Screen {
    output: Output,
    style: Style,
    zone: TimeZone,
    is_closed: bool,
}

impl Screen {
    fn new(output: Output) -> Self {
        Self { output, style: Style::of_stdout(), zone: TimeZone::system(), is_closed: false }
    }

    fn show(&mut self, list: &[Summary]) -> Result<(), HistoryError> {
        let mut text = Vec::new();
        for summary in list {
            match self.output {
                Output::Json => text.extend_from_slice(json_line(summary).as_bytes()),
                Output::Text => text.extend(line_of(&parts(summary, &self.zone), self.style)),
            }
        }
        if text.is_empty() {
            return Ok(());
        }
        let printed = terminal::print(&text);
        self.is_closed = printed.is_err();
        quietly(printed)
    }
}

/// When, in a person's zone: the time of a day, which is said where it is not today.
pub(crate) fn when(at_ms: u64, zone: &TimeZone) -> String {
    let (at, now) = (timestamp(at_ms).to_zoned(zone.clone()), Timestamp::now().to_zoned(zone.clone()));
    if at.date() == now.date() {
        format!("{}", at.strftime("%H:%M:%S"))
    } else {
        format!("{}", at.strftime("%Y-%m-%d %H:%M:%S"))
    }
}

fn parts(summary: &Summary, zone: &TimeZone) -> Vec<Part> {
    let Summary { id, at_ms, method, path, status, error, duration_ms, verdict, .. } = summary;
    let colour = outcome_colour(*status);
    let outcome = status.map_or_else(|| "---".to_owned(), |status| status.to_string());
    let mut parts = vec![
        Part::plain(id.clone()),
        Part::plain(when(*at_ms, zone)),
        Part { text: outcome, colour },
        Part::plain(format!("{:>8}", duration_ms.map(compact).unwrap_or_default())),
    ];
    parts.extend(error.clone().map(|text| Part { text, colour: RED }));
    parts.push(Part::plain(format!("{method:<4} {path}")));
    parts.extend(event(summary).map(Part::plain));
    let verdict = verdict.map(|verdict| verdict.as_str().replace('_', " "));
    parts.extend(verdict.map(|text| Part { colour: if text == "valid" { "" } else { RED }, text }));
    parts.extend(summary.inbox_attempt.map(|attempt| {
        let text = if attempt > 1 { format!("redelivered, attempt {attempt}") } else { "from the inbox".to_owned() };
        Part::plain(text)
    }));
    parts.extend(summary.replay_of.as_ref().map(|id| Part::plain(format!("replay of {id}"))));
    parts
}

/// Who has sent what, as far as that is known.
pub(crate) fn event(summary: &Summary) -> Option<String> {
    let provider = summary.provider_name.as_deref().or(summary.provider.as_deref());
    let words: Vec<_> = [provider, summary.event_type.as_deref()].into_iter().flatten().collect();
    Some(words.join(" ")).filter(|words| !words.is_empty())
}
