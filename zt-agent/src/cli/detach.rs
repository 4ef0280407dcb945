// SPDX-License-Identifier: Apache-2.0
//! Arguments of `zt-agent detach`, and the question that it asks first.

use std::io::{self, BufRead, IsTerminal, Write};

use clap::Args;

use super::run::RunArgs;
use super::{Exit, Failure};
use crate::app;

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

/// Removes every pin, after asking.
pub(super) fn detach(arguments: &DetachArgs) -> Result<Exit, Failure> {
    let config = arguments.run.load()?;
    let what = format!(
        "this removes every hook, map and pin below {}: nothing is enforced on this node any more",
        config.bpffs.display()
    );
    if !arguments.confirmed(&what)? {
        return Ok(Exit::Failed);
    }
    let removal = app::detach(&config)?;
    for problem in &removal.problems {
        eprintln!("error: {problem}");
    }
    println!("{} pins removed", removal.removed);
    if let Some(running) = &removal.running {
        println!("zt-agent still runs ({running}): it attaches nothing again until it is restarted; stop it");
    }
    Ok(if removal.problems.is_empty() {
        Exit::Done
    } else {
        Exit::Failed
    })
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
