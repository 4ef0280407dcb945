// SPDX-License-Identifier: Apache-2.0
//! What is known of namespaces.

use super::*;

#[test]
fn a_namespace_is_known_while_the_process_that_was_known_lives_there() {
    let pid = std::process::id();
    let inode = inode_of(pid).expect("this process is in one");
    let mut namespaces = Namespaces::default();
    for (cookie, inode) in [(1, inode), (2, inode + 1)] {
        let namespace = Namespace {
            inode,
            pid,
            addresses: BTreeSet::new(),
            fast_open: FastOpen::Untouched,
        };
        namespaces.known.insert(cookie, namespace);
    }
    assert!(!namespaces.look(&[], false, false));
    assert!(namespaces.look(&[], false, true), "one is forgotten");
    assert!(namespaces.knows(1) && !namespaces.knows(2));
}

#[test]
fn a_look_that_panics_costs_no_other_one() {
    let look = |number: u32| {
        assert_ne!(number, 2, "the test has it panic");
        (number != 3).then_some(number)
    };
    assert_eq!(each(&[1, 2, 3, 4], look), [1, 4]);
}
