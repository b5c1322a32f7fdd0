//! The trainables: a named list of tensors with their gradients and optimizer state, all of one kind lying together.

use super::layout::Layout;
use super::options::EngineOptions;
use crate::backend::{DType, View};
use crate::model::{HeadLayer, Specification};

/// One trained tensor.
#[derive(Clone, Debug)]
pub struct Trainable {
    /// As the adapter's file (or, for a projection, the released code's module) names it.
    pub name: String,
    pub shape: [usize; 2],
    /// Whose it is, among the heads; None: the prefix's.
    pub head: Option<usize>,
    /// Whether initial values are drawn; else they are zero (biases).
    pub drawn: bool,
    pub master: View,
    pub gradient: View,
    pub moment1: View,
    pub moment2: View,
    /// Updates so far.
    pub steps: u64,
    /// Whether the running step has used it.
    pub used: bool,
}

/// The prefix as attention reads it, and, where a projection makes it, what lies between.
pub enum PrefixBuffers {
    /// The table is the first trainable.
    Flat,
    Projected {
        /// \[P, 2 L kv\]: the MLP's output and its gradient.
        table: View,
        d_table: View,
        /// \[P, M\]: sum, tanh and gradient of the hidden layer.
        sum: View,
        hidden: View,
        d_hidden: View,
    },
}

pub struct Trainables {
    pub list: Vec<Trainable>,
    pub prefix: Option<PrefixBuffers>,
    /// Indices of each head's layers: (weight, bias), first to last.
    pub heads: Vec<Vec<(usize, Option<usize>)>>,
    /// All gradients as one vector; empty where nothing is trained.
    pub gradients: View,
}

/// Names and shapes (and whether values are drawn) of the prefix's trainables, in order.
pub fn prefix_tensors(spec: &Specification, options: &EngineOptions) -> Vec<(String, [usize; 2], bool)> {
    let [length, columns] = options.prefix.table_shape(spec);
    match (length, options.prefix.projection) {
        (0, _) => Vec::new(),
        (_, None) => vec![("prompt_embeddings".into(), [length, columns], true)],
        (_, Some(hidden)) => vec![
            ("prefix_encoder.embedding.weight".into(), [length, spec.hidden_size], true),
            ("prefix_encoder.trans.0.weight".into(), [hidden, spec.hidden_size], true),
            ("prefix_encoder.trans.0.bias".into(), [1, hidden], false),
            ("prefix_encoder.trans.2.weight".into(), [columns, hidden], true),
            ("prefix_encoder.trans.2.bias".into(), [1, columns], false),
        ],
    }
}

impl Trainables {
    pub fn lay_out(spec: &Specification, options: &EngineOptions, master: DType, training: bool, layout: &mut Layout) -> Trainables {
        let mut tensors = prefix_tensors(spec, options);
        let of_prefix: usize = tensors.iter().map(|(_, [rows, cols], _)| rows * cols).sum();
        let mut owners = vec![None; tensors.len()];
        let mut heads = Vec::new();
        for (index, head) in options.heads.iter().enumerate() {
            let mut layers = Vec::new();
            for HeadLayer { name, shape, bias } in head.layers(spec.hidden_size) {
                layers.push((tensors.len(), bias.then_some(tensors.len() + 1)));
                tensors.push((format!("{name}.weight"), shape, true));
                if bias {
                    tensors.push((format!("{name}.bias"), [1, shape[0]], false));
                }
            }
            owners.resize(tensors.len(), Some(index));
            heads.push(layers);
        }
        let parameters: usize = tensors.iter().map(|(_, [rows, cols], _)| rows * cols).sum();
        let mut kind = |name: &'static str, kept: bool| {
            let formula = match kept {
                true => format!("prefix {of_prefix} + head {} parameters in {}", parameters - of_prefix, master.name()),
                false => "nothing is trained".into(),
            };
            layout.region(name, formula, |layout| {
                let count = if kept { parameters } else { 0 };
                let all = layout.vector(count, master);
                let mut from = 0;
                let views: Vec<View> = tensors
                    .iter()
                    .map(|(_, [rows, cols], _)| {
                        let view = if kept { all.col_range(from, rows * cols).reshape(*rows, *cols) } else { all };
                        from += rows * cols;
                        view
                    })
                    .collect();
                (all, views)
            })
        };
        let (_, masters) = kind("trained tensors", true);
        let (gradients, gradient_views) = kind("gradients", training);
        let (_, moments1) = kind("first moments", training);
        let (_, moments2) = kind("second moments", training);
        let list = tensors
            .into_iter()
            .enumerate()
            .map(|(i, (name, shape, drawn))| Trainable {
                name,
                shape,
                head: owners[i],
                drawn,
                master: masters[i],
                gradient: gradient_views[i],
                moment1: moments1[i],
                moment2: moments2[i],
                steps: 0,
                used: false,
            })
            .collect();
        let [length, columns] = options.prefix.table_shape(spec);
        let prefix = (length > 0).then(|| match options.prefix.projection {
            None => PrefixBuffers::Flat,
            Some(hidden) => layout.region("projected prefix", format!("{length} x (2 x {columns} + 3 x {hidden})"), |layout| {
                let mut matrix = |cols| layout.matrix(length, cols, master);
                PrefixBuffers::Projected {
                    table: matrix(columns),
                    d_table: matrix(columns),
                    sum: matrix(hidden),
                    hidden: matrix(hidden),
                    d_hidden: matrix(hidden),
                }
            }),
        });
        Trainables { list, prefix, heads, gradients }
    }

    /// What a step through a head uses: the prefix and that head.
    pub fn used_by(&mut self, head: usize) -> impl Iterator<Item = &mut Trainable> {
        self.list.iter_mut().filter(move |trainable| trainable.head.is_none_or(|own| own == head))
    }

    /// \[P, 2 L kv\] as attention reads it, and its gradient.
    pub fn table(&self) -> Option<[View; 2]> {
        Some(match self.prefix.as_ref()? {
            PrefixBuffers::Flat => [self.list[0].master, self.list[0].gradient],
            PrefixBuffers::Projected { table, d_table, .. } => [*table, *d_table],
        })
    }

    /// How many of the first trainables make the prefix.
    pub fn prefix_count(&self) -> usize {
        match self.prefix {
            None => 0,
            Some(PrefixBuffers::Flat) => 1,
            Some(PrefixBuffers::Projected { .. }) => 5,
        }
    }
}
