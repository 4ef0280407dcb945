// SPDX-License-Identifier: Apache-2.0
//! The files under `deploy/`, and what the documentation says of them, against the code that reads them.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser as _};
use zt_agent::cli::Cli;
use zt_agent::config::{Config, PolicySource, SETTINGS, Sources};

/// The samples of configuration.
const SAMPLES: [&str; 5] = [
    "deploy/agent.yaml",
    "deploy/engine.yaml",
    "deploy/cluster/agent.yaml",
    "deploy/cluster/engine.yaml",
    "deploy/image/agent.yaml",
];
/// Files, besides the pages, that tell people what to write and to run.
const TEXTS: [&str; 11] = [
    "README.md",
    "deploy/agent.yaml",
    "deploy/engine.yaml",
    "deploy/cluster/agent.yaml",
    "deploy/cluster/engine.yaml",
    "deploy/helm/zt/templates/NOTES.txt",
    "deploy/helm/zt/values.yaml",
    "deploy/prometheus/zt.rules.yaml",
    "deploy/zt-agent.service",
    "deploy/zt-engine.service",
    "deploy/postgres/roles.sql",
];

/// [`TEXTS`], and every page below `docs/`.
fn texts() -> Vec<String> {
    let mut texts: Vec<String> = TEXTS.map(str::to_owned).into();
    let pages = fs::read_dir(root().join("docs")).unwrap();
    let pages = pages.map(|page| page.unwrap().path());
    let pages = pages.filter(|page| page.extension().is_some_and(|extension| extension == "md"));
    texts.extend(pages.map(|page| format!("docs/{}", page.file_name().unwrap().to_string_lossy())));
    assert!(texts.len() > TEXTS.len() + 10, "{texts:?}");
    texts
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn load(file: &Path) -> Config {
    let sources = Sources {
        file: Some(file.to_path_buf()),
        ..Sources::default()
    };
    Config::load(&sources).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

#[test]
fn the_sample_configuration_says_what_the_defaults_are() {
    assert_eq!(load(&root().join("deploy/agent.yaml")), Config::default());
}

#[test]
fn the_samples_load_and_say_what_they_are_for() {
    let config = load(&root().join("deploy/engine.yaml"));
    assert_eq!(config.policy_path, Path::new("/var/lib/zt-engine/policies"));
    assert_eq!(config.state_directory(), Path::new("/var/lib/zt-engine"));

    let engine = load(&root().join("deploy/cluster/engine.yaml"));
    assert!(!engine.api.listen.ip().is_loopback() && engine.api.tls.all().is_some());
    assert_eq!(engine.state_directory(), Path::new("/var/lib/zt-engine"));
    assert_eq!(engine.policy_source, PolicySource::Directory);

    let node = load(&root().join("deploy/cluster/agent.yaml"));
    assert_eq!(node.policy_source, PolicySource::Engine);
    assert_eq!(node.state_directory(), Path::new("/var/lib/zt"));
    // The node of the sample may follow the engine of the sample, and speak for itself.
    let id = format!("spiffe://hanzo.ai/hanzo-k8s/nodes/{}", node.node);
    let id = zt_agent::spiffe_id::SpiffeId::parse(&id).unwrap();
    let rights = zt_agent::caller::Rights::of(&engine.api.callers, &id);
    assert!(rights.speaks_for(&node.node) && rights.allow(zt_agent::caller::Act::Follow));
    assert!(!rights.allow(zt_agent::caller::Act::Read));
}

/// The keys that a sample names, also those in comments (`# key: value`), with their lines.
fn keys(text: &str) -> Vec<(usize, String)> {
    let mut path: Vec<(usize, String)> = Vec::new();
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let indent = line.len() - line.trim_start().len();
        let bare = line.trim_start();
        let bare = bare.strip_prefix("# ").unwrap_or(bare);
        let Some((key, rest)) = bare.split_once(':') else {
            continue;
        };
        // Prose that has a colon has blanks before it.
        if key.is_empty() || !key.chars().all(|char| char.is_ascii_alphanumeric()) {
            continue;
        }
        path.retain(|(at, _)| *at < indent);
        path.push((indent, key.to_owned()));
        let whole: Vec<&str> = path.iter().map(|(_, key)| key.as_str()).collect();
        let whole = whole.join(".");
        match rest.trim().strip_prefix('{') {
            Some(inline) => found.extend(inline.split(',').filter_map(|pair| {
                let (key, _) = pair.split_once(':')?;
                Some((number + 1, format!("{whole}.{}", key.trim())))
            })),
            None => found.push((number + 1, whole)),
        }
    }
    found
}

#[test]
fn every_key_that_a_sample_names_exists() {
    let known = |key: &str| {
        let below = format!("{key}.");
        SETTINGS
            .iter()
            .any(|setting| setting.key == key || setting.key.starts_with(&below))
    };
    for sample in SAMPLES {
        let text = fs::read_to_string(root().join(sample)).unwrap();
        let keys = keys(&text);
        assert!(keys.len() > 10, "{sample}: {keys:?}");
        for (line, key) in keys {
            assert!(known(&key), "{sample}:{line}: there is no setting {key}");
        }
        // So do the environment variables.
        for word in text.split(|char: char| !(char.is_ascii_alphanumeric() || char == '_')) {
            if word.starts_with("ZT_") && word.len() > 3 {
                assert!(
                    SETTINGS.iter().any(|setting| setting.variable == word),
                    "{sample}: there is no variable {word}"
                );
            }
        }
    }
}

/// The commands that a text shows: in code, at a prompt, or started by systemd.
fn commands(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in text.lines() {
        let bare = line.trim();
        if let Some(command) = bare
            .strip_prefix("ExecStart=/usr/bin/")
            .or(bare.strip_prefix("$ "))
        {
            found.push(command.to_owned());
        } else {
            found.extend(line.split('`').skip(1).step_by(2).map(str::to_owned));
        }
    }
    found.retain(|command| command.starts_with("zt-agent ") && !command.contains(['|', '[', '…']));
    found
}

/// Flags of other programs that pages name: of `cargo xtask bench`.
const OTHERS_FLAGS: [&str; 5] = ["outage", "outage-rate", "parties", "peers", "quick"];

/// The long flags of a command and of all below it.
fn flags_of(command: &clap::Command) -> BTreeSet<String> {
    let own = command.get_arguments().filter_map(|argument| argument.get_long());
    let below = command.get_subcommands().flat_map(flags_of);
    own.map(str::to_owned).chain(below).collect()
}

#[test]
fn every_command_and_flag_that_is_shown_exists() {
    let flags = flags_of(&Cli::command());
    assert!(flags.contains("log-level") && !flags.contains("quick"));
    let mut seen = 0;
    let mut wrong = Vec::new();
    for name in texts() {
        let text = fs::read_to_string(root().join(&name)).unwrap();
        for command in commands(&text) {
            // The shell's part is the shell's.
            let words = command.split_whitespace().take_while(|word| *word != ">");
            if let Err(error) = Cli::try_parse_from(words) {
                // What is only named may lack what it needs, or have a word for it; what does not exist is another matter.
                let is_word =
                    |word: &str| word.len() > 1 && word.chars().all(|char| char.is_ascii_uppercase());
                let is_named = command.split_whitespace().any(is_word);
                let good = match error.kind() {
                    ErrorKind::MissingRequiredArgument
                    | ErrorKind::MissingSubcommand
                    | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => true,
                    ErrorKind::InvalidValue | ErrorKind::ValueValidation => {
                        is_named || error.to_string().contains("a value is required")
                    }
                    _ => false,
                };
                if !good {
                    wrong.push(format!("{name}: `{command}`: {error}"));
                }
            }
            seen += 1;
        }
        // Flags that are named by themselves are those of some command.
        for word in text
            .split('`')
            .skip(1)
            .step_by(2)
            .filter(|word| word.starts_with("--"))
        {
            let flag = word.trim_start_matches('-').split([' ', '=']).next().unwrap();
            let known = flags.contains(flag) || OTHERS_FLAGS.contains(&flag);
            if !known {
                wrong.push(format!("{name}: there is no flag --{flag}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen > 60, "{seen} commands");
}

#[test]
fn the_configuration_in_the_page_about_engines_loads() {
    let page = fs::read_to_string(root().join("docs/engine.md")).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let blocks: Vec<&str> = page
        .split("```yaml\n")
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap())
        .collect();
    assert!(!blocks.is_empty());
    for (number, block) in blocks.into_iter().enumerate() {
        let file = directory.path().join(format!("{number}.yaml"));
        fs::write(&file, block).unwrap();
        load(&file);
    }
}

/// The files of the Debian package are there, and so are its units.
#[test]
fn what_the_package_holds_exists() {
    let manifest = fs::read_to_string(root().join("zt-agent/Cargo.toml")).unwrap();
    let (_, package) = manifest.split_once("[package.metadata.deb]").unwrap();
    let (_, assets) = package.split_once("assets = [").unwrap();
    let (assets, units) = assets.split_once("\n]").unwrap();
    let mut seen = 0;
    for line in assets.lines().filter_map(|line| line.trim().strip_prefix("[\"")) {
        let (source, _) = line.split_once('"').unwrap();
        // What the build makes is not there yet.
        let Some(source) = source.strip_prefix("../") else {
            continue;
        };
        let found = match source.rsplit_once("/*.") {
            Some((directory, extension)) => {
                let mut entries = fs::read_dir(root().join(directory)).unwrap();
                entries.any(|entry| {
                    entry
                        .unwrap()
                        .path()
                        .extension()
                        .is_some_and(|found| found == extension)
                })
            }
            None => root().join(source).is_file(),
        };
        assert!(found, "{source}");
        seen += 1;
    }
    assert!(seen > 5, "{seen}");
    let license = package
        .lines()
        .find_map(|line| line.strip_prefix("license-file = [\"../"));
    let (license, _) = license.unwrap().split_once('"').unwrap();
    let license = fs::read_to_string(root().join(license)).unwrap();
    assert!(license.starts_with("Format: ") && license.contains("/usr/share/common-licenses/Apache-2.0"));
    for unit in ["zt-agent", "zt-engine"] {
        assert!(units.contains(&format!("unit-name = \"{unit}\"")));
        assert!(root().join(format!("deploy/{unit}.service")).is_file());
    }
    // What is a configuration file of the package is installed by it.
    for file in package
        .lines()
        .find(|line| line.starts_with("conf-files"))
        .unwrap()
        .split('"')
    {
        if let Some(name) = file.rsplit_once('/').map(|(_, name)| name) {
            assert!(assets.contains(name), "{file}");
        }
    }
}

/// What the command line says of the baseline alone.
#[test]
fn the_baseline_allows_names_and_the_api_server_and_no_credentials() {
    let run = |arguments: &[&str]| {
        let output = std::process::Command::new(zt_tests::agent::binary().unwrap())
            .args(arguments)
            .current_dir(root())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{arguments:?}: {said}");
        said
    };
    run(&["policy", "check", "policies/baseline.yaml"]);
    // Beside the others, too.
    run(&["policy", "check", "policies"]);
    let iam = "spiffe://hanzo.ai/hanzo-k8s/hanzo/iam";
    let dns = "spiffe://hanzo.ai/hanzo-k8s/kube-system/coredns";
    for (from, to, port, protocol, wanted) in [
        (iam, dns, "53", "UDP", "ALLOW"),
        (iam, "169.254.20.10", "53", "UDP", "ALLOW"),
        (iam, "host", "53", "TCP", "ALLOW"),
        (iam, "kube-apiserver", "6443", "TCP", "ALLOW"),
        (dns, "world", "53", "UDP", "ALLOW"),
        (iam, "world", "53", "UDP", "DENY"),
        (iam, "host", "8054", "TCP", "DENY"),
        (iam, "169.254.169.254", "80", "TCP", "DENY"),
        (dns, "fd00:ec2::254", "80", "TCP", "DENY"),
        ("unknown", "169.254.169.254", "80", "TCP", "DENY"),
    ] {
        let asked = [
            "evaluate",
            "--policy",
            "policies/baseline.yaml",
            "--from",
            from,
            "--to",
            to,
        ];
        let rest = ["--port", port, "--protocol", protocol, "-o", "json"];
        let said: serde_json::Value = serde_json::from_str(&run(&[&asked[..], &rest].concat())).unwrap();
        assert_eq!(said["decision"], wanted, "{from} {to} {port}");
        // The metadata service is closed by a rule, not by there being none.
        if to.contains("254") && wanted == "DENY" {
            assert_eq!(said["reason"], "deny_rule", "{to}");
        }
    }
}
