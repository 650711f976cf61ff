//! The operating system user that Postgres runs as.

use std::{io, path::PathBuf};

use nix::unistd::{Gid, Uid, User, getegid, geteuid, setegid, seteuid};

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

    /// How a process is to be started as this user; `None` when we are that user already.
    pub fn run_as(&self) -> Option<(u32, u32)> {
        (geteuid().as_raw() != self.uid).then_some((self.uid, self.gid))
    }

    /// Does `work` with this user's rights, for peer authentication and for looking into `/proc`
    /// where root may not.
    ///
    /// The whole process changes its effective user meanwhile: `work` must not start processes.
    pub fn assume<T>(&self, work: impl FnOnce() -> T) -> io::Result<T> {
        if self.run_as().is_none() {
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
}
