//! A failover whose report cannot be printed.

use std::{fs::OpenOptions, process::Stdio, time::Duration};

use crate::{cell::LIMITS, stage::Stage};

/// Until everything runs, on a machine that other tests keep busy.
const BEGUN: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_told_is_done_all_the_same() {
    let stage = Stage::start(LIMITS).await;
    stage.becomes_whole(BEGUN).await.unwrap();
    let before = stage.director.primary();
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let failover = stage.failover().stdout(full).stderr(Stdio::piped()).spawn().unwrap();
    let output = failover.wait_with_output().await.unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    // Anything else would be tried again, and so move the primary back.
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert!(stderr.contains("cannot write to stdout"), "{stderr}");
    assert_ne!(stage.director.primary(), before);
}
