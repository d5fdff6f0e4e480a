//! A vCPU: a thread that runs the guest and obeys its handle.
//!
//! All KVM calls on a vCPU are made by its own thread; the handle sends commands and
//! kicks the thread out of guest mode.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use crossbeam_channel::{
    Receiver, RecvError, RecvTimeoutError, Sender, TryRecvError, bounded, unbounded,
};
use evertwin_devices::bus::Bus;
use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use super::turns::Turns;
use super::vcpu_state::VcpuState;
use super::{KvmError, TscChange, Vm};
use crate::die_together::DieTogether;

/// Where a vCPU's accesses outside RAM go.
#[derive(Default)]
pub struct Buses {
    /// Memory-mapped devices.
    pub mmio: Bus,
    /// Port-mapped devices.
    pub pio: Bus,
}

/// Why a vCPU stopped by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VcpuEnd {
    /// Triple fault: on a PC, a reset.
    Reset,
    /// KVM can't go on with this guest.
    Failed(String),
}

type Setup = Box<dyn FnOnce(&VcpuFd) -> Result<(), KvmError> + Send>;

enum Command {
    Resume,
    /// Leave guest mode, finish pending I/O; answer with the state if asked for.
    Pause {
        capture: bool,
        reply: Sender<Result<Option<Box<VcpuState>>, KvmError>>,
    },
    /// Take this share of the guest's time, in percent.
    Slow(u8),
    /// Run a closure on the paused vCPU.
    Setup(Setup, Sender<Result<(), KvmError>>),
}

/// The handle of one vCPU. It starts paused; dropping the handle ends the thread.
#[derive(Debug)]
pub struct Vcpu {
    id: u8,
    commands: Option<Sender<Command>>,
    run_page: RunPage,
    thread: Option<JoinHandle<()>>,
    msrs: Arc<[u32]>,
}

impl Vcpu {
    /// Creates vCPU `id` of `vm` with its thread, paused. `ended` is called, on that
    /// thread, if the guest ends there.
    ///
    /// # Errors
    /// The KVM call that failed.
    pub fn spawn(
        vm: &Vm,
        id: u8,
        buses: Arc<Buses>,
        ended: impl Fn(VcpuEnd) + Send + 'static,
    ) -> Result<Self, KvmError> {
        // An empty handler: the signal only ends KVM_RUN.
        extern "C" fn kicked(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
        register_signal_handler(SIGRTMIN(), kicked).map_err(KvmError::call("sigaction"))?;

        let fd = vm.create_vcpu(id)?;
        let run_page = RunPage::map(&fd)?;
        let msrs: Arc<[u32]> = VcpuState::readable_msrs(&fd, &vm.msrs)?.into();
        let (commands, receiver) = unbounded();
        let runner = Runner {
            fd,
            buses,
            commands: receiver,
            msrs: Arc::clone(&msrs),
            turns: Turns::new(Instant::now()),
            unfinished: false,
        };
        let thread = std::thread::Builder::new()
            .name(format!("vcpu{id}"))
            .spawn(move || {
                let _together = DieTogether;
                runner.serve(&ended);
            })
            .map_err(KvmError::call("clone(vcpu thread)"))?;
        Ok(Self {
            id,
            commands: Some(commands),
            run_page,
            thread: Some(thread),
            msrs,
        })
    }

    /// The model-specific registers that are part of its state.
    pub fn msrs(&self) -> &[u32] {
        &self.msrs
    }

    /// Lets the guest run.
    ///
    /// # Errors
    /// [`KvmError::VcpuGone`].
    pub fn resume(&self) -> Result<(), KvmError> {
        self.send(Command::Resume)
    }

    /// Has the vCPU stay out of the guest for this share of its time, in percent, at most 99: when
    /// it is kicked, it stays out as long as its time in the guest demands. Paused or not, it obeys
    /// as before.
    ///
    /// # Errors
    /// [`KvmError::VcpuGone`].
    pub(crate) fn slow(&self, percent: u8) -> Result<(), KvmError> {
        self.send(Command::Slow(percent))?;
        self.kick();
        Ok(())
    }

    /// Starts pausing: kicks the vCPU and returns what will tell when it has stopped.
    /// Pending MMIO and PIO are finished first (I7). With `capture`, the state comes along.
    ///
    /// # Errors
    /// [`KvmError::VcpuGone`].
    pub fn pause(&self, capture: bool) -> Result<Pausing, KvmError> {
        let (reply, answer) = bounded(1);
        self.send(Command::Pause { capture, reply })?;
        self.kick();
        Ok(Pausing {
            id: self.id,
            answer,
        })
    }

    /// Runs `setup` on the paused vCPU.
    ///
    /// # Errors
    /// What `setup` returns, or [`KvmError::VcpuGone`].
    pub fn set_up(
        &self,
        setup: impl FnOnce(&VcpuFd) -> Result<(), KvmError> + Send + 'static,
    ) -> Result<(), KvmError> {
        let (reply, answer) = bounded(1);
        self.send(Command::Setup(Box::new(setup), reply))?;
        answer.recv().map_err(|_| KvmError::VcpuGone(self.id))?
    }

    /// Puts `state` into the paused vCPU.
    ///
    /// # Errors
    /// The KVM call that failed, or a state that does not fit.
    pub fn restore(&self, state: Arc<VcpuState>, tsc: TscChange) -> Result<(), KvmError> {
        let msrs = Arc::clone(&self.msrs);
        self.set_up(move |fd| state.restore(fd, &msrs, tsc))
    }

    fn send(&self, command: Command) -> Result<(), KvmError> {
        let gone = KvmError::VcpuGone(self.id);
        match &self.commands {
            Some(commands) => commands.send(command).map_err(|_| gone),
            None => Err(gone),
        }
    }

    /// Has the vCPU leave the guest for a moment, and look what there is to do.
    pub(crate) fn kick(&self) {
        // First the flag, then the signal: a thread about to enter guest mode sees one,
        // a thread already there the other.
        self.run_page.ask_exit();
        if let Some(thread) = &self.thread {
            let _ = thread.kill(SIGRTMIN());
        }
    }
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        self.commands = None;
        self.kick();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!(vcpu = self.id, "vCPU thread panicked");
        }
    }
}

/// A pause on its way.
#[derive(Debug)]
#[must_use]
pub struct Pausing {
    id: u8,
    answer: Receiver<Result<Option<Box<VcpuState>>, KvmError>>,
}

impl Pausing {
    /// Waits until the vCPU stands still; gives its state if the pause asked for it.
    ///
    /// # Errors
    /// A failed capture (the vCPU is paused all the same), or [`KvmError::VcpuGone`].
    pub fn wait(self) -> Result<Option<Box<VcpuState>>, KvmError> {
        self.answer
            .recv()
            .map_err(|_| KvmError::VcpuGone(self.id))?
    }
}

/// A second mapping of a vCPU's `kvm_run`, so that other threads may set `immediate_exit`
/// (KVM API, 5) however the vCPU's own thread fares.
#[derive(Debug)]
struct RunPage(NonNull<kvm_bindings::kvm_run>);

// SAFETY: the page is only accessed through one atomic byte.
#[allow(unsafe_code)]
unsafe impl Send for RunPage {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl Sync for RunPage {}

const PAGE: usize = 4096;

impl RunPage {
    fn map(fd: &VcpuFd) -> Result<Self, KvmError> {
        use std::os::fd::AsRawFd;
        // SAFETY: a fresh shared mapping of the vCPU's first page, unmapped in drop.
        #[allow(unsafe_code)]
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(KvmError::call("mmap(kvm_run)")(
                std::io::Error::last_os_error(),
            ));
        }
        NonNull::new(address.cast())
            .map(Self)
            .ok_or(KvmError::Capability("a mappable kvm_run"))
    }

    fn ask_exit(&self) {
        // SAFETY: the mapping is valid while `self` lives; KVM reads the byte once per
        // KVM_RUN, and the vCPU thread's writes to it are racy by design (either value is
        // safe: a spurious 1 costs one round trip, a lost 1 is covered by the signal).
        #[allow(unsafe_code)]
        let flag = unsafe { AtomicU8::from_ptr(&raw mut (*self.0.as_ptr()).immediate_exit) };
        flag.store(1, Ordering::SeqCst);
    }
}

impl Drop for RunPage {
    fn drop(&mut self) {
        // SAFETY: mapped in `map`, and nothing else keeps the address.
        #[allow(unsafe_code)]
        unsafe {
            libc::munmap(self.0.as_ptr().cast(), PAGE)
        };
    }
}

/// The thread's side.
struct Runner {
    fd: VcpuFd,
    buses: Arc<Buses>,
    commands: Receiver<Command>,
    msrs: Arc<[u32]>,
    turns: Turns,
    /// The guest left for something that KVM finishes at the next entry only.
    unfinished: bool,
}

/// What one entry into the guest came to.
enum Step {
    Handled,
    Interrupted,
    End(VcpuEnd),
}

impl Runner {
    fn serve(mut self, ended: &dyn Fn(VcpuEnd)) {
        let mut running = false;
        // A guest that has ended here runs no further, whoever resumes the others.
        let mut over = false;
        loop {
            let Ok(command) = self.next_command(running) else {
                return;
            };
            match command {
                Some(Command::Resume) => {
                    self.turns.begin(Instant::now());
                    running = !over;
                }
                Some(Command::Slow(percent)) => self.turns.slow(percent, Instant::now()),
                Some(Command::Pause { capture, reply }) => {
                    if running && let Step::End(end) = self.finish_pending_io() {
                        over = true;
                        ended(end);
                    }
                    running = false;
                    let state = if capture {
                        VcpuState::save(&self.fd, &self.msrs).map(|s| Some(Box::new(s)))
                    } else {
                        Ok(None)
                    };
                    let _ = reply.send(state);
                }
                Some(Command::Setup(setup, reply)) => {
                    over = false;
                    let _ = reply.send(setup(&self.fd));
                }
                None => {
                    if let Step::End(end) = self.step() {
                        (running, over) = (false, true);
                        ended(end);
                    }
                }
            }
        }
    }

    /// What is asked of the vCPU. One that runs does not wait for that, unless it has to stay out
    /// of the guest for a while: then whatever is asked ends its turn outside.
    ///
    /// # Errors
    /// The handle is gone.
    fn next_command(&mut self, running: bool) -> Result<Option<Command>, RecvError> {
        if !running {
            return self.commands.recv().map(Some);
        }
        let command = match self.turns.out(Instant::now) {
            Some(out) => {
                let command = self.commands.recv_timeout(out);
                self.turns.begin(Instant::now());
                command
            }
            None => self.commands.try_recv().map_err(|error| match error {
                TryRecvError::Empty => RecvTimeoutError::Timeout,
                TryRecvError::Disconnected => RecvTimeoutError::Disconnected,
            }),
        };
        match command {
            Ok(command) => Ok(Some(command)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(RecvError),
        }
    }

    /// KVM applies the answer to an MMIO or PIO exit only on the next entry: enter with
    /// `immediate_exit` set until nothing is left to answer (KVM API, 5, `KVM_EXIT_MMIO`).
    fn finish_pending_io(&mut self) -> Step {
        while self.unfinished {
            self.fd.set_kvm_immediate_exit(1);
            match self.step() {
                Step::Handled => {}
                other => return other,
            }
        }
        Step::Interrupted
    }

    fn step(&mut self) -> Step {
        self.unfinished = true;
        match self.fd.run() {
            Ok(exit) => Self::handle(&self.buses, exit),
            // KVM finishes what there is before it looks for a reason not to enter the guest.
            Err(e) if e.errno() == libc::EINTR => {
                self.fd.set_kvm_immediate_exit(0);
                self.unfinished = false;
                Step::Interrupted
            }
            Err(e) if e.errno() == libc::EAGAIN => Step::Handled,
            Err(e) => Step::End(VcpuEnd::Failed(format!("KVM_RUN: {e}"))),
        }
    }

    fn handle(buses: &Buses, exit: VcpuExit<'_>) -> Step {
        match exit {
            // Reads from nowhere float high, as on a PC's bus; writes there vanish.
            VcpuExit::IoIn(port, data) => {
                if !buses.pio.read(u64::from(port), data) {
                    data.fill(0xFF);
                }
            }
            VcpuExit::IoOut(port, data) => {
                buses.pio.write(u64::from(port), data);
            }
            VcpuExit::MmioRead(address, data) => {
                if !buses.mmio.read(address, data) {
                    data.fill(0xFF);
                }
            }
            VcpuExit::MmioWrite(address, data) => {
                buses.mmio.write(address, data);
            }
            VcpuExit::Hlt | VcpuExit::Intr | VcpuExit::IrqWindowOpen => {}
            VcpuExit::Shutdown => return Step::End(VcpuEnd::Reset),
            VcpuExit::FailEntry(reason, _) => {
                return Step::End(VcpuEnd::Failed(format!("guest entry failed: {reason:#x}")));
            }
            VcpuExit::InternalError => {
                return Step::End(VcpuEnd::Failed(
                    "KVM can't emulate an instruction of the guest (internal error)".into(),
                ));
            }
            other => return Step::End(VcpuEnd::Failed(format!("unexpected exit {other:?}"))),
        }
        Step::Handled
    }
}
