//! Rounds of faults against the Docker cluster under load.

use std::{
    fs,
    time::{Duration, Instant},
};

use pgcm::edge::clock;
use serde_json::json;

use crate::{
    docker::cluster::{Cluster, NODES},
    inject,
    ledger::{self, Ledger},
    options::Options,
    plan::{self, Fault, Plan, Strike, Target},
    recover,
    report::{self, Round},
    verdict::{self, Write},
};

/// How long the database may take to be read once the cluster is whole.
const READ: Duration = Duration::from_secs(60);
/// A stall after which commits flow again: the sender's timeout, two monitors, and their work.
const STALL: Duration = Duration::from_secs(60);
/// `pgcm failover` ends within its own limits long before.
const SWITCHOVER: Duration = Duration::from_secs(120);

pub(crate) struct Campaign {
    pub(crate) cluster: Cluster,
    pub(crate) options: Options,
    clock: Instant,
    /// The round before, whose commits a later failover must not lose either.
    before: Option<(String, Vec<Write>)>,
}

/// Which nodes are what.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Roles {
    primary: String,
    sync: String,
    other: String,
}

impl Roles {
    fn node(&self, target: Target) -> &str {
        match target {
            Target::Primary => &self.primary,
            Target::Sync => &self.sync,
            Target::Other => &self.other,
        }
    }
}

impl Campaign {
    pub(crate) fn new(cluster: Cluster, options: Options) -> Self {
        Self { cluster, options, clock: Instant::now(), before: None }
    }

    /// Runs all rounds and writes the results after each, so that a campaign that is cut off leaves
    /// something.
    ///
    /// # Errors
    /// A fault could not be injected, or the cluster could not be brought back at all.
    pub(crate) async fn run(mut self) -> Result<Vec<Round>, String> {
        let seeds = match self.options.seeds.as_slice() {
            &[first] => plan::seeds(first, &self.options.kinds, self.options.rounds),
            several => several.to_vec(),
        };
        let mut rounds = Vec::new();
        for (index, &seed) in seeds.iter().enumerate() {
            if self.options.length.is_some_and(|length| self.clock.elapsed() > length) {
                println!("the time is up after {index} rounds");
                break;
            }
            let (kind, plan) = plan::round(seed);
            println!("round {}/{}  SEED={seed}  {plan}", index + 1, seeds.len());
            let round = self.round(seed, kind.name(), plan).await;
            if !round.as_ref().is_ok_and(Round::went_well) {
                recover::keep_logs(&self.cluster, &self.results().join(format!("{seed}"))).await;
            }
            let round = round?;
            println!("  {}", round.line());
            rounds.push(round);
            self.write(&rounds)?;
        }
        Ok(rounds)
    }

    fn results(&self) -> std::path::PathBuf {
        let broken = if self.options.broken { "-broken" } else { "" };
        self.options.directory.join(format!("{}{broken}", self.options.mode.name()))
    }

    fn write(&self, rounds: &[Round]) -> Result<(), String> {
        let head = json!({
            "mode": self.options.mode.name(),
            "seeds": self.options.seeds,
            "rounds": rounds.len(),
            "debian": std::env::var("PGCM_DEBIAN").unwrap_or_default(),
        });
        let base = self.results();
        let json = format!("{:#}\n", report::json(&head, rounds));
        fs::create_dir_all(&self.options.directory)
            .and_then(|()| fs::write(base.with_extension("json"), json))
            .and_then(|()| fs::write(base.with_extension("md"), report::table(rounds)))
            .map_err(|error| format!("cannot write {}: {error}", base.display()))
    }

    async fn round(&mut self, seed: u32, kind: &'static str, plan: Plan) -> Result<Round, String> {
        let name = format!("{}-{seed}", clock::unix_ms());
        let roles = roles(&self.cluster).await?;
        let ledger = Ledger::start(&self.cluster, self.clock, &name).await?;
        ledger.flows(Duration::from_secs(30)).await?;
        let from = self.clock.elapsed();
        let story = self.carry_out(plan, &roles, &ledger).await?;
        let recovery = recover::whole(&self.cluster).await?;
        let flows = ledger.flows(READ).await;
        let until = self.clock.elapsed();
        let writes = ledger.stop().await;
        let (verdict, lost_later, unchecked) = self.judge(&name, &writes, from, until).await;
        // What is lost already is not lost once more.
        let kept = writes.iter().filter(|write| !verdict.lost.contains(&write.key)).cloned();
        self.before = unchecked.is_none().then(|| (name, kept.collect()));
        Ok(Round {
            seed,
            kind,
            story,
            verdict,
            commits: writes.iter().filter(|write| write.acknowledged.is_some()).count(),
            lost_later,
            unchecked: unchecked.or(flows.err()),
            recovery,
        })
    }

    async fn judge(
        &self,
        name: &str,
        writes: &[Write],
        from: Duration,
        until: Duration,
    ) -> (verdict::Verdict, usize, Option<String>) {
        let (stored, unchecked) = match ledger::stored(&self.cluster, name, READ).await {
            Ok(stored) => (stored, None),
            // Nothing can be said of what is stored, but of what the writers saw.
            Err(why) => (writes.iter().map(|write| write.key.clone()).collect(), Some(why)),
        };
        let lost_later = match &self.before {
            Some((name, writes)) => match ledger::stored(&self.cluster, name, READ).await {
                Ok(stored) => verdict::lost(writes, &stored).len(),
                Err(_) => 0,
            },
            None => 0,
        };
        (verdict::judge(writes, &stored, from, until), lost_later, unchecked)
    }

    /// Lets happen what the plan says, heals it, and tells what was done.
    async fn carry_out(
        &self,
        plan: Plan,
        roles: &Roles,
        ledger: &Ledger,
    ) -> Result<String, String> {
        match plan {
            Plan::One(strike) => self.strike(strike, roles).await,
            Plan::DuringSwitchover { after, strike } => {
                let failover = self.cluster.exec_within("app01", &["pgcm", "failover"], SWITCHOVER);
                let fault = async {
                    tokio::time::sleep(after).await;
                    self.strike(strike, roles).await
                };
                let (ended, story) = tokio::join!(failover, fault);
                let ms = after.as_millis();
                Ok(format!("{}, {ms} ms into a switchover (exit code {})", story?, ended.status))
            }
            Plan::TwoInARow { first, pause, second } => {
                let one = self.strike(first, roles).await?;
                tokio::time::sleep(pause).await;
                // Who is what now, where somebody can tell.
                let now = self::roles(&self.cluster).await.unwrap_or_else(|_| roles.clone());
                let other = self.strike_if_up(second, &now).await?;
                Ok(format!("{one}; {} ms later {other}", pause.as_millis()))
            }
            Plan::StaleStandby { after, hold } => {
                inject::strike(&self.cluster, Fault::CutReplication, &roles.sync).await?;
                ledger.stalls_and_flows(STALL).await;
                tokio::time::sleep(after).await;
                inject::strike(&self.cluster, Fault::KillContainer, &roles.primary).await?;
                tokio::time::sleep(hold).await;
                inject::heal(&self.cluster, Fault::CutReplication, &roles.sync).await?;
                Ok(format!(
                    "{} cut off from replication, then {} killed",
                    roles.sync, roles.primary
                ))
            }
        }
    }

    async fn strike(&self, strike: Strike, roles: &Roles) -> Result<String, String> {
        let node = roles.node(strike.target);
        inject::strike(&self.cluster, strike.fault, node).await?;
        tokio::time::sleep(strike.hold).await;
        inject::heal(&self.cluster, strike.fault, node).await?;
        Ok(format!("{} on {node} for {:.1} s", strike.fault.name(), strike.hold.as_secs_f64()))
    }

    /// The second of two: its node may be off already, or lack what would be killed.
    async fn strike_if_up(&self, strike: Strike, roles: &Roles) -> Result<String, String> {
        let node = roles.node(strike.target);
        match self.strike(strike, roles).await {
            Ok(story) => Ok(story),
            Err(why) if NODES.contains(&node) => Ok(format!(
                "nothing, since {} found {node} not up to it ({})",
                strike.fault.name(),
                why.lines().last().unwrap_or_default()
            )),
            Err(why) => Err(why),
        }
    }
}

/// Who is primary and who is which standby.
async fn roles(cluster: &Cluster) -> Result<Roles, String> {
    let status = cluster.status_if_any().await?;
    let name = |value: &serde_json::Value| value["name"].as_str().map(str::to_owned);
    let primary = name(&status["cluster"]["primary"]);
    let mut standbys = status["cluster"]["standbys"].as_array().cloned().unwrap_or_default();
    standbys.sort_by_key(|standby| standby["sync_state"] != "sync");
    let mut standbys = standbys.iter().filter_map(name);
    match (primary, standbys.next(), standbys.next()) {
        (Some(primary), Some(sync), Some(other)) => Ok(Roles { primary, sync, other }),
        _ => Err(format!("who is what? {status}")),
    }
}
