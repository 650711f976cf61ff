//! From what etcd says to what a proxy should render.

use std::net::IpAddr;

use super::cluster::ClusterView;

/// What to render.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The primary's address, from `/master`.
    pub address: IpAddr,
    /// The view, when there is one that names the same primary.
    pub view: Option<ClusterView>,
    /// Why there is no view, when something is wrong with it.
    pub doubt: Option<String>,
}

/// Why `/master` cannot be followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    #[error(
        "/master is not in etcd: no supervise has published a primary yet; look at `pgcm status` \
         and at the logs of `pgcm supervise` on the Postgres nodes"
    )]
    Missing,
    #[error(
        "/master in etcd holds {value:?}, which is not an IP address; the primary's supervise \
         puts it right within one poll"
    )]
    NotAnAddress { value: String },
}

/// Judges the values of `/master` and `/cluster`. `/master` is the contract; `/cluster` adds to it
/// where it agrees.
pub fn wanted(master: Option<&str>, cluster: Option<&str>) -> Result<Wanted, Unusable> {
    let value = master.ok_or(Unusable::Missing)?.trim();
    let address: IpAddr =
        value.parse().map_err(|_| Unusable::NotAnAddress { value: value.to_owned() })?;
    if address.is_unspecified() {
        return Err(Unusable::NotAnAddress { value: value.to_owned() });
    }
    let (view, doubt) = match cluster.map(serde_json::from_str::<ClusterView>) {
        None => (None, None),
        Some(Err(error)) => (None, Some(format!("/cluster in etcd is not a view: {error}"))),
        Some(Ok(view)) if view.primary.address != address => {
            let other = view.primary.address;
            (None, Some(format!("/cluster names {other} as primary, /master names {address}")))
        }
        Some(Ok(view)) => (Some(view), None),
    };
    Ok(Wanted { address, view, doubt })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::model::cluster::{Primary, Standby};

    pub(crate) fn view(address: &str) -> ClusterView {
        ClusterView {
            primary: Primary {
                name: "pg01".into(),
                address: address.parse().expect("an address"),
                timeline: 7,
            },
            standbys: vec![Standby {
                name: "pg02".into(),
                address: "10.0.0.2".parse().ok(),
                state: "streaming".into(),
                sync_state: "sync".into(),
                replay_lag_bytes: 12,
            }],
            offline: Vec::new(),
            quorum: true,
            system_identifier: "7".into(),
            observed_at: "2026-01-01T00:00:00Z".into(),
        }
    }

    #[test]
    fn a_view_that_agrees_is_used() {
        let json = serde_json::to_string(&view("10.0.0.1")).expect("JSON");
        let wanted = wanted(Some("10.0.0.1\n"), Some(&json)).expect("usable");
        assert_eq!(wanted.address.to_string(), "10.0.0.1");
        assert_eq!(wanted.view, Some(view("10.0.0.1")));
        assert_eq!(wanted.doubt, None);
    }

    #[test]
    fn the_address_alone_counts_when_the_view_is_bad_or_disagrees() {
        let json = serde_json::to_string(&view("10.0.0.9")).expect("JSON");
        for cluster in ["{", "", json.as_str()] {
            let wanted = wanted(Some("10.0.0.1"), Some(cluster)).expect("usable");
            assert_eq!(wanted.view, None);
            assert!(wanted.doubt.is_some());
        }
    }

    #[test]
    fn anything_but_an_address_is_refused() {
        assert_eq!(wanted(None, None), Err(Unusable::Missing));
        for value in ["", "pg01", "10.0.0.1:5432", "10.0.0", "0.0.0.0", "{}"] {
            assert!(matches!(wanted(Some(value), None), Err(Unusable::NotAnAddress { .. })));
        }
    }
}
