//! Attention forward and backward and the prefix's gradient: head dims, prefix lengths, sequence lengths, grouped heads,
//! masks and places of the operands, each value of each beside several of the others.

use super::plain::{Plain, dot};
use super::*;
use crate::backend::{Attention, AttentionSaved, Dropout, Prefix, Relative};
use Kind::*;

pub const OPERATIONS: &[Operation] = &[("attention, forward", forward), ("attention, backward", backward)];

/// Which keys a query sees, or how scores depend on positions.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Mask {
    Full,
    Causal,
    /// Separators at the first token, in the middle, and at the end of sequences, in turn.
    Separator,
    /// Span, and which terms there are: of keys, of queries.
    Relative(usize, [bool; 2]),
}

#[derive(Clone, Copy, Debug)]
struct Shape {
    head_dim: usize,
    heads: [usize; 2],
    prefix: usize,
    lengths: &'static [usize],
    /// Queries of these tokens only.
    every: usize,
    mask: Mask,
    drops: bool,
    drops_prefix: bool,
}

/// The axes, each value of which meets each of the others': head dims of every tile, heads beside key/value heads,
/// prefixes around a tile, lengths around tiles and of one token, all tokens' queries down to one a sequence's.
const HEAD_DIMS: [usize; 7] = [8, 16, 24, 40, 64, 80, 128];
const HEADS: [[usize; 2]; 4] = [[1, 1], [2, 1], [4, 2], [3, 3]];
const PREFIXES: [usize; 5] = [0, 1, 7, 37, 128];
const LENGTHS: [&[usize]; 5] = [&[1], &[33, 1, 5], &[65, 63], &[3, 130, 1, 40], &[17, 92]];
const EVERY: [usize; 3] = [1, 3, 1000];
const MASKS: [Mask; 6] = [
    Mask::Full,
    Mask::Causal,
    Mask::Separator,
    Mask::Relative(20, [true, true]),
    Mask::Relative(33, [true, false]),
    Mask::Relative(1, [false, true]),
];

const fn shape(head_dim: usize, heads: [usize; 2], prefix: usize, lengths: &'static [usize], mask: Mask, drops: [bool; 2]) -> Shape {
    Shape { head_dim, heads, prefix, lengths, every: 1, mask, drops: drops[0], drops_prefix: drops[1] }
}

/// Sequences of several tiles, beside which the axes' are short.
const LONG: [Shape; 8] = [
    shape(64, [1, 1], 128, &[512, 1, 1], Mask::Full, [false, false]),
    shape(64, [2, 1], 7, &[1, 200], Mask::Full, [true, true]),
    shape(32, [2, 2], 0, &[300, 65], Mask::Causal, [false, false]),
    shape(64, [1, 1], 1, &[9, 260, 131], Mask::Separator, [true, false]),
    shape(128, [2, 1], 128, &[64, 150, 7], Mask::Separator, [false, true]),
    shape(64, [1, 1], 0, &[129, 257], Mask::Full, [true, false]),
    shape(64, [2, 2], 1, &[200], Mask::Relative(512, [true, true]), [true, true]),
    shape(40, [1, 1], 37, &[70, 257], Mask::Relative(33, [true, false]), [true, false]),
];

/// The long ones, and the combinations of the axes, each with an element type and a place.
fn shapes(extent: Extent) -> Vec<(Shape, DType, Place)> {
    let sizes = [HEAD_DIMS.len(), HEADS.len(), PREFIXES.len(), LENGTHS.len(), EVERY.len(), MASKS.len(), 2, 2, TYPES.len(), PLACES.len()];
    let possible = |[head_dim, heads, prefix, _, _, mask, _, drops_prefix, ..]: [usize; 10]| {
        let ([heads, kv_heads], relative) = (HEADS[heads], matches!(MASKS[mask], Mask::Relative(..)));
        // Without a prefix there is nothing to drop; relative positions know no grouped heads, and on a GPU heads of up to 64.
        (drops_prefix == 0 || PREFIXES[prefix] > 0) && (!relative || heads == kv_heads && HEAD_DIMS[head_dim] <= 64)
    };
    let combined = extent.combinations(sizes, possible).into_iter().map(|row| {
        let [head_dim, heads, prefix, lengths, every, mask, drops, drops_prefix, dtype, place] = row;
        let shape = Shape {
            head_dim: HEAD_DIMS[head_dim],
            heads: HEADS[heads],
            prefix: PREFIXES[prefix],
            lengths: LENGTHS[lengths],
            every: EVERY[every],
            mask: MASKS[mask],
            drops: drops == 1,
            drops_prefix: drops_prefix == 1,
        };
        (shape, TYPES[dtype], PLACES[place])
    });
    let long = LONG.into_iter().enumerate().map(|(number, shape)| (shape, TYPES[number % 2], PLACES[number % 3]));
    long.chain(combined).collect()
}

impl Shape {
    /// One a sequence; empty: no mask.
    fn separators(&self) -> Vec<i32> {
        let of_sequence = |(number, &length): (usize, &usize)| match self.mask {
            Mask::Separator => (length * (number % 3)).div_ceil(2) as i32,
            _ => 0,
        };
        match self.mask {
            Mask::Causal | Mask::Separator => self.lengths.iter().enumerate().map(of_sequence).collect(),
            Mask::Full | Mask::Relative(..) => Vec::new(),
        }
    }

    /// Span of relative positions and their terms; 0: there are none.
    fn relative(&self) -> (usize, [bool; 2]) {
        if let Mask::Relative(span, terms) = self.mask { (span, terms) } else { (0, [false; 2]) }
    }
}

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
    separator_values: Vec<i32>,
    /// Tables of relative positions: [2 span, A*D] keys and queries.
    relative: [Option<Id>; 2],
}

impl Operands {
    fn new(case: &mut Case, shape: Shape) -> Operands {
        let Shape { head_dim, heads: [heads, kv_heads], prefix, lengths, every, .. } = shape;
        let key_rows = case.rows(lengths, |_| true);
        let query_rows = case.rows(lengths, |token| token % every == 0);
        let (separators, (span, terms)) = (shape.separators(), shape.relative());
        Operands {
            shape,
            query: case.input(Activation, query_rows.count, heads * head_dim, 1.0),
            key: case.input(Activation, key_rows.count, kv_heads * head_dim, 1.0),
            value: case.input(Activation, key_rows.count, kv_heads * head_dim, 1.0),
            // Keys and values are columns of one table, as an engine's layers are.
            prefix: (prefix > 0).then(|| case.input(Master, prefix, 2 * kv_heads * head_dim, 1.0)),
            query_rows,
            key_rows,
            separators: (!separators.is_empty()).then(|| case.integers(&separators)),
            relative: terms.map(|term| term.then(|| case.input(Activation, 2 * span, heads * head_dim, 1.0))),
            separator_values: separators,
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
        // On both sides of a half, which the kernels compare in two ways.
        let rate = if self.shape.prefix.is_multiple_of(2) { 0.3 } else { 0.7 };
        self.shape.drops.then(|| Dropout::of_probabilities(rate, [3, 99]).expect("a rate above zero"))
    }

    fn prefix_dropout(&self) -> Option<[Dropout; 2]> {
        self.shape.drops_prefix.then(|| [mask(1), mask(2)])
    }

    fn plain<'a>(&'a self, case: &'a Case) -> Plain<'a> {
        let Shape { head_dim, heads: [heads, kv_heads], prefix, lengths, every, .. } = self.shape;
        Plain {
            dtype: case.dtype,
            query: case.values(self.query),
            key: case.values(self.key),
            value: case.values(self.value),
            prefix: self.prefix.map_or(&[], |table| case.values(table)),
            prefix_length: prefix,
            lengths,
            every,
            separators: &self.separator_values,
            relative: self.relative.map(|table| table.map(|table| case.values(table))),
            span: self.shape.relative().0,
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
            relative: matches!(self.shape.mask, Mask::Relative(..)).then(|| {
                let [key, query] = self.relative.map(|table| table.map(|table| view[table]));
                Relative { key, query, span: self.shape.relative().0 }
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

fn every_shape(name: &str, judge: &mut Judge, mut test: impl FnMut(&mut Judge, &mut Case, Shape)) {
    for (number, (shape, dtype, place)) in shapes(judge.extent).into_iter().enumerate() {
        test(judge, &mut Case::new(format!("{name} #{number} ({shape:?})"), dtype, place), shape);
    }
}

pub fn forward(judge: &mut Judge) {
    every_shape("attention forward", judge, |judge, case, shape| {
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
    every_shape("attention backward", judge, |judge, case, shape| {
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
