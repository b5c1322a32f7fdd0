//! A backend seen from outside: [`Watched`] passes every operation on and tells a [`Watch`] before and after it. Two
//! watches: `timing` for measurements, `ranges` for profilers. Without one, a backend is used as it is.

mod ranges;
mod timing;
mod work;

pub use ranges::for_profilers;
pub use timing::{Log, Piece, Shared, timed};
pub use work::{Operation, TRANSFER, Work};

use super::*;
use anyhow::Result;
use std::collections::HashMap;

/// What is told of operations.
pub trait Watch: Send {
    /// Whether it wants to be told anything at the moment.
    fn is_on(&self) -> bool;
    fn before(&mut self, backend: &mut dyn Backend, operation: &Operation);
    fn after(&mut self, backend: &mut dyn Backend, operation: Operation);
    fn enter(&mut self, scope: Scope);
    fn leave(&mut self);
}

/// What integer vectors hold, as they were last written, by their offset: row offsets, by which the work of attention is
/// counted.
pub type Integers = HashMap<usize, Vec<i32>>;

pub struct Watched {
    inner: Box<dyn Backend>,
    watch: Box<dyn Watch>,
    integers: Integers,
}

impl Watched {
    pub fn new(inner: Box<dyn Backend>, watch: Box<dyn Watch>) -> Watched {
        Watched { inner, watch, integers: Integers::new() }
    }

    fn around<R>(&mut self, describe: impl FnOnce(&Integers) -> Operation, run: impl FnOnce(&mut dyn Backend) -> R) -> R {
        if !self.watch.is_on() {
            return run(self.inner.as_mut());
        }
        let operation = describe(&self.integers);
        self.watch.before(self.inner.as_mut(), &operation);
        let result = run(self.inner.as_mut());
        self.watch.after(self.inner.as_mut(), operation);
        result
    }
}

impl Instruments for Watched {
    fn machine(&self) -> Machine {
        self.inner.machine()
    }

    fn mark(&mut self) -> Mark {
        self.inner.mark()
    }

    fn seconds_between(&mut self, from: Mark, to: Mark) -> f64 {
        self.inner.seconds_between(from, to)
    }

    fn forget_marks(&mut self) {
        self.inner.forget_marks();
    }

    fn log_launches(&mut self, on: bool) {
        self.inner.log_launches(on);
    }

    fn launches(&mut self) -> Vec<Launched> {
        self.inner.launches()
    }

    fn profiler(&mut self, on: bool) -> Result<()> {
        self.inner.profiler(on)
    }

    fn enter(&mut self, scope: Scope) {
        self.inner.enter(scope);
        self.watch.enter(scope);
    }

    fn leave(&mut self) {
        self.watch.leave();
        self.inner.leave();
    }
}

impl Sizing for Watched {
    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn precision(&self) -> Precision {
        self.inner.precision()
    }

    fn reads_files(&self) -> bool {
        self.inner.reads_files()
    }

    fn transfers_files(&self) -> bool {
        self.inner.transfers_files()
    }

    fn scratch_bytes(&self, need: &ScratchNeed) -> Result<usize> {
        self.inner.scratch_bytes(need)
    }

    fn describe_scratch(&self) -> String {
        self.inner.describe_scratch()
    }
}

impl Backend for Watched {
    fn allocate(&mut self, bytes: usize, scratch: View) -> Result<()> {
        self.inner.allocate(bytes, scratch)
    }

    fn allocate_host(&mut self, bytes: usize) -> Result<()> {
        self.inner.allocate_host(bytes)
    }

    fn transfer(&mut self, lane: usize, moves: &[(View, View)]) {
        self.around(|_| work::transfer(moves), |inner| inner.transfer(lane, moves));
    }

    fn join(&mut self, lane: usize) {
        self.inner.join(lane);
    }

    fn attach(&mut self, file: FileBytes) -> Result<BufferId> {
        self.inner.attach(file)
    }

    fn check(&self) -> Result<()> {
        self.inner.check()
    }

    fn write(&mut self, to: View, bytes: &[u8]) {
        if to.dtype == DType::I32 && self.watch.is_on() {
            self.integers.insert(to.offset, bytes.chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect());
        }
        self.around(|_| work::write(to), |inner| inner.write(to, bytes));
    }

    fn fetch_rows(&mut self, table: View, rows: &[usize], out: View) {
        self.around(|_| work::fetch_rows(out), |inner| inner.fetch_rows(table, rows, out));
    }

    fn read(&mut self, from: View, bytes: &mut [u8]) {
        self.around(|_| work::read(from), |inner| inner.read(from, bytes));
    }

    fn read_later(&mut self, from: View) -> Readback {
        self.around(|_| work::read(from), |inner| inner.read_later(from))
    }

    fn zero(&mut self, view: View) {
        self.around(|_| work::zero(view), |inner| inner.zero(view));
    }

    fn copy(&mut self, from: View, to: View) {
        self.around(|_| work::copy(from), |inner| inner.copy(from, to));
    }

    fn fill_normal(&mut self, to: View, key: [u32; 2], deviation: f64) {
        self.around(|_| work::fill_normal(to), |inner| inner.fill_normal(to, key, deviation));
    }

    fn embed(&mut self, arguments: &Embed) {
        self.around(|_| work::embed(arguments), |inner| inner.embed(arguments));
    }

    fn norm_forward(&mut self, arguments: &NormForward) {
        self.around(|_| work::norm_forward(arguments), |inner| inner.norm_forward(arguments));
    }

    fn norm_output(&mut self, normalized: View, gamma: View, beta: Option<View>, out: View) {
        self.around(|_| work::norm_output(out), |inner| inner.norm_output(normalized, gamma, beta, out));
    }

    fn norm_backward(&mut self, arguments: &NormBackward) {
        self.around(|_| work::norm_backward(arguments), |inner| inner.norm_backward(arguments));
    }

    fn dropout(&mut self, data: View, dropout: Dropout, rows: &Rows) {
        self.around(|_| work::dropout(data), |inner| inner.dropout(data, dropout, rows));
    }

    fn dequantize(&mut self, weight: View, scales: View, out: View) {
        self.around(|_| work::dequantize(weight, scales, out), |inner| inner.dequantize(weight, scales, out));
    }

    fn linear(&mut self, x: View, weight: View, bias: Option<View>, out: View) {
        self.around(|_| work::linear(x, weight, out), |inner| inner.linear(x, weight, bias, out));
    }

    fn linear_backward_input(&mut self, dy: View, weight: View, dx: View, accumulate: bool) {
        let describe = |_: &Integers| work::linear_backward_input(dy, weight, dx, accumulate);
        self.around(describe, |inner| inner.linear_backward_input(dy, weight, dx, accumulate));
    }

    fn linear_backward_weight(&mut self, dy: View, x: View, d_weight: View, d_bias: Option<View>) {
        let describe = |_: &Integers| work::linear_backward_weight(dy, x, d_weight);
        self.around(describe, |inner| inner.linear_backward_weight(dy, x, d_weight, d_bias));
    }

    fn activation_forward(&mut self, kind: Activation, z: View, out: View) {
        self.around(|_| work::activation_forward(z, out), |inner| inner.activation_forward(kind, z, out));
    }

    fn activation_backward(&mut self, kind: Activation, z: View, d_out: View, dz: View) {
        self.around(|_| work::activation_backward(z, d_out, dz), |inner| inner.activation_backward(kind, z, d_out, dz));
    }

    fn rotary_forward(&mut self, arguments: &Rotary, out: View) {
        self.around(|_| work::rotary("rotary_forward", arguments, out), |inner| inner.rotary_forward(arguments, out));
    }

    fn rotary_backward(&mut self, arguments: &Rotary, d: View) {
        self.around(|_| work::rotary("rotary_backward", arguments, d), |inner| inner.rotary_backward(arguments, d));
    }

    fn attention_forward(&mut self, arguments: &Attention, out: View, log_sum_exp: View) {
        let describe = |integers: &Integers| work::attention_forward(integers, arguments, out, log_sum_exp);
        self.around(describe, |inner| inner.attention_forward(arguments, out, log_sum_exp));
    }

    fn attention_delta(&mut self, out: View, d_out: View, heads: usize, delta: View) {
        self.around(|_| work::attention_delta(out, d_out, delta), |inner| inner.attention_delta(out, d_out, heads, delta));
    }

    fn attention_backward(&mut self, arguments: &Attention, saved: &AttentionSaved, d_query: View, d_key: View, d_value: View) {
        let describe = |integers: &Integers| work::attention_backward(integers, arguments, saved);
        self.around(describe, |inner| inner.attention_backward(arguments, saved, d_query, d_key, d_value));
    }

    fn prefix_gradient(&mut self, arguments: &Attention, saved: &AttentionSaved, d_key: View, d_value: View) {
        let describe = |integers: &Integers| work::prefix_gradient(integers, arguments, saved);
        self.around(describe, |inner| inner.prefix_gradient(arguments, saved, d_key, d_value));
    }

    fn prompt_gradient(&mut self, d: View, offsets: View, d_prompt: View) {
        self.around(|_| work::prompt_gradient(d, offsets, d_prompt), |inner| inner.prompt_gradient(d, offsets, d_prompt));
    }

    fn gather_rows(&mut self, x: View, rows: View, out: View) {
        self.around(|_| work::gather_rows(out), |inner| inner.gather_rows(x, rows, out));
    }

    fn scatter_add_rows(&mut self, source: View, rows: View, x: View) {
        self.around(|_| work::scatter_add_rows(source), |inner| inner.scatter_add_rows(source, rows, x));
    }

    fn cross_entropy(&mut self, arguments: &CrossEntropy) {
        self.around(|_| work::cross_entropy(arguments), |inner| inner.cross_entropy(arguments));
    }

    fn token_loss(&mut self, arguments: &TokenLoss) {
        self.around(|_| work::token_loss(arguments), |inner| inner.token_loss(arguments));
    }

    fn sum_segments(&mut self, values: View, offsets: View, out: View) {
        self.around(|_| work::sum_segments(values, out), |inner| inner.sum_segments(values, offsets, out));
    }

    fn spread_segments(&mut self, values: View, offsets: View, factor: f64, out: View) {
        self.around(|_| work::spread_segments(values, out), |inner| inner.spread_segments(values, offsets, factor, out));
    }

    fn squared_norm(&mut self, x: View, total: View) {
        self.around(|_| work::squared_norm(x), |inner| inner.squared_norm(x, total));
    }

    fn adamw(&mut self, arguments: &AdamW) {
        self.around(|_| work::adamw(arguments), |inner| inner.adamw(arguments));
    }
}
