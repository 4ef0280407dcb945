// SPDX-License-Identifier: Apache-2.0
//! The program as a user runs it: what it prints, and its exit codes. The agent is played by a small server.

use std::path::Path;
use std::process::{Command, Output};

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::{get, post};
use serde_json::{Value, json};

const POLICY: &str = "\
apiVersion: zt.hanzo.ai/v1
kind: ServiceAccessPolicy
metadata:
  name: core
spec:
  defaultAction: DENY
  rules:
    - from: {spiffe: spiffe://hanzo.ai/k8s/iam}
      to:
        - {spiffe: spiffe://hanzo.ai/k8s/postgres, ports: [5432]}
      action: ALLOW
";

/// Runs the program in an environment without settings.
fn zt_agent(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_zt-agent"))
        .args(arguments)
        .env_clear()
        .output()
        .expect("runs")
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("not killed")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

fn policy_directory(text: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("tempdir");
    std::fs::write(directory.path().join("core.yaml"), text).expect("write");
    directory
}

fn shown(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[test]
fn good_policy_is_summed_up() {
    let directory = policy_directory(POLICY);
    let output = zt_agent(&["policy", "check", shown(directory.path())]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let text = stdout(&output);
    assert!(text.starts_with("policies  1\nrules     1\nentries   "), "{text}");
    let output = zt_agent(&["policy", "check", shown(directory.path()), "-o", "json"]);
    let summary: Value = serde_json::from_str(&stdout(&output)).expect("JSON");
    assert_eq!((&summary["valid"], &summary["rules"]), (&json!(true), &json!(1)));
    assert_eq!(summary["digest"].as_str().map(str::len), Some(64));
}

#[test]
fn a_stage_that_selects_nobody_is_warned_of_where_a_file_has_all_workloads() {
    let directory = policy_directory(POLICY);
    let rollout = "apiVersion: zt.hanzo.ai/v1\nkind: EnforcementRollout\nmetadata: {name: r}\nspec:\n  stages:\n    \
        - {name: one, identities: [spiffe://hanzo.ai/k8s/one]}\n    - {name: two, identities: [spiffe://hanzo.ai/k8s/two]}\n";
    std::fs::write(directory.path().join("rollout.yaml"), rollout).expect("write");
    let home = tempfile::tempdir().expect("tempdir");
    let (file, workloads) = (home.path().join("agent.yaml"), home.path().join("workloads.yaml"));
    let config = format!(
        "managedCgroup: workloads\nidentity: {{source: file, file: {}}}\n",
        shown(&workloads)
    );
    std::fs::write(&file, config).expect("write");
    let warnings = || -> Value {
        let policies = shown(directory.path());
        let output = zt_agent(&[
            "policy",
            "check",
            policies,
            "--config",
            shown(&file),
            "-o",
            "json",
        ]);
        let answer: Value = serde_json::from_str(&stdout(&output)).expect("JSON");
        assert_eq!(answer["valid"], true, "{answer}");
        answer["warnings"].clone()
    };
    // Nobody says which workloads there are.
    assert_eq!(warnings(), json!([]));
    let one =
        "workloads:\n  - {spiffe: spiffe://hanzo.ai/k8s/one, cgroup: workloads/one, addresses: [10.0.0.1]}\n";
    for (text, wanted) in [
        (one, "stage `two` selects nobody"),
        ("workloads: 7\n", "is not known"),
    ] {
        std::fs::write(&workloads, text).expect("write");
        let told = warnings();
        let only = told.as_array().filter(|all| all.len() == 1);
        let only = only.and_then(|all| all[0].as_str());
        assert!(only.is_some_and(|only| only.contains(wanted)), "{told}");
    }
}

#[test]
fn bad_policy_is_64_with_every_place() {
    let directory = policy_directory(&POLICY.replace("5432", "0").replace("rules:", "rulez:\n  rules:"));
    let output = zt_agent(&["policy", "check", shown(directory.path())]);
    assert_eq!(code(&output), 64);
    let file = directory.path().join("core.yaml");
    for line in stdout(&output).lines() {
        assert!(line.starts_with(&format!("{}:", file.display())), "{line}");
    }
    assert!(stdout(&output).lines().count() >= 2, "{}", stdout(&output));
    assert!(stdout(&output).contains("rulez"));
    let output = zt_agent(&["policy", "check", shown(directory.path()), "-o", "json"]);
    assert_eq!(code(&output), 64);
    let answer: Value = serde_json::from_str(&stdout(&output)).expect("JSON");
    assert_eq!(answer["valid"], json!(false));
    assert!(
        answer["problems"][0]["line"]
            .as_u64()
            .is_some_and(|line| line > 0)
    );

    let empty = tempfile::tempdir().expect("tempdir");
    let output = zt_agent(&["policy", "check", shown(empty.path())]);
    assert_eq!(
        (
            code(&output),
            stdout(&output).contains("has no *.yaml or *.yml file")
        ),
        (64, true)
    );
}

#[test]
fn decisions_are_made_from_files() {
    let directory = policy_directory(POLICY);
    let evaluate = |from: &str, more: &[&str]| {
        let mut arguments = vec!["evaluate", "--policy", shown(directory.path()), "--from", from];
        arguments.extend(["--to", "spiffe://hanzo.ai/k8s/postgres", "--port", "5432"]);
        arguments.extend(more);
        zt_agent(&arguments)
    };
    let output = evaluate("spiffe://hanzo.ai/k8s/iam", &["--fail"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(
        stdout(&output),
        "decision  ALLOW\nrule      core/rule-1\nreason    rule\nmode      -\nrevision  -\n"
    );
    let output = evaluate("world", &["-o", "json"]);
    assert_eq!(code(&output), 0);
    let answer: Value = serde_json::from_str(&stdout(&output)).expect("JSON");
    assert_eq!(
        (&answer["decision"], &answer["policy_matched"]),
        (&json!("DENY"), &Value::Null)
    );
    assert_eq!(code(&evaluate("10.1.2.3", &["--fail"])), 1);
    let output = evaluate("cidr:10.0.0.0/8", &[]);
    assert_eq!(code(&output), 1);
    assert!(
        stderr(&output).contains("names cidr:10.0.0.0/8"),
        "{}",
        stderr(&output)
    );
    assert_eq!(code(&evaluate("somebody", &[])), 2);
}

#[test]
fn bad_configuration_is_64() {
    let directory = policy_directory("mode: nonsense\n");
    let file = directory.path().join("core.yaml");
    let output = zt_agent(&["policy", "check", "--config", shown(&file)]);
    assert_eq!(code(&output), 64);
    assert_eq!(
        stderr(&output),
        format!(
            "error: {}:1:7: mode: must be `observe` or `enforce`, not `nonsense`\n",
            file.display()
        )
    );
}

#[test]
fn usage_is_2_and_nobody_there_is_1() {
    assert_eq!(code(&zt_agent(&["nonsense"])), 2);
    assert_eq!(code(&zt_agent(&["--help"])), 0);
    assert_eq!(code(&zt_agent(&["--version"])), 0);
    let output = zt_agent(&["status", "--api", "http://127.0.0.1:1"]);
    assert_eq!(code(&output), 1);
    assert!(
        stderr(&output).contains("is zt-agent running?"),
        "{}",
        stderr(&output)
    );
    let output = zt_agent(&["identity", "show", "iam", "--api", "http://127.0.0.1:1"]);
    assert_eq!(code(&output), 2);
}

fn record(decision: &str, enforced: bool, source: &str) -> Value {
    json!({
        "id": "0", "timestamp": "2026-01-31T12:00:00.000001Z", "decision": decision, "enforced": enforced,
        "source": {"spiffe_id": source, "entity": null}, "protocol": "TCP", "count": 1, "reason": "no_rule",
        "destination": {"spiffe_id": null, "entity": "world", "address": "1.1.1.1", "port": 443},
        "policy_matched": null,
    })
}

/// An agent with fixed answers; its URL.
fn agent() -> String {
    let answer = |value: Value| get(move || async move { axum::Json(value) });
    let (iam, chat) = ("spiffe://hanzo.ai/k8s/iam", "spiffe://hanzo.ai/k8s/chat");
    let records = [
        record("DENY", true, iam),
        record("DENY", false, chat),
        record("ALLOW", true, chat),
    ];
    let events: Vec<_> = records
        .iter()
        .map(|record| format!("id: 0\ndata: {record}\n\n"))
        .collect();
    let stream = events.concat();
    let workload = json!({
        "spiffe_id": iam, "number": "0x5f5f5f5f5f5f5f5f", "mode": "enforce", "cgroup": "kubepods/iam",
        "addresses": ["10.0.0.1"],
    });
    let policies = json!({
        "revision": 7, "digest": "abc",
        "policies": [{"name": "core", "kind": "ServiceAccessPolicy", "store": "directory", "etag": "x",
                      "document": {"spec": {"rules": [{}, {}]}}}],
    });
    let router = Router::new()
        .route(
            "/v1/audit",
            answer(json!({"records": records, "next_cursor": "r5"})),
        )
        .route("/v1/identities", answer(json!({"identities": [workload]})))
        .route("/v1/policies", answer(policies))
        .route(
            "/v1/status",
            answer(json!({"revision": 7, "hooks": [{"name": "connect4"}]})),
        )
        .route(
            "/v1/decisions/stream",
            get(move || async { ([(CONTENT_TYPE, "text/event-stream")], stream) }),
        )
        .route("/v1/mode", post(|body: axum::Json<Value>| async move { body }))
        .route(
            "/v1/evaluate",
            post(|axum::Json(body): axum::Json<Value>| async move {
                let decision = if body["destination"]["port"] == 5432 {
                    "ALLOW"
                } else {
                    "DENY"
                };
                axum::Json(json!({"decision": decision, "mode": "observe", "enforced": false, "revision": 7}))
            }),
        );
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    listener.set_nonblocking(true).expect("non-blocking");
    let url = format!("http://{}", listener.local_addr().expect("address"));
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("runtime");
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).expect("listener");
            axum::serve(listener, router).await.expect("serves");
        });
    });
    url
}

#[test]
fn a_running_agent_is_asked() {
    let api = agent();
    let ask = |line: &str| {
        let mut arguments: Vec<_> = line.split(' ').collect();
        arguments.extend(["--api", &api]);
        let output = zt_agent(&arguments);
        (code(&output), stdout(&output), stderr(&output))
    };
    let (exit, text, notes) = ask("audit query --limit 3");
    assert_eq!((exit, notes.as_str()), (0, "there are more: --cursor r5\n"));
    assert_eq!(
        text,
        "\
TIME                         DECISION         SOURCE                      DESTINATION      PORT     HOOK  RULE       COUNT
2026-01-31T12:00:00.000001Z  DENY             spiffe://hanzo.ai/k8s/iam   world (1.1.1.1)  443/TCP  -     (no_rule)  1
2026-01-31T12:00:00.000001Z  DENY (observed)  spiffe://hanzo.ai/k8s/chat  world (1.1.1.1)  443/TCP  -     (no_rule)  1
2026-01-31T12:00:00.000001Z  ALLOW            spiffe://hanzo.ai/k8s/chat  world (1.1.1.1)  443/TCP  -     (no_rule)  1
"
    );

    let (exit, text, notes) = ask("monitor --denied --identity spiffe://hanzo.ai/k8s/chat");
    assert_eq!(exit, 1);
    assert!(notes.contains("the agent ended the stream"), "{notes}");
    assert_eq!(
        text,
        "12:00:00.000  DENY (observed)  spiffe://hanzo.ai/k8s/chat → world (1.1.1.1) 443/TCP  (no_rule)\n"
    );
    let (_, text, _) = ask("monitor -o json");
    let records: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(records.len(), 3);

    let (exit, text, _) = ask("identity list");
    let columns = "SPIFFE ID                  NUMBER              MODE     CGROUP        ADDRESSES\n";
    assert_eq!((exit, text.starts_with(columns)), (0, true), "{text}");
    let (exit, text, _) = ask("identity show 0x5f5f5f5f5f5f5f5f");
    assert_eq!((exit, text.contains("kubepods/iam")), (0, true), "{text}");
    let (exit, _, notes) = ask("identity show spiffe://hanzo.ai/other");
    assert_eq!(
        (exit, notes.contains("is not known on this node")),
        (1, true),
        "{notes}"
    );

    let (_, text, _) = ask("policy list");
    assert_eq!(
        text,
        "NAME  KIND                 RULES  STORE\ncore  ServiceAccessPolicy  2      directory\n\nrevision  7\ndigest    abc\n"
    );
    let (_, text, _) = ask("status");
    assert_eq!(text, "revision  7\n\nhooks\n  NAME\n  connect4\n");
    let (_, text, _) = ask("mode observe --all");
    assert_eq!(
        text,
        "nothing is refused on this node until `zt-agent mode restore`\n"
    );
    let (exit, text, _) = ask("evaluate --from host --to world --port 5432 --fail");
    assert_eq!(
        (exit, text.contains("mode      observe (not enforced)")),
        (0, true),
        "{text}"
    );
    assert_eq!(ask("evaluate --from host --to world --port 1 --fail").0, 1);
    let (exit, _, notes) = ask("graph");
    assert_eq!((exit, notes.contains("answered 404")), (1, true), "{notes}");
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let script = format!(
        "'{}' completions bash | head -n 1",
        env!("CARGO_BIN_EXE_zt-agent")
    );
    let output = Command::new("bash")
        .args(["-o", "pipefail", "-c", &script])
        .output()
        .expect("bash");
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).is_empty(), "{}", stderr(&output));
}

#[test]
fn tools_say_what_is_wrong_with_what_they_were_given() {
    let directory = tempfile::tempdir().expect("tempdir");
    let config = directory.path().join("agent.yaml");
    std::fs::write(&config, "mode: perhaps\n").expect("write");
    // Nothing is made for a configuration that is none.
    let output = zt_agent(&["connectivity-test", "--config", shown(&config)]);
    assert_eq!(code(&output), 64, "{}", stderr(&output));
    assert!(stderr(&output).contains("agent.yaml:1"), "{}", stderr(&output));
    let there = directory.path().join("there.tar.gz");
    std::fs::write(&there, "mine").expect("write");
    for (file, why) in [
        (there.as_path(), "exists already"),
        (
            &directory.path().join("no/such/directory.tar.gz"),
            "No such file or directory",
        ),
    ] {
        let output = zt_agent(&["sysdump", "--output-file", shown(file)]);
        assert_eq!(code(&output), 2, "{}", stderr(&output));
        assert!(stderr(&output).contains(why), "{}", stderr(&output));
    }
    assert_eq!(std::fs::read_to_string(&there).expect("read"), "mine");
    for wrong in [
        &["sysdump", "--log-lines", "many"][..],
        &["doctor", "--quick"],
        &["connectivity-test", "-o", "yaml"],
    ] {
        assert_eq!(code(&zt_agent(wrong)), 2, "{wrong:?}");
    }
}
