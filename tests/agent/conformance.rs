//! What the OCF standard demands, judged by the standard's own programs and schemas.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::PathBuf,
    process::Output,
};

use crate::cluster::{Cluster, command};

#[track_caller]
fn needs(file: &str, package: &str) -> PathBuf {
    let path = PathBuf::from(file);
    assert!(path.exists(), "this test needs {file} (Debian package {package})");
    path
}

/// The OCF entry as an administrator installs it, and `pgcm` beside the stand-ins.
fn install(cluster: &Cluster) -> PathBuf {
    let entry = cluster.path("pgsql");
    fs::write(&entry, include_str!("../../resource-agents/pgsql")).expect("written");
    fs::set_permissions(&entry, fs::Permissions::from_mode(0o755)).expect("chmod");
    symlink(env!("CARGO_BIN_EXE_pgcm"), cluster.path("bin").join("pgcm")).expect("linked");
    entry
}

#[test]
fn ocf_tester_passes() {
    let tester = needs("/usr/sbin/ocf-tester", "resource-agents");
    needs("/usr/bin/xmllint", "libxml2-utils");
    let cluster = Cluster::new();
    let entry = install(&cluster);
    let mut run = command(tester.to_str().expect("UTF-8"));
    cluster.as_pacemaker(&mut run, "pg01");
    run.env("OCF_ROOT", "/usr/lib/ocf").args(["-v", "-n", "Postgresql"]);
    let data = format!("pgdata={}", cluster.data("pg01").display());
    let Output { status, stdout, stderr } =
        run.args(["-o", &data]).arg(&entry).output().expect("ocf-tester runs");
    let said = String::from_utf8_lossy(&stdout) + String::from_utf8_lossy(&stderr);
    assert!(status.success(), "{status}\n{said}");
    assert!(said.contains("passed all tests"), "{said}");
    // It takes no notice of some schemas that xmllint cannot apply.
    assert!(!said.contains("* rc=") && !said.contains("validity error"), "{said}");
    assert!(said.contains("Testing: promotion of promoted resource"), "{said}");
}

#[test]
fn meta_data_is_valid_by_both_schemas_of_the_resource_agents() {
    needs("/usr/bin/xmllint", "libxml2-utils");
    let dtd = needs("/usr/share/resource-agents/ra-api-1.dtd", "resource-agents");
    let rng = needs("/usr/share/resource-agents/metadata.rng", "resource-agents");
    let cluster = Cluster::new();
    let document = cluster.path("pgsql.xml");
    fs::write(&document, cluster.act("pg01", "meta-data").with(0).stdout).expect("written");
    for (option, schema) in [("--dtdvalid", dtd), ("--relaxng", rng)] {
        let mut lint = command("xmllint");
        let output = lint.args(["--noout", "--nonet", option]).arg(schema).arg(&document).output();
        let Output { status, stderr, .. } = output.expect("xmllint runs");
        assert!(status.success(), "{option}: {}", String::from_utf8_lossy(&stderr));
    }
}

#[test]
fn the_tests_run_on_the_postgres_that_was_asked_for() {
    let cluster = Cluster::new();
    cluster.act("pg01", "start").with(0);
    let running = cluster.sql("pg01", "show server_version_num");
    let major =
        crate::cluster::bindir().parent().and_then(|dir| dir.file_name()).map(ToOwned::to_owned);
    let major = major.expect("a directory").into_string().expect("UTF-8");
    assert!(running.starts_with(&major), "{running} is not of {major}");
    if let Ok(wanted) = std::env::var("PGCM_TEST_POSTGRES") {
        assert_eq!(major, wanted);
    }
}
