// SPDX-License-Identifier: Apache-2.0
//! Who stands behind Services, for the commands that judge recorded connections to them.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Deserialize;

use super::client::{ApiArgs, Client};
use super::exit::Failure;
use super::offline;
use super::table::printable;
use crate::policy::{Member, Protocol, entity_number};
use crate::spiffe_id::SpiffeId;
use crate::traffic::{Range, Services};

/// Most bytes of a file of Services.
const MAX_BYTES: u64 = 256 << 20;

/// Where it is known from.
#[derive(Debug, Args)]
#[command(next_help_heading = "Recorded traffic")]
pub(super) struct ServicesArgs {
    /// Who stands behind Services: what `zt-agent identity services -o json` printed; `-` for standard input. Without it the
    /// agent is asked, if connections to Services of several identities or ports are recorded
    #[arg(long, value_name = "FILE")]
    services: Option<PathBuf>,
}

/// A virtual address and port, as `identity services -o json` prints it.
#[derive(Debug, Deserialize)]
struct Front {
    service: String,
    protocol: String,
    target_port: u16,
    backends: Vec<Backend>,
}

/// One of those behind it.
#[derive(Debug, Deserialize)]
struct Backend {
    spiffe_id: Option<SpiffeId>,
    entity: Option<String>,
    address: Option<IpAddr>,
    port: u16,
}

impl ServicesArgs {
    /// Whether it is what comes on standard input.
    pub(super) fn is_of_stdin(&self) -> bool {
        self.services.as_deref().is_some_and(offline::is_stdin)
    }

    /// Has connections to Services judged by those behind them, as far as that is known; says why, where the agent cannot
    /// be asked.
    pub(super) fn look_behind(&self, range: &mut Range, api: &ApiArgs) -> Result<(), Failure> {
        if let Some(file) = &self.services {
            range.look_behind(&of_file(file)?);
        } else if range.has_unknown_services() {
            match super::block_on(asked(api)) {
                Ok(services) => range.look_behind(&services),
                Err(failure) => {
                    let why = printable(&failure.to_string());
                    eprintln!("note: who stands behind Services is not known (--services): {why}");
                }
            }
        }
        Ok(())
    }
}

fn of_file(file: &Path) -> Result<Services, Failure> {
    let text = offline::text(file, MAX_BYTES)?;
    let read = serde_json::from_str(&text).map_err(|error| error.to_string());
    read.and_then(services).map_err(|error| {
        Failure::Usage(format!(
            "{}: not what `zt-agent identity services -o json` prints: {error}",
            file.display()
        ))
    })
}

async fn asked(api: &ApiArgs) -> Result<Services, Failure> {
    let mut answer = Client::new(api)?.get("/v1/identities", &[]).await?;
    let read = serde_json::from_value(answer["services"].take()).map_err(|error| error.to_string());
    read.and_then(services)
        .map_err(|_| Failure::Answer { field: "services" })
}

fn services(fronts: Vec<Front>) -> Result<Services, String> {
    let mut services = Services::default();
    for front in fronts {
        let Front {
            service,
            protocol,
            target_port,
            backends,
        } = front;
        let protocol = Protocol::from_name(&protocol)
            .ok_or_else(|| format!("`{protocol}` of `{service}` is neither TCP nor UDP"))?;
        let members: Result<Vec<(Member, u16)>, String> = backends
            .into_iter()
            .map(|backend| {
                let port = backend.port;
                let member = backend.member();
                let member = member
                    .ok_or_else(|| format!("one of those behind `{service}` is nobody who is known"))?;
                Ok((member, port))
            })
            .collect();
        services.add(&service, protocol, target_port, members?);
    }
    Ok(services)
}

impl Backend {
    fn member(self) -> Option<Member> {
        let entity = |name: String| entity_number(&name).map(Member::Entity);
        self.spiffe_id
            .map(Member::Workload)
            .or_else(|| self.entity.and_then(entity))
            .or_else(|| self.address.map(Member::Address))
    }
}
