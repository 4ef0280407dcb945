// SPDX-License-Identifier: Apache-2.0
//! What the packet guard has decided of a socket.

/// Value of `zt_guarded` (socket storage, not inherited): under what the segments of an established TCP connection pass.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Guarded {
    /// [`Self::stamp`] of what they pass under without a decision; [`Self::NEVER`] where each is decided on. One word, so that of
    /// several who decide at the same time each leaves something whole.
    pub stamp: u64,
    /// 1 as long as no refusal of this socket is recorded: one record for each socket.
    pub untold: u64,
}

impl Guarded {
    /// What no stamp is.
    pub const NEVER: u64 = 0;

    /// One word for a policy's revision and for [`crate::control::Control::standing`]: where either is another one, so is this.
    #[inline(always)]
    pub const fn stamp(revision: u64, standing: u64) -> u64 {
        // The finalizer of MurmurHash3, which gives each number another one, so that small steps of both do not meet.
        let mut mixed = revision;
        mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        mixed ^= (mixed >> 33) ^ standing;
        if mixed == Self::NEVER { u64::MAX } else { mixed }
    }
}

const _: () = assert!(size_of::<Guarded>() == 16);

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::Guarded;

    /// Fails where one of the two is left out, or where a step of one makes up for a step of the other.
    #[test]
    fn a_stamp_is_of_one_revision_and_of_one_standing() {
        let mut stamps = HashSet::new();
        for revision in 0..200_u64 {
            for standing in 0..200_u64 {
                for flags in [0_u64, 1, 2, 146] {
                    stamps.insert(Guarded::stamp(revision, standing + (flags << 48)));
                }
            }
        }
        assert_eq!(stamps.len(), 200 * 200 * 4);
        assert!(!stamps.contains(&Guarded::NEVER));
    }

    #[test]
    fn what_stands_is_never_taken_for_nothing() {
        // What becomes zero when it is mixed with its like.
        let mixed = Guarded::stamp(7, 0);
        assert_ne!(Guarded::stamp(7, mixed), Guarded::NEVER);
    }
}
