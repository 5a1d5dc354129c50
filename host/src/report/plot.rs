//! Plots as SVG. They have no text of a peer: numbers and times alone.
//!
//! Colours are placeholders that the page's style replaces, so that one plot is right on light and dark pages.

use std::ops::Range;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::marks::{Hole, Lane};
use super::polyline::Lines;
use super::quantity::{Scale, decimal, time_unit};

/// Pixels of a plot's width, and of what surrounds the lines.
const WIDTH: u32 = 400;
const LEFT: u32 = 56;
const RIGHT: u32 = 14;
const TOP: u32 = 6;
const BOTTOM: u32 = 24;
/// Pixels of the lines' height.
const INNER: u32 = 130;
/// Pixels of the height of one run's marks, which are above the lines.
const LANE: i32 = 12;
/// Pixels of the width of a reason's number.
const LABEL: i32 = 10;

/// The most columns of pixels that a line has.
pub const MAX_COLUMNS: usize = (WIDTH - LEFT - RIGHT) as usize;

/// The placeholders of the page's style.
const TEXT: RGBColor = RGBColor(1, 1, 1);
const GRID: RGBColor = RGBColor(2, 2, 2);
const PAGE: RGBColor = RGBColor(3, 3, 3);

/// What plots have in common: the time that they show, and how many runs.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    /// When the latest sample was.
    pub end_ms: u64,
    /// How many runs have marks.
    pub runs: usize,
    /// How many columns of pixels a line has.
    pub columns: usize,
}

type Area<B> = DrawingArea<B, Shift>;
type Drawn<B> = Result<(), DrawingAreaErrorKind<<B as DrawingBackend>::ErrorType>>;

/// The colour of a run, which the page's style replaces.
fn colour(run: usize) -> RGBColor {
    RGBColor(16, 0, u8::try_from(run).unwrap_or(u8::MAX))
}

impl Frame {
    /// The pixels of a plot.
    pub fn size(&self) -> (u32, u32) {
        (WIDTH, self.top() + INNER + BOTTOM)
    }

    fn top(&self) -> u32 {
        TOP + LANE.unsigned_abs() * u32::try_from(self.runs).unwrap_or(0)
    }

    /// Returns the elements of the plot of a field: the lines of each recording, with the number of its run.
    pub fn plot(&self, recordings: &[(usize, Lines)]) -> String {
        let mut svg = String::new();
        let area = SVGBackend::with_string(&mut svg, self.size()).into_drawing_area();
        // Nothing is written anywhere but to the text.
        let _drawn = self.draw_lines(&area, recordings);
        drop(area);
        elements(&svg)
    }

    /// Returns the elements of the marks, which are the same in each plot.
    pub fn marks(&self, lanes: &[Lane]) -> String {
        let mut svg = String::new();
        let area = SVGBackend::with_string(&mut svg, self.size()).into_drawing_area();
        let _drawn = self.draw_lanes(&area, lanes);
        drop(area);
        elements(&svg)
    }

    fn draw_lines<B: DrawingBackend>(&self, area: &Area<B>, recordings: &[(usize, Lines)]) -> Drawn<B> {
        let scale = Scale::of(greatest(recordings));
        let values = value_range(recordings, scale);
        let (suffix, decimals) = (scale.suffix(), decimals(&values));
        let (unit, unit_name) = time_unit(self.end_ms);
        let end = precise(self.end_ms.max(1)) / unit;
        let mut chart = ChartBuilder::on(area)
            .margin_top(self.top())
            .margin_right(RIGHT)
            .x_label_area_size(BOTTOM)
            .y_label_area_size(LEFT)
            .build_cartesian_2d(0.0..end, values)?;
        let label = |number: &f64| format!("{}{suffix}", decimal(*number, decimals));
        let time = |time: &f64| format!("{}\u{a0}{unit_name}", decimal(*time, 3));
        let mut mesh = chart.configure_mesh();
        mesh.disable_x_mesh().light_line_style(TRANSPARENT).bold_line_style(GRID).axis_style(GRID);
        mesh.x_labels(5).y_labels(4).x_label_formatter(&time).y_label_formatter(&label);
        mesh.label_style(("sans-serif", 16, &TEXT)).draw()?;
        let step = end / precise_size(self.columns.saturating_sub(1).max(1));
        for (run, lines) in recordings {
            let style = colour(*run);
            for line in lines {
                let points = line.iter().map(|(x, y)| (x * step, scale.scaled(*y)));
                if let [_] = line.as_slice() {
                    chart.draw_series(points.map(|point| Circle::new(point, 2, style.filled())))?;
                } else {
                    chart.draw_series(LineSeries::new(points, style))?;
                }
            }
        }
        area.present()
    }

    fn draw_lanes<B: DrawingBackend>(&self, area: &Area<B>, lanes: &[Lane]) -> Drawn<B> {
        lanes.iter().enumerate().try_for_each(|(run, lane)| self.draw_lane(area, run, lane))?;
        area.present()
    }

    fn draw_lane<B: DrawingBackend>(&self, area: &Area<B>, run: usize, lane: &Lane) -> Drawn<B> {
        let top = i32::try_from(TOP).unwrap_or(0) + LANE * i32::try_from(run).unwrap_or(0);
        let (bottom, style) = (top + LANE - 2, colour(run));
        let text = |colour: &'static RGBColor, anchor| ("sans-serif", 13, colour).into_text_style(area).pos(anchor);
        let after = text(&TEXT, Pos::new(HPos::Left, VPos::Center));
        let inside = text(&PAGE, Pos::new(HPos::Center, VPos::Center));
        let middle = i32::midpoint(top, bottom);
        let mut free_from = 0;
        for Hole { from, to, reason } in &lane.holes {
            let (left, right) = (self.x(*from), self.x(*to).max(self.x(*from) + 2));
            area.draw(&Rectangle::new([(left, top + 1), (right, bottom)], style.filled()))?;
            let number = (reason + 1).to_string();
            if right - left >= LABEL {
                area.draw(&Text::new(number, (i32::midpoint(left, right), middle), inside.clone()))?;
            } else if right + 1 >= free_from {
                area.draw(&Text::new(number, (right + 1, middle), after.clone()))?;
                free_from = right + LABEL;
            }
        }
        for column in &lane.baselines {
            let x = self.x(*column);
            area.draw(&Polygon::new([(x, bottom), (x - 4, top), (x + 4, top)], TEXT))?;
        }
        Ok(())
    }

    /// The pixel of a column.
    fn x(&self, column: usize) -> i32 {
        let across = column.saturating_mul(MAX_COLUMNS.saturating_sub(1)) / self.columns.saturating_sub(1).max(1);
        i32::try_from(LEFT).unwrap_or(0) + i32::try_from(across).unwrap_or(0)
    }
}

/// What is inside of an SVG, without what is the default or what the page's style says.
fn elements(svg: &str) -> String {
    let inside = svg.split_once('>').map_or("", |(_, inside)| inside.trim_end().trim_end_matches("</svg>"));
    inside.replace(" opacity=\"1\"", "").replace(" font-family=\"sans-serif\"", "").replace(" stroke-width=\"1\"", "")
}

fn numbers(recordings: &[(usize, Lines)]) -> impl Iterator<Item = f64> {
    recordings.iter().flat_map(|(_, lines)| lines).flatten().map(|(_, number)| *number)
}

fn greatest(recordings: &[(usize, Lines)]) -> f64 {
    numbers(recordings).map(f64::abs).fold(0.0, f64::max)
}

/// What the axis of values spans: all of them and some room; from 0 where that is not far. It is never so narrow that its
/// labels would be the same.
fn value_range(recordings: &[(usize, Lines)], scale: Scale) -> Range<f64> {
    let scaled = || numbers(recordings).map(|number| scale.scaled(number));
    let (least, most) = (scaled().fold(f64::INFINITY, f64::min), scaled().fold(f64::NEG_INFINITY, f64::max));
    if !least.is_finite() || !most.is_finite() {
        return 0.0..1.0;
    }
    let narrowest = least.abs().max(most.abs()) * 1e-3;
    let room = if least == most { most.abs() / 2.0 } else { ((most - least) * 0.06).max(narrowest) };
    let low = if least >= 0.0 && least <= most / 2.0 { 0.0 } else { least - room };
    let high = most + room;
    if high > low { low..high } else { low..low + 1.0 }
}

/// The decimals that labels of this range need.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to 6")]
fn decimals(range: &Range<f64>) -> usize {
    (1.0 - (range.end - range.start).log10().floor()).clamp(0.0, 6.0) as usize
}

#[allow(clippy::cast_precision_loss, reason = "shown with a few digits")]
const fn precise(number: u64) -> f64 {
    number as f64
}

#[allow(clippy::cast_precision_loss, reason = "columns are few")]
const fn precise_size(number: usize) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(end_ms: u64) -> Frame {
        Frame { end_ms, runs: 1, columns: MAX_COLUMNS }
    }

    #[test]
    fn numbers_of_any_size_are_drawn() {
        for (least, most) in [
            (0.0, 0.0),
            (-1.0, 1.0),
            (-f64::MAX, f64::MAX),
            (5e-324, 1e-323),
            (1e16, 1e16 + 2.0),
            (18_446_744_073_709_549_568.0, 18_446_744_073_709_551_615.0),
            (-1e-9, 1e300),
        ] {
            for end_ms in [0, 1, 90_000, u64::MAX] {
                let drawn = frame(end_ms).plot(&[(0, vec![vec![(0.0, least), (329.0, most)], vec![(5.0, most)]])]);
                assert!(drawn.contains("<polyline") && drawn.contains("<circle"), "{least} {most} {drawn}");
                assert!(!drawn.contains("NaN") && !drawn.contains("inf"), "{drawn}");
                assert!(drawn.len() < 6_000, "{least} {most} {end_ms}: {} bytes", drawn.len());
            }
        }
    }

    #[test]
    fn marks_have_the_numbers_of_their_reasons() {
        let lane = Lane { holes: vec![Hole { from: 10, to: 40, reason: 1 }], baselines: vec![200] };
        let other = Lane { holes: vec![Hole { from: 50, to: 60, reason: 0 }], baselines: Vec::new() };
        let drawn = frame(1).marks(&[lane, other]);
        assert!(drawn.contains("<rect") && drawn.contains("<polygon") && drawn.contains("\n2\n</text>"), "{drawn}");
        assert!(drawn.contains("#100001") && !drawn.contains("svg"), "{drawn}");
    }

    #[test]
    fn a_plot_without_numbers_has_axes() {
        assert!(frame(5).plot(&[]).contains("<text"));
    }
}
