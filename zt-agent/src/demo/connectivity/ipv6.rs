// SPDX-License-Identifier: Apache-2.0
//! Whether there is IPv6 here to try.

use std::fs;
use std::path::Path;

/// Why there is none: for the kernel, or in the network namespace of this process, which is the node's. `proc` is where procfs is mounted.
pub(super) fn missing(proc: &Path) -> Option<&'static str> {
    if !proc.join("net/if_inet6").exists() {
        return Some("this kernel has no IPv6 (`ipv6.disable=1`, or it was built without)");
    }
    let off = fs::read_to_string(proc.join("sys/net/ipv6/conf/all/disable_ipv6"));
    off.is_ok_and(|off| off.trim() != "0")
        .then_some("IPv6 is switched off on this node (`net.ipv6.conf.all.disable_ipv6`)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_ipv6_and_a_node_that_has_it_switched_off_are_told_apart() {
        let directory = tempfile::tempdir().expect("tempdir");
        let proc = directory.path();
        let write = |file: &str, text: &str| {
            let file = proc.join(file);
            fs::create_dir_all(file.parent().expect("a directory")).expect("made");
            fs::write(file, text).expect("written");
        };
        let says = |words: &str| {
            let why = missing(proc).unwrap_or("there is IPv6");
            assert!(why.contains(words), "{why}");
        };
        says("this kernel has no IPv6");
        // The switch is not there where the kernel cannot be asked.
        write("net/if_inet6", "");
        says("there is IPv6");
        write("sys/net/ipv6/conf/all/disable_ipv6", "0\n");
        says("there is IPv6");
        write("sys/net/ipv6/conf/all/disable_ipv6", "1\n");
        says("net.ipv6.conf.all.disable_ipv6");
    }
}
