//! A watch that names steps, phases, layers and operations to NVIDIA's profilers (NVTX ranges). It is there only where a
//! profiler is: they say so to the program by the variable that NVTX finds them by.

use super::{Operation, Watch, Watched};
use crate::backend::{Backend, Scope};

/// Where NVTX finds a profiler's library.
const INJECTION: &str = "NVTX_INJECTION64_PATH";

struct Ranges;

/// The backend, with named ranges where a profiler watches.
pub fn for_profilers(backend: Box<dyn Backend>) -> Box<dyn Backend> {
    if std::env::var_os(INJECTION).is_none_or(|path| path.is_empty()) {
        return backend;
    }
    Box::new(Watched::new(backend, Box::new(Ranges)))
}

impl Watch for Ranges {
    fn is_on(&self) -> bool {
        true
    }

    fn before(&mut self, _: &mut dyn Backend, operation: &Operation) {
        nvtx::range_push!("{}", operation.label);
    }

    fn after(&mut self, _: &mut dyn Backend, _: Operation) {
        nvtx::range_pop!();
    }

    fn enter(&mut self, scope: Scope) {
        nvtx::range_push!("{scope}");
    }

    fn leave(&mut self) {
        nvtx::range_pop!();
    }
}
