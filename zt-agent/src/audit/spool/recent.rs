// SPDX-License-Identifier: Apache-2.0
//! What was stored last, still in memory: reading a record back from the file costs more than anything else about
//! shipping it. It is on disk all the same, and read from there whenever it is not here.

use std::collections::VecDeque;

use crate::audit::chain::Link;
use crate::audit::record::{Entry, Kept};
use crate::audit::sqlite::Links;

/// Most bytes, as estimated from above: more than a batch of the shipper and one of the recorder.
const MOST_BYTES: usize = 16 << 20;
/// Records that there is always room for: allocating it again and again would cost more.
const ROOM: usize = 1024;

/// The last records of the chain, without a gap.
#[derive(Debug, Default)]
pub(super) struct Recent {
    /// Each with the bytes that it takes.
    records: VecDeque<(usize, Kept)>,
    /// Number of the first.
    first: u64,
    bytes: usize,
}

impl Recent {
    /// Keeps entries that were stored. The oldest go where there is no room.
    pub(super) fn keep(&mut self, entries: &[Entry], links: &Links) {
        if links.first != self.first + self.records.len() as u64 {
            // Others were given up in between.
            self.clear();
            self.first = links.first;
        }
        for ((seq, entry), hash) in (links.first..).zip(entries).zip(&links.hashes) {
            let bytes = bytes_of(entry);
            let kept = Kept {
                entry: entry.clone(),
                link: Some(Link {
                    writer: links.writer,
                    seq,
                    hash: *hash,
                }),
            };
            self.bytes += bytes;
            self.records.push_back((bytes, kept));
            while self.bytes > MOST_BYTES && self.forget_first() {}
        }
    }

    /// Takes out the records from `first` to `last`, each with its number; `None` where they are not all here. What lies
    /// before them is forgotten.
    pub(super) fn take(&mut self, first: u64, last: u64) -> Option<Vec<(u64, Kept)>> {
        while self.first < first && self.forget_first() {}
        let count = usize::try_from((last + 1).checked_sub(first)?).ok()?;
        if self.first != first || self.records.len() < count {
            return None;
        }
        let taken: Vec<(usize, Kept)> = self.records.drain(..count).collect();
        self.first = last + 1;
        self.bytes -= taken.iter().map(|(bytes, _)| bytes).sum::<usize>();
        if self.records.is_empty() {
            self.records.shrink_to(ROOM);
        }
        Some((first..).zip(taken.into_iter().map(|(_, kept)| kept)).collect())
    }

    fn forget_first(&mut self) -> bool {
        let Some((bytes, _)) = self.records.pop_front() else {
            return false;
        };
        self.first += 1;
        self.bytes -= bytes;
        true
    }

    pub(super) fn clear(&mut self) {
        self.records.clear();
        self.bytes = 0;
    }
}

/// What an entry takes with its texts, most of which it shares with others.
fn bytes_of(entry: &Entry) -> usize {
    let texts = match entry {
        Entry::Decision(record) => {
            let (source, destination) = (&record.source, &record.destination);
            let texts = [
                &source.spiffe_id,
                &source.entity,
                &source.comm,
                &destination.spiffe_id,
                &destination.entity,
                &record.caller,
                &record.incident,
            ];
            texts.into_iter().flatten().map(|text| text.len()).sum()
        }
        // As text it takes less than as a tree.
        Entry::PolicyChange(change) | Entry::ModeChange(change) | Entry::IdentityChange(change) => {
            8 * change.change.to_string().len()
        }
    };
    size_of::<(usize, Kept)>() + texts
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use uuid::Uuid;

    use super::*;
    use crate::audit::chain::Head;
    use crate::audit::sample;

    struct Chain(Head);

    impl Chain {
        fn add(&mut self, recent: &mut Recent, entries: &[Entry]) {
            let first = self.0.seq + 1;
            let hashes = self.0.link_all(entries);
            let writer = self.0.writer;
            recent.keep(
                entries,
                &Links {
                    writer,
                    first,
                    hashes,
                },
            );
        }
    }

    fn entries(count: usize, text: usize) -> Vec<Entry> {
        let mut record = sample::record();
        record.caller = Some(Arc::from("x".repeat(text)));
        vec![Entry::Decision(record); count]
    }

    fn numbers(taken: Option<Vec<(u64, Kept)>>) -> Option<Vec<u64>> {
        taken.map(|taken| {
            let seqs = taken
                .iter()
                .map(|(number, kept)| (*number, kept.link.map(|link| link.seq)));
            seqs.inspect(|(number, seq)| assert_eq!(*seq, Some(*number)))
                .map(|(number, _)| number)
                .collect()
        })
    }

    #[test]
    fn what_was_stored_last_is_taken_in_order() {
        let (mut recent, mut chain) = (Recent::default(), Chain(Head::new(Uuid::nil())));
        chain.add(&mut recent, &entries(3, 1));
        chain.add(&mut recent, &entries(2, 1));
        assert_eq!(numbers(recent.take(1, 6)), None, "the sixth is not there yet");
        assert_eq!(numbers(recent.take(1, 2)), Some(vec![1, 2]));
        assert_eq!(numbers(recent.take(1, 2)), None, "they were taken");
        // What was read from the file meanwhile is skipped.
        assert_eq!(numbers(recent.take(4, 5)), Some(vec![4, 5]));
        chain.add(&mut recent, &entries(1, 1));
        assert_eq!(numbers(recent.take(6, 6)), Some(vec![6]));
        assert_eq!(recent.bytes, 0);
    }

    #[test]
    fn a_gap_in_the_chain_is_never_bridged() {
        let (mut recent, mut chain) = (Recent::default(), Chain(Head::new(Uuid::nil())));
        chain.add(&mut recent, &entries(3, 1));
        chain.0.link_all(&entries(2, 1));
        chain.add(&mut recent, &entries(1, 1));
        assert_eq!(numbers(recent.take(1, 3)), None);
        assert_eq!(numbers(recent.take(6, 6)), Some(vec![6]));
    }

    #[test]
    fn it_takes_no_more_than_its_bound() {
        let (mut recent, mut chain) = (Recent::default(), Chain(Head::new(Uuid::nil())));
        for _ in 0..300 {
            chain.add(&mut recent, &entries(100, 4096));
            assert!(recent.bytes <= MOST_BYTES);
        }
        assert_eq!(numbers(recent.take(1, 100)), None);
        let left = recent.records.len() as u64;
        assert!(left > 1000, "{left}");
        assert_eq!(
            recent.take(30_001 - left, 30_000).map(|taken| taken.len()),
            Some(left as usize)
        );
        assert!(recent.bytes == 0 && recent.records.capacity() <= 2 * ROOM);
    }
}
