// SPDX-License-Identifier: Apache-2.0
//! What is no longer believed, and when: names and keys of which the time has come, authorities that have gone, and addresses
//! that somebody else claims.

use super::*;
use crate::tls::tests::Authority;

#[tokio::test]
async fn an_overlap_costs_the_claimed_address_and_nothing_else() {
    let world = World::new(&["a", "b", "c"], "*");
    let (a, b) = (world.start("a", HashMap::new()), world.start("b", HashMap::new()));
    b.says(&[("10.2.0.5", "chat"), ("10.2.0.6", "web")]);
    a.until_who("10.2.0.6", Some("w/web")).await;
    a.until_who("192.0.2.2", Some("node")).await;
    let before = a.until_status("b is connected", |status| {
        status.nodes["b"].state == State::Connected
    });
    let before = before.await;

    // Node c claims node b's own address and one of its pods', and node a's own.
    let claims = |nets: &[&str]| {
        let mut neighbours = world.neighbours.clone();
        neighbours[2].speaks_for = nets.iter().map(|net| net.parse().expect("literal")).collect();
        Some(Arc::new(
            Roster::new(neighbours, PATTERN, "a", &[]).expect("a roster"),
        ))
    };
    a.roster.send_replace(claims(&[
        "192.0.2.2/32",
        "10.2.0.6/32",
        "10.1.0.0/24",
        "10.3.0.0/24",
    ]));
    a.until_who("192.0.2.2", Some("disputed")).await;
    let known = a.until_who("10.2.0.6", Some("disputed")).await;
    assert_eq!(known.who("10.2.0.5").as_deref(), Some("w/chat"));
    b.says(&[("10.2.0.6", "web"), ("10.2.0.7", "new")]);
    a.until_who("10.2.0.7", Some("w/new")).await;
    let status = a.health.status();
    let owners: Vec<_> = status
        .disputes
        .iter()
        .map(|dispute| dispute.owner.as_deref())
        .collect();
    assert_eq!(owners, [Some("a"), None, None]);
    assert_eq!(status.connections, before.connections, "the connection goes on");

    a.roster.send_replace(claims(&["10.3.0.0/24"]));
    a.until_who("192.0.2.2", Some("node")).await;
    a.until_who("10.2.0.6", Some("w/web")).await;
    assert!(a.health.status().disputes.is_empty());
    assert_eq!(a.health.status().connections, before.connections);
}

#[tokio::test]
async fn a_node_that_speaks_for_more_is_heard_about_that() {
    let world = World::new(&["a", "b"], "*");
    let mut less = world.neighbours.clone();
    less[1].speaks_for.retain(|net| net.prefix_len() == 32);
    let known = Roster::new(less, PATTERN, "a", &[]).expect("a roster");
    let (a, b) = (
        world.start_among("a", known, HashMap::new()),
        world.start("b", HashMap::new()),
    );
    b.says(&[("10.2.0.5", "chat")]);
    a.until_status("it is refused", |status| status.refused["address"] > 0)
        .await;
    a.roster.send_replace(Some(Arc::new(world.roster("a"))));
    let known = a.until("its word is all there is", |kernel| {
        kernel.speaks.get(&1).is_some_and(|nets| nets.len() == 2)
    });
    assert_eq!(known.await.who("10.2.0.5").as_deref(), Some("w/chat"));
}

#[tokio::test]
async fn whose_authority_has_gone_is_forgotten_at_once() {
    let world = World::new(&["a", "b"], "*");
    let (a, b) = (world.start("a", HashMap::new()), world.start("b", HashMap::new()));
    let other = Authority::new();
    let own = [world.certificate("a"), other.issue(&[&World::agent_id("b")])];
    let both = |shows| Arc::new(Some(world.authority.mutual_with(shows, &[&other])));
    a.certificates.send_replace(both(&own[0]));
    b.certificates.send_replace(both(&own[1]));
    b.says(&[("10.2.0.5", "chat")]);
    a.until_who("10.2.0.5", Some("w/chat")).await;
    a.until("keys are in use", |kernel| kernel.uses.contains_key(&1))
        .await;
    // The same as before changes nothing.
    a.certificates.send_replace(both(&own[0]));
    b.says(&[("10.2.0.5", "chat"), ("10.2.0.6", "web")]);
    a.until_who("10.2.0.6", Some("w/web")).await;

    a.certificates
        .send_replace(Arc::new(Some(world.authority.mutual(&own[0]))));
    let known = a.until_who("10.2.0.5", Some("nobody")).await;
    assert!(known.uses.is_empty() && known.verifies.is_empty());
    let status = a
        .until_status("it is refused", |status| status.refused["tls"] > 0)
        .await;
    assert_eq!(status.nodes["b"].state, State::Unknown);
}

#[tokio::test]
async fn what_was_shown_by_an_authority_that_has_gone_is_to_be_shown_anew() {
    let world = World::new(&["a", "b"], "");
    let (a, b) = (world.start("a", HashMap::new()), world.start("b", HashMap::new()));
    let other = Authority::new();
    let own = world.certificate("a");
    let believes = |also: &[&Authority]| Arc::new(Some(world.authority.mutual_with(&own, also)));
    a.certificates.send_replace(believes(&[&other]));
    let [chat, web] = [(&world.authority, "chat"), (&other, "web")]
        .map(|(authority, name)| Arc::new(authority.issue(&[id(name).as_str()]).certified()));
    let shows = |name: &str| Some(Arc::clone(if name == "chat" { &chat } else { &web }));
    b.local
        .send_replace(Some(local(&[("10.2.0.5", "chat"), ("10.2.0.6", "web")], shows)));
    a.until_who("10.2.0.6", Some("w/web")).await;
    // One on which nothing rests goes: nobody is asked for anything.
    let third = Authority::new();
    a.certificates.send_replace(believes(&[&other, &third]));
    a.certificates.send_replace(believes(&[&other]));
    b.local.send_replace(Some(local(
        &[("10.2.0.5", "chat"), ("10.2.0.6", "web"), ("10.2.0.7", "chat")],
        shows,
    )));
    a.until_who("10.2.0.7", Some("w/chat")).await;
    assert_eq!(a.health.status().connections, 1);

    a.certificates.send_replace(believes(&[]));
    let known = a.until_who("10.2.0.6", Some("silent w/web")).await;
    assert_eq!(known.who("10.2.0.5").as_deref(), Some("w/chat"));
    a.until_status("it is asked to show it anew", |status| status.connections == 2)
        .await;
    let known = a.kernel.borrow().clone();
    assert_eq!(known.who("10.2.0.6").as_deref(), Some("silent w/web"));
    assert_eq!(known.who("10.2.0.5").as_deref(), Some("w/chat"));
}

#[tokio::test]
async fn a_certificate_that_nobody_needs_ends_nothing() {
    let world = World::new(&["a", "b"], "*");
    let (a, b) = (world.start("a", HashMap::new()), world.start("b", HashMap::new()));
    // What both show has one in it that has ended, as of an authority of before.
    let ended = world.authority.ended();
    for agent in [&a, &b] {
        let own = world.certificate(&agent.name);
        let shows = world.authority.mutual_showing(&own, &[&ended], &[]);
        agent.certificates.send_replace(Arc::new(Some(shows)));
    }
    b.says(&[("10.2.0.5", "chat")]);
    a.until_who("10.2.0.5", Some("w/chat")).await;
    a.until("keys are in use", |kernel| kernel.uses.contains_key(&1))
        .await;
    b.says(&[("10.2.0.5", "web")]);
    a.until_who("10.2.0.5", Some("w/web")).await;
    assert_eq!(
        (a.health.status().connections, b.health.status().connections),
        (1, 1)
    );
}

#[tokio::test]
async fn an_svid_ends_also_while_its_node_is_not_heard_and_across_a_restart() {
    let mut world = World::new(&["a", "b"], "");
    let (a, b) = (world.start("a", HashMap::new()), world.start("b", HashMap::new()));
    let long = Arc::new(world.authority.issue(&[id("chat").as_str()]).certified());
    let soon = world
        .authority
        .issue_for(&[id("web").as_str()], Duration::from_secs(4));
    let soon = Arc::new(soon.certified());
    let shows = |name: &str| Some(Arc::clone(if name == "web" { &soon } else { &long }));
    b.local
        .send_replace(Some(local(&[("10.2.0.5", "chat"), ("10.2.0.6", "web")], shows)));
    a.until_who("10.2.0.6", Some("w/web")).await;
    let memory = a.memory.clone();
    let is_saved = |what: &'static str| {
        let text = std::fs::read_to_string(&memory).unwrap_or_default();
        text.contains(what)
    };
    a.until_status("it is saved", |_| is_saved("w/web")).await;
    let early = tempfile::tempdir().expect("directory");
    let kept = early.path().join("a.json");
    std::fs::copy(&a.memory, &kept).expect("copied");
    b.kill();
    let known = a.until_who("10.2.0.6", Some("silent w/web")).await;
    assert_eq!(known.who("10.2.0.5").as_deref(), Some("w/chat"), "it is held");
    a.kill();
    // What an agent left that ended before.
    world.directory = early;
    let a = world.start("a", HashMap::new());
    let known = a.kernel.borrow().clone();
    assert_eq!(known.who("10.2.0.6").as_deref(), Some("silent w/web"));
    assert_eq!(known.who("10.2.0.5").as_deref(), Some("w/chat"));
}

#[tokio::test]
async fn a_key_that_is_no_longer_used_is_accepted_for_its_time() {
    for (overlap, stays) in [
        (Duration::from_secs(3600), true),
        (Duration::from_millis(300), false),
    ] {
        let mut world = World::new(&["a", "b"], "*");
        world.timing.overlap = overlap;
        let (a, b) = (world.start("a", HashMap::new()), world.start("b", HashMap::new()));
        let uses = |kernel: &Kernel, epoch| kernel.uses.get(&1).is_some_and(|(uses, _)| *uses == epoch);
        a.until("keys are in use", |kernel| uses(kernel, 1)).await;
        b.until("keys are in use", |kernel| uses(kernel, 1)).await;
        let before = a.kernel.borrow().verifies[&(1, 1)];
        b.kill();
        // Its successor knows what the kernel's map says.
        let b = world.start("b", HashMap::from([(1, 1)]));
        a.until("the next keys are in use", |kernel| uses(kernel, 2))
            .await;
        b.until("the next keys are in use", |kernel| uses(kernel, 2))
            .await;
        if stays {
            b.says(&[("10.2.0.5", "chat")]);
            let known = a.until_who("10.2.0.5", Some("w/chat")).await;
            assert!(known.verifies.get(&(1, 1)) == Some(&before), "what is under way");
        } else {
            a.until("the one before is forgotten", |kernel| kernel.verifies.len() == 1)
                .await;
        }
    }
}

#[tokio::test]
async fn nobody_is_told_of_a_key_that_the_kernel_has_not_taken() {
    let mut world = World::new(&["a", "b"], "*");
    world.refuses_keys = Some("a");
    let (a, b) = (world.start("a", HashMap::new()), world.start("b", HashMap::new()));
    a.until_status("it is said", |status| {
        let error = status.nodes.get("b").and_then(|node| node.error.as_deref());
        error.is_some_and(|error| error.contains("the kernel took no key"))
    })
    .await;
    assert!(a.kernel.borrow().uses.is_empty());
    assert_eq!(b.health.status().nodes["a"].counts.addresses, 0);
    a.kernel.borrow().refuses_keys.store(false, Ordering::Relaxed);
    a.until("keys are in use", |kernel| kernel.uses.contains_key(&1))
        .await;
}
