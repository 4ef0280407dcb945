// SPDX-License-Identifier: Apache-2.0
//! What honest agents come to know of each other, and when they no longer do.

use base64::Engine as _;

use super::lies::Liar;
use super::*;

/// Keys with which `one` sends to `other` are verified there.
fn share_a_key(one: &Kernel, other: &Kernel) -> bool {
    let (Some((epoch, key)), true) = (one.uses.get(&1), one.uses.len() == 1) else {
        return false;
    };
    let verified = other.verifies.get(&(1, epoch & EPOCH_MASK));
    verified.is_some_and(|(of, known)| of == epoch && known == key)
}

async fn settled(one: &Agent, other: &Agent) -> (Kernel, Kernel) {
    let a = one
        .until("keys are in use", |kernel| kernel.uses.contains_key(&1))
        .await;
    let b = other
        .until("keys are in use", |kernel| kernel.uses.contains_key(&1))
        .await;
    (a, b)
}

#[tokio::test]
async fn two_nodes_know_who_lives_on_the_other_and_share_a_key_for_each_direction() {
    let world = World::new(&["a", "b"], "*");
    let (a, b) = (world.start("a", HashMap::new()), world.start("b", HashMap::new()));
    a.says(&[("10.1.0.5", "iam")]);
    b.says(&[("10.2.0.5", "chat"), ("10.2.0.6", "chat"), ("10.2.0.7", "web")]);
    let known = b.until_who("10.1.0.5", Some("w/iam")).await;
    let located = &known.at[&ip("10.1.0.5")];
    assert!(located.proves && located.node == 1);
    assert_eq!(known.who("192.0.2.1").as_deref(), Some("node"), "the node itself");
    a.until_who("10.2.0.7", Some("w/web")).await;
    a.until("all is known", |kernel| {
        kernel
            .lives
            .get(&1)
            .is_some_and(|lives| *lives == ["w/chat", "w/web"])
    })
    .await;
    let (at_a, at_b) = settled(&a, &b).await;
    assert!(share_a_key(&at_a, &at_b) && share_a_key(&at_b, &at_a));
    assert!(
        at_a.uses[&1].1 != at_b.uses[&1].1,
        "what is sent back does not verify"
    );
    let status = a.until_status("b is connected", |status| {
        status.nodes["b"].state == State::Connected && status.nodes["b"].epoch != 0
    });
    let status = status.await;
    assert_eq!(
        (
            status.nodes["b"].counts.addresses,
            status.nodes["b"].counts.identities
        ),
        (3, 2)
    );
    assert!(status.refused.values().all(|count| *count == 0), "{status:?}");

    // Changes, one after the other and several together.
    b.says(&[("10.2.0.5", "web"), ("10.2.0.9", "new")]);
    let known = a.until_who("10.2.0.9", Some("w/new")).await;
    a.until_who("10.2.0.6", None).await;
    a.until("chat has gone", |kernel| kernel.lives[&1] == ["w/new", "w/web"])
        .await;
    assert_ne!(known.who("10.2.0.5").as_deref(), Some("w/new"));
    a.until_who("10.2.0.5", Some("w/web")).await;
    // The node is no longer listed.
    a.roster.send_replace(Some(Arc::default()));
    let known = a
        .until("it is forgotten", |kernel| {
            kernel.at.is_empty() && kernel.uses.is_empty()
        })
        .await;
    assert!(known.verifies.is_empty() && known.lives.is_empty());
    assert!(a.health.status().nodes.is_empty());
}

#[tokio::test]
async fn what_keys_come_from_is_agreed_post_quantum() {
    let world = World::new(&["a", "b"], "*");
    let b = world.start("b", HashMap::new());
    let caller = Liar::as_a(&world, &b).await;
    assert_eq!(caller.key_exchange(), Some(rustls::NamedGroup::X25519MLKEM768));
}

#[tokio::test]
async fn keys_are_changed_while_what_is_sent_goes_on_being_verified() {
    let mut world = World::new(&["a", "b"], "*");
    world.timing.rotate = Duration::from_millis(20);
    let (a, b) = (world.start("a", HashMap::new()), world.start("b", HashMap::new()));
    let mut keys = Vec::new();
    for epoch in [1, 4, 9] {
        let reached = |kernel: &Kernel| kernel.uses.get(&1).is_some_and(|(uses, _)| *uses >= epoch);
        keys.push(a.until("the epoch is in use", reached).await.uses[&1].1);
        b.until("the epoch is in use", reached).await;
    }
    assert!(keys[0] != keys[1] && keys[1] != keys[2] && keys[0] != keys[2]);
    assert!(a.kernel.borrow().verifies.len() <= 4);
}

#[tokio::test]
async fn of_three_nodes_each_pair_has_a_connection_and_keys_of_its_own() {
    let world = World::new(&["a", "b", "c"], "*");
    let agents = ["a", "b", "c"].map(|node| world.start(node, HashMap::new()));
    for (index, agent) in agents.iter().enumerate() {
        agent.says(&[(&format!("10.{}.0.1", index + 1), &agent.name)]);
    }
    for (index, agent) in agents.iter().enumerate() {
        for other in (0..3).filter(|other| *other != index) {
            let name = format!("w/{}", agents[other].name);
            agent
                .until_who(&format!("10.{}.0.1", other + 1), Some(&name))
                .await;
        }
        let known = agent
            .until("both have keys", |kernel| kernel.uses.len() == 2)
            .await;
        assert!(known.uses[&1].1 != known.uses[&2].1);
    }
}

#[tokio::test]
async fn an_agent_that_is_killed_leaves_what_it_knew_and_its_successor_goes_on() {
    let world = World::new(&["a", "b"], "*");
    let (a, b) = (world.start("a", HashMap::new()), world.start("b", HashMap::new()));
    b.says(&[("10.2.0.5", "chat")]);
    a.until_who("10.2.0.5", Some("w/chat")).await;
    let (before, _) = settled(&a, &b).await;
    let memory = a.memory.clone();
    let is_saved = || std::fs::read_to_string(&memory).is_ok_and(|text| text.contains("w/chat"));
    a.until_status("it is saved", |_| is_saved()).await;
    a.kill();

    // The other node believes on, and so does the successor, before it has heard anything.
    let (epoch, key) = before.uses[&1];
    assert_eq!(b.kernel.borrow().verifies[&(1, epoch & EPOCH_MASK)].1.k0, key.k0);
    let a = world.start("a", HashMap::from([(1, epoch)]));
    assert_eq!(a.kernel.borrow().who("10.2.0.5").as_deref(), Some("w/chat"));
    let after = a
        .until("new keys are in use", |kernel| kernel.uses.contains_key(&1))
        .await;
    assert!(after.uses[&1].0 > epoch, "no epoch comes again");
    assert_eq!(after.who("10.2.0.5").as_deref(), Some("w/chat"));
    let at_b = b
        .until("new keys are in use", |kernel| {
            kernel.uses[&1].0 == after.uses[&1].0
        })
        .await;
    assert!(share_a_key(&after, &at_b) && share_a_key(&at_b, &after));
}

#[tokio::test]
async fn a_node_that_is_not_heard_is_believed_for_a_while_and_then_unknown() {
    let mut world = World::new(&["a", "b"], "*");
    world.hold = Duration::from_millis(300);
    let (a, b) = (world.start("a", HashMap::new()), world.start("b", HashMap::new()));
    b.says(&[("10.2.0.5", "chat"), ("10.2.0.6", "chat")]);
    a.until_who("10.2.0.5", Some("w/chat")).await;
    let (before, _) = settled(&a, &b).await;
    b.kill();
    let known = a.until_who("10.2.0.5", Some("nobody")).await;
    // Its kernel goes on asking for proof; what it proves itself names nobody.
    assert_eq!(known.uses[&1].0, before.uses[&1].0, "the key towards it is kept");
    assert!(known.lives[&1].is_empty(), "{:?}", known.lives);
    let status = a
        .until_status("it is unknown", |status| {
            status.nodes["b"].state == State::Unknown
        })
        .await;
    assert!(status.nodes["b"].error.is_some() && status.nodes["b"].epoch != 0);
    assert_eq!(known.who("192.0.2.2").as_deref(), Some("node"));

    // It is back, with somebody else.
    let b = world.start("b", HashMap::new());
    b.says(&[("10.2.0.5", "web")]);
    a.until_who("10.2.0.5", Some("w/web")).await;
    a.until_who("10.2.0.6", None).await;
    settled(&a, &b).await;
}

#[tokio::test]
async fn a_certificate_that_ends_ends_the_connection_and_a_newer_one_goes_on() {
    let world = World::new(&["a", "b"], "*");
    let (a, b) = (world.start("a", HashMap::new()), world.start("b", HashMap::new()));
    let soon = world
        .authority
        .issue_for(&[&World::agent_id("b")], Duration::from_secs(3));
    b.certificates
        .send_replace(Arc::new(Some(world.authority.mutual(&soon))));
    b.says(&[("10.2.0.5", "chat")]);
    a.until_who("10.2.0.5", Some("w/chat")).await;
    let (before, _) = settled(&a, &b).await;
    let newer = world.authority.mutual(&world.certificate("b"));
    b.certificates.send_replace(Arc::new(Some(newer)));
    let after = a
        .until("there are other keys", |kernel| {
            kernel.uses[&1].0 > before.uses[&1].0
        })
        .await;
    assert_eq!(after.who("10.2.0.5").as_deref(), Some("w/chat"));
}

#[tokio::test]
async fn with_svids_a_node_shows_what_it_holds() {
    let world = World::new(&["a", "b"], "");
    let (a, b) = (world.start("a", HashMap::new()), world.start("b", HashMap::new()));
    let chat = Arc::new(world.authority.issue(&[id("chat").as_str()]).certified());
    let shows = |name: &str| (name == "chat").then(|| Arc::clone(&chat));
    b.local
        .send_replace(Some(local(&[("10.2.0.5", "chat"), ("10.2.0.6", "web")], shows)));
    let known = a.until_who("10.2.0.5", Some("w/chat")).await;
    assert_eq!(
        known.who("10.2.0.6").as_deref(),
        Some("silent w/web"),
        "it has not shown that web lives there"
    );
    assert!(!known.at[&ip("10.2.0.6")].proves);
    let status = a
        .until_status("web is counted", |status| status.nodes["b"].counts.silent == 1)
        .await;
    assert_eq!(
        status.nodes["b"].counts.some_silent,
        [(ip("10.2.0.6"), id("web"))]
    );
    assert_eq!(status.refused["identity"], 0);
    // An SVID that ends takes the name with it.
    let soon = world
        .authority
        .issue_for(&[id("web").as_str()], Duration::from_secs(4));
    let soon = Arc::new(soon.certified());
    let shows = |name: &str| Some(Arc::clone(if name == "web" { &soon } else { &chat }));
    b.local
        .send_replace(Some(local(&[("10.2.0.5", "chat"), ("10.2.0.6", "web")], shows)));
    a.until_who("10.2.0.6", Some("w/web")).await;
    let known = a.until_who("10.2.0.6", Some("silent w/web")).await;
    assert_eq!(known.who("10.2.0.5").as_deref(), Some("w/chat"));
}

#[tokio::test]
async fn keys_are_nowhere_but_where_the_kernel_is_told_of_them() {
    let world = World::new(&["a", "b"], "*");
    let (a, b) = (world.start("a", HashMap::new()), world.start("b", HashMap::new()));
    b.says(&[("10.2.0.5", "chat")]);
    a.until_who("10.2.0.5", Some("w/chat")).await;
    let (known, _) = settled(&a, &b).await;
    let memory = a.memory.clone();
    let is_saved = || std::fs::read_to_string(&memory).is_ok_and(|text| text.contains("w/chat"));
    a.until_status("it is saved", |_| is_saved()).await;
    let kept = std::fs::read_to_string(&a.memory).expect("saved");
    let said = format!("{kept}{:?}", a.health.status());
    let keys = known.uses.values().chain(known.verifies.values());
    for word in keys.flat_map(|(_, key)| [key.k0, key.k1]) {
        let bytes = word.to_le_bytes();
        let base64 = base64::engine::general_purpose::STANDARD.encode(bytes);
        for form in [
            word.to_string(),
            format!("{word:x}"),
            format!("{:x}", word.swap_bytes()),
            format!("{bytes:?}"),
            base64,
        ] {
            assert!(!said.contains(form.trim_end_matches('=')), "{form} in {said}");
        }
    }
}
