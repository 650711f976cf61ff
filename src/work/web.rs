//! Metrics, health and roles over HTTP, for monitoring and load balancers.

use std::{net::SocketAddr, sync::Arc};

use axum::{Router, extract::State, http::StatusCode, routing::get};
use slog::{Logger, info};
use tokio::net::TcpListener;

use super::shutdown::Stop;

/// What this node is, as far as is known now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Primary,
    Standby,
    /// Neither, or not known.
    None,
}

/// What the endpoints answer with, asked anew for each request.
pub trait Page: Send + Sync + 'static {
    /// Metrics in Prometheus' text format.
    fn metrics(&self) -> String;
    /// Nothing, or what somebody has to look at.
    fn health(&self) -> Result<(), String>;
    fn role(&self) -> Role;
}

/// Serves `/metrics`, `/health`, `/primary` and `/standby` until `stop`.
///
/// `/health` answers 200 when all is well now and 503 with the reason otherwise, etcd being away among
/// them. It is for monitoring: clients are served all the same, and a load balancer that must know of
/// that asks PgBouncer itself. `/primary` and `/standby` answer 200 on a node of that role and 503
/// elsewhere.
pub async fn serve(listener: TcpListener, page: Arc<dyn Page>, mut stop: Stop, log: Logger) {
    let address =
        listener.local_addr().map_or_else(|_| "?".to_owned(), |a: SocketAddr| a.to_string());
    info!(log, "serving metrics, health and roles"; "event" => "web.listen", "address" => address);
    let router = Router::new()
        .route("/metrics", get(|State(page): State<Arc<dyn Page>>| async move { page.metrics() }))
        .route("/health", get(health))
        .route("/primary", get(|state| role(state, Role::Primary)))
        .route("/standby", get(|state| role(state, Role::Standby)))
        .with_state(page);
    let served = axum::serve(listener, router);
    tokio::select! {
        // axum retries failed accepts by itself and so never ends on its own.
        _ = served.into_future() => {}
        () = stop.wait() => {}
    }
}

async fn health(State(page): State<Arc<dyn Page>>) -> (StatusCode, String) {
    match page.health() {
        Ok(()) => (StatusCode::OK, "healthy\n".to_owned()),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}

async fn role(State(page): State<Arc<dyn Page>>, wanted: Role) -> (StatusCode, &'static str) {
    let role = page.role();
    let code = if role == wanted { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let text = match role {
        Role::Primary => "primary\n",
        Role::Standby => "standby\n",
        Role::None => "none\n",
    };
    (code, text)
}
