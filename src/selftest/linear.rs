//! Linear layers: frozen matrices through the driver's products, trained ones through `matmul.cu`.

use super::*;
use Kind::*;

pub const OPERATIONS: &[Operation] = &[
    ("linear, frozen", frozen_matrices),
    ("linear, frozen, to fp32", frozen_matrices_with_wide_outputs),
    ("linear, trained", trained_matrices),
    ("int8 to 16 bits", quantised_matrices),
];

/// Sizes around tiles and packs, of rows, outputs and inputs.
const ROWS: [usize; 5] = [1, 3, 33, 65, 70];
const OUTPUTS: [usize; 6] = [1, 2, 7, 64, 130, 384];
const INPUTS: [usize; 6] = [1, 24, 33, 48, 64, 129];

pub fn frozen_matrices(judge: &mut Judge) {
    let sizes = [ROWS.len(), OUTPUTS.len(), INPUTS.len(), 2, 2, TYPES.len(), PLACES.len()];
    for [rows, outputs, inputs, bias, accumulate, dtype, place] in judge.extent.combinations(sizes, |_| true) {
        let (rows, outputs, inputs, accumulate) = (ROWS[rows], OUTPUTS[outputs], INPUTS[inputs], accumulate == 1);
        let name = format!("linear {rows} {outputs} {inputs}, bias {bias}, accumulate {accumulate}");
        let mut case = Case::new(name, TYPES[dtype], PLACES[place]);
        let x = case.input(Activation, rows, inputs, 1.0);
        let weight = case.input(Frozen, outputs, inputs, 0.5);
        let bias = (bias == 1).then(|| case.input(Activation, 1, outputs, 1.0));
        let out = case.output(Activation, rows, outputs, Rounding::Activation);
        let dy = case.input(Activation, rows, outputs, 1.0);
        let dx = case.updated(Activation, rows, inputs, 1.0, Rounding::Activation);
        judge.check(&case, |backend, view| {
            backend.linear(view[x], view[weight], bias.map(|id| view[id]), view[out]);
            backend.linear_backward_input(view[dy], view[weight], view[dx], accumulate);
        });
    }
}

/// Every byte that a matrix has, steps from those that 16 bits round to nothing up, rows of zeros; columns around packs of
/// 16 and rows in every place. Then its product, as an engine runs them.
pub fn quantised_matrices(judge: &mut Judge) {
    const WIDTHS: [usize; 7] = [1, 15, 16, 24, 129, 255, 1040];
    let sizes = [ROWS.len(), WIDTHS.len(), TYPES.len(), PLACES.len()];
    for [rows, width, dtype, place] in judge.extent.combinations(sizes, |_| true) {
        let (rows, width) = (ROWS[rows], WIDTHS[width]);
        let mut case = Case::new(format!("int8 {rows} {width}"), TYPES[dtype], PLACES[place]);
        let bytes = (0..rows * width).map(|index| (index * 37 % 255) as f64 - 127.0).collect();
        let weight = case.given(Quantised, rows, width, bytes);
        let scales = (0..rows).map(|row| rounded(DType::F32, if row % 5 == 4 { 0.0 } else { 0.3 / 127.0 / 30f64.powi(row as i32 % 5) }));
        let scales = scales.collect();
        let scales = case.tight(Scale, 1, rows, scales);
        let out = case.output(Frozen, rows, width, Rounding::Activation);
        judge.check_exactly(&case, |backend, view| backend.dequantize(view[weight], view[scales], view[out]));
    }
    let mut case = Case::new("int8, and a product", DType::F16, Place::Tight);
    let (x, weight) =
        (case.input(Activation, 33, 48, 1.0), case.given(Quantised, 24, 48, (0..24 * 48).map(|i| (i % 201) as f64 - 100.0).collect()));
    let scales = case.tight(Scale, 1, 24, vec![rounded(DType::F32, 0.01); 24]);
    let widened = case.output(Frozen, 24, 48, Rounding::Activation);
    let out = case.output(Activation, 33, 24, Rounding::Activation);
    judge.check(&case, |backend, view| {
        backend.dequantize(view[weight], view[scales], view[widened]);
        backend.linear(view[x], view[widened], None, view[out]);
    });
}

/// Logits of a frozen language-model head are kept in fp32.
pub fn frozen_matrices_with_wide_outputs(judge: &mut Judge) {
    let sizes = [ROWS.len(), OUTPUTS.len(), INPUTS.len(), TYPES.len(), PLACES.len()];
    for [rows, outputs, inputs, dtype, place] in judge.extent.combinations(sizes, |_| true) {
        let (rows, outputs, inputs) = (ROWS[rows], OUTPUTS[outputs], INPUTS[inputs]);
        let mut case = Case::new(format!("linear {rows} {outputs} {inputs} to fp32"), TYPES[dtype], PLACES[place]);
        let x = case.input(Activation, rows, inputs, 1.0);
        let weight = case.input(Frozen, outputs, inputs, 0.5);
        let out = case.output(Master, rows, outputs, Rounding::Master);
        judge.check(&case, |backend, view| backend.linear(view[x], view[weight], None, view[out]));
    }
}

/// The types that head and projection meet: (x, out), and in the backward (dy, x), (dy, dx).
pub fn trained_matrices(judge: &mut Judge) {
    const MEETINGS: [(Kind, Kind); 3] = [(Activation, Activation), (Activation, Master), (Master, Master)];
    let sizes = [ROWS.len(), OUTPUTS.len(), INPUTS.len(), MEETINGS.len(), 2, 2, TYPES.len(), PLACES.len()];
    for [rows, outputs, inputs, kinds, bias, accumulate, dtype, place] in judge.extent.combinations(sizes, |_| true) {
        let (rows, outputs, inputs, accumulate) = (ROWS[rows], OUTPUTS[outputs], INPUTS[inputs], accumulate == 1);
        let (x_kind, out_kind) = MEETINGS[kinds];
        let name = format!("trained linear {rows} {outputs} {inputs} of {x_kind:?} to {out_kind:?}, bias {bias}, accumulate {accumulate}");
        let mut case = Case::new(name, TYPES[dtype], PLACES[place]);
        let rounding = |kind| if kind == Activation { Rounding::Activation } else { Rounding::Master };
        let x = case.input(x_kind, rows, inputs, 1.0);
        let weight = case.input(Master, outputs, inputs, 0.5);
        let has_bias = bias == 1;
        let bias = has_bias.then(|| case.input(Master, 1, outputs, 1.0));
        let out = case.output(out_kind, rows, outputs, rounding(out_kind));
        let dy = case.input(out_kind, rows, outputs, 1.0);
        let dx = case.updated(x_kind, rows, inputs, 1.0, rounding(x_kind));
        let d_weight = case.updated(Master, outputs, inputs, 1.0, Rounding::Master);
        let d_bias = has_bias.then(|| case.updated(Master, 1, outputs, 1.0, Rounding::Master));
        judge.check(&case, |backend, view| {
            backend.linear(view[x], view[weight], bias.map(|id| view[id]), view[out]);
            backend.linear_backward_input(view[dy], view[weight], view[dx], accumulate);
            backend.linear_backward_weight(view[dy], view[x], view[d_weight], d_bias.map(|id| view[id]));
        });
    }
}
