//! Compiles the kernels of `cuda/`: with nvcc, where there is one, into a fatbin a file, which the program embeds; and,
//! with the feature `emulation`, with the C++ compiler into objects that are linked into it. Tells the program which
//! commit and which architectures it was built from and for. Clippy links nothing, so that nothing is compiled for it.

use std::collections::hash_map::DefaultHasher;
use std::env;
use std::ffi::OsStr;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

/// Machine code for each of these; what comes after them translates the PTX of the first at its first start.
const ARCHITECTURES: [&str; 4] = ["80", "90a", "100", "120"];
const FLAGS: [&str; 7] = ["-O3", "-std=c++17", "-fatbin", "-Icuda", "--compress-mode=size", "-Xptxas", "-v"];
/// By which nvcc is given others.
const MORE_FLAGS: [&str; 2] = ["NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS"];
/// The first nvcc that knows them all.
const LEAST_NVCC: [u32; 2] = [12, 8];
/// Where `make` puts an nvcc on a machine that has none.
const FETCHED: &str = ".nvcc/nvidia/cu13/bin/nvcc";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=cuda");
    commit();
    tiles();
    let linted = env::var_os("RUSTC_WORKSPACE_WRAPPER").is_some_and(|wrapper| wrapper.to_string_lossy().contains("clippy"));
    let sources = if linted { Vec::new() } else { sources() };
    fatbins(&sources);
    #[cfg(feature = "emulation")]
    if !linted {
        emulation(&sources);
    }
}

/// `cuda/*.cu`, in order of their names.
fn sources() -> Vec<PathBuf> {
    let entries = std::fs::read_dir("cuda").into_iter().flatten().flatten().map(|entry| entry.path());
    let mut sources: Vec<PathBuf> = entries.filter(|path| path.extension() == Some(OsStr::new("cu"))).collect();
    sources.sort();
    sources
}

/// Writes `tiles.rs`: the tables of `cuda/attention_tiles.cuh`, by which launches are sized, as Rust's constants.
fn tiles() {
    let header = std::fs::read_to_string("cuda/attention_tiles.cuh").expect("cuda/attention_tiles.cuh is a source of this program");
    let mut text = String::new();
    for (from, to, count) in [
        ("kForward", "FORWARD", 4),
        ("kBackwardQuery", "BACKWARD_QUERY", 4),
        ("kBackwardKey", "BACKWARD_KEY", 4),
        ("kPrefix", "PREFIX", 4),
        ("kRelative", "RELATIVE", 1),
    ] {
        let start = header.find(&format!("constexpr Tile {from}[{count}] = {{"));
        let start = start.unwrap_or_else(|| panic!("attention_tiles.cuh has no table {from} of {count}"));
        let table = header[start..].lines().skip(1).take(count).map(|line| {
            let values = line.split('{').nth(1).and_then(|rest| rest.split('}').next()).unwrap_or_default();
            let values: Vec<usize> = values.split(',').filter_map(|value| value.trim().parse().ok()).collect();
            let &[warps, blocks, step, _] = values.as_slice() else { panic!("attention_tiles.cuh: no tile in {line:?}") };
            format!("Tile {{ warps: {warps}, blocks: {blocks}, step: {step} }}, ")
        });
        text += &format!("const {to}: [Tile; {count}] = [{}];\n", table.collect::<String>());
    }
    let out = env::var_os("OUT_DIR").expect("cargo sets OUT_DIR");
    std::fs::write(Path::new(&out).join("tiles.rs"), text).expect("OUT_DIR can be written");
}

/// nvcc by $NVCC, $CUDA_HOME, PATH, or where `make` puts it; an explicit choice that does not run is an error.
fn find_nvcc() -> Option<PathBuf> {
    for name in ["NVCC", "CUDA_HOME", "PTUNE_CUDA_ARCHS"].iter().chain(&MORE_FLAGS) {
        println!("cargo::rerun-if-env-changed={name}");
    }
    if let Some(path) = env::var_os("NVCC").map(PathBuf::from) {
        let version = release(&path).unwrap_or_else(|| panic!("NVCC={}: it does not run; unset it to look elsewhere", path.display()));
        assert!(version >= LEAST_NVCC, "NVCC={}: its release {version:?} is older than {LEAST_NVCC:?}", path.display());
        return Some(path);
    }
    let home = env::var_os("CUDA_HOME").map(|home| Path::new(&home).join("bin/nvcc"));
    let fetched = env::var_os("CARGO_MANIFEST_DIR").map(|folder| Path::new(&folder).join(FETCHED));
    let places = home.into_iter().chain([PathBuf::from("nvcc")]).chain(fetched);
    let found = places.into_iter().find(|path| release(path).is_some_and(|version| version >= LEAST_NVCC));
    if found.is_none() {
        let [major, minor] = LEAST_NVCC;
        println!("cargo::warning=no nvcc {major}.{minor} or later: this build runs on the CPU only (`make` fetches one; or set NVCC)");
    }
    found
}

/// What an nvcc that runs says of itself.
fn version(nvcc: &Path) -> Option<String> {
    let output = Command::new(nvcc).arg("--version").output().ok().filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok()
}

/// Its release.
fn release(nvcc: &Path) -> Option<[u32; 2]> {
    let text = version(nvcc)?;
    let mut numbers = text.split("release ").nth(1)?.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().ok());
    Some([numbers.next()??, numbers.next()??])
}

/// The architectures of this build: all, or those of PTUNE_CUDA_ARCHS ("80,90a"; nothing: no kernels for GPUs).
fn architectures() -> Vec<String> {
    match env::var("PTUNE_CUDA_ARCHS") {
        Ok(list) => list.split(',').map(|name| name.trim().trim_start_matches("sm_").to_string()).filter(|name| !name.is_empty()).collect(),
        Err(_) => ARCHITECTURES.map(String::from).to_vec(),
    }
}

/// Writes `fatbins.rs`, the list of (file, bytes), empty without nvcc; beside each fatbin a `.ptxas` with what the
/// assembler says of registers and memory, which tests read. Fatbins are kept for other builds of the same sources.
fn fatbins(sources: &[PathBuf]) {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let mut list = String::new();
    let architectures = architectures();
    if let Some(nvcc) = find_nvcc().filter(|_| !architectures.is_empty() && !sources.is_empty()) {
        let mut generate: Vec<String> = architectures.iter().map(|name| format!("-gencode=arch=compute_{name},code=sm_{name}")).collect();
        if architectures.iter().any(|name| name == "80") {
            generate.push("-gencode=arch=compute_80,code=compute_80".into());
        }
        let kept = Kept::new(&out, (version(&nvcc), FLAGS, &generate, MORE_FLAGS.map(env::var_os)));
        let mut running: Vec<(&PathBuf, PathBuf, Child)> = Vec::new();
        let jobs = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1);
        for source in sources {
            let fatbin = out.join(source.file_stem().expect("a name")).with_extension("fatbin");
            list += &format!("({:?}, include_bytes!({:?}) as &[u8]),\n", source.file_name().expect("a name"), fatbin);
            if kept.fetch(source, &fatbin) {
                continue;
            }
            if running.len() >= jobs {
                finish(running.remove(0), &kept);
            }
            let log = std::fs::File::create(fatbin.with_extension("ptxas")).expect("OUT_DIR can be written");
            let mut command = Command::new(&nvcc);
            command.args(FLAGS).args(&generate).arg(source).arg("-o").arg(&fatbin);
            running.push((source, fatbin, command.stderr(log).spawn().expect("nvcc ran a moment ago")));
        }
        running.into_iter().for_each(|compilation| finish(compilation, &kept));
        println!("cargo::rustc-env=PTUNE_CUDA={}", architectures.iter().map(|name| format!("sm_{name}")).collect::<Vec<_>>().join(" "));
        println!("cargo::rustc-env=PTUNE_NVCC={}", nvcc.display());
    }
    std::fs::write(out.join("fatbins.rs"), format!("&[\n{list}]")).expect("OUT_DIR can be written");
}

fn finish((source, fatbin, mut child): (&PathBuf, PathBuf, Child), kept: &Kept) {
    let status = child.wait().expect("nvcc was started");
    if !status.success() {
        let log = std::fs::read_to_string(fatbin.with_extension("ptxas")).unwrap_or_default();
        panic!("nvcc failed on {}:\n{log}", source.display());
    }
    kept.keep(source, &fatbin);
}

/// Fatbins of earlier builds, debug and release, in `target/kernels`: by a hash of all that nvcc made them from.
struct Kept {
    folder: PathBuf,
    /// Of compiler, flags and headers.
    hash: u64,
}

impl Kept {
    fn new(out: &Path, settings: impl Hash) -> Kept {
        // OUT_DIR is target/PROFILE/build/NAME/out.
        let folder = out.ancestors().nth(4).expect("OUT_DIR lies in cargo's target folder").join("kernels");
        let mut hasher = DefaultHasher::new();
        settings.hash(&mut hasher);
        let mut headers: Vec<PathBuf> = std::fs::read_dir("cuda").into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        headers.retain(|path| path.extension() == Some(OsStr::new("cuh")));
        headers.sort();
        for header in headers {
            (header.file_name(), std::fs::read(&header).expect("a file of cuda/")).hash(&mut hasher);
        }
        Kept { folder, hash: hasher.finish() }
    }

    fn path(&self, source: &Path) -> PathBuf {
        let mut hasher = DefaultHasher::new();
        (self.hash, std::fs::read(source).expect("a file of cuda/")).hash(&mut hasher);
        self.folder.join(format!("{}-{:016x}.fatbin", source.file_stem().expect("a name").to_string_lossy(), hasher.finish()))
    }

    /// Whether there was one.
    fn fetch(&self, source: &Path, fatbin: &Path) -> bool {
        let path = self.path(source);
        // The log is kept first, so that who has the fatbin has both.
        std::fs::copy(&path, fatbin).is_ok() && std::fs::copy(path.with_extension("ptxas"), fatbin.with_extension("ptxas")).is_ok()
    }

    /// A build that cannot keep them is none the worse for it.
    fn keep(&self, source: &Path, fatbin: &Path) {
        let path = self.path(source);
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let _ = std::fs::create_dir_all(&self.folder);
        for extension in ["ptxas", "fatbin"] {
            let partial = self.folder.join(format!("{name}.{extension}.{}", std::process::id()));
            let from = fatbin.with_extension(extension);
            let _ = std::fs::copy(from, &partial).and_then(|_| std::fs::rename(&partial, path.with_extension(extension)));
        }
    }
}

/// The kernels as host code. Each object registers its kernels when the program starts, so all are linked.
#[cfg(feature = "emulation")]
fn emulation(sources: &[PathBuf]) {
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").opt_level(2).warnings(false).include("cuda");
    for flag in ["-fno-strict-aliasing", "-Wno-psabi", "-Wno-unknown-pragmas", "-include", "emulation/emulation.h", "-xc++"] {
        build.flag(flag);
    }
    if env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|name| name == "x86_64") {
        build.flag("-march=x86-64-v3");
    }
    build.files(sources).link_lib_modifier("+whole-archive").compile("ptune_emulated_kernels");
}

/// PTUNE_COMMIT, where it is known.
fn commit() {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
        Some(String::from_utf8(output.stdout).ok()?.trim().to_string()).filter(|text| !text.is_empty())
    };
    for name in ["HEAD", "logs/HEAD"] {
        if let Some(path) = git(&["rev-parse", "--git-path", name]).filter(|path| Path::new(path).exists()) {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    // Not the commit of some other repository that the sources were unpacked into.
    let here = env::var("CARGO_MANIFEST_DIR").ok().and_then(|folder| std::fs::canonicalize(folder).ok());
    let top = git(&["rev-parse", "--show-toplevel"]).and_then(|folder| std::fs::canonicalize(folder).ok());
    if here != top {
        return;
    }
    if let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) {
        println!("cargo::rustc-env=PTUNE_COMMIT={commit}");
    }
}
