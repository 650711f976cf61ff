//! The parts of a `pgbouncer.ini` that matter here, read as PgBouncer reads them: where each database
//! is, and what single users are limited to.

use super::console::{ShownDatabase, ShownSetting};

/// PgBouncer's name for "every other database".
pub const FALLBACK: &str = "*";

/// One line of the section `[databases]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Database {
    /// Name that clients use; [`FALLBACK`] for every other one.
    pub name: String,
    /// Absent: a Unix socket of PgBouncer's own machine.
    pub host: Option<String>,
    pub port: String,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IniError {
    #[error("line {line}: {reason}")]
    Line { line: usize, reason: String },
    #[error("there is no section [databases] with a database in it; is this a pgbouncer.ini?")]
    NoDatabases,
}

/// How what PgBouncer shows relates to what the file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Agreement {
    /// Every database of the file is shown with the host and port of the file.
    Proven,
    /// Nothing contradicts the file, but no database that `*` stands for has been used yet.
    Unproven,
    /// One sentence for each difference.
    Differs(Vec<String>),
}

/// Reads the databases of a `pgbouncer.ini`, and refuses text that PgBouncer could not parse.
///
/// PgBouncer applies the part of a broken file that stands before the fault, so a fault has to
/// be found before the file is written. `%include` lines are not followed.
///
/// # Errors
/// [`IniError::Line`] with the number of the first line at fault.
pub fn parse(text: &str) -> Result<Vec<Database>, IniError> {
    let mut databases: Vec<Database> = Vec::new();
    for entry in entries(text) {
        let entry = entry?;
        if entry.section != "databases" {
            continue;
        }
        let fault = |reason: String| IniError::Line { line: entry.line, reason };
        let database = database(entry.key, entry.value).map_err(fault)?;
        if databases.iter().any(|known| known.name == database.name) {
            return Err(fault(format!("database {} is there twice", database.name)));
        }
        databases.push(database);
    }
    if databases.is_empty() { Err(IniError::NoDatabases) } else { Ok(databases) }
}

/// A limit that a file sets for one user alone; no console of PgBouncer shows these.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserLimit {
    pub user: String,
    pub key: String,
    pub value: String,
}

/// Those of `keys` that the section `[users]` sets, up to the first line that cannot be read.
pub fn user_limits(text: &str, keys: &[&str]) -> Vec<UserLimit> {
    let readable = entries(text).map_while(Result::ok);
    let mut limits = Vec::new();
    for Entry { key: user, value, .. } in readable.filter(|entry| entry.section == "users") {
        let mut rest = value.trim_start();
        while let Some((key, value, after)) = pair(rest) {
            if keys.contains(&key) {
                limits.push(UserLimit { user: user.clone(), key: key.to_owned(), value });
            }
            rest = after.trim_start();
        }
    }
    limits
}

/// Those settings of the section `[pgbouncer]` that are at their defaults although the file says otherwise.
///
/// PgBouncer sets all of them to their defaults before it reads the section, and stops at the first line that
/// it does not understand. What a file includes may say anything, so that nothing is said of one that does.
pub fn left_at_default(text: &str, shown: &[ShownSetting]) -> Vec<String> {
    if text.lines().any(|line| line.trim_start().starts_with("%include ")) {
        return Vec::new();
    }
    let entries: Vec<Entry> = entries(text).map_while(Result::ok).collect();
    let written = |key: &str| {
        let last = entries.iter().rev().find(|it| it.section == "pgbouncer" && it.key == key);
        last.map(|entry| entry.value)
    };
    let left = shown.iter().filter(|it| {
        it.value == it.default && written(&it.key).is_some_and(|value| !same(value, &it.default))
    });
    left.map(|it| it.key.clone()).collect()
}

/// Whether PgBouncer takes both for the same value.
fn same(one: &str, other: &str) -> bool {
    let word = |value: &str| match value.to_ascii_lowercase().as_str() {
        "yes" | "on" | "true" => "1".to_owned(),
        "no" | "off" | "false" => "0".to_owned(),
        word => word.to_owned(),
    };
    let (one, other) = (word(one), word(other));
    let number = |value: &str| value.parse::<f64>().ok();
    one == other || number(&one).is_some_and(|value| number(&other) == Some(value))
}

/// A line `key = value`.
struct Entry<'a> {
    line: usize,
    section: &'a str,
    key: String,
    value: &'a str,
}

/// The lines in their order, each with its section, or why it is none.
fn entries(text: &str) -> impl Iterator<Item = Result<Entry<'_>, IniError>> {
    let mut section = "";
    text.lines().enumerate().filter_map(move |(index, line)| {
        let number = index + 1;
        let line = line.trim();
        if line.is_empty() || line.starts_with([';', '#']) || line.starts_with("%include ") {
            return None;
        }
        let read = match line.strip_prefix('[') {
            Some(rest) => match rest.split_once(']') {
                Some((name, _)) => {
                    section = name;
                    return None;
                }
                None => Err("a section without ]".to_owned()),
            },
            None => setting(line),
        };
        let entry = read.and_then(|(key, value)| {
            if section.is_empty() {
                return Err(format!("{key} stands before any [section]"));
            }
            Ok(Entry { line: number, section, key, value })
        });
        Some(entry.map_err(|reason| IniError::Line { line: number, reason }))
    })
}

/// Compares what the file says with what `SHOW DATABASES` shows, console database left out.
pub fn compare(file: &[Database], shown: &[ShownDatabase]) -> Agreement {
    let fallback = file.iter().find(|database| database.name == FALLBACK);
    let named = |name: &str| file.iter().find(|database| database.name == name);
    let mut differences: Vec<String> = file
        .iter()
        .filter(|database| database.name != FALLBACK)
        .filter(|database| !shown.iter().any(|shown| shown.name == database.name))
        .map(|database| format!("PgBouncer does not know database {}", database.name))
        .collect();
    let mut fallback_used = false;
    for shown in shown {
        // A database that the file no longer has leads nobody anywhere new; it is left alone.
        let Some(wanted) = named(&shown.name).or(fallback) else { continue };
        fallback_used |= wanted.name == FALLBACK;
        differences.extend(difference(wanted, shown));
    }
    if !differences.is_empty() {
        Agreement::Differs(differences)
    } else if fallback.is_some() && !fallback_used {
        Agreement::Unproven
    } else {
        Agreement::Proven
    }
}

fn difference(wanted: &Database, shown: &ShownDatabase) -> Option<String> {
    let host = wanted.host.as_deref()?;
    let shown_host = shown.host.as_deref().unwrap_or("(a Unix socket)");
    let same = host == shown_host && wanted.port == shown.port;
    (!same).then(|| {
        format!(
            "PgBouncer has database {} at {shown_host}:{}, the file has it at {host}:{}",
            shown.name, shown.port, wanted.port
        )
    })
}

/// Splits `key = value`; a key is quoted like an SQL identifier, or plain.
fn setting(line: &str) -> Result<(String, &str), String> {
    let (key, rest) = if let Some(quoted) = line.strip_prefix('"') {
        quoted_part(quoted, '"').ok_or_else(|| "a name without its closing \"".to_owned())?
    } else {
        let plain = |c: char| c.is_ascii_alphanumeric() || "_.-*".contains(c);
        let end = line.find(|c| !plain(c)).unwrap_or(line.len());
        (line[..end].to_owned(), &line[end..])
    };
    match rest.trim_start().strip_prefix('=') {
        Some(value) if !key.is_empty() => Ok((key, value.trim())),
        _ => Err(format!("not of the form `name = value`: {line}")),
    }
}

fn database(name: String, connection: &str) -> Result<Database, String> {
    let mut database = Database { name, host: None, port: "5432".to_owned() };
    let mut rest = connection;
    while !rest.trim_start().is_empty() {
        let (key, value, after) = pair(rest.trim_start()).ok_or_else(|| {
            format!("database {}: not of the form key=value: {rest}", database.name)
        })?;
        match key {
            "host" if value.is_empty() => {
                return Err(format!("database {}: the host is empty", database.name));
            }
            "host" => database.host = Some(value),
            "port" if value.parse::<u16>().is_err() => {
                return Err(format!("database {}: {value} is not a port", database.name));
            }
            "port" => database.port = value,
            _ => {}
        }
        rest = after;
    }
    Ok(database)
}

/// One `key=value` of a connection string; a value in single quotes has its quotes doubled.
fn pair(text: &str) -> Option<(&str, String, &str)> {
    let (key, rest) = text.split_once('=')?;
    let key = key.trim_end();
    let rest = rest.trim_start();
    if key.is_empty() || key.contains(char::is_whitespace) {
        return None;
    }
    if let Some(quoted) = rest.strip_prefix('\'') {
        let (value, after) = quoted_part(quoted, '\'')?;
        return Some((key, value, after));
    }
    let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
    Some((key, rest[..end].to_owned(), &rest[end..]))
}

/// The text up to the closing quote, with doubled quotes halved, and what follows the quote.
fn quoted_part(text: &str, quote: char) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut rest = text;
    loop {
        let (before, after) = rest.split_once(quote)?;
        value.push_str(before);
        match after.strip_prefix(quote) {
            Some(more) => {
                value.push(quote);
                rest = more;
            }
            None => return Some((value, after)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(name: &str, host: &str) -> ShownDatabase {
        ShownDatabase {
            name: name.into(),
            host: Some(host.into()),
            port: "5432".into(),
            paused: false,
            disabled: false,
        }
    }

    fn entry(name: &str, host: &str, port: &str) -> Database {
        Database { name: name.into(), host: Some(host.into()), port: port.into() }
    }

    #[test]
    fn databases_are_read_with_their_quoting() {
        let text = "; comment\n[databases]\n# another\napp = host=10.0.0.1 port=5433 dbname=app\n\
            \"a \"\"b\"\"\" = host = '10.0.0.2' connect_query='select ''x'' = 1'\n* = host=10.0.0.3\n\
            local = dbname=local\n\n[pgbouncer]\nlisten_port = 6432\n%include more.ini\n";
        let databases = parse(text).expect("valid");
        assert_eq!(databases[0], entry("app", "10.0.0.1", "5433"));
        assert_eq!(databases[1], entry("a \"b\"", "10.0.0.2", "5432"));
        assert_eq!(databases[2], entry("*", "10.0.0.3", "5432"));
        assert_eq!(databases[3].host, None);
    }

    #[test]
    fn faults_name_their_line() {
        let cases = [
            ("[databases]\nx y\n", 2, "name = value"),
            ("[databases\n", 1, "without ]"),
            ("app = host=1\n", 1, "before any [section]"),
            ("[databases]\n\napp = host= port=1\n", 3, "host"),
            ("[databases]\napp = host=''\n", 2, "the host is empty"),
            ("[databases]\napp = host=a port=abc\n", 2, "not a port"),
            ("[databases]\napp = host='a\n", 2, "key=value"),
            ("[databases]\na = host=a\na = host=b\n", 3, "twice"),
        ];
        for (text, line, part) in cases {
            match parse(text) {
                Err(IniError::Line { line: found, reason }) => {
                    assert_eq!(found, line, "{text}");
                    assert!(reason.contains(part), "{reason}");
                }
                other => assert!(part == "host" && other.is_ok(), "{text}: {other:?}"),
            }
        }
    }

    #[test]
    fn limits_of_single_users_are_found() {
        let text = "[databases]\nquery_timeout = host=a\n[users]\n; none\napp = pool_mode=session\n\
            \"re porter\" = pool_mode=transaction query_timeout=5 idle_transaction_timeout = 3\n\
            odd =\n[pgbouncer]\nquery_timeout = 0\n";
        let found = user_limits(text, &["query_timeout"]);
        let (user, key) = ("re porter".to_owned(), "query_timeout".to_owned());
        assert_eq!(found, [UserLimit { user, key, value: "5".to_owned() }]);
        assert_eq!(user_limits("[users", &["query_timeout"]), []);
    }

    #[test]
    fn a_file_without_databases_is_refused() {
        for text in ["", "[pgbouncer]\nlisten_port = 1\n", "[databases]\n"] {
            assert_eq!(parse(text), Err(IniError::NoDatabases));
        }
    }

    #[test]
    fn what_pgbouncer_shows_is_compared_host_by_host() {
        let file = [entry("app", "10.0.0.1", "5432")];
        assert_eq!(compare(&file, &[shown("app", "10.0.0.1")]), Agreement::Proven);
        assert!(matches!(compare(&file, &[shown("app", "10.0.0.2")]), Agreement::Differs(_)));
        assert!(matches!(compare(&file, &[]), Agreement::Differs(_)));
        assert_eq!(
            compare(&file, &[shown("app", "10.0.0.1"), shown("old", "10.0.0.9")]),
            Agreement::Proven
        );
    }

    #[test]
    fn the_fallback_is_proven_by_the_databases_it_stands_for() {
        let file = [entry("*", "10.0.0.1", "5432")];
        assert_eq!(compare(&file, &[]), Agreement::Unproven);
        assert_eq!(compare(&file, &[shown("any", "10.0.0.1")]), Agreement::Proven);
        assert!(matches!(compare(&file, &[shown("any", "10.0.0.2")]), Agreement::Differs(_)));
    }

    #[test]
    fn only_what_stands_at_its_default_against_the_file_was_left() {
        let shown = |key: &str, value: &str, default: &str| ShownSetting {
            key: key.to_owned(),
            value: value.to_owned(),
            default: default.to_owned(),
        };
        let shown = [
            shown("pool_mode", "session", "session"),
            shown("server_lifetime", "3600.0", "3600.0"),
            shown("log_connections", "1", "1"),
            shown("query_timeout", "7.0", "0.0"),
            shown("reserve_pool_size", "0", "0"),
        ];
        let file = "[databases]\npool_mode = x\n[pgbouncer]\npool_mode = Session\nserver_lifetime = 3600\n\
                    log_connections = yes\nquery_timeout = 8\n";
        assert_eq!(left_at_default(file, &shown), [""; 0]);
        let file = format!("{file}pool_mode = nonsense\nserver_lifetime = 60\nquery_timeout = 0\n");
        assert_eq!(left_at_default(&file, &shown), ["pool_mode", "server_lifetime"]);
        assert_eq!(left_at_default(&format!("{file}%include more.ini\n"), &shown), [""; 0]);
    }
}
