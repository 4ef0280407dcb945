// SPDX-License-Identifier: Apache-2.0
//! Live connections and sockets: found, judged, destroyed.

use std::collections::{BTreeSet, HashMap, HashSet};

use zt_common::abi::{CONNECTION_UNCOUNTED, Connection};
use zt_common::control::{HANDSHAKE, PROOF_WAITS, UNKNOWN_DENY};
use zt_common::names;

use super::adopt::Adopter;
use super::attach::Attached;
use super::error::KernelError;
use super::netns::Namespaces;
use super::older::{Finder, Older, Search};
use super::shares::{self, Uncounted};
use super::sock_diag::UDP;
use super::sweep::{Fate, Judge, Revoked, Sweep};
use super::urgent::Urgent;
use super::waiting::Present;
use super::{Kernel, Owner, destroy, load, older, sys};

impl Kernel {
    /// Finds sockets that no hook has seen or told of, and gives listeners their owners. See [`Older`].
    ///
    /// `owner` gives the workload of a cgroup that is below a managed root; `is_below` says whether a cgroup is another
    /// or lies below it. `only` are the namespaces to look at, if not all; `pids` are the managed processes.
    pub fn find_older(
        &mut self,
        namespaces: &Namespaces,
        only: Option<&BTreeSet<u64>>,
        search: Search,
        owner: &Owner<'_>,
        is_below: &dyn Fn(u64, u64) -> bool,
        pids: &[u32],
    ) -> Result<Older, KernelError> {
        // Listed first: whatever a hook files meanwhile is seen.
        let listed = older::list(namespaces, only);
        let mut seen: HashMap<u64, Connection> = HashMap::new();
        self.connections(|cookie, connection| {
            seen.insert(cookie, *connection);
        })?;
        let Some(table) = &self.table else {
            return Ok(Older::default());
        };
        let roots = self.attached.iter().map(Attached::root).collect::<BTreeSet<_>>();
        // Before the hooks are attached there are no handshakes to prove in.
        let proving = self.flags()? & HANDSHAKE != 0 && self.is_attached();
        let attach = || Adopter::attach(&self.loaded, roots.iter().copied());
        let finder = Finder {
            table,
            elders: &self.elders,
            succeeds: self.succeeds,
            adopter: if proving { Some(&attach) } else { None },
            search,
            owner,
            is_below,
            pids,
        };
        let present = Present::of(&listed);
        let mut found = finder.find(&self.pins, &mut self.tables, &self.shares, listed, &seen)?;
        found.left_out += self.file(&found.opening, &seen)?;
        self.take_back(namespaces, &present, &seen)?;
        Ok(found)
    }

    /// Files connections that are in their handshake, of no revision: its end decides. They count for their workloads' shares, as far as
    /// the programs have not filed as many. How many found no room.
    fn file(
        &self,
        opening: &[(u64, Connection)],
        seen: &HashMap<u64, Connection>,
    ) -> Result<usize, KernelError> {
        if opening.is_empty() {
            return Ok(0);
        }
        let filed = self.shares.filed()?;
        let mut uncounted = Uncounted::new();
        for connection in seen
            .values()
            .filter(|seen| seen.flags & CONNECTION_UNCOUNTED != 0)
        {
            *uncounted.entry(connection.share()).or_default() += 1;
        }
        let mut left_out = 0;
        for (cookie, connection) in opening {
            let share = connection.share();
            if !shares::has_room(&filed, &uncounted, share, names::CONNECTION_SHARE) {
                left_out += 1;
                continue;
            }
            match sys::add_new(load::fd(&self.connections), cookie, connection) {
                Ok(true) => *uncounted.entry(share).or_default() += 1,
                // A hook has, meanwhile.
                Ok(false) => {}
                // As it is for who calls while there is no room: admitted, and not found by a later sweep.
                Err(error) if error.raw_os_error() == Some(libc::E2BIG) => left_out += 1,
                Err(error) => return Err(KernelError::map(names::CONNECTIONS)(error)),
            }
        }
        Ok(left_out)
    }

    /// Takes back what the agent has noted of sockets that have gone while no hook was there to tell.
    fn take_back(
        &mut self,
        namespaces: &Namespaces,
        present: &Present,
        seen: &HashMap<u64, Connection>,
    ) -> Result<(), KernelError> {
        let mut places = self.tables.older_listeners()?;
        places.retain(|place, _| present.lacks_place(place));
        let lacked = seen
            .iter()
            .filter(|(cookie, connection)| present.lacks(**cookie, connection));
        let connections: Vec<(u64, Connection)> = lacked.map(|(cookie, one)| (*cookie, *one)).collect();
        if places.is_empty() && connections.is_empty() {
            return Ok(());
        }
        // Once more: somebody may have begun there since.
        let of_places = places.keys().map(|place| place.netns);
        let of_connections = connections.iter().map(|(_, connection)| connection.netns);
        let wanted: BTreeSet<u64> = of_places.chain(of_connections).collect();
        let present = Present::of(&older::list(namespaces, Some(&wanted)));
        for (place, listener) in places {
            if present.lacks_place(&place) && self.tables.listener(&place) == Some(listener) {
                self.tables.remove_listener(&place)?;
            }
        }
        for (cookie, connection) in connections {
            if present.lacks(cookie, &connection) {
                sys::remove(load::fd(&self.connections), &cookie)
                    .map_err(KernelError::map(names::CONNECTIONS))?;
            }
        }
        Ok(())
    }

    /// Live connections that the hooks know of.
    fn connections(&self, each: impl FnMut(u64, &Connection)) -> Result<(), KernelError> {
        sys::read_each(load::fd(&self.connections), each).map_err(KernelError::map(names::CONNECTIONS))
    }

    /// Judges every live connection, and those of `known`, which are as they say there, under the policy in force, and
    /// destroys what it refuses. `nearest` gives the workload around a cgroup.
    pub fn sweep(
        &self,
        namespaces: &Namespaces,
        known: &HashMap<u64, Connection>,
        nearest: &Owner<'_>,
    ) -> Result<Sweep, KernelError> {
        let Some(table) = &self.table else {
            return Ok(Sweep::default());
        };
        let mut urgent = Urgent::begin();
        let judge = Judge {
            table,
            workloads: self.tables.workloads(),
            service: &|address, port, protocol| self.tables.service(address, port, protocol),
            nearest,
            unknown_denied: self.flags()? & UNKNOWN_DENY != 0,
            proof_waits: self.flags()? & PROOF_WAITS != 0,
        };
        let mut sweep = Sweep {
            looked_at: known.len(),
            revoked: Vec::new(),
        };
        self.connections(|cookie, connection| {
            if !known.contains_key(&cookie) {
                sweep.looked_at += 1;
                sweep.revoked.extend(judge.judge(cookie, *connection));
            }
        })?;
        urgent.check();
        destroy::all(&mut sweep.revoked, namespaces);
        let known = known.iter();
        let mut others: Vec<Revoked> = known
            .filter_map(|(cookie, connection)| judge.judge(*cookie, *connection))
            .collect();
        // No hook tells when these end, and the kernel destroys also what is left of one that has.
        let (ended, live) = older::by_life(&mut others, namespaces);
        for revoked in ended {
            revoked.fate = Fate::Gone;
        }
        destroy::all(live, namespaces);
        sweep.revoked.append(&mut others);
        sweep.conclude();
        self.find_connecting(&mut sweep)?;
        Ok(sweep)
    }

    /// A datagram socket that was not found, and that no hook has seen close, may be in the middle of its `connect`.
    fn find_connecting(&self, sweep: &mut Sweep) -> Result<(), KernelError> {
        let absent = |revoked: &Revoked| revoked.fate == Fate::Gone && revoked.connection.protocol == UDP;
        let wanted: HashSet<u64> = sweep
            .revoked
            .iter()
            .filter(|revoked| absent(revoked))
            .map(|revoked| revoked.cookie)
            .collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let mut open = HashSet::new();
        self.connections(|cookie, _| {
            if wanted.contains(&cookie) {
                open.insert(cookie);
            }
        })?;
        for revoked in &mut sweep.revoked {
            if absent(revoked) && open.contains(&revoked.cookie) {
                revoked.fate = Fate::Connecting;
            }
        }
        Ok(())
    }
}
