// SPDX-License-Identifier: Apache-2.0
//! What somebody makes who may write the file and has no key, and what is to be found of it.

use std::fmt::Write as _;

use super::*;

/// SQL that gives every entry behind one the hash that it must have, after `change` has had each: it alters one, and says by which SQL
/// its row becomes the same.
pub(super) async fn hashed_anew(
    file: &Path,
    behind: u64,
    change: impl Fn(u64, &mut Entry) -> Option<&'static str>,
) -> String {
    let mut reader = Reader::open(&World::dsn(file)).await.expect("opens");
    let (mut head, mut sql): (Option<Head>, _) = (None, String::new());
    loop {
        let found = reader.more().await.expect("reads");
        if found.is_empty() {
            break;
        }
        for found in found {
            let kept = found.kept.expect("readable");
            let (seq, mut said) = (found.seq, kept.entry);
            if seq <= behind {
                let link = kept.link.expect("in the chain");
                head = Some(Head {
                    writer: link.writer,
                    seq: link.seq,
                    hash: link.hash,
                });
                continue;
            }
            let head = head.get_or_insert_with(|| Head::new(found.writer));
            if let Some(changed) = change(seq, &mut said) {
                write!(sql, "UPDATE record SET {changed} WHERE row = {seq};").expect("writes");
            }
            let hash = head.link(&said).hash;
            write!(sql, "UPDATE record SET hash = x'{hash}' WHERE row = {seq};").expect("writes");
        }
    }
    let head = head.expect("entries");
    write!(sql, "UPDATE trail SET hash = x'{}';", head.hash).expect("writes");
    sql
}

/// That what was written up to an entry was rewritten.
pub(super) fn rewritten(at: u64) -> impl Fn(&Finding) -> bool {
    move |finding| matches!(finding, Finding::Rewritten { seq, .. } if *seq == at)
}

/// That the checkpoint at an entry is not there.
pub(super) fn lacking(at: u64) -> impl Fn(&Finding) -> bool {
    move |finding| matches!(finding, Finding::Lacking { seq, .. } if *seq == at)
}

/// It is among those.
pub(super) fn is_among(findings: &[Finding], wanted: impl Fn(&Finding) -> bool) {
    assert!(findings.iter().any(wanted), "{findings:?}");
}
