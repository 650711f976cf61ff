//! Relations between settings, each with what to do about it.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};

use super::{Config, Etcd, section::Span};

/// What in `config` cannot work, one sentence each; empty when all is well.
pub fn problems(config: &Config) -> Vec<String> {
    let mut found = Vec::new();
    limits(config, &mut found);
    addresses(config, &mut found);
    names(config, &mut found);
    etcd(&config.etcd, &mut found);
    found
}

/// No span may be longer: agents refuse to hold clients, or to be kept busy, beyond it.
const CEILING: Duration = Duration::from_secs(600);

fn limits(config: &Config, found: &mut Vec<String>) {
    let failover = &config.failover;
    let positive: [(&str, Span); 16] = [
        ("etcd.call-timeout", config.etcd.call_timeout),
        ("pacemaker.poll-interval", config.pacemaker.poll_interval),
        ("pacemaker.command-timeout", config.pacemaker.command_timeout),
        ("pacemaker.constraint-lifetime", config.pacemaker.constraint_lifetime),
        ("postgres.query-timeout", config.postgres.query_timeout),
        ("pgbouncer.query-timeout", config.pgbouncer.query_timeout),
        ("proxy.poll-interval", config.proxy.poll_interval),
        ("failover.health-check-timeout", failover.health_check_timeout),
        ("failover.prepare-timeout", failover.prepare_timeout),
        ("failover.pause-timeout", failover.pause_timeout),
        ("failover.pause-expiry", failover.pause_expiry),
        ("failover.resume-timeout", failover.resume_timeout),
        ("failover.pacemaker-timeout", failover.pacemaker_timeout),
        ("failover.verify-timeout", failover.verify_timeout),
        ("failover.watch-interval", failover.watch_interval),
        ("failover.attempt-backoff", failover.attempt_backoff),
    ];
    let other = [
        ("failover.lock-timeout", failover.lock_timeout),
        ("failover.lock-lease", failover.lock_lease),
        ("api.registration-ttl", config.api.registration_ttl),
    ];
    for (key, span) in positive {
        if span.get().is_zero() {
            found.push(format!("{key} must be more than zero"));
        }
    }
    for (key, span) in positive.into_iter().chain(other) {
        if span.get() > CEILING {
            found.push(format!("{key} is {span}; it must be at most 10m"));
        }
    }
    for (key, span) in [
        ("failover.lock-lease", failover.lock_lease),
        ("api.registration-ttl", config.api.registration_ttl),
    ] {
        if span.get().as_secs() < 2 {
            found.push(format!("{key} is {span}; etcd counts leases in seconds, give at least 2s"));
        }
    }
    if failover.pause_timeout >= failover.pause_expiry {
        found.push(format!(
            "failover.pause-timeout ({}) must be less than failover.pause-expiry ({})",
            failover.pause_timeout, failover.pause_expiry
        ));
    }
    if config.pacemaker.constraint_lifetime <= failover.pacemaker_timeout {
        found.push(format!(
            "pacemaker.constraint-lifetime ({}) must exceed failover.pacemaker-timeout ({})",
            config.pacemaker.constraint_lifetime, failover.pacemaker_timeout
        ));
    }
}

fn addresses(config: &Config, found: &mut Vec<String>) {
    let address = &config.node.address;
    let is_one = |address: IpAddr| !address.is_unspecified();
    if !address.is_empty() && !address.parse().is_ok_and(is_one) {
        found.push(format!(
            "node.address is `{address}`; give the IP address that others reach this machine at, such as 10.0.0.4"
        ));
    }
    for (key, listen, may_be_empty) in [
        ("api.supervise-listen", &config.api.supervise_listen, false),
        ("api.proxy-listen", &config.api.proxy_listen, false),
        ("web.supervise-listen", &config.web.supervise_listen, true),
        ("web.proxy-listen", &config.web.proxy_listen, true),
    ] {
        let empty_is_fine = may_be_empty && listen.is_empty();
        if !empty_is_fine && listen.parse::<SocketAddr>().is_err() {
            found.push(format!("{key} is `{listen}`; give address:port such as 0.0.0.0:8080"));
        }
    }
}

fn names(config: &Config, found: &mut Vec<String>) {
    for agent in &config.failover.expected_agents {
        let kind = agent.split_once('/').filter(|(host, _)| !host.is_empty()).map(|(_, kind)| kind);
        if !matches!(kind, Some("supervise" | "proxy")) {
            found.push(format!(
                "failover.expected-agents has `{agent}`; give host/supervise or host/proxy"
            ));
        }
    }
    if config.pacemaker.resource.is_empty() {
        found.push("pacemaker.resource is empty; name the Postgres primitive".to_owned());
    }
    if config.pgbouncer.admin_sockets.is_empty() {
        found.push("pgbouncer.admin-sockets is empty; name one socket per process".to_owned());
    }
    if config.proxy.templates.is_empty() {
        found.push("proxy.templates is empty; name at least PgBouncer's".to_owned());
    }
    if !["auto", "text", "json"].contains(&config.log.format.as_str()) {
        found.push(format!("log.format is `{}`; give auto, text or json", config.log.format));
    }
    if config.log.level.parse::<slog::Level>().is_err() {
        found.push(format!(
            "log.level is `{}`; give error, warning, info or debug",
            config.log.level
        ));
    }
}

fn etcd(etcd: &Etcd, found: &mut Vec<String>) {
    if etcd.endpoints.is_empty() {
        found.push("etcd.endpoints is empty; name at least one member's client URL".to_owned());
    }
    for endpoint in &etcd.endpoints {
        if !endpoint.starts_with("http://") && !endpoint.starts_with("https://") {
            found.push(format!(
                "etcd.endpoints has `{endpoint}`; give a URL such as http://pg01:2379"
            ));
        }
    }
    let namespace = &etcd.namespace;
    if !namespace.starts_with('/') || namespace.len() < 2 || namespace.ends_with('/') {
        found.push(format!(
            "etcd.namespace is `{namespace}`; it must start, but not end, with a slash, such as /postgres"
        ));
    }
    let given = |path: &Path| !path.as_os_str().is_empty();
    let secure = |endpoint: &String| endpoint.starts_with("https://");
    if etcd.endpoints.iter().any(secure) {
        if !etcd.endpoints.iter().all(secure) {
            found.push("etcd.endpoints has http:// and https://; give all as https://".to_owned());
        }
        if !given(&etcd.ca_file) {
            found.push(
                "etcd.endpoints has https://, but etcd.ca-file is empty; name the file of the CA that signed \
                 the members' certificates, or the system's, such as /etc/ssl/certs/ca-certificates.crt"
                    .to_owned(),
            );
        }
    } else if given(&etcd.ca_file) || given(&etcd.cert_file) {
        found.push(
            "etcd.ca-file and etcd.cert-file are for https://, but etcd.endpoints has http://"
                .to_owned(),
        );
    }
    if given(&etcd.cert_file) != given(&etcd.key_file) {
        found
            .push("etcd.cert-file and etcd.key-file belong together; give both or none".to_owned());
    }
}
