//! Putting a machine together from its configuration.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, OnceLock};

use evertwin_devices::GuestMemory;
use evertwin_devices::bus::{Bus, BusDevice};
use evertwin_devices::console::ConsoleSink;
use evertwin_devices::gate::OutputGate;
use evertwin_devices::inbound::InboundLog;
use evertwin_devices::legacy::{
    ExitSignal, GuestExit, I8042_COMMAND_PORT, I8042Reset, POST_CODE_PORT, PVPANIC_PORT, PostCode,
    PvPanic,
};
use evertwin_devices::power::{POWER_PORT, POWER_PORTS, PowerButton, PowerRegisters};
use evertwin_devices::serial::{COM1_PORT, PORTS, Serial};
use evertwin_devices::virtio::block::{Block, DiskImage, DiskSerial};
use evertwin_devices::virtio::mmio::QUEUE_NOTIFY;
use evertwin_devices::virtio::net::{Net, open_tap};
use evertwin_devices::virtio::rng::Rng;
use evertwin_devices::virtio::vsock::Vsock;
use evertwin_devices::virtio::{Backend, VirtioMmio};
use kvm_ioctls::Kvm;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{Error, Machine, SharedDevice};
use crate::config::VmConfig;
use crate::console_input::ConsoleInput;
use crate::event_loop::{EventLoop, Subscriber};
use crate::kvm::{Buses, Vcpu, VcpuEnd, Vm};
use crate::run::AskStop;
use crate::{layout, memory};

/// As many virtio devices as there are interrupt lines for them.
pub(crate) const MAX_DEVICES: usize = (layout::LAST_GSI - layout::FIRST_GSI + 1) as usize;

/// All but the entropy device, which every VM has.
pub(super) const MAX_CONFIGURED: usize = MAX_DEVICES - 1;

/// Most output held for each sink before its device must wait, in bytes.
const GATE_LIMIT: usize = 16 << 20;

/// What the port bus holds.
type SharedBusDevice = Arc<Mutex<dyn BusDevice>>;

/// Where the serial console goes.
pub enum ConsoleOutput {
    /// Standard output, with keys from standard input.
    Stdio(AskStop),
    /// A writer of the embedder's; no input.
    Writer(Box<dyn Write + Send>),
}

impl std::fmt::Debug for ConsoleOutput {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Stdio(_) => "Stdio",
            Self::Writer(_) => "Writer",
        })
    }
}

impl Machine {
    /// Makes the machine that `config` describes, with its vCPUs paused and its output
    /// gate open. Opens disks and TAPs, so whatever is wrong with them shows here.
    ///
    /// # Errors
    /// The part that can't be had, by name.
    pub fn new(kvm: &Kvm, config: &VmConfig, console: ConsoleOutput) -> Result<Self, Error> {
        crate::boot::check(&config.kernel, config.initrd.as_deref())?;
        let memory = Arc::new(memory::allocate(config.memory)?);
        let vm = Arc::new(Vm::new(kvm, Arc::clone(&memory), config.vcpus)?);
        let gate = OutputGate::new(GATE_LIMIT).map_err(device_error("output gate"))?;
        let exit = ExitSignal::new().map_err(device_error("exit signal"))?;
        let (out, keys): (Box<dyn Write + Send>, _) = match console {
            ConsoleOutput::Stdio(stop) => (Box::new(io::stdout()), Some(stop)),
            ConsoleOutput::Writer(out) => (out, None),
        };
        let sink = ConsoleSink::new(out).map_err(device_error("console"))?;
        let serial = Serial::new(Arc::clone(&gate), gate.add_sink(Box::new(sink)))
            .map_err(device_error("serial port"))?;
        vm.wire_interrupt(serial.irq(), layout::SERIAL_GSI)?;
        let serial = Arc::new(Mutex::new(serial));
        let power_button = Arc::new(PowerButton::new().map_err(device_error("power button"))?);
        vm.wire_interrupt(power_button.irq(), layout::POWER_BUTTON_GSI)?;
        let post_code = PostCode::default();
        let first_instruction = post_code.first_write();

        let mut buses = Buses::default();
        let ports: [(u64, u64, SharedBusDevice); 5] = [
            (COM1_PORT, PORTS, Arc::clone(&serial) as _),
            (
                I8042_COMMAND_PORT,
                1,
                Arc::new(Mutex::new(I8042Reset(Arc::clone(&exit)))),
            ),
            (
                PVPANIC_PORT,
                1,
                Arc::new(Mutex::new(PvPanic(Arc::clone(&exit)))),
            ),
            (POST_CODE_PORT, 1, Arc::new(Mutex::new(post_code))),
            (
                POWER_PORT,
                POWER_PORTS,
                Arc::new(Mutex::new(PowerRegisters(Arc::clone(&exit)))),
            ),
        ];
        for (port, len, device) in ports {
            buses
                .pio
                .insert(port, len, device)
                .map_err(device_error("I/O port"))?;
        }
        let inbound = InboundLog::new().map_err(device_error("log of inbound frames"))?;
        let devices = virtio_devices(config, &memory, &gate, &inbound)?;
        wire(&vm, &devices, &mut buses.mmio)?;

        let mut subscribers: Vec<Subscriber> = Vec::new();
        for device in &devices {
            subscribers.push(Box::new(Arc::clone(device)));
        }
        if let Some(stop) = keys {
            subscribers.push(Box::new(ConsoleInput::new(
                Arc::clone(&serial),
                stop,
                Arc::clone(&power_button),
            )));
        }
        let events = EventLoop::spawn(subscribers)?;

        let failure = Arc::new(OnceLock::new());
        let buses = Arc::new(buses);
        let vcpus = (0..config.vcpus)
            .map(|id| Vcpu::spawn(&vm, id, Arc::clone(&buses), on_end(&exit, &failure)))
            .collect::<Result<_, _>>()?;
        let mut machine = Self {
            slowdown: None,
            stopped: false,
            vcpus,
            _events: events,
            vm,
            serial,
            gate,
            inbound,
            exit,
            failure,
            first_instruction,
            memory,
            cmdline_with_devices: cmdline_with_devices(&config.cmdline, devices.len()),
            power_button,
            devices,
            power_on: None,
            boots: Default::default(),
            disks_changed: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)
                .map_err(device_error("disks' event"))?,
            config: config.clone(),
        };
        machine.remember_power_on()?;
        Ok(machine)
    }

    /// The devices as two twins must have them alike.
    pub fn device_list(&self) -> Vec<String> {
        let identity = |device: &SharedDevice| super::lock(device).identity().to_string();
        self.devices.iter().map(identity).collect()
    }
}

fn device_error<E: std::fmt::Display>(what: &'static str) -> impl Fn(E) -> Error {
    move |e| Error::Device(format!("can't set up the {what}: {e}"))
}

/// Disks first, then cards, each kind in the order of the configuration, then the rest.
fn virtio_devices(
    config: &VmConfig,
    memory: &Arc<GuestMemory>,
    gate: &Arc<OutputGate>,
    inbound: &Arc<InboundLog>,
) -> Result<Vec<SharedDevice>, Error> {
    let count = config.disks.len() + config.nets.len() + usize::from(config.vsock.is_some());
    if count > MAX_CONFIGURED {
        return Err(Error::TooManyDevices(count));
    }
    let mut devices: Vec<SharedDevice> = Vec::new();
    let error = |e: &dyn std::fmt::Display| Error::Device(e.to_string());
    for (number, disk) in (0u32..).zip(&config.disks) {
        let serial = disk.serial.clone();
        let serial = serial.unwrap_or_else(|| DiskSerial::of_disk(number));
        let mut image = DiskImage::open(&disk.path, disk.read_only).map_err(|e| error(&e))?;
        image.set_cache(disk.cache).map_err(|e| error(&e))?;
        let block = Block::over(number, image, serial).map_err(|e| error(&e))?;
        devices.push(behind_mmio(memory, block)?);
    }
    for (number, net) in (0u32..).zip(&config.nets) {
        let tap = open_tap(&net.tap).map_err(|e| error(&e))?;
        let net = Net::new(number, tap, net.mac, Arc::clone(gate), Arc::clone(inbound))
            .map_err(device_error("network card"))?;
        devices.push(behind_mmio(memory, net)?);
    }
    if let Some(vsock) = &config.vsock {
        let vsock = Vsock::new(vsock.cid, vsock.socket.clone(), Arc::clone(gate));
        devices.push(behind_mmio(memory, vsock.map_err(|e| error(&e))?)?);
    }
    devices.push(behind_mmio(memory, Rng::new())?);
    Ok(devices)
}

fn behind_mmio<B: Backend + 'static>(
    memory: &Arc<GuestMemory>,
    backend: B,
) -> Result<SharedDevice, Error> {
    let device = VirtioMmio::new(Arc::clone(memory), backend).map_err(device_error("device"))?;
    Ok(Arc::new(Mutex::new(device)))
}

/// Gives each device its window, doorbells and interrupt line.
fn wire(vm: &Vm, devices: &[SharedDevice], mmio: &mut Bus) -> Result<(), Error> {
    for (index, device) in devices.iter().enumerate() {
        let base = layout::virtio_window(index);
        {
            let device = super::lock(device);
            vm.wire_interrupt(device.irq(), layout::FIRST_GSI + index as u32)?;
            for (queue, doorbell) in (0u32..).zip(device.queue_events()) {
                vm.wire_doorbell(doorbell, base + QUEUE_NOTIFY, queue)?;
            }
        }
        mmio.insert(base, layout::MMIO_STEP, Arc::clone(device) as _)
            .map_err(device_error("device window"))?;
    }
    Ok(())
}

/// Announces the devices the way `virtio_mmio.device=` wants it: size@base:irq.
fn cmdline_with_devices(user: &str, devices: usize) -> String {
    let mut text = user.trim().to_owned();
    for index in 0..devices {
        let base = layout::virtio_window(index);
        let gsi = layout::FIRST_GSI + index as u32;
        let space = if text.is_empty() { "" } else { " " };
        text.push_str(&format!("{space}virtio_mmio.device=4K@{base:#x}:{gsi}"));
    }
    text
}

fn on_end(
    exit: &Arc<ExitSignal>,
    failure: &Arc<OnceLock<String>>,
) -> impl Fn(VcpuEnd) + Send + 'static {
    let (exit, failure) = (Arc::clone(exit), Arc::clone(failure));
    move |end| {
        match end {
            VcpuEnd::Reset => tracing::info!("the guest reset itself by a triple fault"),
            VcpuEnd::Failed(reason) => {
                let _ = failure.set(reason);
            }
        }
        exit.raise(GuestExit::Reset);
    }
}
