//! The frozen model's tensors: where each lies, and how it gets there. Where the backend reads files, a 16-bit matrix
//! stays where its file is mapped, unless it is stored transposed or interleaved; every other is copied into the arena
//! once, in 16 bits. Norms (under 0.1 % of the bytes) are widened to the master type, so that kernels read them without
//! conversion; biases have the type of what they are added to, as products that end with a bias want them. Random
//! weights are drawn where they are to lie.

use super::layout::Layout;
use super::numbers::{self, CHUNK};
use super::options::Residency;
use super::streaming::Ring;
use super::words::WordHead;
use crate::backend::{ARENA, Backend, BufferId, DType, HOST, Precision, Site, Sizing, Stream, View, stream_key};
use crate::checkpoint::{Checkpoint, FrozenModel, Tensor, Weights};
use crate::model::{HeadSpec, NormPlace, Output, Pooling, Slot, Specification, Storage};
use anyhow::{Result, anyhow, bail};

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
    /// Gammas \[D\].
    pub query_key_norm: Option<[View; 2]>,
    pub attention_output: Linear,
    pub attention_norm: Norm,
    /// Up, or gate and up, laid side by side.
    pub up: Vec<Linear>,
    pub down: Linear,
    pub feed_forward_norm: Norm,
    /// What projects the table of relative positions to keys and to queries.
    pub relative: [Option<Linear>; 2],
}

pub struct Frozen {
    pub word: View,
    pub position: Option<View>,
    pub token_type: Option<View>,
    pub embedding_norm: Option<Norm>,
    pub embedding_projection: Option<Linear>,
    pub relative: Option<View>,
    pub layers: Vec<LayerWeights>,
    pub final_norm: Option<Norm>,
    pub pooler: Option<Linear>,
    /// \[V, H\], where the head predicts tokens.
    pub language_head: Option<View>,
    /// What scores the words of a head.
    pub words: Option<WordHead>,
    /// What has to be brought into the arena, or to its home in host memory.
    uploads: Vec<(Slot, Part, View)>,
    /// How layers come from home to the arena, where they do not stay there.
    pub ring: Option<Ring>,
    /// Bytes of host memory that are homes.
    pub host: usize,
}

impl LayerWeights {
    /// Weights of the linear layers.
    pub fn matrices_mut(&mut self) -> impl Iterator<Item = &mut View> {
        let joined = self.query_key_value.iter_mut().chain(&mut self.up);
        let others = [&mut self.attention_output, &mut self.down].into_iter().chain(self.relative.iter_mut().flatten());
        joined.chain(others).map(|linear| &mut linear.weight)
    }
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

pub(super) struct Placer<'a> {
    pub model: &'a FrozenModel,
    pub precision: Precision,
    /// Whether the backend reads the mapped files.
    reads_files: bool,
    uploads: Vec<(Slot, Part, View)>,
    /// Host memory, and whether matrices go there at the moment.
    host: Layout,
    at_home: bool,
}

impl Placer<'_> {
    /// Room for a matrix that is copied.
    fn room(&mut self, layout: &mut Layout, rows: usize, cols: usize, dtype: DType) -> View {
        if self.at_home { View { buffer: HOST, ..self.host.matrix(rows, cols, dtype) } } else { layout.matrix(rows, cols, dtype) }
    }

    /// Whether a matrix can stay in the mapped file: 16 bits wide, aligned and stored as it is used. Where: the tensor's row
    /// that it begins at.
    fn stays(&self, slot: Slot, tensor: &Tensor) -> Option<usize> {
        let [rows, _] = self.model.spec.shape(slot)?;
        let first = self.model.storage(slot).first_row(rows)?;
        (self.reads_files && tensor.dtype != DType::F32 && tensor.offset.is_multiple_of(2)).then_some(first)
    }

    /// A matrix's element type, and its place where it stays in the mapped file.
    fn stored(&self, slot: Slot) -> Result<(DType, Option<View>)> {
        if let Weights::Random { dtype, .. } = self.model.source {
            return Ok((dtype, None));
        }
        let tensor = self.model.weight(slot)?;
        let [rows, cols] = self.model.spec.shape(slot).unwrap_or([1, 1]);
        let place = self.stays(slot, tensor).map(|first| View {
            buffer: file_buffer(tensor.file),
            offset: tensor.offset + first * cols * tensor.dtype.size(),
            rows,
            cols,
            stride: cols,
            dtype: tensor.dtype,
        });
        Ok((tensor.dtype, place))
    }

    fn matrix(&mut self, layout: &mut Layout, slot: Slot) -> Result<View> {
        let (dtype, place) = self.stored(slot)?;
        if let Some(place) = place {
            return Ok(place);
        }
        let [rows, cols] = self.model.spec.shape(slot).unwrap_or([1, 1]);
        let view = self.room(layout, rows, cols, self.precision.frozen(dtype));
        self.uploads.push((slot, Part::Matrix, view));
        Ok(view)
    }

    fn vector(&mut self, layout: &mut Layout, slot: Slot, bias: bool, count: usize, dtype: DType) -> View {
        let view = layout.vector(count, dtype);
        self.uploads.push((slot, Part::Vector { bias }, view));
        view
    }

    pub fn linear(&mut self, layout: &mut Layout, slot: Slot) -> Result<Linear> {
        let weight = self.matrix(layout, slot)?;
        let bias = self.model.spec.has_bias(slot).then(|| self.vector(layout, slot, true, weight.rows, self.precision.activation));
        Ok(Linear { weight, bias })
    }

    /// A linear layer that not every model has.
    fn projection(&mut self, layout: &mut Layout, slot: Slot) -> Result<Option<Linear>> {
        self.model.spec.shape(slot).map(|_| self.linear(layout, slot)).transpose()
    }

    pub fn norm(&mut self, layout: &mut Layout, slot: Slot) -> Norm {
        let cols = self.model.spec.shape(slot).map_or(0, |[_, cols]| cols);
        let master = self.precision.master;
        let gamma = self.vector(layout, slot, false, cols, master);
        let beta = self.model.spec.has_bias(slot).then(|| self.vector(layout, slot, true, cols, master));
        Norm { gamma, beta }
    }

    /// Layers of one input: one matrix where all of them have to be copied anyway, or lie one behind the other in their
    /// file; else each by itself.
    fn side_by_side(&mut self, layout: &mut Layout, slots: &[Slot]) -> Result<Vec<Linear>> {
        let spec = &self.model.spec;
        let rows: Vec<usize> = slots.iter().filter_map(|&slot| spec.shape(slot)).map(|[rows, _]| rows).collect();
        let stored = slots.iter().map(|&slot| self.stored(slot)).collect::<Result<Vec<_>>>()?;
        let dtype = self.precision.frozen(stored[0].0);
        let places: Vec<View> = stored.iter().filter_map(|(_, place)| *place).collect();
        let follows = |pair: &[View]| pair[0].buffer == pair[1].buffer && pair[0].end() == pair[1].offset && pair[0].dtype == pair[1].dtype;
        let joined = places.len() == slots.len() && places.windows(2).all(follows);
        let apart = !places.is_empty() || stored.iter().any(|(own, _)| self.precision.frozen(*own) != dtype);
        if !joined && apart {
            return slots.iter().map(|&slot| self.linear(layout, slot)).collect();
        }
        let weight = match joined {
            true => View { rows: rows.iter().sum(), ..self.matrix(layout, slots[0])? },
            false => self.room(layout, rows.iter().sum(), spec.hidden_size, dtype),
        };
        // The part of one that has no bias stays zero, as the arena begins.
        let bias = slots.iter().any(|&slot| spec.has_bias(slot)).then(|| layout.vector(weight.rows, self.precision.activation));
        let mut from = 0;
        for (&slot, rows) in slots.iter().zip(rows) {
            if !joined {
                self.uploads.push((slot, Part::Matrix, weight.row_range(from, rows)));
            }
            if let Some(bias) = bias.filter(|_| spec.has_bias(slot)) {
                self.uploads.push((slot, Part::Vector { bias: true }, bias.col_range(from, rows)));
            }
            from += rows;
        }
        Ok(vec![Linear { weight, bias }])
    }
}

impl Frozen {
    /// Decides where every tensor lies, of those that a head needs besides too.
    /// Streamed layers get their places in the arena by [`Frozen::stream`].
    pub fn lay_out(model: &FrozenModel, backend: &dyn Sizing, head: &HeadSpec, weights: Residency, layout: &mut Layout) -> Result<Frozen> {
        let (spec, precision) = (&model.spec, backend.precision());
        let (host, at_home) = (Layout::default(), false);
        let mut placer = Placer { model, precision, reads_files: backend.reads_files(), uploads: Vec::new(), host, at_home };
        let has = |slot| spec.shape(slot).is_some();
        // Of the table only a batch's rows travel, where no head reads all of it.
        placer.at_home = weights == Residency::Streamed && !(spec.tied_head && head.output == Output::Vocabulary);
        let word = placer.matrix(layout, Slot::WordEmbedding)?;
        placer.at_home = false;
        let position = has(Slot::PositionEmbedding).then(|| placer.matrix(layout, Slot::PositionEmbedding)).transpose()?;
        let token_type = has(Slot::TypeEmbedding).then(|| placer.matrix(layout, Slot::TypeEmbedding)).transpose()?;
        let embedding_norm = has(Slot::EmbeddingNorm).then(|| placer.norm(layout, Slot::EmbeddingNorm));
        let embedding_projection = placer.projection(layout, Slot::EmbeddingProjection)?;
        let relative = has(Slot::RelativeEmbedding).then(|| placer.matrix(layout, Slot::RelativeEmbedding)).transpose()?;
        let mut layers = Vec::new();
        placer.at_home = weights == Residency::Streamed;
        for set in 0..spec.weight_sets() {
            let up = [Slot::Gate(set), Slot::Up(set)];
            layers.push(LayerWeights {
                query_key_value: placer.side_by_side(layout, &[Slot::Query(set), Slot::Key(set), Slot::Value(set)])?,
                query_key_norm: has(Slot::QueryNorm(set))
                    .then(|| [Slot::QueryNorm(set), Slot::KeyNorm(set)].map(|slot| placer.norm(layout, slot).gamma)),
                attention_output: placer.linear(layout, Slot::AttentionOutput(set))?,
                attention_norm: placer.norm(layout, Slot::AttentionNorm(set)),
                up: placer.side_by_side(layout, if has(up[0]) { &up } else { &up[1..] })?,
                down: placer.linear(layout, Slot::Down(set))?,
                feed_forward_norm: placer.norm(layout, Slot::FeedForwardNorm(set)),
                relative: [placer.projection(layout, Slot::RelativeKey(set))?, placer.projection(layout, Slot::RelativeQuery(set))?],
            });
        }
        placer.at_home = false;
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
            Output::Words(tokens) => Some(WordHead::lay_out(&mut placer, head.pooling, tokens, layout)?),
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
        let (uploads, host) = (placer.uploads, placer.host.finish().0);
        Ok(Frozen {
            word,
            position,
            token_type,
            embedding_norm,
            embedding_projection,
            relative,
            layers,
            final_norm,
            pooler,
            language_head,
            words,
            uploads,
            ring: None,
            host,
        })
    }

    /// Gives streamed layers their places in the arena.
    pub fn stream(&mut self, layout: &mut Layout) {
        self.ring = Some(Ring::lay_out(&mut self.layers, layout));
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
            let joined = layer.query_key_value.iter().chain(&layer.up);
            let others = [&layer.attention_output, &layer.down].into_iter().chain(layer.relative.iter().flatten());
            joined.chain(others).map(|linear| linear.weight)
        });
        let transform = self.words.as_ref().and_then(|words| words.transform.as_ref()).map(|transform| transform.dense);
        let linears = [self.embedding_projection, self.pooler, transform].into_iter().flatten().map(|linear| linear.weight);
        let language_head = self.language_head.filter(|&head| head != self.word);
        let tables = [Some(self.word), self.position, self.token_type, self.relative, language_head].into_iter().flatten();
        let homes = self.ring.iter().flat_map(Ring::homes);
        let elsewhere = |view: &View| view.buffer != ARENA && view.buffer != HOST;
        tables.chain(linears).chain(layers).chain(homes).filter(elsewhere).map(|view| view.len() * view.dtype.size()).sum()
    }

    /// Bytes that loading brings into the arena.
    pub fn loaded_bytes(&self) -> usize {
        self.uploads.iter().map(|(.., view)| view.len() * view.dtype.size()).sum()
    }

    /// Fills the arena, in the order of the layers. What is read next is asked of the disk ahead of time, and what has
    /// been copied is given back, so that the host holds a window of each file and no tensor whole. A value that the
    /// 16-bit type cannot hold is an error that names its tensor.
    pub fn load(&self, model: &FrozenModel, backend: &mut dyn Backend) -> Result<()> {
        let checkpoint = match &model.source {
            Weights::Files(checkpoint) => checkpoint,
            Weights::Random { seed, .. } => {
                self.draw(*seed, &model.spec, backend);
                return Ok(());
            }
        };
        let tensor_of = |&(slot, part, _): &(Slot, Part, View)| match part {
            Part::Vector { bias: true } => {
                model.bias(slot)?.ok_or_else(|| anyhow!("{slot:?} has no bias in {}", model.directory.display()))
            }
            _ => model.weight(slot),
        };
        for (index, upload) in self.uploads.iter().enumerate() {
            let (slot, part, view) = *upload;
            let tensor = tensor_of(upload)?;
            if let Some(next) = self.uploads.get(index + 1) {
                checkpoint.read_ahead(tensor_of(next)?, 0..AHEAD);
            }
            let (data, size) = (checkpoint.data(tensor), tensor.dtype.size());
            match part {
                Part::Matrix => match model.storage(slot) {
                    storage if storage.transposed => load_transposed(tensor, data, storage, view, backend)?,
                    storage => load_matrix(checkpoint, tensor, storage, view, backend)?,
                },
                Part::Vector { .. } => {
                    let part = if slot.is_norm() { 0 } else { model.bias_storage(slot).part };
                    let own = &data[part * view.len() * size..][..view.len() * size];
                    let values = numbers::widen_frozen(&tensor.name, own, tensor.dtype)?;
                    backend.write(view, &numbers::to_bytes(&values, view.dtype));
                }
            }
            checkpoint.release(tensor);
        }
        self.words.as_ref().map_or(Ok(()), |words| words.load(model, checkpoint, backend))
    }
}

impl Frozen {
    /// Weights of a new model: matrices from N(0, initializer_range), each of a stream of its own, gammas 1, the rest 0.
    fn draw(&self, seed: u64, spec: &Specification, backend: &mut dyn Backend) {
        let slots = spec.slots();
        // The pooler and language-model heads are none of the slots, and come after them.
        let beside = [Slot::Pooler, Slot::LanguageHead, Slot::HeadTransform];
        let number = |slot| slots.iter().chain(&beside).position(|&known| known == slot).unwrap_or(slots.len());
        let key = |slot| stream_key(seed, 0, Site::Weights, number(slot));
        for &(slot, part, view) in &self.uploads {
            match part {
                Part::Matrix => backend.fill_normal(view, key(slot), spec.initializer_range),
                Part::Vector { bias: false } => backend.write(view, &numbers::to_bytes(&vec![1.0; view.len()], view.dtype)),
                Part::Vector { bias: true } => backend.zero(view),
            }
        }
        if let Some(words) = &self.words {
            words.draw(self.word, Stream::new(key(words.slot())), spec.initializer_range, backend);
        }
    }
}

/// Bytes that are asked of the disk before they are needed.
const AHEAD: usize = 32 << 20;

/// Copies a matrix, or its rows of a larger one, run by run and chunk by chunk.
fn load_matrix(checkpoint: &Checkpoint, tensor: &Tensor, storage: Storage, view: View, backend: &mut dyn Backend) -> Result<()> {
    let (width, data) = (tensor.dtype.size(), checkpoint.data(tensor));
    for (to, from, count) in storage.runs(view.rows) {
        let mut at = from * view.cols * width;
        for to in view.row_range(to, count).chunks(CHUNK) {
            let end = at + to.len() * width;
            checkpoint.read_ahead(tensor, at + AHEAD..end + AHEAD);
            write(tensor, &data[at..end], to, backend)?;
            checkpoint.release_part(tensor, at..end);
            at = end;
        }
    }
    Ok(())
}

/// From \[input, outputs of all parts\], some outputs at a time.
fn load_transposed(tensor: &Tensor, data: &[u8], storage: Storage, view: View, backend: &mut dyn Backend) -> Result<()> {
    let step = (CHUNK / view.cols).max(1);
    for first in (0..view.rows).step_by(step) {
        let rows = step.min(view.rows - first);
        let from = storage.part * view.rows + first;
        let values = transposed_rows(data, tensor.dtype.size(), view.cols, from, rows);
        write(tensor, &values, view.row_range(first, rows), backend)?;
    }
    Ok(())
}

/// Columns `from..from + count` of a matrix of `rows` rows of elements of `size` bytes, as rows.
fn transposed_rows(data: &[u8], size: usize, rows: usize, from: usize, count: usize) -> Vec<u8> {
    let mut out = vec![0; count * rows * size];
    for (row, line) in data.chunks_exact(data.len() / rows).enumerate() {
        for (column, value) in line[from * size..][..count * size].chunks_exact(size).enumerate() {
            out[(column * rows + row) * size..][..size].copy_from_slice(value);
        }
    }
    out
}

/// Writes values of the tensor's type, rounded where the view has another.
fn write(tensor: &Tensor, values: &[u8], to: View, backend: &mut dyn Backend) -> Result<()> {
    if tensor.dtype == to.dtype {
        backend.write(to, values);
    } else {
        backend.write(to, &numbers::round(&tensor.name, values, tensor.dtype, to.dtype)?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::transposed_rows;

    #[test]
    fn columns_become_rows() {
        // [2, 3] of 16-bit elements.
        let data = [1, 0, 2, 0, 3, 0, 4, 1, 5, 1, 6, 1];
        assert_eq!(transposed_rows(&data, 2, 2, 1, 2), [2, 0, 5, 1, 3, 0, 6, 1]);
        assert_eq!(transposed_rows(&data, 2, 2, 0, 1), [1, 0, 4, 1]);
    }
}
