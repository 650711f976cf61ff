//! Why a server ended, from the last lines of its log.

/// Complaints to a client that came at a bad time; none of them ends a server.
const TO_CLIENTS: [&str; 7] = [
    "the database system is",
    "terminating ",
    "no pg_hba.conf entry",
    "password authentication failed",
    "sorry, too many clients",
    "remaining connection slots",
    "role \"",
];

/// What the server said of its own end: the last words of the process that took it along, or how that
/// process ended if it said nothing.
///
/// `None` when these lines name no reason. Clients that were turned away meanwhile are passed over.
pub fn why_ended(lines: &str) -> Option<String> {
    let lines: Vec<&str> = lines.lines().collect();
    let died = lines.iter().rposition(|line| death(line).is_some());
    if let Some(at) = died
        && let Some((pid, how)) = death(lines[at])
    {
        let own = |line: &&&str| is_word(line, pid);
        let said = lines[..at].iter().rev().filter(own).find_map(|line| complaint(line));
        return Some(said.unwrap_or(how).to_owned());
    }
    let own = |said: &&str| !TO_CLIENTS.iter().any(|other| said.starts_with(other));
    lines.iter().rev().filter_map(|line| complaint(line)).find(own).map(str::to_owned)
}

/// Whether the server could not recover with the files that it has, so that no further start will help.
pub fn is_beyond_recovery(said: &str) -> bool {
    [
        "requested timeline",
        "according to history file",
        "could not locate a valid checkpoint record",
        "could not locate required checkpoint record",
        "could not read file \"",
        "could not open file \"pg_",
        "could not access status of transaction",
        "could not find redo location",
        "WAL ends before",
        "replication slot file",
        "replication checkpoint",
        "relation mapping file",
    ]
    .iter()
    .any(|sign| said.contains(sign))
}

/// Whether `number` stands in `line`, not as a part of a longer one.
fn is_word(line: &str, number: &str) -> bool {
    line.split(|letter: char| !letter.is_ascii_digit()).any(|word| word == number)
}

/// What follows FATAL or PANIC in a line.
fn complaint(line: &str) -> Option<&str> {
    let (_, said) = line.split_once("FATAL:").or_else(|| line.split_once("PANIC:"))?;
    Some(said.trim())
}

/// The process whose death a line reports, and how it died. A status of 0 is no death.
fn death(line: &str) -> Option<(&str, &str)> {
    let (_, said) = line.split_once("LOG:")?;
    let (_, after) = said.split_once("(PID ")?;
    let (pid, how) = after.split_once(')')?;
    let failed = how.contains("was terminated by") || how.contains("exited with exit code");
    (failed && !how.ends_with("exit code 0")).then_some((pid, said.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_CHILD: &str = "\
2026-11-21 15:58:01.100 UTC [811] LOG:  entering standby mode
2026-11-21 15:58:01.110 UTC [811] FATAL:  requested timeline 9 is not a child of this server's history
2026-11-21 15:58:01.110 UTC [811] DETAIL:  Latest checkpoint is at 0/5000028 on timeline 8.
2026-11-21 15:58:01.112 UTC [815] app@app FATAL:  the database system is starting up
2026-11-21 15:58:01.113 UTC [807] LOG:  startup process (PID 811) exited with exit code 1
2026-11-21 15:58:01.113 UTC [807] LOG:  aborting startup due to startup process failure
2026-11-21 15:58:01.114 UTC [816] app@app FATAL:  the database system is shutting down
2026-11-21 15:58:01.120 UTC [807] LOG:  database system is shut down
";

    #[test]
    fn the_last_words_of_the_process_that_failed_count() {
        let said = why_ended(NO_CHILD).expect("a reason");
        assert_eq!(said, "requested timeline 9 is not a child of this server's history");
        assert!(is_beyond_recovery(&said));
    }

    #[test]
    fn a_panic_is_a_reason_too() {
        let lines = "[20] PANIC:  could not read file \"pg_replslot/pgcm_pg02/state\": read 0 of 8\n\
                     [7] LOG:  startup process (PID 20) was terminated by signal 6: Aborted\n";
        let said = why_ended(lines).expect("a reason");
        assert!(said.starts_with("could not read file") && is_beyond_recovery(&said), "{said}");
    }

    #[test]
    fn a_process_that_says_nothing_is_told_by_how_it_died() {
        let lines = "[9] app@app FATAL:  the database system is starting up\n\
                     [7] LOG:  startup process (PID 8) was terminated by signal 11: Segmentation fault\n\
                     [7] LOG:  aborting startup due to startup process failure\n";
        let said = why_ended(lines).expect("a reason");
        assert_eq!(said, "startup process (PID 8) was terminated by signal 11: Segmentation fault");
        assert!(!is_beyond_recovery(&said));
    }

    #[test]
    fn a_postmaster_that_gives_up_is_heard_and_clients_are_not() {
        let lines = "[7] FATAL:  could not create lock file \"postmaster.pid\": No space left on device\n\
                     [9] app@app FATAL:  no pg_hba.conf entry for host \"10.0.0.1\"\n";
        let said = why_ended(lines).expect("a reason");
        assert!(said.starts_with("could not create lock file"), "{said}");
        assert_eq!(why_ended("[7] LOG:  database system is shut down\n"), None);
        assert_eq!(why_ended(""), None);
    }
}
