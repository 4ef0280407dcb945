// SPDX-License-Identifier: Apache-2.0
//! What an engine said of silent nodes holds when it has begun anew and knows of none; and whom there is room to answer for.

use super::*;
use crate::policy_cluster::stopped::heard_written;
use crate::state::FORGET_AFTER;

fn missed(node: &str, heard: i64) -> MissedNode {
    MissedNode {
        node: node.to_owned(),
        heard,
    }
}

/// Fails where a node is forgotten with the memory of its engine: the rollout would go on without it.
#[test]
fn who_was_silent_before_his_engine_began_anew_is_so_afterwards() {
    let now = clock::now();
    let long_ago = now - 2 * SILENT_AFTER.as_nanos() as i64;
    let mut rollout = resource("r", &json!([]));
    rollout.resource["kind"] = ROLLOUT_KIND.into();
    let mut wrote = |engine, seen: &Followers, hears: &Hears, now| {
        let nodes = Nodes { engine, seen, hears };
        write(&mut rollout, &finding(true), Some(&nodes), now);
        let mut all = Known::default();
        all.take(2, Said::All(vec![rollout.clone()]));
        (
            told_by_engines(&all, Some("one")).silent,
            rollout.resource["status"]["engines"].clone(),
        )
    };
    let before = Followers {
        silent: 2,
        missed: vec![
            missed("back", long_ago),
            missed("gone", long_ago),
            missed("lately", now - 1),
        ],
        ..seen(3, 0)
    };
    wrote("one", &before, &move |_| Some(long_ago), now);
    // Nobody has told it anything yet; then one of them has.
    let (told, engines) = wrote("one", &seen(0, 0), &|_| None, now);
    let by_one = |node: &str| ("one".to_owned(), missed(node, long_ago));
    assert_eq!(told, [by_one("back"), by_one("gone")]);
    assert_eq!(
        (&engines[0]["nodes"], &engines[0]["nodesSilent"]),
        (&json!(0), &json!(2))
    );
    let back = move |node: &str| (node == "back").then_some(now);
    let (told, engines) = wrote("one", &seen(1, 1), &back, now);
    assert_eq!(
        (told, &engines[0]["nodesSilent"]),
        (vec![by_one("gone")], &json!(1))
    );
    // One has gone over to another engine, and the other is gone for good.
    let lately = move |node: &str| (node == "lately").then_some(now);
    wrote("two", &seen(1, 1), &lately, now);
    let (_, engines) = wrote("one", &seen(1, 1), &back, now);
    let left = json!([{ "node": "gone", "heard": Timestamp(long_ago) }]);
    assert_eq!(engines[0]["silent"], left);
    let (told, engines) = wrote(
        "one",
        &seen(1, 1),
        &back,
        long_ago + FORGET_AFTER.as_nanos() as i64 + 1,
    );
    assert_eq!((told, engines[0].get("silent")), (Vec::new(), None));
}

/// Fails where a node is forgotten with the words of an engine that is gone, as it is when its pod is another one.
#[test]
fn who_was_silent_at_an_engine_that_is_gone_is_so_at_one_other() {
    let now = clock::now();
    let earlier = now - 2 * RENEW_ROLLOUT;
    let heard = earlier - 2 * SILENT_AFTER.as_nanos() as i64;
    let mut rollout = resource("r", &json!([]));
    rollout.resource["kind"] = ROLLOUT_KIND.into();
    let mut wrote = |engine, seen: &Followers, now| {
        let hears: &Hears = &|_| None;
        let nodes = Nodes { engine, seen, hears };
        write(&mut rollout, &finding(true), Some(&nodes), now);
        let engines = rollout.resource["status"]["engines"].as_array().cloned();
        let mut engines = engines.unwrap_or_default().into_iter();
        let own = engines
            .find(|one| one["name"] == engine)
            .expect("it says something");
        own.get("silent").cloned()
    };
    let before = Followers {
        silent: 1,
        missed: vec![missed("gone", heard)],
        ..seen(3, 0)
    };
    let gone = Some(json!([{ "node": "gone", "heard": Timestamp(heard) }]));
    assert_eq!(wrote("one", &before, earlier), gone);
    // Times are written by the second.
    let shortly_before = now - 5_000_000_000;
    assert_eq!(
        wrote("two", &seen(1, 1), shortly_before),
        None,
        "it may speak yet"
    );
    assert_eq!(wrote("two", &seen(1, 1), now), gone);
    assert_eq!(wrote("three", &seen(1, 1), now), None, "one says so");
}

/// Fails where names come first by the alphabet, though nobody may believe what was said of them any more.
#[test]
fn where_there_is_no_room_for_all_the_engine_that_spoke_last_is_answered() {
    let said = |name: &str, reported, first: u32| {
        let silent =
            (first..first + 100).map(|node| json!({"node": format!("n{node}"), "heard": Timestamp(1)}));
        json!({"name": name, "reported": Timestamp(reported), "silent": silent.collect::<Vec<_>>()})
    };
    let engines = json!([
        said("earlier", NOW, 100),
        said("later", NOW + 1, 200),
        said("own", NOW + 2, 300)
    ]);
    let heard = heard_written(&engines, "own", |_| Some(2));
    assert_eq!(heard.len(), 100);
    for missed in heard {
        let node = missed["node"].as_str().expect("a name");
        assert!(node.starts_with("n2"), "{node}");
    }
}
