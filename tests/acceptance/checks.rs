//! Each check that looks at more than one machine, provoked on the cluster: it names the thing and the
//! remedy, and is silent once that is put back. No primary moves here.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::docker::cluster::{Cluster, MACHINES};

/// What is provoked must be found within this time, and gone again after it was put back.
const SOON: Duration = Duration::from_secs(60);

/// Something wrong. In every text PRIMARY, SYNC and OTHER stand for the nodes in these roles.
struct Case {
    /// Where the scripts run; EACH: on every machine.
    at: &'static str,
    provoke: &'static str,
    put_back: &'static str,
    args: &'static [&'static str],
    /// Check, severity, and words that name the thing and the remedy.
    found: &'static [(&'static str, &'static str, &'static [&'static str])],
}

const PACEMAKER: &[Case] = &[
    Case {
        at: "PRIMARY",
        provoke: "crm_attribute --name maintenance-mode --update true",
        put_back: "crm_attribute --name maintenance-mode --delete",
        args: &[],
        found: &[(
            "maintenance",
            "refuse",
            &[
                "the cluster is in maintenance mode",
                "crm_attribute --name maintenance-mode --delete",
            ],
        )],
    },
    Case {
        at: "PRIMARY",
        provoke: "crm_attribute --node PRIMARY --name maintenance --update true",
        put_back: "crm_attribute --node PRIMARY --name maintenance --delete",
        args: &[],
        found: &[(
            "maintenance",
            "refuse",
            &[
                "PRIMARY is in maintenance mode",
                "crm_attribute --node PRIMARY --name maintenance --delete",
            ],
        )],
    },
    Case {
        at: "PRIMARY",
        provoke: "crm_resource --resource Postgresql --meta --set-parameter is-managed --parameter-value false",
        put_back: "crm_resource --resource Postgresql --meta --delete-parameter is-managed",
        args: &[],
        found: &[(
            "maintenance",
            "refuse",
            &["Postgresql is unmanaged on ", "crm resource manage Postgresql"],
        )],
    },
    Case {
        at: "PRIMARY",
        provoke: "crm_attribute --name stonith-enabled --update false",
        put_back: "crm_attribute --name stonith-enabled --update true",
        args: &[],
        found: &[(
            "fencing",
            "warn",
            &["fencing is off", "crm_attribute --name stonith-enabled --update true"],
        )],
    },
    Case {
        at: "PRIMARY",
        provoke: "crm_resource --ban --promoted --resource msPostgresql --node OTHER",
        put_back: "cibadmin --delete --xpath \"//rsc_location[@id='cli-ban-msPostgresql-on-OTHER']\"",
        args: &[],
        found: &[
            (
                "constraints",
                "refuse",
                &[
                    "constraint cli-ban-msPostgresql-on-OTHER of an earlier move",
                    "cibadmin --delete --xpath \"//rsc_location[@id='cli-ban-msPostgresql-on-OTHER']\"",
                ],
            ),
            // As `pgcm status` shows it, too.
            (
                "health",
                "warn",
                &["constraints: constraint cli-ban-msPostgresql-on-OTHER of an earlier move"],
            ),
        ],
    },
    Case {
        at: "PRIMARY",
        provoke: "cibadmin --modify --allow-create --scope constraints --xml-text \"<rsc_location id='mine' \
                  rsc='msPostgresql'><rule id='mine-rule' role='Promoted' score='5000'><expression id='mine-node' \
                  attribute='#uname' operation='eq' value='PRIMARY'/></rule></rsc_location>\"",
        put_back: "cibadmin --delete --xpath \"//rsc_location[@id='mine']\"",
        args: &[],
        found: &[(
            "constraints",
            "refuse",
            &[
                "constraint mine, about the primary on PRIMARY, would keep it from SYNC",
                "cibadmin --delete --xpath \"//rsc_location[@id='mine']\"",
            ],
        )],
    },
    Case {
        at: "PRIMARY",
        provoke: "cibadmin --create --scope resources --xml-text \"<primitive id='tied' class='ocf' provider='pacemaker' \
                  type='Dummy'/>\" && cibadmin --create --scope constraints --xml-text \"<rsc_colocation id='tie' \
                  rsc='tied' with-rsc='msPostgresql' with-rsc-role='Promoted' score='INFINITY'/>\"",
        put_back: "cibadmin --delete --xpath \"//rsc_colocation[@id='tie']\" && cibadmin --delete --xpath \"//primitive[@id='tied']\"",
        args: &[],
        found: &[(
            "constraints",
            "warn",
            &["constraint tie allows a primary only where tied can run", "influence=false"],
        )],
    },
    Case {
        at: "OTHER",
        provoke: "kill -9 $(head -1 /var/lib/postgresql/*/main/postmaster.pid)",
        put_back: "crm_resource --cleanup --node OTHER",
        args: &[],
        found: &[(
            "fail-count",
            "warn",
            &["the resource failed on OTHER", "crm_resource --cleanup --node OTHER"],
        )],
    },
    Case {
        at: "OTHER",
        provoke: "crm_standby --node OTHER --update on",
        put_back: "crm_standby --node OTHER --delete",
        args: &[],
        found: &[
            ("nodes", "warn", &["OTHER is in standby mode", "crm_standby --node OTHER --delete"]),
            (
                "sync-after-move",
                "warn",
                &["no standby but SYNC streams", "bring another standby up"],
            ),
            ("postgres", "warn", &["OTHER: ", "look at the log of Postgres there"]),
        ],
    },
    Case {
        at: "PRIMARY",
        provoke: "crm_standby --node OTHER --update on; crm_standby --node SYNC --update on",
        put_back: "crm_standby --node SYNC --delete; crm_standby --node OTHER --delete",
        args: &[],
        found: &[
            (
                "no-synchronous-standby",
                "refuse",
                &["no standby is synchronous", "pg_stat_replication"],
            ),
            ("health", "warn", &["postgres: primary without any standby", "crm_mon -Afr -1"]),
        ],
    },
];

const AGENTS: &[Case] = &[
    Case {
        at: "OTHER",
        provoke: "systemctl stop pgcm-supervise",
        put_back: "systemctl start pgcm-supervise",
        args: &[],
        found: &[(
            "agent-missing",
            "refuse",
            &["no `pgcm supervise` of OTHER was found", "start it there"],
        )],
    },
    Case {
        at: "OTHER",
        provoke: "systemctl kill -s STOP pgcm-supervise",
        put_back: "systemctl kill -s CONT pgcm-supervise",
        args: &[],
        found: &[("agent-health", "refuse", &["OTHER/supervise", "start it again"])],
    },
    Case {
        at: "OTHER",
        provoke: "systemctl stop pgcm-proxy",
        put_back: "systemctl start pgcm-proxy",
        args: &[],
        found: &[(
            "proxy-missing",
            "refuse",
            &["no `pgcm proxy` of OTHER was found", "start it there"],
        )],
    },
    Case {
        at: "EACH",
        provoke: "systemctl stop pgcm-proxy",
        put_back: "systemctl start pgcm-proxy",
        args: &[],
        found: &[(
            "no-proxy",
            "refuse",
            &["no `pgcm proxy` with a PgBouncer", "start it on every machine with a PgBouncer"],
        )],
    },
    Case {
        at: "app01",
        provoke: "cp -p /etc/pgsql-cluster-manager/config.toml /var/tmp/strict.toml
            printf '[failover]\\nexpected-agents = [\"app02/proxy\"]\\n' >> /var/tmp/strict.toml",
        put_back: "cp -p /etc/pgsql-cluster-manager/config.toml /var/tmp/strict.toml",
        args: &["--config-file", "/var/tmp/strict.toml"],
        found: &[(
            "agent-expected",
            "refuse",
            &["app02/proxy is expected", "start it", "take it from the configuration"],
        )],
    },
    Case {
        at: "PRIMARY",
        provoke: "etcdctl put /postgres/agents/app09/proxy nonsense",
        put_back: "etcdctl del /postgres/agents/app09/proxy",
        args: &[],
        found: &[(
            "agent-address",
            "refuse",
            &["/agents/app09/proxy in etcd is not a registration", "delete it"],
        )],
    },
    Case {
        at: "PRIMARY",
        provoke: "true",
        put_back: "true",
        args: &["--target", "OTHER"],
        found: &[(
            "target",
            "refuse",
            &["OTHER is streaming and potential", "only a synchronous standby"],
        )],
    },
    // Nobody but the primary's supervise would put the view right.
    Case {
        at: "PRIMARY",
        provoke: "systemctl stop pgcm-supervise
            etcdctl get --print-value-only /postgres/cluster > /var/tmp/cluster
            etcdctl del /postgres/cluster",
        put_back: "etcdctl put /postgres/cluster < /var/tmp/cluster; systemctl start pgcm-supervise",
        args: &[],
        found: &[(
            "no-primary",
            "refuse",
            &["no primary is published", "look at the log of `pgcm supervise`"],
        )],
    },
];

const PGBOUNCER: &[Case] = &[
    Case {
        at: "OTHER",
        provoke: "systemctl stop pgbouncer",
        put_back: "systemctl start pgbouncer",
        args: &[],
        found: &[
            ("pgbouncer-answer", "refuse", &["/var/run/postgresql/.s.PGSQL.6432", "start it"]),
            ("health", "refuse", &["pgbouncer: ", "look at the logs of PgBouncer"]),
        ],
    },
    Case {
        at: "app01",
        provoke: "runuser -u postgres -- psql -h /var/run/postgresql -p 6432 -U pgbouncer -c PAUSE pgbouncer",
        put_back: "runuser -u postgres -- psql -h /var/run/postgresql -p 6432 -U pgbouncer -c RESUME pgbouncer",
        args: &[],
        found: &[(
            "pgbouncer-paused",
            "refuse",
            &["/.s.PGSQL.6432 is paused by something else", "run RESUME on its console"],
        )],
    },
    Case {
        at: "app01",
        provoke: "sed -i 's/{{.Host}}/{{.Hosts}}/' /etc/pgbouncer/pgbouncer.ini.template",
        put_back: "sed -i 's/{{.Hosts}}/{{.Host}}/' /etc/pgbouncer/pgbouncer.ini.template",
        args: &[],
        found: &[(
            "pgbouncer-follows",
            "refuse",
            &["pgbouncer.ini.template, line ", "see the log of `pgcm proxy`"],
        )],
    },
];

/// The nodes by their roles.
struct Roles(Vec<(&'static str, String)>);

impl Roles {
    async fn now(cluster: &Cluster) -> Self {
        let status = cluster.status().await;
        let standbys = status["cluster"]["standbys"].as_array().unwrap();
        let name = |of: &Value| of["name"].as_str().unwrap().to_owned();
        let (sync, other) = match standbys.iter().position(|s| s["sync_state"] == "sync") {
            Some(0) => (&standbys[0], &standbys[1]),
            _ => (&standbys[1], &standbys[0]),
        };
        Self(vec![
            ("PRIMARY", name(&status["cluster"]["primary"])),
            ("SYNC", name(sync)),
            ("OTHER", name(other)),
        ])
    }

    fn named(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, (role, name)| text.replace(role, name))
    }
}

/// Runs `script` at the machine or machines of `case`.
async fn at(cluster: &Cluster, roles: &Roles, case: &Case, script: &str) {
    let script = roles.named(script);
    let only = roles.named(case.at);
    for machine in MACHINES.into_iter().filter(|machine| only == "EACH" || only == *machine) {
        cluster.exec(machine, &["bash", "-c", &script]).await.done();
    }
}

/// What the checks find; nothing is touched.
async fn findings(cluster: &Cluster, roles: &Roles, case: &Case) -> Vec<Value> {
    let args: Vec<String> = case.args.iter().map(|arg| roles.named(arg)).collect();
    let (global, own) = if args.first().is_some_and(|arg| arg == "--config-file") {
        (&args[..], &[][..])
    } else {
        (&[][..], &args[..])
    };
    let mut command = vec!["pgcm"];
    command.extend(global.iter().map(String::as_str));
    command.extend(["failover", "--dry-run", "--output", "json"]);
    command.extend(own.iter().map(String::as_str));
    let text = cluster.exec("app01", &command).await.text();
    let json =
        text.lines().skip_while(|line| !line.starts_with('{')).collect::<Vec<_>>().join("\n");
    let report = serde_json::Deserializer::from_str(&json).into_iter::<Value>().next();
    let report = report.and_then(Result::ok).unwrap_or_else(|| panic!("no report: {text}"));
    report["findings"].as_array().unwrap().clone()
}

/// Whether each finding of `case` is there, or none of them.
fn told(roles: &Roles, case: &Case, findings: &[Value], wanted: bool) -> bool {
    case.found.iter().all(|(check, severity, words)| {
        let fits = |finding: &Value| {
            let message = format!("{}: {}", finding["by"], finding["message"].as_str().unwrap());
            let message = message.replace('"', "");
            let named = |words: &&str| message.contains(&roles.named(words).replace('"', ""));
            finding["check"] == *check
                && finding["severity"] == *severity
                && words.iter().all(named)
        };
        findings.iter().any(fits) == wanted
    })
}

/// # Errors
/// What was found instead, when time is over.
async fn until(cluster: &Cluster, roles: &Roles, case: &Case, wanted: bool) -> Result<(), String> {
    let begun = Instant::now();
    loop {
        let found = findings(cluster, roles, case).await;
        if told(roles, case, &found, wanted) {
            return Ok(());
        }
        if begun.elapsed() > SOON {
            let found: Vec<String> = found.iter().map(Value::to_string).collect();
            let what = roles.named(&format!("{:?}", case.found));
            return Err(format!("told {wanted}: {what}\nfound:\n{}", found.join("\n")));
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

async fn walk(cases: &[Case]) {
    let cluster = Cluster::whole().await;
    let roles = Roles::now(&cluster).await;
    let before = cluster.published_primary().await;
    for case in cases {
        let begun = Instant::now();
        at(&cluster, &roles, case, case.provoke).await;
        let provoked = until(&cluster, &roles, case, true).await;
        at(&cluster, &roles, case, case.put_back).await;
        provoked.unwrap_or_else(|why| panic!("{why}"));
        // What cannot be put back is a question, not a state.
        if case.provoke != "true" {
            let gone = until(&cluster, &roles, case, false).await;
            gone.unwrap_or_else(|why| panic!("{why}"));
        }
        let checks: Vec<&str> = case.found.iter().map(|(check, ..)| *check).collect();
        println!("{}: {} ms", checks.join(", "), begun.elapsed().as_millis());
    }
    assert_eq!(cluster.published_primary().await, before);
    cluster.becomes_whole(SOON).await;
}

#[tokio::test]
async fn what_is_wrong_with_pacemaker_is_named_with_its_remedy() {
    walk(PACEMAKER).await;
}

#[tokio::test]
async fn a_dc_that_plans_nothing_refuses() {
    let cluster = Cluster::whole().await;
    let primary = cluster.node_at(&cluster.published_primary().await).await;
    if cluster.dc().await == primary {
        // Its successor is another; crm_mon would not answer beside one that hangs.
        cluster.kill_controller(primary).await;
        cluster.may_fail_over(SOON).await;
    }
    let case = Case {
        at: cluster.dc().await,
        provoke: "pkill -STOP -x pacemaker-contr",
        put_back: "pkill -CONT -x pacemaker-contr",
        args: &[],
        found: &[("pacemaker", "refuse", &["the DC, ", "does not answer", "look at its log on "])],
    };
    walk(&[case]).await;
}

#[tokio::test]
async fn what_is_wrong_with_agents_is_named_with_its_remedy() {
    walk(AGENTS).await;
}

#[tokio::test]
async fn what_is_wrong_with_a_pgbouncer_is_named_with_its_remedy() {
    walk(PGBOUNCER).await;
}
