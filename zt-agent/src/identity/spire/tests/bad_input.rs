// SPDX-License-Identifier: Apache-2.0
//! What must never name anybody: SVIDs that cannot be believed, sockets that are missing, slow, or talk nonsense.

use spire_api::pb::spire::api::agent::delegatedidentity::v1::X509svidWithKey;
use spire_api::pb::spire::api::types::X509svid;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;

use super::*;

/// An SVID with these bytes as its chain.
fn raw(chain: &[&[u8]]) -> X509svidWithKey {
    X509svidWithKey {
        x509_svid: Some(X509svid {
            cert_chain: chain.iter().map(|der| der.to_vec().into()).collect(),
            ..X509svid::default()
        }),
        x509_svid_key: Vec::new().into(),
    }
}

#[tokio::test]
async fn svids_that_cannot_be_believed_name_nobody() {
    let mut world = World::new(OnExpiry::Withdraw);
    let ours = &world.authority;
    let stranger = Authority::new();
    let long = format!("{IAM}/{}", "x".repeat(2048));
    let junk: Vec<&[u8]> = vec![b"junk"; 17];
    let cases = [
        ("expired", ours.svid(&[IAM], -1)),
        ("untrusted", stranger.svid(&[IAM], HOUR)),
        (
            "trust_domain",
            ours.svid(&["spiffe://other.example/ns/hanzo/sa/iam"], HOUR),
        ),
        ("not_one_identity", ours.svid(&[], HOUR)),
        ("not_one_identity", ours.svid(&[IAM, CHAT], HOUR)),
        ("not_one_identity", ours.svid(&["https://hanzo.ai/iam"], HOUR)),
        ("not_one_identity", ours.svid(&["spiffe://hanzo.ai"], HOUR)),
        ("not_one_identity", ours.svid(&["spiffe://hanzo.ai/a/../b"], HOUR)),
        ("not_one_identity", ours.svid(&[&long], HOUR)),
        (
            "not_one_identity",
            called(ours.svid(&[IAM], HOUR), "/ns/hanzo/sa/chat"),
        ),
        ("not_one_identity", raw(&[b"\x30\x03\x02\x01\x01"])),
        ("unreadable", raw(&[])),
        ("unreadable", raw(&junk)),
    ];
    let fake = world.fake(Answer::Say(answer([])));
    world.until("connected", |status| status.connected).await;
    for (cause, svid) in cases {
        let before = world.health.status().refused.get(cause).copied().unwrap_or(0);
        fake.answer(Answer::Say(answer([svid])));
        let refused = |status: &Status| status.refused.get(cause).is_some_and(|count| *count > before);
        let status = world.until(cause, refused).await;
        assert!(status.refusal.is_some_and(|why| !why.is_empty()));
        world.nothing_said();
        assert_eq!(world.health.status().named, 0, "{cause}");
    }
    // It was not about the first one only: the one that counts is bad, and no other takes its place.
    let good = world.authority.svid(&[CHAT], HOUR);
    let bad = hinted(world.authority.svid(&[IAM], -1), HINT);
    let before = world.health.status().refused.get("expired").copied();
    fake.answer(Answer::Say(answer([good.clone(), bad])));
    world
        .until("expired again", |status| {
            status.refused.get("expired").copied() > before
        })
        .await;
    world.nothing_said();
    fake.answer(Answer::Say(answer([good])));
    assert_eq!(world.next_name().await, CHAT);
}

#[tokio::test]
async fn a_bundle_that_cannot_be_used_verifies_nobody() {
    let mut world = World::new(OnExpiry::Withdraw);
    let ours = bundles(DOMAIN, &[&world.authority]);
    let mut twice = ours.clone();
    let der = ours.ca_certificates["spiffe://hanzo.ai"].clone();
    twice.ca_certificates.insert(DOMAIN.to_owned(), der);
    let mut junk = ours.clone();
    junk.ca_certificates
        .insert("spiffe://hanzo.ai".to_owned(), b"junk".to_vec().into());
    let cases = [
        ("knows no bundle", bundles("other.example", &[&world.authority])),
        ("twice", twice),
        ("cannot be read", junk),
        ("has 0 authorities", bundles(DOMAIN, &[])),
    ];
    let script = Script {
        bundles: Err((Code::PermissionDenied, "no identity issued")),
        answer: world.say(IAM),
    };
    let fake = Fake::start(&world.settings.admin_socket, script);
    let says = |words: &'static str| {
        move |status: &Status| status.error.as_deref().is_some_and(|error| error.contains(words))
    };
    world
        .until("what to do about it", says("`authorized_delegates`"))
        .await;
    for (words, bundles) in cases {
        fake.script.send_modify(|script| script.bundles = Ok(bundles));
        world.until(words, says(words)).await;
    }
    assert!(world.health.status().refused["bundle"] >= 4);
    world.nothing_said();
    fake.script.send_modify(|script| script.bundles = Ok(ours));
    assert_eq!(world.next_name().await, IAM);
    assert_eq!(world.health.status().error, None);
}

#[tokio::test]
async fn sockets_that_are_missing_or_talk_nonsense_are_tried_again() {
    let mut world = World::new(OnExpiry::Withdraw);
    let status = world.until("missing", |status| status.failures > 2).await;
    let error = status.error.expect("why");
    assert!(
        error.contains("admin.sock") && error.contains("No such file"),
        "{error}"
    );

    // Garbage, and the end, to everybody who comes.
    let listener = UnixListener::bind(&world.settings.admin_socket).expect("a socket");
    let nonsense = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(&[0x5a; 4096]).await;
        }
    });
    world
        .until("nonsense", |status| {
            let error = status.error.as_deref();
            error.is_some_and(|error| !error.contains("No such file"))
        })
        .await;
    world.nothing_said();
    nonsense.abort();
    let _fake = world.fake(world.say(IAM));
    assert_eq!(world.next_name().await, IAM);
}

#[tokio::test]
async fn a_socket_that_says_nothing_is_given_up() {
    let mut world = World::new(OnExpiry::Withdraw);
    let listener = UnixListener::bind(&world.settings.admin_socket).expect("a socket");
    let silent = tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read_u8().await;
            kept.push(stream);
        }
    });
    world
        .until("given up", |status| {
            let error = status.error.as_deref();
            error.is_some_and(|error| error.contains("did not answer"))
        })
        .await;
    silent.abort();
    // Silent about the workload only.
    let fake = world.fake(Answer::Silence);
    world.until("connected", |status| status.connected).await;
    fake.answer(world.say(IAM));
    assert_eq!(world.next_name().await, IAM);
}

#[tokio::test]
async fn streams_that_end_or_never_end_change_nothing() {
    let mut world = World::new(OnExpiry::Withdraw);
    let svid = answer([world.authority.svid(&[IAM], HOUR)]);
    let fake = world.fake(Answer::SayAndClose(svid.clone()));
    assert_eq!(world.next_name().await, IAM);
    // Asked again and again, it is the same each time.
    fake.answer(Answer::Flood(svid.clone()));
    let status = world.until("a flood", |status| status.refused["flood"] > 0).await;
    assert_eq!((status.named, status.rotations.len()), (1, 0));
    fake.answer(Answer::Refuse(Code::Internal, "broken"));
    // The second question comes when the first refusal has been dealt with.
    fake.asked_again(2).await;
    world.nothing_said();
    // Who floods is listened to again.
    fake.answer(world.say(CHAT));
    assert_eq!(world.next_name().await, CHAT);
}

#[tokio::test]
async fn an_svid_that_lives_too_long_is_believed_and_counted_once() {
    let mut world = World::new(OnExpiry::Withdraw);
    // The fake's are valid from an hour ago: two hours in all.
    let _fake = world.fake(world.say(IAM));
    assert_eq!(world.next_name().await, IAM);
    let counted = world.health.status().outside;
    assert_eq!((counted["lifetime"], counted["key"]), (1, 0));
}

#[tokio::test]
async fn who_asks_once_is_told_why_it_would_not_work() {
    let world = World::new(OnExpiry::Withdraw);
    let socket = world.settings.admin_socket.clone();
    let asked = |domain: &'static str| ask(&socket, domain, Duration::from_secs(5));
    let error = asked(DOMAIN).await.expect_err("nobody is there");
    assert!(error.contains("admin.sock"), "{error}");
    let fake = world.fake(Answer::Say(answer([])));
    assert_eq!(asked(DOMAIN).await, Ok(()));
    let error = asked("other.example").await.expect_err("another trust domain");
    assert!(error.contains("other.example"), "{error}");
    let refusal = Err((Code::PermissionDenied, "not a delegate"));
    fake.script.send_modify(|script| script.bundles = refusal);
    let error = asked(DOMAIN).await.expect_err("refused");
    assert!(error.contains("authorized_delegates"), "{error}");
}
