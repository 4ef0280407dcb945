// SPDX-License-Identifier: Apache-2.0
//! A datagram as a frame of one's own making, below every socket that is decided about: by a packet socket, or by a ring of `AF_XDP`.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd as _;

use anyhow::{Context as _, Result, ensure};
use zt_tests::attack::Attempt;

use crate::system::{self, Shared};
use crate::{At as _, opened, told};

const UDP: u8 = 17;
const UDP_HEADER: u16 = 8;
const SAID: &[u8] = b"word";

/// The interface of every namespace of the tests.
const INTERFACE: &str = "eth0";

pub(crate) fn attempt(from: SocketAddr, to: SocketAddr, hardware: &str, xdp: bool) -> Result<Attempt> {
    let bytes = hardware.split(':').map(|byte| u8::from_str_radix(byte, 16));
    let bytes = bytes.collect::<Result<Vec<u8>, _>>()?;
    let hardware: [u8; 6] = bytes.try_into().ok().context("six bytes of hardware address")?;
    ensure!(
        from.is_ipv4() == to.is_ipv4(),
        "{from} and {to} are of two families"
    );
    let datagram = datagram(from, to);
    Ok(told(if xdp {
        by_ring(&datagram, to, hardware)
    } else {
        by_packet(&datagram, to, hardware)
    }))
}

/// The type of a frame that carries a datagram to this address.
fn kind(to: SocketAddr) -> u16 {
    if to.is_ipv4() {
        libc::ETH_P_IP as u16
    } else {
        libc::ETH_P_IPV6 as u16
    }
}

fn interface() -> io::Result<u32> {
    Ok(nix::net::if_::if_nametoindex(INTERFACE)?)
}

fn by_packet(
    datagram: &[u8],
    to: SocketAddr,
    hardware: [u8; 6],
) -> Result<String, (&'static str, io::Error)> {
    let socket = opened(libc::AF_PACKET, libc::SOCK_DGRAM, 0)?;
    let mut place = [0; 8];
    place[..6].copy_from_slice(&hardware);
    let link = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: kind(to).to_be(),
        sll_ifindex: interface().at("interface")? as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: place,
    };
    system::send_to(socket.as_fd(), datagram, Some(&link)).at("send")?;
    Ok(String::new())
}

const SOL_XDP: i32 = 283;
const XDP_MMAP_OFFSETS: i32 = 1;
const XDP_TX_RING: i32 = 3;
const XDP_UMEM_REG: i32 = 4;
const XDP_UMEM_FILL_RING: i32 = 5;
const XDP_UMEM_COMPLETION_RING: i32 = 6;
const XDP_COPY: u16 = 1 << 1;
const TX_RING_OFFSET: i64 = 0x8000_0000;
const FRAMES: u32 = 4;
const FRAME: u32 = 2048;

/// `struct sockaddr_xdp`.
#[repr(C)]
struct XdpAddress {
    family: u16,
    flags: u16,
    interface: u32,
    queue: u32,
    shared: u32,
}

/// `struct xdp_mmap_offsets`: producer, consumer, entries and flags of four rings.
type RingPlaces = [[u64; 4]; 4];

fn by_ring(datagram: &[u8], to: SocketAddr, hardware: [u8; 6]) -> Result<String, (&'static str, io::Error)> {
    let socket = opened(libc::AF_XDP, libc::SOCK_RAW, 0)?;
    let memory = Shared::map(None, (FRAMES * FRAME) as usize, 0).at("memory")?;
    // `struct xdp_umem_reg`: where, how long, size of a frame, no room before it, no flags.
    let mut registration = Vec::new();
    registration.extend(memory.address(0).to_ne_bytes());
    registration.extend(u64::from(FRAMES * FRAME).to_ne_bytes());
    for number in [FRAME, 0, 0, 0] {
        registration.extend(number.to_ne_bytes());
    }
    system::set_option(socket.as_fd(), SOL_XDP, XDP_UMEM_REG, &registration).at("memory")?;
    for ring in [XDP_UMEM_FILL_RING, XDP_UMEM_COMPLETION_RING, XDP_TX_RING] {
        system::set_option(socket.as_fd(), SOL_XDP, ring, &FRAMES.to_ne_bytes()).at("ring")?;
    }
    let places: RingPlaces = system::option(socket.as_fd(), SOL_XDP, XDP_MMAP_OFFSETS).at("ring")?;
    let [producer, _, entries, _] = places[1].map(|place| place as usize);
    let length = entries + FRAMES as usize * 16;
    let ring = Shared::map(Some(socket.as_fd()), length, TX_RING_OFFSET).at("ring")?;
    let address = XdpAddress {
        family: libc::AF_XDP as u16,
        flags: XDP_COPY,
        interface: interface().at("interface")?,
        queue: 0,
        shared: 0,
    };
    system::bind(socket.as_fd(), &address).at("bind")?;
    // From an address that nobody has: who answers is of no interest.
    let frame = [
        &hardware[..],
        &[2, 0, 0, 0, 0, 1],
        &kind(to).to_be_bytes(),
        datagram,
    ]
    .concat();
    memory.put(0, &frame);
    // `struct xdp_desc`: where in the memory, how long, no options.
    ring.write(entries, 0_u64);
    ring.write(entries + 8, frame.len() as u32);
    ring.write(entries + 12, 0_u32);
    ring.write(producer, 1_u32);
    system::send_to::<u8>(socket.as_fd(), &[], None).at("send")?;
    Ok(String::new())
}

/// The sum over 16-bit words that headers of the Internet bear.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2);
    let words = words.map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

/// An IP packet with a datagram in it.
fn datagram(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let length = UDP_HEADER + SAID.len() as u16;
    let mut udp = Vec::new();
    for word in [from.port(), to.port(), length, 0] {
        udp.extend(word.to_be_bytes());
    }
    udp.extend(SAID);
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let ends = [octets(from.ip()), octets(to.ip())].concat();
    let pseudo = [&ends[..], &u32::from(length).to_be_bytes(), &[0, 0, 0, UDP], &udp].concat();
    let sum = checksum(&pseudo).to_be_bytes();
    udp[6..8].copy_from_slice(&sum);
    let mut packet = Vec::new();
    if to.is_ipv4() {
        packet.extend([0x45, 0]);
        packet.extend((20 + length).to_be_bytes());
        packet.extend([0, 0, 0x40, 0, 64, UDP, 0, 0]);
        packet.extend(&ends);
        let sum = checksum(&packet).to_be_bytes();
        packet[10..12].copy_from_slice(&sum);
    } else {
        packet.extend([0x60, 0, 0, 0]);
        packet.extend(length.to_be_bytes());
        packet.extend([UDP, 64]);
        packet.extend(&ends);
    }
    packet.extend(udp);
    packet
}
