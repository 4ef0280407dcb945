// SPDX-License-Identifier: Apache-2.0
//! Colours, each for a light page and for a dark one: drawn is the light one, and a style of the picture's own replaces it where
//! the reader prefers dark.

use std::fmt::Write as _;

use plotters::style::RGBColor;

/// A colour on a light page and on a dark one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Colour {
    light: u32,
    dark: u32,
}

pub(super) const PAGE: Colour = Colour::new(0xff_ff_ff, 0x0d_11_17);
pub(super) const INK: Colour = Colour::new(0x1f_23_28, 0xe6_ed_f3);
pub(super) const QUIET: Colour = Colour::new(0x65_6d_76, 0x8d_96_a0);
pub(super) const GRID: Colour = Colour::new(0xd8_de_e4, 0x30_36_3d);

/// What a line looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) colour: Colour,
    /// Its points are rings.
    pub(super) hollow: bool,
    /// Strokes and gaps, if it has gaps.
    pub(super) dashes: Option<&'static str>,
}

impl Line {
    const fn solid(light: u32, dark: u32) -> Self {
        Self {
            colour: Colour::new(light, dark),
            hollow: false,
            dashes: None,
        }
    }

    const fn broken(light: u32, dark: u32, dashes: &'static str) -> Self {
        Self {
            colour: Colour::new(light, dark),
            hollow: true,
            dashes: Some(dashes),
        }
    }
}

/// Contenders by how their names begin; one family has one hue, and the second and third of it are broken lines.
const FAMILIES: [(&str, &[Line]); 5] = [
    ("unmanaged", &[Line::solid(0x57_60_6a, 0xaf_b8_c1)]),
    (
        "zt",
        &[
            Line::solid(0x09_69_da, 0x58_a6_ff),
            Line::broken(0x3f_97_ee, 0x9c_cb_ff, "7 4"),
        ],
    ),
    (
        "nftables",
        &[
            Line::solid(0x1a_7f_37, 0x3f_b9_50),
            Line::broken(0x42_b8_63, 0x7e_e7_87, "7 4"),
            Line::broken(0x7a_8b_00, 0xc3_d8_2c, "2 4"),
        ],
    ),
    ("iptables", &[Line::solid(0xbc_4c_00, 0xf0_88_3e)]),
    (
        "Envoy",
        &[
            Line::solid(0x82_50_df, 0xbc_8c_ff),
            Line::broken(0xc8_40_92, 0xf7_78_ba, "7 4"),
        ],
    ),
];
/// Whoever is not among these.
const ANOTHER: Line = Line::broken(0x9a_67_00, 0xd2_99_22, "2 4");

/// The lines of these contenders, in their order.
pub(super) fn lines<'n>(names: impl Iterator<Item = &'n str>) -> Vec<Line> {
    let mut taken = [0_usize; FAMILIES.len()];
    let mut line = |name: &str| {
        let family = FAMILIES.iter().position(|(start, _)| name.starts_with(start))?;
        let number = taken[family];
        taken[family] += 1;
        FAMILIES[family].1.get(number).copied()
    };
    names.map(|name| line(name).unwrap_or(ANOTHER)).collect()
}

impl Colour {
    const fn new(light: u32, dark: u32) -> Self {
        Self { light, dark }
    }

    /// The one that is drawn.
    pub(super) const fn rgb(self) -> RGBColor {
        let [_, red, green, blue] = self.light.to_be_bytes();
        RGBColor(red, green, blue)
    }
}

/// The style that makes lines broken, and all colours dark where that is preferred.
pub(super) fn style() -> String {
    let lines = || FAMILIES.iter().flat_map(|(_, lines)| *lines).chain([&ANOTHER]);
    let mut text = "polyline{stroke-linejoin:round;stroke-linecap:round}".to_owned();
    // From least to greatest goes a thinner one, which is whole.
    for (colour, dashes) in lines().filter_map(|line| Some((line.colour, line.dashes?))) {
        // Writing into a String cannot fail.
        let _ = write!(
            text,
            "polyline[stroke=\"#{:06X}\"][stroke-width=\"2\"]{{stroke-dasharray:{dashes}}}",
            colour.light
        );
    }
    text.push_str("@media (prefers-color-scheme:dark){");
    let colours = lines().map(|line| line.colour);
    for Colour { light, dark } in [PAGE, INK, QUIET, GRID].into_iter().chain(colours) {
        let _ = write!(
            text,
            "[fill=\"#{light:06X}\"]{{fill:#{dark:06X}}}[stroke=\"#{light:06X}\"]{{stroke:#{dark:06X}}}"
        );
    }
    text.push('}');
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_things_have_one_colour_in_either_light() {
        let lines = FAMILIES.iter().flat_map(|(_, lines)| *lines).chain([&ANOTHER]);
        let mut all = vec![PAGE, INK, QUIET, GRID];
        all.extend(lines.map(|line| line.colour));
        for shade in [|colour: &Colour| colour.light, |colour: &Colour| colour.dark] {
            let different: BTreeSet<u32> = all.iter().map(shade).collect();
            assert_eq!(different.len(), all.len());
        }
    }

    #[test]
    fn each_contender_has_a_line_of_its_own() {
        let names = [
            "unmanaged",
            "zt",
            "zt, handshake: off",
            "nftables, a set",
            "somebody",
        ];
        let lines = lines(names.into_iter());
        assert_eq!(lines[1].colour, FAMILIES[1].1[0].colour);
        assert_eq!(lines[2].colour, FAMILIES[1].1[1].colour);
        assert_eq!(lines[4], ANOTHER);
    }
}
