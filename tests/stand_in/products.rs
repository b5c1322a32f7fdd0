//! libcublasLt's functions. Its matrices are column-major: an element is `row + column * ld` from the start. A row-major
//! product is the same memory with rows and columns exchanged, which is what the emulated products compute.

use crate::exported;
use crate::world::*;
use cudarc::cublaslt::sys::*;
use ptune::backend::DType;
use ptune::backend::cuda::{Operand, Product};
use std::ffi::{c_int, c_void};

impl Status for cublasStatus_t {
    fn of(answer: Answer) -> cublasStatus_t {
        match answer {
            Ok(()) => cublasStatus_t::CUBLAS_STATUS_SUCCESS,
            Err(Fault::Refused(_)) => cublasStatus_t::CUBLAS_STATUS_INVALID_VALUE,
            Err(Fault::OutOfMemory) => cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED,
            Err(Fault::NotFound) => cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED,
            Err(Fault::Failed(_)) => cublasStatus_t::CUBLAS_STATUS_EXECUTION_FAILED,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    dtype: DType,
    rows: u64,
    columns: u64,
    ld: i64,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Description {
    transposed: [bool; 2],
    has_bias: bool,
    bias: u64,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Preference {
    workspace: usize,
    reductions: u32,
    /// Of a, b, c and d: the library takes 256 bytes where nothing is said.
    alignments: [Option<u32>; 4],
}

#[derive(Clone, Copy, Debug)]
pub enum Object {
    Handle,
    Layout(Layout),
    Description(Description),
    Preference(Preference),
}

/// Split sums only where they are added in order: CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE.
const ORDERED: u32 = 2;
/// In an algorithm's first word: it came from here.
const MARK: u64 = 0x57A9_D191;

fn create(world: &mut World, to: *mut *mut c_void, object: Object) -> Answer {
    let handle = world.handle();
    world.objects.insert(handle, object);
    unsafe { *to = handle as *mut c_void };
    Ok(())
}

fn destroy(world: &mut World, object: *mut c_void) -> Answer {
    if world.objects.remove(&(object as usize)).is_none() {
        refuse!("{object:?} was not created");
    }
    Ok(())
}

/// The object of a handle, if it is of that kind.
macro_rules! object {
    ($world:ident, $kind:ident, $handle:expr) => {
        match $world.objects.get_mut(&($handle as usize)) {
            Some(Object::$kind(object)) => object,
            _ => refuse!("{:?} is no {}", $handle, stringify!($kind)),
        }
    };
}

/// An attribute's value.
fn value<V: Copy>(from: *const c_void, bytes: usize) -> Result<V, Fault> {
    if bytes != size_of::<V>() {
        refuse!("an attribute of {bytes} bytes, and not {}", size_of::<V>());
    }
    Ok(unsafe { from.cast::<V>().read_unaligned() })
}

/// What the three matrices are, as a row-major product: b stands for what the library calls A.
fn shapes(description: Description, a: Layout, b: Layout, c: Layout) -> Result<Product, Fault> {
    let [rows_of_a, inner] = if description.transposed[0] { [a.columns, a.rows] } else { [a.rows, a.columns] };
    if description.transposed[1] || b.rows != inner || c.rows != rows_of_a || c.columns != b.columns || a.dtype != b.dtype {
        refuse!("operands do not fit: {a:?}, {b:?}, {c:?}, {description:?}");
    }
    if a.dtype == DType::F32 || (c.dtype != DType::F32 && c.dtype != a.dtype) {
        refuse!("operands of {:?} for results of {:?}", a.dtype, c.dtype);
    }
    let operand =
        |layout: Layout| Operand { address: 0, rows: layout.columns as usize, cols: layout.rows as usize, stride: layout.ld as usize };
    let [a_operand, b_operand, c_operand] = [a, b, c].map(operand);
    Ok(Product {
        dtype: a.dtype,
        out: c.dtype,
        a: b_operand,
        b: a_operand,
        transposed: description.transposed[0],
        c: c_operand,
        accumulate: false,
        bias: None,
    })
}

/// Everything that an algorithm was chosen for, in a word.
fn fingerprint(description: Description, layouts: [Layout; 4]) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut state = DefaultHasher::new();
    format!("{:?} {} {layouts:?}", description.transposed, description.has_bias).hash(&mut state);
    state.finish()
}

/// # Safety
/// None is needed; the type is the library's.
#[unsafe(no_mangle)]
#[allow(non_snake_case)]
pub unsafe extern "C" fn cublasLtGetVersion() -> usize {
    std::env::var("PTUNE_STAND_IN_PRODUCTS_VERSION").map_or(130_000, |text| text.parse().expect("a number"))
}

exported! { cudarc::cublaslt::sys, cublasStatus_t;
    fn cublasLtCreate(world, handle: *mut cublasLtHandle_t) {
        world.in_context()?;
        create(world, handle.cast(), Object::Handle)
    }
    fn cublasLtDestroy(world, handle: cublasLtHandle_t) {
        destroy(world, handle.cast())
    }
    fn cublasLtMatrixLayoutCreate(world, layout: *mut cublasLtMatrixLayout_t, dtype: cudaDataType, rows: u64, columns: u64, ld: i64) {
        let dtype = match dtype {
            cudaDataType_t::CUDA_R_16F => DType::F16,
            cudaDataType_t::CUDA_R_16BF => DType::BF16,
            cudaDataType_t::CUDA_R_32F => DType::F32,
            other => refuse!("{other:?}"),
        };
        if rows == 0 || columns == 0 || ld < rows as i64 {
            refuse!("a matrix of {rows} x {columns}, {ld} elements from column to column");
        }
        create(world, layout.cast(), Object::Layout(Layout { dtype, rows, columns, ld }))
    }
    fn cublasLtMatrixLayoutDestroy(world, layout: cublasLtMatrixLayout_t) {
        destroy(world, layout.cast())
    }
    fn cublasLtMatmulDescCreate(world, description: *mut cublasLtMatmulDesc_t, compute: cublasComputeType_t, scale: cudaDataType_t) {
        if compute != cublasComputeType_t::CUBLAS_COMPUTE_32F || scale != cudaDataType_t::CUDA_R_32F {
            refuse!("sums in {compute:?}, factors in {scale:?}");
        }
        create(world, description.cast(), Object::Description(Description::default()))
    }
    fn cublasLtMatmulDescDestroy(world, description: cublasLtMatmulDesc_t) {
        destroy(world, description.cast())
    }
    fn cublasLtMatmulDescSetAttribute(world, description: cublasLtMatmulDesc_t, attribute: cublasLtMatmulDescAttributes_t,
        from: *const c_void, bytes: usize) {
        use cublasLtMatmulDescAttributes_t::*;
        let description = object!(world, Description, description);
        match attribute {
            CUBLASLT_MATMUL_DESC_TRANSA => description.transposed[0] = value::<i32>(from, bytes)? == 1,
            CUBLASLT_MATMUL_DESC_TRANSB => description.transposed[1] = value::<i32>(from, bytes)? == 1,
            CUBLASLT_MATMUL_DESC_EPILOGUE => match value::<u32>(from, bytes)? {
                1 => description.has_bias = false,
                4 => description.has_bias = true,
                other => refuse!("epilogue {other}"),
            },
            CUBLASLT_MATMUL_DESC_BIAS_POINTER => description.bias = value(from, bytes)?,
            other => refuse!("{other:?}"),
        }
        Ok(())
    }
    fn cublasLtMatmulPreferenceCreate(world, preference: *mut cublasLtMatmulPreference_t) {
        // Every scheme, unless something is said.
        create(world, preference.cast(), Object::Preference(Preference { reductions: u32::MAX, ..Preference::default() }))
    }
    fn cublasLtMatmulPreferenceDestroy(world, preference: cublasLtMatmulPreference_t) {
        destroy(world, preference.cast())
    }
    fn cublasLtMatmulPreferenceSetAttribute(world, preference: cublasLtMatmulPreference_t,
        attribute: cublasLtMatmulPreferenceAttributes_t, from: *const c_void, bytes: usize) {
        use cublasLtMatmulPreferenceAttributes_t::*;
        let preference = object!(world, Preference, preference);
        match attribute {
            CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES => preference.workspace = value(from, bytes)?,
            CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK => preference.reductions = value(from, bytes)?,
            CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES => preference.alignments[0] = Some(value(from, bytes)?),
            CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES => preference.alignments[1] = Some(value(from, bytes)?),
            CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES => preference.alignments[2] = Some(value(from, bytes)?),
            CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES => preference.alignments[3] = Some(value(from, bytes)?),
            other => refuse!("{other:?}"),
        }
        Ok(())
    }
    fn cublasLtMatmulAlgoGetHeuristic(world, handle: cublasLtHandle_t, description: cublasLtMatmulDesc_t, a: cublasLtMatrixLayout_t,
        b: cublasLtMatrixLayout_t, c: cublasLtMatrixLayout_t, d: cublasLtMatrixLayout_t, preference: cublasLtMatmulPreference_t,
        asked: c_int, results: *mut cublasLtMatmulHeuristicResult_t, returned: *mut c_int) {
        let preference = *object!(world, Preference, preference);
        let description = *object!(world, Description, description);
        let layouts = [*object!(world, Layout, a), *object!(world, Layout, b), *object!(world, Layout, c), *object!(world, Layout, d)];
        if layouts[2] != layouts[3] || asked != 1 || preference.reductions & !ORDERED != 0 {
            refuse!("{asked} algorithms for {layouts:?} with {preference:?}");
        }
        shapes(description, layouts[0], layouts[1], layouts[2])?;
        // What an algorithm may take for granted goes with it.
        let alignments = preference.alignments.map(|alignment| u64::from(alignment.unwrap_or(256)));
        let mut algorithm = cublasLtMatmulAlgo_t { data: [0; 8] };
        algorithm.data[..3].copy_from_slice(&[MARK, fingerprint(description, layouts), preference.workspace as u64]);
        algorithm.data[3..7].copy_from_slice(&alignments);
        unsafe {
            (*results).algo = algorithm;
            (*results).workspaceSize = preference.workspace;
            (*results).state = cublasStatus_t::CUBLAS_STATUS_SUCCESS;
            *returned = 1;
        }
        Ok(())
    }
    fn cublasLtMatmul(world, handle: cublasLtHandle_t, description: cublasLtMatmulDesc_t, alpha: *const c_void, a: *const c_void,
        a_layout: cublasLtMatrixLayout_t, b: *const c_void, b_layout: cublasLtMatrixLayout_t, beta: *const c_void, c: *const c_void,
        c_layout: cublasLtMatrixLayout_t, d: *mut c_void, d_layout: cublasLtMatrixLayout_t, algorithm: *const cublasLtMatmulAlgo_t,
        workspace: *mut c_void, workspace_bytes: usize, stream: cudaStream_t) {
        world.in_context()?;
        let Object::Handle = (match world.objects.get(&(handle as usize)) { Some(object) => *object, None => refuse!("no handle") })
        else { refuse!("{handle:?} is no handle") };
        let description = *object!(world, Description, description);
        let layouts = [*object!(world, Layout, a_layout), *object!(world, Layout, b_layout), *object!(world, Layout, c_layout),
            *object!(world, Layout, d_layout)];
        let [mark, of, most, alignments @ .., _] = unsafe { (*algorithm).data };
        if mark != MARK || of != fingerprint(description, layouts) {
            refuse!("an algorithm that was not chosen for this product");
        }
        if !world.on_device(workspace as u64, workspace_bytes) || workspace_bytes < most as usize || !(workspace as u64).is_multiple_of(256) {
            refuse!("a workspace of {workspace_bytes} bytes at {workspace:?}; the algorithm takes {most}");
        }
        let addresses = [a as u64, b as u64, c as u64, d as u64];
        for ((&address, layout), alignment) in addresses.iter().zip(&layouts).zip(alignments) {
            let bytes = ((layout.columns as usize - 1) * layout.ld as usize + layout.rows as usize) * layout.dtype.size();
            if !address.is_multiple_of(alignment) || !world.on_device(address, bytes) {
                refuse!("{layout:?} at {address:#x}, promised to be aligned to {alignment}");
            }
        }
        let (alpha, beta) = unsafe { (*alpha.cast::<f32>(), *beta.cast::<f32>()) };
        if alpha != 1.0 || (beta != 0.0 && beta != 1.0) || c != d.cast_const() {
            refuse!("factors {alpha} and {beta}, c at {c:?} and d at {d:?}");
        }
        let mut product = shapes(description, layouts[0], layouts[1], layouts[2])?;
        (product.b.address, product.a.address, product.c.address) = (addresses[0], addresses[1], addresses[2]);
        product.accumulate = beta == 1.0;
        if description.has_bias {
            // A value for each of the result's rows, of the result's type unless something is said.
            if product.out != product.dtype || !world.on_device(description.bias, product.c.cols * product.out.size()) {
                refuse!("a bias at {:#x} for results in {:?}", description.bias, product.out);
            }
            product.bias = Some(description.bias);
        }
        world.count("products");
        world.ask(stream as usize, Work::Product(product))
    }
}
