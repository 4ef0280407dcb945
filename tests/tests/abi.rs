// SPDX-License-Identifier: Apache-2.0
//! The kernel programs and the agent agree on every byte that passes between them: the layout in the embedded
//! object's BTF is the layout in this build.

use std::mem::offset_of;

use anyhow::{Result, ensure};
use zt_common::ABI_VERSION;
use zt_common::abi::{
    Connection, FlowKey, FlowState, Guarded, Homes, KeyId, Listener, ListenerKey, LocalKey, Node, NodeKey,
    Peer, ResidentKey, Service, ServiceKey, Socket, Source, SourceKey, Unnoted, Workload,
};
use zt_common::control::{Control, Root};
use zt_common::counter::Counter;
use zt_common::entry::{AllowEntry, AllowKey};
use zt_common::event::{DecisionEvent, EventHeader};
use zt_common::flood::{Account, Flood};
use zt_common::names;
use zt_tests::btf::{Layout, structs};

macro_rules! layout {
    ($type:ident { $($field:ident),+ $(,)? }) => {
        Layout {
            name: stringify!($type).to_owned(),
            size: size_of::<$type>(),
            members: vec![$((stringify!($field).to_owned(), offset_of!($type, $field))),+],
        }
    };
}

/// All but the notice, which no map has as its type and BTF therefore does not know; that it is decoded as it is
/// written shows whenever a bound port gets its guard.
#[expect(clippy::too_many_lines, reason = "a list, which the formatter makes long")]
fn of_this_build() -> Vec<Layout> {
    vec![
        layout!(Workload {
            identity,
            mode,
            reserved
        }),
        layout!(ListenerKey {
            netns,
            address,
            port,
            protocol,
            reserved
        }),
        layout!(Listener {
            workload,
            sockets,
            ambiguous,
            uncounted
        }),
        layout!(LocalKey { netns, address }),
        layout!(Peer {
            identity,
            flags,
            node
        }),
        layout!(Node { epoch, reserved }),
        layout!(ResidentKey {
            node,
            reserved,
            identity
        }),
        layout!(Homes { nodes }),
        layout!(ServiceKey {
            address,
            port,
            protocol,
            reserved
        }),
        layout!(Service {
            identity,
            target_port,
            flags,
            reserved
        }),
        layout!(Socket {
            workload,
            cgroup,
            netns,
            address,
            port,
            protocol,
            flags,
            holder
        }),
        layout!(Unnoted { called, listeners }),
        layout!(Connection {
            netns,
            workload,
            source,
            destination,
            rule,
            revision,
            started,
            local,
            remote,
            local_port,
            remote_port,
            target_port,
            protocol,
            reason,
            flags,
            latency,
            pid,
            node,
            comm,
        }),
        layout!(SourceKey {
            source,
            sequence,
            source_port,
            reserved
        }),
        layout!(Source {
            workload,
            identity,
            netns,
            cookie,
            answered,
            destination,
            noted,
            destination_port,
            reserved,
        }),
        layout!(KeyId { peer, epoch }),
        layout!(NodeKey { k0, k1, made }),
        layout!(FlowKey {
            workload,
            remote,
            remote_port,
            local_port,
            protocol,
            reserved
        }),
        layout!(FlowState {
            revision,
            directory,
            source,
            destination,
            target_port,
            allowed,
            inbound,
            reserved,
            last_seen,
        }),
        layout!(Flood { window, records }),
        layout!(Account { key, flood }),
        layout!(Control {
            flags,
            directory,
            host_netns,
            epoch,
            roots
        }),
        layout!(Root { id, level, reserved }),
        layout!(AllowKey {
            source,
            destination,
            port,
            protocol,
            port_bits,
            reserved
        }),
        layout!(Guarded { stamp, untold }),
        layout!(AllowEntry { number, bits }),
        layout!(EventHeader {
            version,
            size,
            kind,
            reserved
        }),
        layout!(DecisionEvent {
            header,
            time,
            source,
            destination,
            rule,
            revision,
            workload,
            cookie,
            netns,
            source_address,
            destination_address,
            source_port,
            destination_port,
            target_port,
            protocol,
            hook,
            pid,
            latency,
            reason,
            flags,
            proof,
            omitted,
            reserved,
            comm,
        }),
    ]
}

/// `docs/bpftool.md` is of this layout: its paths, its maps, its counters.
#[test]
fn the_page_of_the_bpftool_prompt_is_of_this_layout() {
    const PAGE: &str = include_str!("../../docs/bpftool.md");
    let version = format!("v{ABI_VERSION}");
    for path in PAGE.split("/sys/fs/bpf/zt").skip(1) {
        let named = path.split('/').nth(1).unwrap_or_default();
        let named = named.split(|letter: char| !letter.is_ascii_alphanumeric()).next();
        let named = named.unwrap_or_default();
        let is_version = named.starts_with('v') && named.len() > 1;
        assert!(!is_version || named == version, "{named} in {path:.40}");
    }
    for map in names::MAPS {
        assert!(
            PAGE.contains(&format!("| `{map}` |")),
            "{map} is not in the table of maps"
        );
    }
    for counter in Counter::ALL {
        let number = counter as u32;
        assert!(
            PAGE.contains(&format!("| {number} | ")),
            "counter {number} is not in its table"
        );
    }
    let flags = PAGE
        .split("Flags of a connection: ")
        .nth(1)
        .and_then(|rest| rest.split("`started`").next());
    let flags = flags.unwrap_or_default();
    for bit in 0..19 {
        let flag = (1_u32 << bit).to_string();
        let mut words = flags.split(|letter: char| !letter.is_ascii_digit());
        assert!(
            words.any(|word| word == flag),
            "flag {flag} of a connection is not told of"
        );
    }
}

#[test]
fn the_embedded_object_has_the_layouts_of_this_build() -> Result<()> {
    let embedded = structs(zt_agent::kernel::object())?;
    for wanted in of_this_build() {
        let named: Vec<&Layout> = embedded
            .iter()
            .filter(|found| found.name == wanted.name)
            .collect();
        ensure!(
            !named.is_empty(),
            "the object's BTF has no struct {}",
            wanted.name
        );
        // The compiler may list members in another order; the places are what counts.
        let places = |layout: &Layout| {
            let mut members = layout.members.clone();
            members.sort_by_key(|(_, offset)| *offset);
            (layout.size, members)
        };
        ensure!(
            named.iter().any(|found| places(found) == places(&wanted)),
            "{} is laid out otherwise in the object: {named:#?} instead of {wanted:#?}",
            wanted.name
        );
    }
    Ok(())
}
