//! `ptune convert`: PyTorch checkpoints to safetensors.

use crate::backend::DType;
use crate::run::convert::{ConvertOptions, convert};
use crate::run::interrupt::Interrupt;
use crate::run::terminal::Terminal;
use anyhow::Result;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(clap::Args)]
pub struct Arguments {
    /// A .bin or .pt file, an index of shards, or a directory with either; safetensors too
    #[arg(long, value_name = "FILE or DIR")]
    input: PathBuf,
    /// Where the safetensors, config.json and the tokenizer go
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// fp16 or bf16 [default: bf16 where the weights are bf16, else fp16]
    #[arg(long, value_name = "TYPE", hide_possible_values = true)]
    dtype: Option<Narrow>,
    /// Largest file, in bytes, kB, MB or GB
    #[arg(long, value_name = "SIZE", default_value = "5GB", value_parser = size)]
    shard_size: u64,
    /// Print nothing but errors
    #[arg(long)]
    quiet: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Narrow {
    Fp16,
    Bf16,
}

/// A number of bytes with a decimal unit.
fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        _ => return Err("the unit must be kB, MB or GB".into()),
    };
    match digits.parse::<u64>().ok().and_then(|number| number.checked_mul(unit)) {
        Some(bytes) if bytes > 0 => Ok(bytes),
        _ => Err("it must be a number of bytes from 1, such as 5GB".into()),
    }
}

pub fn run(arguments: Arguments) -> Result<ExitCode> {
    let options = ConvertOptions {
        input: arguments.input,
        output: arguments.output,
        dtype: arguments.dtype.map(|dtype| match dtype {
            Narrow::Fp16 => DType::F16,
            Narrow::Bf16 => DType::BF16,
        }),
        shard_bytes: arguments.shard_size,
    };
    convert(&options, &Terminal::new(arguments.quiet), &Interrupt::install()?)?;
    Ok(ExitCode::SUCCESS)
}
