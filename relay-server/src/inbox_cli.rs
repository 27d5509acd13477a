//! `relay-server inbox …`: what the relay keeps of all tunnels, for the operator and for scripts.
//!
//! The words are those of `relay inbox`, by which the owner of a tunnel does the same over HTTPS.

use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use relay_protocol::inbox::api::{Done, Inbox, Inboxes, MAX_PAGE, Page, Webhook, Which, Whole};
use relay_protocol::inbox::lines::{Piece, Tone};
use relay_protocol::webhook::Table;
use serde::Serialize;
use tokio::time::{Instant, sleep};
use ulid::Ulid;

use crate::config::duration;
use crate::control::{Control, InboxRequest, Reply, Request};
use crate::log::harmless;
use crate::store::Name;
use crate::token_cli::{CliError, Output, ask};

/// How often is looked whether an inbox is empty.
const LOOK: Duration = Duration::from_millis(300);

/// Bytes of a body that are shown; all of them are exported.
const SHOWN: usize = 16 * 1024;

/// The flags of `relay-server inbox`.
#[derive(Args, Debug)]
pub struct InboxArgs {
    /// What is to be done; without it, all inboxes are listed
    #[command(subcommand)]
    pub command: Option<InboxCommand>,
    /// For people, or one JSON object per line
    #[arg(long, value_name = "FORM", value_enum, default_value_t, global = true)]
    pub output: Output,
}

/// What can be done with inboxes.
#[derive(Debug, Subcommand)]
pub enum InboxCommand {
    /// List all inboxes, or the webhooks of one, the newest last
    List {
        /// The tunnel's name
        name: Option<Name>,
        /// Only those that wait, were delivered, or are dead letters
        #[arg(long, value_name = "STATE", value_enum, requires = "name")]
        state: Option<InboxState>,
        /// So many at most
        #[arg(long, value_name = "NUMBER", default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=1000))]
        limit: u16,
    },
    /// Show one with its attempts, headers and body
    Show {
        /// The tunnel's name
        name: Name,
        /// The webhook's id
        id: Ulid,
        /// What happens to Authorization, cookies and what else lets somebody in
        #[arg(long, value_name = "mask|show", value_enum, default_value_t, hide_possible_values = true)]
        secrets: Secrets,
    },
    /// Try webhooks again at once; dead letters wait again
    Retry {
        /// The tunnel's name
        name: Name,
        /// Which ones.
        #[command(flatten)]
        which: WhichArgs,
    },
    /// Forget webhooks
    Drop {
        /// The tunnel's name
        name: Name,
        /// Which ones.
        #[command(flatten)]
        which: WhichArgs,
    },
    /// Deliver nothing for now; what comes is kept
    Pause {
        /// The tunnel's name
        name: Name,
    },
    /// Deliver again
    Resume {
        /// The tunnel's name
        name: Name,
    },
    /// Resume, have all that wait tried at once, and wait until none is left; exit code 1 where one became a dead letter
    Drain {
        /// The tunnel's name
        name: Name,
        /// For so long at most
        #[arg(long, value_name = "TIME", default_value = "5m", value_parser = within)]
        within: Duration,
    },
    /// Write one as a raw HTTP request, which `relay verify` and `relay send` read
    Export {
        /// The tunnel's name
        name: Name,
        /// The webhook's id
        id: Ulid,
    },
    /// Close an inbox: the tunnel is live again, and what is in it is forgotten
    Close {
        /// The tunnel's name
        name: Name,
    },
}

/// What happens to what lets somebody in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Secrets {
    /// Something else stands in its place.
    #[default]
    Mask,
    /// It is shown.
    Show,
}

/// Which webhooks are meant.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub struct WhichArgs {
    /// Those of these ids
    #[arg(value_name = "ID")]
    pub ids: Vec<Ulid>,
    /// All that wait, were delivered, or are dead letters
    #[arg(long, value_name = "STATE", value_enum)]
    pub all: Option<InboxState>,
}

impl From<WhichArgs> for Which {
    fn from(WhichArgs { ids, all }: WhichArgs) -> Self {
        match all {
            Some(state) => Self::All(state.word()),
            None => Self::Ids(ids.iter().map(Ulid::to_string).collect()),
        }
    }
}

/// Where a webhook is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum InboxState {
    /// To be delivered
    Waiting,
    /// The app has answered
    Delivered,
    /// Given up
    Dead,
}

impl InboxState {
    fn word(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

fn within(text: &str) -> Result<Duration, String> {
    duration("--within", text).map_err(|error| error.to_string())
}

/// Carries out a command on the relay whose data directory this is.
///
/// # Errors
///
/// [`CliError`] says what was not done, and why.
pub async fn run(args: InboxArgs, data_dir: &Path) -> Result<(), CliError> {
    match run_to(args, data_dir, &mut io::stdout(), &mut io::stderr()).await {
        // Whoever reads has seen enough.
        Err(CliError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => done,
    }
}

async fn run_to(
    InboxArgs { command, output }: InboxArgs,
    data_dir: &Path,
    out: &mut impl Write,
    talk: &mut impl Write,
) -> Result<(), CliError> {
    let relay = Relay { data_dir };
    match command.unwrap_or(InboxCommand::List { name: None, state: None, limit: 50 }) {
        InboxCommand::List { name: None, .. } => {
            let Reply::Inboxes(Inboxes { inboxes }) = relay.ask(InboxRequest::List).await? else {
                return Err(CliError::Unexpected);
            };
            if inboxes.is_empty() {
                writeln!(talk, "There are no inboxes; `relay-server token reserve TOKEN NAME --inbox` opens one.")?;
            }
            write_all(out, output, &inboxes, |inbox| inbox.line(moment))?;
        }
        InboxCommand::List { name: Some(name), state, limit } => {
            let state = state.map(InboxState::word);
            let (inbox, mut webhooks) = relay.list(&name, state.as_deref(), limit.into()).await?;
            if webhooks.is_empty() {
                let state = state.map(|state| state + " ").unwrap_or_default();
                writeln!(talk, "No {state}webhook is in the inbox {name}.")?;
            }
            webhooks.reverse();
            write_all(out, output, &webhooks, |webhook| webhook.line(moment))?;
            if output == Output::Text {
                write_all(out, output, &[inbox], |inbox| inbox.line(moment))?;
            }
        }
        InboxCommand::Show { name, id, secrets } => {
            let mut whole = relay.webhook(&name, id).await?;
            if secrets == Secrets::Mask {
                let table = Table::built_in()?;
                let provider = whole.webhook.provider.clone().and_then(|id| table.get(&id));
                whole.mask(provider.map(AsRef::as_ref));
            }
            match output {
                Output::Json => write_all(out, output, &[whole], |_| Vec::new())?,
                Output::Text => write_whole(out, &whole)?,
            }
        }
        InboxCommand::Export { name, id } => {
            let whole = relay.webhook(&name, id).await?;
            let body = whole.body().ok_or(CliError::Gone)?;
            write_head(out, &whole)?;
            out.write_all(&body)?;
        }
        InboxCommand::Retry { name, which } => {
            let done = relay.done(InboxRequest::Retry { inbox: name.to_string(), which: which.into() }).await?;
            write_all(out, output, &[some(done, name)?], of_done)?;
        }
        InboxCommand::Drop { name, which } => {
            let done = relay.done(InboxRequest::Drop { inbox: name.to_string(), which: which.into() }).await?;
            write_all(out, output, &[some(done, name)?], of_done)?;
        }
        InboxCommand::Pause { name } => {
            write_all(out, output, &[relay.pause(&name, true).await?], |inbox| inbox.line(moment))?
        }
        InboxCommand::Resume { name } => {
            write_all(out, output, &[relay.pause(&name, false).await?], |inbox| inbox.line(moment))?
        }
        InboxCommand::Drain { name, within } => {
            let (inbox, died) = relay.drain(&name, within, talk).await?;
            write_all(out, output, &[inbox], |inbox| inbox.line(moment))?;
            if died > 0 {
                return Err(CliError::Died { count: died, name });
            }
        }
        InboxCommand::Close { name } => {
            let done = relay.done(InboxRequest::Close { inbox: name.to_string() }).await?;
            writeln!(talk, "The inbox {name} is closed; a client that asks for one opens it anew.")?;
            write_all(out, output, &[done], of_done)?;
        }
    }
    Ok(out.flush()?)
}

/// What was done, if it was anything.
fn some(done: Done, name: Name) -> Result<Done, CliError> {
    if done.count == 0 { Err(CliError::Nothing(name)) } else { Ok(done) }
}

/// The relay that a data directory belongs to, or the directory itself.
struct Relay<'a> {
    data_dir: &'a Path,
}

impl Relay<'_> {
    async fn ask(&self, request: InboxRequest) -> Result<Reply, CliError> {
        ask(self.data_dir, Request::Inbox(request)).await
    }

    async fn page(
        &self,
        name: &Name,
        state: Option<&str>,
        before: Option<String>,
        limit: usize,
    ) -> Result<Page, CliError> {
        let (inbox, state) = (name.to_string(), state.map(str::to_owned));
        match self.ask(InboxRequest::Page { inbox, state, before, limit }).await? {
            Reply::Webhooks(page) => Ok(page),
            _ => Err(CliError::Unexpected),
        }
    }

    /// An inbox, and so many of its webhooks, the newest first: as many pages as that takes.
    async fn list(&self, name: &Name, state: Option<&str>, most: usize) -> Result<(Inbox, Vec<Webhook>), CliError> {
        let Page { inbox, mut webhooks, mut next } = self.page(name, state, None, most.min(MAX_PAGE)).await?;
        while next.is_some() && webhooks.len() < most {
            let page = self.page(name, state, next, (most - webhooks.len()).min(MAX_PAGE)).await?;
            next = page.next.filter(|_| !page.webhooks.is_empty());
            webhooks.extend(page.webhooks);
        }
        Ok((inbox, webhooks))
    }

    async fn webhook(&self, name: &Name, id: Ulid) -> Result<Whole, CliError> {
        match self.ask(InboxRequest::Show { inbox: name.to_string(), id: id.to_string() }).await? {
            Reply::Webhook(whole) => Ok(*whole),
            _ => Err(CliError::Unexpected),
        }
    }

    async fn pause(&self, name: &Name, paused: bool) -> Result<Inbox, CliError> {
        match self.ask(InboxRequest::Pause { inbox: name.to_string(), paused }).await? {
            Reply::Inbox(inbox) => Ok(inbox),
            _ => Err(CliError::Unexpected),
        }
    }

    async fn done(&self, request: InboxRequest) -> Result<Done, CliError> {
        match self.ask(request).await? {
            Reply::Done(done) => Ok(done),
            _ => Err(CliError::Unexpected),
        }
    }

    /// Has everything tried at once, and waits until nothing waits. Also tells how many became dead letters.
    async fn drain(&self, name: &Name, within: Duration, talk: &mut impl Write) -> Result<(Inbox, u64), CliError> {
        if !Control::open(self.data_dir).await?.is_running() {
            return Err(CliError::NotRunning { directory: self.data_dir.to_owned() });
        }
        let until = Instant::now() + within;
        let Page { inbox: before, .. } = self.page(name, None, None, 1).await?;
        if before.paused {
            self.pause(name, false).await?;
            writeln!(talk, "The inbox {name} was paused, and delivers again.")?;
        }
        let which = Which::All(InboxState::Waiting.word());
        self.done(InboxRequest::Retry { inbox: name.to_string(), which }).await?;
        loop {
            let Page { inbox, .. } = self.page(name, None, None, 1).await?;
            match inbox.waiting {
                0 => {
                    let died = inbox.dead.saturating_sub(before.dead);
                    return Ok((inbox, died));
                }
                left if Instant::now() >= until => return Err(CliError::Waits { left, name: name.clone() }),
                _ => sleep(LOOK).await,
            }
        }
    }
}

// ---- lines -----------------------------------------------------------------------------------------

fn write_all<T: Serialize>(
    out: &mut impl Write,
    output: Output,
    list: &[T],
    line: impl Fn(&T) -> Vec<Piece<'_>>,
) -> io::Result<()> {
    list.iter().try_for_each(|one| match output {
        Output::Json => writeln!(out, "{}", serde_json::to_string(one).map_err(io::Error::from)?),
        Output::Text => {
            let line: Vec<_> = line(one).into_iter().map(|piece| piece.text).collect();
            writeln!(out, "{}", harmless(&line.join("  ")))
        }
    })
}

/// Times as they are told: an operator's scripts and logs are in UTC, too.
fn moment(at: &str) -> String {
    at.to_owned()
}

fn of_done(done: &Done) -> Vec<Piece<'_>> {
    vec![Piece { text: done.count.to_string().into(), tone: Tone::Plain }]
}

/// A webhook as a person may see it.
fn write_whole(out: &mut impl Write, whole: &Whole) -> io::Result<()> {
    write_all(out, Output::Text, std::slice::from_ref(&whole.webhook), |webhook| webhook.line(moment))?;
    write_all(out, Output::Text, &whole.tried, |tried| tried.line(moment))?;
    let mut head = Vec::new();
    write_head(&mut head, whole)?;
    writeln!(out)?;
    write_text(out, &head)?;
    let Some(body) = whole.body() else { return writeln!(out, "(the body is not kept any more)") };
    match std::str::from_utf8(&body) {
        Ok(text) if text.len() <= SHOWN && !text.contains('\0') => write_text(out, text.as_bytes()),
        _ => writeln!(out, "({} bytes; relay-server inbox export writes them)", whole.webhook.size),
    }
}

/// A request line and header lines as a file has them, and the empty line behind them.
fn write_head(out: &mut impl Write, whole: &Whole) -> io::Result<()> {
    writeln!(out, "{} {} HTTP/1.1", whole.webhook.method, whole.webhook.path)?;
    for (name, value) in whole.header_list() {
        out.write_all(&[name.as_str().as_bytes(), b": ", value.as_bytes(), b"\n"].concat())?;
    }
    writeln!(out)
}

/// Lines of a stranger's.
fn write_text(out: &mut impl Write, text: &[u8]) -> io::Result<()> {
    String::from_utf8_lossy(text).lines().try_for_each(|line| writeln!(out, "{}", harmless(line)))
}
