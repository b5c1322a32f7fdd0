//! Losses and the optimizer.

use super::*;
use crate::backend::{AdamW, CrossEntropy, TokenGradient, TokenLoss, View};
use Kind::*;

pub const OPERATIONS: &[Operation] = &[
    ("cross-entropy", cross_entropy),
    ("token loss", token_losses),
    ("token loss, in place", token_gradients_in_place),
    ("sums of segments", segments),
    ("squared norm", squared_norms),
    ("AdamW", the_optimizer),
    ("AdamW, overflown", an_overflow_changes_nothing),
];

pub fn cross_entropy(judge: &mut Judge) {
    for (number, (rows, columns, by_column)) in
        [(1, 2, false), (9, 5, false), (40, 301, false), (77, 2, true), (600, 1, true)].into_iter().enumerate()
    {
        let mut case = Case::new(format!("cross entropy {rows} x {columns}"), DType::F16, PLACES[number % 3]);
        let logits = case.input(Master, rows, columns, 3.0);
        let groups: Vec<i32> = match by_column {
            // One group without a target.
            false => (0..rows)
                .flat_map(|row| [(row * columns) as i32, columns as i32, 1, if row == 3 { -1 } else { (row % columns) as i32 }])
                .collect(),
            // Two features of unequal length.
            true => [(0, rows / 3), (rows / 3, rows - rows / 3)]
                .into_iter()
                .flat_map(|(first, count)| {
                    (0..columns).flat_map(move |column| {
                        [(first * columns + column) as i32, count as i32, columns as i32, (count - 1 - column) as i32]
                    })
                })
                .collect(),
        };
        let groups = case.given(Integer, groups.len() / 4, 4, groups.iter().map(|&value| f64::from(value)).collect());
        let loss = case.updated(Master, 1, 1, 1.0, Rounding::Master);
        let d_logits = case.tight_output(Master, rows, columns, Rounding::Master);
        judge.check(&case, |backend, view| {
            backend.cross_entropy(&CrossEntropy {
                logits: view[logits],
                groups: view[groups],
                scale: 0.37,
                loss: view[loss],
                d_logits: view[d_logits],
            });
        });
    }
}

/// Widths below, at and beyond what a block reads at a time; rows without a target; ties; d_logits apart from the logits
/// or, as the engine has it, over them.
pub fn token_losses(judge: &mut Judge) {
    const ROWS: [usize; 4] = [1, 2, 3, 5];
    const WIDTHS: [usize; 5] = [1, 7, 420, 2048, 5003];
    // No gradient; one with the loss; one with weights.
    for row in judge.extent.combinations([ROWS.len(), WIDTHS.len(), 3, TYPES.len(), PLACES.len()], |_| true) {
        let [rows, width, gradient, dtype, place] = row;
        let (rows, width) = (ROWS[rows], WIDTHS[width]);
        let mut case = Case::new(format!("token loss {rows} x {width} {row:?}"), TYPES[dtype], PLACES[place]);
        let mut values = case.normals(Master, rows * width, 0.0, 3.0);
        values[(rows - 1) * width + width / 2] = 9.5;
        values[rows * width - 1] = 9.5;
        let logits = case.given(Master, rows, width, values);
        let targets: Vec<i32> = (0..rows).map(|row| if row == 2 { -1 } else { case.below(width) as i32 }).collect();
        let targets = case.integers(&targets);
        let log_probability = case.output(Master, 1, rows, Rounding::Master);
        let best = case.output(Integer, 1, rows, Rounding::Master);
        let weights = (gradient == 2).then(|| case.input(Master, 1, rows, 1.0));
        let d_logits = (gradient > 0).then(|| case.output(Activation, rows, width, Rounding::Activation));
        let loss = (gradient == 1).then(|| case.updated(Master, 1, 1, 1.0, Rounding::Master));
        judge.check(&case, |backend, view| {
            backend.token_loss(&TokenLoss {
                logits: view[logits],
                targets: view[targets],
                log_probability: view[log_probability],
                best: view[best],
                gradient: d_logits.map(|d_logits| TokenGradient {
                    weights: weights.map(|id| view[id]),
                    scale: 0.37,
                    d_logits: view[d_logits],
                    loss: loss.map(|id| view[id]),
                }),
            });
        });
    }
}

/// The gradient over its own logits, as the engine has it.
pub fn token_gradients_in_place(judge: &mut Judge) {
    for dtype in TYPES {
        let (rows, width) = (3, 5004);
        let mut case = Case::new("token loss in place", dtype, Place::Tight);
        let values = case.normals(Master, rows * width, 0.0, 3.0);
        let logits = case.given(Master, rows, width, values);
        let targets = case.integers(&[17, -1, 5003]);
        let log_probability = case.output(Master, 1, rows, Rounding::Master);
        let best = case.output(Integer, 1, rows, Rounding::Master);
        let apart = case.output(Activation, rows, width, Rounding::Activation);
        judge.check(&case, |backend, view| {
            let (logits, apart) = (view[logits], view[apart]);
            let over = View { dtype: apart.dtype, stride: logits.stride * logits.dtype.size() / apart.dtype.size(), ..logits };
            backend.token_loss(&TokenLoss {
                logits,
                targets: view[targets],
                log_probability: view[log_probability],
                best: view[best],
                gradient: Some(TokenGradient { weights: None, scale: 64.0, d_logits: over, loss: None }),
            });
            for row in 0..rows {
                let mut bytes = vec![0; width * apart.dtype.size()];
                backend.read(over.row_range(row, 1), &mut bytes);
                backend.write(apart.row_range(row, 1), &bytes);
            }
        });
    }
}

pub fn segments(judge: &mut Judge) {
    let lengths = [3, 0, 1, 140, 2];
    let offsets: Vec<i32> = std::iter::once(0)
        .chain(lengths.iter().scan(0, |sum, length| {
            Some({
                *sum += length;
                *sum
            })
        }))
        .collect();
    let rows = *offsets.last().unwrap() as usize;
    let mut case = Case::new("segments", DType::F16, Place::Tight);
    let values = case.input(Master, 1, rows, 1.0);
    let offsets = case.integers(&offsets);
    let sums = case.output(Master, 1, lengths.len(), Rounding::Master);
    let spread = case.output(Master, 1, rows, Rounding::Master);
    judge.check(&case, |backend, view| {
        backend.sum_segments(view[values], view[offsets], view[sums]);
        backend.spread_segments(view[sums], view[offsets], -0.5, view[spread]);
    });
}

pub fn squared_norms(judge: &mut Judge) {
    for count in [1, 255, 4097, 50_001] {
        let mut case = Case::new(format!("squared norm of {count}"), DType::F16, Place::Tight);
        let x = case.input(Master, 1, count, 1.0);
        let total = case.updated(Master, 1, 1, 1.0, Rounding::Master);
        judge.check(&case, |backend, view| backend.squared_norm(view[x], view[total]));
    }
}

fn update(case: &mut Case, count: usize) -> (Vec<Id>, Id) {
    let master = case.updated(Master, 1, count, 1.0, Rounding::Master);
    let gradient = case.input(Master, 1, count, 1.0);
    let moment1 = case.updated(Master, 1, count, 0.1, Rounding::Master);
    let moment2: Vec<f64> = (0..count).map(|_| f64::from(case.normal(0.1).abs() as f32)).collect();
    let moment2 = case.push(Master, 1, count, moment2, Some(Rounding::Master));
    let squares = case.given(Master, 1, 1, vec![f64::from(1.7 * count as f32)]);
    (vec![master, gradient, moment1, moment2], squares)
}

fn adamw(view: &Views, ids: &[Id], squared_norm: Id, max_norm: Option<f64>, gradient_scale: f64, step: u64) -> AdamW {
    AdamW {
        master: view[ids[0]],
        gradient: view[ids[1]],
        moment1: view[ids[2]],
        moment2: view[ids[3]],
        squared_norm: view[squared_norm],
        gradient_scale,
        max_norm,
        learning_rate: 1e-2,
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        weight_decay: 0.1,
        step,
    }
}

pub fn the_optimizer(judge: &mut Judge) {
    for (count, max_norm, scale, step) in [(1, None, 1.0, 1), (1025, Some(1.0), 1024.0, 7), (4099, Some(1e9), 4096.0, 1000)] {
        let mut case = Case::new(format!("AdamW of {count}"), DType::F16, Place::Tight);
        let (ids, squares) = update(&mut case, count);
        judge.check(&case, |backend, view| backend.adamw(&adamw(view, &ids, squares, max_norm, scale, step)));
    }
}

pub fn an_overflow_changes_nothing(judge: &mut Judge) {
    for bad in [f64::INFINITY, f64::NAN] {
        let mut case = Case::new("AdamW", DType::F16, Place::Tight);
        let (ids, _) = update(&mut case, 33);
        let squares = case.given(Master, 1, 1, vec![bad]);
        let before: Vec<Vec<f64>> = [0, 2, 3].iter().map(|&index: &usize| case.values(ids[index]).to_vec()).collect();
        judge.check_exactly(&case, |backend, view| backend.adamw(&adamw(view, &ids, squares, Some(1.0), 1.0, 2)));
        if judge.reference(&case, |backend, view| backend.adamw(&adamw(view, &ids, squares, Some(1.0), 1.0, 2))) != before {
            judge.fail(&case, "the reference changed something");
        }
    }
}
