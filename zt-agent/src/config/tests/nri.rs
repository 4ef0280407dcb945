// SPDX-License-Identifier: Apache-2.0
//! How long containers wait for their identity.

use std::path::PathBuf;
use std::time::Duration;

use super::{load, problem};

#[test]
fn containers_wait_where_a_socket_is_named() {
    let identity = |text: &str, variables: &[(&str, &str)]| {
        let config = load(text, variables, &[]).expect("valid");
        (config.identity.nri_socket, config.identity.nri_wait)
    };
    let default = Duration::from_millis(1500);
    assert_eq!(identity("", &[]), (None, default));
    let socket = Some(PathBuf::from("/var/run/nri/nri.sock"));
    for (text, wait) in [
        ("identity: {nri: {socket: /var/run/nri/nri.sock}}", default),
        (
            "identity: {nri: {socket: 'unix:///var/run/nri/nri.sock', wait: 800ms}}",
            Duration::from_millis(800),
        ),
        (
            "identity: {nri: {socket: /var/run/nri/nri.sock, wait: 2 s}}",
            Duration::from_secs(2),
        ),
    ] {
        assert_eq!(identity(text, &[]), (socket.clone(), wait), "{text}");
    }
    let text = "identity: {nri: {socket: /var/run/nri/nri.sock, wait: 2s}}";
    let variables = [
        ("ZT_IDENTITY_NRI_SOCKET", "none"),
        ("ZT_IDENTITY_NRI_WAIT", "60s"),
    ];
    assert_eq!(identity(text, &variables), (None, Duration::from_secs(60)));
    assert_eq!(identity("identity: {nri: {socket: null}}", &[]).0, None);
}

#[test]
fn sockets_and_times_that_are_none_say_what_is_wrong() {
    for (text, words) in [
        (
            "identity: {nri: {socket: nri.sock}}",
            "identity.nri.socket: must be an absolute path",
        ),
        (
            "identity: {nri: {wait: soon}}",
            "identity.nri.wait: `soon` is no time such as `1500ms` or `2s`",
        ),
        ("identity: {nri: {wait: '1.5s'}}", "is no time such as"),
        ("identity: {nri: {wait: 2m}}", "at most 60s"),
        ("identity: {nri: {wait: 2h}}", "is no time such as"),
        (
            "identity: {nri: {wait: 0s}}",
            "must be more than nothing and at most 60s",
        ),
        (
            "identity: {nri: {wait: 61s}}",
            "must be more than nothing and at most 60s",
        ),
        (
            "identity: {nri: {wait: 18446744073709551616ms}}",
            "is no time such as",
        ),
        ("identity: {nri: {wait: 2}}", "must be text, not"),
        (
            "identity: {nri: {sockets: /x}}",
            "identity.nri.sockets: unknown field",
        ),
    ] {
        let message = problem(text);
        assert!(message.contains(words), "{text}: {message}");
    }
}
