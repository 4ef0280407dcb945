// SPDX-License-Identifier: Apache-2.0
//! Following a collection, against a server that does its worst.

use std::sync::Arc;

use serde::Deserialize;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::time::timeout;
use zt_agent::kubernetes::{Client, Collection, Freshness, Said, Timing, follow};
use zt_tests::kube_api::Faults;

use super::*;

const THINGS: &str = "/apis/test.example/v1/things";

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Thing {
    metadata: Metadata,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Metadata {
    name: String,
}

fn thing(name: &str) -> Value {
    json!({ "metadata": { "name": name } })
}

struct Following {
    api: KubeApi,
    runtime: Runtime,
    said: mpsc::Receiver<Said<Thing>>,
    freshness: Arc<Freshness>,
}

impl Following {
    fn start(api: KubeApi, timing: Timing) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let kubeconfig = api.kubeconfig(directory.path())?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let client = runtime.block_on(Client::new(Some(&kubeconfig), Duration::from_secs(30)))?;
        let collection = Collection {
            name: "things",
            path: THINGS.to_owned(),
            field_selector: None,
        };
        let freshness = Arc::new(Freshness::default());
        let (sender, said) = mpsc::channel(16);
        runtime.spawn(follow(client, collection, timing, Arc::clone(&freshness), sender));
        Ok(Self {
            api,
            runtime,
            said,
            freshness,
        })
    }

    /// What is said next: the names of a list, or `+name`, or `-name`.
    fn next(&mut self) -> Result<Vec<String>> {
        let said = self
            .runtime
            .block_on(async { timeout(LATER, self.said.recv()).await });
        let name = |thing: Thing| thing.metadata.name;
        Ok(match said.context("nothing was said")?.context("it ended")? {
            Said::All(things) => things.into_iter().map(name).collect(),
            Said::Applied(thing) => vec![format!("+{}", name(thing))],
            Said::Deleted(thing) => vec![format!("-{}", name(thing))],
        })
    }

    fn wait(&self, what: &str, holds: impl Fn(&zt_agent::kubernetes::Status) -> bool) -> Result<()> {
        wait_for(what, LATER, || {
            let all = self.freshness.all();
            Ok(all.iter().any(|(_, status)| holds(status)).then_some(()))
        })
    }
}

fn quick() -> Timing {
    Timing {
        first_pause: Duration::from_millis(20),
        longest_pause: Duration::from_millis(200),
        spread: Duration::from_millis(20),
        doubt: LATER * 2,
        ..Timing::default()
    }
}

#[test]
fn lists_come_in_pages_and_watches_go_on_from_there() -> Result<()> {
    let api = KubeApi::start()?;
    for number in 0..1234 {
        api.put(THINGS, thing(&format!("t{number:04}")));
    }
    let mut following = Following::start(api, quick())?;
    let all = following.next()?;
    assert_eq!((all.len(), all[1233].as_str()), (1234, "t1233"));
    following.api.put(THINGS, thing("new"));
    assert_eq!(following.next()?, ["+new"]);
    following.api.delete(THINGS, "", "new");
    assert_eq!(following.next()?, ["-new"]);
    assert_eq!(following.api.counts(THINGS).lists, 1);
    Ok(())
}

#[test]
fn a_watch_that_breaks_misses_nothing_and_says_nothing_twice() -> Result<()> {
    let mut following = Following::start(KubeApi::start()?, quick())?;
    assert!(following.next()?.is_empty());
    for number in 0..20 {
        following.wait("the watch", |status| !status.stale)?;
        let name = format!("t{number}");
        following.api.hang_up(number % 2 == 0);
        following.api.put(THINGS, thing(&name));
        assert_eq!(following.next()?, [format!("+{name}")]);
    }
    assert_eq!(following.api.counts(THINGS).lists, 1);
    // Bookmarks alone keep it from being too old.
    following.wait("the watch", |status| !status.stale)?;
    following.api.put("/apis/test.example/v1/others", thing("other"));
    let bookmarks = following.api.counts(THINGS).bookmarks;
    wait_for("two bookmarks", LATER, || {
        Ok((following.api.counts(THINGS).bookmarks >= bookmarks + 2).then_some(()))
    })?;
    following.api.compact();
    following.api.hang_up(false);
    following.api.put(THINGS, thing("last"));
    assert_eq!(following.next()?, ["+last"]);
    assert_eq!(following.api.counts(THINGS).lists, 1);
    Ok(())
}

#[test]
fn what_is_forgotten_is_listed_and_nonsense_is_passed_over() -> Result<()> {
    let api = KubeApi::start()?;
    api.put(THINGS, thing("a"));
    api.put(THINGS, json!({ "metadata": { "name": 7 } }));
    let mut following = Following::start(api, quick())?;
    assert_eq!(following.next()?, ["a"], "the other one is none");
    following.wait("the watch", |status| !status.stale && status.unreadable == 1)?;
    let long = format!("\"{}\"", "x".repeat(100_000));
    for line in [
        "garbage",
        "",
        "7",
        "{\"type\":\"ADDED\"}",
        "{\"type\":\"WHAT\",\"object\":{}}",
        "{\"type\":\"BOOKMARK\",\"object\":{}}",
        &long,
    ] {
        following.api.say(THINGS, line);
    }
    following.wait("all of it to be counted", |status| status.unreadable == 8)?;
    following.api.put(THINGS, thing("b"));
    assert_eq!(following.next()?, ["+b"], "it goes on");
    following.api.expire();
    assert_eq!(following.next()?, ["a", "b"]);
    following.api.put(THINGS, thing("c"));
    assert_eq!(following.next()?, ["+c"]);
    Ok(())
}

#[test]
fn what_was_not_understood_is_made_up_for_by_a_list() -> Result<()> {
    let timing = Timing {
        doubt: Duration::from_millis(300),
        ..quick()
    };
    let mut following = Following::start(KubeApi::start()?, timing)?;
    assert!(following.next()?.is_empty());
    following.wait("the watch", |status| !status.stale)?;
    let lists = following.api.counts(THINGS).lists;
    assert_eq!(lists, 1);
    following.api.say(THINGS, "garbage");
    assert!(following.next()?.is_empty(), "a list");
    following.wait("the watch", |status| !status.stale && status.watches >= 2)?;
    following.api.put(THINGS, thing("a"));
    assert_eq!(following.next()?, ["+a"]);
    // A server that was put back: it answers a watch from what it has not reached with an error.
    following.api.fault(Faults {
        watch_status: Some(504),
        ..Faults::default()
    });
    following.api.hang_up(false);
    assert_eq!(following.next()?, ["a"], "listed after three errors");
    Ok(())
}

#[test]
fn a_line_without_end_is_given_up_and_silence_is_noticed() -> Result<()> {
    let api = KubeApi::start()?;
    let timing = Timing {
        silence: Duration::from_secs(2),
        ..quick()
    };
    let mut following = Following::start(api, timing)?;
    following.next()?;
    following.wait("the watch", |status| !status.stale)?;
    let failures = |following: &Following| following.freshness.all()[0].1.failures;
    let before = failures(&following);
    let piece = "x".repeat(1 << 20);
    following
        .runtime
        .block_on(async { tokio::task::yield_now().await });
    for _ in 0..20 {
        following.api.say_raw(THINGS, &piece);
    }
    following.wait("it to be given up", |status| status.failures > before)?;
    following.api.put(THINGS, thing("a"));
    assert_eq!(following.next()?, ["+a"]);

    following.api.fault(Faults {
        silent: true,
        ..Faults::default()
    });
    let opened = following.api.counts(THINGS).watches;
    wait_for("it to be opened again", LATER, || {
        Ok((following.api.counts(THINGS).watches > opened).then_some(()))
    })?;
    following.api.put(THINGS, thing("b"));
    following.api.fault(Faults::default());
    assert_eq!(following.next()?, ["+b"]);
    Ok(())
}

#[test]
fn a_server_that_is_away_is_not_stormed() -> Result<()> {
    let mut api = KubeApi::start()?;
    api.put(THINGS, thing("a"));
    api.stop();
    let mut following = Following::start(api, quick())?;
    following.wait("some attempts", |status| status.failures >= 5 && status.stale)?;
    following.api.listen()?;
    assert_eq!(following.next()?, ["a"]);
    following.wait("freshness", |status| !status.stale)?;
    // It wants to be left alone: for a second each time, whatever our own pauses are.
    following.api.fault(Faults {
        status: Some(429),
        retry_after: Some(1),
        ..Faults::default()
    });
    let asked = |following: &Following| {
        let counts = following.api.counts(THINGS);
        counts.lists + counts.watches
    };
    let before = asked(&following);
    let began = std::time::Instant::now();
    following.api.hang_up(false);
    wait_for("three more questions", LATER, || {
        Ok((asked(&following) >= before + 3).then_some(()))
    })?;
    assert!(
        began.elapsed() >= Duration::from_secs(2),
        "two pauses lie between three questions"
    );
    Ok(())
}
