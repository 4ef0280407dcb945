// SPDX-License-Identifier: Apache-2.0
//! Every way in which files get replaced under a running agent.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;

use tempfile::TempDir;
use tokio::sync::mpsc::Receiver;
use tokio::time::{sleep, timeout};

use super::*;

/// A followed path; values are what it holds, directories as `name=content` lines.
struct Followed {
    first: String,
    values: Receiver<String>,
}

fn contents(path: &Path) -> String {
    if !path.is_dir() {
        return fs::read_to_string(path).unwrap_or_else(|error| error.kind().to_string());
    }
    let mut lines: Vec<_> = fs::read_dir(path)
        .expect("directory")
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .map(|path| {
            format!(
                "{}={}",
                path.file_name().expect("name").display(),
                contents(&path)
            )
        })
        .collect();
    lines.sort();
    lines.join("\n")
}

fn follow(path: &Path) -> Followed {
    let of = path.to_path_buf();
    let (follower, first) = Follower::new(path.to_path_buf(), move || contents(&of));
    assert!(follower.events.is_some(), "these tests are about inotify");
    let (sink, values) = mpsc::channel(1);
    tokio::spawn(follower.run(sink));
    Followed { first, values }
}

impl Followed {
    /// Waits for `wanted`, well before the poll would find it; states in between are fine.
    async fn reaches(&mut self, wanted: &str) {
        let found = timeout(Duration::from_secs(3), async {
            while let Some(value) = self.values.recv().await {
                if value == wanted {
                    return;
                }
            }
            panic!("the follower ended");
        });
        assert!(found.await.is_ok(), "never became {wanted:?}");
    }

    /// Waits for the next value, whatever it is.
    async fn next(&mut self) -> String {
        timeout(Duration::from_secs(3), self.values.recv())
            .await
            .expect("in time")
            .expect("open")
    }
}

fn directory() -> TempDir {
    tempfile::tempdir().expect("tempdir")
}

#[tokio::test]
async fn files_are_replaced_by_rename() {
    let root = directory();
    let (file, new) = (root.path().join("a.yaml"), root.path().join("new"));
    fs::write(&file, "1").expect("write");
    let mut followed = follow(&file);
    assert_eq!(followed.first, "1");
    for content in ["2", "3", "4"] {
        fs::write(&new, content).expect("write");
        fs::rename(&new, &file).expect("rename");
        assert_eq!(followed.next().await, content);
    }
}

#[tokio::test]
async fn a_partial_write_is_not_read_while_its_writer_is_at_it() {
    let root = directory();
    let file = root.path().join("a.yaml");
    // A machine that stalls makes the writer exceed the longest burst, and proves nothing then.
    for _ in 0..20 {
        fs::write(&file, "old").expect("write");
        let mut followed = follow(&file);
        let start = Instant::now();
        let mut writer = File::create(&file).expect("truncate");
        for _ in 0..3 {
            writer.write_all(b"x").expect("write");
            // Longer than the quiet time, and still one change: the file is open.
            sleep(Duration::from_millis(15)).await;
        }
        drop(writer);
        if start.elapsed() < LONGEST_BURST {
            assert_eq!(followed.next().await, "xxx");
            return;
        }
    }
    panic!("this machine is too slow to tell");
}

#[tokio::test]
async fn a_writer_that_never_closes_is_read_in_the_end() {
    let root = directory();
    let file = root.path().join("a.yaml");
    fs::write(&file, "").expect("write");
    let mut followed = follow(&file);
    let mut writer = File::create(&file).expect("truncate");
    writer.write_all(b"x").expect("write");
    followed.reaches("x").await;
    writer.write_all(b"y").expect("write");
    followed.reaches("xy").await;
}

#[tokio::test]
async fn configmap_swaps_are_seen_for_files_and_directories() {
    let root = directory();
    let at = |name: &str| root.path().join(name);
    fs::create_dir(at("..v1")).expect("mkdir");
    fs::write(at("..v1/a.yaml"), "1").expect("write");
    symlink("..v1", at("..data")).expect("symlink");
    symlink("..data/a.yaml", at("a.yaml")).expect("symlink");
    let mut file = follow(&at("a.yaml"));
    let mut whole = follow(root.path());
    for version in 2..5 {
        let (name, content) = (format!("..v{version}"), version.to_string());
        fs::create_dir(at(&name)).expect("mkdir");
        fs::write(at(&name).join("a.yaml"), &content).expect("write");
        symlink(&name, at("..tmp")).expect("symlink");
        fs::rename(at("..tmp"), at("..data")).expect("swap");
        fs::remove_dir_all(at(&format!("..v{}", version - 1))).expect("clean up");
        file.reaches(&content).await;
        whole.reaches(&format!("a.yaml={content}")).await;
    }
    // Writing through the link is seen too: the directory behind it is watched.
    fs::write(at("..v4/a.yaml"), "in place").expect("write");
    file.reaches("in place").await;
    whole.reaches("a.yaml=in place").await;
}

#[tokio::test]
async fn parents_come_late_go_and_come_back() {
    let root = directory();
    let file = root.path().join("etc/zt/a.yaml");
    let mut followed = follow(&file);
    for content in ["1", "2"] {
        fs::create_dir_all(file.parent().expect("parent")).expect("mkdir");
        fs::write(&file, content).expect("write");
        followed.reaches(content).await;
        fs::remove_dir_all(root.path().join("etc")).expect("rm");
        followed.reaches("entity not found").await;
    }
    // The whole directory is swapped for another by rename.
    for content in ["3", "4"] {
        fs::create_dir_all(root.path().join("next/zt")).expect("mkdir");
        fs::write(root.path().join("next/zt/a.yaml"), content).expect("write");
        let _ = fs::remove_dir_all(root.path().join("old"));
        let _ = fs::rename(root.path().join("etc"), root.path().join("old"));
        fs::rename(root.path().join("next"), root.path().join("etc")).expect("rename");
        followed.reaches(content).await;
    }
}

#[tokio::test]
async fn equal_contents_are_no_change() {
    let root = directory();
    let file = root.path().join("a.yaml");
    fs::write(&file, "same").expect("write");
    let mut followed = follow(&file);
    for _ in 0..3 {
        fs::write(&file, "same").expect("write");
        sleep(Duration::from_millis(30)).await;
    }
    fs::write(&file, "other").expect("write");
    assert_eq!(followed.next().await, "other");
}

#[tokio::test]
async fn a_storm_ends_in_the_last_state_with_few_readings() {
    let root = directory();
    let mut followed = follow(root.path());
    for n in 0..2000 {
        let name = root.path().join(format!("{}.yaml", n % 20));
        fs::write(&name, n.to_string()).expect("write");
        if n % 7 == 0 {
            fs::remove_file(&name).expect("rm");
        }
        if n % 100 == 0 {
            tokio::task::yield_now().await;
        }
    }
    fs::write(root.path().join("last.yaml"), "end").expect("write");
    followed.reaches(&contents(root.path())).await;
}

#[tokio::test]
async fn following_ends_with_its_receiver() {
    let root = directory();
    let (follower, ()) = Follower::new(root.path().to_path_buf(), || ());
    let (sink, values) = mpsc::channel(1);
    let task = tokio::spawn(follower.run(sink));
    drop(values);
    timeout(Duration::from_secs(3), task)
        .await
        .expect("in time")
        .expect("no panic");
}

#[tokio::test]
async fn without_inotify_the_path_is_polled() {
    let root = directory();
    let file = root.path().join("a.yaml");
    let of = file.clone();
    let (mut follower, _) = Follower::new(file.clone(), move || contents(&of));
    follower.events = None;
    let (sink, mut values) = mpsc::channel(1);
    tokio::spawn(follower.run(sink));
    fs::write(&file, "polled").expect("write");
    assert_eq!(values.recv().await.as_deref(), Some("polled"));
}
