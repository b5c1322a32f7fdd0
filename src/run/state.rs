//! Where a run stands, apart from its tensors: kept in every checkpoint, and told in `trainer_state.json` under the keys
//! of Hugging Face's Trainer. Nothing in it depends on time or machine, so that an interrupted run has the
//! same files as one that was not.

use super::values::Every;
use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// How much there is to do.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    pub batch_size: usize,
    pub steps_per_epoch: u64,
    pub total_steps: u64,
    pub logging_steps: u64,
    pub eval_every: Option<Every>,
    pub save_every: Every,
}

impl Extent {
    /// Epochs done after `step` steps.
    pub fn epoch(&self, step: u64) -> f64 {
        step as f64 / self.steps_per_epoch as f64
    }
}

/// The best evaluation so far.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    pub step: u64,
    pub value: f64,
    /// All scores of that evaluation, `loss` included.
    pub scores: Map<String, Value>,
    /// What there was to say against its predictions.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// Everything that a resumed run must know besides the engine's tensors.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RunState {
    /// Finished steps.
    pub step: u64,
    /// Tokens that were trained on.
    pub tokens: u64,
    pub best: Option<Best>,
    /// Evaluations since the best one.
    pub without_improvement: u64,
    /// The evaluation due after this step was interrupted.
    pub evaluation_pending: bool,
    /// Sum and number of the losses since the last row of the history.
    pub window_loss: f64,
    pub window_steps: u64,
    /// Sum of all losses.
    pub total_loss: f64,
    /// What the run reads, by its contents.
    pub inputs: BTreeMap<String, String>,
    /// Rows of `log_history`.
    pub history: Vec<Value>,
}

impl RunState {
    /// Takes in the loss of a step; the history gets a row every `logging_steps`.
    pub fn add_step(&mut self, extent: &Extent, step: u64, loss: f64, grad_norm: f64, learning_rate: f64) {
        self.total_loss += loss;
        self.window_loss += loss;
        self.window_steps += 1;
        let done = step + 1;
        if done.is_multiple_of(extent.logging_steps) || done == extent.total_steps {
            let loss = self.window_loss / self.window_steps as f64;
            self.history.push(json!({
                "epoch": extent.epoch(done), "grad_norm": grad_norm, "learning_rate": learning_rate, "loss": loss, "step": done
            }));
            (self.window_loss, self.window_steps) = (0.0, 0);
        }
    }

    /// Takes in an evaluation after the current step; true if it is the best so far (a tie is not).
    pub fn add_evaluation(&mut self, extent: &Extent, value: f64, lower_is_better: bool, scores: Map<String, Value>) -> bool {
        let mut row = Map::from_iter([("epoch".to_string(), extent.epoch(self.step).into())]);
        row.extend(scores.iter().map(|(name, score)| (format!("eval_{name}"), score.clone())));
        row.insert("step".to_string(), self.step.into());
        self.history.push(row.into());
        let better = self.best.as_ref().is_none_or(|best| if lower_is_better { value < best.value } else { value > best.value });
        if better {
            self.best = Some(Best { step: self.step, value, scores, warnings: Vec::new() });
            self.without_improvement = 0;
        } else {
            self.without_improvement += 1;
        }
        better
    }

    /// Mean loss over all steps so far.
    pub fn mean_loss(&self) -> f64 {
        self.total_loss / self.step.max(1) as f64
    }

    /// The text of trainer_state.json.
    pub fn to_trainer_state(&self, extent: &Extent) -> Result<String> {
        let every = |every: Option<Every>| match every {
            Some(Every::Steps(steps)) => json!(steps),
            Some(Every::Epoch) => json!(extent.steps_per_epoch),
            None => Value::Null,
        };
        let best = self.best.as_ref();
        let state = json!({
            "best_global_step": best.map(|best| best.step),
            "best_metric": best.map(|best| best.value),
            "best_model_checkpoint": best.map(|_| "."),
            "epoch": extent.epoch(self.step),
            "eval_steps": every(extent.eval_every),
            "global_step": self.step,
            "is_hyper_param_search": false,
            "is_local_process_zero": true,
            "is_world_process_zero": true,
            "log_history": self.history,
            "logging_steps": extent.logging_steps,
            "max_steps": extent.total_steps,
            "num_input_tokens_seen": self.tokens,
            "num_train_epochs": extent.total_steps.div_ceil(extent.steps_per_epoch),
            "save_steps": every(Some(extent.save_every)),
            "stateful_callbacks": {},
            "total_flos": 0,
            "train_batch_size": extent.batch_size,
            "trial_name": null,
            "trial_params": null,
        });
        Ok(serde_json::to_string_pretty(&state)? + "\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXTENT: Extent = Extent {
        batch_size: 4,
        steps_per_epoch: 3,
        total_steps: 7,
        logging_steps: 2,
        eval_every: Some(Every::Epoch),
        save_every: Every::Steps(5),
    };

    fn scores(value: f64) -> Map<String, Value> {
        Map::from_iter([("accuracy".to_string(), value.into()), ("loss".to_string(), 0.3.into())])
    }

    #[test]
    fn the_history_has_means_of_windows_and_a_rest() {
        let mut state = RunState::default();
        for step in 0..7 {
            state.add_step(&EXTENT, step, step as f64, 1.0, 0.1);
        }
        let losses: Vec<f64> = state.history.iter().map(|row| row["loss"].as_f64().unwrap()).collect();
        assert_eq!(losses, [0.5, 2.5, 4.5, 6.0]);
        assert_eq!(state.history[3]["step"], 7);
    }

    #[test]
    fn a_tie_is_not_better_and_lower_loss_is() {
        let mut state = RunState { step: 3, ..RunState::default() };
        assert!(state.add_evaluation(&EXTENT, 0.5, false, scores(0.5)));
        assert!(!state.add_evaluation(&EXTENT, 0.5, false, scores(0.5)));
        assert!(!state.add_evaluation(&EXTENT, 0.4, false, scores(0.4)));
        assert_eq!(state.without_improvement, 2);
        assert!(state.add_evaluation(&EXTENT, 0.4, true, scores(0.4)));
        assert_eq!(state.without_improvement, 0);
        assert_eq!(state.history[0], json!({"epoch": 1.0, "eval_accuracy": 0.5, "eval_loss": 0.3, "step": 3}));
    }

    #[test]
    fn the_state_survives_json_to_the_bit() {
        let mut state = RunState { step: 5, tokens: 1234, ..RunState::default() };
        state.add_step(&EXTENT, 4, 0.1 + 0.2, 1.0 / 3.0, 1e-3 / 7.0);
        state.add_evaluation(&EXTENT, 1.0 / 3.0, false, scores(1.0 / 3.0));
        state.inputs.insert("data".into(), "abc".into());
        let text = serde_json::to_string(&serde_json::to_value(&state).unwrap()).unwrap();
        assert_eq!(serde_json::from_str::<RunState>(&text).unwrap(), state);
    }

    #[test]
    fn trainer_state_has_the_keys_of_hugging_face() {
        let mut state = RunState { step: 6, ..RunState::default() };
        state.add_evaluation(&EXTENT, 0.5, false, scores(0.5));
        let text: Value = serde_json::from_str(&state.to_trainer_state(&EXTENT).unwrap()).unwrap();
        assert_eq!((&text["global_step"], &text["num_train_epochs"], &text["eval_steps"]), (&json!(6), &json!(3), &json!(3)));
        assert_eq!((&text["best_metric"], &text["best_global_step"], &text["epoch"]), (&json!(0.5), &json!(6), &json!(2.0)));
        assert_eq!(text.as_object().unwrap().len(), 20);
    }
}
