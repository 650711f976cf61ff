//! How many sockets listen on a port of this machine, as the kernel tells everybody.

use std::{collections::BTreeMap, io, time::Duration};

use tokio::time::timeout;

/// One table for each family of addresses; a kernel without IPv6 has only the first.
const TABLES: [&str; 2] = ["/proc/net/tcp", "/proc/net/tcp6"];
/// The kernel's word for a socket that listens.
const LISTEN: &str = "0A";

/// How many sockets listen on the TCP `port`, at the address of which there are most. More than one
/// at the same address are processes that share the port (`SO_REUSEPORT`).
///
/// # Errors
/// When the kernel's table cannot be read within `limit`.
pub async fn sharing(port: u16, limit: Duration) -> io::Result<usize> {
    let mut most = 0;
    for table in TABLES {
        match timeout(limit, tokio::fs::read_to_string(table)).await {
            Ok(Ok(text)) => most = most.max(count(&text, port)),
            Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => {}
            Ok(Err(error)) => return Err(error),
            Err(_) => return Err(io::ErrorKind::TimedOut.into()),
        }
    }
    Ok(most)
}

/// The same in the text of one table.
fn count(table: &str, port: u16) -> usize {
    let mut by_address: BTreeMap<&str, usize> = BTreeMap::new();
    for line in table.lines().skip(1) {
        let mut columns = line.split_whitespace().skip(1);
        let (local, state) = (columns.next(), columns.nth(1));
        let Some((address, of)) = local.and_then(|local| local.rsplit_once(':')) else { continue };
        if state == Some(LISTEN) && u16::from_str_radix(of, 16) == Ok(port) {
            *by_address.entry(address).or_default() += 1;
        }
    }
    by_address.into_values().max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    const TABLE: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:1920 00000000:0000 0A 00000000:00000000 00:00000000 00000000   106        0 11 1
   1: 00000000:1920 00000000:0000 0A 00000000:00000000 00:00000000 00000000   106        0 12 1
   2: 0100007F:1920 00000000:0000 0A 00000000:00000000 00:00000000 00000000   106        0 13 1
   3: 0100007F:1920 0100007F:D431 01 00000000:00000000 00:00000000 00000000   106        0 14 1
   4: 0100007F:1538 00000000:0000 0A 00000000:00000000 00:00000000 00000000   106        0 15 1
";

    #[test]
    fn sockets_that_listen_at_one_address_are_counted_and_connections_are_not() {
        assert_eq!(count(TABLE, 6432), 2);
        assert_eq!(count(TABLE, 5432), 1);
        assert_eq!(count(TABLE, 6433), 0);
    }

    #[tokio::test]
    async fn a_socket_of_this_process_is_seen() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let seen = sharing(port, Duration::from_secs(5)).await.expect("the kernel tells");
        assert_eq!(seen, 1);
    }
}
