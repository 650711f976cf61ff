//! The poke: an empty datagram that makes supervise look at the world at once.

use std::{fs, io, os::unix::fs::PermissionsExt, os::unix::net, path::Path};

/// Where supervise listens for pokes.
pub const SOCKET: &str = "/run/pgcm/supervise.sock";

/// Wakes the supervise that listens at `path`.
///
/// Never blocks: a socket whose queue is full already holds a wake-up.
pub fn poke(path: &Path) -> io::Result<()> {
    let socket = net::UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    match socket.send_to(&[], path) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
        sent => sent.map(|_| ()),
    }
}

/// Listens for pokes at `path`, from any user of this machine.
///
/// What a poke says is ignored: it can only cause one more look.
pub fn listen(path: &Path) -> io::Result<tokio::net::UnixDatagram> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = tokio::net::UnixDatagram::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o666))?;
    Ok(socket)
}
