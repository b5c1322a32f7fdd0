//! Measurements: whole training steps (`step`), their memory mode by mode (`memory`), single operations (`kernels`), and
//! what a machine can do at best (`rates`), which steps and operations are held against.
//!
//! Each is one JSON object. `kind` names it, `schema` counts changes of its fields; times are in seconds, sizes in bytes,
//! work in floating-point operations; what is not known is null.

mod kernels;
mod memory;
mod rates;
mod step;
mod table;

pub use kernels::{KernelOptions, kernels};
pub use memory::{MemoryOptions, memory};
pub use rates::Rates;
pub(super) use step::random_batch;
pub use step::{StepOptions, step};

use crate::backend::{Backend, Machine};
use serde_json::{Value, json};
use std::time::{SystemTime, UNIX_EPOCH};

/// Changes when a field of a report gets another meaning or goes away.
const SCHEMA: u64 = 1;

/// What was measured, for people and for programs.
pub struct Report {
    pub text: String,
    pub json: Value,
}

/// A report's fields that do not depend on what was measured.
fn header(kind: &str, machine: &Machine, rates: &Rates) -> Value {
    json!({
        "kind": kind,
        "schema": SCHEMA,
        "date": now(),
        "version": env!("CARGO_PKG_VERSION"),
        "commit": option_env!("PTUNE_COMMIT"),
        "machine": machine,
        "rates": {
            "copy_bytes_per_second": rates.copy,
            "copy_bytes": rates.copied,
            "product_flops_per_second": rates.product,
            "product_size": rates.size,
        },
    })
}

/// Fields of another object after those of the first.
pub(super) fn joined(mut first: Value, second: Value) -> Value {
    if let (Value::Object(first), Value::Object(second)) = (&mut first, second) {
        first.extend(second);
    }
    first
}

/// One line that says what computed.
fn machine_line(machine: &Machine, description: &str) -> String {
    let part = |name: &str, value: &Option<String>| value.as_ref().map_or(String::new(), |value| format!(", {name} {value}"));
    format!("{} ({description}){}{}", machine.device, part("driver", &machine.driver), part("CUDA", &machine.cuda))
}

/// The moment in UTC: 2026-11-25T18:43:24Z.
pub fn now() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    date(seconds)
}

/// Seconds since 1970 as a date, by the Gregorian calendar's cycle of 400 years (days counted from the 1st of March).
fn date(seconds: u64) -> String {
    let (days, rest) = (seconds / 86400 + 719_468, seconds % 86400);
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, month, year) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 }, era * 400 + year);
    let year = if month <= 2 { year + 1 } else { year };
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

/// Time of one run, from as many as take `least` seconds together; the first run of all is not counted.
fn seconds_of(backend: &mut dyn Backend, least: f64, mut run: impl FnMut(&mut dyn Backend)) -> f64 {
    run(backend);
    let mut repeats = 1;
    loop {
        backend.forget_marks();
        let from = backend.mark();
        (0..repeats).for_each(|_| run(backend));
        let to = backend.mark();
        let seconds = backend.seconds_between(from, to);
        // A failed backend has no times; the caller asks it what is wrong.
        if seconds >= least || seconds.is_nan() || repeats >= 1 << 20 {
            return seconds / f64::from(repeats);
        }
        repeats = ((1.2 * least / seconds.max(1e-9)) * f64::from(repeats)).clamp(f64::from(repeats + 1), 16.0 * f64::from(repeats)) as u32;
    }
}

/// A number with a unit of the right size: "4.10 TB/s".
pub(super) fn with_unit(value: f64, unit: &str) -> String {
    for (size, letter) in [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")] {
        if value >= size {
            return format!("{:.4} {letter}{unit}", Digits(value / size));
        }
    }
    format!("{:.4} {unit}", Digits(value))
}

/// A number with as many digits as the precision says, all in all.
struct Digits(f64);

impl std::fmt::Display for Digits {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let whole = if self.0 >= 1.0 { self.0.log10() as usize + 1 } else { 1 };
        let after = formatter.precision().unwrap_or(3).saturating_sub(whole);
        write!(formatter, "{:.after$}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::Cpu;

    #[test]
    fn dates() {
        assert_eq!(date(0), "1970-01-01T00:00:00Z");
        assert_eq!(date(951_868_799), "2000-02-29T23:59:59Z");
        assert_eq!(date(951_868_800), "2000-03-01T00:00:00Z");
        assert_eq!(date(1_795_632_204), "2026-11-25T18:43:24Z");
        assert_eq!(date(4_107_542_400), "2100-03-01T00:00:00Z");
    }

    #[test]
    fn units() {
        assert_eq!(
            [4.1234e12, 999.0, 12_345.0, 0.5].map(|value| with_unit(value, "B/s")),
            ["4.123 TB/s", "999.0 B/s", "12.35 kB/s", "0.500 B/s"]
        );
    }

    #[test]
    fn repeats_until_it_has_taken_long_enough() {
        let mut runs = 0;
        let seconds = seconds_of(&mut Cpu::<f32>::new(), 0.02, |_| {
            runs += 1;
            std::thread::sleep(std::time::Duration::from_millis(1));
        });
        assert!(seconds >= 1e-3 && runs > 4, "{seconds} {runs}");
    }
}
