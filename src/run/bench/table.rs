//! Where a step's time goes: a row an operation, beside the least time that it could take.

use super::Rates;
use crate::backend::watch::Piece;
use crate::backend::{Mark, Scope};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fmt::Write;

/// One kind of operation in one step.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub name: String,
    pub calls: f64,
    pub seconds: f64,
    /// At the measured rates of copies and matrix products.
    pub floor: f64,
    pub bytes: f64,
    pub flops: f64,
}

impl Row {
    pub fn to_json(&self) -> Value {
        json!({
            "name": self.name,
            "calls": self.calls,
            "seconds": self.seconds,
            "floor_seconds": self.floor,
            "bytes": self.bytes,
            "flops": self.flops,
        })
    }
}

/// Rows of the pieces of `steps` steps, the longest first. The head and the optimizer are a row each.
pub fn rows(pieces: &[Piece], steps: f64, rates: &Rates, mut seconds: impl FnMut(Mark, Mark) -> f64) -> Vec<Row> {
    let (mut rows, mut index) = (Vec::new(), HashMap::new());
    for piece in pieces {
        let name = match piece.scope {
            Some(Scope::Head) => "head",
            Some(Scope::Optimizer) => "optimizer",
            _ => &piece.label,
        };
        let place = *index.entry(name.to_string()).or_insert_with(|| {
            rows.push(Row { name: name.to_string(), calls: 0.0, seconds: 0.0, floor: 0.0, bytes: 0.0, flops: 0.0 });
            rows.len() - 1
        });
        let row: &mut Row = &mut rows[place];
        row.calls += f64::from(u8::from(piece.first)) / steps;
        row.seconds += seconds(piece.from, piece.to) / steps;
        row.floor += piece.work.floor(rates.copy, rates.product) / steps;
        row.bytes += piece.work.bytes / steps;
        row.flops += piece.work.flops / steps;
    }
    rows.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    rows
}

/// The rows as text; `total` is the time of a whole step while it was cut into operations.
pub fn table(rows: &[Row], total: f64, rates: &Rates) -> String {
    let (flops, unit) = flops_unit(rates);
    let mut text = String::new();
    let mut line = |name: &str, calls: &str, seconds: f64, floor: Option<&Row>| {
        let share = 100.0 * seconds / total;
        let beside = floor.map_or(String::new(), |row| {
            let rate =
                |work: f64, unit: f64| if work > 0.0 { format!("{:>8.1}", work / row.seconds / unit) } else { format!("{:>8}", "-") };
            format!(
                "{:>10.3} {:>7.1} {} {}",
                1e3 * row.floor,
                100.0 * row.floor / row.seconds,
                rate(row.bytes, 1e9),
                rate(row.flops, flops)
            )
        });
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{}", format!("{name:<32} {calls:>6} {:>10.3} {share:>6.1} {beside}", 1e3 * seconds).trim_end());
    };
    for row in rows {
        line(&row.name, &format!("{:.0}", row.calls), row.seconds, Some(row));
    }
    let sum: f64 = rows.iter().map(|row| row.seconds).sum();
    line("between operations", "", (total - sum).max(0.0), None);
    let whole = Row {
        name: "step, cut into operations".into(),
        calls: 0.0,
        seconds: total,
        floor: rows.iter().map(|row| row.floor).sum(),
        bytes: rows.iter().map(|row| row.bytes).sum(),
        flops: rows.iter().map(|row| row.flops).sum(),
    };
    line(&whole.name, "", total, Some(&whole));
    let head = format!(
        "{:<32} {:>6} {:>10} {:>6} {:>10} {:>7} {:>8} {:>8}\n",
        "operation", "calls", "ms", "%", "floor ms", "floor %", "GB/s", unit
    );
    head + &text
}

/// What rates of computing are shown in: GPUs and CPUs are far apart.
pub fn flops_unit(rates: &Rates) -> (f64, &'static str) {
    if rates.product >= 1e12 { (1e12, "TFLOP/s") } else { (1e9, "GFLOP/s") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::watch::Work;

    #[test]
    fn rows_add_up() {
        let piece = |label: &str, scope, bytes, first, from, to| Piece {
            label: label.into(),
            scope,
            work: Work { bytes, flops: 0.0 },
            first,
            from: Mark(from),
            to: Mark(to),
        };
        let layer = Some(Scope::Layer(0));
        let pieces = [
            piece("norm forward", layer, 10.0, true, 0, 2),
            piece("linear 4 to 4", Some(Scope::Head), 1.0, true, 2, 3),
            piece("norm forward", layer, 10.0, true, 4, 8),
            piece("norm forward", layer, 0.0, false, 8, 9),
            piece("dropout", Some(Scope::Head), 1.0, true, 9, 10),
        ];
        let rates = Rates { copy: 10.0, copied: 0, product: 1.0, size: 0 };
        let found = rows(&pieces, 2.0, &rates, |from, to| (to.0 - from.0) as f64);
        assert_eq!(found.len(), 2);
        let norm = &found[0];
        assert_eq!((norm.name.as_str(), norm.calls, norm.seconds, norm.floor), ("norm forward", 1.0, 3.5, 1.0));
        assert_eq!((found[1].name.as_str(), found[1].calls, found[1].seconds), ("head", 1.0, 1.0));
        let text = table(&found, 5.0, &rates);
        assert!(text.lines().any(|line| line.starts_with("between operations") && line.contains("500.000")), "{text}");
    }
}
