// SPDX-License-Identifier: Apache-2.0
//! What a node may say, and what it may not.

mod differences;

use super::*;
use crate::identity::peers::Neighbour;
use crate::spiffe_id::Pattern;

fn speaker() -> Arc<Speaker> {
    let neighbour = Neighbour {
        name: "two".into(),
        address: "two:8056".into(),
        speaks_for: ["10.2.0.0/24", "fd00:2::/64"]
            .map(|net| net.parse().expect("literal"))
            .into(),
        created: 0,
        says: Vec::new(),
        identities: vec![Pattern::parse("spiffe://hanzo.ai/w/said").expect("literal")],
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
        silent: false,
    }
}

/// What was shown by an authority, until then.
fn until(expires: i64) -> Evidence {
    Evidence {
        expires,
        authority: 7,
    }
}

const FOR_GOOD: i64 = i64::MAX;

fn changed(table: &mut Table) -> Vec<(String, Option<String>)> {
    let mut addresses = table.difference().addresses;
    addresses.sort_unstable();
    let who = |address: IpAddr| {
        table.resident(address).map(|standing| match standing {
            Standing::Shown(id) => id.path().to_owned(),
            Standing::Silent(id) => format!("silent {}", id.path()),
        })
    };
    addresses
        .into_iter()
        .map(|address| (address.to_string(), who(address)))
        .collect()
}

fn entry(address: &str, name: Option<&str>) -> (String, Option<String>) {
    (address.to_owned(), name.map(|name| format!("w/{name}")))
}

fn silent(address: &str, name: &str) -> (String, Option<String>) {
    (address.to_owned(), Some(format!("silent w/{name}")))
}

/// How many are shown, and live there.
fn counts(table: &Table) -> (usize, usize) {
    let counts = table.counts();
    (counts.addresses, counts.identities)
}

#[test]
fn only_its_own_addresses_and_what_it_holds_are_believed() {
    let mut table = Table::new(speaker(), 0);
    assert_eq!(table.at(resident("10.2.0.1", "a")), Ok(()));
    assert_eq!(changed(&mut table), [silent("10.2.0.1", "a")]);
    table.holds(id("a"), until(FOR_GOOD)).expect("few");
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
    let mut table = Table::new(speaker(), 0);
    for (address, name) in [("10.2.0.1", "a"), ("10.2.0.2", "b")] {
        table.holds(id(name), until(FOR_GOOD)).expect("few");
        table.at(resident(address, name)).expect("its own");
    }
    table.difference();
    table.begin();
    table.holds(id("b"), until(FOR_GOOD)).expect("few");
    table.at(resident("10.2.0.2", "b")).expect("its own");
    table.at(resident("10.2.0.3", "b")).expect("its own");
    assert!(table.difference().is_empty());
    assert_eq!(counts(&table), (2, 2));
    // The connection is lost, and the next one has the same to say.
    table.begin();
    table.holds(id("b"), until(FOR_GOOD)).expect("few");
    table.at(resident("10.2.0.2", "b")).expect("its own");
    table.whole();
    assert_eq!(
        changed(&mut table),
        [entry("10.2.0.1", None), entry("10.2.0.2", Some("b"))]
    );
    assert_eq!(counts(&table), (1, 1));
}

#[test]
fn what_is_no_longer_shown_ends_with_its_svid() {
    let mut table = Table::new(speaker(), 0);
    table.holds(id("a"), until(100)).expect("few");
    table.holds(id("b"), until(200)).expect("few");
    table.at(resident("10.2.0.1", "a")).expect("its own");
    table.difference();
    assert_eq!(table.next_expiry(), Some(100));
    table.look_at_the_clock(99);
    assert!(table.difference().is_empty());
    table.holds(id("a"), until(150)).expect("renewed");
    table.look_at_the_clock(100);
    assert!(table.difference().is_empty());
    table.begin();
    table.look_at_the_clock(150);
    assert_eq!(table.next_expiry(), Some(200));
    let difference = table.difference();
    assert_eq!(difference.addresses.len(), 1);
    assert_eq!(difference.identities, Some(vec![id("b")]));
    assert_eq!(table.counts().silent, 1);
}

#[test]
fn a_clock_that_was_wrong_for_a_while_takes_nothing_away_for_good() {
    let mut table = Table::new(speaker(), 10);
    table.holds(id("a"), until(100)).expect("few");
    table.at(resident("10.2.0.1", "a")).expect("its own");
    table.difference();
    table.look_at_the_clock(7200);
    assert_eq!(changed(&mut table), [silent("10.2.0.1", "a")]);
    assert_eq!(table.next_expiry(), None);
    table.look_at_the_clock(11);
    let difference = table.difference();
    assert_eq!(difference.identities, Some(vec![id("a")]));
    assert_eq!((difference.addresses.len(), counts(&table)), (1, (1, 1)));
}

#[test]
fn what_was_shown_holds_over_a_connection_on_which_it_is_said_and_not_shown_yet() {
    let mut table = Table::new(speaker(), 0);
    for name in ["a", "b"] {
        table.holds(id(name), until(100)).expect("few");
    }
    table.holds(id("said"), Evidence::CONFIGURED).expect("few");
    let at = [
        ("10.2.0.1", "a"),
        ("10.2.0.2", "b"),
        ("10.2.0.3", "c"),
        ("10.2.0.4", "said"),
    ];
    for (address, name) in at {
        table.at(resident(address, name)).expect("its own");
    }
    table.difference();
    let mut unsaid = speaker();
    Arc::make_mut(&mut unsaid).neighbour.identities.clear();
    // The agent there has started again, and has no SVIDs yet. It says nothing of b, which has ended.
    table.speaks(unsaid);
    table.begin();
    for name in ["a", "c", "said"] {
        table.says(&id(name));
    }
    for (address, name) in at {
        table.at(resident(address, name)).expect("its own");
    }
    table.whole();
    assert_eq!(
        changed(&mut table),
        [
            entry("10.2.0.1", Some("a")),
            silent("10.2.0.2", "b"),
            silent("10.2.0.3", "c"),
            silent("10.2.0.4", "said")
        ],
        "what the configuration does not say any more does not hold"
    );
    table.look_at_the_clock(100);
    assert_eq!(changed(&mut table), [silent("10.2.0.1", "a")]);
}

#[test]
fn what_rests_on_an_authority_that_has_gone_is_forgotten_and_nothing_else() {
    let mut table = Table::new(speaker(), 0);
    let by = |authority| Evidence {
        expires: FOR_GOOD,
        authority,
    };
    table.holds(id("a"), by(7)).expect("few");
    table.holds(id("b"), by(8)).expect("few");
    table.holds(id("said"), Evidence::CONFIGURED).expect("few");
    for (address, name) in [("10.2.0.1", "a"), ("10.2.0.2", "b"), ("10.2.0.3", "said")] {
        table.at(resident(address, name)).expect("its own");
    }
    table.difference();
    assert_eq!(table.rests_on(&Authorities::from([7, 8, 9])), 0);
    // One that has ended goes, on which nothing rests.
    assert_eq!(table.rests_on(&Authorities::from([7, 8])), 0);
    assert!(table.difference().is_empty());
    assert_eq!(table.rests_on(&Authorities::from([7])), 1);
    assert_eq!(changed(&mut table), [silent("10.2.0.2", "b")]);
    // Nor does it hold over the next connection.
    table.begin();
    table.says(&id("b"));
    table.at(resident("10.2.0.2", "b")).expect("its own");
    table.whole();
    assert_eq!(counts(&table), (0, 0));
}

#[test]
fn who_has_no_name_there_is_silent_whoever_else_is_shown_to_be_so_called() {
    let mut table = Table::new(speaker(), 0);
    table.holds(id("a"), until(100)).expect("few");
    table.at(resident("10.2.0.1", "a")).expect("its own");
    let nameless = Resident {
        silent: true,
        ..resident("10.2.0.2", "a")
    };
    table.at(nameless.clone()).expect("its own");
    assert_eq!(
        changed(&mut table),
        [entry("10.2.0.1", Some("a")), silent("10.2.0.2", "a")]
    );
    table
        .at(Resident {
            silent: false,
            ..nameless.clone()
        })
        .expect("its own");
    assert_eq!(changed(&mut table), [entry("10.2.0.2", Some("a"))]);
    table.at(nameless).expect("its own");
    table.lets(&id("a"));
    assert_eq!(
        changed(&mut table),
        [entry("10.2.0.1", None), silent("10.2.0.2", "a")]
    );
}

#[test]
fn what_it_no_longer_speaks_for_is_forgotten_and_nothing_else() {
    let mut table = Table::new(speaker(), 0);
    table.holds(id("a"), until(FOR_GOOD)).expect("few");
    for address in ["10.2.0.1", "fd00:2::9"] {
        table.at(resident(address, "a")).expect("its own");
    }
    table.difference();
    table.begin();
    table.holds(id("a"), until(FOR_GOOD)).expect("few");
    for address in ["10.2.0.1", "fd00:2::9"] {
        table.at(resident(address, "a")).expect("its own");
    }
    let mut less = speaker();
    Arc::make_mut(&mut less).neighbour.speaks_for.truncate(1);
    table.speaks(less);
    assert_eq!(changed(&mut table), [entry("fd00:2::9", None)]);
    table.whole();
    assert_eq!(changed(&mut table), [entry("10.2.0.1", Some("a"))]);
    assert_eq!(counts(&table), (1, 1));
}

#[test]
fn there_is_a_limit_to_what_a_node_can_have() {
    let mut table = Table::new(speaker(), 0);
    for number in 0..MOST_IDENTITIES {
        table
            .holds(id(&number.to_string()), until(FOR_GOOD))
            .expect("few");
    }
    assert_eq!(table.holds(id("more"), until(FOR_GOOD)), Err(Refusal::TooMany));
    assert_eq!(table.holds(id("0"), until(FOR_GOOD)), Ok(()));
    for number in 0..MOST_ADDRESSES {
        table
            .at(resident(&format!("fd00:2::{number:x}"), "0"))
            .expect("few");
    }
    assert_eq!(table.at(resident("fd00:2::ffff", "0")), Err(Refusal::TooMany));
    assert_eq!(table.at(resident("fd00:2::1", "1")), Ok(()));
}
