//! Whether two groups of numbers differ by more than chance: Mann and Whitney's test, exact.
//!
//! The chance is that of all ways to split the numbers into groups of these sizes: it is counted, not approximated, so that
//! it holds for few numbers and for equal ones.

/// Returns the chance of a split at least as uneven as this one if the groups do not differ (two-sided).
pub fn p_value(one: &[f64], other: &[f64]) -> f64 {
    let ranks = doubled_ranks(one, other);
    let rank_sum: usize = ranks.iter().take(one.len()).sum();
    // The mean of all sums, doubled as the ranks are.
    let mean = one.len() * (ranks.len() + 1);
    let splits = splits_by_rank_sum(&ranks, one.len());
    let all: f64 = splits.iter().sum();
    let distance = rank_sum.abs_diff(mean);
    let as_uneven = splits.iter().enumerate().filter(|(sum, _)| sum.abs_diff(mean) >= distance);
    as_uneven.map(|(_, count)| count).sum::<f64>() / all
}

/// Returns the least chance that groups of these sizes can have: that of two that do not overlap.
#[allow(clippy::cast_precision_loss, reason = "a few dozen")]
pub fn least_p_value(one: usize, other: usize) -> f64 {
    let splits = (1..=other).map(|at| (one + at) as f64 / at as f64).product::<f64>();
    2.0 / splits
}

/// The rank of each number, doubled, so that the mean rank of equal numbers is whole as well.
fn doubled_ranks(one: &[f64], other: &[f64]) -> Vec<usize> {
    let all: Vec<f64> = one.iter().chain(other).copied().collect();
    let rank = |number: &f64| {
        let below = all.iter().filter(|other| *other < number).count();
        let equal = all.iter().filter(|other| *other == number).count();
        2 * below + equal + 1
    };
    all.iter().map(rank).collect()
}

/// How many ways there are to take `size` of the ranks, by their sum.
fn splits_by_rank_sum(ranks: &[usize], size: usize) -> Vec<f64> {
    let sums = ranks.iter().sum::<usize>() + 1;
    let mut counts = vec![vec![0.0; sums]; size + 1];
    if let Some(none) = counts.first_mut().and_then(|sums| sums.first_mut()) {
        *none = 1.0;
    }
    for &rank in ranks {
        // Larger groups first, so that no rank is taken twice.
        for taken in (1..=size).rev() {
            let (before, after) = counts.split_at_mut(taken);
            let (Some(fewer), Some(more)) = (before.last(), after.first_mut()) else { continue };
            more.iter_mut().skip(rank).zip(fewer).for_each(|(more, fewer)| *more += fewer);
        }
    }
    counts.pop().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(one: f64, other: f64) -> bool {
        (one - other).abs() < 1e-9
    }

    // The expected numbers are those of R's wilcox.test(exact = TRUE), and for equal numbers of an enumeration by hand.
    #[test]
    fn p_values_are_those_of_the_tables() {
        assert!(close(p_value(&[1.0, 2.0, 3.0], &[4.0, 5.0, 6.0]), 0.1));
        assert!(close(p_value(&[1.0, 2.0, 3.0, 4.0], &[5.0, 6.0, 7.0, 8.0]), 2.0 / 70.0));
        assert!(close(p_value(&[5.0, 6.0, 7.0, 8.0], &[1.0, 2.0, 3.0, 4.0]), 2.0 / 70.0));
        assert!(close(p_value(&[1.0, 3.0, 5.0], &[2.0, 4.0, 6.0]), 0.7));
        assert!(close(p_value(&[1.0, 1.0], &[1.0, 2.0]), 1.0));
        assert!(close(p_value(&[3.0; 5], &[3.0; 4]), 1.0));
        assert!(close(p_value(&[1.0, 1.0, 1.0], &[2.0, 2.0, 2.0]), 0.1));
    }

    #[test]
    fn the_least_p_value_is_that_of_groups_apart() {
        for (one, other) in [(3, 3), (4, 4), (3, 5), (8, 7), (1, 1)] {
            let low: Vec<f64> = (0..one).map(f64::from).collect();
            let high: Vec<f64> = (0..other).map(|at| f64::from(at) + 100.0).collect();
            let least = least_p_value(low.len(), high.len());
            assert!(close(p_value(&low, &high), least.min(1.0)), "{one} {other} {least}");
        }
    }

    #[test]
    fn large_groups_do_not_overflow() {
        let numbers: Vec<f64> = (0..32).map(f64::from).collect();
        let shifted: Vec<f64> = numbers.iter().map(|number| number + 0.5).collect();
        let p = p_value(&numbers, &shifted);
        assert!((0.5..=1.0).contains(&p), "{p}");
    }
}
