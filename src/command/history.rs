//! `pgcm history`

use serde_json::{Value, json};

use super::{complain, parts, say, say_json};
use crate::{
    cli::{self, Output},
    config::Config,
    edge::{etcd::Snapshot, streams},
    exit::Exit,
    model::history::text,
    work::history,
};

pub(super) async fn run(config: Config, args: cli::History) -> Exit {
    let etcd = match parts::etcd(&config) {
        Ok(etcd) => etcd,
        Err(error) => return complain(&error, Exit::Usage),
    };
    let (mut snapshot, mut entries, odd) = match history::read(&etcd).await {
        Ok(read) => read,
        Err(error) => return complain(&error, Exit::Unreachable),
    };
    snapshot.entries.truncate(args.last);
    entries.truncate(args.last);
    match args.output {
        Output::Text => {
            odd.iter().for_each(|words| streams::aside(format_args!("pgcm: {words}")));
            say(text(&entries), Exit::Done)
        }
        Output::Json => say_json(&as_json(&snapshot), Exit::Done),
    }
}

/// Everything that is on record, each entry with its key; one that is no JSON as a string.
fn as_json(snapshot: &Snapshot) -> Value {
    let one = |value: &str| serde_json::from_str(value).unwrap_or_else(|_| json!(value));
    let entries = snapshot
        .entries
        .iter()
        .map(|entry| json!({ "key": entry.key, "change": one(&entry.value) }));
    Value::Array(entries.collect())
}
