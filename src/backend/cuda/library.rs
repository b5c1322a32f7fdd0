//! NVIDIA's libraries, found at run time: the program starts without them, and says which one is missing.

use anyhow::{Context, Result, bail, ensure};
use cudarc::{cublaslt, driver};
use std::ffi::CString;
use std::path::{Path, PathBuf};

/// The driver's interface that the kernels' toolkit needs, and the first release of the driver that has it.
const LEAST_VERSION: i32 = 13000;
const LEAST_DRIVER: &str = "580";

/// The first cuBLASLt of that toolkit, and what its versions count a major one as.
const LEAST_PRODUCTS: (usize, usize) = (13, 10000);

/// Where installers put cuBLASLt without telling the loader.
const FOLDERS: [&str; 4] =
    ["/usr/local/cuda/lib64", "/usr/local/cuda-13/lib64", "/usr/local/cuda/targets/x86_64-linux/lib", "/opt/cuda/lib64"];
/// Beneath a Python environment's site-packages: where NVIDIA's packages on PyPI have it, which PyTorch brings along.
const OF_PYTHON: &str = "nvidia/cu13/lib";

/// Whether libcuda is here.
pub fn has_driver() -> bool {
    // SAFETY: opens the library and closes it again.
    unsafe { driver::sys::is_culib_present() }
}

/// Loads libcuda and libcublasLt; an error names what is missing or too old.
pub fn load() -> Result<()> {
    ensure!(has_driver(), "no NVIDIA driver here: libcuda.so.1 is not found; install driver {LEAST_DRIVER} or later, or use --device cpu");
    driver::result::init().context("the NVIDIA driver does not start (cuInit)")?;
    let (major, minor) = driver_version()?;
    if major * 1000 + minor * 10 < LEAST_VERSION {
        bail!(
            "the NVIDIA driver is for CUDA {major}.{minor}; this program needs driver {LEAST_DRIVER} (CUDA 13.0) or later, or use --device cpu"
        );
    }
    // SAFETY: opens the library and closes it again.
    let has_products = || unsafe { cublaslt::sys::is_culib_present() };
    if !has_products() {
        open_elsewhere();
    }
    ensure!(
        has_products(),
        "libcublasLt.so.13 is not found: install cuBLAS 13 (package libcublas-13-0, or nvidia-cublas from PyPI) and put its folder into \
         LD_LIBRARY_PATH, or use --device cpu"
    );
    // The loader may have found an older one first, by a name without a version.
    // SAFETY: takes nothing and answers with a number.
    let version = unsafe { cublaslt::sys::cublasLtGetVersion() };
    ensure!(
        version / LEAST_PRODUCTS.1 >= LEAST_PRODUCTS.0,
        "libcublasLt is found in version {}.{}; this program needs {} or later: put the folder of libcublasLt.so.13 first in LD_LIBRARY_PATH, or use --device cpu",
        version / LEAST_PRODUCTS.1,
        version % LEAST_PRODUCTS.1 / 100,
        LEAST_PRODUCTS.0
    );
    Ok(())
}

/// The CUDA version that the driver is for.
pub fn driver_version() -> Result<(i32, i32)> {
    let mut version = 0;
    // SAFETY: writes one number.
    unsafe { driver::sys::cuDriverGetVersion(&mut version).result().context("cuDriverGetVersion")? };
    Ok((version / 1000, version % 1000 / 10))
}

/// The driver's own release ("580.95.05"), where its kernel module tells.
pub fn driver_release() -> Option<String> {
    release_in(&std::fs::read_to_string("/proc/driver/nvidia/version").ok()?)
}

/// The first word of a description that is a release: numbers with points between them.
fn release_in(text: &str) -> Option<String> {
    let is_release = |word: &&str| {
        let parts: Vec<&str> = word.split('.').collect();
        parts.len() >= 2 && parts.iter().all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()))
    };
    text.lines().next()?.split_whitespace().find(is_release).map(String::from)
}

/// Python's environments: those that are activated, and that of the python3 that is found first, which may be a link into one.
fn environments() -> Vec<PathBuf> {
    let activated = ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(std::env::var_os).map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join("python3")).find(|python| python.exists());
    let linked = |python: &PathBuf| Some(python.parent()?.join(std::fs::read_link(python).ok()?));
    let programs = std::iter::successors(found, linked).take(8);
    activated.chain(programs.filter_map(|python| Some(python.parent()?.parent()?.to_path_buf()))).collect()
}

/// The folders of an environment that NVIDIA's packages put libraries into.
fn of_python(environment: &Path) -> Vec<PathBuf> {
    let versions = std::fs::read_dir(environment.join("lib")).into_iter().flatten().flatten();
    let packages =
        |version: std::fs::DirEntry| ["site-packages", "dist-packages"].map(|folder| version.path().join(folder).join(OF_PYTHON));
    let mut folders: Vec<PathBuf> = versions.flat_map(packages).collect();
    folders.retain(|folder| folder.is_dir());
    folders.sort();
    folders
}

/// Opens cuBLASLt by its path. It stays loaded, so that the loader finds it by its name from then on.
fn open_elsewhere() {
    let home = std::env::var_os("CUDA_HOME").map(|home| Path::new(&home).join("lib64"));
    for folder in home.into_iter().chain(FOLDERS.map(Into::into)).chain(environments().iter().flat_map(|root| of_python(root))) {
        let Ok(path) = CString::new(folder.join("libcublasLt.so.13").to_string_lossy().into_owned()) else { continue };
        // SAFETY: NVIDIA's library, whose initialisers have no demands on us.
        if !unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) }.is_null() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_libraries_of_an_environment_are_found() {
        let environment = tempfile::tempdir().unwrap();
        let folder = environment.path().join("lib/python3.12/site-packages/nvidia/cu13/lib");
        assert!(of_python(environment.path()).is_empty());
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::create_dir_all(environment.path().join("lib/python3.11/site-packages")).unwrap();
        assert_eq!(of_python(environment.path()), [folder]);
    }

    #[test]
    fn releases_of_both_kinds_of_kernel_modules() {
        let open = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (dvs-builder)\nGCC version: 12.3.0";
        let closed = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.211.01  Sat Sep 13 08:00:00 UTC 2025";
        assert_eq!(release_in(open).as_deref(), Some("580.95.05"));
        assert_eq!(release_in(closed).as_deref(), Some("570.211.01"));
        assert_eq!(release_in(""), None);
    }
}
