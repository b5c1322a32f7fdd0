//! Transfers from mapped files. Their bytes may still be on the disk, so a thread of its own touches them: it asks the disk for
//! all that a transfer reads, copies it to pieces of pinned memory, and the pieces to a lane's queue. Whoever asks for a
//! transfer goes on at once; whoever joins it first waits until its last copy is in the queue.

use super::driver::Address;
use super::pinned::{Piece, Pieces, Queue};
use crate::backend::{FileBytes, read_ahead};
use anyhow::{Context, Result, anyhow};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

/// Bytes of a file that are copied to an address.
pub struct Read {
    pub file: FileBytes,
    pub from: usize,
    pub to: Address,
    pub bytes: usize,
}

/// A transfer: what its lane's queue is given, and who is told when that is done.
struct Job<Q> {
    queue: Q,
    reads: Vec<Read>,
    done: Sender<Result<()>>,
}

/// A transfer under way.
pub struct Reading(Receiver<Result<()>>);

impl Reading {
    /// Waits until all its copies are in its lane's queue. An error: what went wrong first, of this transfer or of one before.
    pub fn wait(self) -> Result<()> {
        self.0.recv().context("the thread that reads the weights' files has ended")?
    }
}

/// The thread, and the way to it.
pub struct Reader<Q: Queue> {
    jobs: Sender<Job<Q>>,
    thread: JoinHandle<Pieces<Q::Event>>,
}

impl<Q: Queue<Event: Send> + Send + 'static> Reader<Q> {
    /// Starts the thread, which owns the pieces; `enter` is what it does first.
    pub fn start(mut pieces: Pieces<Q::Event>, enter: impl FnOnce() -> Result<()> + Send + 'static) -> Result<Reader<Q>> {
        let (jobs, list) = channel::<Job<Q>>();
        let work = move || {
            let mut failure = enter().err();
            for Job { mut queue, reads, done } in list {
                if failure.is_none() {
                    failure = upload(&mut pieces, &mut queue, &reads).err();
                }
                // Nobody may wait any more.
                let _ = done.send(failure.as_ref().map_or(Ok(()), |failure| Err(anyhow!("{failure:#}"))));
            }
            pieces
        };
        let thread = std::thread::Builder::new().name("weights".into()).spawn(work);
        Ok(Reader { jobs, thread: thread.context("starting the thread that reads the weights' files")? })
    }

    /// Asks for a transfer; those asked for before are done first.
    pub fn read(&self, queue: Q, reads: Vec<Read>) -> Reading {
        let (done, reading) = channel();
        // Where the thread has ended, whoever waits is told.
        let _ = self.jobs.send(Job { queue, reads, done });
        Reading(reading)
    }

    /// Ends the thread behind what was asked for, and gives its pieces back; none where it failed.
    pub fn stop(self) -> Vec<Piece<Q::Event>> {
        drop(self.jobs);
        self.thread.join().map_or(Vec::new(), |pieces| pieces.list)
    }
}

/// Brings a transfer's bytes to its queue.
fn upload<Q: Queue>(pieces: &mut Pieces<Q::Event>, queue: &mut Q, reads: &[Read]) -> Result<()> {
    for Read { file, from, bytes, .. } in reads {
        read_ahead((**file).as_ref(), *from..from + bytes);
    }
    for Read { file, from, to, bytes } in reads {
        let source = (**file).as_ref().get(*from..from + bytes);
        pieces.upload(queue, *to, source.with_context(|| format!("{bytes} bytes at {from} are not in the file"))?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::bail;
    use std::sync::{Arc, Mutex};

    const PIECE: usize = 100;

    /// A device whose copies happen when an event behind them is waited for, and that can be held up and fail.
    #[derive(Clone, Default)]
    struct Fake(Arc<Mutex<State>>);

    #[derive(Default)]
    struct State {
        memory: Vec<u8>,
        /// Copies that were asked for: to, from, bytes.
        asked: Vec<(Address, usize, usize)>,
        done: usize,
        /// Fails from this copy on.
        fails: Option<usize>,
    }

    impl State {
        fn run_until(&mut self, number: usize) {
            while self.done < number {
                let (to, from, bytes) = self.asked[self.done];
                // SAFETY: `upload`'s caller keeps the source until an event behind this copy.
                let source = unsafe { std::slice::from_raw_parts(from as *const u8, bytes) };
                self.memory[to as usize..][..bytes].copy_from_slice(source);
                self.done += 1;
            }
        }
    }

    impl Queue for Fake {
        type Event = usize;

        unsafe fn upload(&mut self, to: Address, from: *const u8, bytes: usize) -> Result<()> {
            let mut state = self.0.lock().unwrap();
            if state.fails.is_some_and(|first| state.asked.len() >= first) {
                bail!("copy {} fails", state.asked.len());
            }
            state.asked.push((to, from as usize, bytes));
            Ok(())
        }

        fn record(&mut self, event: &mut usize) -> Result<()> {
            *event = self.0.lock().unwrap().asked.len();
            Ok(())
        }

        fn wait(&mut self, event: &usize) -> Result<()> {
            self.0.lock().unwrap().run_until(*event);
            Ok(())
        }
    }

    /// Four pieces, whose memory lives as long as the tests.
    fn pieces() -> Pieces<usize> {
        let start = |_| Box::leak(vec![0u8; PIECE].into_boxed_slice()).as_mut_ptr();
        Pieces::new((0..4).map(start).map(|start| Piece { start, event: 0 }).collect(), PIECE)
    }

    fn file(seed: usize) -> FileBytes {
        Arc::new((0..5000).map(|i| (i * 7 + i / 256 + seed) as u8).collect::<Vec<u8>>())
    }

    fn device(bytes: usize) -> Fake {
        let fake = Fake::default();
        fake.0.lock().unwrap().memory = vec![0; bytes];
        fake
    }

    /// Parts of several files, longer than all pieces, arrive whole and side by side; what is waited for is in the queue.
    #[test]
    fn transfers_arrive_whole() {
        let (device, files) = (device(6000), [file(0), file(9)]);
        let reader = Reader::start(pieces(), || Ok(())).unwrap();
        let part = |file: usize, from, to, bytes| Read { file: files[file].clone(), from, to, bytes };
        let first = reader.read(device.clone(), vec![part(0, 3, 0, 1501), part(1, 0, 1501, 99)]);
        let second = reader.read(device.clone(), vec![part(1, 4000, 1600, 1000)]);
        first.wait().unwrap();
        let asked = |device: &Fake| device.0.lock().unwrap().asked.iter().map(|(_, _, bytes)| bytes).sum::<usize>();
        assert!(asked(&device) >= 1600, "the first transfer is not in the queue");
        second.wait().unwrap();
        assert_eq!(asked(&device), 2600);
        let all = device.0.lock().unwrap().asked.len();
        device.clone().wait(&all).unwrap();
        let bytes = files.each_ref().map(|file| (**file).as_ref());
        let expected = [&bytes[0][3..1504], &bytes[1][..99], &bytes[1][4000..5000]].concat();
        assert!(device.0.lock().unwrap().memory[..2600] == expected);
        assert_eq!(reader.stop().len(), 4);
    }

    /// Whoever asks goes on although the thread is held up.
    #[test]
    fn nobody_waits_before_the_join() {
        let (device, file) = (device(1000), file(1));
        let reader = Reader::start(pieces(), || Ok(())).unwrap();
        let held = device.0.lock().unwrap();
        let reading = reader.read(device.clone(), vec![Read { file, from: 0, to: 0, bytes: 500 }]);
        assert!(held.asked.is_empty() && reading.0.try_recv().is_err());
        drop(held);
        reading.wait().unwrap();
    }

    /// A failure is found by who joins, and stays; of a thread that could not begin, too.
    #[test]
    fn failures_are_found_at_the_join() {
        let read = |reader: &Reader<Fake>, device: &Fake, from| {
            reader.read(device.clone(), vec![Read { file: file(2), from, to: 0, bytes: 300 }]).wait()
        };
        let failing = device(1000);
        failing.0.lock().unwrap().fails = Some(4);
        let reader = Reader::start(pieces(), || Ok(())).unwrap();
        read(&reader, &failing, 0).unwrap();
        for _ in 0..2 {
            assert!(read(&reader, &failing, 0).unwrap_err().to_string().contains("copy 4 fails"));
        }
        reader.stop();
        let reader = Reader::start(pieces(), || Ok(())).unwrap();
        assert!(read(&reader, &device(1000), 4900).unwrap_err().to_string().contains("not in the file"));
        let reader = Reader::start(pieces(), || bail!("no context")).unwrap();
        assert!(read(&reader, &device(1000), 0).unwrap_err().to_string().contains("no context"));
    }

    /// A thread that is gone is an error, and nobody waits for it for ever.
    #[test]
    fn an_ended_thread_is_an_error() {
        let reader: Reader<Fake> = Reader::start(pieces(), || panic!("on purpose")).unwrap();
        let reading = reader.read(device(1000), vec![]);
        assert!(reading.wait().unwrap_err().to_string().contains("has ended"));
        assert!(reader.stop().is_empty());
    }
}
