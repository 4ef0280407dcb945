// SPDX-License-Identifier: Apache-2.0
//! One writer's chain, entry by entry.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use uuid::Uuid;

use super::Finding;
use super::logins::Logins;
use super::report::{Report, Span, WriterReport};
use super::trust::Trust;
use crate::audit::chain::{Hash, Head};
use crate::audit::record::Timestamp;
use crate::audit::seal::{Cause, Checkpoint, Gap};

/// Entries have numbers from 1 to this: stores keep them as signed ones.
const LAST: u64 = i64::MAX.cast_unsigned();

/// A span that is stated not to be there.
#[derive(Debug)]
struct Stated {
    first: u64,
    last: u64,
    before: Option<Hash>,
    after: Hash,
    cause: Cause,
    time: Timestamp,
    by: String,
}

/// What the latest checkpoint says.
#[derive(Debug)]
struct Latest {
    seq: u64,
    pruned: u64,
    pruned_hash: Hash,
    time: Timestamp,
}

/// What is known of a writer, and how far we are.
#[derive(Debug)]
pub(super) struct Writer {
    id: Uuid,
    /// Whose it is: a root.
    pub(super) owner: Option<String>,
    /// Hashes that were signed, by number.
    signed: BTreeMap<u64, (Hash, Timestamp)>,
    latest: Option<Latest>,
    /// The entry that must have been reached at the end.
    goal: u64,
    /// What is stated not to be there; once `prepared` only what counts, disjoint and in order.
    stated: Vec<Stated>,
    prepared: bool,
    /// The first of `stated` that does not lie behind us.
    next: usize,
    /// The last entry that there was.
    head: Head,
    /// Whether its hash is known.
    exact: bool,
    /// The one before it, where its hash was known.
    previous: Option<Head>,
    /// Whether the last entry follows from the one before.
    fits: bool,
    /// The first of the entries in a row that ends at `head`.
    run: Option<u64>,
    records: u64,
    lost: u64,
    pruned: u64,
    missing: u64,
    /// What was found wrong with its entries.
    pub(super) found: u64,
    pub(super) logins: Logins,
}

impl Writer {
    pub(super) fn new(id: Uuid, owner: Option<String>) -> Self {
        Self {
            id,
            owner,
            signed: BTreeMap::new(),
            latest: None,
            goal: 0,
            stated: Vec::new(),
            prepared: false,
            next: 0,
            head: Head::new(id),
            exact: true,
            previous: None,
            fits: true,
            run: None,
            records: 0,
            lost: 0,
            pruned: 0,
            missing: 0,
            found: 0,
            logins: Logins::default(),
        }
    }

    /// Up to which entry it is signed.
    pub(super) fn sealed(&self) -> Option<u64> {
        self.latest.as_ref().map(|latest| latest.seq)
    }

    /// A hash that its owner has signed.
    pub(super) fn sign(&mut self, seq: u64, hash: Hash, time: Timestamp, report: &mut Report) {
        let (signed, _) = self.signed.entry(seq).or_insert((hash, time));
        if *signed != hash {
            report.found(Finding::Rewritten {
                writer: self.id,
                seq,
                time: time.to_string(),
            });
        }
    }

    /// A checkpoint that its owner has signed, of which the entries up to `goal` must be there.
    pub(super) fn checkpoint(&mut self, checkpoint: &Checkpoint, report: &mut Report) {
        let (seq, pruned, time) = (checkpoint.seq, checkpoint.pruned, checkpoint.time);
        self.sign(seq, checkpoint.hash, time, report);
        self.expect(seq);
        // Of the most entries, and of those the one after the most pruning.
        let later = |latest: &Latest| (latest.seq, latest.pruned, latest.time) < (seq, pruned, time);
        if self.latest.as_ref().is_none_or(later) {
            self.latest = Some(Latest {
                seq,
                pruned,
                pruned_hash: checkpoint.pruned_hash,
                time,
            });
        }
    }

    /// Entries up to this one must be there.
    pub(super) fn expect(&mut self, seq: u64) {
        self.goal = self.goal.max(seq);
    }

    /// A gap that somebody who is trusted has signed.
    pub(super) fn gap(&mut self, gap: &Gap, by: &str) {
        self.stated.push(Stated {
            first: gap.first,
            last: gap.last,
            before: gap.before,
            after: gap.after,
            cause: gap.cause,
            time: gap.time,
            by: by.to_owned(),
        });
    }

    /// Sorts out which statements count, when all are known.
    pub(super) fn prepare(&mut self, trust: &Trust, report: &mut Report) {
        if std::mem::replace(&mut self.prepared, true) {
            return;
        }
        let mut stated = std::mem::take(&mut self.stated);
        let owner = self.owner.clone();
        stated.retain(|stated| {
            let may = owner.as_ref() == Some(&stated.by)
                || (stated.cause == Cause::Pruned && trust.maintainers.contains(&stated.by));
            if !may {
                report.found(Finding::Claimed {
                    writer: self.id,
                    first: stated.first,
                    last: stated.last,
                    cause: stated.cause.name(),
                    key: stated.by.clone(),
                });
            }
            may
        });
        if let Some(latest) = self.latest.as_ref().filter(|latest| latest.pruned > 0) {
            stated.push(Stated {
                first: 1,
                last: latest.pruned,
                before: None,
                after: latest.pruned_hash,
                cause: Cause::Pruned,
                time: latest.time,
                by: owner.unwrap_or_default(),
            });
        }
        stated.sort_by_key(|stated| (stated.first, Reverse(stated.last)));
        for mut next in stated {
            self.sign(next.last, next.after, next.time, report);
            if let Some(last) = self.stated.last().filter(|last| next.first <= last.last) {
                if next.last <= last.last {
                    continue;
                }
                next.first = last.last + 1;
                next.before = None;
            }
            self.stated.push(next);
        }
    }

    /// The next entry. `hash` is what it says of itself; `None` where only its digest is there.
    pub(super) fn entry(
        &mut self,
        seq: u64,
        digest: Hash,
        hash: Option<Hash>,
        id: &str,
        report: &mut Report,
    ) {
        let (writer, id) = (self.id, || id.to_owned());
        let misplaced = |report: &mut Report| {
            report.found(Finding::Misplaced {
                writer,
                seq,
                id: id(),
            });
        };
        if seq == 0 || seq > LAST {
            return misplaced(report);
        }
        if seq <= self.head.seq {
            // Of two with one number, the one that follows from what was before is the entry.
            let follows = |previous: Head| {
                let mut head = previous;
                seq == head.seq + 1 && Some(head.link_digest(digest).hash) == hash
            };
            return match hash.filter(|_| !self.fits && self.previous.is_some_and(follows)) {
                Some(hash) => {
                    self.fits = true;
                    self.stand(seq, hash, report);
                }
                None => misplaced(report),
            };
        }
        if !self.jump(seq - 1, report) {
            return misplaced(report);
        }
        self.records += 1;
        self.run.get_or_insert(seq);
        self.previous = self.exact.then_some(self.head);
        let mut head = self.head;
        let link = head.link_digest(digest);
        self.fits = true;
        match hash {
            // Behind a gap that nothing explains one can say no more than the signatures do.
            Some(hash) => {
                self.fits = !self.exact || hash == link.hash;
                if !self.fits {
                    report.found(Finding::Changed {
                        writer,
                        seq,
                        id: id(),
                    });
                }
                // On from the hash that it claims, so that each change is found where it is.
                self.stand(seq, hash, report);
            }
            None if self.exact => self.stand(seq, link.hash, report),
            None => self.head.seq = seq,
        }
    }

    /// An entry that is there and says nothing that can be read.
    pub(super) fn unreadable(&mut self, seq: u64, report: &mut Report) {
        if seq <= self.head.seq || seq > LAST {
            return;
        }
        self.jump(seq - 1, report);
        self.records += 1;
        self.run.get_or_insert(seq);
        (self.head.seq, self.exact, self.previous) = (seq, false, None);
    }

    /// Is at an entry with this hash.
    fn stand(&mut self, seq: u64, hash: Hash, report: &mut Report) {
        (self.head.seq, self.head.hash, self.exact) = (seq, hash, true);
        if let Some((_, time)) = self.signed.get(&seq).filter(|(signed, _)| *signed != hash) {
            report.found(Finding::Rewritten {
                writer: self.id,
                seq,
                time: time.to_string(),
            });
        }
    }

    /// Goes to an entry, none of the entries on the way being there. False where what lies behind it is stated not to be
    /// there either.
    fn jump(&mut self, to: u64, report: &mut Report) -> bool {
        let writer = self.id;
        if self.head.seq >= to {
            return true;
        }
        let (mut run, mut whole) = (self.run.take(), true);
        (self.previous, self.fits) = (None, true);
        while self.head.seq < to {
            let (at, run) = (self.head.seq + 1, run.take());
            self.pass(at);
            let Some(stated) = self.stated.get(self.next).filter(|stated| stated.first <= to) else {
                self.miss(to, report);
                break;
            };
            if stated.first > at {
                self.miss(stated.first - 1, report);
                continue;
            }
            if let Some(run) = run.filter(|_| stated.first < at) {
                let (first, last) = (run.max(stated.first), at - 1);
                report.found(Finding::Unproven { writer, first, last });
            }
            let other = |hash| hash != self.head.hash;
            if stated.first == at && self.exact && stated.before.is_some_and(other) {
                report.found(Finding::Rewritten {
                    writer,
                    seq: at - 1,
                    time: stated.time.to_string(),
                });
            }
            let last = stated.last.min(to);
            report.span(Span {
                writer,
                first: at,
                last,
                cause: stated.cause,
                by: stated.by.clone(),
                time: stated.time,
            });
            if stated.cause.is_loss() {
                self.lost += last - at + 1;
            } else {
                self.pruned += last - at + 1;
            }
            if stated.last == last {
                self.stand(last, stated.after, report);
            } else {
                (self.head.seq, self.exact, whole) = (last, false, false);
            }
        }
        whole
    }

    /// Entries up to this one are not there, and nothing says why.
    fn miss(&mut self, last: u64, report: &mut Report) {
        let (writer, first) = (self.id, self.head.seq + 1);
        self.missing += last - self.head.seq;
        report.found(Finding::Missing { writer, first, last });
        (self.head.seq, self.exact) = (last, false);
    }

    /// Leaves the statements behind that end before an entry.
    fn pass(&mut self, seq: u64) {
        while self.stated.get(self.next).is_some_and(|stated| stated.last < seq) {
            self.next += 1;
        }
    }

    /// The end. `beginner` is one of which nothing was signed yet.
    pub(super) fn finish(mut self, beginner: Option<Uuid>, report: &mut Report) {
        let writer = self.id;
        self.jump(self.goal, report);
        // What was lost behind that.
        loop {
            let at = self.head.seq + 1;
            self.pass(at);
            let Some(stated) = self.stated.get(self.next).filter(|stated| stated.first <= at) else {
                break;
            };
            let last = stated.last;
            self.jump(last, report);
        }
        if self.latest.is_none() {
            if self.head.seq == 0 && self.stated.is_empty() {
                return;
            }
            if beginner == Some(writer) {
                report.remarks.push(format!(
                    "nothing of {writer} is proven yet: no checkpoint of it is noted beside the keys either; where `zt_audit_checkpoint_seq` of its agent was above 0 before, the file and the notes were replaced"
                ));
            } else {
                report.found(Finding::Unsealed { writer });
            }
        }
        let sealed = self.sealed().unwrap_or(0);
        self.logins.tell(writer, sealed, self.found > 0, report);
        report.writers.push(WriterReport {
            writer,
            root: self.owner.filter(|_| self.latest.is_some()),
            sealed,
            behind: self.head.seq.saturating_sub(sealed),
            records: self.records,
            lost: self.lost,
            pruned: self.pruned,
            missing: self.missing,
        });
    }
}
