// SPDX-License-Identifier: Apache-2.0
//! What the manifests let zt do in a cluster is enough, and no more than it needs.

use anyhow::ensure;

use super::*;

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";
const OURS: &str = "/api/v1/namespaces/zt-system/serviceaccounts";

/// The chart for identities and policies from the cluster.
const VALUES: [&str; 3] = [
    "agent.config.identity.source={kubernetes}",
    "agent.config.policySource=kubernetes",
    "engine.config.policySource=kubernetes",
];

/// Makes the service accounts, the roles and who has them. How many there were.
fn install(cluster: &Cluster) -> Result<usize> {
    cluster.create(NAMESPACES, &json!({ "metadata": { "name": "zt-system" } }))?;
    let mut made = 0;
    for manifest in manifests::rendered(&VALUES)? {
        let collection = match manifest.lines().find_map(|line| line.strip_prefix("kind: ")) {
            Some("ServiceAccount") => OURS.to_owned(),
            Some("ClusterRole") => format!("{RBAC}/clusterroles"),
            Some("ClusterRoleBinding") => format!("{RBAC}/clusterrolebindings"),
            Some("Role") => format!("{RBAC}/namespaces/zt-system/roles"),
            Some("RoleBinding") => format!("{RBAC}/namespaces/zt-system/rolebindings"),
            _ => continue,
        };
        cluster.create_yaml(&collection, &manifest)?;
        made += 1;
    }
    Ok(made)
}

/// A token of a service account, as its pod would be given it.
fn token(cluster: &Cluster, account: &str) -> Result<String> {
    let request = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {} });
    let answer = cluster.create(&format!("{OURS}/{account}/token"), &request)?;
    Ok(answer["status"]["token"].as_str().context("a token")?.to_owned())
}

#[test]
fn the_roles_of_the_manifests_are_enough_and_no_more() -> Result<()> {
    let world = World::new("apiserver-roles")?;
    let made = install(&world.cluster)?;
    ensure!(made >= 6, "two accounts, two roles, two bindings: {made}");
    let (agents, engines) = (
        token(&world.cluster, "zt-agent")?,
        token(&world.cluster, "zt-policy-engine")?,
    );
    world.put_far("server", "server")?;
    let uid = world.put_client("client")?;
    let agent = world
        .agent(&world.cluster.kubeconfig_of("agent", &agents)?)?
        .start()?;
    let engine = world.engine(&world.cluster.kubeconfig_of("engine", &engines)?)?;
    wait_status(&agent, "everything to be followed", |status| {
        status["stale"] == false
    })?;
    let mut client = world.start(&uid, "app")?;
    becomes(&mut client, world.far(OPEN), "ok")?;
    assert_eq!(connect(&mut client, world.far(MORE))?, "EPERM");
    // The engine writes what came of a policy, and changes it.
    world.condition("shop", "InForce", "True")?;
    engine
        .put("shop", &policy("shop", &[MORE.into()]).to_string())?
        .success()?;
    becomes(&mut client, world.far(MORE), "ok")?;
    becomes(&mut client, world.far(OPEN), "EPERM")?;
    world.condition("shop", "InForce", "True")?;
    engine
        .put("more", &policy("more", &[OPEN.into()]).to_string())?
        .success()?;
    becomes(&mut client, world.far(OPEN), "ok")?;
    zt_tests::http::request(engine.api(), "DELETE", "/v1/policies/more", None)?.success()?;
    becomes(&mut client, world.far(OPEN), "EPERM")?;

    // Neither may do what it has no need of.
    let change = policy("shop", &[OPEN.into()]).to_string();
    let kind = "application/merge-patch+json";
    let shop = format!("{POLICIES}/shop");
    for (who, method, path, body) in [
        (&agents, "GET", "/api/v1/secrets", ""),
        (&agents, "PATCH", shop.as_str(), change.as_str()),
        (&agents, "DELETE", "/api/v1/namespaces/shop/pods/client", ""),
        (&engines, "GET", "/api/v1/secrets", ""),
        (&engines, "GET", "/api/v1/pods", ""),
    ] {
        let answer = world.cluster.request_as(who, method, path, kind, body)?;
        assert_eq!(answer.status, 403, "{method} {path}: {}", answer.body);
    }
    assert_eq!(connect(&mut client, world.far(OPEN))?, "EPERM");
    Ok(())
}
