// SPDX-License-Identifier: Apache-2.0
//! Which groups there is room for.

use super::*;

fn workload(name: &str) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://hanzo.ai/{name}")).expect("literal")
}

#[test]
fn the_largest_groups_go_where_there_is_no_room() {
    let (web, small) = (workload("web"), workload("small"));
    let mut groups = Groups::default();
    let mut group = |name: &str, member: &SpiffeId| {
        let members = [8080, 9090].map(|port| (Member::Workload(member.clone()), port));
        groups.add(Group {
            name: name.into(),
            protocol: 6,
            port: 8080,
            members: members.into_iter().collect(),
        })
    };
    let (large, one) = (group("large", &web), group("small", &small));
    // Three sources may reach the one, and one the other.
    let mut table = FastMap::default();
    let mut shapes = Shapes::default();
    for (source, destination) in [("a", &web), ("b", &web), ("c", &web), ("a", &small)] {
        for port in [8080, 9090] {
            let key = AllowKey {
                source: workload(source).number(),
                destination: destination.number(),
                port,
                protocol: 6,
                port_bits: 16,
                reserved: 0,
            };
            shapes = key
                .shape()
                .map_or(shapes, |shape| shapes.with(shape, ACTION_ALLOW));
            let entry = AllowEntry {
                number: 7,
                bits: ACTION_ALLOW,
            };
            table.insert(key, entry);
        }
    }
    table.insert(
        AllowKey::HEADER,
        AllowEntry {
            number: 1,
            bits: shapes.0,
        },
    );
    let (networks, alike) = (Networks::default(), Alike::new());
    let parties = Parties {
        networks: &networks,
        alike: &alike,
    };
    let with_room = |room: usize| {
        let made = entries(&groups, &table, &parties, room);
        let about: BTreeSet<u64> = made.entries.iter().map(|(key, _)| key.destination).collect();
        (made.entries.len(), about, made.undecided)
    };
    let both = BTreeSet::from([large, one]);
    assert_eq!(with_room(4), (4, both.clone(), BTreeSet::new()));
    assert_eq!(with_room(3), (1, BTreeSet::from([one]), BTreeSet::from([large])));
    assert_eq!(with_room(0), (0, BTreeSet::new(), both));
}

#[test]
fn many_small_groups_of_one_namespace_take_no_room_from_a_large_one_of_another() {
    let namespace = |name: &str| {
        let group = Group {
            name: name.into(),
            protocol: 6,
            port: 80,
            members: BTreeSet::new(),
        };
        group.namespace().to_owned()
    };
    let [shop, bank] = ["service:shop/web", "service:bank/web"].map(namespace);
    assert_eq!((shop.as_str(), bank.as_str()), ("shop", "bank"));
    let mut shares = Shares::default();
    shares.add(&bank, 30, 100);
    for number in 0..20 {
        shares.add(&shop, if number == 7 { 3 } else { 2 }, number);
    }
    assert_eq!(shares.total, 71);
    let taken: Vec<u64> = (0..7).filter_map(|_| shares.take_largest()).collect();
    assert_eq!(
        taken,
        [7, 19, 18, 17, 16, 15, 100],
        "shop has less than bank by then"
    );
    let rest: Vec<u64> = std::iter::from_fn(|| shares.take_largest()).collect();
    assert_eq!((rest.len(), shares.total), (14, 0));
}
