//! What a proxy follows is never replaced by something older.

use super::{
    cluster::{ClusterView, Primary},
    wanted::Wanted,
};

/// What of etcd was followed last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Followed {
    /// Revision of `/master`; 0 for none yet.
    revision: i64,
    /// As the last view named it, if there was one, and the database that it is the primary of.
    primary: Option<(Primary, String)>,
}

/// Why what etcd says is not followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "/master went back from revision {seen} to {found}, and /cluster does not name {}, or a primary on a \
     newer timeline: etcd was restored from a backup or made anew, and the primary's supervise has not \
     published since; once `pgcm status` names the right primary, restart pgcm proxy",
    known(.primary.as_ref())
)]
pub struct Older {
    seen: i64,
    found: i64,
    primary: Option<Primary>,
}

fn known(primary: Option<&Primary>) -> String {
    let told = |primary: &Primary| format!("{}, timeline {}", primary.name, primary.timeline);
    primary.map_or_else(|| "the primary that was followed".to_owned(), told)
}

impl Followed {
    /// What is followed once `wanted`, as it stood at `revision` of etcd, is.
    ///
    /// A lower revision comes from another etcd, one that was restored or made anew: values are read through
    /// consensus. There a promotion's timeline tells what is older, of one and the same database.
    ///
    /// # Errors
    /// It is older than what is followed, or may be.
    pub fn by(&self, wanted: &Wanted, revision: i64) -> Result<Self, Older> {
        let of = |view: &ClusterView| (view.primary.clone(), view.system_identifier.clone());
        let primary = wanted.view.as_ref().map(of);
        let is_known = primary.as_ref().zip(self.primary.as_ref()).is_some_and(|(now, before)| {
            let is_newer = now.0.timeline > before.0.timeline && now.1 == before.1;
            now == before || is_newer
        });
        if revision < self.revision && !is_known {
            let primary = self.primary.clone().map(|(primary, _)| primary);
            return Err(Older { seen: self.revision, found: revision, primary });
        }
        // An address without a view does not make the timeline forgotten.
        Ok(Self { revision, primary: primary.or_else(|| self.primary.clone()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::wanted::tests::view;

    fn wanted(address: &str, name: &str, timeline: u32) -> Wanted {
        let mut view = view(address);
        view.primary = Primary { name: name.into(), timeline, ..view.primary };
        Wanted { address: view.primary.address, view: Some(view), doubt: None }
    }

    fn of_another_database(mut wanted: Wanted) -> Wanted {
        if let Some(view) = &mut wanted.view {
            view.system_identifier = "8".to_owned();
        }
        wanted
    }

    #[test]
    fn a_higher_revision_is_followed_whatever_it_says() {
        let followed =
            Followed::default().by(&wanted("10.0.0.1", "pg01", 7), 40).expect("the first");
        assert!(followed.by(&wanted("10.0.0.1", "pg01", 7), 41).is_ok());
        // A database made anew begins its timelines anew.
        assert!(followed.by(&wanted("10.0.0.2", "pg02", 1), 41).is_ok());
        let bare = Wanted { view: None, ..wanted("10.0.0.2", "pg02", 1) };
        assert!(followed.by(&bare, 41).is_ok());
    }

    #[test]
    fn of_another_etcd_the_same_primary_or_a_newer_timeline_is_followed() {
        let followed =
            Followed::default().by(&wanted("10.0.0.1", "pg01", 7), 40).expect("the first");
        let again = followed.by(&wanted("10.0.0.1", "pg01", 7), 4).expect("the same");
        assert!(again.by(&wanted("10.0.0.2", "pg02", 8), 3).is_ok());
        assert!(followed.by(&wanted("10.0.0.2", "pg02", 8), 4).is_ok());
    }

    #[test]
    fn of_another_etcd_what_is_older_or_may_be_is_refused() {
        let followed =
            Followed::default().by(&wanted("10.0.0.1", "pg01", 7), 40).expect("the first");
        let bare = Wanted { view: None, ..wanted("10.0.0.1", "pg01", 7) };
        for back in [
            wanted("10.0.0.2", "pg02", 6),
            wanted("10.0.0.2", "pg02", 7),
            // Of a database that was there before this one was made.
            of_another_database(wanted("10.0.0.2", "pg02", 9)),
            // The same node, elsewhere.
            wanted("10.0.0.9", "pg01", 7),
            bare.clone(),
        ] {
            let refused = followed.by(&back, 4).expect_err("older").to_string();
            assert!(refused.contains("from revision 40 to 4"), "{refused}");
            assert!(refused.contains("pg01, timeline 7"), "{refused}");
        }
        let of_bare = Followed::default().by(&bare, 40).expect("the first");
        assert!(of_bare.by(&wanted("10.0.0.2", "pg02", 8), 4).is_err());
    }

    #[test]
    fn a_view_that_is_missing_for_a_while_does_not_make_the_timeline_forgotten() {
        let followed =
            Followed::default().by(&wanted("10.0.0.1", "pg01", 7), 40).expect("the first");
        let bare = Wanted { view: None, ..wanted("10.0.0.1", "pg01", 7) };
        let followed = followed.by(&bare, 41).expect("newer");
        assert!(followed.by(&wanted("10.0.0.2", "pg02", 6), 4).is_err());
    }
}
