// SPDX-License-Identifier: Apache-2.0
//! The allow table in force, and the verdict function over it.

use zt_common::control::{Control, PROOF_WAITS};
use zt_common::entry::{AllowEntry, AllowKey, Flow};
use zt_common::verdict::{self, AllowLookup, Reason, Verdict};

use crate::maps;

/// The allow table in force, as the verdict function sees it.
pub struct Table(&'static maps::AllowTable);

impl Table {
    /// The table in force, or `None` before the first was put in place.
    #[inline(always)]
    pub fn in_force() -> Option<Self> {
        maps::zt_allow.get(0).map(|table| {
            // SAFETY: an inner map that a program has looked up lives until the program returns.
            Self(unsafe { &*core::ptr::from_ref(table) })
        })
    }

    /// Its revision.
    #[inline(always)]
    pub fn revision(&self) -> u64 {
        self.get(&AllowKey::HEADER).map_or(0, |header| header.number)
    }
}

impl AllowLookup for Table {
    #[inline(always)]
    fn get(&self, key: &AllowKey) -> Option<AllowEntry> {
        // SAFETY: a table in force only ever gains entries; the value is copied at once.
        unsafe { self.0.get(key) }.copied()
    }
}

/// What the table in force says about a flow.
#[inline(always)]
pub fn judge(flow: &Flow) -> Verdict {
    let mut judged = Judged { rule: 0, revision: 0 };
    let port_and_protocol = u32::from(flow.port) | u32::from(flow.protocol) << 16;
    let answer = zt_judge(flow.source, flow.destination, port_and_protocol, &raw mut judged);
    Verdict {
        allowed: answer & ALLOWED_BIT != 0,
        // SAFETY: the low byte is a `Reason` that `zt_judge` cast to its number.
        reason: unsafe { core::mem::transmute::<u8, Reason>(answer as u8) },
        rule: judged.rule,
        revision: judged.revision,
        proof: answer & PROOF_BIT != 0,
    }
}

const ALLOWED_BIT: u32 = 1 << 8;
const PROOF_BIT: u32 = 1 << 9;

/// The part of a verdict that `zt_judge` hands back through memory.
#[repr(C)]
pub struct Judged {
    rule: u64,
    revision: u64,
}

/// The verdict function over the table in force: the reason's number, [`ALLOWED_BIT`] and [`PROOF_BIT`].
///
/// A *global* function of the object: the verifier looks at it once, by itself, and not again for every state of
/// every caller. Its search over the shapes of a table would otherwise exceed what the verifier is willing to walk.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn zt_judge(
    source: u64,
    destination: u64,
    port_and_protocol: u32,
    judged: *mut Judged,
) -> u32 {
    if judged.is_null() {
        return Reason::NoPolicy as u32;
    }
    let flow = Flow {
        source,
        destination,
        port: port_and_protocol as u16,
        protocol: (port_and_protocol >> 16) as u8,
    };
    let verdict = match Table::in_force() {
        Some(table) => verdict::verdict(&table, &flow),
        None => Verdict::refusal(Reason::NoPolicy, 0),
    };
    // SAFETY: checked above; the verifier knows the size from the type.
    unsafe {
        (*judged).rule = verdict.rule;
        (*judged).revision = verdict.revision;
    }
    let allowed = if verdict.allowed { ALLOWED_BIT } else { 0 };
    let proof = if verdict.proof { PROOF_BIT } else { 0 };
    verdict.reason as u32 | allowed | proof
}

/// Whether another version's programs see to it that who has to prove something does.
#[inline(always)]
pub fn proof_waits(control: &Control) -> bool {
    control.flags & PROOF_WAITS != 0
}

/// The revision in force, 0 before the first.
#[inline(always)]
pub fn revision() -> u64 {
    match Table::in_force() {
        Some(table) => table.revision(),
        None => 0,
    }
}
