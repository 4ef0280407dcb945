// SPDX-License-Identifier: Apache-2.0
//! The state of the view, apart from any terminal: what came, what is wanted, what is selected.

use std::collections::VecDeque;
use std::time::Duration;

use serde_json::Value;

use super::details::{Details, RuleText};
use super::edges::{Edge, Edges};
use super::feed::Fed;
use super::filter::Filter;
use super::keys::{Asked, Key};
use super::parsed::{Parsed, Verdict};
use super::row::Row;
use super::sample::Sample;
use crate::cli::table::printable;

/// Rows that are kept to be scrolled through.
pub(super) const MAX_ROWS: usize = 2000;
/// Edges that are listed.
pub(super) const MAX_TOP: usize = 100;
/// Most characters of a filter.
const MAX_TYPED: usize = 400;
/// Rows that a page key moves by.
const PAGE: usize = 20;

/// How it stands with the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Link {
    Connected,
    /// It came back; what was decided meanwhile was not shown.
    Again,
    /// It went away, and why.
    Gone(String),
}

/// What the keys are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pane {
    Decisions,
    Edges,
}

/// The view.
#[derive(Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "switches, each with a key of its own"
)]
pub(super) struct View {
    rows: VecDeque<Row>,
    next_serial: u64,
    pub(super) edges: Edges,
    pub(super) sample: Sample,
    pub(super) typed: String,
    /// The keys go to the filter.
    pub(super) is_typing: bool,
    filter: Filter,
    pub(super) denials_only: bool,
    pub(super) is_held: bool,
    /// Decisions that came while the list was held.
    pub(super) meanwhile: u64,
    pub(super) pane: Pane,
    /// The row by its serial; `None` follows the newest.
    selected: Option<u64>,
    selected_edge: usize,
    pub(super) details: Option<Details>,
    pub(super) is_helping: bool,
    pub(super) link: Link,
    /// Which agent.
    pub(super) agent: String,
}

impl View {
    pub(super) fn new() -> Self {
        Self {
            rows: VecDeque::with_capacity(MAX_ROWS),
            next_serial: 0,
            edges: Edges::default(),
            sample: Sample::default(),
            typed: String::new(),
            is_typing: false,
            filter: Filter::default(),
            denials_only: false,
            is_held: false,
            meanwhile: 0,
            pane: Pane::Decisions,
            selected: None,
            selected_edge: 0,
            details: None,
            is_helping: false,
            link: Link::Connected,
            agent: String::new(),
        }
    }

    /// Takes in what came.
    pub(super) fn take(&mut self, fed: Fed) {
        match fed {
            Fed::Record(json) => self.record(&json),
            Fed::Missed(count) => {
                self.sample.misses(count);
                self.edges.missed = self.edges.missed.saturating_add(count);
            }
            Fed::Agent(name) => self.agent = printable(&name),
            Fed::Connected => {
                if self.link != Link::Connected {
                    self.link = Link::Again;
                }
            }
            Fed::Gone(why) => self.link = Link::Gone(printable(&why)),
        }
    }

    /// A frame has been drawn, that long after the view began.
    pub(super) fn tick(&mut self, now: Duration) {
        self.sample.tick(now);
    }

    fn record(&mut self, json: &str) {
        let Some(record) = Parsed::of(json) else {
            return;
        };
        let weight = record.weight();
        self.sample.arrived(weight);
        self.edges.take(&record);
        let verdict = record.verdict();
        let is_denial = matches!(verdict, Verdict::Denied | Verdict::Observed);
        if self.denials_only && !is_denial || !self.filter.fits(&record) {
            return;
        }
        if self.is_held {
            self.meanwhile = self.meanwhile.saturating_add(weight);
            self.sample.keeps_away(weight);
            return;
        }
        // A change is rare, and what one must not miss.
        if !self
            .sample
            .admits(weight, is_denial || verdict == Verdict::Change)
        {
            return;
        }
        if self.rows.len() == MAX_ROWS {
            self.rows.pop_front();
        }
        self.rows.push_back(Row::new(self.next_serial, &record, json));
        self.next_serial += 1;
    }

    /// The rows that are wanted, the oldest first.
    pub(super) fn wanted(&self) -> Vec<&Row> {
        let wanted = |row: &&Row| {
            (!self.denials_only || matches!(row.verdict, Verdict::Denied | Verdict::Observed))
                && row.is_taken_by(&self.filter)
        };
        self.rows.iter().filter(wanted).collect()
    }

    /// Where the selected row is among those wanted; `None` while it follows the newest.
    pub(super) fn selected_among(&self, wanted: &[&Row]) -> Option<usize> {
        let serial = self.selected?;
        // A row that has gone, or is not wanted any more, leaves the selection to the next one.
        let at = wanted.partition_point(|row| row.serial < serial);
        (!wanted.is_empty()).then(|| at.min(wanted.len() - 1))
    }

    /// The edges that are wanted, and how many there are.
    pub(super) fn top(&self) -> (Vec<&Edge>, usize) {
        self.edges.top(&self.filter, MAX_TOP)
    }

    /// Whether the filter asks where something is, which edges do not know.
    pub(super) fn asks_where(&self) -> bool {
        self.filter.asks_where()
    }

    /// Why no edge is wanted.
    pub(super) fn why_no_edge(&self) -> &'static str {
        match (self.edges.is_empty(), self.edges.missed) {
            (true, 0) => "nothing has been denied since the view began or was cleared",
            (true, _) => "none of those that were sent was denied since the view began or was cleared",
            _ if self.filter.looks_for_places() => {
                "no edge fits the filter: one is at many nodes, pods and addresses, and knows none of them"
            }
            _ => "no edge fits the filter",
        }
    }

    /// The edge that is selected, of that many.
    pub(super) fn selected_edge(&self, count: usize) -> usize {
        self.selected_edge.min(count.saturating_sub(1))
    }

    /// A key was pressed.
    pub(super) fn press(&mut self, key: Key) -> Asked {
        if key == Key::Interrupt {
            return Asked::Quit;
        }
        if self.is_typing {
            self.type_key(key);
            return Asked::Nothing;
        }
        if self.is_helping {
            self.is_helping = false;
            return Asked::Nothing;
        }
        if let Some(details) = &mut self.details {
            match key {
                Key::Up | Key::Char('k') => details.scroll(-1),
                Key::Down | Key::Char('j') => details.scroll(1),
                Key::PageUp => details.scroll(-(PAGE as isize)),
                Key::PageDown => details.scroll(PAGE as isize),
                Key::Home | Key::Char('g') => details.scroll(isize::MIN),
                Key::End | Key::Char('G') => details.scroll(isize::MAX),
                Key::Escape | Key::Enter | Key::Char('q') => self.details = None,
                _ => {}
            }
            return Asked::Nothing;
        }
        match key {
            Key::Char('q') => return Asked::Quit,
            Key::Char('?') => self.is_helping = true,
            Key::Char('/') => self.is_typing = true,
            Key::Char('d') => {
                self.denials_only = !self.denials_only;
                self.sample.restart();
            }
            Key::Char(' ') => {
                self.is_held = !self.is_held;
                self.meanwhile = 0;
            }
            Key::Char('c') => self.clear(),
            Key::Tab => {
                self.pane = match self.pane {
                    Pane::Decisions => Pane::Edges,
                    Pane::Edges => Pane::Decisions,
                }
            }
            Key::Up | Key::Char('k') => self.step(-1),
            Key::Down | Key::Char('j') => self.step(1),
            Key::PageUp => self.step(-(PAGE as isize)),
            Key::PageDown => self.step(PAGE as isize),
            Key::Home | Key::Char('g') => self.step(isize::MIN),
            Key::End | Key::Char('G') => self.step(isize::MAX),
            Key::Enter => return self.open(),
            Key::Escape => self.back(),
            _ => {}
        }
        Asked::Nothing
    }

    fn type_key(&mut self, key: Key) {
        match key {
            Key::Char(character) => self.type_character(character),
            Key::Backspace => {
                self.typed.pop();
            }
            Key::Clear => self.typed.clear(),
            Key::Enter => self.is_typing = false,
            Key::Escape => {
                self.typed.clear();
                self.is_typing = false;
            }
            _ => return,
        }
        self.narrow();
    }

    fn type_character(&mut self, character: char) {
        if !character.is_control() && self.typed.len() < MAX_TYPED {
            self.typed.push(character);
        }
    }

    /// Takes the filter as it is typed now.
    fn narrow(&mut self) {
        let filter = Filter::parse(&self.typed);
        if filter != self.filter {
            self.filter = filter;
            self.selected_edge = 0;
            self.sample.restart();
        }
    }

    fn clear(&mut self) {
        self.rows.clear();
        self.edges.clear();
        self.sample.restart();
        (self.selected, self.selected_edge, self.meanwhile) = (None, 0, 0);
    }

    fn step(&mut self, by: isize) {
        if self.pane == Pane::Edges {
            let last = self.top().0.len().saturating_sub(1);
            let at = self.selected_edge.min(last);
            self.selected_edge = at.saturating_add_signed(by).min(last);
            return;
        }
        let wanted = self.wanted();
        let Some(last) = wanted.len().checked_sub(1) else {
            return;
        };
        let at = self.selected_among(&wanted).unwrap_or(last);
        let to = at.saturating_add_signed(by).min(last);
        // Whoever goes down past the newest follows it again.
        self.selected = if by > 0 && to == last && (at == last || by == isize::MAX) {
            None
        } else {
            Some(wanted[to].serial)
        };
    }

    fn open(&mut self) -> Asked {
        if self.pane == Pane::Edges {
            let (top, _) = self.top();
            let edge = top.get(self.selected_edge(top.len()));
            if let Some(typed) = edge.map(|edge| printable(&edge.as_filter())) {
                self.typed = typed;
                self.pane = Pane::Decisions;
                self.narrow();
            }
            return Asked::Nothing;
        }
        let wanted = self.wanted();
        let at = self.selected_among(&wanted).or(wanted.len().checked_sub(1));
        let Some(row) = at.map(|at| wanted[at]) else {
            return Asked::Nothing;
        };
        let (serial, details) = (row.serial, Details::of(&row.value()));
        self.selected = Some(serial);
        let asked = match (&details.text, &details.rule) {
            (RuleText::Asked, Some(rule)) => Asked::Rule(rule.clone()),
            _ => Asked::Nothing,
        };
        self.details = Some(details);
        asked
    }

    fn back(&mut self) {
        if self.selected.is_some() {
            self.selected = None;
        } else if !self.typed.is_empty() {
            self.typed.clear();
            self.narrow();
        } else if self.denials_only {
            self.denials_only = false;
            self.sample.restart();
        }
    }

    /// The policy of a rule that was asked for.
    pub(super) fn told(&mut self, rule: &str, answer: Result<&Value, String>) {
        if let Some(details) = &mut self.details {
            details.told(rule, answer);
        }
    }
}
