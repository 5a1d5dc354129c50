//! A plot of the page, as SVG. It has a background of its own, so that it is readable on light and dark pages.

use std::fmt::Write;

use plotters::prelude::*;

/// A plot with the numbers that it shows.
pub struct Figure {
    /// The file's name.
    pub file: &'static str,
    /// What it shows, as a heading.
    pub title: &'static str,
    /// What bounds what it shows, as a sentence or two of the page.
    pub bound: &'static str,
    /// The SVG.
    pub svg: String,
    /// The numbers as a table in Markdown.
    pub table: String,
}

/// What a plot shows: lines over the same positions, both axes logarithmic.
pub struct Plot {
    /// The file's name.
    pub file: &'static str,
    /// What it shows.
    pub title: &'static str,
    /// What bounds what it shows.
    pub bound: &'static str,
    /// What is across.
    pub across: &'static str,
    /// What is upwards, with its unit.
    pub upwards: &'static str,
    /// The positions across, ascending, with their labels.
    pub positions: Vec<(f64, &'static str)>,
    /// The lines with their names: a number for each position.
    pub lines: Vec<(&'static str, Vec<f64>)>,
}

const SIZE: (u32, u32) = (720, 400);
const BACKGROUND: RGBColor = RGBColor(255, 255, 255);
const TEXT: RGBColor = RGBColor(31, 35, 40);
const GRID: RGBColor = RGBColor(208, 215, 222);
/// Colours that differ in lightness, too.
const COLOURS: [RGBColor; 4] =
    [RGBColor(9, 105, 218), RGBColor(207, 34, 46), RGBColor(154, 103, 0), RGBColor(87, 96, 106)];

impl Plot {
    /// Draws it.
    pub fn figure(&self) -> Figure {
        let mut svg = String::new();
        self.draw(&mut svg).unwrap();
        Figure { file: self.file, title: self.title, bound: self.bound, svg, table: self.table() }
    }

    fn draw(&self, svg: &mut String) -> Result<(), Box<dyn std::error::Error + '_>> {
        let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
        area.fill(&BACKGROUND)?;
        let numbers = || self.lines.iter().flat_map(|(_, numbers)| numbers).copied();
        let (least, most) = (numbers().fold(f64::INFINITY, f64::min), numbers().fold(0.0, f64::max));
        let (first, last) = (self.positions[0].0, self.positions[self.positions.len() - 1].0);
        let across = (first..last).log_scale().with_key_points(self.positions.iter().map(|(at, _)| *at).collect());
        let upwards = (least / 1.5..most * 1.5).log_scale().with_key_points(round_numbers(least / 1.5, most * 1.5));
        let mut chart = ChartBuilder::on(&area)
            .margin(16)
            // Half of the last label.
            .margin_right(40)
            .x_label_area_size(44)
            .y_label_area_size(64)
            .build_cartesian_2d(across, upwards)?;
        let label =
            |at: &f64| self.positions.iter().find(|(position, _)| position == at).map_or("", |(_, label)| label);
        let label = |at: &f64| label(at).to_owned();
        let number = |number: &f64| format!("{number}");
        let style = ("sans-serif", 15, &TEXT);
        let mut mesh = chart.configure_mesh();
        mesh.light_line_style(TRANSPARENT)
            .bold_line_style(GRID)
            .axis_style(TEXT)
            .label_style(style)
            .axis_desc_style(style);
        mesh.x_label_formatter(&label).y_label_formatter(&number).x_desc(self.across).y_desc(self.upwards).draw()?;
        for ((name, numbers), colour) in self.lines.iter().zip(COLOURS) {
            let points = || self.positions.iter().zip(numbers).map(|((at, _), number)| (*at, *number));
            let line = chart.draw_series(LineSeries::new(points(), colour.stroke_width(2)))?;
            line.label(*name).legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
            chart.draw_series(points().map(|point| Circle::new(point, 3, colour.filled())))?;
        }
        let mut legend = chart.configure_series_labels();
        legend.position(SeriesLabelPosition::UpperLeft).background_style(BACKGROUND).border_style(GRID);
        legend.label_font(style).draw()?;
        area.present()?;
        Ok(())
    }

    fn table(&self) -> String {
        let names: Vec<&str> = self.lines.iter().map(|(name, _)| *name).collect();
        let mut text = format!("| {} | {} |\n|{}\n", self.across, names.join(" | "), " ---: |".repeat(names.len() + 1));
        for (index, (_, label)) in self.positions.iter().enumerate() {
            let numbers: Vec<String> = self.lines.iter().map(|(_, numbers)| format!("{:.1}", numbers[index])).collect();
            // Writing to a string cannot fail.
            let _written = writeln!(text, "| {label} | {} |", numbers.join(" | "));
        }
        text
    }
}

/// Returns 1, 2 and 5 of each power of ten between these numbers.
fn round_numbers(least: f64, most: f64) -> Vec<f64> {
    let powers = (0..12).map(|power| 10f64.powi(power - 3));
    powers
        .flat_map(|power| [1.0, 2.0, 5.0].map(|digit| digit * power))
        .filter(|at| (least..most).contains(at))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_numbers_are_within_their_bounds() {
        assert_eq!(round_numbers(4.0, 60.0), [5.0, 10.0, 20.0, 50.0]);
    }

    fn plot() -> Plot {
        Plot {
            file: "plot.svg",
            title: "A plot",
            bound: "",
            across: "answer",
            upwards: "us",
            positions: vec![(600.0, "600 B"), (3072.0, "3 KiB"), (65536.0, "64 KiB")],
            lines: vec![("ours", vec![10.0, 20.0, 300.0]), ("peer", vec![30.0, 40.0, 900.0])],
        }
    }

    #[test]
    fn a_plot_has_a_background_labels_and_a_line_each() {
        let svg = plot().figure().svg;
        assert!(svg.contains(r##"fill="#FFFFFF" stroke="none""##), "{svg}");
        for text in ["600 B", "3 KiB", "64 KiB", "ours", "peer"] {
            assert!(svg.contains(&format!("\n{text}\n")), "no {text}: {svg}");
        }
        assert!(!svg.contains("NaN"), "{svg}");
    }

    #[test]
    fn the_table_has_the_same_numbers() {
        let table = plot().figure().table;
        assert!(table.contains("| 64 KiB | 300.0 | 900.0 |"), "{table}");
    }
}
