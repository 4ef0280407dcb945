// SPDX-License-Identifier: Apache-2.0
//! The model against the tables of the specification: each row of theirs, and everything that there can be.

use super::*;

const DOCUMENT: &str = include_str!("../../../docs/handshake.md");

/// The rows of the first table below a heading, cell by cell, without the one of tests: texts alone, without links and code.
fn table(heading: &str) -> Vec<Vec<String>> {
    let below = DOCUMENT.lines().skip_while(|line| *line != heading).skip(1);
    let rows = below
        .skip_while(|line| !line.starts_with('|'))
        .take_while(|line| line.starts_with('|'))
        .skip(2);
    let rows: Vec<Vec<String>> = rows
        .map(|row| {
            let cells = row.trim_matches('|').split('|');
            let mut cells: Vec<String> = cells.map(|cell| text(cell.trim())).collect();
            cells.pop();
            cells
        })
        .collect();
    assert!(!rows.is_empty(), "no table below {heading:?}");
    rows
}

fn text(cell: &str) -> String {
    let mut text = String::new();
    let mut rest = cell;
    while let Some((before, after)) = rest.split_once("](") {
        text.push_str(before);
        rest = after.split_once(')').expect("a link ends").1;
    }
    text.push_str(rest);
    text.replace(['[', '`'], "")
}

fn cells<const N: usize>(row: &[String]) -> [&str; N] {
    let cells: Vec<&str> = row.iter().map(String::as_str).collect();
    cells
        .try_into()
        .unwrap_or_else(|cells| panic!("not {N} cells: {cells:?}"))
}

/// Whether a row is about this connection.
fn is_about(row: &[String], arrived: Arrived) -> bool {
    let [option, and, ..] = cells::<5>(row);
    let shown: &[Shown] = match option {
        "verifies" => &[Shown::Proof],
        "does not verify" => &[Shown::Unverified],
        "does not verify, or has another length" => &[Shown::Unverified, Shown::Malformed],
        "none" | "none, in a segment after too" => &[Shown::Nothing],
        "the listener does not keep SYNs, and the segment after bears none" => &[Shown::Unsaved],
        other => panic!("the model knows of no option that {other:?}"),
    };
    let from: &[Place] = match and {
        "its address is a workload's, or the namespace's own; or this kernel's own socket has sent this SYN, and that is all" => {
            &[
                Place::Home,
                Place::HomeUnnoted,
                Place::Prover,
                Place::Workload,
                Place::Bare,
            ]
        }
        "its address is the namespace's own, and of a call of a workload there nothing could be noted" => {
            &[Place::HomeUnnoted]
        }
        "its address is the namespace's own" => &[Place::Home, Place::HomeUnnoted],
        "its address is that of a workload of this node, or of one that proves" => &[Place::Prover],
        "its address is that of a workload of a node that does not prove, or is not heard any more" => {
            &[Place::Bare]
        }
        "" | "otherwise" => &Place::ALL,
        "this kernel's own socket has taken the answer"
        | "this kernel's own socket has sent this SYN, and that is all" => &[],
        other => panic!("the model knows of nothing like {other:?}"),
    };
    let noted = if and.ends_with("has taken the answer") {
        arrived.noted == Noted::Answered
    } else {
        and.ends_with("has sent this SYN, and that is all") && arrived.noted == Noted::Sent
    };
    shown.contains(&arrived.shown) && (noted || from.contains(&arrived.from))
}

/// Who the other end is, its proof and its reason, as the first row that holds says, and which one that is.
fn said(rows: &[Vec<String>], arrived: Arrived) -> (Vec<usize>, [String; 3]) {
    let found = rows.iter().position(|row| is_about(row, arrived));
    let found = found.unwrap_or_else(|| panic!("no row is about {arrived:?}"));
    let [_, _, source, proof, reason] = cells::<5>(&rows[found]);
    let Some(but) = source.strip_prefix("as without an option") else {
        return (vec![found], [source, proof, reason].map(str::to_owned));
    };
    assert_eq!(reason, "as without an option", "row {found}");
    let from = match (but, arrived.from) {
        (", but an address alone does name", Place::Prover) => Place::Workload,
        ("" | ", but an address alone does name", from) => from,
        _ => panic!("the model knows of nothing like {but:?}"),
    };
    let without = Arrived {
        shown: Shown::Nothing,
        from,
        ..arrived
    };
    let (mut by, [source, _, reason]) = said(rows, without);
    by.push(found);
    (by, [source, proof.to_owned(), reason])
}

/// A name as the tables write it.
fn name(outcome: Outcome, from: Place) -> &'static str {
    match (outcome.named, from) {
        (Named::ByOption, _) => "who the option says",
        (Named::BySocket, _) => "that socket's workload",
        (Named::Host, _) => "host",
        (Named::ByDirectory, Place::Elsewhere) if outcome.proof == Proof::TagInvalid => {
            "the entity or network that its address is"
        }
        (Named::ByDirectory, _) => "who the directory says",
        (Named::AsDecided, _) => "as decided",
        (Named::Nobody, _) => "unknown",
    }
}

/// Whatever arrives, the model says what the first row says that holds, and each row is the first one of something.
#[test]
fn the_destinations_end_does_what_the_specification_says() {
    let rows = table("## What the destination's end makes of it");
    let mut used = vec![false; rows.len()];
    for shown in Shown::ALL {
        for noted in Noted::ALL {
            for from in Place::ALL {
                let arrived = Arrived { shown, noted, from };
                let outcome = at_destination(&arrived);
                let (by, [source, proof, reason]) = said(&rows, arrived);
                assert_eq!(name(outcome, from), source, "{arrived:?}, row {by:?}");
                assert_eq!(outcome.proof.name(), proof, "{arrived:?}, row {by:?}");
                let why = match outcome.why {
                    // Who has a name is judged by it.
                    Why::Unnamed(reason) if outcome.named == Named::Nobody => reason.name(),
                    Why::Unnamed(_) | Why::Policy => "as policy says",
                    Why::Always(reason) => panic!("{arrived:?}: {reason:?} whatever policy says"),
                };
                assert_eq!(why, reason, "{arrived:?}, row {by:?}");
                for row in by {
                    used[row] = true;
                }
            }
        }
    }
    for (row, used) in rows.iter().zip(used) {
        assert!(used, "nothing is ever as this row says: {row:?}");
    }
}

/// Whether a row of the source's end is about this answer; `virtually`: it is of the table of virtual addresses.
fn answers(option: &str, called: Called, answer: Answer, virtually: bool) -> bool {
    let invalid = matches!(answer, Answer::Unverified | Answer::Malformed);
    match option {
        "verifies, and is the one identity behind the address" => {
            called == Called::One && answer == Answer::Meant
        }
        "verifies, and is an identity that policy allows, where policy allows each of several" => {
            called == Called::Several && answer == Answer::Meant
        }
        "verifies, where those behind the address listen on several ports" => {
            called == Called::Ports && matches!(answer, Answer::Meant | Answer::Another)
        }
        "otherwise" if virtually => true,
        "verifies, and is who was taken for the destination" => answer == Answer::Meant,
        "verifies, and is somebody else" => answer == Answer::Another,
        "does not verify, from behind an address of a node" => called == Called::Node && invalid,
        "does not verify, from a node that does not prove, or is not heard any more" => {
            called == Called::Bare && answer == Answer::Unverified
        }
        "does not verify, or has another length" => invalid,
        "none" => answer == Answer::Nothing,
        "nobody answers" => answer == Answer::Never,
        other => panic!("the model knows of no answer that {other:?}"),
    }
}

#[test]
fn the_sources_end_does_what_the_specification_says() {
    let plain = table("## What the source's end makes of it");
    let fronts = table("## Virtual addresses");
    let mut used = [vec![false; plain.len()], vec![false; fronts.len()]];
    for called in Called::ALL {
        for answer in Answer::ALL {
            let virtually = matches!(called, Called::One | Called::Several | Called::Ports);
            if called == Called::Node && matches!(answer, Answer::Meant | Answer::Another) {
                // In the table of addresses that are translated.
                assert_eq!(at_source(called, answer).proof, Proof::Source);
                assert_eq!(at_source(called, answer).named, Named::AsDecided);
                continue;
            }
            let first = |rows: &[Vec<String>]| {
                let found = rows
                    .iter()
                    .position(|row| answers(&row[0], called, answer, virtually));
                found.unwrap_or_else(|| panic!("no row is about {called:?}, {answer:?}"))
            };
            let outcome = at_source(called, answer);
            let what = format!("{called:?}, {answer:?}");
            if virtually {
                let row = first(&fronts);
                used[1][row] = true;
                let [option, destination, proof] = cells::<3>(&fronts[row]);
                if option != "otherwise" {
                    assert_eq!(outcome.proof.name(), proof, "{what}");
                    assert_eq!(outcome.why, Why::Policy, "{what}");
                    let that = outcome.named == Named::ByOption;
                    assert_eq!(that, destination == "that", "{what}: {destination}");
                    assert_eq!(
                        !that,
                        destination.starts_with("as decided"),
                        "{what}: {destination}"
                    );
                    continue;
                }
            }
            let row = first(&plain);
            used[0][row] = true;
            let [_, destination, proof, then] = cells::<4>(&plain[row]);
            assert_eq!(outcome.proof.name(), proof, "{what}");
            match destination {
                // They are the same.
                "as decided" if answer == Answer::Meant => {
                    assert_eq!(outcome.named, Named::ByOption, "{what}");
                }
                _ => assert_eq!(name(outcome, Place::Elsewhere), destination, "{what}"),
            }
            let why = match outcome.why {
                Why::Always(reason) => format!(
                    "decided again; the one record has the reason {}, allowed or not",
                    reason.name()
                ),
                Why::Policy | Why::Unnamed(_) => String::new(),
            };
            assert_eq!(why, then, "{what}");
        }
    }
    assert!(used.iter().flatten().all(|used| *used), "{used:?}");
}

/// What policy says is believed of who has proven himself; of all others a rule that asks for proof refuses, and who has no name is told why.
#[test]
fn policy_is_about_the_name_and_proof_is_asked_for_beside_it() {
    let asks = Verdict {
        allowed: true,
        reason: Reason::Rule,
        rule: 7,
        revision: 1,
        proof: true,
    };
    let unnamed = Verdict::refusal(Reason::UnknownSource, 1);
    for shown in Shown::ALL {
        for noted in Noted::ALL {
            for from in Place::ALL {
                let outcome = at_destination(&Arrived { shown, noted, from });
                let judged = outcome.judged(asks);
                if shown == Shown::Proof {
                    assert_eq!(judged, asks);
                } else {
                    assert_eq!((judged.allowed, judged.reason), (false, Reason::ProofRequired));
                }
                let reason = outcome.judged(unnamed).reason;
                let expected = match outcome.why {
                    Why::Unnamed(reason) => reason,
                    _ => Reason::UnknownSource,
                };
                assert_eq!(reason, expected);
                let other = Verdict::refusal(Reason::NoRule, 1);
                assert_eq!(outcome.judged(other), other, "who has a name is judged by it");
            }
        }
    }
    let other = at_source(Called::Workload, Answer::Another).judged(asks);
    assert_eq!((other.allowed, other.reason), (true, Reason::IdentityMismatch));
}
