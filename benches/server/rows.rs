//! The measurements.

use std::{
    os::unix::fs::FileExt as _,
    path::Path,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, Instant},
};

use crate::{
    Error, Options,
    drive::{self, As, Connection, File, content},
    server::{Kind, Server},
    table::{Figures, Ratios, Row},
};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

const POWER: Kind = Kind::Ours("power");
const PROCESS: Kind = Kind::Ours("process");

fn row<'a>(name: &str, measure: impl FnMut() -> Result<Figures, Error> + 'a) -> Row<'a> {
    Row {
        name: name.to_owned(),
        measure: Box::new(measure),
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
    let synced = std::process::Command::new("sync").status()?;
    if synced.success() {
        Ok(())
    } else {
        Err("sync has failed".into())
    }
}

fn file(name: &str, size: u64, chunk: u64) -> File {
    File {
        name: name.to_owned(),
        size,
        chunk,
    }
}

/// Uploads one file.
fn upload(
    kind: Kind,
    how: As,
    size: u64,
    chunk: u64,
    connections: usize,
) -> Result<Figures, Error> {
    let dir = folder(false)?;
    settle(dir.path(), size)?;
    let server = Server::start(kind, &dir.path().join("uploads"))?;
    let file = file("large.bin", size, chunk);
    let bytes = content(chunk.min(MIB) as usize);
    let before = server.cpu()?;
    let took = drive::each(
        server.address,
        connections,
        file.chunks(),
        |connection, n| connection.send(&file, n + 1, how, &bytes),
    )?;
    let gib = size as f64 / (1 << 30) as f64;
    Ok(vec![
        ("MiB/s", gib * 1024.0 / took.as_secs_f64()),
        ("CPU s/GiB", (server.cpu()? - before) / gib),
        ("peak MiB", server.peak()?),
    ])
}

/// Uploads many files of one chunk each.
fn small(kind: Kind, in_memory: bool, count: u64) -> Result<Figures, Error> {
    let dir = folder(in_memory)?;
    settle(dir.path(), count * 16 * KIB)?;
    let server = Server::start(kind, &dir.path().join("uploads"))?;
    let bytes = content(10 * KIB as usize);
    let before = server.cpu()?;
    let took = drive::each(server.address, 8, count, |connection, n| {
        let file = file(&format!("{n}.bin"), 10 * KIB, MIB);
        connection.send(&file, 1, As::Form, &bytes)
    })?;
    let count = count as f64;
    Ok(vec![
        ("files/s", count / took.as_secs_f64()),
        ("CPU us each", (server.cpu()? - before) * 1e6 / count),
        ("peak MiB", server.peak()?),
    ])
}

/// Uploads the last chunk of a file after all others.
fn last(kind: Kind, size: u64) -> Result<Figures, Error> {
    let dir = folder(false)?;
    let server = Server::start(kind, &dir.path().join("uploads"))?;
    let file = file("large.bin", size, MIB);
    let bytes = content(MIB as usize);
    let chunks = file.chunks();
    drive::each(server.address, 3, chunks - 1, |connection, n| {
        connection.send(&file, n + 1, As::Form, &bytes)
    })?;
    let mut connection = Connection::open(server.address)?;
    let start = Instant::now();
    connection.send(&file, chunks, As::Form, &bytes)?;
    let ms = start.elapsed().as_secs_f64() * 1e3;
    Ok(vec![("ms", ms), ("peak MiB", server.peak()?)])
}

/// Uploads many chunks of one file. Measures the first tenth, the ninth tenth, and the last tenth
/// after a restart of the server.
fn many(kind: Kind, chunks: u64) -> Result<[Figures; 3], Error> {
    let dir = folder(true)?;
    let dir = dir.path().join("uploads");
    let file = file("chunks.bin", chunks * 64, 64);
    let bytes = content(64);
    let tenth = chunks / 10;
    let send = |server: &Server, from: u64, count: u64| -> Result<Figures, Error> {
        let start = Instant::now();
        let mut connection = Connection::open(server.address)?;
        connection.send(&file, from + 1, As::Form, &bytes)?;
        let first = start.elapsed();
        let before = server.cpu()?;
        let took = drive::each(server.address, 3, count - 1, |connection, n| {
            connection.send(&file, from + n + 2, As::Form, &bytes)
        })?;
        let used = server.cpu()? - before;
        Ok(vec![
            ("CPU us each", used * 1e6 / count as f64),
            ("us each", took.as_secs_f64() * 1e6 / count as f64),
            ("ms of first", first.as_secs_f64() * 1e3),
        ])
    };
    let server = Server::start(kind, &dir)?;
    let first = send(&server, 0, tenth)?;
    send(&server, tenth, 7 * tenth)?;
    let last = send(&server, 8 * tenth, tenth)?;
    drop(server);
    let server = Server::start(kind, &dir)?;
    let restarted = send(&server, 9 * tenth, tenth)?;
    Ok([first, last, restarted])
}

/// Sends probes for an upload of which the server has some chunks.
fn probes(kind: Kind, count: u64) -> Result<Figures, Error> {
    let dir = folder(false)?;
    let server = Server::start(kind, &dir.path().join("uploads"))?;
    let file = file("large.bin", 64 * MIB, MIB);
    let bytes = content(MIB as usize);
    drive::each(server.address, 3, 32, |connection, n| {
        connection.send(&file, n + 1, As::Form, &bytes)
    })?;
    let before = server.cpu()?;
    let took = drive::each(server.address, 8, count, |connection, n| {
        connection.write(file.probe(n % 32 + 1).as_bytes())?;
        match connection.answer()? {
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
        connection.write(file.head(1, As::Form).0.as_bytes())?;
        Ok(connection)
    });
    open.collect()
}

/// Sends the first 200 KiB of a chunk over each of many connections, 2 KiB at a time.
fn slow(kind: Kind, connections: usize) -> Result<Figures, Error> {
    let dir = folder(false)?;
    let server = Server::start(kind, &dir.path().join("uploads"))?;
    let empty = server.peak()?;
    let mut open = begun(&server, connections)?;
    let bytes = content(2 * KIB as usize);
    for _ in 0..100 {
        for connection in &mut open {
            connection.write(&bytes)?;
        }
    }
    std::thread::sleep(Duration::from_millis(200));
    let peak = server.peak()?;
    Ok(vec![
        ("peak MiB", peak),
        ("KiB each", (peak - empty) * 1024.0 / connections as f64),
    ])
}

/// Uploads one file over 64 connections at full speed, while each slow connection sends 2 KiB a
/// second.
fn beside(kind: Kind, size: u64, slow: usize) -> Result<Figures, Error> {
    let dir = folder(false)?;
    settle(dir.path(), size)?;
    let server = Server::start(kind, &dir.path().join("uploads"))?;
    let mut open = begun(&server, slow)?;
    let file = file("large.bin", size, MIB);
    let bytes = content(MIB as usize);
    let done = AtomicBool::new(false);
    let cpu = server.cpu()?;
    let (took, trickled) = std::thread::scope(|scope| {
        let trickling = scope.spawn(|| -> Result<(), Error> {
            for tenth in (0..10).cycle().take_while(|_| !done.load(Relaxed)) {
                for connection in open.iter_mut().skip(tenth).step_by(10) {
                    connection.write(&bytes[..2 * KIB as usize])?;
                }
                std::thread::sleep(Duration::from_millis(100));
            }
            Ok(())
        });
        let took = drive::each(server.address, 64, file.chunks(), |connection, n| {
            connection.send(&file, n + 1, As::Form, &bytes)
        });
        done.store(true, Relaxed);
        (took, trickling.join())
    });
    // A write to a closed connection fails, so the server still serves all of them.
    trickled.map_err(|_| "the thread of the slow connections has panicked")??;
    let gib = size as f64 / 1024.0 / MIB as f64;
    Ok(vec![
        ("MiB/s", size as f64 / MIB as f64 / took?.as_secs_f64()),
        ("CPU s/GiB", (server.cpu()? - cpu) / gib),
        ("peak MiB", server.peak()?),
    ])
}

pub fn measure(options: &Options) -> Result<(), Error> {
    let own = Kind::Own;
    let size = options.mib * MIB;
    let mut ratios = Ratios::load(options);
    let rounds = options.rounds;
    let wanted = |title: &str| {
        let only = options.only.as_deref();
        only.is_none_or(|only| title.contains(only))
    };
    let mut table = |title: &str, of: &'static str, rows: &mut [Row<'_>]| -> Result<(), Error> {
        if wanted(title) {
            ratios.table(title, of, rounds, rows)
        } else {
            Ok(())
        }
    };

    let big = |name: &str, kind, how| row(name, move || upload(kind, how, size, MIB, 3));
    table(
        "each chunk synced: 1 MiB chunks, 3 connections",
        "CPU s/GiB",
        &mut [
            big("bare hyper, search, synced", own("limit-synced"), As::Form),
            big("tower-resumable, form", POWER, As::Form),
            big("tower-resumable, octets", POWER, As::Octets),
        ],
    )?;
    table(
        "not synced: 1 MiB chunks, 3 connections",
        "CPU s/GiB",
        &mut [
            big("bare hyper, search", own("limit"), As::Form),
            big("tower-resumable, form", PROCESS, As::Form),
            big("tower-resumable, octets", PROCESS, As::Octets),
            big("multer, nothing written", own("sink"), As::Form),
            big("multer, tokio's files", own("tokio"), As::Form),
            big("handwritten, axum", own("handwritten"), As::Form),
        ],
    )?;
    for connections in [1, 16, 64] {
        let big =
            |name: &str, kind| row(name, move || upload(kind, As::Form, size, MIB, connections));
        table(
            &format!("1 MiB chunks, connections: {connections}"),
            "CPU s/GiB",
            &mut [
                big("bare hyper, search, synced", own("limit-synced")),
                big("tower-resumable, synced", POWER),
                big("tower-resumable", PROCESS),
                big("handwritten, axum", own("handwritten")),
            ],
        )?;
    }
    for (chunk, name) in [(64 * KIB, "64 KiB"), (8 * MIB, "8 MiB")] {
        let big = |name: &str, kind| row(name, move || upload(kind, As::Form, size, chunk, 3));
        table(
            &format!("{name} chunks, 3 connections"),
            "CPU s/GiB",
            &mut [
                big("bare hyper, search, synced", own("limit-synced")),
                big("tower-resumable, synced", POWER),
                big("tower-resumable", PROCESS),
                big("handwritten, axum", own("handwritten")),
            ],
        )?;
    }
    let files = |name: &str, kind| row(name, move || small(kind, true, 10_000));
    table(
        "10,000 files of 10 KiB in memory, 8 connections",
        "files/s",
        &mut [
            files("bare hyper, search", own("limit")),
            files("tower-resumable", PROCESS),
            files("tower-resumable, synced", POWER),
            files("handwritten, axum", own("handwritten")),
        ],
    )?;
    let files = |name: &str, kind| row(name, move || small(kind, false, 3_000));
    table(
        "3,000 files of 10 KiB on disk, 8 connections",
        "files/s",
        &mut [
            files("bare hyper, search", own("limit")),
            files("tower-resumable", PROCESS),
            files("tower-resumable, synced", POWER),
            files("handwritten, axum", own("handwritten")),
        ],
    )?;
    let alone = |name: &str, kind, size| row(name, move || last(kind, size));
    table(
        "the last chunk alone",
        "ms",
        &mut [
            alone("tower-resumable, synced, 16 MiB", POWER, 16 * MIB),
            alone("tower-resumable, synced, 4 GiB", POWER, 4096 * MIB),
            alone("tower-resumable, 16 MiB", PROCESS, 16 * MIB),
            alone("tower-resumable, 4 GiB", PROCESS, 4096 * MIB),
            alone("handwritten, 16 MiB", own("handwritten"), 16 * MIB),
            alone("handwritten, 256 MiB", own("handwritten"), 256 * MIB),
        ],
    )?;
    let title = "many chunks of one file, in memory";
    if wanted(title) {
        let mut thirds = Vec::new();
        for _ in 0..rounds {
            thirds.push(many(PROCESS, options.chunks)?);
        }
        let part = |name: &str, i: usize| {
            let mut rounds: Vec<_> = thirds.iter().map(|third| third[i].clone()).collect();
            row(name, move || rounds.pop().ok_or("no round".into()))
        };
        table(
            title,
            "CPU us each",
            &mut [
                part("the first tenth", 0),
                part("the ninth tenth", 1),
                part("the last tenth, after a restart", 2),
            ],
        )?;
    }
    table(
        "probes of one upload, 8 connections",
        "CPU us each",
        &mut [row("tower-resumable", || probes(POWER, 20_000))],
    )?;
    let waiting = |name: &str, connections| row(name, move || slow(POWER, connections));
    table(
        "slow connections",
        "peak MiB",
        &mut [waiting("64", 64), waiting("1,000", 1000)],
    )?;
    let fast = |name: &str, kind, slow| row(name, move || beside(kind, size, slow));
    table(
        "64 connections at full speed, beside slow ones",
        "MiB/s",
        &mut [
            fast("synced, alone", POWER, 0),
            fast("synced, beside 1,000 slow ones", POWER, 1000),
        ],
    )?;
    table(
        "64 connections at full speed, beside slow ones, not synced",
        "MiB/s",
        &mut [
            fast("alone", PROCESS, 0),
            fast("beside 1,000 slow ones", PROCESS, 1000),
        ],
    )?;
    ratios.finish()
}
