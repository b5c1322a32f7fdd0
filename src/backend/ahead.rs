//! Advice to the system about mapped files.

use std::ops::Range;

/// Pages are given back and asked for in blocks of this size.
pub const PAGE: usize = 1 << 16;

/// Has the system begin to read a range of a mapped file, without waiting for it.
pub fn read_ahead(file: &[u8], range: Range<usize>) {
    let (start, end) = (range.start / PAGE * PAGE, range.end.min(file.len()));
    if start < end {
        // SAFETY: a range inside the mapping that begins on a page; advice changes nothing.
        unsafe { libc::madvise(file[start..end].as_ptr().cast_mut().cast(), end - start, libc::MADV_WILLNEED) };
    }
}
