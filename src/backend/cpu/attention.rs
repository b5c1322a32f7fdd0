//! Attention with a prefix in front of every sequence's keys and values. One task is one (sequence, key/value head)
//! and walks its queries in blocks: the scores of a block live in the worker's scratch, nothing of size tokens²
//! exists. S = [Q Kpᵀ | Q Kᵀ (+ relative)] * scale; P = softmax(S) over what the query sees; A = dropout(P); O = A [Vp; V]. Keys that
//! no query of a block sees are not computed.
//!
//! FLOPs of one head and sequence of n queries, m keys, prefix p, dimension d: forward 4 n (p + m) d; backward
//! 10 n m d + 6 n p d; prefix gradient 8 n p d.

use super::memory::{Element, Matrix};
use super::product::{product, product_transposed, transposed_product};
use super::real::{Real, reduce};
use super::relative::{self, Relative};
use super::{RowIndex, Workers, loss, mask, parallel_rows};
use crate::backend::{Dropout, ScratchNeed};
use rayon::prelude::*;

/// Queries of a block: enough for the products to run at speed, few enough that two blocks of scores stay in cache.
pub const QUERIES: usize = 64;

/// Elements of scratch that a worker needs: two blocks of scores, the prefix's keys, values and their gradients, and the
/// products with a band of relative positions.
pub const fn scratch_elements(need: &ScratchNeed) -> usize {
    let band = if need.relative { relative::scratch_elements(need.longest) } else { 0 };
    2 * QUERIES * need.longest + 4 * need.prefix_length * need.head_dim + band
}

/// Keys and values \[P, G*D\], and their masks.
#[derive(Clone, Copy)]
pub struct PrefixOperands<T> {
    pub key: Matrix<T>,
    pub value: Matrix<T>,
    pub dropout: Option<[Dropout; 2]>,
}

#[derive(Clone, Copy)]
pub struct Operands<'a, T> {
    pub query: Matrix<T>,
    pub key: Matrix<T>,
    pub value: Matrix<T>,
    pub prefix: Option<PrefixOperands<T>>,
    pub relative: Option<Relative<T>>,
    pub query_rows: RowIndex<'a>,
    pub key_rows: RowIndex<'a>,
    pub separators: Option<&'a [i32]>,
    pub group: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub scale: T,
    pub dropout: Option<Dropout>,
}

/// One task's worker scratch, cut up.
struct Scratch<T: 'static> {
    scores: Matrix<T>,
    gradients: Matrix<T>,
    prefix: [Matrix<T>; 2],
    prefix_gradient: [Matrix<T>; 2],
    /// What is left.
    band: &'static mut [T],
}

impl<T: Real + Element> Operands<'_, T> {
    fn prefix_length(&self) -> usize {
        self.prefix.map_or(0, |prefix| prefix.key.rows)
    }

    /// Rows of sequence `b`: (first, count) of its queries and of its keys.
    fn sequence(&self, b: usize) -> ((usize, usize), (usize, usize)) {
        let range = |rows: &RowIndex| (rows.offsets[b] as usize, (rows.offsets[b + 1] - rows.offsets[b]) as usize);
        (range(&self.query_rows), range(&self.key_rows))
    }

    /// How many of a sequence's `keys` the query of `token` sees: the first ones.
    fn visible(&self, b: usize, token: i32, keys: usize) -> usize {
        self.separators.map_or(keys, |separators| keys.min((token + 1).max(separators[b]) as usize))
    }

    /// How many keys some query of the rows sees.
    fn visible_to_any(&self, b: usize, rows: std::ops::Range<usize>, keys: usize) -> usize {
        self.query_rows.tokens[rows].iter().map(|&token| self.visible(b, token, keys)).max().unwrap_or(0)
    }

    fn scratch(&self, workers: &Workers<T>, columns: usize) -> Scratch<T> {
        let mut rest = workers.scratch();
        let mut take = |rows: usize, cols: usize| {
            let (start, tail) = std::mem::take(&mut rest).split_at_mut(rows * cols);
            rest = tail;
            Matrix { start: start.as_mut_ptr(), rows, cols, stride: cols }
        };
        let (p, d) = (self.prefix_length(), self.head_dim);
        let (scores, gradients) = (take(QUERIES, columns), take(QUERIES, columns));
        let (prefix, prefix_gradient) = ([take(p, d), take(p, d)], [take(p, d), take(p, d)]);
        Scratch { scores, gradients, prefix, prefix_gradient, band: rest }
    }

    /// Where a block of queries and its sequence's keys stand in the table of relative positions.
    fn band(&self, relative: Relative<T>, head: usize, row: usize, rows: usize) -> relative::Block<'_, T> {
        relative::Block { relative, first_column: head * self.head_dim, tokens: &self.query_rows.tokens[row..row + rows] }
    }

    /// Prefix keys and values of head `g` as sequence `ordinal` sees them: through its own masks where there is
    /// prefix dropout, else the masters themselves.
    fn effective_prefix(&self, g: usize, ordinal: u32, scratch: &Scratch<T>) -> [Matrix<T>; 2] {
        let Some(PrefixOperands { key, value, dropout }) = self.prefix else { return scratch.prefix };
        let head = |matrix: Matrix<T>| matrix.block(0, matrix.rows, g * self.head_dim, self.head_dim);
        let masters = [head(key), head(value)];
        let Some(dropout) = dropout else { return masters };
        for side in 0..2 {
            for row in 0..key.rows {
                let to = scratch.prefix[side].row_mut(row);
                to.copy_from_slice(masters[side].row(row));
                mask::apply(to, dropout[side], ordinal, row as u32, g as u32, 0);
            }
        }
        scratch.prefix
    }

    fn drop(&self, row: &mut [T], ordinal: u32, token: i32, head: usize) {
        let Some(dropout) = self.dropout else { return };
        let (prefix, own) = row.split_at_mut(self.prefix_length());
        for (part, column) in [(prefix, 0), (own, Dropout::first_own(self.prefix_length()))] {
            mask::apply(part, dropout, ordinal, token as u32, head as u32, column);
        }
    }
}

pub fn forward<T: Real + Element>(workers: &Workers<T>, operands: Operands<T>, out: Matrix<T>, log_sum_exp: Matrix<T>) {
    let (d, p) = (operands.head_dim, operands.prefix_length());
    let sequences = operands.query_rows.sequences();
    (0..sequences * operands.kv_heads).into_par_iter().for_each(|task| {
        let (b, g) = (task / operands.kv_heads, task % operands.kv_heads);
        let ((first_query, queries), (first_key, keys)) = operands.sequence(b);
        if queries == 0 {
            return;
        }
        let scratch = operands.scratch(workers, p + keys);
        let ordinal = operands.query_rows.ordinals[first_query] as u32;
        let [prefix_key, prefix_value] = operands.effective_prefix(g, ordinal, &scratch);
        let key = operands.key.block(first_key, keys, g * d, d);
        let value = operands.value.block(first_key, keys, g * d, d);
        for head in g * operands.group..(g + 1) * operands.group {
            for start in (0..queries).step_by(QUERIES) {
                let (row, rows) = (first_query + start, QUERIES.min(queries - start));
                let seen = operands.visible_to_any(b, row..row + rows, keys);
                let query = operands.query.block(row, rows, head * d, d);
                let scores = scratch.scores.block(0, rows, 0, p + seen);
                product_transposed(query, prefix_key, scores.block(0, rows, 0, p), false);
                let key = key.block(0, seen, 0, d);
                product_transposed(query, key, scores.block(0, rows, p, seen), false);
                if let Some(relative) = operands.relative {
                    operands.band(relative, head, row, rows).add_scores(query, key, scores.block(0, rows, p, seen), scratch.band);
                }
                for r in 0..rows {
                    let token = operands.query_rows.tokens[row + r];
                    let (visible, hidden) = scores.row_mut(r).split_at_mut(p + operands.visible(b, token, seen));
                    // SAFETY: this task alone writes the element.
                    unsafe { *log_sum_exp.at(row + r, head) = loss::softmax(visible, operands.scale) };
                    hidden.fill(T::ZERO);
                    operands.drop(visible, ordinal, token, head);
                }
                let out = out.block(row, rows, head * d, d);
                product(scores.block(0, rows, p, seen), value.block(0, seen, 0, d), out, false);
                product(scores.block(0, rows, 0, p), prefix_value, out, true);
            }
        }
    });
}

/// delta\[t, a\] = d_out . out over the head's dimensions.
pub fn delta<T: Real + Element>(out: Matrix<T>, d_out: Matrix<T>, heads: usize, delta: Matrix<T>) {
    let d = out.cols / heads;
    parallel_rows(out.rows, |row| {
        let (out, d_out, delta) = (out.row(row), d_out.row(row), delta.row_mut(row));
        for (head, delta) in delta.iter_mut().enumerate() {
            let at = head * d;
            *delta = reduce(d, |i| out[at + i] * d_out[at + i]);
        }
    });
}

#[derive(Clone, Copy)]
pub struct Saved<T> {
    pub log_sum_exp: Matrix<T>,
    pub delta: Matrix<T>,
    pub d_out: Matrix<T>,
}

/// For a block of rows and the first columns of prefix and keys: `scores` (Q Kᵀ) becomes A, `gradients` (dO Vᵀ)
/// becomes dS; both are zero where the query does not see the key.
#[allow(clippy::too_many_arguments)]
fn softmax_backward<T: Real + Element>(
    operands: &Operands<T>,
    saved: &Saved<T>,
    head: usize,
    row: usize,
    [b, ordinal]: [usize; 2],
    scores: Matrix<T>,
    gradients: Matrix<T>,
) {
    for r in 0..scores.rows {
        // SAFETY: inside the views.
        let (log_sum_exp, delta) = unsafe { (*saved.log_sum_exp.at(row + r, head), *saved.delta.at(row + r, head)) };
        let (token, p, ordinal) = (operands.query_rows.tokens[row + r], operands.prefix_length(), ordinal as u32);
        let visible = p + operands.visible(b, token, scores.cols - p);
        let (scores, hidden_scores) = scores.row_mut(r).split_at_mut(visible);
        let (gradients, hidden_gradients) = gradients.row_mut(r).split_at_mut(visible);
        hidden_scores.fill(T::ZERO);
        hidden_gradients.fill(T::ZERO);
        operands.drop(gradients, ordinal, token, head);
        for i in 0..scores.len() {
            let probability = (scores[i] * operands.scale - log_sum_exp).exp();
            scores[i] = probability;
            gradients[i] = probability * (gradients[i] - delta) * operands.scale;
        }
        operands.drop(scores, ordinal, token, head);
    }
}

pub fn backward<T: Real + Element>(
    workers: &Workers<T>,
    operands: Operands<T>,
    saved: Saved<T>,
    d_query: Matrix<T>,
    d_key: Matrix<T>,
    d_value: Matrix<T>,
) {
    let (d, p) = (operands.head_dim, operands.prefix_length());
    let sequences = operands.query_rows.sequences();
    (0..sequences * operands.kv_heads).into_par_iter().for_each(|task| {
        let (b, g) = (task / operands.kv_heads, task % operands.kv_heads);
        let ((first_query, queries), (first_key, keys)) = operands.sequence(b);
        let (key, value) = (operands.key.block(first_key, keys, g * d, d), operands.value.block(first_key, keys, g * d, d));
        let (d_key, d_value) = (d_key.block(first_key, keys, g * d, d), d_value.block(first_key, keys, g * d, d));
        if queries == 0 || operands.separators.is_some() {
            for row in 0..keys {
                d_key.row_mut(row).fill(T::ZERO);
                d_value.row_mut(row).fill(T::ZERO);
            }
        }
        if queries == 0 {
            return;
        }
        let scratch = operands.scratch(workers, p + keys);
        let ordinal = operands.query_rows.ordinals[first_query] as u32;
        let [prefix_key, prefix_value] = operands.effective_prefix(g, ordinal, &scratch);
        for head in g * operands.group..(g + 1) * operands.group {
            for start in (0..queries).step_by(QUERIES) {
                let (row, rows) = (first_query + start, QUERIES.min(queries - start));
                let query = operands.query.block(row, rows, head * d, d);
                let d_out = saved.d_out.block(row, rows, head * d, d);
                let seen = operands.visible_to_any(b, row..row + rows, keys);
                let [key, value, d_key, d_value] = [key, value, d_key, d_value].map(|matrix| matrix.block(0, seen, 0, d));
                let (scores, gradients) = (scratch.scores.block(0, rows, 0, p + seen), scratch.gradients.block(0, rows, 0, p + seen));
                product_transposed(query, prefix_key, scores.block(0, rows, 0, p), false);
                product_transposed(query, key, scores.block(0, rows, p, seen), false);
                if let Some(relative) = operands.relative {
                    operands.band(relative, head, row, rows).add_scores(query, key, scores.block(0, rows, p, seen), scratch.band);
                }
                product_transposed(d_out, prefix_value, gradients.block(0, rows, 0, p), false);
                product_transposed(d_out, value, gradients.block(0, rows, p, seen), false);
                softmax_backward(&operands, &saved, head, row, [b, ordinal as usize], scores, gradients);
                let d_query = d_query.block(row, rows, head * d, d);
                product(gradients.block(0, rows, p, seen), key, d_query, false);
                product(gradients.block(0, rows, 0, p), prefix_key, d_query, true);
                let later = start > 0 || head > g * operands.group || operands.separators.is_some();
                transposed_product(gradients.block(0, rows, p, seen), query, d_key, later);
                transposed_product(scores.block(0, rows, p, seen), d_out, d_value, later);
                if let Some(relative) = operands.relative {
                    let gradients = gradients.block(0, rows, p, seen);
                    operands.band(relative, head, row, rows).add_gradients(gradients, d_query, d_key, scratch.band);
                }
            }
        }
    });
}

/// The prefix's own reduction, over every query of every sequence in order: one task is one head. With prefix dropout
/// each sequence's part is summed by itself and goes through the sequence's masks.
pub fn prefix_gradient<T: Real + Element>(
    workers: &Workers<T>,
    operands: Operands<T>,
    saved: Saved<T>,
    d_key: Matrix<T>,
    d_value: Matrix<T>,
) {
    let (d, p) = (operands.head_dim, operands.prefix_length());
    let Some(PrefixOperands { dropout, .. }) = operands.prefix else { return };
    (0..operands.kv_heads).into_par_iter().for_each(|g| {
        let scratch = operands.scratch(workers, p);
        let totals = [d_key.block(0, p, g * d, d), d_value.block(0, p, g * d, d)];
        for b in 0..operands.query_rows.sequences() {
            let ((first_query, queries), _) = operands.sequence(b);
            if queries == 0 {
                continue;
            }
            let ordinal = operands.query_rows.ordinals[first_query] as u32;
            let [prefix_key, prefix_value] = operands.effective_prefix(g, ordinal, &scratch);
            let sums = if dropout.is_some() { scratch.prefix_gradient } else { totals };
            for head in g * operands.group..(g + 1) * operands.group {
                for start in (0..queries).step_by(QUERIES) {
                    let (row, rows) = (first_query + start, QUERIES.min(queries - start));
                    let query = operands.query.block(row, rows, head * d, d);
                    let d_out = saved.d_out.block(row, rows, head * d, d);
                    let (scores, gradients) = (scratch.scores.block(0, rows, 0, p), scratch.gradients.block(0, rows, 0, p));
                    product_transposed(query, prefix_key, scores, false);
                    product_transposed(d_out, prefix_value, gradients, false);
                    softmax_backward(&operands, &saved, head, row, [b, ordinal as usize], scores, gradients);
                    let later = dropout.is_none() || start > 0 || head > g * operands.group;
                    transposed_product(gradients, query, sums[0], later);
                    transposed_product(scores, d_out, sums[1], later);
                }
            }
            if let Some(dropout) = dropout {
                for side in 0..2 {
                    for row in 0..p {
                        let part = sums[side].row_mut(row);
                        mask::apply(part, dropout[side], ordinal, row as u32, g as u32, 0);
                        for (total, &part) in totals[side].row_mut(row).iter_mut().zip(part.iter()) {
                            *total += part;
                        }
                    }
                }
            }
        }
    });
}
