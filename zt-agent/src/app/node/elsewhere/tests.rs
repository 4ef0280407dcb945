// SPDX-License-Identifier: Apache-2.0
//! Who is where on other nodes, as Kubernetes and their agents say.

use std::sync::Arc;

use super::*;

#[test]
fn an_identity_is_there_as_long_as_one_address_is_its() {
    let spiffe = SpiffeId::parse("spiffe://hanzo.ai/c/n/a").expect("literal");
    let pod = Whose::Pod {
        spiffe: spiffe.clone(),
        pod: "n/a".into(),
        uid: "u".into(),
    };
    let [one, two] = ["10.0.0.1", "10.0.0.2"].map(|text| text.parse::<IpAddr>().expect("literal"));
    let mut elsewhere = Elsewhere::default();
    elsewhere.set(one, Some(pod.clone()));
    elsewhere.set(one, Some(pod.clone()));
    assert_eq!(elsewhere.came(), std::slice::from_ref(&spiffe), "once");
    elsewhere.set(two, Some(pod.clone()));
    assert!(elsewhere.came().is_empty(), "one more address of the same");
    elsewhere.set(one, Some(Whose::Node));
    assert_eq!(elsewhere.identities().count(), 1);
    assert_eq!(
        elsewhere.peer(one, &Numbers::default()).map(|peer| peer.identity),
        Some(identity::REMOTE_NODE)
    );
    elsewhere.set(two, None);
    assert_eq!(elsewhere.identities().count(), 0);
    elsewhere.live(7, vec![spiffe.clone()]);
    assert_eq!(elsewhere.came(), [spiffe], "who has gone comes anew");
    elsewhere.live(7, Vec::new());
    elsewhere.set(two, None);
    assert_eq!(elsewhere.peers(&Numbers::default()).count(), 1);
}

#[test]
fn what_kubernetes_and_the_agent_there_say_must_be_the_same() {
    let [one, other] =
        ["a", "b"].map(|name| SpiffeId::parse(&format!("spiffe://hanzo.ai/c/n/{name}")).expect("literal"));
    let table = {
        let ids = [&one, &other].into_iter().cloned().collect();
        let (policies, settings) = Default::default();
        Arc::new(crate::policy::compile(&policies, &ids, &settings, 1).expect("it fits"))
    };
    let numbers = Numbers::of(Some(&table));
    let address: IpAddr = "10.0.0.1".parse().expect("literal");
    let located = |who: Who| Located {
        proves: matches!(who, Who::Workload(_)),
        who,
        node: 7,
    };
    let pod = |spiffe: &SpiffeId| Whose::Pod {
        spiffe: spiffe.clone(),
        pod: "n/a".into(),
        uid: "u".into(),
    };
    let mut elsewhere = Elsewhere::default();
    let peer = |elsewhere: &Elsewhere| {
        let peer = elsewhere.peer(address, &numbers).expect("told of");
        (peer.identity, peer.flags, peer.node)
    };
    elsewhere.locate(7, address, Some(located(Who::Workload(one.clone()))));
    assert_eq!(peer(&elsewhere), (one.number(), PEER_PROVES, 7));
    elsewhere.set(address, Some(pod(&one)));
    assert_eq!(peer(&elsewhere), (one.number(), PEER_PROVES, 7));
    elsewhere.set(address, Some(pod(&other)));
    assert_eq!(peer(&elsewhere), (identity::UNKNOWN, PEER_PROVES, 7));
    elsewhere.set(address, Some(Whose::Node));
    assert_eq!(peer(&elsewhere), (one.number(), PEER_PROVES, 7));
    // One that is not heard any more takes nothing from who is.
    elsewhere.locate(7, address, Some(located(Who::Nobody)));
    assert_eq!(peer(&elsewhere), (identity::REMOTE_NODE, 0, 7));
    elsewhere.set(address, Some(pod(&other)));
    assert_eq!(peer(&elsewhere), (other.number(), 0, 7));
    elsewhere.set(address, None);
    assert_eq!(peer(&elsewhere), (identity::UNKNOWN, 0, 7));
    elsewhere.locate(7, address, None);
    // What a node that proves and is heard says nothing of is nobody, until it says so or is not heard any more.
    elsewhere.set(address, Some(pod(&one)));
    assert_eq!(peer(&elsewhere), (one.number(), 0, 0));
    let network = "10.0.0.0/24".parse().expect("literal");
    assert_eq!(elsewhere.speaks(7, vec![network]), [address]);
    assert_eq!(peer(&elsewhere), (identity::UNKNOWN, PEER_PROVES, 7));
    assert_eq!(elsewhere.whose(address), Some(&Whose::Nobody));
    elsewhere.locate(7, address, Some(located(Who::Workload(one.clone()))));
    assert_eq!(peer(&elsewhere), (one.number(), PEER_PROVES, 7));
    elsewhere.locate(7, address, None);
    assert_eq!(elsewhere.speaks(7, Vec::new()), [address]);
    assert_eq!(peer(&elsewhere), (one.number(), 0, 0));
    elsewhere.live(7, vec![one.clone(), other.clone()]);
    assert_eq!(elsewhere.identities().count(), 2);
    elsewhere.live(7, vec![one]);
    assert_eq!(elsewhere.identities().count(), 1);
    assert_eq!(elsewhere.peers(&numbers).count(), 1);
}

#[test]
fn who_lives_there_and_shows_nothing_has_the_name_of_kubernetes_if_it_is_the_same() {
    let [one, other] =
        ["a", "b"].map(|name| SpiffeId::parse(&format!("spiffe://hanzo.ai/c/n/{name}")).expect("literal"));
    let ids = [&one, &other].into_iter().cloned().collect();
    let (policies, settings) = Default::default();
    let table = Arc::new(crate::policy::compile(&policies, &ids, &settings, 1).expect("it fits"));
    let numbers = Numbers::of(Some(&table));
    let address: IpAddr = "10.0.0.1".parse().expect("literal");
    let silent = || Located {
        proves: false,
        who: Who::Silent(one.clone()),
        node: 7,
    };
    let pod = |spiffe: &SpiffeId| Whose::Pod {
        spiffe: spiffe.clone(),
        pod: "n/a".into(),
        uid: "u".into(),
    };
    let mut elsewhere = Elsewhere::default();
    let peer = |elsewhere: &Elsewhere| {
        let peer = elsewhere.peer(address, &numbers).expect("told of");
        (peer.identity, peer.flags, peer.node)
    };
    elsewhere.speaks(7, vec!["10.0.0.0/24".parse().expect("literal")]);
    elsewhere.locate(7, address, Some(silent()));
    assert_eq!(
        peer(&elsewhere),
        (identity::UNKNOWN, PEER_PROVES, 7),
        "nobody else says so"
    );
    elsewhere.set(address, Some(pod(&one)));
    assert_eq!(
        peer(&elsewhere),
        (one.number(), 0, 0),
        "without proof, as without agents"
    );
    elsewhere.set(address, Some(pod(&other)));
    assert_eq!(
        peer(&elsewhere),
        (identity::UNKNOWN, PEER_PROVES, 7),
        "another name is no name"
    );
    elsewhere.set(address, Some(Whose::Node));
    assert_eq!(peer(&elsewhere), (identity::REMOTE_NODE, 0, 0));
    // Nobody is there by the agent's word.
    elsewhere.set(address, Some(pod(&one)));
    elsewhere.locate(7, address, None);
    assert_eq!(peer(&elsewhere), (identity::UNKNOWN, PEER_PROVES, 7));
}

#[test]
fn an_address_of_which_two_nodes_speak_is_nobodys_until_one_is_left() {
    let address: IpAddr = "10.0.0.1".parse().expect("literal");
    let located = |node| {
        let who = Who::Node;
        Some(Located {
            who,
            node,
            proves: true,
        })
    };
    let mut elsewhere = Elsewhere::default();
    let who = |elsewhere: &Elsewhere| elsewhere.who(address).cloned();
    elsewhere.locate(1, address, located(1));
    elsewhere.locate(2, address, located(2));
    assert_eq!(who(&elsewhere), Some(Who::Disputed));
    let peer = elsewhere.peer(address, &Numbers::default()).expect("told of");
    assert_eq!((peer.identity, peer.flags, peer.node), (identity::UNKNOWN, 0, 0));
    assert_eq!(elsewhere.located_on(2), [address]);
    // In whichever order they say that they have nothing to do with it.
    elsewhere.locate(1, address, None);
    assert_eq!(who(&elsewhere), Some(Who::Node));
    assert!(elsewhere.located_on(1).is_empty());
    elsewhere.locate(1, address, None);
    assert_eq!(who(&elsewhere), Some(Who::Node), "that is not its to say");
    elsewhere.locate(2, address, None);
    assert_eq!(who(&elsewhere), None);
}
