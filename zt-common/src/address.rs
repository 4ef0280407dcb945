// SPDX-License-Identifier: Apache-2.0
//! Addresses as map keys: sixteen bytes in network order, IPv4 in its v4-mapped form.
//!
//! One form for both families means that `::ffff:10.0.0.1` on an IPv6 socket and `10.0.0.1` on an IPv4 socket are
//! the same key, so that the mapped form is no way round.

/// An IPv4 or IPv6 address, IPv4 as `::ffff:a.b.c.d`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[cfg_attr(not(feature = "user"), derive(Debug))]
pub struct Address(pub [u8; 16]);

impl Address {
    /// `::`, and the wildcard local address of an IPv6 socket.
    pub const UNSPECIFIED_V6: Self = Self([0; 16]);
    /// `0.0.0.0`, and the wildcard local address of an IPv4 socket.
    pub const UNSPECIFIED_V4: Self = Self([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0]);

    /// From four bytes in network order.
    #[inline(always)]
    pub const fn from_v4(octets: [u8; 4]) -> Self {
        Self::from_v4_word(u32::from_ne_bytes(octets))
    }

    /// From four 32-bit words as the kernel's contexts hold them (each in network order).
    #[inline(always)]
    #[expect(
        unsafe_code,
        reason = "word by word: byte by byte, the kernel programs run out of stack"
    )]
    pub const fn from_words(words: [u32; 4]) -> Self {
        // SAFETY: same size, and every bit pattern is valid on both sides.
        Self(unsafe { core::mem::transmute::<[u32; 4], [u8; 16]>(words) })
    }

    /// From one 32-bit word in network order, as the kernel's contexts hold an IPv4 address.
    #[inline(always)]
    pub const fn from_v4_word(word: u32) -> Self {
        Self::from_words([0, 0, MAPPED, word])
    }

    /// The four 32-bit words as the kernel's contexts hold them (each in network order).
    #[inline(always)]
    #[expect(unsafe_code, reason = "see `from_words`")]
    pub const fn words(&self) -> [u32; 4] {
        // SAFETY: same size, and every bit pattern is valid on both sides.
        unsafe { core::mem::transmute::<[u8; 16], [u32; 4]>(self.0) }
    }

    /// The 32-bit word (in network order) of an IPv4 address.
    #[inline(always)]
    pub const fn v4_word(&self) -> u32 {
        self.words()[3]
    }

    /// Whether this is an IPv4 address in its mapped form.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        let [a, b, c, _] = self.words();
        a | b == 0 && c == MAPPED
    }

    /// `0.0.0.0`, `::` or `::ffff:0.0.0.0`: the kernel connects these to the loopback address.
    #[inline(always)]
    pub const fn is_unspecified(&self) -> bool {
        let [a, b, c, d] = self.words();
        a | b | d == 0 && (c == 0 || c == MAPPED)
    }

    /// The address as tags cover it: before a loopback address, which every network namespace has, stands the cookie of its own.
    #[inline(always)]
    #[must_use]
    pub const fn within(&self, netns: u64) -> Self {
        if !self.is_loopback() {
            return *self;
        }
        let [_, _, c, d] = self.words();
        Self::from_words([((netns >> 32) as u32).to_be(), (netns as u32).to_be(), c, d])
    }

    /// `127.0.0.0/8` or `::1`.
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        let [a, b, c, d] = self.words();
        (self.is_v4() && d & LOOPBACK_MASK == LOOPBACK) || (a | b | c == 0 && d == ONE)
    }
}

/// The third word of a mapped address.
const MAPPED: u32 = 0xffff_u32.to_be();
const LOOPBACK_MASK: u32 = 0xff00_0000_u32.to_be();
const LOOPBACK: u32 = 0x7f00_0000_u32.to_be();
const ONE: u32 = 1_u32.to_be();

#[cfg(feature = "user")]
mod std_conversions {
    use std::fmt;
    use std::net::{IpAddr, Ipv6Addr};

    use super::Address;

    impl From<IpAddr> for Address {
        fn from(address: IpAddr) -> Self {
            match address {
                IpAddr::V4(v4) => Self::from_v4(v4.octets()),
                IpAddr::V6(v6) => Self(v6.octets()),
            }
        }
    }

    impl From<Address> for IpAddr {
        fn from(address: Address) -> Self {
            Ipv6Addr::from(address.0).to_canonical()
        }
    }

    impl fmt::Display for Address {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            IpAddr::from(*self).fmt(f)
        }
    }

    impl fmt::Debug for Address {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            IpAddr::from(*self).fmt(f)
        }
    }
}

const _: () = assert!(size_of::<Address>() == 16 && align_of::<Address>() == 1);

#[cfg(all(test, feature = "user"))]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::Address;

    proptest! {
        #[test]
        fn classes_agree_with_the_standard_library(ip in any::<IpAddr>()) {
            let address = Address::from(ip);
            prop_assert_eq!(address.is_unspecified(), ip.to_canonical().is_unspecified());
            prop_assert_eq!(address.is_loopback(), ip.to_canonical().is_loopback());
            prop_assert_eq!(IpAddr::from(address), ip.to_canonical());
        }
    }

    #[test]
    fn the_mapped_form_is_the_same_key() {
        let plain: IpAddr = "127.0.0.1".parse().expect("literal");
        let mapped: IpAddr = "::ffff:127.0.0.1".parse().expect("literal");
        assert_eq!(Address::from(plain), Address::from(mapped));
        assert!(Address::from(mapped).is_loopback());
        assert!(Address::from("::ffff:0.0.0.0".parse::<IpAddr>().expect("literal")).is_unspecified());
    }

    #[test]
    fn a_loopback_address_is_one_of_its_namespace() {
        let netns = 0x0102_0304_0506_0708;
        for text in ["127.0.0.1", "127.9.8.7", "::1"] {
            let address = Address::from(text.parse::<IpAddr>().expect("literal"));
            let within = address.within(netns);
            assert_eq!(within.0[..8], [1, 2, 3, 4, 5, 6, 7, 8], "{text}");
            assert_eq!(within.0[8..], address.0[8..], "{text}");
            assert_ne!(within, address.within(netns + 1), "{text}");
        }
        let other = Address::from("10.0.0.1".parse::<IpAddr>().expect("literal"));
        assert_eq!(other.within(netns), other);
    }

    #[test]
    fn words_are_in_network_order() {
        let v4 = u32::from_ne_bytes([10, 99, 0, 2]);
        assert_eq!(Address::from_v4_word(v4).to_string(), "10.99.0.2");
        let v6 = [
            u32::from_ne_bytes([0xfd, 0, 0, 0]),
            0,
            0,
            u32::from_ne_bytes([0, 0, 0, 2]),
        ];
        assert_eq!(Address::from_words(v6).to_string(), "fd00::2");
    }
}
