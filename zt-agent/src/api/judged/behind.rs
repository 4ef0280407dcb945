// SPDX-License-Identifier: Apache-2.0
//! Who stands behind Services at this moment: recorded connections to them are judged by these.

use crate::policy::Protocol;
use crate::state::Fronts;
use crate::traffic::Services;

/// Those behind all places.
pub(super) fn services(fronts: &Fronts) -> Services {
    let mut services = Services::default();
    for (place, front) in fronts.iter() {
        let protocols = [Protocol::Tcp, Protocol::Udp];
        // The kernel asks about no other.
        let Some(protocol) = protocols.into_iter().find(|of| of.number() == place.protocol) else {
            continue;
        };
        services.add(&front.service, protocol, front.target_port, front.members());
    }
    services
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::IpAddr;
    use std::sync::Arc;

    use serde_json::json;
    use zt_common::identity;

    use super::super::answer;
    use super::*;
    use crate::audit::query::{AddingSeen, Connections, Counted, Fold, GraphFilter};
    use crate::audit::record::Timestamp;
    use crate::identity::services::{Backend, Backends, Place};
    use crate::policy::{self, AllowTable, Document, Groups, Settings, Wishes};
    use crate::spiffe_id::SpiffeId;
    use crate::traffic::{self, Change, Range, Replayed};

    fn id(name: &str) -> SpiffeId {
        SpiffeId::parse(&format!("spiffe://hanzo.ai/{name}")).expect("literal")
    }

    /// A Service with three ports: to `a` and to `b` at one, to `b` alone at the other, and to nobody, who is without endpoints, at
    /// the third.
    fn fronts() -> Fronts {
        let place = |port| Place {
            address: IpAddr::from([10, 96, 0, 1]),
            port,
            protocol: 6,
        };
        let both = [
            (Backend::Workload(id("a")), 8080),
            (Backend::Workload(id("b")), 9090),
        ];
        let places = [
            (place(80), Backends::from(both.clone())),
            (place(81), Backends::from([both[1].clone()])),
            (
                place(82),
                Backends::from([(Backend::Entity(identity::UNKNOWN), 6060)]),
            ),
        ];
        let places = places.map(|(place, backends)| (place, Arc::from("x/web"), backends));
        Fronts::new(places.into_iter(), &mut Groups::default())
    }

    fn range(port: u16, denied: bool) -> Range {
        let (all, fold) = (GraphFilter::default(), Fold::nothing());
        let mut adding = AddingSeen::new(&all, &fold);
        let one = Counted {
            connections: Connections {
                source: "spiffe://hanzo.ai/client".into(),
                destination: "service:x/web".into(),
                protocol: 6,
                port,
                corrects: false,
                denied,
                enforced: false,
                count: 3,
                first_seen: Timestamp(1),
                last_seen: Timestamp(2),
            },
            reason: if denied { "no_rule" } else { "rule" }.to_owned(),
            source_address: None,
            destination_address: None,
        };
        assert_eq!(adding.take(&one), Ok(()));
        let mut range = Range::from(adding.done());
        assert!(range.has_unknown_services());
        range.look_behind(&services(&fronts()));
        range
    }

    /// A policy of these targets, for whoever judges a range.
    fn table(range: &Range, targets: &str) -> AllowTable {
        let text = format!(
            "apiVersion: zt.hanzo.ai/v1\nkind: ServiceAccessPolicy\nmetadata: {{name: p}}\nspec:\n  rules:\n    \
             - {{from: {{spiffe: 'spiffe://hanzo.ai/client'}}, to: [{targets}]}}\n"
        );
        let document = Document {
            file: "p.yaml".to_owned(),
            text,
        };
        let set = policy::parse(&[document], &Settings::default()).expect("valid");
        policy::compile(&set, &range.workloads(), &Settings::default(), 1).expect("it fits")
    }

    /// What it makes of what was allowed at a port.
    fn replayed_at(port: u16, targets: &str) -> BTreeMap<Change, u64> {
        let range = range(port, false);
        let rows = Replayed::of(&range, &table(&range, targets)).rows.into_iter();
        rows.map(|(row, times)| (row.change, times.connections)).collect()
    }

    fn replayed(targets: &str) -> BTreeMap<Change, u64> {
        replayed_at(8080, targets)
    }

    #[test]
    fn a_service_is_judged_by_all_of_those_behind_it() {
        let (a, b) = (
            "{spiffe: 'spiffe://hanzo.ai/a', ports: [8080]}",
            "{spiffe: 'spiffe://hanzo.ai/b', ports: [9090]}",
        );
        assert_eq!(replayed(&format!("{a}, {b}")), BTreeMap::new());
        let denied = BTreeMap::from([(Change::NewlyDenied, 3)]);
        assert_eq!(replayed(a), denied);
        assert_eq!(replayed(b), denied);
        let other = "{spiffe: 'spiffe://hanzo.ai/b', ports: [8080]}";
        assert_eq!(replayed(&format!("{a}, {other}")), denied, "each at its own port");
    }

    #[test]
    fn who_was_behind_a_service_without_endpoints_is_not_known() {
        let (a, nobody) = (
            "{spiffe: 'spiffe://hanzo.ai/a', ports: [6060]}",
            "{entity: unknown, ports: [6060]}",
        );
        let undecided = BTreeMap::from([(Change::Undecided, 3)]);
        for targets in [a, nobody] {
            assert_eq!(replayed_at(6060, targets), undecided, "{targets}");
        }
    }

    #[test]
    fn what_is_denied_names_all_of_those_behind_the_service() {
        let range = range(8080, false);
        let table = table(&range, "{spiffe: 'spiffe://hanzo.ai/a', ports: [8080]}");
        let (_, denied) = answer::would_deny(&range, &table, None);
        let denied = serde_json::to_value(&denied).expect("JSON");
        assert_eq!(
            (&denied[0]["destination"], &denied[0]["behind"]),
            (
                &json!("service:x/web"),
                &json!(["spiffe://hanzo.ai/a", "spiffe://hanzo.ai/b"])
            )
        );
    }

    #[test]
    fn what_is_recommended_has_all_of_them_and_says_who_is_not_known() {
        let wishes = Wishes {
            name: "made".to_owned(),
            patterns: Vec::new(),
        };
        let made =
            |range: &Range| traffic::advise(range, &wishes, false, &Settings::default()).expect("a policy");
        let advice = made(&range(8080, true));
        assert!(advice.unsaid.is_empty() && !advice.lacks, "{:?}", advice.unsaid);
        for part in [
            "# 8080 by service:x/web: 3 connections",
            "- spiffe: \"spiffe://hanzo.ai/a\"\n          ports: [8080]\n",
            "# 9090 by service:x/web: 3 connections",
            "- spiffe: \"spiffe://hanzo.ai/b\"\n          ports: [9090]\n",
        ] {
            assert!(advice.made.text.contains(part), "{}", advice.made.text);
        }
        // No place of it has that port any more, or nobody is there: all may not be let in for that.
        for port in [7070, 6060] {
            let advice = made(&range(port, true));
            assert_eq!((advice.made.rules, advice.lacks), (0, true));
            let unsaid = advice.unsaid.first().expect("it is named");
            assert!(
                unsaid.0.contains(&format!("service:x/web TCP {port}")),
                "{unsaid:?}"
            );
            assert!(
                unsaid.1.contains("who stands behind it is not known"),
                "{unsaid:?}"
            );
        }
    }
}
