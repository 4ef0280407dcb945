// SPDX-License-Identifier: Apache-2.0
//! No secret gets through, and what is none does.

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn clean(text: &str) -> String {
    Redactor::default().text(text)
}

#[test]
fn secrets_go_in_every_form() {
    for (text, cleaned) in [
        (
            "dsn: postgres://zt:hunter22@db:5432/zt?sslmode=require",
            "dsn: postgres://zt:[removed]@db:5432/zt?sslmode=require",
        ),
        (
            "postgres://zt:p@ss/w:rd@db/zt and more",
            "postgres://zt:[removed]@db/zt and more",
        ),
        (
            "\"postgres:///zt?host=/run&password=hunter22&x=1\"",
            "\"postgres:///zt?host=/run&password=[removed]&x=1\"",
        ),
        ("password: hunter two", "password: [removed]"),
        ("  dbPassword: 'it''s'", "  dbPassword: '[removed]''s'"),
        ("token = \"a\\\"b\" # mine", "token = \"[removed]\" # mine"),
        ("PGPASSWORD=hunter22 psql", "PGPASSWORD=[removed] psql"),
        (
            "--client-secret=hunter22 --port 1",
            "--client-secret=[removed] --port 1",
        ),
        ("Authorization: Bearer abcdefgh.ijk", "Authorization: [removed]"),
        (
            "sent `Bearer abcdefgh12345` to it",
            "sent `Bearer [removed]` to it",
        ),
        (
            "got eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiIxIn0abc.sig-x.",
            "got [removed]",
        ),
        ("client-key-data: LS0tLS1CRUdJTg==", "client-key-data: [removed]"),
        (
            "x -----BEGIN EC PRIVATE KEY-----\nMHc\n-----END EC PRIVATE KEY----- y",
            "x [removed] y",
        ),
        ("-----BEGIN PRIVATE KEY-----\nMHc", "[removed]"),
        (
            "{\"level\":\"INFO\",\"token\":\"hunter22\",\"n\":1}",
            "{\"level\":\"INFO\",\"n\":1,\"token\":\"[removed]\"}",
        ),
        (
            "a line: {\"secret\": \"hunter22\", \"n\": 1}",
            "a line: {\"secret\": \"[removed]\", \"n\": 1}",
        ),
    ] {
        let found = clean(text);
        if text.starts_with('{') {
            let parse = |text: &str| serde_json::from_str::<Value>(text).expect("JSON");
            assert_eq!(parse(&found), parse(cleaned));
        } else {
            assert_eq!(found, cleaned);
        }
    }
}

#[test]
fn secrets_below_their_names_go() {
    let text = "a: 1\npassword: |\n  hunter22\n\n  more\ntokens:\n- hunter22\n- \"x\"\nb: 2\nsecret:\n  - hunter22\n  name: y\nc: 3\n";
    let cleaned = "a: 1\npassword: [removed]\n[removed]\n\n[removed]\ntokens:\n[removed]\n[removed]\nb: 2\nsecret:\n[removed]\n  name: y\nc: 3\n";
    assert_eq!(clean(text), cleaned);
}

#[test]
fn what_is_no_secret_stays() {
    for text in [
        "spiffe://hanzo.ai/hanzo-k8s/hanzo/iam",
        "http://127.0.0.1:8054 and nobody@example.org",
        "zt_identity_wait_seconds{source=\"file\"} 3",
        "key: value\nkeys: [a, b]",
        "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
        "the bearer is known",
        "secret:\n  name: x",
        "apiVersion: zt.hanzo.ai/v1\nkind: ServiceAccessPolicy\n",
    ] {
        assert_eq!(clean(text), text);
    }
}

#[test]
fn what_was_learnt_goes_wherever_it_stands() {
    let mut redactor = Redactor::default();
    redactor
        .learn("audit:\n  dsn: postgres://zt:hunter%4022@db/zt?sslmode=require\n  note: token=abcdefgh\n");
    for (text, cleaned) in [
        (
            "it said hunter@22, and hunter%4022",
            "it said [removed], and [removed]",
        ),
        ("abcdefgh", "[removed]"),
        // What merely stands beside it is not learnt.
        ("sslmode require db zt", "sslmode require db zt"),
    ] {
        assert_eq!(redactor.text(text), cleaned);
    }
    let mut value =
        json!({ "a": ["x hunter@22"], "password": 12345, "b": { "token": null, "api_key": "k" } });
    redactor.json(&mut value);
    assert_eq!(
        value,
        json!({ "a": ["x [removed]"], "password": "[removed]", "b": { "token": null, "api_key": "[removed]" } })
    );
}

#[test]
fn the_password_of_the_dsn_goes_though_it_looks_like_the_end_of_a_word() {
    for secret in ["hun'ter22", "hun\"ter22", "a <b> c`d", "back\\slash"] {
        let dsn = format!("postgres://zt:{secret}@db/zt");
        let mut redactor = Redactor::default();
        redactor.learn_dsn(&dsn);
        for text in [
            format!("dsn: {dsn}"),
            format!("{dsn:?}"),
            format!("dsn: '{}'", dsn.replace('\'', "''")),
            json!({ "dsn": dsn }).to_string(),
        ] {
            let cleaned = redactor.text(&text);
            assert!(
                !cleaned.contains("ter22") && !cleaned.contains("<b>"),
                "{cleaned}"
            );
            assert!(!cleaned.contains("slash"), "{cleaned}");
        }
    }
}

proptest! {
    #[test]
    fn a_password_goes_whatever_it_is_made_of(secret in "[A-Za-z0-9!#$%&*+,./:;=?^_~-]{8,24}", before in "[ -~]{0,20}") {
        prop_assume!(!before.contains(&secret) && !"postgres://zt@db/ removed password=".contains(&secret));
        let dsn = format!("postgres://zt:{secret}@db/zt");
        let mut redactor = Redactor::default();
        redactor.learn(&format!("dsn: {dsn}"));
        for text in [format!("{before} {dsn}"), format!("{before}{secret}"), format!("dsn: \"{dsn}\"")] {
            let cleaned = redactor.text(&text);
            prop_assert!(!cleaned.contains(&secret), "{}", cleaned);
        }
    }

    #[test]
    fn no_text_is_too_strange(text in "(?s).{0,200}") {
        let mut redactor = Redactor::default();
        redactor.learn(&text);
        redactor.text(&text);
    }
}
