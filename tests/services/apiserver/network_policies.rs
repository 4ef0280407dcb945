// SPDX-License-Identifier: Apache-2.0
//! `policy network-policy`: what it prints is taken by a real API server, which knows what names, labels, ports and blocks may be,
//! and what that server has made of it is what `--check` wants to see.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Command, Output};

use anyhow::ensure;
use zt_tests::agent::binary;
use zt_tests::{Policy, TCP, UDP};

use super::*;

const GROUP: &str = "/apis/networking.k8s.io/v1";
/// A field that is not known is an error.
const STRICT: &str = "?fieldValidation=Strict";
/// Where entities are, and one more service.
const PLACES: [&str; 6] = [
    "--entity",
    "kube-apiserver=192.0.2.250/32",
    "--entity",
    "host=192.0.2.1/32",
    "--workload",
    "spiffe://hanzo.ai/hanzo-k8s/data/alone",
];

fn id(namespace: &str, account: &str) -> String {
    format!("spiffe://hanzo.ai/hanzo-k8s/{namespace}/{account}")
}

/// One of each kind of thing that an object can say.
fn everything() -> Policy {
    let (web, db, jobs) = (id("shop", "web"), id("data", "db"), id("shop", "jobs.v2"));
    Policy::new("mirrored")
        .allow(&web, &db, TCP, "5432 8000-8100")
        .allow(&jobs, &db, UDP, "9000-65535")
        .allow(&id("ops", "*"), &web, TCP, "9090")
        .allow("*", &jobs, TCP, "")
        .deny(&db, &jobs, TCP, "22")
        .allow("world", &web, TCP, "443")
        .allow(&web, "10.0.0.0/8", TCP, "443")
        .deny(&web, "10.1.0.0/16", TCP, "443")
        .allow(&web, "fd00::/8", UDP, "")
        .allow(&db, "kube-apiserver", TCP, "6443")
}

/// A cluster, and a directory with a policy beside what the cluster has.
struct Mirrored {
    cluster: Cluster,
    policies: PathBuf,
    config: PathBuf,
    have: PathBuf,
    _sandbox: Sandbox,
}

impl Mirrored {
    fn new() -> Result<Self> {
        let sandbox = Sandbox::new("apiserver-network-policies")?;
        let cluster = Cluster::start(&sandbox)?;
        for namespace in ["shop", "data"] {
            cluster.create(NAMESPACES, &json!({ "metadata": { "name": namespace } }))?;
        }
        let (policies, config) = (
            sandbox.directory().join("mirrored"),
            sandbox.directory().join("mirror.yaml"),
        );
        fs::create_dir(&policies)?;
        fs::write(policies.join("mirrored.yaml"), everything().text())?;
        fs::write(&config, "cluster: hanzo-k8s\ntrustDomain: hanzo.ai\n")?;
        Ok(Self {
            cluster,
            policies,
            config,
            have: sandbox.directory().join("have.json"),
            _sandbox: sandbox,
        })
    }

    fn run(&self, more: &[&str]) -> Result<Output> {
        let mut command = Command::new(binary()?);
        command
            .args(["policy", "network-policy"])
            .arg(&self.policies)
            .arg("--config")
            .arg(&self.config)
            .args(PLACES)
            .args(more)
            .env_clear();
        Ok(command.output()?)
    }

    /// What it prints.
    fn printed(&self, more: &[&str]) -> Result<String> {
        let output = self.run(more)?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{errors}");
        Ok(String::from_utf8(output.stdout)?)
    }

    /// What `--check` says of what the cluster has now: the exit code, and what it prints.
    fn checked(&self, more: &[&str]) -> Result<(Option<i32>, String)> {
        let have = self.cluster.get(&format!("{GROUP}/networkpolicies"))?;
        fs::write(&self.have, have.to_string())?;
        let check = ["--check", self.have.to_str().context("plain letters")?];
        let output = self.run(&[&check, more].concat())?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() != Some(2), "{errors}");
        Ok((output.status.code(), String::from_utf8(output.stdout)?))
    }

    /// The differences that `--check` tells, each as `NAMESPACE/NAME DIFFERENCE`; none are exit code 0.
    fn differences(&self) -> Result<Vec<String>> {
        let (code, said) = self.checked(&["-o", "json"])?;
        let said: Value = serde_json::from_str(&said)?;
        let differences = said["differences"].as_array().context("differences")?;
        ensure!(
            code == Some(i32::from(!differences.is_empty())),
            "{code:?}: {said}"
        );
        let text = |one: &Value, field: &str| one[field].as_str().unwrap_or_default().to_owned();
        let told = |one: &Value| {
            let (namespace, name) = (text(one, "namespace"), text(one, "name"));
            format!("{namespace}/{name} {}", text(one, "difference"))
        };
        Ok(differences.iter().map(told).collect())
    }

    /// Makes an object, and returns it as the API server has it.
    fn create(&self, object: &Value) -> Result<Value> {
        self.cluster
            .create(&format!("{}{STRICT}", collection(object)?), object)
    }

    /// The server takes no such object with slips in it: it looks at more than their form.
    fn looks_at_what_it_takes(&self, web: &Value) -> Result<()> {
        let text = web.to_string();
        for (right, wrong) in [
            ("\"zt-web\"", "\"zt_web\""),
            ("\"10.0.0.0/8\"", "\"10.0.0.0/33\""),
            ("\"port\":9090", "\"port\":90900"),
        ] {
            ensure!(text.contains(right), "{right}: {text}");
            let slip: Value = serde_json::from_str(&text.replace(right, wrong))?;
            let (place, body) = (collection(&slip)?, slip.to_string());
            let answer = self.cluster.request("POST", &place, "application/json", &body)?;
            ensure!(answer.status == 422, "{wrong}: {}", answer.body);
        }
        Ok(())
    }
}

/// Where objects of its namespace are.
fn collection(object: &Value) -> Result<String> {
    let namespace = object["metadata"]["namespace"].as_str().context("a namespace")?;
    Ok(format!("{GROUP}/namespaces/{namespace}/networkpolicies"))
}

/// Where it is.
fn path(object: &Value) -> Result<String> {
    let name = object["metadata"]["name"].as_str().context("a name")?;
    Ok(format!("{}/{name}", collection(object)?))
}

#[test]
fn objects_that_are_printed_are_taken_and_whatever_becomes_of_them_is_told() -> Result<()> {
    let mirrored = Mirrored::new()?;
    let list: Value = serde_json::from_str(&mirrored.printed(&["-o", "json"])?)?;
    let objects = list["items"].as_array().context("items")?;
    let is = |name: &str| {
        let found = objects
            .iter()
            .find(|object| object["metadata"]["name"] == name)
            .cloned();
        found.with_context(|| format!("{name} in {list}"))
    };
    let (web, db, alone) = (is("zt-web")?, is("zt-db")?, is("zt-alone")?);
    // The one whose service account is no name of an object.
    let names: BTreeSet<&str> = objects
        .iter()
        .filter_map(|object| object["metadata"]["name"].as_str())
        .collect();
    assert_eq!((objects.len(), names.len()), (4, 4), "{names:?}");
    let said = list.to_string();
    for part in [
        "endPort",
        "except",
        "\"fd00::/8\"",
        "\"UDP\"",
        "jobs.v2",
        "192.0.2.250/32",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }

    // As from `kubectl apply`, of what it prints for that.
    let documents = manifests::documents(&mirrored.printed(&[])?);
    assert_eq!(documents.len(), objects.len());
    for (document, object) in documents.iter().zip(objects) {
        let place = format!("{}{STRICT}", collection(object)?);
        let answer = mirrored
            .cluster
            .request("POST", &place, "application/yaml", document)?;
        ensure!(answer.status == 201, "{}\n{document}", answer.body);
        assert_eq!(
            answer.json()?["metadata"]["name"],
            object["metadata"]["name"],
            "{document}"
        );
    }
    assert_eq!(
        mirrored.checked(&[])?,
        (
            Some(0),
            format!("all {} objects are as they should be\n", objects.len())
        )
    );
    assert_eq!(mirrored.differences()?, [""; 0]);

    mirrored.looks_at_what_it_takes(&web)?;

    // Altered, taken away, added, and one of somebody else.
    mirrored
        .cluster
        .merge(&path(&db)?, &json!({ "spec": { "ingress": [] } }))?;
    assert_eq!(mirrored.differences()?, ["data/zt-db different"]);
    mirrored.cluster.delete(&path(&web)?, 0)?;
    assert_eq!(
        mirrored.differences()?,
        ["data/zt-db different", "shop/zt-web missing"]
    );
    let mut gone = alone.clone();
    gone["metadata"]["name"] = json!("zt-gone");
    mirrored.create(&gone)?;
    assert_eq!(
        mirrored.differences()?,
        [
            "data/zt-db different",
            "data/zt-gone extra",
            "shop/zt-web missing"
        ]
    );
    let of_others = |name: &str, ingress: Value| {
        json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": { "name": name, "namespace": "data" },
            "spec": { "podSelector": {}, "policyTypes": ["Ingress"], "ingress": ingress },
        })
    };
    // One that only takes away is nobody's concern.
    mirrored.create(&of_others("nothing", json!([])))?;
    mirrored.create(&of_others("all", json!([{}])))?;
    assert_eq!(
        mirrored.differences()?,
        [
            "data/all widens",
            "data/zt-db different",
            "data/zt-gone extra",
            "shop/zt-web missing"
        ]
    );

    // Mended, as from another `kubectl apply --prune`.
    mirrored.cluster.delete(&path(&gone)?, 0)?;
    mirrored.cluster.delete(&path(&db)?, 0)?;
    for object in [&db, &web] {
        mirrored.create(object)?;
    }
    assert_eq!(mirrored.differences()?, ["data/all widens"]);
    let (code, said) = mirrored.checked(&["--allow-others"])?;
    assert!(code == Some(0) && said.contains("widens"), "{code:?}: {said}");
    Ok(())
}
