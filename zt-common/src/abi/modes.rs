// SPDX-License-Identifier: Apache-2.0
//! The mode of a workload, which may change with the policy that is swapped in.

/// Policy's verdict is recorded and nothing is refused.
pub const MODE_OBSERVE: u8 = 0;
/// Policy's verdict happens.
pub const MODE_ENFORCE: u8 = 1;
/// It happens if the verdict is of a policy with an even revision.
const MODE_ENFORCE_EVEN: u8 = 2;
/// It happens if the verdict is of a policy with an odd revision.
const MODE_ENFORCE_ODD: u8 = 3;

/// The mode of a workload until and after the policy of `revision` is swapped in, which makes it enforce or observe: one write of
/// one slot changes the policy and the modes of all workloads.
pub const fn mode_between(enforces: bool, revision: u64) -> u8 {
    let enforcing = if enforces {
        revision
    } else {
        revision.wrapping_add(1)
    };
    if enforcing & 1 == 0 {
        MODE_ENFORCE_EVEN
    } else {
        MODE_ENFORCE_ODD
    }
}

/// At which revisions a workload in this mode enforces, as two bits: 1 for even ones, 2 for odd ones.
#[inline(always)]
pub const fn enforcing(mode: u8) -> u32 {
    // Without a branch for each mode, which the verifier would have to walk.
    if mode > MODE_ENFORCE_ODD {
        return 0;
    }
    (0b10_01_11_00 >> (mode * 2)) & 3
}

/// Whether [`enforcing`] says so of a revision.
#[inline(always)]
pub const fn enforces(enforcing: u32, revision: u64) -> bool {
    enforcing >> (revision as u32 & 1) & 1 != 0
}

/// The mode itself of a workload in this one while a policy of that revision is in force.
pub const fn settled(mode: u8, revision: u64) -> u8 {
    if enforces(enforcing(mode), revision) {
        MODE_ENFORCE
    } else {
        MODE_OBSERVE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_changes_with_the_revision_and_with_nothing_else() {
        for revision in [1, 2, 7, 8, u64::MAX, 0] {
            for enforced in [false, true] {
                let between = enforcing(mode_between(enforced, revision));
                assert_eq!(enforces(between, revision), enforced);
                assert_eq!(enforces(between, revision.wrapping_sub(1)), !enforced);
                let settled = settled(mode_between(enforced, revision), revision);
                assert_eq!(settled, if enforced { MODE_ENFORCE } else { MODE_OBSERVE });
            }
            assert!(enforces(enforcing(MODE_ENFORCE), revision));
            assert!(!enforces(enforcing(MODE_OBSERVE), revision));
            assert!(
                !enforces(enforcing(u8::MAX), revision),
                "what is not a mode is none"
            );
        }
    }
}
