//! Operations that touch every element once: dropout, activations, copies of rows.

use super::memory::Matrix;
use super::real::Real;
use super::{RowIndex, mask, parallel_rows};
use crate::backend::{Activation, Dropout};

/// d_prompt\[p\] += Σ of row p of every sequence.
pub fn prompt_gradient<T: Real>(d: Matrix<T>, offsets: &[i32], d_prompt: Matrix<T>) {
    parallel_rows(d_prompt.rows, |row| {
        let sum = d_prompt.row_mut(row);
        for &start in &offsets[..offsets.len() - 1] {
            for (sum, &value) in sum.iter_mut().zip(d.row(start as usize + row)) {
                *sum += value;
            }
        }
    });
}

pub fn dropout<T: Real>(data: Matrix<T>, dropout: Dropout, index: RowIndex) {
    parallel_rows(data.rows, |row| {
        mask::apply(data.row_mut(row), dropout, index.ordinals[row] as u32, index.tokens[row] as u32, 0, 0);
    });
}

/// √(2/π) and the cubic's coefficient of the tanh form of GELU.
const GELU_TANH: [f64; 2] = [0.797_884_560_802_865_4, 0.044_715];

/// Of a gated activation the function of the gate.
#[inline(always)]
fn activate<T: Real>(kind: Activation, z: T) -> T {
    let half = T::of(0.5);
    match kind {
        Activation::GeluErf => half * z * (T::ONE + (z * T::of(std::f64::consts::FRAC_1_SQRT_2)).erf()),
        Activation::GeluTanh => {
            let inner = T::of(GELU_TANH[0]) * (z + T::of(GELU_TANH[1]) * z * z * z);
            half * z * (T::ONE + inner.tanh())
        }
        Activation::Relu => Real::max(z, T::ZERO),
        Activation::Tanh => z.tanh(),
        Activation::SwiGlu => z / (T::ONE + (T::ZERO - z).exp()),
    }
}

#[inline(always)]
fn slope<T: Real>(kind: Activation, z: T) -> T {
    let half = T::of(0.5);
    match kind {
        Activation::GeluErf => {
            let cumulative = half * (T::ONE + (z * T::of(std::f64::consts::FRAC_1_SQRT_2)).erf());
            // 1/√(2π).
            cumulative + z * T::of(0.398_942_280_401_432_7) * (-half * z * z).exp()
        }
        Activation::GeluTanh => {
            let [root, cubic] = GELU_TANH.map(T::of);
            let tanh = (root * (z + cubic * z * z * z)).tanh();
            half * (T::ONE + tanh) + half * z * (T::ONE - tanh * tanh) * root * (T::ONE + T::of(3.0) * cubic * z * z)
        }
        Activation::Relu => {
            if z > T::ZERO {
                T::ONE
            } else {
                T::ZERO
            }
        }
        Activation::Tanh => {
            let tanh = z.tanh();
            T::ONE - tanh * tanh
        }
        Activation::SwiGlu => {
            let logistic = T::ONE / (T::ONE + (T::ZERO - z).exp());
            logistic * (T::ONE + z * (T::ONE - logistic))
        }
    }
}

/// One loop a kind, so that each is vectorised by itself.
macro_rules! by_kind {
    ($kind:expr, $body:expr) => {
        match $kind {
            Activation::GeluErf => $body(Activation::GeluErf),
            Activation::GeluTanh => $body(Activation::GeluTanh),
            Activation::Relu => $body(Activation::Relu),
            Activation::Tanh => $body(Activation::Tanh),
            Activation::SwiGlu => $body(Activation::SwiGlu),
        }
    };
}

pub fn activation_forward<T: Real>(kind: Activation, z: Matrix<T>, out: Matrix<T>) {
    if kind.arity() == 2 {
        let width = out.cols;
        return parallel_rows(out.rows, |row| {
            let (gate, up) = z.row(row).split_at(width);
            for (i, out) in out.row_mut(row).iter_mut().enumerate() {
                *out = activate(kind, gate[i]) * up[i];
            }
        });
    }
    parallel_rows(out.rows, |row| {
        let (z, out) = (z.at(row, 0).cast_const(), out.row_mut(row));
        by_kind!(kind, |kind| {
            for (i, out) in out.iter_mut().enumerate() {
                // SAFETY: z has the shape of out; where it is out, the element is read before it is written.
                *out = activate(kind, unsafe { *z.add(i) });
            }
        });
    });
}

/// dz may be d_out, or z where the activation is gated.
pub fn activation_backward<T: Real>(kind: Activation, z: Matrix<T>, d_out: Matrix<T>, dz: Matrix<T>) {
    let width = d_out.cols;
    parallel_rows(dz.rows, |row| {
        let (z, d_out, dz) = (z.at(row, 0).cast_const(), d_out.at(row, 0).cast_const(), dz.at(row, 0));
        // SAFETY: columns of the three rows; what an element's gradient is made of is read before it is written.
        by_kind!(kind, |kind: Activation| unsafe {
            for i in 0..width {
                let (z, d) = (|i: usize| *z.add(i), *d_out.add(i));
                if kind.arity() == 2 {
                    let (gate, up) = (z(i), z(width + i));
                    *dz.add(i) = d * up * slope(kind, gate);
                    *dz.add(width + i) = d * activate(kind, gate);
                } else {
                    *dz.add(i) = d * slope(kind, z(i));
                }
            }
        });
    });
}

pub fn gather_rows<T: Real>(x: Matrix<T>, rows: &[i32], out: Matrix<T>) {
    parallel_rows(out.rows, |row| out.row_mut(row).copy_from_slice(x.row(rows[row] as usize)));
}

pub fn scatter_add_rows<T: Real>(source: Matrix<T>, rows: &[i32], x: Matrix<T>) {
    parallel_rows(source.rows, |row| {
        for (x, &value) in x.row_mut(rows[row] as usize).iter_mut().zip(source.row(row)) {
            *x += value;
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The slopes against central differences in f64 (truncation h²/6 f''' and rounding eps/h are below 1e-9).
    #[test]
    fn slopes_are_derivatives() {
        for kind in [Activation::GeluErf, Activation::GeluTanh, Activation::Tanh, Activation::Relu, Activation::SwiGlu] {
            for i in -50..50 {
                let z = f64::from(i) * 0.1 + 0.05;
                let h = 1e-5;
                let difference = (activate(kind, z + h) - activate(kind, z - h)) / (2.0 * h);
                assert!((difference - slope(kind, z)).abs() < 1e-9, "{kind:?} at {z}");
            }
        }
    }

    /// GELU's two forms differ by at most about 5e-4 and must not be confused: values of both at 2.
    #[test]
    fn gelu_forms_are_their_own() {
        assert!((activate(Activation::GeluErf, 2.0_f64) - 1.954_499_736_103_641_6).abs() < 1e-15);
        assert!((activate(Activation::GeluTanh, 2.0_f64) - 1.954_597_694_087_775).abs() < 1e-12);
    }
}
