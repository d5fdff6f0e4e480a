//! `workload=dirty`: dirties `pages=` pages each `period_us=`, in a `pattern=`:
//! `seq` goes round an area eight times as large, `random` picks in it, `hot` takes the
//! same pages again and again. With `work=`, so many steps of computing come before each
//! page: they bound what a fast processor dirties.
//!
//! Each page carries a stamp that says how often it was written. Before a page is
//! written, its stamp is compared with a count kept elsewhere: a page that went back in
//! time, or was lost, is reported.

use alloc::vec;
use alloc::vec::Vec;

use pico::command_line::CommandLine;
use pico::pattern::{Random, Stamp, churn};

use super::{REPORT_NS, number};
use crate::hardware::console::say;
use crate::hardware::{clock, interrupts};

const PAGE: usize = 4096;
/// The area of `seq` and `random` is this much larger than what one period writes.
const AREA: usize = 8;

#[repr(C, align(4096))]
#[derive(Clone)]
struct Page {
    stamp: Stamp,
    rest: [u8; PAGE - size_of::<Stamp>()],
}

#[derive(Clone, Copy)]
enum Pattern {
    Sequential,
    Random,
    Hot,
}

pub(super) fn run(line: CommandLine<'_>) -> ! {
    let pages = number(line, "pages", 256, 1 << 20) as usize;
    let period = number(line, "period_us", 1000, 60_000_000) * 1000;
    let work = number(line, "work", 0, 1_000_000_000);
    let (name, pattern, area) = match line.value("pattern").unwrap_or("seq") {
        "seq" => ("seq", Pattern::Sequential, pages * AREA),
        "random" => ("random", Pattern::Random, pages * AREA),
        "hot" => ("hot", Pattern::Hot, pages),
        other => panic!("pattern={other}: use seq, random or hot"),
    };
    let free = crate::hardware::heap::total() - crate::hardware::heap::used();
    if area.saturating_mul(PAGE + 8) > free / 8 * 7 {
        panic!(
            "pages={pages}: {area} pages don't fit into {} KiB of free memory",
            free / 1024
        );
    }
    let mut memory = fresh_pages(area);
    let mut counts = vec![0u64; area];
    say!(
        "ready workload=dirty pages={pages} period_us={} pattern={name}",
        period / 1000
    );

    let mut random = Random::new(1);
    let (mut next, mut rounds, mut late, mut errors) = (0, 0u64, 0u64, 0u64);
    let mut report_at = clock::now() + REPORT_NS;
    let mut deadline = clock::now() + period;
    loop {
        for _ in 0..pages {
            let index = match pattern {
                Pattern::Sequential | Pattern::Hot => next,
                Pattern::Random => random.below(area as u64) as usize,
            };
            next = (index + 1) % area;
            core::hint::black_box(churn(core::hint::black_box(work)));
            let expected = Stamp::new(index as u64, counts[index]);
            let page = &mut memory[index];
            if page.stamp != expected {
                errors += 1;
                say!(
                    "WARNING dirty: page {index} holds {:?}, expected {expected:?}",
                    page.stamp
                );
            }
            counts[index] += 1;
            page.stamp = Stamp::new(index as u64, counts[index]);
        }
        rounds += 1;

        let now = clock::now();
        if now >= report_at {
            say!(
                "dirty: rounds={rounds} pages={} late={late} errors={errors}",
                rounds * pages as u64
            );
            report_at = now + REPORT_NS;
        }
        if now >= deadline {
            // Periods that can't be kept are not caught up with.
            late += 1;
            deadline = now;
        }
        wait_until(deadline);
        deadline += period;
    }
}

/// Pages with their first stamps; all of them are present afterwards.
fn fresh_pages(count: usize) -> Vec<Page> {
    let fresh = |index| Page {
        stamp: Stamp::new(index as u64, 0),
        rest: [0; PAGE - size_of::<Stamp>()],
    };
    (0..count).map(fresh).collect()
}

fn wait_until(deadline: u64) {
    while clock::now() < deadline {
        interrupts::take_wake();
        interrupts::sleep_until(Some(deadline));
    }
}
