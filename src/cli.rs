//! The command line: every flag and all help text.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{
    config::{load::DEFAULT_PATH, section::Span},
    exit::Exit,
};

/// Highly available Postgres under Pacemaker without a floating IP.
#[derive(Debug, Parser)]
#[command(name = "pgcm", version, after_help = Exit::TABLE)]
pub struct Cli {
    /// Configuration to use; `pgcm show-config` prints one to start from
    #[arg(long, global = true, value_name = "PATH", default_value = DEFAULT_PATH)]
    pub config_file: PathBuf,

    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Publish this node's primary into etcd and serve the API; runs on every Postgres node
    ///
    /// Reads Pacemaker's view of the cluster and, while this node runs the promoted Postgres on the
    /// side with quorum, publishes its address under `/master` and the whole view under `/cluster`.
    /// Losing etcd or Pacemaker's tools never touches Postgres or PgBouncer. Ends on SIGTERM.
    Supervise,

    /// Keep PgBouncer pointed at the primary; runs on every machine with a PgBouncer
    ///
    /// Renders the templates whenever the primary changes, reloads PgBouncer and proves that it
    /// follows. While etcd is away the last good file stays in force. Ends on SIGTERM.
    Proxy,

    /// Move the primary to its synchronous standby without dropping clients
    ///
    /// Queries wait at every PgBouncer while Pacemaker moves the promoted role, at most
    /// `--pause-expiry`; none fails. Ctrl-C stops the move and puts everything back. Exit codes:
    /// 0 moved; 3 etcd did not answer; 4 checks failed, nothing touched; 5 lock held elsewhere;
    /// 6 stopped, everything put back; 7 stopped, needs hands.
    Failover(Failover),

    /// Show who is primary, who follows, and how every agent feels
    ///
    /// Reads etcd and asks each registered agent; changes nothing. Exit codes: 0 shown, or with
    /// `--check` yes; 3 etcd did not answer, or refused; 4 with `--check` no.
    Status(Status),

    /// Show past changes of the primary, planned and not, newest first
    ///
    /// Reads etcd; changes nothing. Exit codes: 0 shown; 3 etcd did not answer, or refused.
    History(History),

    /// Run a command while holding the failover lock, so that no failover begins meanwhile
    ///
    /// The command has this terminal, and `PGCM_FENCING_TOKEN` in its environment. If the lock is
    /// lost, or on SIGTERM or SIGHUP, the command and what it has started get SIGTERM and after `--kill-after` SIGKILL,
    /// daemons with a session of their own excepted. If pgcm itself is killed the command goes on, and the lock ends with its lease. Exit codes: 1 error; 5 lock held
    /// elsewhere, nothing was run; otherwise the command's own.
    WithLock(WithLock),

    /// Print a configuration with every setting, its comment and default
    ShowConfig,

    /// Read the configuration and say whether it can work
    ///
    /// Templates of `pgcm proxy` that are there are tried on an example, pg01 with and without its standby pg02; those
    /// that are not there are told. Changes nothing. Exit codes: 0 fine; 2 not, with the reason.
    CheckConfig,

    /// Print a completion script for a shell
    Completions {
        /// Shell to print it for
        shell: clap_complete::Shell,
    },

    /// Wake this node's supervise; for Pacemaker alerts
    #[command(hide = true)]
    Poke,

    /// Perform one action of the OCF resource agent; called by Pacemaker
    #[command(hide = true)]
    ResourceAgent {
        /// OCF action, such as start, stop, monitor, promote, demote
        action: String,
    },
}

#[derive(Debug, Args)]
pub struct Failover {
    /// Node to move the primary to; it must be a synchronous standby [default: the one there is]
    #[arg(long, value_name = "NODE")]
    pub target: Option<String>,

    /// Run every check and print the plan; touch nothing. Ends as the failover would that began now:
    /// 0, 3, 4 or 5
    #[arg(long)]
    pub dry_run: bool,

    /// Go on although this check refuses; may be given several times. Logged, and kept in the history
    ///
    /// These can be overridden: agent-expected, archive, client-limits, constraints, delay,
    /// disk-space, health, lag, logical-replication, logical-slots, open-transactions,
    /// session-pools, walsenders. Never one whose override could lose a commit or leave clients behind.
    #[arg(long = "override", value_name = "CHECK")]
    pub overrides: Vec<String>,

    /// Try this often while only open transactions stand in the way; each attempt is undone in full,
    /// and clients work, before the next
    #[arg(long, value_name = "COUNT", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=100))]
    pub attempts: u32,

    /// Terminate the transactions that hold up the pause once it has lasted this long: their clients
    /// get an error. Each is named in log, report and history. Must be less than the pause timeout
    #[arg(long, value_name = "SPAN")]
    pub terminate_blockers_after: Option<Span>,

    /// How to print the outcome
    #[arg(long, value_enum, default_value_t = Output::Text)]
    pub output: Output,

    /// Bounds the checks of all agents together [default: from the configuration]
    #[arg(long, value_name = "SPAN")]
    pub health_check_timeout: Option<Span>,

    /// How long to wait for a lock that somebody else holds; 0s: not at all [default: from the
    /// configuration]
    #[arg(long, value_name = "SPAN")]
    pub lock_timeout: Option<Span>,

    /// Bounds the wait for open transactions to end; queries that come later wait meanwhile
    /// [default: from the configuration]
    #[arg(long, value_name = "SPAN")]
    pub pause_timeout: Option<Span>,

    /// Traffic resumes by itself this long after the pause began, whatever happens [default: from the
    /// configuration]
    #[arg(long, value_name = "SPAN")]
    pub pause_expiry: Option<Span>,

    /// Bounds each attempt to resume an agent [default: from the configuration]
    #[arg(long, value_name = "SPAN")]
    pub resume_timeout: Option<Span>,

    /// Bounds the move of the promoted role [default: from the configuration]
    #[arg(long, value_name = "SPAN")]
    pub pacemaker_timeout: Option<Span>,
}

#[derive(Debug, Args)]
pub struct Status {
    /// Show it anew whenever something changes, until Ctrl-C
    #[arg(long)]
    pub watch: bool,

    /// Answer one question by the exit code, for scripts and monitoring: 0 yes, 4 no, 3 unknown
    #[arg(long, value_enum, value_name = "WHAT", conflicts_with = "watch")]
    pub check: Option<Check>,

    /// Node that `--check primary` and `--check standby` are about [default: this one]
    #[arg(long, value_name = "NODE", requires = "check")]
    pub node: Option<String>,

    /// How to print it
    #[arg(long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Check {
    /// The node is the published primary, and its Postgres takes writes
    Primary,
    /// The node is a standby that streams from the primary
    Standby,
    /// There is a primary, seen a moment ago, and a synchronous standby; each node has its agents, every
    /// agent is healthy, and nothing failed
    Cluster,
}

#[derive(Debug, Args)]
pub struct WithLock {
    /// How long to wait for a lock that somebody else holds; 0s: not at all [default: from the
    /// configuration]
    #[arg(long, value_name = "SPAN")]
    pub lock_timeout: Option<Span>,

    /// How long the command may take to end after SIGTERM
    #[arg(long, value_name = "SPAN", default_value = "10s")]
    pub kill_after: Span,

    /// Command to run, after `--`
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

#[derive(Debug, Args)]
pub struct History {
    /// How many to show
    #[arg(long, value_name = "COUNT", default_value_t = 20)]
    pub last: usize,

    /// How to print them; as JSON each has everything that is on record
    #[arg(long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

/// For people or for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Text,
    Json,
}
