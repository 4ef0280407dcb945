// SPDX-License-Identifier: Apache-2.0
//! Whoever says what is not so, with and without a certificate of a node.

use bytes::BytesMut;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, TlsStream};

use super::*;
use crate::peers::keys::Role;
use crate::peers::proof::{self, Binding};
use crate::peers::protocol::{self, Message, Proof, VERSION};

/// Somebody who dials and says whatever is asked.
pub(super) struct Liar {
    stream: TlsStream<TcpStream>,
    binding: Binding,
}

impl Liar {
    pub(super) async fn dial(agent: &Agent, shows: &Mutual) -> std::io::Result<Self> {
        let stream = TcpStream::connect(&agent.address).await?;
        let name = ServerName::try_from("anything").expect("a name");
        let stream = TlsConnector::from(Arc::clone(&shows.client))
            .connect(name, stream)
            .await?;
        let stream = TlsStream::from(stream);
        let binding = Binding::of(&stream).expect("TLS 1.3");
        Ok(Self { stream, binding })
    }

    /// How the secrets of the connection were agreed.
    pub(super) fn key_exchange(&self) -> Option<rustls::NamedGroup> {
        let (_, connection) = self.stream.get_ref();
        let group = connection.negotiated_key_exchange_group();
        group.map(rustls::crypto::SupportedKxGroup::name)
    }

    /// As node `a`, which it is by its certificate.
    pub(super) async fn as_a(world: &World, agent: &Agent) -> Self {
        let shows = world.authority.mutual(&world.certificate("a"));
        let mut liar = Self::dial(agent, &shows).await.expect("taken");
        liar.say(&hello("a")).await;
        liar
    }

    pub(super) async fn say(&mut self, message: &Message) {
        let mut out = BytesMut::new();
        protocol::write(message, &mut out).expect("short");
        self.bytes(&out).await;
    }

    /// What was hung up upon is not told of by who says it.
    async fn bytes(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes).await;
        let _ = self.stream.flush().await;
    }

    /// Reads until the other end hangs up.
    pub(super) async fn until_hung_up(mut self) {
        let mut buffer = vec![0; 4096];
        let ends = async { while matches!(self.stream.read(&mut buffer).await, Ok(1..)) {} };
        timeout(DEADLINE, ends).await.expect("it hangs up");
    }
}

pub(super) fn hello(node: &str) -> Message {
    Message::Hello {
        version: VERSION,
        node: node.to_owned(),
        proves: true,
        epoch: 0,
        uses: 0,
    }
}

fn at(address: &str, name: &str) -> Message {
    Message::At {
        residents: vec![Resident {
            address: ip(address),
            spiffe: id(name),
            incarnation: 1,
            silent: false,
        }],
    }
}

fn holds(name: &str, proof: Option<Proof>) -> Message {
    Message::Holds {
        spiffe: id(name),
        proof,
    }
}

#[tokio::test]
async fn a_node_that_says_more_than_it_may_is_believed_about_the_rest() {
    let world = World::new(&["a", "b", "c"], "spiffe://hanzo.ai/w/mine");
    let b = world.start("b", HashMap::new());
    let mut liar = Liar::as_a(&world, &b).await;
    for message in [
        holds("mine", None),
        holds("theirs", None),
        at("10.1.0.1", "mine"),
        at("10.1.0.2", "theirs"),
        // Node c's, b's own, and nobody's.
        at("10.3.0.1", "mine"),
        at("10.2.0.1", "mine"),
        at("192.0.2.2", "mine"),
        at("8.8.8.8", "mine"),
        at("127.0.0.1", "mine"),
        Message::Whole {},
    ] {
        liar.say(&message).await;
    }
    let known = b.until_who("10.1.0.1", Some("w/mine")).await;
    assert_eq!(known.who("10.1.0.2").as_deref(), Some("silent w/theirs"));
    for address in ["10.3.0.1", "10.2.0.1", "192.0.2.2", "8.8.8.8", "127.0.0.1"] {
        assert_eq!(known.who(address), None, "{address}");
    }
    let node = known.at[&ip("10.1.0.1")].node;
    assert_eq!(known.lives[&node], ["w/mine"]);
    let status = b.health.status();
    assert_eq!((status.refused["address"], status.refused["identity"]), (5, 0));
    let counts = &status.nodes["a"].counts;
    assert_eq!((counts.addresses, counts.silent), (1, 1));
    assert_eq!(counts.some_silent, [(ip("10.1.0.2"), id("theirs"))]);
    // Later on as well.
    liar.say(&at("10.3.0.1", "mine")).await;
    let status = b
        .until_status("it is refused", |status| status.refused["address"] == 6)
        .await;
    assert_eq!(status.nodes["a"].state, State::Connected);
    assert_eq!(b.kernel.borrow().who("10.3.0.1"), None);
}

#[tokio::test]
async fn an_identity_is_shown_by_its_own_key_on_this_connection_and_in_no_other_way() {
    let world = World::new(&["a", "b"], "");
    let b = world.start("b", HashMap::new());
    let [chat, other] = ["chat", "other"].map(|name| world.authority.issue(&[id(name).as_str()]));
    let stranger = Authority::new().issue(&[id("chat").as_str()]);
    let over = world.authority.issue_expired(&[id("chat").as_str()]);
    let mut first = Liar::as_a(&world, &b).await;
    let good = |liar: &Liar, svid: &rustls::sign::CertifiedKey| {
        proof::show(&liar.binding, Role::Dials, svid).expect("it signs")
    };
    let of_another_connection = good(&first, &chat.certified());
    first.say(&Message::Whole {}).await;
    b.until_status("a is connected", |status| {
        status.nodes["a"].state == State::Connected
    })
    .await;

    let mut liar = Liar::as_a(&world, &b).await;
    let mut too_long = good(&liar, &chat.certified());
    too_long.chain.extend(vec![too_long.chain[0].clone(); 20]);
    let mut scheme = good(&liar, &chat.certified());
    scheme.scheme = 0x0401;
    let wrong = [
        of_another_connection,
        // By the end that it is shown to: nothing is sent back.
        proof::show(&liar.binding, Role::Listens, &chat.certified()).expect("it signs"),
        // The certificate without its key, and that of another.
        good(&liar, &chat.with_the_key_of(&other)),
        good(&liar, &other.certified()),
        // Of an authority that nobody believes, and of a time that is over.
        good(&liar, &stranger.certified()),
        good(&liar, &over.certified()),
        // The node's own.
        good(&liar, &world.certificate("a").certified()),
        too_long,
        scheme,
        Proof {
            chain: Vec::new(),
            ..good(&liar, &chat.certified())
        },
    ];
    let count = wrong.len() as u64;
    for proof in wrong {
        liar.say(&holds("chat", Some(proof))).await;
    }
    liar.say(&at("10.1.0.1", "chat")).await;
    liar.say(&Message::Whole {}).await;
    let refused = |status: &Status| status.refused["identity"] == count;
    b.until_status("all are refused", refused).await;
    b.until_who("10.1.0.1", Some("silent w/chat")).await;

    let proof = good(&liar, &chat.certified());
    liar.say(&holds("chat", Some(proof))).await;
    liar.say(&at("10.1.0.1", "chat")).await;
    b.until_who("10.1.0.1", Some("w/chat")).await;
}

#[tokio::test]
async fn whoever_is_no_node_or_another_one_is_not_listened_to() {
    let world = World::new(&["a", "b", "c"], "*");
    let b = world.start("b", HashMap::new());
    let shows = |uri: &str| world.authority.mutual(&world.authority.issue(&[uri]));
    for (uri, cause) in [
        ("spiffe://hanzo.ai/zt-agent/nodes/x", "not_a_node"),
        ("spiffe://hanzo.ai/zt-agent/nodes", "not_a_node"),
        ("spiffe://other.org/zt-agent/nodes/a", "not_a_node"),
        // It is a node, and b is the one that is dialled by a alone.
        ("spiffe://hanzo.ai/zt-agent/nodes/c", "direction"),
        ("spiffe://hanzo.ai/zt-agent/nodes/b", "not_a_node"),
    ] {
        let before = b.health.status().refused[cause];
        let liar = Liar::dial(&b, &shows(uri)).await.expect("a certificate of ours");
        liar.until_hung_up().await;
        b.until_status(uri, |status| status.refused[cause] == before + 1)
            .await;
    }
    // Of another authority.
    let other = Authority::new();
    let stranger = other.mutual(&other.issue(&[&World::agent_id("a")]));
    if let Ok(liar) = Liar::dial(&b, &stranger).await {
        liar.until_hung_up().await;
    }
    b.until_status("a stranger", |status| status.refused["tls"] >= 1)
        .await;
    assert!(b.kernel.borrow().lives.is_empty());
}

#[tokio::test]
async fn nonsense_ends_the_connection_and_nothing_else() {
    let world = World::new(&["a", "b"], "*");
    let b = world.start("b", HashMap::new());
    let shows = world.authority.mutual(&world.certificate("a"));
    let written = |messages: &[Message]| {
        let mut out = BytesMut::new();
        for message in messages {
            protocol::write(message, &mut out).expect("short");
        }
        out
    };
    let cases: [(&str, BytesMut); 11] = [
        ("no length", BytesMut::from(&[0xff; 64][..])),
        ("no message", BytesMut::from(&b"\0\0\0\x04{{{{"[..])),
        ("empty", BytesMut::from(&[0; 8][..])),
        ("no hello", written(&[Message::Beat {}])),
        ("another name", written(&[hello("b")])),
        ("two hellos", written(&[hello("a"), hello("a")])),
        (
            "keys that are not",
            written(&[hello("a"), Message::Ready { epoch: 7 }]),
        ),
        (
            "keys that nobody has",
            written(&[hello("a"), Message::Uses { epoch: 9 }]),
        ),
        (
            "another version",
            written(&[Message::Hello {
                version: 9,
                node: "a".to_owned(),
                proves: true,
                epoch: 0,
                uses: 0,
            }]),
        ),
        (
            "an epoch from the end of time",
            written(&[Message::Hello {
                version: VERSION,
                node: "a".to_owned(),
                proves: true,
                epoch: u64::MAX,
                uses: 0,
            }]),
        ),
        (
            "millions of updates",
            written(&vec![
                Message::Gone {
                    addresses: vec![ip("10.1.0.1"); 32]
                };
                2000
            ]),
        ),
    ];
    let mut refused = 0;
    for (what, bytes) in cases {
        let flood = what == "millions of updates";
        // After a refusal who comes back too soon is hung up upon.
        loop {
            let mut liar = Liar::dial(&b, &shows).await.expect("a certificate of ours");
            if flood {
                liar.say(&hello("a")).await;
            }
            liar.bytes(&bytes).await;
            liar.until_hung_up().await;
            let now: u64 = b.health.status().refused.values().sum();
            if now > refused {
                refused = now;
                break;
            }
        }
        if flood {
            assert_eq!(b.health.status().refused["flood"], 1);
        }
    }
    assert!(b.kernel.borrow().lives.is_empty());
    // Whoever is honest then is listened to.
    let a = world.start("a", HashMap::new());
    a.says(&[("10.1.0.1", "iam")]);
    b.until_who("10.1.0.1", Some("w/iam")).await;
}

#[tokio::test]
async fn an_agent_that_dials_believes_nobody_but_the_agent_of_that_node() {
    let world = World::new(&["a", "b"], "*");
    // Somebody else's certificate is at b's address.
    let b = world.start("b", HashMap::new());
    b.certificates.send_replace(Arc::new(Some(
        world
            .authority
            .mutual(&world.authority.issue(&["spiffe://hanzo.ai/w/chat"])),
    )));
    b.says(&[("10.2.0.1", "chat")]);
    let a = world.start("a", HashMap::new());
    let status = a
        .until_status("it is refused", |status| status.refused["not_a_node"] >= 2)
        .await;
    assert!(
        status.nodes["b"]
            .error
            .as_deref()
            .is_some_and(|error| error.contains("w/chat"))
    );
    assert_eq!(a.kernel.borrow().who("10.2.0.1"), None);
    b.certificates
        .send_replace(Arc::new(Some(world.authority.mutual(&world.certificate("b")))));
    a.until_who("10.2.0.1", Some("w/chat")).await;
}
