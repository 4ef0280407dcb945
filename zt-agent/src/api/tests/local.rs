// SPDX-License-Identifier: Apache-2.0
//! The Unix socket, and what one client may take of the others.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use tokio::net::UnixStream;

use super::*;

/// Serves the world's API once more, with limits of its own.
pub(super) fn serve(world: &World, endpoint: Endpoint, per_second: u32) -> tokio::task::JoinHandle<()> {
    let guard = Arc::new(Guard::new(
        NonZeroU32::new(per_second).expect("not zero"),
        Arc::clone(&world.state.metrics),
    ));
    let router = router(world.state.clone());
    tokio::spawn(endpoint.serve(router, Some(guard), world.stopping.subscribe()))
}

pub(super) async fn listen(limits: Limits) -> (Endpoint, SocketAddr) {
    let endpoint = bind_api(SocketAddr::from(([127, 0, 0, 1], 0)), None)
        .await
        .expect("binds");
    let address = endpoint.address().expect("TCP");
    (endpoint.with_limits(limits), address)
}

pub(super) async fn over(socket: &PathBuf, request: &str) -> String {
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
async fn who_comes_over_loopback_is_the_user_whose_socket_it_is() {
    let world = world().await;
    let ask = question(IAM, POSTGRES, 5432).to_string();
    // Each user has a rate of their own.
    for (owner_of, name) in [
        ((|_, _| Ok(Some(7))) as OwnerOf, "uid:7"),
        (|_, _| Ok(Some(8)), "uid:8"),
        (|_, _| Err(std::io::ErrorKind::Unsupported.into()), "127.0.0.1:"),
    ] {
        let (endpoint, address) = listen(Limits::default()).await;
        serve(&world, endpoint.with_owners(owner_of), 1);
        assert_eq!(post(address, "/v1/evaluate", &ask).await.status, 200);
        world.intake.flush().await.expect("flushes");
        let record = &get(world.api, "/v1/audit?limit=1").await.json()["records"][0];
        let caller = record["caller"].as_str().expect("a caller");
        assert!(
            caller == name || name.ends_with(':') && caller.starts_with(name),
            "{caller}"
        );
    }
    let before = world.intake.stats().received_total();
    let (endpoint, address) = listen(Limits::default()).await;
    serve(&world, endpoint.with_owners(|_, _| Ok(None)), u32::MAX);
    let mut stream = TcpStream::connect(address).await.expect("connects");
    let head = format!(
        "POST /v1/evaluate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}",
        ask.len()
    );
    // It may be closed by then.
    let _ = stream.write_all(format!("{head}\r\n\r\n{ask}").as_bytes()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert_eq!(answer, b"");
    counted(&world, "gone").await;
    assert_eq!(world.intake.stats().received_total(), before);
}

#[tokio::test]
async fn two_users_have_two_rates() {
    use std::sync::atomic::AtomicU32;
    static USER: AtomicU32 = AtomicU32::new(1);
    let world = world().await;
    let (endpoint, address) = listen(Limits::default()).await;
    serve(
        &world,
        endpoint.with_owners(|_, _| Ok(Some(USER.load(Ordering::SeqCst)))),
        1,
    );
    let mut refused = 0;
    for _ in 0..50 {
        refused += u32::from(get(address, "/v1/status").await.status == 429);
    }
    assert!(refused > 0, "two of fifty within a second");
    USER.store(2, Ordering::SeqCst);
    assert_eq!(get(address, "/v1/status").await.status, 200);
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
async fn a_batch_costs_what_it_asks() {
    let world = world().await;
    let (endpoint, address) = listen(Limits::default()).await;
    serve(&world, endpoint, 100);
    let batch = |count: usize| json!({ "requests": vec![question(IAM, POSTGRES, 5432); count] }).to_string();
    let reply = post(address, "/v1/evaluate", &batch(101)).await;
    assert_eq!((reply.status, reply.code().as_str()), (429, "too_many_requests"));
    assert!(reply.body.contains("smaller batches"), "{}", reply.body);
    assert!(!reply.head.contains("retry-after"), "waiting does not help");
    let mut refused = None;
    for _ in 0..50 {
        let reply = post(address, "/v1/evaluate", &batch(90)).await;
        if reply.status == 429 {
            refused = Some(reply);
            break;
        }
        assert_eq!(reply.status, 200, "{}", reply.body);
    }
    let reply = refused.expect("the second within a second, or a later one");
    assert!(reply.head.contains("\r\nretry-after: "), "{}", reply.head);
    // Nothing of a batch that was refused was decided.
    world.intake.flush().await.expect("flushes");
    assert_eq!(world.intake.stats().received_total() % 90, 0);
}

/// Opens as many idle connections as that, in a part of which a request was begun; their own ends.
async fn idle(address: SocketAddr, count: usize) -> Vec<TcpStream> {
    let mut idle = Vec::with_capacity(count);
    for n in 0..count {
        let mut stream = TcpStream::connect(address).await.expect("connects");
        if n % 3 == 0 {
            // One that was closed already is no better.
            let _ = stream.write_all(b"GET /v1/status HTTP/1.1\r\nHo").await;
        }
        idle.push(stream);
    }
    idle
}

#[tokio::test]
async fn ten_thousand_idle_connections_do_not_keep_the_operator_out() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("limit");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("raised");
    // Ten thousand here, and what of them the server holds.
    let count = 10_000;
    assert!(
        most >= 12_000,
        "too few files may be open for this test: {most} (ulimit -Hn)"
    );
    let world = world().await;
    let socket = world.directory.path().join("agent.sock");
    let by_socket = bind_socket(&socket).await.expect("binds");
    serve(&world, by_socket, u32::MAX);
    let (endpoint, address) = listen(Limits::default()).await;
    serve(&world, endpoint, u32::MAX);
    let work = async {
        let idle = idle(address, count).await;
        assert_eq!(get(address, "/v1/status").await.status, 200, "over TCP");
        let request = "GET /v1/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        let answer = over(&socket, request).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "over the socket: {answer}");
        let ask = question(IAM, POSTGRES, 5432).to_string();
        assert_eq!(post(address, "/v1/evaluate", &ask).await.status, 200);
        drop(idle);
    };
    tokio::time::timeout(Duration::from_secs(120), work)
        .await
        .expect("in time");
}

/// Waits until a refusal for that cause is counted.
pub(super) async fn counted(world: &World, cause: &str) {
    let line = format!("zt_api_refused_total{{cause=\"{cause}\"}} 1");
    let looking = async {
        while !get(world.health, "/metrics").await.body.contains(&line) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), looking)
        .await
        .unwrap_or_else(|_| panic!("no `{line}`"));
}

pub(super) fn hasty() -> Limits {
    Limits {
        handshake_time: Duration::from_millis(300),
        head_time: Duration::from_millis(300),
        body_time: Duration::from_millis(300),
        write_time: Duration::from_millis(300),
        ..Limits::default()
    }
}

#[tokio::test]
async fn slow_heads_are_told_so_and_cut_off() {
    let world = world().await;
    let (endpoint, address) = listen(hasty()).await;
    serve(&world, endpoint, u32::MAX);
    let reply = raw(address, b"GET /v1/status HTTP/1.1\r\nHost: local").await;
    assert_eq!((reply.status, reply.code().as_str()), (408, "head_timeout"));
    counted(&world, "slow_head").await;
    // A byte now and then makes it no faster.
    let mut slow = TcpStream::connect(address).await.expect("connects");
    let (mut reading, mut writing) = slow.split();
    let dripping = async {
        while writing.write_all(b"G").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        std::future::pending::<()>().await;
    };
    let mut bytes = Vec::new();
    let ended = async {
        tokio::select! {
            _ = reading.read_to_end(&mut bytes) => {}
            () = dripping => {}
        }
    };
    tokio::time::timeout(Duration::from_secs(30), ended)
        .await
        .expect("cut off");
    // Who has said nothing is closed without a word.
    let mut idle = TcpStream::connect(address).await.expect("connects");
    let mut bytes = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(30), idle.read_to_end(&mut bytes));
    assert_eq!(ended.await.expect("cut off").expect("in order"), 0);
}

#[tokio::test]
async fn slow_bodies_are_told_so_and_cut_off() {
    let world = world().await;
    world.start_node();
    let (endpoint, address) = listen(hasty()).await;
    serve(&world, endpoint, u32::MAX);
    for (request, media_type) in [
        ("POST /v1/evaluate", "application/json"),
        ("PUT /v1/policies/p", "application/yaml"),
        ("POST /v1/replay", "application/yaml"),
        ("POST /v1/mode", "application/json"),
    ] {
        let request = format!(
            "{request} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {media_type}\r\nContent-Length: 100\r\n\r\n{{\"mode\":"
        );
        let reply = raw(address, request.as_bytes()).await;
        assert_eq!((reply.status, reply.code().as_str()), (408, "body_timeout"));
    }
    let metrics = get(world.health, "/metrics").await.body;
    assert!(
        metrics.contains("zt_api_refused_total{cause=\"slow_body\"} 4"),
        "{metrics}"
    );
    assert!(!world.node.observe_all.load(Ordering::SeqCst));
    assert_eq!(world.intake.stats().received_total(), 0);
    assert!(!world.policies().join("p.yaml").exists());
}
