// SPDX-License-Identifier: Apache-2.0
//! What the keys do.

use super::*;
use crate::cli::monitor::details::RuleText;

#[test]
fn a_filter_holds_while_it_is_typed() {
    let mut view = view(&[record("ALLOW", true, 5432), record("DENY", true, 80)]);
    assert_eq!(view.wanted().len(), 2);
    typed(&mut view, "/port:8");
    assert_eq!(view.wanted().len(), 0, "half a number is another");
    typed(&mut view, "0");
    assert_eq!(view.wanted().len(), 1);
    // What comes is taken by it, and counted anew.
    view.take(Fed::Record(record("ALLOW", true, 5432).to_string()));
    view.take(Fed::Record(record("ALLOW", true, 80).to_string()));
    assert_eq!((view.wanted().len(), view.sample.all), (2, 1));
    // `q` is a letter as long as one types.
    typed(&mut view, "q");
    assert!(view.is_typing && view.typed.ends_with('q'));
    assert_eq!(view.press(Key::Backspace), Asked::Nothing);
    assert_eq!(view.press(Key::Enter), Asked::Nothing);
    assert!(!view.is_typing);
    assert_eq!(view.wanted().len(), 2);
    assert_eq!(view.press(Key::Escape), Asked::Nothing);
    assert_eq!(view.wanted().len(), 3, "Esc ends the filter");
    typed(&mut view, "/re\u{1b}dis\n");
    assert_eq!((view.typed.as_str(), view.wanted().len()), ("redis", 0));
    assert_eq!(view.press(Key::Clear), Asked::Nothing);
    assert_eq!(view.wanted().len(), 3);
}

#[test]
fn held_is_held_and_counts_on() {
    let mut view = view(&[record("DENY", true, 1)]);
    typed(&mut view, " ");
    view.take(Fed::Record(record("DENY", true, 1).to_string()));
    assert_eq!((view.wanted().len(), view.meanwhile), (1, 1));
    assert_eq!(view.top().0[0].total(), 2);
    typed(&mut view, " ");
    view.take(Fed::Record(record("DENY", true, 1).to_string()));
    assert_eq!((view.wanted().len(), view.meanwhile), (2, 0));
    typed(&mut view, "c");
    assert_eq!((view.wanted().len(), view.top().1, view.sample.all), (0, 0, 0));
}

#[test]
fn denials_only_is_one_key() {
    let mut view = view(&[record("ALLOW", true, 1), record("DENY", false, 1)]);
    typed(&mut view, "d");
    assert_eq!(view.wanted().len(), 1);
    view.take(Fed::Record(record("ALLOW", true, 1).to_string()));
    assert_eq!(view.sample.all, 0, "what is not wanted is not among those shown");
    assert_eq!(view.press(Key::Escape), Asked::Nothing);
    assert_eq!(view.wanted().len(), 2);
}

#[test]
fn a_selection_stays_with_its_row() {
    let mut view = view(&[
        record("DENY", true, 1),
        record("DENY", true, 2),
        record("DENY", true, 3),
    ]);
    let at = |view: &View| view.selected_among(&view.wanted());
    assert_eq!(at(&view), None, "it follows the newest");
    assert_eq!(view.press(Key::Up), Asked::Nothing);
    assert_eq!(at(&view), Some(1));
    view.take(Fed::Record(record("DENY", true, 4).to_string()));
    assert_eq!(at(&view), Some(1));
    typed(&mut view, "g");
    assert_eq!(at(&view), Some(0));
    typed(&mut view, "jjjj");
    assert_eq!(at(&view), None, "past the newest it follows again");
    assert_eq!(view.press(Key::PageUp), Asked::Nothing);
    assert_eq!(at(&view), Some(0));
    typed(&mut view, "G");
    assert_eq!(at(&view), None);
    // Nothing there, nothing to select.
    let mut view = View::new();
    typed(&mut view, "kjgG");
    assert_eq!(view.press(Key::Enter), Asked::Nothing);
    assert!(view.details.is_none());
}

#[test]
fn a_decision_opens_with_its_rule() {
    let mut view = view(&[record("ALLOW", true, 5432)]);
    let asked = view.press(Key::Enter);
    assert_eq!(asked, Asked::Rule("core/rule-2".to_owned()));
    let policy =
        json!({"name": "core", "document": {"spec": {"rules": [{"from": 1}, {"from": {"spiffe": CHAT}}]}}});
    view.told("other/rule-1", Ok(&policy));
    assert_eq!(
        view.details.as_ref().map(|details| &details.text),
        Some(&RuleText::Asked)
    );
    view.told("core/rule-2", Ok(&policy));
    let details = view.details.as_ref().expect("open");
    let RuleText::Is(lines) = &details.text else {
        panic!("{details:?}");
    };
    assert!(lines.iter().any(|line| line.contains(CHAT)), "{lines:?}");
    assert!(
        details
            .fields
            .contains(&("source.comm".to_owned(), "curl".to_owned()))
    );
    for (answer, said) in [
        (
            Ok(&json!({"document": {"spec": {"rules": []}}})),
            "no such rule any more",
        ),
        (Err("no policy `core` is in force".to_owned()), "no policy `core`"),
    ] {
        view.told("core/rule-2", answer);
        let details = view.details.as_ref().expect("open");
        assert!(
            matches!(&details.text, RuleText::Unknown(why) if why.contains(said)),
            "{details:?}"
        );
    }
    assert_eq!(view.press(Key::Escape), Asked::Nothing);
    assert!(view.details.is_none());
    assert_eq!(view.press(Key::Char('q')), Asked::Quit);
}

#[test]
fn what_no_document_has_is_not_asked_for() {
    for (rule, text) in [
        (Value::Null, RuleText::None),
        (
            json!("builtin/self"),
            RuleText::Unknown("built in: it is in no document".to_owned()),
        ),
        (
            json!("../mode/rule-1"),
            RuleText::Unknown("built in: it is in no document".to_owned()),
        ),
    ] {
        let mut one = record("ALLOW", true, 1);
        one["policy_matched"] = rule;
        let mut view = view(&[one]);
        assert_eq!(view.press(Key::Enter), Asked::Nothing);
        assert_eq!(view.details.expect("open").text, text);
    }
}

#[test]
fn an_edge_leads_to_its_decisions() {
    let mut view = view(&[
        record("DENY", true, 1),
        record("DENY", true, 2),
        record("DENY", true, 2),
        record("ALLOW", true, 3),
    ]);
    assert_eq!(view.press(Key::Tab), Asked::Nothing);
    assert_eq!(view.pane, Pane::Edges);
    assert_eq!(view.press(Key::Enter), Asked::Nothing);
    assert_eq!(view.pane, Pane::Decisions);
    assert_eq!(view.wanted().len(), 2, "{}", view.typed);
    assert_eq!(view.press(Key::Interrupt), Asked::Quit);
}
