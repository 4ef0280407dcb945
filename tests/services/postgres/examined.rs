// SPDX-License-Identifier: Apache-2.0
//! What `zt-agent doctor` says of a server.

use zt_agent::audit::postgres::{Targets, examine};

use super::{server, target, with_tables};

#[tokio::test(flavor = "multi_thread")]
async fn each_role_is_tried_and_nothing_is_made() {
    let server = server();
    let found = examine(&Targets::from(target(&server, "engine"))).await;
    assert!(!found.tables);
    assert_eq!(
        server
            .sql("SELECT to_regclass('zt_audit.record') IS NULL")
            .expect("asked"),
        "t"
    );
    drop(server);
    let server = with_tables().await;
    let found = examine(&Targets::from(target(&server, "engine"))).await;
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
    // It may read as well, when it takes that role.
    assert_eq!(found.more, Some(vec!["SELECT".to_owned()]));
    // The server of a test does not wait for its disk.
    assert_eq!(found.off, ["fsync"]);
    let found = examine(&Targets::from(target(&server, "stranger"))).await;
    assert_eq!((found.roles.len(), found.ahead), (3, None));
    assert!(found.roles.iter().all(|(_, outcome)| outcome.is_err()));
    server.crash().expect("stopped");
    // It is not knocked at three times.
    let found = examine(&Targets::from(target(&server, "engine"))).await;
    assert_eq!((found.roles.len(), found.ahead), (1, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_login_that_inserts_may_do_besides_is_found_whatever_it_inherits() {
    let server = with_tables().await;
    let more = async || {
        let found = examine(&Targets::from(target(&server, "node"))).await;
        found.more.expect("it may insert")
    };
    let none: [&str; 0] = [];
    assert_eq!(more().await, none);
    for (given, taken, wanted) in [
        (
            "GRANT SELECT (day) ON zt_audit.shape TO node",
            "REVOKE SELECT (day) ON zt_audit.shape FROM node",
            &["SELECT"][..],
        ),
        (
            "GRANT DELETE ON zt_audit.record TO node",
            "REVOKE DELETE ON zt_audit.record FROM node",
            &["DELETE"][..],
        ),
        (
            "CREATE ROLE auditors NOLOGIN; GRANT UPDATE, TRUNCATE ON zt_audit.batch TO auditors; GRANT auditors TO node",
            "DROP OWNED BY auditors; DROP ROLE auditors",
            &["UPDATE", "TRUNCATE"][..],
        ),
        (
            "GRANT zt_audit_maintainer TO node",
            "REVOKE zt_audit_maintainer FROM node",
            &["SELECT", "UPDATE", "DELETE", "TRUNCATE"][..],
        ),
        (
            "ALTER ROLE node SUPERUSER",
            "ALTER ROLE node NOSUPERUSER",
            &["SELECT", "UPDATE", "DELETE", "TRUNCATE"][..],
        ),
    ] {
        server.sql(given).expect(given);
        assert_eq!(more().await, wanted, "{given}");
        server.sql(taken).expect(taken);
        assert_eq!(more().await, none, "{taken}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_comes_to_another_database_is_found_and_answers_for_no_other() {
    let server = with_tables().await;
    server.sql("CREATE DATABASE other").expect("made");
    let dsn = server.dsn("engine");
    let other = dsn.replace("/zt?", "/other?");
    let found = examine(&Targets::parse(&dsn, Some(&other), None).expect("DSNs")).await;
    assert_eq!(found.elsewhere, ["zt_audit_reader"], "{found:?}");
    assert!(found.tables);
    let found = examine(&Targets::parse(&other, Some(&dsn), None).expect("DSNs")).await;
    assert_eq!(found.elsewhere, ["zt_audit_reader"], "{found:?}");
    assert!(!found.tables, "where records would go there are none");
    let found = examine(&Targets::parse(&dsn, Some(&dsn), None).expect("DSNs")).await;
    assert_eq!(found.elsewhere, [""; 0], "{found:?}");
}
