// SPDX-License-Identifier: Apache-2.0
//! Reads policy documents from a directory or a file, for the pure policy engine to parse.

use std::fs;
use std::hash::{Hash, Hasher};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::policy::{Document, Problem};
use crate::watch::Follower;

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
    if problems.is_empty() {
        Ok(documents)
    } else {
        Err(problems)
    }
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
    if files.is_empty() {
        let message =
            "has no *.yaml or *.yml file; to allow nothing, write a policy without rules".to_owned();
        return Err(vec![problem(directory, message)]);
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
mod tests {
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::*;

    fn directory() -> TempDir {
        tempfile::tempdir().expect("tempdir")
    }

    fn names(path: &Path) -> Vec<String> {
        let documents = read(path).0.expect("readable");
        let name = |document: &Document| {
            document
                .file
                .rsplit('/')
                .next()
                .map(|name| format!("{name}={}", document.text))
        };
        documents.iter().filter_map(name).collect()
    }

    fn refused(path: &Path) -> String {
        let problems = read(path).0.expect_err("refused");
        let lines: Vec<_> = problems.iter().map(ToString::to_string).collect();
        lines.join("\n").replace(&path.display().to_string(), "DIR")
    }

    #[test]
    fn yaml_files_are_read_in_order_and_nothing_else() {
        let root = directory();
        let at = |name: &str| root.path().join(name);
        fs::create_dir(at("..v1")).expect("mkdir");
        fs::write(at("..v1/b.yaml"), "b").expect("write");
        symlink("..v1", at("..data")).expect("symlink");
        symlink("..data/b.yaml", at("b.yaml")).expect("symlink");
        for name in [
            "c.yml",
            "a.yaml",
            ".a.yaml.swp",
            ".hidden.yaml",
            "a.yaml~",
            "README.md",
        ] {
            fs::write(at(name), name).expect("write");
        }
        fs::create_dir(at("sub.yaml")).expect("mkdir");
        assert_eq!(names(root.path()), ["a.yaml=a.yaml", "b.yaml=b", "c.yml=c.yml"]);
        assert_eq!(
            names(&at("README.md")),
            ["README.md=README.md"],
            "a file may have any name"
        );
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let root = directory();
        let at = |name: &str| root.path().join(name);
        assert!(refused(root.path()).starts_with("DIR: has no *.yaml or *.yml file"));
        assert_eq!(refused(&at("none")), "DIR: does not exist");
        symlink("nowhere", at("a.yaml")).expect("symlink");
        fs::write(at("b.yaml"), b"ok\n\xff").expect("write");
        fs::write(at("c.yaml"), "fine").expect("write");
        nix::unistd::mkfifo(&at("d.yaml"), nix::sys::stat::Mode::S_IRWXU).expect("fifo");
        assert_eq!(
            refused(root.path()),
            "DIR/a.yaml: is a symlink that leads nowhere\n\
             DIR/b.yaml:2:1: is not UTF-8 text (byte 3)\n\
             DIR/d.yaml: is not a regular file"
        );
    }

    #[test]
    fn sizes_are_bounded() {
        let root = directory();
        let grow = |name: &str, bytes| {
            fs::File::create(root.path().join(name))
                .and_then(|file| file.set_len(bytes))
                .expect("grow");
        };
        grow("big.yaml", MAX_FILE_BYTES + 1);
        assert!(refused(root.path()).contains("DIR/big.yaml: has more than 1048576 bytes"));
        grow("big.yaml", MAX_FILE_BYTES);
        for n in 0..16 {
            grow(&format!("{n}.yaml"), MAX_FILE_BYTES);
        }
        assert!(refused(root.path()).contains("more than 16777216 bytes together"));
    }

    #[tokio::test]
    async fn changes_are_followed() {
        let root = directory();
        let (follower, first) = follow(root.path().to_path_buf());
        assert!(first.0.is_err());
        let (sink, mut changes) = tokio::sync::mpsc::channel(1);
        tokio::spawn(follower.run(sink));
        fs::write(root.path().join("a.yaml"), "a").expect("write");
        let next = tokio::time::timeout(std::time::Duration::from_secs(3), changes.recv());
        let documents = next.await.expect("in time").expect("open").0.expect("readable");
        assert_eq!(documents[0].text, "a");
    }
}
