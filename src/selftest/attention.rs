//! Attention forward and backward and the prefix's gradient: head dims, prefix lengths, sequence lengths, grouped heads,
//! masks and places of the operands, each value of each beside several of the others.

use super::plain::{Plain, dot};
use super::*;
use crate::backend::{Attention, AttentionSaved, Dropout, Prefix, Relative};
use Kind::*;

pub const OPERATIONS: &[Operation] = &[("attention, forward", forward), ("attention, backward", backward)];

#[derive(Clone, Copy)]
struct Shape {
    head_dim: usize,
    heads: [usize; 2],
    prefix: usize,
    lengths: &'static [usize],
    /// Queries of these tokens only.
    every: usize,
    drops: bool,
    drops_prefix: bool,
    /// One a sequence; empty: no mask.
    separators: &'static [i32],
    /// Span of relative positions, and which of their terms there are: of keys, of queries. 0: there are none.
    span: usize,
    terms: [bool; 2],
}

const fn shape(head_dim: usize, heads: [usize; 2], prefix: usize, lengths: &'static [usize], every: usize, drops: [bool; 2]) -> Shape {
    Shape { head_dim, heads, prefix, lengths, every, drops: drops[0], drops_prefix: drops[1], separators: &[], span: 0, terms: [true; 2] }
}

const fn masked(shape: Shape, separators: &'static [i32]) -> Shape {
    Shape { separators, ..shape }
}

const fn relative(shape: Shape, span: usize, terms: [bool; 2]) -> Shape {
    Shape { span, terms, ..shape }
}

const SHAPES: [Shape; 25] = [
    shape(8, [1, 1], 0, &[1], 1, [false, false]),
    shape(8, [4, 2], 7, &[33, 1, 5], 1, [true, true]),
    shape(16, [3, 3], 1, &[92, 17], 1, [true, false]),
    shape(16, [2, 1], 128, &[64, 1], 1, [false, true]),
    shape(24, [2, 2], 5, &[3, 130, 1, 40], 2, [true, true]),
    shape(40, [1, 1], 3, &[65, 63], 1, [false, false]),
    shape(64, [2, 2], 0, &[129, 1], 1, [true, false]),
    shape(64, [2, 1], 7, &[1, 200], 1, [true, true]),
    shape(64, [1, 1], 128, &[512, 1, 1], 1, [false, false]),
    shape(80, [2, 2], 1, &[66, 31], 1, [false, true]),
    shape(128, [1, 1], 7, &[1, 97], 1, [true, true]),
    shape(128, [2, 1], 128, &[20, 64, 7], 1000, [true, false]),
    masked(shape(8, [4, 2], 7, &[33, 1, 5], 1, [true, true]), &[0, 0, 0]),
    masked(shape(32, [2, 2], 0, &[300, 65], 1, [false, false]), &[0, 0]),
    masked(shape(64, [2, 1], 5, &[200, 1, 130], 1, [true, false]), &[0, 1, 70]),
    masked(shape(64, [1, 1], 1, &[260, 131, 9], 7, [false, false]), &[150, 0, 9]),
    masked(shape(128, [2, 1], 128, &[150, 64, 7], 3, [false, true]), &[0, 40, 0]),
    masked(shape(16, [2, 1], 0, &[257, 64], 1000, [true, false]), &[0, 30]),
    relative(shape(16, [2, 2], 0, &[1], 1, [false, false]), 4, [true, true]),
    relative(shape(8, [1, 1], 7, &[65, 1, 33], 1, [true, true]), 8, [true, true]),
    relative(shape(24, [2, 2], 5, &[3, 130, 1, 40], 3, [true, false]), 20, [true, true]),
    relative(shape(64, [2, 2], 1, &[200], 1, [true, true]), 512, [true, true]),
    relative(shape(64, [1, 1], 128, &[97, 64], 1, [false, false]), 50, [true, true]),
    relative(shape(40, [1, 1], 37, &[70, 257], 1000, [true, false]), 33, [true, false]),
    relative(shape(64, [1, 1], 7, &[150], 2, [false, true]), 1, [false, true]),
];

/// The operands that forward and backward share.
struct Operands {
    shape: Shape,
    query: Id,
    key: Id,
    value: Id,
    prefix: Option<Id>,
    query_rows: RowIds,
    key_rows: RowIds,
    separators: Option<Id>,
    /// Tables of relative positions: [2 span, A*D] keys and queries.
    relative: [Option<Id>; 2],
}

impl Operands {
    fn new(case: &mut Case, shape: Shape) -> Operands {
        let Shape { head_dim, heads: [heads, kv_heads], prefix, lengths, every, .. } = shape;
        let key_rows = case.rows(lengths, |_| true);
        let query_rows = case.rows(lengths, |token| token % every == 0);
        Operands {
            shape,
            query: case.input(Activation, query_rows.count, heads * head_dim, 1.0),
            key: case.input(Activation, key_rows.count, kv_heads * head_dim, 1.0),
            value: case.input(Activation, key_rows.count, kv_heads * head_dim, 1.0),
            // Keys and values are columns of one table, as an engine's layers are.
            prefix: (prefix > 0).then(|| case.input(Master, prefix, 2 * kv_heads * head_dim, 1.0)),
            query_rows,
            key_rows,
            separators: (!shape.separators.is_empty()).then(|| case.integers(shape.separators)),
            relative: shape
                .terms
                .map(|term| (term && shape.span > 0).then(|| case.input(Activation, 2 * shape.span, heads * head_dim, 1.0))),
        }
    }

    fn width(&self) -> [usize; 2] {
        self.shape.heads.map(|heads| heads * self.shape.head_dim)
    }

    fn columns(&self, table: View) -> [View; 2] {
        let width = self.width()[1];
        [table.col_range(0, width), table.col_range(width, width)]
    }

    fn dropout(&self) -> Option<Dropout> {
        self.shape.drops.then(|| mask(3))
    }

    fn prefix_dropout(&self) -> Option<[Dropout; 2]> {
        self.shape.drops_prefix.then(|| [mask(1), mask(2)])
    }

    fn plain<'a>(&self, case: &'a Case) -> Plain<'a> {
        let Shape { head_dim, heads: [heads, kv_heads], prefix, lengths, every, separators, .. } = self.shape;
        Plain {
            dtype: case.dtype,
            query: case.values(self.query),
            key: case.values(self.key),
            value: case.values(self.value),
            prefix: self.prefix.map_or(&[], |table| case.values(table)),
            prefix_length: prefix,
            lengths,
            every,
            separators,
            relative: self.relative.map(|table| table.map(|table| case.values(table))),
            span: self.shape.span,
            heads,
            kv_heads,
            head_dim,
            dropout: self.dropout(),
            prefix_dropout: self.prefix_dropout(),
            first_ordinal: FIRST_ORDINAL as u32,
        }
    }

    fn with(&self, view: &Views, run: impl FnOnce(&Attention)) {
        let Shape { head_dim, heads: [heads, kv_heads], .. } = self.shape;
        let [query_rows, key_rows] = [self.query_rows, self.key_rows].map(|rows| view.rows(rows));
        run(&Attention {
            query: view[self.query],
            key: view[self.key],
            value: view[self.value],
            prefix: self.prefix.map(|table| {
                let [key, value] = self.columns(view[table]);
                Prefix { key, value, dropout: self.prefix_dropout() }
            }),
            relative: (self.shape.span > 0).then(|| {
                let [key, query] = self.relative.map(|table| table.map(|table| view[table]));
                Relative { key, query, span: self.shape.span }
            }),
            query_rows: &query_rows,
            key_rows: &key_rows,
            separators: self.separators.map(|id| view[id]),
            heads,
            kv_heads,
            head_dim,
            scale: 1.0 / (head_dim as f64).sqrt(),
            dropout: self.dropout(),
        });
    }
}

fn mask(key: u32) -> Dropout {
    Dropout::new(0.25, [key, 99]).unwrap()
}

fn every_shape(name: &str, mut test: impl FnMut(&mut Case, Shape)) {
    for (number, shape) in SHAPES.into_iter().enumerate() {
        for (other, dtype) in TYPES.into_iter().enumerate() {
            let name = format!("{name} #{number} (head dim {}, prefix {}, {:?})", shape.head_dim, shape.prefix, shape.lengths);
            test(&mut Case::new(name, dtype, PLACES[(number + other) % 3]), shape);
        }
    }
}

pub fn forward(judge: &mut Judge) {
    every_shape("attention forward", |case, shape| {
        let operands = Operands::new(case, shape);
        let out = case.output(Activation, operands.query_rows.count, operands.width()[0], Rounding::Activation);
        let log_sum_exp = case.output(Master, operands.query_rows.count, shape.heads[0], Rounding::Activation);
        let plain = operands.plain(case).forward();
        judge.check_beside(case, plain, |backend, view| {
            operands.with(view, |attention| backend.attention_forward(attention, view[out], view[log_sum_exp]));
        });
    });
}

/// From the outputs that the f64 backend computes, as they would be stored.
pub fn backward(judge: &mut Judge) {
    every_shape("attention backward", |case, shape| {
        let operands = Operands::new(case, shape);
        let (queries, keys) = (operands.query_rows.count, operands.key_rows.count);
        let [width, kv_width] = operands.width();
        let heads = shape.heads[0];
        let mut forward = Case::new("forward", case.dtype, Place::Tight);
        let same = Operands::new(&mut forward, shape);
        let out = forward.output(Activation, queries, width, Rounding::Activation);
        let log_sum_exp = forward.output(Master, queries, heads, Rounding::Activation);
        let saved = judge.reference(&forward, |backend, view| {
            same.with(view, |attention| backend.attention_forward(attention, view[out], view[log_sum_exp]));
        });

        let stored = |dtype, values: &[f64]| values.iter().map(|&value| rounded(dtype, value)).collect();
        let out = case.given(Activation, queries, width, stored(case.dtype, &saved[0]));
        let log_sum_exp = case.given(Master, queries, heads, stored(DType::F32, &saved[1]));
        let d_out = case.input(Activation, queries, width, 1.0);
        let delta = case.output(Master, queries, heads, Rounding::Master);
        let d_query = case.output(Activation, queries, width, Rounding::Activation);
        let d_key = case.output(Activation, keys, kv_width, Rounding::Activation);
        let d_value = case.output(Activation, keys, kv_width, Rounding::Activation);
        let d_prefix = (shape.prefix > 0).then(|| case.updated(Master, shape.prefix, 2 * kv_width, 1.0, Rounding::Activation));
        let values = |id: Id| case.values(id);
        let width = shape.head_dim;
        let delta_values = values(out).chunks(width).zip(values(d_out).chunks(width)).map(|(out, d_out)| dot(out, d_out));
        let delta_values: Vec<f64> = delta_values.collect();
        let gradients = operands.plain(case).backward(values(log_sum_exp), &delta_values, values(d_out), d_prefix.map_or(&[], values));
        let plain = std::iter::once(delta_values).chain(gradients).take(if d_prefix.is_some() { 5 } else { 4 }).collect();
        judge.check_beside(case, plain, |backend, view| {
            backend.attention_delta(view[out], view[d_out], heads, view[delta]);
            let saved = AttentionSaved { log_sum_exp: view[log_sum_exp], delta: view[delta], d_out: view[d_out] };
            operands.with(view, |attention| {
                backend.attention_backward(attention, &saved, view[d_query], view[d_key], view[d_value]);
                if let Some(table) = d_prefix {
                    let [d_key, d_value] = operands.columns(view[table]);
                    backend.prefix_gradient(attention, &saved, d_key, d_value);
                }
            });
        });
    });
}
