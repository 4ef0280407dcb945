// SPDX-License-Identifier: Apache-2.0
//! What has to do with SPIRE.

use std::path::PathBuf;

use super::{load, problem};

#[test]
fn bad_sources_and_sockets_say_what_is_wrong() {
    for (text, words) in [
        ("identity: {source: []}", "must name a source"),
        ("identity: {source: [spire, spire]}", "names `spire` twice"),
        (
            "identity: {source: vault}",
            "must be `file`, `spire`, `kubernetes`, `peers` or several of them, not `vault`",
        ),
        ("identity: {template: 'spiffe://{pod}'}", "has `{pod}`"),
        (
            "identity: {source: kubernetes, template: 'spiffe://other.example/{namespace}/{serviceAccount}'}",
            "makes IDs of the trust domain `other.example`",
        ),
        ("identity: {onExpiry: keep}", "must be `withdraw` or `hold`"),
        ("identity: {spireSocket: agent.sock}", "must be an absolute path"),
    ] {
        let message = problem(text);
        assert!(message.contains(words), "{message}");
    }
}

#[test]
fn tls_from_spire_is_files_beside_the_socket() {
    let text = "api: {tls: spire, socket: /run/zt/a.sock, callers: [{spiffe: '*', role: read}]}";
    let tls = load(text, &[], &[]).expect("valid").api.tls;
    let file = |name: &str| Some(PathBuf::from("/run/zt/svid/current").join(name));
    assert_eq!(
        (tls.spire, tls.cert, tls.key, tls.client_ca),
        (true, file("cert.pem"), file("key.pem"), file("bundle.pem"))
    );
    for (text, words) in [
        ("api: {tls: spire}", "api.callers: is empty"),
        ("api: {tls: vault}", "api.tls: must be `spire`, or the files"),
    ] {
        let message = problem(text);
        assert!(message.contains(words), "{message}");
    }
    let both = load("api: {tls: spire}", &[("ZT_API_TLS_CERT", "/c.pem")], &[]);
    assert_eq!(
        both.expect_err("both"),
        ["configuration: api.tls: is `spire` or files, not both"]
    );
}
