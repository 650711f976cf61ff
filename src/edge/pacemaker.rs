//! Pacemaker through its own tools: `crm_mon` to look, `cibadmin` for the constraint of a move.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use super::command::{Call, CommandError, Output, Processes, Run};
use crate::{
    error::chain,
    model::{
        colocation::{self, Tie},
        crm_mon::{self, CrmMonError, PacemakerView},
        location::{self, Location, MoveRule},
        xml::XmlError,
    },
};

/// Pacemaker and the resource that runs Postgres.
#[derive(Debug, Clone)]
pub struct PacemakerOptions {
    /// Id of the primitive, not of its clone.
    pub resource: String,
    /// Bounds each call of a tool; the tool is killed then.
    pub limit: Duration,
}

#[derive(Debug, thiserror::Error)]
pub enum PacemakerError {
    #[error("cannot ask Pacemaker")]
    Command(#[source] CommandError),
    #[error("`{program}` ended with status {status}: {reason}")]
    Exit { program: &'static str, status: i32, reason: String },
    #[error("cannot tell the roles from what Pacemaker says")]
    View(#[source] CrmMonError),
    #[error("cannot read Pacemaker's constraints")]
    Constraints(#[source] XmlError),
    #[error("resource `{resource}` is in no promotable clone, so there is no role to move")]
    NoClone { resource: String },
}

/// What is configured about where the resource runs and is promoted.
#[derive(Debug, Clone, Default)]
pub struct Constraints {
    pub locations: Vec<Location>,
    /// Other resources that have a say in it.
    pub ties: Vec<Tie>,
}

/// Pacemaker on this node.
#[derive(Debug)]
pub struct Pacemaker<R = Processes> {
    run: R,
    options: PacemakerOptions,
    /// Whether only the older XML was understood; remembered once it is known.
    legacy: AtomicBool,
}

/// The sections of `crm_mon` that [`Pacemaker::roles`] asks for.
const ROLES: &str = "--include=summary,nodes,resources,attributes";
/// A crm_mon that does not know the option yet. 1, its answer to most that goes wrong, is no such sign.
const USAGE: i32 = 64;
/// How long a controller may take to say what it does. It answers at once, or hangs.
const CONTROLLER: Duration = Duration::from_secs(2);
/// No such object; and the same as Pacemaker 1.1 has it.
const ABSENT: [i32; 2] = [105, 6];
/// The CIB does not allow it: the schema, above all.
const SCHEMA: i32 = 78;

impl<R: Run> Pacemaker<R> {
    pub fn new(run: R, options: PacemakerOptions) -> Self {
        Self { run, options, legacy: AtomicBool::new(false) }
    }

    /// Id of the primitive that runs Postgres.
    pub fn resource(&self) -> &str {
        &self.options.resource
    }

    /// The cluster as Pacemaker on this node sees it now.
    ///
    /// # Errors
    /// [`PacemakerError`]; none of them ever means that there is no primary.
    pub async fn view(&self) -> Result<PacemakerView, PacemakerError> {
        self.view_of(&["--output-as=xml", "-1"]).await
    }

    /// Roles, nodes with their attributes, quorum: what publishing needs, and no history of failures
    /// or of fencing. Costs a half of [`Self::view`] and less, above all while Pacemaker is busy.
    pub async fn roles(&self) -> Result<PacemakerView, PacemakerError> {
        self.view_of(&["--output-as=xml", "-1", "--exclude=all", ROLES]).await
    }

    async fn view_of(&self, modern: &[&str]) -> Result<PacemakerView, PacemakerError> {
        if self.legacy.load(Ordering::Relaxed) {
            return self.look(&["--as-xml", "-1"]).await;
        }
        let refused = match self.look(modern).await {
            Err(error @ PacemakerError::Exit { status: USAGE, .. }) => error,
            other => return other,
        };
        let view = self.look(&["--as-xml", "-1"]).await.map_err(|_| refused)?;
        self.legacy.store(true, Ordering::Relaxed);
        Ok(view)
    }

    async fn look(&self, args: &[&str]) -> Result<PacemakerView, PacemakerError> {
        let output = self.call("crm_mon", args).await?;
        // The status comes first: a crm_mon that failed prints well-formed XML all the same.
        if !output.success() {
            let reason = match crm_mon::refusal(&output.stdout) {
                Some(refusal) => refusal.to_string(),
                None => output.last_words().to_owned(),
            };
            return Err(PacemakerError::Exit { program: "crm_mon", status: output.status, reason });
        }
        PacemakerView::parse(&output.stdout, &self.options.resource).map_err(PacemakerError::View)
    }

    /// What the controller of `node` does just now, in its own words, such as `S_IDLE`.
    ///
    /// `crm_mon` cannot tell: it names the last DC until a new one has joined everybody.
    pub async fn controller_state(&self, node: &str) -> Result<String, PacemakerError> {
        let args = ["--quiet", "--status", node];
        let call = Call::new("crmadmin", &args, self.options.limit.min(CONTROLLER));
        let output = self.run.run(call).await.map_err(PacemakerError::Command)?;
        if !output.success() {
            return Err(exit("crmadmin", &output));
        }
        Ok(output.stdout.trim().to_owned())
    }

    /// Location constraints on the resource or its clone: those that move or ban it.
    pub async fn locations(&self, view: &PacemakerView) -> Result<Vec<Location>, PacemakerError> {
        Ok(self.constraints(view).await?.locations)
    }

    /// What is configured about where the resource runs and is promoted.
    pub async fn constraints(&self, view: &PacemakerView) -> Result<Constraints, PacemakerError> {
        let output = self.call("cibadmin", &["--query", "--scope", "constraints"]).await?;
        if !output.success() {
            return Err(exit("cibadmin", &output));
        }
        let about = |id: &str| id == self.options.resource || view.clone.as_deref() == Some(id);
        let mut locations = location::parse(&output.stdout).map_err(PacemakerError::Constraints)?;
        locations.retain(|location| about(&location.resource));
        let ties = colocation::parse(&output.stdout, about).map_err(PacemakerError::Constraints)?;
        Ok(Constraints { locations, ties })
    }

    /// Asks Pacemaker to move the promoted role to `target`.
    ///
    /// The request stops to count at `until` (RFC 3339), whoever dies. One made before is replaced.
    pub async fn move_to(
        &self,
        view: &PacemakerView,
        target: &str,
        until: &str,
    ) -> Result<(), PacemakerError> {
        let resource = self.options.resource.clone();
        let clone = view.clone.clone().ok_or(PacemakerError::NoClone { resource })?;
        let first = view.promoted_role_name();
        // A CIB that was made by an older version keeps that version's schema, and role names.
        let second = if first == "Promoted" { "Master" } else { "Promoted" };
        let mut refused = None;
        for role in [first, second] {
            let rule = MoveRule { clone: &clone, role, target, until };
            let xml = rule.xml();
            let args = ["--modify", "--allow-create", "--scope", "constraints", "--xml-text", &xml];
            let output = self.call("cibadmin", &args).await?;
            if output.success() {
                return Ok(());
            }
            let is_schema = output.status == SCHEMA;
            refused.get_or_insert(exit("cibadmin", &output));
            if !is_schema {
                break;
            }
        }
        Err(refused.unwrap_or(PacemakerError::NoClone { resource: clone }))
    }

    /// Removes the request that [`Self::move_to`] made; returns whether it was there.
    pub async fn forget_move(&self, clone: &str) -> Result<bool, PacemakerError> {
        let xml = format!("<rsc_location id=\"{}\"/>", location::move_id(clone));
        let query = format!("//rsc_location[@id='{}']", location::move_id(clone));
        let found = self.call("cibadmin", &["--query", "--xpath", &query]).await?;
        if ABSENT.contains(&found.status) {
            return Ok(false);
        }
        if !found.success() {
            return Err(exit("cibadmin", &found));
        }
        let args = ["--delete", "--scope", "constraints", "--xml-text", &xml];
        let output = self.call("cibadmin", &args).await?;
        match output.status {
            0 => Ok(true),
            status if ABSENT.contains(&status) => Ok(false),
            _ => Err(exit("cibadmin", &output)),
        }
    }

    async fn call(&self, program: &str, args: &[&str]) -> Result<Output, PacemakerError> {
        let call = Call::new(program, args, self.options.limit);
        self.run.run(call).await.map_err(PacemakerError::Command)
    }
}

fn exit(program: &'static str, output: &Output) -> PacemakerError {
    PacemakerError::Exit { program, status: output.status, reason: output.last_words().to_owned() }
}

impl PacemakerError {
    /// With its causes, in one line.
    pub fn in_full(&self) -> String {
        chain(self).to_string()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    const LEGACY: &str = include_str!("../../tests/data/crm_mon/legacy/pgsql-trixie.xml");

    /// Answers by a table: the first row whose word is among the arguments.
    struct Table {
        rows: Vec<(&'static str, i32, &'static str)>,
        asked: Mutex<Vec<String>>,
    }

    impl Run for Table {
        async fn run(&self, call: Call) -> Result<Output, CommandError> {
            let line = format!("{} {}", call.program, call.args.join(" "));
            let found = self.rows.iter().find(|(word, ..)| line.contains(word));
            let &(_, status, stdout) = found.unwrap_or_else(|| panic!("nobody expected {line}"));
            self.asked.lock().unwrap().push(line);
            Ok(Output { status, stdout: stdout.to_owned(), stderr: String::new() })
        }
    }

    fn pacemaker(rows: Vec<(&'static str, i32, &'static str)>) -> Pacemaker<Table> {
        let table = Table { rows, asked: Mutex::default() };
        let options =
            PacemakerOptions { resource: "Postgresql".to_owned(), limit: Duration::from_secs(1) };
        Pacemaker::new(table, options)
    }

    #[tokio::test]
    async fn an_old_crm_mon_is_asked_the_old_way_from_then_on() {
        let pacemaker = pacemaker(vec![("--output-as", 64, ""), ("--as-xml", 0, LEGACY)]);
        for _ in 0..2 {
            pacemaker.view().await.expect("a view");
        }
        let asked = pacemaker.run.asked.lock().unwrap().clone();
        let old = "crm_mon --as-xml -1";
        assert_eq!(asked, ["crm_mon --output-as=xml -1", old, old]);
    }

    #[tokio::test]
    async fn a_crm_mon_that_only_failed_is_not_taken_for_an_old_one() {
        let failed = pacemaker(vec![("--output-as", 1, ""), ("--as-xml", 0, LEGACY)]);
        let unknown = pacemaker(vec![("--output-as", 64, ""), ("--as-xml", 1, "")]);
        for (pacemaker, status) in [(failed, 1), (unknown, 64)] {
            let error = pacemaker.view().await.expect_err("no view");
            let words = format!("`crm_mon` ended with status {status}: ");
            assert!(error.to_string().starts_with(&words), "{error}");
            assert!(!pacemaker.legacy.load(Ordering::Relaxed), "{status}");
        }
    }

    #[tokio::test]
    async fn a_schema_that_knows_only_the_old_role_name_gets_it() {
        let rows = vec![("--as-xml", 0, LEGACY), ("role=\"Promoted\"", 78, ""), ("Master", 0, "")];
        let pacemaker = pacemaker(rows);
        pacemaker.legacy.store(true, Ordering::Relaxed);
        let view = pacemaker.view().await.expect("a view");
        pacemaker.move_to(&view, "pg02", "2026-11-20T21:00:00Z").await.expect("accepted");
    }

    #[tokio::test]
    async fn a_refusal_of_cibadmin_is_quoted() {
        let denied = "Call failed: Permission denied";
        let pacemaker = pacemaker(vec![("--as-xml", 0, LEGACY), ("cibadmin", 4, denied)]);
        pacemaker.legacy.store(true, Ordering::Relaxed);
        let view = pacemaker.view().await.expect("a view");
        let error = pacemaker.locations(&view).await.expect_err("denied");
        assert_eq!(
            error.to_string(),
            "`cibadmin` ended with status 4: Call failed: Permission denied"
        );
    }
}
