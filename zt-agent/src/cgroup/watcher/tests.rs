// SPDX-License-Identifier: Apache-2.0
//! The watcher over ordinary directories: inotify and inode numbers are the same there as in cgroupfs.

use tempfile::TempDir;
use tokio::sync::mpsc::Receiver;
use tokio::time::timeout;

use super::*;

struct Watched {
    mount: TempDir,
    state: BTreeMap<PathBuf, u64>,
    events: Receiver<CgroupEvent>,
    counters: Arc<WatcherCounters>,
}

fn watch(mount: TempDir, roots: &[&str]) -> Watched {
    let roots = roots.iter().map(PathBuf::from).collect();
    let watcher = Watcher::new(mount.path().to_path_buf(), roots).expect("watcher");
    let (state, counters) = (watcher.snapshot(), watcher.counters());
    let (sink, events) = mpsc::channel(16);
    tokio::spawn(watcher.run(sink));
    Watched {
        mount,
        state,
        events,
        counters,
    }
}

fn mount() -> TempDir {
    tempfile::tempdir().expect("tempdir")
}

/// What is there, found without the watcher.
fn listing(mount: &Path, roots: &[&str]) -> BTreeMap<PathBuf, u64> {
    let mut found = BTreeMap::new();
    let mut pending: Vec<_> = roots.iter().map(PathBuf::from).collect();
    while let Some(path) = pending.pop() {
        let Ok(metadata) = fs::metadata(mount.join(&path)) else {
            continue;
        };
        for entry in fs::read_dir(mount.join(&path)).expect("list").flatten() {
            if entry.file_type().expect("type").is_dir() {
                pending.push(path.join(entry.file_name()));
            }
        }
        found.insert(path, metadata.ino());
    }
    found
}

impl Watched {
    fn make(&self, path: &str) {
        fs::create_dir_all(self.mount.path().join(path)).expect("mkdir");
    }

    fn remove(&self, path: &str) {
        fs::remove_dir_all(self.mount.path().join(path)).expect("rmdir");
    }

    fn apply(&mut self, event: CgroupEvent) {
        match event {
            CgroupEvent::Created { path, id } => {
                let before = self.state.insert(path.clone(), id);
                assert_eq!(before, None, "{} was created twice", path.display());
            }
            CgroupEvent::Removed { path, id } => {
                assert_eq!(
                    self.state.remove(&path),
                    Some(id),
                    "{} was not known",
                    path.display()
                );
            }
        }
    }

    /// Applies events until the state is what exists below `roots`.
    async fn catches_up(&mut self, roots: &[&str]) {
        let wanted = listing(self.mount.path(), roots);
        let done = timeout(Duration::from_secs(20), async {
            while self.state != wanted {
                let event = self.events.recv().await.expect("the watcher runs");
                self.apply(event);
            }
        });
        let done = done.await;
        assert!(done.is_ok(), "{} known, {} exist", self.state.len(), wanted.len());
    }

    async fn next(&mut self) -> CgroupEvent {
        timeout(Duration::from_secs(5), self.events.recv())
            .await
            .expect("in time")
            .expect("runs")
    }
}

#[tokio::test]
async fn what_exists_is_in_the_snapshot() {
    let mount = mount();
    for path in ["kubepods/a/b/c", "kubepods/d", "system/x"] {
        fs::create_dir_all(mount.path().join(path)).expect("mkdir");
    }
    fs::write(mount.path().join("kubepods/cgroup.procs"), "").expect("write");
    let watched = watch(mount, &["kubepods.slice", "kubepods"]);
    assert_eq!(watched.state, listing(watched.mount.path(), &["kubepods"]));
    assert_eq!(watched.state.len(), 5);
}

#[tokio::test]
async fn nested_cgroups_come_and_go_in_order() {
    let root = mount();
    fs::create_dir(root.path().join("pods")).expect("mkdir");
    let mut watched = watch(root, &["pods"]);
    watched.make("pods/a/b/c");
    for path in ["pods/a", "pods/a/b", "pods/a/b/c"] {
        let id = super::super::id_of(&watched.mount.path().join(path)).expect("exists");
        assert_eq!(
            watched.next().await,
            CgroupEvent::Created {
                path: path.into(),
                id
            }
        );
    }
    watched.remove("pods/a");
    for path in ["pods/a/b/c", "pods/a/b", "pods/a"] {
        let CgroupEvent::Removed { path: removed, .. } = watched.next().await else {
            panic!("{path}")
        };
        assert_eq!(removed, Path::new(path));
    }
    // Files, and what is outside the managed tree, are nobody's business.
    fs::write(watched.mount.path().join("pods/file"), "").expect("write");
    watched.make("other/a");
    watched.make("pods/last");
    assert!(
        matches!(watched.next().await, CgroupEvent::Created { path, .. } if path == Path::new("pods/last"))
    );
}

#[tokio::test]
async fn roots_may_come_late_go_and_come_back() {
    let mut watched = watch(mount(), &["a/b/pods", "a/c"]);
    assert!(watched.state.is_empty());
    for _ in 0..3 {
        watched.make("a/b/pods/x");
        watched.make("a/c/y");
        watched.make("a/d/z");
        watched.catches_up(&["a/b/pods", "a/c"]).await;
        assert_eq!(watched.state.len(), 4);
        watched.remove("a");
        watched.catches_up(&["a/b/pods", "a/c"]).await;
        assert!(watched.state.is_empty());
    }
}

#[tokio::test]
async fn a_path_made_again_has_a_new_id() {
    let root = mount();
    fs::create_dir_all(root.path().join("pods/a")).expect("mkdir");
    let mut watched = watch(root, &["pods"]);
    for _ in 0..50 {
        watched.remove("pods/a");
        watched.make("pods/a/child");
        watched.catches_up(&["pods"]).await;
    }
}

#[tokio::test]
async fn a_directory_renamed_is_another_path() {
    let root = mount();
    fs::create_dir_all(root.path().join("pods/a/b")).expect("mkdir");
    let mut watched = watch(root, &["pods"]);
    for (from, to) in [("pods/a", "pods/z"), ("pods/z", "pods/0")] {
        fs::rename(watched.mount.path().join(from), watched.mount.path().join(to)).expect("rename");
        watched.make(&format!("{to}/after"));
        watched.catches_up(&["pods"]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_cgroup_is_lost_in_a_storm() {
    let root = mount();
    let pods = root.path().join("pods");
    fs::create_dir(&pods).expect("mkdir");
    let mut watched = watch(root, &["pods"]);
    let storm = tokio::task::spawn_blocking(move || {
        for n in 0..4000 {
            let pod = pods.join(format!("pod{n}"));
            // Parent and children at once: the children are older than any watch on the parent.
            fs::create_dir_all(pod.join("container/inner")).expect("mkdir");
            if n % 3 != 0 {
                fs::remove_dir_all(&pod).expect("rmdir");
            }
        }
    });
    while !storm.is_finished() {
        if let Ok(Some(event)) = timeout(Duration::from_millis(1), watched.events.recv()).await {
            watched.apply(event);
        }
    }
    watched.catches_up(&["pods"]).await;
    assert_eq!(watched.state.len(), 1 + 3 * 1334);
}

#[tokio::test]
async fn a_full_queue_loses_nothing() {
    let limit = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").expect("limit");
    let most: usize = limit.trim().parse().expect("number");
    let root = mount();
    fs::create_dir(root.path().join("pods")).expect("mkdir");
    let mut watched = watch(root, &["pods"]);
    // Nothing reads meanwhile: this runtime has one thread.
    for n in 0..most + 500 {
        fs::create_dir(watched.mount.path().join(format!("pods/{n}"))).expect("mkdir");
    }
    watched.remove("pods/0");
    watched.catches_up(&["pods"]).await;
    assert!(watched.counters.overflows() > 0);
    watched.make("pods/after/all");
    watched.catches_up(&["pods"]).await;
}

#[tokio::test]
async fn watching_ends_with_its_receiver() {
    let root = mount();
    let watcher = Watcher::new(root.path().to_path_buf(), vec!["pods".into()]).expect("watcher");
    let (sink, events) = mpsc::channel(1);
    let task = tokio::spawn(watcher.run(sink));
    drop(events);
    timeout(Duration::from_secs(5), task)
        .await
        .expect("in time")
        .expect("no panic")
        .expect("no error");
}

#[tokio::test]
async fn a_mount_that_is_not_there_is_an_error() {
    let error = Watcher::new("/nonexistent".into(), vec!["pods".into()]).expect_err("no mount");
    assert!(error.to_string().contains("/nonexistent"), "{error}");
}
