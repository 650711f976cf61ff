//! `pgcm status --watch`

use std::{convert::Infallible, io, sync::Arc, time::Duration};

use slog::Logger;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, sleep_until},
};

use super::{
    complain,
    status::{Answers, ask_all, assemble, read},
    unsaid,
};
use crate::{
    cli::Output,
    config::Config,
    edge::{clock, etcd::Etcd, streams},
    error::chain,
    exit::Exit,
    work::shutdown::signalled,
};

/// A picture is never older than this.
const REDRAW: Duration = Duration::from_secs(1);
/// Agents and members of etcd are asked this often: an agent's answer costs them calls of Pacemaker's tools.
const ASK: Duration = Duration::from_secs(3);
/// Two changes closer together than this make one picture.
const SETTLE: Duration = Duration::from_millis(50);

/// Shows the status anew whenever something changes, until Ctrl-C or until nobody reads it any more.
pub(super) async fn run(etcd: Arc<Etcd>, config: &Config, output: Output, log: Logger) -> Exit {
    let wake = Notify::new();
    let (sender, answers) = watch::channel(Answers::default());
    tokio::select! {
        signal = signalled() => match signal {
            Ok(_) => Exit::Done,
            Err(error) => complain(&error, Exit::NeedsHands),
        },
        never = etcd.wake_on_change("/", &wake, &log) => match never {},
        never = ask(&etcd, &sender, &wake) => match never {},
        error = draw(&etcd, config, output, answers, &wake) => unsaid(&error, Exit::Done),
    }
}

async fn ask(etcd: &Arc<Etcd>, answers: &watch::Sender<Answers>, wake: &Notify) -> Infallible {
    loop {
        if let Ok(snapshot) = read(etcd).await {
            answers.send_replace(ask_all(etcd, &snapshot).await);
            wake.notify_one();
        }
        sleep(ASK).await;
    }
}

/// Ends only when a picture cannot be shown.
async fn draw(
    etcd: &Etcd,
    config: &Config,
    output: Output,
    answers: watch::Receiver<Answers>,
    wake: &Notify,
) -> io::Error {
    let mut last = String::new();
    loop {
        let due = Instant::now() + REDRAW;
        let picture = picture(etcd, config, output, &answers).await;
        let shown = match output {
            // From the top left; what an earlier picture had beyond this one is erased.
            Output::Text => {
                let now = clock::now_rfc3339();
                streams::out(format_args!("\x1b[H\x1b[2J{now}\n\n{picture}"))
            }
            Output::Json if picture != last => streams::out(format_args!("{picture}\n")),
            Output::Json => Ok(()),
        };
        if let Err(error) = shown {
            return error;
        }
        last = picture;
        tokio::select! {
            () = sleep_until(due) => {}
            () = wake.notified() => sleep(SETTLE).await,
        }
    }
}

/// etcd being away is shown, not an end: it is what somebody may be waiting for.
async fn picture(
    etcd: &Etcd,
    config: &Config,
    output: Output,
    answers: &watch::Receiver<Answers>,
) -> String {
    let status = match read(etcd).await {
        Ok(snapshot) => assemble(&snapshot, answers.borrow().clone(), config),
        Err(error) => return told(output, &chain(&error).to_string()),
    };
    match output {
        Output::Text => status.text(),
        Output::Json => serde_json::to_string(&status).unwrap_or_default(),
    }
}

fn told(output: Output, error: &str) -> String {
    match output {
        Output::Text => format!("etcd does not answer: {error}\n"),
        Output::Json => serde_json::json!({ "error": error }).to_string(),
    }
}
