//! Writing a file so that a kill at any moment leaves either the old one or the new one.

use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// Removes what it names unless it is told that all went well, also when a panic passes through.
pub(super) struct Leftover(pub Option<PathBuf>);

impl Drop for Leftover {
    fn drop(&mut self) {
        if let Some(path) = self.0.take() {
            let _ = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        }
    }
}

/// Writes `path` under a temporary name beside it, flushes it to the disk and renames it. On failure the temporary file
/// is removed, `path` is as it was, and the error names it. The temporary name is always the same, so that what a
/// killed process left is overwritten by the next.
pub fn write_atomically(path: &Path, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let Some(name) = path.file_name() else { bail!("cannot write {}: not a file name", path.display()) };
    let temporary = path.with_file_name(format!(".{}.tmp", name.to_string_lossy()));
    let attempt = || -> Result<()> {
        let mut leftover = Leftover(Some(temporary.clone()));
        let mut writer = BufWriter::with_capacity(1 << 20, File::create(&temporary)?);
        write(&mut writer)?;
        writer.into_inner().map_err(|error| error.into_error())?.sync_all()?;
        fs::rename(&temporary, path)?;
        leftover.0 = None;
        sync_parent(path)
    };
    attempt().with_context(|| format!("cannot write {}", path.display()))
}

/// Makes a rename in the parent folder last.
pub(super) fn sync_parent(path: &Path) -> Result<()> {
    if cfg!(unix) {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(parent).and_then(|folder| folder.sync_all()).with_context(|| format!("cannot flush {}", parent.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        write_atomically(&path, |writer| Ok(writer.write_all(b"first")?)).unwrap();
        let failed = write_atomically(&path, |writer| {
            writer.write_all(&[0; 1 << 21])?;
            Err(std::io::Error::from_raw_os_error(libc::ENOSPC).into())
        });
        let message = format!("{:#}", failed.unwrap_err());
        assert!(message.contains("file") && message.contains("No space left"), "{message}");
        assert_eq!(fs::read(&path).unwrap(), b"first");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        write_atomically(&path, |writer| Ok(writer.write_all(b"second")?)).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
    }

    #[test]
    fn a_missing_folder_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("absent").join("file");
        let message = format!("{:#}", write_atomically(&path, |_| Ok(())).unwrap_err());
        assert!(message.contains("absent/file"), "{message}");
    }

    #[test]
    fn a_panic_leaves_no_temporary_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let caught = std::panic::catch_unwind(|| write_atomically(&path, |_| panic!("on purpose")));
        assert!(caught.is_err());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
