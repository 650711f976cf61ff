//! The sole starter of processes: argv and a limit in, output out.

use std::{collections::HashSet, future::Future, process::Stdio, time::Duration};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::io::AsyncWriteExt;

use super::descendants;

/// How often it is looked whether everything has ended.
const LOOK: Duration = Duration::from_millis(50);

/// One process to run to its end, in the root directory: whoever it runs as may be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    pub program: String,
    pub args: Vec<String>,
    /// Added to the environment.
    pub variables: Vec<(String, String)>,
    /// The process is killed when it has not ended by then.
    pub limit: Duration,
}

impl Call {
    /// A call of `program` with `args`, killed after `limit`.
    pub fn new(program: &str, args: &[&str], limit: Duration) -> Self {
        Self {
            program: program.to_owned(),
            args: args.iter().map(|&arg| arg.to_owned()).collect(),
            variables: Vec::new(),
            limit,
        }
    }
}

/// What a process that ended left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// The exit status, or 128 + the signal that ended the process.
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    pub fn success(&self) -> bool {
        self.status == 0
    }

    /// The last line that the process printed on stderr, or else on stdout.
    pub fn last_words(&self) -> &str {
        let last = |text: &'_ str| text.trim().lines().last().map(str::len);
        let (text, len) = match last(&self.stderr) {
            Some(len) if len > 0 => (self.stderr.trim(), len),
            _ => (self.stdout.trim(), last(&self.stdout).unwrap_or(0)),
        };
        &text[text.len() - len..]
    }
}

#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    #[error("`{program}` is not installed, or not in PATH")]
    Missing { program: String },
    #[error("cannot start `{program}`")]
    Start {
        program: String,
        #[source]
        source: std::io::Error,
    },
    #[error("`{program}` cannot be run as {user}: {reason}")]
    NotRun { program: String, user: String, reason: String },
    #[error("`{program}` did not end within {limit:?} and was killed")]
    TimedOut { program: String, limit: Duration },
    #[error("lost `{program}` while it ran")]
    Lost {
        program: String,
        #[source]
        source: std::io::Error,
    },
}

/// Runs processes. The seam at which tests replay recorded output.
pub trait Run: Send + Sync {
    /// Runs `call` to its end.
    ///
    /// A status other than 0 is not an error here: the caller judges it.
    ///
    /// # Errors
    /// [`CommandError`] when the process cannot be started or outlives its limit.
    fn run(&self, call: Call) -> impl Future<Output = Result<Output, CommandError>> + Send;

    /// Starts `call` at once and writes to its standard input what `input` becomes: then nobody waits
    /// for the process to begin. It is killed when it has not ended in the time that `input` gives it,
    /// from then on, whatever `call` says. Who only replays has no use for the input.
    ///
    /// # Errors
    /// As [`Self::run`].
    fn run_fed(
        &self,
        call: Call,
        input: impl Future<Output = (String, Duration)> + Send,
    ) -> impl Future<Output = Result<Output, CommandError>> + Send {
        async move {
            let (_, limit) = input.await;
            self.run(Call { limit, ..call }).await
        }
    }
}

/// Runs real processes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Processes;

impl Run for Processes {
    async fn run(&self, call: Call) -> Result<Output, CommandError> {
        let child = start(&call, Stdio::null())?;
        end(child, call.program, call.limit).await
    }

    async fn run_fed(
        &self,
        call: Call,
        input: impl Future<Output = (String, Duration)> + Send,
    ) -> Result<Output, CommandError> {
        let mut child = start(&call, Stdio::piped())?;
        let (input, limit) = input.await;
        if let Some(mut stdin) = child.stdin.take() {
            // Less than a pipe holds. A process that reads none of it tells why when it ends.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        end(child, call.program, limit).await
    }
}

#[expect(clippy::disallowed_methods, reason = "the one place that starts processes")]
fn start(call: &Call, stdin: Stdio) -> Result<tokio::process::Child, CommandError> {
    let mut command = tokio::process::Command::new(&call.program);
    command
        .args(&call.args)
        .envs(call.variables.iter().map(|(name, value)| (name, value)))
        .current_dir("/")
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command.spawn().map_err(|source| not_started(&call.program, source))
}

async fn end(
    child: tokio::process::Child,
    program: String,
    limit: Duration,
) -> Result<Output, CommandError> {
    match tokio::time::timeout(limit, child.wait_with_output()).await {
        Err(_) => Err(CommandError::TimedOut { program, limit }),
        Ok(Err(source)) => Err(CommandError::Lost { program, source }),
        Ok(Ok(output)) => Ok(Output {
            status: status_code(output.status),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }),
    }
}

/// A process that reads and writes where this one does, for as long as it likes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Foreground {
    pub program: String,
    pub args: Vec<String>,
    /// Added to the environment.
    pub variables: Vec<(String, String)>,
    /// Whether it leads a process group: what is sent to this process's group does not reach it then. On a
    /// terminal it may not, or it could not read from it.
    pub own_group: bool,
}

/// A [`Foreground`] process that was started. Dropping it kills it.
#[derive(Debug)]
pub struct Attached {
    child: tokio::process::Child,
    pid: Pid,
    program: String,
    /// What this process has started before, or was handed over with.
    bystanders: HashSet<Pid>,
}

impl Attached {
    /// # Errors
    /// [`CommandError::Missing`], [`CommandError::Start`].
    #[expect(clippy::disallowed_methods, reason = "the one place that starts processes")]
    pub fn start(call: Foreground) -> Result<Self, CommandError> {
        let Foreground { program, args, variables, own_group } = call;
        let mut command = tokio::process::Command::new(&program);
        command.args(&args).envs(variables).kill_on_drop(true);
        if own_group {
            command.process_group(0);
        }
        let bystanders = descendants::all();
        let child = command.spawn().map_err(|source| not_started(&program, source))?;
        let pid =
            Pid::from_raw(child.id().and_then(|id| i32::try_from(id).ok()).unwrap_or(i32::MAX));
        Ok(Self { child, pid, program, bystanders })
    }

    /// Waits for its end; returns its status, or 128 + the signal that ended it. May be dropped and
    /// called again. Bounding it is up to the caller.
    ///
    /// # Errors
    /// [`CommandError::Lost`].
    pub async fn wait(&mut self) -> Result<i32, CommandError> {
        let status = self.child.wait().await;
        status
            .map(status_code)
            .map_err(|source| CommandError::Lost { program: self.program.clone(), source })
    }

    /// Waits for the end of it and of whatever it has started, daemons excepted; returns its status.
    ///
    /// # Errors
    /// [`CommandError::Lost`].
    pub async fn wait_for_all(&mut self) -> Result<i32, CommandError> {
        let status = self.wait().await?;
        while !descendants::running(self.pid, &self.bystanders).is_empty() {
            tokio::time::sleep(LOOK).await;
        }
        Ok(status)
    }

    /// Sends `signal` to it and to whatever it has started, daemons excepted. To be called once this process is about
    /// to end.
    pub fn signal(&self, signal: Signal) {
        descendants::adopt_orphans();
        let others = descendants::running(self.pid, &self.bystanders);
        let own = self.child.id().map(|_| self.pid);
        for pid in own.into_iter().chain(others.into_iter().filter(|pid| *pid != self.pid)) {
            // The only failure that can be: it is gone by now.
            let _ = kill(pid, signal);
        }
    }
}

fn not_started(program: &str, source: std::io::Error) -> CommandError {
    let program = program.to_owned();
    match source.kind() {
        std::io::ErrorKind::NotFound => CommandError::Missing { program },
        _ => CommandError::Start { program, source },
    }
}

fn status_code(status: std::process::ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_is_there_before_its_input_and_bounded_from_then_on() {
        let dir = tempfile::tempdir().expect("a directory");
        let mark = dir.path().join("begun");
        let input = async {
            while !mark.exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            ("one\n".to_owned(), Duration::from_secs(5))
        };
        let script = format!("touch {}; cat", mark.display());
        let call = Call::new("sh", &["-c", &script], Duration::ZERO);
        let fed = tokio::time::timeout(Duration::from_secs(10), Processes.run_fed(call, input));
        let output = fed.await.expect("it begins before it is fed").expect("it ends");
        assert_eq!((output.status, output.stdout.as_str()), (0, "one\n"));

        let input = async { ("one".to_owned(), Duration::from_millis(50)) };
        let call = Call::new("sleep", &["30"], Duration::from_secs(60));
        let error = Processes.run_fed(call, input).await.expect_err("sleep must not end in time");
        assert!(matches!(error, CommandError::TimedOut { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_process_that_outlives_its_limit_is_killed() {
        let call = Call::new("sleep", &["30"], Duration::from_millis(50));
        let error = Processes.run(call).await.expect_err("sleep must not end in time");
        assert!(matches!(error, CommandError::TimedOut { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_missing_program_is_named() {
        let call = Call::new("no-such-program", &[], Duration::from_secs(1));
        let error = Processes.run(call).await.expect_err("it does not exist");
        assert_eq!(error.to_string(), "`no-such-program` is not installed, or not in PATH");
    }

    #[tokio::test]
    async fn status_and_last_words_are_kept() {
        let call =
            Call::new("sh", &["-c", "echo one; echo two >&2; exit 3"], Duration::from_secs(5));
        let output = Processes.run(call).await.expect("sh runs");
        assert_eq!((output.status, output.last_words()), (3, "two"));
    }
}
