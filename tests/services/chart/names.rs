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
    let values = [
        "agent.auditSecret.name=zt-secrets",
        "agent.auditSecret.readKey=read",
        "agent.auditSecret.maintainKey=maintain",
        "engine.auditSecret.readKey=read",
        "engine.auditSecret.maintainKey=maintain",
    ];
    for text in rendered(&values)?.into_values() {
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
    assert!(seen > 12, "{seen}");
    Ok(())
}

#[test]
fn other_logins_are_other_keys_of_the_secret() -> Result<()> {
    let key = |variable: &str, key: &str| {
        format!(
            "- name: {variable}\n              valueFrom:\n                secretKeyRef: {{name: zt-secrets, key: {key}}}\n"
        )
    };
    let secret = "agent.auditSecret.name=zt-secrets";
    let [one, three] = [
        rendered(&[secret])?,
        rendered(&[
            secret,
            "agent.auditSecret.readKey=read",
            "agent.auditSecret.maintainKey=maintain",
            "engine.auditSecret.readKey=read",
            "engine.auditSecret.maintainKey=maintain",
        ])?,
    ];
    for file in ["agent.yaml", "engine.yaml"] {
        let write = key("ZT_AUDIT_DSN", "AUDIT_DATABASE_URL");
        assert!(
            one[file].contains(&write) && three[file].contains(&write),
            "{file}"
        );
        for (variable, name) in [
            ("ZT_AUDIT_READ_DSN", "read"),
            ("ZT_AUDIT_MAINTAIN_DSN", "maintain"),
        ] {
            assert!(!one[file].contains(variable), "{file}");
            assert!(three[file].contains(&key(variable, name)), "{}", three[file]);
        }
    }
    Ok(())
}

#[test]
fn what_people_need_beside_it_comes_with_the_chart() -> Result<()> {
    let without = rendered(&[])?;
    assert!(
        !without
            .values()
            .any(|text| text.contains("zt-dashboard") || text.contains("roles.sql: |"))
    );
    let files = rendered(&["metrics.dashboard.enabled=true", "databaseRoles=true"])?;
    let dashboard = &files["metrics.yaml"];
    // Where Grafana's sidecar looks for it.
    assert!(
        dashboard.contains("    grafana_dashboard: \"1\"\n"),
        "{dashboard}"
    );
    let found: serde_json::Value = serde_json::from_str(&block(dashboard, "zt.json")?)?;
    let wanted: serde_json::Value = serde_json::from_str(&read("deploy/grafana/zt.json")?)?;
    assert_eq!(found, wanted);
    let roles = block(&files["database.yaml"], "roles.sql")?;
    assert_eq!(roles.trim_end(), read("deploy/postgres/roles.sql")?.trim_end());
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
