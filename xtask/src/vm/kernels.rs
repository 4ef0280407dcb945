// SPDX-License-Identifier: Apache-2.0
//! The kernels that guests boot: Debian's for virtual machines, downloaded once for every checkout of this user from where this
//! machine has its own packages from, and verified as those are.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::golang::{cache, lock};

/// A series of kernels, with the release of Debian that has it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Series {
    /// The first two numbers of its versions.
    pub(crate) name: &'static str,
    suite: &'static str,
    /// The package that the tests were written with. When the release has it no longer, its newest is taken.
    package: &'static str,
}

pub(crate) const SERIES: [Series; 2] = [
    Series {
        name: "6.1",
        suite: "bookworm",
        package: "linux-image-6.1.0-50-cloud-amd64",
    },
    Series {
        name: "6.12",
        suite: "trixie",
        package: "linux-image-6.12.117+deb13-cloud-amd64",
    },
];

/// What depends on the newest package of a release.
const NEWEST: &str = "linux-image-cloud-amd64";

/// What is inserted into a guest's kernel, where it is no part of it; what these need comes with them.
const MODULES: [&str; 6] = ["veth", "bridge", "tcp_diag", "udp_diag", "raw_diag", "mptcp_diag"];

/// A kernel that is there.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    pub(crate) series: Series,
    directory: PathBuf,
}

impl Kernel {
    /// What QEMU boots.
    pub(crate) fn image(&self) -> PathBuf {
        self.directory.join("vmlinuz")
    }

    /// Its modules, in an order in which each finds what it needs.
    pub(crate) fn modules(&self) -> Result<Vec<PathBuf>> {
        let order = read(&self.directory.join(ORDER))?;
        Ok(order.lines().map(|name| self.directory.join(name)).collect())
    }

    /// The package that it is from.
    pub(crate) fn package(&self) -> Result<String> {
        let text = read(&self.directory.join(PACKAGE))?;
        Ok(text.lines().next().unwrap_or_default().to_owned())
    }

    /// What it says it is (`uname -r`), by its package.
    pub(crate) fn release(&self) -> Result<String> {
        let package = self.package()?;
        Ok(package
            .strip_prefix("linux-image-")
            .unwrap_or(&package)
            .to_owned())
    }

    /// The package that the tests were written with, where this is another one.
    pub(crate) fn stands_for(&self) -> Option<&'static str> {
        let wanted = self.series.package;
        self.package()
            .is_ok_and(|package| package != wanted)
            .then_some(wanted)
    }
}

const ORDER: &str = "order";
/// The last file to be written: the package, and what was taken out of it.
const PACKAGE: &str = "package";

/// What is taken out of a package. A directory with anything else is of another version of this program.
fn taken() -> String {
    MODULES.join(" ")
}

fn directory(series: Series) -> Result<PathBuf> {
    Ok(cache()?.join(format!("linux-{}", series.name)))
}

/// The kernel of a series, if it is there.
pub(crate) fn present(series: Series) -> Option<Kernel> {
    let directory = directory(series).ok()?;
    let text = read(&directory.join(PACKAGE)).ok()?;
    let whole = text.lines().nth(1) == Some(&taken());
    whole.then_some(Kernel { series, directory })
}

/// The kernel of a series, which is downloaded if it is not there.
pub(crate) fn obtain(series: Series) -> Result<Kernel> {
    if let Some(kernel) = present(series) {
        return Ok(kernel);
    }
    let directory = directory(series)?;
    let _lock = lock(&directory)?;
    if let Some(kernel) = present(series) {
        return Ok(kernel);
    }
    let work = directory.join("download");
    // What an attempt left that was broken off.
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&work).with_context(|| format!("cannot make {}", work.display()))?;
    println!(
        "  downloading: Linux {}, from Debian's {}, into {} (50 MB, once)",
        series.name,
        series.suite,
        directory.display()
    );
    let apt = Apt::of(series.suite, &work)?;
    let package = apt.package(series)?;
    apt.run("apt-get", &["download", &package])?;
    let archive = found(&work, &|name| name.rsplit('.').next() == Some("deb"))?
        .context("apt-get downloaded no package")?;
    let unpacked = work.join("unpacked");
    output(
        Command::new("dpkg-deb").arg("-x").args([&archive, &unpacked]),
        "apt-get install dpkg",
    )?;
    let image = found(&unpacked, &|name| name.starts_with("vmlinuz-"))?
        .with_context(|| format!("{package} has no kernel"))?;
    fs::rename(image, directory.join("vmlinuz"))?;
    let order = take_modules(&unpacked, &directory)?;
    fs::write(directory.join(ORDER), order.join("\n"))?;
    fs::remove_dir_all(&work)?;
    fs::write(directory.join(PACKAGE), format!("{package}\n{}\n", taken()))?;
    println!("  have     {package}");
    present(series).context("it was just written")
}

/// Copies [`MODULES`] and what they need, and gives the names of the files in the order of insertion.
fn take_modules(unpacked: &Path, directory: &Path) -> Result<Vec<String>> {
    let builtin =
        found(unpacked, &|name| name == "modules.builtin")?.context("no list of what is built in")?;
    let builtin = read(&builtin)?;
    let is_builtin = |module: &str| {
        let names = builtin.lines().filter_map(|line| line.rsplit('/').next());
        names
            .map(|name| name.trim_end_matches(".ko").replace('-', "_"))
            .any(|name| name == module)
    };
    let mut order: Vec<String> = Vec::new();
    // A stack: what is on top comes first, and what it needs before it.
    let mut pending: Vec<String> = MODULES.iter().rev().map(|&name| name.to_owned()).collect();
    while let Some(module) = pending.last().cloned() {
        let file = format!("{module}.ko");
        if order.contains(&file) || is_builtin(&module) {
            pending.pop();
            continue;
        }
        let place = directory.join(&file);
        if !place.exists() {
            let named = |name: &str| {
                let stem = name.split_once(".ko").map(|(stem, _)| stem.replace('-', "_"));
                stem.as_deref() == Some(&*module)
            };
            let packed = found(unpacked, &named)?.with_context(|| format!("no module {module}"))?;
            unpack(&packed, &place)?;
        }
        let needed: Vec<String> = depends(&fs::read(&place)?)
            .into_iter()
            .filter(|name| !order.contains(&format!("{name}.ko")) && !is_builtin(name))
            .collect();
        if needed.is_empty() {
            pending.pop();
            order.push(file);
        } else {
            pending.extend(needed);
        }
    }
    Ok(order)
}

/// Copies a module, which may be compressed.
fn unpack(packed: &Path, place: &Path) -> Result<()> {
    let bytes = if packed.extension().is_some_and(|extension| extension == "xz") {
        output(
            Command::new("xz").args(["--decompress", "--stdout"]).arg(packed),
            "apt-get install xz-utils",
        )?
    } else {
        fs::read(packed)?
    };
    Ok(fs::write(place, bytes)?)
}

/// The modules that a module says it needs.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let rest = &module[at + KEY.len()..];
    let end = rest.iter().position(|&byte| byte == 0).unwrap_or(rest.len());
    let names = String::from_utf8_lossy(&rest[..end]).replace('-', "_");
    names
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

/// The package manager with the lists of one release of Debian, kept apart from this machine's own.
struct Apt {
    work: PathBuf,
    options: Vec<String>,
}

impl Apt {
    fn of(suite: &str, work: &Path) -> Result<Self> {
        let format = "$(ORIGIN)\t$(LABEL)\t$(REPO_URI)\t$(SIGNED_BY)";
        let own = output(
            Command::new("apt-get").args(["indextargets", "--format", format, "Created-By: Packages"]),
            "a Debian machine has it",
        )?;
        let own = String::from_utf8_lossy(&own).into_owned();
        let mut debian = own
            .lines()
            .filter_map(|line| line.strip_prefix("Debian\tDebian\t"));
        let source = debian.next().context(
            "this machine has no packages of Debian: its kernels cannot be had (`apt-get update` first)",
        )?;
        let (place, key) = source.split_once('\t').unwrap_or((source, ""));
        let signed = if key.starts_with('/') {
            format!("[signed-by={key}] ")
        } else {
            String::new()
        };
        for directory in ["state/lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(work.join(directory))?;
        }
        let list = work.join("sources.list");
        fs::write(&list, format!("deb {signed}{place} {suite} main\n"))?;
        let status = work.join("status");
        fs::write(&status, "")?;
        let options = [
            format!("Dir::Etc::sourcelist={}", list.display()),
            "Dir::Etc::sourceparts=-".to_owned(),
            format!("Dir::State={}", work.join("state").display()),
            format!("Dir::State::status={}", status.display()),
            format!("Dir::Cache={}", work.join("cache").display()),
            "APT::Architecture=amd64".to_owned(),
            // The user that downloads would otherwise be one who may not write here.
            "APT::Sandbox::User=".to_owned(),
            "Acquire::Languages=none".to_owned(),
        ];
        let apt = Self {
            work: work.to_owned(),
            options: options
                .into_iter()
                .flat_map(|option| ["-o".to_owned(), option])
                .collect(),
        };
        apt.run("apt-get", &["update", "--quiet"])?;
        Ok(apt)
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(program);
        command
            .args(&self.options)
            .args(arguments)
            .current_dir(&self.work);
        let text = output(&mut command, "Debian's archive must be reachable")?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// The package of a series.
    fn package(&self, series: Series) -> Result<String> {
        if self.run("apt-cache", &["show", series.package]).is_ok() {
            return Ok(series.package.to_owned());
        }
        let newest = self.run("apt-cache", &["show", "--no-all-versions", NEWEST])?;
        let field = |name: &str| {
            newest
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .map(str::trim)
        };
        let version = field("Version:").unwrap_or_default();
        let is_of_series = version
            .strip_prefix(series.name)
            .is_some_and(|rest| rest.starts_with(['.', '-']));
        ensure!(
            is_of_series,
            "{} has Linux {version}, not {}",
            series.suite,
            series.name
        );
        let depends = field("Depends:").unwrap_or_default();
        let mut packages = depends
            .split(',')
            .filter_map(|package| package.split_whitespace().next());
        match packages.find(|package| package.starts_with("linux-image-")) {
            Some(package) => Ok(package.to_owned()),
            None => bail!("{NEWEST} depends on no kernel: {depends}"),
        }
    }
}

/// The first file below a directory with such a name.
fn found(directory: &Path, wanted: &dyn Fn(&str) -> bool) -> Result<Option<PathBuf>> {
    let mut pending = vec![directory.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                pending.push(entry.path());
            } else if wanted(&entry.file_name().to_string_lossy()) {
                return Ok(Some(entry.path()));
            }
        }
    }
    Ok(None)
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// What a command prints.
pub(super) fn output(command: &mut Command, otherwise: &str) -> Result<Vec<u8>> {
    let output = command
        .output()
        .with_context(|| format!("cannot run {}: {otherwise}", command.get_program().display()))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}: {otherwise}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::depends;

    #[test]
    fn reads_what_a_module_needs() {
        assert_eq!(
            depends(b"\x7fELF\0license=GPL\0depends=stp,llc\0retpoline=Y\0"),
            ["stp", "llc"]
        );
        assert_eq!(depends(b"license=GPL\0depends=\0name=veth\0"), [""; 0]);
        assert_eq!(depends(b"nothing"), [""; 0]);
    }
}
