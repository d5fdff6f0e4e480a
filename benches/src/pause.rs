//! How long the guest stands still at an epoch's end.

use std::ops::RangeInclusive;
use std::time::Duration;

use evertwin::lab::epoch::Epoch;

use crate::arms::{Arm, Setup, Undisturbed};
use crate::floor::{Stop, Stoppable};
use crate::plot::{Axis, Bars, Lines, Plot};
use crate::report::{Demand, Row, Samples, Unit};

const WARM_UP: Duration = Duration::from_millis(500);
/// Of one arm in one round.
const TIME: Duration = Duration::from_millis(2500);
const FEW_ROUNDS: usize = 3;
const MANY_ROUNDS: usize = 2;
/// The cost is measured at these many pages; the last is the row's own.
const PAGES: [u64; 5] = [16, 64, 256, 1024, MANY];
const FEW: u64 = 64;
const MANY: u64 = 4096;
const COPY_AHEAD_OFF: &str = "protected, copy_ahead off";
const SIZES: [&str; 3] = ["512M", "2G", "8G"];
/// In each of these sizes.
const PAGES_OF_SIZES: u64 = 256;
const VCPUS: u8 = 8;

/// A guest that writes so many pages per period, and an epoch as long as that.
#[derive(Debug, Clone)]
struct Load {
    pages: u64,
    setup: Setup,
}

impl Load {
    fn new(pages: u64, pattern: &str, memory: &str) -> Self {
        // Writing a page for the first time takes up to 10 us here: much less than half the period for all.
        let period = Duration::from_micros((pages * 25).max(10_000));
        let us = period.as_micros();
        Self {
            pages,
            setup: Setup {
                cmdline: format!("workload=dirty pages={pages} period_us={us} pattern={pattern}"),
                memory: memory.into(),
                epoch: period,
                log_epochs: true,
                ..Setup::default()
            },
        }
    }

    /// Pages of an epoch that counts: one round's, of which random ones hit some twice, and a few of the guest's own.
    fn range(&self) -> RangeInclusive<u64> {
        self.pages * 85 / 100..=self.pages * 13 / 10 + 16
    }

    /// The same load, all of whose pages are copied while the guest stands still.
    fn without_copy_ahead(&self) -> Self {
        Self {
            setup: self.setup.switched(|on| on.copy_ahead = false),
            ..*self
        }
    }

    fn protected(&self, arm: Arm, undisturbed: &mut Undisturbed) -> Vec<Epoch> {
        let epochs = undisturbed.measure(&self.setup, arm, |running| {
            std::thread::sleep(WARM_UP);
            let from = running.guest().log().len();
            std::thread::sleep(TIME);
            running.epochs_since(from)
        });
        let counted = epochs.into_iter();
        counted
            .filter(|epoch| self.range().contains(&epoch.pages))
            .collect()
    }

    /// The same guest in this process.
    fn stopped(&self) -> Vec<Stop> {
        let mut guest = Stoppable::start(&self.setup);
        guest.stops(self.setup.epoch, WARM_UP, |_| false);
        guest.stops(self.setup.epoch, TIME, |stop| {
            self.range().contains(&stop.pages)
        })
    }

    fn commands(&self) -> Vec<String> {
        [Arm::Protected, Arm::Plaintext]
            .iter()
            .flat_map(|arm| self.setup.commands(*arm))
            .collect()
    }
}

/// Times of one part of what was measured, in all rounds.
fn times<T>(rounds: &[Vec<T>], us: impl Fn(&T) -> f64) -> Samples {
    let mut all = Samples::default();
    for items in rounds {
        let mut round = Samples::default();
        items.iter().for_each(|item| round.push(us(item)));
        all.add_round(&round);
    }
    all
}

fn us(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn pauses(rounds: &[Vec<Epoch>]) -> Samples {
    times(rounds, |epoch| epoch.pause_us)
}

/// The median of every phase, in the order in which the log has them.
fn phases(rounds: &[Vec<Epoch>]) -> Vec<(String, f64)> {
    let Some(first) = rounds.iter().flatten().next() else {
        return vec![];
    };
    let phase = |number: usize| {
        let of = |epoch: &Epoch| epoch.phases_us.get(number).map_or(0.0, |(_, us)| *us);
        times(rounds, of).p50()
    };
    let named = first.phases_us.iter().enumerate();
    let medians = named.map(|(number, (name, _))| (name.clone(), phase(number)));
    // One of this length is no part of a bar that anybody sees.
    medians.filter(|(_, us)| *us >= 0.05).collect()
}

/// Measures few pages, with the pause's floor.
#[must_use]
pub fn few() -> Row {
    let mut undisturbed = Undisturbed::default();
    let load = Load::new(FEW, "seq", SIZES[0]);
    let without = load.without_copy_ahead();
    let (mut stops, mut tls, mut plain, mut off) = (vec![], vec![], vec![], vec![]);
    for _ in 0..FEW_ROUNDS {
        stops.push(load.stopped());
        tls.push(load.protected(Arm::Protected, &mut undisturbed));
        plain.push(load.protected(Arm::Plaintext, &mut undisturbed));
        off.push(without.protected(Arm::Protected, &mut undisturbed));
    }
    let floor = times(&stops, |stop| us(stop.floor()));
    let copied = times(&stops, |stop| us(stop.whole));
    let part = |of: fn(&Stop) -> Duration| times(&stops, move |stop| us(of(stop))).p50();
    let (state, harvest, copy) = (part(|s| s.state), part(|s| s.harvest), part(|s| s.copy));
    let rest = (copied.p50() - state - harvest - copy).max(0.0);
    let named = |name: &str, us: f64| (name.to_owned(), us);
    let bars = vec![
        (Arm::Protected.name().to_owned(), phases(&tls)),
        (Arm::Plaintext.name().to_owned(), phases(&plain)),
        (COPY_AHEAD_OFF.to_owned(), phases(&off)),
        (
            "stop-and-copy".to_owned(),
            vec![
                named("kick", rest),
                named("state", state),
                named("harvest", harvest),
                named("copy", copy),
            ],
        ),
        (
            "floor".to_owned(),
            vec![named("state", state), named("harvest", harvest)],
        ),
    ];
    let shown = phases(&tls)
        .into_iter()
        .map(|(name, time)| format!("{name} {}", Unit::Microseconds.show(time)));
    let shown = shown.collect::<Vec<_>>().join(", ");
    let row = Row::new("pause per epoch, 64 dirty pages", &pauses(&tls))
        .floor("state ioctls and harvest alone, in this process", &floor)
        .p50_at_most(150.0)
        .p99_at_most(600.0)
        .times_floor_at_most(2.5)
        .part("protected, no TLS", &pauses(&plain))
        .part(COPY_AHEAD_OFF, &pauses(&off))
        .part("stop-and-copy, in this process", &copied)
        .detail(format!("p50 by phase: {shown}"))
        .plot(Plot::Bars(Bars {
            title: "Pause by phase, 64 dirty pages".into(),
            bars,
        }))
        .commands(load.commands())
        .commands(without.setup.commands(Arm::Protected));
    undisturbed.note(row)
}

/// Measures many pages, scattered, and the cost by the number of pages.
#[must_use]
pub fn many() -> Row {
    let mut undisturbed = Undisturbed::default();
    let loads = PAGES.map(|pages| Load::new(pages, "random", SIZES[0]));
    let without = loads[PAGES.len() - 1].without_copy_ahead();
    let mut off = vec![];
    let mut stops = PAGES.map(|_| vec![]);
    let mut epochs = PAGES.map(|_| vec![]);
    for _ in 0..MANY_ROUNDS {
        for (number, load) in loads.iter().enumerate() {
            stops[number].push(load.stopped());
            epochs[number].push(load.protected(Arm::Protected, &mut undisturbed));
        }
        off.push(without.protected(Arm::Protected, &mut undisturbed));
    }
    let curve = |name: &str, medians: [f64; PAGES.len()]| {
        let points = PAGES.iter().zip(medians).filter(|(_, us)| *us > 0.0);
        (
            name.to_owned(),
            points.map(|(pages, us)| (*pages as f64, us)).collect(),
        )
    };
    let of_stops = |of: fn(&Stop) -> Duration| {
        let medians = stops.each_ref();
        medians.map(|stops: &Vec<Vec<Stop>>| times(stops, |stop| us(of(stop))).p50())
    };
    let series = vec![
        curve(
            "protected",
            epochs.each_ref().map(|epochs| pauses(epochs).p50()),
        ),
        curve("stop-and-copy", of_stops(|stop| stop.whole)),
        curve("memcpy of the pages", of_stops(|stop| stop.copy)),
        curve("floor: state and harvest", of_stops(Stop::floor)),
    ];
    let last = PAGES.len() - 1;
    let pages = |counts: Samples| format!("{:.0}", counts.p50());
    let row = Row::new("pause per epoch, 4096 scattered dirty pages", &pauses(&epochs[last]))
        .floor("stop-and-copy of as many pages, in this process", &times(&stops[last], |stop| us(stop.whole)))
        .times_floor_at_most(0.25)
        .part(COPY_AHEAD_OFF, &pauses(&off))
        .part("state ioctls and harvest alone", &times(&stops[last], |stop| us(stop.floor())))
        .part("memcpy of the pages alone", &times(&stops[last], |stop| us(stop.copy)))
        .detail(format!(
            "the guest writes 4096 times per epoch at random, some pages twice: {} pages protected, {} in the floor",
            pages(times(&epochs[last], |epoch| epoch.pages as f64)),
            pages(times(&stops[last], |stop| stop.pages as f64))
        ))
        .plot(Plot::Lines(Lines {
            title: "Pause by dirty pages (median)".into(),
            x: Axis::logarithmic("dirty pages"),
            y: Axis::logarithmic("microseconds"),
            series,
        }))
        .commands(loads[last].commands())
        .commands(without.setup.commands(Arm::Protected));
    undisturbed.note(row)
}

/// Measures the same pages in guests of different sizes.
#[must_use]
pub fn by_memory() -> Row {
    let mut undisturbed = Undisturbed::default();
    let loads = SIZES.map(|size| Load::new(PAGES_OF_SIZES, "seq", size));
    let mut epochs = SIZES.map(|_| vec![]);
    let mut stops = SIZES.map(|_| vec![]);
    for _ in 0..MANY_ROUNDS {
        for (number, load) in loads.iter().enumerate() {
            epochs[number].push(load.protected(Arm::Protected, &mut undisturbed));
            stops[number].push(load.stopped());
        }
    }
    let [small, middle, large] = epochs.each_ref().map(|epochs| pauses(epochs));
    let gib = |number: usize| [0.5, 2.0, 8.0][number];
    let points = |medians: [f64; 3]| {
        (0..3)
            .map(|number| (gib(number), medians[number]))
            .collect()
    };
    let floors = stops
        .each_ref()
        .map(|stops| times(stops, |stop| us(stop.floor())));
    let difference = large.p50() / small.p50();
    let row = Row::new("pause per epoch over 8 GiB, 256 dirty pages", &large)
        .floor("the same over 512 MiB", &small)
        .demand(Demand::at_most(
            "8 GiB over 512 MiB, p50",
            Unit::Ratio,
            difference,
            1.2,
        ))
        .part("the same over 2 GiB", &middle)
        .part("state ioctls and harvest alone, 512 MiB", &floors[0])
        .part("state ioctls and harvest alone, 8 GiB", &floors[2])
        .plot(Plot::Lines(Lines {
            title: "Pause by RAM, 256 dirty pages (median)".into(),
            x: Axis::logarithmic("GiB of RAM"),
            y: Axis::linear("microseconds"),
            series: vec![
                (
                    "protected".into(),
                    points([&small, &middle, &large].map(Samples::p50)),
                ),
                (
                    "floor: state and harvest".into(),
                    points(floors.each_ref().map(Samples::p50)),
                ),
            ],
        }))
        .commands(loads[2].commands());
    undisturbed.note(row)
}

/// Measures the same pages with many vCPUs. They share the processors that the guest has.
#[must_use]
pub fn by_vcpus() -> Row {
    let mut undisturbed = Undisturbed::default();
    let one = Load::new(FEW, "seq", SIZES[0]);
    let mut all = one.clone();
    all.setup.vcpus = VCPUS;
    let (mut of_one, mut of_all) = (vec![], vec![]);
    for _ in 0..MANY_ROUNDS {
        of_all.push(all.protected(Arm::Protected, &mut undisturbed));
        of_one.push(one.protected(Arm::Protected, &mut undisturbed));
    }
    let (of_one, of_all) = (pauses(&of_one), pauses(&of_all));
    let more = f64::from(VCPUS) - 1.0;
    let each = (of_all.p50() - of_one.p50()) / more;
    let row = Row::new("pause per epoch, 64 dirty pages, 8 vCPUs", &of_all)
        .floor("the same with one", &of_one)
        .times_floor_at_most(f64::from(VCPUS))
        .detail(format!(
            "each vCPU more takes {}; all eight have one processor here, and only the first has work",
            Unit::Microseconds.show(each)
        ))
        .commands(all.commands());
    undisturbed.note(row)
}
