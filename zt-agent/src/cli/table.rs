// SPDX-License-Identifier: Apache-2.0
//! Aligned columns.

use std::io;

use serde_json::Value;

use super::output::{Tone, colourful, line, toned};

/// One cell: its text and its tone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Cell {
    pub(super) text: String,
    pub(super) tone: Tone,
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self {
            text: text.into(),
            tone: Tone::Plain,
        }
    }
}

impl Cell {
    pub(super) fn toned(text: impl Into<String>, tone: Tone) -> Self {
        Self {
            text: text.into(),
            tone,
        }
    }
}

/// A table with a header.
#[derive(Debug)]
pub(super) struct Table {
    header: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    pub(super) fn new(header: &[&'static str]) -> Self {
        Self {
            header: header.to_vec(),
            rows: Vec::new(),
        }
    }

    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Prints it, or `empty` where there are no rows.
    pub(super) fn print(&self, empty: &str) -> io::Result<()> {
        if self.rows.is_empty() {
            line(empty)
        } else {
            line(&self.render(colourful()))
        }
    }

    /// The text of the table, without a newline at its end.
    pub(super) fn render(&self, colour: bool) -> String {
        let mut lines = Vec::with_capacity(self.rows.len() + 1);
        let widths = self.widths();
        let header = self
            .header
            .iter()
            .map(|name| Cell::toned(*name, Tone::Faint))
            .collect::<Vec<_>>();
        for row in std::iter::once(&header).chain(&self.rows) {
            lines.push(aligned(row, &widths, colour));
        }
        lines.join("\n")
    }

    fn widths(&self) -> Vec<usize> {
        let width = |column: usize| {
            let cells = self
                .rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.text.chars().count());
            cells
                .chain(std::iter::once(self.header[column].chars().count()))
                .max()
                .unwrap_or_default()
        };
        (0..self.header.len()).map(width).collect()
    }
}

fn aligned(row: &[Cell], widths: &[usize], colour: bool) -> String {
    let mut text = String::new();
    for (index, (cell, width)) in row.iter().zip(widths).enumerate() {
        if index > 0 {
            text.push_str("  ");
        }
        text.push_str(&toned(&cell.text, cell.tone, colour));
        // The last column is not padded: lines have no blanks at their end.
        if index + 1 < row.len() {
            text.extend(std::iter::repeat_n(' ', width - cell.text.chars().count()));
        }
    }
    text.trim_end().to_owned()
}

/// Names and values, one pair a line, values aligned.
pub(super) fn pairs(pairs: &[(&str, Cell)]) -> io::Result<()> {
    let width = pairs
        .iter()
        .map(|(name, _)| name.chars().count())
        .max()
        .unwrap_or_default();
    for (name, cell) in pairs {
        let text = toned(&cell.text, cell.tone, colourful());
        line(format!("{name:width$}  {text}").trim_end())?;
    }
    Ok(())
}

/// A JSON value as one cell: nothing for null, lists with commas.
pub(super) fn plain(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => printable(text),
        Value::Array(items) if items.is_empty() => "-".to_owned(),
        Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

/// Text without control characters, and without those that reorder or hide others: what a workload chose to be called must
/// neither steer the terminal nor look like another name.
pub(super) fn printable(text: &str) -> String {
    text.chars()
        .map(|character| {
            if character.is_control() || is_unseen(character) {
                '\u{fffd}'
            } else {
                character
            }
        })
        .collect()
}

/// Whether a character has no look of its own: joiners and spaces without width, line breaks, marks of direction, tags.
const fn is_unseen(character: char) -> bool {
    matches!(
        character,
        '\u{ad}'
            | '\u{61c}'
            | '\u{180e}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}'
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn columns_are_aligned_whatever_their_colour() {
        let mut table = Table::new(&["NAME", "MODE", "RULE"]);
        table.row(["postgres".into(), Cell::toned("enforce", Tone::Good), "x".into()]);
        table.row(["é".into(), Cell::toned("-", Tone::Faint), Cell::default()]);
        assert_eq!(
            table.render(false),
            "NAME      MODE     RULE\npostgres  enforce  x\né         -"
        );
        assert!(table.render(true).contains("\x1b[32menforce\x1b[0m  x"));
    }

    #[test]
    fn json_values_fit_into_cells() {
        assert_eq!(plain(&json!(null)), "-");
        assert_eq!(plain(&json!(["a", 1])), "a,1");
        assert_eq!(plain(&json!([])), "-");
        assert_eq!(plain(&json!("\u{1b}[31mred")), "\u{fffd}[31mred");
        assert_eq!(
            printable("a\u{9b}2J\u{202e}b\u{200b}c"),
            "a\u{fffd}2J\u{fffd}b\u{fffd}c"
        );
    }
}
