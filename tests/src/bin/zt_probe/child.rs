// SPDX-License-Identifier: Apache-2.0
//! A probe started by a probe: a process that was born in its parent's cgroup and namespace.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child as Process, ChildStdin, ChildStdout, Command, Stdio};

use zt_tests::probe::{Operation, Reply};

pub(crate) struct Child {
    process: Process,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Child {
    /// Starts one, in another cgroup if one is named.
    pub(crate) fn start(cgroup: Option<&Path>) -> io::Result<Self> {
        let mut command = Command::new("/proc/self/exe");
        if let Some(cgroup) = cgroup {
            command.arg("--cgroup").arg(cgroup);
        }
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let stdin = process.stdin.take();
        let stdout = process.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let mut child = Self {
            process,
            stdin,
            stdout: BufReader::new(stdout),
        };
        child.call(&Operation::Hello)?;
        Ok(child)
    }

    /// Has it do something, and waits for the reply.
    pub(crate) fn call(&mut self, operation: &Operation) -> io::Result<Reply> {
        let stdin = self.stdin.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        let mut line = serde_json::to_vec(operation)?;
        line.push(b'\n');
        stdin.write_all(&line)?;
        let mut reply = String::new();
        self.stdout.read_line(&mut reply)?;
        Ok(serde_json::from_str(&reply)?)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let _ = self.process.wait();
    }
}
