//! Linear layers: frozen matrices through the driver's products, trained ones through `matmul.cu`.

use super::*;
use Kind::*;

pub const OPERATIONS: &[Operation] = &[
    ("linear, frozen", frozen_matrices),
    ("linear, frozen, to fp32", frozen_matrices_with_wide_outputs),
    ("linear, trained", trained_matrices),
];

const SHAPES: [[usize; 3]; 6] = [[1, 1, 1], [3, 2, 48], [65, 7, 33], [70, 130, 24], [1, 384, 129], [33, 64, 64]];

pub fn frozen_matrices(judge: &mut Judge) {
    for (number, [rows, outputs, inputs]) in SHAPES.into_iter().enumerate() {
        for dtype in TYPES {
            for accumulate in [false, true] {
                let mut case = Case::new(format!("linear {rows} {outputs} {inputs}"), dtype, PLACES[number % 3]);
                let x = case.input(Activation, rows, inputs, 1.0);
                let weight = case.input(Frozen, outputs, inputs, 0.5);
                let bias = accumulate.then(|| case.input(Activation, 1, outputs, 1.0));
                let out = case.output(Activation, rows, outputs, Rounding::Activation);
                let dy = case.input(Activation, rows, outputs, 1.0);
                let dx = case.updated(Activation, rows, inputs, 1.0, Rounding::Activation);
                judge.check(&case, |backend, view| {
                    backend.linear(view[x], view[weight], bias.map(|id| view[id]), view[out]);
                    backend.linear_backward_input(view[dy], view[weight], view[dx], accumulate);
                });
            }
        }
    }
}

/// Logits of a frozen language-model head are kept in fp32.
pub fn frozen_matrices_with_wide_outputs(judge: &mut Judge) {
    for (number, [rows, outputs, inputs]) in SHAPES.into_iter().enumerate() {
        for dtype in TYPES {
            let mut case = Case::new(format!("linear {rows} {outputs} {inputs} to fp32"), dtype, PLACES[number % 3]);
            let x = case.input(Activation, rows, inputs, 1.0);
            let weight = case.input(Frozen, outputs, inputs, 0.5);
            let out = case.output(Master, rows, outputs, Rounding::Master);
            judge.check(&case, |backend, view| backend.linear(view[x], view[weight], None, view[out]));
        }
    }
}

/// The types that head and projection meet: (x, out), and in the backward (dy, x), (dy, dx).
pub fn trained_matrices(judge: &mut Judge) {
    for (number, [rows, outputs, inputs]) in SHAPES.into_iter().enumerate() {
        for dtype in TYPES {
            for (x_kind, out_kind) in [(Activation, Activation), (Activation, Master), (Master, Master)] {
                for accumulate in [false, true] {
                    let name = format!("trained linear {rows} {outputs} {inputs} of {x_kind:?} to {out_kind:?}");
                    let mut case = Case::new(name, dtype, PLACES[number % 3]);
                    let rounding = |kind| if kind == Activation { Rounding::Activation } else { Rounding::Master };
                    let x = case.input(x_kind, rows, inputs, 1.0);
                    let weight = case.input(Master, outputs, inputs, 0.5);
                    let bias = accumulate.then(|| case.input(Master, 1, outputs, 1.0));
                    let out = case.output(out_kind, rows, outputs, rounding(out_kind));
                    let dy = case.input(out_kind, rows, outputs, 1.0);
                    let dx = case.updated(x_kind, rows, inputs, 1.0, rounding(x_kind));
                    let d_weight = case.updated(Master, outputs, inputs, 1.0, Rounding::Master);
                    let d_bias = accumulate.then(|| case.updated(Master, 1, outputs, 1.0, Rounding::Master));
                    judge.check(&case, |backend, view| {
                        backend.linear(view[x], view[weight], bias.map(|id| view[id]), view[out]);
                        backend.linear_backward_input(view[dy], view[weight], view[dx], accumulate);
                        backend.linear_backward_weight(view[dy], view[x], view[d_weight], d_bias.map(|id| view[id]));
                    });
                }
            }
        }
    }
}
