//! `ptune inspect`: what a model or an adapter is.

use super::print;
use crate::checkpoint::{Adapter, FrozenModel, Metadata, WeightFormat};
use crate::engine::{Capacity, EngineOptions, Plan, PrefixOptions};
use crate::error::require_directory;
use crate::model::{HeadSpec, Pooling, Positions, Reads, TaskKind, default_head};
use crate::run::memory::{grouped, readable};
use crate::run::terminal::Terminal;
use crate::run::{Device, device};
use anyhow::{Result, bail};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(clap::Args)]
pub struct Arguments {
    /// A model directory, or the folder of an adapter
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

pub fn run(arguments: Arguments) -> Result<ExitCode> {
    let directory = &arguments.directory;
    require_directory(directory, "give the folder of a model or of an adapter")?;
    let text = if directory.join("adapter_config.json").exists() {
        adapter(directory)?
    } else if directory.join("config.json").exists() {
        model(directory)?
    } else {
        bail!("{}: there is neither config.json of a model nor adapter_config.json of an adapter", directory.display());
    };
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// The run that the memory plan of a model is shown for: the defaults of `ptune train`, at full length.
const PREFIX: usize = 20;
const BATCH: usize = 32;
const LENGTH: usize = 128;

/// One line of a table.
fn line(text: &mut String, name: &str, value: impl std::fmt::Display) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{name:<14} {value}");
}

fn model(directory: &Path) -> Result<String> {
    let model = FrozenModel::open(directory)?;
    let spec = &model.spec;
    let mut text = String::new();
    line(&mut text, "model", directory.display());
    line(&mut text, "family", &spec.family);
    let groups = if spec.kv_heads == spec.heads { String::new() } else { format!(" ({} key/value heads)", spec.kv_heads) };
    line(
        &mut text,
        "size",
        format!(
            "{} layers, hidden {}, {} heads of {}{groups}, feed-forward {}, vocabulary {}",
            spec.layers,
            spec.hidden_size,
            spec.heads,
            spec.head_dim,
            spec.ffn_size,
            grouped(spec.vocabulary as u64)
        ),
    );
    line(&mut text, "parameters", grouped(spec.parameters() as u64));
    let (whole, left) = (spec.longest_sequence(0), spec.longest_sequence(PREFIX));
    let positions = match &spec.positions {
        Positions::Learned { table, .. } => format!("table of {table}: up to {whole} tokens, {left} behind a prefix of {PREFIX}"),
        Positions::Rotary(rotary) => format!("rotary, {}: up to {whole} tokens, {left} behind a prefix of {PREFIX}", rotary.limit),
        Positions::TwoDimensional { .. } => format!("two-dimensional, up to {whole} tokens, not shifted by a prefix"),
        Positions::Relative { span, .. } => format!("relative, up to {span} tokens apart: texts of any length"),
    };
    line(&mut text, "positions", positions);
    if let Some(window) = spec.window {
        line(&mut text, "window", format!("{window} positions, prefix included; longer is not supported"));
    }
    let head = HeadSpec::new(TaskKind::Classification, default_head(spec, TaskKind::Classification), 2, spec);
    if head.pooling == Pooling::Frozen {
        line(&mut text, "pooler", if model.has_pooler() { "yes" } else { "no (a frozen random one is stored with the adapter)" });
    }
    line(&mut text, "dropout", format!("hidden {}, attention {}", spec.hidden_dropout, spec.attention_dropout));
    if let Some(labels) = &spec.labels {
        line(&mut text, "labels", labels.join(", "));
    }
    if let Some(checkpoint) = model.checkpoint() {
        let mut types: Vec<&str> = checkpoint.tensors().map(|tensor| tensor.dtype.name()).collect();
        types.sort_unstable();
        types.dedup();
        let tensors = checkpoint.tensors().count();
        line(&mut text, "files", format!("{}, {tensors} tensors in {}", readable(checkpoint.total_bytes() as u64), types.join(" and ")));
        for (index, file) in checkpoint.files().iter().enumerate() {
            let bytes = (**file).as_ref().len() as u64;
            line(&mut text, "", format!("{} ({})", checkpoint.file_name(index).display(), readable(bytes)));
        }
    }
    line(&mut text, "fingerprint", model.fingerprint());

    let prefix = PrefixOptions { length: PREFIX, layers: (0..spec.layers).collect(), projection: None, shifted: true, dropout: 0.1 };
    let trained = PREFIX * spec.layers * 2 * spec.kv_size()
        + head.layers(spec.hidden_size).iter().map(|layer| layer.shape[0] * (layer.shape[1] + usize::from(layer.bias))).sum::<usize>();
    let share = 100.0 * trained as f64 / spec.parameters() as f64;
    line(
        &mut text,
        "trained",
        format!("{} parameters, {share:.2} % of the model, by a prefix of {PREFIX} and 2 labels", grouped(trained as u64)),
    );
    text.push_str(&default_plan(&model, prefix, vec![head], WeightFormat::default())?);
    Ok(text)
}

/// The memory plan of a training run at full length; nothing where the position table has no room behind the prefix.
fn default_plan(model: &FrozenModel, prefix: PrefixOptions, heads: Vec<HeadSpec>, weight_format: WeightFormat) -> Result<String> {
    let spec = &model.spec;
    let length = LENGTH.min(prefix.room(spec));
    if length == 0 {
        return Ok(String::new());
    }
    let title = format!("\nmemory plan of training it: prefix {}, batch {BATCH} x {length} tokens\n", prefix.length);
    let rows = if heads.iter().all(|head| head.reads == Reads::Sequences) { BATCH } else { BATCH * length };
    let capacity =
        Capacity { tokens: BATCH * length, sequences: BATCH, longest: length, rows, groups: rows, training: true, ..Capacity::default() };
    let options = EngineOptions {
        hidden_dropout: 0.1,
        attention_dropout: spec.attention_dropout,
        weight_format,
        ..EngineOptions::new(prefix, heads)
    };
    let plan = Plan::new(model, &options, capacity, &*device::open(Device::Auto, model, &Terminal::new(true))?)?;
    Ok(format!("{title}{plan}\n"))
}

fn adapter(directory: &Path) -> Result<String> {
    let adapter = Adapter::read(directory)?;
    let metadata = &adapter.metadata;
    let mut text = String::new();
    line(&mut text, "adapter", directory.display());
    line(&mut text, "made by", if adapter.foreign { "another program (PEFT's files alone)" } else { "ptune" });
    line(&mut text, "base model", &metadata.base_model);
    if metadata.heads.is_empty() {
        head_lines(&mut text, metadata);
    }
    for (name, head) in &metadata.heads {
        line(&mut text, "named head", name);
        head_lines(&mut text, head);
    }
    let layers = crate::run::LayerSet::from_indices(&metadata.prefix_layers);
    let positions = if metadata.shifted_positions { "shifted" } else { "unshifted" };
    line(
        &mut text,
        "prefix",
        match metadata.prefix_length {
            0 => "none, a head alone".to_string(),
            length if metadata.is_prompt() => format!("a prompt of {length} embeddings in front of the input"),
            length => format!("{length} positions in layers {layers} of {}, positions {positions}", metadata.model_layers),
        },
    );
    if let Some(hidden) = metadata.prefix_projection {
        line(&mut text, "projection", format!("trained through {hidden} tanh units, stored flat"));
    }
    if metadata.weight_format != WeightFormat::default() {
        line(
            &mut text,
            "weights",
            format!("{}: the base model's matrices, in training and wherever else is not said", metadata.weight_format.name()),
        );
    }
    let total: usize = adapter.tensors.values().map(|tensor| tensor.values.len()).sum();
    line(&mut text, "parameters", grouped(total as u64));
    for (name, tensor) in &adapter.tensors {
        line(&mut text, "", format!("{name} {:?}", tensor.shape));
    }
    let base = Path::new(&metadata.base_model);
    if !base.join("config.json").exists() {
        line(&mut text, "share", format!("the base model is not at {}; ptune inspect tells of a model by itself", base.display()));
        return Ok(text);
    }
    let model = FrozenModel::open(base)?;
    for warning in adapter.check(&model)? {
        line(&mut text, "warning", warning);
    }
    line(&mut text, "share", format!("{:.2} % of the model", 100.0 * total as f64 / model.spec.parameters() as f64));
    let spec = |head: &Metadata| head.head_spec(head.labels.as_ref().map_or(2, Vec::len), &model.spec);
    let several = metadata.heads.iter().filter_map(|(name, head)| Some(spec(head)?.named(name)));
    let heads: Vec<HeadSpec> = spec(metadata).into_iter().chain(several).collect();
    if !heads.is_empty() {
        let prefix = PrefixOptions {
            length: metadata.prefix_length,
            layers: metadata.prefix_layers.clone(),
            projection: None,
            shifted: metadata.shifted_positions,
            dropout: metadata.prefix_dropout,
        };
        text.push_str(&default_plan(&model, prefix, heads, metadata.weight_format)?);
    }
    Ok(text)
}

/// What there is to tell of a head.
fn head_lines(text: &mut String, metadata: &Metadata) {
    let named = metadata.named_task.as_deref();
    line(text, "task", named.unwrap_or(metadata.task.map_or("not told by the files", TaskKind::name)));
    match &metadata.labels {
        Some(labels) => line(text, "labels", format!("{}: {}", labels.len(), labels.join(", "))),
        None => line(text, "labels", "none stored"),
    }
    let head = match (&metadata.verbalizer, metadata.task) {
        (Some(words), _) => format!("none trained: the words {words:?} in the blank [MASK]"),
        (None, Some(TaskKind::CausalLm)) => "none trained: the model's language-model head".to_string(),
        (None, _) => metadata.head.name().to_string(),
    };
    line(text, "head", head);
    if let Some(length) = metadata.max_length {
        line(text, "lengths", format!("max-length {length}, doc-stride {}", metadata.doc_stride.unwrap_or(0)));
    }
}
