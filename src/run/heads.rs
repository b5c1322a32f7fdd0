//! Which head of an adapter with several is meant: by a name on the command line, or by the data set's.

use super::options::TrainOptions;
use super::sets::short_name;
use crate::checkpoint::Adapter;
use crate::usage;
use anyhow::Result;

/// As --init-head: the prefix without any head. No head is called so.
pub const NO_HEAD: &str = "none";

/// The adapter with the head that --head names, or its only one.
pub fn choose(adapter: Adapter, name: Option<&str>) -> Result<Adapter> {
    match (name, adapter.metadata.heads.is_empty()) {
        (None, true) => Ok(adapter),
        (Some(name), true) => usage!("--head {name}: the adapter has one head, without a name; leave it out"),
        (None, false) => usage!("--head is missing: the adapter has the heads {}", adapter.head_names().join(", ")),
        (Some(name), false) => named(&adapter, name, "head"),
    }
}

fn named(adapter: &Adapter, name: &str, flag: &str) -> Result<Adapter> {
    match adapter.of_head(name) {
        Some(head) => Ok(head),
        None => usage!("--{flag} {name}: the adapter has the heads {}", adapter.head_names().join(", ")),
    }
}

/// What each data set starts from: the adapter of --init-adapter with its head where it has one for the set, else its prefix
/// alone.
pub fn starts(options: &TrainOptions, adapter: &Adapter) -> Result<Vec<Adapter>> {
    let (count, several) = (options.set_count(), !adapter.metadata.heads.is_empty());
    let given = options.init_head.as_deref();
    let prefix_alone = given == Some(NO_HEAD) || count > 1 && !several;
    if let Some(name) = given.filter(|&name| name != NO_HEAD) {
        if !several {
            usage!("--init-head {name}: the adapter of --init-adapter has one head, without a name; leave it out");
        }
        if count > 1 {
            usage!("--init-head {name}: several data sets start from the heads of their names; leave it out, or give {NO_HEAD}");
        }
        return Ok(vec![named(adapter, name, "init-head")?]);
    }
    if prefix_alone {
        return Ok(vec![adapter.prefix_alone(); count]);
    }
    if !several {
        return Ok(vec![adapter.clone()]);
    }
    if options.task.is_empty() {
        usage!(
            "--task is missing: the adapter of --init-adapter has the heads {}; choose one by --init-head, or give a task",
            adapter.head_names().join(", ")
        );
    }
    let names = if count > 1 { options.set_names() } else { options.task.iter().map(|&task| short_name(task)).collect() };
    let start = |(name, task): (&String, &crate::task::TaskName)| {
        let head = adapter.of_head(name).filter(|head| head.metadata.task == Some(task.kind()));
        head.unwrap_or_else(|| adapter.prefix_alone())
    };
    Ok(names.iter().zip(&options.task).map(start).collect())
}
