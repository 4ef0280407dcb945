// SPDX-License-Identifier: Apache-2.0
//! What the kernel itself says is attached and pinned, asked through `bpftool` rather than through the agent.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use aya::maps::{ArrayOfMaps, HashMap, Map, MapData, PerCpuArray};
use serde_json::Value;
use zt_common::abi::{Connection, Listener, ListenerKey, Peer};
use zt_common::address::Address;
use zt_common::counter::Counter;
use zt_common::entry::{AllowEntry, AllowKey};

use crate::cgroup::Cgroup;

/// A program at a hook of a cgroup.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attached {
    /// Its name.
    pub name: String,
    /// The hook, as `bpftool` calls it.
    pub hook: String,
    /// The program's id.
    pub id: u64,
}

/// The programs attached to this very cgroup, not those of its ancestors, in the order of their names.
pub fn attached(cgroup: &Cgroup) -> Result<Vec<Attached>> {
    let path = cgroup.path().display().to_string();
    let listed = bpftool(&["cgroup", "show", &path])?;
    let programs = listed.as_array().cloned().unwrap_or_default();
    let mut attached: Vec<Attached> = programs
        .iter()
        .map(|program| {
            let text = |field: &str| program[field].as_str().unwrap_or_default().to_owned();
            Attached {
                name: text("name"),
                hook: text("attach_type"),
                id: program["id"].as_u64().unwrap_or_default(),
            }
        })
        .collect();
    attached.sort();
    Ok(attached)
}

/// Whether a cgroup has a program that runs for packets.
pub fn has_packet_hook(cgroup: &Cgroup) -> Result<bool> {
    let packet = |attached: &Attached| {
        attached.hook.ends_with("inet_ingress") || attached.hook.ends_with("inet_egress")
    };
    Ok(attached(cgroup)?.iter().any(packet))
}

/// Whether the kernel still has a program or a link.
pub fn exists(kind: &str, id: u64) -> Result<bool> {
    let output = Command::new("bpftool")
        .args(["-j", kind, "show", "id", &id.to_string()])
        .output()
        .context("cannot run `bpftool`: run `apt-get install bpftool`")?;
    Ok(output.status.success())
}

/// Everything below a directory of pins.
pub fn pins(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(directory) = pending.pop() {
        if !directory.exists() {
            continue;
        }
        for entry in std::fs::read_dir(&directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                pending.push(entry.path());
            } else {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Takes the rules for some ports out of the table in force, by the maps pinned below `maps`, and gives it the next revision: a change of policy
/// after which nobody sweeps, because there is no agent. How many rules that were.
pub fn revoke(maps: &Path, ports: &[u16]) -> Result<usize> {
    let map = MapData::from_pin(maps.join(zt_common::names::ALLOW)).context("no zt_allow")?;
    let slots: ArrayOfMaps<_, HashMap<MapData, AllowKey, AllowEntry>> =
        ArrayOfMaps::try_from(Map::ArrayOfMaps(map))?;
    let mut table = slots.get(&0, 0)?;
    let keys = table.keys().collect::<Result<Vec<_>, _>>()?;
    let revoked: Vec<AllowKey> = keys.into_iter().filter(|key| ports.contains(&key.port)).collect();
    for key in &revoked {
        table.remove(key)?;
    }
    let mut header = table.get(&AllowKey::HEADER, 0)?;
    header.number += 1;
    table.insert(AllowKey::HEADER, header, 0)?;
    Ok(revoked.len())
}

/// What a counter of the programs stands at, by the maps pinned below `maps`.
pub fn counted(maps: &Path, counter: Counter) -> Result<u64> {
    let map = MapData::from_pin(maps.join(zt_common::names::COUNTERS)).context("no zt_counters")?;
    let counters: PerCpuArray<_, u64> = PerCpuArray::try_from(Map::PerCpuArray(map))?;
    Ok(counters.get(&(counter as u32), 0)?.iter().sum())
}

/// Fills `zt_connections`, pinned below `maps`, with entries that no sweep looks at; how many it took.
pub fn fill_connections(maps: &Path) -> Result<u64> {
    let map = MapData::from_pin(maps.join(zt_common::names::CONNECTIONS)).context("no zt_connections")?;
    let mut map: HashMap<_, u64, Connection> = HashMap::try_from(Map::HashMap(map))?;
    // In its handshake for ever.
    let connection = Connection {
        protocol: 6,
        ..Connection::BLANK
    };
    // Cookies that no socket will have.
    let mut filled = 0;
    while map.insert(u64::MAX - filled, connection, 0).is_ok() {
        filled += 1;
    }
    ensure!(filled > 0, "zt_connections takes nothing");
    Ok(filled)
}

/// Says that a workload has its share of `zt_connections`, pinned below `maps`: of those that it began.
pub fn fill_share(maps: &Path, workload: u64) -> Result<()> {
    set_share(maps, workload, zt_common::names::CONNECTION_SHARE)
}

/// Says how many of something count for a share, by its key in `zt_shares`.
pub fn set_share(maps: &Path, share: u64, filed: u32) -> Result<()> {
    let map = MapData::from_pin(maps.join(zt_common::names::SHARES)).context("no zt_shares")?;
    let mut map: HashMap<_, u64, u64> = HashMap::try_from(Map::HashMap(map))?;
    Ok(map.insert(share, u64::from(filed), 0)?)
}

fn listeners_at(maps: &Path) -> Result<HashMap<MapData, ListenerKey, Listener>> {
    let map = MapData::from_pin(maps.join(zt_common::names::LISTENERS)).context("no zt_listeners")?;
    Ok(HashMap::try_from(Map::HashMap(map))?)
}

/// Where workloads listen, by `zt_listeners` pinned below `maps`.
pub fn listeners(maps: &Path) -> Result<std::collections::HashMap<ListenerKey, Listener>> {
    Ok(listeners_at(maps)?.iter().collect::<Result<_, _>>()?)
}

/// Fills `zt_listeners` with places in a namespace that there is not.
pub fn fill_listeners(maps: &Path) -> Result<()> {
    let mut map = listeners_at(maps)?;
    let listener = Listener {
        workload: 0,
        sockets: 1,
        ambiguous: 0,
        uncounted: 1,
    };
    let key = |netns: u64, port: u16| ListenerKey {
        netns,
        address: Address::UNSPECIFIED_V6,
        port,
        protocol: 6,
        reserved: [0; 5],
    };
    for (netns, port) in (1..).flat_map(|netns| (0..u16::MAX).map(move |port| (netns, port))) {
        if map.insert(key(netns, port), listener, 0).is_err() {
            break;
        }
    }
    Ok(())
}

/// Fills `zt_peers`, pinned below `maps`, with addresses that nobody has.
pub fn fill_peers(maps: &Path) -> Result<()> {
    let map = MapData::from_pin(maps.join(zt_common::names::PEERS)).context("no zt_peers")?;
    let mut map: HashMap<_, Address, Peer> = HashMap::try_from(Map::HashMap(map))?;
    let nobody = Peer {
        identity: zt_common::identity::UNKNOWN,
        flags: 0,
        node: 0,
    };
    // Of 240.0.0.0/4, which is nobody's.
    let mut address = 0xf000_0000_u32;
    while map
        .insert(Address::from_v4(address.to_be_bytes()), nobody, 0)
        .is_ok()
    {
        address += 1;
    }
    ensure!(address > 0xf000_0000, "zt_peers takes nothing");
    Ok(())
}

/// How many connections each workload has filed, by the maps pinned below `maps`.
pub fn shares(maps: &Path) -> Result<std::collections::HashMap<u64, u64>> {
    let map = MapData::from_pin(maps.join(zt_common::names::SHARES)).context("no zt_shares")?;
    let map: HashMap<_, u64, u64> = HashMap::try_from(Map::HashMap(map))?;
    Ok(map.iter().collect::<Result<_, _>>()?)
}

/// The answer of a `bpftool` command, as JSON.
pub fn bpftool(arguments: &[&str]) -> Result<Value> {
    let output = Command::new("bpftool")
        .arg("-j")
        .args(arguments)
        .output()
        .context("cannot run `bpftool`: run `apt-get install bpftool`")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "bpftool {}: {text}{}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    // Nothing attached is nothing said.
    if text.trim().is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_str(&text).with_context(|| format!("bpftool said: {text}"))
}
