//! The driver without a GPU: kernels are the files of `cuda/`, compiled by the C++ compiler against
//! `cuda/emulation/emulation.h` and linked into this program; device memory is the host's. For tests: thousands of
//! times slower than a GPU, but every launch site and every kernel runs as it is.
//!
//! What is asked for goes into a queue, as on a GPU, and happens in its order: at once, or as late as a program can tell,
//! when something waits for it.

pub mod kernels;
pub mod products;

use super::arguments::Arguments;
use super::driver::{Address, Driver, Launch, Move, Product, Source};
use super::pinned::{Piece, Pieces, Queue};
use crate::backend::{FileBytes, Machine, Readback};
use anyhow::{Context, Result, anyhow, bail, ensure};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::{BTreeMap, VecDeque};
use std::ffi::{CStr, CString};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// A launch with another number of arguments than the kernel takes, or of other sizes, would read beside them.
fn check_arguments(name: &CStr, arguments: &Arguments) -> Result<()> {
    let taken = kernels::argument_bytes(name).with_context(|| format!("there is no kernel {}", name.to_string_lossy()))?;
    let given: Vec<usize> = arguments.sizes().iter().map(|&size| usize::from(size)).collect();
    ensure!(taken == given, "{} takes arguments of {taken:?} bytes, and is given {given:?}", name.to_string_lossy());
    Ok(())
}

const ALIGNMENT: usize = 256;
/// Pieces of pinned memory: few, so that tests see each used again and again.
const PIECE: usize = 64 << 10;
const PIECES: usize = 4;

/// When queued work happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timing {
    /// When it is asked for.
    Now,
    /// When something waits for it.
    Late,
}

impl Timing {
    /// PTUNE_EMULATED_TIMING: `now` or `late`.
    pub fn of_environment() -> Result<Timing> {
        match std::env::var("PTUNE_EMULATED_TIMING").as_deref() {
            Err(_) | Ok("now") => Ok(Timing::Now),
            Ok("late") => Ok(Timing::Late),
            Ok(other) => bail!("PTUNE_EMULATED_TIMING={other}: give now or late"),
        }
    }
}

/// The host's memory as a device's.
pub struct Emulated {
    stream: Arc<Mutex<Stream>>,
    /// An event is the number of work items in front of it.
    pieces: Pieces<u64>,
    /// Whether a profiler would be watching.
    profiled: bool,
}

enum Work {
    Upload { to: Address, from: *const u8, bytes: usize },
    Download { from: Address, bytes: usize },
    Zero { at: Address, bytes: usize },
    Copy { from: Address, to: Address, bytes: usize },
    Move(Move),
    Record { event: usize },
    Launch { launch: Launch, arguments: Box<Arguments> },
    Product(Product),
}

/// Memory, and the queue of work on it.
struct Stream {
    order: i32,
    timing: Timing,
    /// Start and bytes.
    arena: Option<(*mut u8, Layout)>,
    host: Option<(*mut u8, Layout)>,
    /// What transfers may come from, and nothing writes to.
    files: Vec<FileBytes>,
    /// Transfers that were not joined yet, by lane.
    lanes: BTreeMap<usize, Vec<Move>>,
    /// What the pieces point into.
    _pinned: Vec<Vec<u8>>,
    queue: VecDeque<Work>,
    /// Work items that were asked for, and that happened.
    asked: u64,
    done: u64,
    /// Downloads that happened, by number.
    landed: BTreeMap<u64, Vec<u8>>,
    /// When each recorded event happened.
    events: Vec<Instant>,
    failure: Option<String>,
}

// SAFETY: the memory is owned, or promised to the queue, and touched through `&mut self` only.
unsafe impl Send for Stream {}

impl Drop for Stream {
    fn drop(&mut self) {
        for (start, layout) in [self.arena, self.host].into_iter().flatten() {
            // SAFETY: allocated with this layout.
            unsafe { dealloc(start, layout) }
        }
    }
}

impl Emulated {
    /// `order`: in which order a block's threads run, and how late asynchronous copies of a kernel end (emulation.h): 0
    /// ascending and late, 1 descending and early, from 2 on at random.
    pub fn new(order: u32) -> Emulated {
        Emulated::with_timing(order, Timing::Now)
    }

    pub fn with_timing(order: u32, timing: Timing) -> Emulated {
        let mut pinned = vec![vec![0; PIECE]; PIECES];
        let pieces = Pieces::new(pinned.iter_mut().map(|piece| Piece { start: piece.as_mut_ptr(), event: 0 }).collect(), PIECE);
        let (queue, landed, events, failure) = (VecDeque::new(), BTreeMap::new(), Vec::new(), None);
        let order = order as i32;
        let (arena, host, files, lanes) = (None, None, Vec::new(), BTreeMap::new());
        let stream =
            Stream { order, timing, arena, host, files, lanes, _pinned: pinned, queue, asked: 0, done: 0, landed, events, failure };
        Emulated { stream: Arc::new(Mutex::new(stream)), pieces, profiled: false }
    }

    fn stream(&self) -> MutexGuard<'_, Stream> {
        self.stream.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stream {
    /// Bytes of the arena or of host memory from an address.
    fn bytes(&mut self, from: Address, count: usize) -> Result<&mut [u8]> {
        for (start, layout) in [self.arena, self.host].into_iter().flatten() {
            let offset = (from as usize).wrapping_sub(start as usize);
            if offset <= layout.size() && count <= layout.size() - offset {
                // SAFETY: inside the memory; `&mut self` makes the access exclusive.
                return Ok(unsafe { std::slice::from_raw_parts_mut(start.add(offset), count) });
            }
        }
        bail!("{count} bytes at {from:#x} are not in memory that was allocated")
    }

    fn file_bytes(&self, file: usize, offset: usize, count: usize) -> Result<&[u8]> {
        let bytes = self.files.get(file).map(|file| (**file).as_ref()).with_context(|| format!("file {file} was not attached"))?;
        bytes.get(offset..offset + count).with_context(|| format!("{count} bytes at {offset} are not in file {file}"))
    }

    /// Queues work.
    fn ask(&mut self, work: Work) -> Result<()> {
        self.queue.push_back(work);
        self.asked += 1;
        match self.timing {
            Timing::Now => self.run_until(self.asked),
            Timing::Late => Ok(()),
        }
    }

    /// Lets work happen until `number` items have. An error: the first failure so far, after which nothing happens.
    fn run_until(&mut self, number: u64) -> Result<()> {
        while self.done < number {
            let Some(work) = self.queue.pop_front() else { break };
            self.done += 1;
            if self.failure.is_none() {
                self.failure = self.perform(work).err().map(|error| format!("{error:#}"));
            }
        }
        match &self.failure {
            Some(failure) => Err(anyhow!("{failure}")),
            None => Ok(()),
        }
    }

    fn perform(&mut self, work: Work) -> Result<()> {
        match work {
            Work::Upload { to, from, bytes } => {
                // SAFETY: `upload`'s caller keeps the source until an event behind this copy.
                let source = unsafe { std::slice::from_raw_parts(from, bytes) };
                self.bytes(to, bytes)?.copy_from_slice(source);
            }
            Work::Download { from, bytes } => {
                let copy = self.bytes(from, bytes)?.to_vec();
                self.landed.insert(self.done, copy);
            }
            Work::Zero { at, bytes } => self.bytes(at, bytes)?.fill(0),
            Work::Copy { from, to, bytes } => {
                ensure!(from.abs_diff(to) >= bytes as u64, "a copy of {bytes} bytes onto itself, from {from:#x} to {to:#x}");
                let copy = self.bytes(from, bytes)?.to_vec();
                self.bytes(to, bytes)?.copy_from_slice(&copy);
            }
            Work::Move(Move { from, to, bytes }) => {
                let copy = match from {
                    Source::Memory(from) => self.bytes(from, bytes)?.to_vec(),
                    Source::File { file, offset } => self.file_bytes(file, offset, bytes)?.to_vec(),
                };
                self.bytes(to, bytes)?.copy_from_slice(&copy);
            }
            Work::Record { event } => {
                ensure!(event <= self.events.len(), "event {event} after {} others", self.events.len());
                self.events.truncate(event);
                self.events.push(Instant::now());
            }
            // SAFETY: `Driver::launch`'s caller made the same promise.
            Work::Launch { launch, mut arguments } => unsafe { start(self.order, launch, &mut arguments)? },
            // SAFETY: as above.
            Work::Product(product) => unsafe { products::multiply(&product) },
        }
        Ok(())
    }
}

impl Queue for Stream {
    type Event = u64;

    unsafe fn upload(&mut self, to: Address, from: *const u8, bytes: usize) -> Result<()> {
        self.ask(Work::Upload { to, from, bytes })
    }

    fn record(&mut self, event: &mut u64) -> Result<()> {
        *event = self.asked;
        Ok(())
    }

    fn wait(&mut self, event: &u64) -> Result<()> {
        self.run_until(*event)
    }
}

impl Driver for Emulated {
    fn describe(&self) -> String {
        "emulated CUDA".into()
    }

    fn machine(&self) -> Machine {
        let arena = self.stream().arena.map_or(0, |(_, layout)| layout.size());
        Machine { device: "emulated CUDA".into(), memory_used_bytes: Some(arena), ..Machine::default() }
    }

    fn workspace_bytes(&self) -> usize {
        0
    }

    fn allocate(&mut self, bytes: usize, _: usize) -> Result<Address> {
        let mut stream = self.stream();
        ensure!(stream.arena.is_none(), "the arena is allocated once");
        let memory = zeroed(bytes)?;
        stream.arena = Some(memory);
        Ok(memory.0 as Address)
    }

    fn allocate_host(&mut self, bytes: usize) -> Result<Address> {
        let mut stream = self.stream();
        ensure!(stream.host.is_none(), "host memory is allocated once");
        let memory = zeroed(bytes)?;
        stream.host = Some(memory);
        Ok(memory.0 as Address)
    }

    fn write_host(&mut self, to: Address, bytes: &[u8]) -> Result<()> {
        let mut stream = self.stream();
        let all = stream.asked;
        stream.run_until(all)?;
        stream.bytes(to, bytes.len())?.copy_from_slice(bytes);
        Ok(())
    }

    fn read_host(&mut self, from: Address, bytes: &mut [u8]) -> Result<()> {
        bytes.copy_from_slice(self.stream().bytes(from, bytes.len())?);
        Ok(())
    }

    fn attach(&mut self, file: FileBytes) -> Result<()> {
        self.stream().files.push(file);
        Ok(())
    }

    /// At once; or, where things happen late, with the work that joins it.
    fn transfer(&mut self, lane: usize, moves: &[Move]) -> Result<()> {
        let mut stream = self.stream();
        ensure!(stream.lanes.insert(lane, moves.to_vec()).is_none(), "a transfer of lane {lane} was not joined before the next");
        if matches!(stream.timing, Timing::Now) {
            for &work in moves {
                stream.ask(Work::Move(work))?;
            }
        }
        Ok(())
    }

    fn join(&mut self, lane: usize) -> Result<()> {
        let mut stream = self.stream();
        let moves = stream.lanes.remove(&lane).with_context(|| format!("lane {lane} has no transfer to join"))?;
        if matches!(stream.timing, Timing::Late) {
            for work in moves {
                stream.ask(Work::Move(work))?;
            }
        }
        Ok(())
    }

    fn write(&mut self, to: Address, bytes: &[u8]) -> Result<()> {
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        self.pieces.upload(&mut *stream, to, bytes)
    }

    fn read(&mut self, from: Address, bytes: &mut [u8]) -> Result<()> {
        let mut stream = self.stream();
        let all = stream.asked;
        stream.run_until(all)?;
        bytes.copy_from_slice(stream.bytes(from, bytes.len())?);
        Ok(())
    }

    fn read_later(&mut self, from: Address, bytes: usize) -> Result<Readback> {
        let mut stream = self.stream();
        stream.ask(Work::Download { from, bytes })?;
        let (number, stream) = (stream.asked, self.stream.clone());
        Ok(Box::new(move || {
            let mut stream = stream.lock().unwrap_or_else(PoisonError::into_inner);
            // The failure itself is found by the next operation.
            let _ = stream.run_until(number);
            stream.landed.remove(&number).unwrap_or_else(|| vec![super::VOID; bytes])
        }))
    }

    fn zero(&mut self, at: Address, bytes: usize) -> Result<()> {
        self.stream().ask(Work::Zero { at, bytes })
    }

    fn copy(&mut self, from: Address, to: Address, bytes: usize) -> Result<()> {
        self.stream().ask(Work::Copy { from, to, bytes })
    }

    fn record(&mut self, event: usize) -> Result<()> {
        self.stream().ask(Work::Record { event })
    }

    fn seconds_between(&mut self, from: usize, to: usize) -> Result<f64> {
        let mut stream = self.stream();
        let all = stream.asked;
        stream.run_until(all)?;
        let time = |event: usize| stream.events.get(event).copied().with_context(|| format!("event {event} was not recorded"));
        Ok(time(to)?.checked_duration_since(time(from)?).context("events in the wrong order")?.as_secs_f64())
    }

    fn profiler(&mut self, on: bool) -> Result<()> {
        let mut stream = self.stream();
        let all = stream.asked;
        stream.run_until(all)?;
        drop(stream);
        ensure!(on != self.profiled, "the profiler is {} already", if on { "on" } else { "off" });
        self.profiled = on;
        Ok(())
    }

    unsafe fn launch(&mut self, launch: Launch, arguments: &mut Arguments) -> Result<()> {
        self.stream().ask(Work::Launch { launch, arguments: Box::new(arguments.clone()) })
    }

    unsafe fn product(&mut self, product: &Product) -> Result<()> {
        self.stream().ask(Work::Product(*product))
    }
}

fn zeroed(bytes: usize) -> Result<(*mut u8, Layout)> {
    let layout = Layout::from_size_align(bytes.max(ALIGNMENT), ALIGNMENT)?;
    // SAFETY: the layout has a size above zero.
    let start = unsafe { alloc_zeroed(layout) };
    ensure!(!start.is_null(), "cannot allocate {bytes} bytes");
    Ok((start, layout))
}

/// Runs a kernel.
///
/// # Safety
/// As `Driver::launch`.
unsafe fn start(order: i32, launch: Launch, arguments: &mut Arguments) -> Result<()> {
    let name = CString::new(launch.kernel)?;
    check_arguments(&name, arguments)?;
    let pointers = arguments.pointers().as_mut_ptr();
    // SAFETY: the caller's promise, for arguments of these sizes.
    unsafe { kernels::run(order, &name, launch.grid, launch.block, launch.shared, pointers) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(number: usize) -> Vec<u8> {
        (0..PIECE + 100).map(|i| (i * 7 + number * 31) as u8).collect()
    }

    /// Nothing happens before something waits, and then in the order in which it was asked for.
    #[test]
    fn work_happens_late_and_in_order() {
        let mut device = Emulated::with_timing(0, Timing::Late);
        let at = device.allocate(4 * PIECE, 0).unwrap();
        device.write(at, &[1; 16]).unwrap();
        let early = device.read_later(at, 16).unwrap();
        device.write(at, &[2; 8]).unwrap();
        device.zero(at + 4, 4).unwrap();
        assert_eq!(device.stream().done, 0, "something happened before anything waited");
        assert_eq!(early(), [1; 16]);
        assert_eq!(device.stream().done, 2);
        let mut bytes = [9; 16];
        device.read(at, &mut bytes).unwrap();
        assert_eq!(bytes, [2, 2, 2, 2, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1]);
    }

    /// More uploads than there are pieces arrive whole, however late copies happen.
    #[test]
    fn pinned_pieces_are_not_reused_too_early() {
        for timing in [Timing::Now, Timing::Late] {
            let mut device = Emulated::with_timing(0, timing);
            let at = device.allocate(16 * 2 * PIECE, 0).unwrap();
            let place = |number: usize| at + (number * 2 * PIECE) as u64;
            for number in 0..16 {
                device.write(place(number), &pattern(number)).unwrap();
            }
            for number in 0..16 {
                let mut bytes = vec![0; PIECE + 100];
                device.read(place(number), &mut bytes).unwrap();
                assert!(bytes == pattern(number), "{timing:?}: upload {number} arrived changed");
            }
        }
    }

    /// A failure comes late, and stays.
    #[test]
    fn failures_are_found_by_who_waits() {
        let mut device = Emulated::with_timing(0, Timing::Late);
        let at = device.allocate(256, 0).unwrap();
        let launch = Launch { kernel: "no_such_kernel", grid: [1; 3], block: [1; 3], shared: 0 };
        let mut none = Arguments::new(super::super::arguments::Arena { start: at, bytes: 256, ..Default::default() });
        // SAFETY: there is no such kernel.
        unsafe { device.launch(launch, &mut none).unwrap() };
        let later = device.read_later(at, 4).unwrap();
        assert_eq!(later(), [super::super::VOID; 4]);
        assert!(device.read(at, &mut [0; 4]).unwrap_err().to_string().contains("no_such_kernel"));
    }
}
