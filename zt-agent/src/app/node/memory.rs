// SPDX-License-Identifier: Apache-2.0
//! Memory that a change of policy needed and no longer does.

/// Gives free memory back to the system. What parses and compiles a large policy allocates many times what stays, in
/// pieces that the allocator keeps for later otherwise.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "no crate of ours wraps malloc_trim")]
pub(super) fn give_back() {
    // SAFETY: takes no pointer, and may be called at any time from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Other allocators look after themselves.
#[cfg(not(target_env = "gnu"))]
pub(super) fn give_back() {}
