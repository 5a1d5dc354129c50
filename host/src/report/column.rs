//! One field of a recording: a number a sample, or none.

/// The numbers of a field by the index of their sample; NaN, which JSON does not have, where there is none.
#[derive(Clone, Debug, Default)]
pub struct Column {
    values: Vec<f64>,
}

impl Column {
    /// Sets the number of a sample, which comes after those that were set.
    pub fn set(&mut self, sample: usize, number: f64) {
        if self.values.len() <= sample {
            self.values.resize(sample, f64::NAN);
            self.values.push(number);
        }
    }

    /// The number of each sample of this many.
    pub fn values(&self, samples: usize) -> impl Iterator<Item = Option<f64>> {
        let known = self.values.iter().map(|value| (!value.is_nan()).then_some(*value));
        known.chain(std::iter::repeat(None)).take(samples)
    }

    /// All numbers.
    pub fn numbers(&self) -> impl Iterator<Item = f64> {
        self.values.iter().copied().filter(|value| !value.is_nan())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_without_the_field_is_a_gap() {
        let mut column = Column::default();
        column.set(1, 5.0);
        column.set(1, 6.0);
        column.set(3, 7.0);
        assert_eq!(column.values(5).collect::<Vec<_>>(), [None, Some(5.0), None, Some(7.0), None]);
        assert_eq!(column.numbers().collect::<Vec<_>>(), [5.0, 7.0]);
    }
}
