// SPDX-License-Identifier: Apache-2.0
//! What is joined, and what is not.

use proptest::prelude::*;
use proptest::sample::select;
use zt_common::address::Address;
use zt_common::event::Hook;
use zt_common::proof::Proof;
use zt_common::verdict::Reason;

use super::*;
use crate::audit::sample::{CHAT, GATEWAY, denied};

const MILLISECOND: u64 = 1_000_000;

/// A record as a batch has it: the decision that it was made of, and all that it stands for.
#[derive(Debug)]
struct Made {
    first: Decision,
    place: Place,
    times: Vec<u64>,
}

/// The records of batches of decisions.
fn records(batches: &[Vec<Decision>]) -> Vec<Vec<Made>> {
    let mut joining = Joining::default();
    let one = |batch: &Vec<Decision>| {
        joining.begin();
        let mut made: Vec<Made> = Vec::new();
        for decision in batch {
            match joining.place(decision, made.len()) {
                Place::Joins(at) => made[at].times.push(decision.time),
                place => made.push(Made {
                    first: decision.clone(),
                    place,
                    times: vec![decision.time],
                }),
            }
        }
        made
    };
    batches.iter().map(one).collect()
}

fn counts(made: &[Made]) -> Vec<usize> {
    made.iter().map(|record| record.times.len()).collect()
}

/// So many equal denials, one in so long.
fn loops(count: u64, every: u64) -> Vec<Decision> {
    (0..count).map(|n| denied(5 * SECOND + n * every)).collect()
}

#[test]
fn the_first_ones_are_alone_and_those_that_follow_are_one_record() {
    let made = &records(&[loops(1000, MILLISECOND / 2)])[0];
    let mut wanted = vec![1; ALONE as usize];
    wanted.push(1000 - ALONE as usize);
    assert_eq!(counts(made), wanted);
    assert_eq!(made[0].place, Place::Alone);
    assert_eq!(made[ALONE as usize].place, Place::Opens);
}

#[test]
fn a_loop_that_goes_on_has_a_record_for_each_batch_and_for_each_second_of_a_long_one() {
    let all = loops(4000, MILLISECOND);
    let batches: Vec<_> = all.chunks(500).map(<[Decision]>::to_vec).collect();
    for (batch, made) in records(&batches).iter().enumerate() {
        let alone = if batch == 0 { ALONE as usize } else { 0 };
        assert_eq!(made.len(), alone + 1, "batch {batch}");
    }
    // Read behind a delay: all at once, and still no record speaks of more than a second.
    let made = &records(&[all])[0];
    assert_eq!(made.len(), ALONE as usize + 4);
}

#[test]
fn what_comes_seldom_is_never_joined_and_what_was_quiet_begins_anew() {
    let seldom = loops(200, SECOND / u64::from(ALONE));
    assert_eq!(counts(&records(&[seldom])[0]), [1; 200]);
    let again = loops(20, MILLISECOND).into_iter().map(|decision| Decision {
        time: decision.time + 2 * SECOND,
        ..decision
    });
    for made in records(&[loops(20, MILLISECOND), again.collect()]) {
        assert_eq!(made.len(), ALONE as usize + 1);
    }
}

#[test]
fn what_differs_in_anything_that_a_record_says_is_another_kind() {
    type Change = fn(&mut Decision);
    let others: [(&str, Change); 17] = [
        ("source", |d| d.source = CHAT),
        ("destination", |d| d.destination = GATEWAY),
        ("rule", |d| d.rule = 3),
        ("revision", |d| d.revision += 1),
        ("workload", |d| d.workload += 1),
        ("source address", |d| {
            d.source_address = Address::from_v4([10, 99, 0, 9]);
        }),
        ("destination address", |d| {
            d.destination_address = Address::from_v4([10, 99, 0, 9]);
        }),
        ("destination port", |d| d.destination_port += 1),
        ("target port", |d| d.target_port += 1),
        ("protocol", |d| d.protocol = 17),
        ("hook", |d| d.hook = Hook::Sendmsg),
        ("pid", |d| d.pid += 1),
        ("reason", |d| d.reason = Reason::DenyRule),
        ("mode", |d| d.enforced = !d.enforced),
        ("end", |d| d.inbound = !d.inbound),
        ("proof", |d| d.proof = Proof::TagInvalid),
        ("name", |d| d.comm = *b"other\0\0\0\0\0\0\0\0\0\0\0"),
    ];
    let mut batch = loops(100, MILLISECOND);
    let time = 5 * SECOND + 100 * MILLISECOND;
    for (_, change) in others {
        let mut other = denied(time);
        change(&mut other);
        batch.push(other);
    }
    let made = &records(&[batch])[0];
    let firsts = &made[ALONE as usize + 1..];
    assert_eq!(firsts.len(), others.len());
    for (record, (what, _)) in firsts.iter().zip(others) {
        assert_eq!(record.place, Place::Alone, "{what}");
    }
}

#[test]
fn socket_port_and_latency_make_no_kind_and_what_is_allowed_is_never_joined() {
    let tries = (0..100_u16).map(|n| Decision {
        cookie: u64::from(n),
        source_port: 40_000 + n,
        latency: 500 + u32::from(n),
        ..denied(5 * SECOND + u64::from(n))
    });
    let allowed = loops(100, 1).into_iter().map(|decision| Decision {
        allowed: true,
        ..decision
    });
    let made = records(&[tries.collect(), allowed.collect()]);
    assert_eq!(made[0].len(), ALONE as usize + 1);
    assert_eq!(counts(&made[1]), [1; 100]);
}

#[test]
fn who_asks_for_ever_other_places_takes_no_memory_and_loses_no_record() {
    let scan = (0..3 * MOST_KINDS as u64).map(|n| {
        let port = (n % 60_000) as u16;
        Decision {
            target_port: port,
            destination_port: port,
            ..denied(5 * SECOND + n)
        }
    });
    let mut joining = Joining::default();
    joining.begin();
    for (at, decision) in scan.enumerate() {
        assert_eq!(joining.place(&decision, at), Place::Alone);
    }
    assert_eq!(joining.kinds.len(), MOST_KINDS);
    joining.place(&denied(8 * SECOND), 0);
    assert_eq!(joining.kinds.len(), 1);
    assert!(joining.kinds.capacity() < 16);
}

/// Which kind, how long after the one before, and whether policy allows.
fn happenings() -> impl Strategy<Value = Vec<Vec<Decision>>> {
    let gap = select(vec![
        0,
        1000,
        MILLISECOND,
        20 * MILLISECOND,
        110 * MILLISECOND,
        3 * SECOND,
    ]);
    let one = (0_u16..3, gap, prop::bool::weighted(0.1));
    let batch = prop::collection::vec(one, 0..120);
    prop::collection::vec(batch, 1..6).prop_map(|batches| {
        let (mut time, mut made) = (5 * SECOND, Vec::new());
        for batch in batches {
            let mut decisions = Vec::new();
            for (kind, gap, allowed) in batch {
                time += gap;
                decisions.push(Decision {
                    target_port: 80 + kind,
                    allowed,
                    ..denied(time)
                });
            }
            made.push(decisions);
        }
        made
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn sums_are_exact_firsts_are_alone_and_the_order_of_times_is_kept(batches in happenings()) {
        let made = records(&batches);
        prop_assert_eq!(made.len(), batches.len());
        let of_kind = |decision: &Decision| (decision.target_port, decision.allowed);
        for (batch, made) in batches.iter().zip(&made) {
            // Of each kind as many in each batch as happened, the first where the first happened.
            for decision in batch {
                let kind = of_kind(decision);
                let happened: Vec<u64> = batch
                    .iter()
                    .filter(|other| of_kind(other) == kind)
                    .map(|other| other.time)
                    .collect();
                let mut told: Vec<u64> = made
                    .iter()
                    .filter(|record| of_kind(&record.first) == kind)
                    .flat_map(|record| record.times.iter().copied())
                    .collect();
                told.sort_unstable();
                prop_assert_eq!(told, happened);
            }
            prop_assert!(made.is_sorted_by_key(|record| record.first.time));
            for record in made {
                let last = record.times.last().copied().unwrap_or_default();
                prop_assert_eq!(record.times.first(), Some(&record.first.time));
                prop_assert!(last - record.first.time < SPAN);
                prop_assert!(record.times.len() == 1 || !record.first.allowed);
            }
        }
        // What was not there before, or not often in this second and the one before, has a record of its own.
        let all: Vec<&Decision> = batches.iter().flatten().collect();
        let alone: Vec<(u64, u16)> = made
            .iter()
            .flatten()
            .filter(|record| record.place == Place::Alone && !record.first.allowed)
            .map(|record| (record.first.time, record.first.target_port))
            .collect();
        for (at, decision) in all.iter().enumerate().filter(|(_, decision)| !decision.allowed) {
            let second = decision.time / SECOND;
            let lately = all[..at].iter().filter(|other| {
                of_kind(other) == of_kind(decision) && other.time / SECOND + 1 >= second
            });
            if lately.count() < ALONE as usize {
                prop_assert!(alone.contains(&(decision.time, decision.target_port)));
            }
        }
    }
}
