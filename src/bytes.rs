//! Numbers of bytes in messages.

use std::fmt;

/// Bytes for people: three significant digits and a binary unit.
pub struct Bytes(pub usize);

impl fmt::Display for Bytes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut value = self.0 as f64;
        if value < 1024.0 {
            return write!(formatter, "{} B", self.0);
        }
        for unit in ["KiB", "MiB", "GiB", "TiB"] {
            value /= 1024.0;
            if value < 1000.0 || unit == "TiB" {
                let digits = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
                return write!(formatter, "{value:.digits$} {unit}");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_read_well() {
        assert_eq!([10, 1536, 20_000_000, 19_761_365_000].map(|n| Bytes(n).to_string()), ["10 B", "1.50 KiB", "19.1 MiB", "18.4 GiB"]);
    }
}
