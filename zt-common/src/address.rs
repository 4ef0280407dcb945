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
        let [a, b, c, d] = octets;
        Self([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d])
    }

    /// From four 32-bit words as the kernel's contexts hold them (each in network order).
    #[inline(always)]
    pub const fn from_words(words: [u32; 4]) -> Self {
        let [a, b, c, d] = words;
        let (a, b, c, d) = (a.to_ne_bytes(), b.to_ne_bytes(), c.to_ne_bytes(), d.to_ne_bytes());
        Self([
            a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3],
        ])
    }

    /// From one 32-bit word in network order, as the kernel's contexts hold an IPv4 address.
    #[inline(always)]
    pub const fn from_v4_word(word: u32) -> Self {
        Self::from_v4(word.to_ne_bytes())
    }

    /// The four 32-bit words as the kernel's contexts hold them (each in network order).
    #[inline(always)]
    pub const fn words(&self) -> [u32; 4] {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = self.0;
        [
            u32::from_ne_bytes([a, b, c, d]),
            u32::from_ne_bytes([e, f, g, h]),
            u32::from_ne_bytes([i, j, k, l]),
            u32::from_ne_bytes([m, n, o, p]),
        ]
    }

    /// The 32-bit word (in network order) of an IPv4 address.
    #[inline(always)]
    pub const fn v4_word(&self) -> u32 {
        self.words()[3]
    }

    /// Whether this is an IPv4 address in its mapped form.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        let [a, b, c, d, e, f, g, h, i, j, k, l, ..] = self.0;
        (a | b | c | d | e | f | g | h | i | j) == 0 && k == 0xff && l == 0xff
    }

    /// `0.0.0.0`, `::` or `::ffff:0.0.0.0`: the kernel connects these to the loopback address.
    #[inline(always)]
    pub const fn is_unspecified(&self) -> bool {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = self.0;
        let high = a | b | c | d | e | f | g | h | i | j;
        let low = m | n | o | p;
        high == 0 && low == 0 && ((k == 0 && l == 0) || (k == 0xff && l == 0xff))
    }

    /// `127.0.0.0/8` or `::1`.
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = self.0;
        let high = a | b | c | d | e | f | g | h | i | j;
        (self.is_v4() && m == 127) || (high == 0 && k == 0 && l == 0 && m == 0 && n == 0 && o == 0 && p == 1)
    }
}

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
    fn words_are_in_network_order() {
        let v4 = u32::from_ne_bytes([10, 99, 0, 2]);
        assert_eq!(Address::from_v4_word(v4).to_string(), "10.99.0.2");
        let v6 = [u32::from_ne_bytes([0xfd, 0, 0, 0]), 0, 0, u32::from_ne_bytes([0, 0, 0, 2])];
        assert_eq!(Address::from_words(v6).to_string(), "fd00::2");
    }
}
