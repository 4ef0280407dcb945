// SPDX-License-Identifier: Apache-2.0
//! Parties without a SPIFFE ID that policy can name all the same.

use zt_common::identity;

/// Every entity: its name in documents and records, and its number in the kernel.
pub const ENTITIES: [(&str, u64); 5] = [
    ("host", identity::HOST),
    ("remote-node", identity::REMOTE_NODE),
    ("kube-apiserver", identity::KUBE_APISERVER),
    ("world", identity::WORLD),
    ("unknown", identity::UNKNOWN),
];

/// The name of the entity that `number` stands for.
pub fn entity_name(number: u64) -> Option<&'static str> {
    ENTITIES
        .iter()
        .find(|(_, of)| *of == number)
        .map(|(name, _)| *name)
}

/// The number of the entity called `name`.
pub fn entity_number(name: &str) -> Option<u64> {
    ENTITIES
        .iter()
        .find(|(of, _)| *of == name)
        .map(|(_, number)| *number)
}
