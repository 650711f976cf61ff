//! What the numbers were measured on.

use std::fs;

use crate::{docker::cluster::Cluster, results::Fact};

/// The machine, and the programs of its nodes.
pub(crate) async fn describe(cluster: &Cluster) -> Vec<Fact> {
    let processors = std::thread::available_parallelism().unwrap();
    let mut facts = vec![
        fact("Processors", format!("{processors} × {}", field("/proc/cpuinfo", "model name"))),
        fact("Memory", memory()),
        fact("Kernel", read("/proc/sys/kernel/osrelease")),
        fact("Nodes", "all containers on this machine".to_owned()),
        fact("Load average before (1, 5, 15 minutes)", load_average()),
    ];
    for (what, command) in [
        ("Debian", "cat /etc/debian_version"),
        ("pgcm", "pgcm --version"),
        ("Postgres", "/usr/lib/postgresql/*/bin/postgres --version"),
        ("Pacemaker", "pacemakerd --version | head -n 1"),
        ("Corosync", "corosync -v | head -n 1"),
        ("PgBouncer", "pgbouncer --version | head -n 1"),
        ("etcd", "etcd --version | head -n 1"),
        (
            "WAL segments (16MB unless `initdb` is told otherwise)",
            "runuser -u postgres -- psql -XAtc 'SHOW wal_segment_size'",
        ),
        ("The nodes' root directories are on", "stat --file-system --format %T /"),
    ] {
        let answer = cluster.exec("pg01", &["sh", "-c", command]).await.done();
        facts.push(fact(what, answer.trim().to_owned()));
    }
    facts
}

fn fact(what: &str, value: String) -> Fact {
    Fact { what: what.to_owned(), value }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// The first value of `key` in a file of `key : value` lines.
fn field(path: &str, key: &str) -> String {
    let text = read(path);
    let values = text.lines().filter_map(|line| line.split_once(':'));
    let mut found = values.filter(|(name, _)| name.trim() == key);
    found.next().map_or_else(|| "unknown".to_owned(), |(_, value)| value.trim().to_owned())
}

fn memory() -> String {
    let text = field("/proc/meminfo", "MemTotal");
    let kib: Option<u64> = text.split(' ').next().and_then(|number| number.parse().ok());
    kib.map_or(text.clone(), |kib| format!("{} GiB", (kib + 512 * 1024) / (1024 * 1024)))
}

fn load_average() -> String {
    read("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(", ")
}
