// SPDX-License-Identifier: Apache-2.0
//! What of what the other end says is believed.

use std::sync::Arc;

use super::Connection;
use crate::identity::peers::{Evidence, Refusal, Resident};
use crate::peers::proof;
use crate::peers::protocol::Proof;
use crate::spiffe_id::SpiffeId;

impl Connection<'_> {
    /// It says that an identity lives there.
    pub(super) fn shown(&mut self, id: &SpiffeId, proof: Option<&Proof>) {
        match self.is_held(id, proof) {
            Ok(Some(evidence)) => {
                if let Err(refusal) = self.pair.table().holds(id.clone(), evidence) {
                    self.pair
                        .refused(refusal, &format!("{id} is more than a node can have"));
                }
            }
            // What it has shown before is enough, as long as that lasts.
            Ok(None) => self.pair.table().says(id),
            Err(why) => {
                self.doubts |= proof.is_some();
                self.pair.table().says(id);
                self.pair.refused(Refusal::Identity, &format!("{id}: {why}"));
            }
        }
    }

    /// By what; `None` where nothing is shown.
    fn is_held(&self, id: &SpiffeId, proof: Option<&Proof>) -> Result<Option<Evidence>, String> {
        let shared = self.pair.shared();
        let domain = &shared.settings.trust_domain;
        if id.trust_domain() != domain {
            return Err(format!("it is not in the trust domain `{domain}`"));
        }
        if self.pair.speaker().may_say(id) {
            return Ok(Some(Evidence::CONFIGURED));
        }
        let Some(proof) = proof else { return Ok(None) };
        let certificates = Arc::clone(&shared.certificates.borrow());
        let certificates = certificates
            .as_ref()
            .as_ref()
            .ok_or("this agent has no certificates")?;
        let checked = proof::check(proof, id, &self.binding, self.role.other(), certificates);
        checked.map(Some).map_err(|error| error.to_string())
    }

    pub(super) fn placed(&mut self, resident: Resident) {
        let (address, id) = (resident.address, resident.spiffe.clone());
        let domain = &self.pair.shared().settings.trust_domain;
        if id.trust_domain() != domain {
            let why = format!("{id} at {address}: it is not in the trust domain `{domain}`");
            self.pair.refused(Refusal::Identity, &why);
            return;
        }
        if let Err(refusal) = self.pair.table().at(resident) {
            let why = match refusal {
                Refusal::Address => format!("{address} is none of its addresses"),
                Refusal::Identity => format!("{id} at {address}: it does not hold that identity"),
                Refusal::TooMany => format!("{address} is more than a node can have"),
            };
            self.pair.refused(refusal, &why);
        }
    }
}
