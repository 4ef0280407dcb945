// SPDX-License-Identifier: Apache-2.0
//! What of what the other end says is believed.

use std::sync::Arc;

use super::Connection;
use crate::identity::peers::{Refusal, Resident};
use crate::peers::proof;
use crate::peers::protocol::Proof;
use crate::spiffe_id::SpiffeId;

impl Connection<'_> {
    /// It says that an identity lives there.
    pub(super) fn shown(&mut self, id: &SpiffeId, proof: Option<&Proof>) {
        match self.is_held(id, proof) {
            Ok(expires) => {
                if let Err(refusal) = self.pair.table().holds(id.clone(), expires) {
                    self.pair
                        .refused(refusal, &format!("{id} is more than a node can have"));
                }
            }
            Err(why) => {
                self.doubts |= proof.is_some();
                self.pair.refused(Refusal::Identity, &format!("{id}: {why}"));
            }
        }
    }

    /// Until when, Unix seconds.
    fn is_held(&self, id: &SpiffeId, proof: Option<&Proof>) -> Result<i64, String> {
        let shared = self.pair.shared();
        let domain = &shared.settings.trust_domain;
        if id.trust_domain() != domain {
            return Err(format!("it is not in the trust domain `{domain}`"));
        }
        if self.pair.speaker().may_say(id) {
            return Ok(i64::MAX);
        }
        let proof = proof.ok_or("it shows no SVID, and `identities` of the node does not name it")?;
        let certificates = Arc::clone(&shared.certificates.borrow());
        let certificates = certificates
            .as_ref()
            .as_ref()
            .ok_or("this agent has no certificates")?;
        proof::check(proof, id, &self.binding, self.role.other(), certificates)
            .map_err(|error| error.to_string())
    }

    pub(super) fn placed(&mut self, resident: Resident) {
        let (address, id) = (resident.address, resident.spiffe.clone());
        if let Err(refusal) = self.pair.table().at(resident) {
            let why = match refusal {
                Refusal::Address => format!("{address} is none of its addresses"),
                Refusal::Identity => format!("{id} at {address}: it has not shown to hold that identity"),
                Refusal::TooMany => format!("{address} is more than a node can have"),
            };
            self.pair.refused(refusal, &why);
        }
    }
}
