// SPDX-License-Identifier: Apache-2.0
//! The files, and how a Workload API that fails, lies or says nothing is met: a fake one that speaks the real protocol.

mod fake;

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use self::fake::{Answer, Authority, Fake};
use super::*;

const DOMAIN: &str = "hanzo.ai";
const AGENT: &str = "spiffe://hanzo.ai/hanzo-k8s/zt-system/zt-agent";
const HOUR: i64 = 3600;
/// How long anything may take on a machine that has much else to do.
const DEADLINE: Duration = Duration::from_secs(60);

#[test]
fn a_set_is_replaced_whole_and_read_by_nobody_else() {
    let directory = tempfile::tempdir().expect("directory");
    let directory = directory.path().join("svid");
    let key = rcgen::KeyPair::generate().expect("key");
    for round in 0..3 {
        let der = rcgen::CertificateParams::default()
            .self_signed(&key)
            .expect("signed")
            .der()
            .to_vec();
        let set = Set {
            id: String::new(),
            expires: 0,
            cert: pem("CERTIFICATE", &der),
            key: pem("PRIVATE KEY", &key.serialize_der()),
            bundle: pem("CERTIFICATE", &der),
        };
        set.write(&directory).expect("written");
        let current = directory.join(CURRENT);
        let read = CertificateDer::from_pem_file(current.join(CERT)).expect("PEM");
        assert_eq!(read.as_ref(), der);
        PrivateKeyDer::from_pem_file(current.join(KEY)).expect("PEM");
        for path in [directory.clone(), current.clone(), current.join(KEY)] {
            let mode = fs::metadata(&path).expect("there").permissions().mode();
            assert_eq!(mode & 0o077, 0, "{}", path.display());
        }
        let names = fs::read_dir(&directory).expect("read").count();
        let sets = if round == 0 { 1 } else { 2 };
        assert_eq!(
            names,
            sets + 1,
            "round {round}: the set, the last one, and the link"
        );
    }
}

/// What keeps the files, and who answers it.
struct World {
    directory: tempfile::TempDir,
    authority: Authority,
    health: Arc<Health>,
    keeping: tokio::task::JoinHandle<()>,
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("directory");
        let health = Arc::new(Health::default());
        let keeping = tokio::spawn(keep(
            directory.path().join("agent.sock"),
            DOMAIN.to_owned(),
            directory.path().join("svid"),
            Arc::clone(&health),
        ));
        Self {
            directory,
            authority: Authority::new(),
            health,
            keeping,
        }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("agent.sock")
    }

    fn fake(&self, answer: Answer) -> Fake {
        Fake::start(&self.socket(), answer)
    }

    fn good(&self) -> Answer {
        Answer::Say(self.authority.svid(AGENT, HOUR))
    }

    fn has_files(&self) -> bool {
        self.directory
            .path()
            .join("svid")
            .join(CURRENT)
            .join(CERT)
            .exists()
    }

    /// Waits until it stands so.
    async fn stands(&self, what: &str, holds: impl Fn(&Status) -> bool) -> Status {
        let waiting = async {
            loop {
                let status = self.health.status();
                if holds(&status) {
                    return status;
                }
                sleep(Duration::from_millis(5)).await;
            }
        };
        let waited = tokio::time::timeout(DEADLINE, waiting).await;
        waited.unwrap_or_else(|_| panic!("{what}: {:?}", self.health.status()))
    }

    /// Waits until what is wrong is told in such words.
    async fn says(&self, words: &str) -> Status {
        let has = |status: &Status| status.problem().is_some_and(|problem| problem.contains(words));
        self.stands(words, has).await
    }

    /// Waits until all is well.
    async fn is_good(&self) -> Status {
        let status = self
            .stands("a certificate", |status| status.problem().is_none())
            .await;
        assert_eq!(status.spiffe.as_deref(), Some(AGENT));
        assert!(self.has_files());
        status
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.keeping.abort();
    }
}

#[tokio::test]
async fn a_socket_that_comes_late_is_found() {
    let world = World::new();
    let status = world.says("cannot be reached").await;
    assert!(status.failures > 0 && status.expires.is_none() && !world.has_files());
    let _fake = world.fake(world.good());
    let status = world.is_good().await;
    assert_eq!(status.renewals, 1);
    let left = status.expires.expect("it has one") - crate::identity::since::now() / 1_000_000_000;
    assert!((HOUR - 120..=HOUR).contains(&left), "{left}");
}

#[tokio::test]
async fn one_that_says_nothing_is_said_to() {
    let world = World::new();
    let fake = world.fake(Answer::Silence);
    fake.asked().await;
    world.says("has given this agent no certificate").await;
    assert!(!world.has_files());
    fake.answer(world.good());
    world.is_good().await;
}

#[tokio::test]
async fn one_that_refuses_or_talks_nonsense_is_asked_again() {
    let world = World::new();
    let listener = UnixListener::bind(world.socket()).expect("a socket");
    let talking = std::thread::spawn(move || {
        // A connection is enough to see what is made of it.
        let (mut stream, _) = listener.accept().expect("somebody asks");
        let _ = stream.write_all(&[0x55; 4096]);
    });
    world
        .stands("the nonsense to be counted", |status| status.failures > 0)
        .await;
    talking.join().expect("it ends");
    assert!(!world.has_files());
    let fake = world.fake(Answer::Refuse(tonic::Code::Internal, "no"));
    fake.asked().await;
    world.says("no certificate").await;
    assert!(!world.has_files());
    fake.answer(world.good());
    world.is_good().await;
}

#[tokio::test]
async fn a_certificate_stays_while_the_socket_is_closed_and_the_next_is_taken() {
    let world = World::new();
    let fake = world.fake(Answer::SayAndClose(world.authority.svid(AGENT, HOUR)));
    world.stands("a certificate", |status| status.renewals > 0).await;
    let before = world.says("is not renewed").await;
    assert!(world.has_files() && before.expires.is_some() && before.failures > 0);
    fake.answer(Answer::Say(world.authority.svid(AGENT, 2 * HOUR)));
    let later = |status: &Status| status.expires > before.expires && status.problem().is_none();
    world.stands("the next one", later).await;
}

#[tokio::test]
async fn what_names_somebody_of_another_trust_domain_is_not_shown() {
    let world = World::new();
    let foreign = "spiffe://example.org/hanzo-k8s/zt-system/zt-agent";
    let fake = world.fake(Answer::Say(world.authority.svid(foreign, HOUR)));
    world.says("is not in the trust domain `hanzo.ai`").await;
    assert!(!world.has_files());
    fake.answer(world.good());
    world.is_good().await;
    // What was there before stays.
    let status = world.health.status();
    fake.answer(Answer::Say(world.authority.svid(foreign, HOUR)));
    let after = world.says("is not in the trust domain").await;
    assert_eq!((after.spiffe, after.expires), (status.spiffe, status.expires));
    let shown = CertificateDer::from_pem_file(world.directory.path().join("svid").join(CURRENT).join(CERT));
    assert_eq!(
        tls::peer(&shown.expect("PEM")).expect("an SVID").id.as_str(),
        AGENT
    );
}

#[tokio::test]
async fn what_has_expired_is_not_shown_and_what_expires_is_told_of() {
    let world = World::new();
    let fake = world.fake(Answer::Say(world.authority.svid(AGENT, -60)));
    world.says("no SVID for this agent that is valid").await;
    assert!(!world.has_files());
    fake.answer(Answer::Say(world.authority.svid(AGENT, 3)));
    world.stands("a short one", |status| status.renewals > 0).await;
    world.says("has expired").await;
    fake.answer(world.good());
    world.is_good().await;
}
