// SPDX-License-Identifier: Apache-2.0
//! Tests that failed: what they said, and how each is run alone.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

/// So many lines of what a binary says of its failures are shown again: the last ones.
const MOST_LINES: usize = 60;

/// A test that failed.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) name: String,
    /// The program and arguments of the run that it failed in.
    command: Vec<OsString>,
    directory: Option<PathBuf>,
}

impl Failed {
    /// The test of this name, in that run.
    pub(super) fn of(name: &str, run: &Command) -> Self {
        let arguments = run.get_args().map(OsString::from);
        Self {
            name: name.to_owned(),
            command: [run.get_program().to_owned()]
                .into_iter()
                .chain(arguments)
                .collect(),
            directory: run.get_current_dir().map(PathBuf::from),
        }
    }

    /// The same run of nothing but this.
    pub(super) fn alone(&self) -> Command {
        let mut command = Command::new(&self.command[0]);
        command.args(&self.command[1..]).args(["--exact", &self.name]);
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        command
    }
}

/// What a test binary says of its failures, in the order in which it does.
#[derive(Debug)]
pub(super) struct Said {
    binary: String,
    lines: VecDeque<String>,
    is_within: bool,
}

impl Said {
    pub(super) fn of(binary: &str) -> Self {
        Self {
            binary: binary.to_owned(),
            lines: VecDeque::new(),
            is_within: false,
        }
    }

    /// Takes a line of the binary's: those from `---- TEST stdout ----` to the list of names.
    pub(super) fn read(&mut self, line: &str) {
        match line {
            line if line.starts_with("---- ") && line.ends_with(" stdout ----") => self.is_within = true,
            "failures:" => self.is_within = false,
            _ => {}
        }
        if self.is_within && !is_frame(line) {
            if self.lines.len() == MOST_LINES {
                self.lines.pop_front();
            }
            self.lines.push_back(line.to_owned());
        }
    }

    pub(super) fn is_something(&self) -> bool {
        !self.lines.is_empty()
    }

    pub(super) fn show(&self) {
        println!("{} said:", self.binary);
        for line in &self.lines {
            println!("    {line}");
        }
        println!();
    }
}

/// Whether a line is one of a trace of the stack: what is called first says little, and there are many.
fn is_frame(line: &str) -> bool {
    let line = line.trim_start();
    let number = line.split_once(": ").map(|(number, _)| number);
    line.starts_with("at ") || number.is_some_and(|number| number.parse::<u8>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_failures_is_kept_and_nothing_else() {
        let mut said = Said::of("a binary");
        for line in ["test one ... FAILED", "", "failures:", ""] {
            said.read(line);
        }
        assert!(!said.is_something());
        for line in [
            "---- one stdout ----",
            "why",
            "",
            "failures:",
            "    one",
            "test result: FAILED.",
        ] {
            said.read(line);
        }
        assert_eq!(said.lines, ["---- one stdout ----", "why", ""]);
        said.read("---- two stdout ----");
        for frame in ["  10: anyhow::Error::msg", "             at ./src/lib.rs:52:5"] {
            said.read(frame);
        }
        assert_eq!(said.lines.len(), 4);
        for line in 0..MOST_LINES {
            said.read(&line.to_string());
        }
        assert_eq!((said.lines.len(), &*said.lines[0]), (MOST_LINES, "0"));
    }

    #[test]
    fn a_test_is_run_alone_as_it_was_run() {
        let mut run = Command::new("timeout");
        run.args(["5", "binary", "--nocapture"]).current_dir("/usr");
        let alone = Failed::of("module::test", &run).alone();
        let arguments: Vec<_> = alone.get_args().collect();
        assert_eq!(
            arguments,
            ["5", "binary", "--nocapture", "--exact", "module::test"]
        );
        assert_eq!(alone.get_current_dir(), Some("/usr".as_ref()));
    }
}
