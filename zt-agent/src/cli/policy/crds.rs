// SPDX-License-Identifier: Apache-2.0
//! `zt-agent policy crds`.

use std::fs;
use std::path::PathBuf;

use clap::Args;

use crate::cli::exit::{Exit, Failure};
use crate::cli::output::line;
use crate::policy::{RESOURCES, definitions};
use crate::yaml;

/// Arguments of `policy crds`.
#[derive(Debug, Args)]
pub struct CrdsArgs {
    /// Write a file for each kind into this directory instead
    #[arg(long, value_name = "DIR")]
    write: Option<PathBuf>,
}

pub(super) fn crds(arguments: &CrdsArgs) -> Result<Exit, Failure> {
    for (definition, (_, collection)) in definitions().iter().zip(RESOURCES) {
        let text = yaml::write(definition).map_err(|error| Failure::Io(std::io::Error::other(error)))?;
        match &arguments.write {
            Some(directory) => {
                let path = directory.join(format!("{collection}.yaml"));
                let text = format!("# SPDX-License-Identifier: Apache-2.0\n{text}");
                fs::write(&path, text).map_err(|error| {
                    Failure::Usage(format!("{} cannot be written: {error}", path.display()))
                })?;
            }
            None => line(&format!("---\n{}", text.trim_end()))?,
        }
    }
    Ok(Exit::Done)
}
