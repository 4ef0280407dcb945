// SPDX-License-Identifier: Apache-2.0
//! The Unix socket, and what one client may take of the others.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use tokio::net::UnixStream;

use super::*;

/// Serves the world's API once more, with limits of its own.
fn serve(world: &World, endpoint: Endpoint, per_second: u32) -> tokio::task::JoinHandle<()> {
    let guard = Arc::new(Guard::new(NonZeroU32::new(per_second).expect("not zero")));
    let router = router(world.state.clone());
    tokio::spawn(endpoint.serve(router, Some(guard), world.stopping.subscribe()))
}

async fn listen(limits: Limits) -> (Endpoint, SocketAddr) {
    let endpoint = bind_api(SocketAddr::from(([127, 0, 0, 1], 0)), None)
        .await
        .expect("binds");
    let address = endpoint.address().expect("TCP");
    (endpoint.with_limits(limits), address)
}

async fn over(socket: &PathBuf, request: &str) -> String {
    let mut stream = UnixStream::connect(socket).await.expect("connects");
    stream.write_all(request.as_bytes()).await.expect("written");
    let mut text = String::new();
    stream.read_to_string(&mut text).await.expect("answered");
    text
}

#[tokio::test]
async fn the_socket_is_the_operators_and_goes_with_the_agent() {
    let world = world().await;
    let path = world.directory.path().join("run/zt/agent.sock");
    let endpoint = bind_socket(&path).await.expect("binds");
    let mode = std::fs::metadata(&path).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    let serving = serve(&world, endpoint, u32::MAX);
    let body = question(IAM, POSTGRES, 5432).to_string();
    let answer = over(&path, &format!("POST /v1/evaluate HTTP/1.1\r\nHost: whatever\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len())).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    world.intake.flush().await.expect("flushes");
    let record = &get(world.api, "/v1/audit").await.json()["records"][0];
    let (uid, pid) = (nix::unistd::getuid(), std::process::id());
    assert_eq!(record["caller"], json!(format!("uid:{uid} pid:{pid}")));

    let error = bind_socket(&path).await.expect_err("taken").to_string();
    assert!(error.contains("another agent listens there"), "{error}");
    world.stopping.send_replace(true);
    serving.await.expect("drained");
    assert!(!path.exists(), "removed at stop");
    // One that an agent left behind when it was killed.
    drop(std::os::unix::net::UnixListener::bind(&path).expect("bound"));
    assert!(path.exists());
    bind_socket(&path).await.expect("replaced");
    std::fs::write(&path, "a file").expect("write");
    let error = bind_socket(&path).await.expect_err("not a socket").to_string();
    assert!(error.contains("not a socket") && path.exists(), "{error}");
}

#[tokio::test]
async fn who_asks_too_often_is_told_when_to_come_back() {
    let world = world().await;
    let (endpoint, address) = listen(Limits::default()).await;
    serve(&world, endpoint, 3);
    let mut refused = None;
    for _ in 0..20 {
        let reply = get(address, "/v1/status").await;
        if reply.status == 429 {
            refused = Some(reply);
            break;
        }
        assert_eq!(reply.status, 200);
    }
    let reply = refused.expect("the fourth within a second, or a later one");
    assert!(reply.head.contains("\r\nretry-after: 1"), "{}", reply.head);
    assert_eq!(reply.code(), "too_many_requests");
}

#[tokio::test]
async fn idle_connections_keep_nobody_out() {
    let world = world().await;
    let limits = Limits {
        connections: 8,
        ..Limits::default()
    };
    let (endpoint, address) = listen(limits).await;
    serve(&world, endpoint, u32::MAX);
    let mut idle = Vec::new();
    for n in 0..100 {
        let mut stream = TcpStream::connect(address).await.expect("connects");
        if n % 2 == 0 {
            stream
                .write_all(b"GET /v1/status HTTP/1.1\r\nHo")
                .await
                .expect("written");
        }
        idle.push(stream);
        if n % 10 == 9 {
            assert_eq!(get(address, "/v1/status").await.status, 200, "after {n}");
        }
    }
}

#[tokio::test]
async fn ten_thousand_connections_do_not_kill_it() {
    let (_, most) =
        nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).expect("limit");
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, most, most).expect("raised");
    assert!(
        most > 12_000,
        "this test opens 10,000 connections; its limit of open files is {most}"
    );
    let world = world().await;
    let (endpoint, address) = listen(Limits::default()).await;
    serve(&world, endpoint, u32::MAX);
    let mut idle = Vec::with_capacity(10_000);
    for _ in 0..10_000 {
        idle.push(TcpStream::connect(address).await.expect("connects"));
    }
    let answered = tokio::time::timeout(Duration::from_secs(10), get(address, "/v1/status"));
    assert_eq!(answered.await.expect("in time").status, 200);
}

#[tokio::test]
async fn slow_heads_are_cut_off() {
    let world = world().await;
    let limits = Limits {
        head_time: Duration::from_millis(200),
        write_time: Duration::from_millis(200),
        ..Limits::default()
    };
    let (endpoint, address) = listen(limits).await;
    serve(&world, endpoint, u32::MAX);
    let mut slow = TcpStream::connect(address).await.expect("connects");
    slow.write_all(b"GET /v1/status HTTP/1.1\r\n")
        .await
        .expect("written");
    let mut bytes = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(10), slow.read_to_end(&mut bytes));
    // Closed, with or without a 408.
    let _ = ended.await.expect("cut off");
}
