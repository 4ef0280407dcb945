// SPDX-License-Identifier: Apache-2.0
//! One thing that policy says, for programs and for people.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One thing that policy says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "about", rename_all = "snake_case")]
pub enum Statement {
    /// Who may reach whom.
    Connect {
        /// `ALLOW` or `DENY`.
        action: String,
        /// A SPIFFE ID, a pattern of them, an entity, or `cidr:` and a network.
        source: String,
        /// As `source`.
        destination: String,
        /// `TCP` or `UDP`.
        protocol: String,
        /// Ports and ranges of ports; empty for all.
        ports: Vec<String>,
        /// Only with proof in the handshake.
        #[serde(default)]
        require_proof: bool,
    },
    /// Who may open raw sockets.
    RawSockets {
        /// `ALLOW` or `DENY`.
        action: String,
        /// A SPIFFE ID, or a pattern of them.
        source: String,
    },
    /// Which operator may do what.
    Operate {
        /// Always `ALLOW`.
        action: String,
        /// The role.
        role: String,
        /// The service, `*` for all.
        service: String,
        /// What may be done to it.
        operation: String,
        /// Only with a second factor.
        require_mfa: bool,
        /// Only for an incident.
        require_incident: bool,
    },
}

impl fmt::Display for Statement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect {
                action,
                source,
                destination,
                protocol,
                ports,
                require_proof,
            } => {
                write!(f, "{action} {source} -> {destination} {protocol} ")?;
                if ports.is_empty() {
                    f.write_str("every port")?;
                } else {
                    f.write_str(&ports.join(", "))?;
                }
                f.write_str(if *require_proof { ", with proof" } else { "" })
            }
            Self::RawSockets { action, source } => write!(f, "{action} {source} raw sockets"),
            Self::Operate {
                action,
                role,
                service,
                operation,
                require_mfa,
                require_incident,
            } => {
                write!(f, "{action} role {role}: {operation} on {service}")?;
                f.write_str(if *require_mfa { ", with MFA" } else { "" })?;
                f.write_str(if *require_incident {
                    ", for an incident"
                } else {
                    ""
                })
            }
        }
    }
}
