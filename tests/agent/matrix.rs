//! Every action from every state, each twice: a table of codes.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use nix::{
    sys::{
        signal::{Signal, kill},
        statvfs::statvfs,
    },
    unistd::Pid,
};

use super::{
    SECONDS,
    cluster::{Cluster, eventually},
};

/// The actions, in the order of the codes in a row. The first four change nothing.
const ACTIONS: [&str; 8] =
    ["probe", "monitor", "validate-all", "notify", "start", "promote", "demote", "stop"];

/// The codes of OCF 1.1: 0 done or standby, 1 wrong state, 4 wrong rights, 5 something is missing (both
/// keep the resource off this node), 7 not running, 8 primary.
type Codes = [i32; 8];

/// What keeps a state as it is: processes to end, and the small disk.
#[derive(Default)]
struct Held {
    children: Vec<Child>,
    stopped: Vec<Pid>,
    /// Postmasters that no file leads to any more.
    lost: Vec<Pid>,
    disk: Option<SmallDisk>,
}

impl Drop for Held {
    fn drop(&mut self) {
        for &pid in &self.stopped {
            let _ = kill(pid, Signal::SIGCONT);
        }
        for &pid in &self.lost {
            let _ = kill(pid, Signal::SIGQUIT);
        }
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Makes a state for pg01, takes every action from it, and again.
fn row(make: fn(&Cluster) -> Held, codes: Codes) {
    let mut made = None;
    for (&action, code) in ACTIONS.iter().zip(codes) {
        let changes = !["probe", "monitor", "validate-all", "notify"].contains(&action);
        if changes || made.is_none() {
            // The server ends before what it was held by.
            drop(made.take());
            let cluster = Cluster::new();
            let held = make(&cluster);
            made = Some((cluster, held));
        }
        let (cluster, _) = made.as_ref().expect("made");
        for time in ["first", "again"] {
            let ended = act(cluster, action);
            let reason = ended.reason();
            assert_eq!(ended.code, code, "{action}, {time}: {}", ended.stderr);
            let told = [0, 8].contains(&code) || code == 7 && action != "promote";
            assert_eq!(reason.is_empty(), told, "{action}, {time}: every refusal has a reason");
            let shown: String = reason.chars().take(128).collect();
            eprintln!("{action:12} {code} {:5} ms  {shown}", ended.took.as_millis());
        }
    }
}

fn act(cluster: &Cluster, action: &str) -> super::cluster::Ended {
    let limit = ("OCF_RESKEY_CRM_meta_timeout", "12000");
    match action {
        "probe" => {
            cluster.act_with("pg01", "monitor", &[limit, ("OCF_RESKEY_CRM_meta_interval", "0")])
        }
        "validate-all" => cluster.act_with("pg01", action, &[limit, ("OCF_CHECK_LEVEL", "10")]),
        "notify" => {
            let post = ("OCF_RESKEY_CRM_meta_notify_type", "post");
            cluster.act_with("pg01", action, &[limit, post])
        }
        _ => cluster.act_with("pg01", action, &[limit, ("OCF_RESKEY_CRM_meta_interval", "3000")]),
    }
}

fn primary(cluster: &Cluster) -> Held {
    cluster.act("pg01", "start").with(0);
    cluster.act("pg01", "promote").with(0);
    Held::default()
}

/// A standby, with the score that lets it be promoted.
fn standby(cluster: &Cluster) -> Held {
    cluster.act("pg01", "start").with(0);
    Held::default()
}

fn stopped(cluster: &Cluster) -> Held {
    let held = primary(cluster);
    cluster.act("pg01", "stop").with(0);
    held
}

fn crashed(cluster: &Cluster) -> Held {
    let held = primary(cluster);
    cluster.crash("pg01");
    held
}

/// A query that looks at no signal of its postmaster for a while, and the process that runs it.
fn busy_backend(cluster: &Cluster) -> (Child, Pid) {
    let query = "select count(*) from generate_series(1, 3000000000) n";
    let child = cluster
        .psql("pg01", query)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("psql");
    let find = "select max(pid) from pg_stat_activity where query like 'select count%3000000000%' \
                and state = 'active' and pid <> pg_backend_pid()";
    let mut pid = String::new();
    eventually(SECONDS, "the query runs", || {
        pid = cluster.sql("pg01", find);
        !pid.is_empty()
    });
    (child, Pid::from_raw(pid.parse().expect("a pid")))
}

fn orphaned(cluster: &Cluster) -> Held {
    // A running one would notice the death of its postmaster sooner or later.
    let held = stopped_backend(cluster);
    cluster.signal("pg01", Signal::SIGKILL);
    eventually(SECONDS, "the postmaster is gone", || cluster.act("pg01", "monitor").code != 8);
    held
}

/// A standby that waits for WAL that nobody has, before it is consistent.
fn starting(cluster: &Cluster) -> Held {
    let held = primary(cluster);
    let copy = cluster.basebackup("pg02", &["-N", "-X", "none", "--no-manifest"]).status();
    assert!(copy.expect("pg_basebackup").success());
    cluster.act("pg01", "stop").with(0);
    fs::rename(cluster.data("pg01"), cluster.path("pg01-old")).expect("moved");
    fs::rename(cluster.data("pg02"), cluster.data("pg01")).expect("moved");
    let short = [("OCF_RESKEY_CRM_meta_timeout", "3000")];
    cluster.act_with("pg01", "start", &short).with(1);
    held
}

fn out_of_slots(cluster: &Cluster) -> Held {
    without_slots(cluster, primary(cluster))
}

fn standby_out_of_slots(cluster: &Cluster) -> Held {
    without_slots(cluster, standby(cluster))
}

fn without_slots(cluster: &Cluster, mut held: Held) -> Held {
    // psql connects as the superuser, and so takes the reserved slots as well.
    eventually(SECONDS, "all slots are taken", || {
        let mut psql = cluster.psql("pg01", "select pg_sleep(600)");
        psql.stdout(Stdio::null()).stderr(Stdio::null());
        held.children.push(psql.spawn().expect("psql"));
        let output = cluster.psql("pg01", "select 1").output().expect("psql");
        String::from_utf8_lossy(&output.stderr).contains("too many clients")
    });
    held
}

fn stopped_backend(cluster: &Cluster) -> Held {
    let mut held = primary(cluster);
    let (child, pid) = busy_backend(cluster);
    held.children.push(child);
    kill(pid, Signal::SIGSTOP).expect("stopped");
    held.stopped.push(pid);
    held
}

fn stopped_postmaster(cluster: &Cluster) -> Held {
    let mut held = primary(cluster);
    cluster.signal("pg01", Signal::SIGSTOP);
    held.stopped.push(Pid::from_raw(cluster.pid("pg01").expect("a postmaster")));
    held
}

fn missing(cluster: &Cluster) -> Held {
    fs::remove_dir_all(cluster.data("pg01")).expect("removed");
    Held::default()
}

fn empty(cluster: &Cluster) -> Held {
    let held = missing(cluster);
    fs::create_dir(cluster.data("pg01")).expect("created");
    held
}

fn removed_while_it_runs(cluster: &Cluster) -> Held {
    let mut held = primary(cluster);
    // One that still starts its launchers cannot, without its files, and ends.
    let launchers = "select count(*) from pg_stat_activity where backend_type like '% launcher'";
    eventually(SECONDS, "the primary has started its launchers", || {
        cluster.sql("pg01", launchers) == "2"
    });
    held.lost.push(Pid::from_raw(cluster.pid("pg01").expect("a postmaster")));
    fs::remove_dir_all(cluster.data("pg01")).expect("removed");
    held
}

fn wrong_owner(cluster: &Cluster) -> Held {
    chown(cluster.data("pg01").join("PG_VERSION"), Some(0), Some(0)).expect("chown");
    Held::default()
}

fn wrong_mode(cluster: &Cluster) -> Held {
    chmod(&cluster.data("pg01"), 0o755);
    Held::default()
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
}

fn pid_file(cluster: &Cluster, pid: u32) {
    let text = format!("{pid}\n{}\n1\n5432\n", cluster.data("pg01").display());
    fs::write(cluster.data("pg01").join("postmaster.pid"), text).expect("written");
}

fn stale_pid(cluster: &Cluster) -> Held {
    pid_file(cluster, 4_000_000);
    Held::default()
}

fn foreign_pid(cluster: &Cluster) -> Held {
    #[expect(clippy::disallowed_methods, reason = "any process of the same user will do")]
    let mut stranger = std::process::Command::new("runuser");
    let stranger =
        stranger.args(["-u", "postgres", "--", "sleep", "600"]).spawn().expect("runuser");
    pid_file(cluster, stranger.id());
    let mut held = Held::default();
    held.children.push(stranger);
    held
}

fn half_written_settings(cluster: &Cluster) -> Held {
    let held = stopped(cluster);
    let path = cluster.data("pg01").join("pgcm.conf");
    let text = fs::read_to_string(&path).expect("written by the agent");
    fs::write(&path, &text[..text.len() / 2]).expect("written");
    held
}

fn no_configuration(cluster: &Cluster) -> Held {
    fs::remove_file(cluster.data("pg01").join("postgresql.conf")).expect("removed");
    Held::default()
}

fn unreadable_configuration(cluster: &Cluster) -> Held {
    let path = cluster.data("pg01").join("postgresql.conf");
    chown(&path, Some(0), Some(0)).expect("chown");
    chmod(&path, 0o600);
    Held::default()
}

/// A file system of a few MiB, which the test container brings along; one test at a time has it.
///
/// To be taken before the cluster, so that it outlives it: a server that still ends gives blocks back,
/// and a disk that is full for one test would not stay full.
struct SmallDisk {
    _one: MutexGuard<'static, ()>,
}

const SMALL: &str = "/small";

impl SmallDisk {
    fn empty() -> Self {
        static ONE: Mutex<()> = Mutex::new(());
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(Path::new(SMALL).is_dir(), "this test needs a small file system at {SMALL}");
        // Files that a dying process still has open count until it is gone.
        eventually(SECONDS, "nothing is left on the small disk", || {
            Self::clear();
            let disk = statvfs(SMALL).expect("a file system");
            disk.blocks_free() == disk.blocks()
        });
        Self { _one: one }
    }

    /// Moves pg01's data directory here; the server must not run.
    fn take(&self, cluster: &Cluster) {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let data = PathBuf::from(SMALL).join(format!("data-{number}"));
        cluster.copy(&cluster.data("pg01"), &data);
        fs::remove_dir_all(cluster.data("pg01")).expect("removed");
        symlink(&data, cluster.data("pg01")).expect("linked");
    }

    /// Leaves not one block free.
    fn fill(&self) {
        let path = Path::new(SMALL).join("filler");
        let mut file = fs::File::options().create(true).append(true).open(path).expect("opened");
        for size in [1 << 20, 4096, 1] {
            while std::io::Write::write_all(&mut file, &vec![0; size]).is_ok() {}
        }
    }

    fn free(&self) {
        fs::remove_file(Path::new(SMALL).join("filler")).expect("removed");
    }

    fn clear() {
        for entry in fs::read_dir(SMALL).expect("listed") {
            let path = entry.expect("listed").path();
            let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        }
    }
}

fn full_disk(cluster: &Cluster) -> Held {
    let mut held = stopped(cluster);
    // `row` lets go of a cluster before it lets go of what held it.
    let disk = SmallDisk::empty();
    disk.take(cluster);
    disk.fill();
    held.disk = Some(disk);
    held
}

macro_rules! matrix {
    ($($name:ident: $state:ident => $codes:expr;)*) => {
        $(#[test] fn $name() { row($state, $codes); })*
    };
}

// probe, monitor, validate-all, notify; start, promote, demote, stop
matrix! {
    every_action_on_a_running_primary: primary => [8, 8, 0, 0, 0, 0, 0, 0];
    every_action_on_a_running_standby: standby => [0, 0, 0, 0, 0, 0, 0, 0];
    every_action_on_a_stopped_server: stopped => [7, 7, 0, 0, 0, 7, 0, 0];
    every_action_on_a_crashed_server: crashed => [7, 7, 0, 0, 0, 7, 0, 0];
    every_action_on_backends_without_a_postmaster: orphaned => [1, 1, 0, 0, 0, 7, 0, 0];
    every_action_on_a_starting_server: starting => [0, 0, 0, 0, 1, 1, 0, 0];
    every_action_on_a_server_out_of_slots: out_of_slots => [8, 8, 0, 0, 0, 0, 0, 0];
    every_action_on_a_standby_out_of_slots: standby_out_of_slots => [0, 0, 0, 0, 0, 1, 0, 0];
    every_action_with_a_stopped_backend: stopped_backend => [8, 8, 0, 0, 0, 0, 0, 0];
    every_action_on_a_stopped_postmaster: stopped_postmaster => [8, 8, 0, 0, 0, 0, 0, 0];
    every_action_without_a_data_directory: missing => [7, 7, 5, 0, 5, 7, 0, 0];
    every_action_on_an_empty_data_directory: empty => [7, 7, 5, 0, 5, 7, 0, 0];
    every_action_on_a_data_directory_that_was_removed_while_it_runs:
        removed_while_it_runs => [1, 1, 5, 0, 5, 7, 0, 0];
    every_action_on_files_of_another_owner: wrong_owner => [7, 7, 4, 0, 4, 7, 0, 0];
    every_action_on_a_directory_open_to_others: wrong_mode => [7, 7, 4, 0, 4, 7, 0, 0];
    every_action_on_a_full_disk: full_disk => [7, 7, 0, 0, 1, 7, 0, 0];
    every_action_with_a_stale_pid_file: stale_pid => [7, 7, 0, 0, 0, 7, 0, 0];
    every_action_with_a_foreign_process_in_the_pid_file: foreign_pid => [7, 7, 0, 0, 0, 7, 0, 0];
    // Postgres cannot read its configuration then; a start writes the settings anew.
    every_action_with_half_written_settings: half_written_settings => [7, 7, 2, 0, 0, 7, 0, 0];
    every_action_without_a_configuration: no_configuration => [7, 7, 2, 0, 2, 7, 0, 0];
    every_action_on_an_unreadable_configuration:
        unreadable_configuration => [7, 7, 4, 0, 4, 7, 0, 0];
}

#[test]
fn a_primary_whose_disk_fills_up_loses_nothing_and_says_why_it_does_not_start() {
    let disk = SmallDisk::empty();
    let cluster = Cluster::new();
    disk.take(&cluster);
    primary(&cluster);
    cluster.sql("pg01", "create table t as select 1 as n");
    let settings = fs::read_to_string(cluster.data("pg01").join("pgcm.conf")).expect("settings");
    disk.fill();
    let mut acknowledged = 1;
    eventually(SECONDS * 3, "the primary cannot write WAL and ends", || {
        let run = |query| cluster.psql("pg01", query).output().expect("psql").status.success();
        acknowledged += i32::from(run("insert into t values (1)"));
        // Only WAL: a table that cannot grow is an error for one client, and ends no server.
        run("select pg_logical_emit_message(false, 'pgcm', repeat('x', 4000000))");
        cluster.act("pg01", "monitor").code == 7
    });
    // What Postgres gave up at its end is taken as well.
    disk.fill();
    for _ in 0..2 {
        let refused = cluster.act("pg01", "start").with(1);
        assert!(refused.reason().starts_with("no space left on /small"), "{}", refused.reason());
    }
    assert_eq!(
        fs::read_to_string(cluster.data("pg01").join("pgcm.conf")).expect("settings"),
        settings,
        "a file that cannot be written whole is not touched"
    );
    cluster.act("pg01", "stop").with(0);
    disk.free();
    cluster.act("pg01", "start").with(0);
    cluster.act("pg01", "promote").with(0);
    assert_eq!(cluster.sql("pg01", "select count(*) from t"), acknowledged.to_string());
}

#[test]
fn a_promotion_on_a_full_disk_fails_with_the_reason() {
    let disk = SmallDisk::empty();
    let cluster = Cluster::new();
    disk.take(&cluster);
    standby(&cluster);
    disk.fill();
    let failed = cluster.act("pg01", "promote").with(1);
    assert!(failed.reason().starts_with("no space left on /small"), "{}", failed.reason());
    disk.free();
    cluster.act("pg01", "start").with(0);
    cluster.act("pg01", "promote").with(0);
}

#[test]
fn settings_on_a_full_disk_stay_the_old_ones() {
    let disk = SmallDisk::empty();
    let cluster = Cluster::new();
    stopped(&cluster);
    disk.take(&cluster);
    let old = "# by hand\nprimary_conninfo = 'host=10.0.0.9'\n";
    let path = cluster.data("pg01").join("pgcm.conf");
    fs::write(&path, old).expect("written");
    disk.fill();
    let refused = cluster.act("pg01", "start").with(1);
    assert!(refused.reason().contains("the old content is untouched"), "{}", refused.reason());
    assert_eq!(fs::read_to_string(&path).expect("settings"), old);
    assert!(!cluster.data("pg01").join("pgcm.conf.pgcm-new").exists());
    disk.free();
    cluster.act("pg01", "start").with(0);
    assert_ne!(fs::read_to_string(&path).expect("settings"), old);
}
