// SPDX-License-Identifier: Apache-2.0
//! What may be typed.

use clap::CommandFactory;
use clap::error::ErrorKind;

use super::*;

fn parse(line: &str) -> Result<Cli, ErrorKind> {
    Cli::try_parse_from(line.split(' ')).map_err(|error| error.kind())
}

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn every_documented_form_is_understood() {
    for line in [
        "zt-agent status",
        "zt-agent status -o json --api http://127.0.0.1:1",
        "zt-agent monitor --denied --identity spiffe://hanzo.ai/hanzo-k8s/*/iam -o json",
        "zt-agent evaluate --from spiffe://hanzo.ai/a --to spiffe://hanzo.ai/b --port 5432",
        "zt-agent evaluate --from host --to 10.0.0.1 --port 53 --protocol udp --policy /p --fail -o json",
        "zt-agent evaluate --from unknown --to cidr:10.0.0.0/8 --port 1 --policy p --trust-domain a.b --config c",
        "zt-agent policy check",
        "zt-agent policy check policies -o json",
        "zt-agent evaluate --operator-role sre --service db --action read --mfa --incident INC-1",
        "zt-agent policy list -o table",
        "zt-agent policy apply -f p.yaml --dry-run --if-match none -o json",
        "zt-agent policy diff -f - --fail",
        "zt-agent policy diff policies -o json",
        "zt-agent policy network-policy policies --label app={serviceAccount} --dns none --entity host=10.0.0.1/32 -o json",
        "zt-agent policy network-policy --check - --workload spiffe://hanzo.ai/a/b",
        "zt-agent policy recommend --since 7d --name n --pattern spiffe://hanzo.ai/*/a --include-denied -o json",
        "zt-agent policy recommend --traffic - --diff policies --fail",
        "zt-agent policy recommend --since 7d --services services.json --fail",
        "zt-agent policy replay policies --store sqlite:///a.db --services - --api http://127.0.0.1:1 --fail",
        "zt-agent policy recommend --diff --since 7d",
        "zt-agent policy recommend --since 7d --diff --api http://127.0.0.1:1 -o json",
        "zt-agent policy recommend --since 7d --diff",
        "zt-agent policy replay policies --since 7d --until 1h --namespace n --store sqlite:///a --fail -o json",
        "zt-agent policy replay policies --traffic - --fail=any",
        "zt-agent policy test policies --tests t.yaml -v -o json",
        "zt-agent policy explain --from host --to spiffe://hanzo.ai/b --port 1",
        "zt-agent policy explain policies --from unknown --to 10.0.0.1 --port 53 --protocol udp --all -o json",
        "zt-agent policy diff old new --fail --trust-domain a.b --config c",
        "zt-agent policy show p",
        "zt-agent policy delete p --if-match 12",
        "zt-agent status --api unix:///run/zt/agent.sock",
        "zt-agent status --api https://localhost:8054 --tls-cert c --tls-key k --tls-ca a",
        "zt-agent identity list",
        "zt-agent identity show spiffe://hanzo.ai/a",
        "zt-agent audit query --since 10m --until 2026-01-01T00:00:00Z --decision deny --enforced true --limit 1000",
        "zt-agent audit query --source spiffe://a/* --destination world --port 1 --policy p/rule-1 --node n --cursor r1",
        "zt-agent audit export -o ocsf --since 1h",
        "zt-agent audit export --format csv",
        "zt-agent graph -o dot",
        "zt-agent graph -o mermaid",
        "zt-agent mode observe --all",
        "zt-agent mode restore --log-level debug",
        "zt-agent completions bash",
        "zt-agent rollout status --fail -o json",
        "zt-agent rollout advance --to canary --dry-run --force -o json",
        "zt-agent rollout rollback --to canary",
        "zt-agent rollout rollback --all --dry-run",
        "zt-agent rollout resume -o json",
    ] {
        assert!(parse(line).is_ok(), "{line}: {:?}", parse(line));
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    for (line, kind) in [
        ("zt-agent", ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand),
        ("zt-agent statis", ErrorKind::InvalidSubcommand),
        ("zt-agent mode observe", ErrorKind::MissingRequiredArgument),
        (
            "zt-agent rollout rollback --to a --all",
            ErrorKind::ArgumentConflict,
        ),
        (
            "zt-agent evaluate --from host --to world",
            ErrorKind::MissingRequiredArgument,
        ),
        (
            "zt-agent evaluate --operator-role sre --service db",
            ErrorKind::MissingRequiredArgument,
        ),
        (
            "zt-agent evaluate --from host --to world --port 1 --operator-role sre --service db --action a",
            ErrorKind::ArgumentConflict,
        ),
        ("zt-agent evaluate --mfa", ErrorKind::MissingRequiredArgument),
        (
            "zt-agent evaluate --from host --to world --port 0",
            ErrorKind::ValueValidation,
        ),
        (
            "zt-agent evaluate --from host --to world --port 65536",
            ErrorKind::ValueValidation,
        ),
        (
            "zt-agent evaluate --from iam --to world --port 1",
            ErrorKind::ValueValidation,
        ),
        (
            "zt-agent evaluate --from host --to world --port 1 --protocol SCTP",
            ErrorKind::ValueValidation,
        ),
        (
            "zt-agent monitor --identity spiffe://hanzo.ai/a*",
            ErrorKind::ValueValidation,
        ),
        (
            "zt-agent audit query --since yesterday",
            ErrorKind::ValueValidation,
        ),
        ("zt-agent audit query --limit 0", ErrorKind::ValueValidation),
        ("zt-agent policy diff", ErrorKind::MissingRequiredArgument),
        (
            "zt-agent policy network-policy --label app",
            ErrorKind::ValueValidation,
        ),
        (
            "zt-agent policy network-policy --label app={x}",
            ErrorKind::ValueValidation,
        ),
        (
            "zt-agent policy network-policy --dns kube-system",
            ErrorKind::ValueValidation,
        ),
        (
            "zt-agent policy network-policy --entity world=10.0.0.0/8",
            ErrorKind::ValueValidation,
        ),
        ("zt-agent policy recommend --name A", ErrorKind::ValueValidation),
        ("zt-agent policy recommend --diff a b", ErrorKind::UnknownArgument),
        (
            "zt-agent policy recommend --diff a --diff b",
            ErrorKind::ArgumentConflict,
        ),
        ("zt-agent policy replay", ErrorKind::MissingRequiredArgument),
        (
            "zt-agent policy replay p --traffic a --store b",
            ErrorKind::ArgumentConflict,
        ),
        ("zt-agent policy replay p --fail=some", ErrorKind::InvalidValue),
        ("zt-agent policy diff a -f b", ErrorKind::ArgumentConflict),
        ("zt-agent policy diff a b c", ErrorKind::TooManyValues),
        ("zt-agent status -o yaml", ErrorKind::InvalidValue),
    ] {
        assert_eq!(parse(line).expect_err(line), kind, "{line}");
    }
}

#[test]
fn exit_codes_are_the_contract() {
    let codes = [
        Exit::Done,
        Exit::Failed,
        Exit::Usage,
        Exit::Invalid,
        Exit::Unavailable,
    ]
    .map(|exit| exit as u8);
    assert_eq!(codes, [0, 1, 2, 64, 77]);
    assert_eq!(Failure::Policy(Vec::new()).exit(), Exit::Invalid);
    let pipe = std::io::Error::from(std::io::ErrorKind::BrokenPipe);
    assert_eq!(report(Err(Failure::Io(pipe))), Exit::Done);
}
