//! The machine behind the functions: memory, streams and what is queued on them, events, and a count of all that was
//! asked for.

use ptune::backend::cuda::{Product, emulated};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::{CString, c_void};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// What a function answers: nothing, or what is wrong.
pub type Answer = Result<(), Fault>;

#[derive(Clone, Debug)]
pub enum Fault {
    /// A call that no driver takes.
    Refused(String),
    /// An answer that a driver gives to good callers, too.
    OutOfMemory,
    NotFound,
    /// Queued work went wrong; everything after it answers so.
    Failed(String),
}

/// How a library says what is wrong.
pub trait Status {
    fn of(answer: Answer) -> Self;
}

/// Refuses a call for a reason.
macro_rules! refuse {
    ($($text:tt)*) => { return Err($crate::world::Fault::Refused(format!($($text)*))) };
}
pub(crate) use refuse;

/// Device memory, and what a context takes of it.
pub const MEMORY: usize = 2 << 30;
pub const CONTEXT: usize = 300 << 20;
/// More dynamic shared memory has to be asked for, and the most there is.
pub const PLAIN_SHARED: u32 = 48 << 10;
pub const MOST_SHARED: u32 = 227 << 10;
/// The one context's handle.
pub const CONTEXT_HANDLE: usize = 0xC0;
/// What memory holds that nobody wrote: NaNs in every type.
const NEVER_WRITTEN: u8 = 0xFF;

thread_local! {
    /// Whether the context is current on this thread.
    pub static CURRENT: Cell<bool> = const { Cell::new(false) };
}

pub enum Work {
    Copy {
        from: u64,
        to: u64,
        bytes: usize,
    },
    /// From memory that is not pinned: taken when it was asked for.
    Write {
        bytes: Vec<u8>,
        to: u64,
    },
    Fill {
        at: u64,
        bytes: usize,
        value: u8,
    },
    Launch {
        kernel: CString,
        grid: [u32; 3],
        block: [u32; 3],
        shared: u32,
        arguments: Vec<u64>,
    },
    Product(Product),
    /// The event's record of a number happens.
    Record {
        event: usize,
        number: u64,
    },
    /// Waits for the event's record of a number, which was asked of a stream.
    Wait {
        event: usize,
        number: u64,
        stream: usize,
    },
}

#[derive(Default)]
pub struct Event {
    pub timed: bool,
    pub asked: u64,
    pub done: u64,
    /// Where the latest record was asked for, and when it happened.
    pub stream: usize,
    pub time: Option<Instant>,
}

pub struct Kernel {
    pub name: CString,
    pub bytes: Vec<usize>,
    pub shared: u32,
}

/// When queued work happens.
#[derive(Clone, Copy)]
enum Timing {
    Now,
    Late,
    Chance(u64),
}

pub struct World {
    timing: Timing,
    pub initialised: bool,
    /// Times that the context was retained.
    pub retained: usize,
    /// Start and bytes.
    pub device: BTreeMap<u64, usize>,
    pub pinned: BTreeMap<u64, usize>,
    pub streams: BTreeMap<usize, VecDeque<Work>>,
    pub events: BTreeMap<usize, Event>,
    pub modules: BTreeSet<usize>,
    pub kernels: Vec<Kernel>,
    /// Objects of cuBLASLt that were made and not destroyed.
    pub objects: BTreeMap<usize, crate::products::Object>,
    next_handle: usize,
    calls: BTreeMap<&'static str, u64>,
    failure: Option<String>,
}

static WORLD: LazyLock<Mutex<World>> = LazyLock::new(|| Mutex::new(World::new()));

/// The one world, locked.
pub fn world() -> MutexGuard<'static, World> {
    WORLD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether `bytes` from an address lie within one of these.
fn holds(memory: &BTreeMap<u64, usize>, at: u64, bytes: usize) -> bool {
    memory.range(..=at).next_back().is_some_and(|(&start, &size)| at - start + bytes as u64 <= size as u64)
}

impl World {
    fn new() -> World {
        let timing = match std::env::var("PTUNE_STAND_IN_TIMING").as_deref() {
            Err(_) | Ok("late") => Timing::Late,
            Ok("now") => Timing::Now,
            Ok(seed) => Timing::Chance(seed.parse().expect("PTUNE_STAND_IN_TIMING: now, late or a number")),
        };
        World {
            timing,
            initialised: false,
            retained: 0,
            device: BTreeMap::new(),
            pinned: BTreeMap::new(),
            streams: BTreeMap::new(),
            events: BTreeMap::new(),
            modules: BTreeSet::new(),
            kernels: Vec::new(),
            objects: BTreeMap::new(),
            next_handle: 0x1000,
            calls: BTreeMap::new(),
            failure: None,
        }
    }

    pub fn count(&mut self, function: &'static str) {
        *self.calls.entry(function).or_default() += 1;
    }

    /// Says on standard error why a call is refused.
    pub fn answer(&mut self, function: &str, answer: Answer) -> Answer {
        let answer = match (&self.failure, answer) {
            (Some(failure), Ok(())) => Err(Fault::Failed(failure.clone())),
            (_, answer) => answer,
        };
        if let Err(Fault::Refused(reason) | Fault::Failed(reason)) = &answer {
            eprintln!("stand-in: {function}: {reason}");
            self.count("refused");
        }
        answer
    }

    pub fn handle(&mut self) -> usize {
        self.next_handle += 0x10;
        self.next_handle
    }

    /// A call that needs a context, on a thread where it is current.
    pub fn in_context(&self) -> Answer {
        if !CURRENT.get() || self.retained == 0 {
            refuse!("no context is current on this thread");
        }
        Ok(())
    }

    pub fn allocated(&self) -> usize {
        self.device.values().sum()
    }

    /// Memory that nobody wrote.
    pub fn new_memory(&mut self, bytes: usize, on_device: bool) -> Result<u64, Fault> {
        if bytes == 0 {
            refuse!("an allocation of no bytes");
        }
        if on_device && self.allocated() + bytes + CONTEXT > MEMORY {
            return Err(Fault::OutOfMemory);
        }
        let layout = std::alloc::Layout::from_size_align(bytes, 512).map_err(|_| Fault::OutOfMemory)?;
        // SAFETY: the layout has a size.
        let start = unsafe { std::alloc::alloc(layout) };
        if start.is_null() {
            return Err(Fault::OutOfMemory);
        }
        // SAFETY: just allocated.
        unsafe { start.write_bytes(NEVER_WRITTEN, bytes) };
        let memory = if on_device { &mut self.device } else { &mut self.pinned };
        memory.insert(start as u64, bytes);
        Ok(start as u64)
    }

    /// Frees memory once everything queued is done, as a driver does.
    pub fn free(&mut self, start: u64, on_device: bool) -> Answer {
        self.run_everything()?;
        let memory = if on_device { &mut self.device } else { &mut self.pinned };
        let Some(bytes) = memory.remove(&start) else { refuse!("{start:#x} was not allocated") };
        // SAFETY: allocated with this layout.
        unsafe { std::alloc::dealloc(start as *mut u8, std::alloc::Layout::from_size_align(bytes, 512).expect("as before")) };
        Ok(())
    }

    pub fn on_device(&self, at: u64, bytes: usize) -> bool {
        holds(&self.device, at, bytes)
    }

    pub fn is_pinned(&self, at: u64, bytes: usize) -> bool {
        holds(&self.pinned, at, bytes)
    }

    /// Queues work on a stream.
    pub fn ask(&mut self, stream: usize, work: Work) -> Answer {
        let Some(queue) = self.streams.get_mut(&stream) else { refuse!("{stream:#x} is no stream that was created") };
        queue.push_back(work);
        match self.timing {
            Timing::Now => self.run(stream),
            Timing::Late => Ok(()),
            Timing::Chance(mut state) => {
                // Some stream gets on by some items, as far as others let it.
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                self.timing = Timing::Chance(state);
                let names: Vec<usize> = self.streams.keys().copied().collect();
                let stream = names[(state >> 33) as usize % names.len()];
                for _ in 0..state >> 61 {
                    if !self.is_blocked(stream) {
                        self.step(stream)?;
                    }
                }
                Ok(())
            }
        }
    }

    /// Whether a stream waits for another.
    fn is_blocked(&self, stream: usize) -> bool {
        match self.streams[&stream].front() {
            Some(Work::Wait { event, number, .. }) => self.events.get(event).is_some_and(|event| event.done < *number),
            _ => false,
        }
    }

    /// Lets everything on a stream happen, and what it waits for.
    pub fn run(&mut self, stream: usize) -> Answer {
        while self.streams.get(&stream).is_some_and(|queue| !queue.is_empty()) {
            self.step(stream)?;
        }
        Ok(())
    }

    pub fn run_everything(&mut self) -> Answer {
        let streams: Vec<usize> = self.streams.keys().copied().collect();
        streams.into_iter().try_for_each(|stream| self.run(stream))
    }

    /// Lets a stream get on until an event's record of a number happened on it.
    pub fn run_until(&mut self, event: usize, number: u64, stream: usize) -> Answer {
        while self.events.get(&event).is_some_and(|event| event.done < number) {
            if self.streams.get(&stream).is_none_or(VecDeque::is_empty) {
                refuse!("event {event:#x} was not recorded where it was asked for");
            }
            self.step(stream)?;
        }
        Ok(())
    }

    fn step(&mut self, stream: usize) -> Answer {
        let Some(work) = self.streams.get_mut(&stream).and_then(VecDeque::pop_front) else { return Ok(()) };
        if let Some(failure) = &self.failure {
            return Err(Fault::Failed(failure.clone()));
        }
        match work {
            Work::Copy { from, to, bytes } => {
                if from.abs_diff(to) < bytes as u64 {
                    refuse!("a copy of {bytes} bytes onto itself");
                }
                // SAFETY: both were found in memory that was allocated, and freeing waits for what is queued.
                unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes) };
            }
            // SAFETY: as above.
            Work::Write { bytes, to } => unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to as *mut u8, bytes.len()) },
            // SAFETY: as above.
            Work::Fill { at, bytes, value } => unsafe { std::ptr::write_bytes(at as *mut u8, value, bytes) },
            Work::Launch { kernel, grid, block, shared, mut arguments } => {
                let mut pointers: Vec<*mut c_void> = arguments.iter_mut().map(|word| std::ptr::from_mut(word).cast()).collect();
                // SAFETY: as many as the kernel takes; what they point to is the caller's promise.
                let done = unsafe { emulated::kernels::run(0, &kernel, grid, block, shared, pointers.as_mut_ptr()) };
                if let Err(error) = done {
                    self.failure = Some(format!("{error:#}"));
                    return Err(Fault::Failed(format!("{error:#}")));
                }
            }
            // SAFETY: operands were found in device memory.
            Work::Product(product) => unsafe { emulated::products::multiply(&product) },
            Work::Record { event, number } => {
                if let Some(event) = self.events.get_mut(&event) {
                    event.done = event.done.max(number);
                    event.time = Some(Instant::now());
                }
            }
            Work::Wait { event, number, stream } => self.run_until(event, number, stream)?,
        }
        Ok(())
    }

    /// Writes the counts. The context and its modules are the process's to the end.
    pub fn report(&self) {
        let Some(path) = std::env::var_os("PTUNE_STAND_IN_REPORT") else { return };
        let mut text: String = self.calls.iter().map(|(name, count)| format!("{name} {count}\n")).collect();
        let kept = [
            ("device memory", self.device.len()),
            ("pinned memory", self.pinned.len()),
            ("streams", self.streams.len()),
            ("events", self.events.len()),
            ("objects", self.objects.len()),
        ];
        text.extend(kept.iter().map(|(what, count)| format!("kept {what} {count}\n")));
        if let Err(error) = std::fs::write(&path, text) {
            eprintln!("stand-in: {}: {error}", path.display());
        }
    }
}
