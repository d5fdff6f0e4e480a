//! Pico: the small guest that evertwin carries along.
//!
//! A short stub runs in ring 0 ([`hardware::boot`]); everything else, drivers included,
//! runs in ring 3 with the right to do port I/O.
#![no_std]
#![no_main]

extern crate alloc;

mod hardware;
mod network;
mod virtio;
mod workloads;

use core::panic::PanicInfo;

use hardware::console::say;
use hardware::{clock, console, interrupts, paging, power};
use pico::boot_params::{self, MemoryMap};
use pico::command_line::CommandLine;

/// Longest command line that is read, in bytes.
const COMMAND_LINE_MAX: usize = 4096;

/// Where the ring-0 stub enters ring 3.
pub(crate) extern "C" fn enter(zero_page: *const [u8; 4096]) -> ! {
    interrupts::init();
    console::init();
    // SAFETY: the boot protocol hands over the zero page in RSI, in low memory, which the
    // boot page tables map, and which stays outside the heap only until the next lines:
    // what is needed of it is copied first.
    let zero_page = unsafe { zero_page.read() };
    let mut buffer = [0; COMMAND_LINE_MAX];
    paging::map_low_ram(&MemoryMap::new(&zero_page));
    let length = copy_command_line(&zero_page, &mut buffer);
    // SAFETY: boot parameters and command line were copied; the rest of RAM is free.
    unsafe { paging::give_to_heap(&MemoryMap::new(&zero_page)) };
    clock::init();
    interrupts::init_timer();

    let text = core::str::from_utf8(&buffer[..length]).unwrap_or_else(|error| {
        panic!(
            "the command line isn't UTF-8 at byte {}",
            error.valid_up_to()
        )
    });
    workloads::run(CommandLine::new(text))
}

fn copy_command_line(zero_page: &[u8; 4096], buffer: &mut [u8; COMMAND_LINE_MAX]) -> usize {
    let address = boot_params::command_line_address(zero_page) as *const u8;
    if address.is_null() {
        return 0;
    }
    for (i, slot) in buffer.iter_mut().enumerate() {
        // SAFETY: the boot protocol's pointer leads to a string that ends with a zero,
        // in RAM that is mapped by now.
        match unsafe { address.add(i).read() } {
            0 => return i,
            byte => *slot = byte,
        }
    }
    COMMAND_LINE_MAX
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    match info.location() {
        Some(place) => say!(
            "PANIC {} at {}:{}",
            info.message(),
            place.file(),
            place.line()
        ),
        None => say!("PANIC {}", info.message()),
    }
    power::panicked()
}

/// The compiled `alloc` crate refers to it; nothing unwinds here, so nothing calls it.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    panic!("unwinding was started");
}
