//! A request as its sender made it, and the places in it where providers put things.

use std::{borrow::Cow, fmt, str::FromStr, sync::OnceLock};

use http::{HeaderName, HeaderValue, Method};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode, percent_encode, utf8_percent_encode};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;

use super::json::{self, Level, Pointer, PointerError};

/// The most fields of a form or a query that are looked at; one with more says nothing to us.
const FIELDS_MAX: usize = 4096;

/// A request as it arrived at the public URL: what is recognised, judged and signed.
///
/// Parses its body at most once and only when a rule asks for what is in there, so that one is made per request and
/// lent to every question about it. Before the body has come it is empty, and only the head speaks.
#[derive(Debug)]
pub struct Request<'a> {
    pub(super) method: &'a Method,
    pub(super) url: &'a str,
    pub(super) headers: &'a [(HeaderName, HeaderValue)],
    pub(super) body: &'a [u8],
    json: OnceLock<Level<'a>>,
    form: OnceLock<Vec<Field<'a>>>,
    query: OnceLock<Vec<Field<'a>>>,
}

#[derive(Clone, Copy, Debug)]
enum FormType<'a> {
    UrlEncoded,
    /// With the parameters of the media type.
    Multipart(&'a str),
}

/// A part that not every request has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    /// Which they all have.
    #[default]
    Head,
    Query,
    Form,
}

/// A decoded pair of a form or a query.
pub(super) type Field<'a> = (Cow<'a, [u8]>, Cow<'a, [u8]>);

impl<'a> Request<'a> {
    /// `url` is the one that the provider called, with scheme and host and its query as it was sent, because some sign
    /// it; `headers` in the order in which they came; `body` byte for byte.
    #[must_use]
    pub fn new(method: &'a Method, url: &'a str, headers: &'a [(HeaderName, HeaderValue)], body: &'a [u8]) -> Self {
        // A fragment is never sent (RFC 3986, section 3.5), so that nobody signs it either.
        let url = url.split('#').next().unwrap_or(url);
        let (json, form, query) = (OnceLock::new(), OnceLock::new(), OnceLock::new());
        Self { method, url, headers, body, json, form, query }
    }

    /// The values of a header in the order in which they came.
    pub(super) fn header(&self, name: &str) -> impl Iterator<Item = &'a HeaderValue> {
        self.headers.iter().filter(move |(given, _)| given.as_str() == name).map(|(_, value)| value)
    }

    /// The fields of the body, decoded: of a form of either media type, none of anything else.
    pub(super) fn form(&self) -> &[Field<'a>] {
        let Some(form) = self.form_type() else { return &[] };
        self.form.get_or_init(|| match form {
            FormType::UrlEncoded => url_encoded(self.body),
            FormType::Multipart(parameters) => multipart(self.body, parameters),
        })
    }

    /// What kind of a form the body is said to be, if one.
    fn form_type(&self) -> Option<FormType<'a>> {
        let content_type = self.header("content-type").next()?.to_str().ok()?;
        let (kind, parameters) = content_type.split_once(';').unwrap_or((content_type, ""));
        match kind.trim() {
            kind if kind.eq_ignore_ascii_case("application/x-www-form-urlencoded") => Some(FormType::UrlEncoded),
            kind if kind.eq_ignore_ascii_case("multipart/form-data") => Some(FormType::Multipart(parameters)),
            _ => None,
        }
    }

    /// Whether it has such a part, be it an empty one.
    pub(super) fn has(&self, part: Part) -> bool {
        match part {
            Part::Head => true,
            Part::Query => self.url.contains('?'),
            Part::Form => self.form_type().is_some(),
        }
    }

    fn query(&self) -> &[Field<'a>] {
        self.query.get_or_init(|| url_encoded(Url::of(self.url).query.unwrap_or("").as_bytes()))
    }

    fn json(&self) -> &Level<'a> {
        self.json.get_or_init(|| Level::read(self.body))
    }

    /// Whether the body is understood, be it as JSON or as a form; in an empty one there is nothing to understand.
    pub(super) fn is_understood(&self) -> bool {
        self.body.is_empty() || !matches!(self.json(), Level::Leaf) || !self.form().is_empty()
    }
}

/// The parts of a URL, each as it is written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Url<'a> {
    /// Scheme, `://`, host and port.
    pub(super) origin: &'a str,
    pub(super) path: &'a str,
    pub(super) query: Option<&'a str>,
}

impl<'a> Url<'a> {
    pub(super) fn of(url: &'a str) -> Self {
        let url = url.split('#').next().unwrap_or(url);
        let (before, query) = url.split_once('?').map_or((url, None), |(before, query)| (before, Some(query)));
        let host = before.find("://").map_or(0, |at| at + 3);
        let path = before.get(host..).and_then(|rest| rest.find('/')).map_or(before.len(), |at| host + at);
        let (origin, path) = before.split_at_checked(path).unwrap_or((before, ""));
        Self { origin, path, query }
    }

    /// Path and query: what stands in the request line.
    pub(super) fn target(&self) -> String {
        let path = if self.path.is_empty() { "/" } else { self.path };
        self.query.map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"))
    }
}

/// Pairs of `application/x-www-form-urlencoded` (WHATWG URL, section 5.1), in their order.
pub(super) fn url_encoded(text: &[u8]) -> Vec<Field<'_>> {
    let decode = |part: &[u8]| -> Vec<u8> {
        let spaced: Vec<u8> = part.iter().map(|byte| if *byte == b'+' { b' ' } else { *byte }).collect();
        percent_decode(&spaced).collect()
    };
    let field = |part: &[u8]| {
        let mut halves = part.splitn(2, |byte| *byte == b'=');
        let mut half = || Cow::Owned(decode(halves.next().unwrap_or_default()));
        (half(), half())
    };
    let fields = text.split(|byte| *byte == b'&').filter(|part| !part.is_empty());
    limited(fields.take(FIELDS_MAX + 1).map(field).collect())
}

/// The fields of `multipart/form-data` that are no files (RFC 7578).
fn multipart<'a>(body: &'a [u8], parameters: &str) -> Vec<Field<'a>> {
    let boundary = parameters.split(';').find_map(|parameter| parameter.trim().strip_prefix("boundary="));
    let Some(boundary) =
        boundary.map(|boundary| boundary.trim_matches('"')).filter(|boundary| (1..=70).contains(&boundary.len()))
    else {
        return Vec::new();
    };
    let delimiter = format!("\r\n--{boundary}");
    let part = |part: &'a [u8]| -> Option<Field<'a>> {
        let blank = find(part, b"\r\n\r\n")?;
        let (head, value) = (part.get(..blank)?, part.get(blank + 4..)?);
        let head = String::from_utf8_lossy(head);
        let disposition = head.lines().find(|line| line.to_ascii_lowercase().starts_with("content-disposition:"))?;
        let mut parameters = disposition.split(';').map(str::trim);
        if parameters.clone().any(|parameter| parameter.starts_with("filename")) {
            return None;
        }
        let name = parameters.find_map(|parameter| parameter.strip_prefix("name="))?.trim_matches('"');
        Some((Cow::Owned(name.as_bytes().to_vec()), Cow::Borrowed(value)))
    };
    // The first delimiter may stand at the very beginning, where no line ends before it.
    let mut rest = body;
    let mut fields = Vec::new();
    let mut first = delimiter.as_bytes().get(2..).filter(|opening| rest.starts_with(opening)).map(<[u8]>::len);
    while fields.len() <= FIELDS_MAX {
        let begins = first.take().map_or_else(|| find(rest, delimiter.as_bytes()), |_| Some(0));
        let Some(after) = begins.and_then(|at| rest.get(at..)).and_then(|rest| rest.get(delimiter.len() - 2..)) else {
            break;
        };
        let after = after.get(find(after, b"\r\n").map_or(after.len(), |at| at + 2)..).unwrap_or_default();
        let ends = find(after, delimiter.as_bytes()).unwrap_or(after.len());
        fields.extend(after.get(..ends).and_then(part));
        rest = after.get(ends..).unwrap_or_default();
    }
    limited(fields)
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

fn limited(fields: Vec<Field<'_>>) -> Vec<Field<'_>> {
    if fields.len() > FIELDS_MAX { Vec::new() } else { fields }
}

/// One of the places of a request where a provider puts a value, as the table writes it:
///
/// | written | means |
/// |---|---|
/// | `header:NAME`, `header:NAME-*` | a header; all whose names begin so |
/// | `json:/POINTER` | a value of a JSON body; `*` as a step stands for every member |
/// | `number:/POINTER` | the same, where it is written as a number |
/// | `form:NAME` | a field of a form |
/// | `form:NAME#/POINTER` | a value of the JSON in that field |
/// | `query:NAME` | a parameter of the URL |
/// | `method` | the method |
/// | `path` | the path of the URL, without its query |
///
/// In the order in which they are cheap to look at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub(super) enum Place {
    Method,
    Path,
    Header(String),
    Headers(String),
    Query(String),
    Form(String, Option<Pointer>),
    Json(Pointer),
    Number(Pointer),
}

/// What names no place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum PlaceError {
    #[error(
        "{0:?} names no place of a request: write header:NAME, json:/POINTER, number:/POINTER, form:NAME, query:NAME, \
         method or path"
    )]
    Unknown(String),
    #[error("{0:?} is no name of a header")]
    Header(String),
    #[error(transparent)]
    Pointer(#[from] PointerError),
}

impl TryFrom<String> for Place {
    type Error = PlaceError;

    fn try_from(text: String) -> Result<Self, PlaceError> {
        text.parse()
    }
}

impl FromStr for Place {
    type Err = PlaceError;

    fn from_str(text: &str) -> Result<Self, PlaceError> {
        let header = |name: &str| match HeaderName::from_bytes(name.as_bytes()) {
            Ok(name) => Ok(name.as_str().to_owned()),
            Err(_) => Err(PlaceError::Header(name.to_owned())),
        };
        match text.split_once(':') {
            None if text == "method" => Ok(Self::Method),
            None if text == "path" => Ok(Self::Path),
            Some(("header", name)) => match name.strip_suffix('*') {
                Some(prefix) => header(prefix).map(Self::Headers),
                None => header(name).map(Self::Header),
            },
            Some(("query", name)) => Ok(Self::Query(name.to_owned())),
            Some(("json", pointer)) => Ok(Self::Json(pointer.parse()?)),
            Some(("number", pointer)) => Ok(Self::Number(pointer.parse()?)),
            Some(("form", field)) => Ok(match field.split_once('#') {
                Some((name, pointer)) => Self::Form(name.to_owned(), Some(pointer.parse()?)),
                None => Self::Form(field.to_owned(), None),
            }),
            _ => Err(PlaceError::Unknown(text.to_owned())),
        }
    }
}

/// As the table writes it.
impl Serialize for Place {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Method => serializer.serialize_str("method"),
            Self::Path => serializer.serialize_str("path"),
            Self::Header(name) => serializer.collect_str(&format_args!("header:{name}")),
            Self::Headers(prefix) => serializer.collect_str(&format_args!("header:{prefix}*")),
            Self::Query(name) => serializer.collect_str(&format_args!("query:{name}")),
            Self::Form(name, None) => serializer.collect_str(&format_args!("form:{name}")),
            Self::Form(name, Some(pointer)) => serializer.collect_str(&format_args!("form:{name}#{pointer}")),
            Self::Json(pointer) => serializer.collect_str(&format_args!("json:{pointer}")),
            Self::Number(pointer) => serializer.collect_str(&format_args!("number:{pointer}")),
        }
    }
}

/// As a person is told where to look.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Method => f.write_str("the method"),
            Self::Path => f.write_str("the path"),
            Self::Header(name) => write!(f, "the header {name}"),
            Self::Headers(prefix) => write!(f, "a header {prefix}*"),
            Self::Query(name) => write!(f, "the parameter {name} of the URL"),
            Self::Form(name, None) => write!(f, "the form field {name}"),
            Self::Form(name, Some(pointer)) => write!(f, "{pointer} in the form field {name}"),
            Self::Json(pointer) => write!(f, "{pointer} in the JSON body"),
            Self::Number(pointer) => write!(f, "the number {pointer} in the JSON body"),
        }
    }
}

/// A place holds several values that differ, and whoever reads the request next may take another one than we do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ambiguous;

impl Place {
    /// All that stands there as text.
    pub(super) fn all<'r>(&self, request: &'r Request<'_>) -> Vec<Cow<'r, [u8]>> {
        let texts = |values: Vec<&'r RawValue>| {
            let texts = values.into_iter().filter_map(json::text);
            texts.map(|text| match text {
                Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
                Cow::Owned(text) => Cow::Owned(text.into_bytes()),
            })
        };
        let named = |fields: &'r [Field<'_>], name: &str| -> Vec<Cow<'r, [u8]>> {
            let values = fields.iter().filter(|(given, _)| **given == *name.as_bytes());
            values.map(|(_, value)| Cow::Borrowed(&**value)).collect()
        };
        match self {
            Self::Method => vec![Cow::Borrowed(request.method.as_str().as_bytes())],
            Self::Path => vec![Cow::Borrowed(Url::of(request.url).path.as_bytes())],
            Self::Header(name) => request.header(name).map(|value| Cow::Borrowed(value.as_bytes())).collect(),
            Self::Headers(prefix) => {
                let named = request.headers.iter().filter(|(name, _)| name.as_str().starts_with(prefix.as_str()));
                named.map(|(_, value)| Cow::Borrowed(value.as_bytes())).collect()
            }
            Self::Query(name) => named(request.query(), name),
            Self::Form(name, None) => named(request.form(), name),
            Self::Form(..) | Self::Json(_) => texts(self.values(request)).collect(),
            Self::Number(_) => {
                let numbers = self.values(request).into_iter().filter(|value| json::is_number(value));
                texts(numbers.collect()).collect()
            }
        }
    }

    /// Whether one of the texts there is such a one.
    pub(super) fn any(&self, request: &Request<'_>, is: impl Fn(&[u8]) -> bool) -> bool {
        match self {
            Self::Method => is(request.method.as_str().as_bytes()),
            Self::Header(name) => request.header(name).any(|value| is(value.as_bytes())),
            _ => self.all(request).iter().any(|text| is(text)),
        }
    }

    /// A name that stands in each JSON body in which there is something.
    pub(super) fn name_in_json(&self) -> Option<&str> {
        match self {
            Self::Json(pointer) | Self::Number(pointer) => pointer.name(),
            _ => None,
        }
    }

    /// Whether everything that stands there can be found.
    pub(super) fn is_read(&self, request: &Request<'_>) -> bool {
        match self {
            Self::Json(pointer) | Self::Number(pointer) => {
                request.is_understood() && request.json().find_all(pointer).is_some()
            }
            Self::Form(name, pointer) => {
                let mut fields = request.form().iter().filter(|(given, _)| **given == *name.as_bytes());
                let is_read = |value: &[u8], pointer: &Pointer| match Level::read(value) {
                    Level::Leaf => false,
                    level => level.find_all(pointer).is_some(),
                };
                let is_read = |value| pointer.as_ref().is_none_or(|pointer| is_read(value, pointer));
                request.is_understood() && fields.all(|(_, value)| is_read(value))
            }
            _ => true,
        }
    }

    /// The one text that stands there.
    ///
    /// # Errors
    /// [`Ambiguous`]: there are several.
    pub(super) fn one<'r>(&self, request: &'r Request<'_>) -> Result<Option<Cow<'r, [u8]>>, Ambiguous> {
        let mut all = self.all(request).into_iter();
        let first = all.next();
        if all.any(|other| Some(other) != first) { Err(Ambiguous) } else { Ok(first) }
    }

    /// Whether there is anything, be it an object without a text.
    pub(super) fn is_there(&self, request: &Request<'_>) -> bool {
        match self {
            Self::Json(_) | Self::Form(_, Some(_)) => self.values(request).into_iter().any(json::is_something),
            _ => self.any(request, |_| true),
        }
    }

    /// The part of a request in which it is.
    pub(super) fn part(&self) -> Part {
        match self {
            Self::Query(_) => Part::Query,
            Self::Form(..) => Part::Form,
            _ => Part::Head,
        }
    }

    pub(super) fn is_in_body(&self) -> bool {
        matches!(self, Self::Form(..) | Self::Json(_) | Self::Number(_))
    }

    /// How many values there are.
    pub(super) fn count(&self, request: &Request<'_>) -> usize {
        match self {
            Self::Json(_) | Self::Form(_, Some(_)) => self.values(request).len(),
            _ => self.all(request).len(),
        }
    }

    /// The JSON values of this place, which borrow the request's bytes.
    fn values<'r>(&self, request: &'r Request<'_>) -> Vec<&'r RawValue> {
        match self {
            Self::Json(pointer) | Self::Number(pointer) => request.json().find(pointer),
            Self::Form(name, Some(pointer)) => {
                let fields = request.form().iter().filter(|(given, _)| **given == *name.as_bytes());
                fields.flat_map(|(_, value)| Level::read(value).find(pointer)).collect()
            }
            _ => Vec::new(),
        }
    }
}

/// A request that is being written: what signing changes and gives back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    /// With the parameters that a scheme adds.
    pub url: String,
    /// In their order, new ones behind.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Byte for byte the original, but for values of the signature that stand in it.
    pub body: Vec<u8>,
}

impl From<&Request<'_>> for Draft {
    fn from(request: &Request<'_>) -> Self {
        Self { url: request.url.to_owned(), headers: request.headers.to_vec(), body: request.body.to_vec() }
    }
}

impl Draft {
    /// Puts a text where `place` says: in the stead of what stands there, or as a new header, field or parameter. In
    /// JSON something must stand there already. `None` where it cannot be put.
    pub(super) fn set(&mut self, method: &Method, place: &Place, text: &str) -> Option<()> {
        match place {
            Place::Header(name) => {
                let value = HeaderValue::from_str(text).ok()?;
                match self.headers.iter_mut().find(|(given, _)| given.as_str() == name) {
                    Some((_, old)) => *old = value,
                    None => self.headers.push((HeaderName::from_bytes(name.as_bytes()).ok()?, value)),
                }
                let mut seen = false;
                self.headers.retain(|(given, _)| given.as_str() != name || !std::mem::replace(&mut seen, true));
            }
            // As its first signature; the others belonged to other keys.
            Place::Headers(prefix) => {
                self.headers.retain(|(given, _)| !given.as_str().starts_with(prefix.as_str()));
                self.set(method, &Place::Header(format!("{prefix}1")), text)?;
            }
            Place::Json(_) | Place::Number(_) => {
                let quoted = serde_json::to_string(text).ok()?;
                self.splice(method, place, |old| if json::is_number(old) { text } else { &quoted })?;
            }
            Place::Query(name) => {
                let (before, query) = self.url.split_once('?').unwrap_or((&self.url, ""));
                self.url = format!("{before}?{}", with_field(query, name, text));
            }
            Place::Form(name, None) => {
                let fields = with_field(std::str::from_utf8(&self.body).ok()?, name, text);
                self.body = fields.into_bytes();
            }
            Place::Method | Place::Path | Place::Form(_, Some(_)) => return None,
        }
        Some(())
    }

    /// Puts a value in the stead of the one at a JSON pointer (RFC 6901) into the body, as in `/data/id`, where `*` stands
    /// for every member; in a form, of the field of that name. In the place of a string it is a string, unless it is an
    /// object, an array, null or in quotes; elsewhere it is JSON where it can be. Nothing else moves.
    ///
    /// # Errors
    /// [`ReplaceError`]; the body is as it was.
    pub fn replace(&mut self, pointer: &str, value: &str) -> Result<(), ReplaceError> {
        let method = &Method::POST;
        let steps: Pointer = pointer.parse().map_err(|_| ReplaceError::Pointer(pointer.to_owned()))?;
        let missing = || ReplaceError::Missing(pointer.to_owned());
        let field = pointer.get(1..).unwrap_or_default();
        let request = Request::new(method, &self.url, &self.headers, &self.body);
        if request.form().iter().any(|(name, _)| **name == *field.as_bytes()) {
            return self.set(method, &Place::Form(field.to_owned(), None), value).ok_or_else(missing);
        }
        let quoted = serde_json::to_string(value).map_err(|_| missing())?;
        let given: Option<&RawValue> = serde_json::from_str(value).ok();
        let new = |old: &RawValue| match given {
            Some(_) if json::is_text(old) && !value.trim_start().starts_with(['{', '[', '"', 'n']) => quoted.as_str(),
            Some(given) => given.get(),
            None => quoted.as_str(),
        };
        self.splice(method, &Place::Json(steps), new).ok_or_else(missing)
    }

    /// Puts what `new` makes of each JSON value of a place into its stead. `None` where there is none.
    fn splice<'n>(&mut self, method: &Method, place: &Place, new: impl Fn(&RawValue) -> &'n str) -> Option<()> {
        let request = Request::new(method, &self.url, &self.headers, &self.body);
        let values = place.values(&request);
        let parts = values.into_iter().map(|value| (value.get().as_bytes(), new(value).as_bytes().into()));
        let parts: Vec<_> = parts.collect();
        if parts.is_empty() {
            return None;
        }
        self.body = spliced(&self.body, parts)?;
        Some(())
    }

    /// Puts a text in the stead of everything that stands at a place, and moves nothing else. A body in which not all of
    /// that can be found is replaced as a whole.
    pub(super) fn mask(&mut self, place: &Place, instead: &str) {
        let is_header = |name: &HeaderName| match place {
            Place::Header(wanted) => name.as_str() == wanted,
            Place::Headers(prefix) => name.as_str().starts_with(prefix.as_str()),
            _ => false,
        };
        match place {
            Place::Header(_) | Place::Headers(_) => {
                let Ok(new) = HeaderValue::from_str(instead) else { return };
                let values = self.headers.iter_mut().filter(|(name, _)| is_header(name));
                values.for_each(|(_, value)| value.clone_from(&new));
            }
            Place::Query(name) => self.mask_query(|given| given == name, instead),
            Place::Json(pointer) | Place::Number(pointer) => {
                self.body = masked_json(&self.body, pointer, instead).unwrap_or_else(|| instead.into());
            }
            Place::Form(name, pointer) => {
                let form = self.masked_form(name.as_bytes(), pointer.as_ref(), instead);
                self.body = form.unwrap_or_else(|| instead.into());
            }
            // Neither is a secret's place, which the table is checked for.
            Place::Method | Place::Path => {}
        }
    }

    /// Puts a text in the stead of the values of the URL's parameters whose names are meant.
    pub fn mask_query(&mut self, is_meant: impl Fn(&str) -> bool, instead: &str) {
        let Some((before, query)) = self.url.split_once('?') else { return };
        let query = with_fields(query, |name, _| {
            let is_meant = std::str::from_utf8(name).is_ok_and(&is_meant);
            is_meant.then(|| instead.as_bytes().into())
        });
        self.url = format!("{before}?{query}");
    }

    /// The body, a form, without what stands in one of its fields; `None` where that cannot be taken out.
    fn masked_form(&self, name: &[u8], pointer: Option<&Pointer>, instead: &str) -> Option<Vec<u8>> {
        let masked = |value: &[u8]| {
            let is_json = !matches!(Level::read(value), Level::Leaf);
            let json = pointer.filter(|_| is_json).and_then(|pointer| masked_json(value, pointer, instead));
            json.unwrap_or_else(|| instead.into())
        };
        let request = Request::new(&Method::POST, &self.url, &self.headers, &self.body);
        let fields = request.form().iter().filter(|(given, _)| **given == *name);
        // Those of a multipart form stand in the body as they are.
        let (parts, encoded): (Vec<_>, Vec<_>) = fields.partition(|(_, value)| matches!(value, Cow::Borrowed(_)));
        if encoded.is_empty() {
            return spliced(&self.body, parts.into_iter().map(|(_, value)| (&**value, masked(value).into())).collect());
        }
        let new = |given: &[u8], value: &[u8]| (given == name).then(|| masked(value));
        Some(with_fields(std::str::from_utf8(&self.body).ok()?, new).into_bytes())
    }
}

/// A document with something else in the stead of some of its parts. A part is a slice of the document, which says where it
/// stands by where it lies; `None` where one is not.
fn spliced(document: &[u8], parts: Vec<(&[u8], Cow<'_, [u8]>)>) -> Option<Vec<u8>> {
    let placed = parts.into_iter().map(|(part, new)| {
        let at = part.as_ptr().addr().checked_sub(document.as_ptr().addr())?;
        Some((at, at.checked_add(part.len())?, new))
    });
    let mut placed: Vec<_> = placed.collect::<Option<_>>()?;
    placed.sort_unstable_by_key(|(from, ..)| *from);
    let (mut spliced, mut done) = (Vec::with_capacity(document.len()), 0);
    for (from, to, new) in placed {
        spliced.extend_from_slice(document.get(done..from)?);
        spliced.extend_from_slice(&new);
        done = to;
    }
    spliced.extend_from_slice(document.get(done..)?);
    Some(spliced)
}

/// JSON with a text in the stead of everything that a pointer leads to; `None` where not all of that can be found.
fn masked_json(document: &[u8], pointer: &Pointer, instead: &str) -> Option<Vec<u8>> {
    let quoted = serde_json::to_string(instead).ok()?;
    let level = Level::read(document);
    if matches!(level, Level::Leaf) && json::has_members(document) {
        return None;
    }
    let found = level.find_all(pointer)?;
    let found = found.into_iter().filter(|value| json::is_something(value));
    spliced(document, found.map(|value| (value.get().as_bytes(), quoted.as_bytes().into())).collect())
}

/// Why nothing was put into a body.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplaceError {
    /// It names no place.
    #[error("{0:?} is no JSON pointer: it begins with a slash, as in /data/id")]
    Pointer(String),
    /// Nothing stands there.
    #[error("the body has nothing at {0}")]
    Missing(String),
}

/// What is encoded in a form (WHATWG URL, section 1.3).
const FORM: &AsciiSet = &NON_ALPHANUMERIC.remove(b'*').remove(b'-').remove(b'.').remove(b'_');

/// A form's fields with what `new` makes of the name and the value of some of them; the others as they are written.
fn with_fields(fields: &str, new: impl Fn(&[u8], &[u8]) -> Option<Vec<u8>>) -> String {
    let field = |field: &str| {
        let value = url_encoded(field.as_bytes()).first().and_then(|(name, value)| new(name, value));
        let name = field.split('=').next().unwrap_or_default();
        value.map_or_else(|| field.to_owned(), |value| format!("{name}={}", percent_encode(&value, FORM)))
    };
    fields.split('&').map(field).collect::<Vec<_>>().join("&")
}

/// A form's fields with one of them set, the others as they are written.
fn with_field(fields: &str, name: &str, text: &str) -> String {
    let encode = |text| utf8_percent_encode(text, FORM);
    let new = format!("{}={}", encode(name), encode(text));
    let is_it = |field: &&str| url_encoded(field.as_bytes()).iter().any(|(given, _)| **given == *name.as_bytes());
    let others = fields.split('&').filter(|field| !field.is_empty() && !is_it(field));
    others.chain([new.as_str()]).collect::<Vec<_>>().join("&")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(&'static str, &str)]) -> Vec<(HeaderName, HeaderValue)> {
        let header = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
        };
        list.iter().map(header).collect()
    }

    fn all(place: &str, request: &Request<'_>) -> Vec<String> {
        let place: Place = place.parse().unwrap();
        place.all(request).into_iter().map(|text| String::from_utf8(text.into_owned()).unwrap()).collect()
    }

    #[test]
    fn every_place_is_found() {
        let list = headers(&[("content-type", "application/json"), ("x-sig-1", "a"), ("x-sig-2", "b")]);
        let body = br#"{"id":"e","n":1.50,"list":[{"k":"x"},{"k":"y"}],"none":null}"#;
        let request = Request::new(&Method::POST, "https://a.example:1/p/q?x=1%202&x=3+4&y#f", &list, body);
        assert_eq!(all("method", &request), ["POST"]);
        assert_eq!(all("header:X-Sig-1", &request), ["a"]);
        assert_eq!(all("header:x-sig-*", &request), ["a", "b"]);
        assert_eq!(all("query:x", &request), ["1 2", "3 4"]);
        assert_eq!(all("query:y", &request), [""]);
        assert_eq!(all("json:/id", &request), ["e"]);
        assert_eq!(all("json:/n", &request), ["1.50"]);
        assert_eq!(all("number:/n", &request), ["1.50"]);
        assert_eq!(all("number:/id", &request), [""; 0]);
        assert_eq!(all("json:/list/*/k", &request), ["x", "y"]);
        assert_eq!(all("json:/none", &request), [""; 0]);
        assert!("json:/list".parse::<Place>().unwrap().is_there(&request));
        assert!(!"json:/none".parse::<Place>().unwrap().is_there(&request));
        for wrong in ["", "body", "header:a b", "json:x", "cookie:x"] {
            assert!(wrong.parse::<Place>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_form_is_read_in_both_of_its_media_types() {
        let list = headers(&[("content-type", "application/x-www-form-urlencoded; charset=UTF-8")]);
        let request = Request::new(&Method::POST, "https://a.example", &list, b"a=1+%2B&b=%7B%22c%22%3A5%7D&&a=2");
        assert_eq!(all("form:a", &request), ["1 +", "2"]);
        assert_eq!(all("form:b#/c", &request), ["5"]);
        assert_eq!("form:a".parse::<Place>().unwrap().one(&request), Err(Ambiguous));

        let list = headers(&[("content-type", "multipart/form-data; boundary=\"xx\"")]);
        let body = b"--xx\r\nContent-Disposition: form-data; name=\"json\"\r\n\r\n{\"e\":\"f\"}\r\n--xx\r\n\
            content-disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\nno\r\n--xx\r\n\
            Content-Disposition: form-data; name=\"b\"\r\n\r\n\r\n--xx--\r\n";
        let request = Request::new(&Method::POST, "https://a.example", &list, body);
        assert_eq!(all("form:json#/e", &request), ["f"]);
        assert_eq!(all("form:file", &request), [""; 0]);
        assert_eq!(all("form:b", &request), [""]);
    }

    #[test]
    fn more_fields_than_anybody_sends_say_nothing() {
        let list = headers(&[("content-type", "application/x-www-form-urlencoded")]);
        let body = "a=1&".repeat(FIELDS_MAX + 1);
        let request = Request::new(&Method::POST, "https://a.example", &list, body.as_bytes());
        assert_eq!(request.form().len(), 0);
    }

    #[test]
    fn a_value_is_replaced_by_one_of_its_kind() {
        let mut draft = Draft {
            url: String::new(),
            headers: Vec::new(),
            body: br#"{"s": "old", "n": 1.50, "list": [{"k": true}, {"k": null}]}"#.to_vec(),
        };
        for (pointer, value, body) in [
            ("/s", "5", r#"{"s": "5", "n": 1.50, "list": [{"k": true}, {"k": null}]}"#),
            ("/s", "tr\"ue", r#"{"s": "tr\"ue", "n": 1.50, "list": [{"k": true}, {"k": null}]}"#),
            ("/n", "2.0", r#"{"s": "tr\"ue", "n": 2.0, "list": [{"k": true}, {"k": null}]}"#),
            ("/n", "many", r#"{"s": "tr\"ue", "n": "many", "list": [{"k": true}, {"k": null}]}"#),
            ("/list/*/k", "[1]", r#"{"s": "tr\"ue", "n": "many", "list": [{"k": [1]}, {"k": [1]}]}"#),
            ("/list", "null", r#"{"s": "tr\"ue", "n": "many", "list": null}"#),
            ("/s", "{\"a\": 1}", r#"{"s": {"a": 1}, "n": "many", "list": null}"#),
        ] {
            draft.replace(pointer, value).unwrap();
            assert_eq!(String::from_utf8(draft.body.clone()).unwrap(), body, "{pointer}={value}");
        }
        assert_eq!(draft.replace("/none", "1"), Err(ReplaceError::Missing("/none".into())));
        assert_eq!(draft.replace("s", "1"), Err(ReplaceError::Pointer("s".into())));
        draft.headers = headers(&[("content-type", "application/x-www-form-urlencoded")]);
        draft.body = b"From=%2B1&To=2".to_vec();
        draft.replace("/From", "+49 1").unwrap();
        assert_eq!(draft.body, b"To=2&From=%2B49%201");
        assert!(draft.replace("/Body", "x").is_err());
    }

    #[test]
    fn what_is_set_stands_there_and_nothing_else_moves() {
        let list = headers(&[("x-a", "1"), ("content-type", "application/x-www-form-urlencoded"), ("x-a", "2")]);
        let body = br#"{"t": 17 , "s":{"g" :"old"}}"#;
        let mut draft = Draft::from(&Request::new(&Method::POST, "https://a.example/?k=1%20&v=2", &list, body));
        let mut set = |place: &str, text| draft.set(&Method::POST, &place.parse().unwrap(), text);
        set("header:x-a", "3").unwrap();
        set("header:x-b", "4").unwrap();
        set("query:v", "a b").unwrap();
        set("number:/t", "18").unwrap();
        set("json:/s/g", "ne\"w").unwrap();
        assert_eq!(set("json:/s/none", "x"), None);
        assert_eq!(draft.url, "https://a.example/?k=1%20&v=a%20b");
        assert_eq!(draft.body, br#"{"t": 18 , "s":{"g" :"ne\"w"}}"#);
        let names: Vec<_> =
            draft.headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        assert_eq!(names, [("x-a", "3"), ("content-type", "application/x-www-form-urlencoded"), ("x-b", "4")]);
        draft.body = b"a=1%20&sig=old&b".to_vec();
        draft.set(&Method::POST, &"form:sig".parse().unwrap(), "pub|1").unwrap();
        assert_eq!(draft.body, b"a=1%20&b&sig=pub%7C1");
    }

    #[test]
    fn what_is_masked_is_gone_and_nothing_else_moves() {
        const FORM: &str = "application/x-www-form-urlencoded";
        const PARTS: &str = "multipart/form-data; boundary=x";
        let many = |value: &str| format!("{{\"l\":[{}]}}", vec![value; MANY].join(","));
        const MANY: usize = 10_001;
        for (kind, place, body, masked) in [
            ("", "json:/t", r#"{"t" : "S", "a":1.0,"t":["S"],"u":"x"}"#, r#"{"t" : "***", "a":1.0,"t":"***","u":"x"}"#),
            (
                "",
                "json:/l/*/t",
                r#"{"l":[{"t":"S"},{"t":null},{"a":2},{"t":7}]}"#,
                r#"{"l":[{"t":"***"},{"t":null},{"a":2},{"t":"***"}]}"#,
            ),
            ("", "json:/t", r#"{"\u0074":"S"}"#, r#"{"\u0074":"***"}"#),
            ("", "json:/l/*/t", &many(r#"{"t":"S"}"#), "***"),
            (FORM, "form:t", "a=1+%20&t=S&b&%74=S%20S&t", "a=1+%20&t=***&b&%74=***&t=***"),
            (FORM, "form:p#/t", "a=1&p=%7B%22t%22%3A+%22S%22%7D", "a=1&p=%7B%22t%22%3A%20%22***%22%7D"),
            (FORM, "form:p#/t", "p=S%22", "p=***"),
            (FORM, "json:/t", "{\"t\":\"S", "***"),
            (
                PARTS,
                "form:t",
                "--x\r\ncontent-disposition: form-data; name=\"t\"\r\n\r\nS\r\n--x\r\ncontent-disposition: form-data; \
                 name=\"u\"\r\n\r\n1\r\n--x--\r\n",
                "--x\r\ncontent-disposition: form-data; name=\"t\"\r\n\r\n***\r\n--x\r\ncontent-disposition: form-data; \
                 name=\"u\"\r\n\r\n1\r\n--x--\r\n",
            ),
        ] {
            let list = headers(&[("content-type", kind)]);
            let mut draft = Draft::from(&Request::new(&Method::POST, "https://a.example/", &list, body.as_bytes()));
            draft.mask(&place.parse().unwrap(), "***");
            assert_eq!(String::from_utf8(draft.body).unwrap(), masked, "{place}");
        }
        let list = headers(&[("x-t", "S"), ("x-u", "1"), ("x-t", "S")]);
        let url = "https://a.example/p?a=%20&t=S&&%74=S&b=1";
        let mut draft = Draft::from(&Request::new(&Method::POST, url, &list, b""));
        draft.mask(&"header:x-t".parse().unwrap(), "***");
        draft.mask(&"query:t".parse().unwrap(), "***");
        assert_eq!(draft.url, "https://a.example/p?a=%20&t=***&&%74=***&b=1");
        assert_eq!(draft.headers, headers(&[("x-t", "***"), ("x-u", "1"), ("x-t", "***")]));
    }
}
