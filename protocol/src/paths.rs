//! Patterns of paths, in which `*` stands for anything: what a tunnel's owner lets in, or lets in without a login.

use percent_encoding::percent_decode_str;

use crate::webhook::like;

/// Most patterns in a list.
pub const MAX_PATTERNS: usize = 32;

/// Most bytes of one: what is looked for in a stranger's request must not take long to look for.
pub(crate) const MAX_PATTERN: usize = 256;

/// Most bytes of the path of a request. It is compared with all of a list, which nobody pays for.
const LONGEST_PATH: usize = 4096;

/// It is no such pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no path; it begins with a slash or a *, has no ? and at most {MAX_PATTERN} bytes, as in /hooks/*")]
pub struct NoPath(String);

/// # Errors
/// [`NoPath`]: the first that paths cannot be like.
pub(crate) fn check(patterns: &[String]) -> Result<(), NoPath> {
    let is_pattern =
        |text: &str| text.starts_with(['/', '*']) && text.len() <= MAX_PATTERN && !text.contains(['?', '#']);
    patterns.iter().find(|text| !is_pattern(text)).map_or(Ok(()), |wrong| Err(NoPath(clip(wrong))))
}

/// Whether a path is like one of these. One that leads elsewhere than it says is like none, nor is one of more than 4 KiB.
pub(crate) fn has(patterns: &[String], path: &str) -> bool {
    let is_like = |pattern: &String| like(pattern.as_bytes(), path.as_bytes());
    !patterns.is_empty() && path.len() <= LONGEST_PATH && !has_dots(path) && patterns.iter().any(is_like)
}

/// The beginning of what somebody has written, for a message.
pub(crate) fn clip(text: &str) -> String {
    text.chars().take(64).collect()
}

/// Whether a segment of the path is `.` or `..` for some server: also written with `%2e`, between slashes written as
/// `%2f`, `\` or `%5c`, or before a parameter, as in `..;a=1`.
fn has_dots(path: &str) -> bool {
    let decoded: Vec<u8> = percent_decode_str(path).collect();
    decoded.split(|byte| matches!(byte, b'/' | b'\\')).any(|segment| {
        let name = segment.split(|byte| *byte == b';').next().unwrap_or_default();
        name == b"." || name == b".."
    })
}
