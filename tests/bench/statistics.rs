//! The few numbers that stand for many.

/// The middle one, or the mean of the two in the middle.
///
/// # Panics
/// Without values: a median of nothing would be a number made up.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let sorted = sorted(values);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 {
        sorted[middle]
    } else {
        f64::midpoint(sorted[middle - 1], sorted[middle])
    }
}

/// The largest.
///
/// # Panics
/// Without values.
pub(crate) fn worst(values: impl IntoIterator<Item = f64>) -> f64 {
    *sorted(values).last().expect("there are values")
}

fn sorted(values: impl IntoIterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    assert!(!values.is_empty(), "there are no values");
    values.sort_by(f64::total_cmp);
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_odd_number_is_one_of_them() {
        assert!((median([9.0, 1.0, 3.0]) - 3.0).abs() < 1e-9);
    }

    #[test]
    fn the_median_of_an_even_number_lies_between_two() {
        assert!((median([9.0, 1.0, 3.0, 4.0]) - 3.5).abs() < 1e-9);
    }

    #[test]
    fn the_worst_is_the_largest_wherever_it_stands() {
        assert!((worst([2.0, 7.5, 1.0]) - 7.5).abs() < 1e-9);
    }

    #[test]
    #[should_panic(expected = "no values")]
    fn nothing_has_no_median() {
        median([]);
    }
}
