//! Errors a person can act on. Everything fallible returns `anyhow::Result`; `main` prints the whole chain on one line.
//! A failure is exit code 1; a `UsageError` (a flag that is wrong in itself, before any file is read) is exit code 2.

/// A wrong command line or configuration value: exit code 2.
#[derive(Debug)]
pub struct UsageError(pub String);

impl std::fmt::Display for UsageError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

/// Returns early with a [`UsageError`]; takes `format!` arguments.
#[macro_export]
macro_rules! usage {
    ($($argument:tt)*) => {
        return Err($crate::error::UsageError(format!($($argument)*)).into())
    };
}
