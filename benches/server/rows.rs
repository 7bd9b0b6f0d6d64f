//! The tables.

use std::{
    cell::{Cell, RefCell},
    os::unix::fs::FileExt as _,
    path::Path,
    process::Command,
    rc::Rc,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, Instant},
};

use crate::{
    Error, Options,
    drive::{self, Connection, File, Wire, content},
    server::{Build, Kind, Server},
    table::{Figures, Row, Table},
};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

const POWER: Kind = Kind::Example("power");
const PROCESS: Kind = Kind::Example("process");
const NONE: Kind = Kind::Bare("none");
const KICK: Kind = Kind::Bare("kick");
const SYNC: Kind = Kind::Bare("sync");
const NAIVE: Kind = Kind::Bare("naive");

/// Empties the page cache.
const CACHES: &str = "/proc/sys/vm/drop_caches";

const RATE_AND_CPU: &[&str] = &["MiB/s", "CPU s/GiB"];
const FILES_AND_CPU: &[&str] = &["files/s", "CPU us each"];

pub fn tables(options: &Options) -> Vec<Table> {
    let size = options.mib * MIB;
    let mut tables = Vec::new();
    let mut table = |key: &str, title: &str, of: &'static [&'static str], rows: Vec<Row>| {
        let (key, title) = (key.to_owned(), title.to_owned());
        tables.push(Table {
            key,
            title,
            of,
            rows,
        });
    };

    // One file, or one for each connection with tus.
    let big = |name, kind, wire, size, chunk, connections| {
        row(name, kind, move |build| {
            upload(kind, build, size, |server| {
                drive::file(server, wire, &file("large.bin", size, chunk), connections)
            })
        })
    };
    let mib = |name, kind, wire| big(name, kind, wire, size, MIB, 3);
    table(
        "form-power",
        "1 MiB chunks in forms, 3 connections, each chunk synced (naive: nothing synced)",
        RATE_AND_CPU,
        vec![
            mib("limit, sync", SYNC, Wire::Form),
            mib("tower-resumable, Power", POWER, Wire::Form),
            mib("naive", NAIVE, Wire::Form),
        ],
    );
    table(
        "raw-power",
        "1 MiB chunks as raw bodies, 3 connections, each chunk synced",
        RATE_AND_CPU,
        vec![
            mib("limit, sync", SYNC, Wire::Octets),
            mib("tower-resumable, Power", POWER, Wire::Octets),
        ],
    );
    table(
        "form-process",
        "1 MiB chunks in forms, 3 connections, synced at the end (limit, none: nothing synced)",
        RATE_AND_CPU,
        vec![
            mib("limit, kick", KICK, Wire::Form),
            mib("limit, none", NONE, Wire::Form),
            mib("tower-resumable, Process", PROCESS, Wire::Form),
        ],
    );
    table(
        "raw-process",
        "1 MiB chunks as raw bodies, 3 connections (others: nothing synced)",
        RATE_AND_CPU,
        vec![
            mib("limit, kick", KICK, Wire::Octets),
            mib("tower-resumable, Process", PROCESS, Wire::Octets),
            mib(
                "tower-resumable, Process, tus",
                PROCESS,
                Wire::Tus("/upload"),
            ),
            mib("rustus", Kind::Rustus, Wire::Tus("/files/")),
            mib("@tus/server", Kind::NodeTus, Wire::Tus("/files")),
        ],
    );
    let parts = |name, kind| big(name, kind, Wire::Form, size, 64 * KIB, 3);
    table(
        "64k-process",
        "64 KiB chunks in forms, 3 connections, synced at the end",
        RATE_AND_CPU,
        vec![
            parts("limit, kick", KICK),
            parts("tower-resumable, Process", PROCESS),
        ],
    );
    for (key, chunks, chunk, connections, size) in [
        ("64k-power", "64 KiB", 64 * KIB, 3, size),
        ("1m-1-power", "1 MiB", MIB, 1, size),
        ("1m-64-power", "1 MiB", MIB, 64, size),
        ("8m-3-power", "8 MiB", 8 * MIB, 3, size),
        // At least two chunks for each connection.
        ("8m-64-power", "8 MiB", 8 * MIB, 64, size.max(1024 * MIB)),
    ] {
        let parts = |name, kind| big(name, kind, Wire::Form, size, chunk, connections);
        table(
            key,
            &format!(
                "{chunks} chunks in forms, connections: {connections}, each chunk synced \
                 (limit, none: nothing synced)"
            ),
            RATE_AND_CPU,
            vec![
                parts("limit, sync", SYNC),
                parts("limit, none", NONE),
                parts("tower-resumable, Power", POWER),
            ],
        );
    }

    for streams in [1, 3, 16, 64] {
        let one = |name, kind| {
            row(name, kind, move |build| {
                upload(kind, build, size, |server| {
                    drive::streams(server, &file("large.bin", size, MIB), streams)
                })
            })
        };
        table(
            &format!("h2-{streams}"),
            &format!("HTTP/2, one connection, streams: {streams}, the examples' windows, Process"),
            RATE_AND_CPU,
            vec![
                one("limit, kick", KICK),
                one("tower-resumable, hyper", PROCESS),
                one("tower-resumable, tonic", Kind::Layer("tonic-large")),
            ],
        );
        table(
            &format!("h2-default-{streams}"),
            &format!("HTTP/2, one connection, streams: {streams}, default windows, Process"),
            RATE_AND_CPU,
            vec![
                one("limit, kick", Kind::Bare("kick-default")),
                one("tower-resumable, hyper", Kind::Layer("hyper")),
                one("tower-resumable, axum", Kind::Layer("axum")),
                one("tower-resumable, tonic", Kind::Layer("tonic")),
            ],
        );
    }

    let memory = |name, kind, wire| row(name, kind, move |b| small(kind, b, wire, true, 10_000));
    table(
        "small-memory",
        "10,000 files of 10 KiB in memory, 8 connections (limit, others: nothing synced)",
        FILES_AND_CPU,
        vec![
            memory("limit, none", NONE, Wire::Form),
            memory("tower-resumable, Process", PROCESS, Wire::Form),
            memory("tower-resumable, Power", POWER, Wire::Form),
            memory("naive", NAIVE, Wire::Form),
            memory("rustus", Kind::Rustus, Wire::Tus("/files/")),
            memory("@tus/server", Kind::NodeTus, Wire::Tus("/files")),
        ],
    );
    let disk = |name, kind| {
        row(name, kind, move |b| {
            small(kind, b, Wire::Form, false, 3_000)
        })
    };
    table(
        "small-disk",
        "3,000 files of 10 KiB on disk, 8 connections (limit, none and naive: nothing synced)",
        FILES_AND_CPU,
        vec![
            disk("limit, none", NONE),
            disk("limit, sync", SYNC),
            disk("tower-resumable, Power", POWER),
            disk("tower-resumable, Process", PROCESS),
            disk("naive", NAIVE),
        ],
    );
    let hooked = |name, kind| {
        row(name, kind, move |b| {
            small(kind, b, Wire::Form, true, 10_000)
        })
    };
    table(
        "events",
        "a function that gets all events: 10,000 files of 10 KiB in memory, 8 connections, Process",
        FILES_AND_CPU,
        vec![
            hooked("no function", Kind::Layer("hyper")),
            hooked("looks at the level", Kind::Layer("level")),
            hooked("makes a text of each event", Kind::Layer("text")),
        ],
    );

    let alone = |name, kind, size| row(name, kind, move |build| last(kind, build, size));
    table(
        "last",
        "the last chunk alone, after all others",
        &["ms"],
        vec![
            alone("tower-resumable, Power, 16 MiB", POWER, 16 * MIB),
            alone("tower-resumable, Power, 1 GiB", POWER, 1024 * MIB),
            alone("naive, 16 MiB", NAIVE, 16 * MIB),
            alone("naive, 256 MiB", NAIVE, 256 * MIB),
        ],
    );
    let chunks = options.chunks;
    table(
        "many",
        &format!("{chunks} chunks of one file, in memory, Process; CPU us of a chunk"),
        &[],
        vec![row("tower-resumable", PROCESS, move |build| {
            many(PROCESS, build, chunks)
        })],
    );
    table(
        "probes",
        "20,000 probes of one upload, 8 connections",
        &[],
        vec![row("tower-resumable", POWER, |build| {
            probes(POWER, build, 20_000)
        })],
    );
    let stalled = |name, kind| row(name, kind, move |build| stalled(kind, build, 1000));
    table(
        "stalled",
        "1,000 connections that stop after the first 200 KiB of a chunk",
        &["peak MiB"],
        vec![
            stalled("tower-resumable, hyper", POWER),
            stalled("tower-resumable, axum", Kind::Layer("axum")),
        ],
    );
    let fast = |name, slow| row(name, POWER, move |build| beside(POWER, build, size, slow));
    table(
        "beside-slow",
        "1 MiB chunks in forms, 64 connections, Power, beside clients that send 2 KiB a second",
        RATE_AND_CPU,
        vec![fast("alone", 0), fast("beside 1,000 slow ones", 1000)],
    );
    if bindfs().arg("--version").output().is_ok() {
        let other = |name, kind, uploads| {
            row(name, kind, move |build| {
                beside_slow_disk(kind, build, uploads)
            })
        };
        table(
            "slow-disk",
            "another request, while uploads over 64 connections wait for a disk that writes \
             1 MiB a second (limit: writes on the threads that serve connections)",
            &["p99 ms"],
            vec![
                other("tower-resumable, Power, alone", POWER, 0),
                other("tower-resumable, Power", POWER, 64),
                other("tower-resumable, Process", PROCESS, 64),
                other("limit, none", NONE, 64),
            ],
        );
    }
    let folders = Rc::new(Folders::default());
    let records = options.records;
    let start = |name, is_cold| {
        let folders = folders.clone();
        row(name, PROCESS, move |build| {
            folders.restart(build, records, is_cold)
        })
    };
    let mut starts = vec![start("warm", false)];
    // Only root empties the page cache.
    if std::fs::File::options().write(true).open(CACHES).is_ok() {
        starts.push(start("cold", true));
    }
    table(
        "restart",
        &format!(
            "a server with {records} records starts, on disk, Process; cold: empty page cache"
        ),
        &[],
        starts,
    );
    tables
}

fn row(
    name: &'static str,
    kind: Kind,
    measure: impl Fn(Build) -> Result<Figures, Error> + 'static,
) -> Row {
    Row {
        name,
        kind,
        measure: Rc::new(measure),
    }
}

/// A folder for one server, on the disk of `TMPDIR` or in memory.
fn folder(in_memory: bool) -> Result<tempfile::TempDir, Error> {
    let memory = Path::new("/dev/shm");
    Ok(if in_memory && memory.is_dir() {
        tempfile::tempdir_in(memory)?
    } else {
        tempfile::tempdir()?
    })
}

fn file(name: &str, size: u64, chunk: u64) -> File {
    File {
        name: name.to_owned(),
        size,
        chunk,
    }
}

/// Prepares the machine for writing `bytes`, so that two other costs are not measured: data of
/// other processes that is not on disk yet, and memory that a virtual machine has returned to its
/// host and gets back page by page, which can cost several times as much as everything else. Writes
/// and removes a file of this size, then calls `sync`.
fn settle(dir: &Path, bytes: u64) -> Result<(), Error> {
    let path = dir.join("warm");
    let file = std::fs::File::create_new(&path)?;
    let block = vec![1; 256 * KIB as usize];
    for at in (0..bytes + 64 * MIB).step_by(block.len()) {
        file.write_all_at(&block, at)?;
    }
    drop(file);
    std::fs::remove_file(&path)?;
    sync()
}

fn sync() -> Result<(), Error> {
    if std::process::Command::new("sync").status()?.success() {
        Ok(())
    } else {
        Err("sync has failed".into())
    }
}

/// Uploads `size` bytes.
fn upload(
    kind: Kind,
    build: Build,
    size: u64,
    send: impl FnOnce(&Server) -> Result<Duration, Error>,
) -> Result<Figures, Error> {
    let dir = folder(false)?;
    settle(dir.path(), size)?;
    let server = Server::start(kind, build, &dir.path().join("uploads"))?;
    let before = server.cpu()?;
    let took = send(&server)?;
    let gib = size as f64 / (1 << 30) as f64;
    Ok(vec![
        ("MiB/s", gib * 1024.0 / took.as_secs_f64()),
        ("CPU s/GiB", (server.cpu()? - before) / gib),
        ("peak MiB", server.peak()?),
    ])
}

/// Uploads many files of one chunk each.
fn small(
    kind: Kind,
    build: Build,
    wire: Wire,
    in_memory: bool,
    count: u64,
) -> Result<Figures, Error> {
    let dir = folder(in_memory)?;
    settle(dir.path(), count * 16 * KIB)?;
    let server = Server::start(kind, build, &dir.path().join("uploads"))?;
    let bytes = content(10 * KIB as usize);
    let before = server.cpu()?;
    let took = drive::each(server.address, 8, count, |connection, n| match wire {
        Wire::Tus(path) => connection.create(path, 10 * KIB, &bytes).map(|_| ()),
        _ => {
            let file = file(&format!("{n}.bin"), 10 * KIB, MIB);
            connection.send(&file, 1, wire, &bytes)
        }
    })?;
    let count = count as f64;
    Ok(vec![
        ("files/s", count / took.as_secs_f64()),
        ("CPU us each", (server.cpu()? - before) * 1e6 / count),
        ("peak MiB", server.peak()?),
    ])
}

/// Uploads the last chunk of a file after all others.
fn last(kind: Kind, build: Build, size: u64) -> Result<Figures, Error> {
    let dir = folder(false)?;
    let server = Server::start(kind, build, &dir.path().join("uploads"))?;
    let file = file("large.bin", size, MIB);
    let bytes = content(MIB as usize);
    let chunks = file.chunks();
    drive::each(server.address, 3, chunks - 1, |connection, n| {
        connection.send(&file, n + 1, Wire::Form, &bytes)
    })?;
    let mut connection = Connection::open(server.address)?;
    let start = Instant::now();
    connection.send(&file, chunks, Wire::Form, &bytes)?;
    let ms = start.elapsed().as_secs_f64() * 1e3;
    Ok(vec![("ms", ms), ("peak MiB", server.peak()?)])
}

/// Uploads many chunks of one file. Measures the first tenth, the ninth tenth, and the last tenth
/// after a restart of the server.
fn many(kind: Kind, build: Build, chunks: u64) -> Result<Figures, Error> {
    let dir = folder(true)?;
    let dir = dir.path().join("uploads");
    let file = file("chunks.bin", chunks * 64, 64);
    let bytes = content(64);
    let tenth = chunks / 10;
    let send = |server: &Server, from: u64, count: u64| -> Result<f64, Error> {
        let before = server.cpu()?;
        drive::each(server.address, 3, count, |connection, n| {
            connection.send(&file, from + n + 1, Wire::Form, &bytes)
        })?;
        Ok((server.cpu()? - before) * 1e6 / count as f64)
    };
    let server = Server::start(kind, build, &dir)?;
    let first = send(&server, 0, tenth)?;
    send(&server, tenth, 7 * tenth)?;
    let ninth = send(&server, 8 * tenth, tenth)?;
    drop(server);
    let server = Server::start(kind, build, &dir)?;
    let start = Instant::now();
    let mut connection = Connection::open(server.address)?;
    connection.send(&file, 9 * tenth + 1, Wire::Form, &bytes)?;
    let ms = start.elapsed().as_secs_f64() * 1e3;
    Ok(vec![
        ("first tenth", first),
        ("ninth tenth", ninth),
        ("ms of the first after a restart", ms),
        ("last tenth", send(&server, 9 * tenth + 1, tenth - 1)?),
        ("peak MiB", server.peak()?),
    ])
}

/// Sends probes for an upload of which the server has some chunks.
fn probes(kind: Kind, build: Build, count: u64) -> Result<Figures, Error> {
    let dir = folder(false)?;
    let server = Server::start(kind, build, &dir.path().join("uploads"))?;
    let file = file("large.bin", 64 * MIB, MIB);
    let bytes = content(MIB as usize);
    drive::each(server.address, 3, 32, |connection, n| {
        connection.send(&file, n + 1, Wire::Form, &bytes)
    })?;
    let before = server.cpu()?;
    let took = drive::each(server.address, 8, count, |connection, n| {
        connection.write(file.probe(n % 32 + 1).as_bytes())?;
        match connection.answer()?.status {
            200 => Ok(()),
            status => Err(format!("a probe got {status}").into()),
        }
    })?;
    let count = count as f64;
    Ok(vec![
        ("CPU us each", (server.cpu()? - before) * 1e6 / count),
        ("each/s", count / took.as_secs_f64()),
    ])
}

/// Opens connections, each of which has sent the beginning of a chunk of a separate file.
fn begun(server: &Server, connections: usize) -> Result<Vec<Connection>, Error> {
    let open = (0..connections).map(|n| {
        let file = file(&format!("{n}.bin"), 2 * MIB, MIB);
        let mut connection = Connection::open(server.address)?;
        connection.write(file.request(1, Wire::Form).head().as_bytes())?;
        Ok(connection)
    });
    open.collect()
}

/// Sends the first 200 KiB of a chunk over each of many connections.
fn stalled(kind: Kind, build: Build, connections: usize) -> Result<Figures, Error> {
    let dir = folder(false)?;
    let server = Server::start(kind, build, &dir.path().join("uploads"))?;
    let empty = server.peak()?;
    let mut open = begun(&server, connections)?;
    let bytes = content(200 * KIB as usize);
    for connection in &mut open {
        connection.write(&bytes)?;
    }
    // The server has read everything when it uses no more CPU.
    let mut before = -1.0;
    while before < server.cpu()? {
        before = server.cpu()?;
        std::thread::sleep(Duration::from_millis(100));
    }
    let peak = server.peak()?;
    Ok(vec![
        ("peak MiB", peak),
        ("KiB each", (peak - empty) * 1024.0 / connections as f64),
    ])
}

/// Uploads one file over 64 connections at full speed, while each slow connection sends 2 KiB a
/// second.
fn beside(kind: Kind, build: Build, size: u64, slow: usize) -> Result<Figures, Error> {
    upload(kind, build, size, |server| {
        let mut open = begun(server, slow)?;
        let bytes = content(2 * KIB as usize);
        let done = AtomicBool::new(false);
        let (took, trickled) = std::thread::scope(|scope| {
            let trickling = scope.spawn(|| -> Result<(), Error> {
                for tenth in (0..10).cycle().take_while(|_| !done.load(Relaxed)) {
                    for connection in open.iter_mut().skip(tenth).step_by(10) {
                        connection.write(&bytes)?;
                    }
                    std::thread::sleep(Duration::from_millis(100));
                }
                Ok(())
            });
            let took = drive::file(server, Wire::Form, &file("large.bin", size, MIB), 64);
            done.store(true, Relaxed);
            (took, trickling.join())
        });
        // A write to a closed connection fails, so the server still serves all of them.
        trickled.map_err(|_| "the thread of the slow connections has panicked")??;
        took
    })
}

/// Limits the rate of a folder. It is a program to install.
fn bindfs() -> Command {
    Command::new("bindfs")
}

/// A folder on a slow disk.
struct SlowDisk {
    dir: tempfile::TempDir,
}

impl SlowDisk {
    fn mount() -> Result<Self, Error> {
        let dir = folder(true)?;
        std::fs::create_dir(dir.path().join("disk"))?;
        std::fs::create_dir(dir.path().join("mounted"))?;
        let mut mount = bindfs();
        mount.args(["--multithreaded", "--write-rate=1M", "disk", "mounted"]);
        if mount.current_dir(&dir).status()?.success() {
            Ok(Self { dir })
        } else {
            Err("bindfs cannot mount".into())
        }
    }
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        let mut unmount = Command::new("fusermount");
        // If it stays mounted, the folder is not removed.
        let _ = unmount
            .args(["-u", "-z"])
            .arg(self.dir.path().join("mounted"))
            .status();
    }
}

/// Sends requests to the service behind the layer, while uploads wait for a slow disk.
fn beside_slow_disk(kind: Kind, build: Build, uploads: usize) -> Result<Figures, Error> {
    let disk = SlowDisk::mount()?;
    let dir = disk.dir.path().join("mounted/uploads");
    let server = Server::start(kind, build, &dir)?;
    let bytes = content(MIB as usize);
    let open = (0..uploads).map(|_| Connection::open(server.address));
    let mut open: Vec<_> = open.collect::<Result<_, _>>()?;
    let mut times = std::thread::scope(|scope| {
        for (n, connection) in open.iter_mut().enumerate() {
            let bytes = &bytes;
            scope.spawn(move || {
                let file = file(&format!("{n}.bin"), 64 * MIB, MIB);
                // It ends when the server is killed.
                (1..).try_for_each(|number| connection.send(&file, number, Wire::Form, bytes))
            });
        }
        let times = request_times(&server);
        drop(server);
        times
    })?;
    times.sort();
    let ms = |share: f64| times[(share * (times.len() - 1) as f64) as usize].as_secs_f64() * 1e3;
    Ok(vec![
        ("p50 ms", ms(0.5)),
        ("p99 ms", ms(0.99)),
        ("longest ms", ms(1.0)),
    ])
}

/// How long each request takes that is sent within five seconds.
fn request_times(server: &Server) -> Result<Vec<Duration>, Error> {
    let mut connection = Connection::open(server.address)?;
    let (begun, mut times) = (Instant::now(), Vec::new());
    while begun.elapsed() < Duration::from_secs(5) {
        let start = Instant::now();
        connection.write(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")?;
        connection.answer()?;
        times.push(start.elapsed());
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(times)
}

/// A folder with records for each build, because a build need not understand what another one has
/// written.
#[derive(Default)]
struct Folders {
    folders: RefCell<Vec<(Build, tempfile::TempDir)>>,
    /// How many new uploads there were.
    uploads: Cell<u64>,
}

impl Folders {
    fn restart(&self, build: Build, records: u64, is_cold: bool) -> Result<Figures, Error> {
        let bytes = content(10);
        let send = |connection: &mut Connection, name: &str| {
            connection.send(&file(name, 10, MIB), 1, Wire::Form, &bytes)
        };
        let mut folders = self.folders.borrow_mut();
        let dir = match folders.iter().position(|(of, _)| *of == build) {
            Some(at) => folders[at].1.path(),
            None => {
                let dir = folder(false)?;
                let server = Server::start(PROCESS, build, dir.path())?;
                drive::each(server.address, 8, records, |connection, n| {
                    send(connection, &format!("{n}.bin"))
                })?;
                folders.push((build, dir));
                folders[folders.len() - 1].1.path()
            }
        };
        sync()?;
        if is_cold {
            std::fs::write(CACHES, "3")?;
        }
        let start = Instant::now();
        let server = Server::start(PROCESS, build, dir)?;
        let started = start.elapsed();
        let mut connection = Connection::open(server.address)?;
        let mut new = || -> Result<f64, Error> {
            self.uploads.set(self.uploads.get() + 1);
            let start = Instant::now();
            send(&mut connection, &format!("new {}.bin", self.uploads.get()))?;
            Ok(start.elapsed().as_secs_f64() * 1e3)
        };
        Ok(vec![
            ("ms until it listens", started.as_secs_f64() * 1e3),
            ("ms of the first upload", new()?),
            ("ms of the second", new()?),
            ("peak MiB", server.peak()?),
        ])
    }
}
