//! Booting and ending a plain microVM.

use evertwin_tests::kernel::{elf, out_and_halt};
use evertwin_tests::lab::{STEP, TestLab};

/// Runs a kernel of a few bytes to its end and returns the exit code.
fn exit_code_of(code: &[u8]) -> Option<i32> {
    let lab = TestLab::new();
    std::fs::write(lab.path("kernel"), elf(code)).unwrap();
    let (status, log) =
        lab.evertwin_to_end("vm", &["run", "--kernel", "kernel", "--memory", "16M"]);
    println!("{status} {log:?}");
    status.code()
}

#[test]
fn pico_says_that_it_is_ready() {
    let lab = TestLab::new();
    let mut vm = lab.evertwin(
        "vm",
        [
            "run",
            "--kernel",
            "pico",
            "--cmdline",
            "workload=cpu",
            "--memory",
            "64M",
        ],
    );
    let line = vm.wait_for_console("pico: ready", STEP).unwrap();
    assert!(line.text.contains("workload=cpu"), "{}", line.text);
}

#[test]
fn a_guest_reset_ends_the_process_with_success() {
    // i8042 command port: pulse the reset line.
    assert_eq!(exit_code_of(&out_and_halt(0x64, 0xfe)), Some(0));
}

#[test]
fn a_guest_shutdown_ends_the_process_with_success() {
    assert_eq!(exit_code_of(&out_and_halt(0x505, 1 << 2)), Some(0));
}

#[test]
fn a_guest_panic_ends_the_process_with_101() {
    assert_eq!(exit_code_of(&out_and_halt(0x505, 1)), Some(101));
}

#[test]
fn a_halted_guest_burns_no_core_and_ends_on_request() {
    let lab = TestLab::new();
    std::fs::write(lab.path("kernel"), elf(&out_and_halt(0x80, 1))).unwrap();
    let mut vm = lab.evertwin(
        "vm",
        [
            "run",
            "--kernel",
            "kernel",
            "--memory",
            "16M",
            "--log-format",
            "json",
        ],
    );
    vm.wait_for_event("guest running", STEP).unwrap();
    let ticks = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", vm.id())).unwrap();
        // proc(5): utime and stime are fields 14 and 15; the command name may hold blanks, so count after it.
        let after_name = stat.rsplit_once(')').unwrap().1;
        let field = |number: usize| {
            after_name
                .split_whitespace()
                .nth(number - 3)
                .unwrap()
                .parse::<u64>()
                .unwrap()
        };
        field(14) + field(15)
    };
    let before = ticks();
    // Half a second of idling is what is measured here, not an event to wait for.
    std::thread::sleep(std::time::Duration::from_millis(500));
    // A burning vCPU would take 50 ticks of 10 ms.
    assert!(
        ticks() - before < 10,
        "the idle VM took {} ticks",
        ticks() - before
    );
    vm.terminate();
    let status = vm.wait_for_exit(STEP).unwrap();
    assert!(
        status.code().is_some(),
        "{status}: SIGTERM must end the process in order"
    );
}
