// SPDX-License-Identifier: Apache-2.0
//! What other programs of the machine say, each for a bounded time.

use std::io::{self, Read as _};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How long one may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most bytes of what one says.
const MOST: u64 = 8 << 20;

/// What a program says, or why it says nothing.
pub(super) fn said_by(program: &str, arguments: &[&str]) -> Result<String, String> {
    run(program, arguments, PATIENCE).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => format!("there is no `{program}` on this machine"),
        io::ErrorKind::TimedOut => format!("`{program}` did not end within {PATIENCE:?}"),
        _ => format!("`{program}`: {error}"),
    })
}

fn run(program: &str, arguments: &[&str], patience: Duration) -> io::Result<String> {
    let begin = Instant::now();
    let mut child = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let output = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
    let reading = thread::spawn(move || {
        let mut bytes = Vec::new();
        output.take(MOST).read_to_end(&mut bytes).map(|_| bytes)
    });
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if begin.elapsed() > patience {
            child.kill()?;
            child.wait()?;
            return Err(io::ErrorKind::TimedOut.into());
        }
        thread::sleep(Duration::from_millis(5));
    };
    let bytes = reading
        .join()
        .map_err(|_| io::Error::other("its output was not read"))??;
    if !status.success() && bytes.is_empty() {
        return Err(io::Error::other(format!("it ended with {status}")));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_read_and_not_waited_for_without_end() {
        assert_eq!(said_by("echo", &["a"]).as_deref(), Ok("a\n"));
        let error = said_by("no-such-program-here", &[]).expect_err("missing");
        assert!(error.contains("no-such-program-here"), "{error}");
        let late = run("sleep", &["60"], Duration::from_millis(20)).expect_err("late");
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
        assert!(said_by("false", &[]).is_err());
    }
}
