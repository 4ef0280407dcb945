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

/// Has blocks of this many bytes and more taken from the system one by one, and given back when they are free. Without this, the first
/// such block that is freed has the allocator keep all below 32 MiB in its own pieces, which small ones then hold fast.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "no crate of ours wraps mallopt")]
pub(super) fn keep_large_apart() {
    const LARGE: libc::c_int = 128 << 10;
    // SAFETY: takes no pointer, and may be called at any time from any thread.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
    }
}

/// Other allocators look after themselves.
#[cfg(not(target_env = "gnu"))]
pub(super) fn give_back() {}

/// See above.
#[cfg(not(target_env = "gnu"))]
pub(super) fn keep_large_apart() {}
