//! The driver of a GPU: CUDA's driver interface and cuBLASLt through cudarc's bindings, on one stream. One allocation,
//! kernels from the fatbins that the build embedded, copies through pinned memory that is allocated once.

use super::arguments::Arguments;
use super::driver::{Address, Driver, Launch, Move, Product, Source};
use super::library;
use super::pinned::{self, Pieces, Queue};
use super::products::Products;
use super::reader::{Read, Reader, Reading};
use crate::backend::{FileBytes, Machine, Readback};
use anyhow::{Context as _, Result, bail, ensure};
use cudarc::driver::result::{self, event, function, module, stream};
use cudarc::driver::sys;
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::{Arc, Mutex};

/// Kernels of this build: a fatbin a file of `cuda/`; none where it was built without nvcc.
static FATBINS: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/fatbins.rs"));

/// What the build's kernels are for: "sm_80 sm_90a"; None where it has none.
pub fn architectures() -> Option<&'static str> {
    option_env!("PTUNE_CUDA").filter(|_| !FATBINS.is_empty())
}

/// Bytes of a piece of pinned memory, and how many copies to the device may be under way: those of several batches.
const PIECE: usize = 64 << 10;
const PIECES: usize = 64;
/// The same for transfers from files, which are large: so few are enough to read and to copy at once.
const READ_PIECE: usize = 4 << 20;
const READ_PIECES: usize = 4;
/// What a product may use beside its operands: what NVIDIA advises for Hopper, enough for all before it.
pub(super) const WORKSPACE: usize = 32 << 20;
/// More dynamic shared memory than this has to be asked for.
const PLAIN_SHARED: u32 = 48 << 10;

/// An event of the driver.
struct Event(sys::CUevent);

// SAFETY: a handle, usable from any thread.
unsafe impl Send for Event {}

type Piece = pinned::Piece<Event>;

/// The one stream, in the order of which everything happens, or a lane's.
#[derive(Clone, Copy)]
struct Stream(sys::CUstream);

// SAFETY: a handle, usable from any thread.
unsafe impl Send for Stream {}

impl Queue for Stream {
    type Event = Event;

    unsafe fn upload(&mut self, to: Address, from: *const u8, bytes: usize) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { result::memcpy_htod_async(to, std::slice::from_raw_parts(from, bytes), self.0)? };
        Ok(())
    }

    fn record(&mut self, event: &mut Event) -> Result<()> {
        // SAFETY: both live as long as the device.
        unsafe { event::record(event.0, self.0)? };
        Ok(())
    }

    fn wait(&mut self, event: &Event) -> Result<()> {
        // SAFETY: as above.
        unsafe { event::synchronize(event.0)? };
        Ok(())
    }
}

/// A context that is made current on the calling thread.
#[derive(Clone, Copy)]
struct Context(sys::CUcontext);

// SAFETY: contexts may be used from any thread.
unsafe impl Send for Context {}

impl Context {
    fn enter(self) -> Result<()> {
        // SAFETY: the primary context, kept as long as the device.
        unsafe { result::ctx::set_current(self.0)? };
        Ok(())
    }
}

/// Transfers of a lane: a stream of its own, so that copies to the device and from it run beside each other; an event in
/// front of its latest transfer and one behind.
struct Lane {
    stream: Stream,
    before: Event,
    behind: Event,
    /// Its latest transfer, where that reads files and was not joined yet: `behind` is not recorded before it is.
    reading: Option<Reading>,
}

/// Pinned memory of that many bytes, of the context that is current.
fn pinned_piece(bytes: usize) -> Result<Piece> {
    // SAFETY: pinned memory for this process, cached as any other: it is written and read by the host.
    let start = unsafe { result::malloc_host(bytes, 0) }.context("pinned host memory")?;
    Ok(Piece { start: start.cast(), event: Event(event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)?) })
}

pub struct Device {
    device: sys::CUdevice,
    context: Context,
    stream: Stream,
    modules: Vec<sys::CUmodule>,
    kernels: HashMap<&'static str, sys::CUfunction>,
    arena: Option<Address>,
    pieces: Pieces<Event>,
    /// Pieces for reading back, when none is under way.
    readbacks: Arc<Mutex<Vec<Piece>>>,
    /// Events with a time, made when first recorded.
    events: Vec<sys::CUevent>,
    lanes: Vec<Lane>,
    host: Option<*mut c_void>,
    /// What transfers may come from, and the thread that reads it.
    files: Vec<FileBytes>,
    reader: Option<Reader<Stream>>,
    products: Products,
}

// SAFETY: handles of the driver may be used from any thread, and this value is used by one at a time.
unsafe impl Send for Device {}

impl Device {
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

    /// Opens the GPU of a number.
    pub fn open(ordinal: usize) -> Result<Device> {
        let Some(architectures) = architectures() else { bail!("this build has no kernels for a GPU, because there was no nvcc") };
        Device::check(ordinal)?;
        let device = result::device::get(ordinal as i32)?;
        // SAFETY: a device that was just found; the context is released with this value.
        let context = Context(unsafe { result::primary_ctx::retain(device) }.context("the GPU gives no context")?);
        context.enter()?;
        let stream = Stream(stream::create(stream::StreamKind::NonBlocking)?);
        let mut modules = Vec::new();
        for (name, bytes) in FATBINS {
            // The driver reads whole words.
            let image: Vec<u64> =
                bytes.chunks(8).map(|chunk| std::array::from_fn(|i| chunk.get(i).copied().unwrap_or(0))).map(u64::from_ne_bytes).collect();
            // SAFETY: a fatbin that nvcc made, which the driver copies.
            let module = unsafe { module::load_data(image.as_ptr().cast()) };
            modules.push(module.with_context(|| format!("the GPU takes no kernels of {name}; this build is for {architectures}"))?);
        }
        let pieces = Pieces::new((0..PIECES).map(|_| pinned_piece(PIECE)).collect::<Result<_>>()?, PIECE);
        let readbacks = Arc::new(Mutex::new((0..4).map(|_| pinned_piece(PIECE)).collect::<Result<_>>()?));
        let products = Products::new(WORKSPACE)?;
        let (kernels, events, lanes) = (HashMap::new(), Vec::new(), Vec::new());
        let (arena, host, files, reader) = (None, None, Vec::new(), None);
        Ok(Device { device, context, stream, modules, kernels, arena, pieces, readbacks, events, lanes, host, files, reader, products })
    }

    /// The kernel of a name, ready for that much shared memory.
    fn kernel(&mut self, name: &'static str, shared: u32) -> Result<sys::CUfunction> {
        if let Some(&kernel) = self.kernels.get(name) {
            return Ok(kernel);
        }
        let symbol = CString::new(name)?;
        // SAFETY: modules stay loaded.
        let found = self.modules.iter().find_map(|&module| unsafe { module::get_function(module, symbol.clone()) }.ok());
        let kernel = found.with_context(|| format!("this build has no kernel {name}"))?;
        if shared > PLAIN_SHARED {
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: a kernel of a loaded module. Its launches all ask for the same.
            unsafe { function::set_function_attribute(kernel, attribute, shared as i32) }
                .with_context(|| format!("{name}: the GPU has less than {shared} bytes of shared memory a block"))?;
        }
        self.kernels.insert(name, kernel);
        Ok(kernel)
    }

    fn attribute(&self, which: sys::CUdevice_attribute) -> i32 {
        // SAFETY: a device that exists.
        unsafe { result::device::get_attribute(self.device, which) }.unwrap_or(0)
    }

    fn name(&self) -> String {
        result::device::get_name(self.device).unwrap_or_else(|_| "GPU".into())
    }

    fn compute_capability(&self) -> String {
        let major = self.attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
        let minor = self.attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
        format!("{major}.{minor}")
    }

    fn synchronise(&self) -> Result<()> {
        // SAFETY: the stream lives as long as this value.
        unsafe { stream::synchronize(self.stream.0) }.context("the GPU reports a failure of earlier work")
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // Failures while everything is given back change nothing any more.
        let _ = self.context.enter();
        // Ends when what it was asked for is in its queues, which are waited for below.
        let read_pieces = self.reader.take().map_or(Vec::new(), Reader::stop);
        let _ = self.synchronise();
        for lane in &self.lanes {
            // SAFETY: as in `synchronise`.
            let _ = unsafe { stream::synchronize(lane.stream.0) };
        }
        let readbacks = self.readbacks.lock().map(|mut pieces| std::mem::take(&mut *pieces)).unwrap_or_default();
        // SAFETY: nothing is under way, and each handle is given back once.
        unsafe {
            for piece in self.pieces.list.drain(..).chain(readbacks).chain(read_pieces) {
                let _ = event::destroy(piece.event.0);
                let _ = result::free_host(piece.start.cast());
            }
            if let Some(arena) = self.arena {
                let _ = result::free_sync(arena);
            }
            if let Some(host) = self.host {
                let _ = result::free_host(host);
            }
            for &event in &self.events {
                let _ = event::destroy(event);
            }
            for lane in self.lanes.drain(..) {
                let _ = event::destroy(lane.before.0);
                let _ = event::destroy(lane.behind.0);
                let _ = stream::destroy(lane.stream.0);
            }
            self.products.release();
            for &module in &self.modules {
                let _ = module::unload(module);
            }
            let _ = stream::destroy(self.stream.0);
            let _ = result::primary_ctx::release(self.device);
        }
    }
}

/// A copy to the host under way; its piece goes back to the others when it is done with.
struct Download {
    context: Context,
    piece: Option<Piece>,
    home: Arc<Mutex<Vec<Piece>>>,
}

impl Download {
    fn wait(&self, bytes: usize) -> Vec<u8> {
        let Some(piece) = &self.piece else { return Vec::new() };
        // SAFETY: recorded after the copy into the piece.
        let done = self.context.enter().and_then(|()| Ok(unsafe { event::synchronize(piece.event.0) }?));
        match done {
            // SAFETY: the copy wrote that many bytes.
            Ok(()) => unsafe { std::slice::from_raw_parts(piece.start, bytes) }.to_vec(),
            // The failure itself is found by the next operation.
            Err(_) => vec![super::VOID; bytes],
        }
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        if let (Some(piece), Ok(mut home)) = (self.piece.take(), self.home.lock()) {
            home.push(piece);
        }
    }
}

impl Driver for Device {
    fn describe(&self) -> String {
        format!("{} (compute capability {})", self.name(), self.compute_capability())
    }

    fn machine(&self) -> Machine {
        let memory = self.context.enter().ok().and_then(|()| result::mem_get_info().ok());
        let multiprocessors = self.attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
        Machine {
            device: self.name(),
            threads: None,
            compute_capability: Some(self.compute_capability()),
            multiprocessors: usize::try_from(multiprocessors).ok(),
            driver: library::driver_release(),
            cuda: library::driver_version().ok().map(|(major, minor)| format!("{major}.{minor}")),
            memory_bytes: memory.map(|(_, total)| total),
            memory_used_bytes: memory.map(|(free, total)| total - free),
        }
    }

    fn workspace_bytes(&self) -> usize {
        WORKSPACE
    }

    fn allocate(&mut self, bytes: usize, workspace: usize) -> Result<Address> {
        ensure!(self.arena.is_none(), "the arena is allocated once");
        self.context.enter()?;
        // SAFETY: zeroed below, and freed with this value.
        let arena = match unsafe { result::malloc_sync(bytes) } {
            Ok(arena) => arena,
            Err(error) => {
                let free = result::mem_get_info().map_or(0, |(free, _)| free);
                bail!(
                    "cannot allocate {bytes} bytes of GPU memory, {free} are free ({error}); use a smaller batch, a shorter text or a shorter prefix"
                );
            }
        };
        self.arena = Some(arena);
        self.products.set_workspace(arena + workspace as u64);
        self.zero(arena, bytes)?;
        Ok(arena)
    }

    fn allocate_host(&mut self, bytes: usize) -> Result<Address> {
        ensure!(self.host.is_none(), "host memory is allocated once");
        self.context.enter()?;
        // SAFETY: pinned memory, which the device reaches under the same address; freed with this value.
        let start = unsafe { result::malloc_host(bytes, 0) };
        let start = start.with_context(|| format!("cannot pin {bytes} bytes of host memory for streamed weights and offloaded activations; with --weights disk, weights of 16 bits stay in the checkpoint's files"))?;
        self.host = Some(start);
        // SAFETY: just allocated.
        unsafe { std::ptr::write_bytes(start.cast::<u8>(), 0, bytes) };
        Ok(start as Address)
    }

    fn write_host(&mut self, to: Address, bytes: &[u8]) -> Result<()> {
        self.context.enter()?;
        self.synchronise()?;
        // SAFETY: the caller's addresses are views of the host memory, which nothing uses at the moment.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to as *mut u8, bytes.len()) };
        Ok(())
    }

    fn read_host(&mut self, from: Address, bytes: &mut [u8]) -> Result<()> {
        // SAFETY: the caller's addresses are views of the host memory.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    fn attach(&mut self, file: FileBytes) -> Result<()> {
        self.files.push(file);
        if self.reader.is_none() {
            self.context.enter()?;
            let pieces = (0..READ_PIECES).map(|_| pinned_piece(READ_PIECE)).collect::<Result<_>>()?;
            let context = self.context;
            self.reader = Some(Reader::start(Pieces::new(pieces, READ_PIECE), move || context.enter())?);
        }
        Ok(())
    }

    fn transfer(&mut self, lane: usize, moves: &[Move]) -> Result<()> {
        self.context.enter()?;
        while self.lanes.len() <= lane {
            let event = || Ok::<Event, anyhow::Error>(Event(event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)?));
            let stream = Stream(stream::create(stream::StreamKind::NonBlocking)?);
            self.lanes.push(Lane { stream, before: event()?, behind: event()?, reading: None });
        }
        let Lane { stream: side, before, behind, reading } = &mut self.lanes[lane];
        ensure!(reading.is_none(), "a transfer of lane {lane} was not joined before the next");
        let mut reads = Vec::new();
        // SAFETY: handles that live as long as this value; addresses are views of the arena and of pinned memory, which the
        // driver tells apart by themselves.
        unsafe {
            event::record(before.0, self.stream.0)?;
            stream::wait_event(side.0, before.0, sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT)?;
            for &Move { from, to, bytes } in moves {
                match from {
                    Source::Memory(from) => sys::cuMemcpyAsync(to, from, bytes, side.0).result()?,
                    Source::File { file, offset } => reads.push(Read { file: self.files[file].clone(), from: offset, to, bytes }),
                }
            }
        }
        match &self.reader {
            // The lane waits for `before` already, so that the thread's copies come behind it.
            Some(reader) if !reads.is_empty() => *reading = Some(reader.read(*side, reads)),
            // SAFETY: as above.
            _ => unsafe { event::record(behind.0, side.0)? },
        }
        Ok(())
    }

    fn join(&mut self, lane: usize) -> Result<()> {
        self.context.enter()?;
        let lane = self.lanes.get_mut(lane).with_context(|| format!("lane {lane} has no transfer to join"))?;
        let Lane { stream: side, behind, reading, .. } = lane;
        if let Some(reading) = reading.take() {
            reading.wait()?;
            // SAFETY: as above. Nothing else is asked of the lane before its next transfer.
            unsafe { event::record(behind.0, side.0)? };
        }
        // SAFETY: as above.
        unsafe { stream::wait_event(self.stream.0, behind.0, sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT)? };
        Ok(())
    }

    fn write(&mut self, to: Address, bytes: &[u8]) -> Result<()> {
        self.context.enter()?;
        self.pieces.upload(&mut self.stream, to, bytes)
    }

    fn read(&mut self, from: Address, bytes: &mut [u8]) -> Result<()> {
        self.context.enter()?;
        // SAFETY: the copy is waited for before `bytes` are anyone else's.
        unsafe { result::memcpy_dtoh_async(bytes, from, self.stream.0)? };
        self.synchronise()
    }

    fn read_later(&mut self, from: Address, bytes: usize) -> Result<Readback> {
        ensure!(bytes <= PIECE, "{bytes} bytes to read later");
        self.context.enter()?;
        let piece = self.readbacks.lock().ok().and_then(|mut pieces| pieces.pop());
        let piece = piece.context("more results are on their way to the host than there is room for")?;
        let (start, event) = (piece.start, piece.event.0);
        let copy = Download { context: self.context, piece: Some(piece), home: self.readbacks.clone() };
        // SAFETY: the piece is this copy's alone until its event.
        unsafe {
            let pinned = std::slice::from_raw_parts_mut(start, bytes);
            result::memcpy_dtoh_async(pinned, from, self.stream.0)?;
            event::record(event, self.stream.0)?;
        }
        Ok(Box::new(move || copy.wait(bytes)))
    }

    fn zero(&mut self, at: Address, bytes: usize) -> Result<()> {
        self.context.enter()?;
        // SAFETY: the caller's addresses are views of the arena.
        unsafe { result::memset_d8_async(at, 0, bytes, self.stream.0)? };
        Ok(())
    }

    fn copy(&mut self, from: Address, to: Address, bytes: usize) -> Result<()> {
        self.context.enter()?;
        // SAFETY: the caller's addresses are views of the arena.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream.0)? };
        Ok(())
    }

    fn record(&mut self, event: usize) -> Result<()> {
        self.context.enter()?;
        while self.events.len() <= event {
            self.events.push(event::create(sys::CUevent_flags::CU_EVENT_DEFAULT)?);
        }
        // SAFETY: both live as long as this value.
        unsafe { event::record(self.events[event], self.stream.0)? };
        Ok(())
    }

    fn seconds_between(&mut self, from: usize, to: usize) -> Result<f64> {
        let recorded = |event: usize| self.events.get(event).copied().with_context(|| format!("event {event} was not recorded"));
        let (from, to) = (recorded(from)?, recorded(to)?);
        self.context.enter()?;
        // SAFETY: both live as long as this value.
        let milliseconds = unsafe {
            event::synchronize(to).context("the GPU reports a failure of earlier work")?;
            event::elapsed(from, to)?
        };
        Ok(f64::from(milliseconds) / 1e3)
    }

    fn profiler(&mut self, on: bool) -> Result<()> {
        self.context.enter()?;
        self.synchronise()?;
        // SAFETY: a context is current.
        let answer = unsafe { if on { sys::cuProfilerStart() } else { sys::cuProfilerStop() } };
        answer.result().context(if on { "starting the profiler" } else { "stopping the profiler" })
    }

    unsafe fn launch(&mut self, launch: Launch, arguments: &mut Arguments) -> Result<()> {
        self.context.enter()?;
        let kernel = self.kernel(launch.kernel, launch.shared)?;
        let pointers: &mut [*mut c_void] = arguments.pointers();
        // SAFETY: the caller's promise; the driver copies the arguments.
        unsafe { result::launch_kernel(kernel, launch.grid.into(), launch.block.into(), launch.shared, self.stream.0, pointers) }
            .with_context(|| format!("starting {launch:?}"))
    }

    unsafe fn product(&mut self, product: &Product) -> Result<()> {
        self.context.enter()?;
        // SAFETY: the caller's promise.
        unsafe { self.products.run(product, self.stream.0) }.with_context(|| format!("cuBLASLt: {product:?}"))
    }
}
