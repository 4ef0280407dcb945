// SPDX-License-Identifier: Apache-2.0
//! Bytes of the ring buffer → typed events.
//!
//! The kernel side is trusted to be well meant, not to be of this version: nothing is transmuted, every number that
//! stands for something is looked up, and what does not fit is an error that says what was found.

use zt_common::ABI_VERSION;
use zt_common::address::Address;
use zt_common::event::{
    ALLOWED, DecisionEvent, ENFORCED, Hook, INBOUND, IPV6, KIND_DECISION, KIND_NOTICE, NOTICE_UDP_BOUND,
    NOTICE_UNOWNED_LISTENER, NoticeEvent, REFUSED_SOCKET,
};
use zt_common::proof::Proof;
use zt_common::verdict::Reason;

/// One event of `zt_events`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Something was decided.
    Decision(Decision),
    /// Something needs the agent.
    Notice(Notice),
}

/// A [`DecisionEvent`] whose numbers have been checked. Identities and rules are still numbers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "they are the flags of the event, independent of each other"
)]
pub struct Decision {
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub time: u64,
    /// Number of the source identity.
    pub source: u64,
    /// Number of the destination identity.
    pub destination: u64,
    /// Number of the rule that decided, or 0.
    pub rule: u64,
    /// Revision that decided.
    pub revision: u64,
    /// The workload (cgroup id) at the end that decided, or 0.
    pub workload: u64,
    /// Socket cookie, or 0.
    pub cookie: u64,
    /// Cookie of the network namespace at that end.
    pub netns: u64,
    /// Source address; unspecified where it is not chosen yet.
    pub source_address: Address,
    /// Destination address, as that end's socket sees it.
    pub destination_address: Address,
    /// Source port, or 0 where it is not chosen yet.
    pub source_port: u16,
    /// Destination port, as that end's socket sees it.
    pub destination_port: u16,
    /// The port that policy speaks about.
    pub target_port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// Where it was decided.
    pub hook: Hook,
    /// Thread group of the task, or 0.
    pub pid: u32,
    /// Time that the decision took, nanoseconds.
    pub latency: u32,
    /// Why.
    pub reason: Reason,
    /// Policy allows.
    pub allowed: bool,
    /// This end enforces.
    pub enforced: bool,
    /// The destination's end decided.
    pub inbound: bool,
    /// There is a fenced socket, which waits to be destroyed.
    pub refused_socket: bool,
    /// The socket is of the IPv6 family.
    pub ipv6: bool,
    /// How the other end proved who it is.
    pub proof: Proof,
    /// The last SYN bore no identity option, because nobody had answered those that did.
    pub omitted: bool,
    /// Name of the task, NUL-padded, or zeros.
    pub comm: [u8; 16],
}

/// A [`NoticeEvent`] whose code is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notice {
    /// What there is to see.
    pub code: NoticeCode,
    /// Thread group of the task, or 0.
    pub pid: u32,
    /// The workload (cgroup id) concerned.
    pub workload: u64,
    /// Cookie of the network namespace concerned.
    pub netns: u64,
}

/// What a [`Notice`] is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NoticeCode {
    /// A workload bound a UDP port: its datagrams need the receive guard.
    UdpBound,
    /// A socket listens whose owner no hook saw: it never called `bind`.
    UnownedListener,
}

/// Why bytes are not an event. Each is counted as undecodable and the reader goes on with the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Shorter than its own header or than the size that the header gives.
    #[error("event is cut off: {found} bytes where {expected} were announced")]
    Truncated {
        /// Bytes that there should have been.
        expected: usize,
        /// Bytes that there were.
        found: usize,
    },
    /// Another version of the layout.
    #[error(
        "event has layout version {found}, this agent reads {ABI_VERSION}: are the kernel programs of another release?"
    )]
    Version {
        /// The version found.
        found: u16,
    },
    /// Not the size of its kind.
    #[error("event of kind {kind} has {found} bytes where that kind has {expected}")]
    Size {
        /// The kind.
        kind: u16,
        /// Bytes of that kind.
        expected: usize,
        /// Bytes found.
        found: usize,
    },
    /// No such kind.
    #[error("event is of the unknown kind {found}")]
    Kind {
        /// The kind found.
        found: u16,
    },
    /// No such hook.
    #[error("decision names the unknown hook {found}")]
    Hook {
        /// The number found.
        found: u8,
    },
    /// No such reason.
    #[error("decision names the unknown reason {found}")]
    Reason {
        /// The number found.
        found: u8,
    },
    /// No such proof.
    #[error("decision names the unknown proof {found}")]
    Proof {
        /// The number found.
        found: u8,
    },
    /// A flag that this version does not have.
    #[error("decision has unknown flags: {found:#010b}")]
    Flags {
        /// All flags found.
        found: u8,
    },
    /// No such notice.
    #[error("notice has the unknown code {found}")]
    Notice {
        /// The code found.
        found: u32,
    },
}

const HEADER_SIZE: usize = 8;
const KNOWN_FLAGS: u8 = ALLOWED | ENFORCED | INBOUND | REFUSED_SOCKET | IPV6;

/// Decodes one sample of the ring buffer.
pub fn decode(bytes: &[u8]) -> Result<Event, DecodeError> {
    let mut cursor = Cursor {
        rest: bytes,
        length: bytes.len(),
    };
    let version = u16::from_ne_bytes(cursor.take()?);
    let size = usize::from(u16::from_ne_bytes(cursor.take()?));
    let kind = u16::from_ne_bytes(cursor.take()?);
    let _reserved: [u8; 2] = cursor.take()?;
    // The version comes first: another layout may mean something else by every field behind it.
    if version != ABI_VERSION {
        return Err(DecodeError::Version { found: version });
    }
    let expected = match kind {
        KIND_DECISION => size_of::<DecisionEvent>(),
        KIND_NOTICE => size_of::<NoticeEvent>(),
        found => return Err(DecodeError::Kind { found }),
    };
    if size != expected {
        return Err(DecodeError::Size {
            kind,
            expected,
            found: size,
        });
    }
    if bytes.len() < expected {
        return Err(DecodeError::Truncated {
            expected,
            found: bytes.len(),
        });
    }
    if bytes.len() > expected {
        return Err(DecodeError::Size {
            kind,
            expected,
            found: bytes.len(),
        });
    }
    if kind == KIND_DECISION {
        decision(&mut cursor).map(Event::Decision)
    } else {
        notice(&mut cursor).map(Event::Notice)
    }
}

/// Reads the fields behind the header in the order of [`DecisionEvent`].
fn decision(cursor: &mut Cursor<'_>) -> Result<Decision, DecodeError> {
    let time = u64::from_ne_bytes(cursor.take()?);
    let source = u64::from_ne_bytes(cursor.take()?);
    let destination = u64::from_ne_bytes(cursor.take()?);
    let rule = u64::from_ne_bytes(cursor.take()?);
    let revision = u64::from_ne_bytes(cursor.take()?);
    let workload = u64::from_ne_bytes(cursor.take()?);
    let cookie = u64::from_ne_bytes(cursor.take()?);
    let netns = u64::from_ne_bytes(cursor.take()?);
    let source_address = Address(cursor.take()?);
    let destination_address = Address(cursor.take()?);
    let source_port = u16::from_ne_bytes(cursor.take()?);
    let destination_port = u16::from_ne_bytes(cursor.take()?);
    let target_port = u16::from_ne_bytes(cursor.take()?);
    let [protocol] = cursor.take()?;
    let [hook] = cursor.take()?;
    let pid = u32::from_ne_bytes(cursor.take()?);
    let latency = u32::from_ne_bytes(cursor.take()?);
    let [reason] = cursor.take()?;
    let [flags] = cursor.take()?;
    let [proof] = cursor.take()?;
    let [omitted] = cursor.take()?;
    let _reserved: [u8; 4] = cursor.take()?;
    let comm = cursor.take()?;
    if flags & !KNOWN_FLAGS != 0 {
        return Err(DecodeError::Flags { found: flags });
    }
    Ok(Decision {
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
        hook: Hook::from_number(hook).ok_or(DecodeError::Hook { found: hook })?,
        pid,
        latency,
        reason: Reason::from_number(reason).ok_or(DecodeError::Reason { found: reason })?,
        allowed: flags & ALLOWED != 0,
        enforced: flags & ENFORCED != 0,
        inbound: flags & INBOUND != 0,
        refused_socket: flags & REFUSED_SOCKET != 0,
        ipv6: flags & IPV6 != 0,
        proof: Proof::from_number(proof).ok_or(DecodeError::Proof { found: proof })?,
        omitted: omitted != 0,
        comm,
    })
}

fn notice(cursor: &mut Cursor<'_>) -> Result<Notice, DecodeError> {
    let code = match u32::from_ne_bytes(cursor.take()?) {
        NOTICE_UDP_BOUND => NoticeCode::UdpBound,
        NOTICE_UNOWNED_LISTENER => NoticeCode::UnownedListener,
        found => return Err(DecodeError::Notice { found }),
    };
    Ok(Notice {
        code,
        pid: u32::from_ne_bytes(cursor.take()?),
        workload: u64::from_ne_bytes(cursor.take()?),
        netns: u64::from_ne_bytes(cursor.take()?),
    })
}

/// Reads from the front, and never past the end.
struct Cursor<'a> {
    rest: &'a [u8],
    length: usize,
}

impl Cursor<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let Some((head, rest)) = self.rest.split_first_chunk::<N>() else {
            return Err(DecodeError::Truncated {
                expected: self.length - self.rest.len() + N,
                found: self.length,
            });
        };
        self.rest = rest;
        Ok(*head)
    }
}

const _: () = assert!(size_of::<zt_common::event::EventHeader>() == HEADER_SIZE);

#[cfg(test)]
mod tests;
