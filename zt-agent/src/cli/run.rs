// SPDX-License-Identifier: Apache-2.0
//! Arguments of `zt-agent run`: the configuration file and one flag for each setting.

use std::path::PathBuf;

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};

use super::{Exit, Failure};
use crate::app;
use crate::config::{Config, ConfigError, SETTINGS, Sources};
use crate::confine;

/// Arguments of `run`.
#[derive(Clone, Debug, Default, Args)]
pub struct RunArgs {
    /// Configuration file [default: /etc/zt/agent.yaml, if it exists]
    #[arg(long, env = "ZT_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Settings given as flags.
    #[command(flatten)]
    pub settings: SettingFlags,
}

impl RunArgs {
    /// The configuration from the file, the process's environment and these flags.
    pub fn load(&self) -> Result<Config, ConfigError> {
        Config::load(&self.sources())
    }

    /// Where it is read from.
    pub fn sources(&self) -> Sources {
        let mut sources = Sources::of_process(self.config.clone());
        sources.flags.clone_from(&self.settings.given);
        sources
    }
}

/// Arguments of the command itself.
#[derive(Clone, Debug, Default, Args)]
pub struct StartArgs {
    /// Have an agent that runs on this node end and hand over. Without this, the new one waits until the other ends
    #[arg(long)]
    pub take_over: bool,
    /// The configuration.
    #[command(flatten)]
    pub run: RunArgs,
}

/// Runs the node agent until it is asked to stop.
pub(super) fn run(arguments: &StartArgs, log_level: &str) -> Result<Exit, Failure> {
    crate::log::start(log_level)?;
    let sources = arguments.run.sources();
    let config = Config::load(&sources)?;
    confine::node();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(app::run(config, sources, arguments.take_over));
    // What still runs only reads: nothing is lost by not waiting for it.
    runtime.shutdown_background();
    outcome?;
    Ok(Exit::Done)
}

/// The settings that were given as flags. There is a flag for each of [`SETTINGS`], so none can be forgotten.
#[derive(Clone, Debug, Default)]
pub struct SettingFlags {
    given: Vec<(&'static str, String)>,
}

impl FromArgMatches for SettingFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = SETTINGS.iter().filter_map(|setting| {
            let value = matches.get_one::<String>(setting.key)?;
            Some((setting.key, value.clone()))
        });
        Ok(Self {
            given: given.collect(),
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.given.extend(Self::from_arg_matches(matches)?.given);
        Ok(())
    }
}

impl Args for SettingFlags {
    fn augment_args(command: Command) -> Command {
        command
            .next_help_heading("Settings (each overrides the file and its ZT_* variable)")
            .args(SETTINGS.iter().map(|setting| {
                Arg::new(setting.key)
                    .long(setting.flag)
                    .value_name(setting.value)
                    .help(setting.help)
            }))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        run: RunArgs,
    }

    #[test]
    fn every_setting_is_a_flag() {
        for setting in SETTINGS {
            let line = Line::try_parse_from(["x", &format!("--{}", setting.flag), "value"]).expect("a flag");
            assert_eq!(line.run.settings.given, [(setting.key, "value".to_owned())]);
        }
    }

    #[test]
    fn flags_reach_the_configuration() {
        let line = Line::try_parse_from(["x", "--config", "/dev/null", "--node", "n"]).expect("valid");
        // Not a file, which shows that it was looked at.
        assert!(
            line.run
                .load()
                .expect_err("device")
                .to_string()
                .contains("/dev/null")
        );
        let directory = tempfile::tempdir().expect("tempdir");
        let file = directory.path().join("agent.yaml");
        std::fs::write(&file, "node: file\n").expect("write");
        let line = Line::try_parse_from(["x", "--config", &file.display().to_string(), "--node", "flag"]);
        assert_eq!(line.expect("valid").run.load().expect("valid").node, "flag");
    }
}
