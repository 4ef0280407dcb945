// SPDX-License-Identifier: Apache-2.0
//! Names that a shape has and no record.

use super::*;

#[tokio::test]
async fn names_of_a_shape_stay_when_all_of_its_records_are_gone() {
    let (_directory, store) = store().await;
    let mut made = of_pods(0..2, 0);
    made[0].source.spiffe_id = Some(Arc::from("spiffe://hanzo.ai/app/gone"));
    for record in &made {
        keep(&store, std::slice::from_ref(record)).await;
    }
    // By such counts a shape outlives its last record.
    store
        .meddle("UPDATE bucket SET connections = connections + 1")
        .await;
    store.prune_before(made[1].timestamp).await.expect("removes");
    assert_eq!(
        all(&store, &Filter::default()).await,
        std::slice::from_ref(&made[1])
    );
    while !step(&store).await {}
    let mut wanted = of(&made);
    assert!(wanted.remove("client-0"), "no shape has a pod");
    assert_eq!(texts(&store).await, wanted);
    assert_eq!(count(&store, DANGLING).await, 0);
}
