// SPDX-License-Identifier: Apache-2.0
//! Places, and what is no YAML.

use std::fmt::Write;

use super::*;

#[test]
fn keys_and_values_know_their_place() {
    let node = parse("f", "a: 1\nb:\n  - yes\n  - \"2\"\n  - true\n  - ~\n").expect("valid");
    let Value::Map(map) = &node.value else {
        panic!("{node:?}")
    };
    assert_eq!(map[1].0.value, Value::Text("b".into()));
    assert_eq!((map[1].0.line, map[1].0.column), (2, 1));
    let Value::List(list) = &map[1].1.value else {
        panic!("{map:?}")
    };
    assert_eq!((list[0].line, list[0].column), (3, 5));
    let values: Vec<_> = list.iter().map(|node| node.value.clone()).collect();
    assert_eq!(
        values,
        [
            Value::Text("yes".into()),
            Value::Text("2".into()),
            Value::Boolean(true),
            Value::Null
        ]
    );
}

#[test]
fn malformed_yaml_names_its_line() {
    let problem = parse("f.yaml", "a: 1\nb: [1, 2\nc: 3\n").expect_err("unclosed");
    assert_eq!(problem.file, "f.yaml");
    assert!(problem.line >= 2, "{problem}");
    assert!(!problem.message.contains('\n'), "{problem}");
}

#[test]
fn keys_are_texts_and_stand_once() {
    let node = parse("f", "a: 1\nb: 3\na: 2\n[x]: 3\n").expect("valid YAML");
    let mut report = Report::new("f");
    let entries = report.map(&node, "m").expect("a mapping");
    let keys: Vec<_> = entries.iter().map(|entry| entry.key).collect();
    assert_eq!(keys, ["a", "b"]);
    let problems = report.finish(()).expect_err("two problems");
    let lines: Vec<_> = problems.iter().map(ToString::to_string).collect();
    assert_eq!(
        lines,
        [
            "f:3:1: m: `a` stands here twice: first in line 1",
            "f:4:1: m: a field's name is a text, not a list"
        ]
    );
}

#[test]
fn second_documents_are_refused() {
    let problem = parse("f", "a: 1\n---\nb: 2\n").expect_err("two documents");
    assert!(problem.message.contains("document"), "{problem}");
}

#[test]
fn aliases_are_bounded() {
    let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
    for n in 1..9 {
        let aliases = vec![format!("*a{}", n - 1); 9].join(", ");
        writeln!(text, "a{n}: &a{n} [{aliases}]").expect("String");
    }
    assert!(parse("f", &text).is_err());
    assert!(parse("f", &"[".repeat(200)).is_err());
}

#[test]
fn a_tag_is_not_passed_over() {
    let text = "a: !secret p\nb: !!str 5\nc: [! x, !<tag:yaml.org,2002:int> 7, !x {y: z}, !!binary YQ==]\n!k d: 1\ne: &e !secret q\nf: *e\n";
    let node = parse("f", text).expect("valid YAML");
    let tag = |tag: &str| Value::Tagged(tag.to_owned());
    let at = |key: &str| &node.at(&[key]).expect(key).value;
    assert_eq!(at("a"), &tag("!secret"));
    assert_eq!(at("b"), &Value::Text("5".to_owned()));
    let Value::List(list) = at("c") else {
        panic!("{node:?}")
    };
    let values: Vec<&Value> = list.iter().map(|node| &node.value).collect();
    assert_eq!(
        values,
        [
            &Value::Text("x".to_owned()),
            &Value::Integer(7),
            &tag("!x"),
            &tag("tag:yaml.org,2002:binary"),
        ]
    );
    assert_eq!((at("e"), at("f")), (&tag("!secret"), &tag("!secret")));
    let mut report = Report::new("f");
    report.map(&node, "m").expect("a mapping");
    report.text(node.at(&["a"]).expect("a"), "m.a");
    let problems = report.finish(()).expect_err("two problems");
    let lines: Vec<_> = problems.iter().map(ToString::to_string).collect();
    assert_eq!(
        lines,
        [
            "f:1:12: m.a: must be text, not a value with the tag `!secret`",
            "f:4:4: m: a field's name is a text, not a value with the tag `!k`"
        ]
    );
}

#[test]
fn an_empty_file_is_null() {
    assert_eq!(parse("f", "# nothing\n\n").expect("valid").value, Value::Null);
}
