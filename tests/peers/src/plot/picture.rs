// SPDX-License-Identifier: Apache-2.0
//! The picture: a panel for each measure, a line for each contender, from the least to the greatest of its rounds at each
//! number of rules.

use std::iter::once;

use anyhow::{Context as _, Result};
use plotters::backend::SVGBackend;
use plotters::chart::ChartBuilder;
use plotters::coord::Shift;
use plotters::coord::combinators::{BindKeyPoints as _, IntoLogRange as _};
use plotters::drawing::{DrawingArea, IntoDrawingArea as _};
use plotters::element::{Circle, PathElement, Text};
use plotters::style::{Color as _, FontStyle, IntoFont as _, ShapeStyle, TextStyle};

use super::axis::{around, label, ticks};
use super::palette::{self, Colour, GRID, INK, Line, PAGE, QUIET};
use super::{Run, Title};

const WIDTH: u32 = 1200;
const PANELS: u32 = 640;
const MARGIN: i32 = 28;
/// Title, what was measured on, and the contenders.
const HEAD: i32 = 164;
const NOTE: i32 = 18;
/// What every system has, and nothing that is fetched.
const FONT: &str = "system-ui, sans-serif";
/// The library divides what it is told by this.
const POINTS: f64 = 1.24;
/// About as wide as a letter, for its height.
const LETTER: f64 = 0.53;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// The picture, as SVG.
pub(super) fn draw(run: &Run) -> Result<String> {
    let lines = palette::lines(run.contenders.iter().map(|about| about.name.as_str()));
    let notes = notes(run);
    let foot = MARGIN / 2 + NOTE * notes.len() as i32;
    let mut svg = String::new();
    {
        let height = HEAD as u32 + PANELS + foot as u32;
        let root = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        root.fill(&PAGE.rgb())?;
        let (head, rest) = root.split_vertically(HEAD);
        let (panels, foot) = rest.split_vertically(PANELS);
        draw_head(&head, run, &lines)?;
        let panels = panels
            .margin(0, 0, MARGIN / 2, MARGIN / 2)
            .split_evenly((run.measures.len().div_ceil(3).max(1), 3));
        for (area, measure) in panels.iter().zip(&run.measures) {
            draw_panel(area, run, measure, &lines)?;
        }
        for (number, note) in notes.iter().enumerate() {
            let at = (MARGIN, NOTE * number as i32);
            foot.draw(&Text::new(note.clone(), at, text(12.0, QUIET)))?;
        }
        root.present()?;
    }
    styled(&svg)
}

/// The picture with its style, and with what is read aloud where it is not seen.
fn styled(svg: &str) -> Result<String> {
    let (open, rest) = svg
        .split_once(">\n")
        .context("an element that begins the picture")?;
    Ok(format!(
        "{open} role=\"img\">\n<title>zt beside nftables, iptables and Envoy</title>\n<style>{}</style>\n{rest}",
        palette::style()
    ))
}

/// Which each contender is, and why it was not measured.
fn notes(run: &Run) -> Vec<String> {
    let versions: Vec<&str> = run
        .contenders
        .iter()
        .filter_map(|about| about.version.as_deref())
        .filter(|version| *version != "no rules")
        .collect();
    let mut different = Vec::new();
    for version in versions {
        if !different.contains(&version) {
            different.push(version);
        }
    }
    let lacking = run.contenders.iter().filter_map(|about| {
        let reason = about.lacks.as_deref()?;
        // What does not fit is in the figures.
        let short: String = reason.chars().take(130).collect();
        Some(format!("{}: {short}", about.name))
    });
    once(different.join(" · ")).chain(lacking).collect()
}

fn text(size: f64, colour: Colour) -> TextStyle<'static> {
    (FONT, size * POINTS).into_font().color(&colour.rgb())
}

fn bold(size: f64, colour: Colour) -> TextStyle<'static> {
    (FONT, size * POINTS, FontStyle::Bold)
        .into_font()
        .color(&colour.rgb())
}

fn stroke(colour: Colour, width: u32) -> ShapeStyle {
    colour.rgb().stroke_width(width)
}

fn draw_head(area: &Area<'_>, run: &Run, lines: &[Line]) -> Result<()> {
    let title = "zt beside nftables, iptables and Envoy";
    area.draw(&Text::new(title, (MARGIN, 22), bold(22.0, INK)))?;
    let machine = &run.machine;
    let on = format!(
        "zt {} on Linux {}, {} × {}, load {}{}",
        machine.version,
        machine.kernel,
        machine.cpus,
        machine.processor,
        machine.load,
        if run.quick {
            "; a short run, with more noise"
        } else {
            ""
        },
    );
    area.draw(&Text::new(on, (MARGIN, 54), text(13.0, QUIET)))?;
    let how = "Medians; the thin lines go from the least to the greatest of all rounds. All scales are logarithmic.";
    area.draw(&Text::new(how, (MARGIN, 74), text(13.0, QUIET)))?;
    let (mut x, mut y) = (MARGIN, 114);
    for (about, line) in run.contenders.iter().zip(lines) {
        let width = 46 + (about.name.chars().count() as f64 * 13.0 * LETTER) as i32;
        if x + width > WIDTH as i32 - MARGIN {
            (x, y) = (MARGIN, y + 24);
        }
        area.draw(&PathElement::new(
            vec![(x, y), (x + 26, y)],
            stroke(line.colour, 2),
        ))?;
        for mark in marks((x + 13, y), *line) {
            area.draw(&mark)?;
        }
        area.draw(&Text::new(about.name.clone(), (x + 33, y - 5), text(13.0, INK)))?;
        x += width + 16;
    }
    Ok(())
}

/// A point of a line: a disc, or a ring through which the line is not seen.
fn marks<C>(at: C, line: Line) -> Vec<Circle<C, i32>>
where
    C: Copy,
{
    let disc = |colour: Colour, radius: i32| Circle::new(at, radius, colour.rgb().filled());
    if line.hollow {
        vec![disc(line.colour, 4), disc(PAGE, 2)]
    } else {
        vec![disc(line.colour, 4)]
    }
}

fn draw_panel(area: &Area<'_>, run: &Run, measure: &Title, lines: &[Line]) -> Result<()> {
    let left = MARGIN / 2;
    area.draw(&Text::new(measure.title.clone(), (left, 8), bold(13.5, INK)))?;
    area.draw(&Text::new(measure.unit.clone(), (left, 28), text(12.0, QUIET)))?;
    let figures = || {
        run.figures
            .iter()
            .filter(|figure| figure.measure == measure.measure)
    };
    let ends = figures().flat_map(|figure| [figure.summary.min, figure.summary.max, figure.summary.median]);
    let across = around(run.rules.iter().map(|rules| f64::from(*rules)));
    let (Some((low, high)), Some((first, last))) = (around(ends), across) else {
        area.draw(&Text::new("not to be had here", (left, 60), text(13.0, QUIET)))?;
        return Ok(());
    };
    let sizes: Vec<f64> = run.rules.iter().map(|rules| f64::from(*rules)).collect();
    let mut chart = ChartBuilder::on(area)
        .margin_top(46)
        .margin_left(left)
        .margin_right(left)
        .margin_bottom(8)
        .x_label_area_size(44)
        .y_label_area_size(46)
        .build_cartesian_2d(
            (first..last).log_scale().with_key_points(sizes),
            (low..high).log_scale().with_key_points(ticks(low, high)),
        )?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .bold_line_style(stroke(GRID, 1))
        .axis_style(stroke(GRID, 1))
        .label_style(text(11.5, QUIET))
        .axis_desc_style(text(11.5, QUIET))
        .x_desc("rules in force")
        .x_label_formatter(&|rules| label(*rules))
        .y_label_formatter(&|value| label(*value))
        .draw()?;
    let count = run.contenders.len() as f64;
    // The last one is drawn over all others, and shall be the first.
    for (number, (about, line)) in run.contenders.iter().zip(lines).enumerate().rev() {
        // A little beside each other, so that each is seen.
        let beside = 1.035_f64.powf(number as f64 - count / 2.0);
        let place = |rules: u32| f64::from(rules) * beside;
        let own = || figures().filter(|figure| figure.contender == about.name && figure.summary.min > 0.0);
        let points: Vec<(f64, f64)> = own()
            .map(|figure| (place(figure.rules), figure.summary.median))
            .collect();
        let faint = line.colour.rgb().mix(0.45).stroke_width(1);
        chart.draw_series(
            own()
                .filter(|figure| figure.summary.max > figure.summary.min)
                .map(|figure| {
                    let (x, summary) = (place(figure.rules), &figure.summary);
                    PathElement::new(vec![(x, summary.min), (x, summary.max)], faint)
                }),
        )?;
        chart.draw_series(once(PathElement::new(points.clone(), stroke(line.colour, 2))))?;
        chart.draw_series(points.iter().flat_map(|point| marks(*point, *line)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run() -> Result<Run> {
        let text = r#"{
            "machine": {"kernel": "6.18", "processor": "a <fast> one", "cpus": 2, "load": "0.1", "version": "0.1.0"},
            "quick": true,
            "rules": [10, 100],
            "measures": [
                {"measure": "call", "title": "a connection", "unit": "µs"},
                {"measure": "memory", "title": "memory", "unit": "MiB"}
            ],
            "contenders": [
                {"name": "unmanaged", "version": "no rules", "lacks": null},
                {"name": "zt", "version": "zt 0.1.0", "lacks": null},
                {"name": "iptables, a chain", "version": null, "lacks": "not on this kernel: no xt_cgroup"}
            ],
            "figures": [
                {"measure": "call", "rules": 10, "contender": "zt",
                 "summary": {"median": 14.0, "min": 13.0, "max": 19.0, "samples": 3}},
                {"measure": "call", "rules": 100, "contender": "zt",
                 "summary": {"median": 15.0, "min": 13.0, "max": 19.0, "samples": 3}}
            ]
        }"#;
        Ok(serde_json::from_str(text)?)
    }

    #[test]
    fn a_picture_says_what_was_measured_and_what_was_not() -> Result<()> {
        let svg = draw(&run()?)?;
        for part in [
            "<svg ",
            "prefers-color-scheme:dark",
            "a &lt;fast&gt; one",
            "not on this kernel: no xt_cgroup",
            "not to be had here",
            "</svg>",
        ] {
            assert!(svg.contains(part), "{part} is missing in {svg}");
        }
        assert!(
            !svg.contains("http://") || svg.matches("http://").count() == 1,
            "{svg}"
        );
        Ok(())
    }

    #[test]
    fn no_colour_is_drawn_that_has_no_counterpart_in_the_dark() -> Result<()> {
        let svg = draw(&run()?)?;
        let (_, drawn) = svg.split_once("</style>").context("a style")?;
        let style = palette::style();
        for (at, _) in drawn.match_indices("=\"#") {
            let colour = &drawn[at + 1..at + 10];
            assert!(style.contains(&format!("[fill={colour}]")), "{colour}");
        }
        Ok(())
    }
}
