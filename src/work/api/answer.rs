//! Errors and findings as the wire has them.

use std::{error::Error, future::Future, time::Duration};

use tonic::{Status, metadata::MetadataValue};

use crate::{
    edge::peer::{BUSY, NO_PART, REASON, STALE_TOKEN, TAKEN, pb},
    error::chain,
    model::{
        console::Backend,
        failed_action::FailedAction,
        fence::StaleToken,
        finding::{Finding, Severity},
        health::{Component, Verdict},
        terminated::Terminated,
    },
    work::pauser::PauseError,
};

fn because(reason: &'static str, mut status: Status) -> Status {
    status.metadata_mut().insert(REASON, MetadataValue::from_static(reason));
    status
}

pub(super) fn stale(error: &StaleToken) -> Status {
    let StaleToken { given, least } = error;
    because(
        STALE_TOKEN,
        Status::failed_precondition(format!(
            "attempt.fencing_token is {given}, expected at least {least}: the attempt has lost the failover lock \
             (if etcd was restored from a backup, restart this agent)"
        )),
    )
}

pub(super) fn no_part(what: &str) -> Status {
    because(NO_PART, Status::failed_precondition(format!("this agent has no {what}")))
}

pub(super) fn pause(error: &PauseError) -> Status {
    let words = chain(error).to_string();
    match error {
        PauseError::Stale(_) => because(STALE_TOKEN, Status::failed_precondition(words)),
        PauseError::Busy { .. } => because(BUSY, Status::aborted(words)),
        PauseError::Taken { .. } => because(TAKEN, Status::failed_precondition(words)),
        _ => Status::internal(words),
    }
}

pub(super) fn failed(error: &(dyn Error + 'static)) -> Status {
    Status::failed_precondition(chain(error).to_string())
}

/// Runs `work` to its end even when the caller goes away: half a change helps nobody.
pub(super) async fn to_the_end<T: Send + 'static>(
    limit: Duration,
    work: impl Future<Output = Result<T, Status>> + Send + 'static,
) -> Result<T, Status> {
    match tokio::time::timeout(limit, tokio::spawn(work)).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(Status::internal("the call crashed here; see this agent's log")),
        Err(_) => Err(Status::deadline_exceeded(format!("no result within {limit:?}"))),
    }
}

pub(super) fn finding(finding: Finding) -> pb::Finding {
    let severity = match finding.severity {
        Severity::Warn => pb::finding::Severity::Warn,
        Severity::Refuse => pb::finding::Severity::Refuse,
    };
    pb::Finding { check: finding.check, severity: severity.into(), message: finding.message }
}

pub(super) fn component(component: Component) -> pb::Component {
    let verdict = match component.verdict {
        Verdict::Healthy => pb::component::Verdict::Healthy,
        Verdict::Degraded => pb::component::Verdict::Degraded,
        Verdict::Failed => pb::component::Verdict::Failed,
    };
    pb::Component { name: component.name, verdict: verdict.into(), message: component.message }
}

pub(super) fn failed_action(failed: FailedAction) -> pb::FailedAction {
    let FailedAction { node, action, reason, commands } = failed;
    pb::FailedAction { node, action, reason, commands }
}

pub(super) fn backend(backend: Backend) -> pb::Backend {
    pb::Backend { pid: backend.pid, port: backend.port.into() }
}

pub(super) fn terminated(ended: Terminated) -> pb::Terminated {
    let Terminated { pid, user, database, application, state, age_ms, query } = ended;
    pb::Terminated { pid, user, database, application, state, age_ms, query }
}
