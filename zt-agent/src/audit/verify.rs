// SPDX-License-Identifier: Apache-2.0
//! Finds what was changed, removed, moved or inserted in a trail. Pure: what keeps the trail hands over keys, then what
//! was signed with them, and then the entries, each writer's in the order of their numbers.

mod finding;
mod lines;
mod logins;
mod report;
mod trust;
mod writer;

use std::collections::BTreeMap;
use std::sync::Arc;

use uuid::Uuid;

pub use self::finding::Finding;
pub use self::lines::{Line, LineError, read_line};
pub use self::report::{Report, Span, WriterReport};
use self::trust::Forest;
pub use self::trust::Trust;
use self::writer::Writer;
use super::chain::{Hash, digest};
use super::record::Kept;
use super::seal::{Checkpoint, Gap, KeyRecord};

/// A checkpoint that is kept apart from the trail.
#[derive(Clone, Debug)]
pub struct Noted {
    /// The checkpoint.
    pub checkpoint: Checkpoint,
    /// Whether the trail must have it. Otherwise it may still be on its way.
    pub kept: bool,
    /// Entries up to this one have arrived in the trail; those behind it may still be on their way.
    pub arrived: u64,
}

impl Noted {
    /// One of a trail to which nothing is on its way.
    pub const fn here(checkpoint: Checkpoint) -> Self {
        Self {
            checkpoint,
            kept: true,
            arrived: u64::MAX,
        }
    }
}

/// Looks at a trail, piece by piece.
#[derive(Debug)]
pub struct Verifier {
    trust: Trust,
    keys: Forest,
    writers: BTreeMap<Uuid, Writer>,
    /// One of which nothing was signed yet, as the keys know.
    beginner: Option<Uuid>,
    /// Entries have come.
    begun: bool,
    report: Report,
}

impl Verifier {
    /// Trusts these keys, and those that they have signed.
    pub fn new(trust: impl Into<Trust>) -> Self {
        let mut trust = trust.into();
        trust.roots.extend(trust.maintainers.iter().cloned());
        trust.roots.extend(trust.writers.values().cloned());
        Self {
            trust,
            keys: Forest::default(),
            writers: BTreeMap::new(),
            beginner: None,
            begun: false,
            report: Report::default(),
        }
    }

    /// A key, in any order.
    pub fn key(&mut self, key: &KeyRecord) {
        self.is_early();
        self.keys.add(key);
    }

    /// A checkpoint; all of them before the first entry.
    pub fn checkpoint(&mut self, checkpoint: &Checkpoint) {
        self.is_early();
        if let Some((writer, report)) = self.owned(checkpoint) {
            writer.checkpoint(checkpoint, report);
            report.checkpoints += 1;
        }
    }

    /// A statement that entries are not there; all of them before the first entry.
    pub fn gap(&mut self, gap: &Gap) {
        self.is_early();
        let (writer, first, last) = (gap.writer, gap.first, gap.last);
        let possible = 1 <= first && first <= last && last <= i64::MAX.cast_unsigned();
        self.keys.grow(&self.trust, &mut self.report);
        match self
            .keys
            .signer(&gap.signed(), &gap.signatures)
            .filter(|_| possible)
        {
            Some(signer) => of(&mut self.writers, &self.trust, writer).gap(gap, signer),
            None => self.report.found(Finding::ForgedGap { writer, first, last }),
        }
    }

    /// The next entry.
    pub fn entry(&mut self, kept: &Kept) {
        self.report.entries += 1;
        let joined = kept.entry.weight().saturating_sub(1);
        self.report.joined = self.report.joined.saturating_add(joined);
        let id = kept.entry.id().to_string();
        let Some(link) = kept.link else {
            return self.found(Finding::Unchained { id });
        };
        let (writer, report) = self.walked(link.writer);
        let before = report.count;
        writer.entry(link.seq, digest(&kept.entry), Some(link.hash), &id, report);
        writer.found += report.count - before;
    }

    /// Which login inserted the next entry.
    pub fn inserted(&mut self, writer: Uuid, seq: u64, login: &Arc<str>) {
        of(&mut self.writers, &self.trust, writer).logins.note(login, seq);
    }

    /// The next entry, of which only the digest is there.
    pub fn omitted(&mut self, writer: Uuid, seq: u64, digest: Hash) {
        let (writer, report) = self.walked(writer);
        writer.entry(seq, digest, None, "left out", report);
    }

    /// The next entry, which is there and cannot be read.
    pub fn unreadable(&mut self, writer: Uuid, seq: u64, cause: String) {
        self.report.entries += 1;
        self.found(Finding::Unreadable { writer, seq, cause });
        let (writer, report) = self.walked(writer);
        writer.found += 1;
        writer.unreadable(seq, report);
    }

    /// Something that the one who reads the trail has found.
    pub fn found(&mut self, finding: Finding) {
        self.report.found(finding);
    }

    /// Something that is not wrong, and that who checks the trail should know.
    pub fn remark(&mut self, remark: String) {
        self.report.remarks.push(remark);
    }

    /// Entries that were looked at so far.
    pub const fn entries(&self) -> u64 {
        self.report.entries
    }

    /// The last checkpoints that are kept apart from the trail, for those who have them: after those of the trail and
    /// before the first entry. A trail that lacks one was cut off, unless it is still on its way.
    pub fn noted(&mut self, noted: &[Noted]) {
        for noted in noted {
            let checkpoint = &noted.checkpoint;
            let (id, seq, time) = (checkpoint.writer, checkpoint.seq, checkpoint.time);
            let known = self.writers.get(&id).and_then(Writer::sealed);
            let Some((writer, report)) = self.owned(checkpoint) else {
                continue;
            };
            let lacking = known.is_none_or(|known| known < seq);
            if lacking && noted.kept {
                report.found(Finding::Lacking { writer: id, seq });
                writer.checkpoint(checkpoint, report);
                continue;
            }
            writer.sign(seq, checkpoint.hash, time, report);
            writer.expect(seq.min(noted.arrived));
            if lacking && noted.arrived == 0 {
                let known = known.unwrap_or(0);
                report.remarks.push(format!(
                    "{id} had signed up to entry {seq} at {time}; here it is signed up to entry {known}, and whether the rest still waits in its spool cannot be seen from here"
                ));
            }
        }
    }

    /// Entries up to this one have arrived in the trail, as the one who sent them knows.
    pub fn arrived(&mut self, writer: Uuid, seq: u64) {
        of(&mut self.writers, &self.trust, writer).expect(seq);
    }

    /// A writer of which nothing was signed yet, as its keys know: that nothing of it is proven is no finding then.
    pub fn begins(&mut self, writer: Uuid) {
        self.beginner = Some(writer).filter(|writer| !self.trust.expected.contains(writer));
    }

    /// The end.
    pub fn finish(mut self) -> Report {
        self.keys.grow(&self.trust, &mut self.report);
        for key in self.keys.strangers() {
            self.report.found(Finding::UntrustedKey { key: key.to_owned() });
        }
        for id in &self.trust.expected {
            if !self.writers.contains_key(id) {
                self.report.found(Finding::Unsealed { writer: *id });
            }
        }
        let mut owners: BTreeMap<&str, u64> = BTreeMap::new();
        for (_, mut writer) in std::mem::take(&mut self.writers) {
            writer.prepare(&self.trust, &mut self.report);
            if let Some(root) = writer
                .owner
                .as_deref()
                .and_then(|owner| self.trust.roots.get(owner))
            {
                *owners.entry(root).or_default() += 1;
            }
            writer.finish(self.beginner, &mut self.report);
        }
        for root in &self.trust.roots {
            let signs = owners.get(root.as_str()).copied().unwrap_or(0);
            if signs == 0 && !self.trust.maintainers.contains(root) {
                self.report.remarks.push(format!(
                    "{root} is trusted and has signed for no writer: its node has written nothing yet, or all that it wrote was removed"
                ));
            }
            if signs > 1 {
                self.report.remarks.push(format!(
                    "{root} signs for {signs} writers: a node whose database was made anew has a new one"
                ));
            }
        }
        self.report
    }

    /// What is signed comes first: later it would prove nothing of what has passed.
    fn is_early(&mut self) {
        if self.begun {
            self.found(Finding::Other(
                "a key or a statement stands behind entries: it was moved, or inserted".to_owned(),
            ));
        }
    }

    /// The writer whose owner has signed this. Anything else is found.
    fn owned(&mut self, checkpoint: &Checkpoint) -> Option<(&mut Writer, &mut Report)> {
        let (writer, seq) = (checkpoint.writer, checkpoint.seq);
        self.keys.grow(&self.trust, &mut self.report);
        let Some(signer) = self.keys.signer(&checkpoint.signed(), &checkpoint.signatures) else {
            self.report.found(Finding::Forged { writer, seq });
            return None;
        };
        let known = of(&mut self.writers, &self.trust, writer);
        // The first that signs for a writer has it.
        let owner = known.owner.get_or_insert_with(|| signer.to_owned());
        if owner != signer {
            self.report.found(Finding::Rival {
                writer,
                seq,
                key: signer.to_owned(),
                owner: owner.clone(),
            });
            return None;
        }
        Some((known, &mut self.report))
    }

    /// A writer whose entries come.
    fn walked(&mut self, writer: Uuid) -> (&mut Writer, &mut Report) {
        self.begun = true;
        let writer = of(&mut self.writers, &self.trust, writer);
        writer.prepare(&self.trust, &mut self.report);
        (writer, &mut self.report)
    }
}

fn of<'a>(writers: &'a mut BTreeMap<Uuid, Writer>, trust: &Trust, id: Uuid) -> &'a mut Writer {
    let new = || Writer::new(id, trust.writers.get(&id).cloned());
    writers.entry(id).or_insert_with(new)
}

#[cfg(test)]
mod tests;
