// SPDX-License-Identifier: Apache-2.0
//! Which source wins; where the keys of the trail may be; values that are marked as something else than they are.

use super::*;

#[test]
fn flags_beat_variables_beat_the_file() {
    let config = load(
        "node: file\ncluster: file\nmode: observe\n",
        &[
            ("ZT_NODE", "variable"),
            ("ZT_CLUSTER", "variable"),
            ("ZT_CLUSTER_CIDRS", "10.0.0.0/8, fd00::/8"),
        ],
        &[("node", "flag"), ("managedCgroup", "a,b")],
    )
    .expect("valid");
    assert_eq!(
        (config.node.as_str(), config.cluster.as_str()),
        ("flag", "variable")
    );
    assert_eq!(config.cluster_cidrs.len(), 2);
    assert_eq!(config.managed_cgroup.roots().len(), 2);
}
#[test]
fn the_keys_are_not_where_the_database_is() {
    for (text, named) in [
        ("audit: {dsn: 'sqlite:///data/audit.db', keys: /data/}", "/data/"),
        (
            "audit: {dsn: 'postgres://node@db/zt', spool: /data/spool.db, keys: /data}",
            "/data",
        ),
    ] {
        let wanted = format!("configuration: audit.keys: `{named}` is where the database is");
        assert!(problem(text).starts_with(&wanted), "{}", problem(text));
    }
    for text in [
        "audit: {dsn: 'sqlite:///data/audit.db', keys: /data/keys}",
        "audit: {dsn: 'sqlite:///data/audit.db', spool: /keys/spool.db, keys: /keys}",
    ] {
        load(text, &[], &[]).expect("apart");
    }
}

#[test]
fn a_value_with_a_tag_is_not_taken_for_what_it_marks() {
    for (text, wanted) in [
        (
            "audit: {dsn: !secret trail}",
            "audit.dsn: must be text, not a value with the tag `!secret`",
        ),
        ("api: {rateLimit: !n 5}", "not a value with the tag `!n`"),
        ("mode: !enforce", "not a value with the tag `!enforce`"),
    ] {
        let message = problem(text);
        assert!(message.starts_with("agent.yaml:1:"), "{message}");
        assert!(message.contains(wanted), "{text}: {message}");
    }
}
