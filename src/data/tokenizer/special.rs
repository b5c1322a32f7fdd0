//! The tokens that end a text: the tokenizer's `eos_token`, and what the model's configurations name besides, at which
//! generated text ends too.

use super::files::{Config, read_object};
use anyhow::{Result, bail};
use serde_json::Value;
use std::path::Path;
use tokenizers::Tokenizer;

/// `eos_token` of tokenizer_config.json or special_tokens_map.json, then `eos_token_id` (one or a list) of config.json and
/// generation_config.json, each once.
pub fn end_tokens(directory: &Path, tokenizer: &Tokenizer, vocabulary: usize) -> Result<Vec<u32>> {
    let mut found: Vec<u32> = Vec::new();
    let mut add = |id: u32| {
        if (id as usize) < vocabulary && !found.contains(&id) {
            found.push(id);
        }
    };
    let map = directory.join("special_tokens_map.json");
    for config in [Config::read(directory)?, Config { path: map.display().to_string(), settings: read_object(&map)? }] {
        if let Some(token) = config.optional_token("eos_token")? {
            match tokenizer.token_to_id(&token) {
                Some(id) => add(id),
                None => bail!("{}: eos_token {token:?} is not in the vocabulary", config.path),
            }
        }
    }
    for name in ["config.json", "generation_config.json"] {
        let ids = read_object(&directory.join(name))?.remove("eos_token_id");
        let ids = match ids {
            Some(Value::Array(ids)) => ids,
            Some(id) => vec![id],
            None => Vec::new(),
        };
        ids.iter().filter_map(Value::as_u64).filter_map(|id| u32::try_from(id).ok()).for_each(&mut add);
    }
    if found.is_empty() {
        bail!("{}: no token ends a text; name it as eos_token in tokenizer_config.json", directory.display());
    }
    Ok(found)
}
