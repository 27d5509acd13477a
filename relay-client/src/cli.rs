//! The command line: what can be typed, and what the exit codes mean.
//!
//! These types hold what was typed, no more; [`crate::config`] decides what holds.

use std::{ffi::OsString, net::SocketAddr, num::NonZeroU32, path::PathBuf, process::ExitCode, time::Duration};

use clap::builder::{PathBufValueParser, TypedValueParser as _};
use clap::error::{ContextKind, ContextValue};
use clap::{Args, Parser, Subcommand};
use http::{HeaderName, HeaderValue, Method, StatusCode};
use jiff::Timestamp;
use relay_protocol::network::Network;
use relay_protocol::webhook::{Credentials, Verdict, Verify};

use crate::access::{CaFile, KeySource};
use crate::capture::Since;
use crate::capture::export::Form;
use crate::capture::filter::{self, HeaderPattern, JsonPattern, PathPattern, StatusPattern};
use crate::capture::replay::Resign;
use crate::intake::faults::Faults;
use crate::platform::Signal;
use crate::secret::{SecretError, SecretSource};
use crate::session::dial::RelayUrl;
use crate::upstream::address::{HostPort, UpstreamAddr};
use crate::upstream::rewrite::HostHeader;
use crate::value::{
    InboxChoice, Inspect, Output, Secret, UpstreamProtocol, byte_count, domain, duration, final_status, header, inbox,
    inspect, listen_address, public_name, replaceable, request_path, setting, size, subdomain, unix_time, web_url,
    webhook_id,
};
use crate::webhooks::VerifyAt;

/// A public HTTPS URL for a service on this machine.
#[derive(Debug, Parser)]
#[command(name = "relay", version, max_term_width = 100, arg_required_else_help = true)]
#[command(after_help = "Examples:\n  \
    relay dev                       try it: a relay, a tunnel and a demo app on this machine\n  \
    relay dev 3000                  the same for your service on port 3000\n  \
    relay http 3000                 a public URL for it, on your relay\n  \
    relay start                     one for each service that relay.toml names\n  \
    relay listen                    a public URL without a service, to see what is sent\n  \
    relay run 3000 -- pytest        a public URL for as long as a command runs\n\n\
    Exit codes: 0 done, 1 failed, 2 usage, 3 unauthorized, 4 name taken, 5 relay unreachable at start,\n\
    6 gave up reconnecting, 7 name lost, 129, 130 and 143 ended by a signal")]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// Reads a command line whose first word is the program's name. What clap cannot read, it
    /// explains itself: print the error and exit with its code, which is 2 for usage.
    ///
    /// # Errors
    /// Usage errors, and requests for help or the version.
    pub fn from_arguments<I>(arguments: I) -> Result<Self, clap::Error>
    where
        I: IntoIterator<Item: Into<OsString> + Clone>,
    {
        Self::try_parse_from(arguments).map_err(with_tip)
    }
}

/// What other tools call our things, and a tip for who types it.
const HABITS: [(&[&str], &str); 9] = [
    (&["--url", "--name", "-s"], "to ask for a name: --subdomain NAME"),
    (&["--hostname"], "to ask for a name: --subdomain NAME, or --domain HOST for a domain of your own"),
    (&["--port", "-p", "--forward-to"], "the service stands by itself: relay http 3000"),
    (&["--json"], "for programs: --output json"),
    (&["--authtoken", "authtoken"], "to store a token once: relay login https://relay.example.com"),
    (&["tunnel", "share", "expose", "forward"], "a public URL for port 3000: relay http 3000"),
    (&["exec"], "a command with a tunnel around it: relay run 3000 -- COMMAND"),
    (&["ps", "list"], "the clients that run: relay status"),
    (&["fire", "emit", "fixture"], "a webhook as a provider would send it: relay trigger stripe"),
];

/// Says what was probably meant, where that is known better than by likeness.
fn with_tip(mut error: clap::Error) -> clap::Error {
    let typed = [ContextKind::InvalidArg, ContextKind::InvalidSubcommand].into_iter().find_map(|kind| error.get(kind));
    let Some(ContextValue::String(typed)) = typed else { return error };
    let habit = HABITS.iter().find(|(words, _)| words.contains(&typed.as_str()));
    let tip = match habit {
        Some((_, tip)) => (*tip).to_owned(),
        None if typed.parse::<UpstreamAddr>().is_ok() => format!("a public URL for this service: relay http {typed}"),
        None => return error,
    };
    for guess in [ContextKind::SuggestedArg, ContextKind::SuggestedSubcommand] {
        error.remove(guess);
    }
    error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
    error
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Give a local HTTP service a public URL
    #[command(after_help = "Examples:\n  \
        relay http 3000\n  \
        relay http 3000 --subdomain hooks --timeout 10s\n  \
        relay http https://localhost:8443 --host-header preserve\n  \
        relay http unix:/run/app.sock --output json | jq -r '.url // empty'\n\n\
        The public URL stands first and alone on its line; then each request as it is answered.")]
    Http(HttpArgs),
    /// Give the services of the configuration file a public URL each, over one session
    #[command(after_help = "Examples:\n  \
        relay start\n  \
        relay start web api\n  \
        relay start --output json\n\n\
        A file relay.toml with\n  \
        [tunnels.web]\n  \
        upstream = 3000\n\
        describes a tunnel named web. When the file changes, the tunnels change with it.")]
    Start(StartArgs),
    /// Run a command with a tunnel around it, as for tests; its exit code is returned
    #[command(after_help = "Examples:\n  \
        relay run 3000 -- pytest\n  \
        relay run 3000 --events relay.log -- npm test\n  \
        relay run 3000 -- sh -c 'curl $RELAY_PUBLIC_URL/health'\n\n\
        The command starts once the public URL has answered. It finds the URL in RELAY_PUBLIC_URL, and in RELAY_CA_FILE the \
        CA to trust where that is no public one. Standard output is the command's alone.")]
    Run(RunArgs),
    /// Show what is sent to a public URL, without any service: a private request bin
    #[command(after_help = "Examples:\n  \
        relay listen\n  \
        relay listen --respond 503 --header 'Retry-After: 60'\n  \
        relay listen --body @answer.json --delay 2s\n  \
        relay listen --output json | jq 'select(.event == \"request\").body'\n\n\
        Each request is shown with its headers and its body, and answered by this program.")]
    Listen(ListenArgs),
    /// Run a relay and a tunnel on this machine, to develop and test without any server
    #[cfg(feature = "embedded")]
    #[command(after_help = "Examples:\n  \
        relay dev\n  \
        relay dev 3000 --subdomain hooks\n  \
        relay dev 3000 --https 127.0.0.1:9443 --output json\n\n\
        Tunnels live at https://NAME.relay.localhost:8443, with a certificate of a CA that is made on \
        first use and kept; the curl line that is printed trusts it.")]
    Dev(DevArgs),
    /// Wait until requests have arrived, and print them
    #[command(after_help = "Examples:\n  \
        relay wait --path /hooks\n  \
        relay wait --path '/hooks/*' --json /type=invoice.paid --within 30s\n  \
        relay wait --header 'X-GitHub-Event: push' --count 2 --since 1m | jq .body\n\n\
        It watches the clients that run on this machine. Where none does, it opens a tunnel of its own, which \
        answers 200. Exit code 1 says that the time has passed.")]
    Wait(WaitArgs),
    /// Show and handle the webhooks that the relay keeps for your tunnels
    #[command(after_help = "Examples:\n  \
        relay inbox\n  \
        relay inbox hooks\n  \
        relay inbox list hooks --state dead\n  \
        relay inbox show hooks 01M8…\n  \
        relay inbox retry hooks --all dead\n  \
        relay inbox drain hooks --within 5m\n  \
        relay inbox export hooks 01M8… > webhook.http\n\n\
        A tunnel gets an inbox by `relay http 3000 --subdomain NAME --inbox`, or from the relay's operator.")]
    Inbox(InboxArgs),
    /// List the requests that clients on this machine have forwarded
    #[command(after_help = "Examples:\n  \
        relay requests\n  \
        relay requests --status error --since 1h\n  \
        relay requests --provider stripe --type 'invoice.*' --output json | jq -r .id\n  \
        relay requests --follow\n\n\
        The newest stands last. `relay show ID` has all of one.")]
    Requests(RequestsArgs),
    /// Show one request and its answer: headers, bodies, times
    #[command(after_help = "Examples:\n  \
        relay show last\n  \
        relay show 01KB2Z4QJ5 --output json | jq .request.body")]
    Show(ShowOneArgs),
    /// Print a request as other tools take it: as a curl line, a program, raw HTTP or an archive
    #[command(after_help = "Examples:\n  \
        relay export last\n  \
        relay export 01KB2Z4QJ5 --as http > request.http\n  \
        relay export last --as fixture --to tests/fixtures/paid\n\n\
        What lets somebody in, as Authorization and cookies, is masked.")]
    Export(ExportArgs),
    /// Send a request once more, as it came or signed anew
    #[command(after_help = "Examples:\n  \
        relay replay last\n  \
        relay replay 01KB2Z4QJ5 --secret env:STRIPE_SECRET --times 2\n  \
        relay replay tests/fixtures/paid --to http://localhost:3000\n\n\
        It goes through the running client of its tunnel to that client's service, or to --to. Exit code 0 \
        says that every answer was a success.")]
    Replay(ReplayArgs),
    /// Say whether a saved webhook was signed by its provider, and why not
    #[command(after_help = "Examples:\n  \
        relay verify request.http --secret env:STRIPE_SECRET\n  \
        relay verify request.http --provider github --secret @new.txt --secret @old.txt\n  \
        relay verify - --secret @key.txt --url https://hooks.relay.example.com --output json < request.http\n\n\
        The file has the request as it was sent: POST /hooks HTTP/1.1, a line for each header, an empty line, and \
        the body byte for byte. Exit code 0 says that it is valid, 1 that it is not, and 2 that nothing was judged.")]
    Verify(VerifyArgs),
    /// Send a webhook as a provider would, to an app that wants one now
    #[command(after_help = "Examples:\n  \
        relay trigger stripe\n  \
        relay trigger github pull_request --path /hooks/github --secret env:GITHUB_SECRET\n  \
        relay trigger shopify orders/create --override /total_price=99.00 --times 3\n  \
        relay trigger twilio sms --to http://localhost:3000/sms\n  \
        relay trigger --list\n\n\
        It goes to the public URL of the tunnel that is open on this machine, and through it to the service. It is \
        signed with --secret, or with a secret for tests that is the same each time and is told on standard error. \
        Exit code 0 says that all were answered with 2xx.")]
    Trigger(TriggerArgs),
    /// Sign any body as a provider does, and send it
    #[command(after_help = "Examples:\n  \
        relay send order.json --provider stripe --secret env:STRIPE_SECRET\n  \
        relay send push.json --provider github --type push --path /hooks\n  \
        relay send request.http --to http://localhost:3000\n\n\
        The file has a body, or a whole request as `relay verify` reads it. A body gets the headers that its \
        provider sends. Exit code 0 says that it was answered with 2xx.")]
    Send(SendArgs),
    /// Show the clients that run on this machine, their tunnels and how they are
    #[command(after_help = "Examples:\n  \
        relay status\n  \
        relay status --output json | jq -r '.tunnels[].url'")]
    Status {
        /// Lines for people, or one JSON object per line
        #[arg(long, value_name = "FORM", value_enum, default_value = "text")]
        output: Output,
    },
    /// Store a relay and your token, so that no command needs them any more
    #[command(after_help = "Examples:\n  \
        relay login https://relay.example.com\n  \
        relay login https://relay.example.com < token.txt\n\n\
        Without --token and RELAY_TOKEN it is read from standard input; a terminal does not show it. The relay \
        is asked whether it takes the token before anything is stored.")]
    Login(LoginArgs),
    /// Forget what `relay login` has stored
    Logout,
    /// Look at the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print the completion script of a shell
    #[command(after_help = "Examples:\n  \
        relay completions bash > ~/.local/share/bash-completion/completions/relay\n  \
        relay completions zsh > ~/.zfunc/_relay\n  \
        relay completions fish > ~/.config/fish/completions/relay.fish")]
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages into a directory
    #[command(hide = true)]
    Man {
        /// Where to
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
}

impl Command {
    /// Whether nothing else may write on the terminal.
    pub fn takes_the_terminal(&self) -> bool {
        match self {
            Self::Http(args) => args.open.session.show.tui,
            Self::Listen(args) => args.open.session.show.tui,
            Self::Start(args) => args.session.show.tui,
            #[cfg(feature = "embedded")]
            Self::Dev(args) => args.show.tui,
            _ => false,
        }
    }
}

/// `relay config …`.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Say what holds and where it comes from; exit 2 where something is wrong
    Check {
        /// Lines for people, or one JSON object per line
        #[arg(long, value_name = "FORM", value_enum, default_value = "text")]
        output: Output,
    },
}

/// `relay login`.
#[derive(Args, Debug)]
pub struct LoginArgs {
    /// The relay's URL, or only its host
    #[arg(value_name = "URL")]
    pub relay: RelayUrl,

    /// Who we are there, and how it is reached.
    #[command(flatten)]
    pub way: WayArgs,
}

/// `relay http`.
#[derive(Args, Debug)]
pub struct HttpArgs {
    /// Where the service is: 3000, host:port, http://host:port, https://host:port or unix:/path
    #[arg(value_name = "TARGET")]
    pub upstream: UpstreamAddr,

    /// How the service is spoken to.
    #[command(flatten)]
    pub service: ServiceArgs,

    /// How the tunnel is opened.
    #[command(flatten)]
    pub open: OpenArgs,
}

/// `relay start`.
#[derive(Args, Clone, Debug)]
pub struct StartArgs {
    /// Which tunnels of the configuration file; all if not given
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,

    /// All of them, which is also what happens without names
    #[arg(long, conflicts_with = "names")]
    pub all: bool,

    /// How the session is opened.
    #[command(flatten)]
    pub session: SessionArgs,
}

/// `relay run`.
#[derive(Args, Debug)]
pub struct RunArgs {
    /// Where the service is or will be, as for `relay http`
    #[arg(value_name = "TARGET")]
    pub upstream: UpstreamAddr,

    /// How the service is spoken to.
    #[command(flatten)]
    pub service: ServiceArgs,

    /// Write what happens as JSON into this file instead of telling it on standard error
    #[arg(long, value_name = "FILE")]
    pub events: Option<PathBuf>,

    /// How the tunnel is opened.
    #[command(flatten)]
    pub open: OpenArgs,

    /// What to run, with its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// `relay listen`.
#[derive(Args, Debug)]
pub struct ListenArgs {
    /// The status of each answer, from 200 to 599
    #[arg(long, value_name = "STATUS", value_parser = final_status, default_value = "200")]
    pub respond: StatusCode,

    /// The body of each answer: this text, or what stands in a file; none if not given
    #[arg(long, value_name = "TEXT|@FILE")]
    pub body: Option<String>,

    /// A header of each answer, as in 'Retry-After: 60'; can be given several times
    #[arg(long = "header", value_name = "NAME: VALUE", value_parser = header)]
    pub headers: Vec<(HeaderName, HeaderValue)>,

    /// Wait this long before each answer, as in 2s
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub delay: Option<Duration>,

    /// Keep this much of a request's body, as in 1MiB, and count the rest
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "16MiB")]
    pub max_body: usize,

    /// How the tunnel is opened.
    #[command(flatten)]
    pub open: OpenArgs,
}

/// `relay wait`.
#[derive(Args, Debug)]
pub struct WaitArgs {
    /// Requests of this path; with a * at its end, of all that begin so. A query counts only where
    /// one stands here
    #[arg(long, value_name = "PATH", value_parser = filter::path)]
    pub path: Option<PathPattern>,

    /// Requests of this method
    #[arg(long, value_name = "METHOD")]
    pub method: Option<String>,

    /// Requests with this header, or with any of this name; can be given several times
    #[arg(long = "header", value_name = "NAME: VALUE", value_parser = filter::header)]
    pub headers: Vec<HeaderPattern>,

    /// Requests whose JSON body has this value there, as in /type=invoice.paid (RFC 6901); can be
    /// given several times
    #[arg(long, value_name = "POINTER=VALUE", value_parser = filter::json)]
    pub json: Vec<JsonPattern>,

    /// Wait for so many
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub count: u16,

    /// Give up after this long, as in 30s, with exit code 1; never if not given
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub within: Option<Duration>,

    /// Count only requests that come now, that came in the last 30s, or that came after the one
    /// with this id; otherwise those that came before count, too
    #[arg(long, value_name = "now|TIME|ID", value_parser = filter::since)]
    pub since: Option<Since>,

    /// Watch only the tunnel of this name
    #[arg(long, value_name = "NAME", value_parser = public_name)]
    pub tunnel: Option<String>,

    /// Open a tunnel of this name and wait there, whatever else runs
    #[arg(long, value_name = "NAME", value_parser = subdomain, conflicts_with = "tunnel")]
    pub subdomain: Option<String>,

    /// The way to the relay.
    #[command(flatten)]
    pub connection: ConnectionArgs,
}

/// `relay inbox`.
#[derive(Args, Debug)]
pub struct InboxArgs {
    /// What is to be done; without it, inboxes are listed.
    #[command(subcommand)]
    pub command: Option<InboxCommand>,

    /// The tunnel whose webhooks are listed; without it, your inboxes are
    #[arg(value_name = "NAME", value_parser = public_name)]
    pub name: Option<String>,

    /// Lines for people, or one JSON object per line
    #[arg(long, value_name = "FORM", value_enum, default_value = "text", global = true)]
    pub output: Output,

    /// The way to the relay.
    #[command(flatten)]
    pub way: ConnectionArgs,
}

/// How many webhooks are listed where nothing else is said.
pub const INBOX_LISTED: u32 = 50;

/// What is done with inboxes.
#[derive(Debug, Subcommand)]
pub enum InboxCommand {
    /// List inboxes, or the webhooks of one, the newest last
    List {
        /// The tunnel's name
        #[arg(value_name = "NAME", value_parser = public_name)]
        name: Option<String>,
        /// Only those that wait, were delivered, or are dead letters
        #[arg(long, value_name = "STATE", value_enum, requires = "name")]
        state: Option<InboxState>,
        /// So many at most
        #[arg(long, value_name = "NUMBER", default_value_t = INBOX_LISTED, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        limit: u32,
    },
    /// Show one with its attempts, headers and body
    Show {
        /// The tunnel's name
        #[arg(value_name = "NAME", value_parser = public_name)]
        name: String,
        /// The webhook's id
        #[arg(value_name = "ID", value_parser = webhook_id)]
        id: String,
        /// What happens to Authorization, cookies and what else lets somebody in
        #[arg(long, value_name = "mask|show", value_enum, default_value = "mask")]
        secrets: Secrets,
    },
    /// Try webhooks again at once; dead letters wait again
    Retry {
        /// The tunnel's name
        #[arg(value_name = "NAME", value_parser = public_name)]
        name: String,
        /// Which ones.
        #[command(flatten)]
        which: WhichArgs,
    },
    /// Forget webhooks
    Drop {
        /// The tunnel's name
        #[arg(value_name = "NAME", value_parser = public_name)]
        name: String,
        /// Which ones.
        #[command(flatten)]
        which: WhichArgs,
    },
    /// Deliver nothing for now; what comes is kept
    Pause {
        /// The tunnel's name
        #[arg(value_name = "NAME", value_parser = public_name)]
        name: String,
    },
    /// Deliver again
    Resume {
        /// The tunnel's name
        #[arg(value_name = "NAME", value_parser = public_name)]
        name: String,
    },
    /// Resume, have all that wait tried at once, and wait until none is left; exit code 1 where one became a dead letter
    Drain {
        /// The tunnel's name
        #[arg(value_name = "NAME", value_parser = public_name)]
        name: String,
        /// For so long at most
        #[arg(long, value_name = "TIME", default_value = "5m", value_parser = duration)]
        within: Duration,
    },
    /// Write one as a raw HTTP request, which `relay verify` and `relay send` read
    Export {
        /// The tunnel's name
        #[arg(value_name = "NAME", value_parser = public_name)]
        name: String,
        /// The webhook's id
        #[arg(value_name = "ID", value_parser = webhook_id)]
        id: String,
    },
    /// Close an inbox: the tunnel is live again, and what is in it is forgotten
    Close {
        /// The tunnel's name
        #[arg(value_name = "NAME", value_parser = public_name)]
        name: String,
    },
}

/// Which webhooks are meant.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub struct WhichArgs {
    /// Those of these ids
    #[arg(value_name = "ID", value_parser = webhook_id)]
    pub ids: Vec<String>,
    /// All that wait, were delivered, or are dead letters
    #[arg(long, value_name = "STATE", value_enum)]
    pub all: Option<InboxState>,
}

/// Where a webhook is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum InboxState {
    /// It is still to be delivered.
    Waiting,
    /// It was.
    Delivered,
    /// It was given up.
    Dead,
}

impl std::fmt::Display for InboxState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Waiting => "waiting",
            Self::Delivered => "delivered",
            Self::Dead => "dead",
        })
    }
}

/// `relay requests`.
#[derive(Args, Debug)]
pub struct RequestsArgs {
    /// Only those of this provider, as in stripe
    #[arg(long, value_name = "NAME")]
    pub provider: Option<String>,

    /// Only those of this type of event; with a * at its end, of all that begin so
    #[arg(long = "type", value_name = "TYPE")]
    pub event_type: Option<String>,

    /// Only those that were answered so: 404, 4xx, or error for what went wrong on the way
    #[arg(long, value_name = "STATUS", value_parser = filter::status)]
    pub status: Option<StatusPattern>,

    /// Only those of this path; with a * at its end, of all that begin so. A query counts only where
    /// one stands here
    #[arg(long, value_name = "PATH", value_parser = filter::path)]
    pub path: Option<PathPattern>,

    /// Only those of this method
    #[arg(long, value_name = "METHOD")]
    pub method: Option<String>,

    /// Only those through the tunnel of this name
    #[arg(long, value_name = "NAME")]
    pub tunnel: Option<String>,

    /// Only those whose signature was judged so, as in valid or bad_signature
    #[arg(long, value_name = "VERDICT", value_parser = filter::verdict)]
    pub verdict: Option<Verdict>,

    /// Only those with this text in path, event, provider, tunnel, id, method, error or address, or in a body
    #[arg(long, value_name = "TEXT")]
    pub text: Option<String>,

    /// Only those that came in the last 30s, or after the one with this id
    #[arg(long, value_name = "now|TIME|ID", value_parser = filter::since)]
    pub since: Option<Since>,

    /// The newest so many
    #[arg(long, value_name = "N", default_value = "50", value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub limit: u32,

    /// Go on with those that come
    #[arg(long)]
    pub follow: bool,

    /// Remove them all from this machine, and print how many there were
    #[arg(long, exclusive = true)]
    pub clear: bool,

    /// A table for people, or one JSON object per line
    #[arg(long, value_name = "FORM", value_enum, default_value = "text")]
    pub output: Output,
}

/// `relay show`.
#[derive(Args, Debug)]
pub struct ShowOneArgs {
    /// The request's id, its beginning, or last
    #[arg(value_name = "ID")]
    pub id: String,

    /// For people, or a JSON object
    #[arg(long, value_name = "FORM", value_enum, default_value = "text")]
    pub output: Output,
}

/// `relay export`.
#[derive(Args, Debug)]
pub struct ExportArgs {
    /// The request's id, its beginning, or last
    #[arg(value_name = "ID")]
    pub id: String,

    /// In which form
    #[arg(long = "as", value_name = "FORM", value_enum, default_value = "curl")]
    pub form: Form,

    /// The directory of a fixture; named by the id if not given
    #[arg(long, value_name = "DIR")]
    pub to: Option<PathBuf>,

    /// What happens to Authorization, cookies and what else lets somebody in
    #[arg(long, value_name = "mask|show", value_enum, default_value = "mask")]
    pub secrets: Secrets,
}

/// What happens to what lets somebody in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Secrets {
    /// Something else stands in its place.
    Mask,
    /// It stands there.
    Show,
}

/// `relay replay`.
#[derive(Args, Debug)]
pub struct ReplayArgs {
    /// The request's id, its beginning, or last; or the directory of a fixture
    #[arg(value_name = "ID|DIR", required = true)]
    pub what: Vec<String>,

    /// Send it straight to this URL; where that has neither path nor query, to those that it came to
    #[arg(long, value_name = "URL", value_parser = web_url, conflicts_with = "tunnel")]
    pub to: Option<String>,

    /// Send it to the tunnel of this name instead of the one that it came through
    #[arg(long, value_name = "NAME")]
    pub tunnel: Option<String>,

    /// Sign it anew in any case; otherwise only where its signature was right and is so no more
    #[arg(long)]
    pub resign: bool,

    /// Send it byte for byte as it came, however old its signature is
    #[arg(long, conflicts_with = "resign")]
    pub no_resign: bool,

    /// What it is signed with; what relay.toml says of the tunnel if not given.
    #[command(flatten)]
    pub credentials: CredentialArgs,

    /// Send it so often, one after the other
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub times: u16,

    /// For people, or one JSON object per line
    #[arg(long, value_name = "FORM", value_enum, default_value = "text")]
    pub output: Output,
}

impl ReplayArgs {
    /// Whether it is signed anew.
    pub(crate) fn resign(&self) -> Resign {
        match (self.resign, self.no_resign) {
            (true, _) => Resign::Always,
            (_, true) => Resign::Never,
            _ => Resign::Stale,
        }
    }
}

/// `relay verify`.
#[derive(Args, Debug)]
pub struct VerifyArgs {
    /// The file with the request, of at most 64 MiB; - is standard input
    #[arg(value_name = "FILE")]
    pub file: PathBuf,

    /// Who has sent it, as in stripe; recognised if not given
    #[arg(long, value_name = "NAME")]
    pub provider: Option<String>,

    /// What it may be signed with.
    #[command(flatten)]
    pub credentials: CredentialArgs,

    /// Fetch the key that the provider publishes, where it signs with such a one
    #[arg(long)]
    pub fetch_keys: bool,

    /// The URL that the provider called, which some of them sign; without a path the request's own
    /// follows it. Made of Host and path if not given
    #[arg(long, value_name = "URL", value_parser = web_url)]
    pub url: Option<String>,

    /// The time of its arrival in seconds since 1970; now if not given
    #[arg(long, value_name = "UNIX", value_parser = unix_time, allow_negative_numbers = true)]
    pub now: Option<Timestamp>,

    /// A line for people, or a JSON object
    #[arg(long, value_name = "FORM", value_enum, default_value = "text")]
    pub output: Output,
}

/// `relay trigger`.
#[derive(Args, Debug)]
pub struct TriggerArgs {
    /// Who sends it, as in stripe or github
    #[arg(value_name = "PROVIDER", required_unless_present = "list")]
    pub sender: Option<String>,

    /// Which of its samples, as in invoice.paid; its first one if not given
    #[arg(value_name = "EVENT")]
    pub event: Option<String>,

    /// Print whose samples there are, or all of that provider, and send nothing
    #[arg(long, conflicts_with = "event")]
    pub list: bool,

    /// Print the secret for tests of that provider, or its public key, and send nothing: for the app's
    /// environment
    #[arg(long, conflicts_with_all = ["event", "list"])]
    pub print_secret: bool,

    /// Put this value into the body before it is signed, where something stands already: at a JSON
    /// pointer (RFC 6901) as in /data/object/amount=500, or in a form's field as in /From=+15550100;
    /// can be given several times
    #[arg(long = "override", value_name = "/POINTER=VALUE", value_parser = setting)]
    pub overrides: Vec<(String, String)>,

    /// Where it goes.
    #[command(flatten)]
    pub delivery: DeliveryArgs,
}

/// `relay send`.
#[derive(Args, Debug)]
pub struct SendArgs {
    /// The file with the body, or with a saved request, of at most 64 MiB; - is standard input
    #[arg(value_name = "FILE")]
    pub file: PathBuf,

    /// Whose webhook it is, as in stripe; a saved request is recognised if not given
    #[arg(long, value_name = "NAME")]
    pub provider: Option<String>,

    /// What kind of event it is, as in push, for providers that say so in a header
    #[arg(long = "type", value_name = "EVENT")]
    pub kind: Option<String>,

    /// The method; POST if not given, or the one that a saved request has
    #[arg(long, value_name = "METHOD")]
    pub method: Option<Method>,

    /// Where it goes.
    #[command(flatten)]
    pub delivery: DeliveryArgs,
}

/// Where a webhook goes, and what it is signed with.
#[derive(Args, Debug)]
pub struct DeliveryArgs {
    /// Send it to this URL instead of a tunnel's
    #[arg(long, value_name = "URL", value_parser = web_url, conflicts_with = "tunnel")]
    pub to: Option<String>,

    /// Send it to the tunnel of this name; to the only one that is open if not given
    #[arg(long, value_name = "NAME")]
    pub tunnel: Option<String>,

    /// Send it to this path, which may have a query; if not given to that of --to or of a saved
    /// request, or to /
    #[arg(long, value_name = "PATH", value_parser = request_path)]
    pub path: Option<String>,

    /// What it is signed with; what relay.toml says of the tunnel, or a secret for tests, if not
    /// given.
    #[command(flatten)]
    pub credentials: CredentialArgs,

    /// Send this header, too, or instead of another of its name; can be given several times
    #[arg(long = "header", value_name = "NAME: VALUE", value_parser = header)]
    pub headers: Vec<(HeaderName, HeaderValue)>,

    /// Send so many, one after the other
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub times: u16,

    /// Lines for people, or one JSON object per line
    #[arg(long, value_name = "FORM", value_enum, default_value = "text")]
    pub output: Output,
}

/// What a webhook is judged and signed with.
#[derive(Args, Clone, Debug, Default)]
pub struct CredentialArgs {
    /// What webhooks are signed with: the secret itself, @FILE or env:NAME, which others on this
    /// machine do not see in command lines; can be given several times, while one takes another's
    /// place. Of a provider that signs with a key pair it is the public key, and to send as that
    /// provider the private one
    #[arg(
        long = "secret",
        value_name = "VALUE|@FILE|env:NAME",
        allow_hyphen_values = true,
        env = "RELAY_SECRET",
        hide_env_values = true
    )]
    pub secrets: Vec<SecretSource>,

    /// What a few providers need beside it, as in webhook_id=1; can be given several times
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = setting)]
    pub settings: Vec<(String, String)>,
}

impl CredentialArgs {
    /// Fetches the secrets.
    ///
    /// # Errors
    /// Where one is not to be had.
    pub fn read(&self) -> Result<Credentials, SecretError> {
        let secrets = self.secrets.iter().map(SecretSource::read).collect::<Result<_, _>>()?;
        Ok(Credentials { secrets, settings: self.settings.iter().cloned().collect(), ..Credentials::default() })
    }
}

/// How a tunnel is opened, whatever is behind it.
#[derive(Args, Debug, Default)]
pub struct OpenArgs {
    /// A tunnel's own settings.
    #[command(flatten)]
    pub tunnel: TunnelArgs,

    /// Ask for a fresh random name instead of the one remembered for this directory
    #[arg(long, conflicts_with_all = ["subdomain", "domain"])]
    pub random: bool,

    /// How its session is opened.
    #[command(flatten)]
    pub session: SessionArgs,
}

/// How a session is opened, whatever tunnels it has.
#[derive(Args, Clone, Debug, Default)]
pub struct SessionArgs {
    /// Take names over from your own session elsewhere, which then ends
    #[arg(long)]
    pub takeover: bool,

    /// Give up after having tried for this long to come back, as in 5m; for ever if not given
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub max_reconnect_time: Option<Duration>,

    /// What is printed.
    #[command(flatten)]
    pub show: ShowArgs,

    /// The way to the relay.
    #[command(flatten)]
    pub connection: ConnectionArgs,
}

/// What is printed.
#[derive(Args, Clone, Debug, Default)]
pub struct ShowArgs {
    /// Lines for people, or one JSON object per line
    #[arg(long, value_name = "FORM", value_enum)]
    pub output: Option<Output>,

    /// Print the public URL and nothing else on standard output; the lines for people go to
    /// standard error
    #[arg(long, conflicts_with = "output")]
    pub url_only: bool,

    /// Print nothing but lines, one for each request: no state line, and no sums of many requests
    #[arg(long)]
    pub plain: bool,

    /// Take the whole terminal: a list of requests, what was sent with each, and keys
    #[arg(long, conflicts_with_all = ["output", "url_only", "plain", "qr"])]
    pub tui: bool,

    /// Show the public URL as a QR code, too
    #[arg(long)]
    pub qr: bool,

    /// Write the tunnel as JSON into this file once its public URL has answered, and remove the
    /// file at the end
    #[arg(long, value_name = "FILE", value_parser = PathBufValueParser::new().try_map(replaceable))]
    pub ready_file: Option<PathBuf>,

    /// Where the inspector listens, a page that shows the requests: ADDRESS:PORT, or only a port of
    /// 127.0.0.1; the first free one from 4040 on if not given. With off nothing listens, and no
    /// requests are kept
    #[arg(long, value_name = "ADDRESS|off", value_parser = inspect)]
    pub inspect: Option<Inspect>,

    /// What the inspector asks for, and must where it listens on more than this machine; better in
    /// RELAY_INSPECT_TOKEN, because others on this machine can see command lines
    #[arg(long, value_name = "TOKEN", env = "RELAY_INSPECT_TOKEN", hide_env_values = true)]
    pub inspect_token: Option<Secret>,

    /// Let programs that use the inspector's API open tunnels to other machines, too
    #[arg(long)]
    pub allow_remote_upstreams: bool,
}

/// The way to the relay.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Connection")]
pub struct ConnectionArgs {
    /// The relay's URL, or only its host
    #[arg(long, value_name = "URL", env = "RELAY_URL", global = true)]
    pub relay: Option<RelayUrl>,

    /// Who we are there, and how it is reached.
    #[command(flatten)]
    pub way: WayArgs,
}

/// Who we are to a relay, and how it is reached.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Connection")]
pub struct WayArgs {
    /// The token that the relay's operator gave you; better stored by `relay login`, or in
    /// RELAY_TOKEN, because others on this machine can see command lines
    #[arg(long, value_name = "TOKEN", env = "RELAY_TOKEN", hide_env_values = true, global = true)]
    pub token: Option<Secret>,

    /// Trust the CA in this PEM file, and no other, for the relay's certificate
    #[arg(long, value_name = "FILE", env = "RELAY_CA_FILE", global = true)]
    pub relay_ca: Option<PathBuf>,

    /// Connect to this address instead of the one that the relay's name resolves to
    #[arg(long, value_name = "HOST:PORT", global = true)]
    pub relay_addr: Option<HostPort>,
}

/// A tunnel's own settings.
#[derive(Args, Debug, Default)]
pub struct TunnelArgs {
    /// Ask for this name: the tunnel is at https://NAME.<the relay's domain>
    #[arg(long, value_name = "NAME", value_parser = subdomain)]
    pub subdomain: Option<String>,

    /// Ask for this domain of your own, which leads to the relay: the tunnel is at https://HOST
    #[arg(long, value_name = "HOST", value_parser = domain, conflicts_with = "subdomain")]
    pub domain: Option<String>,

    /// Answer the sender with 504 after this long, as in 10s; 30s if the relay has no other rule
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub timeout: Option<Duration>,

    /// What is known of its webhooks.
    #[command(flatten)]
    pub webhooks: WebhookArgs,

    /// Let the relay keep webhooks on its disk until they are delivered, also while this client is away: as they come, or as in
    /// --inbox=ordered,ack=200,attempts=20,age=12h,dedupe=off,concurrency=4,rate=10,pass-5xx,limit=100,body=1MiB,count=1000,
    /// bytes=100MiB,keep=3d; ack=@FILE is an answer in a file
    #[arg(long, value_name = "HOW", num_args = 0..=1, require_equals = true, default_missing_value = "on", value_parser = inbox)]
    pub inbox: Option<InboxChoice>,

    /// Who may call it.
    #[command(flatten)]
    pub access: AccessArgs,

    /// Make happen what goes wrong once in a while, to so many of the requests, as in
    /// drop@5%,500@5%,duplicate@10%,delay=2s@30%,reorder@20%; with seed=7 the same ones each time
    #[arg(long, value_name = "FAULTS")]
    pub fault: Option<Faults>,
}

/// Who may call a tunnel: the relay refuses all others before they reach this machine.
#[derive(Args, Debug, Default)]
#[command(next_help_heading = "Access")]
pub struct AccessArgs {
    /// Let in requests from this address or network only, as in 203.0.113.0/24; can be given
    /// several times
    #[arg(long, value_name = "CIDR")]
    pub allow: Vec<Network>,

    /// Let in no requests from this address or network, though --allow has it; can be given several
    /// times
    #[arg(long, value_name = "CIDR")]
    pub deny: Vec<Network>,

    /// Ask for a name and a password; better in a file or a variable, because others on this machine
    /// can see command lines. Can be given several times. One of these or of --api-key is enough
    #[arg(long, value_name = "NAME:PASSWORD|@FILE|env:NAME")]
    pub basic_auth: Vec<SecretSource>,

    /// Ask for a key in a header, as in X-Api-Key=env:KEY; without a header it is asked for as
    /// "Authorization: Bearer KEY". Can be given several times
    #[arg(long, value_name = "[HEADER=]KEY|@FILE|env:NAME")]
    pub api_key: Vec<KeySource>,

    /// Let in only those who show a client certificate that an authority in this file (PEM) has
    /// issued; can be given several times
    #[arg(long, value_name = "FILE")]
    pub client_ca: Vec<CaFile>,

    /// Have people log in, in their browsers, where this issuer of OpenID Connect knows them, as in
    /// `https://accounts.google.com`; the relay's operator has to allow it
    #[arg(long, value_name = "ISSUER", requires_all = ["oidc_client_id", "oidc_client_secret"])]
    pub oidc: Option<String>,

    /// What the tunnel is called there
    #[arg(long, value_name = "ID", requires = "oidc")]
    pub oidc_client_id: Option<String>,

    /// The secret that the issuer has given out for it; better in a file or a variable, because
    /// others on this machine can see command lines
    #[arg(long, value_name = "SECRET|@FILE|env:NAME", requires = "oidc")]
    pub oidc_client_secret: Option<SecretSource>,

    /// Let in only who has this verified address, as in alice@example.com, or one of this domain, as
    /// in @example.com; without, everybody whom the issuer knows. Can be given several times
    #[arg(long, value_name = "EMAIL|@DOMAIN", requires = "oidc")]
    pub oidc_allow: Vec<String>,

    /// Ask for no login at this path, in which * stands for anything, as in '/hooks/*'; can be given
    /// several times
    #[arg(long, value_name = "PATH", requires = "oidc")]
    pub oidc_skip: Vec<String>,

    /// Let in requests with this method only; can be given several times
    #[arg(long, value_name = "METHOD")]
    pub allow_method: Vec<String>,

    /// Let in requests for this path only, in which * stands for anything, as in '/hooks/*'; can be
    /// given several times
    #[arg(long, value_name = "PATH")]
    pub allow_path: Vec<String>,

    /// Let in this many requests in a second
    #[arg(long, value_name = "N")]
    pub rate_limit: Option<NonZeroU32>,

    /// Let in bodies of at most this many bytes, as in 64KiB or 1MiB
    #[arg(long, value_name = "SIZE", value_parser = byte_count)]
    pub body_limit: Option<u64>,
}

/// What is known of a tunnel's webhooks, and what is done with them.
#[derive(Args, Debug, Default)]
#[command(next_help_heading = "Webhooks")]
pub struct WebhookArgs {
    /// Who sends them, as in stripe; otherwise each sender is recognised. What the sender allows,
    /// less a margin, is the deadline
    #[arg(long, value_name = "PROVIDER")]
    pub provider: Option<String>,

    /// What they are signed with.
    #[command(flatten)]
    pub credentials: CredentialArgs,

    /// What to do about signatures: "warn" says what is wrong with one, "reject" also answers such
    /// a request with 401 and keeps it from the service; warn if a secret is given, else off
    #[arg(long, value_name = "off|warn|reject")]
    pub verify: Option<Verify>,

    /// Who does that: the client, or the relay ("edge"), which is then told the secrets
    #[arg(long, value_name = "client|edge", value_enum, hide_possible_values = true)]
    pub verify_at: Option<VerifyAt>,

    /// Answer for the service when a provider checks the URL before it uses it
    #[arg(long)]
    pub handshake: bool,
}

/// How the service behind a tunnel is spoken to.
#[derive(Args, Debug, Default)]
pub struct ServiceArgs {
    /// What the service sees as Host: "rewrite" for its own address, so that development servers
    /// answer; "preserve" for the public name; any host; or "auto" (the default): its own address,
    /// but the public name where the sender's signature covers that
    #[arg(long, value_name = "auto|rewrite|preserve|HOST")]
    pub host_header: Option<HostHeader>,

    /// How to speak to the service; h2c is HTTP/2 without TLS, as for gRPC
    #[arg(long, value_name = "PROTOCOL", value_enum)]
    pub upstream_protocol: Option<UpstreamProtocol>,
}

/// `relay dev`.
#[derive(Args, Debug)]
pub struct DevArgs {
    /// Where the service is, as for `relay http`; a demo app answers if not given
    #[arg(value_name = "TARGET")]
    pub upstream: Option<UpstreamAddr>,

    /// A tunnel's own settings.
    #[command(flatten)]
    pub tunnel: TunnelArgs,

    /// How the service is spoken to.
    #[command(flatten)]
    pub service: ServiceArgs,

    /// What is printed.
    #[command(flatten)]
    pub show: ShowArgs,

    /// Where the relay listens: ADDRESS:PORT, or only a port of 127.0.0.1; 8443 if not given, and 0
    /// for any free one
    #[arg(long, value_name = "ADDRESS", value_parser = listen_address)]
    pub https: Option<SocketAddr>,

    /// Where the relay keeps its CA, and its database where it has an inbox
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
}

/// How the program ended. Scripts depend on these numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// All done.
    Done = 0,
    /// A failure at run time.
    Failed = 1,
    /// The command line or a configuration file is wrong.
    Usage = 2,
    /// The relay does not accept the token, or no longer.
    Unauthorized = 3,
    /// The name asked for is in use or another's.
    NameTaken = 4,
    /// The relay could not be reached at the start.
    Unreachable = 5,
    /// The session was lost and `--max-reconnect-time` passed.
    GaveUp = 6,
    /// The name went to another session or owner while the tunnel was up.
    NameLost = 7,
    /// Ended by SIGHUP, as where its terminal is closed: 128 + 1.
    HungUp = 129,
    /// Ended by SIGINT, as by Ctrl-C: 128 + 2.
    Interrupted = 130,
    /// Ended by SIGTERM: 128 + 15.
    Terminated = 143,
}

impl From<Signal> for Exit {
    fn from(signal: Signal) -> Self {
        match signal {
            Signal::HangUp => Self::HungUp,
            Signal::Interrupt => Self::Interrupted,
            Signal::Terminate => Self::Terminated,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::from_arguments(line.split(' '))
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn http_takes_what_is_documented() {
        let cli = parse(
            "relay http 3000 --subdomain Hooks --timeout 10s --host-header preserve --upstream-protocol h2c \
             --output json --takeover --max-reconnect-time 5m --relay https://relay.example --token t \
             --relay-ca ca.pem --relay-addr 127.0.0.1:8443",
        );
        let Command::Http(args) = cli.unwrap().command else { panic!("another command") };
        assert_eq!(args.upstream, UpstreamAddr::localhost(3000));
        assert_eq!(args.service.host_header, Some(HostHeader::Preserve));
        assert_eq!(args.service.upstream_protocol, Some(UpstreamProtocol::H2c));
        let open = args.open;
        assert_eq!(open.tunnel.subdomain.as_deref(), Some("hooks"));
        assert_eq!(open.tunnel.timeout, Some(Duration::from_secs(10)));
        let session = open.session;
        assert_eq!(session.show.output, Some(Output::Json));
        assert!(session.takeover && !open.random);
        assert_eq!(session.max_reconnect_time, Some(Duration::from_secs(300)));
        assert_eq!(session.connection.relay.unwrap().to_string(), "https://relay.example");
        assert_eq!(session.connection.way.relay_addr.unwrap().to_string(), "127.0.0.1:8443");
    }

    #[test]
    fn the_way_to_the_relay_stands_anywhere_in_an_inbox_command() {
        for line in [
            "relay inbox --relay a.example --token t list hooks --output json",
            "relay inbox list --relay a.example hooks --output json --token t",
            "relay inbox list hooks --token t --output json --relay a.example",
        ] {
            let Command::Inbox(args) = parse(line).unwrap().command else { panic!("another command") };
            assert_eq!(args.way.relay.unwrap().to_string(), "https://a.example", "{line}");
            assert!(args.output == Output::Json && args.way.way.token.is_some(), "{line}");
            assert!(matches!(args.command, Some(InboxCommand::List { name: Some(_), .. })), "{line}");
        }
        let Command::Inbox(args) = parse("relay inbox Hooks --relay a.example").unwrap().command else { panic!() };
        assert_eq!((args.name.as_deref(), args.command.is_none()), (Some("hooks"), true));
    }

    #[test]
    fn listen_needs_nothing_and_takes_an_answer() {
        let Command::Listen(args) = parse("relay listen").unwrap().command else { panic!("another command") };
        assert_eq!((args.respond, args.max_body), (StatusCode::OK, 16 << 20));
        let words = ["relay", "listen", "--header", "Retry-After:  60", "--header", "x-a: b: c", "--respond", "503"];
        let more = ["--body", "@a.json", "--delay", "2s", "--max-body", "64KiB", "--subdomain", "bin"];
        let Command::Listen(args) = Cli::from_arguments(words.into_iter().chain(more)).unwrap().command else {
            panic!("another command")
        };
        let shown: Vec<_> = args.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
        assert_eq!(shown, [("retry-after", &b"60"[..]), ("x-a", b"b: c")]);
        assert_eq!((args.respond.as_u16(), args.body.as_deref()), (503, Some("@a.json")));
        assert_eq!((args.delay, args.max_body), (Some(Duration::from_secs(2)), 64 << 10));
    }

    #[cfg(feature = "embedded")]
    #[test]
    fn dev_needs_nothing_and_takes_an_address() {
        let Command::Dev(args) = parse("relay dev").unwrap().command else { panic!("another command") };
        assert!(args.upstream.is_none() && args.https.is_none());
        for (typed, address) in [
            ("9443", "127.0.0.1:9443"),
            (":0", "127.0.0.1:0"),
            ("0.0.0.0:443", "0.0.0.0:443"),
            ("[::1]:8443", "[::1]:8443"),
        ] {
            let cli = parse(&format!("relay dev 3000 --https {typed} --data-dir d --output json"));
            let Command::Dev(args) = cli.unwrap().command else { panic!("another command") };
            assert_eq!(args.https.unwrap().to_string(), address);
            assert_eq!(args.upstream, Some(UpstreamAddr::localhost(3000)));
        }
    }

    /// As a shell splits a line that quotes with `'` only.
    fn shell_words(line: &str) -> Vec<String> {
        let mut words = vec![String::new()];
        for (index, part) in line.split('\'').enumerate() {
            let mut pieces = if index % 2 == 0 { part.split(' ').collect() } else { vec![part] }.into_iter();
            words.last_mut().unwrap().push_str(pieces.next().unwrap());
            words.extend(pieces.map(str::to_owned));
        }
        words.retain(|word| !word.is_empty());
        words
    }

    #[test]
    fn the_documented_commands_are_understood() {
        let pages = [
            include_str!("../../README.md"),
            include_str!("../../docs/commands.md"),
            include_str!("../../docs/access.md"),
            include_str!("../../docs/inbox.md"),
            include_str!("../../docs/install.md"),
            include_str!("../../docs/json-output.md"),
            include_str!("../../docs/self-hosting.md"),
        ];
        let mut seen = 0;
        for page in pages {
            let blocks = page.split("```").skip(1).step_by(2);
            for line in blocks.flat_map(str::lines).filter(|line| line.starts_with("relay ")) {
                let command = line.split(" | ").next().and_then(|line| line.split(['<', '>']).next()).unwrap();
                seen += 1;
                assert!(Cli::from_arguments(shell_words(command)).is_ok(), "{line}");
            }
            for inline in page.split('`').filter(|text| text.starts_with("relay http ") && !text.contains("PORT")) {
                seen += 1;
                assert!(parse(inline.trim()).is_ok(), "{inline}");
            }
        }
        assert!(seen >= 6, "only {seen} commands were found");
    }

    #[test]
    fn every_command_and_flag_is_documented() {
        let page = include_str!("../../docs/commands.md");
        let mut command = Cli::command();
        command.build();
        let mut commands: Vec<_> = command.get_subcommands().collect();
        while let Some(command) = commands.pop() {
            if command.is_hide_set() || command.get_name() == "help" {
                continue;
            }
            if command.has_subcommands() {
                commands.extend(command.get_subcommands());
                continue;
            }
            let name = command.get_bin_name().unwrap();
            // One that is part of another stands in its section.
            let whole = name.rsplit_once(' ').map_or(name, |(whole, _)| whole);
            let has_row = page.contains(&format!("\n## {whole}\n")) && page.contains(&format!("| `{name}"));
            assert!(page.contains(&format!("\n## {name}\n")) || has_row, "no section of `{name}`");
            let flags = command.get_arguments().filter_map(clap::Arg::get_long).filter(|flag| *flag != "help");
            for flag in flags {
                assert!(page.contains(&format!("`--{flag}")), "no word of `{name} --{flag}`");
            }
        }
    }

    #[test]
    fn usage_errors_exit_with_2_and_help() {
        for (line, hint) in [
            ("relay http", "TARGET"),
            ("relay http localhost", "has no port"),
            ("relay http 3000 --timeout 10", "10s"),
            ("relay http 3000 --subdomain a.b", "no dot"),
            ("relay http 3000 --random --subdomain a", "cannot be used with"),
            ("relay http 3000 --relay http://relay.example", "https://relay.example"),
            ("relay http 3000 --relay-addr 1.2.3.4", "has no port"),
            ("relay http 3000 --host-header a/b", "preserve"),
            ("relay http 3000 --output yaml", "json"),
            ("relay http 3000 --upstream-protocol h3", "h2c"),
            ("relay dev --https x", "127.0.0.1:8443"),
            ("relay http 3000 --inspect on", "127.0.0.1:4040"),
            ("relay htpp 3000", "http"),
            ("relay 3000", "relay http 3000"),
            ("relay localhost:3000", "relay http localhost:3000"),
            ("relay http --port 3000", "relay http 3000"),
            ("relay http 3000 --url a.example", "--subdomain NAME"),
            ("relay http 3000 --hostname=a.example", "--domain HOST"),
            ("relay http 3000 --domain a", "--subdomain NAME"),
            ("relay http 3000 --domain a.example --subdomain a", "cannot be used with"),
            ("relay http 3000 -s hooks", "--subdomain NAME"),
            ("relay http 3000 --json", "--output json"),
            ("relay exec -- npm test", "relay run 3000"),
            ("relay listen --url-only --output json", "cannot be used with"),
            ("relay start web --all", "cannot be used with"),
            ("relay start --subdomain a", "--subdomain"),
            ("relay listen --respond 101", "200"),
            ("relay listen --header x", "Name: value"),
            ("relay listen --header Content-Length:3", "by itself"),
            ("relay listen --max-body 1GB", "MiB"),
            ("relay verify", "FILE"),
            ("relay trigger", "PROVIDER"),
            ("relay trigger stripe --to localhost:3000", "https://"),
            ("relay trigger stripe --to http://localhost --tunnel a", "cannot be used with"),
            ("relay trigger stripe --path hooks", "slash"),
            ("relay trigger stripe --override /a", "KEY=VALUE"),
            ("relay trigger stripe --times 0", "1000"),
            ("relay send --provider stripe", "FILE"),
            ("relay verify a --set key", "KEY=VALUE"),
            ("relay verify a --set =value", "KEY=VALUE"),
            ("relay verify a --url t.example/hook", "https://"),
            ("relay verify a --url https:///hook", "https://"),
            ("relay verify a --now today", "1970"),
            ("relay inbox a_b", "no dot"),
            ("relay inbox show hooks ../..", "26 letters"),
            ("relay inbox drop hooks", "ID"),
            ("relay http 3000 --inbox=orderly", "ordered"),
            ("relay http 3000 --oidc https://a.example --oidc-client-id a", "--oidc-client-secret"),
            ("relay http 3000 --oidc-allow @example.com", "--oidc"),
        ] {
            let error = parse(line).expect_err(line);
            assert_eq!(error.exit_code(), i32::from(Exit::Usage as u8), "{line}");
            assert!(error.to_string().contains(hint), "{line}: {error}");
        }
    }

    #[test]
    fn help_is_no_error_and_tells_no_secret() {
        for line in ["relay --help", "relay http --help", "relay listen --help", "relay dev --help", "relay --version"]
        {
            assert_eq!(parse(line).expect_err(line).exit_code(), 0);
        }
        let cli = parse("relay http 3000 --token rly_secret --inspect-token rly_secret").unwrap();
        assert!(!format!("{cli:?}").contains("rly_secret"));
        let cli = parse("relay verify a --secret whsec_1 --secret -whsec_2").unwrap();
        assert!(!format!("{cli:?}").contains("whsec_"));
        for wrong in ["--now x", "--provider", "--nonsense"] {
            let error = parse(&format!("relay verify a --secret whsec_1 {wrong}")).expect_err(wrong);
            assert!(!error.to_string().contains("whsec_") && !format!("{error:?}").contains("whsec_"), "{error:?}");
        }
    }
}
