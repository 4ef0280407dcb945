// SPDX-License-Identifier: Apache-2.0
//! What each contender can be asked for.

use std::fmt;

use anyhow::{Context as _, Result};

use super::place::Place;

/// What enforces rules, running and with its place around it.
pub(super) trait Contender {
    /// Where its client and server are.
    fn place(&self) -> &Place;
    /// Puts so many rules in force, half of them before and half after the two that the client needs. Only ever more of them.
    fn rules(&mut self, count: usize) -> Result<()>;
    /// Takes one rule away, or gives it back, as an operator would. Returns when that began, on `CLOCK_MONOTONIC`.
    fn switch(&mut self, open: bool) -> Result<u64>;
    /// Called when the change was seen: what is to be done before the next.
    fn settle(&mut self) -> Result<()> {
        Ok(())
    }
    /// Processes that work for the client's connections, besides its own.
    fn helpers(&self) -> Vec<u32> {
        Vec::new()
    }
    /// Mebibytes that the rules and who enforces them take, where that can be had.
    fn memory(&self) -> Result<Option<f64>>;
}

/// A contender that is here, or why it is not.
pub(super) enum Entry {
    /// It runs: in which version.
    Here {
        version: String,
        contender: Box<dyn Contender>,
    },
    /// It cannot be measured here: told in the table, and no failure.
    Absent(String),
}

/// Why a contender cannot run on this machine, as an error that is told apart from failures.
#[derive(Debug)]
pub(super) struct NotHere(pub(super) String);

impl fmt::Display for NotHere {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NotHere {}

/// What came of starting one. An error other than [`NotHere`] stays one.
pub(super) fn entry<C: Contender + 'static>(started: Result<(C, String)>) -> Result<Entry> {
    match started {
        Ok((contender, version)) => Ok(Entry::Here {
            version,
            contender: Box::new(contender),
        }),
        Err(error) => match error.downcast_ref::<NotHere>() {
            Some(reason) => Ok(Entry::Absent(reason.0.clone())),
            None => Err(error),
        },
    }
}

/// What a program answers to the question for its version. One that is not there is no failure.
pub(super) fn version(program: &str) -> Result<String> {
    let output = std::process::Command::new(program).arg("--version").output();
    let output = match output {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(NotHere(format!("{program} is not installed")).into());
        }
        output => output.with_context(|| format!("cannot run {program}"))?,
    };
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.trim().lines().last().unwrap_or_default().trim().to_owned())
}

/// Rules about others for `fill`, each given the number of a workload and a port, with the client's own in the middle: where a
/// list is gone through, half of it is.
pub(super) fn listed<T>(count: usize, fill: impl Fn(usize, u16) -> T, own: [T; 2]) -> Vec<T> {
    let others = count.saturating_sub(own.len());
    let mut all: Vec<T> = (0..others)
        .map(|number| fill(number % WORKLOADS, 20_000 + (number / WORKLOADS) as u16))
        .collect();
    let middle = middle(count);
    all.splice(middle..middle, own);
    all
}

/// How many rules are before the client's own.
pub(super) fn middle(count: usize) -> usize {
    count.saturating_sub(2) / 2
}

/// So many other workloads have rules, each about one port after the other.
pub(super) const WORKLOADS: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clients_rules_are_in_the_middle_and_no_other_is_there_twice() {
        for count in [10, 100, 1000, 10_000] {
            let rules = listed(count, |workload, port| (workload, port), [(1000, 1), (1000, 2)]);
            assert_eq!(rules.len(), count);
            assert_eq!(rules[middle(count)..][..2], [(1000, 1), (1000, 2)]);
            let different: std::collections::BTreeSet<_> = rules.iter().collect();
            assert_eq!(different.len(), count);
        }
    }
}
