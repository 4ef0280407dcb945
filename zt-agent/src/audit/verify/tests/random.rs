// SPDX-License-Identifier: Apache-2.0
//! Whatever is done to the trail of a cluster is found, and named.

use std::cell::RefCell;

use proptest::prelude::*;

use super::node::{Node, check, seq, three, trust};
use super::*;
use crate::audit::seal::Cause;

/// What is done.
#[derive(Clone, Copy, Debug)]
enum Mutation {
    Change,
    Remove(u64),
    CutTail,
    Swap,
    Double,
    Insert,
    InsertBehindTheEnd,
    Rewrite,
    Rechain,
    TakeAnothersPlace,
    DropCheckpoints,
    ForgeCheckpoint,
    ForgeGap,
    TakeGapAway,
    Unchain,
}

fn mutation() -> impl Strategy<Value = Mutation> {
    use Mutation::{
        Change, CutTail, Double, DropCheckpoints, ForgeCheckpoint, ForgeGap, Insert, InsertBehindTheEnd,
        Rechain, Remove, Rewrite, Swap, TakeAnothersPlace, TakeGapAway, Unchain,
    };
    prop_oneof![
        (1_u64..5).prop_map(Remove),
        prop::sample::select(vec![
            Change,
            CutTail,
            Swap,
            Double,
            Insert,
            InsertBehindTheEnd,
            Rewrite,
            Rechain,
            TakeAnothersPlace,
            DropCheckpoints,
            ForgeCheckpoint,
            ForgeGap,
            TakeGapAway,
            Unchain,
        ]),
    ]
}

/// Does it to a node's entry. Returns numbers of which each must be named.
fn mutate(nodes: &mut [Node], stranger: &Node, of: usize, at: usize, mutation: Mutation) -> Vec<u64> {
    let foreign = nodes[(of + 1) % nodes.len()].kept[at + 1].clone();
    let node = &mut nodes[of];
    let number = seq(&node.kept[at]);
    let change = |entry: &mut Entry| {
        let new = super::entry(1000);
        *entry = match (new, &*entry) {
            (Entry::Decision(mut new), old) => {
                new.id = old.id();
                Entry::Decision(new)
            }
            (new, _) => new,
        };
    };
    match mutation {
        Mutation::Change => change(&mut node.kept[at].entry),
        Mutation::Remove(count) => {
            let end = (at + count as usize).min(node.kept.len());
            return node.kept.drain(at..end).map(|kept| seq(&kept)).collect();
        }
        Mutation::CutTail => return node.kept.drain(at..).map(|kept| seq(&kept)).collect(),
        Mutation::Swap => {
            let with = (at + 1) % node.kept.len();
            node.kept.swap(at, with);
            return vec![number.min(seq(&node.kept[at]))];
        }
        Mutation::Double => {
            let again = node.kept[at].clone();
            node.kept.insert(at + 1, again);
        }
        Mutation::Insert => {
            // With a number and a hash of its own making, before or behind the right one.
            let mut false_one = node.kept[at].clone();
            change(&mut false_one.entry);
            node.kept.insert(at + at % 2, false_one);
        }
        Mutation::InsertBehindTheEnd => {
            let mut false_one = node.kept[at].clone();
            let link = false_one.link.as_mut().expect("a link");
            link.seq = u64::MAX - at as u64;
            node.kept.push(false_one);
            return vec![u64::MAX - at as u64];
        }
        Mutation::Rewrite => node.kept[at].link.as_mut().expect("a link").hash.0[0] ^= 1,
        Mutation::Rechain => {
            // Everything behind is made to fit: the next checkpoint shows it, or the next stated gap.
            change(&mut node.kept[at].entry);
            let (writer, start) = (node.head.writer, at);
            let mut head = match start
                .checked_sub(1)
                .map(|before| node.kept[before].link.expect("a link"))
            {
                Some(link) => Head {
                    writer,
                    seq: link.seq,
                    hash: link.hash,
                },
                None => Head::new(writer),
            };
            for kept in &mut node.kept[start..] {
                if seq(kept) != head.seq + 1 {
                    break;
                }
                kept.link = Some(head.link(&kept.entry));
            }
            return Vec::new();
        }
        Mutation::TakeAnothersPlace => {
            let link = node.kept[at].link;
            node.kept[at] = foreign;
            node.kept[at].link = link;
        }
        Mutation::DropCheckpoints => {
            node.checkpoints.clear();
            return Vec::new();
        }
        Mutation::ForgeCheckpoint => {
            let mut head = node.head;
            head.hash.0[5] ^= 1;
            let forged = Checkpoint::sign(head, Timestamp(1), (0, head.hash), &stranger.keys);
            node.checkpoints.push(forged);
            return vec![head.seq];
        }
        Mutation::ForgeGap => {
            node.gaps
                .push(node.gap(number, number, Cause::SpoolOldest, &stranger.keys));
            node.remove(number, number);
        }
        Mutation::TakeGapAway => {
            return match node.gaps.pop() {
                Some(gap) => vec![gap.first, gap.last],
                None => node.kept.drain(at..).map(|kept| seq(&kept)).collect(),
            };
        }
        Mutation::Unchain => node.kept[at].link = None,
    }
    vec![number]
}

/// Whether a finding names an entry of this number.
fn names(finding: &Finding, number: u64) -> bool {
    match finding {
        Finding::Changed { seq, .. }
        | Finding::Misplaced { seq, .. }
        | Finding::Forged { seq, .. }
        | Finding::Rewritten { seq, .. } => *seq == number,
        Finding::Missing { first, last, .. }
        | Finding::ForgedGap { first, last, .. }
        | Finding::Unproven { first, last, .. } => (*first..=*last).contains(&number),
        _ => false,
    }
}

#[test]
fn every_mutation_is_found_and_named_and_an_untouched_trail_is_clean() {
    let (whole, mut with_losses, stranger) = (three(), three(), Node::new(99));
    with_losses[0].lose(8, 9, Cause::SpoolOldest);
    with_losses[1].lose(15, 22, Cause::SpoolNewest);
    with_losses[2].lose(33, 33, Cause::ServerRefused);
    let worlds = [RefCell::new(whole), RefCell::new(with_losses)];
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(200));
    let strategy = (any::<bool>(), 0_usize..3, 0_usize..30, mutation());
    let done = runner.run(&strategy, |(losses, of, at, mutation)| {
        let mut nodes = worlds[usize::from(losses)].borrow_mut();
        let before = check(trust(&nodes), &nodes, None);
        prop_assert!(before.is_clean(), "{:?}", before.findings);
        let as_it_was = (
            nodes[of].kept.clone(),
            nodes[of].checkpoints.clone(),
            nodes[of].gaps.clone(),
        );
        let numbers = mutate(&mut nodes, &stranger, of, at, mutation);
        let report = check(trust(&nodes), &nodes, None);
        (nodes[of].kept, nodes[of].checkpoints, nodes[of].gaps) = as_it_was;
        prop_assert!(!report.is_clean(), "not found");
        for number in numbers {
            prop_assert!(
                report.findings.iter().any(|finding| names(finding, number)),
                "{number} is not named: {:?}",
                report.findings
            );
        }
        Ok(())
    });
    done.expect("each is found");
}
