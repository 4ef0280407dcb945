// SPDX-License-Identifier: Apache-2.0
//! What comes from behind an address of another node, of which nobody knows where it leads.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Result;
use zt_common::abi::KeyId;
use zt_tests::TCP;
use zt_tests::nat::translate;
use zt_tests::pair::policy;
use zt_tests::trail::says;

use super::{EPOCH, OTHER, nodes_with};

/// A tag of another key is as good as none there: whoever answers could have left it out, and the address was allowed by itself.
#[test]
fn a_tag_that_does_not_verify_is_as_good_as_none() -> Result<()> {
    let node: Ipv4Addr = "10.99.200.1".parse()?;
    let mut nodes = nodes_with(
        "nodes-port-key",
        &policy().allow("client", "remote-node", TCP, "30080"),
    )?;
    nodes.is_a_node(node)?;
    translate(&nodes.client, node, 30_080, &nodes.server)?;
    nodes.has_key(KeyId::from(OTHER, EPOCH), Some([1, 2]))?;
    // What the destination makes of it is its own matter.
    nodes.client.talk(SocketAddr::new(node.into(), 30_080))?;
    let record = nodes.record("source")?;
    assert!(
        says(&record, &nodes.client.id, "remote-node", "ALLOW", "rule"),
        "{record}"
    );
    assert_eq!(record["proof"], "none:absent");
    assert!(nodes.agent.counter("tags_invalid")? > 0);
    Ok(())
}
