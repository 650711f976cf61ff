//! `pgcm with-lock` as a user runs it, against a real etcd that holds no data.

mod support;

use std::{
    fs::File,
    io::Write,
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use pgcm::{
    edge::{
        etcd::{Etcd, Expect},
        lock::{Lock, LockOptions},
    },
    model::attempt::{Attempt, LOCK},
};
use support::{
    etcd::{EtcdServer, start_etcd},
    eventually,
    pgcm::{Pgcm, end},
};

const SOON: Duration = Duration::from_secs(20);

async fn setup() -> (EtcdServer, Arc<Etcd>, Pgcm) {
    let server = start_etcd().await;
    let (etcd, pgcm) = (server.client(), Pgcm::new(&server));
    (server, etcd, pgcm)
}

async fn holder(etcd: &Etcd) -> Option<Attempt> {
    let entry = etcd.get(LOCK).await.expect("etcd answers")?;
    serde_json::from_str(&entry.value).ok()
}

#[tokio::test]
async fn the_commands_status_and_streams_are_its_own_and_the_lock_is_free_after_it() {
    let (_server, etcd, pgcm) = setup().await;
    let script = "read line; echo \"got $line\"; echo oh >&2; exit 42";
    let mut child = pgcm
        .command(&["with-lock", "--", "sh", "-c", script])
        .stdin(Stdio::piped())
        .spawn()
        .expect("pgcm starts");
    let shown = || async {
        holder(&etcd).await.is_some_and(|attempt| attempt.purpose.starts_with("with-lock: sh -c"))
    };
    eventually(SOON, "the lock is held, and says for what", shown).await;
    let (_, status, _) = pgcm.run(&["status"]);
    assert!(status.contains("Lock      held by pg01, process"), "{status}");
    child.stdin.take().expect("piped").write_all(b"a word\n").expect("written");
    let (status, stdout, stderr) = end(child);
    assert_eq!((status, stdout.as_str()), (42, "got a word\n"), "{stderr}");
    assert!(stderr.contains("oh\n"), "{stderr}");
    assert_eq!(holder(&etcd).await, None);
}

#[tokio::test]
async fn a_lock_held_elsewhere_is_5_and_nothing_is_run() {
    let (_server, etcd, pgcm) = setup().await;
    let attempt = Attempt {
        id: "theirs".to_owned(),
        holder: "pg09".to_owned(),
        purpose: "failover".to_owned(),
        started_at: "noon".to_owned(),
        step: "pause".to_owned(),
        pause_deadline_unix_ms: 0,
    };
    let options = LockOptions { lease: SOON, poll: Duration::from_millis(20) };
    let theirs = Lock::new(etcd.clone(), attempt, options);
    theirs.acquire(Duration::ZERO).await.expect("etcd answers");
    let trace = pgcm.path("trace");
    let trace = trace.to_str().expect("UTF-8");
    let (status, _, stderr) = pgcm.run(&["with-lock", "--", "touch", trace]);
    assert_eq!(status, 5, "{stderr}");
    assert!(stderr.contains("pg09 holds the lock for `failover` since noon"), "{stderr}");
    assert!(!pgcm.path("trace").exists());
    // Who is willing to wait gets it.
    let child = pgcm.start(&["with-lock", "--lock-timeout", "20s", "--", "touch", trace]);
    theirs.release().await.expect("released");
    assert_eq!(end(child).0, 0);
    assert!(pgcm.path("trace").exists());
}

#[tokio::test]
async fn trouble_of_its_own_is_1() {
    let (mut server, _etcd, pgcm) = setup().await;
    let (status, _, stderr) = pgcm.run(&["with-lock", "--", "no-such-program"]);
    assert_eq!(status, 1, "{stderr}");
    assert!(stderr.contains("`no-such-program` is not installed"), "{stderr}");
    server.stop();
    let (status, _, stderr) = pgcm.run(&["with-lock", "--", "true"]);
    assert_eq!(status, 1, "{stderr}");
    assert!(stderr.contains("`true` was not run"), "{stderr}");
}

#[tokio::test]
async fn a_lost_lock_ends_the_command_and_what_it_started() {
    let (_server, etcd, pgcm) = setup().await;
    // The shell heeds nothing, and neither does its child.
    let deaf = format!(
        "trap '' TERM; (sleep 1; touch {0}/begun; sleep 30; touch {0}/survived); true",
        pgcm.path("").display()
    );
    let args = ["with-lock", "--kill-after", "1s", "--", "sh", "-c", &deaf];
    let child = pgcm.start(&args);
    eventually(SOON, "it runs", || async { pgcm.path("begun").exists() }).await;
    let entry = etcd.get(LOCK).await.expect("etcd answers").expect("held");
    let began = Instant::now();
    etcd.revoke(entry.lease).await.expect("revoked");
    let (status, _, stderr) = end(child);
    assert_eq!(status, 1, "{stderr}");
    assert!(stderr.contains("the failover lock was lost while `sh` ran"), "{stderr}");
    assert!(stderr.contains("killed, with status 137"), "{stderr}");
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
}

/// The command ends when it is told to, and leaves something behind that does not: also on a terminal, whose group it
/// has to share.
#[tokio::test]
async fn a_lost_lock_ends_what_an_obedient_command_has_left_behind() {
    for on_terminal in [false, true] {
        let (_server, etcd, pgcm) = setup().await;
        let script = format!(
            "(trap '' TERM; touch {0}/begun; sleep 600) & \
             setsid sh -c 'touch {0}/daemon; sleep 5; touch {0}/lasted' > /dev/null 2>&1 & wait",
            pgcm.path("").display()
        );
        let args = ["with-lock", "--kill-after", "1s", "--", "sh", "-c", &script];
        let mut command = pgcm.command(&args);
        if on_terminal {
            let mut terminal = File::options();
            let terminal = terminal.read(true).write(true).open("/dev/ptmx");
            command.stdin(terminal.expect("a terminal"));
        }
        let child = command.spawn().expect("pgcm starts");
        let begun = || async { pgcm.path("begun").exists() && pgcm.path("daemon").exists() };
        eventually(SOON, "it runs", begun).await;
        let entry = etcd.get(LOCK).await.expect("etcd answers").expect("held");
        etcd.revoke(entry.lease).await.expect("revoked");
        let began = Instant::now();
        // Until nobody has its output open any more, the daemon excepted.
        let (status, _, stderr) = end(child);
        assert!(began.elapsed() < SOON, "{:?}: {stderr}", began.elapsed());
        assert_eq!(status, 1, "{stderr}");
        assert!(stderr.contains("killed, with status"), "{stderr}");
        let lasted = || async { pgcm.path("lasted").exists() };
        eventually(SOON, "a daemon is left alone", lasted).await;
    }
}

#[tokio::test]
async fn a_lock_that_somebody_removes_ends_the_command() {
    let (_server, etcd, pgcm) = setup().await;
    let script = format!("touch {}; sleep 30", pgcm.path("begun").display());
    let child = pgcm.start(&["with-lock", "--", "sh", "-c", &script]);
    eventually(SOON, "it runs", || async { pgcm.path("begun").exists() }).await;
    let entry = etcd.get(LOCK).await.expect("etcd answers").expect("held");
    let began = Instant::now();
    let there = Expect::CreateRevision(entry.create_revision);
    etcd.delete_if(LOCK, there).await.expect("deleted, while its lease lives");
    let (status, _, stderr) = end(child);
    assert_eq!(status, 1, "{stderr}");
    assert!(stderr.contains("the failover lock was lost while `sh` ran"), "{stderr}");
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
}

#[tokio::test]
async fn sigterm_is_passed_on_and_the_command_may_tidy_up() {
    let (_server, etcd, pgcm) = setup().await;
    let trace = pgcm.path("tidied");
    let script = format!(
        "trap 'touch {}; exit 9' TERM; touch {}; while :; do sleep 0.1; done",
        trace.display(),
        pgcm.path("begun").display()
    );
    let child = pgcm.start(&["with-lock", "--", "sh", "-c", &script]);
    eventually(SOON, "it runs", || async { pgcm.path("begun").exists() }).await;
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("a PID"));
    kill(pid, Signal::SIGTERM).expect("it is there");
    let (status, _, stderr) = end(child);
    assert_eq!(status, 9, "{stderr}");
    assert!(trace.exists());
    assert_eq!(holder(&etcd).await, None);
}
