//! Ctrl-C and SIGTERM: where there is something to save the first one asks the work to stop at the next good moment, and another
//! one, of either kind, ends it at once. Before that the first one ends it.

use anyhow::{Context, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use signal_hook::iterator::{Handle, Signals};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{Builder, JoinHandle};

/// Whether somebody asked to stop.
#[derive(Clone, Default)]
pub struct Interrupt {
    signal: Arc<AtomicUsize>,
    /// Whether the next signal ends the process.
    ends: Arc<AtomicBool>,
}

/// While it lives, the first signal asks.
pub struct Held {
    interrupt: Interrupt,
    listener: Option<(Handle, JoinHandle<()>)>,
}

impl Interrupt {
    /// Listens to SIGINT and SIGTERM from now on.
    pub fn install() -> Result<Interrupt> {
        let interrupt = Interrupt { ends: Arc::new(AtomicBool::new(true)), ..Interrupt::default() };
        for signal in [SIGINT, SIGTERM] {
            // The order matters: at the first signal that asks `ends` is still false here.
            flag::register_conditional_shutdown(signal, 128 + signal, interrupt.ends.clone())
                .and_then(|_| flag::register(signal, interrupt.ends.clone()))
                .and_then(|_| flag::register_usize(signal, interrupt.signal.clone(), signal as usize))
                .context("cannot listen to signals")?;
        }
        Ok(interrupt)
    }

    /// From here on there is something to save. `answer` is printed as soon as a signal asks to stop.
    pub fn hold(&self, answer: Option<&'static str>) -> Held {
        self.ends.store(self.pending().is_some(), Ordering::SeqCst);
        // A step may take long. Without somebody to answer the run stops all the same.
        let listener = answer.and_then(|answer| {
            let mut signals = Signals::new([SIGINT, SIGTERM]).ok()?;
            let handle = signals.handle();
            let listen = move || {
                if signals.forever().next().is_some() {
                    let _ = writeln!(std::io::stdout(), "{answer}");
                }
            };
            Builder::new().spawn(listen).ok().map(|thread| (handle, thread))
        });
        Held { interrupt: self.clone(), listener }
    }

    /// Asks to stop as `signal` would.
    pub fn raise(&self, signal: i32) {
        self.signal.store(signal as usize, Ordering::SeqCst);
    }

    /// The signal that asked to stop.
    pub fn pending(&self) -> Option<i32> {
        match self.signal.load(Ordering::SeqCst) {
            0 => None,
            signal => Some(signal as i32),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.interrupt.ends.store(true, Ordering::SeqCst);
        if let Some((handle, thread)) = self.listener.take() {
            handle.close();
            let _ = thread.join();
        }
    }
}
