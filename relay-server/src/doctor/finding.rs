//! What a check has found, and how it is shown.

use std::io::{self, Write};

use serde::Serialize;

use crate::log::harmless;
use crate::token_cli::Output;

/// What is to be thought of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    /// It is as it should be.
    Ok,
    /// It is, and something that is not the relay's own is to be known.
    Note,
    /// It is not.
    Wrong,
    /// From here it cannot be told.
    Unknown,
}

/// One line. These fields are what scripts read: they are not renamed.
#[derive(Debug, Serialize)]
pub(super) struct Finding {
    /// What was looked at, such as `dns.delegation`.
    pub(super) check: &'static str,
    pub(super) verdict: Verdict,
    /// What is there.
    pub(super) found: String,
    /// Records to set, commands to run, or words; the first that fits mends it.
    pub(super) mend: Vec<String>,
}

impl Finding {
    pub(super) fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Ok, found: found.into(), mend: Vec::new() }
    }

    pub(super) fn note(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Note, found: found.into(), mend: Vec::new() }
    }

    pub(super) fn wrong(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Wrong, found: found.into(), mend: Vec::new() }
    }

    pub(super) fn unknown(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Unknown, found: found.into(), mend: Vec::new() }
    }

    /// With what mends it.
    pub(super) fn mend<T: Into<String>>(mut self, how: impl IntoIterator<Item = T>) -> Self {
        self.mend.extend(how.into_iter().map(Into::into));
        self
    }

    /// One line, and one for each thing that mends it; or one of JSON.
    pub(super) fn write(&self, out: &mut impl Write, output: Output) -> io::Result<()> {
        if output == Output::Json {
            return writeln!(out, "{}", serde_json::to_string(self).map_err(io::Error::from)?);
        }
        let Self { check, verdict, found, mend } = self;
        let verdict = match verdict {
            Verdict::Ok => "ok",
            Verdict::Note => "note",
            Verdict::Wrong => "wrong",
            Verdict::Unknown => "cannot be told",
        };
        // What servers and records say is a stranger's text.
        writeln!(out, "{verdict:<14}  {check:<18}  {}", harmless(found))?;
        mend.iter().try_for_each(|how| writeln!(out, "{:<14}  {:<18}  -> {}", "", "", harmless(how)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;

    #[test]
    fn a_finding_is_a_line_for_people_or_for_programs() {
        let finding = Finding::wrong("dns.wildcard", "it leads to \u{1b}[2J").mend(["a. A 203.0.113.7"]);
        let shown = |output| {
            let mut out = Vec::new();
            finding.write(&mut out, output).unwrap();
            String::from_utf8(out).unwrap()
        };
        let text = "wrong           dns.wildcard        it leads to \\u{1b}[2J\n\
                    \x20                                   -> a. A 203.0.113.7\n";
        assert_eq!(shown(Output::Text), text);
        let value: serde_json::Value = serde_json::from_str(&shown(Output::Json)).unwrap();
        assert_eq!(
            value,
            serde_json::json!({
                "check": "dns.wildcard", "verdict": "wrong", "found": "it leads to \u{1b}[2J",
                "mend": ["a. A 203.0.113.7"],
            })
        );
    }
}
