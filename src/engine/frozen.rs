//! The frozen model's tensors: where each lies. Where the backend reads files, a 16-bit matrix stays where its file is
//! mapped, unless it is stored transposed or interleaved, or wanted in 8 bits; so do the layers' of `--weights disk`
//! where transfers read files. Every other is copied into the arena once, in
//! 16 bits or (the layers' alone) in 8 and with a factor a row. Norms (under 0.1 % of the bytes) are widened to the master
//! type, so that kernels read them without conversion; biases have the type of what they are added to, as products that end
//! with a bias want them. `loading` brings them there, `linear` knows how a matrix of 8 bits is read.

use super::layout::Layout;
pub use super::linear::{Linear, Quantised};
use super::options::{EngineOptions, Residency};
use super::streaming::Ring;
use super::words::WordHead;
use crate::backend::{ARENA, BufferId, DType, HOST, Precision, Sizing, View};
use crate::checkpoint::{FrozenModel, Tensor, WeightFormat, Weights};
use crate::model::{HeadSpec, NormPlace, Output, Pooling, Slot, Specification};
use anyhow::{Result, bail};

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
    pub(super) uploads: Vec<(Slot, Part, View)>,
    /// Homes of the parts of joined matrices that lie apart, by the number that stands for them: see [`APART`].
    apart: Vec<Vec<View>>,
    /// How layers come from home to the arena, where they do not stay there.
    pub ring: Option<Ring>,
    /// Bytes of host memory that are homes.
    pub host: usize,
}

impl LayerWeights {
    /// The linear layers.
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        let joined = self.query_key_value.iter().chain(&self.up);
        joined.chain([&self.attention_output, &self.down]).chain(self.relative.iter().flatten())
    }

    /// As [`LayerWeights::linears`], for those who give them their places.
    pub fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        let joined = self.query_key_value.iter_mut().chain(&mut self.up);
        let others = [&mut self.attention_output, &mut self.down].into_iter().chain(self.relative.iter_mut().flatten());
        joined.chain(others)
    }

    /// Weights of the linear layers, with what belongs to them.
    pub fn matrices_mut(&mut self) -> impl Iterator<Item = &mut View> {
        self.linears_mut().flat_map(Linear::parts_mut)
    }
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Part {
    Matrix(Option<Quantised>),
    /// Gamma, beta or bias.
    Vector {
        bias: bool,
    },
}

/// The buffer id under which the engine attaches a checkpoint's file.
pub fn file_buffer(file: usize) -> BufferId {
    BufferId(file as u32 + 1)
}

/// Stands for the buffer of a joined matrix whose parts lie apart at home: a view's offset is their number. No operation sees
/// it, as such a matrix is streamed to one place.
pub(super) const APART: BufferId = BufferId(u32::MAX - 1);

pub(super) struct Placer<'a> {
    pub model: &'a FrozenModel,
    pub precision: Precision,
    /// Whether the backend reads the mapped files.
    reads_files: bool,
    /// Whether matrices may stay in them at the moment.
    in_files: bool,
    apart: Vec<Vec<View>>,
    uploads: Vec<(Slot, Part, View)>,
    /// Host memory, and whether matrices go there at the moment.
    host: Layout,
    at_home: bool,
    /// How matrices are kept at the moment.
    format: WeightFormat,
}

impl Placer<'_> {
    /// Room for a matrix that is copied.
    fn room(&mut self, layout: &mut Layout, rows: usize, cols: usize, dtype: DType) -> View {
        if self.at_home { View { buffer: HOST, ..self.host.matrix(rows, cols, dtype) } } else { layout.matrix(rows, cols, dtype) }
    }

    /// Whether a matrix can stay in the mapped file: of the 16-bit type that it is used in, aligned and stored as it is used.
    /// Where: the tensor's row that it begins at.
    fn stays(&self, slot: Slot, tensor: &Tensor) -> Option<usize> {
        let [rows, _] = self.model.spec.shape(slot)?;
        let first = self.model.storage(slot).first_row(rows)?;
        let as_used = self.precision.frozen(tensor.dtype) == tensor.dtype && tensor.offset.is_multiple_of(2);
        (self.in_files && self.format == WeightFormat::Fp16 && as_used).then_some(first)
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

    /// A matrix that is no linear layer's: always of 16 bits.
    fn matrix(&mut self, layout: &mut Layout, slot: Slot) -> Result<View> {
        assert!(self.format == WeightFormat::Fp16);
        Ok(self.placed(layout, slot)?.weight)
    }

    /// A matrix where it stays, or where it is copied to; no bias.
    fn placed(&mut self, layout: &mut Layout, slot: Slot) -> Result<Linear> {
        let (dtype, place) = self.stored(slot)?;
        if let Some(weight) = place {
            return Ok(Linear { weight, bias: None, quantised: None });
        }
        let [rows, cols] = self.model.spec.shape(slot).unwrap_or([1, 1]);
        let placed = self.copied(layout, rows, cols, self.precision.frozen(dtype));
        self.uploads.push((slot, Part::Matrix(placed.quantised), placed.weight));
        Ok(placed)
    }

    /// Room for a matrix that products read in a 16-bit type; no bias.
    fn copied(&mut self, layout: &mut Layout, rows: usize, cols: usize, used: DType) -> Linear {
        match self.format {
            WeightFormat::Fp16 => Linear { weight: self.room(layout, rows, cols, used), bias: None, quantised: None },
            WeightFormat::Int8 => {
                let (weight, scales) = (self.room(layout, rows, cols, DType::I8), self.room(layout, 1, rows, DType::F32));
                // Where, is decided when the largest is known.
                let widened = View { buffer: ARENA, offset: 0, rows: 1, cols: rows * cols, stride: rows * cols, dtype: used };
                Linear { weight, bias: None, quantised: Some(Quantised { scales, widened }) }
            }
        }
    }

    /// One matrix of several whose homes lie apart, some in files, which come to one place; no bias.
    fn brought_together(&mut self, layout: &mut Layout, slots: &[Slot]) -> Result<Linear> {
        let parts = slots.iter().map(|&slot| Ok(self.placed(layout, slot)?.weight)).collect::<Result<Vec<View>>>()?;
        let rows = parts.iter().map(|part| part.rows).sum();
        let weight = View { buffer: APART, offset: self.apart.len(), rows, ..parts[0] };
        self.apart.push(parts);
        Ok(Linear { weight, bias: None, quantised: None })
    }

    fn vector(&mut self, layout: &mut Layout, slot: Slot, bias: bool, count: usize, dtype: DType) -> View {
        let view = layout.vector(count, dtype);
        self.uploads.push((slot, Part::Vector { bias }, view));
        view
    }

    pub fn linear(&mut self, layout: &mut Layout, slot: Slot) -> Result<Linear> {
        let placed = self.placed(layout, slot)?;
        let rows = placed.weight.rows;
        let bias = self.model.spec.has_bias(slot).then(|| self.vector(layout, slot, true, rows, self.precision.activation));
        Ok(Linear { bias, ..placed })
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
    /// file; where the backend reads files, else each by itself.
    fn side_by_side(&mut self, layout: &mut Layout, slots: &[Slot]) -> Result<Vec<Linear>> {
        let spec = &self.model.spec;
        let rows: Vec<usize> = slots.iter().filter_map(|&slot| spec.shape(slot)).map(|[rows, _]| rows).collect();
        let stored = slots.iter().map(|&slot| self.stored(slot)).collect::<Result<Vec<_>>>()?;
        let dtype = self.precision.frozen(stored[0].0);
        let places: Vec<View> = stored.iter().filter_map(|(_, place)| *place).collect();
        let follows = |pair: &[View]| pair[0].buffer == pair[1].buffer && pair[0].end() == pair[1].offset && pair[0].dtype == pair[1].dtype;
        let joined = places.len() == slots.len() && places.windows(2).all(follows);
        let read_there = self.reads_files && !places.is_empty();
        let apart = read_there || stored.iter().any(|(own, _)| self.precision.frozen(*own) != dtype);
        if !joined && apart {
            return slots.iter().map(|&slot| self.linear(layout, slot)).collect();
        }
        let whole = match joined {
            true => {
                let first = self.placed(layout, slots[0])?;
                Linear { weight: View { rows: rows.iter().sum(), ..first.weight }, ..first }
            }
            false if !places.is_empty() => self.brought_together(layout, slots)?,
            false => self.copied(layout, rows.iter().sum(), spec.hidden_size, dtype),
        };
        // The part of one that has no bias stays zero, as the arena begins.
        let bias = slots.iter().any(|&slot| spec.has_bias(slot)).then(|| layout.vector(whole.weight.rows, self.precision.activation));
        let mut from = 0;
        for (&slot, rows) in slots.iter().zip(rows) {
            if places.is_empty() {
                let own = whole.outputs(from, rows);
                self.uploads.push((slot, Part::Matrix(own.quantised), own.weight));
            }
            if let Some(bias) = bias.filter(|_| spec.has_bias(slot)) {
                self.uploads.push((slot, Part::Vector { bias: true }, bias.col_range(from, rows)));
            }
            from += rows;
        }
        Ok(vec![Linear { bias, ..whole }])
    }
}

impl Frozen {
    /// Whether the same tensors, or rows of them, lie in the same places.
    pub fn same_places(&self, other: &Frozen) -> bool {
        let words = self.words.as_ref().map(WordHead::source) == other.words.as_ref().map(WordHead::source);
        let lasting = self.ring.is_none() && other.ring.is_none();
        lasting && words && self.uploads == other.uploads && self.apart == other.apart
    }

    /// Decides where every tensor lies, of those that heads need besides too; a head that is not trained is the only one.
    /// Streamed layers get their places in the arena by [`Frozen::stream`], and 8-bit ones theirs to be widened to by
    /// [`Frozen::widen`].
    pub fn lay_out(model: &FrozenModel, backend: &dyn Sizing, options: &EngineOptions, layout: &mut Layout) -> Result<Frozen> {
        let (spec, precision, heads) = (&model.spec, backend.precision(), &options.heads);
        let (host, at_home, format) = (Layout::default(), false, WeightFormat::Fp16);
        let (reads_files, uploads, apart) = (backend.reads_files(), Vec::new(), Vec::new());
        let weights = options.memory.weights;
        let mut placer = Placer { model, precision, reads_files, in_files: reads_files, apart, uploads, host, at_home, format };
        let has = |slot| spec.shape(slot).is_some();
        // Of the table only a batch's rows travel, where no head reads all of it.
        placer.at_home = weights != Residency::Resident && !(spec.tied_head && heads[0].output == Output::Vocabulary);
        let word = placer.matrix(layout, Slot::WordEmbedding)?;
        placer.at_home = false;
        let position = has(Slot::PositionEmbedding).then(|| placer.matrix(layout, Slot::PositionEmbedding)).transpose()?;
        let token_type = has(Slot::TypeEmbedding).then(|| placer.matrix(layout, Slot::TypeEmbedding)).transpose()?;
        let embedding_norm = has(Slot::EmbeddingNorm).then(|| placer.norm(layout, Slot::EmbeddingNorm));
        let embedding_projection = placer.projection(layout, Slot::EmbeddingProjection)?;
        let relative = has(Slot::RelativeEmbedding).then(|| placer.matrix(layout, Slot::RelativeEmbedding)).transpose()?;
        let mut layers = Vec::new();
        (placer.at_home, placer.format) = (weights != Residency::Resident, options.weight_format);
        placer.in_files = reads_files || (weights == Residency::Disk && backend.transfers_files());
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
        (placer.at_home, placer.in_files, placer.format) = (false, reads_files, WeightFormat::Fp16);
        let final_norm = has(Slot::FinalNorm).then(|| placer.norm(layout, Slot::FinalNorm));
        let predicting = if spec.tied_head { Slot::WordEmbedding } else { Slot::LanguageHead };
        if !heads.iter().all(HeadSpec::is_trained) && spec.embedding_size != spec.hidden_size {
            bail!("a language-model head behind a projection of embeddings is not supported ({})", spec.family);
        }
        let output = &heads[0].output;
        let language_head = match output {
            Output::Vocabulary if spec.tied_head => Some(word),
            Output::Vocabulary => Some(placer.matrix(layout, predicting)?),
            _ => None,
        };
        let words = match output {
            Output::Words(tokens) => Some(WordHead::lay_out(&mut placer, heads[0].pooling, tokens, layout)?),
            _ => None,
        };
        let pooler = match (heads.iter().any(|head| head.pooling == Pooling::Frozen), model.has_pooler()) {
            (false, _) => None,
            (true, true) => Some(placer.linear(layout, Slot::Pooler)?),
            // Made by the engine, or brought by an adapter.
            (true, false) => Some(Linear {
                weight: layout.matrix(spec.hidden_size, spec.hidden_size, precision.frozen(DType::F32)),
                bias: Some(layout.vector(spec.hidden_size, precision.activation)),
                quantised: None,
            }),
        };
        let (uploads, apart, host) = (placer.uploads, placer.apart, placer.host.finish().0);
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
            apart,
            ring: None,
            host,
        })
    }

    /// Gives streamed layers their places in the arena.
    pub fn stream(&mut self, layout: &mut Layout) {
        self.ring = Some(Ring::lay_out(&mut self.layers, &self.apart, layout));
    }

    /// Elements of the largest matrix of 8 bits; 0 where there is none.
    pub fn largest_quantised(&self) -> usize {
        let linears = self.layers.iter().flat_map(LayerWeights::linears);
        linears.filter_map(|linear| linear.quantised).map(|own| own.widened.len()).max().unwrap_or(0)
    }

    /// Gives 8-bit matrices the one place that each is widened to.
    pub fn widen(&mut self, layout: &mut Layout) {
        let place = layout.vector(self.largest_quantised(), DType::F16);
        let linears = self.layers.iter_mut().flat_map(LayerWeights::linears_mut).filter_map(|linear| linear.quantised.as_mut());
        let uploads = self.uploads.iter_mut().filter_map(|(_, part, _)| if let Part::Matrix(own) = part { own.as_mut() } else { None });
        linears.chain(uploads).for_each(|own| own.widened.offset = place.offset);
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
        let layers = self.layers.iter().flat_map(LayerWeights::linears).map(|linear| linear.weight);
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
        let bytes = |view: View| view.len() * view.dtype.size();
        let scales = |part: &Part| if let Part::Matrix(Some(own)) = part { bytes(own.scales) } else { 0 };
        self.uploads.iter().map(|(_, part, view)| bytes(*view) + scales(part)).sum()
    }
}
