//! Tells the program which commit it was built from, where that is known.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
        Some(String::from_utf8(output.stdout).ok()?.trim().to_string()).filter(|text| !text.is_empty())
    };
    for name in ["HEAD", "logs/HEAD"] {
        if let Some(path) = git(&["rev-parse", "--git-path", name]).filter(|path| std::path::Path::new(path).exists()) {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    // Not the commit of some other repository that the sources were unpacked into.
    let here = std::env::var("CARGO_MANIFEST_DIR").ok().and_then(|folder| std::fs::canonicalize(folder).ok());
    let top = git(&["rev-parse", "--show-toplevel"]).and_then(|folder| std::fs::canonicalize(folder).ok());
    if here != top {
        return;
    }
    if let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) {
        println!("cargo::rustc-env=PTUNE_COMMIT={commit}");
    }
}
