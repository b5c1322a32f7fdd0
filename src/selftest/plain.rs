//! Attention as a plain implementation in 16 bits does it, which sets how far the kernels may be off: every matrix that
//! it would store between two products (masked prefix, scores, probabilities, their gradients) is rounded to the type;
//! inside a product it sums in f64.

use super::rounded;
use crate::backend::{DType, Dropout, MASK_ROUNDS, philox};

/// Operands as numbers, of one type; rows are packed tokens.
pub struct Plain<'a> {
    pub dtype: DType,
    pub query: &'a [f64],
    pub key: &'a [f64],
    pub value: &'a [f64],
    /// \[P, 2 * G * D\]: keys, then values.
    pub prefix: &'a [f64],
    pub prefix_length: usize,
    pub lengths: &'a [usize],
    /// Queries of a sequence are its tokens that are multiples of this.
    pub every: usize,
    /// One a sequence: key j is seen where j <= token or j < separator; empty: all are.
    pub separators: &'a [i32],
    /// Tables of relative keys and queries, \[2 span, A*D\].
    pub relative: [Option<&'a [f64]>; 2],
    pub span: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub dropout: Option<Dropout>,
    pub prefix_dropout: Option<[Dropout; 2]>,
    pub first_ordinal: u32,
}

/// One sequence and head.
struct Block {
    sequence: usize,
    head: usize,
    /// First packed row of its queries and of its keys, and how many there are of them.
    queries: [usize; 2],
    keys: [usize; 2],
}

fn mask(dropout: Option<Dropout>, ordinal: u32, token: usize, head: usize, column: usize) -> f64 {
    let Some(dropout) = dropout else { return 1.0 };
    let draw = philox::<MASK_ROUNDS>(dropout.key, [(column / dropout.columns) as u32, head as u32, token as u32, ordinal]);
    if Dropout::bits(dropout.columns, draw, column) >= dropout.threshold { dropout.scale } else { 0.0 }
}

pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(to: &mut [f64], factor: f64, row: &[f64]) {
    to.iter_mut().zip(row).for_each(|(to, value)| *to += factor * value);
}

impl Plain<'_> {
    fn round(&self, value: f64) -> f64 {
        rounded(self.dtype, value)
    }

    fn blocks(&self) -> Vec<Block> {
        let (mut query, mut key, mut blocks) = (0, 0, Vec::new());
        for (sequence, &length) in self.lengths.iter().enumerate() {
            let count = length.div_ceil(self.every);
            for head in 0..self.heads {
                blocks.push(Block { sequence, head, queries: [query, count], keys: [key, length] });
            }
            (query, key) = (query + count, key + length);
        }
        blocks
    }

    fn ordinal(&self, block: &Block) -> u32 {
        self.first_ordinal + block.sequence as u32
    }

    fn query_row(&self, block: &Block, index: usize) -> std::ops::Range<usize> {
        let start = ((block.queries[0] + index) * self.heads + block.head) * self.head_dim;
        start..start + self.head_dim
    }

    fn key_row(&self, block: &Block, index: usize) -> std::ops::Range<usize> {
        let start = ((block.keys[0] + index) * self.kv_heads + self.kv_head(block)) * self.head_dim;
        start..start + self.head_dim
    }

    fn prefix_row(&self, block: &Block, position: usize, value: bool) -> std::ops::Range<usize> {
        let start = ((2 * position + usize::from(value)) * self.kv_heads + self.kv_head(block)) * self.head_dim;
        start..start + self.head_dim
    }

    fn kv_head(&self, block: &Block) -> usize {
        block.head * self.kv_heads / self.heads
    }

    /// Masks of the prefix's elements, of keys or of values.
    fn prefix_mask(&self, block: &Block, position: usize, value: bool) -> Vec<f64> {
        let dropout = self.prefix_dropout.map(|dropouts| dropouts[usize::from(value)]);
        (0..self.head_dim).map(|dim| mask(dropout, self.ordinal(block), position, self.kv_head(block), dim)).collect()
    }

    /// Keys or values of all columns, prefix first.
    fn columns(&self, block: &Block, value: bool) -> Vec<Vec<f64>> {
        let prefix = (0..self.prefix_length).map(|position| {
            let row = self.prefix[self.prefix_row(block, position, value)].iter();
            row.zip(self.prefix_mask(block, position, value)).map(|(element, mask)| self.round(element * mask)).collect()
        });
        let own = if value { self.value } else { self.key };
        prefix.chain((0..block.keys[1]).map(|key| own[self.key_row(block, key)].to_vec())).collect()
    }

    /// The rows of the tables of relative keys and queries that query `index` and a column meet; None: the column is the
    /// prefix's, or there is no such table.
    fn relative_rows(&self, block: &Block, index: usize, column: usize) -> [Option<&[f64]>; 2] {
        let key = column.checked_sub(self.prefix_length);
        self.relative.map(|table| {
            let (table, key) = (table?, key?);
            let span = self.span as i64;
            let row = ((index * self.every) as i64 - key as i64 + span).clamp(0, 2 * span - 1) as usize;
            let start = (row * self.heads + block.head) * self.head_dim;
            Some(&table[start..start + self.head_dim])
        })
    }

    fn scores(&self, block: &Block, index: usize, keys: &[Vec<f64>]) -> Vec<f64> {
        let query = &self.query[self.query_row(block, index)];
        let scale = 1.0 / (self.head_dim as f64).sqrt();
        let scores = keys.iter().enumerate().map(|(column, key)| {
            let [relative_key, relative_query] = self.relative_rows(block, index, column);
            let terms =
                [Some((query, key.as_slice())), relative_key.map(|row| (query, row)), relative_query.map(|row| (key.as_slice(), row))];
            self.round(terms.into_iter().flatten().map(|(a, b)| self.round(scale * dot(a, b))).sum())
        });
        let seen = |column: usize| match (self.separators.get(block.sequence), column.checked_sub(self.prefix_length)) {
            (Some(&separator), Some(key)) => key <= index * self.every || key < separator as usize,
            _ => true,
        };
        scores.enumerate().map(|(column, score)| if seen(column) { score } else { f64::NEG_INFINITY }).collect()
    }

    fn masks(&self, block: &Block, index: usize, columns: usize) -> Vec<f64> {
        let own = Dropout::first_own(self.prefix_length);
        let numbers = (0..self.prefix_length).chain(own..own + columns - self.prefix_length);
        numbers.map(|column| mask(self.dropout, self.ordinal(block), index * self.every, block.head, column)).collect()
    }

    /// Outputs and log-sum-exp.
    pub fn forward(&self) -> Vec<Vec<f64>> {
        let mut out = vec![0.0; self.query.len()];
        let mut log_sum_exp = vec![0.0; self.query.len() / self.head_dim];
        for block in self.blocks() {
            let [keys, values] = [false, true].map(|value| self.columns(&block, value));
            for index in 0..block.queries[1] {
                let scores = self.scores(&block, index, &keys);
                let largest = scores.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b));
                let sum: f64 = scores.iter().map(|score| (score - largest).exp()).sum();
                let masks = self.masks(&block, index, keys.len());
                let row = &mut out[self.query_row(&block, index)];
                for ((score, mask), value) in scores.iter().zip(masks).zip(&values) {
                    let probability = self.round((score - largest).exp() / sum);
                    add(row, self.round(probability * mask), value);
                }
                log_sum_exp[(block.queries[0] + index) * self.heads + block.head] = largest + sum.ln();
            }
        }
        vec![out, log_sum_exp]
    }

    /// Gradients of queries, keys, values and the prefix (added to `d_prefix`), from what forward stored.
    pub fn backward(&self, log_sum_exp: &[f64], delta: &[f64], d_out: &[f64], d_prefix: &[f64]) -> Vec<Vec<f64>> {
        let mut d_query = vec![0.0; self.query.len()];
        let [mut d_key, mut d_value] = [vec![0.0; self.key.len()], vec![0.0; self.value.len()]];
        let mut d_prefix = d_prefix.to_vec();
        let scale = 1.0 / (self.head_dim as f64).sqrt();
        for block in self.blocks() {
            let [keys, values] = [false, true].map(|value| self.columns(&block, value));
            let [mut d_keys, mut d_values] = [vec![vec![0.0; self.head_dim]; keys.len()], vec![vec![0.0; self.head_dim]; keys.len()]];
            for index in 0..block.queries[1] {
                let row = (block.queries[0] + index) * self.heads + block.head;
                let query = self.query_row(&block, index);
                let masks = self.masks(&block, index, keys.len());
                for (column, score) in self.scores(&block, index, &keys).into_iter().enumerate() {
                    let probability = self.round((score - log_sum_exp[row]).exp());
                    let d_probability = self.round(self.round(dot(&d_out[query.clone()], &values[column])) * masks[column]);
                    let d_score = self.round(probability * (d_probability - delta[row]));
                    add(&mut d_values[column], self.round(probability * masks[column]), &d_out[query.clone()]);
                    add(&mut d_keys[column], d_score * scale, &self.query[query.clone()]);
                    add(&mut d_query[query.clone()], d_score * scale, &keys[column]);
                    let [relative_key, relative_query] = self.relative_rows(&block, index, column);
                    relative_key.into_iter().for_each(|row| add(&mut d_query[query.clone()], d_score * scale, row));
                    relative_query.into_iter().for_each(|row| add(&mut d_keys[column], d_score * scale, row));
                }
            }
            for (value, gradients) in [(false, &d_keys), (true, &d_values)] {
                for position in 0..self.prefix_length {
                    let to = &mut d_prefix[self.prefix_row(&block, position, value)];
                    let masks = self.prefix_mask(&block, position, value);
                    to.iter_mut().zip(masks).zip(&gradients[position]).for_each(|((to, mask), gradient)| *to += mask * gradient);
                }
                for key in 0..block.keys[1] {
                    let to = if value { &mut d_value } else { &mut d_key };
                    add(&mut to[self.key_row(&block, key)], 1.0, &gradients[self.prefix_length + key]);
                }
            }
        }
        vec![d_query, d_key, d_value, d_prefix]
    }
}
