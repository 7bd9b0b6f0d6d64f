//! A server process, and the CPU and memory that it has used.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use crate::Error;

/// Which server is measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// The `hyper` example with this durability.
    Ours(&'static str),
    /// A server of [`serve`](crate::serve).
    Own(&'static str),
}

pub struct Server {
    child: Child,
    pub address: SocketAddr,
}

impl Server {
    pub fn start(kind: Kind, dir: &Path) -> Result<Self, Error> {
        let mut command = match kind {
            Kind::Ours(durability) => {
                let mut command = Command::new(example()?);
                command.args(["--listen", "127.0.0.1:0", "--durability", durability]);
                command.arg("--dir").arg(dir);
                command
            }
            Kind::Own(name) => {
                let mut command = Command::new(std::env::current_exe()?);
                command.args(["--serve", name]).arg(dir);
                command
            }
        };
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let stderr = child.stderr.take().ok_or("no standard error")?;
        let mut lines = BufReader::new(stderr).lines();
        let line = lines.next().ok_or("the server has ended")??;
        let address = line
            .strip_prefix("listening on http://")
            .ok_or_else(|| line.clone())?
            .parse()?;
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(|l| eprintln!("{l}")));
        Ok(Self { child, address })
    }

    /// The CPU time so far, in seconds.
    pub fn cpu(&self) -> Result<f64, Error> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let fields = stat.rsplit(')').next().unwrap_or_default();
        let ticks: f64 = fields
            .split_whitespace()
            .skip(11)
            .take(2)
            .filter_map(|field| field.parse::<f64>().ok())
            .sum();
        // `sysconf(_SC_CLK_TCK)` is 100 on every Linux that Rust runs on.
        Ok(ticks / 100.0)
    }

    /// The peak memory, in MiB.
    pub fn peak(&self) -> Result<f64, Error> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find(|line| line.starts_with("VmHWM"));
        let kib: f64 = line
            .and_then(|line| line.split_whitespace().nth(1))
            .ok_or("no VmHWM")?
            .parse()?;
        Ok(kib / 1024.0)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Builds the example, once.
fn example() -> Result<PathBuf, Error> {
    static PATH: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
    if let Some(path) = PATH.get() {
        return Ok(path.clone());
    }
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--release", "--example", "hyper"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()?;
    let program = std::env::current_exe()?;
    // target/release/deps/server-…
    let release = program.parent().and_then(Path::parent);
    let path = release.map(|dir| dir.join("examples/hyper"));
    match path.filter(|path| built.success() && path.is_file()) {
        Some(path) => Ok(PATH.get_or_init(|| path).clone()),
        None => Err("cannot build the example".into()),
    }
}
