//! Heads of several data sets on one prefix: an adapter of several, and what it is to one of them.

use super::adapter::{Adapter, POOLER, PREFIX};
use super::metadata::Metadata;
use crate::model::{HeadKind, HeadSpec};
use std::collections::BTreeMap;

impl Adapter {
    /// Names of the heads, where there are several.
    pub fn head_names(&self) -> Vec<&str> {
        self.metadata.heads.keys().map(String::as_str).collect()
    }

    /// The adapter with one of several heads alone, as if it had never had another; None where none is called so.
    pub fn of_head(&self, name: &str) -> Option<Adapter> {
        let metadata = self.metadata.heads.get(name)?;
        let scope = HeadSpec::scope(name);
        let own = self.tensors.iter().filter_map(|(name, tensor)| Some((name.strip_prefix(&scope)?.to_string(), tensor.clone())));
        let prefix = self.prefix_alone();
        Some(Adapter { metadata: metadata.clone(), tensors: own.chain(prefix.tensors).collect(), foreign: self.foreign })
    }

    /// The adapters of all heads, where there are several.
    pub(super) fn of_heads(&self) -> impl Iterator<Item = (&str, Adapter)> {
        self.metadata.heads.keys().filter_map(|name| Some((name.as_str(), self.of_head(name)?)))
    }

    /// The adapter without any head: for another one on the same prefix.
    pub fn prefix_alone(&self) -> Adapter {
        // DeBERTa's head trains a pooler of its own.
        let pooler = (self.metadata.head != HeadKind::Context).then(|| format!("{POOLER}."));
        let is_kept = |name: &str| name == PREFIX || pooler.as_ref().is_some_and(|pooler| name.starts_with(pooler));
        let kept = self.tensors.iter().filter(|(name, _)| is_kept(name));
        let tensors = kept.map(|(name, tensor)| (name.clone(), tensor.clone())).collect();
        Adapter { metadata: self.metadata.without_head(), tensors, foreign: false }
    }
}

impl Metadata {
    /// Of several heads on one prefix, which have the rest in common.
    pub fn of_heads(heads: BTreeMap<String, Metadata>) -> Option<Metadata> {
        let shared = heads.values().next()?.without_head();
        Some(Metadata { heads, ..shared })
    }
}
