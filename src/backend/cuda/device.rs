//! The driver of a GPU: CUDA's driver interface and cuBLASLt through cudarc's bindings, on one stream. One allocation,
//! kernels from the fatbins that the build embedded, copies through pinned memory that is allocated once.

use super::arguments::Arguments;
use super::driver::{Address, Driver, Launch, Move, Product, Source};
use super::gpu::Gpu;
use super::library;
use super::pinned::Pieces;
use super::products::Products;
use super::queue::{Download, Event, Pinned, Readbacks, Stream};
use super::reader::{Read, Reader, Reading};
use crate::backend::{FileBytes, Machine, Readback};
use crate::bytes::Bytes;
use anyhow::{Context as _, Result, bail, ensure};
use cudarc::driver::result::{self, event, stream};
use cudarc::driver::sys;
use rayon::prelude::*;
use std::ffi::c_void;
use std::sync::Arc;

/// Bytes of a piece of pinned memory, and how many copies to the device may be under way: those of several batches.
const PIECE: usize = 64 << 10;
const PIECES: usize = 64;
/// The same for transfers from files, which are large: so few are enough to read and to copy at once.
const READ_PIECE: usize = 4 << 20;
const READ_PIECES: usize = 4;
/// What a product may use beside its operands: what NVIDIA advises for Hopper, enough for all before it.
pub(super) const WORKSPACE: usize = 32 << 20;
/// Pieces for reading back.
const READBACKS: usize = 4;
/// Bytes that a thread clears at a time.
const CLEARED: usize = 16 << 20;

/// Transfers of a lane: a stream of its own, so that copies to the device and from it run beside each other; an event in
/// front of its latest transfer and one behind.
struct Lane {
    stream: Stream,
    before: Event,
    behind: Event,
    /// Its latest transfer, where that reads files and was not joined yet: `behind` is not recorded before it is.
    reading: Option<Reading>,
}

pub struct Device {
    gpu: &'static Gpu,
    stream: Stream,
    arena: Option<Address>,
    pieces: Pieces<Event>,
    readbacks: Arc<Readbacks>,
    /// Events with a time, made when first recorded.
    events: Vec<Event>,
    lanes: Vec<Lane>,
    /// What transfers may come from, and the thread that reads it.
    files: Vec<FileBytes>,
    reader: Option<Reader<Stream>>,
    products: Products,
    /// The host's part of the memory plan.
    host: Option<Pinned>,
    /// Where `pieces` and the reader's lie.
    pinned: Vec<Pinned>,
}

// SAFETY: handles of the driver may be used from any thread, and this value is used by one at a time.
unsafe impl Send for Device {}

impl Device {
    /// Opens the GPU of a number.
    pub fn open(ordinal: usize) -> Result<Device> {
        let gpu = Gpu::open(ordinal)?;
        let memory = Pinned::new(gpu.context, PIECES * PIECE)?;
        let pieces = Pieces::new(memory.pieces(PIECES, PIECE)?, PIECE);
        Ok(Device {
            gpu,
            stream: Stream::new()?,
            arena: None,
            pieces,
            readbacks: Readbacks::new(gpu.context, READBACKS, PIECE)?,
            events: Vec::new(),
            lanes: Vec::new(),
            files: Vec::new(),
            reader: None,
            products: Products::new(WORKSPACE)?,
            host: None,
            pinned: vec![memory],
        })
    }

    fn synchronise(&self) -> Result<()> {
        // SAFETY: the stream lives as long as this value.
        unsafe { stream::synchronize(self.stream.0) }.context("the GPU reports a failure of earlier work")
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // Failures while everything is given back change nothing any more.
        let _ = self.gpu.context.enter();
        // Ends when what it was asked for is in its queues, which are waited for below.
        drop(self.reader.take().map(Reader::stop));
        let _ = self.synchronise();
        // SAFETY: nothing is under way once both have been waited for, and each handle is given back once.
        unsafe {
            for lane in &self.lanes {
                let _ = stream::synchronize(lane.stream.0);
                let _ = stream::destroy(lane.stream.0);
            }
            if let Some(arena) = self.arena {
                let _ = result::free_sync(arena);
            }
            self.products.release();
            let _ = stream::destroy(self.stream.0);
        }
    }
}

impl Driver for Device {
    fn describe(&self) -> String {
        format!("{} (compute capability {})", self.gpu.name(), self.gpu.compute_capability())
    }

    fn machine(&self) -> Machine {
        let memory = self.gpu.context.enter().ok().and_then(|()| result::mem_get_info().ok());
        Machine {
            device: self.gpu.name(),
            threads: None,
            compute_capability: Some(self.gpu.compute_capability()),
            multiprocessors: self.gpu.multiprocessors(),
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
        self.gpu.context.enter()?;
        // SAFETY: zeroed below, and freed with this value.
        let arena = match unsafe { result::malloc_sync(bytes) } {
            Ok(arena) => arena,
            Err(error) => {
                let free = result::mem_get_info().map_or(0, |(free, _)| free);
                bail!(
                    "cannot allocate {} of GPU memory, {} are free ({error}); use --memory-budget, a smaller batch, a shorter text or a shorter prefix",
                    Bytes(bytes),
                    Bytes(free)
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
        self.gpu.context.enter()?;
        let host = Pinned::new(self.gpu.context, bytes).with_context(|| {
            let bytes = Bytes(bytes);
            format!("cannot pin {bytes} of host memory for streamed weights and offloaded activations; with --weights disk, weights of 16 bits stay in the checkpoint's files")
        })?;
        // By all threads: one alone takes seconds for a large model's.
        // SAFETY: just allocated.
        unsafe { std::slice::from_raw_parts_mut(host.start(), bytes) }.par_chunks_mut(CLEARED).for_each(|chunk| chunk.fill(0));
        Ok(self.host.insert(host).start() as Address)
    }

    fn write_host(&mut self, to: Address, bytes: &[u8]) -> Result<()> {
        self.gpu.context.enter()?;
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
            self.gpu.context.enter()?;
            let context = self.gpu.context;
            let memory = Pinned::new(context, READ_PIECES * READ_PIECE)?;
            let pieces = memory.pieces(READ_PIECES, READ_PIECE)?;
            self.pinned.push(memory);
            self.reader = Some(Reader::start(Pieces::new(pieces, READ_PIECE), move || context.enter())?);
        }
        Ok(())
    }

    fn transfer(&mut self, lane: usize, moves: &[Move]) -> Result<()> {
        self.gpu.context.enter()?;
        while self.lanes.len() <= lane {
            self.lanes.push(Lane { stream: Stream::new()?, before: Event::new()?, behind: Event::new()?, reading: None });
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
        self.gpu.context.enter()?;
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
        self.gpu.context.enter()?;
        self.pieces.upload(&mut self.stream, to, bytes)
    }

    fn read(&mut self, from: Address, bytes: &mut [u8]) -> Result<()> {
        self.gpu.context.enter()?;
        // SAFETY: the copy is waited for before `bytes` are anyone else's.
        unsafe { result::memcpy_dtoh_async(bytes, from, self.stream.0)? };
        self.synchronise()
    }

    fn read_later(&mut self, from: Address, bytes: usize) -> Result<Readback> {
        ensure!(bytes <= PIECE, "{bytes} bytes to read later");
        self.gpu.context.enter()?;
        let piece = self.readbacks.take()?;
        let (start, event) = (piece.start, piece.event.0);
        let copy = Download { context: self.gpu.context, piece: Some(piece), home: self.readbacks.clone() };
        // SAFETY: the piece is this copy's alone until its event.
        unsafe {
            let pinned = std::slice::from_raw_parts_mut(start, bytes);
            result::memcpy_dtoh_async(pinned, from, self.stream.0)?;
            event::record(event, self.stream.0)?;
        }
        Ok(Box::new(move || copy.wait(bytes)))
    }

    fn zero(&mut self, at: Address, bytes: usize) -> Result<()> {
        self.gpu.context.enter()?;
        // SAFETY: the caller's addresses are views of the arena.
        unsafe { result::memset_d8_async(at, 0, bytes, self.stream.0)? };
        Ok(())
    }

    fn copy(&mut self, from: Address, to: Address, bytes: usize) -> Result<()> {
        self.gpu.context.enter()?;
        // SAFETY: the caller's addresses are views of the arena.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream.0)? };
        Ok(())
    }

    fn record(&mut self, event: usize) -> Result<()> {
        self.gpu.context.enter()?;
        while self.events.len() <= event {
            self.events.push(Event::timed()?);
        }
        // SAFETY: both live as long as this value.
        unsafe { event::record(self.events[event].0, self.stream.0)? };
        Ok(())
    }

    fn seconds_between(&mut self, from: usize, to: usize) -> Result<f64> {
        let recorded =
            |event: usize| self.events.get(event).map(|event| event.0).with_context(|| format!("event {event} was not recorded"));
        let (from, to) = (recorded(from)?, recorded(to)?);
        self.gpu.context.enter()?;
        // SAFETY: both live as long as this value.
        let milliseconds = unsafe {
            event::synchronize(to).context("the GPU reports a failure of earlier work")?;
            event::elapsed(from, to)?
        };
        Ok(f64::from(milliseconds) / 1e3)
    }

    fn profiler(&mut self, on: bool) -> Result<()> {
        self.gpu.context.enter()?;
        self.synchronise()?;
        // SAFETY: a context is current.
        let answer = unsafe { if on { sys::cuProfilerStart() } else { sys::cuProfilerStop() } };
        answer.result().context(if on { "starting the profiler" } else { "stopping the profiler" })
    }

    unsafe fn launch(&mut self, launch: Launch, arguments: &mut Arguments) -> Result<()> {
        self.gpu.context.enter()?;
        let kernel = self.gpu.kernel(launch.kernel, launch.shared)?;
        let pointers: &mut [*mut c_void] = arguments.pointers();
        // SAFETY: the caller's promise; the driver copies the arguments.
        unsafe { result::launch_kernel(kernel, launch.grid.into(), launch.block.into(), launch.shared, self.stream.0, pointers) }
            .with_context(|| format!("starting {launch:?}"))
    }

    unsafe fn product(&mut self, product: &Product) -> Result<()> {
        self.gpu.context.enter()?;
        // SAFETY: the caller's promise.
        unsafe { self.products.run(product, self.stream.0) }.with_context(|| format!("cuBLASLt: {product:?}"))
    }
}
