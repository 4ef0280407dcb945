// SPDX-License-Identifier: Apache-2.0
//! A real `PostgreSQL` server for a test: in a directory of its own, on a Unix socket, gone with the test however that
//! ends.

use std::fs;
use std::io::{BufRead as _, BufReader, Lines, Write as _};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid, User};

/// Stops the server, also one that was frozen, and removes its directory when its standard input ends, which is when the test
/// does.
const WATCH: &str = "cat >/dev/null; kill -CONT \"$(head -n 1 \"$1/data/postmaster.pid\")\" 2>/dev/null; \
     \"$0/pg_ctl\" --pgdata \"$1/data\" --mode immediate stop >/dev/null 2>&1; rm -rf \"$1\"";

/// The port of a server that listens on its socket alone.
const PORT: u16 = 5432;
/// Settings of every server: one Unix socket, no network.
const SETTINGS: &str = "listen_addresses = ''\nmax_connections = 50\nshared_buffers = 256MB\nmax_wal_size = 4GB\n\
                        logging_collector = off\nlog_min_messages = warning\n";

/// A running server with the database `zt`, in which `deploy/postgres/roles.sql` was run and these logins made:
/// `node` and `mallory` (writers), `engine` (writer and reader), `keeper` (maintainer), `stranger` (nothing).
#[derive(Debug)]
pub struct Server {
    directory: PathBuf,
    programs: PathBuf,
    user: Option<User>,
    port: u16,
    watch: Child,
    // Dropped first of all in `Drop`: its end is what the watch waits for.
    alive: Option<ChildStdin>,
}

impl Server {
    /// Starts a server. `settings` are lines of `postgresql.conf`.
    pub fn start(settings: &str) -> Result<Self> {
        Self::start_on(PORT, settings)
    }

    /// Starts a server with this port, which also numbers its socket.
    pub fn start_on(port: u16, settings: &str) -> Result<Self> {
        let programs = programs()?;
        // The server refuses to run as root.
        let user = if Uid::effective().is_root() {
            Some(User::from_name("postgres")?.context("no user `postgres`: run `cargo xtask setup`")?)
        } else {
            None
        };
        let directory = tempfile::Builder::new()
            .prefix("zt-pg-")
            .tempdir_in("/tmp")?
            .keep();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755))?;
        if let Some(user) = &user {
            chown(&directory, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
        }
        let mut watch = Command::new("setsid");
        watch.arg("sh").args(["-c", WATCH]).arg(&programs).arg(&directory);
        become_user(&mut watch, user.as_ref());
        let mut watch = watch
            .stdin(Stdio::piped())
            .current_dir("/")
            .spawn()
            .context("cannot run setsid")?;
        let alive = watch.stdin.take();
        let server = Self {
            directory,
            programs,
            user,
            port,
            watch,
            alive,
        };
        let data = server.directory.join("data");
        server.run(server.program("initdb").arg("--pgdata").arg(&data).args([
            "--username=postgres",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            "--no-sync",
        ]))?;
        let configuration = data.join("postgresql.conf");
        let before = fs::read_to_string(&configuration)?;
        let socket = format!(
            "unix_socket_directories = '{}'\nport = {port}\n",
            server.directory.display()
        );
        fs::write(&configuration, before + SETTINGS + &socket + settings + "\n")?;
        server.up()?;
        server.sql_in("postgres", "CREATE DATABASE zt")?;
        server.run(
            server
                .psql("zt", "postgres")
                .arg("--file")
                .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/postgres/roles.sql")),
        )?;
        server.sql(
            "CREATE ROLE node LOGIN NOINHERIT IN ROLE zt_audit_writer;
             CREATE ROLE mallory LOGIN NOINHERIT IN ROLE zt_audit_writer;
             CREATE ROLE engine LOGIN NOINHERIT IN ROLE zt_audit_writer, zt_audit_reader;
             CREATE ROLE keeper LOGIN NOINHERIT IN ROLE zt_audit_maintainer;
             CREATE ROLE stranger LOGIN",
        )?;
        Ok(server)
    }

    /// Starts the server again.
    pub fn up(&self) -> Result<()> {
        let log = self.directory.join("log");
        let mut start = self.program("pg_ctl");
        start
            .arg("--pgdata")
            .arg(self.directory.join("data"))
            .arg("--log")
            .arg(&log);
        let started = self.run(start.args(["--wait", "--timeout=60", "start"]));
        started.with_context(|| fs::read_to_string(&log).unwrap_or_default())
    }

    /// Stops the server at once, as if it had crashed: it recovers from its log at the next start.
    pub fn crash(&self) -> Result<()> {
        let mut stop = self.program("pg_ctl");
        stop.arg("--pgdata").arg(self.directory.join("data"));
        self.run(stop.args(["--mode=immediate", "--wait", "stop"]))
    }

    /// Has it answer nobody and hang up on nobody, from this moment on: whatever it is at.
    pub fn freeze(&self) -> Result<()> {
        self.signal_all(Signal::SIGSTOP)
    }

    /// Has it go on as if no time had passed.
    pub fn thaw(&self) -> Result<()> {
        self.signal_all(Signal::SIGCONT)
    }

    /// Its first process before those that it made, so that it makes no more meanwhile.
    fn signal_all(&self, signal: Signal) -> Result<()> {
        let file = fs::read_to_string(self.directory.join("data/postmaster.pid"))?;
        let first: i32 = file.lines().next().context("a process")?.trim().parse()?;
        kill(Pid::from_raw(first), signal)?;
        let children = fs::read_to_string(format!("/proc/{first}/task/{first}/children"))?;
        for child in children.split_whitespace() {
            // One that has ended meanwhile needs nothing.
            let _ = kill(Pid::from_raw(child.parse()?), signal);
        }
        Ok(())
    }

    /// The DSN of a login.
    pub fn dsn(&self, login: &str) -> String {
        format!(
            "postgres://{login}@localhost:{}/zt?host={}",
            self.port,
            self.directory.display()
        )
    }

    /// Where the server's files are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Runs SQL as superuser and returns what `psql` prints, unaligned and without headers.
    pub fn sql(&self, sql: &str) -> Result<String> {
        self.sql_in("zt", sql)
    }

    /// A number that a statement returns.
    pub fn number(&self, sql: &str) -> Result<u64> {
        let text = self.sql(sql)?;
        text.parse()
            .with_context(|| format!("{sql}: `{text}` is not a number"))
    }

    /// What the server says when `login`, in `role`, runs a statement that it must refuse.
    pub fn refusal(&self, login: &str, role: &str, sql: &str) -> Result<String> {
        match self.attempt(login, role, sql)? {
            Ok(_) => bail!("not refused to {role}: {sql}"),
            Err(said) => Ok(said),
        }
    }

    /// What a statement of `login`, in `role`, prints; or what the server says against it.
    pub fn attempt(&self, login: &str, role: &str, sql: &str) -> Result<Result<String, String>> {
        let mut psql = self.psql("zt", login);
        let output = psql
            .args(["--command", &format!("SET ROLE {role}")])
            .args(["--command", sql])
            .output()?;
        Ok(if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        })
    }

    /// A connection of `login` in `role` that stays open.
    pub fn session(&self, login: &str, role: &str) -> Result<Session> {
        let mut psql = self.psql("zt", login);
        let mut process = psql.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let input = process.stdin.take().context("its input")?;
        let output = BufReader::new(process.stdout.take().context("its output")?).lines();
        let mut session = Session {
            process,
            input,
            output,
        };
        session.run(&format!("SET ROLE {role}"))?;
        Ok(session)
    }

    fn sql_in(&self, database: &str, sql: &str) -> Result<String> {
        let output = self
            .psql(database, "postgres")
            .args(["--command", sql])
            .output()?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{sql}: {errors}");
        Ok(String::from_utf8(output.stdout)?.trim_end().to_owned())
    }

    fn psql(&self, database: &str, login: &str) -> Command {
        let mut psql = self.program("psql");
        psql.arg("--host")
            .arg(&self.directory)
            .args(["--username", login, "--dbname", database])
            .args(["--port", &self.port.to_string()]);
        psql.args(["--no-psqlrc", "--tuples-only", "--no-align", "--quiet"]);
        psql.args(["--set", "ON_ERROR_STOP=1"]);
        psql
    }

    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.programs.join(name));
        become_user(&mut command, self.user.as_ref());
        command.stdin(Stdio::null()).current_dir("/");
        command
    }

    fn run(&self, command: &mut Command) -> Result<()> {
        // A file, not a pipe: the server inherits it, and would keep a pipe open.
        let log = self.directory.join("commands");
        let file = fs::File::create(&log)?;
        let status = command.stdout(file.try_clone()?).stderr(file).status()?;
        let said = fs::read_to_string(&log).unwrap_or_default();
        ensure!(status.success(), "{command:?}: {said}");
        Ok(())
    }
}

/// An open connection. It ends with its value, and with the first statement that fails.
#[derive(Debug)]
pub struct Session {
    process: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Session {
    /// Runs statements and returns what they print when they are done.
    pub fn run(&mut self, sql: &str) -> Result<String> {
        const DONE: &str = "-- done --";
        writeln!(self.input, "{sql};\n\\echo {DONE}")?;
        self.input.flush()?;
        let mut printed = Vec::new();
        for line in &mut self.output {
            let line = line?;
            if line == DONE {
                return Ok(printed.join("\n"));
            }
            printed.push(line);
        }
        bail!("the connection ended at: {sql}")
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Both fail where it has ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.alive.take());
        // It has nothing to say, and ends when the server is gone.
        let _ = self.watch.wait();
    }
}

fn become_user(command: &mut Command, user: Option<&User>) {
    if let Some(user) = user {
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
}

/// Debian keeps each version in a directory of its own; the newest is taken.
fn programs() -> Result<PathBuf> {
    let mut found: Vec<(u32, PathBuf)> = Vec::new();
    for version in fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
    {
        let number = version.file_name().to_string_lossy().parse().unwrap_or(0);
        found.push((number, version.path().join("bin")));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    found.extend(std::env::split_paths(&path).map(|directory| (0, directory)));
    found.retain(|(_, directory)| directory.join("initdb").exists() && directory.join("psql").exists());
    let newest = found.into_iter().max_by_key(|(version, _)| *version);
    Ok(newest
        .context("PostgreSQL is not installed: run `cargo xtask setup`")?
        .1)
}
