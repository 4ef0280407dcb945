// SPDX-License-Identifier: Apache-2.0
//! A digest as a number.

/// As many bits of a digest as a sample holds exactly.
pub(super) fn fingerprint(digest: &str) -> f64 {
    const DIGITS: usize = 12;
    let head = digest.get(..DIGITS).unwrap_or_default();
    u64::from_str_radix(head, 16).unwrap_or_default() as f64
}

#[cfg(test)]
mod tests {
    use super::fingerprint;

    #[test]
    fn a_fingerprint_is_exact() {
        let wanted = f64::from(u32::MAX) * 65_536.0 + 65_535.0;
        assert_eq!(fingerprint(&"f".repeat(64)).to_bits(), wanted.to_bits());
        assert_eq!(fingerprint("").to_bits(), 0f64.to_bits());
        let near = |last: &str| fingerprint(&format!("cd384f4305e{last}374df6ac"));
        assert_ne!(near("2").to_bits(), near("3").to_bits());
    }
}
