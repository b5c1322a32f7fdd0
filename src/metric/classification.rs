//! Metrics of one class an example, as scikit-learn computes them: accuracy, F1 and the Matthews correlation.

use super::ratio;

/// Gold, predicted and agreeing examples of every class. Every metric here is a function of these three: no matrix of
/// classes by classes is needed, which for thousands of labels would be larger than the data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassCounts {
    gold: Vec<u64>,
    predicted: Vec<u64>,
    correct: Vec<u64>,
}

impl ClassCounts {
    /// Counts pairs of (gold, predicted) class indices below `classes`.
    pub fn new(classes: usize, pairs: impl IntoIterator<Item = (usize, usize)>) -> ClassCounts {
        let mut counts = ClassCounts { gold: vec![0; classes], predicted: vec![0; classes], correct: vec![0; classes] };
        for (gold, predicted) in pairs {
            counts.gold[gold] += 1;
            counts.predicted[predicted] += 1;
            counts.correct[gold] += u64::from(gold == predicted);
        }
        counts
    }

    fn total(&self) -> u64 {
        self.gold.iter().sum()
    }

    /// Share of examples whose class is right; 0 for none.
    pub fn accuracy(&self) -> f64 {
        ratio(self.correct.iter().sum(), self.total())
    }

    /// Harmonic mean of precision and recall of one class; 0 where the class is neither in the data nor predicted
    /// (`f1_score(average="binary")` when the class is 1 of 2).
    pub fn f1(&self, class: usize) -> f64 {
        ratio(2 * self.correct[class], self.gold[class] + self.predicted[class])
    }

    /// Unweighted mean of F1 over the classes that occur in the gold or in the predicted values
    /// (`f1_score(average="macro")`).
    pub fn macro_f1(&self) -> f64 {
        let seen: Vec<usize> = (0..self.gold.len()).filter(|&class| self.gold[class] + self.predicted[class] > 0).collect();
        if seen.is_empty() {
            return 0.0;
        }
        seen.iter().map(|&class| self.f1(class)).sum::<f64>() / seen.len() as f64
    }

    /// Matthews correlation, for any number of classes (`matthews_corrcoef`): in -1..=1; 0 where all gold or all
    /// predicted values are the same class.
    pub fn matthews(&self) -> f64 {
        // In integers: the covariances are differences of large, nearly equal numbers.
        let sum_of_products = |left: &[u64], right: &[u64]| -> i128 {
            left.iter().zip(right).map(|(&left, &right)| i128::from(left) * i128::from(right)).sum()
        };
        let total = i128::from(self.total());
        let correct: i128 = self.correct.iter().map(|&count| i128::from(count)).sum();
        let covariance = correct * total - sum_of_products(&self.gold, &self.predicted);
        let gold_variance = total * total - sum_of_products(&self.gold, &self.gold);
        let predicted_variance = total * total - sum_of_products(&self.predicted, &self.predicted);
        if gold_variance == 0 || predicted_variance == 0 {
            return 0.0;
        }
        covariance as f64 / (gold_variance as f64 * predicted_variance as f64).sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected: scikit-learn's accuracy_score, f1_score(average="macro"), f1_score, matthews_corrcoef.
    #[track_caller]
    fn check(gold: &[usize], predicted: &[usize], classes: usize, expected: [f64; 4]) {
        let counts = ClassCounts::new(classes, gold.iter().copied().zip(predicted.iter().copied()));
        for (value, expected) in [counts.accuracy(), counts.macro_f1(), counts.f1(1), counts.matthews()].into_iter().zip(expected) {
            assert!((value - expected).abs() < 1e-15, "{value} instead of {expected}");
        }
    }

    #[test]
    fn several_classes_one_of_them_only_predicted_and_one_unseen() {
        check(
            &[0, 0, 1, 2, 2, 2, 1, 0, 2, 1],
            &[0, 1, 1, 2, 0, 2, 1, 0, 2, 3],
            5,
            [0.7, 0.5476190476190476, 0.6666666666666666, 0.5802588531856595],
        );
    }

    #[test]
    fn two_classes() {
        check(&[1, 0, 1, 1, 0, 0, 1, 0], &[1, 0, 0, 1, 1, 0, 1, 0], 2, [0.75, 0.75, 0.75, 0.5]);
    }

    #[test]
    fn a_constant_prediction_divides_by_zero_nowhere() {
        check(&[1, 0, 1, 1], &[0; 4], 2, [0.25, 0.2, 0.0, 0.0]);
        check(&[], &[], 2, [0.0; 4]);
    }
}
