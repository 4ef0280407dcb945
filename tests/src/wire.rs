// SPDX-License-Identifier: Apache-2.0
//! Somebody who speaks TCP without a kernel: segments as they are wanted, from any address, and what comes back.
//!
//! His addresses are not those of his namespace, whose kernel would answer with resets; whom he talks to is told by
//! hand at which interface they are.
#![expect(
    unsafe_code,
    reason = "packet sockets; every pointer handed over lives across the call"
)]

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::network::Host;

/// Flags of a segment.
pub const SYN: u8 = 0x02;
/// Flags of a segment.
pub const RST: u8 = 0x04;
/// Flags of a segment.
pub const ACK: u8 = 0x10;

const IPV4: u16 = 0x0800;
/// A socket for one protocol alone would not see what its own namespace sends.
const ALL: u16 = libc::ETH_P_ALL as u16;
const IP_HEADER: usize = 20;
const TCP_HEADER: usize = 20;

/// A TCP segment between two IPv4 addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where it comes from.
    pub from: SocketAddrV4,
    /// Where it goes.
    pub to: SocketAddrV4,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number.
    pub acknowledged: u32,
    /// [`SYN`], [`ACK`] …
    pub flags: u8,
    /// Options, as they are on the wire; filled up with zeros to whole words.
    pub options: Vec<u8>,
    /// Data.
    pub data: Vec<u8>,
}

impl Segment {
    /// The first one of a connection.
    pub fn syn(from: SocketAddrV4, to: SocketAddrV4, sequence: u32, options: &[u8]) -> Self {
        Self {
            from,
            to,
            sequence,
            acknowledged: 0,
            flags: SYN,
            options: options.to_vec(),
            data: Vec::new(),
        }
    }

    /// What completes a handshake that `self` began and `answer` answered.
    #[must_use]
    pub fn completes(&self, answer: &Self) -> Self {
        Self {
            sequence: self.sequence.wrapping_add(1),
            acknowledged: answer.sequence.wrapping_add(1),
            flags: ACK,
            options: Vec::new(),
            ..self.clone()
        }
    }

    /// The first option of a kind, with its kind and length.
    pub fn option(&self, kind: u8) -> Option<&[u8]> {
        let mut rest = self.options.as_slice();
        loop {
            match rest {
                [] | [0, ..] => return None,
                [1, tail @ ..] => rest = tail,
                [found, length, ..] => {
                    let (option, tail) = rest.split_at_checked(usize::from(*length).max(2))?;
                    if *found == kind {
                        return Some(option);
                    }
                    rest = tail;
                }
                [_] => return None,
            }
        }
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut options = self.options.clone();
        options.resize(options.len().next_multiple_of(4), 0);
        let length = TCP_HEADER + options.len() + self.data.len();
        let mut tcp = Vec::with_capacity(length);
        tcp.extend(self.from.port().to_be_bytes());
        tcp.extend(self.to.port().to_be_bytes());
        tcp.extend(self.sequence.to_be_bytes());
        tcp.extend(self.acknowledged.to_be_bytes());
        tcp.push((((TCP_HEADER + options.len()) / 4) as u8) << 4);
        tcp.push(self.flags);
        tcp.extend(0xffff_u16.to_be_bytes());
        tcp.extend([0; 4]);
        tcp.extend(options);
        tcp.extend(&self.data);
        let (from, to) = (self.from.ip().octets(), self.to.ip().octets());
        let pseudo = [&from[..], &to[..], &[0, 6], &(length as u16).to_be_bytes()].concat();
        let sum = checksum(&[pseudo.as_slice(), tcp.as_slice()].concat());
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());

        let mut ip = vec![0x45, 0];
        ip.extend(((IP_HEADER + length) as u16).to_be_bytes());
        ip.extend([0, 0, 0x40, 0, 64, 6, 0, 0]);
        ip.extend(from);
        ip.extend(to);
        let sum = checksum(&ip);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        ip.extend(tcp);
        ip
    }

    fn parse(packet: &[u8]) -> Option<Self> {
        let header = usize::from(packet.first()? & 0xf) * 4;
        let total = usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]));
        if packet[0] >> 4 != 4 || *packet.get(9)? != 6 {
            return None;
        }
        let address = |at: usize| {
            let bytes: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
            Some(Ipv4Addr::from(bytes))
        };
        let tcp = packet.get(header..total)?;
        let port = |at: usize| Some(u16::from_be_bytes(tcp.get(at..at + 2)?.try_into().ok()?));
        let number = |at: usize| Some(u32::from_be_bytes(tcp.get(at..at + 4)?.try_into().ok()?));
        let data = usize::from(*tcp.get(12)? >> 4) * 4;
        Some(Self {
            from: SocketAddrV4::new(address(12)?, port(0)?),
            to: SocketAddrV4::new(address(16)?, port(2)?),
            sequence: number(4)?,
            acknowledged: number(8)?,
            flags: *tcp.get(13)?,
            options: tcp.get(TCP_HEADER..data)?.to_vec(),
            data: tcp.get(data..)?.to_vec(),
        })
    }
}

fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The packets of an interface of a namespace, in both directions. What it sends itself it does not see.
#[derive(Debug)]
pub struct Wire {
    socket: OwnedFd,
    interface: i32,
}

impl Wire {
    /// Sees every packet that leaves or reaches an interface from now on.
    pub fn open(host: &Host, interface: &str) -> Result<Self> {
        let interface = std::ffi::CString::new(interface)?;
        let (socket, interface) = host.within(|| -> Result<(OwnedFd, i32)> {
            // SAFETY: no pointers; the descriptor is this function's alone.
            let socket = unsafe {
                let socket = libc::socket(
                    libc::AF_PACKET,
                    libc::SOCK_DGRAM | libc::SOCK_CLOEXEC,
                    i32::from(ALL.to_be()),
                );
                ensure!(socket >= 0, io::Error::last_os_error());
                OwnedFd::from_raw_fd(socket)
            };
            // SAFETY: a string with its end.
            let index = unsafe { libc::if_nametoindex(interface.as_ptr()) };
            ensure!(index != 0, io::Error::last_os_error());
            Ok((socket, index as i32))
        })?;
        let wire = Self { socket, interface };
        let address = wire.link(ALL, None);
        // SAFETY: the address has the length given.
        let bound = unsafe {
            libc::bind(
                wire.socket.as_raw_fd(),
                std::ptr::from_ref(&address).cast(),
                size_of_val(&address) as u32,
            )
        };
        ensure!(bound == 0, io::Error::last_os_error());
        Ok(wire)
    }

    fn link(&self, protocol: u16, hardware: Option<[u8; 6]>) -> libc::sockaddr_ll {
        // SAFETY: all zeros is a valid address of this type.
        let mut link: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        link.sll_family = libc::AF_PACKET as u16;
        link.sll_protocol = protocol.to_be();
        link.sll_ifindex = self.interface;
        if let Some(hardware) = hardware {
            link.sll_halen = 6;
            link.sll_addr[..6].copy_from_slice(&hardware);
        }
        link
    }

    /// Sends segments to the interface that has this hardware address, over and over and as fast as it can, until that is `over`.
    /// How many were `sent` can be seen meanwhile.
    pub fn flood(
        &self,
        segments: &[Segment],
        to: [u8; 6],
        sent: &AtomicU64,
        over: &AtomicBool,
    ) -> Result<()> {
        let packets: Vec<Vec<u8>> = segments.iter().map(Segment::to_bytes).collect();
        for packet in packets.iter().cycle() {
            if over.load(Ordering::Relaxed) {
                break;
            }
            self.send_packet(packet, to)?;
            sent.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Sends a segment to the interface that has this hardware address.
    pub fn send(&self, segment: &Segment, to: [u8; 6]) -> Result<()> {
        self.send_packet(&segment.to_bytes(), to)
    }

    fn send_packet(&self, packet: &[u8], to: [u8; 6]) -> Result<()> {
        let link = self.link(IPV4, Some(to));
        // SAFETY: both pointers have the lengths given.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                packet.as_ptr().cast(),
                packet.len(),
                0,
                std::ptr::from_ref(&link).cast(),
                size_of_val(&link) as u32,
            )
        };
        ensure!(sent == packet.len() as isize, io::Error::last_os_error());
        Ok(())
    }

    /// Waits for a segment.
    pub fn receive(
        &self,
        what: &str,
        timeout: Duration,
        wanted: impl Fn(&Segment) -> bool,
    ) -> Result<Segment> {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "{what}: no such segment came");
            if let Some(segment) = self.next(left)?
                && wanted(&segment)
            {
                return Ok(segment);
            }
        }
    }

    /// All that has come by now.
    pub fn seen(&self) -> Result<Vec<Segment>> {
        let mut seen = Vec::new();
        while poll(&self.socket, Duration::ZERO)? {
            seen.extend(self.next(Duration::ZERO)?);
        }
        Ok(seen)
    }

    fn next(&self, timeout: Duration) -> Result<Option<Segment>> {
        if !poll(&self.socket, timeout)? {
            return Ok(None);
        }
        let mut packet = vec![0_u8; 65_536];
        let length = nix::unistd::read(&self.socket, &mut packet)?;
        Ok(Segment::parse(&packet[..length]))
    }
}

fn poll(socket: &OwnedFd, timeout: Duration) -> Result<bool> {
    use nix::poll::{PollFd, PollFlags, PollTimeout};
    use std::os::fd::AsFd as _;
    let mut set = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
    Ok(nix::poll::poll(&mut set, timeout)? > 0)
}
