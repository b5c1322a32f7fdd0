//! libcuda's functions.

use crate::exported;
use crate::world::*;
use cudarc::driver::sys::*;
use ptune::backend::cuda::emulated;
use std::collections::VecDeque;
use std::ffi::{CStr, c_char, c_int, c_uchar, c_uint, c_void};

impl Status for CUresult {
    fn of(answer: Answer) -> CUresult {
        match answer {
            Ok(()) => CUresult::CUDA_SUCCESS,
            Err(Fault::Refused(_)) => CUresult::CUDA_ERROR_INVALID_VALUE,
            Err(Fault::OutOfMemory) => CUresult::CUDA_ERROR_OUT_OF_MEMORY,
            Err(Fault::NotFound) => CUresult::CUDA_ERROR_NOT_FOUND,
            Err(Fault::Failed(_)) => CUresult::CUDA_ERROR_LAUNCH_FAILED,
        }
    }
}

extern "C" fn report_at_exit() {
    world().report();
}

/// The first word of what nvcc packs machine code of several architectures into.
const FATBIN: u32 = 0xBA55_ED50;
/// CU_STREAM_NON_BLOCKING and CU_EVENT_DISABLE_TIMING.
const NON_BLOCKING: u32 = 1;
const UNTIMED: u32 = 2;

/// Copies that the driver may make later: both ends are the device's, or pinned.
fn copy(world: &mut World, from: u64, to: u64, bytes: usize, stream: CUstream) -> Answer {
    world.in_context()?;
    for at in [from, to] {
        if !world.on_device(at, bytes) && !world.is_pinned(at, bytes) {
            refuse!("{bytes} bytes at {at:#x} are neither the device's nor pinned");
        }
    }
    world.ask(stream as usize, Work::Copy { from, to, bytes })
}

fn device_of(ordinal: c_int) -> Answer {
    if ordinal != 0 {
        refuse!("there is one device, and not {ordinal}");
    }
    Ok(())
}

/// The event of a handle.
fn event_of(world: &mut World, event: CUevent) -> Result<&mut Event, Fault> {
    let Some(event) = world.events.get_mut(&(event as usize)) else { refuse!("{event:?} is no event that was created") };
    Ok(event)
}

exported! { cudarc::driver::sys, CUresult;
    fn cuInit(world, flags: c_uint) {
        world.initialised = true;
        Ok(())
    }
    fn cuDriverGetVersion(world, version: *mut c_int) {
        unsafe { *version = std::env::var("PTUNE_STAND_IN_VERSION").map_or(13000, |text| text.parse().expect("a number")) };
        Ok(())
    }
    fn cuDeviceGetCount(world, count: *mut c_int) {
        if !world.initialised {
            refuse!("cuInit was not called");
        }
        unsafe { *count = 1 };
        Ok(())
    }
    fn cuDeviceGet(world, device: *mut CUdevice, ordinal: c_int) {
        device_of(ordinal)?;
        unsafe { *device = 0 };
        Ok(())
    }
    fn cuDeviceGetName(world, name: *mut c_char, length: c_int, device: CUdevice) {
        let text = c"stand-in GPU".to_bytes_with_nul();
        if length < text.len() as c_int {
            refuse!("{length} bytes for a name");
        }
        unsafe { std::ptr::copy_nonoverlapping(text.as_ptr().cast(), name, text.len()) };
        device_of(device)
    }
    fn cuDeviceGetAttribute(world, value: *mut c_int, attribute: CUdevice_attribute, device: CUdevice) {
        unsafe {
            *value = match attribute {
                CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR => 9,
                CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR => 0,
                CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT => 132,
                other => refuse!("{other:?} is not known here"),
            }
        };
        device_of(device)
    }
    fn cuDevicePrimaryCtxRetain(world, context: *mut CUcontext, device: CUdevice) {
        if !world.initialised {
            refuse!("cuInit was not called");
        }
        world.retained += 1;
        // What a process has at its end is what it never gave back.
        static AT_EXIT: std::sync::Once = std::sync::Once::new();
        AT_EXIT.call_once(|| assert_eq!(unsafe { libc::atexit(report_at_exit) }, 0));
        unsafe { *context = CONTEXT_HANDLE as CUcontext };
        device_of(device)
    }
    fn cuDevicePrimaryCtxRelease_v2(world, device: CUdevice) {
        if world.retained == 0 {
            refuse!("released more often than retained");
        }
        world.retained -= 1;
        device_of(device)
    }
    fn cuCtxSetCurrent(world, context: CUcontext) {
        if context as usize != CONTEXT_HANDLE || world.retained == 0 {
            refuse!("{context:?} is no context");
        }
        CURRENT.set(true);
        Ok(())
    }
    fn cuStreamCreate(world, stream: *mut CUstream, flags: c_uint) {
        world.in_context()?;
        if flags != NON_BLOCKING {
            refuse!("a stream that waits for the null stream");
        }
        let handle = world.handle();
        world.streams.insert(handle, VecDeque::new());
        unsafe { *stream = handle as CUstream };
        Ok(())
    }
    fn cuStreamSynchronize(world, stream: CUstream) {
        world.in_context()?;
        if !world.streams.contains_key(&(stream as usize)) {
            refuse!("{stream:?} is no stream that was created");
        }
        world.run(stream as usize)
    }
    fn cuStreamDestroy_v2(world, stream: CUstream) {
        world.run(stream as usize)?;
        if world.streams.remove(&(stream as usize)).is_none() {
            refuse!("{stream:?} is no stream that was created");
        }
        Ok(())
    }
    fn cuStreamWaitEvent(world, stream: CUstream, event: CUevent, flags: c_uint) {
        world.in_context()?;
        let &mut Event { asked, stream: on, .. } = event_of(world, event)?;
        if asked == 0 {
            return Ok(());
        }
        world.ask(stream as usize, Work::Wait { event: event as usize, number: asked, stream: on })
    }
    fn cuEventCreate(world, event: *mut CUevent, flags: c_uint) {
        world.in_context()?;
        let handle = world.handle();
        world.events.insert(handle, Event { timed: flags & UNTIMED == 0, ..Event::default() });
        unsafe { *event = handle as CUevent };
        Ok(())
    }
    fn cuEventRecord(world, event: CUevent, stream: CUstream) {
        world.in_context()?;
        let found = event_of(world, event)?;
        found.asked += 1;
        found.stream = stream as usize;
        let number = found.asked;
        world.ask(stream as usize, Work::Record { event: event as usize, number })
    }
    fn cuEventSynchronize(world, event: CUevent) {
        world.in_context()?;
        let &mut Event { asked, stream, .. } = event_of(world, event)?;
        world.run_until(event as usize, asked, stream)
    }
    fn cuEventElapsedTime_v2(world, milliseconds: *mut f32, from: CUevent, to: CUevent) {
        world.in_context()?;
        let mut times = [None; 2];
        for (time, event) in times.iter_mut().zip([from, to]) {
            let found = event_of(world, event)?;
            if !found.timed || found.done < found.asked {
                refuse!("{event:?} has no time, or has not happened");
            }
            *time = found.time;
        }
        let [Some(from), Some(to)] = times else { refuse!("an event that was not recorded") };
        unsafe { *milliseconds = (to.saturating_duration_since(from).as_secs_f64() * 1e3) as f32 };
        Ok(())
    }
    fn cuEventDestroy_v2(world, event: CUevent) {
        if world.events.remove(&(event as usize)).is_none() {
            refuse!("{event:?} is no event that was created");
        }
        Ok(())
    }
    fn cuMemAlloc_v2(world, start: *mut CUdeviceptr, bytes: usize) {
        world.in_context()?;
        unsafe { *start = world.new_memory(bytes, true)? };
        Ok(())
    }
    fn cuMemFree_v2(world, start: CUdeviceptr) {
        world.free(start, true)
    }
    fn cuMemHostAlloc(world, start: *mut *mut c_void, bytes: usize, flags: c_uint) {
        world.in_context()?;
        unsafe { *start = world.new_memory(bytes, false)? as *mut c_void };
        Ok(())
    }
    fn cuMemFreeHost(world, start: *mut c_void) {
        world.free(start as u64, false)
    }
    fn cuMemGetInfo_v2(world, free: *mut usize, total: *mut usize) {
        world.in_context()?;
        unsafe {
            *free = MEMORY - CONTEXT - world.allocated();
            *total = MEMORY;
        }
        Ok(())
    }
    fn cuMemcpyAsync(world, to: CUdeviceptr, from: CUdeviceptr, bytes: usize, stream: CUstream) {
        copy(world, from, to, bytes, stream)
    }
    fn cuMemcpyDtoDAsync_v2(world, to: CUdeviceptr, from: CUdeviceptr, bytes: usize, stream: CUstream) {
        if !world.on_device(from, bytes) || !world.on_device(to, bytes) {
            refuse!("a copy within the device from {from:#x} to {to:#x}");
        }
        copy(world, from, to, bytes, stream)
    }
    fn cuMemcpyHtoDAsync_v2(world, to: CUdeviceptr, from: *const c_void, bytes: usize, stream: CUstream) {
        if world.is_pinned(from as u64, bytes) {
            return copy(world, from as u64, to, bytes, stream);
        }
        world.in_context()?;
        if !world.on_device(to, bytes) {
            refuse!("{bytes} bytes at {to:#x} are not the device's");
        }
        // Memory that is not pinned goes through the driver's own before this returns.
        let bytes = unsafe { std::slice::from_raw_parts(from.cast::<u8>(), bytes) }.to_vec();
        world.ask(stream as usize, Work::Write { bytes, to })
    }
    fn cuMemcpyDtoHAsync_v2(world, to: *mut c_void, from: CUdeviceptr, bytes: usize, stream: CUstream) {
        if world.is_pinned(to as u64, bytes) {
            return copy(world, from, to as u64, bytes, stream);
        }
        world.in_context()?;
        if !world.on_device(from, bytes) {
            refuse!("{bytes} bytes at {from:#x} are not the device's");
        }
        // To memory that is not pinned, it returns when the copy has happened.
        world.ask(stream as usize, Work::Copy { from, to: to as u64, bytes })?;
        world.run(stream as usize)
    }
    fn cuMemsetD8Async(world, at: CUdeviceptr, value: c_uchar, bytes: usize, stream: CUstream) {
        world.in_context()?;
        if !world.on_device(at, bytes) {
            refuse!("{bytes} bytes at {at:#x} are not the device's");
        }
        world.ask(stream as usize, Work::Fill { at, bytes, value })
    }
    fn cuModuleLoadData(world, module: *mut CUmodule, image: *const c_void) {
        world.in_context()?;
        if image.align_offset(8) != 0 || unsafe { *image.cast::<u32>() } != FATBIN {
            refuse!("an image that is no fatbin, or not aligned");
        }
        let handle = world.handle();
        world.modules.insert(handle);
        unsafe { *module = handle as CUmodule };
        Ok(())
    }
    fn cuModuleUnload(world, module: CUmodule) {
        if !world.modules.remove(&(module as usize)) {
            refuse!("{module:?} is no module that was loaded");
        }
        Ok(())
    }
    fn cuModuleGetFunction(world, function: *mut CUfunction, module: CUmodule, name: *const c_char) {
        world.in_context()?;
        if !world.modules.contains(&(module as usize)) {
            refuse!("{module:?} is no module that was loaded");
        }
        let name = unsafe { CStr::from_ptr(name) };
        let bytes = emulated::kernels::argument_bytes(name).ok_or(Fault::NotFound)?;
        world.kernels.push(Kernel { name: name.to_owned(), bytes, shared: PLAIN_SHARED });
        // Counted from one: null is no function.
        unsafe { *function = world.kernels.len() as CUfunction };
        Ok(())
    }
    fn cuFuncSetAttribute(world, function: CUfunction, attribute: CUfunction_attribute, value: c_int) {
        world.in_context()?;
        let Some(kernel) = world.kernels.get_mut((function as usize).wrapping_sub(1)) else { refuse!("{function:?} is no kernel") };
        match attribute {
            CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES if value as u32 <= MOST_SHARED => kernel.shared = value as u32,
            CUfunction_attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT if (-1..=100).contains(&value) => {}
            _ => refuse!("{attribute:?} {value} of {:?}", kernel.name),
        }
        Ok(())
    }
    fn cuLaunchKernel(world, function: CUfunction, grid_x: c_uint, grid_y: c_uint, grid_z: c_uint, block_x: c_uint, block_y: c_uint,
        block_z: c_uint, shared: c_uint, stream: CUstream, parameters: *mut *mut c_void, extra: *mut *mut c_void) {
        world.in_context()?;
        let Some(kernel) = world.kernels.get((function as usize).wrapping_sub(1)) else { refuse!("{function:?} is no kernel") };
        if shared > kernel.shared {
            refuse!("{:?} with {shared} bytes of shared memory, of which {} were asked for", kernel.name, kernel.shared);
        }
        let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
        if grid.contains(&0) || block.contains(&0) || grid_y.max(grid_z) > 65535 || block.iter().product::<u32>() > 1024 || !extra.is_null() {
            refuse!("{:?} with a grid of {grid:?} and blocks of {block:?}", kernel.name);
        }
        // The driver copies the arguments before it returns.
        let arguments = kernel.bytes.iter().enumerate().map(|(i, &bytes)| {
            let mut word = [0; 8];
            unsafe { std::ptr::copy_nonoverlapping((*parameters.add(i)).cast::<u8>(), word.as_mut_ptr(), bytes) };
            u64::from_ne_bytes(word)
        });
        let work = Work::Launch { kernel: kernel.name.clone(), grid, block, shared, arguments: arguments.collect() };
        world.ask(stream as usize, work)
    }
    fn cuProfilerStart(world) {
        world.in_context()
    }
    fn cuProfilerStop(world) {
        world.in_context()
    }
    fn cuGetErrorName(world, error: CUresult, text: *mut *const c_char) {
        unsafe { *text = c"CUDA_ERROR".as_ptr() };
        Ok(())
    }
    fn cuGetErrorString(world, error: CUresult, text: *mut *const c_char) {
        unsafe {
            *text = match error {
                CUresult::CUDA_ERROR_OUT_OF_MEMORY => c"out of memory",
                CUresult::CUDA_ERROR_NOT_FOUND => c"named symbol not found",
                CUresult::CUDA_ERROR_LAUNCH_FAILED => c"unspecified launch failure",
                _ => c"invalid argument",
            }
            .as_ptr()
        };
        Ok(())
    }
}
