//! The operating system user that Postgres runs as.

use std::{future::Future, io, path::PathBuf, time::Duration};

use nix::unistd::{Gid, Uid, User, getegid, geteuid, setegid, seteuid};

use super::command::{Call, CommandError, Output, Run};

/// How setpriv and a shell end that could not run what they were given.
const NOT_RUN: [i32; 2] = [126, 127];

/// A user, looked up once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    pub home: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("there is no user called {0} on this node")]
    Unknown(String),
    #[error("cannot look up the user {name}")]
    Lookup {
        name: String,
        #[source]
        source: nix::Error,
    },
}

impl Identity {
    /// Looks `name` up in the user database.
    pub fn of(name: &str) -> Result<Self, IdentityError> {
        match User::from_name(name) {
            Ok(Some(user)) => Ok(Self {
                name: name.to_owned(),
                uid: user.uid.as_raw(),
                gid: user.gid.as_raw(),
                home: user.dir,
            }),
            Ok(None) => Err(IdentityError::Unknown(name.to_owned())),
            Err(source) => Err(IdentityError::Lookup { name: name.to_owned(), source }),
        }
    }

    /// Runs `program` as this user, in all its groups: those may be what lets it read the key of the
    /// server's certificate.
    ///
    /// # Errors
    /// [`CommandError`]. A program that did not even begin has nothing to say of what it was to look at.
    pub async fn run<R: Run>(
        &self,
        run: &R,
        program: &str,
        args: &[&str],
        limit: Duration,
    ) -> Result<Output, CommandError> {
        self.begun(program, run.run(self.call(program, args, limit)).await?)
    }

    /// The same, started at once and fed with what `input` becomes: see [`Run::run_fed`].
    ///
    /// # Errors
    /// As [`Self::run`].
    pub async fn run_fed<R: Run>(
        &self,
        run: &R,
        program: &str,
        args: &[&str],
        input: impl Future<Output = (String, Duration)> + Send,
    ) -> Result<Output, CommandError> {
        let call = self.call(program, args, Duration::ZERO);
        self.begun(program, run.run_fed(call, input).await?)
    }

    fn begun(&self, program: &str, output: Output) -> Result<Output, CommandError> {
        if NOT_RUN.contains(&output.status) {
            let (program, user) = (program.to_owned(), self.name.clone());
            let reason = format!("{} (status {})", output.last_words(), output.status);
            return Err(CommandError::NotRun { program, user, reason });
        }
        Ok(output)
    }

    fn call(&self, program: &str, args: &[&str], limit: Duration) -> Call {
        let home = ("HOME".to_owned(), self.home.display().to_string());
        let mut call = if self.is_effective() {
            Call::new(program, args, limit)
        } else {
            let (uid, gid) = (format!("--reuid={}", self.name), format!("--regid={}", self.gid));
            let drop = [uid.as_str(), gid.as_str(), "--init-groups", program];
            Call::new("setpriv", &[&drop, args].concat(), limit)
        };
        call.variables = vec![home, ("LC_ALL".to_owned(), "C".to_owned())];
        call
    }

    fn is_effective(&self) -> bool {
        geteuid().as_raw() == self.uid
    }

    /// Does `work` with this user's rights, for peer authentication and for looking into `/proc`
    /// where root may not. Of the user's groups only the main one counts: to look up the others can take
    /// as long as a directory service likes.
    ///
    /// The whole process changes its effective user meanwhile: `work` must not start processes.
    pub fn assume<T>(&self, work: impl FnOnce() -> T) -> io::Result<T> {
        if self.is_effective() {
            return Ok(work());
        }
        let (uid, gid) = (geteuid(), getegid());
        setegid(Gid::from_raw(self.gid))?;
        if let Err(error) = seteuid(Uid::from_raw(self.uid)) {
            setegid(gid)?;
            return Err(error.into());
        }
        let done = work();
        seteuid(uid)?;
        setegid(gid)?;
        Ok(done)
    }

    /// Whoever runs the tests.
    #[cfg(test)]
    pub(super) fn own() -> Self {
        let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
        Self { name: "me".to_owned(), uid, gid, home: PathBuf::new() }
    }
}
