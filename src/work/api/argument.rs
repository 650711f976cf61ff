//! What callers send, judged before anything is touched: field, what was given, what was expected.

use std::{fmt::Display, net::IpAddr, time::Duration};

use tonic::Status;

use super::CEILING;
use crate::{
    edge::peer::pb,
    model::{cluster::ClusterView, console::Backend, pause::Claim},
};

fn invalid(field: &str, given: impl Display, expected: impl Display) -> Status {
    Status::invalid_argument(format!("{field} is {given}; expected {expected}"))
}

/// The attempt on whose behalf a change is asked for.
pub(super) fn claim(attempt: Option<&pb::Attempt>) -> Result<Claim, Status> {
    let attempt = attempt
        .ok_or_else(|| invalid("attempt", "missing", "the attempt that asks, with its id"))?;
    if attempt.id.is_empty() || attempt.id.len() > 200 {
        let given = format!("{} characters long", attempt.id.len());
        return Err(invalid("attempt.id", given, "1 to 200 characters"));
    }
    if attempt.fencing_token <= 0 {
        let expected = "the create revision of the lock key, more than 0";
        return Err(invalid("attempt.fencing_token", attempt.fencing_token, expected));
    }
    Ok(Claim { attempt: attempt.id.clone(), token: attempt.fencing_token })
}

/// A length of time between 1 ms and the ceiling.
pub(super) fn span(field: &str, millis: u64) -> Result<Duration, Status> {
    let span = Duration::from_millis(millis);
    if millis == 0 || span > CEILING {
        return Err(invalid(field, millis, format!("1 to {}", CEILING.as_millis())));
    }
    Ok(span)
}

/// Timeout and expiry of a pause.
pub(super) fn pause(
    timeout: (&str, u64),
    expiry: (&str, u64),
) -> Result<(Duration, Duration), Status> {
    let until = span(expiry.0, expiry.1)?;
    let wait = span(timeout.0, timeout.1)?;
    if wait >= until {
        return Err(invalid(
            timeout.0,
            timeout.1,
            format!("less than {} ({})", expiry.0, expiry.1),
        ));
    }
    Ok((wait, until))
}

pub(super) fn address(field: &str, given: &str) -> Result<IpAddr, Status> {
    given
        .parse()
        .map_err(|_| invalid(field, format!("`{given}`"), "an IP address such as 10.0.0.4"))
}

/// The node to move to; none for the synchronous standby. Must be a standby of `view`.
pub(super) fn target(
    field: &str,
    given: &str,
    view: Option<&ClusterView>,
) -> Result<Option<String>, Status> {
    if given.is_empty() {
        return Ok(None);
    }
    if let Some(view) = view {
        let known: Vec<&str> = view.standbys.iter().map(|standby| standby.name.as_str()).collect();
        if !known.contains(&given) {
            let expected = match known.as_slice() {
                [] => "a connected standby, of which there is none now".to_owned(),
                known => format!("a connected standby ({}), or nothing", known.join(", ")),
            };
            return Err(invalid(field, format!("`{given}`"), expected));
        }
    }
    Ok(Some(given.to_owned()))
}

/// More connections than a pause can ever be held up by.
const BACKENDS: usize = 10_000;

pub(super) fn backends(field: &str, given: &[pb::Backend]) -> Result<Vec<Backend>, Status> {
    if given.is_empty() || given.len() > BACKENDS {
        let count = format!("{} long", given.len());
        return Err(invalid(field, count, format!("1 to {BACKENDS} backends")));
    }
    let one = |backend: &pb::Backend| match u16::try_from(backend.port) {
        Ok(port) if backend.pid != 0 => Ok(Backend { pid: backend.pid, port }),
        _ => Err(invalid(
            field,
            format!("PID {}, port {}", backend.pid, backend.port),
            "a PID other than 0 and a port of at most 65535",
        )),
    };
    given.iter().map(one).collect()
}
