// SPDX-License-Identifier: Apache-2.0
//! Who inserted the entries of one chain.

use std::sync::Arc;

use uuid::Uuid;

use super::Finding;
use super::report::Report;

/// Logins of one chain that are told one by one.
const MOST: usize = 16;

/// What one login inserted.
#[derive(Debug)]
struct Login {
    name: Arc<str>,
    entries: u64,
    first: u64,
    last: u64,
}

/// The logins that inserted a chain's entries, in the order of those.
#[derive(Debug, Default)]
pub(super) struct Logins(Vec<Login>);

impl Logins {
    /// An entry that a login inserted.
    pub(super) fn note(&mut self, name: &Arc<str>, seq: u64) {
        // As a rule there is no other.
        if let Some(login) = self.0.iter_mut().find(|login| login.name == *name) {
            login.entries += 1;
            login.last = login.last.max(seq);
        } else if self.0.len() < MOST {
            self.0.push(Login {
                name: Arc::clone(name),
                entries: 1,
                first: seq,
                last: seq,
            });
        }
    }

    /// Names every login but the first. Where nothing is wrong with the chain and all that they inserted is signed, the
    /// entries are the writer's own: its node has got another login.
    pub(super) fn tell(&self, writer: Uuid, sealed: u64, wrong: bool, report: &mut Report) {
        let Some((first, others)) = self.0.split_first() else {
            return;
        };
        let proven = !wrong && self.0.iter().all(|login| login.last <= sealed);
        for login in others {
            let finding = Finding::SecondLogin {
                writer,
                login: login.name.to_string(),
                other: first.name.to_string(),
                entries: login.entries,
                first: login.first,
                last: login.last,
            };
            if proven {
                report.remarks.push(format!(
                    "{finding}; all of them are signed as its own: the node's login was changed"
                ));
            } else {
                report.found(finding);
            }
        }
    }
}
