// SPDX-License-Identifier: Apache-2.0
//! Directories as operators, editors and `ConfigMap` mounts make them.

use std::os::unix::fs::symlink;

use tempfile::TempDir;

use super::*;

fn directory() -> TempDir {
    tempfile::tempdir().expect("tempdir")
}

fn names(path: &Path) -> Vec<String> {
    let documents = read(path).0.expect("readable");
    let name = |document: &Document| {
        document
            .file
            .rsplit('/')
            .next()
            .map(|name| format!("{name}={}", document.text))
    };
    documents.iter().filter_map(name).collect()
}

fn refused(path: &Path) -> String {
    let problems = read(path).0.expect_err("refused");
    let lines: Vec<_> = problems.iter().map(ToString::to_string).collect();
    lines.join("\n").replace(&path.display().to_string(), "DIR")
}

#[test]
fn yaml_files_are_read_in_order_and_nothing_else() {
    let root = directory();
    let at = |name: &str| root.path().join(name);
    fs::create_dir(at("..v1")).expect("mkdir");
    fs::write(at("..v1/b.yaml"), "b").expect("write");
    symlink("..v1", at("..data")).expect("symlink");
    symlink("..data/b.yaml", at("b.yaml")).expect("symlink");
    for name in [
        "c.yml",
        "a.yaml",
        ".a.yaml.swp",
        ".hidden.yaml",
        "a.yaml~",
        "README.md",
    ] {
        fs::write(at(name), name).expect("write");
    }
    fs::create_dir(at("sub.yaml")).expect("mkdir");
    assert_eq!(names(root.path()), ["a.yaml=a.yaml", "b.yaml=b", "c.yml=c.yml"]);
    assert_eq!(
        names(&at("README.md")),
        ["README.md=README.md"],
        "a file may have any name"
    );
}

#[test]
fn what_cannot_be_read_is_named() {
    let root = directory();
    let at = |name: &str| root.path().join(name);
    assert!(refused(root.path()).starts_with("DIR: has no *.yaml or *.yml file"));
    assert_eq!(refused(&at("none")), "DIR: does not exist");
    symlink("nowhere", at("a.yaml")).expect("symlink");
    fs::write(at("b.yaml"), b"ok\n\xff").expect("write");
    fs::write(at("c.yaml"), "fine").expect("write");
    nix::unistd::mkfifo(&at("d.yaml"), nix::sys::stat::Mode::S_IRWXU).expect("fifo");
    assert_eq!(
        refused(root.path()),
        "DIR/a.yaml: is a symlink that leads nowhere\n\
         DIR/b.yaml:2:1: is not UTF-8 text (byte 3)\n\
         DIR/d.yaml: is not a regular file"
    );
}

#[test]
fn sizes_are_bounded() {
    let root = directory();
    let grow = |name: &str, bytes| {
        fs::File::create(root.path().join(name))
            .and_then(|file| file.set_len(bytes))
            .expect("grow");
    };
    grow("big.yaml", MAX_FILE_BYTES + 1);
    assert!(refused(root.path()).contains("DIR/big.yaml: has more than 1048576 bytes"));
    grow("big.yaml", MAX_FILE_BYTES);
    for n in 0..16 {
        grow(&format!("{n}.yaml"), MAX_FILE_BYTES);
    }
    assert!(refused(root.path()).contains("more than 16777216 bytes together"));
}

#[tokio::test]
async fn changes_are_followed() {
    let root = directory();
    let (follower, first) = follow(root.path().to_path_buf());
    assert!(first.0.is_err());
    let (sink, mut changes) = tokio::sync::mpsc::channel(1);
    tokio::spawn(follower.run(sink));
    fs::write(root.path().join("a.yaml"), "a").expect("write");
    let next = tokio::time::timeout(std::time::Duration::from_secs(3), changes.recv());
    let documents = next.await.expect("in time").expect("open").0.expect("readable");
    assert_eq!(documents[0].text, "a");
}
