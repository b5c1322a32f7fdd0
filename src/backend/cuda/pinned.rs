//! Copies to the device through pieces of pinned memory in turn. A copy may happen any time after it was asked for, so a
//! piece is written again only after the event behind its latest copy.

use super::driver::Address;
use anyhow::Result;

/// A queue of asynchronous copies.
pub trait Queue {
    /// A point in the queue.
    type Event;

    /// Copies some time later.
    ///
    /// # Safety
    /// `from` stays valid and unchanged until an event recorded after this has been waited for.
    unsafe fn upload(&mut self, to: Address, from: *const u8, bytes: usize) -> Result<()>;

    /// Moves the event behind everything asked for so far.
    fn record(&mut self, event: &mut Self::Event) -> Result<()>;

    /// Waits for an event; one that was never recorded is past.
    fn wait(&mut self, event: &Self::Event) -> Result<()>;
}

/// Pinned memory and the event after its latest copy.
pub struct Piece<E> {
    pub start: *mut u8,
    pub event: E,
}

// SAFETY: memory that its owner frees, usable from any thread, and used by one at a time.
unsafe impl<E: Send> Send for Piece<E> {}

/// Pieces of one size, used in turn.
pub struct Pieces<E> {
    pub list: Vec<Piece<E>>,
    pub bytes: usize,
    next: usize,
}

impl<E> Pieces<E> {
    pub fn new(list: Vec<Piece<E>>, bytes: usize) -> Pieces<E> {
        Pieces { list, bytes, next: 0 }
    }

    /// Asks for a copy; `bytes` may be changed as soon as this returns.
    pub fn upload<Q: Queue<Event = E>>(&mut self, queue: &mut Q, to: Address, bytes: &[u8]) -> Result<()> {
        for (number, chunk) in bytes.chunks(self.bytes).enumerate() {
            let piece = &mut self.list[self.next];
            queue.wait(&piece.event)?;
            // SAFETY: a piece has room for a chunk, and the copy that used it before has happened. It is not written again
            // before this copy's event.
            unsafe {
                std::ptr::copy_nonoverlapping(chunk.as_ptr(), piece.start, chunk.len());
                queue.upload(to + (number * self.bytes) as u64, piece.start, chunk.len())?;
            }
            queue.record(&mut piece.event)?;
            self.next = (self.next + 1) % self.list.len();
        }
        Ok(())
    }
}
