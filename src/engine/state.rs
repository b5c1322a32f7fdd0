//! What goes into a run and comes out of it: initial values, adapters, the optimizer's state.

use super::numbers::{self, CHUNK};
use super::scale::LossScale;
use super::trainable::Trainable;
use super::{Engine, PrefixInit};
use crate::backend::{DType, Site, Stream, View, stream_key};
use crate::checkpoint::{Adapter, HostTensor, POOLER, PREFIX, StateTensors};
use crate::model::HeadSpec;
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;

/// Standard deviation of initial values: what the released code effectively starts from (transformers' `_init_weights` of what no checkpoint has, not torch's N(0, 1)).
const INITIAL_DEVIATION: f64 = 0.02;

/// The loss scale among the tensors of a state.
const LOSS_SCALE: &str = "loss_scale";

impl Engine {
    pub(super) fn read_values(&mut self, view: View) -> Vec<f64> {
        let mut bytes = vec![0; view.len() * view.dtype.size()];
        self.backend.read(view, &mut bytes);
        numbers::from_bytes(&bytes, view.dtype)
    }

    /// Reads a view in fp32, without a detour where it is stored so.
    fn read_f32(&mut self, view: View, values: &mut [f32]) {
        if view.dtype == DType::F32 {
            self.backend.read(view, bytemuck::cast_slice_mut(values));
        } else {
            values.iter_mut().zip(self.read_values(view)).for_each(|(to, from)| *to = from as f32);
        }
    }

    fn write_f32(&mut self, view: View, values: &[f32]) {
        if view.dtype == DType::F32 {
            self.backend.write(view, bytemuck::cast_slice(values));
        } else {
            let values: Vec<f64> = values.iter().map(|&value| f64::from(value)).collect();
            self.backend.write(view, &numbers::to_bytes(&values, view.dtype));
        }
    }

    fn host_tensor(&mut self, view: View, shape: Vec<usize>) -> HostTensor {
        let mut values = vec![0.0; view.len()];
        self.read_f32(view, &mut values);
        HostTensor { shape, values }
    }

    /// Fills a view with N(0, deviation) of the stream that the options' seed and `tensor` name.
    fn draw(&mut self, view: View, tensor: usize, deviation: f64) {
        // An odd chunk would throw half a pair away.
        const { assert!(CHUNK.is_multiple_of(2)) };
        let mut stream = Stream::new(stream_key(self.options.seed, 0, Site::Initialisation, tensor));
        let mut values = Vec::new();
        for chunk in view.chunks(CHUNK) {
            values.clear();
            while values.len() < chunk.len() {
                values.extend(stream.normal_pair().map(|value| (value * deviation) as f32));
            }
            self.write_f32(chunk, &values[..chunk.len()]);
        }
    }

    /// Draws the trainables anew by the options' seed. With `Zero` the prefix is zero (for a projection its last layer,
    /// so that the table is).
    pub fn initialise(&mut self, init: PrefixInit) {
        let prefix = self.plan.trainables.prefix_count();
        for index in 0..self.plan.trainables.list.len() {
            let Trainable { drawn, master, .. } = self.plan.trainables.list[index];
            let zeroed = init == PrefixInit::Zero && index < prefix && (prefix == 1 || index == prefix - 2);
            if drawn && !zeroed {
                self.draw(master, index, INITIAL_DEVIATION);
            } else {
                self.backend.zero(master);
            }
        }
        self.prefix_stale = true;
    }

    /// A frozen random pooler for a checkpoint without one: N(0, initializer_range), bias 0.
    pub(super) fn make_pooler(&mut self) {
        let Some(pooler) = self.plan.frozen.pooler else { return };
        self.draw(pooler.weight, self.plan.trainables.list.len(), self.spec.initializer_range);
        if let Some(bias) = pooler.bias {
            self.backend.zero(bias);
        }
    }

    fn index_of(&self, name: &str) -> Result<usize> {
        self.plan.trainables.list.iter().position(|t| t.name == name).with_context(|| format!("no trained tensor is named {name}"))
    }

    /// A trained tensor's values, row-major.
    pub fn values(&mut self, name: &str) -> Result<Vec<f64>> {
        let index = self.index_of(name)?;
        Ok(self.read_values(self.plan.trainables.list[index].master))
    }

    pub fn set_values(&mut self, name: &str, values: &[f64]) -> Result<()> {
        let master = self.plan.trainables.list[self.index_of(name)?].master;
        ensure!(values.len() == master.len(), "{name} has {} values, not {}", master.len(), values.len());
        self.backend.write(master, &numbers::to_bytes(values, master.dtype));
        self.prefix_stale = true;
        Ok(())
    }

    /// A trained tensor's gradient: complete after `finish_step` (of a flat prefix and the head, after `accumulate`).
    pub fn gradient(&mut self, name: &str) -> Result<Vec<f64>> {
        let index = self.index_of(name)?;
        let values = self.read_values(self.plan.trainables.list[index].gradient);
        Ok(values.into_iter().map(|value| value / self.scale).collect())
    }

    /// Takes prefix, first head and (where the checkpoint has none) pooler from an adapter of one head whose fit was checked.
    pub fn load_adapter(&mut self, adapter: &Adapter) -> Result<()> {
        self.load_prefix(adapter)?;
        self.load_head(0, adapter)
    }

    /// Takes a head from an adapter of one head whose fit was checked.
    pub fn load_head(&mut self, head: usize, adapter: &Adapter) -> Result<()> {
        self.load_trainables(adapter, Some(head))
    }

    /// The values of trainables of one owner; an adapter of one head does not name it.
    fn load_trainables(&mut self, adapter: &Adapter, owner: Option<usize>) -> Result<()> {
        let scope = owner.and_then(|head| self.options.heads[head].name.as_deref()).map(HeadSpec::scope).unwrap_or_default();
        for index in 0..self.plan.trainables.list.len() {
            let Trainable { name, shape, head, master, .. } = self.plan.trainables.list[index].clone();
            if head != owner {
                continue;
            }
            let name = name.strip_prefix(&scope).unwrap_or(&name);
            let Some(tensor) = adapter.tensors.get(name) else { bail!("the adapter has no tensor {name}") };
            let expected = shape[0] * shape[1];
            ensure!(
                tensor.values.len() == expected,
                "the adapter's {name} has shape {:?}, not {shape:?}: it was made for another task, prefix length or model",
                tensor.shape
            );
            self.write_f32(master, &tensor.values);
        }
        self.prefix_stale = true;
        Ok(())
    }

    /// Takes prefix and (where the checkpoint has none) pooler from an adapter whose fit was checked.
    pub fn load_prefix(&mut self, adapter: &Adapter) -> Result<()> {
        ensure!(
            self.options.prefix.projection.is_none() || self.options.prefix.length == 0,
            "an adapter holds the prefix itself, not the projection that made it: leave out --prefix-projection to tune it further"
        );
        self.load_trainables(adapter, None)?;
        if let (true, Some(pooler)) = (self.made_pooler, self.plan.frozen.pooler) {
            for (part, view) in [("weight", Some(pooler.weight)), ("bias", pooler.bias)] {
                let (Some(tensor), Some(view)) = (adapter.tensors.get(&format!("{POOLER}.{part}")), view) else { continue };
                ensure!(
                    tensor.values.len() == view.len(),
                    "the adapter's pooler has shape {:?}: it was made for another model",
                    tensor.shape
                );
                self.write_f32(view, &tensor.values);
            }
        }
        Ok(())
    }

    /// What an adapter holds: the flat prefix table (a projection is collapsed into it), the heads, and a pooler that
    /// was made here.
    pub fn adapter_tensors(&mut self) -> BTreeMap<String, HostTensor> {
        self.refresh_prefix();
        let mut tensors = BTreeMap::new();
        let [length, columns] = self.options.prefix.table_shape(&self.spec);
        let table = match self.plan.trainables.table() {
            Some([table, _]) => self.host_tensor(table, vec![length, columns]),
            None => HostTensor { shape: vec![length, columns], values: Vec::new() },
        };
        tensors.insert(PREFIX.to_string(), table);
        for index in self.plan.trainables.prefix_count()..self.plan.trainables.list.len() {
            let Trainable { name, shape, master, .. } = self.plan.trainables.list[index].clone();
            let shape = if name.ends_with(".bias") { vec![shape[1]] } else { shape.to_vec() };
            tensors.insert(name, self.host_tensor(master, shape));
        }
        if let (true, Some(pooler)) = (self.made_pooler, self.plan.frozen.pooler) {
            let weight = self.host_tensor(pooler.weight, vec![pooler.weight.rows, pooler.weight.cols]);
            tensors.insert(format!("{POOLER}.weight"), weight);
            if let Some(bias) = pooler.bias {
                tensors.insert(format!("{POOLER}.bias"), self.host_tensor(bias, vec![bias.cols]));
            }
        }
        tensors
    }

    /// Each trained tensor's number of updates: with the [`StateTensors`], what an exact resume needs. Waits for the steps
    /// that are queued, whose outcomes the loss scale depends on.
    pub fn update_counts(&mut self) -> BTreeMap<String, u64> {
        self.settle(0);
        self.plan.trainables.list.iter().map(|trainable| (trainable.name.clone(), trainable.steps)).collect()
    }

    pub fn set_update_counts(&mut self, counts: &BTreeMap<String, u64>) -> Result<()> {
        for Trainable { name, steps, .. } in &mut self.plan.trainables.list {
            *steps = *counts.get(name).with_context(|| format!("the checkpoint has no step count of {name}"))?;
        }
        Ok(())
    }

    /// Names and places of masters and moments.
    fn state_views(&self) -> impl Iterator<Item = (String, View)> {
        self.plan.trainables.list.iter().flat_map(|Trainable { name, master, moment1, moment2, .. }| {
            [(name.clone(), *master), (format!("{name}.moment1"), *moment1), (format!("{name}.moment2"), *moment2)]
        })
    }

    /// `count` elements of a tensor of the state, from element `start` on.
    fn state_view(&self, name: &str, start: usize, count: usize) -> Result<View> {
        let (_, view) =
            self.state_views().find(|(known, _)| known == name).with_context(|| format!("no trained tensor is named {name}"))?;
        ensure!(start + count <= view.len(), "{name} has {} values, not {}", view.len(), start + count);
        Ok(view.reshape(1, view.len()).col_range(start, count))
    }
}

/// Masters as "name", moments as "name.moment1" and "name.moment2".
impl StateTensors for Engine {
    fn state_tensors(&self) -> BTreeMap<String, Vec<usize>> {
        let scale = self.scaling.as_ref().map(|scaling| (LOSS_SCALE.to_string(), vec![scaling.to_values().len()]));
        self.state_views().map(|(name, view)| (name, vec![view.rows, view.cols])).chain(scale).collect()
    }

    fn read_state(&mut self, name: &str, start: usize, values: &mut [f32]) -> Result<()> {
        if let (LOSS_SCALE, Some(scaling)) = (name, &self.scaling) {
            values.copy_from_slice(&scaling.to_values());
            return Ok(());
        }
        let view = self.state_view(name, start, values.len())?;
        self.read_f32(view, values);
        Ok(())
    }

    fn write_state(&mut self, name: &str, start: usize, values: &[f32]) -> Result<()> {
        if let (LOSS_SCALE, Some(scaling)) = (name, &mut self.scaling) {
            *scaling = LossScale::from_values(values).with_context(|| format!("the checkpoint's {LOSS_SCALE} is damaged"))?;
            return Ok(());
        }
        let view = self.state_view(name, start, values.len())?;
        self.write_f32(view, values);
        self.prefix_stale = true;
        Ok(())
    }
}
