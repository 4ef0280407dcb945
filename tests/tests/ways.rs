// SPDX-License-Identifier: Apache-2.0
//! Ways round a decision that a workload with many rights could try: each a real program, over IPv4 and IPv6, with what comes
//! of it and why. What gets past is a limit that `docs/limits.md` tells of under the heading that the row names.

#[path = "ways/table.rs"]
mod table;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use zt_tests::attack::{Attempt, attempt};
use zt_tests::datagram::{guarded, take};
use zt_tests::probe::{Handle, Operation};
use zt_tests::{Agent, Party, Policy, Scene, TCP, UDP};

use ways::{Expected, Way, Who};

/// How long something that was sent may be under way within the machine.
const UNDER_WAY: Duration = Duration::from_millis(60);

/// What a row of the table says.
mod ways {
    use anyhow::Result;

    use crate::Stage;

    /// Who tries.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) enum Who {
        /// May reach the server.
        Client,
        /// May not, and is enforced. May reach another one.
        Other,
        /// May not, and is only observed.
        Lax,
    }

    /// What comes of it.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) enum Expected {
        /// A hook refuses at this step with this error, and the kernel side counts a denial. Nothing arrives.
        Refused(&'static str),
        /// It is sent, and the destination's end lets nothing of it arrive, which the kernel side counts.
        Dropped,
        /// The kernel has no such way by itself: nothing arrives.
        Nowhere,
        /// It gets past. The heading of the limit.
        Limit(&'static str),
        /// Nothing of zt is asked, and nobody is there to be reached. The heading of the limit.
        Undecided(&'static str),
    }

    type Words = fn(&Stage, bool) -> Result<Vec<String>>;

    /// A row.
    pub(crate) struct Way {
        pub(crate) what: &'static str,
        pub(crate) who: Who,
        pub(crate) words: Words,
        pub(crate) expected: Expected,
        pub(crate) why: &'static str,
        pub(crate) user: Option<u32>,
        pub(crate) families: &'static [bool],
        /// Not every kernel has what it takes.
        pub(crate) is_rare: bool,
        /// The server takes routing headers meanwhile.
        pub(crate) is_routed: bool,
        /// It takes a socket that is refused where the kernel asks programs of BPF LSM.
        pub(crate) is_beyond: bool,
    }

    impl Way {
        pub(crate) fn new(
            what: &'static str,
            who: Who,
            words: Words,
            expected: Expected,
            why: &'static str,
        ) -> Self {
            Self {
                what,
                who,
                words,
                expected,
                why,
                user: None,
                families: &[false, true],
                is_rare: false,
                is_routed: false,
                is_beyond: false,
            }
        }

        /// By a packet socket, or one of a family that has nothing to do with IP.
        pub(crate) fn beyond(self) -> Self {
            Self {
                is_beyond: true,
                ..self
            }
        }

        /// As a user without capabilities.
        pub(crate) fn by_user(self, user: u32) -> Self {
            Self {
                user: Some(user),
                ..self
            }
        }

        pub(crate) fn rare(self) -> Self {
            Self {
                is_rare: true,
                ..self
            }
        }

        /// It has no IP version.
        pub(crate) fn once(self) -> Self {
            Self {
                families: &[false],
                ..self
            }
        }

        /// Routing headers of IPv6.
        pub(crate) fn routed(self) -> Self {
            Self {
                families: &[true],
                is_routed: true,
                ..self
            }
        }
    }
}

/// Who is there, and what of the server's receives.
pub(crate) struct Stage {
    _scene: Scene,
    pub(crate) server: Party,
    /// Whom `other` may reach.
    pub(crate) friend: Party,
    pub(crate) client: Party,
    pub(crate) other: Party,
    pub(crate) lax: Party,
    /// Descriptors of connections of the client's to the server: over IPv4 and IPv6.
    pub(crate) open: Vec<u32>,
    agent: Agent,
    /// Whether this kernel asks about sockets of every family.
    decides: bool,
    served: Handle,
    datagrams: Handle,
}

fn any(port: u16) -> SocketAddr {
    SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)
}

/// The descriptors of a process that are sockets.
fn sockets(pid: u32) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let path = entry?.path();
        let is_socket = fs::read_link(&path).is_ok_and(|to| to.to_string_lossy().starts_with("socket:"));
        let number = path
            .file_name()
            .and_then(|name| name.to_str()?.parse::<u32>().ok());
        found.extend(number.filter(|_| is_socket));
    }
    Ok(found)
}

impl Stage {
    fn set() -> Result<Self> {
        let mut scene = Scene::new("ways")?;
        let (mut server, mut friend) = (scene.workload("server")?, scene.workload("friend")?);
        let (mut client, other, lax) = (
            scene.workload("client")?,
            scene.workload("other")?,
            scene.workload("lax")?,
        );
        scene.declare("lax", |workload| workload.mode("observe"))?;
        let policy = [TCP, UDP].iter().fold(Policy::new("ways"), |policy, protocol| {
            policy
                .allow("client", "server", protocol, "80")
                .allow("other", "friend", protocol, "80")
        });
        let agent = scene.agent(&policy)?.start()?;
        let served = server.serve(any(80))?.handle()?;
        let datagrams = server.udp_bind(any(80))?.handle()?;
        friend.serve(any(80))?.local()?;
        friend.udp_bind(any(80))?.handle()?;
        guarded(&server)?;
        let mut open = Vec::new();
        for to in [server.v4(80), server.v6(80)] {
            let before = sockets(client.pid())?;
            client.connect(to)?.handle()?;
            open.extend(
                sockets(client.pid())?
                    .into_iter()
                    .filter(|socket| !before.contains(socket)),
            );
        }
        ensure!(open.len() == 2, "{open:?}");
        // What nobody denies comes through: the rows mean something.
        ensure!(client.talk(server.v4(80))? == "ok" && client.talk(server.v6(80))? == "ok");
        Ok(Self {
            _scene: scene,
            server,
            friend,
            client,
            other,
            lax,
            open,
            decides: agent.decides_packet_sockets()?,
            agent,
            served,
            datagrams,
        })
    }

    pub(crate) fn server(&self, v6: bool) -> SocketAddr {
        at(&self.server, v6)
    }

    pub(crate) fn party(&self, who: Who) -> &Party {
        match who {
            Who::Client => &self.client,
            Who::Other => &self.other,
            Who::Lax => &self.lax,
        }
    }

    /// Bytes that the server's programs have got over TCP.
    fn bytes(&mut self) -> Result<u64> {
        let state = self.server.call(Operation::ServeState { socket: self.served })?;
        state.bytes.context("a count of bytes")
    }

    /// Datagrams that the server's program gets from now on, until none comes for a while.
    fn datagrams(&mut self) -> Result<usize> {
        let mut count = 0;
        while take(&mut self.server, self.datagrams, UNDER_WAY)?.data.is_some() {
            count += 1;
        }
        Ok(count)
    }

    /// Refusals that the kernel side has counted, of either end.
    fn refusals(&self) -> Result<u64> {
        Ok(self.agent.counter("denied_enforced")? + self.agent.counter("datagrams_refused")?)
    }

    fn take_routes(&self, takes: bool) -> Result<()> {
        let value = if takes { "1" } else { "0" };
        for interface in ["all", "eth0"] {
            let name = format!("net/ipv6/conf/{interface}/seg6_enabled");
            self.server.host.sysctl(&name, value)?;
        }
        Ok(())
    }

    /// Tries one way, and judges what came of it.
    fn try_way(&mut self, way: &Way, v6: bool) -> Result<Outcome> {
        let words = (way.words)(self, v6)?;
        if way.is_routed {
            self.take_routes(true)?;
        }
        let (bytes, refusals) = (self.bytes()?, self.refusals()?);
        let party = self.party(way.who);
        let tried = attempt(&party.cgroup, &party.host, way.user, &words)?;
        let arrived = self.datagrams()? as u64 + self.bytes()? - bytes;
        let refused = self.refusals()? > refusals;
        if way.is_routed {
            self.take_routes(false)?;
        }
        if way.is_rare && tried.is_not_here() {
            return Ok(Outcome::NotHere);
        }
        let expected = if way.is_beyond && self.decides {
            Expected::Refused("socket: EPERM")
        } else {
            way.expected
        };
        judge(expected, &tried, arrived, refused)
            .with_context(|| format!("{tried:?}, {arrived} arrived, refused: {refused}"))
    }
}

/// What may be said of a way after it was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    Refused,
    Nowhere,
    Limit,
    NotHere,
}

fn judge(expected: Expected, tried: &Attempt, arrived: u64, refused: bool) -> Result<Outcome> {
    let came = tried.step.is_none();
    match expected {
        Expected::Refused(with) => {
            ensure!(
                tried.outcome() == with && refused && arrived == 0,
                "not refused with {with}"
            );
            Ok(Outcome::Refused)
        }
        Expected::Dropped => {
            ensure!(came && refused && arrived == 0, "not sent and dropped");
            Ok(Outcome::Refused)
        }
        Expected::Nowhere => {
            ensure!(arrived == 0, "something arrived");
            Ok(Outcome::Nowhere)
        }
        Expected::Limit(heading) => {
            is_told(heading)?;
            ensure!(
                came && arrived > 0,
                "it is a limit no more: take it out of docs/limits.md"
            );
            Ok(Outcome::Limit)
        }
        Expected::Undecided(heading) => {
            is_told(heading)?;
            ensure!(
                tried.step.as_deref() != Some("socket") && !refused,
                "it is refused: take it out of docs/limits.md"
            );
            Ok(Outcome::Limit)
        }
    }
}

/// Whether the limits tell of it.
fn is_told(heading: &str) -> Result<()> {
    let limits = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/limits.md");
    let limits = fs::read_to_string(limits)?;
    let heading = format!("### {heading}");
    ensure!(
        limits.lines().any(|line| line == heading),
        "docs/limits.md has no `{heading}`"
    );
    Ok(())
}

/// Where a party serves.
pub(crate) fn at(party: &Party, v6: bool) -> SocketAddr {
    if v6 { party.v6(80) } else { party.v4(80) }
}

#[test]
fn every_way_round_is_refused_leads_nowhere_or_is_a_known_limit() -> Result<()> {
    let mut stage = Stage::set()?;
    let mut outcomes: BTreeMap<Outcome, Vec<String>> = BTreeMap::new();
    let mut wrong = Vec::new();
    for way in table::ways() {
        for v6 in way.families {
            let name = format!("{}, {}", way.what, if *v6 { "IPv6" } else { "IPv4" });
            match stage.try_way(&way, *v6) {
                Ok(outcome) => {
                    eprintln!("{outcome:?}: {name}: {}", way.why);
                    outcomes.entry(outcome).or_default().push(name);
                }
                Err(error) => wrong.push(format!("{name}: {error:#}, expected {:?}", way.expected)),
            }
        }
    }
    // Not by `println`, which tests that pass keep to themselves.
    if let Some(absent) = outcomes.get(&Outcome::NotHere) {
        writeln!(
            std::io::stdout(),
            "not on this kernel: ways round that were not tried: {}",
            absent.join("; ")
        )?;
    }
    assert!(
        wrong.is_empty(),
        "{} ways came out otherwise:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    assert!(outcomes.contains_key(&Outcome::Refused), "{outcomes:?}");
    Ok(())
}
