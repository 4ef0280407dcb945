// SPDX-License-Identifier: Apache-2.0
//! Every map, declared once. Their names are those of [`zt_common::names`]; their meaning is in `docs/bpftool.md`.
#![allow(
    non_upper_case_globals,
    reason = "the symbol is the map's name at a bpftool prompt"
)]

use aya_ebpf::bindings::{BPF_F_NO_PREALLOC, bpf_map_type};
use aya_ebpf::btf_maps::{Array, ArrayOfMaps, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf, SockHash};
use aya_ebpf::macros::btf_map;
use zt_common::abi::{
    Connection, FlowKey, FlowState, Guarded, Homes, KeyId, Listener, ListenerKey, LocalKey, Node, NodeKey,
    Peer, ResidentKey, Service, ServiceKey, Socket, Source, SourceKey, Unnoted, Workload,
};
use zt_common::address::Address;
use zt_common::control::Control;
use zt_common::counter::Counter;
use zt_common::entry::{AllowEntry, AllowKey};
use zt_common::event::DecisionEvent;
use zt_common::flood::{Account, Flood};
use zt_common::names::{
    MAX_CONNECTIONS, MAX_HOMES, MAX_KEYS, MAX_LISTENERS, MAX_LOCAL, MAX_NODES, MAX_PEERS, MAX_RESIDENTS,
    MAX_SERVICES, MAX_SHARES, MAX_UNNOTED, MAX_WORKLOADS, NETWORK_SLOTS, RING_BYTES,
};

const SPARSE: usize = BPF_F_NO_PREALLOC as usize;

/// Shape of the tables that the one slot of `zt_allow` may hold; their size differs from table to table.
pub type AllowTable = HashMap<AllowKey, AllowEntry, 1>;

/// Shape of the tries that the slots of `zt_networks` may hold.
pub type Networks = LpmTrie<Address, u64, 1>;

#[btf_map]
pub static zt_workloads: HashMap<u64, Workload, { MAX_WORKLOADS as usize }, SPARSE> = HashMap::new();
#[btf_map]
pub static zt_listeners: HashMap<ListenerKey, Listener, { MAX_LISTENERS as usize }, SPARSE> = HashMap::new();
#[btf_map]
pub static zt_local: HashMap<LocalKey, u64, { MAX_LOCAL as usize }, SPARSE> = HashMap::new();
#[btf_map]
pub static zt_peers: HashMap<Address, Peer, { MAX_PEERS as usize }, SPARSE> = HashMap::new();
#[btf_map]
pub static zt_services: HashMap<ServiceKey, Service, { MAX_SERVICES as usize }, SPARSE> = HashMap::new();
#[btf_map]
pub static zt_networks: ArrayOfMaps<Networks, { NETWORK_SLOTS as usize }> = ArrayOfMaps::new();
#[btf_map]
pub static zt_allow: ArrayOfMaps<AllowTable, 1> = ArrayOfMaps::new();
#[btf_map]
pub static zt_control: Array<Control, 1> = Array::new();
#[btf_map]
pub static zt_sockets: Storage<Socket, CLONED> = Storage::new();
#[btf_map]
pub static zt_guarded: Storage<Guarded, SPARSE> = Storage::new();
#[btf_map]
pub static zt_unnoted: HashMap<u64, Unnoted, { MAX_UNNOTED as usize }, SPARSE> = HashMap::new();
#[btf_map]
pub static zt_connections: HashMap<u64, Connection, { MAX_CONNECTIONS as usize }, SPARSE> = HashMap::new();
#[btf_map]
pub static zt_shares: HashMap<u64, u64, { MAX_SHARES as usize }, SPARSE> = HashMap::new();
#[btf_map]
pub static zt_sources: LruHashMap<SourceKey, Source, 65_536> = LruHashMap::new();
#[btf_map]
pub static zt_strays: LruHashMap<SourceKey, Source, 65_536> = LruHashMap::new();
#[btf_map]
pub static zt_nodes: HashMap<u32, Node, { MAX_NODES as usize }, SPARSE> = HashMap::new();
#[btf_map]
pub static zt_residents: HashMap<ResidentKey, u64, { MAX_RESIDENTS as usize }, SPARSE> = HashMap::new();
#[btf_map]
pub static zt_homes: HashMap<u64, Homes, { MAX_HOMES as usize }, SPARSE> = HashMap::new();
#[btf_map]
pub static zt_keys: HashMap<KeyId, NodeKey, { MAX_KEYS as usize }, SPARSE> = HashMap::new();
#[btf_map]
pub static zt_flows: LruHashMap<FlowKey, FlowState, 65_536> = LruHashMap::new();
#[btf_map]
pub static zt_denied_flows: LruHashMap<FlowKey, FlowState, 65_536> = LruHashMap::new();
#[btf_map]
pub static zt_floods: LruHashMap<u64, Flood, 4096> = LruHashMap::new();
#[btf_map]
pub static zt_denials: LruHashMap<u64, u64, 4096> = LruHashMap::new();
#[btf_map]
pub static zt_account: PerCpuArray<Account, 1> = PerCpuArray::new();
#[btf_map]
pub static zt_refused: SockHash<u64, 65_536> = SockHash::new();
#[btf_map]
pub static zt_events: RingBuf<DecisionEvent, { RING_BYTES as usize }> = RingBuf::new();
#[btf_map]
pub static zt_counters: PerCpuArray<u64, { Counter::COUNT as usize }> = PerCpuArray::new();

/// Flags of socket storage that a listener's children inherit.
const CLONED: usize = SPARSE | (1 << 9);

/// Socket storage.
///
/// `aya_ebpf`'s own type cannot say `BPF_F_CLONE`; this one is laid out as its map definitions are.
#[repr(C)]
pub struct Storage<T, const FLAGS: usize> {
    r#type: *const [i32; bpf_map_type::BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const T,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; FLAGS],
}

// SAFETY: the fields are placeholders that the loader reads from BTF; no program dereferences them.
unsafe impl<T, const FLAGS: usize> Sync for Storage<T, FLAGS> {}

impl<T, const FLAGS: usize> Storage<T, FLAGS> {
    /// The definition; the kernel object takes its place at load.
    pub const fn new() -> Self {
        Self {
            r#type: core::ptr::null(),
            key: core::ptr::null(),
            value: core::ptr::null(),
            max_entries: core::ptr::null(),
            map_flags: core::ptr::null(),
        }
    }

    /// The address by which helpers know the map.
    #[inline(always)]
    pub fn as_ptr(&self) -> *mut core::ffi::c_void {
        core::ptr::from_ref(self).cast_mut().cast()
    }
}
