// SPDX-License-Identifier: Apache-2.0
//! A trail that does not go on from what was signed is counted by the recorder that goes on with it.

use std::time::Duration;

use super::store::tamper;
use super::*;
use crate::audit::pipeline::{self, Intake};

/// Goes on with the trail as an agent does, and looks after it all the time.
fn record(store: &Arc<Store>) -> (Intake, tokio::task::JoinHandle<()>) {
    let settings = pipeline::Settings {
        prune_every: Duration::from_millis(5),
        seal_every: Duration::from_millis(5),
        ..pipeline::Settings::new("hanzo-k8s", "worker-3")
    };
    let (intake, recorder) = pipeline::pipeline(Arc::clone(store), Arc::default(), Arc::new(()), settings);
    (intake, tokio::spawn(recorder.run()))
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait)
        .await
        .unwrap_or_else(|_| panic!("never: {what}"));
}

#[tokio::test]
async fn what_pruning_finds_is_counted_until_somebody_takes_it_away() {
    let world = World::new().await;
    // Entries between others, said to be pruned.
    tamper(
        &world.file(),
        "UPDATE trail SET pruned_row = 90, pruned_hash = (SELECT hash FROM record WHERE row = 90);
         DELETE FROM record WHERE row BETWEEN 60 AND 90",
    )
    .await;
    // What is there is of long ago, and nothing comes: the first to look is who makes room.
    let settings = Settings {
        retention_days: Some(1),
        ..world.settings()
    };
    let store = Arc::new(Store::open(settings).await.expect("opens"));
    let (intake, running) = record(&store);
    until("the break is counted", || intake.stats().chain_breaks() == 1).await;
    let told = |intake: &Intake| {
        let stats = intake.stats();
        stats.prune_failures_total() + stats.seal_failures_total()
    };
    assert_eq!(told(&intake), 1, "once");
    assert_eq!(
        intake.stats().prune_failures_total(),
        1,
        "by the one that made room"
    );
    intake.shut_down(Duration::from_secs(5));
    running.await.expect("ends");
    drop(store);

    // The next run knows from the start, although it finds nothing new.
    let store = Arc::new(world.open().await);
    let (intake, running) = record(&store);
    until("an earlier run's is counted", || {
        intake.stats().chain_breaks() == 1
    })
    .await;
    assert_eq!(told(&intake), 0);
    for kept in std::fs::read_dir(world.keys()).expect("reads") {
        let kept = kept.expect("reads");
        let name = kept.file_name().into_string().expect("text");
        if name.ends_with(".checkpoint") && name.matches('.').count() == 2 {
            std::fs::rename(kept.path(), world.directory.path().join(name)).expect("moves");
        }
    }
    until("it goes with its file", || intake.stats().chain_breaks() == 0).await;
    intake.shut_down(Duration::from_secs(5));
    running.await.expect("ends");
}
