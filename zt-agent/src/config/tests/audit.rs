// SPDX-License-Identifier: Apache-2.0
//! Where the trail is kept, and with which logins.

use super::{Config, load, problem};

#[test]
fn bad_values_of_the_trail_say_what_is_wrong() {
    for (text, words) in [
        ("audit: {dsn: /var/x}", "must be `sqlite://`"),
        ("audit: {dsn: 'sqlite://x.db'}", "absolute path"),
        ("audit: {dsn: 'postgres://u:secret@db'}", "names no database"),
        (
            "audit: {dsn: 'postgres://u:secret@db:x/zt'}",
            "not a PostgreSQL DSN",
        ),
        ("audit: {readDsn: 'sqlite:///a.db'}", "not a PostgreSQL DSN"),
        (
            "audit: {maintainDsn: 'postgres://u:secret@db'}",
            "names no database",
        ),
        ("audit: {whenFull: block}", "must be `oldest` or `newest`"),
        ("audit: {sync: always}", "must be `second` or `batch`"),
        ("audit: {spool: spool.db}", "must be an absolute path"),
        ("audit: {maxDiskBytes: 2 apples}", "is not a size"),
        ("audit: {maxDiskBytes: 1KiB}", "at least 16MiB"),
        ("audit: {maxDiskBytes: 99999999999TiB}", "is not a size"),
        ("audit: {apiShare: 0}", "percent from 1 to 100"),
        ("audit: {apiShare: 101}", "percent from 1 to 100"),
        ("audit: {retentionDays: 0}", "from 1 to 36500"),
        ("audit: {retentionDays: -1}", "from 1 to 36500"),
    ] {
        let message = problem(text);
        assert!(message.starts_with("agent.yaml:1:"), "{message}");
        assert!(message.contains(words), "{text}: {message}");
        assert!(!message.contains("secret"), "{message}");
    }
}

#[test]
fn each_role_has_the_login_that_is_named_for_it_or_the_one_that_writes() {
    let all = |config: &Config| -> Vec<String> {
        let audit = &config.audit;
        [audit.dsn.as_str(), audit.reading(), audit.maintaining()]
            .map(str::to_owned)
            .into()
    };
    let text = "audit: {dsn: 'postgres://w@db.example/zt'}\n";
    let one = load(text, &[], &[]).expect("valid");
    assert_eq!(all(&one), ["postgres://w@db.example/zt"; 3]);
    assert_eq!(one.audit.dsns().count(), 1);
    let variables = [
        ("ZT_AUDIT_READ_DSN", "postgres://r:secret@db.example/zt"),
        ("ZT_AUDIT_MAINTAIN_DSN", "postgres://m:secret@db.example/zt"),
    ];
    let three = load(text, &variables, &[]).expect("valid");
    let wanted = [
        "postgres://w@db.example/zt",
        "postgres://r:secret@db.example/zt",
        "postgres://m:secret@db.example/zt",
    ];
    assert_eq!(all(&three), wanted);
    let keys: Vec<&str> = three.audit.dsns().map(|(key, _)| key).collect();
    assert_eq!(keys, ["audit.dsn", "audit.readDsn", "audit.maintainDsn"]);
    // Which nothing would use.
    for (key, (name, dsn)) in ["audit.readDsn", "audit.maintainDsn"].into_iter().zip(variables) {
        let problems = load("", &[(name, dsn)], &[]).expect_err("a file needs no login");
        let wanted = format!("configuration: {key}: is used with a `postgres://` DSN in `audit.dsn` only");
        assert!(problems[0].starts_with(&wanted), "{problems:?}");
        assert!(!problems[0].contains("secret"), "{problems:?}");
    }
}
