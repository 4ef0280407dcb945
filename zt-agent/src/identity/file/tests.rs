// SPDX-License-Identifier: Apache-2.0
//! What `workloads.yaml` may say, and the precise words for everything that it may not.

use super::*;

const GOOD: &str = "\
workloads:
  - spiffe: spiffe://hanzo.ai/hanzo-k8s/hanzo/iam
    cgroup: kubepods.slice/demo/iam/
    addresses: [10.99.0.2, \"fd00::2\", \"::ffff:10.99.0.3\"]
    mode: enforce
  - spiffe: spiffe://hanzo.ai/hanzo-k8s/hanzo/iam
    cgroup: kubepods.slice/demo/iam/nested
";

fn parsed(text: &str) -> Result<Vec<WorkloadRecord>, Vec<String>> {
    let roots = [PathBuf::from("kubepods.slice"), PathBuf::from("kubepods")];
    parse(text, "workloads.yaml", "hanzo.ai", &roots)
        .map_err(|problems| problems.iter().map(ToString::to_string).collect())
}

/// The one problem of a workload whose lines are `body`.
fn problem(body: &str) -> String {
    let text = format!("workloads:\n  - {}\n", body.replace('\n', "\n    "));
    let problems = parsed(&text).expect_err("must be refused");
    assert_eq!(problems.len(), 1, "{problems:?}");
    problems[0].clone()
}

const IAM: &str = "spiffe: spiffe://hanzo.ai/a/b/iam\n";

#[test]
fn a_good_file_is_read() {
    let workloads = parsed(GOOD).expect("valid");
    assert_eq!(workloads.len(), 2);
    assert_eq!(workloads[0].cgroup, Path::new("kubepods.slice/demo/iam"));
    let addresses: Vec<_> = workloads[0].addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.99.0.2", "fd00::2", "10.99.0.3"]);
    assert_eq!(
        (workloads[0].mode, workloads[1].mode),
        (Some(Mode::Enforce), None)
    );
    // Replicas share an identity, and a nested cgroup may be declared by itself.
    assert_eq!(workloads[0].spiffe, workloads[1].spiffe);
}

#[test]
fn no_workloads_must_be_said() {
    assert_eq!(parsed("workloads: []\n").expect("valid"), []);
    assert!(parsed("").expect_err("empty")[0].contains("the file is empty"));
    assert!(parsed("# comment\n").expect_err("empty")[0].contains("the file is empty"));
    assert_eq!(
        parsed("workloads:\n").expect_err("null")[0],
        "workloads.yaml:1:10: workloads: must be a list, not nothing"
    );
    assert_eq!(
        problem("spiffe: !id spiffe://hanzo.ai/a/b/iam\ncgroup: kubepods/iam"),
        "workloads.yaml:2:17: workloads[0].spiffe: must be text, not a value with the tag `!id`"
    );
    assert_eq!(
        parsed("- a\n").expect_err("list")[0],
        "workloads.yaml:1:1: must be a mapping, not a list"
    );
}

#[test]
fn misspelt_fields_name_the_nearest() {
    assert_eq!(
        problem(&format!("{IAM}cgroup: kubepods/iam\nadresses: []")),
        "workloads.yaml:4:5: workloads[0].adresses: unknown field; did you mean `addresses`?"
    );
    assert_eq!(
        parsed("workload: []\n").expect_err("misspelt"),
        [
            "workloads.yaml:1:1: workload: unknown field; did you mean `workloads`?",
            "workloads.yaml:1:1: workloads: is missing; write `workloads: []` for no workloads"
        ]
    );
}

#[test]
fn missing_fields_are_named() {
    assert_eq!(
        problem("cgroup: kubepods/iam"),
        "workloads.yaml:2:5: workloads[0].spiffe: is missing"
    );
    assert_eq!(
        problem(IAM.trim()),
        "workloads.yaml:2:5: workloads[0].cgroup: is missing"
    );
}

#[test]
fn bad_identities_are_refused() {
    for (id, word) in [
        ("iam", "spiffe://"),
        ("spiffe://Hanzo.ai/a", "trust domain"),
        ("spiffe://hanzo.ai/a//b", "empty segment"),
        ("spiffe://other.org/a", "this node's is `hanzo.ai`"),
        ("spiffe://hanzo.ai", "has a path"),
    ] {
        let message = problem(&format!("spiffe: {id}\ncgroup: kubepods/iam"));
        assert!(
            message.starts_with("workloads.yaml:2:13: workloads[0].spiffe: "),
            "{message}"
        );
        assert!(message.contains(word), "{message}");
    }
    let long = format!("spiffe://hanzo.ai/{}", "a".repeat(3000));
    assert!(problem(&format!("spiffe: {long}\ncgroup: kubepods/iam")).contains("2048"));
}

#[test]
fn bad_cgroups_are_refused() {
    for (cgroup, words) in [
        ("/sys/fs/cgroup/unified/kubepods/iam", "write `kubepods/iam`"),
        ("kubepods/../iam", "`..`"),
        ("./kubepods/iam", "`..`"),
        ("\"\"", "must not be empty"),
        (
            "system.slice/iam",
            "outside the managed cgroups (`kubepods.slice`, `kubepods`)",
        ),
        ("kubepods.slice2/iam", "outside the managed cgroups"),
        ("7", "put it in quotes"),
        ("[a]", "must be text, not a list"),
    ] {
        let message = problem(&format!("{IAM}cgroup: {cgroup}"));
        assert!(
            message.starts_with("workloads.yaml:3:13: workloads[0].cgroup: "),
            "{message}"
        );
        assert!(message.contains(words), "{message}");
    }
}

#[test]
fn bad_addresses_are_refused() {
    for (address, words) in [
        ("10.0.0.256", "is not an IPv4 or IPv6 address"),
        ("10.0.0.0/8", "one address, not a network"),
        ("localhost", "is not an IPv4 or IPv6 address"),
        ("127.0.0.1", "loopback"),
        ("\"::ffff:127.0.0.1\"", "loopback"),
        ("\"::\"", "unspecified"),
        ("224.0.0.1", "multicast"),
        ("255.255.255.255", "broadcast"),
    ] {
        let message = problem(&format!("{IAM}cgroup: kubepods/iam\naddresses: [{address}]"));
        assert!(
            message.starts_with("workloads.yaml:4:17: workloads[0].addresses[0]: "),
            "{message}"
        );
        assert!(message.contains(words), "{message}");
    }
}

#[test]
fn bad_modes_are_refused() {
    assert!(
        problem(&format!("{IAM}cgroup: kubepods/iam\nmode: deny"))
            .ends_with("workloads[0].mode: must be `observe` or `enforce`, not `deny`")
    );
}

#[test]
fn one_cgroup_and_one_address_have_one_owner() {
    let text = "\
workloads:
  - spiffe: spiffe://hanzo.ai/a/b/iam
    cgroup: kubepods/iam
    addresses: [10.0.0.1]
  - spiffe: spiffe://hanzo.ai/a/b/chat
    cgroup: kubepods/iam/
    addresses: [\"::ffff:10.0.0.1\"]
";
    assert_eq!(
        parsed(text).expect_err("two claims"),
        [
            "workloads.yaml:6:13: workloads[1].cgroup: `kubepods/iam` already belongs to workloads[0] (line 3); \
             a cgroup has one identity",
            "workloads.yaml:7:17: workloads[1].addresses[0]: `10.0.0.1` already belongs to workloads[0] (line 4); \
             an address has one identity",
        ]
    );
}

#[test]
fn every_problem_is_reported_at_once() {
    let text = "workloads:\n  - spiffe: x\n    cgroup: /y\n    mode: z\n  - spifee: w\n";
    assert_eq!(parsed(text).expect_err("bad").len(), 6);
}

#[test]
fn malformed_yaml_is_one_problem_with_a_line() {
    let problems = parsed("workloads:\n  - spiffe: [\n").expect_err("malformed");
    assert_eq!(problems.len(), 1);
    assert!(problems[0].starts_with("workloads.yaml:"), "{problems:?}");
}

#[test]
fn ten_thousand_workloads_are_read() {
    use std::fmt::Write;

    let mut text = String::from("workloads:\n");
    for n in 0..10_000 {
        writeln!(
            text,
            "  - spiffe: spiffe://hanzo.ai/a/b/w{n}\n    cgroup: kubepods/w{n}"
        )
        .expect("String");
        writeln!(
            text,
            "    addresses: [10.1.{}.{}]\n    mode: observe",
            n / 250,
            n % 250 + 1
        )
        .expect("String");
    }
    assert_eq!(parsed(&text).expect("valid").len(), 10_000);
}

#[test]
fn unreadable_files_say_why() {
    let directory = tempfile::tempdir().expect("tempdir");
    let path = directory.path().join("workloads.yaml");
    let message = |path: &Path| read(path).0.expect_err("unreadable").to_string();
    assert!(message(&path).contains("workloads.yaml: does not exist"));
    std::fs::write(&path, b"workloads: \xff").expect("write");
    assert!(message(&path).contains("is not UTF-8 text (byte 11)"));
    std::fs::File::create(&path)
        .and_then(|file| file.set_len(MAX_BYTES + 1))
        .expect("grow");
    assert!(message(&path).contains("at most 16777216"));
    assert!(message(directory.path()).contains("is not a file"));
}
