// SPDX-License-Identifier: Apache-2.0
//! `zt-agent connectivity-test`: proves on this machine, with workloads, network namespaces, pins and an agent of its own, that its
//! kernel does what policy says. An agent that runs here is not disturbed: nothing of it is touched.

mod ipv6;
mod janitor;
mod report;
mod trial;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;

use super::names::Kind;
use crate::cli::{Exit, Format, Output};
use crate::config::{Config, Sources};

pub(super) use self::janitor::{Janitor, JanitorArgs, keep_clean};
pub(super) use self::trial::{TrialArgs, try_all};

/// Arguments of `connectivity-test`.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Exit codes: 0 everything came out as it must, 1 something did not, 64 bad configuration, 77 the kernel or a \
    privilege is missing. Needs root. Of the configuration handshake, unknownWorkload, allowHost, allowSelf, \
    packetGuard and clusterCIDRs are taken; cgroups, namespaces, pins and files are its own, and are removed whatever happens. Where \
    there is no IPv6, what needs it is not applicable."
)]
pub struct ConnectivityArgs {
    /// Configuration file of the agent [default: /etc/zt/agent.yaml, if it exists]
    #[arg(long, env = "ZT_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
}

/// Runs the test.
pub fn connectivity(arguments: &ConnectivityArgs) -> Exit {
    let tried = || {
        let config = Config::load(&Sources::of_process(arguments.config.clone()))?;
        let part = [
            "trial",
            "--settings",
            &settings(&config),
            "--format",
            format(arguments.output.format),
        ];
        let part = part.into_iter().map(OsString::from).collect();
        super::perform(Kind::Connectivity, part, false)
    };
    tried().unwrap_or_else(|error| super::failed(&error))
}

const fn format(format: Format) -> &'static str {
    match format {
        Format::Table => "table",
        Format::Json => "json",
    }
}

/// The lines of a configuration on which it depends what the kernel does.
fn settings(config: &Config) -> String {
    let cidrs: Vec<String> = config
        .cluster_cidrs
        .iter()
        .map(|cidr| format!("\"{cidr}\""))
        .collect();
    format!(
        "handshake: \"{}\"\nunknownWorkload: {}\nallowHost: {}\nallowSelf: {}\npacketGuard: {}\nclusterCIDRs: [{}]\n",
        config.handshake.name(),
        config.unknown_workload.name(),
        config.allow_host,
        config.allow_self,
        config.packet_guard,
        cidrs.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use std::fs;

    use clap::ValueEnum as _;

    use super::*;
    use crate::config::{Handshake, UnknownWorkload};

    #[test]
    fn what_is_taken_of_a_configuration_is_read_again() {
        let config = Config {
            handshake: Handshake::Off,
            unknown_workload: UnknownWorkload::Deny,
            allow_host: false,
            packet_guard: true,
            cluster_cidrs: vec![
                "10.0.0.0/8".parse().expect("valid"),
                "fd00::/8".parse().expect("valid"),
            ],
            ..Config::default()
        };
        let directory = tempfile::tempdir().expect("tempdir");
        let file = directory.path().join("agent.yaml");
        fs::write(&file, settings(&config)).expect("write");
        let sources = Sources {
            file: Some(file),
            ..Sources::default()
        };
        let read = Config::load(&sources).expect("valid");
        assert_eq!(
            (
                read.handshake,
                read.unknown_workload,
                read.allow_host,
                read.allow_self,
                read.packet_guard,
                read.cluster_cidrs
            ),
            (
                Handshake::Off,
                UnknownWorkload::Deny,
                false,
                true,
                true,
                config.cluster_cidrs
            )
        );
        for format in Format::value_variants() {
            assert!(Format::from_str(self::format(*format), false).is_ok());
        }
    }
}
