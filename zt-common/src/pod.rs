// SPDX-License-Identifier: Apache-2.0
//! `aya::Pod` for everything that crosses a map.
#![expect(
    unsafe_code,
    reason = "Pod asserts that any bytes are a valid value and that there is no padding: the const asserts beside each type check the latter"
)]

use crate::abi::{
    Connection, FlowKey, FlowState, Homes, KeyId, Listener, ListenerKey, LocalKey, Node, NodeKey, Peer,
    ResidentKey, Service, ServiceKey, Socket, Source, SourceKey, Unnoted, Workload,
};
use crate::address::Address;
use crate::control::Control;
use crate::entry::{AllowEntry, AllowKey};

macro_rules! pod {
    ($($name:ty),+ $(,)?) => { $(
        // SAFETY: `repr(C)`, only integers and byte arrays, no implicit padding.
        unsafe impl aya::Pod for $name {}
    )+ };
}

pod!(
    Address,
    AllowEntry,
    AllowKey,
    Connection,
    Control,
    FlowKey,
    FlowState,
    Homes,
    KeyId,
    Listener,
    ListenerKey,
    LocalKey,
    Node,
    NodeKey,
    Peer,
    ResidentKey,
    Service,
    ServiceKey,
    Socket,
    Source,
    SourceKey,
    Unnoted,
    Workload,
);
