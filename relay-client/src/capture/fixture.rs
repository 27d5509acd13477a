//! An exchange as a directory that git can hold, and that a test can play back.
//!
//! | file | holds |
//! |---|---|
//! | `request.http` | the request as it was sent: its line, its headers, an empty line, its body byte for byte |
//! | `response.http` | the answer in the same form, where there was one |
//! | `exchange.toml` | what those cannot say: when it came, to which URL, and what was understood of it |
//! | `.gitattributes` | that git leaves the bytes of the bodies alone |
//!
//! Bodies of text stay texts, so that a difference can be read.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use http::{Method, StatusCode};
use serde::{Deserialize, Serialize};

use crate::atomic::replace;
use crate::capture::saved::{Headers, Saved, SavedAnswer, SavedError, load, origin};
use crate::secret::ReadError;

const REQUEST: &str = "request.http";
const RESPONSE: &str = "response.http";
const EXCHANGE: &str = "exchange.toml";
const ATTRIBUTES: &str = ".gitattributes";

/// An exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fixture {
    /// What neither message says.
    pub about: About,
    /// What was sent.
    pub request: FixtureRequest,
    /// What was answered, if anything was.
    pub response: Option<FixtureResponse>,
}

/// What is known of an exchange beside its bytes. A newer version may say more.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct About {
    /// The exchange's id, as in `Relay-Request-Id`.
    pub id: String,
    /// When it came (RFC 3339).
    pub at: String,
    /// The URL that its sender called, with path and query.
    pub url: String,
    /// The tunnel that it came through.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<String>,
    /// Who sent it, by the id in the table of providers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// What the provider calls the event.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_id: Option<String>,
    /// The event's kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_type: Option<String>,
    /// The request's body was longer, and only its beginning was kept.
    #[serde(skip_serializing_if = "is_false")]
    pub request_truncated: bool,
    /// The same of the answer's.
    #[serde(skip_serializing_if = "is_false")]
    pub response_truncated: bool,
}

fn is_false(flag: &bool) -> bool {
    !flag
}

/// A request, with memory of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FixtureRequest {
    /// Its method.
    pub method: Method,
    /// What stands in the request line: path and query as they were sent.
    pub target: String,
    /// In the order in which they came.
    pub headers: Headers,
    /// Byte for byte.
    pub body: Vec<u8>,
}

/// An answer, with memory of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FixtureResponse {
    /// Its status.
    pub status: StatusCode,
    /// In their order.
    pub headers: Headers,
    /// Byte for byte.
    pub body: Vec<u8>,
}

/// Why a fixture is not read or written.
#[derive(Debug, thiserror::Error)]
pub enum FixtureError {
    /// A file of it cannot be read.
    #[error("{}: {}", .file.display(), .problem)]
    Read {
        /// Which one.
        file: PathBuf,
        /// Why.
        problem: ReadError,
    },
    /// What stands in one is no message.
    #[error("{}: {}", .file.display(), .problem)]
    Message {
        /// Which one.
        file: PathBuf,
        /// Why.
        problem: SavedError,
    },
    /// What is said of the exchange is not understood.
    #[error("{}: {}", .file.display(), .problem)]
    About {
        /// Which one.
        file: PathBuf,
        /// Why.
        problem: String,
    },
    /// A file of it cannot be written.
    #[error("cannot write {}: {}", .file.display(), .problem)]
    Write {
        /// Which one.
        file: PathBuf,
        /// Why.
        problem: io::Error,
    },
}

impl Fixture {
    /// Reads a directory. Only its `request.http` must be there, so that one can be made by hand.
    ///
    /// # Errors
    /// [`FixtureError`].
    pub fn read(directory: &Path) -> Result<Self, FixtureError> {
        let file = |name: &str| directory.join(name);
        let contents =
            |name: &str| load(&file(name)).map_err(|problem| FixtureError::Read { file: file(name), problem });
        let if_any = |name: &str| match contents(name) {
            Err(FixtureError::Read { problem: ReadError::Io(error), .. })
                if error.kind() == io::ErrorKind::NotFound =>
            {
                Ok(None)
            }
            other => other.map(Some),
        };
        let message = |name: &str, problem| FixtureError::Message { file: file(name), problem };

        let bytes = contents(REQUEST)?;
        let saved = Saved::read(&bytes).map_err(|problem| message(REQUEST, problem))?;
        let mut about: About = match if_any(EXCHANGE)? {
            Some(text) => toml::from_slice(&text)
                .map_err(|error| FixtureError::About { file: file(EXCHANGE), problem: error.message().to_owned() })?,
            None => About::default(),
        };
        if about.url.is_empty() {
            about.url = saved.url().into_owned();
        }
        let target = saved.target.get(origin(saved.target).map_or(0, str::len)..).unwrap_or_default().to_owned();
        let (method, headers) = (saved.method, saved.headers);
        let request = FixtureRequest { method, target, headers, body: saved.body.to_vec() };
        let response = match if_any(RESPONSE)? {
            Some(bytes) => {
                let saved = SavedAnswer::read(&bytes).map_err(|problem| message(RESPONSE, problem))?;
                Some(FixtureResponse { status: saved.status, headers: saved.headers, body: saved.body.to_vec() })
            }
            None => None,
        };
        Ok(Self { about, request, response })
    }

    /// Writes a directory, which is made where it is not there. What another fixture has left there is replaced, and
    /// nothing else is touched.
    ///
    /// # Errors
    /// [`FixtureError::Write`].
    pub fn write(&self, directory: &Path) -> Result<(), FixtureError> {
        let failed = |file: PathBuf| move |problem| FixtureError::Write { file, problem };
        fs::create_dir_all(directory).map_err(failed(directory.to_owned()))?;
        let files = self.files().map_err(failed(directory.join(EXCHANGE)))?;
        if self.response.is_none() {
            match fs::remove_file(directory.join(RESPONSE)) {
                Err(problem) if problem.kind() != io::ErrorKind::NotFound => {
                    return Err(failed(directory.join(RESPONSE))(problem));
                }
                _ => {}
            }
        }
        for (name, contents) in files {
            let file = directory.join(name);
            replace(&file, false, |new| new.write_all(&contents)).map_err(failed(file))?;
        }
        Ok(())
    }

    /// The name of each file, and what is in it.
    ///
    /// # Errors
    /// Where [`About`] says what TOML cannot.
    pub fn files(&self) -> io::Result<Vec<(&'static str, Vec<u8>)>> {
        let about = toml::to_string(&self.about).map_err(io::Error::other)?;
        let FixtureRequest { method, target, headers, body } = &self.request;
        let request = Saved { method: method.clone(), target, headers: headers.clone(), body };
        let mut files = vec![(ATTRIBUTES, b"*.http -text\n".to_vec()), (REQUEST, request.write())];
        if let Some(FixtureResponse { status, headers, body }) = &self.response {
            files.push((RESPONSE, SavedAnswer { status: *status, headers: headers.clone(), body }.write()));
        }
        files.push((EXCHANGE, about.into_bytes()));
        Ok(files)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;
    use http::{HeaderName, HeaderValue};

    fn fixture() -> Fixture {
        let header =
            |name: &'static str, value: &'static str| (HeaderName::from_static(name), HeaderValue::from_static(value));
        Fixture {
            about: About {
                id: "01KAB".to_owned(),
                at: "2026-01-01T00:00:00.000Z".to_owned(),
                url: "https://t.example/hooks?access_token=secret".to_owned(),
                provider: Some("cloudevents".to_owned()),
                request_truncated: true,
                ..About::default()
            },
            request: FixtureRequest {
                method: Method::POST,
                target: "/hooks?access_token=secret".to_owned(),
                headers: vec![header("host", "t.example"), header("cookie", "a=secret"), header("x-two", "1")],
                body: b"{\n  \"a\": 1\n}\r\n\xff\0".to_vec(),
            },
            response: Some(FixtureResponse {
                status: StatusCode::CREATED,
                headers: vec![header("set-cookie", "secret"), header("set-cookie", "b")],
                body: b"\n".to_vec(),
            }),
        }
    }

    #[test]
    fn a_directory_gives_back_every_byte() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("a/b");
        let mut fixture = fixture();
        fixture.write(&directory).unwrap();
        assert_eq!(Fixture::read(&directory).unwrap(), fixture);
        assert_eq!(fs::read(directory.join(".gitattributes")).unwrap(), b"*.http -text\n");
        fs::write(directory.join("notes.md"), "mine").unwrap();
        fixture.response = None;
        fixture.write(&directory).unwrap();
        assert_eq!(Fixture::read(&directory).unwrap(), fixture);
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 4, "and what is another's is still there");
    }

    #[test]
    fn a_request_alone_is_a_fixture() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(REQUEST), "POST /a?b HTTP/1.1\r\nHost: t.example\r\n\r\n{}").unwrap();
        let fixture = Fixture::read(directory.path()).unwrap();
        assert_eq!((fixture.about.url.as_str(), fixture.request.target.as_str()), ("https://t.example/a?b", "/a?b"));
        assert_eq!((fixture.request.body.as_slice(), fixture.response), (&b"{}"[..], None));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let said = || Fixture::read(directory.path()).unwrap_err().to_string();
        assert!(said().contains("request.http: No such file"), "{}", said());
        for (name, wrong, right, hint) in [
            (REQUEST, "secret", "POST / HTTP/1.1\n\n", "request.http: no empty line"),
            (RESPONSE, "secret\n\n", "HTTP/1.1 200 OK\n\n", "response.http: line 1 "),
            (EXCHANGE, "id = 1 # secret", "id = \"1\"", "exchange.toml: "),
        ] {
            fs::write(directory.path().join(name), wrong).unwrap();
            assert!(said().contains(hint) && !said().contains("secret"), "{}", said());
            fs::write(directory.path().join(name), right).unwrap();
            Fixture::read(directory.path()).unwrap();
        }
        let file = directory.path().join(REQUEST);
        let error = fixture().write(&file).unwrap_err().to_string();
        assert!(error.starts_with("cannot write ") && error.contains("request.http"), "{error}");
    }
}
