// SPDX-License-Identifier: Apache-2.0
//! What the lines of a guest say of one test binary, beside what it counted itself.

use crate::test_report::totals;

/// What is wrong with a binary, of which the guest knows the file's `name`. `wanted` are the tests that were to run, where they are
/// known; `seconds` is how long it might take.
pub(super) fn problems(said: &[String], name: &str, wanted: &[&str], seconds: u32) -> Vec<String> {
    let begin = format!("guest: begin {name}");
    let mut lines = said.iter().skip_while(|line| **line != begin);
    if lines.next().is_none() {
        return vec!["did not run".to_owned()];
    }
    let end = format!("guest: end {name} ");
    let ran: Vec<&str> = lines
        .clone()
        .map(String::as_str)
        .take_while(|line| !line.starts_with(&end))
        .collect();
    let status = lines.find_map(|line| line.strip_prefix(&*end));
    let outcome = |test: &str| {
        let before = format!("test {test} ... ");
        ran.iter().find_map(|line| line.strip_prefix(&*before))
    };
    let mut problems = Vec::new();
    // Nothing else adds up what a binary that did not get to its totals has shown.
    let counted = ran
        .iter()
        .filter_map(|line| totals(line))
        .any(|totals| totals.failed > 0);
    if status != Some("0") && !counted {
        problems.push(match status {
            // 128 and SIGKILL, which `timeout` dies of as well.
            Some("137") => format!("was killed, as it is after {seconds} s"),
            Some(status) => format!("ended with status {status}"),
            None => "did not end".to_owned(),
        });
    }
    for test in wanted {
        match outcome(test) {
            Some("ok" | "FAILED") => {}
            Some(other) => problems.push(format!("the test {test} was not run: {other}")),
            None if status == Some("0") => problems.push(format!("there is no test {test}")),
            None => problems.push(format!("no result of {test}")),
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOTALS: &str = "test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out";

    fn of(lines: &[&str], wanted: &[&str]) -> Vec<String> {
        let said: Vec<String> = lines.iter().map(|&line| line.to_owned()).collect();
        problems(&said, "decide-1", wanted, 300)
    }

    #[test]
    fn a_binary_that_ran_its_tests_has_no_problem() {
        let begin = "guest: begin decide-1";
        let good = [begin, "test one ... ok", "guest: end decide-1 0"];
        assert_eq!(of(&good, &["one"]), [""; 0]);
        // It counts what failed itself.
        let failed = [begin, "test one ... FAILED", TOTALS, "guest: end decide-1 101"];
        assert_eq!(of(&failed, &["one"]), [""; 0]);
    }

    #[test]
    fn what_did_not_get_to_its_totals_is_a_problem_whatever_it_said_before() {
        let begin = "guest: begin decide-1";
        let killed = [begin, "test one ... FAILED", "guest: end decide-1 137"];
        assert_eq!(
            of(&killed, &["one", "two"]),
            ["was killed, as it is after 300 s", "no result of two"]
        );
        assert_eq!(of(&killed[..2], &["one"]), ["did not end"]);
        assert_eq!(
            of(&[begin, "guest: end decide-1 139"], &[]),
            ["ended with status 139"]
        );
        assert_eq!(of(&["guest: begin other-1"], &["one"]), ["did not run"]);
    }

    #[test]
    fn tests_that_were_not_run_are_problems() {
        let begin = "guest: begin decide-1";
        let ended = "guest: end decide-1 0";
        assert_eq!(
            of(
                &[begin, "test one ... ignored, it is slow", ended],
                &["one", "two"]
            ),
            [
                "the test one was not run: ignored, it is slow",
                "there is no test two"
            ]
        );
    }
}
