//! The command line: exit codes and messages that scripts and people rely on.

#![expect(clippy::disallowed_methods, reason = "the test runs the program as a user would")]

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    process::{Command, Output},
};

fn pgcm(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pgcm")).args(args).output().expect("pgcm runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn help_shows_the_exit_codes() {
    let output = pgcm(&["--help"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stdout).contains(pgcm::exit::Exit::TABLE));
}

#[test]
fn help_of_failover_says_what_happens_to_clients() {
    let help = text(&pgcm(&["failover", "--help"]).stdout);
    for flag in [
        "--target",
        "--dry-run",
        "--output",
        "--health-check-timeout",
        "--lock-timeout",
        "--pause-timeout",
        "--pause-expiry",
        "--resume-timeout",
        "--pacemaker-timeout",
        "--override",
        "--attempts",
        "--terminate-blockers-after",
    ] {
        assert!(help.contains(flag), "{flag} is missing from:\n{help}");
    }
    assert!(help.contains("without dropping clients"), "{help}");
}

#[test]
fn help_of_with_lock_and_status_says_what_scripts_rely_on() {
    let help = text(&pgcm(&["with-lock", "--help"]).stdout);
    for words in ["--lock-timeout", "--kill-after", "1 error; 5 lock held", "PGCM_FENCING_TOKEN"] {
        assert!(help.contains(words), "{words} is missing from:\n{help}");
    }
    let help = text(&pgcm(&["status", "--help"]).stdout);
    for words in ["--watch", "--check <WHAT>", "--node", "0 yes, 4 no, 3 unknown", "- standby:"] {
        assert!(help.contains(words), "{words} is missing from:\n{help}");
    }
    assert_eq!(pgcm(&["with-lock", "true"]).status.code(), Some(2), "the -- is not optional");
    let both = pgcm(&["status", "--watch", "--check", "cluster"]);
    assert_eq!(both.status.code(), Some(2));
}

#[test]
fn history_without_etcd_ends_with_3() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("config.toml");
    fs::write(&path, "[etcd]\nendpoints = [\"http://127.0.0.1:1\"]\n").expect("writable");
    let output = pgcm(&["--config-file", &path.to_string_lossy(), "history"]);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
}

#[test]
fn a_daemon_whose_port_is_taken_ends_with_3_and_names_it() {
    let holder = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let taken = holder.local_addr().expect("bound").to_string();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("config.toml");
    for (web, api) in [(taken.as_str(), "127.0.0.1:0"), ("", &taken)] {
        let config = format!(
            "[node]\nname = \"pg01\"\naddress = \"127.0.0.1\"\n\
             [etcd]\nendpoints = [\"http://127.0.0.1:1\"]\ncall-timeout = \"100ms\"\n\
             [web]\nproxy-listen = \"{web}\"\n[api]\nproxy-listen = \"{api}\"\n\
             [failover]\nresume-timeout = \"100ms\"\n"
        );
        fs::write(&path, config).expect("writable");
        let output = pgcm(&["--config-file", &path.to_string_lossy(), "proxy"]);
        let words = text(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{words}");
        assert!(words.contains(&format!("on {taken}; is another pgcm running")), "{words}");
    }
}

#[test]
fn what_cannot_be_overridden_or_waited_for_is_refused_before_anything_is_asked() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("config.toml");
    fs::write(&path, "[etcd]\nendpoints = [\"http://127.0.0.1:1\"]\n").expect("writable");
    let failover = |args: &[&str]| {
        let path = path.to_string_lossy();
        let output = pgcm(&[&["--config-file", &path, "failover"], args].concat());
        (output.status.code(), text(&output.stderr))
    };
    let (code, words) = failover(&["--override", "lag", "--override", "quorum"]);
    assert_eq!(code, Some(2), "{words}");
    assert!(words.contains("`quorum` cannot be overridden; these can: agent-expected"), "{words}");
    let (code, words) = failover(&["--terminate-blockers-after", "5s"]);
    assert_eq!(code, Some(2), "{words}");
    assert!(words.contains("must be less than the pause timeout (5s)"), "{words}");
    assert_eq!(failover(&["--attempts", "0"]).0, Some(2));
    assert_eq!(failover(&["--override", "lag"]).0, Some(3), "allowed, but nobody answers");
}

#[test]
fn the_help_names_every_check_that_can_be_overridden() {
    let help = text(&pgcm(&["failover", "--help"]).stdout);
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    let names = pgcm::model::finding::OVERRIDABLE.join(", ");
    assert!(help.contains(&names), "{names} is not in:\n{help}");
}

#[test]
fn wrong_usage_ends_with_2() {
    assert_eq!(pgcm(&["failover", "--pause-expiry", "soon"]).status.code(), Some(2));
    assert_eq!(pgcm(&["no-such-command"]).status.code(), Some(2));
}

#[test]
fn a_missing_configuration_is_named_with_its_remedy() {
    let output = pgcm(&["--config-file", "/no/such/file", "status"]);
    assert_eq!(output.status.code(), Some(2));
    let words = text(&output.stderr);
    assert!(words.contains("/no/such/file") && words.contains("pgcm show-config"), "{words}");
}

#[test]
fn an_unknown_key_is_refused_with_file_and_line() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("config.toml");
    fs::write(&path, "[etcd]\nendpoint = \"http://127.0.0.1:2379\"\n").expect("writable");
    let output = pgcm(&["--config-file", &path.to_string_lossy(), "check-config"]);
    assert_eq!(output.status.code(), Some(2));
    let words = text(&output.stderr);
    assert!(words.contains("config.toml") && words.contains("line 2"), "{words}");
}

#[test]
fn a_token_that_others_can_read_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let token = dir.path().join("token");
    fs::write(&token, "secret").expect("writable");
    fs::set_permissions(&token, fs::Permissions::from_mode(0o644)).expect("chmod");
    let path = dir.path().join("config.toml");
    fs::write(&path, format!("[api]\ntoken-file = \"{}\"\n", token.display())).expect("writable");
    let output = pgcm(&["--config-file", &path.to_string_lossy(), "check-config"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("chmod 600"), "{}", text(&output.stderr));
}

#[test]
fn templates_are_tried_and_those_that_are_not_there_are_told() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (path, first, second) =
        (dir.path().join("config.toml"), dir.path().join("ini"), dir.path().join("list"));
    let target = dir.path().join("rendered");
    let templates: Vec<_> = [&first, &second]
        .map(|file| format!("{{ source = {file:?}, target = {target:?} }}"))
        .into();
    fs::write(&path, format!("[proxy]\ntemplates = [{}]\n", templates.join(", ")))
        .expect("writable");
    let check = || pgcm(&["--config-file", &path.to_string_lossy(), "check-config"]);

    let output = check();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    for file in [&first, &second] {
        let told = format!("there is no {}", file.display());
        assert!(text(&output.stderr).contains(&told), "{}", text(&output.stderr));
    }

    fs::write(&second, "{% for s in standbys %}{{ s.name }} {{ s.address }}{% endfor %}\n")
        .expect("writable");
    for (bad, words) in [
        ("[databases]\na = host={{.Hots}}\n", "line 2"),
        ("[databases]\na = host=10.0.0.1\n", "write host={{.Host}}"),
        ("[databases]\na = host={{.Host}}\nro = host={{ standbys[0].address }}\n", "line 3"),
    ] {
        fs::write(&first, bad).expect("writable");
        let output = check();
        assert_eq!(output.status.code(), Some(2), "{}", text(&output.stdout));
        let said = text(&output.stderr);
        assert!(said.contains(words) && said.contains(&first.display().to_string()), "{said}");
    }

    fs::write(&first, "[databases]\na = host={{.Host}} port=5432\n").expect("writable");
    let output = check();
    assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(0), ""));
    assert!(!target.exists(), "nothing is written");
}

#[test]
fn certificates_that_cannot_be_used_are_named() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (ca, key) = (dir.path().join("ca.pem"), dir.path().join("own.key"));
    let path = dir.path().join("config.toml");
    let files = format!("ca-file = {ca:?}\ncert-file = {ca:?}\nkey-file = {key:?}\n");
    fs::write(&path, format!("[etcd]\nendpoints = [\"https://a:2379\"]\n{files}"))
        .expect("writable");
    let refused = |words: &[&str]| {
        let output = pgcm(&["--config-file", &path.to_string_lossy(), "check-config"]);
        assert_eq!(output.status.code(), Some(2));
        let said = text(&output.stderr);
        assert!(words.iter().all(|word| said.contains(word)), "{words:?} in {said}");
    };
    refused(&["cannot read", "ca.pem"]);
    fs::write(&ca, "no certificate").expect("writable");
    refused(&["ca.pem holds no certificate"]);
    fs::write(&ca, include_str!("data/ca.pem")).expect("writable");
    fs::write(&key, "no key").expect("writable");
    refused(&["own.key may be read by others", "chmod 600"]);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("chmod");
    refused(&["ca.pem and", "own.key are no certificate and its key"]);
}

#[test]
fn status_without_etcd_ends_with_3_and_names_the_member() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("config.toml");
    // Port 1 of loopback: nobody listens there.
    fs::write(&path, "[etcd]\nendpoints = [\"http://127.0.0.1:1\"]\n").expect("writable");
    let output = pgcm(&["--config-file", &path.to_string_lossy(), "status"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(text(&output.stderr).contains("http://127.0.0.1:1"), "{}", text(&output.stderr));
}

#[test]
fn shown_configuration_passes_its_own_check() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("config.toml");
    fs::write(&path, pgcm(&["show-config"]).stdout).expect("writable");
    let output = pgcm(&["--config-file", &path.to_string_lossy(), "check-config"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
}

#[test]
fn the_alert_wakes_supervise_for_promotions_and_for_what_happens_to_nodes() {
    let dir = tempfile::tempdir().unwrap();
    let poked = dir.path().join("poked");
    let stand_in = dir.path().join("pgcm");
    fs::write(&stand_in, format!("#!/bin/sh\necho \"$1\" > {}\n", poked.display())).unwrap();
    fs::set_permissions(&stand_in, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap());
    let alert = concat!(env!("CARGO_MANIFEST_DIR"), "/resource-agents/alert");
    for (kind, task, wakes) in [
        ("resource", "promote", true),
        ("resource", "demote", false),
        ("resource", "monitor", false),
        ("node", "", true),
        ("fencing", "", true),
    ] {
        let _ = fs::remove_file(&poked);
        let mut call = Command::new("sh");
        call.arg(alert).env("PATH", &path);
        let status = call.env("CRM_alert_kind", kind).env("CRM_alert_task", task).status();
        assert!(status.unwrap().success(), "{kind} {task}");
        assert_eq!(poked.exists(), wakes, "{kind} {task}");
    }
}

#[test]
fn what_cannot_be_printed_ends_nothing() {
    let full = || fs::OpenOptions::new().write(true).open("/dev/full").expect("Linux");
    let run = |args: &[&str], command: &mut dyn FnMut(&mut Command)| {
        let mut pgcm = Command::new(env!("CARGO_BIN_EXE_pgcm"));
        command(pgcm.args(args));
        pgcm.output().expect("pgcm runs")
    };
    // The answer is not there, and nobody may take it for one.
    let output = run(&["show-config"], &mut |pgcm| {
        pgcm.stdout(full());
    });
    assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("cannot write to stdout"), "{}", text(&output.stderr));
    // Whoever asked for the first lines only has them.
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut writer = Some(writer);
    let output = run(&["show-config"], &mut |pgcm| {
        pgcm.stdout(writer.take().expect("once"));
    });
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()));
    // An agent tells what it does, and why not, to a log on a full disk.
    let output = run(&["resource-agent", "nonsense"], &mut |pgcm| {
        pgcm.stderr(full());
    });
    assert_eq!(output.status.code(), Some(3), "as OCF has it: not implemented");
}
