//! Texts that a row of the table composes out of a request: what a signature covers, an event's id, an answer.

use std::{borrow::Cow, fmt, str::FromStr};

use aws_lc_rs::digest::{SHA256, digest};
use serde::Deserialize;

use super::{
    credentials::Settings,
    request::{Place, PlaceError, Request, Url, url_encoded},
    scheme::hex,
};

/// Literal text with `{…}` in it, where something else comes in its stead. A part in `[…]` is left out when a value
/// within it is not there or empty.
///
/// | written | means |
/// |---|---|
/// | `{body}`, `{sha256}`, `{crc32}` | the body; its SHA-256 in hex; its CRC-32 as a decimal number |
/// | `{timestamp}` | the time of signing, as the request writes it |
/// | `{method}`, `{url}` | the method; the public URL |
/// | `{origin}`, `{path}`, `{target}` | its scheme and host; its path; path and query |
/// | `{sorted-query}`, `{decoded-query}` | the fields of its query in order, as they are written or decoded |
/// | `{form}` | the form's fields in the order of their names, each as its name and its value |
/// | `{secret}` | the secret, for schemes that hash it without a key |
/// | `{setting:NAME}`, `{setting:NAME\|WORD}` | a setting of the user's; or another word of this table |
/// | `{listed:NAME}` | the headers that the header NAME lists, as `name:value` with `;` between |
/// | `{signed:PLACE}` | what the provider's signature over that text would be |
/// | `{PLACE}` | the text at a [`Place`] |
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Template(Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Body,
    Sha256,
    Crc32,
    Timestamp,
    Url,
    Origin,
    Path,
    Target,
    SortedQuery,
    DecodedQuery,
    Form,
    Secret,
    Setting(String, Option<Box<Piece>>),
    Listed(String),
    Signed(Place),
    Value(Place),
    Optional(Template),
}

/// What is no template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum TemplateError {
    #[error("{0:?} has a bracket without its other half")]
    Bracket(String),
    #[error("{{{name}}} is neither a word that templates know nor a place: {error}")]
    Word { name: String, error: PlaceError },
}

impl TryFrom<String> for Template {
    type Error = TemplateError;

    fn try_from(text: String) -> Result<Self, TemplateError> {
        text.parse()
    }
}

impl FromStr for Template {
    type Err = TemplateError;

    fn from_str(text: &str) -> Result<Self, TemplateError> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let unpaired = || TemplateError::Bracket(text.to_owned());
            let literal = rest.find(['{', '[', '}', ']']).unwrap_or(rest.len());
            let (before, from) = rest.split_at_checked(literal).ok_or_else(unpaired)?;
            if !before.is_empty() {
                pieces.push(Piece::Text(before.to_owned()));
            }
            rest = from;
            if let Some(word) = rest.strip_prefix('{') {
                let (word, after) = word.split_once('}').ok_or_else(unpaired)?;
                pieces.push(Piece::of(word)?);
                rest = after;
            } else if let Some(optional) = rest.strip_prefix('[') {
                let (optional, after) = optional.split_once(']').ok_or_else(unpaired)?;
                pieces.push(Piece::Optional(optional.parse()?));
                rest = after;
            } else if !rest.is_empty() {
                return Err(unpaired());
            }
        }
        Ok(Self(pieces))
    }
}

impl Piece {
    fn of(word: &str) -> Result<Self, TemplateError> {
        let place = |name: &str| {
            let named = |error| TemplateError::Word { name: word.to_owned(), error };
            name.parse::<Place>().map_err(named)
        };
        Ok(match word.split_once(':') {
            None => match word {
                "body" => Self::Body,
                "sha256" => Self::Sha256,
                "crc32" => Self::Crc32,
                "timestamp" => Self::Timestamp,
                "url" => Self::Url,
                "origin" => Self::Origin,
                "path" => Self::Path,
                "target" => Self::Target,
                "sorted-query" => Self::SortedQuery,
                "decoded-query" => Self::DecodedQuery,
                "form" => Self::Form,
                "secret" => Self::Secret,
                word => Self::Value(place(word)?),
            },
            Some(("setting", name)) => match name.split_once('|') {
                Some((name, instead)) => Self::Setting(name.to_owned(), Some(Box::new(Self::of(instead)?))),
                None => Self::Setting(name.to_owned(), None),
            },
            Some(("listed", name)) => Self::Listed(name.to_ascii_lowercase()),
            Some(("signed", name)) => Self::Signed(place(name)?),
            Some(_) => Self::Value(place(word)?),
        })
    }
}

/// What a template is filled from.
#[derive(Clone, Copy)]
pub(super) struct Scope<'s, 'a> {
    pub(super) request: &'s Request<'a>,
    /// The body and the URL, which may be tried in other forms than the request has them in.
    pub(super) body: &'s [u8],
    pub(super) url: &'s str,
    pub(super) timestamp: &'s [u8],
    pub(super) secret: &'s [u8],
    pub(super) settings: &'s Settings,
    /// Signs a text as the provider does.
    pub(super) sign: Option<Sign<'s>>,
}

type Sign<'s> = &'s dyn Fn(&[u8]) -> Option<String>;

impl<'s, 'a> Scope<'s, 'a> {
    /// The request as it is, without a secret.
    pub(super) fn of(request: &'s Request<'a>, settings: &'s Settings) -> Self {
        Self { request, body: request.body, url: request.url, timestamp: b"", secret: b"", settings, sign: None }
    }
}

/// Why a template cannot be filled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Lacking {
    #[error("the request lacks {0}")]
    Value(Place),
    #[error("the request has {0} several times, with different values")]
    Ambiguous(Place),
    #[error("the setting {0} is not given")]
    Setting(String),
    #[error("the body is not a form that can be read")]
    Form,
    #[error("what it asks to be signed is not signed: no secret is given, or it is no mere challenge")]
    Signature,
}

impl Template {
    /// Writes it out, piece by piece.
    ///
    /// # Errors
    /// [`Lacking`], after some of it may have been written.
    pub(super) fn write(&self, scope: &Scope<'_, '_>, out: &mut dyn FnMut(&[u8])) -> Result<(), Lacking> {
        self.0.iter().try_for_each(|piece| piece.write(scope, out))
    }

    /// The whole as bytes.
    ///
    /// # Errors
    /// As [`Template::write`].
    pub(super) fn bytes(&self, scope: &Scope<'_, '_>) -> Result<Vec<u8>, Lacking> {
        let mut bytes = Vec::new();
        self.write(scope, &mut |part| bytes.extend_from_slice(part))?;
        Ok(bytes)
    }

    /// The whole as text, if all of it is there and it is not empty.
    pub(super) fn text(&self, scope: &Scope<'_, '_>) -> Option<String> {
        let bytes = self.bytes(scope).ok().filter(|bytes| !bytes.is_empty())?;
        Some(String::from_utf8(bytes).unwrap_or_else(|error| lossy(error.as_bytes()).into_owned()))
    }

    pub(super) fn has_body(&self) -> bool {
        self.has(|piece| matches!(piece, Piece::Body | Piece::Sha256 | Piece::Crc32 | Piece::Form))
    }

    /// Whether the whole body is covered as bytes, so that another form of it can be tried.
    pub(super) fn has_body_bytes(&self) -> bool {
        self.has(|piece| matches!(piece, Piece::Body))
    }

    pub(super) fn has_url(&self) -> bool {
        self.has(|piece| {
            use Piece::{DecodedQuery, Origin, Path, SortedQuery, Target, Url};
            matches!(piece, Url | Origin | Path | Target | SortedQuery | DecodedQuery)
        })
    }

    pub(super) fn has_timestamp(&self) -> bool {
        self.has(|piece| matches!(piece, Piece::Timestamp))
    }

    pub(super) fn has_secret(&self) -> bool {
        self.has(|piece| matches!(piece, Piece::Secret))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether it leads to one host, whatever a request says.
    pub(super) fn begins_with_https_host(&self) -> bool {
        let Some(Piece::Text(text)) = self.0.first() else { return false };
        text.strip_prefix("https://").is_some_and(|rest| rest.find('/').is_some_and(|host| host > 0))
    }

    /// The header whose value it is, without anything else.
    pub(super) fn header(&self) -> Option<&str> {
        match self.0.as_slice() {
            [Piece::Value(Place::Header(name))] => Some(name),
            _ => None,
        }
    }

    /// The settings that it needs.
    pub(super) fn settings(&self) -> Vec<&str> {
        let mut names = Vec::new();
        self.each(&mut |piece| {
            if let Piece::Setting(name, _) = piece {
                names.push(name.as_str());
            }
        });
        names
    }

    /// The places that it takes something from.
    pub(super) fn places(&self) -> impl Iterator<Item = &Place> {
        let mut places = Vec::new();
        self.each(&mut |piece| {
            if let Piece::Value(place) = piece {
                places.push(place);
            }
        });
        places.into_iter()
    }

    fn has(&self, is_it: impl Fn(&Piece) -> bool) -> bool {
        let mut found = false;
        self.each(&mut |piece| found |= is_it(piece));
        found
    }

    fn each<'t>(&'t self, visit: &mut dyn FnMut(&'t Piece)) {
        for piece in &self.0 {
            visit(piece);
            match piece {
                Piece::Optional(inner) => inner.each(visit),
                Piece::Setting(_, Some(instead)) => visit(instead),
                _ => {}
            }
        }
    }
}

impl Piece {
    fn write(&self, scope: &Scope<'_, '_>, out: &mut dyn FnMut(&[u8])) -> Result<(), Lacking> {
        let request = scope.request;
        let url = || Url::of(scope.url);
        match self {
            Self::Text(text) => out(text.as_bytes()),
            Self::Body => out(scope.body),
            Self::Sha256 => out(sha256(scope.body).as_bytes()),
            Self::Crc32 => out(crc32(scope.body).to_string().as_bytes()),
            Self::Timestamp => out(scope.timestamp),
            Self::Url => out(scope.url.as_bytes()),
            Self::Origin => out(url().origin.as_bytes()),
            Self::Path => out(url().path.as_bytes()),
            Self::Target => out(url().target().as_bytes()),
            Self::SortedQuery => {
                let mut fields: Vec<_> =
                    url().query.unwrap_or("").split('&').filter(|field| !field.is_empty()).collect();
                fields.sort_unstable();
                out(fields.join("&").as_bytes());
            }
            Self::DecodedQuery => {
                let mut fields: Vec<_> = url_encoded(url().query.unwrap_or("").as_bytes());
                fields.sort_unstable();
                for (at, (name, value)) in fields.iter().enumerate() {
                    out(if at == 0 { b"" } else { b"&" });
                    out(name);
                    out(b"=");
                    out(value);
                }
            }
            Self::Form => {
                let mut fields: Vec<_> = request.form().iter().collect();
                // Nothing to sign is not the same as nothing that is understood.
                if fields.is_empty() && !request.body.is_empty() {
                    return Err(Lacking::Form);
                }
                fields.sort_unstable();
                fields.dedup();
                for (name, value) in fields {
                    out(name);
                    out(value);
                }
            }
            Self::Secret => out(scope.secret),
            Self::Setting(name, instead) => match (scope.settings.get(name), instead) {
                (Some(value), _) => out(value.as_bytes()),
                (None, Some(instead)) => instead.write(scope, out)?,
                (None, None) => return Err(Lacking::Setting(name.clone())),
            },
            Self::Listed(header) => {
                let names = one(&Place::Header(header.clone()), request)?;
                for (at, name) in String::from_utf8_lossy(&names).split([',', ';']).map(str::trim).enumerate() {
                    let name = name.to_ascii_lowercase();
                    let value = one(&Place::Header(name.clone()), request)?;
                    out(if at == 0 { b"" } else { b";" });
                    out(name.as_bytes());
                    out(b":");
                    out(&value);
                }
            }
            Self::Signed(place) => {
                let text = one(place, request)?;
                out(scope.sign.and_then(|sign| sign(&text)).ok_or(Lacking::Signature)?.as_bytes());
            }
            Self::Value(place) => out(&one(place, request)?),
            Self::Optional(template) => {
                let mut bytes = Vec::new();
                for piece in &template.0 {
                    let before = bytes.len();
                    match piece.write(scope, &mut |part| bytes.extend_from_slice(part)) {
                        Ok(()) if bytes.len() > before => {}
                        Ok(()) | Err(Lacking::Value(_)) => return Ok(()),
                        Err(other) => return Err(other),
                    }
                }
                out(&bytes);
            }
        }
        Ok(())
    }
}

fn one<'r>(place: &Place, request: &'r Request<'_>) -> Result<Cow<'r, [u8]>, Lacking> {
    match place.one(request) {
        Ok(Some(text)) => Ok(text),
        Ok(None) => Err(Lacking::Value(place.clone())),
        Err(_) => Err(Lacking::Ambiguous(place.clone())),
    }
}

/// As text, in which what is no UTF-8 is replaced. Mostly there is nothing of that, which costs less to find out.
pub(super) fn lossy(bytes: &[u8]) -> Cow<'_, str> {
    std::str::from_utf8(bytes).map_or_else(|_| String::from_utf8_lossy(bytes), Cow::Borrowed)
}

/// A SHA-256 in hex.
pub(super) fn sha256(bytes: &[u8]) -> String {
    hex(digest(&SHA256, bytes).as_ref())
}

/// CRC-32 as in ISO-HDLC and zlib, four bits at a time: there is one provider that asks for it.
fn crc32(bytes: &[u8]) -> u32 {
    const STEP: [u32; 16] = [
        0x0000_0000,
        0x1db7_1064,
        0x3b6e_20c8,
        0x26d9_30ac,
        0x76dc_4190,
        0x6b6b_51f4,
        0x4db2_6158,
        0x5005_713c,
        0xedb8_8320,
        0xf00f_9344,
        0xd6d6_a3e8,
        0xcb61_b38c,
        0x9b64_c2b0,
        0x86d3_d2d4,
        0xa00a_e278,
        0xbdbd_f21c,
    ];
    let step = |crc: u32| (crc >> 4) ^ STEP.get((crc & 15) as usize).copied().unwrap_or_default();
    !bytes.iter().fold(!0, |crc, byte| step(step(crc ^ u32::from(*byte))))
}

impl fmt::Debug for Scope<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scope").field("url", &self.url).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue, Method};

    use super::*;

    fn fill(template: &str, url: &str, list: &[(&'static str, &str)], body: &str) -> Result<String, Lacking> {
        let header = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
        };
        let headers: Vec<_> = list.iter().map(header).collect();
        let request = Request::new(&Method::POST, url, &headers, body.as_bytes());
        let settings = [("webhook_id".to_owned(), "WH1".to_owned())].into();
        let scope = Scope { timestamp: b"17", secret: b"key", ..Scope::of(&request, &settings) };
        let template: Template = template.parse().unwrap();
        template.bytes(&scope).map(|bytes| String::from_utf8(bytes).unwrap())
    }

    #[test]
    fn a_template_is_filled_from_everywhere() {
        let url = "https://a.example/p?z=1&b=%20";
        assert_eq!(fill("v0:{timestamp}:{body}", url, &[], "x").unwrap(), "v0:17:x");
        assert_eq!(fill("{secret}{method}{url}", url, &[], "").unwrap(), format!("keyPOST{url}"));
        assert_eq!(fill("{origin} {path} {target}", url, &[], "").unwrap(), "https://a.example /p /p?z=1&b=%20");
        assert_eq!(fill("{sorted-query} {decoded-query}", url, &[], "").unwrap(), "b=%20&z=1 b= &z=1");
        assert_eq!(fill("{path}[?{decoded-query}]", "https://a.example/p", &[], "").unwrap(), "/p");
        assert_eq!(fill("{setting:webhook_id|path} {setting:none|path}", url, &[], "").unwrap(), "WH1 /p");
        assert_eq!(fill("{crc32}|{setting:webhook_id}", url, &[], "123456789").unwrap(), "3421780262|WH1");
        let listed = [("x-list", "X-B, x-a"), ("x-a", "1"), ("x-b", "2")];
        assert_eq!(fill("{listed:x-list}", url, &listed, "").unwrap(), "x-b:2;x-a:1");
        let form = [("content-type", "application/x-www-form-urlencoded")];
        assert_eq!(fill("{url}{form}", "u", &form, "b=2&a=1+&b=1&b=2").unwrap(), "ua1 b1b2");
    }

    #[test]
    fn what_is_optional_is_left_out_and_the_rest_is_missed() {
        let template = "a\n{json:/a}\n[b\n{json:/b}\n]";
        assert_eq!(fill(template, "", &[], r#"{"a":"1"}"#).unwrap(), "a\n1\n");
        assert_eq!(fill(template, "", &[], r#"{"a":"1","b":"2"}"#).unwrap(), "a\n1\nb\n2\n");
        assert_eq!(fill(template, "", &[], "{}"), Err(Lacking::Value("json:/a".parse().unwrap())));
        let twice = fill(template, "", &[], r#"{"a":"1","b":"2","b":"3"}"#);
        assert_eq!(twice, Err(Lacking::Ambiguous("json:/b".parse().unwrap())));
        assert_eq!(fill("{setting:other}", "", &[], ""), Err(Lacking::Setting("other".into())));
    }

    #[test]
    fn what_is_no_template_is_refused() {
        for wrong in ["{body", "body}", "[{body}", "{bodies}", "{header:a b}"] {
            assert!(wrong.parse::<Template>().is_err(), "{wrong}");
        }
    }
}
