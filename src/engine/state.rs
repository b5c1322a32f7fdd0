//! What goes into a run and comes out of it: initial values, adapters, the optimizer's state.

use super::scale::LossScale;
use super::trainable::Trainable;
use super::{Engine, PrefixInit, numbers};
use crate::backend::{Site, Stream, View, stream_key};
use crate::checkpoint::{Adapter, HostTensor, POOLER, PREFIX};
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;

/// Standard deviation of initial values: what the released code effectively starts from (ptuning-v2.md §0, item 1).
const INITIAL_DEVIATION: f64 = 0.02;

/// The loss scale among the tensors of a state.
const LOSS_SCALE: &str = "loss_scale";

/// Everything that a resumed run needs of the engine: masters as "name", moments as "name.moment1" and
/// "name.moment2", each tensor's number of updates, and the loss scale where there is one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EngineState {
    pub tensors: BTreeMap<String, HostTensor>,
    pub steps: BTreeMap<String, u64>,
}

fn normals(seed: u64, tensor: usize, count: usize, deviation: f64) -> Vec<f64> {
    let mut stream = Stream::new(stream_key(seed, 0, Site::Initialisation, tensor));
    let mut values = Vec::with_capacity(count + 1);
    while values.len() < count {
        values.extend(stream.normal_pair().map(|value| f64::from((value * deviation) as f32)));
    }
    values.truncate(count);
    values
}

impl Engine {
    pub(super) fn read_values(&mut self, view: View) -> Vec<f64> {
        let mut bytes = vec![0; view.len() * view.dtype.size()];
        self.backend.read(view, &mut bytes);
        numbers::from_bytes(&bytes, view.dtype)
    }

    fn write_values(&mut self, view: View, values: &[f64]) {
        self.backend.write(view, &numbers::to_bytes(values, view.dtype));
    }

    /// Draws the trainables anew by the options' seed. With `Zero` the prefix is zero (for a projection its last layer,
    /// so that the table is).
    pub fn initialise(&mut self, init: PrefixInit) {
        let prefix = self.plan.trainables.prefix_count();
        for index in 0..self.plan.trainables.list.len() {
            let Trainable { drawn, master, .. } = self.plan.trainables.list[index];
            let zeroed = init == PrefixInit::Zero && index < prefix && (prefix == 1 || index == prefix - 2);
            let values =
                if drawn && !zeroed { normals(self.options.seed, index, master.len(), INITIAL_DEVIATION) } else { vec![0.0; master.len()] };
            self.write_values(master, &values);
        }
        self.prefix_stale = true;
    }

    /// A frozen random pooler for a checkpoint without one: N(0, initializer_range), bias 0.
    pub(super) fn make_pooler(&mut self) {
        let Some(pooler) = self.plan.frozen.pooler else { return };
        let tensor = self.plan.trainables.list.len();
        let values = normals(self.options.seed, tensor, pooler.weight.len(), self.spec.initializer_range);
        self.write_values(pooler.weight, &values);
        if let Some(bias) = pooler.bias {
            self.write_values(bias, &vec![0.0; bias.len()]);
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
        self.write_values(master, values);
        self.prefix_stale = true;
        Ok(())
    }

    /// A trained tensor's gradient: complete after `finish_step` (of a flat prefix and the head, after `accumulate`).
    pub fn gradient(&mut self, name: &str) -> Result<Vec<f64>> {
        let index = self.index_of(name)?;
        let values = self.read_values(self.plan.trainables.list[index].gradient);
        Ok(values.into_iter().map(|value| value / self.scale).collect())
    }

    /// Takes prefix, head and (where the checkpoint has none) pooler from an adapter whose fit was checked.
    pub fn load_adapter(&mut self, adapter: &Adapter) -> Result<()> {
        ensure!(
            self.options.prefix.projection.is_none() || self.options.prefix.length == 0,
            "an adapter holds the prefix itself, not the projection that made it: leave out --prefix-projection to tune it further"
        );
        for index in 0..self.plan.trainables.list.len() {
            let Trainable { name, shape, .. } = self.plan.trainables.list[index].clone();
            let Some(tensor) = adapter.tensors.get(&name) else { bail!("the adapter has no tensor {name}") };
            let expected = shape[0] * shape[1];
            ensure!(
                tensor.values.len() == expected,
                "the adapter's {name} has shape {:?}, not {shape:?}: it was made for another task, prefix length or model",
                tensor.shape
            );
            let values: Vec<f64> = tensor.values.iter().map(|&value| f64::from(value)).collect();
            self.set_values(&name, &values)?;
        }
        if let (true, Some(pooler)) = (self.made_pooler, self.plan.frozen.pooler) {
            for (part, view) in [("weight", Some(pooler.weight)), ("bias", pooler.bias)] {
                let (Some(tensor), Some(view)) = (adapter.tensors.get(&format!("{POOLER}.{part}")), view) else { continue };
                ensure!(
                    tensor.values.len() == view.len(),
                    "the adapter's pooler has shape {:?}: it was made for another model",
                    tensor.shape
                );
                let values: Vec<f64> = tensor.values.iter().map(|&value| f64::from(value)).collect();
                self.write_values(view, &values);
            }
        }
        Ok(())
    }

    /// What an adapter holds: the flat prefix table (a projection is collapsed into it), the head, and a pooler that
    /// was made here.
    pub fn adapter_tensors(&mut self) -> BTreeMap<String, HostTensor> {
        self.refresh_prefix();
        let mut tensors = BTreeMap::new();
        let [length, columns] = self.options.prefix.table_shape(&self.spec);
        let table = self.plan.trainables.table().map_or(Vec::new(), |[table, _]| self.read_values(table));
        tensors.insert(PREFIX.to_string(), host_tensor(vec![length, columns], &table));
        for index in self.plan.trainables.prefix_count()..self.plan.trainables.list.len() {
            let Trainable { name, shape, master, .. } = self.plan.trainables.list[index].clone();
            let values = self.read_values(master);
            let shape = if name.ends_with(".bias") { vec![shape[1]] } else { shape.to_vec() };
            tensors.insert(name, host_tensor(shape, &values));
        }
        if let (true, Some(pooler)) = (self.made_pooler, self.plan.frozen.pooler) {
            let weight = self.read_values(pooler.weight);
            tensors.insert(format!("{POOLER}.weight"), host_tensor(vec![pooler.weight.rows, pooler.weight.cols], &weight));
            if let Some(bias) = pooler.bias {
                let values = self.read_values(bias);
                tensors.insert(format!("{POOLER}.bias"), host_tensor(vec![bias.cols], &values));
            }
        }
        tensors
    }

    /// The state for an exact resume.
    pub fn state(&mut self) -> EngineState {
        let mut state = EngineState::default();
        for index in 0..self.plan.trainables.list.len() {
            let Trainable { name, shape, master, moment1, moment2, steps, .. } = self.plan.trainables.list[index].clone();
            for (suffix, view) in [("", master), (".moment1", moment1), (".moment2", moment2)] {
                let values = self.read_values(view);
                state.tensors.insert(format!("{name}{suffix}"), host_tensor(shape.to_vec(), &values));
            }
            state.steps.insert(name, steps);
        }
        self.settle(0);
        if let Some(scaling) = &self.scaling {
            let values = scaling.to_values();
            state.tensors.insert(LOSS_SCALE.to_string(), host_tensor(vec![values.len()], &values));
        }
        state
    }

    /// Continues from a saved state; errors name what is missing or of another shape.
    pub fn restore(&mut self, state: &EngineState) -> Result<()> {
        for index in 0..self.plan.trainables.list.len() {
            let Trainable { name, master, moment1, moment2, .. } = self.plan.trainables.list[index].clone();
            for (suffix, view) in [("", master), (".moment1", moment1), (".moment2", moment2)] {
                let key = format!("{name}{suffix}");
                let tensor = state.tensors.get(&key).with_context(|| format!("the checkpoint has no tensor {key}"))?;
                ensure!(tensor.values.len() == view.len(), "the checkpoint's {key} has shape {:?}: it is of another run", tensor.shape);
                let values: Vec<f64> = tensor.values.iter().map(|&value| f64::from(value)).collect();
                self.write_values(view, &values);
            }
            self.plan.trainables.list[index].steps =
                *state.steps.get(&name).with_context(|| format!("the checkpoint has no step count of {name}"))?;
        }
        if let (Some(scaling), Some(tensor)) = (&mut self.scaling, state.tensors.get(LOSS_SCALE)) {
            *scaling = LossScale::from_values(&tensor.values).with_context(|| format!("the checkpoint's {LOSS_SCALE} is damaged"))?;
        }
        self.prefix_stale = true;
        Ok(())
    }
}

fn host_tensor(shape: Vec<usize>, values: &[f64]) -> HostTensor {
    HostTensor { shape, values: values.iter().map(|&value| value as f32).collect() }
}
