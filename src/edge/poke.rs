//! The poke: a datagram that makes supervise look at the world before its next poll.

use std::{fs, io, os::unix::fs::PermissionsExt, os::unix::net, path::Path};

/// Where supervise listens for pokes.
pub const SOCKET: &str = "/run/pgcm/supervise.sock";

/// So many pokes are taken with the first.
const AT_ONCE: usize = 64;

/// How soon supervise shall look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// Within a second, and at once if it finds its Postgres to be a primary that is not published.
    Soon,
    /// At once: clients wait.
    Now,
}

/// Wakes the supervise that listens at `path`.
///
/// Never blocks: a socket whose queue is full already holds a wake-up.
pub fn poke(path: &Path, urgency: Urgency) -> io::Result<()> {
    let socket = net::UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    let said: &[u8] = match urgency {
        Urgency::Soon => b"",
        Urgency::Now => b"now",
    };
    match socket.send_to(said, path) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
        sent => sent.map(|_| ()),
    }
}

/// Listens for pokes at `path`, from any user of this machine.
///
/// A poke can only cause one more look: it carries no facts.
pub fn listen(path: &Path) -> io::Result<tokio::net::UnixDatagram> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = tokio::net::UnixDatagram::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o666))?;
    Ok(socket)
}

/// Waits for a poke and takes what has come with it; tells the most urgent.
///
/// # Errors
/// Those of the socket.
pub async fn poked(socket: &tokio::net::UnixDatagram) -> io::Result<Urgency> {
    let mut said = [0_u8; 16];
    let mut is_urgent = socket.recv(&mut said).await? > 0;
    // Whoever floods the socket does not hold up the look.
    for _ in 0..AT_ONCE {
        let Ok(length) = socket.try_recv(&mut said) else { break };
        is_urgent |= length > 0;
    }
    Ok(if is_urgent { Urgency::Now } else { Urgency::Soon })
}
