//! What each operation has to do: the bytes that it must read and write once, and its floating-point operations where
//! these are matrix products. Formulas of the operands' shapes; of attention, also of the lengths of the sequences.
//!
//! Attention counts, for each query and each key that it sees and each of the head's D dimensions, two operations a
//! product. Forward: scores and output, 4. Backward: scores and probabilities' gradients once more, dQ, dK, dV, 10, of
//! which dK and dV of prefix columns are the prefix gradient's. The kernels of the GPU compute scores and gradients in
//! both of the backward's passes, so the passes' own work is 8 (dK, dV) and 6 (dQ): floors count that, `useful` the 10.
//! Each term of relative positions is a product more wherever scores are made, and one for its gradient.

use super::Integers;
use crate::backend::*;

/// Bytes and floating-point operations.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    pub bytes: f64,
    pub flops: f64,
}

impl Work {
    /// The least time that it takes a machine of such rates: the longer of moving and computing.
    pub fn floor(self, bytes_per_second: f64, flops_per_second: f64) -> f64 {
        (self.bytes / bytes_per_second).max(self.flops / flops_per_second)
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Operation {
    /// Of the seam's method.
    pub name: &'static str,
    /// What is to be told apart: the name, and the shape of a product.
    pub label: String,
    pub work: Work,
    /// Operations that count as a step's: matrix products with frozen weights, attention.
    pub useful: f64,
    /// Launches that are told apart, by what their kernel's name begins with: label and work.
    pub parts: Vec<(&'static str, String, Work)>,
}

impl Operation {
    fn new(name: &'static str, bytes: usize) -> Operation {
        let work = Work { bytes: bytes as f64, flops: 0.0 };
        Operation { name, label: name.replace('_', " "), work, useful: 0.0, parts: Vec::new() }
    }
}

fn bytes(view: View) -> usize {
    view.len() * view.dtype.size()
}

fn optional(view: Option<View>) -> usize {
    view.map_or(0, bytes)
}

/// Host to device and back; the floor is the memory's, not the bus's.
pub fn write(to: View) -> Operation {
    Operation { label: "copies to the device".into(), ..Operation::new("write", bytes(to)) }
}

pub fn read(from: View) -> Operation {
    Operation { label: "copies to the host".into(), ..Operation::new("read", bytes(from)) }
}

pub fn zero(view: View) -> Operation {
    Operation::new("zero", bytes(view))
}

pub fn copy(from: View) -> Operation {
    Operation::new("copy", 2 * bytes(from))
}

/// The label of transfers, whose bytes go over the bus.
pub const TRANSFER: &str = "transfer";

pub fn transfer(moves: &[(View, View)]) -> Operation {
    Operation::new(TRANSFER, moves.iter().map(|(from, _)| bytes(*from)).sum())
}

pub fn fetch_rows(out: View) -> Operation {
    Operation { name: "fetch_rows", ..Operation::new(TRANSFER, bytes(out)) }
}

pub fn fill_normal(to: View) -> Operation {
    Operation::new("fill_normal", bytes(to))
}

pub fn embed(embed: &Embed) -> Operation {
    let tables = 1 + usize::from(embed.position.is_some()) + usize::from(embed.token_type.is_some());
    let read = tables * (embed.word.dtype.size() * embed.out.len() + 4 * embed.out.rows);
    let kept = embed.norm.as_ref().map_or(0, |norm| optional(norm.stream) + norm.kept.map_or(0, |kept| kept.map(bytes).iter().sum()));
    Operation::new("embed", read + bytes(embed.out) + kept)
}

pub fn norm_forward(norm: &NormForward) -> Operation {
    let read = bytes(norm.residual) + optional(norm.branch);
    Operation::new("norm_forward", read + optional(norm.sum) + bytes(norm.normalized) + bytes(norm.rstd) + bytes(norm.out))
}

pub fn norm_output(out: View) -> Operation {
    Operation::new("norm_output", 2 * bytes(out))
}

pub fn norm_backward(norm: &NormBackward) -> Operation {
    let read = bytes(norm.d_out) + optional(norm.d_residual) + bytes(norm.normalized) + bytes(norm.rstd);
    Operation::new("norm_backward", read + bytes(norm.d_sum) + optional(norm.dropout.map(|(_, _, d_branch)| d_branch)))
}

pub fn dropout(data: View) -> Operation {
    Operation::new("dropout", 2 * bytes(data))
}

/// A byte and its row's share of a factor are read, 16 bits are written.
pub fn dequantize(weight: View, scales: View, out: View) -> Operation {
    Operation::new("dequantize", bytes(weight) + bytes(scales) + bytes(out))
}

/// A product over matrices of `rows`, K and N; `trained` weights are no part of the frozen model.
fn product(name: &'static str, label: String, moved: usize, [rows, k, n]: [usize; 3], trained: bool) -> Operation {
    let flops = 2.0 * rows as f64 * k as f64 * n as f64;
    let useful = if trained { 0.0 } else { flops };
    Operation { label, work: Work { bytes: moved as f64, flops }, useful, ..Operation::new(name, 0) }
}

/// Whether a matrix is trained: frozen ones have 16 bits.
fn is_trained(weight: View) -> bool {
    weight.dtype.size() > 2
}

pub fn linear(x: View, weight: View, out: View) -> Operation {
    let [n, k] = [weight.rows, weight.cols];
    let moved = bytes(x) + bytes(weight) + bytes(out);
    product("linear", format!("linear {k} to {n}"), moved, [out.rows, k, n], is_trained(weight))
}

pub fn linear_backward_input(dy: View, weight: View, dx: View, accumulate: bool) -> Operation {
    let [n, k] = [weight.rows, weight.cols];
    let moved = bytes(dy) + bytes(weight) + bytes(dx) * (1 + usize::from(accumulate));
    product("linear_backward_input", format!("input gradient {n} to {k}"), moved, [dy.rows, n, k], is_trained(weight))
}

pub fn linear_backward_weight(dy: View, x: View, d_weight: View) -> Operation {
    let moved = bytes(dy) + bytes(x) + 2 * bytes(d_weight);
    let label = format!("weight gradient {} by {}", d_weight.rows, d_weight.cols);
    product("linear_backward_weight", label, moved, [dy.rows, d_weight.rows, d_weight.cols], true)
}

pub fn activation_forward(z: View, out: View) -> Operation {
    Operation::new("activation_forward", bytes(z) + bytes(out))
}

pub fn activation_backward(z: View, d_out: View, dz: View) -> Operation {
    Operation::new("activation_backward", bytes(z) + bytes(d_out) + bytes(dz))
}

/// Of queries or keys: read and written once, as the angles of each row are read.
pub fn rotary(name: &'static str, arguments: &Rotary, out: View) -> Operation {
    let angles = out.rows * arguments.table.cols * arguments.table.dtype.size();
    Operation::new(name, bytes(arguments.x) + bytes(out) + angles)
}

/// Query-key pairs of one head over all sequences: those with keys of tokens, and those with prefix keys.
struct Pairs {
    tokens: f64,
    prefix: f64,
}

impl Pairs {
    fn of(integers: &Integers, attention: &Attention) -> Pairs {
        let known = |view: View| integers.get(&view.offset).filter(|values| values.len() == view.cols).map_or(&[][..], Vec::as_slice);
        let lengths = |rows: &Rows| known(rows.offsets).windows(2).map(|pair| pair[1] - pair[0]);
        let (queries, keys) = (lengths(attention.query_rows), lengths(attention.key_rows));
        let tokens: i64 = match attention.separators {
            None => queries.zip(keys).map(|(queries, keys)| i64::from(queries) * i64::from(keys)).sum(),
            Some(separators) => {
                let mut rows = known(attention.query_rows.tokens).iter();
                let mut of_sequence = |queries: i32, keys: i32, separator: i32| -> i64 {
                    rows.by_ref().take(queries as usize).map(|&token| i64::from(keys.min(separator.max(token + 1)))).sum()
                };
                queries.zip(keys).zip(known(separators)).map(|((queries, keys), &separator)| of_sequence(queries, keys, separator)).sum()
            }
        };
        let prefix = attention.prefix.map_or(0, |prefix| prefix.key.rows);
        Pairs { tokens: tokens as f64, prefix: attention.query_rows.count as f64 * prefix as f64 }
    }
}

/// Bytes of queries, keys, values and the prefix.
fn operands(attention: &Attention) -> usize {
    let prefix = attention.prefix.map_or(0, |prefix| bytes(prefix.key) + bytes(prefix.value));
    bytes(attention.query) + bytes(attention.key) + bytes(attention.value) + prefix
}

/// Terms of relative positions that the keys' table and the queries' table add to the scores of tokens.
fn terms(attention: &Attention) -> [f64; 2] {
    attention.relative.map_or([0.0; 2], |relative| [relative.key, relative.query].map(|table| f64::from(u8::from(table.is_some()))))
}

pub fn attention_forward(integers: &Integers, attention: &Attention, out: View, log_sum_exp: View) -> Operation {
    let (pairs, [of_keys, of_queries]) = (Pairs::of(integers, attention), terms(attention));
    let width = (attention.heads * attention.head_dim) as f64;
    let flops = width * (4.0 * (pairs.tokens + pairs.prefix) + 2.0 * (of_keys + of_queries) * pairs.tokens);
    let operation = Operation::new("attention_forward", operands(attention) + bytes(out) + bytes(log_sum_exp));
    Operation { work: Work { flops, ..operation.work }, useful: flops, ..operation }
}

pub fn attention_delta(out: View, d_out: View, delta: View) -> Operation {
    Operation::new("attention_delta", bytes(out) + bytes(d_out) + bytes(delta))
}

fn saved_bytes(saved: &AttentionSaved) -> usize {
    bytes(saved.log_sum_exp) + bytes(saved.delta) + bytes(saved.d_out)
}

pub fn attention_backward(integers: &Integers, attention: &Attention, saved: &AttentionSaved) -> Operation {
    let (pairs, [of_keys, of_queries]) = (Pairs::of(integers, attention), terms(attention));
    let width = (attention.heads * attention.head_dim) as f64;
    let (read, queries) = (operands(attention) + saved_bytes(saved), bytes(attention.query));
    let gradients = bytes(attention.key) + bytes(attention.value);
    let (scores, all) = (2.0 * (of_keys + of_queries), pairs.tokens + pairs.prefix);
    let flops = width * (6.0 * all + (4.0 + 2.0 * scores) * pairs.tokens);
    let operation = Operation::new("attention_backward", read + queries + gradients);
    let keys = Work { bytes: (read + gradients) as f64, flops: width * (8.0 + scores + 2.0 * of_queries) * pairs.tokens };
    let own = Work { bytes: (read + queries) as f64, flops: width * (6.0 * all + (scores + 2.0 * of_keys) * pairs.tokens) };
    let parts = [
        ("attention_backward_key", "attention backward key", keys),
        ("attention_relative_key", "attention backward key", keys),
        ("attention_backward_query", "attention backward query", own),
        ("attention_relative_query", "attention backward query", own),
    ];
    let parts = parts.map(|(kernel, label, work)| (kernel, label.to_string(), work)).to_vec();
    Operation { work: Work { flops, ..operation.work }, useful: flops, parts, ..operation }
}

/// The floor counts scores and probabilities' gradients too, which it has to make; they are useful only once.
pub fn prefix_gradient(integers: &Integers, attention: &Attention, saved: &AttentionSaved) -> Operation {
    let pairs = Pairs::of(integers, attention).prefix * (attention.heads * attention.head_dim) as f64;
    let prefix = attention.prefix.map_or(0, |prefix| bytes(prefix.key) + bytes(prefix.value));
    let operation = Operation::new("prefix_gradient", bytes(attention.query) + saved_bytes(saved) + 3 * prefix);
    Operation { work: Work { flops: 8.0 * pairs, ..operation.work }, useful: 4.0 * pairs, ..operation }
}

/// The prompt's rows of every sequence are read, the gradient is read and written.
pub fn prompt_gradient(d: View, offsets: View, d_prompt: View) -> Operation {
    let rows = (offsets.cols - 1) * d_prompt.rows;
    Operation::new("prompt_gradient", rows * d.cols * d.dtype.size() + 2 * bytes(d_prompt))
}

pub fn gather_rows(out: View) -> Operation {
    Operation::new("gather_rows", 2 * bytes(out))
}

pub fn scatter_add_rows(source: View) -> Operation {
    Operation::new("scatter_add_rows", 3 * bytes(source))
}

pub fn cross_entropy(entropy: &CrossEntropy) -> Operation {
    Operation::new("cross_entropy", bytes(entropy.logits) + bytes(entropy.d_logits))
}

/// Logits are read twice, for their sum and for what comes of it.
pub fn token_loss(loss: &TokenLoss) -> Operation {
    let gradient = loss.gradient.as_ref().map_or(0, |gradient| bytes(gradient.d_logits));
    Operation::new("token_loss", 2 * bytes(loss.logits) + gradient)
}

pub fn sum_segments(values: View, out: View) -> Operation {
    Operation::new("sum_segments", bytes(values) + bytes(out))
}

pub fn spread_segments(values: View, out: View) -> Operation {
    Operation::new("spread_segments", bytes(values) + bytes(out))
}

pub fn squared_norm(x: View) -> Operation {
    Operation::new("squared_norm", bytes(x))
}

/// Master and moments are read and written, the gradient is read.
pub fn adamw(update: &AdamW) -> Operation {
    Operation::new("adamw", 7 * bytes(update.master))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(offset: usize, rows: usize, cols: usize, dtype: DType) -> View {
        View { buffer: ARENA, offset, rows, cols, stride: cols, dtype }
    }

    #[test]
    fn floors_are_the_longer_of_two() {
        let work = Work { bytes: 100.0, flops: 60.0 };
        assert_eq!((work.floor(10.0, 30.0), work.floor(100.0, 10.0)), (10.0, 6.0));
    }

    #[test]
    fn products_count_twice_their_volume() {
        let (x, weight, out) = (matrix(0, 7, 5, DType::F16), matrix(0, 3, 5, DType::F16), matrix(0, 7, 3, DType::F16));
        let forward = linear(x, weight, out);
        assert_eq!((forward.work.flops, forward.useful, forward.work.bytes), (210.0, 210.0, 2.0 * (35.0 + 15.0 + 21.0)));
        assert_eq!(forward.label, "linear 5 to 3");
        let (narrow, scales) = (View { dtype: DType::I8, ..weight }, matrix(0, 1, 3, DType::F32));
        let widened = dequantize(narrow, scales, weight);
        assert_eq!((widened.work.flops, widened.useful, widened.work.bytes), (0.0, 0.0, 15.0 + 12.0 + 30.0));
        let back = linear_backward_input(out, weight, x, true);
        assert_eq!((back.work.flops, back.work.bytes), (210.0, 2.0 * (21.0 + 15.0 + 70.0)));
        assert_eq!(linear(x, View { dtype: DType::F32, ..weight }, out).useful, 0.0);
    }

    /// Sequences of 3 and 5 tokens behind a prefix of 2, two heads of 4.
    #[test]
    fn attention_counts_what_each_query_sees() {
        let vector = |offset, cols| matrix(offset, 1, cols, DType::I32);
        let rows = |offset, tokens, count| Rows {
            ordinals: vector(0, count),
            tokens: vector(tokens, count),
            offsets: vector(offset, 3),
            count,
            longest: 5,
        };
        // All tokens, and of each sequence its last.
        let (all, first) = (rows(100, 300, 8), rows(200, 400, 2));
        let integers = Integers::from([
            (100, vec![0, 3, 8]),
            (200, vec![0, 1, 2]),
            (300, vec![0, 1, 2, 0, 1, 2, 3, 4]),
            (400, vec![2, 4]),
            (500, vec![0, 3]),
        ]);
        let hidden = |count| matrix(0, count, 8, DType::F16);
        let prefix = Prefix { key: matrix(0, 2, 8, DType::F32), value: matrix(0, 2, 8, DType::F32), dropout: None };
        let attention = |queries, separators| Attention {
            query: hidden(8),
            key: hidden(8),
            value: hidden(8),
            prefix: Some(prefix),
            relative: None,
            query_rows: queries,
            key_rows: &all,
            separators,
            heads: 2,
            kv_heads: 2,
            head_dim: 4,
            scale: 1.0,
            dropout: None,
        };
        let (out, sums) = (hidden(8), matrix(0, 8, 2, DType::F32));
        let (tokens, columns) = (9.0 + 25.0, 16.0);
        let forward = attention_forward(&integers, &attention(&all, None), out, sums);
        assert_eq!(forward.useful, 4.0 * 8.0 * (tokens + columns));
        assert_eq!(attention_forward(&integers, &attention(&first, None), out, sums).useful, 4.0 * 8.0 * (3.0 + 5.0 + 4.0));
        // The first sequence is causal; of the second every token sees the first three.
        let mask = Some(vector(500, 2));
        let seen = |queries| attention_forward(&integers, &attention(queries, mask), out, sums).useful / 32.0;
        assert_eq!((seen(&all), seen(&first)), (1.0 + 2.0 + 3.0 + 3.0 + 3.0 + 3.0 + 4.0 + 5.0 + columns, 3.0 + 5.0 + 4.0));
        let saved = AttentionSaved { log_sum_exp: sums, delta: sums, d_out: out };
        let backward = attention_backward(&integers, &attention(&all, None), &saved);
        let prefix = prefix_gradient(&integers, &attention(&all, None), &saved);
        assert_eq!(backward.useful + prefix.useful, 10.0 * 8.0 * (tokens + columns));
        let passes = |backward: &Operation| backward.parts.iter().step_by(2).map(|(_, _, work)| work.flops).sum::<f64>();
        assert_eq!(passes(&backward), 8.0 * (14.0 * tokens + 6.0 * columns));
        let table = Some(matrix(0, 4, 8, DType::F16));
        let relative = Attention { relative: Some(Relative { key: table, query: table, span: 2 }), ..attention(&all, None) };
        let more = 4.0 * 8.0 * tokens;
        assert_eq!(attention_forward(&integers, &relative, out, sums).useful, forward.useful + more);
        let both = attention_backward(&integers, &relative, &saved);
        assert_eq!((both.useful, passes(&both)), (backward.useful + 2.0 * more, passes(&backward) + 3.0 * more));
    }
}
