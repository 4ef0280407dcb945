// SPDX-License-Identifier: Apache-2.0
//! Which programs are attached to a cgroup itself, and whether others may be beside them.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use super::{PROG_QUERY, ProgQuery, bpf};

/// `BPF_F_ALLOW_OVERRIDE`: a cgroup below may have another program in this one's place.
const ALLOW_OVERRIDE: u32 = 1;
/// `BPF_F_ALLOW_MULTI`: any number of programs, here and below.
const ALLOW_MULTI: u32 = 2;

/// `BPF_LSM_CGROUP`: the one type of all hooks of BPF LSM, of whose programs flags are asked for one by one.
const LSM_CGROUP: u32 = 43;

/// The programs that are attached to a cgroup itself at one hook.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::kernel) struct OwnPrograms {
    /// Their ids, in the order in which they run.
    pub ids: Vec<u32>,
    flags: u32,
}

impl OwnPrograms {
    /// Whether they let other programs be beside them; also where there are none.
    pub(in crate::kernel) fn share(&self) -> bool {
        self.ids.is_empty() || self.flags & ALLOW_MULTI != 0
    }

    /// Whether they let a cgroup below have a program of its own.
    pub(in crate::kernel) fn yield_below(&self) -> bool {
        self.share() || self.flags & ALLOW_OVERRIDE != 0
    }
}

/// Asks for the programs that are attached to a cgroup itself.
pub(in crate::kernel) fn own_programs_at(
    cgroup: BorrowedFd<'_>,
    attach_type: u32,
) -> io::Result<OwnPrograms> {
    let (mut ids, mut flags) = ([0_u32; 64], [0_u32; 64]);
    let program_flags = match attach_type {
        LSM_CGROUP => flags.as_mut_ptr() as u64,
        _ => 0,
    };
    let mut query = ProgQuery {
        target: cgroup.as_raw_fd() as u32,
        attach_type,
        programs: ids.as_mut_ptr() as u64,
        count: ids.len() as u32,
        program_flags,
        ..ProgQuery::default()
    };
    bpf(PROG_QUERY, &mut query)?;
    Ok(OwnPrograms {
        ids: ids.iter().copied().take(query.count as usize).collect(),
        flags: query.attach_flags | flags[0],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_alone_says_so_by_its_flags() {
        let with = |ids: &[u32], flags| OwnPrograms {
            ids: ids.to_vec(),
            flags,
        };
        let none = with(&[], 0);
        let alone = with(&[1], 0);
        let replaced = with(&[1], ALLOW_OVERRIDE);
        let several = with(&[1, 2], ALLOW_MULTI);
        assert!(none.share() && none.yield_below());
        assert!(!alone.share() && !alone.yield_below());
        assert!(!replaced.share() && replaced.yield_below());
        assert!(several.share() && several.yield_below());
    }
}
