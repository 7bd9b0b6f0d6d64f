//! File systems on which the harness can simulate a power cut.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use tempfile::TempDir;

/// The file system that holds the store of a round.
pub struct Disk {
    kind: Kind,
    /// A folder that no simulated crash affects.
    outside: TempDir,
    /// The loop device of the image. It stays attached between two mounts: what is left in the
    /// cache of an old device could overwrite what a new device has read.
    device: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// The file system of the temporary folder.
    Plain,
    Ext4,
    Xfs,
    /// A tmpfs of this many KiB.
    Small(u32),
}

impl Disk {
    /// Creates an empty file system. The error says why this machine cannot.
    pub fn new(kind: Kind) -> Result<Self, String> {
        let outside = tempfile::tempdir().map_err(|error| error.to_string())?;
        let mut disk = Self {
            kind,
            outside,
            device: None,
        };
        std::fs::create_dir(disk.dir()).map_err(|error| error.to_string())?;
        if let Some(make) = match kind {
            Kind::Ext4 => Some("mkfs.ext4"),
            Kind::Xfs => Some("mkfs.xfs"),
            _ => None,
        } {
            run("truncate", &["-s", "320M"], &[&disk.image()])?;
            // `-q` means "quiet" in both programs.
            run(make, &["-q"], &[&disk.image()])?;
            let said = run("losetup", &["--find", "--show"], &[&disk.image()])?;
            disk.device = Some(said.trim().into());
        }
        disk.mount()?;
        Ok(disk)
    }

    fn image(&self) -> PathBuf {
        self.outside.path().join("image")
    }

    pub fn outside(&self) -> &Path {
        self.outside.path()
    }

    pub fn dir(&self) -> PathBuf {
        self.outside.path().join("mounted")
    }

    /// The folder of the store.
    pub fn store(&self) -> PathBuf {
        self.dir().join("uploads")
    }

    fn mount(&self) -> Result<(), String> {
        match self.kind {
            Kind::Plain => Ok(()),
            Kind::Small(room) => {
                let options = format!("size={room}k");
                let words = ["-t", "tmpfs", "-o", &options, "tmpfs"];
                run("mount", &words, &[&self.dir()]).map(drop)
            }
            Kind::Ext4 | Kind::Xfs => {
                let device = self.device.clone().ok_or("no device")?;
                run("mount", &[], &[&device, &self.dir()]).map(drop)
            }
        }
    }

    /// Simulates a power cut. Stop all processes that could still answer before this call.
    pub fn cut(&self) -> Result<(), String> {
        // EXT4_IOC_SHUTDOWN and XFS_IOC_GOINGDOWN are the same number: _IOR('X', 125, u32). The
        // flag 2 means that the journal is not flushed. Perl makes the call, because Rust needs
        // unsafe code for it. Every Debian has Perl.
        let script = "open(my $dir, '<', $ARGV[0]) or die $!; \
             my $flags = pack('I', 2); ioctl($dir, 0x8004587d, $flags) or die $!;";
        run("perl", &["-e", script], &[&self.dir()]).map(drop)
    }

    /// Simulates a restart of the machine. No process may use the file system.
    pub fn boot(&self) -> Result<(), String> {
        run("umount", &[], &[&self.dir()])?;
        self.mount()
    }

    /// The free space in bytes.
    pub fn room(&self) -> Result<u64, String> {
        let said = run("df", &["--output=avail", "--block-size=1"], &[&self.dir()])?;
        let number = said
            .lines()
            .nth(1)
            .and_then(|line| line.trim().parse().ok());
        number.ok_or(said)
    }

    /// Enlarges a [`Kind::Small`] to this many KiB.
    pub fn grow(&self, room: u32) -> Result<(), String> {
        let options = format!("remount,size={room}k");
        run("mount", &["-o", &options], &[&self.dir()]).map(drop)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.kind != Kind::Plain {
            let _ = run("umount", &[], &[&self.dir()]);
        }
        if let Some(device) = &self.device {
            let _ = run("losetup", &["--detach"], &[device]);
        }
    }
}

/// Runs a program. Returns its standard output, or why it has failed.
pub fn run(program: &str, words: &[&str], paths: &[&Path]) -> Result<String, String> {
    let output = Command::new(program)
        .args(words)
        .args(paths)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        let said = String::from_utf8_lossy(&output.stderr);
        Err(format!(
            "{program}: {}",
            said.lines().next().unwrap_or("failed")
        ))
    }
}
