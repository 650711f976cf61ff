//! The API over real gRPC, on a free port.

use std::{net::SocketAddr, time::Duration};

use tokio::sync::watch;
use tonic::{Code, Request, Status, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use super::*;
use crate::{
    edge::peer::{NO_PART, Peer, PeerError, PeerOptions, REASON, STALE_TOKEN},
    model::{
        cluster::{Primary, Standby},
        fence::LockSeen,
    },
    telemetry::log::discard,
};

type Client = pb::agent_client::AgentClient<Channel>;

const LIMIT: Duration = Duration::from_secs(5);

struct Server {
    address: SocketAddr,
    gate: SharedGate,
    _switch: watch::Sender<bool>,
}

struct NothingFound;

#[tonic::async_trait]
impl Checks for NothingFound {
    async fn findings(&self, _: &Terms) -> Vec<Finding> {
        Vec::new()
    }

    async fn failover_slots(&self) -> Vec<String> {
        Vec::new()
    }

    async fn health(&self) -> Health {
        Health::default()
    }
}

/// Serves an agent that has no parts, but knows a view with the standby pg02.
async fn start_server(token: Option<&str>) -> Server {
    let any_port = "0.0.0.0:0".parse().expect("an address");
    let log = discard();
    let listener = bind(any_port, token.is_some(), &log).await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let gate = SharedGate::default();
    let options = ApiOptions {
        host: "pg01".to_owned(),
        kind: AgentKind::Proxy,
        token: token.map(str::to_owned),
    };
    let parts = Parts {
        pauser: None,
        follower: None,
        mover: None,
        checks: Arc::new(NothingFound),
        view: Some(Arc::new(|| Some(view()))),
        gate: gate.clone(),
    };
    let (switch, stop) = Stop::new();
    tokio::spawn(run(listener, Api::new(options, parts, log.clone()), stop, log));
    Server { address: loopback(address), gate, _switch: switch }
}

fn view() -> ClusterView {
    ClusterView {
        primary: Primary {
            name: "pg01".to_owned(),
            address: "10.0.0.1".parse().expect("an address"),
            timeline: 1,
        },
        standbys: vec![Standby {
            name: "pg02".to_owned(),
            address: None,
            state: "streaming".to_owned(),
            sync_state: "sync".to_owned(),
            replay_lag_bytes: 0,
        }],
        offline: Vec::new(),
        quorum: true,
        system_identifier: "7".to_owned(),
        observed_at: String::new(),
    }
}

async fn connect(server: &Server) -> Client {
    let url = format!("http://{}", server.address);
    Client::connect(url).await.expect("the server answers")
}

fn attempt(fencing_token: i64) -> Option<pb::Attempt> {
    Some(pb::Attempt { id: "a-1".to_owned(), fencing_token })
}

fn showing<T>(bearer: Option<&str>, message: T) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(bearer) = bearer {
        let value = bearer.parse().expect("ASCII");
        request.metadata_mut().insert("authorization", value);
    }
    request
}

fn reason(status: &Status) -> &str {
    status.metadata().get(REASON).and_then(|reason| reason.to_str().ok()).unwrap_or_default()
}

#[tokio::test]
async fn changing_calls_need_the_very_token() {
    let server = start_server(Some("secret")).await;
    let mut client = connect(&server).await;
    for bearer in [None, Some("secret"), Some("Bearer "), Some("Bearer secre"), Some("Basic x")] {
        let resume = showing(bearer, pb::ResumeRequest { attempt: attempt(5) });
        let migrate = showing(bearer, pb::MigrateRequest::default());
        for status in [
            client.resume(resume).await.map(|_| ()),
            client.migrate(migrate).await.map(|_| ()),
            client.pause(showing(bearer, pb::PauseRequest::default())).await.map(|_| ()),
            client.follow(showing(bearer, pb::FollowRequest::default())).await.map(|_| ()),
            client.prepare(showing(bearer, pb::PrepareRequest::default())).await.map(|_| ()),
            client.settle(showing(bearer, pb::SettleRequest::default())).await.map(|_| ()),
            client.unmigrate(showing(bearer, pb::UnmigrateRequest::default())).await.map(|_| ()),
        ] {
            let status = status.expect_err("nothing may be let in");
            assert_eq!(status.code(), Code::Unauthenticated, "{bearer:?}: {status}");
        }
    }
    let let_in = showing(Some("Bearer secret"), pb::ResumeRequest { attempt: attempt(5) });
    let status = client.resume(let_in).await.expect_err("it has no PgBouncer");
    assert_eq!((status.code(), reason(&status)), (Code::FailedPrecondition, NO_PART), "{status}");
}

#[tokio::test]
async fn questions_need_no_token() {
    let server = start_server(Some("secret")).await;
    let peer = Peer::new("pg01/proxy", &server.address.to_string(), &no_token()).expect("a peer");
    let health = peer.health(LIMIT).await.expect("health");
    assert_eq!((health.host.as_str(), health.kind.as_str()), ("pg01", "proxy"));
    assert_eq!((health.pauses, health.version.as_str()), (false, env!("CARGO_PKG_VERSION")));
    let terms =
        pb::CheckRequest { pause_timeout_ms: 1, pause_expiry_ms: 2, target: "pg02".to_owned() };
    peer.check(terms, LIMIT).await.expect("checks");
}

fn no_token() -> PeerOptions {
    PeerOptions { connect_limit: LIMIT, token: None }
}

#[tokio::test]
async fn without_a_token_the_api_is_on_loopback_only() {
    let log = discard();
    for any in ["0.0.0.0:0", "[::]:0"] {
        let Ok(listener) = bind(any.parse().expect("an address"), false, &log).await else {
            // A machine without IPv6.
            continue;
        };
        assert!(listener.local_addr().expect("bound").ip().is_loopback());
    }
}

#[tokio::test]
async fn bad_arguments_are_named_with_what_was_expected() {
    let server = start_server(None).await;
    let mut client = connect(&server).await;
    let pause =
        |attempt, timeout_ms, expiry_ms| pb::PauseRequest { attempt, timeout_ms, expiry_ms };
    let nameless = Some(pb::Attempt { id: String::new(), fencing_token: 5 });
    for (request, told) in [
        (pause(None, 1, 2), "attempt is missing"),
        (pause(nameless, 1, 2), "attempt.id is 0 characters"),
        (pause(attempt(0), 1, 2), "attempt.fencing_token is 0; expected"),
        (pause(attempt(-3), 1, 2), "attempt.fencing_token is -3"),
        (pause(attempt(5), 1, 0), "expiry_ms is 0; expected 1 to 600000"),
        (pause(attempt(5), 1, 600_001), "expiry_ms is 600001; expected 1 to 600000"),
        (pause(attempt(5), 0, 2), "timeout_ms is 0; expected 1 to"),
        (pause(attempt(5), 2, 2), "timeout_ms is 2; expected less than expiry_ms (2)"),
        (pause(attempt(5), u64::MAX, u64::MAX), "expiry_ms is 18446744073709551615"),
    ] {
        told_of(client.pause(request).await.map(|_| ()), told);
    }
    let follow = |address: &str, timeout_ms| pb::FollowRequest {
        attempt: attempt(5),
        address: address.to_owned(),
        timeout_ms,
    };
    for (request, told) in [
        (follow("", 1), "address is ``; expected an IP address"),
        (follow("pg01", 1), "address is `pg01`; expected an IP address"),
        (follow("10.0.0.1", 0), "timeout_ms is 0"),
    ] {
        told_of(client.follow(request).await.map(|_| ()), told);
    }
    let migrate = |target: &str, timeout_ms, constraint_lifetime_ms| pb::MigrateRequest {
        attempt: attempt(5),
        target: target.to_owned(),
        timeout_ms,
        constraint_lifetime_ms,
    };
    for (request, told) in [
        (migrate("pg09", 1, 1), "target is `pg09`; expected a connected standby (pg02)"),
        (migrate("pg01", 1, 1), "target is `pg01`; expected a connected standby (pg02)"),
        (migrate("", 0, 1), "timeout_ms is 0"),
        (migrate("", 1, 0), "constraint_lifetime_ms is 0"),
    ] {
        told_of(client.migrate(request).await.map(|_| ()), told);
    }
    let prepare = pb::PrepareRequest { attempt: attempt(5), timeout_ms: 0 };
    told_of(client.prepare(prepare).await.map(|_| ()), "timeout_ms is 0");
    let settle = pb::SettleRequest { attempt: attempt(5), timeout_ms: 0 };
    told_of(client.settle(settle).await.map(|_| ()), "timeout_ms is 0");
    let terms = pb::CheckRequest { pause_timeout_ms: 2, pause_expiry_ms: 1, target: String::new() };
    told_of(client.check(terms).await.map(|_| ()), "pause_timeout_ms is 2; expected less than");
    let backend = |pid, port| pb::Backend { pid, port };
    for (backends, told) in [
        (vec![], "backends is 0 long; expected 1 to 10000 backends"),
        (vec![backend(0, 5)], "backends is PID 0, port 5; expected a PID other than 0"),
        (vec![backend(7, 65_536)], "backends is PID 7, port 65536"),
    ] {
        let terminate = pb::TerminateRequest { attempt: attempt(5), backends, min_age_ms: 1 };
        told_of(client.terminate(terminate).await.map(|_| ()), told);
    }
    let backends = vec![backend(7, 5)];
    let terminate = pb::TerminateRequest { attempt: None, backends, min_age_ms: 1 };
    told_of(client.terminate(terminate).await.map(|_| ()), "attempt is missing");
    let nowhere = pb::UnmigrateRequest { attempt: None };
    told_of(client.unmigrate(nowhere).await.map(|_| ()), "attempt is missing");
}

fn told_of(result: Result<(), Status>, told: &str) {
    let status = result.expect_err(told);
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    assert!(status.message().contains(told), "`{}` does not say `{told}`", status.message());
}

#[tokio::test]
async fn a_stale_fencing_token_is_refused() {
    let server = start_server(None).await;
    let mut client = connect(&server).await;
    let pause = |token| pb::PauseRequest { attempt: attempt(token), timeout_ms: 1, expiry_ms: 2 };
    // An agent without the part learns tokens all the same.
    let status = client.pause(pause(7)).await.expect_err("no part");
    assert_eq!(reason(&status), NO_PART);
    let status = client.pause(pause(6)).await.expect_err("stale");
    assert_eq!((status.code(), reason(&status)), (Code::FailedPrecondition, STALE_TOKEN));
    assert!(status.message().contains("fencing_token is 6, expected at least 7"), "{status}");
    let backends = vec![pb::Backend { pid: 7, port: 5 }];
    let terminate = pb::TerminateRequest { attempt: attempt(6), backends, min_age_ms: 1 };
    let status = client.terminate(terminate).await.expect_err("stale");
    assert_eq!(reason(&status), STALE_TOKEN);
    server.gate.lock().heed(LockSeen::Failover { token: 9 });
    let peer = Peer::new("pg01/proxy", &server.address.to_string(), &no_token()).expect("a peer");
    let error = peer.resume(attempt(8).expect("some"), LIMIT).await.expect_err("stale");
    assert!(matches!(error, PeerError::Stale { .. }), "{error}");
}

#[tokio::test]
async fn health_and_reflection_answer() {
    let server = start_server(Some("secret")).await;
    let url = format!("http://{}", server.address);
    let endpoint = tonic::transport::Endpoint::from_shared(url).expect("a URL");
    let channel = endpoint.connect().await.expect("connected");
    let mut health = HealthClient::new(channel.clone());
    let service = "pgcm.v1.Agent".to_owned();
    let answer = health.check(HealthCheckRequest { service }).await.expect("health").into_inner();
    assert_eq!(answer.status, 1, "SERVING");

    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let mut reflection = ServerReflectionClient::new(channel);
    let ask = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers = reflection
        .server_reflection_info(tokio_stream::once(ask))
        .await
        .expect("reflection")
        .into_inner();
    let answer = answers.message().await.expect("an answer").expect("one");
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
        panic!("not a list: {answer:?}");
    };
    let names: Vec<String> = list.service.into_iter().map(|service| service.name).collect();
    assert!(names.contains(&"pgcm.v1.Agent".to_owned()), "{names:?}");
}

#[tokio::test]
async fn a_peer_tells_away_from_unwilling() {
    let server = start_server(Some("secret")).await;
    let address = server.address.to_string();
    let peer = Peer::new("pg01/proxy", &address, &no_token()).expect("a peer");
    let error = peer.resume(attempt(1).expect("some"), LIMIT).await.expect_err("no token");
    assert!(matches!(error, PeerError::Unauthenticated { .. }), "{error}");
    let away = Peer::new("pg09/proxy", "127.0.0.1:1", &no_token()).expect("a peer");
    let error = away.health(LIMIT).await.expect_err("nobody listens");
    assert!(matches!(error, PeerError::Unreachable { .. }), "{error}");
    for nonsense in ["", "pg01", "pg01:port", "http://x:1/:2 "] {
        assert!(Peer::new("x", nonsense, &no_token()).is_err(), "{nonsense}");
    }
}
