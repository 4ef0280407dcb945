// SPDX-License-Identifier: Apache-2.0
//! One guest: what it is given, how it runs, and what it says.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::archive::Archive;
use super::kernels::{Kernel, output};
use super::suite::Selection;
use crate::instructions::RECORDING;
use crate::setup;

/// How long a guest may take. On a machine that is busy with other things, too.
const DEADLINE: Duration = Duration::from_secs(20 * 60);
/// How long one binary may.
pub(super) const BINARY_SECONDS: u32 = 300;
/// How much of a guest's messages a failure shows.
const LAST_LINES: usize = 30;
/// What tells the tests how much longer they have to wait for anything there.
const SLOWNESS: &str = "ZT_SLOWNESS=4";
/// What tells them that Debian's kernels have BPF LSM: what is there for it is to be used.
const LSM: &str = "ZT_REQUIRE_LSM=1";
const MEMORY_MIB: &str = "1536";

/// The programs that tests and the agent start, besides those of busybox.
pub(crate) const PROGRAMS: [&str; 5] = ["ip", "bridge", "ss", "nsenter", "bpftool"];

/// What one guest said.
pub(super) struct Said {
    /// Every line of its results.
    pub(super) lines: Vec<String>,
    /// What is wrong with it as a whole, with its last messages.
    pub(super) problem: Option<String>,
}

/// Everything of a guest but its kernel: paths in the guest, and the bytes.
pub(super) struct Userland {
    files: Vec<(String, Vec<u8>)>,
    records_instructions: bool,
}

impl Userland {
    /// Gathers programs and the libraries that they need. `built` has the test binaries, and the programs that are built beside
    /// them.
    pub(super) fn gather(built: &[PathBuf], records_instructions: bool) -> Result<Self> {
        let mut files = vec![("/init".to_owned(), include_bytes!("init.sh").to_vec())];
        let mut libraries = BTreeSet::new();
        for path in built {
            let parts: Vec<_> = path
                .components()
                .rev()
                .take_while(|part| part.as_os_str() != "target")
                .collect();
            // The profile's own name does not matter: the tests look for programs one and two directories up.
            let in_deps = parts.get(1).is_some_and(|part| part.as_os_str() == "deps");
            let name = path
                .file_name()
                .context("a program has a name")?
                .to_string_lossy();
            let place = if in_deps {
                format!("/opt/zt/target/debug/deps/{name}")
            } else {
                format!("/opt/zt/target/debug/{name}")
            };
            files.push((place, stripped(path)?));
            libraries.extend(needed(path)?);
        }
        let busybox = setup::program("busybox")?;
        files.push(("/bin/busybox".to_owned(), fs::read(&busybox)?));
        libraries.extend(needed(&busybox)?);
        for name in PROGRAMS {
            let path = setup::program(name)?;
            files.push((format!("/usr/sbin/{name}"), fs::read(&path)?));
            libraries.extend(needed(&path)?);
        }
        for library in libraries {
            let bytes = fs::read(&library).with_context(|| format!("cannot read {}", library.display()))?;
            files.push((library.display().to_string(), bytes));
        }
        Ok(Self {
            files,
            records_instructions,
        })
    }

    fn write(&self, kernel: &Kernel, list: &[String], archive: &Path) -> Result<()> {
        let mut archive = Archive::create(archive)?;
        for directory in [
            "/opt/zt/tests",
            "/sys",
            "/proc",
            "/dev",
            "/tmp",
            "/run",
            "/usr/bin",
            "/sbin",
        ] {
            archive.directory(directory)?;
        }
        let mut order = String::new();
        for module in kernel.modules()? {
            let name = module
                .file_name()
                .context("a module has a name")?
                .to_string_lossy()
                .into_owned();
            archive.file(&format!("/opt/modules/{name}"), &fs::read(&module)?)?;
            order.push_str(&name);
            order.push('\n');
        }
        archive.file("/opt/modules/order", order.as_bytes())?;
        for (path, bytes) in &self.files {
            archive.file(path, bytes)?;
        }
        archive.file("/opt/zt/list", (list.join("\n") + "\n").as_bytes())?;
        archive.finish()
    }
}

/// A line of the guest's list of what it runs.
pub(super) fn line(selection: &Selection, binary: &Path, arguments: &[String]) -> String {
    let name = binary.file_name().unwrap_or_default().to_string_lossy();
    // With one thread, the name of a test and what came of it would not be on one line.
    let mut line = format!("{name} {BINARY_SECONDS} --test-threads=2");
    if arguments.is_empty() {
        line.push_str(" --exact");
        for test in selection.tests {
            line.push(' ');
            line.push_str(test);
        }
    } else {
        line.push(' ');
        line.push_str(&arguments.join(" "));
    }
    line
}

/// A program without what only a debugger reads, which is most of it.
fn stripped(path: &Path) -> Result<Vec<u8>> {
    let place = std::env::temp_dir().join(format!("zt-stripped-{}", std::process::id()));
    output(
        Command::new("strip").arg("-o").args([&place, path]),
        "apt-get install binutils",
    )?;
    let bytes = fs::read(&place)?;
    fs::remove_file(&place)?;
    Ok(bytes)
}

/// The libraries that a program needs, and what loads them; none for one that is linked statically.
fn needed(path: &Path) -> Result<Vec<PathBuf>> {
    let listed = Command::new("ldd")
        .arg(path)
        .output()
        .context("cannot run ldd: apt-get install libc-bin")?;
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    ensure!(
        !text.contains("not found"),
        "{} lacks a library: {text}",
        path.display()
    );
    let paths = text.lines().filter_map(|line| {
        let path = line.rsplit("=> ").next()?.split_whitespace().next()?;
        path.starts_with('/').then(|| PathBuf::from(path))
    });
    Ok(paths.collect())
}

/// Boots a kernel with all that, and listens until it ends. `heard` is given each line at once.
pub(super) fn run(
    kernel: &Kernel,
    userland: &Userland,
    list: &[String],
    directory: &Path,
    heard: impl Fn(&str),
) -> Result<Said> {
    let name = kernel.series.name;
    let archive = directory.join(format!("{name}.cpio"));
    let messages = directory.join(format!("{name}.log"));
    userland.write(kernel, list, &archive)?;
    File::create(&messages)?;
    // What the kernel does not know becomes a variable of the first process.
    let recording = if userland.records_instructions {
        RECORDING
    } else {
        ""
    };
    let mut command = Command::new("setpriv");
    command
        // Whatever ends this ends the guest: it would keep a processor busy for good.
        .args(["--pdeathsig", "KILL", "--"])
        .arg(setup::program("qemu-system-x86_64")?)
        // Never with hardware's help: results are to be the same on every machine.
        .args(["-machine", "q35", "-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", MEMORY_MIB])
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
        .arg("-kernel")
        .arg(kernel.image())
        .arg("-initrd")
        .arg(&archive)
        .args(["-append", &format!("console=ttyS0 panic=-1 rdinit=/init {SLOWNESS} {LSM} {recording}")])
        .arg("-serial")
        .arg(format!("file:{}", messages.display()))
        .args(["-serial", "stdio"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut guest = Guest::start(&mut command, archive)?;
    let (lines, in_time) = listen(&mut guest.process, heard)?;
    let status = guest.process.wait()?;
    let done = lines.iter().any(|line| line == "guest: done");
    let problem = if !in_time {
        Some(format!("the guest was stopped after {} s", DEADLINE.as_secs()))
    } else if !done {
        Some(format!("the guest ended before its tests did ({status})"))
    } else {
        None
    };
    let problem = problem.map(|problem| {
        format!(
            "{problem}\nits last results:\n{}\nits last messages:\n{}",
            last(lines.iter().map(String::as_str)),
            last(String::from_utf8_lossy(&fs::read(&messages).unwrap_or_default()).lines())
        )
    });
    Ok(Said { lines, problem })
}

/// A guest that runs. It is ended, and what it was given is removed, when this is dropped.
struct Guest {
    process: Child,
    archive: PathBuf,
}

impl Guest {
    fn start(command: &mut Command, archive: PathBuf) -> Result<Self> {
        let process = command
            .spawn()
            .context("cannot run setpriv: apt-get install util-linux")?;
        Ok(Self { process, archive })
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_file(&self.archive);
    }
}

/// What a guest says until it ends, or is ended because it takes too long: the lines, and whether it was in time.
fn listen(guest: &mut Child, heard: impl Fn(&str)) -> Result<(Vec<String>, bool)> {
    let stdout = guest.stdout.take().context("the output is piped")?;
    let (sender, receiver) = channel();
    thread::spawn(move || {
        // A panic of the guest may leave half a character.
        for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    let end = Instant::now() + DEADLINE;
    let mut lines = Vec::new();
    loop {
        match receiver.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                heard(&line);
                lines.push(line);
            }
            Err(RecvTimeoutError::Disconnected) => return Ok((lines, true)),
            Err(RecvTimeoutError::Timeout) => {
                guest.kill()?;
                return Ok((lines, false));
            }
        }
    }
}

fn last<'l>(lines: impl Iterator<Item = &'l str>) -> String {
    let lines: Vec<&str> = lines.collect();
    let tail = &lines[lines.len().saturating_sub(LAST_LINES)..];
    tail.iter()
        .map(|line| format!("  | {line}"))
        .collect::<Vec<_>>()
        .join("\n")
}
