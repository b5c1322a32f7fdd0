//! The frozen model's tensors: where each lies, and how it gets there. Where the backend reads files, a 16-bit matrix
//! stays where its file is mapped; every other is copied into the arena once, in 16 bits. Norms (under 0.1 % of the bytes)
//! are widened to the master type, so that kernels read them without conversion; biases have the type of what they are
//! added to, as products that end with a bias want them.

use super::layout::Layout;
use super::numbers::{self, CHUNK};
use crate::backend::{ARENA, Backend, BufferId, DType, Precision, View};
use crate::checkpoint::{FrozenModel, Tensor};
use crate::model::{HeadSpec, NormPlace, Output, Pooling, Slot, Specification};
use anyhow::{Result, bail};

/// A linear layer: \[N, K\] and \[N\].
#[derive(Clone, Copy, Debug)]
pub struct Linear {
    pub weight: View,
    pub bias: Option<View>,
}

impl Linear {
    /// Output features `from..from + count`.
    pub fn outputs(self, from: usize, count: usize) -> Linear {
        Linear { weight: self.weight.row_range(from, count), bias: self.bias.map(|bias| bias.col_range(from, count)) }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Norm {
    pub gamma: View,
    pub beta: Option<View>,
}

pub struct LayerWeights {
    /// Query, key and value, as few parts as memory allows: their outputs laid side by side are \[Q | K | V\].
    pub query_key_value: Vec<Linear>,
    pub attention_output: Linear,
    pub attention_norm: Norm,
    pub up: Linear,
    pub down: Linear,
    pub feed_forward_norm: Norm,
}

pub struct Frozen {
    pub word: View,
    pub position: Option<View>,
    pub token_type: Option<View>,
    pub embedding_norm: Option<Norm>,
    pub embedding_projection: Option<Linear>,
    pub layers: Vec<LayerWeights>,
    pub final_norm: Option<Norm>,
    pub pooler: Option<Linear>,
    /// \[V, H\], where the head predicts tokens.
    pub language_head: Option<View>,
    /// The language-model head's rows of the words that a head scores \[C, H\], in master precision: few, and exact.
    words: Option<(Slot, Vec<u32>, View)>,
    /// What has to be brought into the arena.
    uploads: Vec<(Slot, Part, View)>,
}

#[derive(Clone, Copy, PartialEq)]
enum Part {
    Matrix,
    /// Gamma, beta or bias.
    Vector {
        bias: bool,
    },
}

/// The buffer id under which the engine attaches a checkpoint's file.
pub fn file_buffer(file: usize) -> BufferId {
    BufferId(file as u32 + 1)
}

struct Placer<'a> {
    model: &'a FrozenModel,
    precision: Precision,
    /// Whether the backend reads the mapped files.
    reads_files: bool,
    uploads: Vec<(Slot, Part, View)>,
}

impl Placer<'_> {
    /// Whether a matrix can stay in the mapped file: 16 bits wide and aligned.
    fn stays(&self, tensor: &Tensor) -> bool {
        self.reads_files && tensor.dtype != DType::F32 && tensor.offset.is_multiple_of(2)
    }

    fn matrix(&mut self, layout: &mut Layout, slot: Slot) -> Result<View> {
        let tensor = self.model.weight(slot)?;
        let [rows, cols] = self.model.spec.shape(slot).unwrap_or([1, 1]);
        if self.stays(&tensor) {
            return Ok(View { buffer: file_buffer(tensor.file), offset: tensor.offset, rows, cols, stride: cols, dtype: tensor.dtype });
        }
        let view = layout.matrix(rows, cols, self.precision.frozen(tensor.dtype));
        self.uploads.push((slot, Part::Matrix, view));
        Ok(view)
    }

    fn vector(&mut self, layout: &mut Layout, slot: Slot, bias: bool, count: usize, dtype: DType) -> View {
        let view = layout.vector(count, dtype);
        self.uploads.push((slot, Part::Vector { bias }, view));
        view
    }

    fn linear(&mut self, layout: &mut Layout, slot: Slot) -> Result<Linear> {
        let weight = self.matrix(layout, slot)?;
        let bias = self.model.spec.has_bias(slot).then(|| self.vector(layout, slot, true, weight.rows, self.precision.activation));
        Ok(Linear { weight, bias })
    }

    fn norm(&mut self, layout: &mut Layout, slot: Slot) -> Norm {
        let cols = self.model.spec.shape(slot).map_or(0, |[_, cols]| cols);
        let master = self.precision.master;
        let gamma = self.vector(layout, slot, false, cols, master);
        let beta = self.model.spec.has_bias(slot).then(|| self.vector(layout, slot, true, cols, master));
        Norm { gamma, beta }
    }

    /// One matrix where all three have to be copied anyway, or lie one behind the other in their file; else three.
    fn query_key_value(&mut self, layout: &mut Layout, set: usize) -> Result<Vec<Linear>> {
        let slots = [Slot::Query(set), Slot::Key(set), Slot::Value(set)];
        let spec = &self.model.spec;
        let (rows, hidden) = ([spec.query_size(), spec.kv_size(), spec.kv_size()], spec.hidden_size);
        let tensors = slots.iter().map(|&slot| self.model.weight(slot)).collect::<Result<Vec<_>>>()?;
        let dtype = self.precision.frozen(tensors[0].dtype);
        let follows = |pair: &[Tensor]| pair[0].file == pair[1].file && pair[0].offset + pair[0].bytes == pair[1].offset;
        let joined = tensors.windows(2).all(follows) && tensors.iter().all(|tensor| self.stays(tensor) && tensor.dtype == tensors[0].dtype);
        if !joined && tensors.iter().any(|tensor| self.stays(tensor) || self.precision.frozen(tensor.dtype) != dtype) {
            return slots.iter().map(|&slot| self.linear(layout, slot)).collect();
        }
        let weight = match joined {
            true => View { rows: rows.iter().sum(), ..self.matrix(layout, slots[0])? },
            false => layout.matrix(rows.iter().sum(), hidden, dtype),
        };
        let bias = spec.has_bias(slots[0]).then(|| layout.vector(weight.rows, self.precision.activation));
        let mut from = 0;
        for (slot, rows) in slots.into_iter().zip(rows) {
            if !joined {
                self.uploads.push((slot, Part::Matrix, weight.row_range(from, rows)));
            }
            if let Some(bias) = bias {
                self.uploads.push((slot, Part::Vector { bias: true }, bias.col_range(from, rows)));
            }
            from += rows;
        }
        Ok(vec![Linear { weight, bias }])
    }
}

impl Frozen {
    /// Decides where every tensor lies, of those that a head needs besides too.
    pub fn lay_out(model: &FrozenModel, backend: &dyn Backend, head: &HeadSpec, layout: &mut Layout) -> Result<Frozen> {
        let (spec, precision) = (&model.spec, backend.precision());
        let mut placer = Placer { model, precision, reads_files: backend.reads_files(), uploads: Vec::new() };
        let has = |slot| spec.shape(slot).is_some();
        let word = placer.matrix(layout, Slot::WordEmbedding)?;
        let position = has(Slot::PositionEmbedding).then(|| placer.matrix(layout, Slot::PositionEmbedding)).transpose()?;
        let token_type = has(Slot::TypeEmbedding).then(|| placer.matrix(layout, Slot::TypeEmbedding)).transpose()?;
        let embedding_norm = has(Slot::EmbeddingNorm).then(|| placer.norm(layout, Slot::EmbeddingNorm));
        let embedding_projection = has(Slot::EmbeddingProjection).then(|| placer.linear(layout, Slot::EmbeddingProjection)).transpose()?;
        let mut layers = Vec::new();
        for set in 0..spec.weight_sets() {
            layers.push(LayerWeights {
                query_key_value: placer.query_key_value(layout, set)?,
                attention_output: placer.linear(layout, Slot::AttentionOutput(set))?,
                attention_norm: placer.norm(layout, Slot::AttentionNorm(set)),
                up: placer.linear(layout, Slot::Up(set))?,
                down: placer.linear(layout, Slot::Down(set))?,
                feed_forward_norm: placer.norm(layout, Slot::FeedForwardNorm(set)),
            });
        }
        let final_norm = has(Slot::FinalNorm).then(|| placer.norm(layout, Slot::FinalNorm));
        let predicting = if spec.tied_head { Slot::WordEmbedding } else { Slot::LanguageHead };
        if !head.is_trained() && spec.embedding_size != spec.hidden_size {
            bail!("a language-model head behind a projection of embeddings is not supported ({})", spec.family);
        }
        let language_head = match &head.output {
            Output::Vocabulary if spec.tied_head => Some(word),
            Output::Vocabulary => Some(placer.matrix(layout, predicting)?),
            _ => None,
        };
        let words = match &head.output {
            Output::Words(tokens) => {
                model.weight(predicting)?;
                Some((predicting, tokens.clone(), layout.matrix(tokens.len(), spec.hidden_size, precision.master)))
            }
            _ => None,
        };
        let pooler = match (head.pooling == Pooling::Frozen, model.has_pooler()) {
            (false, _) => None,
            (true, true) => Some(placer.linear(layout, Slot::Pooler)?),
            // Made by the engine, or brought by an adapter.
            (true, false) => Some(Linear {
                weight: layout.matrix(spec.hidden_size, spec.hidden_size, precision.frozen(DType::F32)),
                bias: Some(layout.vector(spec.hidden_size, precision.activation)),
            }),
        };
        let uploads = placer.uploads;
        Ok(Frozen {
            word,
            position,
            token_type,
            embedding_norm,
            embedding_projection,
            layers,
            final_norm,
            pooler,
            language_head,
            words,
            uploads,
        })
    }

    /// Rows of the language-model head that score a label each.
    pub fn words(&self) -> Option<View> {
        self.words.as_ref().map(|(_, _, view)| *view)
    }

    /// The norm in front of layer 0, where the model normalises before each branch.
    pub fn entry_norm(&self, spec: &Specification) -> Option<Norm> {
        (spec.norm_place == NormPlace::Pre).then(|| self.layers[spec.layer_weights[0]].attention_norm)
    }

    pub fn norm_after_attention(&self, spec: &Specification, layer: usize) -> Norm {
        let weights = &self.layers[spec.layer_weights[layer]];
        match spec.norm_place {
            NormPlace::Post => weights.attention_norm,
            NormPlace::Pre => weights.feed_forward_norm,
        }
    }

    /// The norm that layer `layer`'s output goes through: its own, or the next layer's or the final one.
    pub fn norm_after_feed_forward(&self, spec: &Specification, layer: usize) -> Norm {
        let own = &self.layers[spec.layer_weights[layer]];
        match (spec.norm_place, spec.layer_weights.get(layer + 1), self.final_norm) {
            (NormPlace::Post, ..) => own.feed_forward_norm,
            (NormPlace::Pre, Some(&next), _) => self.layers[next].attention_norm,
            (NormPlace::Pre, None, Some(last)) => last,
            (NormPlace::Pre, None, None) => unreachable!("a pre-norm specification has a final norm"),
        }
    }

    /// Bytes of matrices that are read in their files.
    pub fn mapped_bytes(&self) -> usize {
        let layers = self.layers.iter().flat_map(|layer| {
            layer.query_key_value.iter().chain([&layer.attention_output, &layer.up, &layer.down]).map(|linear| linear.weight)
        });
        let linears = [self.embedding_projection, self.pooler].into_iter().flatten().map(|linear| linear.weight);
        let language_head = self.language_head.filter(|&head| head != self.word);
        let tables = [Some(self.word), self.position, self.token_type, language_head].into_iter().flatten();
        tables.chain(linears).chain(layers).filter(|view| view.buffer != ARENA).map(|view| view.len() * view.dtype.size()).sum()
    }

    /// Fills the arena. A value that the 16-bit type cannot hold is an error that names its tensor.
    pub fn load(&self, model: &FrozenModel, backend: &mut dyn Backend) -> Result<()> {
        for &(slot, part, view) in &self.uploads {
            let tensor = match part {
                Part::Vector { bias: true } => model.bias(slot)?,
                _ => Some(model.weight(slot)?),
            };
            let Some(tensor) = tensor else { bail!("{slot:?} has no bias in {}", model.directory.display()) };
            let data = model.checkpoint.data(&tensor);
            match part {
                Part::Matrix => load_matrix(&tensor, data, view, backend)?,
                Part::Vector { .. } => {
                    let values = numbers::widen_frozen(&tensor.name, data, tensor.dtype)?;
                    backend.write(view, &numbers::to_bytes(&values, view.dtype));
                }
            }
            model.checkpoint.release(&tensor);
        }
        if let Some((slot, tokens, view)) = &self.words {
            let tensor = model.weight(*slot)?;
            let row_bytes = view.cols * tensor.dtype.size();
            for (row, &token) in tokens.iter().enumerate() {
                let data = &model.checkpoint.data(&tensor)[token as usize * row_bytes..][..row_bytes];
                let values = numbers::widen_frozen(&tensor.name, data, tensor.dtype)?;
                backend.write(view.row_range(row, 1), &numbers::to_bytes(&values, view.dtype));
            }
        }
        Ok(())
    }
}

fn load_matrix(tensor: &Tensor, data: &[u8], view: View, backend: &mut dyn Backend) -> Result<()> {
    for (to, chunk) in view.chunks(CHUNK).zip(data.chunks(CHUNK * tensor.dtype.size())) {
        if tensor.dtype == view.dtype {
            backend.write(to, chunk);
        } else {
            backend.write(to, &numbers::round(&tensor.name, chunk, tensor.dtype, view.dtype)?);
        }
    }
    Ok(())
}
