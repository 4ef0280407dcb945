// SPDX-License-Identifier: Apache-2.0
//! Bytes that are like those of a corpus, and not quite: the same ones in every run.

use super::random::Random;

/// Most bytes of what is made.
const MOST_BYTES: usize = 16 * 1024;

impl Random {
    /// A number below `bound`, which is not 0.
    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    /// A stretch of `length` bytes, possibly empty.
    fn range(&mut self, length: usize) -> std::ops::Range<usize> {
        let (one, other) = (self.below(length + 1), self.below(length + 1));
        one.min(other)..one.max(other)
    }
}

/// One of the seeds, changed in one to four places, with parts of other seeds among them.
pub(crate) fn mutated(seeds: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut bytes = seeds[random.below(seeds.len())].clone();
    for _ in 0..=random.below(4) {
        once(&mut bytes, seeds, random);
    }
    bytes.truncate(MOST_BYTES);
    bytes
}

fn once(bytes: &mut Vec<u8>, seeds: &[Vec<u8>], random: &mut Random) {
    /// What parsers have been seen to trip over.
    const SHARP: [u8; 16] = *b"\0\n\t :-*&!\"'{}[/\xff";
    let at = random.below(bytes.len() + 1);
    match random.below(8) {
        0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
        1 if at < bytes.len() => bytes[at] = SHARP[random.below(SHARP.len())],
        2 => bytes.insert(at, SHARP[random.below(SHARP.len())]),
        3 => drop(bytes.drain(random.range(bytes.len()))),
        4 => bytes.truncate(at),
        // Again, somewhere else.
        5 => {
            let part = bytes[random.range(bytes.len())].to_vec();
            bytes.splice(at..at, part);
        }
        // A part of another one, instead of something or between.
        6 | 7 => {
            let other = &seeds[random.below(seeds.len())];
            let part = other[random.range(other.len())].to_vec();
            let gone = if random.below(2) == 0 {
                at..at
            } else {
                random.range(bytes.len())
            };
            bytes.splice(gone, part);
        }
        _ => {}
    }
}
