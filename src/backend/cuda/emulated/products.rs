//! Matrix products on the host.

use crate::backend::DType;
use crate::backend::cuda::{Operand, Product};
use half::{bf16, f16};

/// A product as cuBLASLt computes it: sums in fp32, rounded once.
///
/// # Safety
/// As `Driver::product`.
pub unsafe fn multiply(product: &Product) {
    let widen = |operand: &Operand| -> Vec<f32> {
        // SAFETY: the caller's promise.
        let row = |r: usize| unsafe { std::slice::from_raw_parts((operand.address as *const u16).add(r * operand.stride), operand.cols) };
        let rows = (0..operand.rows).flat_map(row);
        match product.dtype {
            DType::BF16 => rows.map(|&bits| bf16::from_bits(bits).to_f32()).collect(),
            _ => rows.map(|&bits| f16::from_bits(bits).to_f32()).collect(),
        }
    };
    let (a, b) = (widen(&product.a), widen(&product.b));
    let Operand { rows: m, cols: n, stride, address } = product.c;
    let k = product.a.cols;
    // SAFETY: the caller's promise.
    let wide_row = |r: usize| unsafe { std::slice::from_raw_parts_mut((address as *mut f32).add(r * stride), n) };
    let wide = product.out == DType::F32;
    let mut sums = match (product.accumulate, wide) {
        (false, _) => vec![0.0; m * n],
        (true, true) => (0..m).flat_map(|r| wide_row(r).to_vec()).collect(),
        (true, false) => widen(&product.c),
    };
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
            wide_row(r).copy_from_slice(row);
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
}
