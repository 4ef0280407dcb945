// SPDX-License-Identifier: Apache-2.0
//! Whatever is said in whatever order: the differences add up to what is believed.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Begin,
    Whole,
    Holds(u8, i64),
    Lets(u8),
    Says(u8),
    At(u8, u8, bool),
    Gone(u8),
    Clock(i64),
    Rests(bool),
    Forget,
    Look,
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        Just(Step::Begin),
        Just(Step::Whole),
        (0_u8..4, 0_i64..10).prop_map(|(id, expires)| Step::Holds(id, expires)),
        (0_u8..4).prop_map(Step::Lets),
        (0_u8..4).prop_map(Step::Says),
        (0_u8..6, 0_u8..4, any::<bool>()).prop_map(|(address, id, silent)| Step::At(address, id, silent)),
        (0_u8..6).prop_map(Step::Gone),
        (0_i64..10).prop_map(Step::Clock),
        any::<bool>().prop_map(Step::Rests),
        Just(Step::Forget),
        Just(Step::Look),
    ]
}

proptest! {
    /// Whoever follows the differences knows what the table knows, and nobody is ever anywhere that has not shown to be held.
    #[test]
    fn the_differences_are_the_table(steps in proptest::collection::vec(steps(), 0..60)) {
        let mut table = Table::new(speaker(), 0);
        let (mut at, mut held) = (HashMap::new(), Vec::new());
        let address = |last: u8| IpAddr::from([10, 2, 0, last + 1]);
        for step in steps.into_iter().chain([Step::Look]) {
            match step {
                Step::Begin => table.begin(),
                Step::Whole => table.whole(),
                Step::Holds(name, expires) => {
                    table.holds(id(&name.to_string()), until(expires)).expect("few");
                }
                Step::Lets(name) => table.lets(&id(&name.to_string())),
                Step::Says(name) => table.says(&id(&name.to_string())),
                Step::At(last, name, silent) => table
                    .at(Resident { address: address(last), spiffe: id(&name.to_string()), incarnation: 0, silent })
                    .expect("its own"),
                Step::Gone(last) => table.gone(address(last)),
                Step::Clock(now) => table.look_at_the_clock(now),
                Step::Rests(on) => drop(table.rests_on(&Authorities::from([if on { 7 } else { 8 }]))),
                Step::Forget => drop(table.forget()),
                Step::Look => {
                    let difference = table.difference();
                    for address in difference.addresses {
                        match table.resident(address) {
                            Some(standing) => at.insert(address, format!("{standing:?}")),
                            None => at.remove(&address),
                        };
                    }
                    if let Some(identities) = difference.identities {
                        held = identities;
                    }
                    let known: HashMap<IpAddr, String> = table
                        .residents()
                        .map(|resident| {
                            let standing = table.resident(resident.address).expect("somebody");
                            if let Standing::Shown(id) = standing {
                                assert!(held.contains(id), "{id} is nowhere that was not shown");
                            }
                            (resident.address, format!("{standing:?}"))
                        })
                        .collect();
                    prop_assert_eq!(&at, &known);
                    prop_assert_eq!(held.len(), table.counts().identities);
                    prop_assert!(!table.has_changed());
                }
            }
        }
    }
}
