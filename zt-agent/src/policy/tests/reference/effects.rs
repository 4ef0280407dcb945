// SPDX-License-Identifier: Apache-2.0
//! What changes between two tables is what they say differently, all of it and nothing else.

use super::*;
use crate::policy::{Effect, Exemplars, Outcome, effects, entity_name, exemplars};

/// Stands for a workload that nobody names.
const STRANGERS: [u64; 2] = [u64::MAX, u64::MAX - 1];

fn name(who: &Who, tables: [&AllowTable; 2]) -> String {
    match who {
        Who::Workload(id) => id.to_string(),
        Who::Entity(number) => entity_name(*number).expect("an entity").to_owned(),
        Who::Address(address) => {
            let address = address.to_canonical();
            let networks = tables.iter().flat_map(|table| table.networks().entries());
            let around: Vec<IpNet> = networks
                .map(|(network, _)| network)
                .filter(|network| network.contains(&address))
                .collect();
            let Some(network) = around.iter().max_by_key(|network| network.prefix_len()) else {
                return "world".to_owned();
            };
            let name = format!("cidr:{network}");
            let named = |table: &&AllowTable| table.network_names().any(|(_, known)| known == name);
            match (tables.iter().any(named), tables[0].networks().number_at(address)) {
                (true, _) => name,
                (false, number) => entity_name(number).expect("nobody's network").to_owned(),
            }
        }
    }
}

fn is_workload(name: &str) -> bool {
    name == "*" || name.starts_with("spiffe:")
}

fn covers(effect: &Effect, port: u16) -> bool {
    let contains = |text: &String| {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        (first.parse().expect("a port")..=last.parse().expect("a port")).contains(&port)
    };
    effect.ports.is_empty() || effect.ports.iter().any(contains)
}

fn outcome(table: &AllowTable, parties: (Party<'_>, Party<'_>), port: u16, protocol: Protocol) -> Outcome {
    let decision = table.evaluate(parties.0, parties.1, port, protocol);
    match (decision.allowed, decision.proof_required) {
        (false, _) => Outcome::Deny,
        (true, true) => Outcome::AllowWithProof,
        (true, false) => Outcome::Allow,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn effects_are_what_two_tables_say_differently(
        before in documents(),
        after in documents(),
        settings in settings(),
        port in prop_oneof![select(vec![79_u16, 80, 81, 100, 4095, 4096, 8192, 12_287, 12_288, 1, u16::MAX]), 1_u16..],
    ) {
        let compiled = |texts: &[String]| {
            let docs: Vec<_> = texts.iter().enumerate().map(|(n, text)| document(&format!("{n}.yaml"), text)).collect();
            set(&docs)
        };
        let sets = [compiled(&before), compiled(&after)];
        let known: BTreeSet<SpiffeId> = sets
            .iter()
            .flat_map(|set| set.identities().clone())
            .chain(identities(&IDENTITIES))
            .collect();
        let tables = sets.each_ref().map(|set| compile(set, &known, &settings, 1).expect("it fits"));
        let tables = tables.each_ref();
        let found = effects(tables[0], tables[1], &Exemplars::new());
        prop_assert_eq!(&effects(tables[1], tables[1], &Exemplars::new()).flows, &[]);
        let strangers = STRANGERS.map(Party::Number);
        let mut everyone: Vec<(String, Party<'_>)> = vec![("*".to_owned(), strangers[0])];
        let all = super::everyone();
        everyone.extend(all.iter().map(|who| (name(who, tables), who.party())));
        for (source, from) in &everyone {
            for (destination, to) in &everyone {
                let to = if to == from && source == "*" { strangers[1] } else { *to };
                for protocol in [Protocol::Tcp, Protocol::Udp] {
                    let said = tables.map(|table| outcome(table, (*from, to), port, protocol));
                    let rows = |source: &str, destination: &str| -> Vec<&Effect> {
                        let about = |effect: &&Effect| effect.source == source && effect.destination == destination;
                        let flows = found.flows.iter().filter(about);
                        flows.filter(|effect| effect.protocol == protocol.name() && covers(effect, port)).collect()
                    };
                    let context = || format!("{source} -> {destination} {port} {protocol:?}: {said:?}\n{}\n{}", tables[0], tables[1]);
                    let of_them = rows(source, destination);
                    prop_assert!(of_them.len() < 2, "{} but {:?}", context(), of_them);
                    if said[0] == said[1] {
                        prop_assert!(of_them.is_empty(), "{} but {:?}", context(), of_them);
                        continue;
                    }
                    // A workload that no rule names is any other.
                    let (from_any, to_any) = (is_workload(source), is_workload(destination));
                    let wide = [
                        (from_any, ("*", destination.as_str())),
                        (to_any, (source.as_str(), "*")),
                        (from_any && to_any && source != destination, ("*", "*")),
                    ];
                    let wide = wide.into_iter().filter(|(applies, _)| *applies);
                    let all = of_them.into_iter().chain(wide.flat_map(|(_, (source, destination))| rows(source, destination)));
                    prop_assert!(all.into_iter().any(|row| [row.before, row.after] == said), "{}", context());
                }
            }
        }
    }

    #[test]
    fn an_exemplar_is_judged_as_whom_it_stands_for(texts in documents(), settings in settings()) {
        let docs: Vec<_> = texts.iter().enumerate().map(|(n, text)| document(&format!("{n}.yaml"), text)).collect();
        let set = set(&docs);
        let exemplars = exemplars([&set]);
        let table = compile(&set, &exemplars.keys().cloned().collect(), &settings, 1).expect("it fits");
        for (id, pattern) in &exemplars {
            prop_assert!(table.knows(id));
            let pattern = crate::spiffe_id::Pattern::parse(pattern).expect("of a policy");
            prop_assert!(pattern.matches(id));
        }
    }
}

#[test]
fn another_default_is_told_of_strangers_and_not_of_every_pair() {
    const MANY: usize = 1500;
    let rules: Vec<String> = (0..MANY)
        .map(|n| {
            let (from, to) = (id(&format!("x/w{n}")), id(&format!("x/w{}", (n + 1) % MANY)));
            format!("    - {{from: {{spiffe: '{from}'}}, to: [{{spiffe: '{to}', ports: [80]}}]}}")
        })
        .collect();
    let before = super::super::policy("p", &rules.join("\n"));
    let after = document("p.yaml", &format!("{}  defaultAction: ALLOW\n", before.text));
    let tables = [before, after].map(|document| {
        let set = set(&[document]);
        compile(&set, &BTreeSet::new(), &Settings::default(), 1).expect("it fits")
    });
    let found = effects(&tables[0], &tables[1], &Exemplars::new());
    assert_eq!(found.beyond, 0);
    assert!(found.flows.len() < 4 * MANY, "{}", found.flows.len());
    let strangers =
        |effect: &Effect| effect.source == "*" && effect.destination == "*" && effect.after == Outcome::Allow;
    assert!(found.flows.iter().any(strangers));
}
