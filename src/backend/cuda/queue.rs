//! Streams, events and pinned memory of a GPU, as pinned.rs and reader.rs use them.

use super::driver::Address;
use super::gpu::Context;
use super::pinned::{self, Queue};
use anyhow::{Context as _, Result};
use cudarc::driver::result::{self, event, stream};
use cudarc::driver::sys;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};

/// An event of the driver.
pub struct Event(pub sys::CUevent);

// SAFETY: a handle, usable from any thread.
unsafe impl Send for Event {}

impl Event {
    /// An event that tells no time.
    pub fn new() -> Result<Event> {
        Ok(Event(event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)?))
    }

    pub fn timed() -> Result<Event> {
        Ok(Event(event::create(sys::CUevent_flags::CU_EVENT_DEFAULT)?))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made with this value. A failure changes nothing any more.
        let _ = unsafe { event::destroy(self.0) };
    }
}

/// The one stream, in the order of which everything happens, or a lane's.
#[derive(Clone, Copy)]
pub struct Stream(pub sys::CUstream);

// SAFETY: a handle, usable from any thread.
unsafe impl Send for Stream {}

impl Stream {
    pub fn new() -> Result<Stream> {
        Ok(Stream(stream::create(stream::StreamKind::NonBlocking)?))
    }
}

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

/// Pinned host memory, which the device reaches under its address.
pub struct Pinned {
    context: Context,
    start: *mut c_void,
}

// SAFETY: memory that any thread may free; who reads and writes it sees to it that nobody else does.
unsafe impl Send for Pinned {}
// SAFETY: as above.
unsafe impl Sync for Pinned {}

impl Pinned {
    /// Of the context, which is current.
    pub fn new(context: Context, bytes: usize) -> Result<Pinned> {
        // SAFETY: pinned memory for this process, cached as any other: it is written and read by the host.
        let start = unsafe { result::malloc_host(bytes, 0) }.context("pinned host memory")?;
        Ok(Pinned { context, start })
    }

    pub fn start(&self) -> *mut u8 {
        self.start.cast()
    }

    /// Cuts it into pieces of that many bytes, which must not be used once it is gone.
    pub fn pieces(&self, count: usize, bytes: usize) -> Result<Vec<Piece>> {
        (0..count).map(|number| Ok(Piece { start: self.start().wrapping_add(number * bytes), event: Event::new()? })).collect()
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let _ = self.context.enter();
        // SAFETY: allocated with this value; its owner has waited for the copies that used it.
        let _ = unsafe { result::free_host(self.start) };
    }
}

pub type Piece = pinned::Piece<Event>;

/// Pieces for reading back, when none is under way. Readbacks may outlive their device, and keep them.
pub struct Readbacks {
    free: Mutex<Vec<Piece>>,
    /// Freed behind the pieces.
    _memory: Pinned,
}

impl Readbacks {
    pub fn new(context: Context, count: usize, bytes: usize) -> Result<Arc<Readbacks>> {
        let memory = Pinned::new(context, count * bytes)?;
        Ok(Arc::new(Readbacks { free: Mutex::new(memory.pieces(count, bytes)?), _memory: memory }))
    }

    pub fn take(&self) -> Result<Piece> {
        let piece = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        piece.context("more results are on their way to the host than there is room for")
    }
}

/// A copy to the host under way; its piece goes back to the others when it is done with.
pub struct Download {
    pub context: Context,
    pub piece: Option<Piece>,
    pub home: Arc<Readbacks>,
}

impl Download {
    pub fn wait(&self, bytes: usize) -> Vec<u8> {
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
        if let Some(piece) = self.piece.take() {
            self.home.free.lock().unwrap_or_else(PoisonError::into_inner).push(piece);
        }
    }
}
