// SPDX-License-Identifier: Apache-2.0
//! What an agent that is started again goes on with, on either side, and when that ends.

use super::*;

/// What `b` says in all of these.
const SAYS: &[(&str, &str)] = &[("10.2.0.5", "chat")];

async fn until_saved(agent: &Agent, what: &'static str, is_so: impl Fn(&str) -> bool) {
    let is_so = || std::fs::read_to_string(&agent.memory).is_ok_and(|text| is_so(&text));
    agent.until_status(what, |_| is_so()).await;
}

/// Both know each other, and `a` is killed when it is on disk that `b` is not heard any more. The epoch of its key.
async fn left_behind(world: &World) -> u64 {
    let (a, b) = (world.start("a", HashMap::new()), world.start("b", HashMap::new()));
    b.says(SAYS);
    a.until_who("10.2.0.5", Some("w/chat")).await;
    let known = a
        .until("keys are in use", |kernel| kernel.uses.contains_key(&1))
        .await;
    b.kill();
    until_saved(&a, "it is saved that b is not heard", |text| {
        text.contains("w/chat") && !text.contains("\"unheard\":null")
    })
    .await;
    a.kill();
    known.uses[&1].0
}

/// It was that much longer ago that `b` was heard.
fn shift(world: &World, by: Duration) -> i64 {
    let path = world.directory.path().join("a.json");
    let text = std::fs::read_to_string(&path).expect("saved");
    let mut kept: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let unheard = &mut kept["nodes"]["b"]["unheard"];
    let shifted = unheard.as_i64().expect("a number") - i64::try_from(by.as_secs()).expect("few");
    *unheard = shifted.into();
    std::fs::write(&path, kept.to_string()).expect("written");
    shifted
}

fn state(agent: &Agent) -> Option<State> {
    agent.health.status().nodes.get("b").map(|node| node.state)
}

#[tokio::test]
async fn what_was_not_heard_is_held_once_however_often_the_agent_is_restarted() {
    let mut world = World::new(&["a", "b"], "*");
    world.hold = Duration::from_secs(3600);
    let epoch = left_behind(&world).await;
    let unheard = shift(&world, Duration::from_secs(1800));
    // It is believed for as long as is left, and the next agent is told since when.
    for _ in 0..3 {
        let a = world.start("a", HashMap::from([(1, epoch)]));
        assert_eq!(a.kernel.borrow().who("10.2.0.5").as_deref(), Some("w/chat"));
        a.until_status("b is held", |_| state(&a) == Some(State::Stale))
            .await;
        until_saved(&a, "it is saved since when", |text| {
            let kept: serde_json::Value = serde_json::from_str(text).expect("JSON");
            kept["nodes"]["b"]["unheard"] == unheard
        })
        .await;
        a.kill();
    }
    shift(&world, Duration::from_secs(1800));
    let a = world.start("a", HashMap::from([(1, epoch)]));
    // That is so from its first moment: the address is nothing else's in between.
    assert_eq!(a.kernel.borrow().who("10.2.0.5").as_deref(), Some("nobody"));
    a.until_status("b is unknown", |_| state(&a) == Some(State::Unknown))
        .await;
    assert_eq!(a.kernel.borrow().who("10.2.0.5").as_deref(), Some("nobody"));
    until_saved(&a, "it is saved that nobody is known there", |text| {
        let kept: serde_json::Value = serde_json::from_str(text).expect("JSON");
        kept["nodes"]["b"]["residents"] == serde_json::json!([])
    })
    .await;
    a.kill();
    // So it is for all who come after, from their first moment.
    for _ in 0..2 {
        let a = world.start("a", HashMap::from([(1, epoch)]));
        assert_eq!(a.kernel.borrow().who("10.2.0.5").as_deref(), Some("nobody"));
        a.until_status("b is unknown", |_| state(&a) == Some(State::Unknown))
            .await;
        assert_eq!(a.kernel.borrow().who("10.2.0.5").as_deref(), Some("nobody"));
        a.kill();
    }
}

#[tokio::test]
async fn of_nodes_that_are_not_known_to_be_there_nothing_is_taken_up() {
    let world = World::new(&["a", "b"], "*");
    let epoch = left_behind(&world).await;
    let a = world.start_with("a", None, Some(Arc::default()), HashMap::from([(1, epoch)]));
    assert!(a.kernel.borrow().at.is_empty() && a.kernel.borrow().speaks.is_empty());
    // They are known at last: what was not believed meanwhile is not believed then.
    a.roster.send_replace(Some(Arc::new(world.roster("a"))));
    a.until_who("10.2.0.5", Some("nobody")).await;
    a.until_status("b is unknown", |_| state(&a) == Some(State::Unknown))
        .await;
    let b = world.start("b", HashMap::new());
    b.says(SAYS);
    let known = a.until_who("10.2.0.5", Some("w/chat")).await;
    assert_eq!(known.at[&ip("10.2.0.5")].node, 1, "the number that it had");
    let known = a
        .until("new keys are in use", |kernel| kernel.uses.contains_key(&1))
        .await;
    assert!(known.uses[&1].0 > epoch, "no epoch comes again");
}

#[tokio::test]
async fn a_node_that_is_not_heard_again_has_no_word_about_its_networks_after_a_while() {
    let mut world = World::new(&["a", "b"], "*");
    {
        let (a, b) = (world.start("a", HashMap::new()), world.start("b", HashMap::new()));
        // Nobody lives there.
        b.until_status("a is connected", |status| {
            status
                .nodes
                .get("a")
                .is_some_and(|node| node.state == State::Connected)
        })
        .await;
        a.until("its word is all there is", |kernel| {
            kernel.speaks.get(&1).is_some_and(|nets| nets.len() == 2)
        })
        .await;
        until_saved(&a, "it is saved", |text| text.contains("10.2.0.0/24")).await;
        b.kill();
        until_saved(&a, "it is saved that b is not heard", |text| {
            !text.contains("\"unheard\":null")
        })
        .await;
        a.kill();
    }
    world.hold = Duration::from_secs(3600);
    shift(&world, Duration::from_secs(3590));
    let a = world.start("a", HashMap::new());
    if state(&a) == Some(State::Stale) {
        assert_eq!(a.kernel.borrow().speaks[&1].len(), 2);
    }
    a.until("it has none any more", |kernel| {
        kernel.speaks.get(&1).is_none_or(Vec::is_empty)
    })
    .await;
    a.until_status("b is unknown", |_| state(&a) == Some(State::Unknown))
        .await;
}

#[tokio::test]
async fn who_was_shown_keeps_his_name_while_the_agent_there_starts_again() {
    let world = World::new(&["a", "b"], "");
    let (a, b) = (world.start("a", HashMap::new()), world.start("b", HashMap::new()));
    let svids = ["chat", "web"].map(|name| {
        let svid = world.authority.issue(&[id(name).as_str()]);
        (id(name), Arc::new(svid.certified()))
    });
    let shows = |name: &str| {
        let found = svids.iter().find(|(known, _)| *known == id(name));
        found.map(|(_, svid)| Arc::clone(svid))
    };
    let at = [("10.2.0.5", "chat"), ("10.2.0.6", "web")];
    b.local.send_replace(Some(local(&at, shows)));
    a.until_who("10.2.0.6", Some("w/web")).await;
    a.until_who("10.2.0.5", Some("w/chat")).await;
    b.kill();

    // From here on whoever has had a name is watched for being without one.
    let mut lost = a.kernel.clone();
    let watching = tokio::spawn(async move {
        let is_lost = |kernel: &Kernel| kernel.who("10.2.0.5").as_deref() != Some("w/chat");
        lost.wait_for(is_lost).await.map(|kernel| kernel.who("10.2.0.5"))
    });
    // It does not know yet who is there, then has no SVIDs, and then has one of them.
    let b = world.start_with("b", Some(world.roster("b")), None, HashMap::new());
    b.until_status("a is connected", |status| {
        status
            .nodes
            .get("a")
            .is_some_and(|node| node.state == State::Connected)
    })
    .await;
    assert_eq!(state(&a), Some(State::Stale), "b has not said all");
    b.local.send_replace(Some(local(&at, |_| None)));
    a.until_status("b has said all", |status| {
        status.connections == 2 && status.nodes["b"].state == State::Connected
    })
    .await;
    assert_eq!(a.kernel.borrow().who("10.2.0.6").as_deref(), Some("w/web"));
    b.local
        .send_replace(Some(local(&at, |name| shows(name).filter(|_| name == "chat"))));
    // What it says is gone is gone.
    b.local.send_replace(Some(local(&at[..1], |name| {
        shows(name).filter(|_| name == "chat")
    })));
    a.until_who("10.2.0.6", None).await;
    a.until("web has gone", |kernel| kernel.lives[&1] == ["w/chat"])
        .await;
    assert!(!watching.is_finished(), "{:?}", watching.await);
    watching.abort();
}
