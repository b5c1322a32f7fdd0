//! The kernels of `cuda/` as the C++ compiler made them, by their names (cuda/emulation/launch.h).

use anyhow::{Result, bail};
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

unsafe extern "C" {
    /// 0, or 1 with the reason in `message`.
    fn emu_launch(
        kernel: *const c_char,
        grid: *const c_uint,
        block: *const c_uint,
        shared: c_uint,
        arguments: *mut *mut c_void,
        message: *mut c_char,
        message_bytes: usize,
    ) -> c_int;
    /// Number of a kernel's arguments and the bytes of each; -1: no such kernel.
    fn emu_kernel_arguments(kernel: *const c_char, bytes: *mut c_uint, capacity: c_int) -> c_int;
    /// In which order this thread's launches run their threads.
    fn emu_set_order(order: c_int);
    fn emu_set_workers(workers: c_int);
}

/// Bytes of each of a kernel's arguments; None: there is no such kernel.
pub fn argument_bytes(name: &CStr) -> Option<Vec<usize>> {
    let mut bytes = [0; 128];
    // SAFETY: the capacity is the array's.
    let count = unsafe { emu_kernel_arguments(name.as_ptr(), bytes.as_mut_ptr(), bytes.len() as c_int) };
    let count = usize::try_from(count).ok()?;
    assert!(count <= bytes.len(), "{name:?} takes {count} arguments");
    Some(bytes[..count].iter().map(|&bytes| bytes as usize).collect())
}

/// Runs a kernel on this thread; `order` as in `Emulated::new`.
///
/// # Safety
/// `arguments` points to a pointer to each of the kernel's arguments, and addresses among them are valid for what it does.
pub unsafe fn run(order: i32, name: &CStr, grid: [u32; 3], block: [u32; 3], shared: u32, arguments: *mut *mut c_void) -> Result<()> {
    let mut message = [0 as c_char; 700];
    // SAFETY: the caller's promise for the arguments; the message's length is given.
    let code = unsafe {
        emu_set_order(order);
        emu_set_workers(1);
        emu_launch(name.as_ptr(), grid.as_ptr(), block.as_ptr(), shared, arguments, message.as_mut_ptr(), message.len())
    };
    if code != 0 {
        // SAFETY: written by `emu_launch` with an end.
        let message = unsafe { CStr::from_ptr(message.as_ptr()) };
        bail!("{}: grid {grid:?}, block {block:?}, {shared} bytes of shared memory", message.to_string_lossy());
    }
    Ok(())
}
