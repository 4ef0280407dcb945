// SPDX-License-Identifier: Apache-2.0
//! An explanation names the rules that the semantics say are about a flow, and the one that decides.

use super::*;
use crate::policy::{Miss, Step, explain};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn the_rules_about_a_flow_are_those_that_the_semantics_say(
        texts in documents(),
        settings in settings(),
        port in prop_oneof![select(vec![79_u16, 80, 81, 100, 4095, 4096, u16::MAX]), 1_u16..],
    ) {
        let docs: Vec<_> = texts.iter().enumerate().map(|(n, text)| document(&format!("{n}.yaml"), text)).collect();
        let set = set(&docs);
        let table = compile(&set, &identities(&IDENTITIES), &settings, 1).expect("it fits");
        let reference = Reference { set: &set, settings: &settings };
        for source in &everyone() {
            for destination in &everyone() {
                for protocol in [Protocol::Tcp, Protocol::Udp] {
                    let parties = (source.party(), destination.party());
                    let found = explain(&set, &table, parties, port, protocol);
                    let context = || format!("{source:?} -> {destination:?} {protocol:?} {port}\n{table}\n{found:?}");
                    prop_assert_eq!(&found.decision, &table.evaluate(parties.0, parties.1, port, protocol));
                    let about = |action| reference.matching(source, destination, port, protocol, action, false);
                    let mut wanted: Vec<String> = [Action::Deny, Action::Allow]
                        .into_iter()
                        .flat_map(about)
                        .map(|rule| set.rule_name(rule.number).to_string())
                        .collect();
                    let of_documents = |step: Step| !matches!(step, Step::SelfRule | Step::Host);
                    let mut named: Vec<String> = found
                        .speaking
                        .iter()
                        .filter(|rule| of_documents(rule.step))
                        .map(|rule| rule.rule.to_string())
                        .collect();
                    wanted.sort_unstable();
                    named.sort_unstable();
                    prop_assert_eq!(named, wanted, "{}", context());
                    let decide = found.speaking.iter().filter(|rule| rule.decides).count();
                    prop_assert_eq!(decide, usize::from(found.decision.rule.is_some()), "{}", context());
                    let first = found.speaking.first();
                    prop_assert!(first.is_none_or(|rule| rule.decides), "{}", context());
                    let nothing: &[Miss] = &[];
                    prop_assert!(found.silent.iter().all(|rule| rule.misses != nothing), "{}", context());
                }
            }
        }
    }
}
