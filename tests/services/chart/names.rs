// SPDX-License-Identifier: Apache-2.0
//! What manifests name exists: settings, variables, flags, metrics, policies.

use clap::Parser as _;
use zt_agent::cli::Cli;
use zt_agent::config::SETTINGS;
use zt_agent::policy::{self, Document};

use super::*;

#[test]
fn the_configurations_load() -> Result<()> {
    let files = rendered(&[])?;
    let agent = load(&block(&files["agent.yaml"], "agent.yaml")?)?;
    assert!(agent.identity.has(IdentitySource::Spire) && agent.api.tls.spire);
    assert_eq!(agent.policy_path, Path::new("/etc/zt/policies"));
    assert_eq!(agent.audit.dsn, "sqlite:///var/lib/zt/audit.db");
    let engine = load(&block(&files["engine.yaml"], "engine.yaml")?)?;
    assert_eq!((engine.api.listen.port(), engine.api.health.port()), (8054, 8055));
    // The agents may follow the engines, and do no more there.
    let id = zt_agent::spiffe_id::SpiffeId::parse("spiffe://hanzo.ai/hanzo-k8s/zt-system/zt-agent")?;
    let rights = zt_agent::caller::Rights::of(&engine.api.callers, &id);
    assert!(rights.allow(zt_agent::caller::Act::Follow) && !rights.allow(zt_agent::caller::Act::Read));
    let image = load(&read("deploy/image/agent.yaml")?)?;
    assert_eq!(
        (image.api.listen, image.api.health),
        (engine.api.listen, engine.api.health)
    );
    Ok(())
}

#[test]
fn variables_and_arguments_exist() -> Result<()> {
    // Those of the command line itself.
    const OTHERS: [&str; 3] = ["ZT_API", "ZT_CONFIG", "ZT_LOG"];
    let mut seen = 0;
    for text in rendered(&["agent.auditSecret.name=zt-secrets"])?.into_values() {
        for name in text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("- name: ZT_"))
        {
            let name = format!("ZT_{name}");
            let known =
                SETTINGS.iter().any(|setting| setting.variable == name) || OTHERS.contains(&name.as_str());
            assert!(known, "there is no variable {name}");
            seen += 1;
        }
        // Of our own image; kubectl has other arguments.
        let arguments = text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("args: ["));
        for arguments in arguments.filter(|line| !line.starts_with("rollout")) {
            let words = arguments.trim_end_matches(']').split(',').map(str::trim);
            Cli::try_parse_from(["zt-agent"].into_iter().chain(words))?;
            seen += 1;
        }
    }
    assert!(seen > 8, "{seen}");
    Ok(())
}

#[test]
fn the_policies_are_taken() -> Result<()> {
    let files = rendered(&["trustDomain=example.org", "cluster=east"])?;
    let text = block(&files["policies.yaml"], "baseline.yaml")?;
    assert!(text.contains("spiffe://example.org/east/kube-system/coredns"));
    let config = load("trustDomain: example.org\n")?;
    let document = Document {
        file: "baseline.yaml".to_owned(),
        text,
    };
    policy::parse(&[document], &config.policy_settings())
        .map_err(|problems| anyhow::anyhow!("{problems:?}"))?;
    Ok(())
}

#[test]
fn the_rules_and_jobs_are_those_of_the_alerts() -> Result<()> {
    let files = rendered(&[
        "metrics.serviceMonitor.enabled=true",
        "metrics.rules.enabled=true",
    ])?;
    let text = &files["metrics.yaml"];
    let alerts = read("deploy/prometheus/zt.rules.yaml")?;
    for line in alerts
        .lines()
        .filter(|line| line.trim_start().starts_with("- alert:"))
    {
        assert!(text.contains(line.trim()), "{line}");
    }
    for job in ["zt-agent", "zt-engine"] {
        assert!(alerts.contains(&format!("job=\"{job}\"")));
        assert!(
            text.contains(&format!("app.kubernetes.io/component: {job}\n")),
            "{job}"
        );
    }
    Ok(())
}
