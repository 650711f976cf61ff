//! The timer of a pause: it ends what nobody else has ended, however often that takes.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use slog::{error, info, warn};

use super::{Inner, millis};
use crate::{
    error::chain,
    model::pause::{Due, Timer},
};

/// Starts the task that ends the pause of `timer` when it is due, however often it takes.
pub(super) fn arm(inner: &Arc<Inner>, timer: Timer) {
    tokio::spawn(expire(Arc::clone(inner), timer));
}

async fn expire(inner: Arc<Inner>, timer: Timer) {
    const SHORTEST: Duration = Duration::from_millis(50);
    const LONGEST: Duration = Duration::from_secs(2);
    let mut pause = SHORTEST;
    // Trouble that was logged already.
    let mut told = None;
    loop {
        let due = inner.book().due(timer, Instant::now());
        match due {
            Due::Obsolete => return,
            Due::Wait(left) => {
                tokio::time::sleep(left).await;
                continue;
            }
            Due::Now => {}
        }
        let turn = inner.turn.lock().await;
        // While this waited for its turn, the pause may have been resumed or taken over.
        if inner.book().due(timer, Instant::now()) != Due::Now {
            continue;
        }
        let attempt = inner.book().owner().map(str::to_owned);
        let current = inner.gate.lock().current_failover();
        let ceiling = inner.options.adopt_ceiling;
        let put_off = current.and_then(|token| inner.book().defer(token, Instant::now() + ceiling));
        if let Some(timer) = put_off {
            info!(inner.log, "a failover has begun since this pause was found, ending it later";
                "event" => "pause.expire.defer", "attempt" => attempt.unwrap_or_default(),
                "expiry_ms" => millis(ceiling));
            arm(&inner, timer);
            return;
        }
        match inner.flow().await {
            Ok(()) => {
                inner.status.send_modify(|status| status.expiries += 1);
                warn!(inner.log, "a pause was ended by its expiry"; "event" => "pause.expire",
                    "attempt" => attempt.unwrap_or_else(|| "none".to_owned()));
                return;
            }
            Err(failure) => {
                let trouble = chain(&failure.error).to_string();
                if told.as_ref() != Some(&trouble) {
                    error!(inner.log, "cannot end a pause that nobody holds, trying until it ends";
                        "event" => "pause.expire.fail", "socket" => %failure.socket.display(),
                        "error" => &trouble);
                    told = Some(trouble);
                }
            }
        }
        drop(turn);
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST);
    }
}
