// SPDX-License-Identifier: Apache-2.0
//! A range of hours, cut into pieces that the server can add up in its memory. Pure.

use std::collections::HashSet;

use uuid::Uuid;

/// One of 256 ids is looked at to know about how many kinds there are.
pub(super) const SAMPLE_BITS: u32 = 8;
/// Hours of a day.
const HOURS: i64 = 24;

/// What is asked for of one day.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Day {
    /// Since 1970.
    pub(super) number: i32,
    /// Whether it is added up.
    pub(super) added_up: bool,
    /// Some of its kinds: those that have certain ids, on every day the same.
    pub(super) sample: Vec<String>,
}

/// What is added up in one statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Span {
    /// Days that are read as such.
    pub(super) days: Vec<i32>,
    /// Hours of the others.
    pub(super) hours: Vec<i64>,
    /// The first hour and the last.
    pub(super) ends: (i64, i64),
    /// The first shape and the last; `None` where it is of all. Ids are hashes: parts of the same width have about as many.
    pub(super) shapes: Option<(Uuid, Uuid)>,
}

impl Day {
    /// Its first hour and its last, of those between two.
    pub(super) fn between(&self, (first, last): (i64, i64)) -> (i64, i64) {
        let begin = i64::from(self.number) * HOURS;
        (begin.max(first), (begin + HOURS - 1).min(last))
    }
}

impl Span {
    fn nothing() -> Self {
        Self {
            days: Vec::new(),
            hours: Vec::new(),
            ends: (i64::MAX, i64::MIN),
            shapes: None,
        }
    }

    /// The day that it is of, if it is of all hours of that one: of all its shapes, or of those between two.
    pub(super) fn whole_day(&self) -> Option<i32> {
        let (first, last) = self.ends;
        let day = first.div_euclid(HOURS);
        let is_whole = first == day * HOURS && last == first + (HOURS - 1);
        i32::try_from(day).ok().filter(|_| is_whole)
    }

    /// Takes a later day in, as far as it is between two hours.
    fn take(&mut self, day: &Day, hours: (i64, i64)) {
        let (first, last) = day.between(hours);
        if day.added_up && last - first + 1 == HOURS {
            self.days.push(day.number);
        } else {
            self.hours.extend(first..=last);
        }
        self.ends = (self.ends.0.min(first), self.ends.1.max(last));
    }
}

/// About how many kinds there are, of so many in a sample.
const fn kinds(in_sample: usize) -> u64 {
    (in_sample as u64) << SAMPLE_BITS
}

/// Days, which are in order, as far as they are between two hours: those that have few kinds together, those of many in parts,
/// so that each has at most so many. One that several days have is one.
pub(super) fn spans(mut days: &[Day], hours: (i64, i64), most: u64) -> Vec<Span> {
    let mut spans = Vec::new();
    while !days.is_empty() {
        let (mut together, mut number) = (HashSet::new(), 0);
        for day in days {
            together.extend(&day.sample);
            // A day alone may have more.
            if number > 0 && kinds(together.len()) > most {
                break;
            }
            number += 1;
        }
        let (these, rest) = days.split_at(number);
        days = rest;
        let mut span = Span::nothing();
        for day in these {
            span.take(day, hours);
        }
        let parts = match these {
            [one] => u128::from(kinds(one.sample.len()).div_ceil(most.max(1)).max(1)),
            _ => 1,
        };
        spans.extend((0..parts).map(|part| Span {
            shapes: part_of_all(part, parts),
            ..span.clone()
        }));
    }
    spans
}

/// One of so many equal parts of all ids.
fn part_of_all(part: u128, parts: u128) -> Option<(Uuid, Uuid)> {
    if parts == 1 {
        return None;
    }
    let width = u128::MAX / parts;
    let last = if part + 1 == parts {
        u128::MAX
    } else {
        width * (part + 1) - 1
    };
    Some((Uuid::from_u128(width * part), Uuid::from_u128(last)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn days() -> impl Strategy<Value = Vec<Day>> {
        let day = (any::<bool>(), prop::collection::hash_set("[a-e]{1,3}", 0..40));
        prop::collection::btree_map(0_i32..60, day, 0..40).prop_map(|days| {
            let day = |(day, (added_up, sample)): (i32, (bool, HashSet<String>))| Day {
                number: day,
                added_up,
                sample: sample.into_iter().collect(),
            };
            days.into_iter().map(day).collect()
        })
    }

    /// Every hour of these spans that some shape is read of.
    fn read(spans: &[Span], shape: Uuid) -> Vec<i64> {
        let mut hours = Vec::new();
        for span in spans.iter().filter(|span| {
            span.shapes
                .is_none_or(|(first, last)| first <= shape && shape <= last)
        }) {
            hours.extend(&span.hours);
            for day in &span.days {
                let begin = i64::from(*day) * HOURS;
                hours.extend(begin..begin + HOURS);
            }
            assert!(
                span.hours
                    .iter()
                    .all(|hour| (span.ends.0..=span.ends.1).contains(hour))
            );
        }
        hours.sort_unstable();
        hours
    }

    proptest! {
        #[test]
        fn every_hour_of_every_shape_is_read_once(
            days in days(),
            first in -50_i64..1500,
            length in 0_i64..1500,
            most in 0..kinds(100),
            shape: u128,
        ) {
            let hours = (first, first + length);
            let asked = |day: &Day| (i64::from(day.number) * HOURS..(i64::from(day.number) + 1) * HOURS).filter(|hour| (hours.0..=hours.1).contains(hour));
            let days: Vec<Day> = days.into_iter().filter(|day| asked(day).next().is_some()).collect();
            let expected: Vec<i64> = days.iter().flat_map(asked).collect();
            for shape in [shape, 0, u128::MAX].map(Uuid::from_u128) {
                prop_assert_eq!(&read(&spans(&days, hours, most), shape), &expected);
            }
        }

        #[test]
        fn no_span_has_more_than_the_most_and_no_two_would_fit_in_one(days in days(), most in 1..kinds(100)) {
            let hours = (i64::MIN, i64::MAX);
            // Of those days that it is about, and of both of two.
            let has = |span: &Span, day: &Day| span.days.contains(&day.number) || span.hours.contains(&(i64::from(day.number) * HOURS));
            let of = |spans: &[Span]| -> u64 {
                let days = days.iter().filter(|day| spans.iter().any(|span| has(span, day)));
                let all: HashSet<&String> = days.flat_map(|day| &day.sample).collect();
                kinds(all.len())
            };
            let spans = spans(&days, hours, most);
            for span in &spans {
                let parts = spans.iter().filter(|other| other.ends == span.ends).count() as u64;
                prop_assert!(of(std::slice::from_ref(span)).div_ceil(parts) <= most, "{:?}", span);
            }
            for pair in spans.windows(2).filter(|pair| pair.iter().all(|span| span.shapes.is_none())) {
                prop_assert!(of(pair) > most);
            }
        }
    }

    #[test]
    fn a_day_that_is_added_up_is_read_by_the_hour_where_it_is_asked_for_in_part() {
        let day = Day {
            number: 2,
            added_up: true,
            sample: vec!["a".to_owned()],
        };
        let spans = |hours| spans(std::slice::from_ref(&day), hours, kinds(10));
        assert_eq!(
            (&spans((48, 71))[0].days[..], &spans((48, 71))[0].hours[..]),
            (&[2][..], &[][..])
        );
        assert_eq!(spans((70, 99))[0].hours, [70, 71]);
        assert_eq!(spans((70, 99))[0].ends, (70, 71));
    }

    #[test]
    fn a_span_is_of_a_whole_day_if_it_is_of_all_its_hours_and_of_no_other_one() {
        let day = |number, added_up| Day {
            number,
            added_up,
            sample: ["a", "b", "c"].map(str::to_owned).to_vec(),
        };
        let whole = |days: &[Day], hours, most| -> Vec<Option<i32>> {
            let spans = spans(days, hours, kinds(most));
            spans.iter().map(Span::whole_day).collect()
        };
        let all = (i64::MIN, i64::MAX);
        for added_up in [false, true] {
            assert_eq!(whole(&[day(2, added_up)], all, 10), [Some(2)]);
            assert_eq!(whole(&[day(2, added_up)], all, 1), [Some(2); 3], "in parts");
            for hours in [(49, 71), (48, 70), (49, 70)] {
                assert_eq!(whole(&[day(2, added_up)], hours, 10), [None]);
            }
        }
        let two = [day(2, false), day(3, false)];
        assert_eq!(whole(&two, all, 10), [None], "together");
        assert_eq!(whole(&two, all, 2), [Some(2), Some(2), Some(3), Some(3)]);
        assert_eq!(whole(&two, (60, 83), 10), [None], "a day's hours of two days");
    }
}
