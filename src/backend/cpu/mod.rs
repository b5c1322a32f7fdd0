//! The CPU backend, generic over f32 (for use) and f64 (the reference of every kernel). Operations run at once, on
//! rayon's threads. Work is cut by shape alone and every sum has a fixed order, so results are the same bits for any
//! number of threads.

mod attention;
mod dequantize;
mod embed;
mod fill;
mod instruments;
mod loss;
mod mask;
mod memory;
mod norm;
mod pointwise;
mod product;
mod real;
mod relative;
mod rotary;
mod token_loss;

use super::*;
use memory::{Buffers, Element, Matrix};
use rayon::prelude::*;
pub use real::Real;

/// Number types that the backend computes in.
pub trait Number: Real + Element {}
impl Number for f32 {}
impl Number for f64 {}

pub struct Cpu<T> {
    buffers: Buffers,
    workers: Workers<T>,
    /// When each mark was made.
    marks: Vec<std::time::Instant>,
}

/// Scratch of the threads: one slice each.
pub struct Workers<T> {
    threads: usize,
    scratch: *mut T,
    elements: usize,
}

// SAFETY: each thread of the pool uses its own slice.
unsafe impl<T: Send> Send for Workers<T> {}
unsafe impl<T: Sync> Sync for Workers<T> {}

impl<T> Workers<T> {
    /// The calling thread's slice. An operation calls this once a task and never waits for other tasks inside one, so
    /// a thread holds one slice at a time.
    #[allow(clippy::mut_from_ref)]
    fn scratch(&self) -> &'static mut [T] {
        let thread = rayon::current_thread_index().unwrap_or(0);
        assert!(thread < self.threads);
        // SAFETY: slices of threads do not overlap and lie in the arena, which outlives every operation.
        unsafe { std::slice::from_raw_parts_mut(self.scratch.add(thread * self.elements), self.elements) }
    }
}

/// [`Rows`] resolved to memory.
#[derive(Clone, Copy)]
pub struct RowIndex<'a> {
    ordinals: &'a [i32],
    tokens: &'a [i32],
    offsets: &'a [i32],
}

impl RowIndex<'_> {
    fn sequences(&self) -> usize {
        self.offsets.len() - 1
    }
}

/// Rows of one task of a row-wise operation.
const ROWS: usize = 16;

fn parallel_rows(rows: usize, task: impl Fn(usize) + Sync + Send) {
    (0..rows.div_ceil(ROWS)).into_par_iter().for_each(|chunk| {
        for row in chunk * ROWS..rows.min((chunk + 1) * ROWS) {
            task(row);
        }
    });
}

impl<T: Number> Cpu<T> {
    #[allow(clippy::new_without_default)]
    pub fn new() -> Cpu<T> {
        let workers = Workers { threads: rayon::current_num_threads(), scratch: std::ptr::null_mut(), elements: 0 };
        Cpu { buffers: Buffers::new(), workers, marks: Vec::new() }
    }

    fn matrix(&self, view: View) -> Matrix<T> {
        self.buffers.matrix(view)
    }

    fn vector(&self, view: View) -> &[T] {
        self.buffers.vector(view)
    }

    fn integers(&self, view: View) -> &[i32] {
        self.buffers.vector(view)
    }

    /// A vector that the operation writes.
    #[allow(clippy::mut_from_ref)]
    fn vector_mut(&self, view: View) -> &mut [T] {
        assert!(view.is_contiguous());
        // SAFETY: inside the arena; the operation holds `&mut self` and names no other view of this memory.
        unsafe { std::slice::from_raw_parts_mut(self.matrix(view).start, view.len()) }
    }

    fn rows(&self, rows: &Rows) -> RowIndex<'_> {
        RowIndex { ordinals: self.integers(rows.ordinals), tokens: self.integers(rows.tokens), offsets: self.integers(rows.offsets) }
    }

    fn operands(&self, arguments: &Attention) -> attention::Operands<'_, T> {
        attention::Operands {
            query: self.matrix(arguments.query),
            key: self.matrix(arguments.key),
            value: self.matrix(arguments.value),
            prefix: arguments.prefix.map(|prefix| attention::PrefixOperands {
                key: self.matrix(prefix.key),
                value: self.matrix(prefix.value),
                dropout: prefix.dropout,
            }),
            relative: arguments.relative.map(|relative| relative::Relative {
                key: relative.key.map(|view| self.matrix(view)),
                query: relative.query.map(|view| self.matrix(view)),
                span: relative.span,
            }),
            query_rows: self.rows(arguments.query_rows),
            key_rows: self.rows(arguments.key_rows),
            separators: arguments.separators.map(|view| self.integers(view)),
            group: arguments.heads / arguments.kv_heads,
            kv_heads: arguments.kv_heads,
            head_dim: arguments.head_dim,
            scale: T::of(arguments.scale),
            dropout: arguments.dropout,
        }
    }

    fn rotary(&self, arguments: &Rotary) -> rotary::Operands<'_, T> {
        rotary::Operands {
            x: self.matrix(arguments.x),
            head_dim: arguments.head_dim,
            gamma: arguments.gamma.map(|view| self.vector(view)),
            epsilon: T::of(arguments.epsilon),
            table: self.matrix(arguments.table),
            positions: self.integers(arguments.positions),
        }
    }

    fn saved(&self, saved: &AttentionSaved) -> attention::Saved<T> {
        attention::Saved { log_sum_exp: self.matrix(saved.log_sum_exp), delta: self.matrix(saved.delta), d_out: self.matrix(saved.d_out) }
    }
}

impl<T: Number> Sizing for Cpu<T> {
    fn describe(&self) -> String {
        let threads = self.workers.threads;
        format!("cpu, {}, {}", counted(threads), <T as Real>::DTYPE.name())
    }

    fn precision(&self) -> Precision {
        Precision { activation: <T as Real>::DTYPE, master: <T as Real>::DTYPE }
    }

    fn reads_files(&self) -> bool {
        true
    }

    fn transfers_files(&self) -> bool {
        true
    }

    fn scratch_bytes(&self, need: &ScratchNeed) -> anyhow::Result<usize> {
        let attention = attention::scratch_elements(need);
        Ok(self.workers.threads * attention.max(product::scratch_elements(need.widest)) * size_of::<T>())
    }

    fn describe_scratch(&self) -> String {
        format!("{}: tiles of attention and of products", counted(self.workers.threads))
    }
}

impl<T: Number> Backend for Cpu<T> {
    fn allocate(&mut self, bytes: usize, scratch: View) -> anyhow::Result<()> {
        self.buffers.allocate(bytes)?;
        self.workers.elements = scratch.len() * scratch.dtype.size() / size_of::<T>() / self.workers.threads;
        self.workers.scratch = self.matrix(View { dtype: <T as Real>::DTYPE, rows: 1, cols: 0, stride: 0, ..scratch }).start;
        Ok(())
    }

    fn allocate_host(&mut self, bytes: usize) -> anyhow::Result<()> {
        self.buffers.allocate_host(bytes)
    }

    fn transfer(&mut self, _: usize, moves: &[(View, View)]) {
        for &(from, to) in moves {
            assert!(from.dtype == to.dtype && from.len() == to.len() && (from.buffer == ARENA) != (to.buffer == ARENA));
            fill::copy(self.buffers.byte_matrix(from), self.buffers.byte_matrix(to));
        }
    }

    /// A transfer is over when it returns.
    fn join(&mut self, _: usize) {}

    fn attach(&mut self, file: FileBytes) -> anyhow::Result<BufferId> {
        Ok(self.buffers.attach(file))
    }

    fn check(&self) -> anyhow::Result<()> {
        Ok(())
    }

    fn write(&mut self, to: View, bytes: &[u8]) {
        self.buffers.bytes_mut(to).copy_from_slice(bytes);
    }

    fn fetch_rows(&mut self, table: View, rows: &[usize], out: View) {
        for (index, &row) in rows.iter().enumerate() {
            fill::copy(self.buffers.byte_matrix(table.row_range(row, 1)), self.buffers.byte_matrix(out.row_range(index, 1)));
        }
    }

    fn read(&mut self, from: View, bytes: &mut [u8]) {
        bytes.copy_from_slice(self.buffers.bytes(from));
    }

    fn read_later(&mut self, from: View) -> Readback {
        let bytes = self.buffers.bytes(from).to_vec();
        Box::new(move || bytes)
    }

    fn zero(&mut self, view: View) {
        let matrix = self.matrix(view);
        parallel_rows(view.rows, |row| matrix.row_mut(row).fill(T::ZERO));
    }

    fn copy(&mut self, from: View, to: View) {
        assert!(from.dtype == to.dtype && from.len() == to.len());
        fill::copy(self.buffers.byte_matrix(from), self.buffers.byte_matrix(to));
    }

    fn fill_normal(&mut self, to: View, key: [u32; 2], deviation: f64) {
        let to = to.reshape(1, to.len());
        match to.dtype {
            DType::BF16 => fill::normal(self.buffers.matrix::<half::bf16>(to), key, deviation, half::bf16::from_f32),
            _ => fill::normal(self.buffers.matrix::<half::f16>(to), key, deviation, half::f16::from_f32),
        }
    }

    fn embed(&mut self, arguments: &Embed) {
        let prompt = arguments.prompt.map(|view| self.matrix(view));
        let mut tables = vec![(self.buffers.source::<T>(arguments.word), self.integers(arguments.ids))];
        if let Some(table) = arguments.position {
            tables.push((self.buffers.source(table), self.integers(arguments.positions)));
        }
        if let Some(table) = arguments.token_type {
            tables.push((self.buffers.source(table), self.integers(arguments.types)));
        }
        let norm = arguments.norm.as_ref().map(|norm| embed::Norm {
            kind: norm.kind,
            epsilon: T::of(norm.epsilon),
            gamma: self.vector(norm.gamma),
            beta: norm.beta.map(|view| self.vector(view)),
            stream: norm.stream.map(|view| self.matrix(view)),
            kept: norm.kept.map(|kept| kept.map(|view| self.matrix(view))),
        });
        let dropout = arguments.dropout.map(|(dropout, rows)| (dropout, self.rows(rows)));
        embed::embed(&tables, prompt, dropout, norm, || self.workers.scratch(), self.matrix(arguments.out));
    }

    fn norm_forward(&mut self, arguments: &NormForward) {
        norm::forward(norm::Forward {
            kind: arguments.kind,
            epsilon: T::of(arguments.epsilon),
            residual: self.matrix(arguments.residual),
            branch: arguments.branch.map(|view| self.matrix(view)),
            dropout: arguments.dropout.map(|(dropout, rows)| (dropout, self.rows(rows))),
            gamma: self.vector(arguments.gamma),
            beta: arguments.beta.map(|view| self.vector(view)),
            sum: arguments.sum.map(|view| self.matrix(view)),
            normalized: self.matrix(arguments.normalized),
            rstd: self.vector_mut(arguments.rstd),
            out: self.matrix(arguments.out),
        });
    }

    fn norm_output(&mut self, normalized: View, gamma: View, beta: Option<View>, out: View) {
        norm::output(self.matrix(normalized), self.vector(gamma), beta.map(|view| self.vector(view)), self.matrix(out));
    }

    fn norm_backward(&mut self, arguments: &NormBackward) {
        norm::backward(norm::Backward {
            kind: arguments.kind,
            d_out: self.matrix(arguments.d_out),
            d_residual: arguments.d_residual.map(|view| self.matrix(view)),
            gamma: self.vector(arguments.gamma),
            normalized: self.matrix(arguments.normalized),
            rstd: self.vector(arguments.rstd),
            d_sum: self.matrix(arguments.d_sum),
            dropout: arguments.dropout.map(|(dropout, rows, view)| (dropout, self.rows(rows), self.matrix(view))),
        });
    }

    fn dropout(&mut self, data: View, dropout: Dropout, rows: &Rows) {
        pointwise::dropout(self.matrix(data), dropout, self.rows(rows));
    }

    fn dequantize(&mut self, weight: View, scales: View, out: View) {
        let (weight, scales) = (self.buffers.matrix::<i8>(weight), self.buffers.vector::<f32>(scales));
        match out.dtype {
            DType::BF16 => dequantize::dequantize(weight, scales, self.buffers.matrix(out), half::bf16::from_f32),
            _ => dequantize::dequantize(weight, scales, self.buffers.matrix(out), half::f16::from_f32),
        }
    }

    fn linear(&mut self, x: View, weight: View, bias: Option<View>, out: View) {
        let bias = bias.map(|view| self.vector(view));
        product::linear(&self.workers, self.matrix(x), self.buffers.source(weight), bias, self.matrix(out));
    }

    fn linear_backward_input(&mut self, dy: View, weight: View, dx: View, accumulate: bool) {
        product::linear_backward_input(&self.workers, self.matrix(dy), self.buffers.source(weight), self.matrix(dx), accumulate);
    }

    fn linear_backward_weight(&mut self, dy: View, x: View, d_weight: View, d_bias: Option<View>) {
        let d_bias = d_bias.map(|view| self.matrix(view));
        product::linear_backward_weight(self.matrix(dy), self.matrix(x), self.matrix(d_weight), d_bias);
    }

    fn activation_forward(&mut self, kind: Activation, z: View, out: View) {
        pointwise::activation_forward(kind, self.matrix(z), self.matrix(out));
    }

    fn activation_backward(&mut self, kind: Activation, z: View, d_out: View, dz: View) {
        pointwise::activation_backward(kind, self.matrix(z), self.matrix(d_out), self.matrix(dz));
    }

    fn rotary_forward(&mut self, arguments: &Rotary, out: View) {
        rotary::forward(self.rotary(arguments), self.matrix(out));
    }

    fn rotary_backward(&mut self, arguments: &Rotary, d: View) {
        rotary::backward(self.rotary(arguments), self.matrix(d));
    }

    fn attention_forward(&mut self, arguments: &Attention, out: View, log_sum_exp: View) {
        attention::forward(&self.workers, self.operands(arguments), self.matrix(out), self.matrix(log_sum_exp));
    }

    fn attention_delta(&mut self, out: View, d_out: View, heads: usize, delta: View) {
        attention::delta(self.matrix(out), self.matrix(d_out), heads, self.matrix(delta));
    }

    fn attention_backward(&mut self, arguments: &Attention, saved: &AttentionSaved, d_query: View, d_key: View, d_value: View) {
        let gradients = [d_query, d_key, d_value].map(|view| self.matrix(view));
        let [d_query, d_key, d_value] = gradients;
        attention::backward(&self.workers, self.operands(arguments), self.saved(saved), d_query, d_key, d_value);
    }

    fn prefix_gradient(&mut self, arguments: &Attention, saved: &AttentionSaved, d_key: View, d_value: View) {
        let (operands, saved) = (self.operands(arguments), self.saved(saved));
        attention::prefix_gradient(&self.workers, operands, saved, self.matrix(d_key), self.matrix(d_value));
    }

    fn prompt_gradient(&mut self, d: View, offsets: View, d_prompt: View) {
        pointwise::prompt_gradient(self.matrix(d), self.integers(offsets), self.matrix(d_prompt));
    }

    fn gather_rows(&mut self, x: View, rows: View, out: View) {
        pointwise::gather_rows(self.matrix(x), self.integers(rows), self.matrix(out));
    }

    fn scatter_add_rows(&mut self, source: View, rows: View, x: View) {
        pointwise::scatter_add_rows(self.matrix(source), self.integers(rows), self.matrix(x));
    }

    fn cross_entropy(&mut self, arguments: &CrossEntropy) {
        let groups: Vec<LogitGroup> = self
            .integers(arguments.groups)
            .chunks_exact(4)
            .map(|group| LogitGroup { start: group[0], length: group[1], stride: group[2], target: group[3] })
            .collect();
        let loss = loss::cross_entropy(self.matrix(arguments.logits), &groups, arguments.scale, self.matrix(arguments.d_logits));
        self.vector_mut(arguments.loss)[0] += T::of(loss);
    }

    fn token_loss(&mut self, arguments: &TokenLoss) {
        let TokenLoss { logits, targets, log_probability, best, gradient } = arguments;
        let of_rows = gradient.as_ref().map(|gradient| token_loss::Gradient {
            weights: gradient.weights.map(|view| self.vector(view)),
            scale: T::of(gradient.scale),
            d_logits: self.matrix(gradient.d_logits),
        });
        let log_probability = self.vector_mut(*log_probability);
        // SAFETY: as in `vector_mut`.
        let best = unsafe { std::slice::from_raw_parts_mut(self.buffers.matrix::<i32>(*best).start, best.len()) };
        token_loss::token_loss(self.matrix(*logits), self.integers(*targets), log_probability, best, of_rows);
        if let Some((loss, scale)) = gradient.as_ref().and_then(|gradient| Some((gradient.loss?, gradient.scale))) {
            let total: f64 = log_probability.iter().map(|value| value.to_f64()).sum();
            self.vector_mut(loss)[0] += T::of(-scale * total);
        }
    }

    fn sum_segments(&mut self, values: View, offsets: View, out: View) {
        token_loss::sum_segments(self.vector(values), self.integers(offsets), self.vector_mut(out));
    }

    fn spread_segments(&mut self, values: View, offsets: View, factor: f64, out: View) {
        token_loss::spread_segments(self.vector(values), self.integers(offsets), T::of(factor), self.vector_mut(out));
    }

    fn squared_norm(&mut self, x: View, total: View) {
        let norm = loss::squared_norm(self.vector(x));
        self.vector_mut(total)[0] += T::of(norm);
    }

    fn adamw(&mut self, update: &AdamW) {
        let norm = self.vector(update.squared_norm)[0].to_f64();
        let (moment1, moment2) = (self.vector_mut(update.moment1), self.vector_mut(update.moment2));
        loss::adamw(self.vector_mut(update.master), self.vector(update.gradient), moment1, moment2, norm, update);
    }
}

/// A number of threads, for messages.
fn counted(threads: usize) -> String {
    if threads == 1 { "1 thread".to_string() } else { format!("{threads} threads") }
}
