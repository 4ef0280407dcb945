// SPDX-License-Identifier: Apache-2.0
//! Finds what compiles `zt-ebpf` for the kernel, and compiles it.
//!
//! Shared by `cargo xtask build-ebpf` and by `zt-agent/build.rs`, which includes this file by its path: a build script
//! that pulled in all of `xtask` would wait for dependencies it does not need. So: nothing but `std` and `thiserror`.
//!
//! A toolchain fits when it has the source of the standard library (`core` is built for the BPF target) and the LLVM
//! that the pinned `bpf-linker` understands. In order: a nightly; the active or stable toolchain with its unstable
//! options unlocked; a `rustc` that came without rustup, such as Debian's `rustc-web`.

use std::env;
use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The linker's version that is known to work, and that gets installed.
const LINKER_VERSION: &str = "0.10.3";
/// Releases of the linker that read the same LLVM.
const LINKER_SERIES: &str = "0.10.";
/// The LLVM whose bitcode that linker reads.
const LLVM_MAJOR: &str = "22";
/// The compiler's name for the kernel's virtual machine, little-endian.
const TARGET: &str = "bpfel-unknown-none";
/// What brings a toolchain where rustup is missing.
const DEBIAN_TOOLCHAIN: &str = "apt-get install rustc-web cargo-web rust-web-src";

/// Why the kernel object could not be built; each says what to run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EbpfBuildError {
    /// There is no Rust toolchain that can compile for the kernel.
    #[error("no Rust toolchain can compile for the kernel ({found}): run `{command}`")]
    Toolchain {
        /// What was looked at, and what each lacks.
        found: String,
        /// What brings the missing part.
        command: String,
    },
    /// `bpf-linker` is missing.
    #[error("bpf-linker is not installed: run `{command}`")]
    LinkerMissing {
        /// What installs it.
        command: String,
    },
    /// `bpf-linker` is there in a version that reads another LLVM.
    #[error("bpf-linker {found} is installed, {LINKER_VERSION} is needed: run `{command}`")]
    LinkerVersion {
        /// The version that answered.
        found: String,
        /// What replaces it.
        command: String,
    },
    /// The compiler or the linker refused the source.
    #[error(
        "zt-ebpf does not compile: the compiler's messages are above; `cargo xtask build-ebpf` repeats them"
    )]
    Compile,
    /// A file or a program could not be used.
    #[error("{what}: {source}")]
    Io {
        /// What was being done, to which file.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Whether missing tools may be installed for the user who runs the build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Install {
    /// Install `rust-src` through rustup and `bpf-linker` through cargo.
    Allowed,
    /// Only say what is missing.
    Never,
}

/// A toolchain and a linker that can build the kernel object.
#[derive(Debug)]
pub(crate) struct Tools {
    toolchain: Toolchain,
    linker: PathBuf,
    /// The release of the linker.
    pub(crate) linker_version: String,
}

impl Tools {
    /// Finds both, installing what is missing if that is allowed. `say` is told about each installation beforehand.
    pub(crate) fn prepare(install: Install, say: &dyn Fn(&str)) -> Result<Self, EbpfBuildError> {
        let toolchain = Toolchain::find(install, say)?;
        let (linker, linker_version) = find_linker(&toolchain, install, say)?;
        Ok(Self {
            toolchain,
            linker,
            linker_version,
        })
    }

    /// Compiles `<workspace>/zt-ebpf` below `scratch` and copies the object to `output`.
    ///
    /// `scratch` is a target directory of its own: the cargo that may be running this holds the lock of the outer one.
    pub(crate) fn build(
        &self,
        workspace: &Path,
        scratch: &Path,
        output: &Path,
    ) -> Result<(), EbpfBuildError> {
        fs::create_dir_all(scratch).map_err(io(|| format!("cannot create {}", scratch.display())))?;
        // Held until the object is copied: another checkout may share this directory, and the name in it.
        let lock = scratch.join("zt-ebpf.lock");
        let lock = File::create(&lock).map_err(io(|| format!("cannot create {}", lock.display())))?;
        lock.lock()
            .map_err(io(|| "cannot lock the eBPF build directory".into()))?;

        let flags = [
            format!("-Clinker={}", self.linker.display()),
            "-Clink-arg=--btf".into(),
            // Without it, memory is set in a call, byte by byte: a frame of its own on a stack of 512 bytes, of which kernels
            // before 6.8 count at least 32, and a loop for the verifier to walk.
            "-Clink-arg=--disable-expand-memcpy-in-order".into(),
            "-Cdebuginfo=2".into(),
            // 32-bit jumps, and additions that return the old value: every kernel from 5.12 on has them.
            "-Ctarget-cpu=v3".into(),
            // The object carries file names for the verifier's log; they should not be this machine's.
            format!("--remap-path-prefix={}=.", workspace.display()),
        ];
        let crate_dir = workspace.join("zt-ebpf");
        let mut cargo = self.toolchain.command("cargo");
        cargo
            .args(["build", "--release", "-Zbuild-std=core", "--target", TARGET, "--target-dir"])
            .arg(scratch)
            .current_dir(&crate_dir)
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
            // Standard output belongs to the build script's directives; progress goes to standard error.
            .stdout(Stdio::null());
        let status = cargo.status().map_err(io(|| {
            format!("cannot start {} in {}", self.toolchain, crate_dir.display())
        }))?;
        if !status.success() {
            return Err(EbpfBuildError::Compile);
        }
        let built = scratch.join(TARGET).join("release/zt-ebpf");
        fs::copy(&built, output).map_err(io(|| {
            format!("cannot copy {} to {}", built.display(), output.display())
        }))?;
        Ok(())
    }
}

impl fmt::Display for Tools {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            toolchain,
            linker_version,
            ..
        } = self;
        write!(f, "{toolchain}, {} {linker_version}", self.linker.display())
    }
}

/// A compiler with its cargo.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Toolchain {
    /// One of rustup's, by its name.
    Rustup { name: String, unstable: bool },
    /// Whatever `rustc` and `cargo` are on the path.
    System,
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rustup { name, .. } => f.write_str(name),
            Self::System => f.write_str("the system's rustc"),
        }
    }
}

impl Toolchain {
    fn find(install: Install, say: &dyn Fn(&str)) -> Result<Self, EbpfBuildError> {
        let candidates = Self::candidates();
        let mut fixable = Vec::new();
        let mut found = Vec::new();
        for candidate in candidates {
            match candidate.lacks() {
                None => return Ok(candidate),
                Some(Lack::Source) => {
                    found.push(format!("{candidate} lacks rust-src"));
                    fixable.push(candidate);
                }
                Some(Lack::Llvm(major)) => {
                    found.push(format!("{candidate} has LLVM {major}, {LLVM_MAJOR} is needed"));
                }
            }
        }
        let mut mend = None;
        for candidate in fixable {
            let Self::Rustup { name, .. } = &candidate else {
                continue;
            };
            let arguments = ["component", "add", "rust-src", "--toolchain", name.as_str()];
            let command = format!("rustup {}", arguments.join(" "));
            if install == Install::Allowed {
                say(&format!(
                    "{command} (the source of the standard library, to build it for the kernel)"
                ));
                let done = isolated("rustup").args(arguments).stdout(Stdio::null()).status();
                if done.is_ok_and(|status| status.success()) && candidate.lacks().is_none() {
                    return Ok(candidate);
                }
            }
            mend.get_or_insert(command);
        }
        let fallback = || {
            let rustup = output_of(isolated("rustup").arg("--version")).is_some();
            let command = if rustup {
                "rustup toolchain install stable -c rust-src"
            } else {
                DEBIAN_TOOLCHAIN
            };
            command.to_owned()
        };
        let found = if found.is_empty() {
            "none was found".to_owned()
        } else {
            found.join("; ")
        };
        Err(EbpfBuildError::Toolchain {
            found,
            command: mend.unwrap_or_else(fallback),
        })
    }

    /// All there are, in the order in which they are tried.
    fn candidates() -> Vec<Self> {
        let installed = output_of(isolated("rustup").args(["toolchain", "list"])).unwrap_or_default();
        let names: Vec<&str> = installed
            .lines()
            .filter_map(|line| line.split_whitespace().next())
            .collect();
        // Cargo runs build scripts with this set to the toolchain that the user chose.
        let active = env::var("RUSTUP_TOOLCHAIN").ok();
        let nightly = names
            .iter()
            .filter(|name| name.starts_with("nightly"))
            .map(|name| (*name, false));
        let chosen = names
            .iter()
            .filter(|name| active.as_deref() == Some(**name))
            .map(|name| (*name, true));
        let stable = names
            .iter()
            .filter(|name| name.starts_with("stable"))
            .map(|name| (*name, true));
        let mut all: Vec<Self> = Vec::new();
        for (name, unstable) in nightly.chain(chosen).chain(stable) {
            if !all
                .iter()
                .any(|seen| matches!(seen, Self::Rustup { name: other, .. } if other == name))
            {
                all.push(Self::Rustup {
                    name: name.to_owned(),
                    unstable,
                });
            }
        }
        // With rustup, `rustc` on the path is one of the above under another name.
        if names.is_empty() && output_of(isolated("rustc").arg("--version")).is_some() {
            all.push(Self::System);
        }
        all
    }

    fn command(&self, program: &str) -> Command {
        match self {
            Self::Rustup { name, unstable } => {
                let mut command = isolated("rustup");
                command.args(["run", name, program]);
                if *unstable {
                    command.env("RUSTC_BOOTSTRAP", "1");
                }
                command
            }
            Self::System => {
                let mut command = isolated(program);
                command.env("RUSTC_BOOTSTRAP", "1");
                command
            }
        }
    }

    fn lacks(&self) -> Option<Lack> {
        let version = output_of(self.command("rustc").arg("-vV")).unwrap_or_default();
        let llvm = version
            .lines()
            .find_map(|line| line.strip_prefix("LLVM version: "))
            .unwrap_or("none");
        let major = llvm.split('.').next().unwrap_or(llvm);
        if major != LLVM_MAJOR {
            return Some(Lack::Llvm(major.to_owned()));
        }
        let sysroot = output_of(self.command("rustc").args(["--print", "sysroot"])).unwrap_or_default();
        let source = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/src/lib.rs");
        (!source.exists()).then_some(Lack::Source)
    }
}

/// What keeps a toolchain from being used.
enum Lack {
    /// It has no source of the standard library.
    Source,
    /// It has an LLVM that the linker does not read.
    Llvm(String),
}

fn find_linker(
    toolchain: &Toolchain,
    install: Install,
    say: &dyn Fn(&str),
) -> Result<(PathBuf, String), EbpfBuildError> {
    let mut command = format!("cargo install bpf-linker --version {LINKER_VERSION} --locked");
    if *toolchain == Toolchain::System {
        // A compiler that does not ship its LLVM as a library: the linker brings the distribution's.
        command = format!(
            "apt-get install llvm-{LLVM_MAJOR}-dev && {command} --no-default-features --features llvm-{LLVM_MAJOR}"
        );
    }
    let on_path = || {
        let home = env::var_os("CARGO_HOME").map(PathBuf::from);
        let home = home.or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")));
        let path = env::var_os("PATH").unwrap_or_default();
        let directories = env::split_paths(&path).chain(home.map(|home| home.join("bin")));
        directories
            .map(|directory| directory.join("bpf-linker"))
            .find(|file| file.is_file())
    };
    if on_path().is_none() && install == Install::Allowed && *toolchain != Toolchain::System {
        say(&format!(
            "{command} (links programs for the kernel; about a minute)"
        ));
        let arguments = ["install", "bpf-linker", "--version", LINKER_VERSION, "--locked"];
        // Whether it worked is seen below.
        let _ = toolchain
            .command("cargo")
            .args(arguments)
            .stdout(Stdio::null())
            .status();
    }
    let Some(linker) = on_path() else {
        return Err(EbpfBuildError::LinkerMissing { command });
    };
    let version = output_of(isolated(&linker).arg("--version")).unwrap_or_default();
    let word = version.split_whitespace().nth(1);
    let found = word.unwrap_or("of unknown version").to_owned();
    if found.starts_with(LINKER_SERIES) {
        Ok((linker, found))
    } else {
        Err(EbpfBuildError::LinkerVersion {
            found,
            command: format!("{command} --force"),
        })
    }
}

/// A command without what an outer cargo, rustup or build script put into the environment for its own sake: flags for
/// the host's compiler, the outer toolchain's name and libraries, the outer job server.
pub(crate) fn isolated(program: impl AsRef<std::ffi::OsStr>) -> Command {
    /// Where the user keeps crates, and how to reach them: these are not the outer build's.
    const KEPT: [&str; 6] = [
        "CARGO_HOME",
        "CARGO_HTTP_",
        "CARGO_NET_",
        "CARGO_REGISTRIES_",
        "CARGO_REGISTRY_",
        "CARGO_SOURCE_",
    ];
    const OUTER: [&str; 5] = ["CARGO", "RUSTC", "RUSTDOC", "RUSTFLAGS", "RUSTUP_TOOLCHAIN"];
    const OUTER_EXACT: [&str; 3] = ["LD_LIBRARY_PATH", "MAKEFLAGS", "MFLAGS"];
    let mut command = Command::new(program);
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy();
        let outer = OUTER.iter().any(|prefix| name.starts_with(prefix)) || OUTER_EXACT.contains(&&*name);
        if outer && !KEPT.iter().any(|prefix| name.starts_with(prefix)) {
            command.env_remove(&*name);
        }
    }
    command
}

/// What a command prints, if it can be run and succeeds.
fn output_of(command: &mut Command) -> Option<String> {
    let output = command.stderr(Stdio::null()).output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn io(what: impl FnOnce() -> String) -> impl FnOnce(std::io::Error) -> EbpfBuildError {
    move |source| EbpfBuildError::Io { what: what(), source }
}
