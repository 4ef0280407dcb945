// SPDX-License-Identifier: Apache-2.0
//! Tests of the whole way from text to decision.

mod alike;
mod compiling;
mod difference;
mod documentation;
mod examples;
mod operators;
mod parsing;
mod recommend;
mod reference;
mod rollout;
mod scale;
mod schema;
mod together;

use std::collections::BTreeSet;

use super::{AllowTable, Document, PolicySet, Problem, Settings, compile, parse};
use crate::spiffe_id::SpiffeId;

fn document(file: &str, text: &str) -> Document {
    Document {
        file: file.to_owned(),
        text: text.to_owned(),
    }
}

fn id(name: &str) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://hanzo.ai/{name}")).expect("a literal of this test")
}

/// A policy with the given rules, indented by four in YAML flow or block style.
fn policy(name: &str, rules: &str) -> Document {
    let text = format!(
        "apiVersion: zt.hanzo.ai/v1\nkind: ServiceAccessPolicy\nmetadata:\n  name: {name}\nspec:\n  rules:\n{rules}\n"
    );
    document(&format!("{name}.yaml"), &text)
}

fn set(docs: &[Document]) -> PolicySet {
    parse(docs, &Settings::default()).unwrap_or_else(|problems| panic!("{problems:#?}"))
}

fn problems(docs: &[Document]) -> Vec<Problem> {
    parse(docs, &Settings::default()).expect_err("the documents have problems")
}

fn table_with(docs: &[Document], identities: &[SpiffeId], settings: &Settings) -> AllowTable {
    let identities: BTreeSet<SpiffeId> = identities.iter().cloned().collect();
    compile(&set(docs), &identities, settings, 7).expect("a table that fits")
}

fn table(docs: &[Document], identities: &[SpiffeId]) -> AllowTable {
    table_with(docs, identities, &Settings::default())
}
