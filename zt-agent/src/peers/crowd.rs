// SPDX-License-Identifier: Apache-2.0
//! Who is in the middle of a TLS handshake: a share for each address, and one for all who are at no node's. Where a share is
//! used up, whoever has taken longest makes room: idle connections keep nobody out.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::task::AbortHandle;

/// Handshakes at a time of one address.
const EACH: usize = 64;
/// Of all who are not at a node's address.
const STRANGERS: usize = 256;
/// Of all.
const ALL: usize = 1024;

/// Somebody in the middle of it.
#[derive(Debug)]
struct Guest {
    address: IpAddr,
    is_known: bool,
    /// It is through, and waits to be taken.
    through: Arc<AtomicBool>,
    task: AbortHandle,
}

/// All of them, whoever came first at the front.
#[derive(Debug, Default)]
pub(super) struct Crowd(VecDeque<Guest>);

impl Crowd {
    /// One more. Where there is no room for him, another one is sent away; how many were.
    pub(super) fn add(
        &mut self,
        address: IpAddr,
        known: &HashSet<IpAddr>,
        through: Arc<AtomicBool>,
        task: AbortHandle,
    ) -> usize {
        self.0
            .retain(|guest| !guest.task.is_finished() && !guest.through.load(Ordering::Relaxed));
        let address = address.to_canonical();
        let guest = Guest {
            address,
            is_known: known.contains(&address),
            through,
            task,
        };
        let is_known = guest.is_known;
        self.0.push_back(guest);
        let mut sent_away = self.keep_to(EACH, |other| other.address == address);
        if !is_known {
            sent_away += self.keep_to(STRANGERS, |other| !other.is_known);
        }
        if self.0.len() > ALL {
            sent_away += self.make_room();
        }
        sent_away
    }

    /// Sends one away: a stranger, or else one of whichever address has most. Where each has one, that is who came last: the
    /// others are nearly done.
    fn make_room(&mut self) -> usize {
        let mut of_each: HashMap<IpAddr, usize> = HashMap::new();
        for guest in &self.0 {
            *of_each.entry(guest.address).or_default() += 1;
        }
        let most = of_each.values().max().copied().unwrap_or(0);
        let stranger = self.0.iter().position(|guest| !guest.is_known);
        let greedy = || {
            self.0
                .iter()
                .position(|guest| of_each.get(&guest.address) == Some(&most))
        };
        let chosen = stranger.or_else(|| if most > 1 { greedy() } else { None });
        let chosen = chosen.unwrap_or(self.0.len().saturating_sub(1));
        if let Some(guest) = self.0.remove(chosen) {
            guest.task.abort();
        }
        1
    }

    /// Sends one of them away if there are more than that.
    fn keep_to(&mut self, most: usize, of: impl Fn(&Guest) -> bool) -> usize {
        if self.0.iter().filter(|guest| of(guest)).count() <= most {
            return 0;
        }
        let Some(oldest) = self.0.iter().position(of) else {
            return 0;
        };
        if let Some(guest) = self.0.remove(oldest) {
            guest.task.abort();
        }
        1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("literal")
    }

    /// Who is still there, by address.
    fn waits(crowd: &Crowd, address: &str) -> usize {
        crowd
            .0
            .iter()
            .filter(|guest| guest.address == ip(address))
            .count()
    }

    #[tokio::test]
    async fn whoever_has_taken_longest_makes_room_and_no_node_for_a_stranger() {
        let known = HashSet::from([ip("10.0.0.1"), ip("10.0.0.2")]);
        let mut crowd = Crowd::default();
        let mut tasks = tokio::task::JoinSet::new();
        let come = |tasks: &mut tokio::task::JoinSet<()>, crowd: &mut Crowd, from: &str| {
            let task = tasks.spawn(std::future::pending::<()>());
            crowd.add(ip(from), &known, Arc::default(), task)
        };
        assert_eq!(come(&mut tasks, &mut crowd, "10.0.0.1"), 0);
        for from in 0..10_000_u32 {
            let strangers = std::net::Ipv4Addr::from(0xc000_0200 + from).to_string();
            come(&mut tasks, &mut crowd, &strangers);
        }
        assert_eq!(crowd.0.len(), STRANGERS + 1);
        assert_eq!(waits(&crowd, "10.0.0.1"), 1, "it came first of all");
        // Whoever shares a node's address with it takes of its share alone, and only from who takes long.
        let sent_away: usize = (0..100)
            .map(|_| come(&mut tasks, &mut crowd, "::ffff:10.0.0.2"))
            .sum();
        assert_eq!((waits(&crowd, "10.0.0.2"), sent_away), (EACH, 100 - EACH));
        assert_eq!(waits(&crowd, "10.0.0.1"), 1);
        let newest = crowd.0.back().expect("somebody").address;
        assert_eq!(newest, ip("10.0.0.2"));
        tasks.shutdown().await;
        come(&mut tasks, &mut crowd, "10.0.0.1");
        assert_eq!(crowd.0.len(), 1, "who is through is no more there");
    }
    #[tokio::test]
    async fn where_all_come_back_together_nobody_who_is_nearly_done_is_sent_away_for_a_newcomer() {
        let node = |index: usize| IpAddr::from((0xc612_0000 + index as u32).to_be_bytes());
        let known: HashSet<IpAddr> = (0..2 * ALL).map(node).collect();
        let mut crowd = Crowd::default();
        let mut tasks = tokio::task::JoinSet::new();
        let mut come = |crowd: &mut Crowd, from: IpAddr, through: &Arc<AtomicBool>| {
            let task = tasks.spawn(std::future::pending::<()>());
            crowd.add(from, &known, Arc::clone(through), task)
        };
        let through = Arc::new(AtomicBool::new(false));
        let stranger = ip("203.0.113.7");
        come(&mut crowd, stranger, &Arc::default());
        for index in 0..ALL {
            come(&mut crowd, node(index), &through);
        }
        assert!(
            crowd.0.iter().all(|guest| guest.address != stranger),
            "he goes first"
        );
        assert_eq!(come(&mut crowd, node(ALL), &Arc::default()), 1);
        assert!((0..ALL).all(|index| crowd.0[index].address == node(index)));
        // One that has several is asked for one of them before.
        let taken = crowd.0.pop_back().expect("somebody");
        taken.task.abort();
        come(&mut crowd, node(0), &Arc::default());
        come(&mut crowd, node(ALL), &Arc::default());
        assert!(crowd.0.iter().any(|guest| guest.address == node(ALL)));
        // Who waits to be taken is in nobody's way.
        through.store(true, Ordering::Relaxed);
        come(&mut crowd, node(ALL + 1), &Arc::default());
        assert_eq!(crowd.0.len(), 3);
    }
}
