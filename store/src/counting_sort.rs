//! Sorting by small numbers in linear time.

/// Returns the positions of all items, sorted by number. All numbers are below `end`. Equal numbers
/// keep their order.
pub fn by_number(numbers: impl Iterator<Item = u32> + Clone, end: usize) -> Vec<u32> {
    let mut next = vec![0; end + 1];
    let mut count = 0;
    for number in numbers.clone() {
        next[number as usize + 1] += 1;
        count += 1;
    }
    for number in 0..end {
        next[number + 1] += next[number];
    }
    let mut order = vec![0; count];
    for (place, number) in (0..).zip(numbers) {
        let to: &mut usize = &mut next[number as usize];
        order[*to] = place;
        *to += 1;
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_with_the_same_number_stay_in_order() {
        let order = |numbers: &[u32], end| by_number(numbers.iter().copied(), end);
        assert_eq!(order(&[2, 0, 2, 1, 0], 3), [1, 4, 3, 0, 2]);
        assert_eq!(order(&[2, 0, 2, 1, 0], 9), [1, 4, 3, 0, 2]);
        assert!(order(&[], 0).is_empty());
    }
}
