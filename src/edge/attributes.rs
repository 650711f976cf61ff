//! Node attributes and promotion scores, through Pacemaker's own tools.

use std::time::Duration;

use tokio::time::Instant;

use super::command::{Call, CommandError, Output, Run};
use crate::model::agent::{
    cib::{Cib, Names},
    cib_xml::CibError,
    claim::{DataStatus, Score},
    quorum::QuorumClaim,
};

#[derive(Debug, thiserror::Error)]
pub enum AttributeError {
    #[error("cannot ask Pacemaker")]
    Command(#[source] CommandError),
    #[error("`{program}` ended with {status}: {reason}")]
    Exit { program: &'static str, status: i32, reason: String },
    #[error("cannot read the CIB")]
    Cib(#[source] CibError),
    #[error("the CIB still lets {nodes} be promoted after {limit:?}")]
    StillPromotable { nodes: String, limit: Duration },
    #[error("the CIB has no promotion score of {node} after {limit:?}")]
    NoScore { node: String, limit: Duration },
    #[error(
        "{confirmed} of {nodes} nodes hold the claims in this node's CIB, too few to rely on them"
    )]
    TooFewHoldClaims { confirmed: usize, nodes: usize },
    #[error(
        "{node} is lost and not fenced yet, and may be promoting its standby; once you know that it is off: \
         stonith_admin --confirm {node}"
    )]
    NotFenced { node: String },
}

/// The attributes of one resource on all nodes.
#[derive(Debug, Clone)]
pub struct Attributes<R> {
    pub run: R,
    pub names: Names,
    /// Bounds each single call of a tool.
    pub limit: Duration,
}

impl<R: Run> Attributes<R> {
    /// Reads nodes and attributes as this node's CIB holds them.
    pub async fn query(&self) -> Result<Cib, AttributeError> {
        let output = self.call("cibadmin", &["--query"]).await?;
        Cib::parse(&output.stdout).map_err(AttributeError::Cib)
    }

    /// Whether this node's side of the cluster has quorum, as the membership layer says now: the CIB's own
    /// word is written by the controller, and lags.
    pub async fn has_quorum(&self) -> Result<bool, AttributeError> {
        Ok(self.call("crm_node", &["--quorum"]).await?.stdout.trim() == "1")
    }

    /// Sets a transient attribute; the CIB shows it a little later.
    pub async fn set(&self, node: &str, name: &str, value: &str) -> Result<(), AttributeError> {
        // Joined by `=`, or a value such as -INFINITY would be taken for an option.
        let update = format!("--update={value}");
        self.call("attrd_updater", &["--name", name, &update, "--node", node]).await.map(|_| ())
    }

    /// Deletes a transient attribute; one that is not there is deleted already.
    pub async fn delete(&self, node: &str, name: &str) -> Result<(), AttributeError> {
        self.call("attrd_updater", &["--name", name, "--delete", "--node", node]).await.map(|_| ())
    }

    /// Lets the attribute daemon write all that it knows into the CIB once more.
    ///
    /// A controller that dies loses its node's attributes there, while the daemon goes on with them and takes the
    /// same value again for no change (ClusterLabs/pacemaker, pull requests 1693 and 3321).
    pub async fn resend(&self) -> Result<(), AttributeError> {
        self.call("attrd_updater", &["--refresh"]).await.map(|_| ())
    }

    pub async fn set_score(&self, node: &str, score: Score) -> Result<(), AttributeError> {
        self.set(node, &self.names.score, &score.to_string()).await
    }

    /// Writes a node's data status into the CIB; it is there when this returns.
    ///
    /// By crm_attribute: a change of the nodes by cibadmin would start an election of the cluster's
    /// controllers, which costs about a second.
    pub async fn set_data_status(
        &self,
        node: &str,
        status: DataStatus,
    ) -> Result<(), AttributeError> {
        self.set_forever(node, &self.names.data_status, status.as_str()).await
    }

    /// Writes or removes what a node claims of a quorum; the CIB has it when this returns.
    pub async fn set_quorum_claim(
        &self,
        node: &str,
        claim: Option<&QuorumClaim>,
    ) -> Result<(), AttributeError> {
        let name = self.names.quorum.as_str();
        match claim {
            Some(claim) => self.set_forever(node, name, &claim.to_string()).await,
            None => {
                let args = ["--node", node, "--name", name, "--delete", "--lifetime", "forever"];
                self.call("crm_attribute", &args).await.map(|_| ())
            }
        }
    }

    async fn set_forever(&self, node: &str, name: &str, value: &str) -> Result<(), AttributeError> {
        let update = format!("--update={value}");
        let args = ["--node", node, "--name", name, &update, "--lifetime", "forever"];
        self.call("crm_attribute", &args).await.map(|_| ())
    }

    /// Writes data statuses one after the other; all are in the CIB when this returns.
    pub async fn set_data_statuses(
        &self,
        values: &[(String, DataStatus)],
    ) -> Result<(), AttributeError> {
        for (node, status) in values {
            self.set_data_status(node, *status).await?;
        }
        Ok(())
    }

    /// Waits until the CIB shows that none of `nodes` may be promoted.
    pub async fn confirm_unpromotable(
        &self,
        nodes: &[String],
        limit: Duration,
    ) -> Result<(), AttributeError> {
        let may = |cib: &Cib, name: &str| {
            let score = cib.node(name).and_then(|node| node.score(&self.names));
            score.is_some_and(Score::allows_promotion)
        };
        let cib = self.query_until(limit, |cib| !nodes.iter().any(|name| may(cib, name))).await?;
        let left: Vec<_> = nodes.iter().filter(|name| may(&cib, name)).cloned().collect();
        if left.is_empty() {
            return Ok(());
        }
        Err(AttributeError::StillPromotable { nodes: left.join(", "), limit })
    }

    /// Waits at most `limit` until the CIB shows that `node` has a promotion score.
    pub async fn confirm_score(&self, node: &str, limit: Duration) -> Result<(), AttributeError> {
        let has = |cib: &Cib| cib.node(node).is_some_and(|node| node.score(&self.names).is_some());
        let cib = self.query_until(limit, has).await?;
        has(&cib).then_some(()).ok_or(AttributeError::NoScore { node: node.to_owned(), limit })
    }

    /// Reads the CIB until it `shows` something, for at most `limit`; returns what it was last.
    pub async fn query_until(
        &self,
        limit: Duration,
        shows: impl Fn(&Cib) -> bool,
    ) -> Result<Cib, AttributeError> {
        let deadline = Instant::now() + limit;
        loop {
            let cib = self.query().await?;
            if shows(&cib) || Instant::now() >= deadline {
                return Ok(cib);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Makes sure that the durable claims in this node's CIB survive its loss: that a majority of the
    /// cluster's nodes, or every node that is a member now, has them too.
    ///
    /// A node's own CIB shows its changes even when it was just cut off and nobody else ever heard
    /// of them; Corosync delivers a message to its sender first, and notices the cut seconds later.
    ///
    /// # Errors
    /// [`AttributeError::TooFewHoldClaims`] when other nodes do not answer within `limit` each, or
    /// answer otherwise; [`AttributeError::NotFenced`] while a node is lost, no other is there, and that one may
    /// go on as well.
    pub async fn confirm_claims(&self, own: &str, limit: Duration) -> Result<(), AttributeError> {
        let cib = self.query().await?;
        if let Some(lost) = cib.unfenced_other(own) {
            return Err(AttributeError::NotFenced { node: lost.name.clone() });
        }
        let nodes = cib.nodes.len();
        let online = cib.nodes.values().filter(|node| node.online && node.name != own);
        // Those that are likely to answer come first: a lost one may be thought online for seconds.
        let mut others: Vec<_> = online.collect();
        others.sort_by_key(|node| node.data_status(&self.names) == Some(DataStatus::Disconnected));
        let wanted = (nodes / 2 + 1).min(others.len() + 1);
        let mut confirmed = 1;
        for node in others {
            if confirmed >= wanted {
                break;
            }
            let theirs = self.query_at(&node.name, limit).await;
            if theirs.is_ok_and(|theirs| cib.same_claims(&theirs, &self.names.resource)) {
                confirmed += 1;
            }
        }
        if confirmed >= wanted {
            return Ok(());
        }
        Err(AttributeError::TooFewHoldClaims { confirmed, nodes })
    }

    /// Reads the CIB of another node.
    async fn query_at(&self, node: &str, limit: Duration) -> Result<Cib, AttributeError> {
        let call = Call::new("cibadmin", &["--query", "--node", node], limit.min(self.limit));
        let output = self.run.run(call).await.map_err(AttributeError::Command)?;
        if !output.success() {
            return Err(exit("cibadmin", &output));
        }
        Cib::parse(&output.stdout).map_err(AttributeError::Cib)
    }

    async fn call(&self, program: &'static str, args: &[&str]) -> Result<Output, AttributeError> {
        let call = Call::new(program, args, self.limit);
        let output = self.run.run(call).await.map_err(AttributeError::Command)?;
        if !output.success() {
            return Err(exit(program, &output));
        }
        Ok(output)
    }
}

fn exit(program: &'static str, output: &Output) -> AttributeError {
    let reason = output.last_words().to_owned();
    AttributeError::Exit { program, status: output.status, reason }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Records calls and answers each with the same output.
    struct Recorded {
        calls: Mutex<Vec<String>>,
        output: Output,
    }

    impl Run for &Recorded {
        async fn run(&self, call: Call) -> Result<Output, CommandError> {
            let line = format!("{} {}", call.program, call.args.join(" "));
            self.calls.lock().expect("not poisoned").push(line);
            Ok(self.output.clone())
        }
    }

    fn answering(status: i32, stdout: &str, stderr: &str) -> Recorded {
        let output = Output { status, stdout: stdout.to_owned(), stderr: stderr.to_owned() };
        Recorded { calls: Mutex::default(), output }
    }

    fn attributes(run: &Recorded) -> Attributes<&Recorded> {
        Attributes { run, names: Names::of("Postgresql"), limit: Duration::from_secs(1) }
    }

    const CIB: &str = r#"<cib><configuration><nodes><node id="1" uname="pg01"/></nodes>
        </configuration><status><node_state id="1" uname="pg01"><transient_attributes id="1">
        <instance_attributes id="s"><nvpair id="a" name="master-Postgresql" value="100"/>
        </instance_attributes></transient_attributes></node_state></status></cib>"#;

    #[tokio::test]
    async fn a_negative_score_is_no_option() {
        let run = answering(0, "", "");
        attributes(&run).set_score("pg02", Score::NEVER).await.expect("set");
        assert_eq!(
            *run.calls.lock().expect("not poisoned"),
            ["attrd_updater --name master-Postgresql --update=-INFINITY --node pg02"]
        );
    }

    #[tokio::test]
    async fn a_data_status_is_permanent() {
        let run = answering(0, "", "");
        let values = [("pg01".to_owned(), DataStatus::Latest)];
        attributes(&run).set_data_statuses(&values).await.expect("written");
        assert_eq!(
            *run.calls.lock().expect("not poisoned"),
            ["crm_attribute --node pg01 --name Postgresql-data-status --update=LATEST \
              --lifetime forever"]
        );
    }

    #[tokio::test]
    async fn a_score_that_stays_is_an_error() {
        let run = answering(0, CIB, "");
        let nodes = ["pg01".to_owned()];
        let limit = Duration::from_millis(30);
        let error = attributes(&run).confirm_unpromotable(&nodes, limit).await;
        assert!(matches!(error, Err(AttributeError::StillPromotable { .. })), "{error:?}");
    }

    #[tokio::test]
    async fn a_failing_tool_is_quoted() {
        let run = answering(102, "", "Transport endpoint is not connected\n");
        let error = attributes(&run).query().await.expect_err("no cluster").to_string();
        assert_eq!(error, "`cibadmin` ended with 102: Transport endpoint is not connected");
    }
}
