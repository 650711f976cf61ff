//! `pgcm resource-agent`, behind the OCF entry in `resource-agents/`.

use std::process::ExitCode;

use crate::{
    edge::streams,
    telemetry::log::{Format, logger},
    work::resource_agent,
};

/// One thread is enough, and what an agent with the rights of root should have.
pub(super) fn run(action: &str) -> ExitCode {
    let env = std::env::vars_os()
        .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let log = logger(streams::stderr(), Format::Text, slog::Level::Info);
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => {
            let code = runtime.block_on(resource_agent::run(action, &env, &log));
            runtime.shutdown_background();
            ExitCode::from(code.exit_code())
        }
        Err(error) => {
            streams::aside(format_args!("ocf-exit-reason:cannot start the runtime: {error}"));
            ExitCode::from(1)
        }
    }
}
