// SPDX-License-Identifier: Apache-2.0
//! One page of an answer.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::sync::Arc;

use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{Cursor, MAX_LIMIT};
use crate::audit::record::{Kept, NoDecision, Timestamp};

/// One page of records, newest first. It may have fewer than were asked for, or none, and others behind it all the same.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// The records.
    pub records: Vec<Kept>,
    /// Those that are there and cannot be read.
    pub unreadable: Vec<Unreadable>,
    /// Where the next page starts; `None` on the last one.
    pub next: Option<Cursor>,
}

impl Page {
    /// The page of two places that may have records in common, from the pages of both for the same question. `limit` is
    /// at most [`MAX_LIMIT`].
    #[must_use]
    pub fn joined(mut self, other: Self, limit: u32) -> Self {
        let limit = limit.clamp(1, MAX_LIMIT) as usize;
        // Behind the end of a page that goes on, one of the two is not known.
        let end = self.next.max(other.next);
        let known: BTreeSet<Cursor> = self.records.iter().map(Cursor::at).collect();
        let (known, new): (Vec<Kept>, Vec<Kept>) = other
            .records
            .into_iter()
            .partition(|kept| known.contains(&Cursor::at(kept)));
        // Of one place and not the same are those of which somebody makes another's id his own: neither hides the other.
        let differing: Vec<Kept> = known
            .into_iter()
            .filter(|kept| !self.records.contains(kept))
            .collect();
        self.records.extend(new);
        self.records.extend(differing);
        self.unreadable.extend(other.unreadable);
        if let Some(end) = end {
            self.end(end);
        }
        self.records.sort_by_key(|kept| Reverse(Cursor::at(kept)));
        self.unreadable
            .sort_by_key(|unreadable| Reverse(unreadable.place()));
        let fits = self.records.len() + self.unreadable.len() <= limit;
        let mut page = self.cut(limit, end.is_some());
        if fits {
            // One of the two may have ended where it has no record.
            page.next = end;
        }
        page
    }

    /// The first `limit` entries of the page and those of the last one's place: no cursor lies between these. `more` says
    /// whether there are any behind it.
    #[must_use]
    pub(in crate::audit) fn cut(mut self, limit: usize, more: bool) -> Self {
        let mut places: Vec<Cursor> = self.records.iter().map(Cursor::at).collect();
        places.extend(self.unreadable.iter().map(Unreadable::place));
        places.sort_unstable_by_key(|place| Reverse(*place));
        let last = places.len().min(limit).checked_sub(1);
        let last = last.and_then(|last| places.get(last)).copied();
        if let Some(last) = last {
            self.end(last);
        }
        // Where all that is beyond the limit is of the last place there may be no more: then the next page is empty.
        self.next = last.filter(|_| more || places.len() > limit);
        self
    }

    /// Leaves out what is behind a place.
    fn end(&mut self, last: Cursor) {
        self.records.retain(|kept| Cursor::at(kept) >= last);
        self.unreadable.retain(|unreadable| unreadable.place() >= last);
    }

    /// Everything on the page, newest first.
    pub fn into_shown(self) -> Vec<Shown> {
        let mut shown: Vec<Shown> = self.records.into_iter().map(Shown::Record).collect();
        if !self.unreadable.is_empty() {
            shown.extend(self.unreadable.into_iter().map(Shown::Unreadable));
            // Stable: those of one place stay as they were found.
            shown.sort_by_key(|shown| Reverse(shown.place()));
        }
        shown
    }
}

/// A record of a page, readable or not.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
#[expect(
    clippy::large_enum_variant,
    reason = "almost all of them are of the large one"
)]
pub enum Shown {
    /// It can be read.
    Record(Kept),
    /// It cannot.
    Unreadable(Unreadable),
}

impl Shown {
    fn place(&self) -> Cursor {
        match self {
            Self::Record(kept) => Cursor::at(kept),
            Self::Unreadable(unreadable) => unreadable.place(),
        }
    }
}

/// A record that is there and does not say what a record says: damaged, of a later version, or made up. It stands where
/// the record would, so that neither it nor its neighbours are hidden. The fields of a decision are there and null.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(tag = "type", rename = "unreadable")]
pub struct Unreadable {
    /// Its id.
    #[schema(value_type = String)]
    pub id: Uuid,
    /// Its time.
    #[schema(value_type = String)]
    pub timestamp: Timestamp,
    #[serde(flatten)]
    nothing: NoDecision,
    /// In whose chain it says that it is.
    #[schema(value_type = String)]
    pub writer: Uuid,
    /// Where in that chain.
    pub seq: u64,
    /// The login that inserted it; null where there are no logins, in a file.
    #[schema(value_type = Option<String>, required = true)]
    pub login: Option<Arc<str>>,
    /// What is wrong with it.
    pub cause: String,
}

impl Unreadable {
    /// The record at `place`, number `seq` of `writer`, which `login` inserted.
    pub fn new(place: Cursor, (writer, seq): (Uuid, u64), login: Option<Arc<str>>, cause: String) -> Self {
        Self {
            id: place.id,
            timestamp: Timestamp(place.time),
            nothing: NoDecision::default(),
            writer,
            seq,
            login,
            cause,
        }
    }

    /// Its place in the order of answers.
    pub const fn place(&self) -> Cursor {
        Cursor {
            time: self.timestamp.0,
            id: self.id,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::record::Entry;
    use crate::audit::sample;

    #[test]
    fn what_cannot_be_read_stands_in_its_place_and_says_so() {
        let record = Kept {
            entry: Entry::Decision(sample::record()),
            link: None,
        };
        let at = |time| Cursor {
            time: record.entry.timestamp().0 + time,
            id: Uuid::nil(),
        };
        let unreadable = |time| {
            let of = (Uuid::from_u128(7), 3);
            let login = Some(Arc::from("zt_node"));
            Unreadable::new(at(time), of, login, "source is missing".to_owned())
        };
        let page = Page {
            records: vec![record.clone()],
            unreadable: vec![unreadable(1), unreadable(-1)],
            next: None,
        };
        let shown = serde_json::to_value(page.into_shown()).expect("JSON");
        let types: Vec<&str> = shown
            .as_array()
            .expect("a list")
            .iter()
            .filter_map(|shown| shown["type"].as_str())
            .collect();
        assert_eq!(types, ["unreadable", "decision", "unreadable"]);
        assert_eq!(shown[0]["login"], "zt_node");
        assert_eq!(
            (&shown[0]["seq"], &shown[0]["decision"]),
            (&3.into(), &serde_json::Value::Null)
        );
    }

    #[test]
    fn another_record_of_the_same_place_hides_neither() {
        let kept = |revision: u64| {
            let mut record = sample::record();
            record.revision = revision;
            Kept {
                entry: Entry::Decision(record),
                link: None,
            }
        };
        let page = |revisions: &[u64]| Page {
            records: revisions.iter().copied().map(kept).collect(),
            ..Page::default()
        };
        let joined = page(&[666, 1]).joined(page(&[1, 2]), 1);
        assert_eq!(joined.records, [kept(666), kept(1), kept(2)]);
        // There may be more behind them.
        assert_eq!(joined.next, Some(Cursor::at(&kept(1))));
    }

    #[test]
    fn a_page_that_ended_early_ends_the_one_that_it_is_joined_to() {
        let kept = |time: i64| {
            let mut record = sample::record();
            record.timestamp = Timestamp(time);
            Kept {
                entry: Entry::Decision(record),
                link: None,
            }
        };
        let short = Page {
            records: vec![kept(9), kept(8)],
            next: Some(Cursor::at(&kept(8))),
            ..Page::default()
        };
        let other = Page {
            records: vec![kept(7), kept(6)],
            ..Page::default()
        };
        for joined in [
            short.clone().joined(other.clone(), 100),
            other.clone().joined(short.clone(), 100),
        ] {
            assert_eq!(joined.records, short.records);
            assert_eq!(joined.next, short.next);
        }
        // One that looked as far as that and found nothing.
        let none = Page {
            next: Some(Cursor::at(&kept(8))),
            ..Page::default()
        };
        for joined in [
            none.clone().joined(other.clone(), 100),
            other.joined(none.clone(), 100),
        ] {
            assert_eq!((&joined.records[..], joined.next), (&[][..], none.next));
        }
    }
}
