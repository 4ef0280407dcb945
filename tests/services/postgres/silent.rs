// SPDX-License-Identifier: Apache-2.0
//! Something on the way to the server swallows all from a moment on, and hangs up on nobody.

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use zt_agent::audit::postgres::{Reader, Target};
use zt_agent::audit::query::Filter;
use zt_tests::postgres::Server;

use super::{maker, ship, today, with_tables};

/// Longer than anything here takes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(120);
/// More than there are connections.
const QUESTIONS: usize = 24;
const RECORDS: u64 = 100;

/// Where clients connect to; each connection goes on to the server until it is silenced.
struct Relay {
    directory: TempDir,
    silenced: Arc<Mutex<Vec<Arc<AtomicBool>>>>,
}

impl Relay {
    fn start(server: &Server) -> Self {
        let directory = tempfile::tempdir().expect("directory");
        let listener = UnixListener::bind(directory.path().join(".s.PGSQL.5432")).expect("listens");
        let to = server.directory().join(".s.PGSQL.5432");
        let silenced: Arc<Mutex<Vec<Arc<AtomicBool>>>> = Arc::default();
        let all = Arc::clone(&silenced);
        thread::spawn(move || {
            for client in listener.incoming() {
                let (Ok(client), Ok(server)) = (client, UnixStream::connect(&to)) else {
                    return;
                };
                let silent = Arc::new(AtomicBool::new(false));
                all.lock().expect("no panic").push(Arc::clone(&silent));
                let (from, back) = (client.try_clone(), server.try_clone());
                pass_on(client, back.expect("another"), Arc::clone(&silent));
                pass_on(server, from.expect("another"), silent);
            }
        });
        Self { directory, silenced }
    }

    fn target(&self) -> Target {
        let directory = self.directory.path().display();
        let dsn = format!("postgres://engine@localhost:5432/zt?host={directory}");
        Target::parse(&dsn).expect("a target")
    }

    /// Has those that there are swallow all from now on. Returns how many they are.
    fn silence(&self) -> usize {
        let all = self.silenced.lock().expect("no panic");
        all.iter()
            .for_each(|silent| silent.store(true, Ordering::Relaxed));
        all.len()
    }
}

/// Until either end hangs up.
fn pass_on(mut from: UnixStream, mut to: UnixStream, silent: Arc<AtomicBool>) {
    thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = from.read(&mut bytes) {
            if !silent.load(Ordering::Relaxed) && to.write_all(&bytes[..count]).is_err() {
                return;
            }
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_that_nobody_answers_hold_no_connection_for_ever() {
    let server = with_tables().await;
    ship(&server, &maker(today(), 1_000_000, 10), RECORDS).await;
    let relay = Relay::start(&server);
    let reader = Reader::new(relay.target());
    let ask = async || {
        let page = reader.query(&Filter::default(), None, 1000).await;
        page.map(|page| page.records.len() as u64)
    };
    assert_eq!(ask().await.expect("an answer"), RECORDS);

    // All are asked when nobody answers any more, and are given up.
    let mut session = server.session("keeper", "zt_audit_maintainer").expect("connects");
    session
        .run("BEGIN; LOCK TABLE zt_audit.record IN ACCESS EXCLUSIVE MODE")
        .expect("locks");
    let all = futures::future::join_all((0..QUESTIONS).map(|_| ask()));
    let given_up = tokio::time::timeout(Duration::from_secs(8), async {
        let waiting = async {
            while server
                .number("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND usename = 'engine'")
                .expect("a number")
                < 2
            {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            assert!(relay.silence() >= 2);
            std::future::pending::<()>().await;
        };
        tokio::join!(all, waiting);
    });
    assert!(given_up.await.is_err());
    session.run("ROLLBACK").expect("gives way");

    let begun = Instant::now();
    while let Err(error) = ask().await {
        assert!(begun.elapsed() < DEADLINE, "nobody is answered any more: {error}");
    }
    // A reader that ends waits for none of them.
    tokio::time::timeout(DEADLINE, reader.close())
        .await
        .expect("ends");
}
