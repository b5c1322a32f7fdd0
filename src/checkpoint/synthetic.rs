//! A frozen model of random weights, made in memory.

use super::{Checkpoint, FrozenModel};
use crate::backend::{DType, Stream};
use crate::model::{SYNTHETIC, Slot, Specification};
use anyhow::Result;
use half::{bf16, f16};
use std::path::PathBuf;

/// A tensor and its bytes.
pub struct TensorBytes {
    pub name: String,
    pub dtype: DType,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

impl FrozenModel {
    /// A model of a specification, with a pooler and a masked-language-model head; weights are normal with a deviation, norms' gammas around 1.
    /// `dtype` is fp16, bf16 or fp32.
    pub fn synthetic(spec: Specification, dtype: DType, deviation: f64, seed: u32) -> Result<FrozenModel> {
        let mut random = Stream::new([seed, 2]);
        let mut tensors = Vec::new();
        let mut add = |name: String, shape: Vec<usize>, mean: f64| {
            let values = (0..shape.iter().product()).map(|_| mean + deviation * random.normal_pair()[0]);
            let bytes = match dtype {
                DType::F16 => values.flat_map(|value| f16::from_f64(value).to_le_bytes()).collect(),
                DType::BF16 => values.flat_map(|value| bf16::from_f64(value).to_le_bytes()).collect(),
                _ => values.flat_map(|value| (value as f32).to_le_bytes()).collect(),
            };
            let dtype = if matches!(dtype, DType::F16 | DType::BF16) { dtype } else { DType::F32 };
            tensors.push(TensorBytes { name, dtype, shape, bytes });
        };
        for slot in spec.slots().into_iter().chain([Slot::Pooler, Slot::LanguageHead, Slot::HeadTransform, Slot::HeadNorm]) {
            let Some([rows, cols]) = spec.shape(slot) else { continue };
            let norm = slot.is_norm();
            add(format!("{slot:?}.weight"), if norm { vec![cols] } else { vec![rows, cols] }, if norm { 1.0 } else { 0.0 });
            if spec.has_bias(slot) {
                add(format!("{slot:?}.bias"), vec![if norm { cols } else { rows }], 0.0);
            }
        }
        add("HeadBias".into(), vec![spec.vocabulary], 0.0);
        let place = PathBuf::from("random weights");
        FrozenModel::assemble(&SYNTHETIC, "", spec, Checkpoint::in_memory(tensors, place.clone()), place)
    }
}
