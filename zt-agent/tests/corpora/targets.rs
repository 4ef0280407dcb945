// SPDX-License-Identifier: Apache-2.0
//! What is given arbitrary bytes: by the tests here, which replay the corpora, and by libFuzzer, for which `fuzz/` takes this file as it
//! is. Each says whether the bytes were accepted, and panics where something is wrong with what came of them.

use std::collections::{BTreeSet, HashSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, LazyLock};

use uuid::Uuid;
use zt_agent::api;
use zt_agent::audit::names::Names;
use zt_agent::audit::{self, AuditRecord, Context, Event};
use zt_agent::config::Config;
use zt_agent::identity::file;
use zt_agent::identity::kubernetes::{Qos, is_uid, pod_of, predicted};
use zt_agent::policy::{self, Document, Settings};
use zt_agent::problem::Problem;
use zt_agent::spiffe_id::{Pattern, SpiffeId};
use zt_agent::state::Snapshot;

/// A function that is given arbitrary bytes.
pub(crate) type Target = fn(&[u8]) -> bool;

/// All of them, by the names of their corpora. Each has a file of its name in `fuzz/fuzz_targets/`.
pub(crate) const TARGETS: [(&str, Target); 7] = [
    ("cgroup_path", cgroup_path),
    ("config", config),
    ("event", event),
    ("http_body", http_body),
    ("policy", policy),
    ("spiffe_id", spiffe_id),
    ("workloads", workloads),
];

/// What every problem must be: about the file, or all files, and with something to say.
fn told(problems: &[Problem], file: &str) {
    assert!(!problems.is_empty(), "refused, and nothing is said");
    for problem in problems {
        let names_it = problem.file == file || (problem.file.is_empty() && problem.message.contains(file));
        assert!(!problem.message.is_empty() && names_it, "{problem:?}");
        assert!(!problem.to_string().is_empty());
    }
}

/// Policy documents: what is accepted compiles or says why not, and is the same when it is read again in its canonical form.
pub(crate) fn policy(bytes: &[u8]) -> bool {
    const FILE: &str = "p.yaml";
    let Ok(text) = str::from_utf8(bytes) else {
        return false;
    };
    let settings = Settings::default();
    let of = |file: &str, text: String| Document {
        file: file.to_owned(),
        text,
    };
    let set = match policy::parse(&[of(FILE, text.to_owned())], &settings) {
        Ok(set) => set,
        Err(problems) => {
            told(&problems, FILE);
            return false;
        }
    };
    let written = set
        .all()
        .iter()
        .map(|policy| of(policy.name(), policy.document().to_string()));
    let again = policy::parse(&written.collect::<Vec<_>>(), &settings);
    let again = again.unwrap_or_else(|problems| panic!("the canonical form is refused: {problems:?}"));
    assert_eq!(
        set.digest(),
        again.digest(),
        "the canonical form is another policy"
    );
    if let Ok(table) = policy::compile(&set, &BTreeSet::new(), &settings, 1) {
        assert_eq!(table.entries().count(), table.len());
    }
    true
}

/// `workloads.yaml`: who is accepted is in the trust domain and below a managed cgroup, and nobody has what another one has.
pub(crate) fn workloads(bytes: &[u8]) -> bool {
    const FILE: &str = "w.yaml";
    let Ok(text) = str::from_utf8(bytes) else {
        return false;
    };
    let root = PathBuf::from("kubepods.slice");
    let records = match file::parse(text, FILE, "hanzo.ai", std::slice::from_ref(&root)) {
        Ok(records) => records,
        Err(problems) => {
            told(&problems, FILE);
            return false;
        }
    };
    let (mut cgroups, mut addresses) = (HashSet::new(), HashSet::new());
    for record in &records {
        assert_eq!(record.spiffe.trust_domain(), "hanzo.ai", "{record:?}");
        assert!(record.cgroup.starts_with(&root), "{record:?}");
        let is_plain = |part: Component<'_>| matches!(part, Component::Normal(_));
        assert!(record.cgroup.components().all(is_plain), "{record:?}");
        assert!(cgroups.insert(&record.cgroup), "a cgroup twice: {record:?}");
        for address in &record.addresses {
            assert!(addresses.insert(*address), "an address twice: {record:?}");
            assert_eq!(*address, address.to_canonical(), "{record:?}");
        }
    }
    true
}

/// `agent.yaml`: nothing that is accepted serves strangers without TLS.
pub(crate) fn config(bytes: &[u8]) -> bool {
    const FILE: &str = "agent.yaml";
    let Ok(text) = str::from_utf8(bytes) else {
        return false;
    };
    match Config::parse(FILE, text) {
        Ok(config) => {
            let api = &config.api;
            assert!(api.listen.ip().to_canonical().is_loopback() || api.tls.all().is_some());
            assert_ne!(api.listen, api.health);
            true
        }
        Err(error) => {
            assert!(!error.problems.is_empty());
            assert!(
                error.problems.iter().all(|problem| !problem.message.is_empty()),
                "{error}"
            );
            false
        }
    }
}

/// Bytes of the ring buffer: what is accepted makes a record, which is the same when it is read again.
pub(crate) fn event(bytes: &[u8]) -> bool {
    // As they are, and with the header that they would have: a corpus outlives a version of the layout.
    let as_they_are = one_event(bytes);
    let mut headed = bytes.to_vec();
    if let Some(header) = headed.first_chunk_mut::<4>() {
        let [version, size] = [zt_common::ABI_VERSION, bytes.len() as u16].map(u16::to_ne_bytes);
        *header = [version[0], version[1], size[0], size[1]];
    }
    one_event(&headed) || as_they_are
}

fn one_event(bytes: &[u8]) -> bool {
    let decision = match audit::decode(bytes) {
        Ok(Event::Decision(decision)) => decision,
        Ok(Event::Notice(_)) => return true,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return false;
        }
    };
    let context = Context {
        cluster: Arc::from("hanzo-k8s"),
        node: Arc::from("worker-3"),
        clock_offset: 1_700_000_000_000_000_000,
    };
    let record = audit::from_decision(&decision, &Names::default(), &context, Uuid::nil());
    let text = serde_json::to_string(&record).expect("a record has a form");
    let again: AuditRecord = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    assert_eq!(record, again, "{text}");
    true
}

/// A SPIFFE ID, and a pattern: what is accepted is as it was written, and matches itself.
pub(crate) fn spiffe_id(bytes: &[u8]) -> bool {
    let Ok(text) = str::from_utf8(bytes) else {
        return false;
    };
    let id = match SpiffeId::parse(text) {
        Ok(id) => {
            assert_eq!(id.as_str(), text);
            assert_eq!(
                id.as_str().len(),
                "spiffe://".len() + id.trust_domain().len() + tail(&id)
            );
            Some(id)
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            None
        }
    };
    match Pattern::parse(text) {
        Ok(pattern) => {
            assert_eq!(pattern.as_str(), text);
            assert!(
                id.is_none_or(|id| pattern.matches(&id)),
                "{text} does not match itself"
            );
            true
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            // That of a trust domain is an identity, and no workload's.
            id.is_some_and(|id| {
                assert!(id.path().is_empty(), "{text} is an identity and no pattern");
                true
            })
        }
    }
}

/// How long the path is, with its slash.
fn tail(id: &SpiffeId) -> usize {
    if id.path().is_empty() {
        0
    } else {
        1 + id.path().len()
    }
}

/// The path of a cgroup: a pod that is found has its cgroup just there.
pub(crate) fn cgroup_path(bytes: &[u8]) -> bool {
    let roots = [
        "kubepods.slice",
        "kubepods",
        "kubelet.slice/kubelet-kubepods.slice",
    ]
    .map(PathBuf::from);
    let path = Path::new(OsStr::from_bytes(bytes));
    let Some(uid) = pod_of(path, &roots) else {
        return false;
    };
    assert!(is_uid(&uid), "{uid:?}");
    let classes = [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort];
    let places = roots
        .iter()
        .flat_map(|root| classes.map(|class| predicted(root, &uid, class)));
    assert!(
        places.into_iter().any(|place| place == path),
        "{} is not where {uid} would be",
        path.display()
    );
    true
}

/// The body of an evaluation: answered, or refused with what is wrong.
pub(crate) fn http_body(bytes: &[u8]) -> bool {
    static SNAPSHOT: LazyLock<Snapshot> = LazyLock::new(snapshot);
    let Ok(answers) = api::decide_unrecorded(bytes, &SNAPSHOT) else {
        return false;
    };
    let answers: serde_json::Value = serde_json::from_str(&answers).expect("answers are JSON");
    let one = std::slice::from_ref(&answers);
    for answer in answers["responses"].as_array().map_or(one, Vec::as_slice) {
        let decision = answer["decision"].as_str();
        assert!(matches!(decision, Some("ALLOW" | "DENY")), "{answer}");
        assert!(
            decision == Some("DENY") || answer["policy_matched"].is_string(),
            "{answer}"
        );
    }
    true
}

fn snapshot() -> Snapshot {
    let settings = Settings::default();
    let text = include_str!("../../../policies/hanzo-core-policy.yaml");
    let document = Document {
        file: "core.yaml".to_owned(),
        text: text.to_owned(),
    };
    let policies = policy::parse(&[document], &settings).expect("a policy of the repository");
    let identities: BTreeSet<SpiffeId> = policies.identities().clone();
    let table = policy::compile(&policies, &identities, &settings, 7).expect("it compiles");
    Snapshot {
        revision: 7,
        policies: Arc::new(policies),
        table: Arc::new(table),
        ..Snapshot::default()
    }
}
