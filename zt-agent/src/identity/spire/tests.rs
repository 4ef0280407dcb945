// SPDX-License-Identifier: Apache-2.0
//! The source against a fake SPIRE agent that speaks the real protocol, and real processes in directories that stand
//! for cgroups. What a real SPIRE says is tested with a real one, in the services tier.

mod bad_input;
mod doubt;
mod fake;

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tonic::Code;

use self::fake::{Answer, Authority, Fake, Script, answer, bundles, called, hinted};
use super::*;
use crate::cgroup::{CgroupEvent, id_of};

const DOMAIN: &str = "hanzo.ai";
/// In the layout of the specification, and in the one that SPIRE's own tools prefer.
const IAM: &str = "spiffe://hanzo.ai/hanzo-k8s/hanzo/iam";
const CHAT: &str = "spiffe://hanzo.ai/ns/hanzo/sa/chat";
/// Long enough for a machine that has much else to do.
const DEADLINE: Duration = Duration::from_secs(60);
const HOUR: i64 = 3600;

/// A tree of "cgroups", a source that follows it, and the authority that the fake issues from.
struct World {
    directory: TempDir,
    authority: Authority,
    settings: Settings,
    cgroups: mpsc::UnboundedSender<CgroupEvent>,
    said: mpsc::Receiver<Attestation>,
    health: Arc<Health>,
    running: JoinHandle<()>,
    processes: Vec<Child>,
}

impl World {
    /// With one process in the cgroup `root/web`.
    fn new(on_expiry: OnExpiry) -> Self {
        let directory = tempfile::tempdir().expect("directory");
        let settings = Settings {
            admin_socket: directory.path().join("admin.sock"),
            trust_domain: DOMAIN.to_owned(),
            mount: directory.path().to_path_buf(),
            roots: vec![PathBuf::from("root")],
            depth: 8,
            on_expiry,
            patience: Duration::from_secs(5),
            memory: directory.path().join(FILE),
        };
        fs::create_dir(directory.path().join("root")).expect("made");
        let (cgroups, _) = mpsc::unbounded_channel();
        let (_, said) = mpsc::channel(1);
        let mut world = Self {
            directory,
            authority: Authority::new(),
            settings,
            cgroups,
            said,
            health: Health::new(),
            running: tokio::spawn(async {}),
            processes: Vec::new(),
        };
        world.cgroup("web");
        world.process("web");
        world.start();
        world
    }

    /// Starts the source, for the first time or again.
    fn start(&mut self) -> Known {
        let present = fs::read_dir(self.directory.path().join("root"))
            .expect("read")
            .map(|entry| {
                let entry = entry.expect("entry");
                let path = PathBuf::from("root").join(entry.file_name());
                (path, id_of(&entry.path()).expect("id"))
            });
        let source = Source::new(self.settings.clone(), present.collect());
        let known = source.known().clone();
        let (cgroups, events) = mpsc::unbounded_channel();
        let (out, said) = mpsc::channel(16);
        self.health = source.health();
        (self.cgroups, self.said) = (cgroups, said);
        self.running = tokio::spawn(source.run(events, out));
        known
    }

    /// Stops the source as the agent's end does.
    async fn stop(&mut self) {
        self.running.abort();
        // Its end is what is waited for.
        let _ = (&mut self.running).await;
    }

    fn cgroup(&self, name: &str) -> PathBuf {
        let directory = self.directory.path().join("root").join(name);
        fs::create_dir(&directory).expect("made");
        fs::write(directory.join("cgroup.procs"), "").expect("written");
        fs::write(directory.join("cgroup.events"), "populated 0\n").expect("written");
        directory
    }

    fn id(&self, name: &str) -> u64 {
        id_of(&self.directory.path().join("root").join(name)).expect("id")
    }

    /// Starts a process "in" a cgroup, beside those that are there.
    fn process(&mut self, name: &str) {
        let child = Command::new("cat").stdin(Stdio::piped()).spawn().expect("cat");
        let directory = self.directory.path().join("root").join(name);
        let pids = fs::read_to_string(directory.join("cgroup.procs")).expect("read");
        fs::write(directory.join("cgroup.procs"), format!("{pids}{}\n", child.id())).expect("written");
        fs::write(directory.join("cgroup.events"), "populated 1\n").expect("written");
        self.processes.push(child);
    }

    /// Ends the process that was started first, and takes it out of the lists.
    fn end_first(&mut self, name: &str) {
        let mut child = self.processes.remove(0);
        let directory = self.directory.path().join("root").join(name);
        let pids = fs::read_to_string(directory.join("cgroup.procs")).expect("read");
        let pids = pids.replacen(&format!("{}\n", child.id()), "", 1);
        fs::write(directory.join("cgroup.procs"), pids).expect("written");
        child.kill().expect("killed");
        child.wait().expect("waited");
    }

    fn fake(&self, answer: Answer) -> Fake {
        let bundles = Ok(bundles(DOMAIN, &[&self.authority]));
        Fake::start(&self.settings.admin_socket, Script { bundles, answer })
    }

    fn say(&self, id: &str) -> Answer {
        Answer::Say(answer([self.authority.svid(&[id], HOUR)]))
    }

    /// What the source says next of `root/web`.
    async fn next(&mut self) -> Result<Attested, Withdrawal> {
        let said = tokio::time::timeout(DEADLINE, self.said.recv());
        let said = said.await.expect("something is said").expect("it runs");
        assert_eq!(said.cgroup, PathBuf::from("root/web"));
        assert_eq!(said.cgroup_id, self.id("web"));
        said.identity
    }

    async fn next_is_nobody(&mut self) {
        let said = self.next().await;
        assert!(said.is_err(), "{said:?}");
    }

    async fn next_name(&mut self) -> String {
        self.next().await.expect("an identity").spiffe.to_string()
    }

    /// Waits until it stands so with SPIRE.
    async fn until(&self, what: &str, holds: impl Fn(&Status) -> bool) -> Status {
        let waiting = async {
            loop {
                let status = self.health.status();
                if holds(&status) {
                    return status;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let done = tokio::time::timeout(DEADLINE, waiting).await;
        done.unwrap_or_else(|_| panic!("{what}: {:?}", self.health.status()))
    }

    /// Nothing was said up to now.
    fn nothing_said(&mut self) {
        assert!(self.said.try_recv().is_err());
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.running.abort();
        for child in &mut self.processes {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[tokio::test]
async fn an_identity_comes_rotates_changes_and_goes() {
    let mut world = World::new(OnExpiry::Withdraw);
    let fake = world.fake(world.say(IAM));
    assert_eq!(world.next_name().await, IAM);
    let status = world.until("connected", |status| status.connected).await;
    assert_eq!((status.named, status.waiting), (1, 0));

    // A new SVID of the same identity.
    fake.answer(Answer::Say(answer([world.authority.svid(&[IAM], 2 * HOUR)])));
    assert_eq!(world.next_name().await, IAM);
    let status = world
        .until("a rotation", |status| !status.rotations.is_empty())
        .await;
    assert_eq!(status.rotations.get(IAM), Some(&1));

    fake.answer(world.say(CHAT));
    assert_eq!(world.next_name().await, CHAT);
    assert_eq!(world.health.status().rotations.len(), 1, "that was none");

    // The entry is deleted, and made again.
    fake.answer(Answer::Say(answer([])));
    world.next_is_nobody().await;
    let status = world.until("nobody", |status| status.waiting == 1).await;
    assert_eq!(status.withdrawn.get("no_entry"), Some(&1));
    fake.answer(world.say(IAM));
    assert_eq!(world.next_name().await, IAM);
}

#[tokio::test]
async fn no_identity_in_the_first_moments_is_asked_for_again() {
    let mut world = World::new(OnExpiry::Withdraw);
    let fake = world.fake(Answer::SayAndClose(answer([])));
    world.until("connected", |status| status.connected).await;
    world.nothing_said();
    fake.answer(Answer::Refuse(Code::Unavailable, "workload attestation failed"));
    // No stream is open that could hear of it: it asks again.
    fake.answer(world.say(IAM));
    assert_eq!(world.next_name().await, IAM);
}

#[tokio::test]
async fn the_next_process_is_attested_when_one_ends_and_an_empty_cgroup_is_nobody() {
    let mut world = World::new(OnExpiry::Withdraw);
    let fake = world.fake(world.say(IAM));
    assert_eq!(world.next_name().await, IAM);
    // The second one is somebody else.
    world.process("web");
    fake.script.send_if_modified(|script| {
        script.answer = Answer::Say(answer([]));
        false
    });
    fake.script.send_if_modified(|script| {
        script.answer = Answer::Say(answer([world.authority.svid(&[CHAT], HOUR)]));
        false
    });
    world.end_first("web");
    assert_eq!(world.next_name().await, CHAT);

    world.end_first("web");
    world.next_is_nobody().await;
    assert_eq!(world.health.status().withdrawn.get("no_process"), Some(&1));
    // Somebody new: noticed by the cgroup's own file.
    world.process("web");
    assert_eq!(world.next_name().await, CHAT);
}

#[tokio::test]
async fn only_cgroups_below_a_root_are_asked_about_and_new_ones_at_once() {
    let mut world = World::new(OnExpiry::Withdraw);
    let _fake = world.fake(world.say(IAM));
    assert_eq!(world.next_name().await, IAM);
    let root = world.directory.path().join("root");
    fs::write(root.join("cgroup.procs"), format!("{}\n", std::process::id())).expect("written");
    let created = |path: &str, id: u64| CgroupEvent::Created {
        path: path.into(),
        id,
    };
    let root_id = id_of(&root).expect("id");
    world.cgroups.send(created("root", root_id)).expect("it runs");
    world.cgroup("job");
    world.process("job");
    let id = world.id("job");
    world.cgroups.send(created("root/job", id)).expect("it runs");
    let said = tokio::time::timeout(DEADLINE, world.said.recv()).await;
    let said = said.expect("said").expect("it runs");
    assert_eq!((said.cgroup, said.cgroup_id), (PathBuf::from("root/job"), id));

    // It goes, and is not spoken of any more.
    let removed = CgroupEvent::Removed {
        path: "root/job".into(),
        id,
    };
    world.cgroups.send(removed).expect("it runs");
    world.until("one cgroup", |status| status.named == 1).await;
    world.nothing_said();
}

#[tokio::test]
async fn the_hint_and_then_the_order_says_which_of_several_svids_counts() {
    let mut world = World::new(OnExpiry::Withdraw);
    let (iam, chat) = (
        world.authority.svid(&[IAM], HOUR),
        world.authority.svid(&[CHAT], HOUR),
    );
    let both = |first, second| Answer::Say(answer([first, second]));
    let fake = world.fake(both(iam.clone(), chat.clone()));
    assert_eq!(world.next_name().await, IAM);
    fake.answer(both(hinted(iam.clone(), "internal"), hinted(chat.clone(), HINT)));
    assert_eq!(world.next_name().await, CHAT);
    fake.answer(both(called(iam, "/hanzo-k8s/hanzo/iam"), chat));
    assert_eq!(world.next_name().await, IAM);
}

#[tokio::test]
async fn identities_outlive_the_spire_agent_until_their_svid_expires() {
    let mut world = World::new(OnExpiry::Withdraw);
    let fake = world.fake(Answer::Say(answer([world.authority.svid(&[IAM], 15)])));
    assert_eq!(world.next_name().await, IAM);
    fake.stop().await;
    let status = world.until("no connection", |status| !status.connected).await;
    assert_eq!(status.named, 1, "it holds");
    assert!(status.error.is_some() && status.failures > 0);
    world.next_is_nobody().await;
    assert_eq!(world.health.status().withdrawn.get("expired"), Some(&1));

    let _fake = world.fake(world.say(IAM));
    assert_eq!(
        world.next_name().await,
        IAM,
        "the new SPIRE agent is found by itself"
    );
    assert!(world.health.status().connected);
}

#[tokio::test]
async fn an_expired_identity_is_held_where_that_is_wanted() {
    let mut world = World::new(OnExpiry::Hold);
    let fake = world.fake(Answer::Say(answer([world.authority.svid(&[IAM], 15)])));
    assert_eq!(world.next_name().await, IAM);
    fake.stop().await;
    let status = world.until("held", |status| status.expired == 1).await;
    assert_eq!(status.named, 0);
    world.nothing_said();
    // What SPIRE says counts all the same.
    let _fake = world.fake(Answer::Say(answer([])));
    world.next_is_nobody().await;
}

#[tokio::test]
async fn the_next_start_goes_on_with_what_was_known() {
    let mut world = World::new(OnExpiry::Withdraw);
    let fake = world.fake(world.say(IAM));
    assert_eq!(world.next_name().await, IAM);
    fake.stop().await;
    // Before it is stopped in order: whoever kills it leaves no less.
    let text = fs::read_to_string(&world.settings.memory).expect("written");
    assert!(text.contains(IAM), "{text}");
    world.stop().await;
    let known = world.start();
    let (id, identity) = known.get(&PathBuf::from("root/web")).expect("remembered");
    assert_eq!((*id, identity.spiffe.as_str()), (world.id("web"), IAM));
    world.until("it stands", |status| status.named == 1).await;
    // SPIRE is back, and says the same: nothing to pass on, and no rotation.
    let fake = world.fake(Answer::Say(answer([])));
    world.next_is_nobody().await;
    drop(fake);
    world.stop().await;
    assert!(world.start().is_empty());
}

#[tokio::test]
async fn an_svid_of_a_new_authority_counts_when_that_is_known() {
    let mut world = World::new(OnExpiry::Withdraw);
    let fake = world.fake(world.say(IAM));
    assert_eq!(world.next_name().await, IAM);
    let next = Authority::new();
    fake.answer(Answer::Say(answer([next.svid(&[CHAT], HOUR)])));
    world
        .until("refused", |status| status.refused["untrusted"] > 0)
        .await;
    assert_eq!(world.health.status().named, 1, "what was known stays");
    world.nothing_said();
    let both = bundles(DOMAIN, &[&world.authority, &next]);
    fake.script.send_modify(|script| script.bundles = Ok(both));
    assert_eq!(world.next_name().await, CHAT);
}

#[tokio::test]
async fn without_news_of_cgroups_it_goes_on_with_those_that_it_knows() {
    let mut world = World::new(OnExpiry::Withdraw);
    world.cgroups = mpsc::unbounded_channel().0;
    let fake = world.fake(world.say(IAM));
    assert_eq!(world.next_name().await, IAM);
    fake.answer(world.say(CHAT));
    assert_eq!(world.next_name().await, CHAT);
}
