//! The machines of all hosts, called in turns.
//!
//! A daemon is not done the moment it learns something: what it does about an event takes effect
//! one to two [`TURN`]s later. So nothing that the world does within a turn depends on the calls
//! of the same turn, nor on those of the turn before, and a second thread can carry out the one
//! turn while the world goes on with the next. Whether there is such a thread decides how long a
//! run takes, and nothing else: all that the machines are told and answer, and when, is the same.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, SyncSender, TryRecvError, sync_channel},
    },
    thread::JoinHandle,
};

use shoal_protocol::{
    core::Core,
    event::{Action, Event},
    invariants::Broken,
    time::Time,
};

use crate::net::{MICROSECOND, NodeIndex};

/// Nanoseconds between the ends of turns. A daemon takes about as long from the packet to the
/// answer: two system calls, two changes of task, and the machine.
pub(crate) const TURN: u64 = 20 * MICROSECOND;

/// Below so many hosts a turn holds too little to be worth handing over.
pub(crate) const THREADED_FROM: usize = 200;

/// The thread that goes on with the world has time left: of so many machines it calls one itself.
const OWN: usize = 6;

/// The turn that ends is handed over before the answers to the one before are taken.
const PARTS_MAX: usize = 2;

/// A thread looks so often for its next part before it sleeps: for about 50 µs.
const LOOKS: u32 = 2000;

/// A machine is to learn something.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) host: u32,
    /// Of the process that it is for. Another one does not hear of it.
    pub(crate) epoch: u32,
    pub(crate) now: Time,
    pub(crate) event: Event,
}

/// What a machine wants after a call.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) host: u32,
    pub(crate) epoch: u32,
    pub(crate) now: Time,
    /// When it wants to be called at the latest.
    pub(crate) deadline: Time,
    /// How many of the turn's actions are its own; they are in the order of the calls.
    pub(crate) actions: usize,
    pub(crate) broken: Option<Broken>,
}

/// Some calls of a turn and, once they are carried out, the answers.
#[derive(Debug, Default)]
pub(crate) struct Part {
    calls: Vec<Call>,
    pub(crate) answers: Vec<Answer>,
    pub(crate) actions: Vec<Action>,
}

/// A turn: the world's own part and the other thread's, answered in this order.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    pub(crate) parts: [Part; 2],
}

impl Turn {
    pub(crate) fn add(&mut self, call: Call) {
        let own = (call.host as usize).is_multiple_of(OWN);
        self.parts[usize::from(!own)].calls.push(call);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.parts.iter().all(|part| part.calls.is_empty())
    }
}

/// A host's process, while there is one.
#[derive(Default)]
struct Machine {
    epoch: u32,
    core: Option<Core>,
    calls: u64,
}

type Shared = Arc<[Mutex<Machine>]>;

pub(crate) struct Machines {
    hosts: Shared,
    check_every: u64,
    worker: Option<Worker>,
    /// The world's parts of the turns that were begun.
    own: VecDeque<Part>,
    /// How many of the other parts the thread has, and those that are carried out.
    under_way: usize,
    done: VecDeque<Part>,
}

struct Worker {
    parts: Option<SyncSender<Part>>,
    done: Receiver<Part>,
    thread: Option<JoinHandle<()>>,
}

impl Machines {
    /// Room for the machines of so many hosts. Every so many calls a machine's invariants are
    /// checked.
    pub(crate) fn new(hosts: usize, check_every: u64) -> Self {
        let machines: Shared = (0..hosts).map(|_| Mutex::default()).collect();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let worker = (hosts >= THREADED_FROM && cores > 1)
            .then(|| Worker::start(Arc::clone(&machines), check_every))
            .flatten();
        Self {
            hosts: machines,
            check_every,
            worker,
            own: VecDeque::new(),
            under_way: 0,
            done: VecDeque::new(),
        }
    }

    /// A process starts.
    pub(crate) fn start(&mut self, host: NodeIndex, epoch: u32, core: Core) {
        self.wait();
        let mut machine = lock(&self.hosts[host]);
        machine.epoch = epoch;
        machine.core = Some(core);
    }

    /// A process is gone.
    pub(crate) fn stop(&mut self, host: NodeIndex) {
        self.wait();
        lock(&self.hosts[host]).core = None;
    }

    /// Looks at a machine after all turns so far; `None` where there is none.
    pub(crate) fn with<R>(
        &mut self,
        host: NodeIndex,
        look: impl FnOnce(&mut Core) -> R,
    ) -> Option<R> {
        self.wait();
        lock(&self.hosts[host]).core.as_mut().map(look)
    }

    /// Carries out a turn, or begins to.
    pub(crate) fn begin(&mut self, turn: Turn) {
        let [mut own, mut other] = turn.parts;
        if let Some(worker) = &self.worker {
            self.under_way += 1;
            worker.hand_over(other);
        } else {
            carry_out(&self.hosts, self.check_every, &mut other);
            self.done.push_back(other);
        }
        carry_out(&self.hosts, self.check_every, &mut own);
        self.own.push_back(own);
    }

    /// The oldest turn that was begun, carried out.
    pub(crate) fn end(&mut self) -> Option<Turn> {
        let own = self.own.pop_front()?;
        if self.done.is_empty() {
            self.take_over();
        }
        let other = self.done.pop_front()?;
        Some(Turn {
            parts: [own, other],
        })
    }

    fn take_over(&mut self) {
        if let Some(worker) = &mut self.worker {
            self.done.push_back(worker.take_over());
            self.under_way -= 1;
        }
    }

    fn wait(&mut self) {
        while self.under_way > 0 {
            self.take_over();
        }
    }
}

impl Worker {
    /// `None` when the system gives no thread: then there is none.
    fn start(machines: Shared, check_every: u64) -> Option<Self> {
        let (parts, to_do) = sync_channel(PARTS_MAX);
        let (ready, done) = sync_channel(PARTS_MAX);
        let work = move || {
            while let Some(mut part) = next(&to_do) {
                carry_out(&machines, check_every, &mut part);
                if ready.send(part).is_err() {
                    break;
                }
            }
        };
        let thread = std::thread::Builder::new().spawn(work).ok()?;
        Some(Self {
            parts: Some(parts),
            done,
            thread: Some(thread),
        })
    }

    fn hand_over(&self, part: Part) {
        // If the thread is gone, asking for the part tells why.
        let _ = self.parts.as_ref().map(|parts| parts.send(part));
    }

    fn take_over(&mut self) -> Part {
        if let Some(part) = next(&self.done) {
            return part;
        }
        match self.thread.take().map(JoinHandle::join) {
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            Some(Ok(())) | None => unreachable!("it ends only when it is dropped"),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.parts = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The next part that comes; `None` when none will. Waking a thread takes longer than a turn.
fn next(from: &Receiver<Part>) -> Option<Part> {
    for _ in 0..LOOKS {
        match from.try_recv() {
            Ok(part) => return Some(part),
            Err(TryRecvError::Empty) => std::hint::spin_loop(),
            Err(TryRecvError::Disconnected) => return None,
        }
    }
    from.recv().ok()
}

/// A machine that panicked ends the run; no other one looks at it.
fn lock(machine: &Mutex<Machine>) -> std::sync::MutexGuard<'_, Machine> {
    machine.lock().unwrap_or_else(PoisonError::into_inner)
}

fn carry_out(machines: &[Mutex<Machine>], check_every: u64, part: &mut Part) {
    let Part {
        calls,
        answers,
        actions,
    } = part;
    for call in calls.drain(..) {
        let mut machine = lock(&machines[call.host as usize]);
        let machine = &mut *machine;
        let Some(core) = &mut machine.core else {
            continue;
        };
        if machine.epoch != call.epoch {
            continue;
        }
        let before = actions.len();
        core.handle(call.now, call.event, actions);
        machine.calls += 1;
        let check = machine.calls.is_multiple_of(check_every);
        answers.push(Answer {
            host: call.host,
            epoch: call.epoch,
            now: call.now,
            deadline: core.deadline(),
            actions: actions.len() - before,
            broken: check.then(|| core.check().err()).flatten(),
        });
    }
}
