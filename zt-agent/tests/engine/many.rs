// SPDX-License-Identifier: Apache-2.0
//! Ten thousand connections at one engine over TLS, of each kind that costs it something: others are answered meanwhile,
//! each is counted once, and what they took comes back.

use std::fs;
use std::sync::Arc;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use zt_agent::tls::{ClientFiles, client_config};

use super::metrics::exposition;
use super::tls::{Authority, ENGINE, configure};
use super::world::{Engine, Shared, eventually};

const MANY: usize = 10_000;
/// After so many one looks whether others are answered.
const LOOK: usize = 2_000;

fn name() -> ServerName<'static> {
    ServerName::try_from("localhost").expect("a name")
}

/// A caller with a certificate of its own.
fn caller(authority: &Authority, id: &str) -> Arc<ClientConfig> {
    let (cert, key) = authority.issue(id, "localhost");
    let ca = authority.ca();
    let files = ClientFiles {
        cert: &cert,
        key: &key,
        ca: &ca,
    };
    Arc::new(client_config(&files).expect("usable"))
}

async fn shake(engine: &Engine, config: &Arc<ClientConfig>) -> TlsStream<TcpStream> {
    let stream = TcpStream::connect(engine.api).await.expect("connects");
    let connector = TlsConnector::from(Arc::clone(config));
    connector.connect(name(), stream).await.expect("shakes hands")
}

/// Somebody who asks one thing and is answered.
async fn is_answered(engine: &Engine, config: &Arc<ClientConfig>) {
    let mut stream = shake(engine, config).await;
    let request = b"GET /v1/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    stream.write_all(request).await.expect("written");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("answered");
    assert!(
        answer.starts_with(b"HTTP/1.1 200"),
        "{}",
        String::from_utf8_lossy(&answer)
    );
}

/// All who were refused so far, and for what.
async fn refused(engine: &Engine) -> (u64, Vec<String>) {
    let text = exposition(engine).await;
    let lines = text
        .lines()
        .filter(|line| line.starts_with("zt_api_refused_total{"));
    let lines: Vec<String> = lines
        .filter(|line| !line.ends_with(" 0"))
        .map(str::to_owned)
        .collect();
    let number = |line: &String| {
        line.rsplit_once(' ')
            .and_then(|(_, number)| number.parse::<u64>().ok())
    };
    (lines.iter().filter_map(number).sum(), lines)
}

fn open_files(engine: &Engine) -> usize {
    fs::read_dir(engine.proc("fd")).expect("a process").count()
}

/// Memory in use, KiB.
fn memory(engine: &Engine) -> u64 {
    let status = fs::read_to_string(engine.proc("status")).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.expect("a number")
}

/// Waits until exactly so many were refused, and no more files are open than before.
async fn all_are_gone(engine: &Engine, refusals: u64, files: usize) {
    eventually("everybody to be counted and gone", || async {
        let (sum, lines) = refused(engine).await;
        assert!(sum <= refusals, "{sum} instead of {refusals}: {lines:?}");
        // Those who ask, here, come and go.
        (sum == refusals && open_files(engine) <= files + 4).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_connections_over_tls_keep_nobody_out_and_leave_nothing_behind() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("limit");
    assert!(
        most >= 12_000,
        "too few files may be open for this test: {most} (ulimit -Hn)"
    );
    setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("raised");
    let shared = Shared::new();
    let authority = Authority::new(shared.below("ca"));
    let callers = "{spiffe: \"spiffe://hanzo.ai/ops/*\", role: read}";
    configure(
        &shared,
        "e1",
        &authority.issue(ENGINE, "localhost"),
        &authority.ca(),
        callers,
    );
    let engine = shared.engine("e1").await;
    let [one, two, other] =
        ["one", "two", "other"].map(|id| caller(&authority, &format!("spiffe://hanzo.ai/ops/{id}")));
    is_answered(&engine, &other).await;
    let files = open_files(&engine);
    let mut hello = Vec::new();
    let mut greeting = ClientConnection::new(Arc::clone(&one), name()).expect("usable");
    greeting.write_tls(&mut hello).expect("a greeting");

    let mut refusals = 0;
    let mut used = Vec::new();
    // Nothing but a connection; and a greeting that is answered, and then nothing. Twice: what the first took is used again.
    for said in [&[][..], &hello, &[], &hello] {
        let mut held = Vec::with_capacity(MANY);
        for number in 0..MANY {
            let mut stream = TcpStream::connect(engine.api).await.expect("connects");
            stream.write_all(said).await.expect("written");
            held.push(stream);
            if number % LOOK == LOOK - 1 {
                is_answered(&engine, &other).await;
            }
        }
        drop(held);
        refusals += MANY as u64;
        all_are_gone(&engine, refusals, files).await;
        used.push(memory(&engine));
    }
    assert!(
        used[3] < used[1] + used[1] / 4,
        "memory that does not come back: {used:?} KiB"
    );

    // Who has a certificate and asks nothing, half of them each.
    let mut idle = Vec::with_capacity(MANY);
    let mut shaking = tokio::task::JoinSet::new();
    for number in 0..MANY {
        let (config, api) = (Arc::clone(if number % 2 == 0 { &one } else { &two }), engine.api);
        shaking.spawn(async move {
            let stream = TcpStream::connect(api).await.expect("connects");
            let shaken = TlsConnector::from(config).connect(name(), stream).await;
            shaken.expect("shakes hands")
        });
        if shaking.len() == 32 {
            idle.extend(shaking.join_next().await.map(|stream| stream.expect("ended")));
        }
        if number % LOOK == LOOK - 1 {
            is_answered(&engine, &other).await;
        }
    }
    idle.extend(shaking.join_all().await);
    assert_eq!(idle.len(), MANY);
    is_answered(&engine, &other).await;
    drop(idle);
    all_are_gone(&engine, refusals, files).await;
}
