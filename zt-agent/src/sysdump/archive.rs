// SPDX-License-Identifier: Apache-2.0
//! The archive: text alone, and none that was not cleaned.

use std::io::{self, Write};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde::Serialize;
use serde_json::Value;

use super::redact::Redactor;

/// Most bytes of one entry; of longer ones the end is kept, as the end of a log is the newer part.
const MOST: usize = 8 << 20;

/// What is in it, and what could not be had.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Manifest {
    /// Of this program.
    pub version: &'static str,
    /// When it was gathered, RFC 3339.
    pub gathered: String,
    /// Names of what is in it.
    pub entries: Vec<String>,
    /// What could not be had, and why.
    pub missing: Vec<Missing>,
}

/// Something that could not be had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Missing {
    /// What it would have been called.
    pub name: String,
    /// Why it is not there.
    pub why: String,
}

/// An archive that is being written.
pub(super) struct Archive<W: Write> {
    directory: String,
    builder: tar::Builder<GzEncoder<W>>,
    redactor: Redactor,
    manifest: Manifest,
    /// Unix seconds.
    now: u64,
}

impl<W: Write> Archive<W> {
    /// Begins one whose entries are in `directory`; `now`: Unix seconds.
    pub(super) fn begin(to: W, directory: String, redactor: Redactor, now: u64, gathered: String) -> Self {
        Self {
            directory,
            builder: tar::Builder::new(GzEncoder::new(to, Compression::default())),
            redactor,
            manifest: Manifest {
                version: env!("CARGO_PKG_VERSION"),
                gathered,
                ..Manifest::default()
            },
            now,
        }
    }

    /// Adds a text, without its secrets.
    pub(super) fn text(&mut self, name: &str, text: &str) -> io::Result<()> {
        let cleaned = self.redactor.text(tail(text));
        self.put(name, &cleaned)
    }

    /// Adds a value, without its secrets.
    pub(super) fn json(&mut self, name: &str, value: &impl Serialize) -> io::Result<()> {
        let mut value = serde_json::to_value(value).map_err(io::Error::other)?;
        self.redactor.json(&mut value);
        let text = serde_json::to_string_pretty(&value).map_err(io::Error::other)?;
        // Once more as text: a secret may stand where no name or string has it.
        self.text(name, &text)
    }

    /// Adds what was read, or notes why it could not be.
    pub(super) fn text_or_why<E: std::fmt::Display>(
        &mut self,
        name: &str,
        text: Result<String, E>,
    ) -> io::Result<()> {
        match text {
            Ok(text) => self.text(name, &text),
            Err(error) => {
                self.missing(name, &error.to_string());
                Ok(())
            }
        }
    }

    /// Adds a value, or notes why there is none.
    pub(super) fn json_or_why<T: Serialize, E: std::fmt::Display>(
        &mut self,
        name: &str,
        value: Result<T, E>,
    ) -> io::Result<()> {
        match value {
            Ok(value) => self.json(name, &value),
            Err(error) => {
                self.missing(name, &error.to_string());
                Ok(())
            }
        }
    }

    /// Notes what could not be had.
    pub(super) fn missing(&mut self, name: &str, why: &str) {
        let missing = Missing {
            name: name.to_owned(),
            why: self.redactor.text(why),
        };
        self.manifest.missing.push(missing);
    }

    fn put(&mut self, name: &str, cleaned: &str) -> io::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_size(cleaned.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(self.now);
        header.set_entry_type(tar::EntryType::Regular);
        let path = format!("{}/{name}", self.directory);
        self.builder.append_data(&mut header, path, cleaned.as_bytes())?;
        self.manifest.entries.push(name.to_owned());
        Ok(())
    }

    /// Adds what is in it, and ends it.
    pub(super) fn finish(mut self) -> io::Result<(W, Manifest)> {
        let manifest: Value = serde_json::to_value(&self.manifest).map_err(io::Error::other)?;
        let text = serde_json::to_string_pretty(&manifest).map_err(io::Error::other)?;
        self.put("manifest.json", &text)?;
        let to = self.builder.into_inner()?.finish()?;
        Ok((to, self.manifest))
    }
}

/// The end of a text that is too long, from the beginning of a line.
fn tail(text: &str) -> &str {
    let Some(excess) = text.len().checked_sub(MOST) else {
        return text;
    };
    let start = (excess..text.len()).find(|at| text.is_char_boundary(*at));
    let end = text.get(start.unwrap_or(text.len())..).unwrap_or_default();
    end.split_once('\n').map_or(end, |(_, lines)| lines)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read as _;

    use flate2::read::GzDecoder;
    use serde_json::json;

    use super::*;

    fn read(archive: &[u8]) -> BTreeMap<String, String> {
        let mut archive = tar::Archive::new(GzDecoder::new(archive));
        let entries = archive.entries().expect("entries");
        entries
            .map(|entry| {
                let mut entry = entry.expect("an entry");
                let path = entry.path().expect("a path").display().to_string();
                let mut text = String::new();
                entry.read_to_string(&mut text).expect("text");
                (path, text)
            })
            .collect()
    }

    #[test]
    fn nothing_gets_in_that_was_not_cleaned() {
        let mut redactor = Redactor::default();
        redactor.learn("postgres://u:hunter22@h/d");
        let mut archive = Archive::begin(Vec::new(), "dump".to_owned(), redactor, 0, "now".to_owned());
        archive.text("a.txt", "hunter22").expect("written");
        archive
            .json("b.json", &json!({ "x": "hunter22", "password": 5 }))
            .expect("written");
        archive
            .text_or_why("c.txt", Err::<String, _>("no hunter22 there"))
            .expect("noted");
        let (bytes, manifest) = archive.finish().expect("finished");
        let found = read(&bytes);
        assert_eq!(
            found.keys().collect::<Vec<_>>(),
            ["dump/a.txt", "dump/b.json", "dump/manifest.json"]
        );
        assert_eq!(manifest.entries, ["a.txt", "b.json", "manifest.json"]);
        assert_eq!(manifest.missing[0].why, "no [removed] there");
        assert!(found.values().all(|text| !text.contains("hunter22")), "{found:?}");
    }

    #[test]
    fn of_what_is_too_long_the_end_is_kept() {
        let text = "é line\n".repeat(MOST / 8 + 100);
        let kept = tail(&text);
        assert!(kept.len() <= MOST && kept.starts_with("é line\n") && text.ends_with(kept));
        assert_eq!(tail("short"), "short");
    }
}
