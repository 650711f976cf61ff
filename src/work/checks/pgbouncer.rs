//! Whether the PgBouncers of this machine can be paused without their clients seeing an error.

use std::{collections::BTreeMap, path::Path, time::Duration};

use super::Terms;
use crate::{
    edge::{
        files, listeners,
        pgbouncer::{Console, ConsoleError},
    },
    error::chain,
    model::{
        console::{Flow, Pool, ShownDatabase},
        finding::Finding,
        health::{Component, Verdict},
        pgbouncer_ini,
    },
    work::consoles::{self, Failure},
};

/// Limits after which PgBouncer gives up on a client that waits.
const CLIENT_LIMITS: [&str; 3] = ["query_wait_timeout", "query_timeout", "client_login_timeout"];
/// The one of them that can be set for a single user.
const USER_LIMITS: [&str; 1] = ["query_timeout"];
const LOGIN_RETRY: &str = "server_login_retry";
const PORT: &str = "listen_port";
/// Bounds the question for who listens.
const LISTENERS_LIMIT: Duration = Duration::from_secs(1);

/// What one process shows.
#[derive(Debug, Clone)]
struct Sight {
    flow: Flow,
    databases: Vec<ShownDatabase>,
    pools: Vec<Pool>,
    settings: Vec<(String, String)>,
}

impl Sight {
    /// The TCP port that its clients use, if any do.
    fn port(&self) -> Option<u16> {
        let (_, port) = self.settings.iter().find(|(key, _)| key == PORT)?;
        port.parse().ok()
    }
}

/// What stands in the way of pausing on `terms`. `ours`: an attempt's pause is in force.
pub async fn findings(consoles: &[Console], terms: &Terms, ours: bool) -> Vec<Finding> {
    let answers = consoles::each(consoles, |console| async move { look(&console).await }).await;
    let mut findings = Vec::new();
    let mut known: BTreeMap<u16, usize> = BTreeMap::new();
    let all_answer = answers.iter().all(Result::is_ok);
    for (answer, console) in answers.into_iter().zip(consoles) {
        let place = console.socket().display().to_string();
        match answer {
            Ok(sight) => {
                findings.extend(judge(&place, &sight, terms, ours));
                if let Some(port) = sight.port() {
                    *known.entry(port).or_default() += 1;
                }
            }
            Err(failure) => findings.push(refusal(&failure)),
        }
    }
    // A process that is away is no unknown one.
    if all_answer {
        findings.extend(unknown_processes(known).await);
    }
    findings
}

/// Processes that share a port with those of `known`, counted by port, and that no console is
/// configured for.
async fn unknown_processes(known: BTreeMap<u16, usize>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (port, known) in known {
        let words = match listeners::sharing(port, LISTENERS_LIMIT).await {
            Ok(there) if there <= known => continue,
            Ok(there) => format!(
                "{there} processes listen on port {port}, but pgcm knows the consoles of {known}: the \
                 clients of the others would neither wait nor follow; name the admin socket of each \
                 in pgbouncer.admin-sockets and restart pgcm"
            ),
            Err(error) => {
                let words = format!(
                    "cannot tell how many processes listen on port {port} ({error}); make sure that \
                     pgbouncer.admin-sockets names each"
                );
                findings.push(Finding::warn("pgbouncer-processes", words));
                continue;
            }
        };
        findings.push(Finding::refuse("pgbouncer-processes", words));
    }
    findings
}

/// Limits of single users, which stand in PgBouncer's `file` and which no console shows.
pub async fn user_limits(file: &Path, terms: &Terms) -> Vec<Finding> {
    // The render loop tells when the file cannot be read.
    let Ok(text) = files::read(file) else { return Vec::new() };
    let limits = pgbouncer_ini::user_limits(&text, &USER_LIMITS).into_iter();
    let judged = limits.filter_map(|of| {
        let place = format!("{}, user {}", file.display(), of.user);
        limit(&place, &of.key, &of.value, terms)
    });
    judged.collect()
}

/// One verdict over all processes.
pub async fn health(consoles: &[Console]) -> Component {
    let name = "pgbouncer";
    let answers = consoles::each(consoles, |console| async move {
        let session = console.connect().await?;
        Ok((session.version().await?, session.flow().await?))
    });
    let mut versions = Vec::new();
    for answer in answers.await {
        match answer {
            Ok((_, Flow::Held)) => {
                return Component::new(name, Verdict::Degraded, "paused: clients wait");
            }
            Ok((version, Flow::Active)) => versions.push(version),
            Err(failure) => {
                let text = format!("{}: {}", failure.socket.display(), chain(&failure.error));
                return Component::new(name, Verdict::Failed, text);
            }
        }
    }
    Component::new(name, Verdict::Healthy, versions.join(", "))
}

async fn look(console: &Console) -> Result<Sight, ConsoleError> {
    let session = console.connect().await?;
    let mut keys = CLIENT_LIMITS.to_vec();
    keys.extend([LOGIN_RETRY, PORT]);
    Ok(Sight {
        flow: session.flow().await?,
        databases: session.databases().await?,
        pools: session.pools().await?,
        settings: session.settings(&keys).await?,
    })
}

fn refusal(failure: &Failure) -> Finding {
    let words = format!(
        "the PgBouncer at {} does not answer: {}; start it, or take its socket from \
         pgbouncer.admin-sockets",
        failure.socket.display(),
        chain(&failure.error)
    );
    Finding::refuse("pgbouncer-answer", words)
}

fn judge(place: &str, sight: &Sight, terms: &Terms, ours: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    if sight.flow == Flow::Held && !ours {
        findings.push(Finding::refuse(
            "pgbouncer-paused",
            format!(
                "the PgBouncer at {place} is paused by something else, or waits for transactions before \
                 it shuts down; run RESUME on its console, or start it again"
            ),
        ));
    }
    for database in sight.databases.iter().filter(|database| database.paused) {
        let name = &database.name;
        findings.push(Finding::refuse(
            "pgbouncer-paused",
            format!("database {name} is paused by name; run RESUME {name} on the console {place}"),
        ));
    }
    for pool in sight.pools.iter().filter(|pool| pool.mode == "session" && pool.busy_servers > 0) {
        findings.push(Finding::refuse(
            "session-pools",
            format!(
                "{} clients of database {}, user {}, hold a server for their whole session \
                 (pool_mode session at {place}): a pause would wait for them to disconnect; end them, \
                 or set pool_mode to transaction",
                pool.busy_servers, pool.database, pool.user
            ),
        ));
    }
    findings
        .extend(sight.settings.iter().filter_map(|(key, value)| limit(place, key, value, terms)));
    findings
}

fn limit(place: &str, key: &str, value: &str, terms: &Terms) -> Option<Finding> {
    let limit = Duration::try_from_secs_f64(value.parse().ok()?).ok()?;
    if key == LOGIN_RETRY {
        return (limit > Duration::from_secs(1)).then(|| {
            Finding::warn(
                "login-retry",
                format!(
                    "{key} is {value} s at {place}: one failed login to Postgres blocks a pool that \
                     long; set it to 1"
                ),
            )
        });
    }
    if !CLIENT_LIMITS.contains(&key) || limit.is_zero() || limit >= terms.pause_expiry * 2 {
        return None;
    }
    let message = format!(
        "{key} is {value} s at {place}: clients that wait longer get an error, and a pause may last \
         {:?}; raise it to at least {} or lower --pause-expiry",
        terms.pause_expiry,
        (terms.pause_expiry * 2).as_secs_f64().ceil()
    );
    Some(if limit < terms.pause_expiry {
        Finding::refuse("client-limits", message)
    } else {
        Finding::warn("client-limits", message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::finding::Severity;

    fn terms() -> Terms {
        Terms {
            pause_timeout: Duration::from_secs(5),
            pause_expiry: Duration::from_secs(25),
            target: None,
        }
    }

    fn healthy() -> Sight {
        Sight {
            flow: Flow::Active,
            databases: Vec::new(),
            pools: Vec::new(),
            settings: vec![
                ("query_wait_timeout".into(), "120".into()),
                ("query_timeout".into(), "0".into()),
                ("client_login_timeout".into(), "60".into()),
                ("server_login_retry".into(), "1".into()),
            ],
        }
    }

    fn found(sight: &Sight, ours: bool) -> Vec<(String, Severity)> {
        judge("/s", sight, &terms(), ours).into_iter().map(|f| (f.check, f.severity)).collect()
    }

    #[test]
    fn nothing_is_found_where_nothing_is_wrong() {
        assert_eq!(found(&healthy(), false), []);
    }

    #[test]
    fn a_limit_below_the_expiry_refuses_and_one_below_twice_of_it_warns() {
        for (value, severity) in [("24", Severity::Refuse), ("40", Severity::Warn)] {
            let mut sight = healthy();
            sight.settings[0].1 = value.into();
            assert_eq!(found(&sight, false), [("client-limits".to_owned(), severity)]);
        }
    }

    #[test]
    fn a_slow_login_retry_is_a_warning() {
        let mut sight = healthy();
        sight.settings[3].1 = "15".into();
        assert_eq!(found(&sight, false), [("login-retry".to_owned(), Severity::Warn)]);
    }

    #[test]
    fn a_pause_by_something_else_refuses_and_our_own_does_not() {
        let sight = Sight { flow: Flow::Held, ..healthy() };
        assert_eq!(found(&sight, false), [("pgbouncer-paused".to_owned(), Severity::Refuse)]);
        assert_eq!(found(&sight, true), []);
    }

    #[test]
    fn a_session_pool_in_use_refuses() {
        let pool = |mode: &str, busy| Pool {
            database: "app".into(),
            user: "app".into(),
            mode: mode.into(),
            busy_servers: busy,
            waiting_clients: 0,
        };
        let mut sight = healthy();
        sight.pools = vec![pool("transaction", 3), pool("session", 0)];
        assert_eq!(found(&sight, false), []);
        sight.pools.push(pool("session", 1));
        assert_eq!(found(&sight, false), [("session-pools".to_owned(), Severity::Refuse)]);
    }
}
