// SPDX-License-Identifier: Apache-2.0
//! Policies that a real API server keeps.

use zt_tests::Engine;

use super::*;

impl World {
    /// An engine with this kubeconfig.
    pub(super) fn engine(&self, kubeconfig: &Path) -> Result<Engine> {
        let mut engine = Engine::new(&self.sandbox, "engine", self.sandbox.directory())?
            .config("policySource", json!("kubernetes"))
            .config("kubernetes", json!({ "kubeconfig": kubeconfig }));
        engine.start()?;
        Ok(engine)
    }

    /// Waits for a condition of a policy as it is now, and returns its reason and message.
    pub(super) fn condition(&self, name: &str, kind: &str, status: &str) -> Result<(String, String)> {
        let mut last = Value::Null;
        let done = wait_for(&format!("{name} to be {kind}={status}"), LATER, || {
            last = self.cluster.get(&format!("{POLICIES}/{name}"))?;
            let conditions = last["status"]["conditions"].as_array().into_iter().flatten();
            let mut found = conditions.filter(|condition| {
                condition["type"] == kind
                    && condition["status"] == status
                    && condition["observedGeneration"] == last["metadata"]["generation"]
            });
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            Ok(found
                .next()
                .map(|condition| (text(&condition["reason"]), text(&condition["message"]))))
        });
        done.with_context(|| format!("last: {last}"))
    }
}

#[test]
fn policies_are_taken_refused_and_changed_where_the_cluster_keeps_them() -> Result<()> {
    let world = World::new("apiserver-policies")?;
    world.put_far("server", "server")?;
    let uid = world.put_client("client")?;
    let kubeconfig = world.cluster.kubeconfig()?;
    let agent = world.agent(&kubeconfig)?.start()?;
    let engine = world.engine(&kubeconfig)?;
    let mut client = world.start(&uid, "app")?;
    becomes(&mut client, world.far(OPEN), "ok")?;
    assert_eq!(connect(&mut client, world.far(MORE))?, "EPERM");
    // The one that the repository has beside it.
    let core = repository("policies/hanzo-core-policy.yaml")?;
    let core = world.cluster.create_yaml(POLICIES, &core)?;
    let core = core["metadata"]["name"].as_str().context("a name")?;
    for name in ["shop", core] {
        world.condition(name, "Accepted", "True")?;
        world.condition(name, "InForce", "True")?;
    }

    // One that the API server takes, and zt cannot: the reason is in its status, and the last good one stays.
    world.cluster.create(POLICIES, &policy("bad", &[99_999]))?;
    let (reason, message) = world.condition("bad", "Accepted", "False")?;
    assert_eq!(reason, "Invalid");
    assert!(message.contains("99999 is not a port"), "{message}");
    let wider = json!({ "spec": policy("shop", &[OPEN.into(), MORE.into()])["spec"] });
    world.cluster.merge(&format!("{POLICIES}/shop"), &wider)?;
    let (reason, message) = world.condition("shop", "InForce", "False")?;
    assert!(
        reason == "OthersInvalid" && message.contains("bad"),
        "{reason}: {message}"
    );
    assert_eq!(connect(&mut client, world.far(OPEN))?, "ok");
    assert_eq!(connect(&mut client, world.far(MORE))?, "EPERM");
    world.cluster.delete(&format!("{POLICIES}/bad"), 0)?;
    becomes(&mut client, world.far(MORE), "ok")?;
    world.condition("shop", "InForce", "True")?;
    // One that already the API server refuses, by what is in `deploy/crds`.
    let mut odd = policy("odd", &[80]);
    odd["spec"]["defaultAction"] = json!("MAYBE");
    let refused = world
        .cluster
        .request("POST", POLICIES, "application/json", &odd.to_string())?;
    assert_eq!(refused.status, 422, "{}", refused.body);

    // A change over zt's API is a change of the resource.
    let shop = || world.cluster.get(&format!("{POLICIES}/shop"));
    let etag = shop()?["status"]["digest"].clone();
    let etag = etag.as_str().context("a digest")?;
    engine
        .put("shop", &policy("shop", &[OPEN.into()]).to_string())?
        .success()?;
    assert_eq!(shop()?["spec"]["rules"][0]["to"][0]["ports"], json!([OPEN]));
    // It says by which one it was written.
    let trail = engine.get("/v1/audit?type=policy_change&limit=1")?;
    let change = &trail["records"][0]["id"];
    assert!(change.is_string(), "{trail}");
    assert_eq!(&shop()?["metadata"]["annotations"]["zt.hanzo.ai/change"], change);
    becomes(&mut client, world.far(MORE), "EPERM")?;
    // Somebody who has seen the former one.
    let stale = put_if(&engine, "shop", etag, &policy("shop", &[MORE.into()]))?;
    assert_eq!(stale, 412);
    assert_eq!(shop()?["spec"]["rules"][0]["to"][0]["ports"], json!([OPEN]));
    world.condition("shop", "InForce", "True")?;
    let current = shop()?["status"]["digest"].clone();
    let current = current.as_str().context("a digest")?;
    let both = policy("shop", &[OPEN.into(), MORE.into()]);
    assert_eq!(put_if(&engine, "shop", current, &both)?, 200);
    becomes(&mut client, world.far(MORE), "ok")?;
    engine
        .put("more", &policy("more", &[80]).to_string())?
        .success()?;
    assert!(world.cluster.has(&format!("{POLICIES}/more"))?);
    for name in ["more", "shop"] {
        zt_tests::http::request(engine.api(), "DELETE", &format!("/v1/policies/{name}"), None)?.success()?;
        assert!(!world.cluster.has(&format!("{POLICIES}/{name}"))?);
    }
    becomes(&mut client, world.far(OPEN), "EPERM")?;
    becomes(&mut client, world.far(MORE), "EPERM")?;
    assert_eq!(agent.get("/v1/policies")?["errors"], json!([]));
    Ok(())
}

/// `PUT`s a policy for whoever has seen this version, and returns the status.
fn put_if(engine: &Engine, name: &str, etag: &str, policy: &Value) -> Result<u16> {
    let output = std::process::Command::new("curl")
        .args(["--silent", "--show-error", "--max-time", "60", "--noproxy", "*"])
        .args(["--request", "PUT", "--output", "/dev/null"])
        .args(["--write-out", "%{http_code}"])
        .args(["--header", &format!("If-Match: \"{etag}\"")])
        .args(["--header", "Content-Type: application/json"])
        .args(["--data-binary", &policy.to_string()])
        .arg(format!("{}/v1/policies/{name}", engine.url()))
        .output()
        .context("cannot run curl")?;
    Ok(String::from_utf8(output.stdout)?.parse()?)
}
