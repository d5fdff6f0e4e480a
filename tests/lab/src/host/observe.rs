//! What a host was doing when its scenario failed.

use std::fs;
use std::time::Duration;

use super::Host;
use crate::error::LabError;
use crate::wire::{Answer, Request};

/// How long it may take: a host that is frozen never answers.
const PATIENCE: Duration = Duration::from_secs(60);

/// For busybox's shell: the kernel's log, where each thread of a monitor is, KVM's counters twice, and what vCPUs do for
/// a moment. A guest that only sleeps shows other counters than one that faults for ever or waits for an interrupt.
const SCRIPT: &str = r#"
echo "== kernel log"
dmesg | tail -n 40
echo "== clock"
cat /sys/devices/system/clocksource/clocksource0/current_clocksource
uptime
mount -t debugfs none /sys/kernel/debug
counters() {
  echo "== $1"
  for file in /sys/kernel/debug/kvm/*/* /sys/kernel/debug/kvm/*/vcpu*/*; do
    [ -f "$file" ] && echo "$file $(cat "$file" 2>/dev/null | head -n 1)"
  done | grep -v ' 0$'
}
for process in /proc/[0-9]*; do
  case $(cat $process/comm 2>/dev/null) in
  evertwin*)
    echo "== process ${process#/proc/}"
    for task in $process/task/*; do
      echo "${task##*/} $(cat $task/comm) state $(cut -d ' ' -f 3,14,15 $task/stat) call $(cat $task/syscall)"
      sed 's/^/    /' $task/stack
    done ;;
  esac
done
counters "kvm, first"
trace=/sys/kernel/debug/tracing
if echo 1 >$trace/events/kvm/enable; then
  sleep 1
  echo 0 >$trace/events/kvm/enable
  echo "== kvm events of a second"
  head -n 400 $trace/trace
fi
counters "kvm, then"
"#;

impl Host {
    /// Writes down what the host is doing right now, beside its logs, as `host-NAME.doing`.
    ///
    /// # Errors
    /// Its power is off, it does not answer, or the file can't be written.
    pub(crate) fn observe(&self) -> Result<(), LabError> {
        let argv = ["/bin/busybox", "sh", "-c", SCRIPT];
        let argv = argv.map(str::to_owned).to_vec();
        let answer = self.agent()?.ask(Request::Run { argv }, PATIENCE)?;
        let Answer::Ended { output, error, .. } = answer else {
            return Err(self.agent()?.confused("a command"));
        };
        let path = self
            .build
            .logs
            .join(format!("host-{}.doing", self.build.name));
        let what = format!("writing {}", path.display());
        fs::write(path, output + &error).map_err(LabError::io(what))
    }
}
