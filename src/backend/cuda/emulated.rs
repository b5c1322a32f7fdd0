//! The driver without a GPU: kernels are the files of `cuda/`, compiled by the C++ compiler against
//! `cuda/emulation/emulation.h` and linked into this program; device memory is the host's. For tests: thousands of
//! times slower than a GPU, but every launch site and every kernel runs as it is.

use super::arguments::Arguments;
use super::driver::{Address, Driver, Launch, Operand, Product};
use crate::backend::{DType, Readback};
use anyhow::{Context, Result, bail, ensure};
use half::{bf16, f16};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};

unsafe extern "C" {
    /// 0, or 1 with the reason in `message` (cuda/emulation/emulation.h).
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

/// A launch with another number of arguments than the kernel takes, or of other sizes, would read beside them.
fn check_arguments(name: &CStr, arguments: &Arguments) -> Result<()> {
    let mut bytes = [0; 128];
    // SAFETY: the capacity is the array's.
    let count = unsafe { emu_kernel_arguments(name.as_ptr(), bytes.as_mut_ptr(), bytes.len() as c_int) };
    let name = name.to_string_lossy();
    let count = usize::try_from(count).ok().with_context(|| format!("there is no kernel {name}"))?;
    let given: Vec<c_uint> = arguments.sizes().iter().map(|&size| c_uint::from(size)).collect();
    ensure!(bytes[..count] == given, "{name} takes arguments of {:?} bytes, and is given {given:?}", &bytes[..count]);
    Ok(())
}

const ALIGNMENT: usize = 256;

/// The host's memory as a device's.
pub struct Emulated {
    order: i32,
    /// Start and bytes.
    arena: Option<(*mut u8, Layout)>,
}

// SAFETY: the memory is owned and touched through `&mut self` only.
unsafe impl Send for Emulated {}

impl Drop for Emulated {
    fn drop(&mut self) {
        if let Some((start, layout)) = self.arena {
            // SAFETY: allocated with this layout.
            unsafe { dealloc(start, layout) }
        }
    }
}

impl Emulated {
    /// `order`: in which order a block's threads run, and how late asynchronous copies end (emulation.h): 0 ascending and
    /// late, 1 descending and early, from 2 on at random.
    pub fn new(order: u32) -> Emulated {
        Emulated { order: order as i32, arena: None }
    }

    /// The arena's bytes from an address.
    fn bytes(&mut self, from: Address, count: usize) -> Result<&mut [u8]> {
        let Some((start, layout)) = self.arena else { bail!("no memory was allocated") };
        let offset = (from as usize).wrapping_sub(start as usize);
        ensure!(offset <= layout.size() && count <= layout.size() - offset, "{count} bytes at {from:#x} are not in the arena");
        // SAFETY: inside the arena; `&mut self` makes the access exclusive.
        Ok(unsafe { std::slice::from_raw_parts_mut(start.add(offset), count) })
    }
}

impl Driver for Emulated {
    fn describe(&self) -> String {
        "emulated CUDA".into()
    }

    fn workspace_bytes(&self) -> usize {
        0
    }

    fn allocate(&mut self, bytes: usize, _: usize) -> Result<Address> {
        ensure!(self.arena.is_none(), "the arena is allocated once");
        let layout = Layout::from_size_align(bytes.max(ALIGNMENT), ALIGNMENT)?;
        // SAFETY: the layout has a size above zero.
        let start = unsafe { alloc_zeroed(layout) };
        ensure!(!start.is_null(), "cannot allocate {bytes} bytes");
        self.arena = Some((start, layout));
        Ok(start as Address)
    }

    fn write(&mut self, to: Address, bytes: &[u8]) -> Result<()> {
        self.bytes(to, bytes.len())?.copy_from_slice(bytes);
        Ok(())
    }

    fn read(&mut self, from: Address, bytes: &mut [u8]) -> Result<()> {
        bytes.copy_from_slice(self.bytes(from, bytes.len())?);
        Ok(())
    }

    fn read_later(&mut self, from: Address, bytes: usize) -> Result<Readback> {
        let copy = self.bytes(from, bytes)?.to_vec();
        Ok(Box::new(move || copy))
    }

    fn zero(&mut self, at: Address, bytes: usize) -> Result<()> {
        self.bytes(at, bytes)?.fill(0);
        Ok(())
    }

    unsafe fn launch(&mut self, launch: Launch, arguments: &mut Arguments) -> Result<()> {
        let name = CString::new(launch.kernel)?;
        let mut message = [0 as c_char; 700];
        let (grid, block) = (launch.grid.as_ptr(), launch.block.as_ptr());
        check_arguments(&name, arguments)?;
        let pointers = arguments.pointers().as_mut_ptr();
        // SAFETY: the caller's promise for the arguments; the message's length is given.
        let code = unsafe {
            emu_set_order(self.order);
            emu_set_workers(1);
            emu_launch(name.as_ptr(), grid, block, launch.shared, pointers, message.as_mut_ptr(), message.len())
        };
        if code != 0 {
            // SAFETY: written by `emu_launch` with an end.
            let message = unsafe { CStr::from_ptr(message.as_ptr()) };
            bail!("{} {launch:?}", message.to_string_lossy());
        }
        Ok(())
    }

    unsafe fn product(&mut self, product: &Product) -> Result<()> {
        let widen = |operand: &Operand| -> Vec<f32> {
            // SAFETY: the caller's promise.
            let row =
                |r: usize| unsafe { std::slice::from_raw_parts((operand.address as *const u16).add(r * operand.stride), operand.cols) };
            let rows = (0..operand.rows).flat_map(row);
            match product.dtype {
                DType::BF16 => rows.map(|&bits| bf16::from_bits(bits).to_f32()).collect(),
                _ => rows.map(|&bits| f16::from_bits(bits).to_f32()).collect(),
            }
        };
        let (a, b) = (widen(&product.a), widen(&product.b));
        let Operand { rows: m, cols: n, stride, address } = product.c;
        let k = product.a.cols;
        let wide = product.out == DType::F32;
        ensure!(!wide || !product.accumulate && product.bias.is_none(), "{product:?} is not a product of the interface");
        let mut sums = if product.accumulate { widen(&product.c) } else { vec![0.0; m * n] };
        let b_strides = if product.transposed { (1, k) } else { (n, 1) };
        // SAFETY: shapes are those of the buffers just made.
        unsafe {
            gemm::gemm(
                m,
                n,
                k,
                sums.as_mut_ptr(),
                1,
                n as isize,
                product.accumulate,
                a.as_ptr(),
                1,
                k as isize,
                b.as_ptr(),
                b_strides.1 as isize,
                b_strides.0 as isize,
                1.0,
                1.0,
                false,
                false,
                false,
                gemm::Parallelism::None,
            );
        }
        if let Some(bias) = product.bias {
            let bias = widen(&Operand { address: bias, rows: 1, cols: n, stride: n });
            for row in sums.chunks_exact_mut(n) {
                row.iter_mut().zip(&bias).for_each(|(sum, bias)| *sum += bias);
            }
        }
        for (r, row) in sums.chunks_exact(n).enumerate() {
            if wide {
                // SAFETY: the caller's promise.
                let to = unsafe { std::slice::from_raw_parts_mut((address as *mut f32).add(r * stride), n) };
                to.copy_from_slice(row);
                continue;
            }
            // SAFETY: the caller's promise.
            let to = unsafe { std::slice::from_raw_parts_mut((address as *mut u16).add(r * stride), n) };
            for (to, &sum) in to.iter_mut().zip(row) {
                *to = match product.dtype {
                    DType::BF16 => bf16::from_f32(sum).to_bits(),
                    _ => f16::from_f32(sum).to_bits(),
                };
            }
        }
        Ok(())
    }
}
