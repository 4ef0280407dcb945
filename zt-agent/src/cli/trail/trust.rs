// SPDX-License-Identifier: Apache-2.0
//! Whom `audit verify` trusts: ids, files of them, and directories of keys.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use uuid::Uuid;

use super::super::exit::Failure;
use crate::audit::seal::{Checkpoint, KeyRecord, Keys};
use crate::audit::verify::Trust;

/// What one name of whom to trust leads to.
#[derive(Debug, Default)]
pub(super) struct Named {
    /// First keys, each with the writer that it must be the key of.
    roots: Vec<(String, Option<Uuid>)>,
    /// The last checkpoints of a directory of keys.
    pub(super) noted: Vec<Checkpoint>,
}

/// Reads `KEY`, `KEY=WRITER`, a `keys.json`, a file with one of the first two a line, or a directory of keys.
pub(super) fn read(text: &str) -> Result<Named, Failure> {
    if let Some(root) = root(text) {
        return Ok(Named {
            roots: vec![root],
            noted: Vec::new(),
        });
    }
    let path = Path::new(text);
    if path.is_dir() {
        return match directory(path)? {
            Some(named) => Ok(named),
            None => Err(Failure::Usage(format!("{text} has no keys.json"))),
        };
    }
    let refuse = |problem: String| Failure::Usage(format!("{text}: {problem}"));
    let content = fs::read_to_string(path).map_err(|error| {
        refuse(format!(
            "neither the id of a key (32 hexadecimal digits), KEY=WRITER nor a file that can be read ({error})"
        ))
    })?;
    if content.trim_start().starts_with('[') {
        let keys: Vec<KeyRecord> =
            serde_json::from_str(&content).map_err(|error| refuse(format!("not a keys.json ({error})")))?;
        return Ok(Named {
            roots: keys.into_iter().take(1).map(|first| (first.key, None)).collect(),
            noted: Vec::new(),
        });
    }
    let mut named = Named::default();
    for (number, line) in (1..).zip(content.lines()) {
        let said = line.split('#').next().unwrap_or_default().trim();
        if said.is_empty() {
            continue;
        }
        let root = root(said)
            .ok_or_else(|| refuse(format!("line {number} is neither the id of a key nor KEY=WRITER")))?;
        named.roots.push(root);
    }
    Ok(named)
}

/// The first key of a directory, and what is noted there; `None` where there are no keys.
pub(super) fn directory(path: &Path) -> Result<Option<Named>, Failure> {
    let Some(first) = Keys::list(path)?.and_then(|keys| keys.into_iter().next()) else {
        return Ok(None);
    };
    Ok(Some(Named {
        roots: vec![(first.key, None)],
        noted: Keys::noted(path)?,
    }))
}

impl Named {
    /// Adds these to those that are trusted.
    pub(super) fn trust(&self, trust: &mut Trust, maintains: bool) -> Result<(), Failure> {
        for (root, writer) in &self.roots {
            trust.roots.insert(root.clone());
            if maintains {
                trust.maintainers.insert(root.clone());
            }
            // A writer whose last checkpoint is noted beside a key is that key's.
            let noted: BTreeSet<Uuid> = self.noted.iter().map(|checkpoint| checkpoint.writer).collect();
            trust.expected.extend(*writer);
            for writer in noted.into_iter().chain(*writer) {
                let owner = trust.writers.entry(writer).or_insert_with(|| root.clone());
                if owner != root {
                    return Err(Failure::Usage(format!(
                        "{writer} cannot be {root}'s and {owner}'s"
                    )));
                }
            }
        }
        Ok(())
    }
}

/// `KEY` or `KEY=WRITER`.
fn root(text: &str) -> Option<(String, Option<Uuid>)> {
    let (key, writer) = match text.split_once('=') {
        Some((key, writer)) => (key, Some(writer.parse().ok()?)),
        None => (text, None),
    };
    let is_id = key.len() == 32 && key.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    is_id.then(|| (key.to_owned(), writer))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "00112233445566778899aabbccddeeff";
    const WRITER: &str = "3e1821cf-a3c4-f410-3852-f1df44226cbf";

    fn roots(text: &str) -> Vec<(String, Option<Uuid>)> {
        read(text).expect(text).roots
    }

    #[test]
    fn keys_are_named_in_several_ways() {
        let writer: Uuid = WRITER.parse().expect("an id");
        assert_eq!(roots(KEY), [(KEY.to_owned(), None)]);
        let bound = format!("{KEY}={WRITER}");
        assert_eq!(roots(&bound), [(KEY.to_owned(), Some(writer))]);
        let directory = tempfile::tempdir().expect("directory");
        let path = |name: &str| directory.path().join(name).display().to_string();
        let first = Keys::open(&directory.path().join("keys"))
            .expect("makes")
            .current()
            .key
            .clone();
        Keys::rotate(&directory.path().join("keys")).expect("rotates");
        for name in [path("keys"), path("keys/keys.json")] {
            assert_eq!(roots(&name), [(first.clone(), None)], "{name}");
        }
        fs::write(
            path("list"),
            format!("# all of them\n{KEY}  # one\n\n{first}={WRITER}\n"),
        )
        .expect("writes");
        assert_eq!(
            roots(&path("list")),
            [(KEY.to_owned(), None), (first, Some(writer))]
        );
    }

    #[test]
    fn what_names_no_key_is_refused() {
        let directory = tempfile::tempdir().expect("directory");
        let file = directory.path().join("list");
        fs::write(&file, "00112233\n").expect("writes");
        for text in [
            "",
            "0011",
            &KEY.to_uppercase(),
            &format!("{KEY}=x"),
            &file.display().to_string(),
        ] {
            assert!(read(text).is_err(), "{text}");
        }
        let (one, other) = (
            format!("{KEY}={WRITER}"),
            format!("{}={WRITER}", KEY.replace('0', "1")),
        );
        let mut trust = Trust::default();
        read(&one)
            .expect("reads")
            .trust(&mut trust, false)
            .expect("one owner");
        assert!(
            read(&other).expect("reads").trust(&mut trust, false).is_err(),
            "two owners"
        );
    }
}
