//! What the runs of a sweep share.

use super::base::BaseOptions;
use super::data_set::Data;
use super::device;
use super::options::TrainOptions;
use super::terminal::Terminal;
use super::train::Prepared;
use super::values::Device;
use crate::checkpoint::FrozenModel;
use crate::engine::{Capacity, Engine, EngineOptions, Residency};
use anyhow::Result;
use std::sync::Arc;

/// What runs of one process have in common: the model with its mapped files, its weights on the device, and data that was
/// read and encoded.
#[derive(Default)]
pub struct Shared {
    model: Option<(BaseOptions, Arc<FrozenModel>)>,
    /// The engine of the run before, which the next one may turn to its own ends.
    engine: Option<(Device, Arc<FrozenModel>, Engine)>,
    /// The runs behind the one at hand: an engine is made with room for them.
    coming: Vec<TrainOptions>,
    /// The latest data sets, and the options that they depend on.
    data: Option<(toml::Table, Vec<Data>)>,
}

/// Options that change nothing of what is read and how it is encoded.
const NOT_OF_DATA: [&str; 38] = [
    "output",
    "device",
    "method",
    "prefix-length",
    "prefix-projection",
    "prefix-layers",
    "prefix-init",
    "positions",
    "head",
    "prefix-dropout",
    "hidden-dropout",
    "attention-dropout",
    "learning-rate",
    "schedule",
    "warmup",
    "weight-decay",
    "max-grad-norm",
    "batch-size",
    "gradient-accumulation",
    "tokens-per-step",
    "memory-budget",
    "recompute",
    "weights",
    "offload-activations",
    "layer-major",
    "weight-format",
    "micro-batch-size",
    "micro-batch-tokens",
    "epochs",
    "max-steps",
    "seed",
    "sampling",
    "eval-every",
    "patience",
    "save-every",
    "save-limit",
    "quiet",
    "threads",
];

impl Shared {
    /// The model of a run, opened where the latest one is another.
    pub(super) fn model(&mut self, base: BaseOptions) -> Result<Arc<FrozenModel>> {
        match &self.model {
            Some((known, model)) if *known == base => Ok(model.clone()),
            _ => {
                let model = Arc::new(base.open()?);
                self.model = Some((base, model.clone()));
                Ok(model)
            }
        }
    }

    /// Options of the runs that follow the next one.
    pub fn expect(&mut self, coming: Vec<TrainOptions>) {
        self.coming = coming;
    }

    /// Keeps the engine of a run that ended well, where another one follows.
    pub(super) fn keep(&mut self, device: Device, model: &Arc<FrozenModel>, engine: Engine) {
        if !self.coming.is_empty() {
            self.engine = Some((device, model.clone(), engine));
        }
    }

    /// An engine for a run: that of the run before, if it can become what this one needs; else a new one, with room for the runs to
    /// come.
    pub(super) fn engine(&mut self, run: &Prepared, terminal: &Terminal) -> Result<Engine> {
        let (device, model, (options, capacity)) = (run.settings.device, &run.model, run.demand());
        let kept = self.engine.take().filter(|(known, of, _)| *known == device && Arc::ptr_eq(of, model));
        let mut turns = Vec::new();
        // A budget may have chosen anything, and holds for this run alone.
        if run.settings.memory_budget.is_none() {
            if let Some((.., mut engine)) = kept {
                // An error says that it cannot; a new one then tells whether anything else is wrong.
                if engine.turn_to(model, options.clone(), capacity).is_ok() {
                    return Ok(engine);
                }
            }
            turns = self.turns(run);
        }
        let open = |turns: &[_]| Engine::in_turns(device::open(device, model, terminal)?, model, options.clone(), capacity, turns);
        match open(&turns) {
            // One of those to come may be too large, and is no reason for this one to fail.
            Err(_) if !turns.is_empty() => open(&[]),
            engine => engine,
        }
    }

    /// What the coming runs over the same data need of an engine. Those over other weights get no room in it.
    fn turns(&mut self, run: &Prepared) -> Vec<(EngineOptions, Capacity)> {
        if run.memory.weights != Residency::Resident {
            return Vec::new();
        }
        let coming = std::mem::take(&mut self.coming);
        // What is wrong with one of them is found when its turn comes.
        let demand = |given: &TrainOptions| {
            let mut given = given.clone().with_recipe().ok().filter(|given| given.memory_budget.is_none())?;
            given.locate().ok()?;
            let key = key_of_data(&given.clone().with_defaults()).ok()?;
            self.data.as_ref().filter(|(known, _)| *known == key)?;
            Some(Prepared::new(given, &Terminal::silent(), self).ok()?.demand())
        };
        let turns = coming.iter().filter_map(demand).collect();
        self.coming = coming;
        turns
    }

    /// The data sets of a run, read where the latest ones are others.
    pub(super) fn data(&mut self, options: &TrainOptions, read: impl FnOnce() -> Result<Vec<Data>>) -> Result<Vec<Data>> {
        let key = key_of_data(options)?;
        match &self.data {
            Some((known, data)) if *known == key => Ok(data.clone()),
            _ => {
                self.data = None; // its memory is given back before the next is read
                let data = read()?;
                self.data = Some((key, data.clone()));
                Ok(data)
            }
        }
    }
}

/// The options that data depends on.
fn key_of_data(options: &TrainOptions) -> Result<toml::Table> {
    let mut key = options.to_table()?;
    key.retain(|name, _| !NOT_OF_DATA.contains(&name));
    Ok(key)
}
