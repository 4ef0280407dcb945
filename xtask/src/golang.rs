// SPDX-License-Identifier: Apache-2.0
//! Programs of others that are built with Go, once for every checkout of this user.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use crate::workspace;

/// What is built once for every checkout of this user.
pub(crate) fn cache() -> Result<PathBuf> {
    let cache = if let Some(cache) = env::var_os("XDG_CACHE_HOME") {
        PathBuf::from(cache)
    } else {
        let home = env::var_os("HOME").context("neither XDG_CACHE_HOME nor HOME is set")?;
        Path::new(&home).join(".cache")
    };
    Ok(cache.join("zt"))
}

/// Keeps everybody else who would make `directory` of the cache waiting, until it is dropped: another checkout may, at the same
/// time.
pub(crate) fn lock(directory: &Path) -> Result<File> {
    let name = directory.file_name().context("a directory of the cache")?;
    let place = directory.with_file_name(format!("{}.lock", name.display()));
    let parent = place.parent().context("a directory of the cache")?;
    fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    let file = File::create(&place).with_context(|| format!("cannot make {}", place.display()))?;
    file.lock()
        .with_context(|| format!("cannot lock {}", place.display()))?;
    Ok(file)
}

/// Go, with everything that it writes below `work`.
pub(crate) fn go(work: &Path) -> Command {
    let mut command = Command::new("go");
    let directories: [(&str, OsString); 2] = [
        ("GOCACHE", work.join("cache").into()),
        ("GOMODCACHE", work.join("modules").into()),
    ];
    command
        .envs(directories)
        // A workspace or flags of whoever calls are not meant for this.
        .env("GOWORK", "off")
        .env("GOFLAGS", "-mod=mod -buildvcs=false")
        .current_dir(work);
    command
}

/// Beside programs: what they were built of.
const SOURCES: &str = "sources";

/// A module of this repository, with what its `go.sum` says and nothing else, of which programs are built.
pub(crate) struct Module {
    /// Where it is, below the root of the repository.
    pub(crate) directory: &'static str,
    /// Its files.
    pub(crate) sources: &'static [&'static str],
    /// What to build: the name of each program, and its package, which is one of this module or of what it requires.
    pub(crate) programs: &'static [(&'static str, &'static str)],
    /// What it is called in messages.
    pub(crate) name: &'static str,
    /// How long that takes, for whoever waits.
    pub(crate) takes: &'static str,
}

impl Module {
    /// The path of one of its files.
    pub(crate) fn source(&self, file: &str) -> PathBuf {
        workspace::root().join(self.directory).join(file)
    }

    /// Whether all its programs are in a directory, built of the files that it has now.
    pub(crate) fn is_built(&self, directory: &Path) -> bool {
        let same = |source: &&str| {
            let (now, then) = (self.source(source), directory.join(SOURCES).join(source));
            fs::read(now).is_ok_and(|now| fs::read(then).is_ok_and(|then| now == then))
        };
        let mut programs = self.programs.iter();
        programs.all(|(program, _)| directory.join(program).is_file()) && self.sources.iter().all(same)
    }

    /// Copies its files to a directory.
    fn copy(&self, to: &Path) -> Result<()> {
        for source in self.sources {
            let copy = to.join(source);
            let parent = copy.parent().context("it is in a directory")?;
            fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
            fs::copy(self.source(source), &copy)
                .with_context(|| format!("cannot write {}", copy.display()))?;
        }
        Ok(())
    }

    /// Builds its programs into a directory, if they are not there.
    pub(crate) fn obtain(&self, directory: &Path) -> Result<()> {
        if self.is_built(directory) {
            return Ok(());
        }
        let _lock = lock(directory)?;
        if self.is_built(directory) {
            return Ok(());
        }
        let work = directory.join("build");
        let programs = work.join("bin");
        fs::create_dir_all(&programs).with_context(|| format!("cannot make {}", work.display()))?;
        println!(
            "  building: {}, into {} ({}, once)",
            self.name,
            directory.display(),
            self.takes
        );
        let started = Instant::now();
        self.copy(&work)?;
        let built = self
            .programs
            .iter()
            .try_for_each(|(program, package)| self.build(&work, program, package));
        // Gigabytes, and read-only: Go's own command removes them.
        let cleaned = go(&work).args(["clean", "-cache", "-modcache"]).status();
        built?;
        cleaned.context("cannot run go")?;
        for (program, _) in self.programs {
            // Whole, or not there.
            fs::rename(programs.join(program), directory.join(program))?;
        }
        fs::remove_dir_all(&work)?;
        self.copy(&directory.join(SOURCES))?;
        println!("  built:    in {} s", started.elapsed().as_secs());
        Ok(())
    }

    fn build(&self, work: &Path, program: &str, package: &str) -> Result<()> {
        let status = go(work)
            .args(["build", "-trimpath", "-ldflags=-s -w", "-o"])
            .arg(Path::new("bin").join(program))
            .arg(package)
            .env("GOFLAGS", "-mod=readonly -buildvcs=false")
            // They run anywhere, also in an image that has nothing else.
            .env("CGO_ENABLED", "0")
            .status()
            .context("cannot run go")?;
        ensure!(
            status.success(),
            "{} does not build; Go's messages are above. It needs the Go of SPIRE and the Go module proxy",
            self.directory
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[test]
    fn programs_of_other_files_are_not_built() -> Result<()> {
        let module = Module {
            directory: "xtask/chart",
            sources: &["go.mod", "main.go"],
            programs: &[("program", ".")],
            name: "a test",
            takes: "no time",
        };
        let directory = env::temp_dir().join(format!("zt-module-{}", std::process::id()));
        fs::create_dir_all(&directory)?;
        fs::write(directory.join("program"), "")?;
        let without = module.is_built(&directory);
        module.copy(&directory.join(SOURCES))?;
        let with = module.is_built(&directory);
        fs::write(directory.join(SOURCES).join("main.go"), "package other")?;
        let with_another = module.is_built(&directory);
        fs::remove_dir_all(&directory)?;
        assert_eq!((without, with, with_another), (false, true, false));
        Ok(())
    }

    #[test]
    fn who_makes_the_same_directory_waits() -> Result<()> {
        let directory = env::temp_dir().join(format!("zt-lock-{}", std::process::id()));
        let held = lock(&directory)?;
        // Another one is not held up.
        drop(lock(
            &directory.with_file_name(format!("zt-lock-other-{}", std::process::id())),
        )?);
        let (sender, receiver) = channel();
        let place = directory.clone();
        let waiting = thread::spawn(move || {
            let lock = lock(&place);
            sender.send(()).map(|()| lock.is_ok())
        });
        assert!(receiver.recv_timeout(Duration::from_millis(200)).is_err());
        drop(held);
        receiver.recv_timeout(Duration::from_secs(60))?;
        assert!(waiting.join().is_ok_and(|locked| locked == Ok(true)));
        Ok(())
    }
}
