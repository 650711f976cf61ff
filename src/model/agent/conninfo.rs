//! Connection strings of libpq: `key=value`, quoted where it must be.

/// Says which server a standby follows, and how.
#[derive(Debug, Clone, Copy)]
pub struct Upstream<'a> {
    pub address: &'a str,
    pub port: u16,
    pub user: &'a str,
    /// Names the standby on the primary; the node's name.
    pub application_name: &'a str,
    /// Further `key=value` pairs of the operator, as given.
    pub options: &'a str,
}

impl Upstream<'_> {
    /// The value for `primary_conninfo`.
    pub fn conninfo(&self) -> String {
        let mut text = format!(
            "host={} port={} user={} application_name={}",
            quoted(self.address),
            self.port,
            quoted(self.user),
            quoted(self.application_name),
        );
        if !self.options.trim().is_empty() {
            text.push(' ');
            text.push_str(self.options.trim());
        }
        text
    }
}

/// A value as libpq reads it: bare when it is plain, else in quotes.
pub fn quoted(value: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._:/-".contains(c);
    if !value.is_empty() && value.chars().all(plain) {
        return value.to_owned();
    }
    let mut text = String::from("'");
    for c in value.chars() {
        if c == '\'' || c == '\\' {
            text.push('\\');
        }
        text.push(c);
    }
    text.push('\'');
    text
}

/// The pairs of a connection string, or `None` when it is malformed.
pub fn pairs(text: &str) -> Option<Vec<(String, String)>> {
    let mut rest = text.trim_start();
    let mut found = Vec::new();
    while !rest.is_empty() {
        let (key, after) = rest.split_once('=')?;
        let key = key.trim();
        if key.is_empty() || key.contains(char::is_whitespace) {
            return None;
        }
        let (value, after) = value(after.trim_start())?;
        found.push((key.to_owned(), value));
        rest = after.trim_start();
    }
    Some(found)
}

fn value(text: &str) -> Option<(String, &str)> {
    let inner = text.strip_prefix('\'');
    let mut chars = inner.unwrap_or(text).char_indices();
    let body = inner.unwrap_or(text);
    let mut value = String::new();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => value.push(chars.next()?.1),
            '\'' if inner.is_some() => return Some((value, &body[at + 1..])),
            c if inner.is_none() && c.is_whitespace() => return Some((value, &body[at..])),
            c => value.push(c),
        }
    }
    // The end of the text ends a bare value, and only that.
    inner.is_none().then_some((value, ""))
}

/// The value of `key` in a connection string.
pub fn get(text: &str, key: &str) -> Option<String> {
    pairs(text)?.into_iter().rev().find(|(name, _)| name == key).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_value_survives_quoting(first in "\\PC*", second in "\\PC*") {
            let text = format!("a={} b={}", quoted(&first), quoted(&second));
            let expected = vec![("a".to_owned(), first), ("b".to_owned(), second)];
            prop_assert_eq!(pairs(&text), Some(expected));
        }
    }

    #[test]
    fn the_upstream_names_host_user_and_node() {
        let upstream = Upstream {
            address: "172.17.0.4",
            port: 5432,
            user: "replication user",
            application_name: "pg02",
            options: " sslmode=require ",
        };
        assert_eq!(
            upstream.conninfo(),
            "host=172.17.0.4 port=5432 user='replication user' application_name=pg02 sslmode=require"
        );
    }

    #[test]
    fn spaces_around_the_equals_sign_are_read() {
        assert_eq!(get("host = 'a b'  port=5432", "port").as_deref(), Some("5432"));
        assert_eq!(pairs("host='open"), None);
        assert_eq!(pairs("no pairs here"), None);
    }
}
