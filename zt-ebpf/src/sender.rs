// SPDX-License-Identifier: Apache-2.0
//! What this kernel knows of a SYN because one of its own workloads has sent it (`zt_sources`, `zt_strays`).

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST, bpf_sock_ops};
use aya_ebpf::btf_maps::LruHashMap;
use aya_ebpf::programs::SockOpsContext;
use zt_common::abi::{
    CONNECTION_ELSEWHERE, CONNECTION_FRONT, CONNECTION_HERE, CONNECTION_INBOUND, CONNECTION_NOTED,
    SOCKET_FRONT, SOCKET_HERE, SOURCE_LIFE, Source, SourceKey,
};
use zt_common::address::Address;
use zt_common::identity;

use crate::ends::{Ends, ends, is_fast_open, next_received, opened_with, opens, socket_of, unacknowledged};
use crate::lookup::is_local;
use crate::{context, keys, maps, option, unnoted};

/// A SYN, as the end that has received it knows it.
#[repr(C)]
pub struct Arrival {
    pub remote: Address,
    local: Address,
    /// Cookie of this namespace where the remote address is one of its own, else 0.
    home: u64,
    /// What [`Source::answered`] has to be.
    answer: u64,
    sequence: u32,
    remote_port: u16,
    local_port: u16,
}

impl Arrival {
    /// That of a handshake that is complete.
    #[inline(always)]
    pub fn complete(ctx: &SockOpsContext) -> Self {
        // With Fast Open a connection is there before the source is answered; it is off where handshakes bear identities.
        let answer = if is_fast_open(ctx) && !keys::in_force() {
            0
        } else {
            Source::answer(unacknowledged(ctx).wrapping_sub(1))
        };
        // The one before the next: nothing but the SYN has been received.
        Self::of(ctx, next_received(ctx).wrapping_sub(1), answer)
    }

    /// That of a SYN with this sequence number, to which nobody has answered.
    #[inline(always)]
    pub fn unanswered(ctx: &SockOpsContext, sequence: u32) -> Self {
        Self::of(ctx, sequence, 0)
    }

    #[inline(always)]
    fn of(ctx: &SockOpsContext, sequence: u32, answer: u64) -> Self {
        let Ends {
            local,
            remote,
            local_port,
            remote_port,
            ..
        } = ends(ctx);
        let netns = context::netns_cookie(ctx.as_ptr());
        Self {
            remote,
            local,
            home: if is_local(netns, &remote) { netns } else { 0 },
            answer,
            sequence,
            remote_port,
            local_port,
        }
    }

    /// Whether it comes from the namespace itself.
    #[inline(always)]
    pub fn is_home(&self) -> bool {
        self.home != 0
    }

    /// Cookie of the namespace where it comes from that, else 0.
    #[inline(always)]
    pub fn home(&self) -> u64 {
        self.home
    }

    /// Who has sent it: one of the constants of this module, and the identity where it is known.
    #[inline(always)]
    pub fn sender(&self, identity: &mut u64) -> u32 {
        zt_sender(&raw const *self, &raw mut *identity)
    }
}

/// No workload of this node has, as far as is known.
pub const NOT_OURS: u32 = 0;
/// A workload of this node has, to this very place.
pub const MEANT: u32 = 1;
/// A workload of this node has, to a place of which it may be that it leads here.
pub const LED: u32 = 2;
/// A workload of this node has, and that does not name who sends it here: it was long ago, or went elsewhere, or has been answered
/// otherwise, or the workload is gone.
pub const PAST: u32 = 3;

/// Who has sent a SYN. A *global* function of the object, as `zt_judge` is.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn zt_sender(arrival: *const Arrival, identity: *mut u64) -> u32 {
    if arrival.is_null() || identity.is_null() {
        return NOT_OURS;
    }
    // SAFETY: checked above; the verifier knows the sizes from the types.
    let arrival = unsafe { &*arrival };
    let key = SourceKey {
        // A loopback address is that of this namespace.
        source: arrival.remote.within(arrival.home),
        sequence: arrival.sequence,
        source_port: arrival.remote_port,
        reserved: 0,
    };
    // SAFETY: a live entry; one that is displaced meanwhile is another SYN's, whose sender is one of ours as well.
    let Some(source) = (unsafe { noted(&key).as_ref() }) else {
        return NOT_OURS;
    };
    if arrival.home != 0 && source.netns != arrival.home {
        // The same address of another namespace.
        return NOT_OURS;
    }
    // It is not said once only: one SYN cookie can make more than one socket.
    let other = arrival.answer != source.answered;
    if other || context::seconds().wrapping_sub(source.noted) > SOURCE_LIFE {
        return PAST;
    }
    let mut how = LED;
    if source.destination_port != 0 {
        let there = source.destination == arrival.local;
        if there && source.destination_port == arrival.local_port {
            how = MEANT;
        } else if !there && arrival.home == 0 {
            return PAST;
        }
    }
    // SAFETY: read once, copied at once.
    let known = match unsafe { maps::zt_workloads.get(source.workload) } {
        Some(workload) => workload.identity,
        // It never had a name.
        None if source.identity == identity::UNKNOWN => identity::UNKNOWN,
        // Somebody else may have its address by now.
        None => return PAST,
    };
    // SAFETY: checked above.
    unsafe { *identity = known };
    how
}

/// One of the two maps.
type Sources = LruHashMap<SourceKey, Source, 65_536>;

/// Notes a SYN. Of one whose destination may be translated, `destination_port` is 0. What another socket has noted under this key
/// stays as long as it counts: whoever makes a second SYN of the same numbers takes nobody's name with it.
///
/// An LRU map evicts rather than fails; a lost entry means naming the source by its address.
#[inline(always)]
fn note(map: &Sources, key: &SourceKey, source: &Source) {
    if map.insert(key, source, u64::from(BPF_NOEXIST)).is_err()
        && let Some(there) = map.get_ptr_mut(key)
    {
        // SAFETY: a live entry, whose words are read one by one.
        let (cookie, noted) = unsafe { ((*there).cookie, (*there).noted) };
        if cookie == source.cookie || source.noted.wrapping_sub(noted) > SOURCE_LIFE {
            let _ = map.insert(key, source, u64::from(BPF_ANY));
        }
    }
}

/// Before the SYN leaves: tells the other end, which may be on this node, whose connection this is.
///
/// Not later: a SYN that carries data (Fast Open) makes the destination's socket before the source has heard anything.
///
/// A *global* function of the object, as `zt_judge` is.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn zt_begun(ctx: *mut bpf_sock_ops) -> u32 {
    begun(&SockOpsContext::new(ctx));
    0
}

#[inline(always)]
fn begun(ctx: &SockOpsContext) {
    if !opens(ctx) {
        return;
    }
    let cookie = context::socket_cookie(ctx.as_ptr());
    let filed = maps::zt_connections.get_ptr_mut(cookie);
    let unknown = filed.is_none();
    // SAFETY: the entry belongs to this socket.
    let (here, meant, front, netns, workload, identity) = match filed.map(|place| unsafe { &mut *place }) {
        Some(connection) => {
            option::offer(ctx, connection);
            let virtually = connection.flags & CONNECTION_FRONT != 0;
            let here = connection.flags & CONNECTION_HERE != 0 && !virtually;
            if here || virtually && keys::in_force() {
                connection.flags |= CONNECTION_NOTED;
            }
            (
                here,
                here || virtually,
                connection.flags & (CONNECTION_INBOUND | CONNECTION_ELSEWHERE) == 0,
                connection.netns,
                connection.workload,
                connection.source,
            )
        }
        // There was no room for it, or nobody of ours called.
        None => match context::stored(socket_of(ctx)) {
            Some(socket) => (
                socket.flags & SOCKET_HERE != 0,
                socket.flags & SOCKET_HERE != 0,
                socket.flags & SOCKET_FRONT != 0,
                socket.netns,
                socket.workload,
                identity::UNKNOWN,
            ),
            None => (false, false, false, 0, 0, 0),
        },
    };
    // Who goes somewhere else may be led back here. Where nobody asks for proof his address is his name.
    let noted = here || front && keys::in_force();
    let ends = ends(ctx);
    if !noted {
        if unknown && is_local(context::netns_cookie(ctx.as_ptr()), &ends.remote) {
            unnoted::zt_caller_left(context::netns_cookie(ctx.as_ptr()));
        }
        return;
    }
    let mut source = Source {
        workload,
        identity,
        netns,
        cookie,
        answered: 0,
        destination: ends.remote,
        noted: context::seconds(),
        destination_port: ends.remote_port,
        reserved: 0,
    };
    if !here {
        source.destination = Address::UNSPECIFIED_V6;
        source.destination_port = 0;
    }
    // Not the next to be sent: the kernel asks for the time-out again before it repeats the SYN for the second time, and from then on.
    let key = key_of(ctx, &ends, unacknowledged(ctx));
    if meant {
        note(&maps::zt_sources, &key, &source);
    } else {
        note(&maps::zt_strays, &key, &source);
    }
}

/// Where the SYN of a socket is noted.
#[inline(always)]
fn key_of(ctx: &SockOpsContext, ends: &Ends, sequence: u32) -> SourceKey {
    SourceKey {
        source: ends.local.within(context::netns_cookie(ctx.as_ptr())),
        sequence,
        source_port: ends.local_port,
        reserved: 0,
    }
}

/// Of [`zt_taken`]: nobody has to ask. The destination is proven, and so will the source be.
pub const PROVEN: u32 = 1;
/// Of [`zt_taken`]: the SYN was noted in `zt_sources`, and what is not there any more was displaced.
pub const EXPECTED: u32 = 2;

/// Says which answer to its SYN the source has taken, or that nobody has to ask. `how` is an or of the constants above.
///
/// A *global* function of the object.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn zt_taken(ctx: *mut bpf_sock_ops, how: u32) -> u32 {
    let ctx = SockOpsContext::new(ctx);
    let ends = ends(&ctx);
    let key = key_of(&ctx, &ends, opened_with(&ctx));
    let place = noted(&key);
    if place.is_null() {
        let netns = context::netns_cookie(ctx.as_ptr());
        // Before this end acknowledges what it has taken, and the other one asks.
        if how & PROVEN == 0 && (how & EXPECTED != 0 || is_local(netns, &ends.remote)) {
            unnoted::zt_caller_left(netns);
        }
        return 0;
    }
    // SAFETY: a live entry.
    if unsafe { (*place).cookie } != context::socket_cookie(ctx.as_ptr()) {
        return 0;
    }
    if how & PROVEN != 0 {
        forget(&key);
    } else {
        // Nothing but the SYN-ACK has been received.
        let answer = Source::answer(next_received(&ctx).wrapping_sub(1));
        // SAFETY: a live entry; one write, before the socket acknowledges what it has taken.
        unsafe { (&raw mut (*place).answered).write_volatile(answer) };
    }
    0
}

/// What is noted of a SYN, in either map; null where nothing is.
#[inline(always)]
fn noted(key: &SourceKey) -> *mut Source {
    if let Some(place) = maps::zt_sources.get_ptr_mut(key) {
        return place;
    }
    match maps::zt_strays.get_ptr_mut(key) {
        Some(place) => place,
        None => core::ptr::null_mut(),
    }
}

/// Forgets a SYN: the other end has proven that it knows whose it is, and asks nobody else.
#[inline(always)]
fn forget(key: &SourceKey) {
    if maps::zt_sources.remove(key).is_err() {
        let _ = maps::zt_strays.remove(key);
    }
}
