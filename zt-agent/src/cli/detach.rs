// SPDX-License-Identifier: Apache-2.0
//! Arguments of `zt-agent detach`, and the question that it asks first.

use std::io::{self, BufRead, IsTerminal, Write};

use clap::Args;

use super::run::RunArgs;

/// Arguments of `detach`.
#[derive(Clone, Debug, Default, Args)]
pub struct DetachArgs {
    /// Do not ask
    #[arg(long, short = 'y')]
    pub yes: bool,
    /// Where the pins are follows from the configuration.
    #[command(flatten)]
    pub run: RunArgs,
}

impl DetachArgs {
    /// Whether to go on: `--yes`, or `y` typed at a terminal. Without a terminal nobody can be asked, and the answer is
    /// no.
    pub fn confirmed(&self, what: &str) -> io::Result<bool> {
        if self.yes {
            return Ok(true);
        }
        if !io::stdin().is_terminal() {
            eprintln!("{what}; pass --yes to do it without being asked");
            return Ok(false);
        }
        let mut error = io::stderr();
        write!(error, "{what}. Go on? [y/N] ")?;
        error.flush()?;
        let mut answer = String::new();
        io::stdin().lock().read_line(&mut answer)?;
        Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
    }
}
