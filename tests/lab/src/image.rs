//! What hosts are made of: Debian's kernel, and a file system in memory with our binaries and the drivers.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use cpio::newc::{self, ModeFileType};

use crate::error::LabError;

/// Drivers of the hosts; those that they depend on come along.
const DRIVERS: &[&str] = &[
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_console",
    "virtio_rng",
    "crc32c_intel",
    "kvm_amd",
    "tun",
    "veth",
    "bridge",
    "sch_netem",
    "sch_tbf",
    "dm_mod",
    "dm_delay",
    "loop",
];

/// Everything that a lab is made from.
#[derive(Clone, Debug)]
pub struct Artifacts {
    /// The monitor under test.
    pub evertwin: PathBuf,
    /// One that speaks the previous version of the protocol, if a scenario upgrades from it.
    pub previous: Option<PathBuf>,
    /// The hosts' process 1.
    pub agent: PathBuf,
    /// The emulator, and options that come before the lab's own.
    pub qemu: Vec<String>,
    /// A static busybox.
    pub busybox: PathBuf,
    /// What `make guest-debian` has built.
    pub guest: GuestFiles,
}

/// The Debian guest's files; the hosts run the same kernel and use the same tools.
#[derive(Clone, Debug)]
pub struct GuestFiles {
    /// The kernel.
    pub kernel: PathBuf,
    /// The guest's initrd.
    pub initrd: PathBuf,
    /// The root image.
    pub root: PathBuf,
    /// The kernel's modules.
    pub modules: PathBuf,
    /// The arbiter's program.
    pub etcd: PathBuf,
    /// The key that opens the guest by ssh.
    pub ssh_key: PathBuf,
}

impl Artifacts {
    /// Finds everything in `target`, the workspace's target directory.
    ///
    /// # Errors
    /// [`LabError::NotBuilt`] naming what is missing and the command that builds it.
    pub fn find(
        target: &Path,
        evertwin: Option<PathBuf>,
        upgrades: bool,
        qemu: &str,
    ) -> Result<Self, LabError> {
        let release = target.join("x86_64-unknown-linux-gnu/release");
        let guest = |name: &str| built(target.join("guest-debian").join(name), "make guest-debian");
        Ok(Self {
            evertwin: built(
                evertwin.unwrap_or_else(|| release.join("evertwin")),
                "make build",
            )?,
            previous: upgrades
                .then(|| target.join("previous/x86_64-unknown-linux-gnu/release/evertwin"))
                .map(|path| built(path, "make lab"))
                .transpose()?,
            agent: built(release.join("lab-agent"), "make lab")?,
            qemu: qemu.split_whitespace().map(str::to_owned).collect(),
            busybox: built("/bin/busybox".into(), "apt-get install busybox-static")?,
            guest: GuestFiles {
                kernel: guest("vmlinuz")?,
                initrd: guest("initrd")?,
                root: guest("root.ext4")?,
                modules: guest("modules")?,
                etcd: guest("etcd")?,
                ssh_key: guest("ssh_key")?,
            },
        })
    }

    /// Writes the hosts' file system, which they have in memory, as a cpio archive.
    ///
    /// # Errors
    /// A file that can't be read or written, or a driver that the kernel lacks.
    pub fn write_host_image(&self, path: &Path) -> Result<(), LabError> {
        let mut archive = Archive::create(path)?;
        for directory in ["bin", "dev", "proc", "sys", "tmp", "modules", "guest"] {
            archive.directory(directory)?;
        }
        for (name, file) in [
            ("init", &self.agent),
            ("bin/busybox", &self.busybox),
            ("evertwin", &self.evertwin),
            ("etcd", &self.guest.etcd),
            ("guest/vmlinuz", &self.guest.kernel),
            ("guest/initrd", &self.guest.initrd),
        ] {
            archive.file(name, &read(file)?)?;
        }
        if let Some(previous) = &self.previous {
            archive.file("evertwin-previous", &read(previous)?)?;
        }
        let mut order = String::new();
        for module in Modules::read(&self.guest.modules)?.in_order(DRIVERS)? {
            let (_, name) = module.rsplit_once('/').unwrap_or(("", &module));
            archive.file(
                &format!("modules/{name}"),
                &read(&self.guest.modules.join(&module))?,
            )?;
            order += name;
            order += "\n";
        }
        archive.file("modules/order", order.as_bytes())?;
        archive.finish()
    }
}

fn built(path: PathBuf, fix: &'static str) -> Result<PathBuf, LabError> {
    match path.canonicalize() {
        Ok(found) => Ok(found),
        Err(source) => Err(LabError::NotBuilt { path, fix, source }),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, LabError> {
    fs::read(path).map_err(LabError::io(format!("reading {}", path.display())))
}

/// A cpio archive that is being written.
struct Archive {
    path: PathBuf,
    out: BufWriter<File>,
    entries: u32,
}

impl Archive {
    fn create(path: &Path) -> Result<Self, LabError> {
        let file = File::create(path);
        let file = file.map_err(LabError::io(format!("making {}", path.display())))?;
        Ok(Self {
            path: path.into(),
            out: BufWriter::new(file),
            entries: 0,
        })
    }

    fn directory(&mut self, name: &str) -> Result<(), LabError> {
        self.entry(name, ModeFileType::Directory, &[])
    }

    fn file(&mut self, name: &str, contents: &[u8]) -> Result<(), LabError> {
        self.entry(name, ModeFileType::Regular, contents)
    }

    fn entry(&mut self, name: &str, kind: ModeFileType, bytes: &[u8]) -> Result<(), LabError> {
        self.entries += 1;
        let entry = newc::Builder::new(name)
            .ino(self.entries)
            .mode(0o755)
            .set_mode_file_type(kind);
        let write = || -> io::Result<()> {
            let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
            let mut writer = entry.write(&mut self.out, length);
            writer.write_all(bytes)?;
            writer.finish()?;
            Ok(())
        };
        write().map_err(LabError::io(format!("writing {}", self.path.display())))
    }

    fn finish(mut self) -> Result<(), LabError> {
        newc::trailer(&mut self.out)
            .and_then(|out| out.flush())
            .map_err(LabError::io(format!("writing {}", self.path.display())))
    }
}

/// The kernel's modules and what each depends on (`modules.dep`, `modules.builtin`).
struct Modules {
    /// Path and dependencies, by name.
    loadable: BTreeMap<String, (String, Vec<String>)>,
    builtin: BTreeSet<String>,
}

impl Modules {
    fn read(directory: &Path) -> Result<Self, LabError> {
        let text = |name: &str| {
            let path = directory.join(name);
            fs::read_to_string(&path).map_err(LabError::io(format!("reading {}", path.display())))
        };
        Ok(Self::parse(
            &text("modules.dep")?,
            &text("modules.builtin")?,
        ))
    }

    fn parse(dependencies: &str, builtin: &str) -> Self {
        let loadable = dependencies.lines().filter_map(|line| {
            let (path, needs) = line.split_once(':')?;
            let needs = needs.split_whitespace().map(str::to_owned).collect();
            Some((module_name(path), (path.to_owned(), needs)))
        });
        Self {
            loadable: loadable.collect(),
            builtin: builtin.lines().map(module_name).collect(),
        }
    }

    /// Paths of the wanted modules, each after those it depends on.
    fn in_order(&self, wanted: &[&str]) -> Result<Vec<String>, LabError> {
        let mut order: Vec<String> = Vec::new();
        for name in wanted {
            if self.builtin.contains(*name) {
                continue;
            }
            let (path, needs) = self
                .loadable
                .get(*name)
                .ok_or_else(|| LabError::NoModule((*name).to_owned()))?;
            // The file names what is needed first last.
            for path in needs.iter().rev().chain([path]) {
                if !order.contains(path) {
                    order.push(path.clone());
                }
            }
        }
        Ok(order)
    }
}

/// `kernel/x/virtio-rng.ko` is virtio_rng.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.trim_end_matches(".ko").replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_come_after_what_they_need() {
        let modules = Modules::parse(
            "k/kvm-amd.ko: k/kvm.ko k/irqbypass.ko k/ccp.ko\nk/kvm.ko: k/irqbypass.ko\nk/irqbypass.ko:\nk/ccp.ko:\n",
            "k/ext4.ko\n",
        );
        let order = modules.in_order(&["ext4", "kvm", "kvm_amd"]).unwrap();
        assert_eq!(
            order,
            ["k/irqbypass.ko", "k/kvm.ko", "k/ccp.ko", "k/kvm-amd.ko"]
        );
        let error = modules.in_order(&["nvme"]).unwrap_err().to_string();
        assert!(error.contains("no module nvme"), "{error}");
    }

    #[test]
    fn what_is_not_built_is_named_with_the_command_that_builds_it() {
        let error = Artifacts::find(Path::new("/nowhere"), None, false, "qemu").unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("/nowhere") && text.contains("make build"),
            "{text}"
        );
    }
}
