// SPDX-License-Identifier: Apache-2.0
//! Keys in real directories.

use uuid::Uuid;

use super::*;
use crate::audit::chain::Head;

#[test]
fn the_first_key_leads_to_the_last() {
    let directory = tempfile::tempdir().expect("directory");
    let keys = directory.path().join("keys");
    let first = Keys::open(&keys).expect("makes one").current().clone();
    assert_eq!(Keys::open(&keys).expect("opens").current(), &first);
    fs::write(keys.join("0123.key"), "left by a crash").expect("writes");
    let second = Keys::rotate(&keys).expect("rotates");
    assert_ne!(second.current(), &first);
    assert_eq!(second.records().len(), 2);
    assert!(first.is_signed_by(&[]));
    assert!(second.current().is_signed_by(std::slice::from_ref(&first)));
    assert!(!second.current().is_signed_by(&[]), "not by itself");
    let private = |record: &KeyRecord| keys.join(format!("{}.key", record.key));
    assert!(!private(&first).exists() && !keys.join("0123.key").exists());
    let mode = |path: &Path| fs::metadata(path).expect("exists").mode() & 0o777;
    assert_eq!((mode(&keys), mode(&private(second.current()))), (0o700, 0o600));
}

#[test]
fn a_private_key_that_others_may_read_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().expect("directory");
    let keys = Keys::open(directory.path()).expect("makes one");
    let path = directory.path().join(format!("{}.key", keys.current().key));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("changes");
    let error = Keys::open(directory.path()).expect_err("is refused").to_string();
    assert!(error.contains("mode 640"), "{error}");
}

#[test]
fn nothing_of_a_checkpoint_can_be_changed() {
    let directory = tempfile::tempdir().expect("directory");
    let keys = Keys::open(directory.path()).expect("makes one");
    let head = Head::new(Uuid::from_u128(7));
    let signed = Checkpoint::sign(head, Timestamp(5), (3, head.hash), &keys);
    let holds = |checkpoint: &Checkpoint| {
        keys.current()
            .has_signed(&checkpoint.signed(), &checkpoint.signatures)
    };
    assert!(holds(&signed));
    let changes: [fn(&mut Checkpoint); 7] = [
        |c| c.writer = Uuid::from_u128(8),
        |c| c.seq += 1,
        |c| c.hash.0[31] ^= 1,
        |c| c.time.0 += 1,
        |c| c.pruned += 1,
        |c| c.pruned_hash.0[0] ^= 1,
        |c| c.signatures[0].signature.replace_range(..1, "x"),
    ];
    for change in changes {
        let mut changed = signed.clone();
        change(&mut changed);
        assert!(!holds(&changed), "{changed:?}");
    }
    keys.note(&signed).expect("notes");
    assert_eq!(
        Keys::noted(directory.path()).expect("reads"),
        std::slice::from_ref(&signed)
    );
    let kept = || Keys::kept(directory.path()).expect("reads");
    assert_eq!(kept(), 0, "the last one is no break");
    let file = keys.keep(&signed).expect("keeps").expect("a file");
    assert_eq!((keys.keep(&signed).expect("keeps"), kept()), (None, 1), "once");
    fs::write(directory.path().join("old.checkpoint"), "").expect("writes");
    fs::rename(&file, file.with_extension("")).expect("moves");
    assert_eq!(kept(), 0);
}

#[test]
fn whoever_opens_while_another_rotates_has_the_new_key() {
    let directory = tempfile::tempdir().expect("directory");
    let first = Keys::open(directory.path()).expect("makes one").current().clone();
    let mut rotated = None;
    // Between reading the list and the key that it names last.
    let opened = Keys::latest(directory.path(), || {
        let found = read(directory.path());
        if rotated.is_none() {
            rotated = Some(Keys::rotate(directory.path()).expect("rotates").current().clone());
        }
        found
    });
    let opened = opened.expect("opens").expect("there are keys");
    assert_ne!(opened.current(), &first);
    assert_eq!(Some(opened.current()), rotated.as_ref());
}

#[test]
fn a_key_that_is_not_there_is_said_at_once() {
    let directory = tempfile::tempdir().expect("directory");
    let keys = Keys::open(directory.path()).expect("makes one");
    fs::remove_file(directory.path().join(format!("{}.key", keys.current().key))).expect("removes");
    let error = Keys::open(directory.path())
        .expect_err("is not there")
        .to_string();
    assert!(
        error.contains("cannot read") && error.contains(&keys.current().key),
        "{error}"
    );
}
