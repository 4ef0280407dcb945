// SPDX-License-Identifier: Apache-2.0
//! One end of a rule: an identity pattern, an entity or a network.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};

use super::entity::{ENTITIES, entity_number};
use super::walk::{Fields, Path, Walk};
use crate::spiffe_id::Pattern;
use crate::yaml::Node;

/// Whom one end of a rule is about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Endpoint {
    /// `spiffe:`, an identity or a pattern of identities.
    Spiffe(Pattern),
    /// `entity:`, by its number.
    Entity(u64),
    /// `cidr:`, in its canonical form.
    Cidr(IpNet),
}

/// The fields that name an endpoint, of which there is exactly one.
pub(super) const FIELDS: [&str; 3] = ["spiffe", "entity", "cidr"];

impl Endpoint {
    /// Reads it from the mapping `node`, whose keys have been checked.
    pub(super) fn read(
        walk: &mut Walk<'_>,
        node: &Node,
        fields: &Fields<'_>,
        path: &Path<'_>,
        trust_domain: &str,
    ) -> Option<Self> {
        let mut present = FIELDS
            .iter()
            .filter_map(|name| fields.get(name).map(|value| (*name, value)));
        let Some((name, value)) = present.next() else {
            if !fields.misspelt() {
                walk.report(node, path, "names nobody: give it one of spiffe, entity, cidr");
            }
            return None;
        };
        if let Some((second, at)) = present.next() {
            walk.report(
                at,
                &path.field(second),
                format!("`{name}` and `{second}` exclude each other: write two rules or targets"),
            );
            return None;
        }
        let path = path.field(name);
        match name {
            "spiffe" => {
                let text = walk.text(value, &path)?;
                if let Some(known) = walk.patterns.get(text) {
                    return Some(Self::Spiffe(known.clone()));
                }
                let pattern = spiffe(text, trust_domain)
                    .map_err(|message| walk.report(value, &path, message))
                    .ok()?;
                walk.patterns.insert(text.into(), pattern.clone());
                Some(Self::Spiffe(pattern))
            }
            "entity" => {
                let known = ENTITIES.map(|(name, _)| name);
                walk.word(value, &path, &known, entity_number).map(Self::Entity)
            }
            _ => {
                let text = walk.text(value, &path)?;
                cidr(text)
                    .map(Self::Cidr)
                    .map_err(|message| walk.report(value, &path, message))
                    .ok()
            }
        }
    }
}

pub(super) fn spiffe(text: &str, trust_domain: &str) -> Result<Pattern, String> {
    // An over-long text is not worth repeating.
    let shown: String = text.chars().take(80).collect();
    let pattern = Pattern::parse(text).map_err(|error| format!("`{shown}`: {error}"))?;
    match pattern.trust_domain() {
        Some(theirs) if theirs != trust_domain => Err(format!(
            "`{shown}` is of trust domain `{theirs}`, this node's is `{trust_domain}`"
        )),
        _ => Ok(pattern),
    }
}

fn cidr(text: &str) -> Result<IpNet, String> {
    let network: IpNet = text.parse().map_err(|_| match text.parse::<IpAddr>() {
        Ok(address) => format!(
            "`{text}` has no prefix length: did you mean `{}`?",
            IpNet::from(address)
        ),
        Err(_) => format!("`{text}` is not a CIDR such as `10.0.0.0/8` or `fd00::/8`"),
    })?;
    if network.trunc() != network {
        return Err(format!(
            "`{text}` has bits set beyond its prefix: did you mean `{}`?",
            network.trunc()
        ));
    }
    Ok(canonical(network))
}

/// The one form of a network: truncated, and IPv4 rather than IPv4 mapped into IPv6.
pub(super) fn canonical(network: IpNet) -> IpNet {
    let network = network.trunc();
    let IpNet::V6(v6) = network else { return network };
    let mapped = |address: Ipv6Addr| address.to_ipv4_mapped();
    match (mapped(v6.network()), v6.prefix_len().checked_sub(96)) {
        (Some(address), Some(length)) => Ipv4Net::new(address, length).map_or(network, IpNet::V4),
        _ => network,
    }
}

#[cfg(test)]
mod tests {
    use super::{canonical, cidr};

    #[test]
    fn one_form_for_one_network() {
        assert_eq!(
            cidr("::ffff:10.0.0.0/104"),
            Ok("10.0.0.0/8".parse().expect("literal"))
        );
        assert_eq!(
            cidr("FD00:0::/8").map(|network| network.to_string()),
            Ok("fd00::/8".to_owned())
        );
        assert_eq!(
            canonical("10.1.2.3/8".parse().expect("literal")).to_string(),
            "10.0.0.0/8"
        );
        assert_eq!(
            cidr("::/0").map(|network| network.to_string()),
            Ok("::/0".to_owned())
        );
    }

    #[test]
    fn what_is_no_cidr_says_what_would_be() {
        let message = |text| cidr(text).expect_err("not canonical");
        assert!(message("10.0.0.1").contains("did you mean `10.0.0.1/32`?"));
        assert!(message("fd00::1").contains("did you mean `fd00::1/128`?"));
        assert!(message("10.0.0.1/8").contains("did you mean `10.0.0.0/8`?"));
        assert!(message("10.0.0.0/33").contains("is not a CIDR"));
        assert!(message("example.com").contains("is not a CIDR"));
    }
}
