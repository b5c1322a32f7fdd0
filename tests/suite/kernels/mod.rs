//! The kernels of `cuda/` on the emulated driver: every operation as `ptune selftest` holds it to the CPU backend in f64,
//! under several orders of threads, which all give the same bits; and whole training steps.

mod engine;
mod instructions;

use anyhow::Result;
use ptune::backend::cuda::{Cuda, Emulated, Timing};
use ptune::backend::{Backend, DType};
use ptune::selftest::{Judge, Row, operations};

/// Orders of threads (see cuda/emulation/emulation.h).
const ORDERS: u32 = 4;

/// The emulated device; orders are run in turn at once and as late as may be.
fn open(dtype: DType, order: u32) -> Result<Box<dyn Backend>> {
    let timing = if order.is_multiple_of(2) { Timing::Now } else { Timing::Late };
    Ok(Box::new(Cuda::new(Emulated::with_timing(order, timing), dtype)?))
}

fn passed(row: &Row) {
    println!("{}: {} cases, at worst {:.2} of what is allowed, in {}", row.operation, row.cases, row.worst, row.worst_case);
    assert!(row.failures.is_empty(), "{}", row.failures.join("\n"));
}

/// Tries an operation of a name.
fn hold(name: &str) {
    let (name, cases) = operations().find(|(operation, _)| *operation == name).unwrap_or_else(|| panic!("no operation {name}"));
    let mut judge = Judge::new(Box::new(open), ORDERS, false).unwrap();
    passed(judge.operation(name, cases));
}

/// Tiny models of every kind, and their memory.
#[test]
fn whole_steps() {
    let judge = Judge::new(Box::new(open), 2, false).unwrap();
    judge.steps(|_| true).for_each(|row| passed(&row));
}

/// A test an operation, and one that none is forgotten.
macro_rules! tests {
    ($($test:ident: $name:literal,)*) => {
        $(#[test] fn $test() { hold($name) })*

        #[test]
        fn every_operation_is_tried() {
            assert_eq!(operations().map(|(name, _)| name).collect::<Vec<_>>(), [$($name),*]);
        }
    };
}

tests! {
    embedding: "embedding",
    embedding_of_a_prompt: "embedding of a prompt, and its gradient",
    norm_forward: "norm, forward",
    norm_output: "norm, output",
    norm_backward: "norm, backward",
    dropout: "dropout",
    activation: "activation",
    activation_gated: "activation, gated",
    rotation: "rotation",
    rows: "rows gathered and scattered",
    normal_numbers: "normal numbers",
    copy: "copy",
    linear_frozen: "linear, frozen",
    linear_frozen_wide: "linear, frozen, to fp32",
    linear_trained: "linear, trained",
    linear_quantised: "int8 to 16 bits",
    attention_forward: "attention, forward",
    attention_backward: "attention, backward",
    cross_entropy: "cross-entropy",
    token_loss: "token loss",
    token_loss_in_place: "token loss, in place",
    segments: "sums of segments",
    squared_norm: "squared norm",
    adamw: "AdamW",
    adamw_overflown: "AdamW, overflown",
}
