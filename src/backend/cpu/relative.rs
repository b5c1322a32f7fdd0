//! The relative terms of attention (`backend::Relative`): a block of queries and a tile of keys meet a band of table
//! rows, as many as there are distances between them. Their products with the band are gathered along its diagonals; the
//! gradients are scattered along them first, then multiplied.

use super::attention::QUERIES;
use super::memory::{Element, Matrix};
use super::product::{product, product_transposed};
use super::real::Real;

/// Keys of a tile.
const KEYS: usize = 64;

/// Elements of scratch for sequences of up to `longest` tokens: a product of the queries or the keys with a band.
pub const fn scratch_elements(longest: usize) -> usize {
    let most = if QUERIES > KEYS { QUERIES } else { KEYS };
    most * (longest + KEYS)
}

/// \[2 span, A*D\] each.
#[derive(Clone, Copy)]
pub struct Relative<T> {
    pub key: Option<Matrix<T>>,
    pub query: Option<Matrix<T>>,
    pub span: usize,
}

/// A block of queries of one head.
pub struct Block<'a, T> {
    pub relative: Relative<T>,
    /// The head's first column in the tables.
    pub first_column: usize,
    /// Of the queries, in their sequence.
    pub tokens: &'a [i32],
}

/// Keys `first..first + count` and the band `low..low + band` of table rows that they and the queries meet.
struct Tile {
    first: usize,
    count: usize,
    low: usize,
    band: usize,
}

impl<T: Real + Element> Block<'_, T> {
    fn row(&self, token: i32, key: usize) -> usize {
        let span = self.relative.span as i64;
        (i64::from(token) - key as i64 + span).clamp(0, 2 * span - 1) as usize
    }

    fn tiles(&self, keys: usize) -> impl Iterator<Item = Tile> {
        let least = self.tokens.iter().copied().min().unwrap_or(0);
        let most = self.tokens.iter().copied().max().unwrap_or(0);
        (0..keys).step_by(KEYS).map(move |first| {
            let count = KEYS.min(keys - first);
            let low = self.row(least, first + count - 1);
            Tile { first, count, low, band: self.row(most, first) + 1 - low }
        })
    }

    /// scores\[i, j\] += q_i . key\[r\] + k_j . query\[r\].
    pub fn add_scores(&self, query: Matrix<T>, key: Matrix<T>, scores: Matrix<T>, scratch: &mut [T]) {
        for tile in self.tiles(key.rows) {
            let own_keys = key.block(tile.first, tile.count, 0, key.cols);
            for (table, left, of_query) in [(self.relative.key, query, true), (self.relative.query, own_keys, false)] {
                let Some(table) = table else { continue };
                let table = table.block(tile.low, tile.band, self.first_column, key.cols);
                let products = matrix(scratch, left.rows, tile.band);
                product_transposed(left, table, products, false);
                for (i, &token) in self.tokens.iter().enumerate() {
                    let scores = &mut scores.row_mut(i)[tile.first..tile.first + tile.count];
                    for (j, score) in scores.iter_mut().enumerate() {
                        let row = self.row(token, tile.first + j) - tile.low;
                        *score += products.row(if of_query { i } else { j })[row];
                    }
                }
            }
        }
    }

    /// d_query_i += Σ_j gradients\[i, j\] key\[r\]; d_key_j += Σ_i gradients\[i, j\] query\[r\].
    pub fn add_gradients(&self, gradients: Matrix<T>, d_query: Matrix<T>, d_key: Matrix<T>, scratch: &mut [T]) {
        for tile in self.tiles(gradients.cols) {
            let own_keys = d_key.block(tile.first, tile.count, 0, d_key.cols);
            for (table, to, of_query) in [(self.relative.key, d_query, true), (self.relative.query, own_keys, false)] {
                let Some(table) = table else { continue };
                let table = table.block(tile.low, tile.band, self.first_column, d_key.cols);
                let weights = matrix(scratch, to.rows, tile.band);
                (0..to.rows).for_each(|row| weights.row_mut(row).fill(T::ZERO));
                for (i, &token) in self.tokens.iter().enumerate() {
                    let gradients = &gradients.row(i)[tile.first..tile.first + tile.count];
                    for (j, &gradient) in gradients.iter().enumerate() {
                        let row = self.row(token, tile.first + j) - tile.low;
                        weights.row_mut(if of_query { i } else { j })[row] += gradient;
                    }
                }
                product(weights, table, to, true);
            }
        }
    }
}

fn matrix<T>(scratch: &mut [T], rows: usize, cols: usize) -> Matrix<T> {
    let start = scratch[..rows * cols].as_mut_ptr();
    Matrix { start, rows, cols, stride: cols }
}
