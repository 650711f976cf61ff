//! Data directories with which Postgres ends at every start.

use std::fs;

use super::{cluster::Cluster, follows};

#[test]
fn a_server_that_ends_while_starting_is_heard_wherever_it_logs() {
    let mut cluster = Cluster::pair();
    cluster.act("pg02", "stop").with(0);
    // Nothing but the end of the whole server is known to Postgres for this.
    let slot = cluster.data("pg02").join("pg_replslot/broken");
    let postgres = nix::unistd::User::from_name("postgres").expect("users").expect("postgres");
    fs::create_dir(&slot).expect("created");
    fs::write(slot.join("state"), "").expect("written");
    for path in [&slot, &slot.join("state")] {
        let (uid, gid) = (postgres.uid.as_raw(), postgres.gid.as_raw());
        std::os::unix::fs::chown(path, Some(uid), Some(gid)).expect("chown");
    }
    let refused = |cluster: &Cluster| {
        let ended = cluster.act("pg02", "start").with(1);
        let reason = ended.reason();
        assert!(reason.starts_with("Postgres ended while starting: "), "{reason}");
        assert!(reason.contains("pg_replslot/broken/state"), "{reason}");
        for command in ["tail -n 50", "pg_basebackup", "--cleanup"] {
            assert!(ended.commands().contains(command), "{command}: {}", ended.commands());
        }
    };
    refused(&cluster);
    cluster.parameters.insert("logfile", "/dev/null".to_owned());
    cluster.configure("pg02", "logging_collector = on\nlog_directory = 'log'");
    refused(&cluster);

    fs::remove_dir_all(&slot).expect("removed");
    cluster.act("pg02", "start").with(0);
    follows(&cluster, "pg01", "pg02");
}
