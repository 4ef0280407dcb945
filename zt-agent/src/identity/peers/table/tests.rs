// SPDX-License-Identifier: Apache-2.0
//! What a node may say, and what it may not.

use proptest::prelude::*;

use super::*;
use crate::identity::peers::Neighbour;

fn speaker() -> Arc<Speaker> {
    let neighbour = Neighbour {
        name: "two".into(),
        address: "two:8056".into(),
        speaks_for: ["10.2.0.0/24", "fd00:2::/64"]
            .map(|net| net.parse().expect("literal"))
            .into(),
        says: Vec::new(),
        identities: Vec::new(),
    };
    let agent = SpiffeId::parse("spiffe://hanzo.ai/agents/two").expect("literal");
    Arc::new(Speaker::new(neighbour, agent))
}

fn id(name: &str) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://hanzo.ai/w/{name}")).expect("literal")
}

fn resident(address: &str, name: &str) -> Resident {
    Resident {
        address: address.parse().expect("literal"),
        spiffe: id(name),
        incarnation: 1,
    }
}

fn changed(table: &mut Table) -> Vec<(String, Option<String>)> {
    let mut addresses = table.difference().addresses;
    addresses.sort_unstable();
    let who = |address: IpAddr| table.resident(address).map(|id| id.path().to_owned());
    addresses
        .into_iter()
        .map(|address| (address.to_string(), who(address)))
        .collect()
}

fn entry(address: &str, name: Option<&str>) -> (String, Option<String>) {
    (address.to_owned(), name.map(|name| format!("w/{name}")))
}

#[test]
fn only_its_own_addresses_and_what_it_holds_are_believed() {
    let mut table = Table::new(speaker());
    assert_eq!(table.at(resident("10.2.0.1", "a")), Err(Refusal::Identity));
    table.holds(id("a"), i64::MAX).expect("few");
    for address in [
        "10.3.0.1",
        "127.0.0.1",
        "0.0.0.0",
        "::1",
        "224.0.0.1",
        "fe80::1",
        "::ffff:10.3.0.1",
        "fd00:3::1",
    ] {
        assert_eq!(
            table.at(resident(address, "a")),
            Err(Refusal::Address),
            "{address}"
        );
    }
    assert_eq!(table.at(resident("10.2.0.1", "a")), Ok(()));
    // The same address in its other form is the same address.
    assert_eq!(table.at(resident("::ffff:10.2.0.1", "a")), Ok(()));
    assert_eq!(table.at(resident("fd00:2::9", "a")), Ok(()));
    assert_eq!(
        changed(&mut table),
        [entry("10.2.0.1", Some("a")), entry("fd00:2::9", Some("a"))]
    );
    table.lets(&id("a"));
    assert_eq!(
        changed(&mut table),
        [entry("10.2.0.1", None), entry("fd00:2::9", None)]
    );
    assert!(table.difference().is_empty());
}

#[test]
fn a_new_connection_takes_nothing_away_until_it_has_said_all() {
    let mut table = Table::new(speaker());
    for (address, name) in [("10.2.0.1", "a"), ("10.2.0.2", "b")] {
        table.holds(id(name), i64::MAX).expect("few");
        table.at(resident(address, name)).expect("its own");
    }
    table.difference();
    table.begin();
    table.holds(id("b"), i64::MAX).expect("few");
    table.at(resident("10.2.0.2", "b")).expect("its own");
    table.at(resident("10.2.0.3", "b")).expect("its own");
    assert!(table.difference().is_empty());
    assert_eq!(table.counts(), (2, 2));
    // The connection is lost, and the next one has the same to say.
    table.begin();
    assert_eq!(
        table.at(resident("10.2.0.2", "b")),
        Err(Refusal::Identity),
        "on each anew"
    );
    table.holds(id("b"), i64::MAX).expect("few");
    table.at(resident("10.2.0.2", "b")).expect("its own");
    table.whole();
    assert_eq!(
        changed(&mut table),
        [entry("10.2.0.1", None), entry("10.2.0.2", Some("b"))]
    );
    assert_eq!(table.counts(), (1, 1));
}

#[test]
fn what_is_no_longer_shown_ends_with_its_svid() {
    let mut table = Table::new(speaker());
    table.holds(id("a"), 100).expect("few");
    table.holds(id("b"), 200).expect("few");
    table.at(resident("10.2.0.1", "a")).expect("its own");
    table.difference();
    assert_eq!(table.next_expiry(), Some(100));
    table.expire(99);
    assert!(table.difference().is_empty());
    table.holds(id("a"), 150).expect("renewed");
    table.expire(100);
    assert!(table.difference().is_empty());
    table.begin();
    table.expire(150);
    let difference = table.difference();
    assert_eq!(difference.addresses.len(), 1);
    assert_eq!(difference.identities, Some(vec![id("b")]));
}

#[test]
fn what_it_no_longer_speaks_for_is_forgotten_and_nothing_else() {
    let mut table = Table::new(speaker());
    table.holds(id("a"), i64::MAX).expect("few");
    for address in ["10.2.0.1", "fd00:2::9"] {
        table.at(resident(address, "a")).expect("its own");
    }
    table.difference();
    table.begin();
    table.holds(id("a"), i64::MAX).expect("few");
    for address in ["10.2.0.1", "fd00:2::9"] {
        table.at(resident(address, "a")).expect("its own");
    }
    let mut less = speaker();
    Arc::make_mut(&mut less).neighbour.speaks_for.truncate(1);
    table.speaks(less);
    assert_eq!(changed(&mut table), [entry("fd00:2::9", None)]);
    table.whole();
    assert_eq!(changed(&mut table), [entry("10.2.0.1", Some("a"))]);
    assert_eq!(table.counts(), (1, 1));
}

#[test]
fn there_is_a_limit_to_what_a_node_can_have() {
    let mut table = Table::new(speaker());
    for number in 0..MOST_IDENTITIES {
        table.holds(id(&number.to_string()), i64::MAX).expect("few");
    }
    assert_eq!(table.holds(id("more"), i64::MAX), Err(Refusal::TooMany));
    assert_eq!(table.holds(id("0"), i64::MAX), Ok(()));
    for number in 0..MOST_ADDRESSES {
        table
            .at(resident(&format!("fd00:2::{number:x}"), "0"))
            .expect("few");
    }
    assert_eq!(table.at(resident("fd00:2::ffff", "0")), Err(Refusal::TooMany));
    assert_eq!(table.at(resident("fd00:2::1", "1")), Ok(()));
}

#[derive(Clone, Debug)]
enum Step {
    Begin,
    Whole,
    Holds(u8, i64),
    Lets(u8),
    At(u8, u8),
    Gone(u8),
    Expire(i64),
    Forget,
    Look,
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        Just(Step::Begin),
        Just(Step::Whole),
        (0_u8..4, 0_i64..10).prop_map(|(id, expires)| Step::Holds(id, expires)),
        (0_u8..4).prop_map(Step::Lets),
        (0_u8..6, 0_u8..4).prop_map(|(address, id)| Step::At(address, id)),
        (0_u8..6).prop_map(Step::Gone),
        (0_i64..10).prop_map(Step::Expire),
        Just(Step::Forget),
        Just(Step::Look),
    ]
}

proptest! {
    /// Whoever follows the differences knows what the table knows, and nobody is ever anywhere that has not shown to be held.
    #[test]
    fn the_differences_are_the_table(steps in proptest::collection::vec(steps(), 0..60)) {
        let mut table = Table::new(speaker());
        let (mut at, mut held) = (HashMap::new(), Vec::new());
        let address = |last: u8| IpAddr::from([10, 2, 0, last + 1]);
        for step in steps.into_iter().chain([Step::Look]) {
            match step {
                Step::Begin => table.begin(),
                Step::Whole => table.whole(),
                Step::Holds(name, expires) => table.holds(id(&name.to_string()), expires).expect("few"),
                Step::Lets(name) => table.lets(&id(&name.to_string())),
                // Refused where it is not held.
                Step::At(last, name) => drop(table.at(Resident {
                    address: address(last), spiffe: id(&name.to_string()), incarnation: 0,
                })),
                Step::Gone(last) => table.gone(address(last)),
                Step::Expire(now) => table.expire(now),
                Step::Forget => {
                    for gone in table.forget() {
                        at.remove(&gone);
                    }
                    at.clear();
                    held.clear();
                }
                Step::Look => {
                    let difference = table.difference();
                    for address in difference.addresses {
                        match table.resident(address) {
                            Some(id) => at.insert(address, id.clone()),
                            None => at.remove(&address),
                        };
                    }
                    if let Some(identities) = difference.identities {
                        held = identities;
                    }
                    let known: HashMap<IpAddr, SpiffeId> = table
                        .residents()
                        .map(|resident| (resident.address, resident.spiffe.clone()))
                        .collect();
                    prop_assert_eq!(&at, &known);
                    prop_assert!(at.values().all(|id| held.contains(id)));
                    prop_assert_eq!(held.len(), table.counts().1);
                }
            }
        }
    }
}
