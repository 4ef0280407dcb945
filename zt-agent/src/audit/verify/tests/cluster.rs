// SPDX-License-Identifier: Apache-2.0
//! Several writers, each with keys of its own; a maintainer; and what they state of what is not there.

use sha2::Digest as _;

use super::node::{Node, check, three, trust};
use super::*;
use crate::audit::chain::START;
use crate::audit::seal::{Cause, Signature};

/// One that signs for no writer.
fn maintainer() -> Node {
    let mut maintainer = Node::new(9);
    maintainer.checkpoints.clear();
    maintainer
}

fn is_clean(report: &Report) {
    assert_eq!((&report.findings[..], report.count), (&[][..], 0));
}

#[test]
fn each_writer_is_proven_by_its_own_keys() {
    let nodes = three();
    let report = check(trust(&nodes), &nodes, None);
    is_clean(&report);
    assert_eq!(
        (report.entries, report.checkpoints, report.writers.len()),
        (120, 9, 3)
    );
    for (node, of) in nodes.iter().zip(&report.writers) {
        assert_eq!((of.root.as_ref(), of.sealed), (Some(&node.root()), 40));
    }
}

#[test]
fn one_that_is_not_trusted_proves_nothing_and_the_others_do() {
    let nodes = three();
    let report = check(trust(&nodes[..2]), &nodes, None);
    let writer = nodes[2].head.writer;
    assert!(
        report.findings.contains(&Finding::Unsealed { writer }),
        "{:?}",
        report.findings
    );
    // Two keys, three checkpoints, and the writer.
    assert_eq!(report.count, 6, "{:?}", report.findings);
}

#[test]
fn who_signs_for_another_is_found() {
    let mut nodes = three();
    let forged = Checkpoint::sign(nodes[1].head, Timestamp(1), (0, START), &nodes[0].keys);
    nodes[0].checkpoints.push(forged);
    let (writer, key, owner) = (nodes[1].head.writer, nodes[0].root(), nodes[1].root());
    // The first that signs has the writer: then every checkpoint of the other one is a finding.
    let report = check(trust(&nodes), &nodes, None);
    let rival = |seq: u64, key: &String, owner: &String| Finding::Rival {
        writer,
        seq,
        key: key.clone(),
        owner: owner.clone(),
    };
    assert!(
        report.findings.contains(&rival(0, &owner, &key)),
        "{:?}",
        report.findings
    );
    // Whoever says whose it is finds the one, even where the right ones are gone.
    let mut trust = trust(&nodes);
    trust.writers.insert(writer, owner.clone());
    let report = check(trust.clone(), &nodes, None);
    assert_eq!(report.findings, [rival(40, &key, &owner)]);
    nodes[1].checkpoints.clear();
    let report = check(trust, &nodes, None);
    assert_eq!(
        report.findings,
        [rival(40, &key, &owner), Finding::Unsealed { writer }]
    );
}

#[test]
fn another_s_checkpoint_under_ones_own_name_is_forged() {
    let mut nodes = three();
    let mut replayed = nodes[0].checkpoints[1].clone();
    replayed.writer = nodes[1].head.writer;
    nodes[1].checkpoints.push(replayed);
    let report = check(trust(&nodes), &nodes, None);
    let (writer, seq) = (nodes[1].head.writer, 20);
    assert_eq!(report.findings, [Finding::Forged { writer, seq }]);
}

#[test]
fn a_key_that_two_have_signed_is_found() {
    let nodes = three();
    // Node 0 takes node 1's second key for its own.
    let mut stolen = nodes[1].keys.current().clone();
    stolen.signatures = vec![nodes[0].keys.sign(&stolen.signed())];
    let mut verifier = Verifier::new(trust(&nodes));
    nodes
        .iter()
        .flat_map(|node| node.keys.records())
        .for_each(|key| verifier.key(key));
    verifier.key(&stolen);
    let report = verifier.finish();
    let finding = Finding::SharedKey {
        key: stolen.key,
        owner: nodes[1].root(),
        other: nodes[0].root(),
    };
    assert_eq!(report.findings, [finding]);
}

#[test]
fn what_a_writer_states_as_lost_is_counted_and_nothing_else_is_hidden() {
    let mut nodes = three();
    nodes[0].lose(5, 9, Cause::SpoolOldest);
    nodes[0].lose(10, 10, Cause::ServerRefused);
    nodes[1].lose(38, 40, Cause::SpoolNewest);
    let report = check(trust(&nodes), &nodes, None);
    is_clean(&report);
    assert_eq!((report.lost(), report.entries), (9, 111));
    let counts: Vec<u64> = Cause::ALL
        .iter()
        .filter_map(|cause| report.stated.get(cause))
        .copied()
        .collect();
    assert_eq!(counts, [5, 3, 1]);
    for of in &report.writers {
        assert_eq!(of.records + of.lost, 40);
    }
    // One more is gone on either side.
    nodes[0].remove(4, 4);
    nodes[0].remove(11, 12);
    let report = check(trust(&nodes), &nodes, None);
    let writer = nodes[0].head.writer;
    let missing = |first, last| Finding::Missing { writer, first, last };
    assert_eq!(report.findings, [missing(4, 4), missing(11, 12)]);
    // Nobody else may say so.
    let lie = nodes[0].gap(4, 4, Cause::SpoolOldest, &nodes[1].keys);
    let key = nodes[1].root();
    nodes[1].gaps.push(lie);
    let report = check(trust(&nodes), &nodes, None);
    let claimed = Finding::Claimed {
        writer,
        first: 4,
        last: 4,
        cause: "spool_oldest",
        key,
    };
    assert_eq!(report.findings, [claimed, missing(4, 4), missing(11, 12)]);
}

#[test]
fn entries_where_a_writer_states_a_gap_are_believed_only_if_they_fill_it() {
    let mut nodes = three();
    // They had arrived after all.
    let gap = nodes[0].gap(5, 9, Cause::SpoolOldest, &nodes[0].keys);
    nodes[0].gaps.push(gap);
    let report = check(trust(&nodes), &nodes, None);
    is_clean(&report);
    assert_eq!(report.lost(), 0);
    // Whatever is only begun could be made by anybody.
    nodes[0].remove(7, 9);
    let report = check(trust(&nodes), &nodes, None);
    let writer = nodes[0].head.writer;
    let unproven = Finding::Unproven {
        writer,
        first: 5,
        last: 6,
    };
    assert_eq!(report.findings, [unproven]);
    nodes[0].remove(5, 5);
    let report = check(trust(&nodes), &nodes, None);
    let [Finding::Misplaced { seq: 6, .. }] = report.findings[..] else {
        panic!("{:?}", report.findings)
    };
}

#[test]
fn pruning_is_the_maintainer_s_to_state() {
    let mut nodes = three();
    let mut maintainer = maintainer();
    for node in &mut nodes[..2] {
        maintainer
            .gaps
            .push(node.gap(1, 12, Cause::Pruned, &maintainer.keys));
        node.remove(1, 12);
    }
    nodes[2].lose(1, 3, Cause::Pruned);
    let mut trust = trust(&nodes);
    trust.maintainers.insert(maintainer.root());
    let report = check(trust.clone(), &nodes, Some(&maintainer));
    is_clean(&report);
    assert_eq!((report.lost(), report.stated[&Cause::Pruned]), (0, 27));
    let span = &report.spans[0];
    assert_eq!((span.first, span.last, &span.by), (1, 12, &maintainer.root()));
    // More is missing than that.
    nodes[0].remove(13, 13);
    let report = check(trust.clone(), &nodes, Some(&maintainer));
    let writer = nodes[0].head.writer;
    let missing = |first, last| Finding::Missing { writer, first, last };
    assert_eq!(report.findings, [missing(13, 13)]);
    // A key that is trusted and no maintainer's.
    trust.maintainers.clear();
    trust.roots.insert(maintainer.root());
    let report = check(trust, &nodes, Some(&maintainer));
    assert!(report.findings.contains(&missing(1, 13)), "{:?}", report.findings);
    let claims = report
        .findings
        .iter()
        .filter(|finding| matches!(finding, Finding::Claimed { .. }));
    assert_eq!(claims.count(), 2);
}

#[test]
fn a_tail_that_had_arrived_is_missed_and_one_that_waits_is_not() {
    let mut nodes = three();
    let last = nodes[0].checkpoints[2].clone();
    nodes[0].checkpoints.pop();
    nodes[0].remove(31, 40);
    let look = |kept, arrived| {
        let mut verifier = Verifier::new(trust(&nodes));
        nodes
            .iter()
            .flat_map(|node| node.keys.records())
            .for_each(|key| verifier.key(key));
        nodes
            .iter()
            .flat_map(|node| &node.checkpoints)
            .for_each(|of| verifier.checkpoint(of));
        verifier.noted(&[Noted {
            checkpoint: last.clone(),
            kept,
            arrived,
        }]);
        nodes
            .iter()
            .flat_map(|node| &node.kept)
            .for_each(|kept| verifier.entry(kept));
        verifier.finish()
    };
    let writer = last.writer;
    is_clean(&look(false, 30));
    is_clean(&look(false, 0));
    let missing = |last| Finding::Missing {
        writer,
        first: 31,
        last,
    };
    assert_eq!(look(false, 35).findings, [missing(35)]);
    assert_eq!(
        look(true, 40).findings,
        [Finding::Lacking { writer, seq: 40 }, missing(40)]
    );
}

#[test]
fn a_second_signature_of_another_algorithm_may_stand_beside_ours_and_not_alone() {
    let mut nodes = three();
    let other = |signature: &Signature| Signature {
        algorithm: "ml-dsa-65".to_owned(),
        key: "another".to_owned(),
        signature: signature.signature.clone(),
    };
    nodes[0].lose(5, 9, Cause::SpoolOldest);
    let second = other(&nodes[0].gaps[0].signatures[0]);
    nodes[0].gaps[0].signatures.insert(0, second.clone());
    for checkpoint in &mut nodes[0].checkpoints {
        checkpoint.signatures.push(second.clone());
    }
    is_clean(&check(trust(&nodes), &nodes, None));

    nodes[0].gaps[0].signatures.pop();
    nodes[0].checkpoints[2].signatures.remove(0);
    let report = check(trust(&nodes), &nodes, None);
    let writer = nodes[0].head.writer;
    let forged = [
        Finding::Forged { writer, seq: 40 },
        Finding::ForgedGap {
            writer,
            first: 5,
            last: 9,
        },
        Finding::Missing {
            writer,
            first: 5,
            last: 9,
        },
    ];
    assert_eq!(report.findings, forged);

    // One of ours that does not hold spoils the others.
    let mut bad = nodes[1].checkpoints[2].signatures[0].clone();
    bad.signature = "0".repeat(128);
    nodes[1].checkpoints[2].signatures.push(bad);
    let report = check(trust(&nodes), &nodes, None);
    let (writer, seq) = (nodes[1].head.writer, 40);
    assert!(report.findings.contains(&Finding::Forged { writer, seq }));
}

#[test]
fn a_key_of_another_algorithm_is_no_stranger_and_signs_nothing() {
    let mut nodes = three();
    let mut other = nodes[0].keys.current().clone();
    "ml-dsa-65".clone_into(&mut other.algorithm);
    let signed = &nodes[0].checkpoints[2];
    assert!(
        nodes[0]
            .keys
            .current()
            .has_signed(&signed.signed(), &signed.signatures)
    );
    assert!(!other.has_signed(&signed.signed(), &signed.signatures));
    // It is there under an id of its own.
    other.public = "00".repeat(1952);
    let id = sha2::Sha256::digest(vec![0; 1952]);
    other.key = crate::audit::seal::hex(&id[..16]);
    other.signatures = vec![nodes[0].keys.sign(&other.signed())];
    let mut verifier = Verifier::new(trust(&nodes));
    nodes
        .iter()
        .flat_map(|node| node.keys.records())
        .for_each(|key| verifier.key(key));
    verifier.key(&other);
    let checkpoint = &mut nodes[0].checkpoints[2];
    checkpoint.signatures[0].key = other.key;
    verifier.checkpoint(checkpoint);
    let (writer, seq) = (checkpoint.writer, 40);
    assert_eq!(verifier.finish().findings, [Finding::Forged { writer, seq }]);
}
