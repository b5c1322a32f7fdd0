//! A GPU as the process has it: one context and the build's kernels, loaded when it is first opened and kept until the
//! process ends. The last release of a context would reset it under libraries that keep state of their own (cuBLAS), and
//! loading the kernels again for every run of a sweep or every check of `ptune selftest` takes longer than the check.

use super::library;
use anyhow::{Context as _, Result, bail, ensure};
use cudarc::driver::result::{self, function, module};
use cudarc::driver::sys;
use std::collections::BTreeMap;
use std::ffi::CString;
use std::sync::{Mutex, PoisonError};

/// Kernels of this build: a fatbin a file of `cuda/`; none where it was built without nvcc.
static FATBINS: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/fatbins.rs"));

/// GPUs that were opened, by their numbers.
static OPENED: Mutex<BTreeMap<usize, &Gpu>> = Mutex::new(BTreeMap::new());

/// More dynamic shared memory than this has to be asked for.
const PLAIN_SHARED: u32 = 48 << 10;
/// Percent of what a multiprocessor has for both that is shared memory, not cache.
const ALL_SHARED: u32 = 100;

/// What the build's kernels are for: "sm_80 sm_90a"; None where it has none.
pub fn architectures() -> Option<&'static str> {
    option_env!("PTUNE_CUDA").filter(|_| !FATBINS.is_empty())
}

/// A context that is made current on the calling thread.
#[derive(Clone, Copy)]
pub struct Context(sys::CUcontext);

// SAFETY: contexts may be used from any thread.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    pub fn enter(self) -> Result<()> {
        // SAFETY: a primary context, which is never released.
        unsafe { result::ctx::set_current(self.0)? };
        Ok(())
    }
}

pub struct Gpu {
    device: sys::CUdevice,
    pub context: Context,
    modules: Vec<sys::CUmodule>,
    kernels: Mutex<BTreeMap<&'static str, sys::CUfunction>>,
}

// SAFETY: handles of the driver may be used from any thread.
unsafe impl Send for Gpu {}
// SAFETY: as above; what changes is behind a mutex.
unsafe impl Sync for Gpu {}

impl Gpu {
    /// How many GPUs this machine has; 0 where it has no NVIDIA driver. An error names what keeps them from use.
    pub fn count() -> Result<usize> {
        if !library::has_driver() {
            return Ok(0);
        }
        library::load()?;
        Ok(result::device::get_count().context("counting the GPUs")? as usize)
    }

    /// Whether there is a GPU of a number, and all that its use needs. Errors name what is missing.
    pub fn check(ordinal: usize) -> Result<()> {
        library::load()?;
        let count = result::device::get_count().context("counting the GPUs")?;
        ensure!(count > 0, "the NVIDIA driver finds no GPU; use --device cpu");
        ensure!(
            ordinal < count as usize,
            "there is no GPU {ordinal}: this machine has {count}, counted from 0; use another or --device cpu"
        );
        Ok(())
    }

    /// The GPU of a number, its context current on this thread.
    pub fn open(ordinal: usize) -> Result<&'static Gpu> {
        let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
        let gpu = match opened.get(&ordinal) {
            Some(gpu) => gpu,
            None => *opened.entry(ordinal).or_insert(Box::leak(Box::new(Gpu::new(ordinal)?))),
        };
        gpu.context.enter()?;
        Ok(gpu)
    }

    fn new(ordinal: usize) -> Result<Gpu> {
        let Some(architectures) = architectures() else { bail!("this build has no kernels for a GPU, because there was no nvcc") };
        Gpu::check(ordinal)?;
        let device = result::device::get(ordinal as i32)?;
        // SAFETY: a device that was just found.
        let context = Context(unsafe { result::primary_ctx::retain(device) }.context("the GPU gives no context")?);
        context.enter()?;
        let mut modules = Vec::new();
        for (name, bytes) in FATBINS {
            // The driver reads whole words.
            let image: Vec<u64> =
                bytes.chunks(8).map(|chunk| std::array::from_fn(|i| chunk.get(i).copied().unwrap_or(0))).map(u64::from_ne_bytes).collect();
            // SAFETY: a fatbin that nvcc made, which the driver copies.
            let module = unsafe { module::load_data(image.as_ptr().cast()) };
            modules.push(module.with_context(|| format!("the GPU takes no kernels of {name}; this build is for {architectures}"))?);
        }
        Ok(Gpu { device, context, modules, kernels: Mutex::default() })
    }

    /// The kernel of a name, ready for that much shared memory.
    pub fn kernel(&self, name: &'static str, shared: u32) -> Result<sys::CUfunction> {
        let mut kernels = self.kernels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(&kernel) = kernels.get(name) {
            return Ok(kernel);
        }
        let symbol = CString::new(name)?;
        // SAFETY: modules stay loaded.
        let found = self.modules.iter().find_map(|&module| unsafe { module::get_function(module, symbol.clone()) }.ok());
        let kernel = found.with_context(|| format!("this build has no kernel {name}"))?;
        // SAFETY: a kernel of a loaded module. Its launches all ask for the same.
        let set = |attribute, value: u32| unsafe { function::set_function_attribute(kernel, attribute, value as i32) };
        if shared > PLAIN_SHARED {
            set(sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, shared)
                .with_context(|| format!("{name}: the GPU has less than {shared} bytes of shared memory a block"))?;
        }
        if shared > 0 {
            // Kernels with tiles are sized for two blocks a multiprocessor, whose memory would else be the first-level cache's
            // as far as the driver likes.
            set(sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, ALL_SHARED)
                .with_context(|| format!("{name}: shared memory in place of cache"))?;
        }
        kernels.insert(name, kernel);
        Ok(kernel)
    }

    fn attribute(&self, which: sys::CUdevice_attribute) -> i32 {
        // SAFETY: a device that exists.
        unsafe { result::device::get_attribute(self.device, which) }.unwrap_or(0)
    }

    pub fn name(&self) -> String {
        result::device::get_name(self.device).unwrap_or_else(|_| "GPU".into())
    }

    pub fn compute_capability(&self) -> String {
        let major = self.attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
        let minor = self.attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
        format!("{major}.{minor}")
    }

    pub fn multiprocessors(&self) -> Option<usize> {
        usize::try_from(self.attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)).ok()
    }
}
