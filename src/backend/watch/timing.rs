//! A watch that times every operation: a mark before it and one behind each of its launches, or behind the whole where
//! it is of one piece. Times are asked for later, so that nothing waits meanwhile.

use super::{Operation, Watch, Watched, Work};
use crate::backend::{Backend, Mark, Scope};
use std::sync::{Arc, Mutex, PoisonError};

/// A stretch of time with what was done in it.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    pub label: String,
    /// The innermost scope.
    pub scope: Option<Scope>,
    pub work: Work,
    /// Whether it is an operation's (or a part's) first: what counts as a call.
    pub first: bool,
    pub from: Mark,
    pub to: Mark,
}

/// What a timed backend has done while it was switched on.
#[derive(Default)]
pub struct Log {
    on: bool,
    pub pieces: Vec<Piece>,
    /// Sum of [`Operation::useful`].
    pub useful: f64,
}

impl Log {
    /// Switches timing on or off; what was logged before is forgotten. The backend's launches have to be switched with it.
    fn set(&mut self, on: bool) {
        *self = Log { on, ..Log::default() };
    }
}

/// The log of a timed backend.
#[derive(Clone, Default)]
pub struct Shared(Arc<Mutex<Log>>);

impl Shared {
    fn with<R>(&self, run: impl FnOnce(&mut Log) -> R) -> R {
        run(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// From now on everything is timed.
    pub fn start(&self) {
        self.with(|log| log.set(true));
    }

    /// Ends timing; what was logged since [`Shared::start`].
    pub fn stop(&self) -> Log {
        self.with(std::mem::take)
    }
}

struct Timing {
    log: Shared,
    scopes: Vec<Scope>,
    began: Mark,
}

/// A backend that times its operations, once its log is started.
pub fn timed(inner: Box<dyn Backend>) -> (Box<dyn Backend>, Shared) {
    let log = Shared::default();
    let watch = Timing { log: log.clone(), scopes: Vec::new(), began: Mark(0) };
    (Box::new(Watched::new(inner, Box::new(watch))), log)
}

impl Watch for Timing {
    fn is_on(&self) -> bool {
        self.log.with(|log| log.on)
    }

    fn before(&mut self, backend: &mut dyn Backend, _: &Operation) {
        backend.log_launches(true);
        self.began = backend.mark();
    }

    fn after(&mut self, backend: &mut dyn Backend, operation: Operation) {
        let mut launches = backend.launches();
        backend.log_launches(false);
        if launches.is_empty() {
            launches.push((operation.name, backend.mark()));
        }
        let (scope, mut from, mut own) = (self.scopes.last().copied(), self.began, true);
        self.log.with(|log| {
            log.useful += operation.useful;
            for (kernel, to) in launches {
                let part = operation.parts.iter().find(|(start, ..)| kernel.starts_with(start));
                let (label, work, first) = match part {
                    Some((_, label, work)) => (label.clone(), *work, true),
                    // Of several launches of one kind the first stands for all.
                    None => (operation.label.clone(), if own { operation.work } else { Work::default() }, std::mem::take(&mut own)),
                };
                log.pieces.push(Piece { label, scope, work, first, from, to });
                from = to;
            }
        });
    }

    fn enter(&mut self, scope: Scope) {
        self.scopes.push(scope);
    }

    fn leave(&mut self) {
        self.scopes.pop();
    }
}
