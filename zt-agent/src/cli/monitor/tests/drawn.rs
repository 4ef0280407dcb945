// SPDX-License-Identifier: Apache-2.0
//! What is drawn, and what never is.

use ratatui::Terminal;
use ratatui::backend::{CrosstermBackend, TestBackend};
use ratatui::style::Color;
use ratatui::{TerminalOptions, Viewport, layout::Rect};

use super::*;
use crate::cli::monitor::draw::draw;

/// The screen as lines.
fn screen(view: &View, width: u16, height: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("no I/O");
    terminal.draw(|frame| draw(frame, view, true)).expect("no I/O");
    let buffer = terminal.backend().buffer();
    let cells: Vec<&str> = buffer
        .content()
        .iter()
        .map(ratatui::buffer::Cell::symbol)
        .collect();
    cells
        .chunks(usize::from(width))
        .map(|line| line.concat().trim_end().to_owned())
        .collect()
}

#[test]
fn a_screen_says_what_was_decided_and_why() {
    let mut view = view(&[
        record("ALLOW", true, 5432),
        record("DENY", true, 80),
        record("DENY", false, 81),
    ]);
    view.take(Fed::Agent("node-1".to_owned()));
    let lines = screen(&view, 160, 30);
    let text = lines.join("\n");
    assert!(
        lines[0].starts_with(" zt-agent monitor  node-1  connected"),
        "{text}"
    );
    assert!(lines[0].ends_with("0/s   shown 3 of 3"), "{text}");
    let allowed = "12:00:00.123  ALLOW       …";
    assert!(
        lines[2].contains(allowed) && lines[2].contains("core/rule-2"),
        "{text}"
    );
    assert!(
        lines[3].contains("DENY        ") && lines[3].contains("(no_rule)"),
        "{text}"
    );
    assert!(lines[4].contains("WOULD DENY"), "{text}");
    assert!(text.contains("denied most often: 2 edges"), "{text}");
    assert!(
        lines[29].contains("/ filter") && lines[29].contains("q leave"),
        "{text}"
    );
}

#[test]
fn a_sample_says_that_it_is_one() {
    let mut view = View::new();
    view.tick(Duration::ZERO);
    let json = record("ALLOW", true, 5432).to_string();
    for _ in 0..50_000 {
        view.take(Fed::Record(json.clone()));
    }
    view.tick(Duration::from_secs(1));
    let lines = screen(&view, 120, 30);
    let said = "50,000/s   shown 40 of 50,000: a sample, the trail has all";
    assert!(lines[0].ends_with(said), "{}", lines[0]);
}

#[test]
fn states_are_said() {
    let mut view = view(&[record("DENY", true, 1)]);
    view.take(Fed::Gone("cannot reach http://127.0.0.1:8054".to_owned()));
    assert!(screen(&view, 140, 30)[0].contains("no agent, trying again: cannot reach http"));
    view.take(Fed::Connected);
    assert!(screen(&view, 140, 30)[0].contains("connected again"));
    typed(&mut view, " ");
    view.take(Fed::Record(record("DENY", true, 1).to_string()));
    assert!(screen(&view, 140, 30)[1].contains("HELD, 1 came since"));
    typed(&mut view, "/redis");
    let lines = screen(&view, 140, 30);
    assert!(lines[28].starts_with(" filter: redis"), "{}", lines.join("\n"));
    assert!(lines[2].contains("nothing that fits the filter has been shown"));
    assert_eq!(view.press(Key::Escape), Asked::Nothing);
    typed(&mut view, "?");
    assert!(screen(&view, 140, 30).join("\n").contains("filter as you type"));
    typed(&mut view, "x");
    assert_eq!(view.press(Key::Enter), Asked::Nothing);
    let text = screen(&view, 140, 40).join("\n");
    assert!(text.contains("source.spiffe_id") && text.contains(CHAT), "{text}");
    assert!(text.contains("No rule decided: see the reason"), "{text}");
}

/// Fails where the list of edges is empty and does not say why.
#[test]
fn edges_say_why_there_are_none() {
    let mut nothing = view(&[record("ALLOW", true, 5432)]);
    let text = |view: &View| screen(view, 160, 30).join("\n");
    let yet = "nothing has been denied since the view";
    assert!(text(&nothing).contains(yet));
    nothing.take(Fed::Record(record("DENY", true, 80).to_string()));
    assert!(!text(&nothing).contains(yet));
    typed(&mut nothing, "c");
    assert!(text(&nothing).contains(yet));
    // Those that did not come may have been denied: whatever is typed, and until it is cleared.
    nothing.take(Fed::Missed(7));
    typed(&mut nothing, "/a");
    assert!(text(&nothing).contains("none of those that were sent was denied"));
    assert_eq!(nothing.press(Key::Escape), Asked::Nothing);
    typed(&mut nothing, "c");
    assert!(text(&nothing).contains(yet));

    // Where it was is known of decisions alone.
    for (filter, is_place) in [
        ("node:n1", true),
        ("10.0.0.1", true),
        ("to:redis", false),
        ("-node:n1 to:redis", false),
        ("-postgres", false),
    ] {
        let mut view = view(&[record("DENY", true, 80)]);
        typed(&mut view, &format!("/{filter}"));
        let text = text(&view);
        assert!(
            text.contains("0 edges") && text.contains("no edge fits the filter"),
            "{filter}: {text}"
        );
        let says_why = text.contains("no edge fits the filter: one is at");
        assert_eq!(says_why, is_place, "{filter}: {text}");
    }
    let mut elsewhere = view(&[record("DENY", true, 80)]);
    typed(&mut elsewhere, "/-node:n1");
    let text = text(&elsewhere);
    assert!(text.contains("1 edges of all nodes"), "{text}");
}

#[test]
fn colours_are_left_out_where_they_are_not_wanted() {
    let view = view(&[record("DENY", true, 1)]);
    for colour in [true, false] {
        let mut terminal = Terminal::new(TestBackend::new(120, 30)).expect("no I/O");
        terminal.draw(|frame| draw(frame, &view, colour)).expect("no I/O");
        let cells = terminal.backend().buffer().content().iter();
        let coloured = cells.filter(|cell| cell.fg != Color::Reset).count();
        assert_eq!(coloured > 0, colour);
    }
}

#[test]
fn any_size_of_screen_is_drawn() {
    let mut view = view(&[record("ALLOW", true, 5432), record("DENY", true, 80)]);
    typed(&mut view, "/a");
    for keys in [
        &[][..],
        &[Key::Escape, Key::Enter],
        &[Key::Escape, Key::Char('?')],
    ] {
        for key in keys {
            view.press(*key);
        }
        for width in [1, 7, 79, 150, 300] {
            for height in [1, 3, 20, 50] {
                screen(&view, width, height);
            }
        }
    }
}

/// What a workload may call itself, and who looks at it gets the worst of: titles, cleared screens, answers that are typed,
/// directions that turn a name around.
const NASTY: &str = "a\u{1b}]0;pwned\u{7}b\u{1b}[2Jc\u{9b}31md\u{1b}[6ne\r\nf\u{202e}g\u{200b}h\u{85}i\u{7f}";

#[test]
fn no_name_reaches_the_terminal_as_it_is() {
    let mut one = record("DENY", true, 1);
    one["source"] =
        json!({"spiffe_id": null, "entity": NASTY, "address": NASTY, "comm": NASTY, "pod": NASTY});
    one["destination"]["spiffe_id"] = json!(format!("spiffe://{NASTY}"));
    for field in ["protocol", "policy_matched", "reason", "timestamp", "hook"] {
        one[field] = json!(NASTY);
    }
    one[NASTY] = json!([NASTY, {NASTY: NASTY}]);
    let mut change = json!({"type": NASTY, "caller": NASTY, "timestamp": NASTY, "change": {"mode": NASTY}});
    change["node"] = json!(NASTY);
    let mut view = view(&[one, change]);
    view.take(Fed::Agent(NASTY.to_owned()));
    view.take(Fed::Gone(NASTY.to_owned()));
    typed(&mut view, "g");
    let mut written = Vec::new();
    for step in 0..3 {
        match step {
            1 => drop(view.press(Key::Enter)),
            2 => view.told(&view_rule(&view), Err(NASTY.to_owned())),
            _ => {}
        }
        let viewport = Viewport::Fixed(Rect::new(0, 0, 200, 60));
        let mut terminal =
            Terminal::with_options(CrosstermBackend::new(&mut written), TerminalOptions { viewport })
                .expect("no I/O");
        terminal.draw(|frame| draw(frame, &view, true)).expect("no I/O");
        drop(terminal);
    }
    let text = String::from_utf8(written).expect("UTF-8");
    assert!(text.contains("pwned"), "it is shown, as what it is");
    for sequence in [
        "\u{1b}]",
        "\u{1b}[2J",
        "\u{9b}",
        "\u{1b}[6n",
        "\u{7}",
        "\r",
        "\n",
        "\u{202e}",
        "\u{200b}",
        "\u{85}",
        "\u{7f}",
    ] {
        assert!(!text.contains(sequence), "{sequence:?}");
    }
}

fn view_rule(view: &View) -> String {
    let rule = view.details.as_ref().and_then(|details| details.rule.clone());
    rule.unwrap_or_default()
}
