// SPDX-License-Identifier: Apache-2.0
//! The API away, forgetful, silent, talking nonsense, or refusing us.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use zt_agent::identity::kubernetes::{Changes, Template, Whose};
use zt_agent::identity::peers::{Neighbour, Roster};
use zt_agent::kubernetes::{Client, Others, Settings, Source, Timing};
use zt_agent::peers::{self, State};
use zt_tests::eventually;
use zt_tests::kube_api::Faults;

use super::*;

#[test]
fn what_is_known_holds_while_the_api_is_away_and_is_made_up_for_afterwards() -> Result<()> {
    let mut world = World::new("kube-away")?;
    world.put_far("server", "server")?;
    let uid = world.put_client("client")?;
    let mut agent = world.agent()?.start()?;
    let mut client = world.start(&uid, "app")?;
    world.connects(&mut client, "ok")?;
    eventually("everything to have been listed", LATER, || {
        Ok(ready(&agent)? == json!({ "status": "ready" }))
    })?;

    world.api.stop();
    let stale = wait_status(&agent, "staleness to be told", |status| {
        status["collections"]["pods"]["stale"] == true && status["collections"]["node-pods"]["stale"] == true
    })?;
    assert_eq!(stale["stale"], true);
    let since = stale["collections"]["pods"]["since"].clone();
    let words = ready(&agent)?;
    assert_eq!(words["status"], "ready", "an old name is a name");
    assert!(
        words["kubernetes"]
            .as_str()
            .is_some_and(|text| text.contains("those that were known")),
        "{words}"
    );
    let stale_for = [("collection", "pods")];
    assert_eq!(agent.metrics()?.sum("zt_kubernetes_stale", &stale_for), 1);
    assert_eq!(world.connect(&mut client)?, "ok");

    // Started again while it is away: nothing is lost.
    agent.kill()?;
    agent.restart()?;
    assert_eq!(world.connect(&mut client)?, "ok");
    let again = agent.get("/v1/status")?["kubernetes"].clone();
    assert_eq!(again["stale"], true);
    assert_ne!(
        again["collections"]["pods"]["since"], since,
        "that was the last agent's"
    );

    // What happens meanwhile is heard when it is back.
    world.api.delete(PODS, "shop", "server");
    world.put_far("thief", "thief")?;
    world.api.listen()?;
    wait_status(&agent, "freshness", |status| status["stale"] == false)?;
    world.connects(&mut client, "EPERM")?;
    assert_eq!(ready(&agent)?, json!({ "status": "ready" }));
    Ok(())
}

#[test]
fn an_agent_that_starts_again_asks_before_it_takes_anything_away() -> Result<()> {
    let world = World::new("kube-again")?;
    world.put_far("server", "server")?;
    let uid = world.put_client("client")?;
    let mut agent = world.agent()?.start()?;
    let mut client = world.start(&uid, "app")?;
    world.connects(&mut client, "ok")?;
    for killed in [true, false] {
        if killed {
            agent.kill()?;
        } else {
            agent.terminate()?;
        }
        // The address is another pod's by the time that it is back: the old name is not believed for a moment.
        world.api.delete(PODS, "shop", "server");
        world.put_far("thief", "thief")?;
        let unheard =
            |agent: &Agent| Ok::<_, anyhow::Error>(agent.log()?.matches("going on with the pods").count());
        let before = unheard(&agent)?;
        agent.restart()?;
        let outcome = world.connect(&mut client)?;
        // On a machine that is too busy to answer it within five seconds it goes on with what it knew.
        if unheard(&agent)? == before {
            assert_eq!(outcome, "EPERM");
        }
        world.connects(&mut client, "EPERM")?;
        world.api.delete(PODS, "shop", "thief");
        world.put_far("server", "server")?;
        world.connects(&mut client, "ok")?;
    }
    Ok(())
}

#[test]
fn a_server_that_forgets_is_listed_again_once_and_nothing_flaps() -> Result<()> {
    let world = World::new("kube-gone")?;
    world.put_far("server", "server")?;
    let uid = world.put_client("client")?;
    let agent = world.agent()?.start()?;
    let mut client = world.start(&uid, "app")?;
    world.connects(&mut client, "ok")?;
    let before = world.api.counts(PODS);
    for round in 1..=3_u64 {
        // Somebody goes while nobody listens.
        world.put_far("thief", "thief")?;
        world.connects(&mut client, "EPERM")?;
        world.api.delete(PODS, "shop", "thief");
        world.api.expire();
        wait_status(&agent, "another list", |status| {
            let lists = |collection: &str| status["collections"][collection]["lists"].as_u64();
            status["stale"] == false
                && lists("pods") == Some(1 + round)
                && lists("node-pods") == Some(1 + round)
        })?;
        world.connects(&mut client, "ok")?;
    }
    let after = world.api.counts(PODS);
    assert_eq!(after.lists - before.lists, 6, "two collections, three times");
    // One that hangs up is taken up where it was.
    for in_a_line in [true, false] {
        world.api.hang_up(in_a_line);
        world.put_far("thief", "thief")?;
        world.connects(&mut client, "EPERM")?;
        world.api.delete(PODS, "shop", "thief");
        world.connects(&mut client, "ok")?;
    }
    assert_eq!(world.api.counts(PODS).lists, after.lists);
    Ok(())
}

#[test]
fn an_api_that_refuses_us_is_named_and_asked_ever_less_often() -> Result<()> {
    let world = World::new("kube-refused")?;
    world.api.fault(Faults {
        status: Some(401),
        ..Faults::default()
    });
    let agent = world.agent()?.start()?;
    let status = wait_status(&agent, "a refusal", |status| {
        status["collections"]["pods"]["failures"].as_u64() >= Some(1)
    })?;
    let error = status["collections"]["pods"]["error"]
        .as_str()
        .unwrap_or_default();
    assert!(error.contains("401") && error.contains("ClusterRole"), "{error}");
    for (code, list_body) in [
        (Some(429), None),
        (Some(500), None),
        (None, Some("{]".to_owned())),
    ] {
        world.api.fault(Faults {
            status: code,
            list_body,
            ..Faults::default()
        });
        let words = code.map_or("not understood".to_owned(), |code| code.to_string());
        wait_status(&agent, &words, |status| {
            status["collections"]["pods"]["error"]
                .as_str()
                .is_some_and(|error| error.contains(&words))
        })?;
    }
    world.api.fault(Faults::default());
    wait_status(&agent, "freshness", |status| status["stale"] == false)?;
    Ok(())
}

#[test]
fn who_makes_the_api_reachable_is_not_refused_before_the_api_was_ever_heard() -> Result<()> {
    let world = World::new("kube-first")?;
    world.api.fault(Faults {
        status: Some(503),
        ..Faults::default()
    });
    let agent = world.agent()?.start()?;
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    // A service proxy has its node's network; a pod of a tenant has not.
    let [proxy, tenant] = [7, 8].map(|last| format!("f0000000-0000-4000-8000-00000000000{last}"));
    let mut proxy = world
        .sandbox
        .probe(&world.pod_cgroup(&proxy)?.child("app")?, None)?;
    let mut tenant = world.start(&tenant, "app")?;
    let mut becomes = |outcome: &str| {
        let mut last = String::new();
        let done = wait_for(&format!("the proxy's connection to be {outcome}"), LATER, || {
            let reply = proxy.connect(port.local_addr()?)?;
            last = reply.outcome().to_owned();
            if let Some(socket) = reply.socket {
                proxy.close(socket)?;
            }
            Ok((last == outcome).then_some(()))
        });
        done.with_context(|| format!("last: {last}"))
    };
    becomes("ok")?;
    assert_eq!(world.connect(&mut tenant)?, "EPERM");
    let unnamed = agent.get("/v1/status")?["unnamed"].clone();
    let found = |left_alone: Value| {
        let all = unnamed.as_array().into_iter().flatten();
        let mut found = all.filter(|one| one["why"] == "untold" && one["left_alone"] == left_alone);
        found.next().is_some()
    };
    assert!(found(json!("host_network")) && found(Value::Null), "{unnamed}");
    // Once it is heard, it says who is there: this one is nobody.
    world.api.fault(Faults::default());
    becomes("EPERM")
}

#[test]
fn a_kubeconfig_that_is_none_starts_nothing() -> Result<()> {
    let world = World::new("kube-config")?;
    for (path, words) in [
        ("/nonexistent/kubeconfig", "/nonexistent/kubeconfig"),
        ("kubeconfig", "absolute path"),
    ] {
        let agent = world.agent()?.config("kubernetes", json!({ "kubeconfig": path }));
        let mut agent = agent.launch()?;
        assert_eq!(agent.wait_exit()?.code(), Some(64));
        let log = agent.log()?;
        assert!(log.contains(words), "{log}");
    }
    Ok(())
}

#[test]
fn where_pods_of_other_nodes_are_is_not_believed_for_ever() -> Result<()> {
    let mut api = KubeApi::start()?;
    let address: IpAddr = "10.1.1.1".parse()?;
    api.put(PODS, pod("server", "server", OTHER, &address.to_string()));
    let directory = tempfile::tempdir()?;
    let kubeconfig = api.kubeconfig(directory.path())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let settings = Settings {
        client: runtime.block_on(Client::new(Some(&kubeconfig), Duration::from_secs(30)))?,
        naming: Template::default().fixed("hanzo.ai", "hanzo-k8s")?,
        node: NODE.to_owned(),
        roots: vec!["kubepods".into()],
        cluster: Vec::new(),
        nodes: watch::channel(None).1,
        memory: directory.path().join("pods.json"),
        timing: Timing {
            longest_pause: Duration::from_millis(200),
            believed: Duration::from_secs(1),
            ..Timing::default()
        },
        others: Others::default(),
    };
    let mut source = runtime.block_on(Source::start(settings, &BTreeMap::new(), LATER));
    let known = source.changes();
    let named = |changes: &Changes| {
        let of = changes.addresses.iter().rfind(|(at, _)| *at == address);
        of.and_then(|(_, whose)| whose.clone())
    };
    assert!(matches!(named(&known), Some(Whose::Pod { .. })), "{known:?}");
    let (sender, mut told) = mpsc::channel(16);
    let (_cgroups, events) = mpsc::unbounded_channel();
    runtime.spawn(source.run(events, sender));
    let mut until = |what: &str, holds: fn(&Whose) -> bool| -> Result<()> {
        let waiting = async {
            loop {
                let changes = told.recv().await.context("the source has ended")?;
                if named(&changes).as_ref().is_some_and(holds) {
                    return Ok(());
                }
            }
        };
        let done = runtime.block_on(async { timeout(LATER, waiting).await });
        done.with_context(|| format!("the address was not {what}"))?
    };
    api.stop();
    until("nobody's", |whose| *whose == Whose::Nobody)?;
    api.listen()?;
    until("the pod's again", |whose| matches!(whose, Whose::Pod { .. }))
}

#[test]
fn pods_of_other_nodes_are_followed_only_while_nobody_else_tells_of_them() -> Result<()> {
    let api = KubeApi::start()?;
    let address: IpAddr = "10.1.1.1".parse()?;
    api.put(PODS, pod("server", "server", OTHER, &address.to_string()));
    let directory = tempfile::tempdir()?;
    let kubeconfig = api.kubeconfig(directory.path())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    // What decides is how it stands with the agents; so much later.
    let (agents, later) = (Arc::new(peers::Health::default()), Arc::new(AtomicU64::new(0)));
    let (asked_of, at) = (Arc::clone(&agents), Arc::clone(&later));
    let others = move |asked| {
        let later = Duration::from_secs(at.load(Ordering::Relaxed));
        asked_of.others_wanted(asked, Instant::now() + later)
    };
    let settings = Settings {
        client: runtime.block_on(Client::new(Some(&kubeconfig), Duration::from_secs(30)))?,
        naming: Template::default().fixed("hanzo.ai", "hanzo-k8s")?,
        node: NODE.to_owned(),
        roots: vec!["kubepods".into()],
        cluster: Vec::new(),
        nodes: watch::channel(None).1,
        memory: directory.path().join("pods.json"),
        timing: Timing {
            // It is looked as often.
            believed: Duration::from_secs(1),
            ..Timing::default()
        },
        others: Others(Box::new(others)),
    };
    let mut source = runtime.block_on(Source::start(settings, &BTreeMap::new(), LATER));
    let health = source.health();
    let of_address = |changes: &Changes| {
        let of = changes.addresses.iter().rfind(|(at, _)| *at == address);
        of.map(|(_, whose)| whose.clone())
    };
    let known = source.changes();
    assert!(
        matches!(of_address(&known), Some(Some(Whose::Pod { .. }))),
        "{known:?}"
    );
    let (sender, mut told) = mpsc::channel(16);
    let (_cgroups, events) = mpsc::unbounded_channel();
    runtime.spawn(source.run(events, sender));
    let mut until = |what: &str, is_so: fn(&Option<Whose>) -> bool| -> Result<()> {
        let waiting = async {
            loop {
                let changes = told.recv().await.context("the source has ended")?;
                if of_address(&changes).as_ref().is_some_and(is_so) {
                    return Ok(());
                }
            }
        };
        let done = runtime.block_on(async { timeout(LATER, waiting).await });
        done.with_context(|| format!("the address was not {what}"))?
    };
    // Which other nodes there are is known, and then both are heard.
    let neighbour = |name: &str| Neighbour {
        name: name.into(),
        address: "192.0.2.1:8056".into(),
        speaks_for: Vec::new(),
        created: 0,
        says: Vec::new(),
        identities: Vec::new(),
    };
    let nodes = [OTHER, "third"];
    let roster = Roster::new(nodes.map(neighbour), "spiffe://hanzo.ai/agents/{node}", NODE, &[])?;
    agents.knows(&roster);
    for node in nodes {
        agents.stands(node, State::Connected, None);
    }
    later.store(120, Ordering::Relaxed);
    eventually("all to have been heard for a while", LATER, || {
        later.fetch_add(120, Ordering::Relaxed);
        Ok(agents.status().asked.is_none())
    })?;
    until("free", Option::is_none)?;
    // Who followed them has ended, and notes nothing any more.
    let followed = |name: &str| health.freshness.all().iter().any(|(known, _)| *known == name);
    assert!(!followed("pods") && followed("node-pods"));
    // What happens meanwhile is not heard, and not missed.
    api.put(PODS, pod("other", "other", OTHER, "10.1.1.2"));
    // One of them is not heard, for longer than it is given, and is still believed.
    agents.stands("third", State::Stale, Some("no answer"));
    later.fetch_add(120, Ordering::Relaxed);
    until("the pod's again", |whose| {
        matches!(whose, Some(Whose::Pod { .. }))
    })
}
