//! Operations that work row by row, and the masks that they draw.

use super::*;
use crate::backend::{Activation as Function, Dropout, Embed, EmbedNorm, NormBackward, NormForward, NormKind, Rotary};
use Kind::*;

pub const OPERATIONS: &[Operation] = &[
    ("embedding", embeddings),
    ("embedding of a prompt, and its gradient", prompts),
    ("norm, forward", norms_forward),
    ("norm, output", norm_outputs),
    ("norm, backward", norms_backward),
    ("dropout", masks_are_those_of_the_cpu),
    ("activation", activations),
    ("activation, gated", gated_activations),
    ("rotation", rotations),
    ("rows gathered and scattered", rows_are_gathered_and_scattered),
    ("normal numbers", normal_numbers),
    ("copy", copies),
];

/// Widths around the 16-byte packs, a warp's registers and a whole block.
const WIDTHS: [usize; 8] = [1, 5, 24, 64, 257, 384, 1024, 2056];

const KINDS: [NormKind; 2] = [NormKind::LayerNorm, NormKind::RmsNorm];

fn mask() -> Dropout {
    Dropout::new(0.3, [11, 12]).unwrap()
}

/// Seven rows of three sequences, the second of one token.
const LENGTHS: [usize; 3] = [4, 1, 2];

fn every(mut test: impl FnMut(DType, Place, usize)) {
    for (number, width) in WIDTHS.into_iter().enumerate() {
        for dtype in TYPES {
            test(dtype, PLACES[(number + usize::from(dtype == DType::BF16)) % 3], width);
        }
    }
}

/// Sums of one to three tables: as they are, behind a norm, and in front of it as a stream; with and without dropout and
/// what the norm keeps.
pub fn embeddings(judge: &mut Judge) {
    let sizes = [WIDTHS.len(), 3, 3, 2, 2, 2, TYPES.len(), PLACES.len()];
    // Without a norm there is nothing for it to keep.
    let possible = |[_, _, kind, _, stream, keeps, ..]: [usize; 8]| kind < 2 || stream + keeps == 0;
    for row in judge.extent.combinations(sizes, possible) {
        let [width, tables, kind, drops, keeps_stream, keeps, dtype, place] = row;
        let (width, kind) = (WIDTHS[width], KINDS.get(kind).copied());
        let mut case = Case::new(format!("embed {width} {row:?}"), TYPES[dtype], PLACES[place]);
        let rows = case.rows(&LENGTHS, |_| true);
        let word = case.input(Frozen, 11, width, 1.0);
        let others = [(9, tables > 0), (2, tables > 1)].map(|(rows, there)| there.then(|| case.input(Frozen, rows, width, 1.0)));
        let [ids, at, kinds] = [11, 9, 2].map(|bound| {
            let values: Vec<i32> = (0..7).map(|_| case.below(bound) as i32).collect();
            case.integers(&values)
        });
        let gamma = case.gamma(width);
        let beta = (kind == Some(NormKind::LayerNorm)).then(|| case.input(Master, 1, width, 0.5));
        let stream = (keeps_stream == 1).then(|| case.output(Activation, 7, width, Rounding::Activation));
        let kept = (keeps == 1).then(|| {
            let normalized = case.output(Activation, 7, width, Rounding::Activation);
            [normalized, case.output(Master, 1, 7, Rounding::Activation)]
        });
        let out = case.output(Activation, 7, width, Rounding::Activation);
        judge.check(&case, |backend, view| {
            let rows = view.rows(rows);
            let [position, token_type] = others.map(|table| table.map(|id| view[id]));
            backend.embed(&Embed {
                word: view[word],
                position,
                token_type,
                ids: view[ids],
                positions: view[at],
                types: view[kinds],
                prompt: None,
                dropout: (drops == 1).then(|| (mask(), &rows)),
                norm: kind.map(|kind| EmbedNorm {
                    kind,
                    epsilon: 1e-5,
                    gamma: view[gamma],
                    beta: beta.map(|id| view[id]),
                    stream: stream.map(|id| view[id]),
                    kept: kept.map(|kept| kept.map(|id| view[id])),
                }),
                out: view[out],
            });
        });
    }
}

/// Two rows in front of each of three sequences, the second of which has nothing else.
pub fn prompts(judge: &mut Judge) {
    every(|dtype, place, width| {
        let mut case = Case::new(format!("prompt {width}"), dtype, place);
        let (word, position) = (case.input(Frozen, 11, width, 1.0), case.input(Frozen, 9, width, 1.0));
        let prompt = case.normals(Master, 2 * width, 0.0, 1.0);
        let prompt = case.tight(Master, 2, width, prompt);
        let ids = case.integers(&[-1, -2, 10, -1, -2, -1, -2, 0, 3]);
        let at: Vec<i32> = (0..9).map(|_| case.below(9) as i32).collect();
        let (at, offsets) = (case.integers(&at), case.integers(&[0, 3, 5, 9]));
        let out = case.tight_output(Activation, 9, width, Rounding::Activation);
        let d = case.input(Activation, 9, width, 1.0);
        let d_prompt = case.tight_updated(Master, 2, width, 0.5, Rounding::Master);
        judge.check(&case, |backend, view| {
            let (ids, positions, types) = (view[ids], view[at], view[at]);
            let (position, prompt, out) = (Some(view[position]), Some(view[prompt]), view[out]);
            backend.embed(&Embed {
                word: view[word],
                position,
                token_type: None,
                ids,
                positions,
                types,
                prompt,
                dropout: None,
                norm: None,
                out,
            });
            backend.prompt_gradient(view[d], view[offsets], view[d_prompt]);
        });
    });
}

/// Of the residual alone, or with a branch that may have dropout; the sum kept or not.
pub fn norms_forward(judge: &mut Judge) {
    let sizes = [WIDTHS.len(), KINDS.len(), 3, 2, TYPES.len(), PLACES.len()];
    for row in judge.extent.combinations(sizes, |_| true) {
        let [width, kind, branch, sum, dtype, place] = row;
        let (width, kind) = (WIDTHS[width], KINDS[kind]);
        let mut case = Case::new(format!("{kind:?} forward {width} {row:?}"), TYPES[dtype], PLACES[place]);
        let rows = case.rows(&LENGTHS, |_| true);
        let residual = case.input(Activation, 7, width, 1.0);
        let drops = branch == 2;
        let branch = (branch > 0).then(|| case.input(Activation, 7, width, 1.0));
        let gamma = case.gamma(width);
        let beta = (kind == NormKind::LayerNorm).then(|| case.input(Master, 1, width, 0.5));
        let sum = (sum == 1).then(|| case.output(Activation, 7, width, Rounding::Activation));
        let normalized = case.output(Activation, 7, width, Rounding::Activation);
        let rstd = case.output(Master, 1, 7, Rounding::Activation);
        let out = case.output(Activation, 7, width, Rounding::Activation);
        judge.check(&case, |backend, view| {
            let rows = view.rows(rows);
            backend.norm_forward(&NormForward {
                kind,
                epsilon: 1e-5,
                residual: view[residual],
                branch: branch.map(|id| view[id]),
                dropout: drops.then(|| (mask(), &rows)),
                gamma: view[gamma],
                beta: beta.map(|id| view[id]),
                sum: sum.map(|id| view[id]),
                normalized: view[normalized],
                rstd: view[rstd],
                out: view[out],
            });
        });
    }
}

pub fn norm_outputs(judge: &mut Judge) {
    every(|dtype, place, width| {
        for shifted in [true, false] {
            let mut case = Case::new(format!("norm output {width}"), dtype, place);
            let normalized = case.input(Activation, 7, width, 1.0);
            let gamma = case.gamma(width);
            let beta = shifted.then(|| case.input(Master, 1, width, 0.5));
            let out = case.output(Activation, 7, width, Rounding::Activation);
            judge.check(&case, |backend, view| backend.norm_output(view[normalized], view[gamma], beta.map(|id| view[id]), view[out]));
        }
    });
}

/// The sum's gradient takes the place of the output's, or of the stream's.
pub fn norms_backward(judge: &mut Judge) {
    let sizes = [WIDTHS.len(), KINDS.len(), 2, 2, TYPES.len(), PLACES.len()];
    for row in judge.extent.combinations(sizes, |_| true) {
        let [width, kind, stream, drops, dtype, place] = row;
        let (width, kind, stream) = (WIDTHS[width], KINDS[kind], stream == 1);
        let mut case = Case::new(format!("{kind:?} backward {width} {row:?}"), TYPES[dtype], PLACES[place]);
        let rows = case.rows(&LENGTHS, |_| true);
        let d_out = match stream {
            false => case.updated(Activation, 7, width, 1.0, Rounding::Activation),
            true => case.input(Activation, 7, width, 1.0),
        };
        let d_residual = stream.then(|| case.updated(Activation, 7, width, 1.0, Rounding::Activation));
        let gamma = case.gamma(width);
        let normalized = case.input(Activation, 7, width, 1.0);
        let rstd: Vec<f64> = (0..7).map(|row| f64::from(0.5 + 0.2 * row as f32)).collect();
        let rstd = case.given(Master, 1, 7, rstd);
        let d_branch = (drops == 1).then(|| case.output(Activation, 7, width, Rounding::Activation));
        judge.check(&case, |backend, view| {
            let rows = view.rows(rows);
            backend.norm_backward(&NormBackward {
                kind,
                d_out: view[d_out],
                d_residual: d_residual.map(|id| view[id]),
                gamma: view[gamma],
                normalized: view[normalized],
                rstd: view[rstd],
                d_sum: view[d_residual.unwrap_or(d_out)],
                dropout: d_branch.map(|id| (mask(), &rows, view[id])),
            });
        });
    }
}

/// On ones, so that a mask that differs in one element differs by everything.
pub fn masks_are_those_of_the_cpu(judge: &mut Judge) {
    for rate in [0.1, 0.5, 0.999] {
        every(|dtype, place, width| {
            let mut case = Case::new(format!("dropout {width} at {rate}"), dtype, place);
            let rows = case.rows(&LENGTHS, |token| token != 1);
            let id = case.push(Activation, rows.count, width, vec![1.0; rows.count * width], Some(Rounding::Activation));
            let dropout = Dropout::new(rate, [0xdead_beef, 0x1234_5678]).unwrap();
            judge.check_exactly(&case, |backend, view| backend.dropout(view[id], dropout, &view.rows(rows)));
        });
    }
}

pub fn activations(judge: &mut Judge) {
    let kinds = [Function::GeluErf, Function::GeluTanh, Function::Relu, Function::Tanh];
    for (number, kind) in kinds.into_iter().enumerate() {
        for element in [Activation, Master] {
            let rounding = if element == Activation { Rounding::Activation } else { Rounding::Master };
            for (dtype, place) in TYPES.into_iter().zip([PLACES[number % 3], PLACES[(number + 1) % 3]]) {
                for width in [1, 24, 37, 1030] {
                    let mut case = Case::new(format!("{kind:?} of {element:?} {width}"), dtype, place);
                    let z = case.input(element, 5, width, 2.0);
                    let out = case.output(element, 5, width, rounding);
                    let in_place = case.updated(element, 5, width, 2.0, rounding);
                    let dz = case.updated(element, 5, width, 1.0, rounding);
                    let d_out = case.input(element, 5, width, 1.0);
                    let other = case.output(element, 5, width, rounding);
                    judge.check(&case, |backend, view| {
                        backend.activation_forward(kind, view[z], view[out]);
                        backend.activation_forward(kind, view[in_place], view[in_place]);
                        backend.activation_backward(kind, view[z], view[dz], view[dz]);
                        backend.activation_backward(kind, view[z], view[d_out], view[other]);
                    });
                }
            }
        }
    }
}

pub fn gated_activations(judge: &mut Judge) {
    for (dtype, place) in TYPES.into_iter().flat_map(|dtype| PLACES.map(|place| (dtype, place))) {
        for width in [1, 24, 37, 1030] {
            let mut case = Case::new(format!("SwiGLU {width}"), dtype, place);
            let z = case.input(Activation, 5, 2 * width, 2.0);
            let out = case.output(Activation, 5, width, Rounding::Activation);
            let d_out = case.input(Activation, 5, width, 1.0);
            let dz = case.output(Activation, 5, 2 * width, Rounding::Activation);
            let in_place = case.updated(Activation, 5, 2 * width, 2.0, Rounding::Activation);
            judge.check(&case, |backend, view| {
                backend.activation_forward(Function::SwiGlu, view[z], view[out]);
                backend.activation_backward(Function::SwiGlu, view[z], view[d_out], view[dz]);
                backend.activation_backward(Function::SwiGlu, view[in_place], view[d_out], view[in_place]);
            });
        }
    }
}

/// Heads of every width class, with and without a norm, positions in any order.
pub fn rotations(judge: &mut Judge) {
    const HEAD_DIMS: [usize; 7] = [8, 16, 24, 40, 64, 80, 128];
    for row in judge.extent.combinations([HEAD_DIMS.len(), 2, 2, TYPES.len(), PLACES.len()], |_| true) {
        let [head_dim, norm, heads, dtype, place] = row;
        let (head_dim, norm) = (HEAD_DIMS[head_dim], norm == 1);
        let mut case = Case::new(format!("rotation {row:?}"), TYPES[dtype], PLACES[place]);
        let (rows, heads, positions) = (37, [1, 3][heads], 50);
        let x = case.input(Activation, rows, heads * head_dim, 1.5);
        let gamma = norm.then(|| case.gamma(head_dim));
        let angles = (0..positions * head_dim).map(|i| {
            let (position, i) = ((i / head_dim) as f64, i % head_dim);
            let angle = position / 10f64.powf((i % (head_dim / 2)) as f64 / 4.0);
            rounded(DType::F32, if i < head_dim / 2 { 1.1 * angle.cos() } else { 1.1 * angle.sin() })
        });
        let angles = angles.collect();
        let table = case.tight(Master, positions, head_dim, angles);
        let chosen: Vec<i32> = (0..rows).map(|row| (row * 7 % positions) as i32).collect();
        let chosen = case.integers(&chosen);
        let out = case.output(Activation, rows, heads * head_dim, Rounding::Activation);
        let in_place = case.updated(Activation, rows, heads * head_dim, 1.5, Rounding::Activation);
        let d = case.updated(Activation, rows, heads * head_dim, 1.0, Rounding::Activation);
        judge.check(&case, |backend, view| {
            let rotary = |x| Rotary {
                x,
                head_dim,
                gamma: gamma.map(|gamma| view[gamma]),
                epsilon: 1e-3,
                table: view[table],
                positions: view[chosen],
            };
            backend.rotary_forward(&rotary(view[x]), view[out]);
            backend.rotary_forward(&rotary(view[in_place]), view[in_place]);
            backend.rotary_backward(&rotary(view[x]), view[d]);
        });
    }
}

pub fn rows_are_gathered_and_scattered(judge: &mut Judge) {
    every(|dtype, place, width| {
        let mut case = Case::new(format!("rows {width}"), dtype, place);
        let x = case.input(Activation, 9, width, 1.0);
        let index = case.integers(&[8, 0, 3, 5]);
        let gathered = case.output(Activation, 4, width, Rounding::Activation);
        let source = case.input(Activation, 4, width, 1.0);
        let sum = case.updated(Activation, 9, width, 1.0, Rounding::Activation);
        judge.check_exactly(&case, |backend, view| {
            backend.gather_rows(view[x], view[index], view[gathered]);
            backend.scatter_add_rows(view[source], view[index], view[sum]);
        });
    });
}

pub fn normal_numbers(judge: &mut Judge) {
    for dtype in TYPES {
        for count in [1, 7, 8, 1025] {
            let mut case = Case::new(format!("{count} normal numbers"), dtype, Place::Tight);
            let out = case.output(Frozen, 1, count + 1, Rounding::Activation);
            judge.check(&case, |backend, view| {
                // Of two streams, the second at an odd address.
                backend.fill_normal(view[out].col_range(0, 1), [5, 6], 0.02);
                backend.fill_normal(view[out].col_range(1, count), [7, 8], 0.02);
            });
            let values = judge.reference(&case, |backend, view| backend.fill_normal(view[out], [7, 8], 0.02)).concat();
            if values.iter().any(|value| value.abs() >= 0.14) || (count > 1000 && values.iter().all(|value| value.abs() <= 0.04)) {
                judge.fail(&case, "the reference's numbers are not normal");
            }
        }
    }
}

pub fn copies(judge: &mut Judge) {
    for count in [1, 77, 4096] {
        let mut case = Case::new(format!("copy of {count}"), DType::F16, Place::Tight);
        let from = case.input(Activation, 3, count, 1.0);
        let to = case.output(Activation, 3, count, Rounding::Activation);
        judge.check_exactly(&case, |backend, view| backend.copy(view[from], view[to]));
    }
}
