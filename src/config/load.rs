//! A file to a checked [`Config`]; unknown keys are refused.

use std::path::{Path, PathBuf};

use super::{Config, check};

/// Where the configuration is looked for when `--config-file` names no other.
pub const DEFAULT_PATH: &str = "/etc/pgsql-cluster-manager/config.toml";

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error(
        "cannot read the configuration {path}; create it with: pgcm show-config > {path}",
        path = .path.display()
    )]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{path} is not a valid configuration", path = .path.display())]
    Parse {
        path: PathBuf,
        #[source]
        source: toml::de::Error,
    },
    #[error("{path} contradicts itself: {}", .problems.join("; "), path = .path.display())]
    Check { path: PathBuf, problems: Vec<String> },
}

/// Reads and checks the file at `path`.
///
/// # Errors
/// [`ConfigError`] names the file and, for text that does not parse, the line and what was expected.
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    parse(path, &text)
}

fn parse(path: &Path, text: &str) -> Result<Config, ConfigError> {
    let config: Config = toml::from_str(text)
        .map_err(|source| ConfigError::Parse { path: path.to_owned(), source })?;
    let problems = check::problems(&config);
    if problems.is_empty() {
        Ok(config)
    } else {
        Err(ConfigError::Check { path: path.to_owned(), problems })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::chain;

    fn refused(text: &str) -> String {
        chain(&parse(Path::new("config.toml"), text).expect_err("must be refused")).to_string()
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_line() {
        let error = refused("[etcd]\nendpoint = \"x\"\n");
        assert!(error.contains("line 2") && error.contains("endpoint"), "{error}");
    }

    #[test]
    fn an_unknown_section_is_refused() {
        assert!(refused("[ectd]\n").contains("ectd"));
    }

    #[test]
    fn a_length_of_time_without_a_unit_is_refused() {
        let error = refused("[failover]\npause-expiry = \"25\"\n");
        assert!(error.contains("line 2") && error.contains("such as \"5s\""), "{error}");
    }

    #[test]
    fn a_pause_that_may_outlive_its_expiry_is_refused() {
        let error = refused("[failover]\npause-timeout = \"30s\"\n");
        assert!(error.contains("pause-timeout") && error.contains("pause-expiry"), "{error}");
    }

    #[test]
    fn a_limit_beyond_what_agents_accept_is_refused() {
        let error = refused("[pacemaker]\nconstraint-lifetime = \"15m\"\n");
        assert!(error.contains("constraint-lifetime") && error.contains("10m"), "{error}");
    }

    #[test]
    fn https_that_cannot_be_checked_or_is_not_for_all_members_is_refused() {
        let etcd = |lines: &str| refused(&format!("[etcd]\n{lines}\n"));
        let secure = "endpoints = [\"https://a:2379\"]\n";
        let error = etcd(secure);
        assert!(error.contains("etcd.ca-file is empty"), "{error}");
        let error = etcd("endpoints = [\"https://a:2379\", \"http://b:2379\"]\nca-file = \"ca\"");
        assert!(error.contains("give all as https://"), "{error}");
        let error = etcd("ca-file = \"ca\"");
        assert!(error.contains("are for https://"), "{error}");
        let error = etcd(&format!("{secure}ca-file = \"ca\"\ncert-file = \"own\""));
        assert!(error.contains("give both or none"), "{error}");
    }
}
