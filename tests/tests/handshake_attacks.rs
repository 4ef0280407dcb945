// SPDX-License-Identifier: Apache-2.0
//! Somebody with packet sockets against the identity option: nothing that he makes up, cuts, repeats or puts elsewhere names
//! anybody, and good connections go on.

use std::net::SocketAddrV4;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context as _, Result, anyhow, ensure};
use zt_agent::spiffe_id::number_of;
use zt_common::handshake::IdentityOption;
use zt_tests::attacker::{ANSWERED, ATTACKER, forged, nobody, outsider, silent, stage};
use zt_tests::eventually;
use zt_tests::trail::{RECORDED, party};
use zt_tests::wire::Segment;

#[test]
fn what_is_made_up_or_cut_names_nobody() -> Result<()> {
    let mut stage = stage("attack-forged")?;
    let option = forged(&stage.client.id);
    stage.is_nobody("a guessed tag", &option)?;
    for epoch in 0..4_u8 {
        let mut option = option;
        option[12] = option[12] & 0x0f | epoch << 6;
        stage.is_nobody("a guessed tag of every epoch", &option)?;
    }
    for length in [4, 5, 12, 19] {
        let mut cut = option[..length].to_vec();
        cut[1] = length as u8;
        stage.is_nobody("a short option", &cut)?;
    }
    let mut long = option.to_vec();
    long.extend([0; 12]);
    for length in [21, 24, 32] {
        long[1] = length;
        stage.is_nobody("a long option", &long)?;
    }
    stage.is_nobody("twice", &[option, option].concat())?;
    assert!(stage.agent.counter("tags_invalid")? >= 13);
    stage.ends_well(0)
}

#[test]
fn what_is_repeated_elsewhere_names_nobody() -> Result<()> {
    let mut stage = stage("attack-replay")?;
    let [syn, answer] = stage.overheard()?;
    let option = syn.option(253).context("the SYN bears one")?.to_vec();
    let reflected = answer.option(253).context("so does its answer")?.to_vec();
    let nobody = nobody();
    // From an address and ports of the attacker's own, with the very sequence number.
    let from = stage.fresh();
    stage.shake(from, stage.server.socket_v4(80), syn.sequence, &option)?;
    assert_eq!(stage.named(from)?, outsider());
    let from = SocketAddrV4::new(ATTACKER, syn.from.port());
    stage.shake(from, stage.server.socket_v4(80), syn.sequence, &option)?;
    assert_eq!(stage.named(from)?, outsider());
    // What the server itself said.
    let from = stage.fresh();
    stage.shake(from, stage.server.socket_v4(80), syn.sequence, &reflected)?;
    assert_eq!(stage.named(from)?, outsider());

    // From the client's address, which the attacker has taken over: from another port, at another time, to another audience,
    // to another port of the same audience.
    stage.takes_over()?;
    let client = stage.client.host.ipv4;
    let elsewhere = SocketAddrV4::new(client, syn.from.port() ^ 1);
    stage.shake(elsewhere, stage.server.socket_v4(80), syn.sequence, &option)?;
    assert_eq!(stage.named(elsewhere)?, nobody);
    let mut count = 0;
    for (to, sequence) in [
        (stage.server.socket_v4(80), syn.sequence.wrapping_add(1)),
        (stage.other.socket_v4(80), syn.sequence),
        (stage.server.socket_v4(81), syn.sequence),
    ] {
        let (_, answer) = stage.shake(syn.from, to, sequence, &option)?;
        assert_eq!(answer.option(253), None, "{to}: who proves nothing gets no proof");
        count += 1;
        let named = stage.all_named(syn.from, count)?;
        assert!(named.iter().all(|named| *named == nobody), "{to}: {named:?}");
    }
    // And with none at all.
    let silent = SocketAddrV4::new(client, 39_002);
    stage.shake(silent, stage.server.socket_v4(80), 1, &[])?;
    assert_eq!(stage.named(silent)?, self::silent());
    stage.gives_back()?;
    stage.ends_well(1)
}

/// Every single bit of an option that is good otherwise, from the place and with the sequence number that it was made for.
#[test]
fn a_bit_that_is_turned_over_names_nobody() -> Result<()> {
    let mut stage = stage("attack-bits")?;
    let [syn, _] = stage.overheard()?;
    let option = syn.option(253).context("the SYN bears one")?.to_vec();
    let to = stage.server.socket_v4(80);
    stage.takes_over()?;
    stage.forget_sources()?;
    // The kind, the length and the identifier make it another option or none: those are in the other tests.
    let bits = 32..160;
    // With the bit of an option that is deferred it claims nothing, and bears nothing afterwards.
    let deferred = 12 * 8 + 4;
    let turn_over = |bit: usize| {
        let mut turned = option.clone();
        turned[bit / 8] ^= 1 << (bit % 8);
        let (sent, answer) = stage.shake(syn.from, to, syn.sequence, &turned)?;
        stage.refused(&sent, &answer)
    };
    turn_over(deferred)?;
    assert_eq!(stage.named(syn.from)?, silent());
    for bit in bits.clone().filter(|bit| *bit != deferred) {
        turn_over(bit)?;
    }
    // Denials that are equal share a record: of all others none is another one.
    let mut named = stage.all_named(syn.from, bits.len())?;
    named.retain(|named| *named != nobody());
    assert_eq!(named, [silent()]);
    assert_eq!(stage.agent.counter("agreed")?, 1, "the client itself");
    // It was for nothing else: unchanged it verifies, once more and at this place.
    stage.shake(syn.from, to, syn.sequence, &option)?;
    eventually("the whole option to be believed", RECORDED, || {
        Ok(stage.agent.counter("agreed")? == 2)
    })
}

/// Of two options it is the first that counts, whatever the other one says: one that is made up is not made good by a good one behind
/// it, nor does a good one give its name to the next.
#[test]
fn of_two_options_the_first_counts_alone() -> Result<()> {
    let mut stage = stage("attack-two")?;
    let [syn, _] = stage.overheard()?;
    let good = syn.option(253).context("the SYN bears one")?.to_vec();
    let made_up = forged(&stage.other.id);
    let to = stage.server.socket_v4(80);
    stage.takes_over()?;
    stage.forget_sources()?;
    let options = [&made_up[..], &good].concat();
    let (sent, answer) = stage.shake(syn.from, to, syn.sequence, &options)?;
    assert_eq!(answer.option(253), None, "who proves nothing gets no proof");
    stage.refused(&sent, &answer)?;
    assert_eq!(stage.named(syn.from)?, nobody());
    assert_eq!(stage.agent.counter("agreed")?, 1, "the client itself");
    // At the very place that it was made for, so that it verifies.
    stage.shake(syn.from, to, syn.sequence, &[&good[..], &made_up].concat())?;
    eventually("the first of them to be believed", RECORDED, || {
        Ok(stage.agent.counter("agreed")? == 2)
    })?;
    let id = stage.other.id.clone();
    let records = stage.agent.all_records("")?;
    let wrong = records.iter().find(|record| party(&record["source"]) == id);
    ensure!(wrong.is_none(), "{wrong:?}");
    Ok(())
}

/// Behind the handshake nobody looks for options any more.
#[test]
fn an_option_on_a_data_segment_changes_nothing() -> Result<()> {
    let mut stage = stage("attack-data")?;
    let from = stage.fresh();
    let to = stage.server.socket_v4(81);
    let (syn, answer) = stage.shake(from, to, 1_000, &[])?;
    assert_eq!(answer.option(253), None, "who bears none is answered with none");
    let (source, ..) = stage.named(from)?;
    assert_eq!(source, "world");
    let data = Segment {
        options: forged(&stage.client.id).to_vec(),
        data: b"word".to_vec(),
        ..syn.completes(&answer)
    };
    stage.wire.send(&data, stage.hardware[0])?;
    let echo = stage.wire.receive("the echo", ANSWERED, |segment| {
        segment.from == to && segment.to == from && !segment.data.is_empty()
    })?;
    assert_eq!(echo.data, b"word");
    assert_eq!(echo.option(253), None);
    let (source, ..) = stage.named(from)?;
    assert_eq!(source, "world", "still one record, and of nobody else");
    stage.ends_well(0)
}

/// Nobody gets an answer that proves who the server is but he who has proven who he is himself: such an answer could be
/// repeated to a client who has been lured elsewhere.
#[test]
fn an_answer_is_signed_for_no_stranger() -> Result<()> {
    let mut stage = stage("attack-answer")?;
    let [syn, _] = stage.overheard()?;
    let heard = syn.option(253).context("the SYN bears one")?.to_vec();
    let guessed = forged(&stage.client.id);
    let deferred = IdentityOption::deferred(number_of(&stage.client.id)).to_bytes();
    for (what, option) in [
        ("what was overheard", heard.as_slice()),
        ("what was guessed", guessed.as_slice()),
        ("what leaves the proof for later", deferred.as_slice()),
    ] {
        let from = stage.fresh();
        let (_, answer) = stage.shake(from, stage.server.socket_v4(80), syn.sequence, option)?;
        assert_eq!(answer.option(253), None, "{what}");
        let (source, ..) = stage.named(from)?;
        assert!(
            ["unknown", "world"].contains(&source.as_str()),
            "{what}: {source}"
        );
    }
    // Nor at the client's own address, where no kernel of this node has sent it.
    stage.takes_over()?;
    let from = SocketAddrV4::new(stage.client.host.ipv4, 39_003);
    let (_, answer) = stage.shake(from, stage.server.socket_v4(80), syn.sequence, &deferred)?;
    assert_eq!(answer.option(253), None);
    let (source, reason, _) = stage.named(from)?;
    assert_eq!((source.as_str(), reason.as_str()), ("unknown", "proof_missing"));
    stage.gives_back()?;
    stage.ends_well(1)
}

/// A flood of SYNs that nobody completes, with and without options, as fast as they can be sent, has the listener send cookies. Whoever
/// is honest gets through meanwhile and is known, and nobody else is taken for him.
#[test]
fn cookies_under_a_flood_lose_nobody() -> Result<()> {
    const FLOOD: u64 = 100_000;
    const TALKS: usize = 20;
    let mut stage = stage("attack-flood")?;
    stage.server.host.sysctl("net/ipv4/tcp_syncookies", "1")?;
    let to = stage.server.socket_v4(80);
    let option = forged(&stage.client.id);
    let syns: Vec<Segment> = (1024..61_024_u16)
        .map(|port| {
            let options: &[u8] = if port % 2 == 0 { &option } else { &[] };
            Segment::syn(SocketAddrV4::new(ATTACKER, port), to, u32::from(port), options)
        })
        .collect();
    let (wire, hardware, server) = (&stage.wire, stage.hardware[0], stage.server.v4(80));
    let (sent, over) = (AtomicU64::new(0), AtomicBool::new(false));
    let client = &mut stage.client;
    let talks = std::thread::scope(|scope| -> Result<usize> {
        let flood = scope.spawn(|| wire.flood(&syns, hardware, &sent, &over));
        let mut talks = 0;
        let mut talked = || -> Result<()> {
            while talks < TALKS || sent.load(Ordering::Relaxed) < FLOOD && !flood.is_finished() {
                let talk = client.talk(server)?;
                ensure!(talk == "ok", "talk {talks}: {talk}");
                talks += 1;
            }
            Ok(())
        };
        let talked = talked();
        over.store(true, Ordering::Relaxed);
        flood.join().map_err(|_| anyhow!("the flood panicked"))??;
        talked.map(|()| talks)
    })?;
    assert!(sent.into_inner() >= FLOOD);
    assert!(stage.agent.counter("option_cookies")? > 0, "no cookies were sent");
    assert_eq!(
        stage.agent.counter("tags_invalid")?,
        0,
        "nobody completed a handshake"
    );
    stage.ends_well(talks)
}
