//! Which combinations of an operation's parameters are tried. Most faults show with one value or with two together, so
//! by default it is a small set in which any two values of two axes meet; the variable PTUNE_CASES asks for more.

use crate::usage;
use anyhow::Result;

/// How many of the combinations are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// So many that any two values of two axes meet, if they may.
    Pairs,
    /// So many of all, spread evenly over them.
    Sample(usize),
    All,
}

impl Extent {
    /// What PTUNE_CASES says: nothing, a number, or `all`.
    pub fn from_environment() -> Result<Extent> {
        match std::env::var("PTUNE_CASES").unwrap_or_default().as_str() {
            "" => Ok(Extent::Pairs),
            "all" => Ok(Extent::All),
            text => match text.parse() {
                Ok(count) if count > 0 => Ok(Extent::Sample(count)),
                _ => usage!("PTUNE_CASES={text}: neither `all` nor a number of cases"),
            },
        }
    }

    /// Combinations of the axes' values, by their indices: of axis a, 0 to sizes\[a\] - 1. `allowed` says what may stand
    /// together.
    pub fn combinations<const N: usize>(self, sizes: [usize; N], allowed: impl Fn([usize; N]) -> bool) -> Vec<[usize; N]> {
        let all: Vec<[usize; N]> = product(sizes).filter(|&row| allowed(row)).collect();
        match self {
            Extent::All => all,
            Extent::Pairs => pairwise(sizes, &all),
            Extent::Sample(count) => {
                // A stride that has no factor in common with the axes, so that no value is left out.
                let count = count.min(all.len());
                (0..count).map(|number| all[(number as u128 * 2_654_435_761 % all.len() as u128) as usize]).collect()
            }
        }
    }
}

/// The whole product, the last axis fastest.
fn product<const N: usize>(sizes: [usize; N]) -> impl Iterator<Item = [usize; N]> {
    (0..sizes.iter().product()).map(move |mut number: usize| {
        let mut row = [0; N];
        for axis in (0..N).rev() {
            row[axis] = number % sizes[axis];
            number /= sizes[axis];
        }
        row
    })
}

/// Numbers of the pairs of values that stand together in a row.
fn pairs<const N: usize>(sizes: [usize; N], row: [usize; N]) -> impl Iterator<Item = usize> {
    let starts = sizes.iter().scan(0, |sum, &size| Some(std::mem::replace(sum, *sum + size)));
    let mut values = [0; N];
    values.iter_mut().zip(starts).zip(row).for_each(|((value, start), index)| *value = start + index);
    let all: usize = sizes.iter().sum();
    (0..N).flat_map(move |second| (0..second).map(move |first| values[first] * all + values[second]))
}

/// Greedily, the row that brings most pairs that no row before has; the first of equal ones.
fn pairwise<const N: usize>(sizes: [usize; N], all: &[[usize; N]]) -> Vec<[usize; N]> {
    let values: usize = sizes.iter().sum();
    let mut missing = vec![false; values * values];
    all.iter().flat_map(|&row| pairs(sizes, row)).for_each(|pair| missing[pair] = true);
    // What a row brings only ever grows less, so what it last brought is a bound.
    let mut bounds = vec![usize::MAX; all.len()];
    let mut chosen = Vec::new();
    loop {
        let (mut best, mut most) = (0, 0);
        for (index, bound) in bounds.iter_mut().enumerate() {
            if *bound > most {
                *bound = pairs(sizes, all[index]).filter(|&pair| missing[pair]).count();
                if *bound > most {
                    (best, most) = (index, *bound);
                }
            }
        }
        if most == 0 {
            return chosen;
        }
        pairs(sizes, all[best]).for_each(|pair| missing[pair] = false);
        chosen.push(all[best]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn met<const N: usize>(sizes: [usize; N], rows: &[[usize; N]]) -> BTreeSet<usize> {
        rows.iter().flat_map(|&row| pairs(sizes, row)).collect()
    }

    /// Every pair of two axes' values that may stand together does, nothing that is forbidden does, and it takes few rows.
    #[test]
    fn every_pair_is_met() {
        let sizes = [5, 2, 3, 4, 2, 3];
        let free = Extent::Pairs.combinations(sizes, |_| true);
        let expected: usize = (0..6).flat_map(|b| (0..b).map(move |a| sizes[a] * sizes[b])).sum();
        assert_eq!(met(sizes, &free).len(), expected);
        // No fewer than the two largest axes have pairs, and no more than half as many again.
        assert!((20..=30).contains(&free.len()), "{} rows", free.len());

        let allowed = |[a, b, c, ..]: [usize; 6]| !(a == 4 && b == 1 || b == 0 && c == 2);
        let some = Extent::Pairs.combinations(sizes, allowed);
        assert!(some.iter().all(|&row| allowed(row)));
        let all = Extent::All.combinations(sizes, allowed);
        assert_eq!(met(sizes, &some), met(sizes, &all));
        // (4, 1) and (0, 2) themselves, and 4 with 2, which would need both b.
        assert_eq!(met(sizes, &some).len(), expected - 3);
    }

    #[test]
    fn the_same_rows_every_time() {
        let rows = || Extent::Pairs.combinations([4, 3, 3], |_| true);
        assert_eq!(rows(), rows());
        assert_eq!(rows()[0], [0, 0, 0]);
    }

    #[test]
    fn samples_are_distinct_and_reach_every_value() {
        let all = Extent::All.combinations([7, 4, 5, 6], |_| true);
        let sample = Extent::Sample(120).combinations([7, 4, 5, 6], |_| true);
        assert_eq!((all.len(), sample.len(), sample.iter().collect::<BTreeSet<_>>().len()), (840, 120, 120));
        for (axis, size) in [7, 4, 5, 6].into_iter().enumerate() {
            assert_eq!(sample.iter().map(|row| row[axis]).collect::<BTreeSet<_>>().len(), size);
        }
        assert_eq!(Extent::Sample(1000).combinations([7, 4, 5, 6], |_| true).len(), 840);
    }
}
