// SPDX-License-Identifier: Apache-2.0
//! Changes of policy that come one right after the other.

use super::records::{changes, policy, publish};
use super::*;

#[tokio::test]
async fn changes_that_come_faster_than_they_are_recorded_have_a_record_each() {
    let world = world().await;
    tokio::spawn(record_changes(world.state.clone()));
    let noted = async {
        while world.state.store.policy_told().await.expect("reads").is_none() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), noted)
        .await
        .expect("noted");
    let digest = || world.state.snapshot().policies.digest().to_owned();
    // Nobody looks in between: there, on, and all the way back.
    let mut digests = vec![digest()];
    for documents in [vec![policy("p", 1)], vec![policy("p", 2)], Vec::new()] {
        publish(&world, &documents);
        digests.push(digest());
    }
    assert_eq!(digests[0], digests[3]);
    let recorded = async {
        while changes(&world).await.len() < 3 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), recorded)
        .await
        .expect("three records");
    let changes = changes(&world).await;
    let told: Vec<(&Value, &Value, &Value)> = changes
        .iter()
        .map(|change| {
            let (change, revision) = (&change["change"], &change["revision"]);
            (&change["from"], &change["to"], revision)
        })
        .collect();
    let digests: Vec<Value> = digests.into_iter().map(Value::from).collect();
    let wanted: Vec<(&Value, &Value)> = digests.windows(2).map(|pair| (&pair[0], &pair[1])).collect();
    assert_eq!(
        told.iter().map(|(from, to, _)| (*from, *to)).collect::<Vec<_>>(),
        wanted
    );
    assert_eq!(
        told.iter().map(|told| told.2).collect::<Vec<_>>(),
        [&json!(8), &json!(9), &json!(10)]
    );
}
