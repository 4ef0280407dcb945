// SPDX-License-Identifier: Apache-2.0
//! Policies for tests.

use super::{Document, PolicySet, Settings, parse};

/// Policies of these names, each of which allows everybody one port of everybody.
pub(crate) fn of_ports(ports: &[(&str, u16)]) -> PolicySet {
    let document = |(name, port): &(&str, u16)| Document {
        file: format!("{name}.yaml"),
        text: format!(
            "apiVersion: zt.hanzo.ai/v1\nkind: ServiceAccessPolicy\nmetadata: {{name: {name}}}\nspec:\n  rules:\n    \
             - {{from: {{spiffe: '*'}}, to: [{{spiffe: '*', ports: [{port}]}}]}}\n"
        ),
    };
    let documents: Vec<Document> = ports.iter().map(document).collect();
    parse(&documents, &Settings::default()).expect("valid")
}
