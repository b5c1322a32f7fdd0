//! Names that somebody may have meant.

/// Letters to change, add or leave out between two names; case and hyphens do not count.
fn distance(left: &str, right: &str) -> usize {
    let [left, right] = [left, right].map(|name| name.to_lowercase().replace('_', "-"));
    strsim::levenshtein(&left, &right)
}

/// So many of the known names that are most like one, the most alike first.
pub fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>, count: usize) -> Vec<&'a str> {
    let mut ranked: Vec<(usize, &str)> = known.map(|other| (distance(name, other), other)).collect();
    ranked.sort();
    ranked.into_iter().take(count).map(|(_, other)| other).collect()
}

/// The known name that one is a slip of the hand away from.
pub fn meant<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    nearest(name, known, 1).pop().filter(|other| distance(name, other) <= (name.chars().count() + 1) / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_of_the_hand_are_near() {
        assert_eq!(
            [("", "abc"), ("glue/rtee", "glue/rte"), ("a_B", "A-b"), ("kitten", "sitting")].map(|(a, b)| distance(a, b)),
            [3, 1, 0, 3]
        );
        let known = || ["learning-rate", "batch-size", "epochs"].into_iter();
        assert_eq!(nearest("learning-rates", known(), 2), ["learning-rate", "batch-size"]);
        assert_eq!((meant("epoch", known()), meant("seed", known())), (Some("epochs"), None));
        assert_eq!(meant("a", ["qa"].into_iter()), None);
    }
}
