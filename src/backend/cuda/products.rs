//! Matrix products by cuBLASLt. Which of its algorithms a product takes is asked once for each shape and kept: a pure
//! function of shape, alignment, GPU and library version, never of time. Algorithms that split the sum add their parts
//! in order, in the workspace.
//!
//! cuBLASLt's matrices are column-major, so c = a bᵀ is asked for as cᵀ = (bᵀ)ᵀ aᵀ, and c = a b as cᵀ = bᵀ aᵀ: the memory
//! is the same. A bias has a value for each of cᵀ's rows, as the library's epilogue wants it.

use super::driver::{Address, Product};
use crate::backend::DType;
use anyhow::{Context, Result};
use cudarc::cublaslt::result;
use cudarc::cublaslt::sys::{
    cublasComputeType_t, cublasLtEpilogue_t, cublasLtHandle_t, cublasLtMatmulAlgo_t, cublasLtMatmulDesc_t,
    cublasLtMatmulDescAttributes_t as DescAttribute, cublasLtMatmulPreferenceAttributes_t as Preference, cublasLtMatrixLayout_t,
    cudaDataType_t,
};
use cudarc::driver::sys::CUstream;
use std::collections::HashMap;
use std::ffi::c_void;

/// Algorithms may split the sum only where the parts are added in fp32 in a fixed order
/// (CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE), not in place with atomics.
static ORDERED_REDUCTION: u32 = 2;

/// cublasOperation_t.
const AS_IT_IS: i32 = 0;
const TRANSPOSED: i32 = 1;

/// What an algorithm depends on.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Shape {
    dtype: DType,
    out: DType,
    /// Rows and columns of c, and the length of the sums.
    sizes: [usize; 3],
    strides: [usize; 3],
    alignments: [u32; 3],
    transposed: bool,
    accumulate: bool,
    /// What the bias's address is a multiple of, where there is one.
    bias: Option<u32>,
}

/// An algorithm with the descriptions that it is called with.
struct Plan {
    description: cublasLtMatmulDesc_t,
    /// Of b, a and c.
    layouts: [cublasLtMatrixLayout_t; 3],
    algorithm: cublasLtMatmulAlgo_t,
}

pub struct Products {
    handle: cublasLtHandle_t,
    plans: HashMap<Shape, Plan>,
    workspace: Address,
    workspace_bytes: usize,
}

/// Bytes that an address is a multiple of, as far as they matter.
fn alignment(address: Address) -> u32 {
    1 << address.trailing_zeros().min(8)
}

/// Tells a product where its bias is; algorithms are chosen by what its address is a multiple of.
///
/// # Safety
/// The description exists.
unsafe fn set_bias(description: cublasLtMatmulDesc_t, bias: Address) -> Result<()> {
    let value = (&raw const bias).cast();
    // SAFETY: the attribute's size, and the caller's promise.
    unsafe {
        result::set_matmul_desc_attribute(description, DescAttribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, value, size_of::<Address>())?
    };
    Ok(())
}

impl Products {
    pub fn new(workspace_bytes: usize) -> Result<Products> {
        let handle = result::create_handle().context("cuBLASLt does not start")?;
        Ok(Products { handle, plans: HashMap::new(), workspace: 0, workspace_bytes })
    }

    pub fn set_workspace(&mut self, address: Address) {
        self.workspace = address;
    }

    /// Asks for the algorithm of a shape.
    fn plan(&self, shape: &Shape) -> Result<Plan> {
        let element = if shape.dtype == DType::BF16 { cudaDataType_t::CUDA_R_16BF } else { cudaDataType_t::CUDA_R_16F };
        let of_c = if shape.out == DType::F32 { cudaDataType_t::CUDA_R_32F } else { element };
        let [m, n, k] = shape.sizes.map(|size| size as u64);
        let [a, b, c] = shape.strides.map(|stride| stride as i64);
        // Rows and columns as cuBLASLt counts them: b, a, c.
        let b_shape = if shape.transposed { (k, n) } else { (n, k) };
        let layouts = [
            result::create_matrix_layout(element, b_shape.0, b_shape.1, b)?,
            result::create_matrix_layout(element, k, m, a)?,
            result::create_matrix_layout(of_c, n, m, c)?,
        ];
        let description = result::create_matmul_desc(cublasComputeType_t::CUBLAS_COMPUTE_32F, cudaDataType_t::CUDA_R_32F)?;
        let operation = if shape.transposed { TRANSPOSED } else { AS_IT_IS };
        let preference = result::create_matmul_pref()?;
        // SAFETY: attributes of the sizes that the library states, on descriptions just made.
        unsafe {
            let operation = (&raw const operation).cast::<c_void>();
            result::set_matmul_desc_attribute(description, DescAttribute::CUBLASLT_MATMUL_DESC_TRANSA, operation, size_of::<i32>())?;
            if let Some(alignment) = shape.bias {
                let epilogue = cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS;
                let value = (&raw const epilogue).cast();
                result::set_matmul_desc_attribute(
                    description,
                    DescAttribute::CUBLASLT_MATMUL_DESC_EPILOGUE,
                    value,
                    size_of_val(&epilogue),
                )?;
                // Any address of this alignment: the algorithm is kept for all of them.
                set_bias(description, Address::from(alignment))?;
            }
            let set = |attribute, value: *const c_void, bytes| result::set_matmul_pref_attribute(preference, attribute, value, bytes);
            set(Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, (&raw const self.workspace_bytes).cast(), size_of::<usize>())?;
            set(Preference::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, (&raw const ORDERED_REDUCTION).cast(), 4)?;
            let [a, b, c] = &shape.alignments;
            for (attribute, bytes) in [
                (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, b),
                (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, a),
                (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, c),
                (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, c),
            ] {
                set(attribute, std::ptr::from_ref(bytes).cast(), 4)?;
            }
            let [b, a, c] = layouts;
            let found = result::get_matmul_algo_heuristic(self.handle, description, b, a, c, c, preference);
            result::destroy_matmul_pref(preference)?;
            Ok(Plan { description, layouts, algorithm: found.context("no algorithm for this product")?.algo })
        }
    }

    /// Queues a product.
    ///
    /// # Safety
    /// The operands lie in device memory, and `c` overlaps neither of the others; a workspace is set.
    pub unsafe fn run(&mut self, product: &Product, stream: CUstream) -> Result<()> {
        let Product { a, b, c, transposed, accumulate, bias, dtype, out } = *product;
        let shape = Shape {
            dtype,
            out,
            sizes: [c.rows, c.cols, a.cols],
            strides: [a.stride, b.stride, c.stride],
            alignments: [a, b, c].map(|operand| alignment(operand.address)),
            transposed,
            accumulate,
            bias: bias.map(alignment),
        };
        if !self.plans.contains_key(&shape) {
            let plan = self.plan(&shape)?;
            self.plans.insert(shape, plan);
        }
        let plan = &self.plans[&shape];
        let (alpha, beta) = (1.0_f32, f32::from(u8::from(accumulate)));
        let [b_layout, a_layout, c_layout] = plan.layouts;
        // SAFETY: the caller's promise; the plan is of these shapes, and its description takes the pointer's value.
        unsafe {
            if let Some(bias) = bias {
                set_bias(plan.description, bias)?;
            }
            result::matmul(
                self.handle,
                plan.description,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                b.address as *const c_void,
                b_layout,
                a.address as *const c_void,
                a_layout,
                c.address as *const c_void,
                c_layout,
                c.address as *mut c_void,
                c_layout,
                &plan.algorithm,
                self.workspace as *mut c_void,
                self.workspace_bytes,
                stream.cast(),
            )?;
        }
        Ok(())
    }

    /// Gives everything back.
    ///
    /// # Safety
    /// Nothing is under way, and nothing is run after it.
    pub unsafe fn release(&mut self) {
        for (_, plan) in self.plans.drain() {
            // SAFETY: made by `plan`, and destroyed once.
            unsafe {
                for layout in plan.layouts {
                    let _ = result::destroy_matrix_layout(layout);
                }
                let _ = result::destroy_matmul_desc(plan.description);
            }
        }
        // SAFETY: the caller's promise.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}
