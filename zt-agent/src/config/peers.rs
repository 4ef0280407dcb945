// SPDX-License-Identifier: Apache-2.0
//! How `identity.peers` is read.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::setting::Raw;
use super::{Config, apply, nri};
use crate::identity::peers::{Neighbour, Roster, RosterError};
use crate::spiffe_id::Pattern;
use crate::yaml::{Node, Value};

/// The fields of an entry of `identity.peers.nodes`.
const FIELDS: [&str; 4] = ["name", "address", "speaksFor", "identities"];
/// What holds longer than that is no longer what was said.
const LONGEST_HOLD: Duration = Duration::from_secs(86_400);

/// Whether the Kubernetes API is asked about pods of other nodes although their agents tell of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OtherPods {
    /// Only as long as not all agents are heard.
    #[default]
    Auto,
    /// Always.
    Always,
}

/// `identity.peers`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peers {
    /// `identity.peers.listen`: where agents of other nodes reach this one.
    pub listen: SocketAddr,
    /// `identity.peers.nodes`: the other nodes.
    pub nodes: Vec<Neighbour>,
    /// `identity.peers.id`: how the SPIFFE ID of a node's agent is made.
    pub id: String,
    /// `identity.peers.pods`: whether the API is always asked about pods of other nodes as well.
    pub pods: OtherPods,
    /// `identity.peers.hold`: how long what a node said is believed when it is no longer heard.
    pub hold: Duration,
}

impl Default for Peers {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 8056)),
            nodes: Vec::new(),
            id: "spiffe://{trustDomain}/{cluster}/zt-system/zt-agent/nodes/{node}".to_owned(),
            pods: OtherPods::Always,
            hold: Duration::from_secs(300),
        }
    }
}

impl Config {
    /// How the SPIFFE ID of a node's agent is made: with `{node}` for the node's name.
    pub fn agent_pattern(&self) -> String {
        let id = self
            .identity
            .peers
            .id
            .replace("{trustDomain}", &self.trust_domain);
        id.replace("{cluster}", &self.cluster)
    }

    /// The other nodes that are listed; `here` are addresses of this machine, which are no other one's.
    pub fn roster(&self, here: &[IpAddr]) -> Result<Roster, RosterError> {
        let listed = self.identity.peers.nodes.iter().cloned();
        Roster::new(listed, &self.agent_pattern(), &self.node, here)
    }
}

pub(super) fn listen(config: &mut Config, raw: Raw<'_>) -> Result<(), String> {
    config.identity.peers.listen = apply::socket_address(raw)?;
    Ok(())
}

pub(super) fn id(config: &mut Config, raw: Raw<'_>) -> Result<(), String> {
    let text = raw.text()?;
    if text.matches("{node}").count() != 1 {
        return Err("must have `{node}` in it once: each node's agent has an ID of its own".to_owned());
    }
    let filled = ["{node}", "{cluster}", "{trustDomain}"]
        .iter()
        .fold(text.to_owned(), |text, name| text.replace(name, "x"));
    let pattern = Pattern::parse(&filled).map_err(|error| error.to_string())?;
    if !matches!(pattern, Pattern::Exact(_)) {
        return Err("is the ID of one agent, and has no `*`".to_owned());
    }
    text.clone_into(&mut config.identity.peers.id);
    Ok(())
}

pub(super) fn hold(config: &mut Config, raw: Raw<'_>) -> Result<(), String> {
    let text = raw.text()?;
    let hold = nri::duration(text).ok_or_else(|| format!("`{text}` is no time such as `30s` or `5m`"))?;
    if hold > LONGEST_HOLD {
        return Err(format!("must be at most a day, not `{text}`"));
    }
    config.identity.peers.hold = hold;
    Ok(())
}

pub(super) fn pods(config: &mut Config, raw: Raw<'_>) -> Result<(), String> {
    config.identity.peers.pods = match raw.text()? {
        "auto" => OtherPods::Auto,
        "always" => OtherPods::Always,
        other => return Err(format!("must be `auto` or `always`, not `{other}`")),
    };
    Ok(())
}

pub(super) fn nodes(config: &mut Config, raw: Raw<'_>) -> Result<(), String> {
    let Raw::Node(node) = raw else {
        let named = |text: &str| {
            let (name, address) = text
                .split_once('=')
                .ok_or_else(|| format!("`{text}` is not NAME=ADDRESS:PORT"))?;
            neighbour(name.trim(), address.trim(), None, Vec::new())
        };
        config.identity.peers.nodes = raw.list()?.into_iter().map(named).collect::<Result<_, _>>()?;
        return Ok(());
    };
    let items = match &node.value {
        Value::List(items) => &items[..],
        Value::Null => &[],
        other => {
            return Err(format!(
                "must be a list of {{name, address}}, not {}",
                other.kind()
            ));
        }
    };
    let mut nodes = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        let wrong = |message: String| format!("entry {} (line {}): {message}", index + 1, item.line);
        nodes.push(entry(item).map_err(wrong)?);
    }
    config.identity.peers.nodes = nodes;
    Ok(())
}

fn entry(item: &Node) -> Result<Neighbour, String> {
    let Value::Map(fields) = &item.value else {
        return Err(format!("must be {{name, address}}, not {}", item.value.kind()));
    };
    let known = |key: &Value| matches!(key, Value::Text(text) if FIELDS.contains(&text.as_str()));
    if !fields.iter().all(|(key, _)| known(&key.value)) {
        return Err("has the fields name, address, speaksFor and identities, and no others".to_owned());
    }
    let field = |name: &str| {
        let of = |key: &Value| matches!(key, Value::Text(text) if text == name);
        let found = fields.iter().find(|(key, _)| of(&key.value));
        found.map(|(_, value)| Raw::Node(value))
    };
    let needed = |name: &str| {
        let raw = field(name).ok_or_else(|| format!("`{name}` is missing"))?;
        raw.text().map_err(|error| format!("{name} {error}"))
    };
    let speaks_for = field("speaksFor").map(networks).transpose()?;
    let identities = field("identities").map_or(Ok(Vec::new()), patterns)?;
    neighbour(needed("name")?, needed("address")?, speaks_for, identities)
}

fn networks(raw: Raw<'_>) -> Result<Vec<IpNet>, String> {
    let list = raw.list().map_err(|error| format!("speaksFor {error}"))?;
    let network = |text: &str| {
        let single = text
            .parse::<IpAddr>()
            .map(|address| IpNet::from(address.to_canonical()));
        single
            .or_else(|_| text.parse::<IpNet>().map(|net| net.trunc()))
            .map_err(|_| format!("speaksFor: `{text}` is no address and no network"))
    };
    list.into_iter().map(network).collect()
}

fn patterns(raw: Raw<'_>) -> Result<Vec<Pattern>, String> {
    let list = raw.list().map_err(|error| format!("identities {error}"))?;
    let pattern = |text: &str| Pattern::parse(text).map_err(|error| format!("identities: {error}"));
    list.into_iter().map(pattern).collect()
}

/// A node; of which nothing else is said, it speaks for the address of its agent.
fn neighbour(
    name: &str,
    address: &str,
    speaks_for: Option<Vec<IpNet>>,
    identities: Vec<Pattern>,
) -> Result<Neighbour, String> {
    let no_address = || format!("address: `{address}` is not ADDRESS:PORT");
    let (host, port) = address.rsplit_once(':').ok_or_else(no_address)?;
    if name.is_empty() || host.is_empty() || !port.parse::<u16>().is_ok_and(|port| port != 0) {
        return Err(no_address());
    }
    let speaks_for = match (speaks_for, address.parse::<SocketAddr>()) {
        (Some(networks), _) => networks,
        (None, Ok(address)) => vec![IpNet::from(address.ip().to_canonical())],
        (None, Err(_)) => {
            return Err(format!(
                "speaksFor is missing: `{host}` is a name, which does not say whose addresses it speaks for"
            ));
        }
    };
    Ok(Neighbour {
        name: Arc::from(name),
        address: Arc::from(address),
        speaks_for,
        created: 0,
        says: Vec::new(),
        identities,
    })
}
