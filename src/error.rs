//! Errors a person can act on. Everything fallible returns `anyhow::Result`; `main` prints the whole chain on one line.
//! A failure is exit code 1; a `UsageError` (a flag that is wrong in itself, before any file is read) is exit code 2.

use std::path::Path;

/// A wrong command line or configuration value: exit code 2.
#[derive(Debug)]
pub struct UsageError(pub String);

impl std::fmt::Display for UsageError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

/// An error where there is no such directory; `remedy` says what to give.
pub fn require_directory(path: &Path, remedy: &str) -> anyhow::Result<()> {
    let shown = path.display();
    if path.is_dir() {
        return Ok(());
    }
    anyhow::ensure!(!path.exists(), "{shown}: is a file, a directory is wanted; {remedy}");
    anyhow::bail!("{shown}: no such directory; {remedy}")
}

/// Returns early with a [`UsageError`]; takes `format!` arguments.
#[macro_export]
macro_rules! usage {
    ($($argument:tt)*) => {
        return Err($crate::error::UsageError(format!($($argument)*)).into())
    };
}
