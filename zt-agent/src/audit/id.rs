// SPDX-License-Identifier: Apache-2.0
//! Record ids: `UUIDv7` (RFC 9562), increasing within a process.

use uuid::{Builder, Uuid};

/// Makes ids. The 74 bits behind the time start at random and count up (RFC 9562, section 6.2, method 2): two
/// records never share an id, and asking the kernel for randomness for each of 100,000 records a second is saved.
#[derive(Debug)]
pub struct IdSequence {
    counter: u128,
}

const COUNTER_BITS: u32 = 74;

impl IdSequence {
    /// Starts somewhere at random.
    pub fn new() -> Self {
        // Of a v7 id, 74 bits are random; taking the low 62 and the 12 above the variant keeps all of them.
        let seed = Uuid::now_v7().as_u128();
        Self {
            counter: (seed & ((1 << 62) - 1)) | ((seed >> 64 & 0xfff) << 62),
        }
    }

    /// The id of a record of `time` (Unix, nanoseconds).
    pub fn next(&mut self, time: i64) -> Uuid {
        self.counter = (self.counter + 1) & ((1 << COUNTER_BITS) - 1);
        let milliseconds = u64::try_from(time).unwrap_or(0) / 1_000_000;
        let bytes = spread(self.counter).to_be_bytes();
        let tail = bytes.last_chunk().unwrap_or(&[0; 10]);
        Builder::from_unix_timestamp_millis(milliseconds, tail).into_uuid()
    }
}

impl Default for IdSequence {
    fn default() -> Self {
        Self::new()
    }
}

/// Leaves room for the version (4 bits above the first 12) and the variant (2 bits above the last 62), which the
/// builder overwrites.
const fn spread(counter: u128) -> u128 {
    (counter >> 62 & 0xfff) << 64 | counter & ((1 << 62) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_version_7_carry_their_time_and_increase() {
        let mut ids = IdSequence {
            counter: (1 << 62) - 500,
        };
        let time = 1_771_857_000_000_000_000;
        let made: Vec<Uuid> = (0..1000).map(|_| ids.next(time)).collect();
        for id in &made {
            assert_eq!(id.get_version_num(), 7);
            assert_eq!(id.get_variant(), uuid::Variant::RFC4122);
            let (seconds, nanoseconds) = id.get_timestamp().expect("has a time").to_unix();
            assert_eq!((seconds, nanoseconds), (1_771_857_000, 0));
        }
        assert!(made.is_sorted_by(|a, b| a < b));
    }

    #[test]
    fn two_sequences_differ() {
        assert_ne!(IdSequence::new().next(0), IdSequence::new().next(0));
    }
}
