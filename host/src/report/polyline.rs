//! A column of many samples as lines with few points.

use super::column::Column;
use super::recording::Recording;

/// Lines that are not connected: each a series of points, the column of pixels first.
pub type Lines = Vec<Vec<(f64, f64)>>;

/// The least and the greatest number of a column of pixels, in the order in which they came.
#[derive(Clone, Copy)]
struct Pixels {
    first: f64,
    second: f64,
    /// Whether no line leads to it from the left: there was a sample without a number, or a new baseline.
    is_begin: bool,
}

/// Returns the lines of a field. Of all samples in a column of pixels the least and the greatest stay, so that a spike
/// does not vanish; the points are at most twice the columns, however many samples there are. No line reaches across a
/// sample without a number, or across a new baseline.
pub fn lines(recording: &Recording, column: &Column, end_ms: u64, columns: usize) -> Lines {
    let mut pixels: Vec<Option<Pixels>> = vec![None; columns.max(1)];
    let mut baselines = recording.baselines.iter().peekable();
    let mut is_begin = true;
    for ((sample, &ms), number) in (0..).zip(&recording.times).zip(column.values(recording.times.len())) {
        is_begin |= baselines.next_if_eq(&&sample).is_some();
        match (number, pixels.get_mut(column_of(ms, end_ms, columns))) {
            (Some(number), Some(of)) => {
                match of {
                    Some(of) => of.take(number),
                    None => *of = Some(Pixels { first: number, second: number, is_begin }),
                }
                is_begin = false;
            }
            _ => is_begin = true,
        }
    }
    connect(&pixels)
}

/// The column of pixels of a time.
#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a part of the columns, which are few"
)]
pub fn column_of(ms: u64, end_ms: u64, columns: usize) -> usize {
    let last = columns.saturating_sub(1);
    (((ms as f64 / end_ms.max(1) as f64) * last as f64).round() as usize).min(last)
}

impl Pixels {
    /// Takes another number: what is less or greater than both comes after what it does not replace.
    fn take(&mut self, number: f64) {
        let (least, most) = (self.first.min(self.second), self.first.max(self.second));
        if number < least {
            (self.first, self.second) = (most, number);
        } else if number > most {
            (self.first, self.second) = (least, number);
        }
    }
}

#[allow(clippy::cast_precision_loss, reason = "columns are few")]
fn connect(pixels: &[Option<Pixels>]) -> Lines {
    let mut lines = Lines::new();
    for (x, of) in pixels.iter().enumerate().filter_map(|(x, of)| Some((x as f64, of.as_ref()?))) {
        if of.is_begin {
            lines.push(Vec::new());
        }
        if lines.is_empty() {
            lines.push(Vec::new());
        }
        let Some(line) = lines.last_mut() else { continue };
        push(line, (x, of.first));
        if of.second != of.first {
            push(line, (x, of.second));
        }
    }
    lines
}

/// Adds a point; one in the middle of a level line is not needed.
fn push(line: &mut Vec<(f64, f64)>, point: (f64, f64)) {
    match line.as_mut_slice() {
        [.., (_, before), (x, last)] if *before == point.1 && *last == point.1 => *x = point.0,
        _ => line.push(point),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A recording of a sample a millisecond; a NaN is a sample without the field.
    fn recording(values: &[f64], baselines: &[usize]) -> (Recording, Column) {
        let mut recording = Recording::new("r");
        let mut column = Column::default();
        for (at, value) in values.iter().enumerate().filter(|(_, value)| !value.is_nan()) {
            column.set(at, *value);
        }
        recording.times = (0..).take(values.len()).collect();
        recording.baselines = baselines.to_vec();
        (recording, column)
    }

    fn drawn(values: &[f64], baselines: &[usize], columns: usize) -> Lines {
        let (recording, column) = recording(values, baselines);
        lines(&recording, &column, values.len() as u64 - 1, columns)
    }

    #[test]
    fn a_spike_among_many_samples_stays() {
        for at in [0, 1, 777, 5_000, 9_998, 9_999] {
            let mut values = vec![1.0; 10_000];
            values[at] = 99.0;
            let lines = drawn(&values, &[], 100);
            assert_eq!(lines.len(), 1);
            assert!(lines[0].iter().any(|(_, y)| *y == 99.0), "{at}");
            assert!(lines[0].len() <= 7, "{lines:?}");
        }
    }

    #[test]
    fn points_are_bounded_by_columns() {
        let values: Vec<f64> = (0..10_000).map(|at| if at % 3 == 0 { f64::NAN } else { f64::from(at % 7) }).collect();
        let lines = drawn(&values, &(0..10_000).collect::<Vec<_>>(), 100);
        assert!(lines.iter().map(Vec::len).sum::<usize>() <= 200);
    }

    #[test]
    fn no_line_crosses_a_hole_or_a_baseline() {
        let lines = drawn(&[1.0, 2.0, f64::NAN, 3.0, 4.0, 5.0], &[5], 6);
        assert_eq!(lines, [vec![(0.0, 1.0), (1.0, 2.0)], vec![(3.0, 3.0), (4.0, 4.0)], vec![(5.0, 5.0)]]);
    }

    #[test]
    fn times_in_any_order_are_drawn_in_theirs() {
        let (mut recording, column) = recording(&[1.0, 2.0, 3.0], &[]);
        recording.times = vec![2, 0, u64::MAX];
        let expected = [vec![(0.0, 2.0)], vec![(2.0, 1.0), (2.0, 3.0)]];
        assert_eq!(lines(&recording, &column, 2, 3), expected);
    }
}
