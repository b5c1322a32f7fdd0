//! Linear layers of the frozen model. Where a matrix is kept in 8 bits, it is brought to 16 in front of each product, in
//! one place of the plan that all layers share; products read that, and nothing else knows of 8 bits.

use crate::backend::{Backend, View};

/// A linear layer: \[N, K\] and \[N\].
#[derive(Clone, Copy, Debug)]
pub struct Linear {
    pub weight: View,
    pub bias: Option<View>,
    /// Where the weight is int8.
    pub quantised: Option<Quantised>,
}

/// What belongs to a matrix of 8 bits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quantised {
    /// fp32 \[N\]: what each row is multiplied by.
    pub scales: View,
    /// 16 bits \[N * K\]: the matrix as products read it, good until the next one takes its place.
    pub widened: View,
}

impl Linear {
    /// Output features `from..from + count`.
    pub fn outputs(self, from: usize, count: usize) -> Linear {
        Linear {
            weight: self.weight.row_range(from, count),
            bias: self.bias.map(|bias| bias.col_range(from, count)),
            quantised: self.quantised.map(|own| Quantised { scales: own.scales.col_range(from, count), ..own }),
        }
    }

    /// The views that come and go with the layer's weight.
    pub fn parts_mut(&mut self) -> impl Iterator<Item = &mut View> {
        [&mut self.weight].into_iter().chain(self.quantised.as_mut().map(|own| &mut own.scales))
    }

    /// out\[T, N\] = x\[T, K\] weightᵀ + bias.
    pub fn forward(self, backend: &mut dyn Backend, x: View, out: View) {
        let weight = self.readable(backend);
        backend.linear(x, weight, self.bias, out);
    }

    /// dx\[T, K\] = dy\[T, N\] weight (+ dx if `accumulate`).
    pub fn backward_input(self, backend: &mut dyn Backend, dy: View, dx: View, accumulate: bool) {
        let weight = self.readable(backend);
        backend.linear_backward_input(dy, weight, dx, accumulate);
    }

    /// The weight in 16 bits, for the operation that is queued next.
    fn readable(self, backend: &mut dyn Backend) -> View {
        let Some(Quantised { scales, widened }) = self.quantised else { return self.weight };
        let out = widened.col_range(0, self.weight.len()).reshape(self.weight.rows, self.weight.cols);
        backend.dequantize(self.weight, scales, out);
        out
    }
}
