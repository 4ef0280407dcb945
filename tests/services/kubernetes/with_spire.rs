// SPDX-License-Identifier: Apache-2.0
//! SPIRE says who, Kubernetes says where.

use zt_tests::Kubelet;
use zt_tests::spire::Spire;

use super::*;

struct Both {
    // Before the world, in which its agent is.
    agent: Agent,
    spire: Spire,
    world: World,
}

impl Both {
    fn new(label: &str) -> Result<Self> {
        Self::with(label, Duration::from_secs(3600), json!([]), None)
    }

    /// With SVIDs that are valid for so long, `modes`, and a kubelet that SPIRE asks.
    fn with(label: &str, ttl: Duration, modes: Value, kubelet: Option<&Kubelet>) -> Result<Self> {
        let world = World::new(label)?;
        let spire = Spire::beside(ttl, kubelet.map(Kubelet::port))?;
        let path = format!("unix:path:{}", zt_tests::agent::binary()?.display());
        spire.register(&Spire::delegate(), &[&path], &["-x509SVIDTTL", "3600"])?;
        let identity = json!({
            "source": ["spire", "kubernetes"],
            "spireAdminSocket": spire.admin_socket(),
            "spireSocket": spire.socket(),
        });
        let agent = world
            .agent()?
            .config("identity", identity)
            .config("modes", modes)
            .start()?;
        Ok(Self { agent, spire, world })
    }
}

#[test]
fn a_pod_has_its_name_by_its_uid_before_anybody_runs_in_it() -> Result<()> {
    let both = Both::new("kube-spire")?;
    let world = &both.world;
    world.put_far("server", "server")?;
    let uid = world.put_client("client")?;
    let cgroup = world.pod_cgroup(&uid)?;
    let entry = both
        .spire
        .register(CLIENT, &[&format!("k8s:pod-uid:{uid}")], &[])?;
    wait_cgroup(&both.agent, &cgroup)?;
    let known = wait_pod(&both.agent, "client", Some(CLIENT))?;
    assert_eq!(known["addresses"], json!([world.client.addresses()[0]]));
    assert_eq!(cgroup.processes()?, [0_u32; 0]);
    let mut client = world.start(&uid, "app")?;
    assert_eq!(world.connect(&mut client)?, "ok");
    // What SPIRE takes back is taken back.
    both.spire.unregister(&entry)?;
    world.connects(&mut client, "EPERM")?;
    wait_pod(&both.agent, "client", None)?;
    Ok(())
}

#[test]
fn what_the_two_disagree_about_is_nobody() -> Result<()> {
    let both = Both::new("kube-quarrel")?;
    let world = &both.world;
    world.put_far("server", "server")?;
    let uid = world.put_client("client")?;
    let cgroup = world.pod_cgroup(&uid)?;
    let mut client = world.start(&uid, "app")?;
    let other = "spiffe://hanzo.ai/hanzo-k8s/shop/other";
    both.spire
        .register(other, &[&format!("k8s:pod-uid:{uid}")], &[])?;
    let expected =
        json!([{ "cgroup": cgroup.relative(), "file": null, "kubernetes": CLIENT, "spire": other }]);
    let mut last = Value::Null;
    let disputed = wait_for("a dispute", LATER, || {
        last = both.agent.get("/v1/status")?["disputes"].clone();
        Ok((last == expected).then_some(()))
    });
    disputed.with_context(|| format!("last: {last}"))?;
    let unnamed = both.agent.get("/v1/status")?["unnamed"].clone();
    assert_eq!(unnamed[0]["pod"], "shop/client", "{unnamed}");
    assert_eq!(unnamed[0]["why"], "disputed", "{unnamed}");
    assert_eq!(world.connect(&mut client)?, "EPERM");
    both.agent
        .wait_audit("decision=DENY&source=unknown&port=8000", LATER, |records| {
            !records.is_empty()
        })?;
    assert!(
        both.agent
            .metrics()?
            .sum("zt_node_events_total", &[("event", "identity_disputed")])
            >= 1
    );
    Ok(())
}

#[test]
fn who_is_to_be_observed_is_left_alone_before_it_has_a_name_and_after() -> Result<()> {
    let modes = json!([{ "spiffe": CLIENT, "mode": "observe" }]);
    let mut both = Both::with("kube-alone", Duration::from_secs(20), modes, None)?;
    let world = &both.world;
    world.put_far("server", "other")?;
    // Told of before its cgroup is there, and after.
    let first = world.put_client("client")?;
    let told = |least: u64| {
        wait_status(&both.agent, "the pods to be told of", |status| {
            status["pods_here"].as_u64() >= Some(least)
        })
    };
    told(1)?;
    let mut client = world.start(&first, "app")?;
    world.connects(&mut client, "ok")?;
    let second = "f0000000-0000-4000-8000-000000000007";
    let mut late = world.start(second, "app")?;
    world.connects(&mut late, "EPERM")?;
    let address = world.client.addresses()[0].to_string();
    let mut of = pod("late", "client", NODE, &address);
    of["metadata"]["uid"] = json!(second);
    world.api.put(PODS, of);
    world.connects(&mut late, "ok")?;
    // Who is to be enforced upon is not: nobody may do so much.
    let strict = uid(&world.api.put(PODS, pod("strict", "strict", NODE, "10.9.9.9")))?;
    told(3)?;
    let mut strict = world.start(&strict, "app")?;
    assert_eq!(world.connect(&mut strict)?, "EPERM");

    // It has a name, and then no more: its SVID ends, as nobody is there who would renew it.
    both.spire
        .register(CLIENT, &[&format!("k8s:pod-uid:{first}")], &[])?;
    wait_pod(&both.agent, "client", Some(CLIENT))?;
    assert_eq!(world.connect(&mut client)?, "ok");
    both.spire.stop_server()?;
    wait_pod(&both.agent, "client", None)?;
    for _ in 0..10 {
        assert_eq!(both.world.connect(&mut client)?, "ok");
    }
    both.agent
        .wait_audit("decision=DENY&source=unknown&port=8000", LATER, |records| {
            records.iter().any(|record| record["enforced"] == false)
        })?;
    Ok(())
}

#[test]
fn a_process_in_a_container_is_attested_by_what_the_kubelet_says_of_it() -> Result<()> {
    let kubelet = Kubelet::start()?;
    let both = Both::with(
        "kube-attestor",
        Duration::from_secs(3600),
        json!([]),
        Some(&kubelet),
    )?;
    let world = &both.world;
    world.put_far("server", "server")?;
    let uid = world.put_client("client")?;
    let [container, other] = ["c", "d"].map(|digit| digit.repeat(64));
    let mut of = world.api.get(PODS, "shop", "client").context("the pod")?;
    of["status"]["containerStatuses"] = json!([{
        "name": "app",
        "image": "app:1",
        "imageID": "app:1",
        "containerID": format!("containerd://{container}"),
        "ready": true,
        "restartCount": 0,
        "state": { "running": {} },
    }]);
    kubelet.put(of);
    // Kubernetes told the agent nothing of containers: only the process can be known by one.
    let selectors = ["k8s:ns:shop", "k8s:sa:client", "k8s:container-name:app"];
    both.spire.register(CLIENT, &selectors, &[])?;
    let mut client = world.start(&uid, &container)?;
    let known = wait_pod(&both.agent, "client", Some(CLIENT))?;
    let cgroup = world.pod_cgroup(&uid)?.child(&container)?;
    assert_eq!(known["cgroup"], json!(cgroup.relative()));
    assert_eq!(known["addresses"], json!([world.client.addresses()[0]]));
    world.connects(&mut client, "ok")?;
    // One that the kubelet knows nothing of is nobody, in the same pod.
    let mut other = world.start(&uid, &other)?;
    assert_eq!(world.connect(&mut other)?, "EPERM");
    // The last process ends, and with it the name.
    drop(client);
    wait_pod(&both.agent, "client", None)?;
    let mut next = world.start(&uid, &container)?;
    world.connects(&mut next, "ok")
}

#[test]
fn a_static_pod_is_named_by_the_hash_that_its_kubelet_knows_it_by() -> Result<()> {
    const ETCD: &str = "spiffe://hanzo.ai/hanzo-k8s/kube-system/_static.etcd";
    const PROXY: &str = "spiffe://hanzo.ai/hanzo-k8s/kube-system/_static.proxy";
    let kubelet = Kubelet::start()?;
    let both = Both::with(
        "kube-static",
        Duration::from_secs(3600),
        json!([]),
        Some(&kubelet),
    )?;
    let world = &both.world;
    let container = "e".repeat(64);
    // The API has a mirror of each, with a uid of its own; the kubelet and the cgroup have the hash of its file.
    let put = |name: &str, hash: &str| {
        let address = world.client.addresses()[0].to_string();
        let mut mirror = pod(&format!("{name}-{NODE}"), "", NODE, &address);
        mirror["metadata"]["namespace"] = json!("kube-system");
        mirror["metadata"]["labels"] = json!({ "component": name, "tier": "control-plane" });
        mirror["spec"] = json!({ "nodeName": NODE, "hostNetwork": true });
        let noted = json!({ "kubernetes.io/config.source": "file", "kubernetes.io/config.hash": hash });
        let mut own = mirror.clone();
        own["metadata"]["annotations"] = noted.clone();
        own["metadata"]["uid"] = json!(hash);
        own["status"]["containerStatuses"] = json!([{
            "name": name,
            "image": "static:1",
            "imageID": "static:1",
            "containerID": format!("containerd://{container}"),
            "ready": true,
            "restartCount": 0,
            "state": { "running": {} },
        }]);
        if name == "etcd" {
            kubelet.put(own);
        }
        mirror["metadata"]["annotations"] = noted;
        mirror["metadata"]["annotations"]["kubernetes.io/config.mirror"] = json!(hash);
        uid(&world.api.put(PODS, mirror))
    };
    let [etcd, proxy] = [
        "d1f2a3b4c5d6e7f80910111213141516",
        "00112233445566778899aabbccddeeff",
    ];
    // As `deploy/spire/static-pods.yaml` has it: by labels, which only the attestor of a process finds out.
    let labels = ["k8s:ns:kube-system", "k8s:sa:", "k8s:pod-label:component:etcd"];
    both.spire.register(ETCD, &labels, &[])?;
    let mirror = put("etcd", etcd)?;
    assert_ne!(mirror, etcd);
    let _process = world.start(etcd, &container)?;
    let named = |name: &str, wanted: &str| {
        let pod = format!("kube-system/{name}-{NODE}");
        let mut last = Value::Null;
        let done = wait_for(&format!("{pod} to be {wanted}"), LATER, || {
            last = both.agent.get("/v1/identities")?;
            let all = last["identities"].as_array().context("a list")?;
            let found = all.iter().find(|found| found["pod"] == pod.as_str());
            Ok(found.filter(|found| found["spiffe_id"] == wanted).cloned())
        });
        done.with_context(|| format!("last: {last}"))
    };
    named("etcd", ETCD)?;
    // By its name before anybody runs in it, from what Kubernetes says alone.
    let name = format!("k8s:pod-name:proxy-{NODE}");
    both.spire
        .register(PROXY, &["k8s:ns:kube-system", "k8s:sa:", &name], &[])?;
    put("proxy", proxy)?;
    let cgroup = world.pod_cgroup(proxy)?;
    let found = named("proxy", PROXY)?;
    assert_eq!(found["cgroup"], json!(cgroup.relative()));
    assert_eq!(cgroup.processes()?, [0_u32; 0]);
    // An entry for the mirror's uid, which a ClusterSPIFFEID makes, is of no use to anybody.
    let third = "ffeeddccbbaa99887766554433221100";
    let of_third = put("third", third)?;
    both.spire.register(
        "spiffe://hanzo.ai/hanzo-k8s/kube-system/_static.third",
        &[&format!("k8s:pod-uid:{of_third}")],
        &[],
    )?;
    let _third = world.pod_cgroup(third)?;
    wait_for("the third to be told of as waiting", LATER, || {
        let unnamed = both.agent.get("/v1/status")?["unnamed"].clone();
        let pod = format!("kube-system/third-{NODE}");
        let waits = unnamed.as_array().is_some_and(|all| {
            all.iter()
                .any(|one| one["pod"] == pod.as_str() && one["why"] == "waiting_for_spire")
        });
        Ok(waits.then_some(()))
    })?;
    Ok(())
}
