// SPDX-License-Identifier: Apache-2.0
//! How `modes` is read.

use super::Config;
use super::setting::Raw;
use crate::identity::{Mode, ModeRule};
use crate::spiffe_id::Pattern;
use crate::yaml::{Node, Value};

/// The fields of an entry, both needed.
const FIELDS: [&str; 2] = ["spiffe", "mode"];

pub(super) fn modes(config: &mut Config, raw: Raw<'_>) -> Result<(), String> {
    let Raw::Node(node) = raw else {
        let entry = |text: &str| {
            let (id, mode) = text
                .rsplit_once('=')
                .ok_or_else(|| format!("`{text}` is not ID=MODE"))?;
            rule(id, mode)
        };
        config.modes = raw.list()?.into_iter().map(entry).collect::<Result<_, _>>()?;
        return Ok(());
    };
    let Value::List(items) = &node.value else {
        return Err(format!(
            "must be a list of {{spiffe, mode}}, not {}",
            node.value.kind()
        ));
    };
    let mut modes = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        let wrong = |message: String| format!("entry {} (line {}): {message}", index + 1, item.line);
        modes.push(entry(item).map_err(wrong)?);
    }
    config.modes = modes;
    Ok(())
}

fn entry(item: &Node) -> Result<ModeRule, String> {
    let Value::Map(fields) = &item.value else {
        return Err(format!("must be {{spiffe, mode}}, not {}", item.value.kind()));
    };
    let known = |key: &Value| matches!(key, Value::Text(text) if FIELDS.contains(&text.as_str()));
    if !fields.iter().all(|(key, _)| known(&key.value)) {
        return Err("has the fields spiffe and mode, and no others".to_owned());
    }
    let [spiffe, mode] = FIELDS.map(|name| {
        let of = |key: &Value| matches!(key, Value::Text(text) if text == name);
        let (_, value) = fields
            .iter()
            .find(|(key, _)| of(&key.value))
            .ok_or_else(|| format!("`{name}` is missing"))?;
        Raw::Node(value).text().map_err(|error| format!("{name} {error}"))
    });
    rule(spiffe?, mode?)
}

fn rule(id: &str, mode: &str) -> Result<ModeRule, String> {
    Ok(ModeRule {
        spiffe: Pattern::parse(id).map_err(|error| format!("`{id}`: {error}"))?,
        mode: Mode::from_name(mode)
            .ok_or_else(|| format!("the mode must be `observe` or `enforce`, not `{mode}`"))?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Sources;

    fn load(variable: &str) -> Result<Config, String> {
        let sources = Sources {
            environment: [("ZT_MODES".into(), variable.into())].into(),
            ..Sources::default()
        };
        Config::load(&sources).map_err(|error| error.to_string())
    }

    fn from_file(modes: &str) -> Result<Config, String> {
        let directory = tempfile::tempdir().expect("directory");
        let file = directory.path().join("agent.yaml");
        std::fs::write(&file, format!("modes: {modes}\n")).expect("write");
        let sources = Sources {
            file: Some(file),
            ..Sources::default()
        };
        Config::load(&sources).map_err(|error| error.to_string())
    }

    #[test]
    fn the_file_and_a_variable_say_the_same() {
        let text =
            "spiffe://hanzo.ai/c/kube-system/coredns=enforce, spiffe://hanzo.ai/c/kube-system/*=observe";
        let variable = load(text).expect("valid").modes;
        let list = "[{spiffe: spiffe://hanzo.ai/c/kube-system/coredns, mode: enforce}, \
                    {mode: observe, spiffe: \"spiffe://hanzo.ai/c/kube-system/*\"}]";
        assert_eq!(from_file(list).expect("valid").modes, variable);
        let modes: Vec<Mode> = variable.iter().map(|rule| rule.mode).collect();
        assert_eq!(modes, [Mode::Enforce, Mode::Observe]);
    }

    #[test]
    fn what_is_no_rule_is_refused_with_its_line() {
        for (list, why) in [
            ("enforce", "must be a list of {spiffe, mode}"),
            ("[enforce]", "entry 1 (line 1): must be {spiffe, mode}, not text"),
            ("[{spiffe: \"*\"}]", "`mode` is missing"),
            ("[{mode: observe}]", "`spiffe` is missing"),
            (
                "[{spiffe: \"*\", mode: deny}]",
                "must be `observe` or `enforce`, not `deny`",
            ),
            ("[{spiffe: \"*\", mode: observe, node: x}]", "and no others"),
            ("[{spiffe: kube-system, mode: observe}]", "`kube-system`"),
        ] {
            let error = from_file(list).expect_err(list);
            assert!(error.contains(why), "{list}: {error}");
        }
        assert!(load("x").expect_err("no mode").contains("is not ID=MODE"));
    }
}
