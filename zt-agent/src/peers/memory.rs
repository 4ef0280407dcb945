// SPDX-License-Identifier: Apache-2.0
//! The other nodes on disk: their numbers, by which the kernel's maps go on, and who was where, for as long as it is held.
//! Keys are not among it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use std::{fs, io};

use ipnet::IpNet;

use serde::{Deserialize, Serialize};
use zt_common::names::MAX_NODES;

use crate::identity::kept;
use crate::identity::peers::{Evidence, Resident};
use crate::spiffe_id::SpiffeId;

/// The file in the directory of the agent's state.
pub const FILE: &str = "peers.json";
/// Most bytes that are read, and written.
const MAX_BYTES: u64 = 256 << 20;

/// What is kept of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KeptNode {
    pub(super) number: u32,
    pub(super) proves: bool,
    pub(super) residents: Vec<Resident>,
    /// What it has shown to hold.
    #[serde(default)]
    pub(super) shown: Vec<(SpiffeId, Evidence)>,
    /// Networks about which it has said all.
    #[serde(default)]
    pub(super) networks: Vec<IpNet>,
    /// Since when it is not heard, Unix seconds; `None` while it is.
    #[serde(default)]
    pub(super) unheard: Option<i64>,
    /// Where somebody was until it had not been heard for too long: nobody is known there, and it is nowhere else.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) lost: Vec<IpAddr>,
}

impl KeptNode {
    /// For how long it is still believed, of as long as it is held.
    pub(super) fn rest(&self, hold: Duration, now: i64) -> Duration {
        let unheard = self.unheard.unwrap_or(now);
        let passed = Duration::from_secs(now.saturating_sub(unheard).max(0).unsigned_abs());
        hold.saturating_sub(passed)
    }
}

/// What is kept. A copy costs little.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Kept {
    /// Which start of the machine it was.
    boot: String,
    nodes: BTreeMap<Arc<str>, Arc<KeptNode>>,
    /// The number that was given last.
    last: u32,
    #[serde(skip)]
    changed: bool,
}

impl Kept {
    /// What the last agent of this start of the machine left; who was where before is nobody's to say. Nobody of them is heard,
    /// since that agent was at work last, or longer.
    pub(super) fn recall(path: &Path) -> Self {
        let boot = kept::boot().unwrap_or_default();
        let mut kept = kept::read::<Self>(path, MAX_BYTES, "other nodes").unwrap_or_default();
        if kept.boot != boot {
            // The kernel's maps have gone with it.
            kept = Self::default();
        }
        kept.boot = boot;
        let written = fs::metadata(path).and_then(|metadata| metadata.modified());
        let left = written.map_or(0, unix_seconds);
        let usable = |number: u32| (1..=MAX_NODES).contains(&number);
        kept.nodes.retain(|_, node| usable(node.number));
        for node in kept.nodes.values_mut() {
            let node = Arc::make_mut(node);
            node.unheard = Some(node.unheard.map_or(left, |unheard| unheard.min(left)));
            kept.changed = true;
        }
        kept
    }

    /// What is known of a node.
    pub(super) fn get(&self, node: &str) -> Option<&KeptNode> {
        self.nodes.get(node).map(Arc::as_ref)
    }

    /// The nodes that are known.
    pub(super) fn nodes(&self) -> impl Iterator<Item = (&Arc<str>, &KeptNode)> {
        self.nodes.iter().map(|(name, node)| (name, node.as_ref()))
    }

    /// The number of a node, which is given one if it has none; `None` where there are too many. A number that was another
    /// node's is given again as late as can be.
    pub(super) fn number(&mut self, node: &Arc<str>) -> Option<u32> {
        if let Some(known) = self.nodes.get(node) {
            return Some(known.number);
        }
        let taken: std::collections::HashSet<u32> = self.nodes.values().map(|node| node.number).collect();
        let after = (self.last..MAX_NODES).chain(0..self.last.min(MAX_NODES));
        let number = after
            .map(|before| before + 1)
            .find(|number| !taken.contains(number))?;
        self.last = number;
        let new = KeptNode {
            number,
            // It was never heard.
            unheard: Some(0),
            ..KeptNode::default()
        };
        self.set(node, new);
        Some(number)
    }

    pub(super) fn set(&mut self, node: &Arc<str>, kept: KeptNode) {
        self.nodes.insert(Arc::clone(node), Arc::new(kept));
        self.changed = true;
    }

    /// There is no such node any more.
    pub(super) fn remove(&mut self, node: &str) {
        self.changed |= self.nodes.remove(node).is_some();
    }

    /// What is to be written, if that is something new.
    pub(super) fn unwritten(&mut self) -> Option<Self> {
        std::mem::take(&mut self.changed).then(|| self.clone())
    }

    /// As it is written, and of which nodes no more than their number is in it: of those that say most, where all is more than is
    /// read again.
    pub(super) fn text(&self) -> io::Result<(Vec<u8>, Vec<Arc<str>>)> {
        self.text_below(MAX_BYTES)
    }

    fn text_below(&self, most: u64) -> io::Result<(Vec<u8>, Vec<Arc<str>>)> {
        let fits = |length: usize| u64::try_from(length).is_ok_and(|length| length <= most);
        let text = serde_json::to_vec(self)?;
        if fits(text.len()) {
            return Ok((text, Vec::new()));
        }
        let mut by_size: Vec<(usize, &Arc<str>)> = Vec::new();
        for (name, node) in &self.nodes {
            by_size.push((serde_json::to_vec(node)?.len(), name));
        }
        by_size.sort_unstable();
        let mut less = self.clone();
        let (mut length, mut left) = (text.len(), Vec::new());
        while !fits(length) {
            let Some((size, name)) = by_size.pop() else { break };
            let Some(node) = less.nodes.get_mut(name) else {
                break;
            };
            let bare = KeptNode {
                number: node.number,
                unheard: node.unheard,
                ..KeptNode::default()
            };
            length = length.saturating_sub(size) + serde_json::to_vec(&bare)?.len();
            *node = Arc::new(bare);
            left.push(Arc::clone(name));
        }
        Ok((serde_json::to_vec(&less)?, left))
    }

    /// It could not be written.
    pub(super) fn unsaved(&mut self) {
        self.changed = true;
    }
}

/// Says that an agent is at work, where nothing is new.
pub(super) fn touch(path: &Path) -> io::Result<()> {
    match fs::File::options().append(true).open(path) {
        Ok(file) => file.set_modified(SystemTime::now()),
        // Nothing was known so far.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn unix_seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_residents_outlive_an_agent_and_not_the_machine() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join(FILE);
        let mut kept = Kept::recall(&path);
        let [one, two, three]: [Arc<str>; 3] = ["one", "two", "three"].map(Arc::from);
        assert_eq!(
            [&one, &two, &one].map(|node| kept.number(node)),
            [Some(1), Some(2), Some(1)]
        );
        kept.remove("one");
        assert_eq!(kept.number(&three), Some(3), "1 rests");
        let resident = Resident {
            address: "10.0.0.1".parse().expect("literal"),
            spiffe: SpiffeId::parse("spiffe://hanzo.ai/a").expect("literal"),
            incarnation: 7,
            silent: false,
        };
        let evidence = Evidence {
            expires: 100,
            authority: 7,
        };
        let node = KeptNode {
            number: 2,
            proves: true,
            shown: vec![(resident.spiffe.clone(), evidence)],
            residents: vec![resident],
            networks: vec!["10.0.0.0/24".parse().expect("literal")],
            unheard: Some(5),
            lost: vec!["10.0.0.2".parse().expect("literal")],
        };
        kept.set(&two, node.clone());
        let (text, left) = kept.unwritten().expect("new").text().expect("JSON");
        assert!(left.is_empty());
        assert!(kept.unwritten().is_none(), "once");
        fs::write(&path, &text).expect("written");
        let mut again = Kept::recall(&path);
        assert_eq!(again.get("two"), Some(&node));
        assert_eq!(again.number(&one), Some(4));

        let boot = kept::boot().expect("the kernel says");
        let other = String::from_utf8(text)
            .expect("text")
            .replace(&boot, "of-another-start");
        fs::write(&path, other).expect("written");
        assert_eq!(Kept::recall(&path).nodes().count(), 0);
    }

    #[test]
    fn what_was_not_heard_before_a_restart_is_not_held_anew() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join(FILE);
        let at = |seconds: u64| UNIX_EPOCH + Duration::from_secs(seconds);
        let mut kept = Kept::recall(&path);
        let [heard, silent, new]: [Arc<str>; 3] = ["heard", "silent", "new"].map(Arc::from);
        for (name, unheard) in [(&heard, None), (&silent, Some(900))] {
            let number = kept.number(name).expect("few");
            let node = KeptNode {
                number,
                unheard,
                ..KeptNode::default()
            };
            kept.set(name, node);
        }
        kept.number(&new);
        let rest = |kept: &Kept, name: &str, now| {
            let node = kept.get(name).expect("kept");
            node.rest(Duration::from_secs(300), now).as_secs()
        };
        // Each agent after the first hears nobody, and lives for a while.
        for left in [1000, 1050, 1100] {
            fs::write(&path, kept.text().expect("JSON").0).expect("written");
            let file = fs::File::options().append(true).open(&path).expect("there");
            file.set_modified(at(left)).expect("set");
            kept = Kept::recall(&path);
            assert_eq!(rest(&kept, "heard", 1200), 100, "heard until 1000: {left}");
            assert_eq!(rest(&kept, "silent", 1150), 50, "{left}");
            assert_eq!(rest(&kept, "new", 1000), 0, "never heard");
        }
        assert_eq!(rest(&kept, "heard", 1300), 0);
        assert_eq!(rest(&kept, "heard", 900), 300, "a clock that was put back");
    }

    #[test]
    fn of_who_says_too_much_the_number_is_kept_and_of_the_others_all() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join(FILE);
        let mut kept = Kept::recall(&path);
        let resident = |last: u8| Resident {
            address: IpAddr::from([10, 0, 0, last]),
            spiffe: SpiffeId::parse("spiffe://hanzo.ai/a").expect("literal"),
            incarnation: 7,
            silent: false,
        };
        for (name, residents) in [("few", 3_u8), ("many", 200), ("some", 20)] {
            let name: Arc<str> = name.into();
            let node = KeptNode {
                number: kept.number(&name).expect("few"),
                proves: true,
                residents: (0..residents).map(resident).collect(),
                unheard: Some(5),
                ..KeptNode::default()
            };
            kept.set(&name, node);
        }
        let whole = kept.text().expect("JSON").0.len() as u64;
        for (most, left_out) in [
            (whole, &[][..]),
            (whole - 1, &["many"]),
            (whole / 2, &["many"]),
            (700, &["many", "some"]),
        ] {
            let (text, left) = kept.text_below(most).expect("JSON");
            assert_eq!(
                left.iter().map(|name| &**name).collect::<Vec<_>>(),
                left_out,
                "{most}"
            );
            assert!(text.len() as u64 <= most, "{most}: {}", text.len());
            fs::write(&path, &text).expect("written");
            let again = Kept::recall(&path);
            for (name, node) in kept.nodes() {
                let known = again.get(name).expect("kept");
                assert_eq!((known.number, known.unheard), (node.number, Some(5)));
                let expected = if left_out.contains(&&**name) {
                    0
                } else {
                    node.residents.len()
                };
                assert_eq!(known.residents.len(), expected, "{name} at {most}");
            }
        }
    }

    #[test]
    fn there_are_only_so_many_numbers() {
        let mut kept = Kept::default();
        for index in 1..=MAX_NODES {
            assert_eq!(kept.number(&format!("n{index}").into()), Some(index));
        }
        assert_eq!(kept.number(&"more".into()), None);
        kept.remove("n7");
        assert_eq!(kept.number(&"more".into()), Some(7));
    }
}
