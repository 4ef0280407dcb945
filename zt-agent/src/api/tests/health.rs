// SPDX-License-Identifier: Apache-2.0
//! Health and metrics are for whoever reaches them, but for a page that was led to this machine.

use axum::body::Body;
use axum::extract::Request;
use tower_service::Service as _;

use super::*;

const PATHS: [&str; 4] = ["/healthz", "/readyz", "/metrics", "/nothing"];

/// The same question under a name.
async fn named(to: SocketAddr, path: &str, host: &str) -> Reply {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    raw(to, request.as_bytes()).await
}

#[tokio::test]
async fn over_loopback_a_name_that_leads_here_opens_nothing() {
    let world = world().await;
    for (path, host) in PATHS.iter().zip([
        "rebound.example:8055",
        "10.0.0.7",
        "[fd00::7]:1",
        "localhost.example",
    ]) {
        let reply = named(world.health, path, host).await;
        assert_eq!(
            (reply.status, reply.code().as_str()),
            (403, "host_refused"),
            "{path}"
        );
        assert!(!reply.body.contains("zt_kernel"), "{}", reply.body);
    }
    let metrics = named(world.health, "/metrics", "127.0.0.1:8055").await;
    let counted = "zt_api_refused_total{cause=\"host_refused\"} 4\n";
    assert!(metrics.body.contains(counted), "{}", metrics.body);
    for host in ["127.0.0.1:8055", "localhost", "[::1]:8055"] {
        assert_eq!(named(world.health, "/healthz", host).await.status, 200, "{host}");
        assert_eq!(named(world.health, "/nothing", host).await.status, 404, "{host}");
    }
    // An agent that stands by is asked the same way.
    let endpoint = bind_health(SocketAddr::from(([127, 0, 0, 1], 0)))
        .await
        .expect("binds");
    let address = endpoint.address().expect("TCP");
    let router = standby_router("standing by".to_owned());
    tokio::spawn(endpoint.serve(router, None, world.stopping.subscribe()));
    assert_eq!(
        named(address, "/readyz", "rebound.example").await.code(),
        "host_refused"
    );
    let reply = named(address, "/readyz", "localhost").await;
    assert_eq!(
        (reply.status, &reply.json()["status"]),
        (200, &json!("standing_by"))
    );
}

#[tokio::test]
async fn over_the_network_every_name_is_good() {
    let world = world().await;
    // The kubelet names the node's or the pod's address, Prometheus a Service; a sidecar comes from a loopback address.
    let caller = Caller {
        over_loopback: false,
        ..Caller::loopback(SocketAddr::from(([127, 0, 0, 6], 5)), None)
    };
    for host in [
        "10.0.0.7:8055",
        "[fd00::7]:8055",
        "zt-metrics.zt-system:8055",
        "127.0.0.1:8055",
    ] {
        for mut router in [health_router(world.state.clone()), standby_router(String::new())] {
            let mut request = Request::get("/healthz")
                .header("host", host)
                .body(Body::empty())
                .expect("a request");
            request.extensions_mut().insert(caller.clone());
            let Ok(answer) = router.call(request).await;
            assert_eq!(answer.status(), 200, "{host}");
        }
    }
}
