//! Runs scenarios, some at a time, and keeps what a failed one leaves.

use std::fs;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tempfile::TempDir;

use crate::error::{LabError, demand};
use crate::image::Artifacts;
use crate::lab::Lab;
use crate::scenarios::{SCENARIOS, Scenario};

/// Which scenarios to run.
#[derive(Clone, Debug)]
pub enum Selection {
    /// All.
    All,
    /// Those of the five-minute subset.
    Quick,
    /// These.
    Named(Vec<String>),
}

impl Selection {
    /// The scenarios.
    ///
    /// # Errors
    /// A name that no scenario has.
    pub fn scenarios(&self) -> Result<Vec<&'static Scenario>, LabError> {
        let all = SCENARIOS.iter();
        match self {
            Self::All => Ok(all.collect()),
            Self::Quick => Ok(all.filter(|scenario| scenario.quick).collect()),
            Self::Named(names) => names
                .iter()
                .map(|name| {
                    let found = SCENARIOS.iter().find(|scenario| scenario.name == name);
                    let unknown =
                        || LabError::Wrong(format!("there is no scenario {name}: see --list"));
                    found.ok_or_else(unknown)
                })
                .collect(),
        }
    }
}

/// A run of the lab: its directories and its counts.
#[derive(Debug)]
pub struct Run {
    artifacts: Artifacts,
    directory: PathBuf,
    image: PathBuf,
    patience: Duration,
    /// Sockets have short paths only.
    sockets: TempDir,
    passed: AtomicUsize,
    failed: AtomicUsize,
}

impl Run {
    /// Makes a run's directory in `target/lab` and builds the hosts' file system in it. No single step of a scenario
    /// is waited for longer than `patience`.
    ///
    /// # Errors
    /// Anything that keeps that from being written.
    pub fn new(target: &Path, artifacts: Artifacts, patience: Duration) -> Result<Self, LabError> {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let name = format!("{}-{}", now.as_secs(), std::process::id());
        let directory = target.join("lab").join(name);
        let what = format!("making {}", directory.display());
        fs::create_dir_all(&directory).map_err(LabError::io(what))?;
        let image = directory.join("host.cpio");
        artifacts.write_host_image(&image)?;
        let sockets = tempfile::Builder::new().prefix("evertwin-lab-").tempdir();
        Ok(Self {
            artifacts,
            directory,
            image,
            patience,
            sockets: sockets.map_err(LabError::io("making a directory for sockets"))?,
            passed: AtomicUsize::new(0),
            failed: AtomicUsize::new(0),
        })
    }

    /// Where the sockets are, to be removed if the run is interrupted.
    #[must_use]
    pub fn sockets(&self) -> &Path {
        self.sockets.path()
    }

    pub(crate) fn artifacts(&self) -> &Artifacts {
        &self.artifacts
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(crate) fn image(&self) -> &Path {
        &self.image
    }

    /// Removes what the run has written; it went well.
    pub fn forget(&self) {
        let _ = fs::remove_dir_all(&self.directory);
    }

    /// Runs the scenarios, `jobs` at a time, and says how each went. True if all passed.
    pub fn all(&self, scenarios: &[&'static Scenario], jobs: usize) -> bool {
        let queue = Mutex::new(labelled(scenarios).into_iter());
        std::thread::scope(|scope| {
            for _ in 0..jobs.max(1) {
                scope.spawn(|| {
                    loop {
                        let next = queue.lock().map_or(None, |mut queue| queue.next());
                        let Some((label, scenario)) = next else {
                            return;
                        };
                        self.one(&label, scenario);
                    }
                });
            }
        });
        let _ = fs::remove_file(&self.image);
        // Stays if a scenario has left something in it.
        let _ = fs::remove_dir(&self.directory);
        let (passed, failed) = (
            self.passed.load(Ordering::SeqCst),
            self.failed.load(Ordering::SeqCst),
        );
        println!("lab: passed={passed} failed={failed}");
        failed == 0 && passed == scenarios.len()
    }

    fn one(&self, name: &str, scenario: &Scenario) {
        println!("lab: {name} begins: {}", scenario.about);
        let began = Instant::now();
        let directory = self.directory.join(name);
        let sockets = self.sockets.path().join(name);
        let work = AssertUnwindSafe(|| self.play(scenario, &directory, &sockets));
        let outcome = std::panic::catch_unwind(work)
            .unwrap_or_else(|panic| Err(LabError::Panicked(words(panic.as_ref()))));
        let seconds = began.elapsed().as_secs();
        match outcome {
            Ok(()) => {
                self.passed.fetch_add(1, Ordering::SeqCst);
                println!("lab: {name} passed in {seconds} s");
                let _ = fs::remove_dir_all(&directory);
            }
            Err(error) => {
                self.failed.fetch_add(1, Ordering::SeqCst);
                println!("lab: {name} FAILED after {seconds} s: {error}");
                println!(
                    "lab: {name}: logs and the guest LAN's capture are in {}",
                    directory.display()
                );
            }
        }
    }

    fn play(&self, scenario: &Scenario, directory: &Path, sockets: &Path) -> Result<(), LabError> {
        for path in [directory, sockets] {
            let what = format!("making {}", path.display());
            fs::create_dir_all(path).map_err(LabError::io(what))?;
        }
        let played = self.play_in(scenario, directory, sockets);
        // Disks are large, and what the monitors did is in the logs.
        for host in ["a", "b"] {
            let _ = fs::remove_file(directory.join(format!("host-{host}.disk")));
        }
        played
    }

    fn play_in(
        &self,
        scenario: &Scenario,
        directory: &Path,
        sockets: &Path,
    ) -> Result<(), LabError> {
        let mut lab = Lab::boot(
            &self.artifacts,
            &self.image,
            directory,
            sockets,
            scenario.options,
            self.patience,
        )?;
        let outcome = (scenario.run)(&mut lab);
        if outcome.is_err() {
            lab.observe();
        }
        // Said first: a scenario whose machine has died fails in other words.
        lab.check_machines()?;
        // What a failed scenario's frames and logs show is said as well: it may be the cause.
        let results = [outcome, lab.check_resets(), lab.check_one_speaker()];
        let errors = results.into_iter().filter_map(Result::err);
        let wrong: Vec<String> = errors.map(|error| error.to_string()).collect();
        demand!(wrong.is_empty(), "{}", wrong.join("; "));
        Ok(())
    }
}

/// Scenarios with names of their own: one that is run again is numbered.
fn labelled(scenarios: &[&'static Scenario]) -> Vec<(String, &'static Scenario)> {
    let label = |(at, scenario): (usize, &&'static Scenario)| {
        let earlier = scenarios[..at].iter();
        match earlier.filter(|other| other.name == scenario.name).count() {
            0 => (scenario.name.to_owned(), *scenario),
            again => (format!("{}-{}", scenario.name, again + 1), *scenario),
        }
    };
    scenarios.iter().enumerate().map(label).collect()
}

/// What a panic said.
fn words(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_else(|| "without words".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scenarios_are_chosen_by_name() {
        let names = |selection: Selection| -> Vec<&str> {
            let chosen = selection.scenarios().unwrap();
            chosen.iter().map(|scenario| scenario.name).collect()
        };
        let all = names(Selection::All);
        let distinct: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len(), "{all:?}");
        assert!((1..all.len()).contains(&names(Selection::Quick).len()));
        let one = Selection::Named(vec!["pico-freeze".to_owned()]);
        assert_eq!(names(one), ["pico-freeze"]);
        let twice = Selection::Named(vec!["pico-freeze".to_owned(); 2]);
        let labels = labelled(&twice.scenarios().unwrap());
        assert_eq!(
            (&*labels[0].0, &*labels[1].0),
            ("pico-freeze", "pico-freeze-2")
        );
        let none = Selection::Named(vec!["nonsense".to_owned()]);
        assert!(
            none.scenarios()
                .unwrap_err()
                .to_string()
                .contains("nonsense")
        );
    }
}
