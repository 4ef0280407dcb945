// SPDX-License-Identifier: Apache-2.0
//! What this end has to say: all of it at first, then what changes. It is written when there is room, never all at once.

use std::collections::{BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use crate::identity::peers::{Local, Resident};
use crate::peers::keys::Role;
use crate::peers::proof::{self, Binding};
use crate::peers::protocol::{MOST_TOGETHER, Message};
use crate::spiffe_id::SpiffeId;

/// One thing to be said. What it is then is looked up when it is said.
#[derive(Debug, PartialEq, Eq)]
enum Say {
    Holds(Arc<str>),
    At(IpAddr),
    Gone(IpAddr),
    Lets(Arc<str>),
    Whole,
}

/// What is still to be said.
#[derive(Debug, Default)]
pub(super) struct Saying {
    /// What the other end knows when all of `left` is said.
    local: Arc<Local>,
    left: VecDeque<Say>,
    /// Identities that the other end has been told of.
    told: BTreeSet<Arc<str>>,
    has_begun: bool,
}

impl Saying {
    /// Everything, to somebody who knows nothing.
    pub(super) fn begin(&mut self, local: Arc<Local>) {
        *self = Self {
            has_begun: true,
            ..Self::default()
        };
        self.change_to(local);
        self.left.push_back(Say::Whole);
    }

    /// Whether it was begun to say everything.
    pub(super) fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// What is different by now. Whoever comes to an address is told of before whoever was there goes.
    pub(super) fn change_to(&mut self, local: Arc<Local>) {
        let before = std::mem::replace(&mut self.local, local);
        let mut shown = BTreeSet::new();
        for (text, identity) in &self.local.identities {
            let known = before.identities.get(text);
            if known.is_none_or(|known| identity.differs(known)) {
                self.left.push_back(Say::Holds(Arc::clone(text)));
                shown.insert(text.as_ref());
            }
        }
        for (address, resident) in &self.local.residents {
            // An older agent does not believe that anybody is there who was not shown before.
            if before.residents.get(address) != Some(resident) || shown.contains(resident.spiffe.as_str()) {
                self.left.push_back(Say::At(*address));
            }
        }
        let gone = before.residents.keys();
        let gone = gone.filter(|address| !self.local.residents.contains_key(*address));
        self.left.extend(gone.map(|address| Say::Gone(*address)));
        let lets = before.identities.keys();
        let lets = lets.filter(|text| !self.local.identities.contains_key(*text));
        self.left.extend(lets.map(|text| Say::Lets(Arc::clone(text))));
    }

    /// How much is still to be said.
    pub(super) fn left(&self) -> usize {
        self.left.len()
    }

    /// The next message, if there is something to say.
    pub(super) fn next(&mut self, binding: &Binding, role: Role) -> Option<Message> {
        loop {
            let message = match self.left.pop_front()? {
                Say::Whole => Some(Message::Whole {}),
                Say::Holds(text) => self.holds(&text, binding, role),
                Say::Lets(text) => self.lets(&text),
                Say::At(first) => self.at(first),
                Say::Gone(first) => self.gone(first),
            };
            if message.is_some() {
                return message;
            }
        }
    }

    fn lets(&mut self, text: &Arc<str>) -> Option<Message> {
        // It may be back.
        if self.local.identities.contains_key(text) || !self.told.remove(text) {
            return None;
        }
        let spiffe = SpiffeId::parse(text).ok()?;
        Some(Message::Lets { spiffe })
    }

    fn holds(&mut self, text: &Arc<str>, binding: &Binding, role: Role) -> Option<Message> {
        let identity = self.local.identities.get(text)?;
        self.told.insert(Arc::clone(text));
        let proof = match &identity.svid {
            None => None,
            Some(svid) => match proof::show(binding, role, svid) {
                Ok(proof) => Some(proof),
                Err(error) => {
                    tracing::warn!(spiffe = %text, %error, "other nodes cannot be shown that this identity lives here");
                    None
                }
            },
        };
        Some(Message::Holds {
            spiffe: identity.spiffe.clone(),
            proof,
        })
    }

    fn at(&mut self, first: IpAddr) -> Option<Message> {
        let mut residents = Vec::new();
        let mut next = Some(first);
        while let Some(address) = next {
            // Whoever has gone meanwhile is said to be gone later on, and a newcomer is said to be there after who it is.
            let resident = self.local.residents.get(&address);
            let is_told =
                |resident: &&Resident| resident.silent || self.told.contains(resident.spiffe.as_str());
            let known = resident.filter(is_told);
            residents.extend(known.cloned());
            next = match self.left.front() {
                Some(Say::At(address)) if residents.len() < MOST_TOGETHER => Some(*address),
                _ => None,
            };
            if next.is_some() {
                self.left.pop_front();
            }
        }
        (!residents.is_empty()).then_some(Message::At { residents })
    }

    fn gone(&mut self, first: IpAddr) -> Option<Message> {
        let mut addresses = Vec::new();
        let mut next = Some(first);
        while let Some(address) = next {
            if !self.local.residents.contains_key(&address) {
                addresses.push(address);
            }
            next = match self.left.front() {
                Some(Say::Gone(address)) if addresses.len() < MOST_TOGETHER => Some(*address),
                _ => None,
            };
            if next.is_some() {
                self.left.pop_front();
            }
        }
        (!addresses.is_empty()).then_some(Message::Gone { addresses })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::identity::peers::{Evidence, Identity, Neighbour, Speaker, Table};
    use crate::spiffe_id::Pattern;

    fn local(at: &[(u8, u8)]) -> Arc<Local> {
        let id = |name: u8| SpiffeId::parse(&format!("spiffe://hanzo.ai/w/{name}")).expect("literal");
        let mut local = Local::default();
        for (last, name) in at {
            let address = IpAddr::from([10, 0, 0, last % 16]);
            let spiffe = id(name % 8);
            let resident = Resident {
                address,
                spiffe: spiffe.clone(),
                incarnation: u64::from(*name),
                silent: name % 16 >= 8,
            };
            local.residents.insert(address, resident);
        }
        for resident in local.residents.values().filter(|resident| !resident.silent) {
            let spiffe = resident.spiffe.clone();
            local
                .identities
                .insert(spiffe.text(), Identity { spiffe, svid: None });
        }
        Arc::new(local)
    }

    fn table() -> Table {
        let neighbour = Neighbour {
            name: "a".into(),
            address: "a:1".into(),
            speaks_for: vec!["10.0.0.0/8".parse().expect("literal")],
            created: 0,
            says: Vec::new(),
            identities: vec![Pattern::parse("*").expect("literal")],
        };
        let agent = SpiffeId::parse("spiffe://hanzo.ai/a").expect("literal");
        Table::new(Arc::new(Speaker::new(neighbour, agent)), 0)
    }

    proptest! {
        /// Whatever changes while how much of it is being said: in the end the other end knows what is so, and never believes
        /// what was not said.
        #[test]
        fn the_other_end_knows_in_the_end(
            states in proptest::collection::vec(
                (proptest::collection::vec((any::<u8>(), any::<u8>()), 0..24), 0_usize..30), 1..8),
        ) {
            let binding = Binding::for_tests();
            let mut table = table();
            table.begin();
            let mut saying = Saying::default();
            let mut hear = |saying: &mut Saying| -> bool {
                match saying.next(&binding, Role::Dials) {
                    None => return false,
                    Some(Message::Holds { spiffe, .. }) => table.holds(spiffe, Evidence::CONFIGURED).expect("few"),
                    Some(Message::Lets { spiffe }) => table.lets(&spiffe),
                    Some(Message::At { residents }) => for resident in residents {
                        table.at(resident).expect("ours");
                    },
                    Some(Message::Gone { addresses }) => addresses.into_iter().for_each(|address| table.gone(address)),
                    Some(Message::Whole {}) => table.whole(),
                    Some(other) => panic!("{other:?}"),
                }
                true
            };
            let mut last = Arc::default();
            for (index, (state, steps)) in states.iter().enumerate() {
                last = local(state);
                if index == 0 {
                    saying.begin(Arc::clone(&last));
                } else {
                    saying.change_to(Arc::clone(&last));
                }
                for _ in 0..*steps {
                    hear(&mut saying);
                }
            }
            while hear(&mut saying) {}
            let mut known: Vec<Resident> = table.residents().cloned().collect();
            known.sort_by_key(|resident| resident.address);
            let wanted: Vec<Resident> = last.residents.values().cloned().collect();
            prop_assert_eq!(known, wanted);
            prop_assert_eq!(table.counts().identities, last.identities.len());
            let silent = last.residents.values().filter(|resident| resident.silent).count();
            prop_assert_eq!(table.counts().silent, silent);
        }
    }
}
