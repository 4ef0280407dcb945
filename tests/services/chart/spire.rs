// SPDX-License-Identifier: Apache-2.0
//! SPIRE's settings in `deploy/spire/`, before SPIRE itself.

use std::process::Command;

use super::*;

fn settings(manifest: &str, key: &str) -> Result<String> {
    block(&read(manifest)?, key)
}

/// What SPIRE says of these settings: whether they are valid, and its words.
fn valid(program: &str, text: &str) -> Result<(bool, String)> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("settings.conf");
    fs::write(&file, text)?;
    let programs =
        std::env::var_os("ZT_SPIRE").context("ZT_SPIRE is not set: run `cargo xtask test services`")?;
    let output = Command::new(Path::new(&programs).join(program))
        .arg("validate")
        .arg("-expandEnv")
        .arg("-config")
        .arg(&file)
        .env("DATASTORE", "dbname=spire host=db.example.org user=spire")
        .output()?;
    let said = [output.stdout, output.stderr].concat();
    Ok((
        output.status.success(),
        String::from_utf8_lossy(&said).into_owned(),
    ))
}

#[test]
fn spire_takes_the_settings() -> Result<()> {
    let parts = [
        (
            "spire-server",
            settings("deploy/spire/server.yaml", "server.conf")?,
        ),
        ("spire-agent", settings("deploy/spire/agent.yaml", "agent.conf")?),
    ];
    for (program, text) in parts {
        let (taken, said) = valid(program, &text)?;
        assert!(taken, "{program}: {said}");
        // It would not take everything.
        let (taken, said) = valid(program, &text.replace("trust_domain", "trust_domian"))?;
        assert!(!taken, "{program}: {said}");
    }
    // What is there to be switched on, for kubelets whose certificates the cluster's authority did not issue.
    let agent = settings("deploy/spire/agent.yaml", "agent.conf")?;
    for line in ["kubelet_ca_path = \"", "skip_kubelet_verification = true"] {
        let off = format!("# {line}");
        assert!(agent.contains(&off), "{line}");
        let (taken, said) = valid("spire-agent", &agent.replace(&off, line))?;
        assert!(taken, "{line}: {said}");
    }
    Ok(())
}

/// The values of a key in one of the settings of SPIRE, or of its controller manager.
fn values<'a>(text: &'a str, key: &str) -> Vec<&'a str> {
    let lines = text.lines().filter_map(|line| line.split_once(['=', ':']));
    lines
        .filter(|(name, _)| name.trim() == key)
        .map(|(_, value)| value.trim().trim_matches('"'))
        .collect()
}

#[test]
fn the_three_parts_of_spire_speak_of_one_cluster() -> Result<()> {
    let server = settings("deploy/spire/server.yaml", "server.conf")?;
    let agent = settings("deploy/spire/agent.yaml", "agent.conf")?;
    let manager = settings("deploy/spire/controller-manager.yaml", "config.yaml")?;
    for (text, key) in [
        (&server, "trust_domain"),
        (&agent, "trust_domain"),
        (&manager, "trustDomain"),
    ] {
        assert_eq!(values(text, key), ["hanzo.ai"], "{key}");
    }
    // The node's name in SPIRE, which entries are made for, is made of it.
    let cluster = values(&manager, "clusterName");
    assert_eq!(cluster, ["hanzo-k8s"]);
    assert!(agent.contains(&format!("{{ cluster = \"{}\" }}", cluster[0])));
    assert!(server.contains(&format!("\"{}\" = {{", cluster[0])));
    assert_eq!(
        values(&manager, "spireServerSocketPath"),
        values(&server, "socket_path")
    );
    Ok(())
}

#[test]
fn certificates_live_as_the_specification_says() -> Result<()> {
    let has = |text: &str, key: &str, value: &str| {
        let found = text.lines().filter_map(|line| line.split_once('='));
        found
            .map(|(name, value)| (name.trim(), value.trim().trim_matches('"')))
            .any(|found| found == (key, value))
    };
    let server = settings("deploy/spire/server.yaml", "server.conf")?;
    for (key, value) in [
        ("ca_ttl", "24h"),
        ("default_x509_svid_ttl", "1h"),
        ("ca_key_type", "ec-p256"),
    ] {
        assert!(has(&server, key, value), "{key} {value}");
    }
    assert!(read("deploy/spire/server.yaml")?.contains("replicas: 2"));
    let agent = settings("deploy/spire/agent.yaml", "agent.conf")?;
    assert!(has(&agent, "workload_x509_svid_key_type", "ec-p256"));
    // The sockets and the delegate are those that the chart's agent uses.
    let ours = load(&block(&read("deploy/manifests/agent.yaml")?, "agent.yaml")?)?;
    for (key, path) in [
        ("socket_path", &ours.identity.spire_socket),
        ("admin_socket_path", &ours.identity.spire_admin_socket),
    ] {
        assert!(has(&agent, key, &path.display().to_string()), "{key}");
    }
    let delegate = "spiffe://hanzo.ai/hanzo-k8s/zt-system/zt-agent";
    assert!(agent.contains(&format!("authorized_delegates = [\"{delegate}\"]")));
    assert!(
        read("deploy/manifests/spire-ids.yaml")?.contains(&format!("spiffeIDTemplate: \"{delegate}\"\n"))
    );
    Ok(())
}

/// Where the SPIRE agents are not root.
#[test]
fn the_agents_are_in_the_group_that_the_admin_socket_is_open_to() -> Result<()> {
    let groups = |values: &[&str]| -> Result<Option<String>> {
        let text = rendered(values)?["agent.yaml"].clone();
        let line = text
            .lines()
            .find_map(|line| line.trim().strip_prefix("securityContext: {"));
        Ok(line.map(|line| line.trim_end_matches('}').to_owned()))
    };
    assert_eq!(groups(&[])?, None);
    let of = |group: &str| Some(format!("supplementalGroups: [{group}]"));
    for group in ["998", "1000000"] {
        assert_eq!(groups(&[&format!("spire.adminGroup={group}")])?, of(group));
    }
    // Whoever asks no SPIRE needs none of its groups.
    let without = [
        "spire.adminGroup=998",
        "agent.config.identity.source={kubernetes}",
        "agent.config.api.tls=null",
    ];
    assert_eq!(groups(&without)?, None);
    // A pod knows no names of groups.
    for wrong in ["spire.adminGroup=spire", "spire.adminGroup=-1"] {
        let output = helm(&["template", "deploy/helm/zt", wrong])?;
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && said.contains("schema"),
            "{wrong}: {said}"
        );
    }
    Ok(())
}
