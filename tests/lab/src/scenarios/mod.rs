//! What happens to the hosts, and what must hold then.

mod boot;
mod debian;
mod disks;
mod ha;
mod pico;
mod roles;
mod services;
mod vsock;

use crate::error::LabError;
use crate::lab::{Lab, LabOptions};

/// One scenario. After each, the lab checks by itself that only one machine spoke for the guest.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it shows, in a line.
    pub about: &'static str,
    /// Whether it is one of the five-minute subset.
    pub quick: bool,
    /// The hosts that it wants.
    pub options: LabOptions,
    /// What happens.
    pub run: fn(&mut Lab) -> Result<(), LabError>,
}

/// Hosts for a small guest.
const SMALL: LabOptions = LabOptions {
    memory_mib: 512,
    twins: true,
    upgrades: false,
};

/// Hosts for a Debian guest.
const LARGE: LabOptions = LabOptions {
    memory_mib: 1024,
    twins: true,
    upgrades: false,
};

/// One host for a Debian guest.
const LARGE_ALONE: LabOptions = LabOptions {
    twins: false,
    ..LARGE
};

/// All scenarios, in the order in which they are run.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "pico-boots",
        about: "the built-in guest boots on kvm_amd and answers a client on another machine",
        quick: false,
        options: LabOptions {
            twins: false,
            ..SMALL
        },
        run: boot::pico,
    },
    Scenario {
        name: "pico-power-off",
        about: "the primary's machine loses its power under load; the one connection survives",
        quick: true,
        options: SMALL,
        run: pico::power_off,
    },
    Scenario {
        name: "pico-crash",
        about: "five times in turn the primary's process crashes, its twin goes on, and it returns and is protected again",
        quick: false,
        options: SMALL,
        run: pico::crash_and_return,
    },
    Scenario {
        name: "pico-freeze",
        about: "the primary's machine freezes, is replaced, thaws, and stops without a frame",
        quick: true,
        options: SMALL,
        run: pico::freeze,
    },
    Scenario {
        name: "pico-standby-lost",
        about: "the standby's machine loses its power; the guest goes on alone",
        quick: false,
        options: SMALL,
        run: pico::standby_lost,
    },
    Scenario {
        name: "pico-link-cut",
        about: "the replication link is cut; both ask the arbiter, and exactly one goes on",
        quick: true,
        options: SMALL,
        run: pico::link_cut,
    },
    Scenario {
        name: "pico-link-cut-one-way",
        about: "only the way from the primary to the standby is cut; exactly one goes on",
        quick: false,
        options: SMALL,
        run: pico::link_cut_one_way,
    },
    Scenario {
        name: "pico-link-cut-other-way",
        about: "only the way from the standby to the primary is cut; exactly one goes on",
        quick: false,
        options: SMALL,
        run: pico::link_cut_other_way,
    },
    Scenario {
        name: "pico-switchover",
        about: "the twins exchange their roles three times under load, and then the primary's machine loses its power",
        quick: true,
        options: SMALL,
        run: roles::switchover,
    },
    Scenario {
        name: "pico-maintenance",
        about: "each host's twin leaves in its turn, is started again and is protected again; no answer is late or lost",
        quick: false,
        options: SMALL,
        run: roles::maintenance,
    },
    Scenario {
        name: "pico-far-apart",
        about: "the twins are 10 ms apart: output, a switchover and the loss of the primary",
        quick: false,
        options: SMALL,
        run: roles::far_apart,
    },
    Scenario {
        name: "pico-upgrade",
        about: "twins of the previous protocol are replaced, one at a time, by twins of this one, under load",
        quick: false,
        options: LabOptions {
            upgrades: true,
            ..SMALL
        },
        run: roles::upgrade,
    },
    Scenario {
        name: "pico-arbiter-lost",
        about: "the arbiter stands still: protected output goes on, a takeover waits for it and is then made",
        quick: false,
        options: SMALL,
        run: roles::arbiter_lost,
    },
    Scenario {
        name: "pico-arbiter-cut",
        about: "the primary alone loses the arbiter, and then its twin: the twin goes on, the old primary ends",
        quick: false,
        options: SMALL,
        run: roles::arbiter_cut,
    },
    Scenario {
        name: "pico-second-path",
        about: "the replication network is cut, and then the other one: the pair goes on over what is left, unbroken",
        quick: false,
        options: SMALL,
        run: pico::second_path,
    },
    Scenario {
        name: "pico-bad-link",
        about: "the replication link delays and loses frames; the pair stays whole and the primary's loss is survived",
        quick: false,
        options: SMALL,
        run: pico::bad_link,
    },
    Scenario {
        name: "pico-clock-jump",
        about: "both hosts' clocks jump, forth and back; nothing happens, and the primary's loss is survived",
        quick: false,
        options: SMALL,
        run: pico::clock_jump,
    },
    Scenario {
        name: "ha-restart",
        about: "only disks are replicated: clocks jump, the primary's machine loses its power, and the guest boots from its mirrored disk",
        quick: false,
        options: SMALL,
        run: ha::restart,
    },
    Scenario {
        name: "ha-freeze",
        about: "only disks are replicated: the primary's machine freezes, the guest boots elsewhere, and the thawed one stops without a frame",
        quick: false,
        options: SMALL,
        run: ha::freeze,
    },
    Scenario {
        name: "ha-postgresql",
        about: "only disks are replicated: the primary's machine loses its power, and the database recovers elsewhere with every committed row",
        quick: false,
        options: LARGE,
        run: ha::postgresql,
    },
    Scenario {
        name: "disk-hangs",
        about: "the primary's disk hangs, and then its machine loses its power; the twin finishes what the guest waited for",
        quick: false,
        options: LARGE,
        run: disks::hang,
    },
    Scenario {
        name: "disk-full",
        about: "the standby's disk is full: it steps down and says why, the guest goes on, and is protected again later",
        quick: false,
        options: SMALL,
        run: disks::standby_full,
    },
    Scenario {
        name: "disk-errors",
        about: "the standby's disk fails: it steps down and says why; the guest goes on",
        quick: false,
        options: SMALL,
        run: disks::standby_fails,
    },
    Scenario {
        name: "debian-1-vcpu",
        about: "a stock Debian boots on one virtual processor",
        quick: true,
        options: LARGE_ALONE,
        run: boot::one_vcpu,
    },
    Scenario {
        name: "debian-2-vcpus",
        about: "the same on two",
        quick: false,
        options: LARGE_ALONE,
        run: boot::two_vcpus,
    },
    Scenario {
        name: "debian-4-vcpus",
        about: "the same on four",
        quick: false,
        options: LARGE_ALONE,
        run: boot::four_vcpus,
    },
    Scenario {
        name: "debian-login",
        about: "systemd boots to a login on the console and by ssh",
        quick: false,
        options: LARGE_ALONE,
        run: boot::login,
    },
    Scenario {
        name: "debian-reboot",
        about: "a reboot restarts the guest in place",
        quick: false,
        options: LARGE_ALONE,
        run: boot::reboot,
    },
    Scenario {
        name: "debian-poweroff",
        about: "powering the guest off ends the monitor with code 0",
        quick: false,
        options: LARGE_ALONE,
        run: boot::power_off,
    },
    Scenario {
        name: "redis-power-off",
        about: "the primary's machine loses its power under Redis; every synced write is there",
        quick: true,
        options: LARGE,
        run: services::redis,
    },
    Scenario {
        name: "redis-freeze",
        about: "the primary's machine freezes under Redis, is replaced, thaws, and stops without a frame",
        quick: false,
        options: LARGE,
        run: services::freeze,
    },
    Scenario {
        name: "redis-standby-killed",
        about: "the standby is killed; Redis goes on",
        quick: false,
        options: LARGE,
        run: services::standby_killed,
    },
    Scenario {
        name: "postgresql-power-off",
        about: "the primary's machine loses its power; every committed row is there, and on one connection",
        quick: false,
        options: LARGE,
        run: services::postgresql,
    },
    Scenario {
        name: "postgresql-dying-disk",
        about: "the primary's disk fails under the database: the twin's is used, and nobody is told of an error",
        quick: false,
        options: LARGE,
        run: services::postgresql_on_a_dying_disk,
    },
    Scenario {
        name: "postgresql-blackout",
        about: "both machines lose their power: every committed row is on the disks, which are made the same by what differs",
        quick: false,
        options: LARGE,
        run: services::postgresql_after_a_blackout,
    },
    Scenario {
        name: "fio-power-off",
        about: "the primary's machine loses its power while fio writes; fio finds every block right",
        quick: false,
        options: LARGE,
        run: services::fio,
    },
    Scenario {
        name: "fio-torture",
        about: "twins are killed, lose their power and exchange roles while fio writes; fio finds every block right, and the disks are the same after each",
        quick: false,
        options: LARGE,
        run: disks::fio_torture,
    },
    Scenario {
        name: "connections-power-off",
        about: "the primary's machine loses its power; iperf3 and an ssh session go on",
        quick: false,
        options: LARGE,
        run: services::connections,
    },
    Scenario {
        name: "stress-power-off",
        about: "the primary's machine loses its power; four busy processors go on without an error",
        quick: false,
        options: LARGE,
        run: services::stress,
    },
    Scenario {
        name: "vsock-power-off",
        about: "the primary's machine loses its power; its vsock connections end, and new ones work",
        quick: false,
        options: LARGE,
        run: vsock::power_off,
    },
];
