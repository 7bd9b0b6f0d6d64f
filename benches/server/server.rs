//! A server process, and the CPU and memory that it has used.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    time::Duration,
};

use crate::Error;

/// Which server is measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// The example `hyper` with this durability.
    Example(&'static str),
    /// The layer in another server of [`serve`](crate::serve), with `Durability::Process`.
    Layer(&'static str),
    /// A server of [`serve`](crate::serve) without the layer.
    Bare(&'static str),
    Rustus,
    /// @tus/server, on node.
    NodeTus,
}

/// Which build of a server is measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Build {
    This,
    Against,
}

pub struct Server {
    child: Child,
    pub address: SocketAddr,
}

impl Server {
    pub fn start(kind: Kind, build: Build, dir: &Path) -> Result<Self, Error> {
        let programs = match build {
            Build::This => Programs::this()?,
            Build::Against => AGAINST.get().ok_or("no second build")?,
        };
        match kind {
            Kind::Example(durability) => {
                let mut command = Command::new(&programs.example);
                command.args(["--listen", "127.0.0.1:0", "--durability", durability]);
                Self::listening(command.arg("--dir").arg(dir))
            }
            Kind::Layer(name) | Kind::Bare(name) => {
                let program = programs.benchmark.as_ref().ok_or("no second build")?;
                Self::listening(Command::new(program).args(["--serve", name]).arg(dir))
            }
            Kind::Rustus => {
                let program = rustus().ok_or("rustus is not installed")?;
                Self::on_port(dir, |port| {
                    let mut command = Command::new(program);
                    command.args(["--host", "127.0.0.1", "--log-level", "ERROR", "--port"]);
                    command.arg(port).arg("--data-dir").arg(dir);
                    command.arg("--info-dir").arg(dir);
                    // It reads the whole body before it writes.
                    command.args(["--max-body-size", "16777216"]);
                    command
                })
            }
            Kind::NodeTus => Self::on_port(dir, |port| {
                let mut command = Command::new("node");
                command
                    .arg(root("e2e/tus/peers/node.mjs"))
                    .arg(port)
                    .arg(dir);
                command
            }),
        }
    }

    /// Starts a server that prints its address.
    fn listening(command: &mut Command) -> Result<Self, Error> {
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

    /// Starts a server that has to be told its port.
    fn on_port(dir: &Path, command: impl FnOnce(&str) -> Command) -> Result<Self, Error> {
        fs::create_dir_all(dir)?;
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let mut command = command(&address.port().to_string());
        let child = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let mut server = Self { child, address };
        while TcpStream::connect(address).is_err() {
            if let Some(status) = server.child.try_wait()? {
                return Err(format!("the server has ended: {status}").into());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(server)
    }

    /// The CPU time so far, in seconds.
    pub fn cpu(&self) -> Result<f64, Error> {
        let process = PathBuf::from(format!("/proc/{}", self.child.id()));
        let stat = fs::read_to_string(process.join("stat"))?;
        let fields = stat.rsplit(')').next().unwrap_or_default();
        let ticks: f64 = fields
            .split_whitespace()
            .skip(11)
            .take(2)
            .filter_map(|field| field.parse::<f64>().ok())
            .sum();
        // Without the threads that have ended, but in nanoseconds instead of ticks.
        let mut nanoseconds = 0.0;
        for thread in fs::read_dir(process.join("task"))? {
            // A thread can end in between.
            let times = fs::read_to_string(thread?.path().join("schedstat")).unwrap_or_default();
            let running = times.split(' ').next().unwrap_or_default();
            nanoseconds += running.parse::<f64>().unwrap_or_default();
        }
        // `sysconf(_SC_CLK_TCK)` is 100 on every Linux that Rust runs on. Both round down.
        Ok(f64::max(ticks / 100.0, nanoseconds / 1e9))
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
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The programs of one build.
struct Programs {
    example: PathBuf,
    benchmark: Option<PathBuf>,
}

static AGAINST: OnceLock<Programs> = OnceLock::new();

impl Programs {
    /// Builds the example, once.
    fn this() -> Result<&'static Self, Error> {
        static THIS: OnceLock<Programs> = OnceLock::new();
        if let Some(this) = THIS.get() {
            return Ok(this);
        }
        let built = Command::new(env!("CARGO"))
            .args(["build", "--release", "--example", "hyper"])
            .current_dir(root(""))
            .status()?;
        let this = Self::of_benchmark(&std::env::current_exe()?);
        if built.success() && this.example.is_file() {
            Ok(THIS.get_or_init(|| this))
        } else {
            Err("cannot build the example".into())
        }
    }

    /// `target/release/deps/server-…`
    fn of_benchmark(path: &Path) -> Self {
        Self {
            example: path.with_file_name("../examples/hyper"),
            benchmark: Some(path.to_owned()),
        }
    }
}

/// Sets the second build.
pub fn against(path: &Path) -> Result<(), Error> {
    let path = path.canonicalize()?;
    let programs = if path.file_name().is_some_and(|name| name == "hyper") {
        Programs {
            example: path,
            benchmark: None,
        }
    } else {
        Programs::of_benchmark(&path)
    };
    if !programs.example.is_file() {
        return Err(format!("no {}", programs.example.display()).into());
    }
    AGAINST
        .set(programs)
        .map_err(|_| "--against is there twice".into())
}

impl Kind {
    /// The builds that are measured.
    pub fn builds(self) -> &'static [Build] {
        let against = AGAINST.get();
        let has_both = match self {
            Kind::Example(_) => against.is_some(),
            Kind::Layer(_) => against.is_some_and(|against| against.benchmark.is_some()),
            Kind::Bare("naive") | Kind::Rustus | Kind::NodeTus if against.is_some() => return &[],
            Kind::Rustus if rustus().is_none() => return &[],
            Kind::NodeTus if !root("e2e/tus/peers/node_modules").is_dir() => return &[],
            _ => false,
        };
        if has_both {
            &[Build::This, Build::Against]
        } else {
            &[Build::This]
        }
    }
}

/// The program, if it is installed.
fn rustus() -> Option<PathBuf> {
    let path = match std::env::var_os("RUSTUS") {
        Some(path) => path.into(),
        None => {
            let target = std::env::current_exe().ok()?;
            target.with_file_name("../../rustus/bin/rustus")
        }
    };
    path.is_file().then_some(path)
}

/// A path in the repository.
pub fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}
