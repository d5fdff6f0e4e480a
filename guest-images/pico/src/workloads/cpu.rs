//! `workload=cpu`: a fixed piece of work over and over, with its rate each second.
//!
//! `work=` is the number of steps of one piece. Every piece gives the same result; a
//! different one means that registers or memory were not kept.

use pico::command_line::CommandLine;
use pico::pattern;

use super::{REPORT_NS, number};
use crate::hardware::clock;
use crate::hardware::console::say;

/// Steps between two looks at the clock.
const DEFAULT_WORK: u64 = 1_000_000;

pub(super) fn run(line: CommandLine<'_>) -> ! {
    let work = number(line, "work", DEFAULT_WORK, 1_000_000_000);
    let expected = pattern::churn(work);
    say!("ready workload=cpu work={work}");
    let (mut pieces, mut errors, mut total) = (0u64, 0u64, 0u64);
    let mut since = clock::now();
    loop {
        let result = pattern::churn(core::hint::black_box(work));
        pieces += 1;
        if result != expected {
            errors += 1;
            say!("WARNING cpu: result {result:#x}, expected {expected:#x}");
        }
        let elapsed = clock::now() - since;
        if elapsed >= REPORT_NS {
            total += pieces;
            let rate = u128::from(pieces) * 1_000_000_000 / u128::from(elapsed);
            say!("cpu: rate={rate} work={work} total={total} errors={errors}");
            pieces = 0;
            since = clock::now();
        }
    }
}
