//! What the agent needs of the server's settings, and what is wrong with those that are not so.

/// The oldest major version that the agent works with.
pub const OLDEST_VERSION: u32 = 13;

/// The settings that are looked at; the answers go into [`Server`] in this order.
pub const SETTINGS: [&str; 5] =
    ["wal_level", "hot_standby", "max_wal_senders", "wal_log_hints", "full_page_writes"];

/// What is known of a server that need not run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server<'a> {
    /// Path of the main configuration file, for messages.
    pub config: &'a str,
    /// The values of [`SETTINGS`].
    pub settings: [&'a str; 5],
    /// Whether pages carry checksums.
    pub checksums: bool,
    /// How many nodes run, or ran, the resource.
    pub nodes: usize,
    /// The parameter `rewind`.
    pub rewind: bool,
}

/// One sentence for each setting that would let replication fail: what it is, what was expected, what to
/// do.
pub fn faults(server: &Server) -> Vec<String> {
    let [wal_level, hot_standby, wal_senders, hints, full_page_writes] = server.settings;
    let mut faults = Vec::new();
    let mut expect = |holds: bool, name: &str, found: &str, expected: &str| {
        if !holds {
            faults.push(format!(
                "{name} is {found}, expected {expected}: change it in {}, or where that includes it \
                 from, and restart Postgres",
                server.config
            ));
        }
    };
    let replicates = matches!(wal_level, "replica" | "logical");
    expect(replicates, "wal_level", wal_level, "replica or logical");
    expect(hot_standby == "on", "hot_standby", hot_standby, "on");
    // One for each standby, and one to spare for a base backup.
    let wanted = server.nodes.max(2);
    let enough = wal_senders.parse().is_ok_and(|found: usize| found >= wanted);
    expect(enough, "max_wal_senders", wal_senders, &format!("{wanted} or more"));
    if server.rewind {
        let traced = server.checksums || hints == "on";
        let name = "rewind=true, but the data has no checksums and wal_log_hints";
        expect(traced, name, hints, "on (or run pg_checksums --enable on the stopped server)");
        let name = "rewind=true, but full_page_writes";
        expect(full_page_writes == "on", name, full_page_writes, "on");
    }
    faults
}

/// What is wrong with programs of the major version `programs` for a data directory of `data`.
pub fn version_fault(data: Option<u32>, programs: Option<u32>, bindir: &str) -> Option<String> {
    let (data, programs) = match (data, programs) {
        (Some(data), Some(programs)) => (data, programs),
        (None, _) => return Some("PG_VERSION holds no version of Postgres 10 or later".to_owned()),
        (_, None) => return Some(format!("the postgres in {bindir} does not tell its version")),
    };
    if data < OLDEST_VERSION {
        return Some(format!(
            "the data directory is of Postgres {data}, expected {OLDEST_VERSION} or later: upgrade it"
        ));
    }
    (data != programs).then(|| {
        format!(
            "the programs in {bindir} are of Postgres {programs}, the data directory is of {data}: \
             set the parameter `bindir`"
        )
    })
}

/// The major version in `postgres (PostgreSQL) 17.11 (Debian …)` or in `17`.
pub fn major_version(text: &str) -> Option<u32> {
    let text = text.trim();
    let number = text.split_once("(PostgreSQL) ").map_or(text, |(_, after)| after);
    let digits = number.find(|c: char| !c.is_ascii_digit()).unwrap_or(number.len());
    number[..digits].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Server = Server {
        config: "/etc/postgresql.conf",
        settings: ["replica", "on", "10", "off", "on"],
        checksums: true,
        nodes: 3,
        rewind: true,
    };

    #[test]
    fn a_server_as_debian_makes_it_has_no_fault() {
        assert_eq!(faults(&GOOD), Vec::<String>::new());
        let logical = Server { settings: ["logical", "on", "3", "off", "on"], ..GOOD };
        assert_eq!(faults(&logical), Vec::<String>::new());
        let hints =
            Server { settings: ["replica", "on", "3", "on", "on"], checksums: false, ..GOOD };
        assert_eq!(faults(&hints), Vec::<String>::new());
    }

    #[test]
    fn each_unfit_setting_is_named_with_what_is_expected_and_where() {
        for (settings, name, expected) in [
            (["minimal", "on", "10", "on", "on"], "wal_level is minimal", "replica or logical"),
            (["replica", "off", "10", "on", "on"], "hot_standby is off", "on"),
            (["replica", "on", "2", "on", "on"], "max_wal_senders is 2", "3 or more"),
            (["replica", "on", "10", "off", "on"], "wal_log_hints is off", "pg_checksums --enable"),
            (["replica", "on", "10", "on", "off"], "full_page_writes is off", "on"),
        ] {
            let found = faults(&Server { settings, checksums: false, ..GOOD });
            let [fault] = found.as_slice() else { panic!("{name}: {found:?}") };
            for part in [name, expected, GOOD.config] {
                assert!(fault.contains(part), "{part}: {fault}");
            }
        }
    }

    #[test]
    fn without_rewind_nothing_is_asked_for_it() {
        let settings = ["replica", "on", "10", "off", "off"];
        let found = faults(&Server { settings, checksums: false, rewind: false, ..GOOD });
        assert_eq!(found, Vec::<String>::new());
    }

    #[test]
    fn programs_must_be_of_the_version_of_the_data() {
        let fault = |data, programs| version_fault(data, programs, "/bin").unwrap_or_default();
        assert_eq!(fault(Some(17), Some(17)), "");
        assert!(fault(Some(17), Some(18)).contains("`bindir`"));
        assert!(fault(Some(12), Some(12)).contains("13 or later"));
        assert!(fault(None, Some(17)).contains("PG_VERSION"));
        assert!(fault(Some(17), None).contains("/bin"));
    }

    #[test]
    fn versions_are_read_from_programs_and_files() {
        for (text, version) in [
            ("postgres (PostgreSQL) 17.11 (Debian 17.11-0+deb13u1)\n", Some(17)),
            ("postgres (PostgreSQL) 18beta1\n", Some(18)),
            ("13\n", Some(13)),
            ("9.6\n", Some(9)),
            ("", None),
        ] {
            assert_eq!(major_version(text), version, "{text}");
        }
    }
}
