// SPDX-License-Identifier: Apache-2.0
//! What is wrong with a policy document, and where.

use std::fmt;

use serde::Serialize;

/// One thing that is wrong, with its place. Nothing of a set of documents with a problem comes into force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The file, as it was named by whoever read it; empty where no file is at fault.
    pub file: String,
    /// Line, from 1; 0 where the problem has no place in the file.
    pub line: u64,
    /// Column, from 1; 0 where the problem has no place in the file.
    pub column: u64,
    /// Path of the field, like `spec.rules[2].to[0].ports[1]`; empty for the document as a whole.
    pub field: String,
    /// What is wrong and what to do about it.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.file.is_empty() {
            write!(f, "{}:", self.file)?;
            if self.line != 0 {
                write!(f, "{}:{}:", self.line, self.column)?;
            }
            f.write_str(" ")?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for Problem {}
