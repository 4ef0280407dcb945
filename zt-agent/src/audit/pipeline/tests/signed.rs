// SPDX-License-Identifier: Apache-2.0
//! The trail is signed while it grows, as often as is said.

use super::*;

/// Often enough for a test.
const EVERY: Duration = Duration::from_millis(50);

async fn store(directory: &tempfile::TempDir, name: &str) -> Arc<Store> {
    let settings = sqlite::Settings {
        dsn: format!("sqlite://{}/{name}/audit.db", directory.path().display()),
        max_disk_bytes: 1 << 30,
        retention_days: None,
        keys: Some(directory.path().join(name).join("keys")),
        sync: sqlite::Durability::default(),
    };
    Arc::new(Store::open(settings).await.expect("opens"))
}

#[tokio::test]
async fn a_trail_that_grows_is_signed_again_and_again() {
    let directory = tempfile::tempdir().expect("directory");
    let (often, seldom) = (
        store(&directory, "often").await,
        store(&directory, "seldom").await,
    );
    let recorder = |store: &Arc<Store>, seal_every| {
        let settings = Settings {
            prune_every: Duration::from_millis(5),
            seal_every,
            ..quick()
        };
        pipeline(Arc::clone(store), Arc::default(), Arc::new(()), settings)
    };
    let (intake, running) = recorder(&often, EVERY);
    let (other, waiting) = recorder(&seldom, Duration::from_secs(3600));
    let runs = [tokio::spawn(running.run()), tokio::spawn(waiting.run())];
    // A steady load, without a quiet moment in which one could sign.
    let mut signed = Vec::new();
    let begun = Instant::now();
    while signed.len() < 5 {
        for intake in [&intake, &other] {
            submit(intake, 16).await.expect("takes");
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
        let last = intake.stats().checkpoint();
        if last.is_some() && signed.last() != last.as_ref() {
            signed.extend(last);
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "signed: {signed:?}");
    }
    for pair in signed.windows(2) {
        let [(before, then), (after, now)] = pair else {
            unreachable!("two")
        };
        assert!(before < after, "{signed:?}");
        // The clock of the wall may be set, by a little.
        let apart = Duration::from_nanos((now.0 - then.0).unsigned_abs());
        assert!(apart >= EVERY / 2, "sooner than asked for: {signed:?}");
    }
    assert_eq!(other.stats().checkpoint(), None, "not before its time");
    for intake in [&intake, &other] {
        intake.shut_down(Duration::from_secs(5));
    }
    for run in runs {
        run.await.expect("ends");
    }
    // At the end in any case, and then all of it.
    for (intake, store) in [(&intake, &often), (&other, &seldom)] {
        let stored = store.totals().await.expect("totals").stored;
        assert_eq!(intake.stats().checkpoint().map(|(seq, _)| seq), Some(stored));
    }
}
