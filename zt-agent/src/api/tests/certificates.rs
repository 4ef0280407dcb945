// SPDX-License-Identifier: Apache-2.0
//! Certificates of callers, each wrong in one way; and the server's own, while it is replaced under the hands of callers.

use rcgen::{BasicConstraints, ExtendedKeyUsagePurpose, IsCa, date_time_ymd};
use rustls::pki_types::ServerName;
use tokio_rustls::TlsConnector;

use super::remote::{GET, remote};
use super::*;
use crate::tls::tests::{Authority, files};

const ALICE: &str = "spiffe://hanzo.ai/ops/alice";

#[tokio::test]
async fn each_certificate_that_is_wrong_is_refused_for_what_is_wrong_with_it() {
    let remote = remote().await;
    let ca = &remote.authority;
    let usage = |purpose: ExtendedKeyUsagePurpose| {
        move |params: &mut rcgen::CertificateParams| params.extended_key_usages = vec![purpose]
    };
    let below = ca.below(Duration::from_secs(3600));
    let ended = ca.below_with(|params| {
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2020, 1, 2);
    });
    let no_authority = ca.below_with(|params| params.is_ca = IsCa::ExplicitNoCa);
    let mut before = 0;
    for (what, shown, cause) in [
        (
            "not valid yet",
            ca.issue_with(&[ALICE], |params| params.not_before = date_time_ymd(2200, 1, 1)),
            "not_yet_valid",
        ),
        ("expired", ca.issue_expired(&[ALICE]), "expired"),
        ("no name", ca.issue(&[]), "no_spiffe_id"),
        (
            "another scheme",
            ca.issue(&["https://hanzo.ai/ops/alice"]),
            "no_spiffe_id",
        ),
        ("no path", ca.issue(&["spiffe://hanzo.ai"]), "no_spiffe_id"),
        (
            "two names",
            ca.issue(&[ALICE, "spiffe://hanzo.ai/ops/bob"]),
            "no_spiffe_id",
        ),
        (
            "for servers only",
            ca.issue_with(&[ALICE], usage(ExtendedKeyUsagePurpose::ServerAuth)),
            "untrusted",
        ),
        (
            "an authority itself",
            ca.issue_with(&[ALICE], |params| {
                params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            }),
            "untrusted",
        ),
        (
            "without what leads to the authority",
            below.issue(&[ALICE]),
            "untrusted",
        ),
        (
            "through one that has ended",
            ended.issue(&[ALICE]).through(&ended),
            "expired",
        ),
        (
            "through one that is none",
            no_authority.issue(&[ALICE]).through(&no_authority),
            "untrusted",
        ),
        ("of a stranger", Authority::new().issue(&[ALICE]), "untrusted"),
    ] {
        let answer = remote.ask(ca, Some(&shown), GET).await;
        assert!(answer.is_err(), "{what}");
        before += 1;
        // Exactly one more, and for this cause.
        let counts = async || {
            let text = get(remote.world.health, "/metrics").await.body;
            let of = |line: &&str| line.starts_with("zt_api_refused_total{");
            let lines: Vec<String> = text.lines().filter(of).map(str::to_owned).collect();
            let number = |line: &String| {
                line.rsplit_once(' ')
                    .and_then(|(_, n)| n.parse::<u64>().ok())
                    .unwrap_or(0)
            };
            (lines.iter().map(number).sum::<u64>(), lines)
        };
        let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
        let lines = loop {
            let (sum, lines) = counts().await;
            if sum >= before {
                assert_eq!(sum, before, "{what}: {lines:?}");
                break lines;
            }
            assert!(tokio::time::Instant::now() < deadline, "{what} is not counted");
        };
        let line = lines.iter().find(|line| line.contains(&format!("\"{cause}\"")));
        assert!(
            line.is_some_and(|line| !line.ends_with(" 0")),
            "{what}: {lines:?}"
        );
    }

    for shown in [
        ca.issue_with(&[ALICE], usage(ExtendedKeyUsagePurpose::ClientAuth)),
        below.issue(&[ALICE]).through(&below),
    ] {
        let answer = remote.ask(ca, Some(&shown), GET).await.expect("answered");
        assert_eq!(answer.status, 200);
    }
    // Another trust domain is one whom nothing is said about.
    let foreign = ca.issue(&["spiffe://elsewhere.example/ops/alice"]);
    let answer = remote.ask(ca, Some(&foreign), GET).await.expect("answered");
    assert_eq!((answer.status, answer.code().as_str()), (403, "caller_unknown"));
}

#[tokio::test]
async fn nothing_is_served_without_a_certificate_or_without_tls() {
    let remote = remote().await;
    assert!(remote.ask(&remote.authority, None, GET).await.is_err());
    assert!(remote.refused("no_certificate").await);
    let mut plain = TcpStream::connect(remote.address).await.expect("connects");
    plain.write_all(GET.as_bytes()).await.expect("written");
    let mut bytes = Vec::new();
    // An alert at most.
    let _ = plain.read_to_end(&mut bytes).await;
    assert!(!bytes.starts_with(b"HTTP"), "nothing is served without TLS");
    assert!(remote.refused("handshake").await);
}

#[tokio::test]
async fn an_older_tls_is_refused_with_an_alert() {
    let remote = remote().await;
    // TLS 1.2, and no word of another version.
    let body = [&[3, 3][..], &[7; 32], &[0, 0, 2, 0xc0, 0x2f, 1, 0]].concat();
    let length = u8::try_from(body.len()).expect("short");
    let handshake = [&[1, 0, 0, length][..], &body].concat();
    let hello = [&[0x16, 3, 1, 0, length + 4][..], &handshake].concat();
    let mut stream = TcpStream::connect(remote.address).await.expect("connects");
    stream.write_all(&hello).await.expect("written");
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut answer))
        .await
        .expect("closed");
    // A fatal alert: protocol_version, or what stands for it where nothing of what is asked for is there.
    assert_eq!(
        (answer.first(), answer.get(5)),
        (Some(&0x15), Some(&2)),
        "{answer:?}"
    );
    assert!([40, 70, 109].contains(&answer[6]), "{answer:?}");
    assert_eq!(answer.len(), 7, "and nothing else");
    assert!(remote.refused("handshake").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_refused_while_the_certificate_is_written_anew() {
    let remote = remote().await;
    let directory = remote.certificates.path().to_path_buf();
    let files = files(&directory);
    let shown = remote.authority.issue(&[ALICE]);
    let ask = async || {
        let answer = remote.ask(&remote.authority, Some(&shown), GET).await;
        assert_eq!(answer.expect("answered").status, 200);
    };
    let mut last = None;
    for round in 0..10 {
        let next = remote.authority.issue(&["spiffe://hanzo.ai/zt"]);
        let (cert, key) = next.pems();
        let half = |text: &str| text[..text.len() / 2].to_owned();
        // Whoever writes them does so in this or that order, and not at once.
        let mut steps = vec![
            (&files.cert, half(&cert)),
            (&files.cert, cert),
            (&files.key, half(&key)),
        ];
        steps.push((&files.key, key));
        if round % 2 == 1 {
            steps.rotate_left(2);
        }
        for (file, text) in steps {
            std::fs::write(file, text).expect("write");
            ask().await;
            ask().await;
        }
        last = Some(next);
    }
    // And what was written last is what is shown.
    let wanted = last.expect("ten").der();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        let connector = TlsConnector::from(Arc::new(remote.authority.client(Some(&shown))));
        let stream = TcpStream::connect(remote.address).await.expect("connects");
        let name = ServerName::try_from("localhost").expect("name");
        let stream = connector.connect(name, stream).await.expect("shakes hands");
        let shown = stream.get_ref().1.peer_certificates();
        if shown.and_then(|chain| chain.first()) == Some(&wanted) {
            break;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "the old certificate stays"
        );
    }
}
