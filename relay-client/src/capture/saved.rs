//! A request, or an answer, as a file has it: its first line, a line for each header, an empty line, and the body byte for
//! byte.

use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::path::Path;

use http::{HeaderName, HeaderValue, Method, StatusCode};
use relay_protocol::exchange::prefix;

use crate::secret::{ReadError, read};

/// The largest file: providers send up to 25 MiB.
const FILE_MAX: u64 = 64 << 20;

/// Name and value of each header, in the order of their lines.
pub type Headers = Vec<(HeaderName, HeaderValue)>;

/// A request out of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved<'a> {
    /// Its method.
    pub method: Method,
    /// What stands in the request line: a path and a query as they were sent, or a whole URL.
    pub target: &'a str,
    /// In the order of their lines.
    pub headers: Headers,
    /// All that follows the empty line, whatever Content-Length says.
    pub body: &'a [u8],
}

/// An answer out of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedAnswer<'a> {
    /// Its status.
    pub status: StatusCode,
    /// In the order of their lines.
    pub headers: Headers,
    /// All that follows the empty line.
    pub body: &'a [u8],
}

/// A file of at most 64 MiB; `-` is standard input.
///
/// # Errors
/// [`ReadError`].
pub fn load(file: &Path) -> Result<Vec<u8>, ReadError> {
    if file == Path::new("-") { read(io::stdin().lock(), FILE_MAX) } else { read(File::open(file)?, FILE_MAX) }
}

/// What is no request and no answer, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SavedError {
    /// A line of the head, which may hold a secret and is not repeated.
    #[error("line {line} {problem}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What is wrong with it, and what was expected.
        problem: &'static str,
    },
    /// The head does not end.
    #[error("no empty line ends the headers; what follows it is the body, byte for byte")]
    NoEnd,
}

impl<'a> Saved<'a> {
    /// Reads a file's contents. Lines of the head end in CRLF or LF; the body is taken as it is.
    ///
    /// # Errors
    /// [`SavedError`].
    pub fn read(file: &'a [u8]) -> Result<Self, SavedError> {
        let problem = "is no request line; it is written as in POST /hooks HTTP/1.1";
        let ((method, target), headers, body) = message(file, request_line, problem)?;
        Ok(Self { method, target, headers, body })
    }

    /// As a file has it. The lines of the head end in LF, as those of a text do.
    pub fn write(&self) -> Vec<u8> {
        written(&format!("{} {} HTTP/1.1", self.method, self.target), &self.headers, self.body)
    }

    /// The first value of a header, where it is text.
    pub fn header(&self, name: &HeaderName) -> Option<&str> {
        self.headers.iter().find(|(given, _)| given == name)?.1.to_str().ok()
    }

    /// The URL that its sender called, as far as it says so: https, its Host, and its path and query.
    pub fn url(&self) -> Cow<'a, str> {
        if origin(self.target).is_some() {
            return self.target.into();
        }
        format!("https://{}{}", self.header(&http::header::HOST).unwrap_or("localhost"), self.target).into()
    }

    /// The URL that its sender called, below a public one: where that has neither path nor query, with the request's.
    pub fn url_at(&self, public: &str) -> String {
        match origin(public) {
            Some(whole) if whole == public => format!("{public}{}", self.path()),
            _ => public.to_owned(),
        }
    }

    /// Path and query.
    pub(crate) fn path(&self) -> &'a str {
        let origin = origin(self.target).map_or(0, str::len);
        self.target.get(origin..).unwrap_or_default()
    }
}

impl<'a> SavedAnswer<'a> {
    /// Reads a file's contents, as [`Saved::read`] does.
    ///
    /// # Errors
    /// [`SavedError`].
    pub fn read(file: &'a [u8]) -> Result<Self, SavedError> {
        let problem = "is no status line; it is written as in HTTP/1.1 200 OK";
        let (status, headers, body) = message(file, status_line, problem)?;
        Ok(Self { status, headers, body })
    }

    /// As a file has it.
    pub fn write(&self) -> Vec<u8> {
        let reason = self.status.canonical_reason().unwrap_or("");
        written(&format!("HTTP/1.1 {} {reason}", self.status.as_str()), &self.headers, self.body)
    }
}

/// What `first` makes of the first line, the headers, and the body.
fn message<'a, T>(
    file: &'a [u8],
    first: impl FnOnce(&'a [u8]) -> Option<T>,
    problem: &'static str,
) -> Result<(T, Headers, &'a [u8]), SavedError> {
    let (mut rest, mut line) = (file, 0);
    let mut next = || {
        let (text, after) = rest.split_at_checked(rest.iter().position(|byte| *byte == b'\n')?)?;
        (rest, line) = (after.get(1..)?, line + 1);
        Some((line, text.strip_suffix(b"\r").unwrap_or(text), rest))
    };
    let (_, text, _) = next().ok_or(SavedError::NoEnd)?;
    let first = first(text).ok_or(SavedError::Line { line: 1, problem })?;
    let mut headers = Vec::new();
    loop {
        let (line, text, body) = next().ok_or(SavedError::NoEnd)?;
        if text.is_empty() {
            return Ok((first, headers, body));
        }
        let problem = "is no header; it is written as Name: value, on a line of its own, and an empty line ends them";
        headers.push(header(text).ok_or(SavedError::Line { line, problem })?);
    }
}

fn written(first: &str, headers: &Headers, body: &[u8]) -> Vec<u8> {
    let mut file = format!("{first}\n").into_bytes();
    for (name, value) in headers {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\n"] {
            file.extend_from_slice(part);
        }
    }
    file.push(b'\n');
    file.extend_from_slice(body);
    file
}

/// Scheme and host of a URL of HTTP.
pub(crate) fn origin(url: &str) -> Option<&str> {
    let scheme = ["https://", "http://"]
        .into_iter()
        .find(|scheme| url.get(..scheme.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(scheme)))?;
    let host = url.get(scheme.len()..)?;
    let end = host.find(['/', '?', '#']).unwrap_or(host.len());
    url.get(..scheme.len() + end).filter(|_| end > 0)
}

/// The origin of a URL, and what follows it; a text that is none of HTTP is all the first.
pub(crate) fn halves(url: &str) -> (&str, &str) {
    url.split_at_checked(origin(url).map_or(url.len(), str::len)).unwrap_or((url, ""))
}

/// What a request's public URL has before the target that its service sees: the origin, and the path below which the relay
/// has the tunnel, as the headers say.
pub(crate) fn base<'u>(url: &'u str, headers: &[(HeaderName, HeaderValue)]) -> Option<&'u str> {
    let (origin, prefix) = (origin(url)?, prefix(headers));
    let whole = url.get(..origin.len() + prefix.len()).filter(|whole| whole.ends_with(prefix));
    let is_whole = |whole: &&str| matches!(url.as_bytes().get(whole.len()), None | Some(b'/' | b'?'));
    whole.filter(is_whole).or(Some(origin))
}

fn request_line(line: &[u8]) -> Option<(Method, &str)> {
    let mut words = str::from_utf8(line).ok()?.split(' ');
    let (method, target, version) = (words.next()?, words.next()?, words.next()?);
    let is_target = !target.is_empty() && !target.contains(|c: char| c.is_control());
    (is_target && version.starts_with("HTTP/") && words.next().is_none()).then_some(())?;
    Some((method.parse().ok()?, target))
}

fn status_line(line: &[u8]) -> Option<StatusCode> {
    let mut words = str::from_utf8(line).ok()?.split(' ');
    words.next()?.strip_prefix("HTTP/")?;
    words.next()?.parse().ok()
}

fn header(line: &[u8]) -> Option<(HeaderName, HeaderValue)> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let (name, value) = (line.get(..colon)?, line.get(colon + 1..)?);
    Some((HeaderName::from_bytes(name).ok()?, HeaderValue::from_bytes(value.trim_ascii()).ok()?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn heads_of_either_line_end_are_read_and_bodies_are_left_alone() {
        for end in ["\r\n", "\n"] {
            let head =
                ["POST //a/../b?x=%2F HTTP/1.1", "Host: t.example", "X-Two:1 ", "x-two:\tb: c", "", ""].join(end);
            let file = [head.as_bytes(), b"\r\n\n\xff\0 {}\r\n"].concat();
            let saved = Saved::read(&file).unwrap();
            assert_eq!((saved.method.as_str(), saved.target), ("POST", "//a/../b?x=%2F"));
            let headers: Vec<_> = saved.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
            assert_eq!(headers, [("host", &b"t.example"[..]), ("x-two", b"1"), ("x-two", b"b: c")]);
            assert_eq!(saved.body, b"\r\n\n\xff\0 {}\r\n");
        }
        assert_eq!(Saved::read(b"GET / HTTP/2\n\n").unwrap().body, b"");
    }

    #[test]
    fn what_is_no_request_says_where_and_not_what() {
        for (file, said) in [
            ("", "no empty line"),
            ("POST / HTTP/1.1\r\nHost: a\r\n", "no empty line"),
            ("POST / HTTP/1.1\nHost: a\n{}", "no empty line"),
            ("{\"secret\": 1}\n\n", "line 1 "),
            ("HTTP/1.1 200 OK\n\n", "line 1 "),
            ("POST /a b HTTP/1.1\n\n", "line 1 "),
            ("POST / HTTP/1.1\nHost: a\nsecret\n\n", "line 3 "),
            ("POST / HTTP/1.1\nHost: a\n secret: folded\n\n", "line 3 "),
            ("POST / HTTP/1.1\nA: secret\0\n\n", "line 2 "),
        ] {
            let error = Saved::read(file.as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with(said) && !error.contains("secret"), "{file:?}: {error}");
        }
    }

    #[test]
    fn the_url_is_made_of_what_the_request_says() {
        for (head, public, url) in [
            ("POST /a?b HTTP/1.1\nHost: t.example:8443\n\n", None, "https://t.example:8443/a?b"),
            ("POST http://x.example/a HTTP/1.1\nHost: t.example\n\n", None, "http://x.example/a"),
            ("POST /a HTTP/1.0\n\n", None, "https://localhost/a"),
            ("POST /a?b HTTP/1.1\nHost: localhost\n\n", Some("https://t.example"), "https://t.example/a?b"),
            ("POST https://x.example/a HTTP/1.1\n\n", Some("https://t.example"), "https://t.example/a"),
            ("POST /a HTTP/1.1\n\n", Some("https://t.example/"), "https://t.example/"),
            ("POST /a HTTP/1.1\n\n", Some("https://t.example?c"), "https://t.example?c"),
        ] {
            let saved = Saved::read(head.as_bytes()).unwrap();
            assert_eq!(public.map_or_else(|| saved.url().into_owned(), |public| saved.url_at(public)), url, "{head:?}");
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let headers = vec![
            (HeaderName::from_static("x-two"), HeaderValue::from_static("1")),
            (HeaderName::from_static("x-empty"), HeaderValue::from_static("")),
            (HeaderName::from_static("x-two"), HeaderValue::from_bytes(b"\xff: \t2").unwrap()),
        ];
        let body = b"\r\n\xff\0{}\n";
        let saved = Saved { method: Method::PUT, target: "//a/../b?x=%2F", headers: headers.clone(), body };
        assert_eq!(Saved::read(&saved.write()).unwrap(), saved);
        for (status, line) in [(200, "HTTP/1.1 200 OK\n"), (599, "HTTP/1.1 599 \n")] {
            let answer = SavedAnswer { status: StatusCode::from_u16(status).unwrap(), headers: headers.clone(), body };
            let file = answer.write();
            assert!(file.starts_with(line.as_bytes()), "{file:?}");
            assert_eq!(SavedAnswer::read(&file).unwrap(), answer);
        }
        for wrong in
            ["", "200 OK\n\n", "HTTP/1.1\n\n", "HTTP/1.1 abc OK\n\n", "POST / HTTP/1.1\n\n", "HTTP/1.1 200 OK\n"]
        {
            assert!(SavedAnswer::read(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn no_file_is_too_odd(tail in any::<Vec<u8>>(), url in ".*") {
            let _ = Saved::read(&tail);
            let _ = SavedAnswer::read(&tail);
            let file = [b"POST / HTTP/1.1\n", &tail[..], b"\n\nbody"].concat();
            if let Ok(saved) = Saved::read(&file) {
                prop_assert!(saved.body.ends_with(b"body"));
                saved.url_at(&url);
            }
        }
    }
}
