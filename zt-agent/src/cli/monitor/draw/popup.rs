// SPDX-License-Identifier: Apache-2.0
//! What is drawn over the lists: one decision, and the help.

use ratatui::Frame;
use ratatui::layout::{Constraint, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Clear, Paragraph, Wrap};

use super::Pen;
use crate::cli::monitor::details::{Details, RuleText};
use crate::cli::monitor::keys;
use crate::cli::output::Tone;

/// Width of the names of fields.
const NAMES: usize = 24;

pub(super) fn details(frame: &mut Frame<'_>, details: &Details, pen: Pen, area: Rect) {
    let mut lines: Vec<Line<'_>> = details
        .fields
        .iter()
        .map(|(name, value)| {
            Line::from(vec![
                Span::styled(format!("{name:NAMES$}  "), pen.style(Tone::Faint)),
                Span::raw(value.clone()),
            ])
        })
        .collect();
    lines.push(Line::default());
    let title = |text: String| Line::from(Span::styled(text, Style::new().add_modifier(Modifier::BOLD)));
    let rule = details.rule.as_deref().unwrap_or("-");
    match &details.text {
        RuleText::None => lines.push(title("No rule decided: see the reason".to_owned())),
        RuleText::Asked => lines.push(title(format!("{rule} …"))),
        RuleText::Unknown(why) => lines.push(title(format!("{rule}: {why}"))),
        RuleText::Is(text) => {
            lines.push(title(format!("{rule}, as it is now")));
            lines.extend(text.iter().map(|line| Line::from(line.clone())));
        }
    }
    let block = pen.block(" decision (Esc closes, ↑↓ scroll) ".to_owned(), true);
    let area = area.centered(Constraint::Percentage(90), Constraint::Percentage(90));
    let inner = block.inner(area);
    let most = lines.len().saturating_sub(usize::from(inner.height));
    let scrolled = u16::try_from(details.scrolled.min(most)).unwrap_or(u16::MAX);
    frame.render_widget(Clear, area);
    let text = Paragraph::new(lines)
        .block(block)
        .wrap(Wrap { trim: false })
        .scroll((scrolled, 0));
    frame.render_widget(text, area);
}

pub(super) fn help(frame: &mut Frame<'_>, pen: Pen, area: Rect) {
    let lines: Vec<Line<'_>> = keys::HELP
        .iter()
        .map(|(key, does)| {
            Line::from(vec![
                Span::styled(format!(" {key:15}"), Style::new().add_modifier(Modifier::BOLD)),
                Span::raw(*does),
            ])
        })
        .collect();
    let height = u16::try_from(lines.len()).unwrap_or(u16::MAX).saturating_add(2);
    let area = area.centered(Constraint::Length(92), Constraint::Length(height));
    frame.render_widget(Clear, area);
    let block = pen.block(" keys (any key closes) ".to_owned(), true);
    frame.render_widget(Paragraph::new(lines).block(block), area);
}
