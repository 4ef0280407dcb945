// SPDX-License-Identifier: Apache-2.0
//! Whose an address is where several are said to have it.

use std::collections::HashMap;

use zt_common::abi::{PEER_HERE, Peer};
use zt_common::address::Address;
use zt_common::identity;

/// Takes an address for somebody. This host's own stay its own, and one that two take is nobody's. What the agent of another
/// node says of an address of this node changes nothing.
pub(super) fn claim(peers: &mut HashMap<Address, Peer>, address: Address, peer: Peer) {
    peers
        .entry(address)
        .and_modify(|before| {
            let is_ours = before.flags & PEER_HERE != 0 && peer.node != 0;
            if before.identity != identity::HOST && before.identity != peer.identity && !is_ours {
                before.identity = identity::UNKNOWN;
            }
        })
        .or_insert(peer);
}

#[cfg(test)]
mod tests {
    use zt_common::abi::PEER_PROVES;

    use super::*;

    #[test]
    fn an_address_that_two_take_is_nobodys_and_the_hosts_own_stays_its_own() {
        let peer = |identity: u64, flags: u32| Peer {
            identity,
            flags,
            node: 0,
        };
        let [one, two] = [1, 2].map(|last| Address::from_v4([10, 0, 0, last]));
        let mut peers = HashMap::from([(one, peer(identity::HOST, PEER_HERE))]);
        claim(&mut peers, one, peer(1 << 40, 0));
        assert_eq!(peers[&one].identity, identity::HOST);
        claim(&mut peers, two, peer(1 << 40, PEER_HERE));
        claim(&mut peers, two, peer(1 << 40, 0));
        assert_eq!(peers[&two].identity, 1 << 40);
        claim(&mut peers, two, peer(1 << 41, 0));
        claim(&mut peers, two, peer(1 << 41, 0));
        assert_eq!(peers[&two].identity, identity::UNKNOWN);
        // The agent of another node has nothing to say about who is here.
        let here = Address::from_v4([10, 0, 0, 3]);
        claim(&mut peers, here, peer(1 << 40, PEER_HERE));
        let theirs = Peer {
            node: 7,
            ..peer(1 << 41, PEER_PROVES)
        };
        claim(&mut peers, here, theirs);
        assert!(peers[&here] == peer(1 << 40, PEER_HERE));
    }
}
