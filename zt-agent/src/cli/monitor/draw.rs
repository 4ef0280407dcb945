// SPDX-License-Identifier: Apache-2.0
//! One frame of the view. It reads the state and changes nothing.

mod popup;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Paragraph, Wrap};

use super::edges::Edge;
use super::keys;
use super::parsed::Verdict;
use super::row::Row;
use super::view::{Link, Pane, View};
use crate::cli::output::Tone;
use crate::cli::table::printable;

/// From this width on the edges are beside the decisions.
const WIDE: u16 = 150;
/// From this height on they are below them; otherwise Tab shows one of both.
const HIGH: u16 = 20;

/// Draws the view.
pub(super) fn draw(frame: &mut Frame<'_>, view: &View, colour: bool) {
    let pen = Pen { colour };
    let [title, main, filter, help] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Min(0),
        Constraint::Length(u16::from(has_filter(view))),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(Paragraph::new(heading(view, pen, title.width)), title);
    let both = if main.width >= WIDE {
        Some(Layout::horizontal([
            Constraint::Percentage(64),
            Constraint::Percentage(36),
        ]))
    } else if main.height >= HIGH {
        Some(Layout::vertical([
            Constraint::Percentage(70),
            Constraint::Percentage(30),
        ]))
    } else {
        None
    };
    match (both, view.pane) {
        (Some(layout), _) => {
            let [left, right] = layout.areas(main);
            decisions(frame, view, pen, left);
            edges(frame, view, pen, right);
        }
        (None, Pane::Decisions) => decisions(frame, view, pen, main),
        (None, Pane::Edges) => edges(frame, view, pen, main),
    }
    frame.render_widget(Paragraph::new(filter_line(view, pen)), filter);
    let help_line = Span::styled(format!(" {}", keys::LINE), pen.style(Tone::Faint));
    frame.render_widget(Paragraph::new(help_line), help);
    if let Some(details) = &view.details {
        popup::details(frame, details, pen, main);
    }
    if view.is_helping {
        popup::help(frame, pen, main);
    }
}

/// What the terminal can show.
#[derive(Clone, Copy)]
struct Pen {
    colour: bool,
}

impl Pen {
    fn style(self, tone: Tone) -> Style {
        let style = Style::new();
        match tone {
            Tone::Faint => style.add_modifier(Modifier::DIM),
            Tone::Bad if !self.colour => style.add_modifier(Modifier::BOLD),
            Tone::Bad => style.fg(Color::Red),
            Tone::Good if self.colour => style.fg(Color::Green),
            Tone::Caution if self.colour => style.fg(Color::Yellow),
            Tone::Plain | Tone::Good | Tone::Caution => style,
        }
    }

    fn verdict(self, verdict: Verdict) -> Style {
        self.style(match verdict {
            Verdict::Allowed => Tone::Good,
            Verdict::Denied => Tone::Bad,
            Verdict::Observed | Verdict::Change => Tone::Caution,
        })
    }

    fn block(self, title: String, is_active: bool) -> Block<'static> {
        let style = if is_active {
            Style::new().add_modifier(Modifier::BOLD)
        } else {
            self.style(Tone::Faint)
        };
        Block::bordered().border_style(style).title(title)
    }
}

fn heading(view: &View, pen: Pen, width: u16) -> Line<'static> {
    let sample = &view.sample;
    let mut right = format!(
        "{}/s   shown {} of {}",
        thousands(sample.rate()),
        thousands(sample.shown),
        thousands(sample.all)
    );
    if sample.missed > 0 {
        right.push_str(", ");
        right.push_str(&thousands(sample.missed));
        right.push_str(" not sent");
    }
    let is_sample = sample.shown < sample.all && !view.is_held;
    if is_sample {
        right.push_str(": a sample, the trail has all");
    }
    right.push(' ');
    let (state, tone) = match &view.link {
        Link::Connected => ("connected".to_owned(), Tone::Good),
        Link::Again => (
            "connected again: what was decided meanwhile is in the trail".to_owned(),
            Tone::Caution,
        ),
        Link::Gone(why) => (format!("no agent, trying again: {why}"), Tone::Bad),
    };
    let left = format!(" zt-agent monitor  {}  ", view.agent);
    let used = left.chars().count() + right.chars().count();
    let state = head(&state, usize::from(width).saturating_sub(used + 1));
    let gap = usize::from(width).saturating_sub(used + state.chars().count());
    Line::from(vec![
        Span::styled(left, Style::new().add_modifier(Modifier::BOLD)),
        Span::styled(state, pen.style(tone)),
        Span::raw(" ".repeat(gap)),
        Span::styled(
            right,
            pen.style(if is_sample { Tone::Caution } else { Tone::Plain }),
        ),
    ])
}

fn has_filter(view: &View) -> bool {
    view.is_typing || !view.typed.is_empty() || view.denials_only
}

fn filter_line(view: &View, pen: Pen) -> Line<'static> {
    let mut spans = Vec::new();
    if view.denials_only {
        spans.push(Span::styled(" denials only ", pen.style(Tone::Caution)));
    }
    if view.is_typing || !view.typed.is_empty() {
        spans.push(Span::styled(" filter: ", pen.style(Tone::Faint)));
        spans.push(Span::raw(printable(&view.typed)));
    }
    if view.is_typing {
        spans.push(Span::styled(" ", Style::new().add_modifier(Modifier::REVERSED)));
    }
    Line::from(spans)
}

fn decisions(frame: &mut Frame<'_>, view: &View, pen: Pen, area: Rect) {
    let wanted = view.wanted();
    let mut title = " decisions ".to_owned();
    if view.is_held {
        title.push_str("HELD, ");
        title.push_str(&thousands(view.meanwhile));
        title.push_str(" came since ");
    }
    let block = pen.block(title, view.pane == Pane::Decisions);
    let inner = block.inner(area);
    frame.render_widget(block, area);
    if wanted.is_empty() {
        let nothing = if has_filter(view) {
            " nothing that fits the filter has been shown"
        } else {
            " nothing has been decided since the view began"
        };
        frame.render_widget(
            Paragraph::new(Span::styled(nothing, pen.style(Tone::Faint))),
            inner,
        );
        return;
    }
    let height = usize::from(inner.height);
    let selected = view.selected_among(&wanted);
    let first = first_of_window(selected.unwrap_or(wanted.len() - 1), wanted.len(), height);
    let lines: Vec<Line<'_>> = wanted
        .iter()
        .enumerate()
        .skip(first)
        .take(height)
        .map(|(at, row)| {
            let line = decision(row, pen, usize::from(inner.width));
            chosen(line, selected == Some(at) && view.pane == Pane::Decisions)
        })
        .collect();
    frame.render_widget(Paragraph::new(lines), inner);
}

/// The first of `height` lines of `count`, such that line `at` is in the middle, where there are enough around it.
fn first_of_window(at: usize, count: usize, height: usize) -> usize {
    at.saturating_sub(height / 2).min(count.saturating_sub(height))
}

fn chosen(line: Line<'_>, is_chosen: bool) -> Line<'_> {
    if is_chosen {
        line.style(Style::new().add_modifier(Modifier::REVERSED))
    } else {
        line
    }
}

/// Widths of columns that do not depend on the screen's.
const TIME: usize = 12;
const VERDICT: usize = 10;
const PORT: usize = 9;

fn decision(row: &Row, pen: Pen, width: usize) -> Line<'static> {
    let because_width = (width / 4).min(34);
    let fixed = TIME + VERDICT + PORT + because_width + 8 + 3;
    let names = width.saturating_sub(fixed) / 2;
    let times = if row.weight > 1 {
        format!(" ×{}", row.weight)
    } else {
        String::new()
    };
    let verdict = match row.verdict {
        Verdict::Allowed => "ALLOW",
        Verdict::Denied => "DENY",
        Verdict::Observed => "WOULD DENY",
        Verdict::Change => "CHANGED",
    };
    let (source, destination) = match row.verdict {
        // Its text is worth more than columns.
        Verdict::Change => (row.source.clone(), head(&row.destination, names * 2)),
        _ => (
            padded(&tail(short(&row.source), names), names),
            padded(&tail(short(&row.destination), names), names),
        ),
    };
    Line::from(vec![
        Span::styled(format!("{}  ", padded(&row.time, TIME)), pen.style(Tone::Faint)),
        Span::styled(
            format!("{}  ", padded(verdict, VERDICT)),
            pen.verdict(row.verdict),
        ),
        Span::raw(format!("{source} → {destination}  {}  ", padded(&row.port, PORT))),
        Span::styled(
            format!("{}{times}", tail(&row.because, because_width)),
            pen.style(Tone::Faint),
        ),
    ])
}

fn edges(frame: &mut Frame<'_>, view: &View, pen: Pen, area: Rect) {
    let (top, all) = view.top();
    let mut title = format!(" denied most often: {} edges ", thousands(all as u64));
    if view.edges.others > 0 {
        title.push_str("and ");
        title.push_str(&thousands(view.edges.others));
        title.push_str(" denials on edges that are not told apart ");
    }
    if view.asks_where() && !top.is_empty() {
        title.push_str("of all nodes ");
    }
    let block = pen.block(title, view.pane == Pane::Edges);
    let inner = block.inner(area);
    frame.render_widget(block, area);
    if top.is_empty() {
        let nothing = format!(" {}", view.why_no_edge());
        let nothing = Paragraph::new(Span::styled(nothing, pen.style(Tone::Faint)));
        frame.render_widget(nothing.wrap(Wrap { trim: false }), inner);
        return;
    }
    let selected = view.selected_edge(top.len());
    let height = usize::from(inner.height);
    let first = first_of_window(selected, top.len(), height);
    let lines: Vec<Line<'_>> = top
        .iter()
        .enumerate()
        .skip(first)
        .take(height)
        .map(|(at, edge)| {
            let line = edge_line(edge, pen, usize::from(inner.width));
            chosen(line, at == selected && view.pane == Pane::Edges)
        })
        .collect();
    frame.render_widget(Paragraph::new(lines), inner);
}

fn edge_line(edge: &Edge, pen: Pen, width: usize) -> Line<'static> {
    let names = width.saturating_sub(9 + PORT + 8 + 9) / 2;
    let name = |text: &str| padded(&tail(short(&printable(text)), names), names);
    let tone = if edge.denied > 0 { Tone::Bad } else { Tone::Caution };
    let last = edge.last.get(..8).unwrap_or("-");
    let port = format!("{}/{}", edge.port, printable(&edge.protocol));
    Line::from(vec![
        Span::styled(format!("{:>8}  ", thousands(edge.total())), pen.style(tone)),
        Span::raw(format!(
            "{} → {}  {}  ",
            name(&edge.source),
            name(&edge.destination),
            padded(&port, PORT)
        )),
        Span::styled(printable(last), pen.style(Tone::Faint)),
    ])
}

/// Without what all names begin with.
fn short(name: &str) -> &str {
    name.strip_prefix("spiffe://").unwrap_or(name)
}

fn padded(text: &str, width: usize) -> String {
    format!("{text:width$}")
}

/// The end of a text, which tells names apart.
fn tail(text: &str, width: usize) -> String {
    let count = text.chars().count();
    if count <= width {
        return text.to_owned();
    }
    if width == 0 {
        return String::new();
    }
    let end: String = text.chars().skip(count + 1 - width).collect();
    format!("…{end}")
}

/// The beginning of a text.
fn head(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    if width == 0 {
        return String::new();
    }
    let begin: String = text.chars().take(width - 1).collect();
    format!("{begin}…")
}

/// `1,234,567`.
fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
