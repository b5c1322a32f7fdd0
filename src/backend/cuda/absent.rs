//! A GPU that is not there: answers what the memory plan asks, and does nothing in each operation. With a watch in front
//! of it, a whole training step tells its bytes and FLOPs without a device.

use super::device;
use super::scratch::Scratch;
use crate::backend::*;
use anyhow::Result;

pub struct Absent {
    activation: DType,
    marks: usize,
    files: u32,
}

impl Absent {
    /// Activations are of a 16-bit type.
    pub fn new(activation: DType) -> Absent {
        Absent { activation, marks: 0, files: 0 }
    }
}

impl Sizing for Absent {
    fn describe(&self) -> String {
        format!("a GPU, {}", self.activation.name())
    }

    fn precision(&self) -> Precision {
        Precision { activation: self.activation, master: DType::F32 }
    }

    fn reads_files(&self) -> bool {
        false
    }

    fn transfers_files(&self) -> bool {
        true
    }

    fn scratch_bytes(&self, need: &ScratchNeed) -> Result<usize> {
        Scratch::bytes(device::WORKSPACE, need)
    }

    fn describe_scratch(&self) -> String {
        Scratch::describe(device::WORKSPACE)
    }
}

impl Instruments for Absent {
    fn machine(&self) -> Machine {
        Machine { device: self.describe(), ..Machine::default() }
    }

    fn mark(&mut self) -> Mark {
        self.marks += 1;
        Mark(self.marks)
    }

    fn seconds_between(&mut self, _: Mark, _: Mark) -> f64 {
        f64::NAN
    }

    fn forget_marks(&mut self) {
        self.marks = 0;
    }

    fn profiler(&mut self, _: bool) -> Result<()> {
        Ok(())
    }
}

impl Backend for Absent {
    fn allocate(&mut self, _: usize, _: View) -> Result<()> {
        Ok(())
    }
    fn allocate_host(&mut self, _: usize) -> Result<()> {
        Ok(())
    }
    fn transfer(&mut self, _: usize, _: &[(View, View)]) {}
    fn join(&mut self, _: usize) {}
    fn attach(&mut self, _: FileBytes) -> Result<BufferId> {
        self.files += 1;
        Ok(BufferId(self.files))
    }
    fn check(&self) -> Result<()> {
        Ok(())
    }
    fn write(&mut self, _: View, _: &[u8]) {}
    fn fetch_rows(&mut self, _: View, _: &[usize], _: View) {}
    fn read(&mut self, _: View, bytes: &mut [u8]) {
        bytes.fill(0);
    }
    fn read_later(&mut self, from: View) -> Readback {
        let bytes = from.len() * from.dtype.size();
        Box::new(move || vec![0; bytes])
    }
    fn zero(&mut self, _: View) {}
    fn copy(&mut self, _: View, _: View) {}
    fn fill_normal(&mut self, _: View, _: [u32; 2], _: f64) {}
    fn embed(&mut self, _: &Embed) {}
    fn norm_forward(&mut self, _: &NormForward) {}
    fn norm_output(&mut self, _: View, _: View, _: Option<View>, _: View) {}
    fn norm_backward(&mut self, _: &NormBackward) {}
    fn dropout(&mut self, _: View, _: Dropout, _: &Rows) {}
    fn dequantize(&mut self, _: View, _: View, _: View) {}
    fn linear(&mut self, _: View, _: View, _: Option<View>, _: View) {}
    fn linear_backward_input(&mut self, _: View, _: View, _: View, _: bool) {}
    fn linear_backward_weight(&mut self, _: View, _: View, _: View, _: Option<View>) {}
    fn activation_forward(&mut self, _: Activation, _: View, _: View) {}
    fn activation_backward(&mut self, _: Activation, _: View, _: View, _: View) {}
    fn rotary_forward(&mut self, _: &Rotary, _: View) {}
    fn rotary_backward(&mut self, _: &Rotary, _: View) {}
    fn attention_forward(&mut self, _: &Attention, _: View, _: View) {}
    fn attention_delta(&mut self, _: View, _: View, _: usize, _: View) {}
    fn attention_backward(&mut self, _: &Attention, _: &AttentionSaved, _: View, _: View, _: View) {}
    fn prefix_gradient(&mut self, _: &Attention, _: &AttentionSaved, _: View, _: View) {}
    fn prompt_gradient(&mut self, _: View, _: View, _: View) {}
    fn gather_rows(&mut self, _: View, _: View, _: View) {}
    fn scatter_add_rows(&mut self, _: View, _: View, _: View) {}
    fn cross_entropy(&mut self, _: &CrossEntropy) {}
    fn token_loss(&mut self, _: &TokenLoss) {}
    fn sum_segments(&mut self, _: View, _: View, _: View) {}
    fn spread_segments(&mut self, _: View, _: View, _: f64, _: View) {}
    fn squared_norm(&mut self, _: View, _: View) {}
    fn adamw(&mut self, _: &AdamW) {}
}
