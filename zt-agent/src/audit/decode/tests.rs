// SPDX-License-Identifier: Apache-2.0
//! The decoder against well-formed, damaged and arbitrary bytes.

use proptest::prelude::*;

use super::*;

/// The bytes that the kernel side would write for `event`.
fn encode(event: &Decision, hook: u8, reason: u8, flags: u8) -> Vec<u8> {
    let mut bytes = header(144, KIND_DECISION);
    for word in [
        event.time,
        event.source,
        event.destination,
        event.rule,
        event.revision,
        event.workload,
        event.cookie,
        event.netns,
    ] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes.extend(event.source_address.0);
    bytes.extend(event.destination_address.0);
    for port in [event.source_port, event.destination_port, event.target_port] {
        bytes.extend(port.to_ne_bytes());
    }
    bytes.extend([event.protocol, hook]);
    bytes.extend(event.pid.to_ne_bytes());
    bytes.extend(event.latency.to_ne_bytes());
    bytes.extend([reason, flags]);
    bytes.extend([event.proof as u8, u8::from(event.omitted)]);
    bytes.extend([0; 4]);
    bytes.extend(event.comm);
    bytes
}

fn header(size: u16, kind: u16) -> Vec<u8> {
    [ABI_VERSION, size, kind, 0]
        .into_iter()
        .flat_map(u16::to_ne_bytes)
        .collect()
}

fn flags_of(event: &Decision) -> u8 {
    [
        (event.allowed, ALLOWED),
        (event.enforced, ENFORCED),
        (event.inbound, INBOUND),
        (event.refused_socket, REFUSED_SOCKET),
        (event.ipv6, IPV6),
    ]
    .into_iter()
    .filter_map(|(on, bit)| on.then_some(bit))
    .sum()
}

prop_compose! {
    fn any_decision()(
        words in any::<[u64; 8]>(),
        addresses in any::<([u8; 16], [u8; 16])>(),
        ports in any::<[u16; 3]>(),
        protocol in any::<u8>(),
        hook in 1_u8..=7,
        numbers in any::<(u32, u32)>(),
        reason in 0_u8..=15,
        proof in 0_u8..=7,
        flags in 0_u8..64,
        comm in any::<[u8; 16]>(),
    ) -> Decision {
        let [time, source, destination, rule, revision, workload, cookie, netns] = words;
        let [source_port, destination_port, target_port] = ports;
        Decision {
            time, source, destination, rule, revision, workload, cookie, netns,
            source_address: Address(addresses.0),
            destination_address: Address(addresses.1),
            source_port, destination_port, target_port, protocol,
            hook: Hook::from_number(hook).expect("in range"),
            pid: numbers.0,
            latency: numbers.1,
            reason: Reason::from_number(reason).expect("in range"),
            allowed: flags & ALLOWED != 0,
            enforced: flags & ENFORCED != 0,
            inbound: flags & INBOUND != 0,
            refused_socket: flags & REFUSED_SOCKET != 0,
            ipv6: flags & IPV6 != 0,
            proof: Proof::from_number(proof).expect("in range"),
            omitted: flags & 32 != 0,
            comm,
        }
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read(event in any_decision()) {
        let bytes = encode(&event, event.hook as u8, event.reason as u8, flags_of(&event));
        prop_assert_eq!(decode(&bytes), Ok(Event::Decision(event)));
    }

    #[test]
    fn a_part_of_an_event_is_never_an_event(event in any_decision(), length in 0_usize..144) {
        let bytes = encode(&event, event.hook as u8, event.reason as u8, flags_of(&event));
        let is_truncated = matches!(decode(&bytes[..length]), Err(DecodeError::Truncated { .. }));
        prop_assert!(is_truncated);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = decode(&bytes);
    }

    #[test]
    fn arbitrary_bytes_behind_a_good_header_never_panic(body in proptest::collection::vec(any::<u8>(), 136)) {
        let mut bytes = header(144, KIND_DECISION);
        bytes.extend(body);
        let _ = decode(&bytes);
    }
}

fn sample() -> Vec<u8> {
    let mut bytes = header(144, KIND_DECISION);
    bytes.resize(144, 0);
    bytes[HOOK] = Hook::Connect as u8;
    bytes
}

const HOOK: usize = 8 + 64 + 32 + 7;
const REASON: usize = HOOK + 9;

#[test]
fn the_offsets_are_those_of_the_layout() {
    assert_eq!(HOOK, std::mem::offset_of!(DecisionEvent, hook));
    assert_eq!(REASON, std::mem::offset_of!(DecisionEvent, reason));
    assert!(decode(&sample()).is_ok());
}

#[test]
fn damage_is_named() {
    let with = |at: usize, value: u8| {
        let mut bytes = sample();
        bytes[at] = value;
        decode(&bytes)
    };
    assert_eq!(with(HOOK, 0), Err(DecodeError::Hook { found: 0 }));
    assert_eq!(with(HOOK, 8), Err(DecodeError::Hook { found: 8 }));
    assert_eq!(with(REASON, 200), Err(DecodeError::Reason { found: 200 }));
    assert_eq!(with(REASON + 1, 64), Err(DecodeError::Flags { found: 64 }));
    assert_eq!(with(REASON + 2, 200), Err(DecodeError::Proof { found: 200 }));

    let mut other_version = sample();
    let found = ABI_VERSION + 1;
    other_version[..2].copy_from_slice(&found.to_ne_bytes());
    assert_eq!(decode(&other_version), Err(DecodeError::Version { found }));

    let mut other_kind = sample();
    other_kind[4..6].copy_from_slice(&9_u16.to_ne_bytes());
    assert_eq!(decode(&other_kind), Err(DecodeError::Kind { found: 9 }));

    let mut announced = sample();
    announced[2..4].copy_from_slice(&143_u16.to_ne_bytes());
    assert_eq!(
        decode(&announced),
        Err(DecodeError::Size {
            kind: KIND_DECISION,
            expected: 144,
            found: 143
        })
    );

    let mut trailing = sample();
    trailing.push(0);
    assert_eq!(
        decode(&trailing),
        Err(DecodeError::Size {
            kind: KIND_DECISION,
            expected: 144,
            found: 145
        })
    );

    assert_eq!(
        decode(&[]),
        Err(DecodeError::Truncated {
            expected: 2,
            found: 0
        })
    );
    assert_eq!(
        decode(&sample()[..100]),
        Err(DecodeError::Truncated {
            expected: 144,
            found: 100
        })
    );
}

#[test]
fn notices_are_read() {
    let encode = |code: u32| {
        let mut bytes = header(32, KIND_NOTICE);
        bytes.extend(code.to_ne_bytes());
        bytes.extend(77_u32.to_ne_bytes());
        bytes.extend(5_u64.to_ne_bytes());
        bytes.extend(6_u64.to_ne_bytes());
        bytes
    };
    let expected = Notice {
        code: NoticeCode::UdpBound,
        pid: 77,
        workload: 5,
        netns: 6,
    };
    assert_eq!(decode(&encode(NOTICE_UDP_BOUND)), Ok(Event::Notice(expected)));
    assert_eq!(decode(&encode(0)), Err(DecodeError::Notice { found: 0 }));
}
