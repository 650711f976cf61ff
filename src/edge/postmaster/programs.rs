//! The server's own programs, run as its user: what starts it, and what reads and mends its data while it is
//! stopped.

use std::{path::Path, time::Duration};

use tokio::time::Instant;

use super::{Postmaster, PostmasterError};
use crate::{
    edge::command::{Output, Run},
    model::agent::{condition::Process, control_data::ControlData, lsn::Lsn},
};

/// How long it may take the postmaster to show its first sign of life.
const SHOWS_UP: Duration = Duration::from_secs(5);

impl<R: Run> Postmaster<R> {
    /// Reads the control file.
    pub async fn control_data(&self, limit: Duration) -> Result<ControlData, PostmasterError> {
        let output = self.tool("pg_controldata", &["-D", &self.data()], limit).await?;
        // A warning only: the program prints what it read, and ends well.
        let damaged = |text: &str| text.contains("CRC checksum does not match");
        if damaged(&output.stderr) || damaged(&output.stdout) {
            return Err(PostmasterError::ControlDamaged);
        }
        ControlData::parse(&output.stdout).map_err(PostmasterError::ControlData)
    }

    /// Begins to start the server and returns as soon as its postmaster lives.
    ///
    /// # Errors
    /// [`PostmasterError::NotStarted`] when no postmaster shows up, or it ends at once.
    pub async fn start(&self, limit: Duration) -> Result<(), PostmasterError> {
        let mut options = format!("-p {} -k '{}'", self.port, self.socketdir.display());
        if self.config_file != self.pgdata.join("postgresql.conf") {
            options.push_str(&format!(" -c config_file='{}'", self.config_file.display()));
        }
        options.push(' ');
        options.push_str(&self.start_options);
        // As pg_ctl starts it, but for the `postgres -V` that it asks first: clients wait for a primary that
        // comes back as a standby. What the shell says of a missing program would go into the log.
        let script = format!(
            r#"for program in setsid "$0"; do
                 command -v "$program" > /dev/null || {{ echo "$program is missing" >&2; exit 127; }}
               done
               umask 077; export PGDATA="$1"
               exec setsid --fork "$0" -D "$1" {options} < /dev/null >> "$2" 2>&1"#
        );
        let (postgres, log) = (self.program("postgres"), self.logfile.display().to_string());
        let args = ["-c", &script, &postgres, &self.data(), &log];
        Self::succeeded("sh", self.run_as_user("sh", &args, limit).await?)?;
        let deadline = Instant::now() + limit.min(SHOWS_UP);
        while !matches!(self.process()?.0, Process::Running(_)) {
            if Instant::now() >= deadline {
                let log = self.logfile.clone();
                return Err(PostmasterError::NotStarted { log });
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }

    /// Lets the server recover from a crash, and stop, without serving anybody.
    pub async fn recover_alone(&self, limit: Duration) -> Result<(), PostmasterError> {
        self.remove("standby.signal")?;
        let config = format!("config_file={}", self.config_file.display());
        let args = ["--single", "-F", "-D", &self.data(), "-c", &config, "template1"];
        self.tool("postgres", &args, limit).await.map(|_| ())
    }

    /// What `pg_rewind` would do, as it says itself. Changes nothing.
    pub async fn plan_rewind(
        &self,
        source: &str,
        limit: Duration,
    ) -> Result<String, PostmasterError> {
        let server = format!("{source} dbname=postgres");
        let data = self.data();
        let args = ["--dry-run", "--no-ensure-shutdown", "-D", &data, "--source-server", &server];
        let output = self.tool("pg_rewind", &args, limit).await?;
        Ok(format!("{}{}", output.stdout, output.stderr))
    }

    /// Syncs the whole data directory to disk.
    pub async fn sync_all(&self, limit: Duration) -> Result<(), PostmasterError> {
        self.tool("initdb", &["--sync-only", "-D", &self.data()], limit).await.map(|_| ())
    }

    /// Rewinds this stopped data directory to where it left the history of the server at `source`.
    pub async fn rewind(&self, source: &str, limit: Duration) -> Result<(), PostmasterError> {
        let server = format!("{source} dbname=postgres");
        let args = ["--no-ensure-shutdown", "-D", &self.data(), "--source-server", server.as_str()];
        self.tool("pg_rewind", &args, limit).await.map(|_| ())
    }

    /// Where the last record of the local WAL on `timeline` begins, reading from `start`.
    ///
    /// `None` when the end cannot be found.
    pub async fn last_record(
        &self,
        timeline: u32,
        start: Lsn,
        limit: Duration,
    ) -> Result<Option<Lsn>, PostmasterError> {
        let wal = self.pgdata.join("pg_wal").display().to_string();
        let (timeline, start) = (timeline.to_string(), start.to_string());
        // Statistics instead of records: the WAL since the last checkpoint can be long.
        let args = ["-z", "-p", wal.as_str(), "-t", timeline.as_str(), "-s", start.as_str()];
        let output = self.call("pg_waldump", &args, limit).await?;
        Ok(last_record(&output.stderr))
    }

    /// The value that the server would have for `setting` if it started now.
    ///
    /// # Errors
    /// [`PostmasterError::Exit`] with the server's words when its configuration cannot be read.
    pub async fn setting(&self, setting: &str, limit: Duration) -> Result<String, PostmasterError> {
        // The options are text for a shell, as in `start`.
        let script = format!(r#"exec "$0" "$@" {}"#, self.start_options);
        let config = format!("config_file={}", self.config_file.display());
        let (postgres, data) = (self.program("postgres"), self.data());
        let args = ["-c", &script, &postgres, "-D", &data, "-C", setting, "-c", &config];
        let output = self.run_as_user("sh", &args, limit).await?;
        Ok(Self::succeeded("postgres", output)?.stdout.trim().to_owned())
    }

    /// What `postgres --version` prints.
    pub async fn version(&self, limit: Duration) -> Result<String, PostmasterError> {
        Ok(self.tool("postgres", &["--version"], limit).await?.stdout)
    }

    /// Runs a program of the server as its user; a status other than 0 is an error.
    async fn tool(
        &self,
        program: &'static str,
        args: &[&str],
        limit: Duration,
    ) -> Result<Output, PostmasterError> {
        let output = self.call(program, args, limit).await?;
        Self::succeeded(program, output)
    }

    fn succeeded(program: &'static str, output: Output) -> Result<Output, PostmasterError> {
        if !output.success() {
            let reason = output.last_words().to_owned();
            return Err(PostmasterError::Exit { program, status: output.status, reason });
        }
        Ok(output)
    }

    async fn call(
        &self,
        program: &'static str,
        args: &[&str],
        limit: Duration,
    ) -> Result<Output, PostmasterError> {
        self.run_as_user(&self.program(program), args, limit).await
    }

    /// Whether the server's user has each of these `rights`, letters of test(1), on `path`, also as a member of
    /// one of its groups. A process of its own looks: a directory service may be slow to tell the groups.
    pub async fn user_may(
        &self,
        rights: &[&str],
        path: &Path,
        limit: Duration,
    ) -> Result<bool, PostmasterError> {
        let path = path.display().to_string();
        for right in rights {
            if self.run_as_user("test", &[right, &path], limit).await?.status != 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn run_as_user(
        &self,
        program: &str,
        args: &[&str],
        limit: Duration,
    ) -> Result<Output, PostmasterError> {
        self.user.run(&self.run, program, args, limit).await.map_err(PostmasterError::Command)
    }

    /// A program of the server, with its path.
    pub fn program(&self, name: &str) -> String {
        self.bindir.join(name).display().to_string()
    }
}

/// Reads where pg_waldump stopped: `error in WAL record at X: invalid ...`, X being the last good
/// record. Nothing else that ends a dump tells where the WAL ends.
fn last_record(stderr: &str) -> Option<Lsn> {
    let (_, after) = stderr.rsplit_once("error in WAL record at ")?;
    after.split(':').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_wal_is_where_the_dump_stopped() {
        let old = "pg_waldump: fatal: error in WAL record at 0/3000110: invalid record length at \
                   0/3000148: wanted 24, got 0\n";
        assert_eq!(last_record(old), Some(Lsn(0x300_0110)));
        let missing = "pg_waldump: error: could not find file \"000000010000000000000004\"";
        assert_eq!(last_record(missing), None);
    }
}
