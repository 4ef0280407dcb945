// SPDX-License-Identifier: Apache-2.0
//! A party as a request names it.

use std::net::IpAddr;
use std::sync::Arc;

use serde::Deserialize;

use super::problem::field;
use crate::policy::{AllowTable, ENTITIES, Party, entity_number};
use crate::problem::Problem;
use crate::spiffe_id::SpiffeId;

/// The fields of which a party has one.
#[derive(Debug, Default)]
pub(super) struct PartyFields {
    pub(super) spiffe_id: Option<String>,
    pub(super) entity: Option<String>,
    pub(super) address: Option<String>,
}

/// Who connects; one of `spiffe_id`, `entity` and `address`.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SourceFields {
    spiffe_id: Option<String>,
    entity: Option<String>,
    address: Option<String>,
}

impl From<SourceFields> for PartyFields {
    fn from(fields: SourceFields) -> Self {
        Self {
            spiffe_id: fields.spiffe_id,
            entity: fields.entity,
            address: fields.address,
        }
    }
}

/// A party that the table can be asked about.
#[derive(Debug, Clone)]
pub(super) enum Named {
    Spiffe(SpiffeId),
    /// An identity that the table was not compiled for.
    Outside(SpiffeId),
    /// An entity, a network, or whatever has that address; with its name for the record.
    Number(u64, Arc<str>),
}

impl Named {
    pub(super) fn identity(id: &SpiffeId, table: &AllowTable) -> Self {
        if table.knows(id) {
            Self::Spiffe(id.clone())
        } else {
            Self::Outside(id.clone())
        }
    }

    /// Whether it is an identity that the table was not compiled for.
    pub(super) fn is_outside(&self) -> bool {
        matches!(self, Self::Outside(_))
    }

    pub(super) fn party(&self) -> Party<'_> {
        match self {
            Self::Spiffe(id) | Self::Outside(id) => Party::Spiffe(id),
            Self::Number(number, _) => Party::Number(*number),
        }
    }

    pub(super) fn spiffe(&self) -> Option<&SpiffeId> {
        match self {
            Self::Spiffe(id) | Self::Outside(id) => Some(id),
            Self::Number(..) => None,
        }
    }

    pub(super) fn name(&self) -> Arc<str> {
        match self {
            Self::Spiffe(id) | Self::Outside(id) => id.text(),
            Self::Number(_, name) => Arc::clone(name),
        }
    }
}

/// Who is meant; `at` is the path of the party in the request.
pub(super) fn named(fields: PartyFields, at: &str, table: &AllowTable) -> Result<Named, Problem> {
    match (fields.spiffe_id, fields.entity, fields.address) {
        (Some(id), None, None) => match table.identity(&id) {
            // Parsed once already, and its text is shared.
            Some(id) => Ok(Named::Spiffe(id.clone())),
            None => SpiffeId::parse(&id)
                .map(Named::Outside)
                .map_err(|error| field(format!("{at}.spiffe_id"), error.to_string())),
        },
        (None, Some(entity), None) => {
            by_entity(&entity, table).map_err(|message| field(format!("{at}.entity"), message))
        }
        (None, None, Some(address)) => {
            by_address(&address, table).map_err(|message| field(format!("{at}.address"), message))
        }
        (None, None, None) => Err(field(format!("{at}.spiffe_id"), "is missing: who is it?")),
        _ => Err(field(at, "give one of spiffe_id, entity and address")),
    }
}

fn by_entity(name: &str, table: &AllowTable) -> Result<Named, String> {
    if let Some(number) = entity_number(name) {
        return Ok(Named::Number(number, Arc::from(name)));
    }
    if name.starts_with("cidr:") {
        let found = table.network_names().find(|(_, known)| known == name);
        let (number, _) = found.ok_or_else(|| format!("no rule in force names `{name}`"))?;
        return Ok(Named::Number(number, Arc::from(name)));
    }
    let entities: Vec<&str> = ENTITIES.iter().map(|(name, _)| *name).collect();
    Err(format!(
        "`{name}` is not an entity: write one of {}, or cidr:NETWORK",
        entities.join(", ")
    ))
}

fn by_address(text: &str, table: &AllowTable) -> Result<Named, String> {
    let address: IpAddr = text
        .parse()
        .map_err(|_| format!("`{text}` is not an IP address"))?;
    let number = table.number(Party::Address(address.to_canonical()));
    let name = table
        .party_names()
        .find(|(of, _)| *of == number)
        .map_or("unknown".to_owned(), |(_, name)| name);
    Ok(Named::Number(number, Arc::from(name)))
}
