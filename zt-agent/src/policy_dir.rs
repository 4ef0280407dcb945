// SPDX-License-Identifier: Apache-2.0
//! Reads policy documents from a directory or a file, for the pure policy engine to parse.

mod edit;

use std::fs;
use std::hash::{Hash, Hasher};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::policy::{Document, Problem};
use crate::watch::Follower;

pub use edit::{BODY, Edit, EditError, Editor, Held, Plan, Sighting, Store, Turn};

/// The most bytes that one policy file may have.
pub const MAX_FILE_BYTES: u64 = 1024 * 1024;
/// The most bytes that all policy files together may have.
pub const MAX_TOTAL_BYTES: u64 = 16 * 1024 * 1024;

/// What reading gave: the documents in the order of their file names, or every reason why there are none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents(pub Result<Vec<Document>, Vec<Problem>>);

impl Hash for Contents {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match &self.0 {
            Ok(documents) => documents.iter().for_each(|document| {
                document.file.hash(state);
                document.text.hash(state);
            }),
            Err(problems) => problems
                .iter()
                .for_each(|problem| problem.to_string().hash(state)),
        }
    }
}

/// Reads `path`: that file, or the `*.yaml` and `*.yml` files of that directory in the order of their names.
///
/// Hidden entries (`..data` of a mounted `ConfigMap`, editors' swap files), other files and directories below are passed
/// over; symlinks are followed. One file that cannot be read spoils the whole: half a policy is not a policy.
pub fn read(path: &Path) -> Contents {
    Contents(documents(path))
}

/// Begins to follow `path` and reads it; the follower sends what it holds whenever that changes.
pub fn follow(path: PathBuf) -> (Follower<Contents>, Contents) {
    let of = path.clone();
    Follower::new(path, move || read(&of))
}

fn documents(path: &Path) -> Result<Vec<Document>, Vec<Problem>> {
    let (documents, problems) = read_each(path)?;
    if !problems.is_empty() {
        return Err(problems);
    }
    if documents.is_empty() {
        let message =
            "has no *.yaml or *.yml file; to allow nothing, write a policy without rules".to_owned();
        return Err(vec![problem(path, message)]);
    }
    Ok(documents)
}

/// [`read`], with what can be read beside what cannot; an error where nothing can. A directory may be empty.
fn read_each(path: &Path) -> Result<(Vec<Document>, Vec<Problem>), Vec<Problem>> {
    let metadata = fs::metadata(path).map_err(|error| vec![unreadable(path, &error)])?;
    let files = if metadata.is_dir() {
        files_in(path)?
    } else {
        vec![path.to_path_buf()]
    };
    let mut problems = Vec::new();
    let mut documents = Vec::with_capacity(files.len());
    let mut total = 0;
    for file in &files {
        match document(file) {
            Ok(document) => {
                total += document.text.len() as u64;
                documents.push(document);
            }
            Err(problem) => problems.push(problem),
        }
        if total > MAX_TOTAL_BYTES {
            problems.push(problem(
                path,
                format!(
                    "the files up to {} have more than {MAX_TOTAL_BYTES} bytes together",
                    file.display()
                ),
            ));
            break;
        }
    }
    Ok((documents, problems))
}

fn files_in(directory: &Path) -> Result<Vec<PathBuf>, Vec<Problem>> {
    let mut files = Vec::new();
    let entries = fs::read_dir(directory).map_err(|error| vec![unreadable(directory, &error)])?;
    for entry in entries {
        let path = entry.map_err(|error| vec![unreadable(directory, &error)])?.path();
        let hidden = path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        let yaml = path
            .extension()
            .is_some_and(|extension| extension == "yaml" || extension == "yml");
        // What cannot be looked at stays in the list, and is reported when it is read.
        let directory = fs::metadata(&path).is_ok_and(|metadata| metadata.is_dir());
        if yaml && !hidden && !directory {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn document(path: &Path) -> Result<Document, Problem> {
    let too_large = || problem(path, format!("has more than {MAX_FILE_BYTES} bytes; split it"));
    let metadata = fs::metadata(path).map_err(|error| unreadable(path, &error))?;
    if !metadata.is_file() {
        // Opening a pipe would wait for its writer.
        return Err(problem(path, "is not a regular file".to_owned()));
    }
    if metadata.len() > MAX_FILE_BYTES {
        return Err(too_large());
    }
    let mut bytes = Vec::with_capacity(metadata.len() as usize);
    // It may grow while it is read.
    fs::File::open(path)
        .and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes))
        .map_err(|error| unreadable(path, &error))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(too_large());
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Document {
            file: path.display().to_string(),
            text,
        }),
        Err(error) => {
            let valid = error.utf8_error().valid_up_to();
            let line = error.as_bytes()[..valid].split(|byte| *byte == b'\n').count() as u64;
            let message = format!("is not UTF-8 text (byte {valid})");
            Err(Problem {
                line,
                column: 1,
                ..problem(path, message)
            })
        }
    }
}

fn unreadable(path: &Path, error: &io::Error) -> Problem {
    let message = match error.kind() {
        io::ErrorKind::NotFound if fs::symlink_metadata(path).is_ok_and(|link| link.is_symlink()) => {
            "is a symlink that leads nowhere".to_owned()
        }
        io::ErrorKind::NotFound => "does not exist".to_owned(),
        _ => format!("cannot be read: {error}"),
    };
    problem(path, message)
}

fn problem(path: &Path, message: String) -> Problem {
    Problem {
        file: path.display().to_string(),
        line: 0,
        column: 0,
        field: String::new(),
        message,
    }
}

#[cfg(test)]
mod tests;
