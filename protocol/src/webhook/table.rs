//! The providers: data in `providers.toml`, and more or other rows of a user's own in the same form.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    fmt,
    sync::Arc,
    time::Duration,
};

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};
use serde::Deserialize;

use super::{
    condition::Conditions,
    credentials::Settings,
    handshake::Handshake,
    json,
    request::{Part, Place, Request},
    signature::Rule,
    template::{Scope, Template},
};

/// The rows that are built in.
const BUILT_IN: &str = include_str!("providers.toml");

/// The longest id or type of an event, in bytes. Providers' own have at most some dozen, and lists show many of them.
const EVENT_MAX: usize = 256;

/// Every provider that is known, in the order in which they are looked for.
#[derive(Clone, Default)]
pub struct Table {
    /// As they were read, so that a user's row can replace single fields.
    rows: Vec<toml::Table>,
    providers: Vec<Arc<Provider>>,
    index: Index,
}

/// Which rows may be meant by a request, so that not every request asks every row.
#[derive(Clone, Debug, Default)]
struct Index {
    /// By a header that the request must have, with how its value begins.
    by_header: HashMap<String, Vec<(String, Mark)>>,
    /// By which of the `names` a JSON body must have.
    named: Vec<(Vec<usize>, Mark)>,
    /// Those that are told by something else, and the part of a request that they ask for.
    nameless: Vec<(Part, Mark)>,
    /// Looks for the longest name of each of those: many bytes at a time, and most bodies have none.
    longest: Option<AhoCorasick>,
    /// Looks for all names with one pass over a body: with one for each, they were most of what a request costs.
    names: Option<AhoCorasick>,
}

/// A row, and one of the ways in which its requests are told.
type Mark = (usize, usize);

/// What is wrong with a table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// It is no TOML, or has something else in it than rows.
    #[error("the provider table cannot be read: {0}")]
    Syntax(String),
    /// A row has no name.
    #[error("row {0} of the provider table has no id: write id = \"name\"")]
    NoId(usize),
    /// Two rows of one text have the same name.
    #[error("the provider {0:?} stands twice in the table")]
    Twice(String),
    /// A field of a row.
    #[error("the provider {row:?} has a mistake in `{field}`: {problem}")]
    Row {
        /// The row's id.
        row: String,
        /// Which field.
        field: String,
        /// What about it.
        problem: String,
    },
}

impl Table {
    /// The rows that are built in.
    ///
    /// # Errors
    /// None: a test reads the same bytes. It is a result because the reader is the one for users' rows.
    pub fn built_in() -> Result<Self, TableError> {
        let mut table = Self::default();
        table.add(BUILT_IN)?;
        Ok(table)
    }

    /// Adds a user's rows, `[[provider]]` tables like those that are built in. A row with the `id` of one that is there
    /// replaces the fields that it names, but for `secrets`, to which it adds: a row may be a stranger's, and must not show
    /// what was masked. A new one is looked for before all that are there.
    ///
    /// # Errors
    /// [`TableError`]; the table is as it was.
    pub fn add(&mut self, text: &str) -> Result<(), TableError> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Document {
            #[serde(default)]
            provider: Vec<toml::Table>,
        }

        let document: Document = toml::from_str(text).map_err(|error| TableError::Syntax(error.to_string()))?;
        self.add_rows(document.provider)
    }

    /// As [`Table::add`], with rows that were read as a part of something larger.
    ///
    /// # Errors
    /// [`TableError`]; the table is as it was.
    pub fn add_rows(&mut self, added: Vec<toml::Table>) -> Result<(), TableError> {
        let mut rows = self.rows.clone();
        let mut new = Vec::new();
        let mut seen = Vec::new();
        for (index, mut row) in added.into_iter().enumerate() {
            let id = row.get("id").and_then(toml::Value::as_str).ok_or(TableError::NoId(index + 1))?.to_owned();
            if seen.contains(&id) {
                return Err(TableError::Twice(id));
            }
            match rows.iter_mut().find(|known| known.get("id").and_then(toml::Value::as_str) == Some(&id)) {
                Some(known) => {
                    if let (Some(toml::Value::Array(places)), Some(toml::Value::Array(before))) =
                        (row.get_mut("secrets"), known.get("secrets"))
                    {
                        places.extend(before.iter().cloned());
                    }
                    known.extend(row);
                }
                None => new.push(row),
            }
            seen.push(id);
        }
        new.append(&mut rows);
        let providers = new.iter().map(|row| Provider::read(row).map(Arc::new)).collect::<Result<Vec<_>, _>>()?;
        *self = Self { rows: new, index: Index::of(&providers), providers };
        Ok(())
    }

    /// Who sent a request: the first provider whose marks it has. With the head alone, those that mark the head.
    #[must_use]
    pub fn recognise(&self, request: &Request<'_>) -> Option<&Arc<Provider>> {
        let mut candidates = self.index.by_name(request.body);
        let nameless = self.index.nameless.iter().filter(|(part, _)| request.has(*part));
        candidates.extend(nameless.map(|(_, mark)| *mark));
        for (name, value) in request.headers {
            let marks = self.index.by_header.get(name.as_str()).into_iter().flatten();
            let may_hold = marks.filter(|(begin, _)| value.as_bytes().starts_with(begin.as_bytes()));
            candidates.extend(may_hold.map(|(_, mark)| *mark));
        }
        candidates.sort_unstable();
        let mut candidates = candidates.into_iter().filter_map(|(row, mark)| Some((self.providers.get(row)?, mark)));
        let found =
            candidates.find(|(provider, mark)| provider.marks.get(*mark).is_some_and(|mark| mark.hold(request)));
        found.map(|(provider, _)| provider)
    }

    /// The provider of that id.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<&Arc<Provider>> {
        self.providers.iter().find(|provider| provider.id == id)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Provider> {
        self.providers.iter().map(|provider| &**provider)
    }
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table").field("providers", &self.providers.len()).finish_non_exhaustive()
    }
}

/// Two tables are the same that know the same rows.
impl PartialEq for Table {
    fn eq(&self, other: &Self) -> bool {
        self.rows == other.rows
    }
}

impl Index {
    fn of(providers: &[Arc<Provider>]) -> Self {
        let mut index = Self::default();
        let mut names = Vec::new();
        let mut number = |name: &str| {
            names.iter().position(|known| known == name).unwrap_or_else(|| {
                names.push(name.to_owned());
                names.len() - 1
            })
        };
        for (row, provider) in providers.iter().enumerate() {
            for (mark, conditions) in provider.marks.iter().enumerate() {
                match conditions.header() {
                    Some((name, begin)) => {
                        index.by_header.entry(name.to_owned()).or_default().push((begin.to_owned(), (row, mark)));
                    }
                    None => {
                        let wanted: Vec<usize> = conditions.names().map(&mut number).collect();
                        if wanted.is_empty() {
                            index.nameless.push((conditions.part(), (row, mark)));
                        } else {
                            index.named.push((wanted, (row, mark)));
                        }
                    }
                }
            }
        }
        let longest = index
            .named
            .iter()
            .filter_map(|(wanted, _)| wanted.iter().filter_map(|name| names.get(*name)).max_by_key(|name| name.len()));
        // Names of a user's rows can be too much for these; then bodies are read.
        index.longest = AhoCorasick::builder().match_kind(MatchKind::LeftmostFirst).build(longest).ok();
        index.names = AhoCorasick::builder().kind(Some(AhoCorasickKind::DFA)).build(names).ok();
        index
    }

    /// The marks that need no header, and whose names this body has.
    fn by_name(&self, body: &[u8]) -> Vec<Mark> {
        let Some(names) = &self.names else { return self.named.iter().map(|(_, mark)| *mark).collect() };
        if !json::has_members(body) || self.longest.as_ref().is_some_and(|longest| !longest.is_match(body)) {
            return Vec::new();
        }
        let mut are_there = vec![false; names.patterns_len()];
        for found in names.try_find_overlapping_iter(body).into_iter().flatten() {
            are_there.get_mut(found.pattern().as_usize()).into_iter().for_each(|is_there| *is_there = true);
        }
        let is_there = |name: &usize| are_there.get(*name).is_some_and(|is_there| *is_there);
        let candidates = self.named.iter().filter(|(names, _)| names.iter().all(is_there));
        candidates.map(|(_, mark)| *mark).collect()
    }
}

/// A sender of webhooks: a row of the table.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provider {
    /// What it is called in options and files.
    pub id: String,
    /// What it is called on a screen.
    pub name: String,
    /// Where it describes its webhooks.
    pub docs: Option<String>,
    /// What else is worth knowing, in a sentence.
    pub note: Option<String>,
    /// What its requests are told by: any of these.
    #[serde(rename = "match", default)]
    marks: Vec<Conditions>,
    /// What repeats of one event have in common: the first that can be filled.
    #[serde(default)]
    event_id: Vec<Template>,
    #[serde(default)]
    event_type: Vec<Template>,
    /// The events of a request, where it may have several.
    batch: Option<Place>,
    limit_ms: Option<u32>,
    connect_ms: Option<u32>,
    #[serde(default)]
    on_deadline: OnDeadline,
    /// Requests whose answer only the app can know, though others may be answered for it.
    #[serde(default)]
    wait_when: Vec<Conditions>,
    #[serde(default)]
    answer: Answer,
    /// How often and for how long it tries again.
    pub retries: Option<String>,
    /// Where it says that it tries again.
    retry: Option<Template>,
    /// The most bytes of a body, if known.
    pub max_body: Option<u64>,
    /// Where it publishes the addresses that it sends from.
    pub addresses: Option<String>,
    /// Where an event says whether it is a live one or a test.
    mode: Option<Mode>,
    #[serde(default)]
    secret: SecretForm,
    /// Where requests carry what lets in whoever knows it, beside the tokens that its signature rules compare.
    #[serde(default)]
    pub(super) secrets: Vec<Place>,
    /// Values beside the secret that its scheme needs, and where the user finds each.
    #[serde(default)]
    settings: Settings,
    #[serde(default)]
    pub(super) signature: Vec<Rule>,
    #[serde(default)]
    pub(super) handshake: Vec<Handshake>,
    /// Pages about the webhooks in the provider's own dashboard.
    #[serde(default)]
    links: BTreeMap<String, Template>,
    /// Where each fact is from, by the name of the fact.
    #[serde(default)]
    source: BTreeMap<Fact, Source>,
}

/// What to do when the app has not answered in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnDeadline {
    /// A stored request may be acknowledged for the app.
    Ack,
    /// Only the app's own answer will do: an invented one would steer the provider.
    #[default]
    Wait,
    /// Fail, so that the provider tries again.
    Fail,
}

/// An answer that the relay may give for the app.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// An HTTP status.
    pub status: u16,
    /// Empty for most.
    #[serde(default)]
    pub body: String,
}

impl Default for Answer {
    fn default() -> Self {
        Self { status: 200, body: String::new() }
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mode {
    at: Place,
    /// What each value there means.
    words: BTreeMap<String, String>,
}

/// What a provider's secrets look like.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct SecretForm {
    prefix: Option<String>,
    /// Where the user finds it.
    at: Option<String>,
}

/// A fact of a row, which has a source of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fact {
    /// How its requests are recognised.
    Match,
    /// Where the event's id and type are.
    Event,
    /// How long it waits for an answer.
    Limit,
    /// How it tries again.
    Retries,
    /// What may be answered for the app.
    Answer,
    /// How it signs.
    Signature,
    /// How it checks an endpoint before it uses it.
    Handshake,
    /// The most that it sends.
    Body,
    /// The pages of its dashboard.
    Links,
}

impl fmt::Display for Fact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Match => "match",
            Self::Event => "event",
            Self::Limit => "limit",
            Self::Retries => "retries",
            Self::Answer => "answer",
            Self::Signature => "signature",
            Self::Handshake => "handshake",
            Self::Body => "body",
            Self::Links => "links",
        })
    }
}

/// How well a fact is known, from the surest down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Confidence {
    /// Seen in the provider's own library or sender.
    Sdk,
    /// The provider's documentation, or the specification.
    Docs,
    /// Somebody else's code or pages.
    Second,
    /// Remembered, and not looked up again.
    Memory,
}

/// As a person is told how far to trust a number.
impl fmt::Display for Confidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sdk => "from its own library",
            Self::Docs => "documented",
            Self::Second => "second-hand",
            Self::Memory => "remembered",
        })
    }
}

impl Confidence {
    /// As the table writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sdk => "sdk",
            Self::Docs => "docs",
            Self::Second => "second",
            Self::Memory => "memory",
        }
    }
}

/// Where a fact is from.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Source {
    /// How well it is known.
    pub confidence: Confidence,
    /// What was read.
    pub reference: String,
}

impl TryFrom<String> for Source {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (word, reference) = text.split_once(':').unwrap_or((&text, ""));
        let confidence = match word.trim() {
            "sdk" => Confidence::Sdk,
            "docs" => Confidence::Docs,
            "second" => Confidence::Second,
            "memory" => Confidence::Memory,
            _ => return Err(format!("{text:?} begins with none of sdk:, docs:, second: and memory:")),
        };
        let reference = reference.trim().to_owned();
        if reference.is_empty() && confidence != Confidence::Memory {
            return Err(format!("{text:?} does not say what was read"));
        }
        Ok(Self { confidence, reference })
    }
}

/// What a provider calls one thing that has happened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// The same when it is sent again.
    pub id: Option<String>,
    /// Its kind, as in `invoice.paid`.
    pub kind: Option<String>,
    /// How many events the request has; id and kind are the first one's.
    pub count: usize,
}

impl Provider {
    fn read(row: &toml::Table) -> Result<Self, TableError> {
        let id = row.get("id").and_then(toml::Value::as_str).unwrap_or_default();
        let mistake =
            |field: &str, problem: String| TableError::Row { row: id.to_owned(), field: field.to_owned(), problem };
        let provider: Self = row.clone().try_into().map_err(|error: toml::de::Error| {
            let said = error.to_string();
            let field = said.rsplit_once("in `").and_then(|(_, field)| field.split('`').next());
            mistake(field.unwrap_or("the row"), error.message().to_owned())
        })?;
        provider.check().map_err(|(field, problem)| mistake(field, problem))?;
        Ok(provider)
    }

    /// What the types cannot say.
    fn check(&self) -> Result<(), (&'static str, String)> {
        let is_id = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if self.id.is_empty() || !self.id.bytes().all(is_id) {
            return Err(("id", "lower-case letters, digits and hyphens make an id".into()));
        }
        if self.marks.iter().any(Conditions::is_empty) {
            return Err(("match", "a condition without a place would take every request".into()));
        }
        if !(200..=599).contains(&self.answer.status) {
            return Err(("answer.status", format!("{} is no status of an answer", self.answer.status)));
        }
        if self.secrets.iter().any(|place| matches!(place, Place::Method | Place::Path)) {
            return Err(("secrets", "no secret is a method, or can be told from the rest of a path".into()));
        }
        for rule in &self.signature {
            let what = |problem: &str| ("signature", problem.to_owned());
            if rule.content.has_timestamp() && rule.timestamp.is_none() {
                return Err(what("the content has {timestamp}, and there is no timestamp"));
            }
            if rule.timestamp.as_ref().is_some_and(|time| time.from.is_none()) && rule.list.is_none() {
                return Err(what("a timestamp without a `from` stands beside the signature, which is no list"));
            }
            if rule.content.has_secret() != (rule.scheme == super::scheme::Scheme::Sha256) {
                return Err(what("{secret} stands in the content of a plain hash, and only there"));
            }
            let empty = matches!(rule.scheme, super::scheme::Scheme::Equal) || rule.scheme.is_token();
            if rule.content.is_empty() != empty {
                return Err(what("there is a content but for equal and tokens"));
            }
            if rule.claims.is_empty() == rule.scheme.is_token() {
                return Err(what("a token has claims, and only a token"));
            }
            if rule.scheme.is_token() && !rule.equal.is_empty() {
                return Err(what("a token is about what its claims say, and nothing else is held to be equal"));
            }
            let templates = rule.claims.iter().map(|claim| &claim.content).chain([&rule.content, &rule.prefix]);
            let templates = templates.chain(rule.equal.values());
            self.know_settings(templates).map_err(|problem| ("signature", problem))?;
        }
        if !self.links.values().all(Template::begins_with_https_host) {
            return Err(("links", "a link begins with https:// and a host that no request can change".into()));
        }
        for handshake in &self.handshake {
            if handshake.when.is_empty() {
                return Err(("handshake.when", "without a condition every request would be one".into()));
            }
            self.know_settings(handshake.templates()).map_err(|problem| ("handshake", problem))?;
        }
        Ok(())
    }

    fn know_settings<'t>(&self, templates: impl IntoIterator<Item = &'t Template>) -> Result<(), String> {
        let mut names = templates.into_iter().flat_map(Template::settings);
        match names.find(|name| !self.settings.contains_key(*name)) {
            Some(name) => Err(format!("{{setting:{name}}} is none of the row's settings")),
            None => Ok(()),
        }
    }

    /// Whether it may have sent a request, by whatever of it does not ask for the body.
    #[must_use]
    pub fn may_have_sent(&self, request: &Request<'_>) -> bool {
        self.marks.iter().any(|marks| marks.may_hold(request))
    }

    /// The first event of a request, and how many there are. An id or a type of more than 256 bytes is none.
    #[must_use]
    pub fn event(&self, request: &Request<'_>) -> Event {
        let settings = Settings::new();
        let scope = Scope::of(request, &settings);
        let first = |templates: &[Template]| {
            let text = templates.iter().find_map(|template| template.text(&scope));
            text.filter(|text| text.len() <= EVENT_MAX)
        };
        let count = self.batch.as_ref().map_or(1, |batch| batch.count(request).max(1));
        Event { id: first(&self.event_id), kind: first(&self.event_type), count }
    }

    /// The header that says what kind of event a request is about, where it is a header that does.
    #[must_use]
    pub fn type_header(&self) -> Option<&str> {
        self.event_type.iter().find_map(Template::header)
    }

    /// How long the provider waits for the whole answer, if that is known: [`Provider::source`] says how well.
    #[must_use]
    pub fn limit(&self) -> Option<Duration> {
        self.limit_ms.map(|limit| Duration::from_millis(limit.into()))
    }

    /// How long it waits for a connection, where that is a limit of its own.
    #[must_use]
    pub fn connect_limit(&self) -> Option<Duration> {
        self.connect_ms.map(|limit| Duration::from_millis(limit.into()))
    }

    /// By when an answer must be on its way: the limit less a margin for the way, 15 % and at least 300 ms.
    #[must_use]
    pub fn answer_within(&self) -> Option<Duration> {
        let margin = |limit: Duration| (limit * 15 / 100).max(Duration::from_millis(300));
        // The shortest limit that is known is half a second: something is always left.
        self.limit().map(|limit| limit.saturating_sub(margin(limit)).max(limit / 4))
    }

    /// What to do with a request that the app has not answered in time.
    #[must_use]
    pub fn on_deadline(&self, request: &Request<'_>) -> OnDeadline {
        let waits = self.wait_when.iter().any(|conditions| conditions.hold(request));
        if waits { OnDeadline::Wait } else { self.on_deadline }
    }

    /// What acknowledges one of its requests.
    #[must_use]
    pub fn answer(&self) -> &Answer {
        &self.answer
    }

    /// Which attempt it says this is, in its own words; nothing for a first one of which it says nothing.
    #[must_use]
    pub fn retry(&self, request: &Request<'_>) -> Option<String> {
        self.retry.as_ref()?.text(&Scope::of(request, &Settings::new()))
    }

    /// Whether an event is of the live or the test mode, in the provider's words.
    #[must_use]
    pub fn mode(&self, request: &Request<'_>) -> Option<&str> {
        let mode = self.mode.as_ref()?;
        let value = mode.at.one(request).ok()??;
        mode.words.get(&*String::from_utf8_lossy(&value)).map(String::as_str)
    }

    /// Pages about this request in the provider's own dashboard, by what they show: those that can be told from it.
    #[must_use]
    pub fn links(&self, request: &Request<'_>) -> Vec<(&str, String)> {
        let settings = Settings::new();
        let scope = Scope::of(request, &settings);
        let links = self.links.iter().filter_map(|(name, link)| Some((name.as_str(), link.text(&scope)?)));
        links.filter(|(_, url)| url.bytes().all(|byte| byte.is_ascii_graphic())).collect()
    }

    /// What its scheme needs beside the secret, and where the user finds each.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Where a fact is from; nothing for a user's own row.
    #[must_use]
    pub fn source(&self, fact: Fact) -> Option<&Source> {
        self.source.get(&fact)
    }

    /// The facts that the row states.
    #[must_use]
    pub fn facts(&self) -> Vec<Fact> {
        let stated = [
            (Fact::Match, !self.marks.is_empty()),
            (Fact::Event, !self.event_id.is_empty() || !self.event_type.is_empty()),
            (Fact::Limit, self.limit_ms.is_some() || self.connect_ms.is_some()),
            (Fact::Retries, self.retries.is_some() || self.retry.is_some()),
            (Fact::Answer, true),
            (Fact::Signature, !self.signature.is_empty()),
            (Fact::Handshake, !self.handshake.is_empty()),
            (Fact::Body, self.max_body.is_some()),
            (Fact::Links, !self.links.is_empty()),
        ];
        stated.into_iter().filter(|(_, stated)| *stated).map(|(fact, _)| fact).collect()
    }

    pub(super) fn secret_prefix(&self) -> Option<&str> {
        self.secret.prefix.as_deref()
    }

    /// Asks for the secret, and says where it is.
    pub(super) fn ask_for_secret(&self) -> Cow<'static, str> {
        let begins = self.secret_prefix().map(|prefix| format!(", which begins with {prefix}")).unwrap_or_default();
        match &self.secret.at {
            Some(at) => format!("give the secret of {}{begins}: {at}", self.name).into(),
            None => format!("give the secret of {}{begins}", self.name).into(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use std::sync::LazyLock;

    use http::{HeaderName, HeaderValue, Method};
    use proptest::prelude::*;

    use super::*;

    static TABLE: LazyLock<Table> = LazyLock::new(|| Table::built_in().unwrap());

    const HEADERS: [(&str, &str); 12] = [
        ("user-agent", "WooCommerce/9 Hookshot"),
        ("user-agent", "DropboxWebhooks/1.0"),
        ("user-agent", "curl/8"),
        ("authorization", "JWT abc"),
        ("authorization", "Bearer abc"),
        ("stripe-signature", "t=1,v1=00"),
        ("x-event-key", "repo:push"),
        ("x-hook-uuid", "1"),
        ("content-type", "application/json"),
        ("content-type", "application/x-www-form-urlencoded; charset=utf-8"),
        ("content-type", "text/plain"),
        ("x-github-event", "push"),
    ];
    const URLS: [&str; 5] = [
        "https://a.example/hook",
        "https://a.example/hook?crc_token=1",
        "https://a.example/hook?hub.mode=subscribe&hub.verify_token=1&hub.topic=t&hub.challenge=c",
        "https://a.example/hook?validationToken=v",
        "https://a.example/hook?",
    ];
    const BODIES: [&str; 8] = [
        "",
        "{}",
        r#"{"update_id":1}"#,
        r#"{"version":"4","groupKey":"k"}"#,
        r#"{"alerts":[],"orgId":1,"event":{"pulseId":2}}"#,
        "bt_signature=s&bt_payload=p",
        "webhook_id=7",
        "json=%7B%22event%22%3A%7B%22event_hash%22%3A%22h%22%7D%7D",
    ];

    proptest! {
        /// The index is an index: it finds whom a look at every row finds.
        #[test]
        fn whom_the_index_finds_is_the_first_of_all_rows_that_is_meant(
            picked in prop::collection::vec(0..HEADERS.len(), 0..5),
            url in prop::sample::select(&URLS[..]),
            body in prop::sample::select(&BODIES[..]),
            post in any::<bool>(),
        ) {
            let header = |index: &usize| {
                let (name, value) = HEADERS[*index];
                (HeaderName::from_static(name), HeaderValue::from_static(value))
            };
            let headers: Vec<_> = picked.iter().map(header).collect();
            let method = if post { Method::POST } else { Method::GET };
            let request = Request::new(&method, url, &headers, body.as_bytes());
            let all = TABLE.iter().find(|row| row.marks.iter().any(|mark| mark.hold(&request)));
            prop_assert_eq!(TABLE.recognise(&request).map(|row| &row.id), all.map(|row| &row.id));
        }
    }
}
