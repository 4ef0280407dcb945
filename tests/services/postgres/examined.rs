// SPDX-License-Identifier: Apache-2.0
//! What `zt-agent doctor` says of a server.

use zt_agent::audit::postgres::examine;

use super::{server, target, with_tables};

#[tokio::test(flavor = "multi_thread")]
async fn each_role_is_tried_and_nothing_is_made() {
    let server = server();
    let found = examine(&target(&server, "engine")).await;
    assert!(!found.tables);
    assert_eq!(
        server
            .sql("SELECT to_regclass('zt_audit.record') IS NULL")
            .expect("asked"),
        "t"
    );
    drop(server);
    let server = with_tables().await;
    let found = examine(&target(&server, "engine")).await;
    assert!(found.tables);
    assert!(
        found.ahead.is_some_and(|ahead| ahead.abs() < 60_000_000_000),
        "{found:?}"
    );
    let may = |role: &str| found.refusal(role).is_none();
    assert_eq!(
        ["zt_audit_writer", "zt_audit_reader", "zt_audit_maintainer"].map(may),
        [true, true, false]
    );
    // The server of a test does not wait for its disk.
    assert_eq!(found.off, ["fsync"]);
    let found = examine(&target(&server, "stranger")).await;
    assert_eq!((found.roles.len(), found.ahead), (3, None));
    assert!(found.roles.iter().all(|(_, outcome)| outcome.is_err()));
    server.crash().expect("stopped");
    // It is not knocked at three times.
    let found = examine(&target(&server, "engine")).await;
    assert_eq!((found.roles.len(), found.ahead), (1, None));
}
