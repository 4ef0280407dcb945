// SPDX-License-Identifier: Apache-2.0
//! Names of maps and programs, as `bpftool` shows them.

/// Cgroup id → identity and mode.
pub const WORKLOADS: &str = "zt_workloads";
/// Listening place → owner.
pub const LISTENERS: &str = "zt_listeners";
/// A namespace's own addresses.
pub const LOCAL: &str = "zt_local";
/// Address → identity.
pub const PEERS: &str = "zt_peers";
/// Virtual address → identity and target port.
pub const SERVICES: &str = "zt_services";
/// CIDR → entity or named network: two slots, of which the table in force names one.
pub const NETWORKS: &str = "zt_networks";
/// One slot: the allow table in force.
pub const ALLOW: &str = "zt_allow";
/// Switches.
pub const CONTROL: &str = "zt_control";
/// Socket storage.
pub const SOCKETS: &str = "zt_sockets";
/// Socket storage of the packet guard.
pub const GUARDED: &str = "zt_guarded";
/// Namespaces in which something of a workload is not noted.
pub const UNNOTED: &str = "zt_unnoted";
/// Live admitted connections.
pub const CONNECTIONS: &str = "zt_connections";
/// Workload and kind → how many live admitted connections or listening places.
pub const SHARES: &str = "zt_shares";
/// SYNs that managed sockets of this node have sent to somebody who may be here.
pub const SOURCES: &str = "zt_sources";
/// Those to everybody else, who may be led here.
pub const STRAYS: &str = "zt_strays";
/// Node → epoch of the key in use towards it.
pub const NODES: &str = "zt_nodes";
/// Node and identity → how many workloads.
pub const RESIDENTS: &str = "zt_residents";
/// Identity → nodes.
pub const HOMES: &str = "zt_homes";
/// Keys of the tags that prove identities.
pub const KEYS: &str = "zt_keys";
/// UDP flows that policy allows.
pub const FLOWS: &str = "zt_flows";
/// UDP flows that policy denies.
pub const DENIED_FLOWS: &str = "zt_denied_flows";
/// Who fills the ring buffer.
pub const FLOODS: &str = "zt_floods";
/// What is told of who fills it.
pub const DENIALS: &str = "zt_denials";
/// What a program that looks for its room in the ring buffer has at hand.
pub const ACCOUNT: &str = "zt_account";
/// Refused sockets.
pub const REFUSED: &str = "zt_refused";
/// Decisions and notices.
pub const EVENTS: &str = "zt_events";
/// Per-CPU counters.
pub const COUNTERS: &str = "zt_counters";

/// A constant of the programs, one byte: whether they can have handshakes bear identities.
pub const HANDSHAKES: &str = "ZT_HANDSHAKES";
/// Of the programs: what the numbers of denials in [`DENIALS`] are made with.
pub const SEEDS: &str = "ZT_SEEDS";

/// Every pinned map.
pub const MAPS: [&str; 27] = [
    WORKLOADS,
    LISTENERS,
    LOCAL,
    PEERS,
    SERVICES,
    NETWORKS,
    ALLOW,
    CONTROL,
    SOCKETS,
    GUARDED,
    UNNOTED,
    CONNECTIONS,
    SHARES,
    SOURCES,
    STRAYS,
    NODES,
    RESIDENTS,
    HOMES,
    KEYS,
    FLOWS,
    DENIED_FLOWS,
    FLOODS,
    DENIALS,
    ACCOUNT,
    REFUSED,
    EVENTS,
    COUNTERS,
];

/// Bytes of the ring buffer [`EVENTS`].
pub const RING_BYTES: u32 = 16 * 1024 * 1024;

/// Level and name of the socket option that makes a listener which is older than the hooks prove who it is. No protocol has
/// them.
pub const ADOPT_LEVEL: i32 = 0x5a54;
/// See [`ADOPT_LEVEL`].
pub const ADOPT_OPTION: i32 = 1;

/// The protocol of a Unix socket by which the agent sees whether the kernel asks programs of BPF LSM. There is none with that number.
pub const PROBE_PROTOCOL: i32 = 0x5a54;

/// The interface index to which refused sockets are bound: none has it.
pub const NO_INTERFACE: u32 = 0x7fff_fffe;

/// Most entries that one allow table may have.
pub const MAX_ALLOW_ENTRIES: u32 = 2_097_152;
/// Slots of [`NETWORKS`]: the networks of a policy are part of it, and while one revision is replaced by the next the
/// two must not see each other's.
pub const NETWORK_SLOTS: u32 = 2;
/// Most other nodes with which there are keys.
pub const MAX_NODES: u32 = 4096;
/// Most keys: of this node, and for each other one those of both directions and three epochs.
pub const MAX_KEYS: u32 = 32_768;
/// Most identities that live on other nodes, counted once for each node.
pub const MAX_RESIDENTS: u32 = 131_072;
/// Most identities that live on other nodes.
pub const MAX_HOMES: u32 = 65_536;
/// Most workloads (cgroups) on one node.
pub const MAX_WORKLOADS: u32 = 65_536;
/// Most live connections of all workloads of a node together; one between two of them counts twice.
pub const MAX_CONNECTIONS: u32 = 262_144;
/// Most of these that one workload may have begun, and most that it may have accepted.
pub const CONNECTION_SHARE: u32 = MAX_CONNECTIONS / 4;
/// Most places at which all workloads of a node together listen.
pub const MAX_LISTENERS: u32 = 65_536;
/// Most of these that one workload may have.
pub const LISTENER_SHARE: u32 = MAX_LISTENERS / 4;
/// Most namespaces of which it is said that something there is not noted; where one more is, it is said of all.
pub const MAX_UNNOTED: u32 = 4096;
/// Most shares: of each workload those of what it began, of what it accepted, and of where it listens.
pub const MAX_SHARES: u32 = 3 * MAX_WORKLOADS;
/// Most known peer addresses.
pub const MAX_PEERS: u32 = 262_144;
/// Most virtual places: address, port and protocol of a service.
pub const MAX_SERVICES: u32 = 65_536;
/// Most addresses that all managed network namespaces of a node may have together.
pub const MAX_LOCAL: u32 = 65_536;
