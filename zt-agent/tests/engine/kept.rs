// SPDX-License-Identifier: Apache-2.0
//! Policies that are kept where the engine may not or cannot change them: 409, and nothing has changed.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hyper::Method;
use zt_agent::cli::client::{ClientError, Sent};
use zt_agent::policy::{Document, Settings, parse};

use super::world::{DEADLINE, Engine, Shared, eventually, policy};

/// Every file and link below a directory with what it holds, in order.
fn files(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).expect("directory") {
        let path = entry.expect("entry").path();
        let metadata = fs::symlink_metadata(&path).expect("metadata");
        if metadata.is_dir() {
            found.extend(files(&path));
        } else if metadata.is_symlink() {
            let target = fs::read_link(&path).expect("link");
            found.push((path, target.into_os_string().into_encoded_bytes()));
        } else if path.file_name().is_some_and(|name| name != ".zt.lock") {
            let text = fs::read(&path).expect("readable");
            found.push((path, text));
        }
    }
    found.sort();
    found
}

/// Sends a change; the status and the code of what comes back.
async fn change(engine: &Engine, method: Method, name: &str, dry_run: bool) -> (u16, String) {
    let document = (method == Method::PUT).then(|| policy(name, &[7]));
    let sent = Sent {
        method,
        target: format!(
            "/v1/policies/{name}{}",
            if dry_run { "?dry_run=true" } else { "" }
        ),
        if_match: None,
        if_none_match: None,
        document,
    };
    match engine.client().send_document(sent).await {
        Ok(_) => (200, String::new()),
        Err(ClientError::Refused { status, code, .. }) => (status.as_u16(), code.expect("a code")),
        Err(other) => panic!("{other}"),
    }
}

/// Tries each change, for itself and as a dry run where that says the same: 409 with its code, and neither the files nor
/// what is in force nor the trail are others than before.
async fn refuses(engine: &Engine, place: &Path, cases: &[(Method, &str, &str)]) {
    let trail = async || {
        let query = [("type", "policy_change".to_owned())];
        let answer = engine.client().get("/v1/audit", &query).await.expect("records");
        answer["records"].as_array().expect("a list").len()
    };
    let before = (files(place), engine.digest().await, trail().await);
    for (method, name, code) in cases {
        let told = change(engine, method.clone(), name, false).await;
        assert_eq!(told, (409, (*code).to_owned()), "{method} {name}");
        // A dry run writes nothing, so that it does not find out that nothing can be written.
        if *code != "read_only" {
            let told = change(engine, method.clone(), name, true).await;
            assert_eq!(told, (409, (*code).to_owned()), "{method} {name}, dry");
        }
    }
    assert_eq!((files(place), engine.digest().await, trail().await), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_were_written_by_hand_are_left_to_who_wrote_them() {
    let shared = Shared::new();
    let policies = shared.policies();
    shared.write(
        "both",
        &format!("{}---\n{}", policy("one", &[1]), policy("two", &[2])),
    );
    shared.write("taken", &policy("other", &[3]));
    let elsewhere = shared.below("elsewhere").join("linked.yaml");
    fs::write(&elsewhere, policy("linked", &[4])).expect("write");
    symlink(&elsewhere, policies.join("linked.yaml")).expect("link");
    let engine = shared.engine("e1").await;
    refuses(
        &engine,
        &policies,
        &[
            (Method::PUT, "one", "policy_shares_file"),
            (Method::DELETE, "two", "policy_shares_file"),
            (Method::PUT, "taken", "file_taken"),
            (Method::PUT, "linked", "policy_is_a_link"),
            (Method::DELETE, "linked", "policy_is_a_link"),
        ],
    )
    .await;
    assert_eq!(
        fs::read_to_string(&elsewhere).expect("there"),
        policy("linked", &[4])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_config_map_mounts_is_changed_in_the_config_map() {
    let shared = Shared::new();
    let policies = shared.policies();
    // As the kubelet lays it out.
    let data = policies.join("..2026_01_01_00_00_00.1");
    fs::create_dir(&data).expect("mkdir");
    fs::rename(policies.join("core.yaml"), data.join("core.yaml")).expect("moved");
    fs::write(data.join("more.yaml"), policy("more", &[1])).expect("write");
    symlink("..2026_01_01_00_00_00.1", policies.join("..data")).expect("link");
    for name in ["core.yaml", "more.yaml"] {
        symlink(format!("..data/{name}"), policies.join(name)).expect("link");
    }
    let engine = shared.engine("e1").await;
    refuses(
        &engine,
        &policies,
        &[
            (Method::PUT, "core", "policy_is_a_link"),
            (Method::DELETE, "more", "policy_is_a_link"),
            (Method::PUT, "new", "policy_is_a_link"),
        ],
    )
    .await;
    // And the engine follows what comes that way.
    let before = engine.digest().await.expect("digest");
    let next = policies.join("..2026_01_01_00_00_01.2");
    fs::create_dir(&next).expect("mkdir");
    fs::write(next.join("core.yaml"), policy("core", &[5])).expect("write");
    fs::write(next.join("more.yaml"), policy("more", &[1])).expect("write");
    symlink("..2026_01_01_00_00_01.2", policies.join("..data_tmp")).expect("link");
    fs::rename(policies.join("..data_tmp"), policies.join("..data")).expect("swapped");
    eventually("the new ConfigMap to be in force", || async {
        (engine.digest().await? != before).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_is_one_file_takes_no_other_policy() {
    let shared = Shared::new();
    let directory = shared.policies();
    let mut engine = shared.engine("e1").await;
    engine.terminate();
    let file = directory.join("core.yaml");
    engine.follow(&file);
    engine.start().await;
    refuses(
        &engine,
        &directory,
        &[(Method::PUT, "new", "policy_path_is_a_file")],
    )
    .await;
    assert_eq!(
        change(&engine, Method::DELETE, "core", false).await.1,
        "last_policy"
    );
    assert_eq!(
        change(&engine, Method::PUT, "core", false).await,
        (200, String::new())
    );
}

/// A directory that nobody may write to but who may write anywhere. Until this is dropped: it is to be removed then.
struct Closed(PathBuf);

impl Closed {
    fn new(directory: PathBuf) -> Self {
        mode(&directory, 0o555);
        Self(directory)
    }

    fn open(&self) {
        mode(&self.0, 0o777);
    }
}

impl Drop for Closed {
    fn drop(&mut self) {
        self.open();
    }
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_one_may_not_write_to_is_left_as_it_is() {
    let shared = Shared::new();
    let policies = shared.policies();
    shared.write("more", &policy("more", &[1]));
    let closed = Closed::new(policies.clone());
    let engine = if nix::unistd::geteuid().is_root() {
        // Root may write anywhere.
        const NOBODY: u32 = 65_534;
        mode(shared.directory.path(), 0o755);
        chown(shared.below("e1"), Some(NOBODY), Some(NOBODY)).expect("chown");
        shared.engine_as("e1", NOBODY).await
    } else {
        shared.engine("e1").await
    };
    refuses(
        &engine,
        &policies,
        &[
            (Method::PUT, "core", "read_only"),
            (Method::PUT, "new", "read_only"),
            (Method::DELETE, "more", "read_only"),
        ],
    )
    .await;
    // Nothing else was in the way.
    closed.open();
    assert_eq!(
        change(&engine, Method::PUT, "new", false).await,
        (200, String::new())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_is_gone_or_changes_under_ones_hands_is_told() {
    let shared = Shared::new();
    let engine = shared.engine("e1").await;
    // Somebody writes the file again and again: a change that was planned on another text is not made.
    let file = shared.policies().join("core.yaml");
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writing = {
        let (stop, file) = (stop.clone(), file.clone());
        std::thread::spawn(move || {
            let mut port = 1000;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let new = file.with_extension("tmp");
                fs::write(&new, policy("core", &[port])).expect("write");
                fs::rename(&new, &file).expect("renamed");
                port = if port == 1000 { 1001 } else { 1000 };
                // The engine must get to its own change now and then.
                std::thread::sleep(Duration::from_millis(1));
            }
        })
    };
    let deadline = Instant::now() + DEADLINE;
    let told = loop {
        let told = change(&engine, Method::PUT, "core", false).await;
        if told.0 == 409 || Instant::now() > deadline {
            break told;
        }
    };
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    writing.join().expect("ended");
    assert_eq!(told, (409, "changed_meanwhile".to_owned()));

    // What was written last comes into force, perhaps only now.
    let last = Document {
        file: "core.yaml".to_owned(),
        text: fs::read_to_string(&file).expect("read"),
    };
    let last = parse(&[last], &Settings::default()).expect("valid");
    let before = last.digest();
    eventually("what was written last", || async {
        (engine.digest().await.as_deref() == Some(before)).then_some(())
    })
    .await;
    fs::rename(shared.policies(), shared.below("moved").join("away")).expect("moved");
    for (method, name) in [
        (Method::PUT, "core"),
        (Method::DELETE, "core"),
        (Method::PUT, "new"),
    ] {
        let told = change(&engine, method.clone(), name, false).await;
        assert_eq!(told, (409, "disk_invalid".to_owned()), "{method} {name}");
    }
    assert!(!shared.policies().exists());
    assert_eq!(
        engine.digest().await.as_deref(),
        Some(before),
        "what was in force stays"
    );
}
