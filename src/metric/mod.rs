//! Metrics as pure functions of gold and predicted values, with the results of the software that the field quotes:
//! scikit-learn for classes, seqeval for entities, the official scripts for SQuAD. All are fractions, not percent.

pub mod classification;
pub mod entities;
pub mod squad;

/// numerator / denominator, and 0 where there is nothing to divide by, as scikit-learn and seqeval have it.
fn ratio(numerator: u64, denominator: u64) -> f64 {
    if denominator == 0 { 0.0 } else { numerator as f64 / denominator as f64 }
}
