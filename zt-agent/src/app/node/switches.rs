// SPDX-License-Identifier: Apache-2.0
//! The switches of `zt_control`. The agent writes them; break-glass may also be pulled by hand while no agent answers,
//! which the agent then makes its own and records.

use std::sync::Arc;

use zt_common::control::{
    DIAGNOSTICS, HANDSHAKE, HAS_ENFORCED, HAS_SERVICES, OBSERVE_ALL, PROOF_WAITS, UNKNOWN_DENY,
    UNRECORDED_OBSERVE, UNRECORDED_RESTORE,
};

use super::{AppError, Node};
use crate::audit::pipeline::ApiEvent;
use crate::config::{Handshake, UnknownWorkload};

impl Node {
    /// Reads what a predecessor, of whatever version, or somebody's hand has left.
    pub(super) fn read_switches(&mut self) -> Result<(), AppError> {
        let own = self.parts.kernel.flags()?;
        let first = self.parts.kernel.left_in_force()?.is_empty();
        let others = if first {
            self.parts.kernel.flags_of_other_versions()
        } else {
            0
        };
        let flags = own | others;
        self.observe_written = own & OBSERVE_ALL != 0;
        self.observe_all = flags & OBSERVE_ALL != 0;
        self.note_unrecorded(flags);
        if self.observe_all {
            tracing::warn!(
                "break-glass is on: nothing is refused on this node until `zt-agent mode restore`"
            );
        }
        Ok(())
    }

    /// Writes the switches.
    pub(super) fn write_control(&mut self) -> Result<(), AppError> {
        self.adopt_switches()?;
        self.write_switches()
    }

    /// Renews the key of the tags that prove identities, when it is time.
    pub(super) fn renew_key(&mut self) -> Result<(), AppError> {
        if self.parts.config.handshake == Handshake::Auto && self.parts.kernel.renew_key()? {
            tracing::info!("a new key proves identities in handshakes; the one before is still accepted");
        }
        Ok(())
    }

    /// The keys of those tags, from time to time: a new one, or none where nobody makes tags.
    pub(super) fn tend_keys(&mut self) -> Result<(), AppError> {
        match self.parts.config.handshake {
            Handshake::Auto => self.renew_key(),
            Handshake::Off => Ok(self.parts.kernel.forget_keys()?),
        }
    }

    /// Makes a change of break-glass that somebody else wrote into the kernel this agent's own.
    pub(super) fn adopt_switches(&mut self) -> Result<(), AppError> {
        let flags = self.parts.kernel.flags()?;
        let on = flags & OBSERVE_ALL != 0;
        if on == self.observe_written {
            return Ok(());
        }
        self.observe_written = on;
        self.note_unrecorded(flags);
        self.record_by_hand(on);
        self.observe_all = on;
        self.mode_changed("by hand, in the kernel's map");
        Ok(())
    }

    pub(super) fn set_observe_all(&mut self, on: bool) -> Result<(), AppError> {
        self.adopt_switches()?;
        self.observe_all = on;
        self.write_switches()?;
        self.mode_changed("over the API");
        Ok(())
    }

    fn mode_changed(&mut self, how: &str) {
        self.publish();
        if self.observe_all {
            tracing::warn!(
                how,
                "break-glass: nothing is refused on this node until `zt-agent mode restore`"
            );
        } else {
            tracing::warn!(how, "break-glass is over: the workloads' own modes hold again");
            self.sweep_after_modes();
        }
        self.cut_off_raw();
    }

    fn write_switches(&mut self) -> Result<(), AppError> {
        let unrecorded = |on| self.unrecorded.contains(&on);
        let proving = self.parts.config.handshake == Handshake::Auto;
        let flags = [
            (self.observe_all, OBSERVE_ALL),
            (
                self.parts.config.unknown_workload == UnknownWorkload::Deny,
                UNKNOWN_DENY,
            ),
            (self.any_enforced(), HAS_ENFORCED),
            (self.parts.kernel.services() > 0, HAS_SERVICES),
            (self.diagnostics, DIAGNOSTICS),
            (proving && !self.beside, HANDSHAKE),
            (proving && self.beside, PROOF_WAITS),
            (unrecorded(true), UNRECORDED_OBSERVE),
            (unrecorded(false), UNRECORDED_RESTORE),
        ];
        let flags = flags
            .into_iter()
            .filter(|(on, _)| *on)
            .fold(0, |flags, (_, flag)| flags | flag);
        self.parts
            .kernel
            .set_control(flags, self.host_netns, &self.parts.roots)?;
        self.observe_written = self.observe_all;
        Ok(())
    }

    /// What was done by hand, in order: what holds now came last.
    fn note_unrecorded(&mut self, flags: u64) {
        let now = flags & OBSERVE_ALL != 0;
        for (on, flag) in [(!now, flag_of(!now)), (now, flag_of(now))] {
            if flags & flag != 0 {
                self.record_by_hand(on);
            }
        }
    }

    /// Has a change that was made by hand recorded. The note in the kernel stays until that is stored: an agent that dies
    /// before leaves it to the next one.
    fn record_by_hand(&mut self, on: bool) {
        if self.unrecorded.last() == Some(&on) {
            return;
        }
        self.unrecorded.push(on);
        let event = ApiEvent::ModeChanged {
            observe_all: on,
            caller: Arc::from("zt-agent mode, without the agent"),
            revision: self.revision,
        };
        if self.parts.by_hand.send(event).is_err() {
            tracing::error!(
                "break-glass by hand is not recorded: the agent is stopping; its next start does"
            );
        }
    }

    /// The oldest change that was made by hand is stored.
    pub(super) fn recorded(&mut self) -> Result<(), AppError> {
        if !self.unrecorded.is_empty() {
            self.unrecorded.remove(0);
        }
        self.write_control()
    }
}

const fn flag_of(on: bool) -> u64 {
    if on {
        UNRECORDED_OBSERVE
    } else {
        UNRECORDED_RESTORE
    }
}
