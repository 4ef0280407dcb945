// SPDX-License-Identifier: Apache-2.0
//! The real `PostgreSQL` and Redis, where they are installed.

use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use super::cast::Who;
use super::error::DemoError;
use super::names::Names;
use super::{process, workload};

/// Where Debian, Fedora and others keep what is not in `PATH`.
const POSTGRES_DIRECTORIES: [&str; 4] = [
    "/usr/lib/postgresql",
    "/usr/local/pgsql",
    "/usr/pgsql",
    "/usr/libexec/postgresql",
];

/// A real server that was started, or why the built-in one serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Server {
    /// It runs.
    Real(&'static str),
    /// The demo's own.
    BuiltIn,
}

impl Server {
    /// In words, for the list of workloads.
    pub(super) fn words(&self) -> String {
        match self {
            Self::Real(name) => format!("the real {name}"),
            Self::BuiltIn => "a small built-in server".to_owned(),
        }
    }
}

/// Starts the server of `who` in its place, if there is a real one.
pub(super) fn start(names: &Names, who: Who) -> Result<Server, DemoError> {
    match who {
        Who::Postgres => match postgres_directory() {
            Some(programs) => start_postgres(names, &programs).map(|()| Server::Real("PostgreSQL")),
            None => Ok(Server::BuiltIn),
        },
        Who::Redis => match in_path("redis-server") {
            Some(program) => start_redis(names, &program).map(|()| Server::Real("Redis")),
            None => Ok(Server::BuiltIn),
        },
        Who::Iam | Who::Gateway | Who::Chat | Who::Nobody | Who::Host => Ok(Server::BuiltIn),
    }
}

/// The directory with `initdb` and `postgres`, of the newest version.
fn postgres_directory() -> Option<PathBuf> {
    let complete = |directory: &Path| {
        ["initdb", "postgres"]
            .iter()
            .all(|name| directory.join(name).is_file())
    };
    let mut found: Vec<(u32, PathBuf)> = Vec::new();
    for parent in POSTGRES_DIRECTORIES {
        let versions = fs::read_dir(parent).into_iter().flatten().flatten();
        let directories = versions
            .map(|entry| entry.path().join("bin"))
            .chain([Path::new(parent).join("bin")]);
        for directory in directories.filter(|directory| complete(directory)) {
            let version = directory
                .parent()
                .and_then(Path::file_name)
                .and_then(|name| name.to_str()?.parse().ok());
            found.push((version.unwrap_or(0), directory));
        }
    }
    let in_path = || {
        in_path("initdb")?
            .parent()
            .map(Path::to_path_buf)
            .filter(|directory| complete(directory))
    };
    found
        .into_iter()
        .max()
        .map(|(_, directory)| directory)
        .or_else(in_path)
}

fn in_path(program: &str) -> Option<PathBuf> {
    let directories = std::env::var_os("PATH")?;
    std::env::split_paths(&directories)
        .map(|directory| directory.join(program))
        .find(|path| path.is_file())
}

/// A directory that belongs to the user as whom the server runs.
fn own_directory(names: &Names, who: Who) -> Result<PathBuf, DemoError> {
    let user = workload::user(&[who.name(), "nobody"])?;
    let directory = names.directory().join(who.name());
    fs::DirBuilder::new()
        .mode(0o700)
        .create(&directory)
        .map_err(DemoError::at("make", &directory))?;
    chown(&directory, Some(user.uid.as_raw()), Some(user.gid.as_raw()))
        .map_err(DemoError::at("give away", &directory))?;
    Ok(directory)
}

fn start_postgres(names: &Names, programs: &Path) -> Result<(), DemoError> {
    let directory = own_directory(names, Who::Postgres)?;
    let data = directory.join("data").display().to_string();
    let program = |name: &str| programs.join(name).display().to_string();
    // Everything here may read everything: policy, not a password, is what the demo is about.
    let initdb = format!(
        "{} -D {data} -U postgres -A trust -E UTF8 --no-locale --no-sync",
        program("initdb")
    );
    let argv: Vec<String> = initdb.split(' ').map(str::to_owned).collect();
    let mut command = process::as_workload(names, Who::Postgres, &argv)?;
    let output = command.output().map_err(DemoError::io("run initdb"))?;
    if !output.status.success() {
        return Err(DemoError::Command {
            command: initdb,
            output: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        });
    }
    let rules = Path::new(&data).join("pg_hba.conf");
    let text = "host all all 10.99.0.0/24 trust\nhost all all fd00:99::/64 trust\n";
    fs::write(&rules, text).map_err(DemoError::at("write", &rules))?;
    let mut argv = vec![program("postgres"), "-D".to_owned(), data];
    for setting in [
        "listen_addresses=*",
        "port=5432",
        // No socket and no lock file outside its directory.
        "unix_socket_directories=",
        "fsync=off",
        "shared_buffers=16MB",
        "max_connections=20",
    ] {
        argv.extend(["-c".to_owned(), setting.to_owned()]);
    }
    spawn(names, Who::Postgres, &argv)
}

fn start_redis(names: &Names, program: &Path) -> Result<(), DemoError> {
    let directory = own_directory(names, Who::Redis)?.display().to_string();
    let mut argv = vec![program.display().to_string()];
    for (option, values) in [
        ("--port", &["6379"][..]),
        ("--bind", &["*", "-::*"]),
        ("--protected-mode", &["no"]),
        ("--save", &[""]),
        ("--appendonly", &["no"]),
        ("--dir", &[directory.as_str()]),
    ] {
        argv.push(option.to_owned());
        argv.extend(values.iter().map(|value| (*value).to_owned()));
    }
    spawn(names, Who::Redis, &argv)
}

fn spawn(names: &Names, who: Who, argv: &[String]) -> Result<(), DemoError> {
    let log = process::log(&names.directory().join(format!("{}-server.log", who.name())))?;
    let mut command = process::as_workload(names, who, argv)?;
    let also = log.try_clone().map_err(DemoError::io("share a log"))?;
    command.stdin(Stdio::null()).stdout(also).stderr(log);
    // It ends with its cgroup.
    command
        .spawn()
        .map(drop)
        .map_err(DemoError::io(format!("start the server of {}", who.name())))
}
