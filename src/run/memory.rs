//! What the process really used, to stand beside what the plan said.

use crate::engine::{Bytes, Loading};

/// Peak resident memory of this process in bytes (VmHWM), where the system tells.
pub fn peak_resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

/// How the frozen weights were loaded, and the most memory that this process held so far.
pub fn loading_line(loading: Loading) -> String {
    let mapped = match loading.mapped {
        0 => String::new(),
        bytes => format!(", {} stay where their file is mapped", readable(bytes as u64)),
    };
    let peak = peak_resident_bytes().map_or(String::new(), |bytes| format!("; {} of host memory at most", readable(bytes)));
    format!("loaded {} in {:.1} s{mapped}{peak}", readable(loading.bytes as u64), loading.time.as_secs_f64())
}

/// What was planned, beside what was measured: `grown` of the device, where it tells; of the host the most of this process.
pub fn measured_line(planned: usize, grown: Option<usize>, host: usize) -> String {
    let device = grown.map_or(String::new(), |grown| format!(", {} measured on the device", readable(grown as u64)));
    let host = if host > 0 { format!("; {} planned of host memory", readable(host as u64)) } else { String::new() };
    let peak = peak_resident_bytes().map_or(String::new(), |bytes| format!("; peak resident memory {}", readable(bytes)));
    format!("{} planned{device}{host}{peak}", readable(planned as u64))
}

/// By how much what is measured may differ from what was planned: the driver's own for kernels and libraries.
pub fn allowance(planned: usize) -> usize {
    (planned / 50).max(300 << 20)
}

/// Lets the peak begin anew at what is resident now, where the system can.
pub fn forget_peak() {
    // Without it the peak is that of the whole process, which is no error.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// Bytes in the unit that reads best.
pub fn readable(bytes: u64) -> String {
    Bytes(bytes as usize).to_string()
}

/// A count with a comma between thousands.
pub fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readable_numbers() {
        assert_eq!([0, 1023, 1536, 23_802_675].map(readable), ["0 B", "1023 B", "1.50 KiB", "22.7 MiB"]);
        assert_eq!([0, 999, 1000, 12_345_678].map(grouped), ["0", "999", "1,000", "12,345,678"]);
    }

    #[test]
    fn the_peak_is_known_here() {
        assert!(peak_resident_bytes().is_none_or(|bytes| bytes > 1 << 20));
    }
}
