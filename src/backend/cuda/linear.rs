//! Linear layers. A frozen matrix has the activations' 16-bit type: a product of the driver's library, which adds the bias
//! while the sums are still in registers; one of 8 bits is brought to that type by `dequantize.cu` first. What is trained
//! (head, projection) is small and in fp32, with inputs and outputs of either type: the kernels of `matmul.cu`.

use super::{Cuda, Driver, Operand, Product, for_type};
use crate::backend::*;

/// Rows and columns of the tile of the output that a block of `matmul.cu` computes.
const TILE: usize = 64;
const THREADS: [usize; 2] = [256, 1];

fn tiles(rows: usize, cols: usize) -> [usize; 3] {
    [cols.div_ceil(TILE), rows.div_ceil(TILE), 1]
}

/// The kernel for two element types, first that of x or dy.
macro_rules! for_types {
    ($first:expr, $second:expr, $name:literal) => {
        match ($first, $second) {
            (DType::F16, DType::F16) => concat!($name, "_f16_f16"),
            (DType::F16, DType::F32) => concat!($name, "_f16_f32"),
            (DType::F32, DType::F16) => concat!($name, "_f32_f16"),
            (DType::BF16, DType::BF16) => concat!($name, "_bf16_bf16"),
            (DType::BF16, DType::F32) => concat!($name, "_bf16_f32"),
            (DType::F32, DType::BF16) => concat!($name, "_f32_bf16"),
            (DType::F32, DType::F32) => concat!($name, "_f32_f32"),
            (first, second) => unreachable!("{} of {} and {}", $name, first.name(), second.name()),
        }
    };
}

impl<D: Driver> Cuda<D> {
    fn operand(&self, view: View, dtype: DType) -> Operand {
        assert_eq!(view.dtype, dtype, "element type of a view");
        Operand { address: self.arena.address(view), rows: view.rows, cols: view.cols, stride: view.stride }
    }

    fn product(&mut self, a: View, b: View, transposed: bool, c: View, accumulate: bool, bias: Option<View>) {
        let (n, k) = if transposed { (b.rows, b.cols) } else { (b.cols, b.rows) };
        assert!(a.cols == k && c.rows == a.rows && c.cols == n);
        if c.is_empty() {
            return;
        }
        let (dtype, out) = (self.activation, if c.dtype == DType::F32 { DType::F32 } else { self.activation });
        let (a, b, c) = (self.operand(a, dtype), self.operand(b, dtype), self.operand(c, out));
        let bias = bias.map(|bias| {
            assert!(
                bias.dtype == self.activation && out == self.activation && bias.len() == n,
                "a bias of {} {}",
                bias.len(),
                bias.dtype.name()
            );
            self.arena.address(bias)
        });
        let product = Product { dtype, out, a, b, transposed, c, accumulate, bias };
        // SAFETY: `operand` checked that the views lie in the arena; shapes agree; the engine gives an output of its own.
        self.attempt(|driver| unsafe { driver.product(&product) });
        self.log("product");
    }
}

/// A thread 16 bytes of the weight.
pub fn dequantize<D: Driver>(cuda: &mut Cuda<D>, weight: View, scales: View, out: View) {
    let t = cuda.activation;
    assert!(scales.len() == weight.rows && (out.rows, out.cols) == (weight.rows, weight.cols));
    let arguments = cuda.arguments().matrix(DType::I8, weight).vector(DType::F32, scales).matrix(t, out).int(weight.rows).int(weight.cols);
    let blocks = (weight.rows * weight.cols.div_ceil(16)).div_ceil(THREADS[0]);
    cuda.launch(for_type!(t, "dequantize"), [blocks, 1, 1], THREADS, 0, arguments);
}

pub fn forward<D: Driver>(cuda: &mut Cuda<D>, x: View, weight: View, bias: Option<View>, out: View) {
    if weight.dtype != DType::F32 {
        return cuda.product(x, weight, true, out, false, bias);
    }
    let arguments = cuda
        .arguments()
        .matrix(x.dtype, x)
        .matrix(DType::F32, weight)
        .optional_vector(DType::F32, bias)
        .matrix(out.dtype, out)
        .int(out.rows)
        .int(out.cols)
        .int(x.cols);
    cuda.launch(for_types!(x.dtype, out.dtype, "matmul"), tiles(out.rows, out.cols), THREADS, 0, arguments);
}

pub fn backward_input<D: Driver>(cuda: &mut Cuda<D>, dy: View, weight: View, dx: View, accumulate: bool) {
    if weight.dtype != DType::F32 {
        return cuda.product(dy, weight, false, dx, accumulate, None);
    }
    let arguments = cuda
        .arguments()
        .matrix(dy.dtype, dy)
        .matrix(DType::F32, weight)
        .matrix(dx.dtype, dx)
        .int(usize::from(accumulate))
        .int(dy.rows)
        .int(dy.cols)
        .int(dx.cols);
    cuda.launch(for_types!(dy.dtype, dx.dtype, "matmul_backward_input"), tiles(dx.rows, dx.cols), THREADS, 0, arguments);
}

pub fn backward_weight<D: Driver>(cuda: &mut Cuda<D>, dy: View, x: View, d_weight: View, d_bias: Option<View>) {
    let arguments = cuda
        .arguments()
        .matrix(dy.dtype, dy)
        .matrix(x.dtype, x)
        .matrix(DType::F32, d_weight)
        .optional_vector(DType::F32, d_bias)
        .int(dy.rows)
        .int(dy.cols)
        .int(x.cols);
    cuda.launch(for_types!(dy.dtype, x.dtype, "matmul_backward_weight"), tiles(d_weight.rows, d_weight.cols), THREADS, 0, arguments);
}
