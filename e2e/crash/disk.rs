//! File systems of our own, whose power can be cut.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use tempfile::TempDir;

/// Where a store is.
pub struct Disk {
    kind: Kind,
    /// Outside of what is crashed.
    outside: TempDir,
    /// The loop device of the image. Not one that comes and goes with each mount: what is left in
    /// the cache of an old one could overwrite what a new one has read.
    device: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// The file system of the temporary folder.
    Plain,
    Ext4,
    Xfs,
    /// In memory, with room for so many KiB.
    Small(u32),
}

impl Disk {
    /// An empty one; says why if there can be none.
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
            // Its own option says "quiet", in both.
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

    /// As if the power were cut. Whoever could still answer must be stopped before.
    pub fn cut(&self) -> Result<(), String> {
        // EXT4_IOC_SHUTDOWN and XFS_IOC_GOINGDOWN are the same: _IOR('X', 125, u32). 2 is: without
        // flushing the journal. Perl is on every Debian, and needs no unsafe code of ours.
        let script = "open(my $dir, '<', $ARGV[0]) or die $!; \
             my $flags = pack('I', 2); ioctl($dir, 0x8004587d, $flags) or die $!;";
        run("perl", &["-e", script], &[&self.dir()]).map(drop)
    }

    /// As if the machine were started again. Nobody may use it.
    pub fn boot(&self) -> Result<(), String> {
        run("umount", &[], &[&self.dir()])?;
        self.mount()
    }

    /// Bytes that are left.
    pub fn room(&self) -> Result<u64, String> {
        let said = run("df", &["--output=avail", "--block-size=1"], &[&self.dir()])?;
        let number = said
            .lines()
            .nth(1)
            .and_then(|line| line.trim().parse().ok());
        number.ok_or(said)
    }

    /// More room for a small one.
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

/// Runs a program; what it says, or why it fails.
pub fn run(program: &str, words: &[&str], paths: &[&Path]) -> Result<String, String> {
    let output = Command::new(program)
        .args(words)
        .args(paths)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(format!(
                "{program}: {}",
                said.lines().next().unwrap_or("failed")
            ))
        }
    }
}
