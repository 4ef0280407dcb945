// SPDX-License-Identifier: Apache-2.0
//! Engines that are killed between a change of policy and its record, and policies that change while no engine runs.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use sqlx::ConnectOptions as _;
use zt_agent::cli::client::ClientError;

use super::world::{Engine, Shared, eventually, policy};

/// From then on what is done has no record.
const REFUSE: &str =
    "CREATE TRIGGER refuse BEFORE INSERT ON record BEGIN SELECT RAISE(ABORT, 'the test refuses it'); END";
const TAKE_AGAIN: &str = "DROP TRIGGER refuse";

/// Runs SQL over the trail of an engine, as nobody but a test does.
async fn meddle(database: &Path, sql: &'static str) {
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(database);
    let options = options.busy_timeout(Duration::from_secs(30));
    let mut connection = options.connect().await.expect("opens");
    sqlx::raw_sql(sql)
        .execute(&mut connection)
        .await
        .expect("executes");
    sqlx::Connection::close(connection).await.expect("closes");
}

/// The changes of policy in the trail, when there are so many; the oldest first.
async fn changes(engine: &Engine, wanted: usize) -> Vec<Value> {
    let query = [("type", "policy_change".to_owned())];
    let mut all = eventually("the changes to be recorded", || async {
        let trail = engine.client().get("/v1/audit", &query).await.ok()?;
        let records = trail["records"].as_array()?.clone();
        (records.len() >= wanted).then_some(records)
    })
    .await;
    assert_eq!(all.len(), wanted, "{all:#?}");
    all.reverse();
    all
}

/// Has a policy made, and nothing recorded of it.
async fn make_unrecorded(engine: &Engine) {
    meddle(&engine.home().join("audit.db"), REFUSE).await;
    match engine.put("more", &policy("more", &[7]), None).await {
        Err(ClientError::Refused { status, code, .. }) => {
            assert_eq!((status.as_u16(), code.as_deref()), (503, Some("not_recorded")));
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_made_and_taken_back_without_an_engine_is_told_with_its_author() {
    let shared = Shared::new();
    let mut engine = shared.engine("e1").await;
    let first = engine.digest().await.expect("a digest");
    make_unrecorded(&engine).await;
    let second = engine.digest().await.expect("a digest");
    engine.kill();
    meddle(&engine.home().join("audit.db"), TAKE_AGAIN).await;
    std::fs::remove_file(shared.policies().join("more.yaml")).expect("it was made");
    engine.start().await;
    let found = changes(&engine, 1).await.remove(0);
    let user = format!("uid:{}", nix::unistd::getuid());
    assert_eq!(found["caller"], user, "{found}");
    let change = &found["change"];
    assert_eq!((&change["from"], &change["to"]), (&json!(first), &json!(second)));
    assert_eq!(
        (&change["in_force"], &change["begun"][0]["policy"]),
        (&json!(false), &json!("more"))
    );
    assert_eq!(engine.digest().await.expect("a digest"), first);
    engine.kill();
    engine.start().await;
    changes(&engine, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whose_a_change_is_and_what_it_means_outlives_a_kill() {
    let shared = Shared::new();
    let mut engine = shared.engine("e1").await;
    let first = engine.digest().await.expect("a digest");
    let database = engine.home().join("audit.db");
    make_unrecorded(&engine).await;
    engine.kill();
    meddle(&database, TAKE_AGAIN).await;
    engine.start().await;
    let found = changes(&engine, 1).await.remove(0);
    let second = engine.digest().await.expect("a digest");
    let user = format!("uid:{}", nix::unistd::getuid());
    assert_eq!(found["caller"], user, "{found}");
    let change = &found["change"];
    assert_eq!((&change["from"], &change["to"]), (&json!(first), &json!(second)));
    assert_eq!(change["diff"]["added"].as_array().map(Vec::len), Some(1));
    assert_eq!(change["begun"][0]["policy"], "more");

    // Somebody changes a file while no engine runs.
    engine.kill();
    shared.write("more", &policy("more", &[7, 8]));
    engine.start().await;
    let found = changes(&engine, 2).await.remove(1);
    let caller = format!("directory {}, found at start", shared.policies().display());
    assert_eq!(found["caller"], caller, "{found}");
    let change = &found["change"];
    assert_eq!(change["from"], second);
    assert_eq!(
        change["diff"]["added"].as_array().map(Vec::len),
        Some(1),
        "{change}"
    );
    assert_eq!(change["diff"]["removed"], json!([]), "{change}");
    assert!(change.get("begun").is_none());

    // Nothing has changed since.
    engine.kill();
    engine.start().await;
    changes(&engine, 2).await;
}
