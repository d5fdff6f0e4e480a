//! Booting and ending a plain microVM.

use evertwin_tests::kernel::{check_pics_masked, elf, out_and_halt, reset_until};
use evertwin_tests::lab::{STEP, TestLab};

/// Runs a kernel of a few bytes to its end and returns the exit code.
fn exit_code_of(code: &[u8], options: &[&str]) -> Option<i32> {
    let lab = TestLab::new();
    std::fs::write(lab.path("kernel"), elf(code)).unwrap();
    let mut arguments = vec!["run", "--kernel", "kernel", "--memory", "16M"];
    arguments.extend(options);
    let (status, log) = lab.evertwin_to_end("vm", &arguments);
    println!("{status} {log:?}");
    status.code()
}

#[test]
fn pico_says_that_it_is_ready() {
    let lab = TestLab::new();
    let mut vm = lab.pico("vm", "workload=cpu", "64M");
    let line = vm.wait_for_console("pico: ready", STEP).unwrap();
    assert!(line.text.contains("workload=cpu"), "{}", line.text);
}

#[test]
fn a_guest_reset_can_end_the_process_with_success() {
    let exit = ["--on-reboot", "exit"];
    // i8042 command port: pulse the reset line.
    assert_eq!(exit_code_of(&out_and_halt(0x64, 0xfe), &exit), Some(0));
    // ACPI's reset register.
    assert_eq!(exit_code_of(&out_and_halt(0x602, 1), &exit), Some(0));
}

#[test]
fn a_guest_reset_boots_the_guest_again_in_the_same_process() {
    let lab = TestLab::new();
    std::fs::write(lab.path("kernel"), elf(&reset_until(3))).unwrap();
    let vcpus = ["1", "4"];
    for vcpus in vcpus {
        let arguments = [
            "run", "--kernel", "kernel", "--memory", "16M", "--vcpus", vcpus,
        ];
        let mut vm = lab.evertwin("vm", arguments);
        // Each boot writes its number.
        vm.wait_for_console("123", STEP).unwrap();
        let status = vm.wait_for_exit(STEP).unwrap();
        assert_eq!(status.code(), Some(0));
    }
}

/// Until a guest sets its LAPIC up, an interrupt of line 7 would be an exception to it.
#[test]
fn a_guest_finds_the_old_interrupt_controllers_silent() {
    assert_eq!(exit_code_of(&check_pics_masked(), &[]), Some(0));
}

#[test]
fn a_guest_shutdown_ends_the_process_with_success() {
    assert_eq!(exit_code_of(&out_and_halt(0x505, 1 << 2), &[]), Some(0));
    // ACPI's sleep control register: soft off.
    assert_eq!(exit_code_of(&out_and_halt(0x600, 0x34), &[]), Some(0));
}

#[test]
fn a_guest_panic_ends_the_process_with_101_or_as_configured() {
    assert_eq!(exit_code_of(&out_and_halt(0x505, 1), &[]), Some(101));
    let lab = TestLab::new();
    std::fs::write(lab.path("kernel"), elf(&out_and_halt(0x505, 1))).unwrap();
    let arguments = [
        "run",
        "--kernel",
        "kernel",
        "--memory",
        "16M",
        "--on-panic",
        "restart",
    ];
    let (status, log) = lab.evertwin_to_end("vm", &arguments);
    let again = log.iter().filter(|line| line.contains("booting it again"));
    assert_eq!(again.count(), 9, "{log:?}");
    // It never got anywhere, so it is given up.
    assert_eq!(status.code(), Some(101), "{log:?}");
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
