// SPDX-License-Identifier: Apache-2.0
//! Port ranges, and their cut into the aligned blocks that the allow table is keyed by.

use std::fmt;

use crate::yaml::{Node, Value};

/// A range of ports, both ends included; never port 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub struct PortRange {
    /// The first port, at least 1.
    pub first: u16,
    /// The last port, not below the first.
    pub last: u16,
}

impl PortRange {
    /// Whether `port` is in it.
    pub const fn contains(&self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }

    /// From an item of a list in a document: a number, or a text with one or with a range.
    pub(super) fn read(node: &Node) -> Result<Self, String> {
        match &node.value {
            Value::Integer(number) => Self::single(*number),
            Value::Text(text) => Self::parse(text),
            other => Err(format!(
                "expected a port or a range such as \"8000-8100\", found {}",
                other.describe()
            )),
        }
    }

    /// From the text in a document: `5432` or `8000-8100`.
    fn parse(text: &str) -> Result<Self, String> {
        let (first, last) = match text.split_once('-') {
            None => (port(text)?, port(text)?),
            Some((first, last)) => (port(first)?, port(last)?),
        };
        if first > last {
            return Err(format!("the range is reversed: write \"{last}-{first}\""));
        }
        Ok(Self { first, last })
    }

    /// From a number in a document.
    fn single(number: i128) -> Result<Self, String> {
        match u16::try_from(number) {
            Ok(port) if port != 0 => Ok(Self {
                first: port,
                last: port,
            }),
            _ => Err(format!("{number} is not a port: ports go from 1 to 65535")),
        }
    }
}

fn port(text: &str) -> Result<u16, String> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !digits {
        return Err(format!(
            "{text:?} is not a port: write a number or a range such as \"8000-8100\""
        ));
    }
    match text.parse::<u16>() {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(format!("{text} is not a port: ports go from 1 to 65535")),
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

/// An aligned block of ports: the first, and how many leading bits are significant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Block {
    pub(super) first: u16,
    pub(super) bits: u8,
}

/// All ports, as one block.
pub(super) const EVERY_PORT: Block = Block { first: 0, bits: 0 };

/// Cuts ranges, which may overlap, into the fewest blocks of 4096, 256, 16 and 1 ports that cover exactly them.
pub(super) fn blocks(ranges: &[PortRange]) -> Vec<Block> {
    let mut sorted = ranges.to_vec();
    sorted.sort_unstable();
    let mut blocks = Vec::with_capacity(sorted.len());
    // In u32, so that the port after 65535 can be said.
    let mut next = 0_u32;
    let mut rest = sorted.iter().peekable();
    while let Some(range) = rest.next() {
        let mut last = u32::from(range.last);
        // Ranges that touch are one range: [8000-8007, 8008-8015] is one block of 16.
        while let Some(follower) = rest.next_if(|follower| u32::from(follower.first) <= last + 1) {
            last = last.max(u32::from(follower.last));
        }
        next = next.max(u32::from(range.first));
        while next <= last {
            let fits = |bits: &u8| {
                let size = 1_u32 << (16 - bits);
                next.is_multiple_of(size) && next + size - 1 <= last
            };
            let bits = [4, 8, 12].into_iter().find(fits).unwrap_or(16);
            blocks.push(Block {
                first: next as u16,
                bits,
            });
            next += 1 << (16 - bits);
        }
    }
    blocks
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Block, PortRange, blocks};

    fn size(block: Block) -> u32 {
        1 << (16 - u32::from(block.bits))
    }

    #[test]
    fn a_range_is_never_one_entry_a_port() {
        let all = blocks(&[PortRange {
            first: 1,
            last: 65535,
        }]);
        assert_eq!(all.len(), 60);
        let aligned = blocks(&[PortRange {
            first: 8192,
            last: 8192 + 4095,
        }]);
        assert_eq!(aligned, [Block { first: 8192, bits: 4 }]);
        let joined = [
            PortRange {
                first: 8008,
                last: 8015,
            },
            PortRange {
                first: 8000,
                last: 8007,
            },
        ];
        assert_eq!(
            blocks(&joined),
            [Block {
                first: 8000,
                bits: 12
            }]
        );
    }

    #[test]
    fn texts() {
        assert_eq!(
            PortRange::parse("5432"),
            Ok(PortRange {
                first: 5432,
                last: 5432
            })
        );
        assert_eq!(
            PortRange::parse("1-65535"),
            Ok(PortRange {
                first: 1,
                last: 65535
            })
        );
        for bad in [
            "",
            "-",
            "0",
            "65536",
            "8100-8000",
            "0-5",
            "1-",
            "-1",
            "1-2-3",
            "http",
            "+1",
            "1 - 2",
            "٣",
        ] {
            assert!(PortRange::parse(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn blocks_cover_exactly_the_ranges(ends in proptest::collection::vec((1u16.., 0u16..5000), 1..5)) {
            let ranges: Vec<_> = ends
                .iter()
                .map(|(first, more)| PortRange { first: *first, last: first.saturating_add(*more) })
                .collect();
            let blocks = blocks(&ranges);
            let mut covered = vec![0_u8; 1 << 16];
            for block in blocks {
                prop_assert_eq!(u32::from(block.first) % size(block), 0);
                let first = usize::from(block.first);
                covered[first..first + size(block) as usize].iter_mut().for_each(|times| *times += 1);
            }
            for (port, times) in (0..=u16::MAX).zip(covered) {
                prop_assert_eq!(times == 1, ranges.iter().any(|range| range.contains(port)), "{}", port);
                prop_assert!(times <= 1, "{}", port);
            }
        }
    }
}
