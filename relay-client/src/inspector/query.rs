//! The parameters behind a `?`.

use std::fmt::Display;
use std::str::FromStr;

use http::Uri;
use relay_protocol::query::{fields, written};

use super::answer::Problem;

/// The parameters of a request that have not been taken yet, in their order.
#[derive(Debug, Default)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn of(uri: &Uri) -> Result<Self, Problem> {
        let wrong = |_| Problem::Parameter { name: "a parameter", reason: "it is not UTF-8".to_owned() };
        fields(uri.query().unwrap_or_default()).map(Self).map_err(wrong)
    }

    /// The first value of a parameter.
    pub(super) fn take(&mut self, name: &str) -> Option<String> {
        let at = self.0.iter().position(|(given, _)| given == name)?;
        Some(self.0.remove(at).1)
    }

    /// As [`Query::take`], where an empty one says nothing, read by `read`.
    pub(super) fn read<T, E: Display>(
        &mut self,
        name: &'static str,
        read: impl Fn(&str) -> Result<T, E>,
    ) -> Result<Option<T>, Problem> {
        let value = self.take(name).filter(|value| !value.is_empty());
        let wrong = |error: E| Problem::Parameter { name, reason: error.to_string() };
        value.map(|value| read(&value).map_err(wrong)).transpose()
    }

    /// As [`Query::read`], of what reads itself.
    pub(super) fn parse<T: FromStr<Err: Display>>(&mut self, name: &'static str) -> Result<Option<T>, Problem> {
        self.read(name, str::parse)
    }

    /// As [`Query::read`], of a parameter that may be there several times.
    pub(super) fn read_all<T, E: Display>(
        &mut self,
        name: &'static str,
        read: impl Fn(&str) -> Result<T, E>,
    ) -> Result<Vec<T>, Problem> {
        let mut all = Vec::new();
        while self.0.iter().any(|(given, _)| given == name) {
            all.extend(self.read(name, &read)?);
        }
        Ok(all)
    }

    /// Nothing is left that nobody has asked for: a filter that is written wrongly must not be none.
    pub(super) fn finish(self) -> Result<(), Problem> {
        self.0.into_iter().next().map_or(Ok(()), |(name, _)| Err(Problem::UnknownParameter(name)))
    }

    /// What is left, behind a path.
    pub(super) fn behind(&self, path: &str) -> String {
        let query = written(self.0.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        // Two slashes would begin another host's name.
        let path = format!("/{}", path.trim_start_matches(['/', '\\']));
        if query.is_empty() { path } else { format!("{path}?{query}") }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn parameters_are_read_once_and_none_is_overlooked() {
        let mut query = Query::of(&"/a?q=a+b%26c&limit=5&q=2&empty=&flag".parse().unwrap()).unwrap();
        assert_eq!(query.take("q").as_deref(), Some("a b&c"));
        assert_eq!(query.parse("limit").unwrap(), Some(5));
        assert_eq!((query.parse::<u32>("empty").unwrap(), query.parse::<u32>("none").unwrap()), (None, None));
        assert_eq!(query.behind("//evil.example/"), "/evil.example/?q=2&flag=");
        assert_eq!(query.finish().unwrap_err().to_string(), "There is no parameter \"q\" here.");
        assert!(Query::of(&"/?limit=x".parse().unwrap()).unwrap().parse::<u32>("limit").is_err());
        let mut several = Query::of(&"/?n=1&m=2&n=3&n=".parse().unwrap()).unwrap();
        assert_eq!(several.read_all("n", str::parse::<u32>).unwrap(), [1, 3]);
        assert!(Query::of(&"/?a=%ff".parse().unwrap()).is_err());
    }
}
