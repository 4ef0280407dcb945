// SPDX-License-Identifier: Apache-2.0
//! What a follower says of its cgroup: a name, that it is nobody, or why SPIRE is not believed.

use std::io;
use std::sync::Arc;

use rustls::sign::CertifiedKey;

use super::{Current, End, Follower};
use crate::identity::spire::health::{Standing, Withdrawal};
use crate::identity::spire::subject::Subject;
use crate::identity::spire::svid::Svid;
use crate::identity::spire::{Attestation, Attested, OnExpiry};
use crate::spiffe_id::SpiffeId;

impl Follower {
    /// The cgroup is this identity.
    pub(super) async fn name(&mut self, svid: Svid, subject: &Subject) {
        let identity = Attested {
            spiffe: svid.id,
            expires: svid.expires,
        };
        let before = self.current.replace(Current {
            identity: identity.clone(),
            digest: Some(svid.digest),
            held: false,
            process: Some(subject.birth()),
        });
        self.stand();
        if before.as_ref().and_then(|before| before.digest) != Some(svid.digest) {
            for outside in svid.outside {
                if self.shared.health.outside(outside, &identity.spiffe.text()) {
                    tracing::warn!(spiffe = %identity.spiffe, "an SVID is not as it should be: {}", outside.remedy());
                }
            }
        }
        let same = before
            .as_ref()
            .filter(|before| before.identity.spiffe == identity.spiffe);
        if let Some(before) = same {
            let rotated = before.digest.is_some_and(|digest| digest != svid.digest);
            if rotated {
                self.shared.health.rotated(&identity.spiffe.text());
                tracing::debug!(cgroup = %self.path.display(), spiffe = %identity.spiffe, "a new SVID");
            }
            if before.identity == identity {
                return;
            }
        } else {
            tracing::info!(cgroup = %self.path.display(), spiffe = %identity.spiffe, "attested by SPIRE");
        }
        self.say(Ok(identity)).await;
    }

    /// Other nodes can be shown its SVID.
    pub(super) fn show(&self, id: &SpiffeId, svid: Option<&Arc<CertifiedKey>>) {
        let (Some(svids), Some(svid)) = (&self.shared.svids, svid) else {
            return;
        };
        svids.send_if_modified(|svids| {
            let known = svids.insert(self.cgroup, (id.clone(), Arc::clone(svid)));
            known.is_none_or(|(_, known)| !Arc::ptr_eq(&known, svid))
        });
    }

    /// No SVID of it is shown any more.
    pub(super) fn show_nothing(&self) {
        if let Some(svids) = &self.shared.svids {
            svids.send_if_modified(|svids| svids.remove(&self.cgroup).is_some());
        }
    }

    /// The cgroup is nobody.
    pub(super) async fn withdraw(&mut self, why: Withdrawal) {
        let Some(before) = self.current.take() else {
            return;
        };
        self.show_nothing();
        self.shared.health.withdrawn(why);
        tracing::warn!(
            cgroup = %self.path.display(),
            spiffe = %before.identity.spiffe,
            why = why.cause(),
            "identity withdrawn"
        );
        self.say(Err(why)).await;
    }

    async fn say(&self, identity: Result<Attested, Withdrawal>) {
        let attestation = Attestation {
            cgroup: self.path.clone(),
            cgroup_id: self.cgroup,
            identity,
        };
        // Nobody listens any more when the agent stops.
        let _ = self.shared.said.send(attestation).await;
    }

    pub(super) fn stand(&self) {
        let standing = match &self.current {
            None => Standing::Waiting,
            Some(current) if current.held => Standing::Held,
            Some(_) => Standing::Named,
        };
        self.shared.health.stands(self.cgroup, Some(standing));
    }

    /// The SVID has expired.
    pub(super) async fn expired(&mut self) {
        match (self.shared.settings.on_expiry, &mut self.current) {
            (OnExpiry::Hold, Some(current)) => {
                current.held = true;
                tracing::warn!(
                    cgroup = %self.path.display(),
                    spiffe = %current.identity.spiffe,
                    "the SVID has expired; the identity is held (`onExpiry: hold`)"
                );
            }
            _ => self.withdraw(Withdrawal::Expired).await,
        }
        self.stand();
    }

    /// It cannot be found out who is in the cgroup; what was known stays until it expires. Said once.
    pub(super) fn unreadable(&mut self, error: &io::Error) {
        let why = error.to_string();
        if self.refusal != why {
            tracing::warn!(cgroup = %self.path.display(), %error, "who runs in a cgroup cannot be found out; its name stays");
            self.refusal = why;
        }
    }

    /// What SPIRE says is not believed; what was known stays until it expires.
    pub(super) fn refused(&mut self, cause: &'static str, why: &str) -> End {
        self.shared.health.refused(cause, why);
        if self.refusal != why {
            why.clone_into(&mut self.refusal);
            tracing::warn!(cgroup = %self.path.display(), cause, "refused what SPIRE says of a workload: {why}");
        }
        End::Later
    }
}
