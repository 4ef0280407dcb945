// SPDX-License-Identifier: Apache-2.0
//! Unsafe code, each place with the reason why it is sound: above a block or an `impl` in a comment, `// SAFETY: …`, above a function
//! under a heading of its documentation, `# Safety`.
//!
//! The compiler's lint says so of the workspace. This one reads the kernel programs too, and makes the inventory.

use super::{Finding, SourceFile, rust_paths};

/// What an unsafe place is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A block, or an implementation of an unsafe trait.
    Block,
    /// A function whose caller must see to something.
    Function,
}

/// One unsafe place.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Place<'a> {
    /// Its file.
    pub(crate) path: &'a str,
    /// Its line, counted from 1.
    pub(crate) line: usize,
    /// Why it is sound; of a function, what its caller must see to.
    pub(crate) reason: Option<String>,
}

/// Finds the places that have no reason.
pub(crate) fn check(files: &[SourceFile]) -> Vec<Finding> {
    let lacking = inventory(files)
        .into_iter()
        .filter(|place| place.reason.is_none());
    lacking
        .map(|place| {
            let message = "unsafe without a reason: say in a comment above it why it is sound, `// SAFETY: …`, or of a \
                           function under `/// # Safety` what its caller must see to";
            Finding::new(place.path, place.line, message)
        })
        .collect()
}

/// Every unsafe place, in the order of the files.
pub(crate) fn inventory(files: &[SourceFile]) -> Vec<Place<'_>> {
    files
        .iter()
        .filter(|file| file.is_rust())
        .flat_map(of_file)
        .collect()
}

fn of_file(file: &SourceFile) -> Vec<Place<'_>> {
    let lines: Vec<&str> = file.text.lines().collect();
    let code = rust_paths::blanked(&file.text);
    let code: Vec<&str> = code.lines().collect();
    let mut places = Vec::new();
    for at in 0..code.len() {
        for kind in kinds(&code, at) {
            places.push(Place {
                path: &file.path,
                line: at + 1,
                reason: reason(kind, &lines, &code, at),
            });
        }
    }
    places
}

/// What a line makes unsafe. The types of functions, and `unsafe extern` of declarations, have no body of ours.
fn kinds(code: &[&str], at: usize) -> impl Iterator<Item = Kind> {
    let line = code[at];
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    let words = line.match_indices("unsafe").filter(move |(start, word)| {
        let after = line[start + word.len()..].chars().next();
        !line[..*start].ends_with(is_part) && !after.is_some_and(is_part)
    });
    // What follows may be on the next line.
    let next = code.get(at + 1).map_or("", |next| next.trim_start());
    words.filter_map(move |(start, word)| {
        let rest = line[start + word.len()..].trim_start();
        let rest = if rest.is_empty() { next } else { rest };
        let is_extern_function = rest.starts_with("extern") && rest.contains(" fn ");
        if rest.starts_with('{') || rest.starts_with("impl") {
            Some(Kind::Block)
        } else if (rest.starts_with("fn ") && !rest.starts_with("fn (")) || is_extern_function {
            Some(Kind::Function)
        } else {
            None
        }
    })
}

/// What the comment above a place says, past attributes and the beginning of its statement.
fn reason(kind: Kind, lines: &[&str], code: &[&str], at: usize) -> Option<String> {
    let mark = match kind {
        Kind::Block => "SAFETY:",
        Kind::Function => "# Safety",
    };
    // At the end of the line itself.
    if let Some((_, said)) = lines[at].split_once("// SAFETY:") {
        return Some(said.trim().to_owned());
    }
    let mut above = at;
    while above > 0 {
        above -= 1;
        if let Some(text) = comment(lines[above]) {
            let first = (0..=above)
                .rev()
                .take_while(|line| comment(lines[*line]).is_some())
                .last()?;
            let all: Vec<&str> = (first..above)
                .filter_map(|line| comment(lines[line]))
                .chain([text])
                .collect();
            let (_, said) = all
                .join(" ")
                .split_once(mark)
                .map(|(a, b)| (a.to_owned(), b.to_owned()))?;
            return Some(said.split_whitespace().collect::<Vec<_>>().join(" "))
                .filter(|said| !said.is_empty());
        }
        let text = code[above].trim();
        if text.ends_with(']') {
            // An attribute, which may begin further up.
            while above > 0 && !code[above].trim_start().starts_with("#[") {
                above -= 1;
            }
        } else if text.is_empty() || text.ends_with([';', '{', '}', ',']) {
            return None;
        }
    }
    None
}

/// The text of a line that is a comment.
fn comment(line: &str) -> Option<&str> {
    Some(
        line.trim_start()
            .strip_prefix("//")?
            .trim_start_matches('/')
            .trim(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(text: &str) -> Vec<(usize, Option<String>)> {
        let file = SourceFile {
            path: "a.rs".into(),
            text: text.into(),
        };
        let found = inventory(std::slice::from_ref(&file));
        found
            .into_iter()
            .map(|place| (place.line, place.reason))
            .collect()
    }

    fn one(text: &str) -> Option<String> {
        let found = places(text);
        assert_eq!(found.len(), 1, "{text}: {found:?}");
        found.into_iter().next().and_then(|(_, reason)| reason)
    }

    #[test]
    fn a_reason_is_found_past_attributes_and_the_beginning_of_a_statement() {
        assert_eq!(
            one("// SAFETY: no\n// pointers.\nlet a = unsafe { f() };"),
            Some("no pointers.".into())
        );
        let attributes =
            "// SAFETY: x\n#[expect(\n    unsafe_code,\n    reason = \"y\"\n)]\nlet a = unsafe { f() };";
        assert_eq!(one(attributes), Some("x".into()));
        let statement = "// SAFETY: x\nlet a = f()\n    .map(|b| unsafe { b.c() })";
        assert_eq!(one(statement), Some("x".into()));
        assert_eq!(one("unsafe { f() } // SAFETY: x"), Some("x".into()));
        assert_eq!(one("// SAFETY: x\nunsafe impl Send for A {}"), Some("x".into()));
        assert_eq!(
            one(
                "/// Reads.\n///\n/// # Safety\n///\n/// A live one.\n#[inline]\npub unsafe fn f(a: *const u8) {}"
            ),
            Some("A live one.".into())
        );
    }

    #[test]
    fn what_has_none_is_told() {
        for text in [
            "unsafe { f() }",
            "// It is fine.\nunsafe { f() }",
            "// SAFETY:\nunsafe { f() }",
            "// SAFETY: of another one.\ng();\nunsafe { f() }",
            "// SAFETY: of another one.\n\nunsafe\n{ f() }",
            "unsafe impl Send for A {}",
            "// SAFETY: a comment is none.\npub unsafe fn f() {}",
            "unsafe extern \"C\" fn f() {}",
        ] {
            assert_eq!(one(text), None, "{text}");
        }
        let file = SourceFile {
            path: "a.rs".into(),
            text: "unsafe { f() }".into(),
        };
        assert_eq!(check(&[file]).len(), 1);
    }

    #[test]
    fn what_only_speaks_of_it_is_no_place() {
        for text in [
            "// unsafe { }",
            "let a = \"unsafe { }\";",
            "#![expect(unsafe_code)]",
            "type F = unsafe fn (u8);",
        ] {
            assert_eq!(places(text), [], "{text}");
        }
    }
}
