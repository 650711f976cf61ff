//! `pgcm.v1.Agent`, call by call: token, arguments, fencing token, part — then the work.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use slog::info;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Code, Request, Response, Status};

use super::{Api, answer, argument};
use crate::{
    edge::peer::pb,
    model::{
        cluster::{ClusterView, Primary},
        console::Blocker,
        pause::Claim,
        span::millis,
    },
    work::checks::Terms,
};

/// What a call may take beyond the limit that its caller named.
const GRACE: Duration = Duration::from_secs(5);
/// Bounds the calls whose callers name no limit.
const LIMIT: Duration = Duration::from_secs(30);

type Answer<T> = Result<Response<T>, Status>;

impl Api {
    /// Lets a changing call in, or says why not.
    fn change<T>(
        &self,
        request: Request<T>,
        attempt: fn(&T) -> Option<&pb::Attempt>,
    ) -> Result<(T, Claim, OwnedSemaphorePermit), Status> {
        self.auth.judge(request.metadata())?;
        let permit = permit(&self.changes)?;
        let body = request.into_inner();
        let claim = argument::claim(attempt(&body))?;
        Ok((body, claim, permit))
    }

    /// Refuses what an attempt asks that has lost the lock.
    fn fence(&self, claim: &Claim) -> Result<(), Status> {
        let admitted = self.parts.gate.lock().admit(claim.token);
        admitted.map_err(|error| answer::stale(&error))
    }

    /// As [`Self::fence`], for what lets clients go: that is refused only once another failover has begun.
    fn fence_letting_go(&self, claim: &Claim) -> Result<(), Status> {
        let admitted = self.parts.gate.lock().admit_to_let_go(claim.token);
        admitted.map_err(|error| answer::stale(&error))
    }

    fn latest_view(&self) -> Option<ClusterView> {
        self.parts.view.as_ref().and_then(|view| view())
    }

    /// Runs a change to its end and logs how it went.
    async fn carry_out<T: Send + 'static>(
        &self,
        call: &'static str,
        claim: Claim,
        limit: Duration,
        work: impl Future<Output = Result<T, Status>> + Send + 'static,
    ) -> Answer<T> {
        let began = Instant::now();
        let result = answer::to_the_end(limit, work).await;
        let (code, message) = match &result {
            Ok(_) => (Code::Ok, ""),
            Err(status) => (status.code(), status.message()),
        };
        info!(self.log, "answered a call"; "event" => "api.call.end", "call" => call,
            "attempt" => &claim.attempt, "fencing_token" => claim.token, "result" => ?code,
            "message" => message,
            "duration_ms" => millis(began.elapsed()));
        result.map(Response::new)
    }
}

fn permit(semaphore: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Status> {
    semaphore
        .clone()
        .try_acquire_owned()
        .map_err(|_| Status::resource_exhausted("too many calls at once; try again"))
}

fn part<T: Clone>(part: &Option<T>, what: &str) -> Result<T, Status> {
    part.clone().ok_or_else(|| answer::no_part(what))
}

fn moved(primary: Primary) -> pb::MigrateResponse {
    pb::MigrateResponse {
        primary: primary.name,
        address: primary.address.to_string(),
        timeline: primary.timeline,
    }
}

#[tonic::async_trait]
impl pb::agent_server::Agent for Api {
    async fn health(&self, _: Request<pb::HealthRequest>) -> Answer<pb::HealthResponse> {
        let _permit = permit(&self.questions)?;
        let checks = self.parts.checks.clone();
        let found = answer::to_the_end(LIMIT, async move { Ok(checks.health().await) }).await?;
        Ok(Response::new(pb::HealthResponse {
            components: found.components.into_iter().map(answer::component).collect(),
            failed_actions: found.failed_actions.into_iter().map(answer::failed_action).collect(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            host: self.options.host.clone(),
            kind: self.options.kind.to_string(),
            pauses: self.parts.pauser.is_some(),
            follows: self.parts.follower.is_some(),
        }))
    }

    async fn check(&self, request: Request<pb::CheckRequest>) -> Answer<pb::CheckResponse> {
        let _permit = permit(&self.questions)?;
        let body = request.into_inner();
        let (pause_timeout, pause_expiry) = argument::pause(
            ("pause_timeout_ms", body.pause_timeout_ms),
            ("pause_expiry_ms", body.pause_expiry_ms),
        )?;
        let view = self.latest_view();
        let target = argument::target("target", &body.target, view.as_ref())?;
        let terms = Terms { pause_timeout, pause_expiry, target };
        let checks = self.parts.checks.clone();
        let work =
            async move { Ok(tokio::join!(checks.findings(&terms), checks.failover_slots())) };
        let (found, failover_slots) = answer::to_the_end(LIMIT, work).await?;
        let findings = found.into_iter().map(answer::finding).collect();
        Ok(Response::new(pb::CheckResponse { findings, failover_slots }))
    }

    async fn pause(&self, request: Request<pb::PauseRequest>) -> Answer<pb::PauseResponse> {
        let (body, claim, _permit) = self.change(request, |body| body.attempt.as_ref())?;
        let (timeout, expiry) =
            argument::pause(("timeout_ms", body.timeout_ms), ("expiry_ms", body.expiry_ms))?;
        self.fence(&claim)?;
        let pauser = part(&self.parts.pauser, "PgBouncer to pause")?;
        let asker = claim.clone();
        self.carry_out("pause", claim, timeout + GRACE, async move {
            let paused = pauser.pause(&asker, timeout, expiry).await;
            Ok(pb::PauseResponse { paused: paused.map_err(|error| answer::pause(&error))? })
        })
        .await
    }

    async fn resume(&self, request: Request<pb::ResumeRequest>) -> Answer<pb::ResumeResponse> {
        let (_, claim, _permit) = self.change(request, |body| body.attempt.as_ref())?;
        self.fence_letting_go(&claim)?;
        let pauser = part(&self.parts.pauser, "PgBouncer to resume")?;
        let asker = claim.clone();
        self.carry_out("resume", claim, LIMIT, async move {
            pauser.resume(&asker).await.map_err(|error| answer::pause(&error))?;
            Ok(pb::ResumeResponse {})
        })
        .await
    }

    async fn follow(&self, request: Request<pb::FollowRequest>) -> Answer<pb::FollowResponse> {
        let (body, claim, _permit) = self.change(request, |body| body.attempt.as_ref())?;
        let address = argument::address("address", &body.address)?;
        let limit = argument::span("timeout_ms", body.timeout_ms)?;
        self.fence_letting_go(&claim)?;
        let follower = part(&self.parts.follower, "PgBouncer that follows the primary")?;
        self.carry_out("follow", claim, limit + GRACE, async move {
            follower.follow(address, limit).await.map_err(|error| answer::failed(&error))?;
            Ok(pb::FollowResponse {})
        })
        .await
    }

    async fn blockers(&self, _: Request<pb::BlockersRequest>) -> Answer<pb::BlockersResponse> {
        let _permit = permit(&self.questions)?;
        let pauser = part(&self.parts.pauser, "PgBouncer to ask")?;
        let found = answer::to_the_end(LIMIT, async move { Ok(pauser.blockers().await) }).await?;
        let backends = found.iter().filter_map(Blocker::backend).map(answer::backend).collect();
        Ok(Response::new(pb::BlockersResponse { backends }))
    }

    async fn terminate(
        &self,
        request: Request<pb::TerminateRequest>,
    ) -> Answer<pb::TerminateResponse> {
        let (body, claim, _permit) = self.change(request, |body| body.attempt.as_ref())?;
        let backends = argument::backends("backends", &body.backends)?;
        let min_age = argument::span("min_age_ms", body.min_age_ms)?;
        self.fence(&claim)?;
        let mover = part(&self.parts.mover, "Postgres to terminate transactions in")?;
        let attempt = claim.attempt.clone();
        self.carry_out("terminate", claim, LIMIT, async move {
            let ended = mover.terminate(&attempt, &backends, min_age).await;
            let ended = ended.map_err(|error| answer::failed(&error))?;
            let terminated = ended.into_iter().map(answer::terminated).collect();
            Ok(pb::TerminateResponse { terminated })
        })
        .await
    }

    async fn prepare(&self, request: Request<pb::PrepareRequest>) -> Answer<pb::PrepareResponse> {
        let (body, claim, _permit) = self.change(request, |body| body.attempt.as_ref())?;
        let limit = argument::span("timeout_ms", body.timeout_ms)?;
        self.fence(&claim)?;
        let mover = part(&self.parts.mover, "Postgres to prepare")?;
        self.carry_out("prepare", claim, limit + GRACE, async move {
            let took = mover.prepare(limit).await.map_err(|error| answer::failed(&error))?;
            Ok(pb::PrepareResponse { checkpoint_ms: millis(took) })
        })
        .await
    }

    async fn migrate(&self, request: Request<pb::MigrateRequest>) -> Answer<pb::MigrateResponse> {
        let (body, claim, _permit) = self.change(request, |body| body.attempt.as_ref())?;
        let limit = argument::span("timeout_ms", body.timeout_ms)?;
        let lifetime = argument::span("constraint_lifetime_ms", body.constraint_lifetime_ms)?;
        let target = argument::target("target", &body.target, self.latest_view().as_ref())?;
        self.fence(&claim)?;
        let mover = part(&self.parts.mover, "Pacemaker to move the primary with")?;
        let attempt = claim.attempt.clone();
        self.carry_out("migrate", claim, limit + GRACE, async move {
            let primary = mover.migrate(&attempt, target.as_deref(), limit, lifetime).await;
            primary.map(moved).map_err(|error| answer::failed(&error))
        })
        .await
    }

    async fn settle(&self, request: Request<pb::SettleRequest>) -> Answer<pb::MigrateResponse> {
        let (body, claim, _permit) = self.change(request, |body| body.attempt.as_ref())?;
        let limit = argument::span("timeout_ms", body.timeout_ms)?;
        self.fence_letting_go(&claim)?;
        let mover = part(&self.parts.mover, "Pacemaker to ask for the primary")?;
        let attempt = claim.attempt.clone();
        self.carry_out("settle", claim, limit + GRACE, async move {
            mover.settle(&attempt, limit).await.map(moved).map_err(|error| answer::failed(&error))
        })
        .await
    }

    async fn unmigrate(
        &self,
        request: Request<pb::UnmigrateRequest>,
    ) -> Answer<pb::UnmigrateResponse> {
        let (_, claim, _permit) = self.change(request, |body| body.attempt.as_ref())?;
        self.fence(&claim)?;
        let mover = part(&self.parts.mover, "Pacemaker to remove a constraint from")?;
        let (attempt, token, gate) = (claim.attempt.clone(), claim.token, self.parts.gate.clone());
        self.carry_out("unmigrate", claim, LIMIT, async move {
            let removed = mover.unmigrate(&attempt, || gate.lock().admit(token).is_ok()).await;
            let removed = removed.map_err(|error| answer::failed(&error))?;
            Ok(pb::UnmigrateResponse { removed })
        })
        .await
    }
}
