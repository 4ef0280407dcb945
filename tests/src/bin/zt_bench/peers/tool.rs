// SPDX-License-Identifier: Apache-2.0
//! The programs that load rules into the kernel, and what their failures say.

use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::contender::NotHere;

/// What they say where the kernel has no such expression, match or table.
const KERNEL: [&str; 6] = [
    "Could not process rule",
    "RULE_APPEND failed",
    "RULE_INSERT failed",
    "No chain/target/match by that name",
    "can't initialize iptables table",
    "Couldn't load match",
];

/// Runs one to its end. Returns what it says.
pub(super) fn run(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        // Of many rules that are refused, one is enough.
        let line = text.lines().find(|line| !line.trim().is_empty());
        bail!(
            "{} ended with {}: {}",
            command.get_program().display(),
            output.status,
            line.unwrap_or("it says nothing").trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A failure of the first rules that are loaded: where the kernel lacks something, that is said, and is none.
pub(super) fn first<T>(loaded: Result<T>) -> Result<T> {
    loaded.map_err(|error| {
        let text = format!("{error:#}");
        match KERNEL.iter().find(|sign| text.contains(**sign)) {
            Some(_) => NotHere(format!("not on this kernel: {text}")).into(),
            None => error,
        }
    })
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn what_the_kernel_lacks_is_told_from_what_is_wrong() {
        let lacking = first::<()>(Err(anyhow!(
            "Error: Could not process rule: No such file or directory"
        )));
        let wrong = first::<()>(Err(anyhow!("Error: syntax error, unexpected string")));
        let is_absent =
            |result: Result<()>| result.is_err_and(|error| error.downcast_ref::<NotHere>().is_some());
        assert!(is_absent(lacking));
        assert!(!is_absent(wrong));
    }

    #[test]
    fn a_failure_has_the_first_line_of_what_was_said() {
        let failed = run(Command::new("sh").args(["-c", "echo; echo first >&2; echo second >&2; exit 3"]));
        let text = failed
            .map_err(|error| format!("{error:#}"))
            .expect_err("it failed");
        assert!(text.contains("first") && !text.contains("second"), "{text}");
    }
}
