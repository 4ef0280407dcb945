// SPDX-License-Identifier: Apache-2.0
//! The `file` identity source: `workloads.yaml`, for a host without SPIRE and for tests.
//!
//! Anyone who can write the file decides who is who, so it must belong to root like the policies do.
//!
//! A workload's cgroup may lie below another workload's: what runs in the deeper one is the deeper workload.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::io;
use std::net::IpAddr;
use std::path::{Component, Path, PathBuf};

use super::{Mode, WorkloadRecord};
use crate::problem::Problem;
use crate::spiffe_id::SpiffeId;
use crate::watch::Follower;
use crate::yaml::{self, Entry, Node, Report, Value};

/// The most bytes that the file may have.
pub const MAX_BYTES: u64 = 16 * 1024 * 1024;

const FIELDS: [&str; 4] = ["spiffe", "cgroup", "addresses", "mode"];

/// What reading the file gave: its text, or why there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents(pub Result<String, Problem>);

impl Hash for Contents {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match &self.0 {
            Ok(text) => text.hash(state),
            Err(problem) => problem.hash(state),
        }
    }
}

/// Begins to follow the file at `path` and reads it; the follower sends what it holds whenever that changes.
pub fn follow(path: PathBuf) -> (Follower<Contents>, Contents) {
    let of = path.clone();
    Follower::new(path, move || read(&of))
}

/// Reads the file at `path`, without looking into it.
pub fn read(path: &Path) -> Contents {
    let file = path.display().to_string();
    let problem = |message: String| Problem {
        file,
        line: 0,
        column: 0,
        field: String::new(),
        message,
    };
    let bytes = match std::fs::metadata(path) {
        Ok(metadata) if metadata.len() > MAX_BYTES => {
            let message = format!("has {} bytes; at most {MAX_BYTES} are read", metadata.len());
            return Contents(Err(problem(message)));
        }
        Ok(metadata) if !metadata.is_file() => {
            return Contents(Err(problem(
                "is not a file; name a YAML file with `workloads:`".into(),
            )));
        }
        Ok(_) => std::fs::read(path),
        Err(error) => Err(error),
    };
    Contents(match bytes {
        Ok(bytes) => String::from_utf8(bytes).map_err(|error| {
            problem(format!(
                "is not UTF-8 text (byte {})",
                error.utf8_error().valid_up_to()
            ))
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(problem(
            "does not exist; write one (`workloads: []` for none), or change `identity.file`".into(),
        )),
        Err(error) => Err(problem(format!("cannot be read: {error}"))),
    })
}

/// The workloads that `text` declares.
///
/// `managed_roots` are the cgroups, relative to the cgroup2 mount, that workloads must be in or below. Every problem is
/// reported, in the order of the file; a file with any problem declares nothing.
pub fn parse(
    text: &str,
    file_name: &str,
    trust_domain: &str,
    managed_roots: &[PathBuf],
) -> Result<Vec<WorkloadRecord>, Vec<Problem>> {
    let root = yaml::parse(file_name, text).map_err(|problem| vec![problem])?;
    let mut reader = Reader {
        report: Report::new(file_name),
        trust_domain,
        managed_roots,
        cgroups: HashMap::new(),
        addresses: HashMap::new(),
    };
    let workloads = reader.document(&root);
    reader.report.finish(workloads)
}

/// What was claimed, by which workload, where.
struct Claim {
    workload: usize,
    line: u64,
}

struct Reader<'a> {
    report: Report,
    trust_domain: &'a str,
    managed_roots: &'a [PathBuf],
    cgroups: HashMap<PathBuf, Claim>,
    addresses: HashMap<IpAddr, Claim>,
}

impl Reader<'_> {
    fn document(&mut self, root: &Node) -> Vec<WorkloadRecord> {
        if root.value == Value::Null {
            // An editor may have emptied the file a moment ago: nobody loses an identity by that.
            self.report.add_at(
                0,
                0,
                "workloads",
                "the file is empty; write `workloads: []` for no workloads",
            );
            return Vec::new();
        }
        let Some(entries) = self.report.map(root, "") else {
            return Vec::new();
        };
        for entry in entries.iter().filter(|entry| entry.key != "workloads") {
            self.report.unknown_field(entry, entry.key, ["workloads"]);
        }
        let Some(entry) = entries.iter().find(|entry| entry.key == "workloads") else {
            self.report.add(
                root,
                "workloads",
                "is missing; write `workloads: []` for no workloads",
            );
            return Vec::new();
        };
        let Some(items) = self.report.list(entry.value, "workloads") else {
            return Vec::new();
        };
        items
            .iter()
            .enumerate()
            .filter_map(|(index, node)| self.workload(index, node))
            .collect()
    }

    /// One item of the list; `None` if something essential is wrong, which has been reported then.
    fn workload(&mut self, index: usize, node: &Node) -> Option<WorkloadRecord> {
        let at = |field: &str| format!("workloads[{index}].{field}");
        let entries = self.report.map(node, &format!("workloads[{index}]"))?;
        let (mut spiffe, mut cgroup, mut addresses, mut mode) = (None, None, Vec::new(), None);
        for Entry { key, value, .. } in &entries {
            let field = at(key);
            match *key {
                "spiffe" => spiffe = self.spiffe(value, &field),
                "cgroup" => cgroup = self.cgroup(index, value, &field),
                "addresses" => addresses = self.addresses(index, value, &field),
                "mode" => mode = self.mode(value, &field),
                _ => {}
            }
        }
        for entry in entries.iter().filter(|entry| !FIELDS.contains(&entry.key)) {
            self.report.unknown_field(entry, at(entry.key), FIELDS);
        }
        for required in ["spiffe", "cgroup"] {
            if !entries.iter().any(|entry| entry.key == required) {
                self.report.add(node, at(required), "is missing");
            }
        }
        Some(WorkloadRecord {
            spiffe: spiffe?,
            cgroup: cgroup?,
            cgroup_id: None,
            addresses,
            mode,
            pod: None,
        })
    }

    fn spiffe(&mut self, node: &Node, field: &str) -> Option<SpiffeId> {
        let text = self.report.text(node, field)?;
        match SpiffeId::parse(text) {
            Ok(id) if id.trust_domain() != self.trust_domain => {
                let message = format!(
                    "is in the trust domain `{}`; this node's is `{}` (`trustDomain` in the configuration)",
                    id.trust_domain(),
                    self.trust_domain
                );
                self.report.add(node, field, message);
            }
            Ok(id) if id.path().is_empty() => {
                self.report.add(
                    node,
                    field,
                    "names the trust domain itself; a workload's ID has a path",
                );
            }
            Ok(id) => return Some(id),
            Err(error) => self.report.add(node, field, error.to_string()),
        }
        None
    }

    fn cgroup(&mut self, index: usize, node: &Node, field: &str) -> Option<PathBuf> {
        let text = self.report.text(node, field)?;
        let cgroup = match below_mount(text) {
            Ok(cgroup) => cgroup,
            Err(message) => {
                self.report.add(node, field, message);
                return None;
            }
        };
        if !self.managed_roots.iter().any(|root| cgroup.starts_with(root)) {
            let roots: Vec<_> = self
                .managed_roots
                .iter()
                .map(|root| format!("`{}`", root.display()))
                .collect();
            let message = format!(
                "is outside the managed cgroups ({}), so nothing could be enforced there; see `managedCgroup`",
                roots.join(", ")
            );
            self.report.add(node, field, message);
            return None;
        }
        if let Some(first) = self.cgroups.get(&cgroup) {
            let message = format!(
                "`{}` already belongs to workloads[{}] (line {}); a cgroup has one identity",
                cgroup.display(),
                first.workload,
                first.line
            );
            self.report.add(node, field, message);
            return None;
        }
        self.cgroups.insert(
            cgroup.clone(),
            Claim {
                workload: index,
                line: node.line,
            },
        );
        Some(cgroup)
    }

    fn addresses(&mut self, index: usize, node: &Node, field: &str) -> Vec<IpAddr> {
        if node.value == Value::Null {
            return Vec::new();
        }
        let Some(items) = self.report.list(node, field) else {
            return Vec::new();
        };
        let mut addresses = Vec::with_capacity(items.len());
        for (position, item) in items.iter().enumerate() {
            let field = format!("{field}[{position}]");
            let Some(text) = self.report.text(item, &field) else {
                continue;
            };
            let address = match reachable_address(text) {
                Ok(address) => address,
                Err(message) => {
                    self.report.add(item, field, message);
                    continue;
                }
            };
            if let Some(first) = self.addresses.get(&address) {
                let message = format!(
                    "`{address}` already belongs to workloads[{}] (line {}); an address has one identity",
                    first.workload, first.line
                );
                self.report.add(item, field, message);
                continue;
            }
            self.addresses.insert(
                address,
                Claim {
                    workload: index,
                    line: item.line,
                },
            );
            addresses.push(address);
        }
        addresses
    }

    fn mode(&mut self, node: &Node, field: &str) -> Option<Mode> {
        if node.value == Value::Null {
            return None;
        }
        let text = self.report.text(node, field)?;
        let mode = Mode::from_name(text);
        if mode.is_none() {
            self.report.add(
                node,
                field,
                format!("must be `observe` or `enforce`, not `{text}`"),
            );
        }
        mode
    }
}

/// The cgroup path in `text` relative to the cgroup2 mount, or what is wrong with it.
pub(crate) fn below_mount(text: &str) -> Result<PathBuf, String> {
    let path = Path::new(text);
    if path.is_absolute() {
        let hint = text.strip_prefix("/sys/fs/cgroup").unwrap_or(text);
        let hint = hint.trim_start_matches("/unified").trim_matches('/');
        let hint = if hint.is_empty() {
            String::new()
        } else {
            format!(": write `{hint}`")
        };
        return Err(format!(
            "must be relative to the cgroup2 mount, without a leading `/`{hint}"
        ));
    }
    if text.contains('\0') || text.len() >= 4096 {
        return Err("is not a path".into());
    }
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            _ => return Err("must not contain `.` or `..`".into()),
        }
    }
    if clean.as_os_str().is_empty() {
        return Err("must not be empty".into());
    }
    Ok(clean)
}

/// An address that peers can reach a workload at, or what is wrong with the text.
fn reachable_address(text: &str) -> Result<IpAddr, String> {
    let address: IpAddr = text.parse().map_err(|_| {
        let hint = if text.contains('/') {
            "; one address, not a network"
        } else {
            ""
        };
        format!("`{text}` is not an IPv4 or IPv6 address{hint}")
    })?;
    let address = address.to_canonical();
    let kind = match address {
        _ if address.is_unspecified() => "the unspecified address",
        _ if address.is_loopback() => "a loopback address",
        _ if address.is_multicast() => "a multicast address",
        IpAddr::V4(v4) if v4.is_broadcast() => "the broadcast address",
        _ => return Ok(address),
    };
    Err(format!(
        "`{address}` is {kind}; list the addresses at which other workloads reach this one"
    ))
}

#[cfg(test)]
mod tests;
