// SPDX-License-Identifier: Apache-2.0
//! The corpora of `fuzz/corpus/`, through the functions that are fuzzed, and what is made from them by a fixed seed.
//!
//! A finding becomes a regression test by adding its file to the corpus.

mod corpora {
    pub(crate) mod mutate;
    pub(crate) mod random;
    pub(crate) mod targets;
}

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use corpora::mutate::mutated;
use corpora::random::Random;
use corpora::targets::{TARGETS, Target};

/// How many inputs are made from each corpus, as long as there is time.
const MADE: u64 = 20_000;
const MOST_TIME: Duration = Duration::from_secs(8);

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz")
}

fn names(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    paths
}

/// Gives a target some bytes; where it panics, they are kept, and said how to go on.
fn given(name: &str, target: Target, bytes: &[u8], what: &str) -> bool {
    catch_unwind(AssertUnwindSafe(|| target(bytes))).unwrap_or_else(|_| {
        let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.finding"));
        fs::write(&kept, bytes).expect("the finding is kept");
        panic!(
            "{what} panics: mend it, and add {} to fuzz/corpus/{name}/ under a name that says what it is",
            kept.display()
        )
    })
}

fn tried(name: &str) {
    let (_, target) = TARGETS.into_iter().find(|(of, _)| *of == name).expect("a target");
    let files = names(&fuzz().join("corpus").join(name));
    let seeds: Vec<Vec<u8>> = files.iter().map(|path| fs::read(path).expect("a file")).collect();
    let mut accepted = 0;
    for (path, seed) in files.iter().zip(&seeds) {
        accepted += usize::from(given(name, target, seed, &path.display().to_string()));
    }
    // A corpus of which everything is refused, or nothing, tries little.
    assert!(
        0 < accepted && accepted < seeds.len(),
        "{accepted} of {} are accepted",
        seeds.len()
    );
    let (start, mut random, mut accepted, mut made) = (Instant::now(), Random(54), 0_u64, 0_u64);
    while made < MADE && start.elapsed() < MOST_TIME {
        let bytes = mutated(&seeds, &mut random);
        accepted += u64::from(given(
            name,
            target,
            &bytes,
            &format!("input {made} from the corpus"),
        ));
        made += 1;
    }
    println!("{name}: {made} inputs, {accepted} of them accepted");
    assert!(
        0 < accepted && accepted < made,
        "{accepted} of {made} are accepted"
    );
}

#[test]
fn paths_of_cgroups() {
    tried("cgroup_path");
}

#[test]
fn configurations() {
    tried("config");
}

#[test]
fn events_of_the_kernel() {
    tried("event");
}

#[test]
fn bodies_of_evaluations() {
    tried("http_body");
}

#[test]
fn policies() {
    tried("policy");
}

#[test]
fn identities() {
    tried("spiffe_id");
}

#[test]
fn files_of_workloads() {
    tried("workloads");
}

#[test]
fn every_target_has_a_corpus_and_a_program() {
    let of = |directory: &str| -> Vec<String> {
        let paths = names(&fuzz().join(directory));
        let stem = |path: &PathBuf| path.file_stem().expect("a name").to_string_lossy().into_owned();
        paths.iter().map(stem).collect()
    };
    let targets: Vec<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(of("corpus"), targets);
    assert_eq!(of("fuzz_targets"), targets);
}
