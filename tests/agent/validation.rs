//! `validate-all`: what is wrong, where, and what to do, before an action stumbles over it.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown},
};

use crate::cluster::{Cluster, Ended, address, bindir, command};

fn deep(cluster: &Cluster, node: &str, env: &[(&str, &str)]) -> Ended {
    let env: Vec<_> = env.iter().copied().chain([("OCF_CHECK_LEVEL", "10")]).collect();
    cluster.act_with(node, "validate-all", &env)
}

/// Asserts the code, and that the reason holds each of `parts`.
#[track_caller]
fn says(ended: Ended, code: i32, parts: &[&str]) {
    let reason = ended.reason();
    for part in parts {
        assert!(reason.contains(part), "{part}: {reason}");
    }
    ended.with(code);
}

#[test]
fn validation_needs_neither_a_cluster_nor_its_meta_attributes() {
    let cluster = Cluster::new();
    for level in ["0", "10"] {
        let mut validate = command(env!("CARGO_BIN_EXE_pgcm"));
        cluster.as_pacemaker(&mut validate, "pg01");
        for name in ["OCF_RESKEY_CRM_meta_on_node", "OCF_RESKEY_CRM_meta_timeout"] {
            validate.env_remove(name);
        }
        validate.args(["resource-agent", "validate-all"]).env("OCF_CHECK_LEVEL", level);
        validate.env("CIB_file", "/no-such-cib.xml");
        let output = validate.output().expect("pgcm runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn a_light_validation_looks_at_parameters_only() {
    let cluster = Cluster::new();
    cluster.configure("pg01", "wal_level = minimal\nmax_wal_senders = 0");
    cluster.act("pg01", "validate-all").with(0);
    let wrong = [("OCF_RESKEY_pgport", "0x15")];
    says(cluster.act_with("pg01", "validate-all", &wrong), 6, &["pgport", "0x15", "a TCP port"]);
    let nobody = [("OCF_RESKEY_pgdba", "no-such-user")];
    cluster.act_with("pg01", "validate-all", &nobody).with(0);
    says(deep(&cluster, "pg01", &nobody), 5, &["no-such-user"]);
}

#[test]
fn unfit_settings_are_all_told_with_file_and_cure() {
    let cluster = Cluster::new();
    cluster.configure("pg01", "wal_level = minimal\nmax_wal_senders = 0\nhot_standby = off");
    let config = cluster.data("pg01").join("postgresql.conf").display().to_string();
    says(
        deep(&cluster, "pg01", &[]),
        2,
        &["wal_level is minimal", "max_wal_senders is 0", "hot_standby is off", &config],
    );
}

#[test]
fn options_of_the_server_outweigh_its_files() {
    let cluster = Cluster::new();
    cluster.configure("pg01", "hot_standby = off");
    let options = [("OCF_RESKEY_start_opt", "-c 'hot_standby=on' -c listen_addresses=''")];
    deep(&cluster, "pg01", &options).with(0);
    let options = [("OCF_RESKEY_start_opt", "-c max_wal_senders=1")];
    says(deep(&cluster, "pg01", &options), 2, &["max_wal_senders is 1", "hot_standby is off"]);
}

#[test]
fn a_configuration_that_postgres_cannot_read_is_quoted() {
    let cluster = Cluster::new();
    cluster.configure("pg01", "work_mem = many");
    says(deep(&cluster, "pg01", &[]), 2, &["postgresql.conf", "contains errors", "correct"]);
}

#[test]
fn rewinding_needs_traces_of_changed_pages() {
    let cluster = Cluster::new();
    let data = cluster.data("pg01").display().to_string();
    cluster.as_postgres("pg_checksums", &["--disable", "-D", &data]);
    deep(&cluster, "pg01", &[]).with(0);
    let rewind = [("OCF_RESKEY_rewind", "true")];
    says(deep(&cluster, "pg01", &rewind), 2, &["rewind=true", "wal_log_hints is off", "checksums"]);
    cluster.configure("pg01", "wal_log_hints = on");
    deep(&cluster, "pg01", &rewind).with(0);
}

#[test]
fn missing_programs_and_places_are_named_with_their_parameter() {
    let cluster = Cluster::new();
    let empty = cluster.path("empty").display().to_string();
    fs::create_dir(&empty).expect("created");
    says(
        deep(&cluster, "pg01", &[("OCF_RESKEY_bindir", &empty)]),
        5,
        &["postgres is not in", "`bindir`"],
    );
    says(deep(&cluster, "pg01", &[("PATH", &empty)]), 5, &["cibadmin", "Pacemaker"]);
    let gone = "/no-such-place";
    for parameter in ["config", "socketdir"] {
        let name = format!("OCF_RESKEY_{parameter}");
        let parameter = format!("`{parameter}`");
        says(deep(&cluster, "pg01", &[(&name, gone)]), 2, &[gone, &parameter]);
    }
    says(deep(&cluster, "pg01", &[("OCF_RESKEY_socketdir", &empty)]), 4, &["postgres may not"]);
    says(
        deep(&cluster, "pg01", &[("OCF_RESKEY_address", "192.0.2.1")]),
        2,
        &["192.0.2.1", "`address`"],
    );
    chown(cluster.data("pg01"), Some(0), Some(0)).expect("chown");
    says(deep(&cluster, "pg01", &[]), 4, &["chown -R postgres"]);
}

#[test]
fn a_file_that_postgres_may_read_as_one_of_its_groups_is_fit() {
    let cluster = Cluster::new();
    // Debian's package of the server puts its user into this group, for the keys of certificates.
    let group = nix::unistd::Group::from_name("ssl-cert").expect("looked up").expect("there");
    assert!(group.mem.iter().any(|member| member == "postgres"), "{group:?}");
    let config = cluster.data("pg01").join("postgresql.conf");
    fs::set_permissions(&config, fs::Permissions::from_mode(0o640)).expect("chmod");
    chown(&config, Some(0), Some(group.gid.as_raw())).expect("chown");
    deep(&cluster, "pg01", &[]).with(0);
    cluster.act("pg01", "start").with(0);
    chown(&config, Some(0), Some(0)).expect("chown");
    says(deep(&cluster, "pg01", &[]), 4, &["postgres may not read", "`config`"]);
}

#[test]
fn programs_of_another_version_are_refused() {
    let cluster = Cluster::new();
    fs::write(cluster.data("pg01").join("PG_VERSION"), "12\n").expect("written");
    says(deep(&cluster, "pg01", &[]), 5, &["Postgres 12", "13 or later"]);
    fs::write(cluster.data("pg01").join("PG_VERSION"), "99\n").expect("written");
    says(deep(&cluster, "pg01", &[]), 5, &["99", &bindir().display().to_string(), "`bindir`"]);
}

#[test]
fn a_running_pair_is_fit_and_whom_the_primary_refuses_is_told() {
    let mut cluster = Cluster::pair();
    cluster.parameters.insert("rewind", "true".to_owned());
    deep(&cluster, "pg01", &[]).with(0);
    deep(&cluster, "pg02", &[]).with(0);
    cluster.sql("pg01", "create role weak login replication");
    let weak = [("OCF_RESKEY_repuser", "weak")];
    says(deep(&cluster, "pg02", &weak), 2, &["rewind=true", "weak", "pg_read_binary_file"]);
    cluster.refuse_replication("pg01");
    says(
        deep(&cluster, "pg02", &[]),
        2,
        &["`repuser`", &address("pg01"), "pg_hba.conf", "host replication postgres"],
    );
}

#[test]
fn data_of_another_cluster_is_not_taken_for_a_standby() {
    let cluster = Cluster::pair();
    let data = cluster.data("pg03").display().to_string();
    cluster.as_postgres("initdb", &["-N", "-A", "trust", "-U", "postgres", "-D", &data]);
    says(deep(&cluster, "pg03", &[]), 2, &["system identifier", "pg_basebackup", &address("pg01")]);
}

#[test]
fn a_server_on_another_socket_is_told() {
    let cluster = Cluster::new();
    cluster.act("pg01", "start").with(0);
    let elsewhere = cluster.path("").display().to_string();
    says(
        deep(&cluster, "pg01", &[("OCF_RESKEY_socketdir", &elsewhere)]),
        2,
        &["nothing listens", "`socketdir`"],
    );
}

#[test]
fn every_action_from_the_stopped_and_the_missing_state() {
    let cluster = Cluster::new();
    for (action, code) in [("monitor", 7), ("demote", 0), ("promote", 7), ("stop", 0), ("stop", 0)]
    {
        cluster.act("pg01", action).with(code);
    }
    for (action, code) in
        [("monitor", 7), ("start", 5), ("stop", 0), ("notify", 0), ("validate-all", 0)]
    {
        cluster.act("pg03", action).with(code);
    }
    let missing = cluster.act("pg03", "start");
    assert!(missing.reason().contains("pg_basebackup"), "{}", missing.reason());
    cluster.act_with("pg03", "validate-all", &[("OCF_CHECK_LEVEL", "10")]).with(5);
    cluster.act_with("pg01", "validate-all", &[("OCF_CHECK_LEVEL", "10")]).with(0);
    cluster.act("pg01", "no-such-action").with(3);
    cluster.act("pg01", "meta-data").with(0);
    cluster.act_with("pg01", "start", &[("OCF_RESKEY_rep_mode", "perhaps")]).with(6);
}

#[test]
fn a_data_directory_of_somebody_else_is_not_started() {
    let cluster = Cluster::new();
    let version = cluster.data("pg01").join("PG_VERSION");
    std::os::unix::fs::chown(&version, Some(0), Some(0)).expect("chown");
    let ended = cluster.act("pg01", "start").with(4);
    assert!(ended.reason().contains("chown"), "{}", ended.reason());
}
