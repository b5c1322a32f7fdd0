//! Losses and the optimizer.

use super::*;
use crate::backend::{AdamW, CrossEntropy};
use Kind::*;

pub const OPERATIONS: &[Operation] = &[
    ("cross-entropy", cross_entropy),
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
