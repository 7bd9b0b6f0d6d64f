//! The rows of the table. Each names a fault and applies it to the servers.

use std::{collections::BTreeSet, os::unix::fs::MetadataExt as _, time::Instant};

use tower_resumable::store::Durability::{self, Power, Process};

use super::{
    disk::{Disk, Kind},
    races, server,
    urls::Kind as Client,
    world::{CHUNK, Seen, Start, Stop, World},
};

/// The name of a row, its number of rounds in a short run, and the function that runs one round. A
/// deliberate mistake has to be detected within this number of rounds.
type Row = (&'static str, u64, fn(&mut Rng) -> Result<Seen, Stop>);

#[rustfmt::skip]
const ROWS: &[Row] = &[
    ("no fault", 1, |rng| no_fault(rng, CHUNKS)),
    ("kill -9", 3, |rng| killed(rng, CHUNKS, Power, 1)),
    ("kill -9, Process", 2, |rng| killed(rng, CHUNKS, Process, 1)),
    ("kill -9 in turn, two servers", 3, |rng| killed(rng, CHUNKS, Power, 2)),
    ("kill -9 at each step", 1, |rng| at_each_step(rng, CHUNKS, "kill", Kind::Plain)),
    ("power cut at each step, ext4", 1, |rng| at_each_step(rng, CHUNKS, "kill", Kind::Ext4)),
    ("power cut at each step, xfs", 1, |rng| at_each_step(rng, CHUNKS, "kill", Kind::Xfs)),
    ("kill -9, and in the recovery", 2, |rng| killed_twice(rng, CHUNKS)),
    ("error at each step", 1, |rng| at_each_step(rng, CHUNKS, "eio", Kind::Plain)),
    ("no room at each step", 1, |rng| at_each_step(rng, CHUNKS, "enospc", Kind::Plain)),
    ("power cut, ext4", 3, |rng| cut(rng, CHUNKS, Kind::Ext4, Power, &[])),
    ("power cut, xfs", 3, |rng| cut(rng, CHUNKS, Kind::Xfs, Power, &[])),
    ("kill -9 or power cut, ext4", 2, |rng| mixed(rng, CHUNKS, Kind::Ext4)),
    ("kill -9 or power cut, xfs", 2, |rng| mixed(rng, CHUNKS, Kind::Xfs)),
    ("power cut, ext4, Process", 2, |rng| cut(rng, CHUNKS, Kind::Ext4, Process, &[])),
    ("failing syncs (strace)", 1, |rng| traced(rng, CHUNKS, SYNCS)),
    ("failing writes (strace)", 1, |rng| traced(rng, CHUNKS, WRITES)),
    ("failing renames (strace)", 1, |rng| traced(rng, CHUNKS, RENAMES)),
    ("full disk", 1, |rng| full(rng, CHUNKS, false)),
    ("full disk, but for the reserve", 1, |rng| full(rng, CHUNKS, true)),
    ("races of the last chunks", 1, races::chunks),
    // Uploads that have a URL: of tus, of the IETF draft, and of parts.
    ("URLs, no fault", 1, |rng| no_fault(rng, URLS)),
    ("URLs, take-over, two servers", 1, |rng| taken_over(rng)),
    ("URLs, kill -9", 1, |rng| killed(rng, URLS, Power, 1)),
    ("URLs, kill -9, Process", 1, |rng| killed(rng, URLS, Process, 1)),
    ("URLs, kill -9, two servers", 1, |rng| killed(rng, URLS, Power, 2)),
    ("URLs, killed at each step", 1, |rng| at_each_step(rng, URLS, "kill", Kind::Plain)),
    ("URLs, cut at each step on ext4", 1, |rng| at_each_step(rng, URLS, "kill", Kind::Ext4)),
    ("URLs, cut at each step on xfs", 1, |rng| at_each_step(rng, URLS, "kill", Kind::Xfs)),
    ("URLs, killed in the recovery", 1, |rng| killed_twice(rng, URLS)),
    ("URLs, error at each step", 1, |rng| at_each_step(rng, URLS, "eio", Kind::Plain)),
    ("URLs, no room at each step", 1, |rng| at_each_step(rng, URLS, "enospc", Kind::Plain)),
    ("URLs, power cut, ext4", 1, |rng| cut(rng, URLS, Kind::Ext4, Power, &[])),
    ("URLs, power cut, xfs", 1, |rng| cut(rng, URLS, Kind::Xfs, Power, &[])),
    ("URLs, kill -9 or power cut, ext4", 1, |rng| mixed(rng, URLS, Kind::Ext4)),
    ("URLs, failing syncs (strace)", 1, |rng| traced(rng, URLS, SYNCS)),
    ("URLs, failing writes (strace)", 1, |rng| traced(rng, URLS, WRITES)),
    ("URLs, full disk", 1, |rng| full(rng, URLS, false)),
    ("URLs, full disk, the reserve", 1, |rng| full(rng, URLS, true)),
    ("URLs, races", 1, races::urls),
];

/// The system calls that fail, and which of them.
const SYNCS: &str = "fsync,fdatasync:error=EIO:when=9+7";
const WRITES: &str = "pwrite64:error=ENOSPC:when=3+7";
// The start of a server tries two renames.
const RENAMES: &str = "renameat2:error=EIO:when=3+3";

/// Deliberate mistakes: a harness that does not detect them proves nothing. On ext4 the harness
/// detects most of the time that folders are not synced: a sync of the journal of an upload, whose
/// size does not change, does not write the rename of its file. XFS does write the rename. The
/// simulated disk in `src/store/file/crash.rs` does not.
#[rustfmt::skip]
const CONTROLS: &[Row] = &[
    ("no syncs at all (eatmydata)", 5, |rng| {
        cut(rng, CHUNKS, Kind::Ext4, Power, &[("LD_PRELOAD", "libeatmydata.so")])
    }),
    ("data not synced", 5, |rng| {
        cut(rng, CHUNKS, Kind::Ext4, Power, &[("TOWER_RESUMABLE_FAULT", "skip@sync-data")])
    }),
    ("records not synced", 5, |rng| {
        cut(rng, CHUNKS, Kind::Ext4, Power, &[("TOWER_RESUMABLE_FAULT", "skip@sync-journal")])
    }),
    ("URLs, data not synced", 5, |rng| {
        cut(rng, URLS, Kind::Ext4, Power, &[("TOWER_RESUMABLE_FAULT", "skip@sync-data")])
    }),
    ("URLs, records not synced", 5, |rng| {
        cut(rng, URLS, Kind::Ext4, Power, &[("TOWER_RESUMABLE_FAULT", "skip@sync-journal")])
    }),
    ("folders not synced", 30, |rng| {
        cut(rng, CHUNKS, Kind::Ext4, Power, &[("TOWER_RESUMABLE_FAULT", "skip@sync-dir")])
    }),
    ("answers before the hand-over", 5, answered_first),
];

/// Runs the rows and prints the table. Returns whether every row is as expected.
pub fn all(rounds: u64, seed: u64, only: &[String]) -> bool {
    println!("--seed {seed}\n");
    println!(
        "{:32}{:>7}{:>8}{:>8}{:>12}{:>8}{:>8}{:>8}{:>8}{:>9}{:>7}",
        "",
        "rounds",
        "crashes",
        "uploads",
        "acked bytes",
        "lost",
        "corrupt",
        "missing",
        "doubled",
        "by crash",
        "s"
    );
    let wanted = |row: &&Row| only.is_empty() || only.iter().any(|name| row.0.contains(name));
    let mut good = true;
    for row in ROWS.iter().filter(wanted) {
        good &= run(row, rounds, seed, Seen::is_clean, |_| false, "");
    }
    println!("\ndeliberate mistakes, which must be found:");
    for row in CONTROLS.iter().filter(wanted) {
        let is_found = |seen: &Seen| seen.lost + seen.corrupt + seen.missing > 0;
        good &= run(row, 1, seed, is_found, is_found, "detected");
    }
    good
}

fn run(
    row: &Row,
    rounds: u64,
    seed: u64,
    is_good: fn(&Seen) -> bool,
    is_enough: fn(&Seen) -> bool,
    good_note: &str,
) -> bool {
    let (name, times, round) = row;
    let (mut seen, start) = (Seen::default(), Instant::now());
    for number in 0..times * rounds {
        if is_enough(&seen) {
            break;
        }
        match round(&mut Rng(seed.wrapping_add(number << 32))) {
            Ok(more) => seen.add(more),
            Err(Stop::Cannot(why)) => {
                println!("{name:32}skipped: {why}");
                // A row that cannot run is an error only if CRASH_NO_SKIPS is set.
                return std::env::var_os("CRASH_NO_SKIPS").is_none();
            }
            Err(Stop::Failed(why)) => {
                seen.rounds += 1;
                seen.failed = true;
                seen.wrong.push(why);
            }
        }
    }
    let good = is_good(&seen) && !seen.failed;
    println!(
        "{name:32}{:>7}{:>8}{:>8}{:>12}{:>8}{:>8}{:>8}{:>8}{:>9}{:>7.1}  {}",
        seen.rounds,
        seen.crashes,
        seen.uploads,
        seen.acked,
        seen.lost,
        seen.corrupt,
        seen.missing,
        seen.doubled,
        seen.doubled_by_crash,
        start.elapsed().as_secs_f64(),
        if good { good_note } else { "WRONG" }
    );
    if !good {
        seen.wrong.iter().for_each(|what| println!("    {what}"));
    }
    good
}

/// A SplitMix64 generator: a seed gives the same numbers on every machine.
pub struct Rng(u64);

impl Rng {
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }

    fn bytes(&mut self, len: u64) -> Vec<u8> {
        (0..len).map(|_| self.below(256) as u8).collect()
    }
}

fn args(disk: &Disk, durability: Durability) -> server::Args {
    server::Args {
        dir: disk.store(),
        durability,
        answers_first: false,
        reserve: true,
    }
}

/// Starts clients.
type Begin = fn(&mut World, &mut Rng) -> Result<(), String>;

/// What the clients of a row upload.
#[derive(Clone, Copy)]
struct Load {
    /// Starts many clients.
    many: Begin,
    /// Starts clients that need more room than a small disk has.
    large: Begin,
    /// Each of them starts a client that sends one request after the other: the steps then have the
    /// same order each time.
    small: &'static [Begin],
    /// The steps that these cross.
    steps: &'static [&'static str],
}

const CHUNKS: Load = Load {
    many: |world, rng| {
        for number in 0..8 {
            let len = match number {
                0 => 0,
                1 => 1 + rng.below(CHUNK),
                _ => rng.below(60 * CHUNK),
            };
            let content = rng.bytes(len);
            world.upload(content, 10_000 + rng.below(50_001), rng.below(1 << 32))?;
        }
        Ok(())
    },
    large: |world, rng| {
        for _ in 0..8 {
            let content = rng.bytes(30 * CHUNK);
            world.upload(content, CHUNK, rng.below(1 << 32))?;
        }
        Ok(())
    },
    small: &[
        |world, _| world.upload_alone(Vec::new()),
        |world, rng| world.upload_alone(rng.bytes(2 * CHUNK + 5)),
        |world, rng| world.upload_alone(rng.bytes(CHUNK)),
    ],
    steps: &[
        "claim",
        "create",
        "create-dir",
        "deliver",
        "delivered",
        "link",
        "rename",
        "set-len",
        "settle",
        "sync-data",
        "sync-dir",
        "sync-journal",
        "write-data",
        "write-journal",
    ],
};

const URLS: Load = Load {
    many: |world, rng| {
        for number in 0..9 {
            let kind = [Client::Tus, Client::Draft, Client::Concat][number % 3];
            let content = {
                let len = 1 + rng.below(30 * CHUNK);
                rng.bytes(len)
            };
            // Some clients end, or let stall, some of their requests.
            world.append(kind, content, 5 * CHUNK, number >= 3, rng.below(1 << 32));
        }
        Ok(())
    },
    large: |world, rng| {
        for number in 0..6 {
            let kind = [Client::Tus, Client::Draft][number % 2];
            let content = rng.bytes(30 * CHUNK);
            world.append(kind, content, 5 * CHUNK, false, rng.below(1 << 32));
        }
        Ok(())
    },
    small: &[
        |world, rng| append_alone(world, rng, Client::Tus, 2 * CHUNK + 5),
        |world, rng| append_alone(world, rng, Client::Draft, 2 * CHUNK),
        |world, rng| append_alone(world, rng, Client::Concat, 3 * CHUNK),
    ],
    steps: &[
        "claim",
        "copy-data",
        "create",
        "deliver",
        "delivered",
        "link",
        "rename",
        "set-len",
        "settle",
        "sync-data",
        "sync-dir",
        "sync-journal",
        "write-data",
        "write-journal",
    ],
};

fn append_alone(world: &mut World, rng: &mut Rng, kind: Client, len: u64) -> Result<(), String> {
    let content = rng.bytes(len);
    // The same seed each time: the same requests.
    world.append(kind, content, len, false, 0);
    Ok(())
}

fn no_fault(rng: &mut Rng, load: Load) -> Result<Seen, Stop> {
    let disk = Disk::new(Kind::Plain)?;
    let args = args(&disk, Power);
    let mut world = World::new(disk, args, &[Start::default()])?;
    (load.many)(&mut world, rng)?;
    Ok(world.finish())
}

/// Each request goes to another process than the one before, and may end that one.
fn taken_over(rng: &mut Rng) -> Result<Seen, Stop> {
    let disk = Disk::new(Kind::Plain)?;
    let args = args(&disk, Power);
    let starts = [Start::default(), Start::default()];
    let mut world = World::new(disk, args, &starts)?;
    for number in 0..9 {
        let kind = [Client::Tus, Client::Draft, Client::Concat][number % 3];
        let len = 1 + rng.below(60 * CHUNK);
        let content = rng.bytes(len);
        world.append(kind, content, 10 * CHUNK, true, rng.below(1 << 32));
    }
    Ok(world.finish())
}

/// Waits until some more chunks are acknowledged. Returns whether a client is still uploading.
fn some_acks(world: &mut World, rng: &mut Rng) -> bool {
    let enough = world.acks() as u64 + 1 + rng.below(25);
    let in_time = world.until(|world| world.acks() as u64 >= enough || world.clients_are_done());
    in_time && !world.clients_are_done()
}

fn killed(rng: &mut Rng, load: Load, durability: Durability, servers: usize) -> Result<Seen, Stop> {
    let disk = Disk::new(Kind::Plain)?;
    let args = args(&disk, durability);
    let mut world = World::new(disk, args, &vec![Start::default(); servers])?;
    (load.many)(&mut world, rng)?;
    while some_acks(&mut world, rng) {
        world.kill(0);
        world.start(&Start::default())?;
        world.check_acks();
    }
    // The records and the files have to survive a kill, too.
    world.kill(0);
    world.start(&Start::default())?;
    Ok(world.finish())
}

fn cut(
    rng: &mut Rng,
    load: Load,
    kind: Kind,
    durability: Durability,
    env: &[(&str, &str)],
) -> Result<Seen, Stop> {
    needs_root()?;
    let start = Start {
        env: env
            .iter()
            .map(|(k, v)| (k.to_string(), v.to_string()))
            .collect(),
        ..Start::default()
    };
    let disk = Disk::new(kind).map_err(Stop::Cannot)?;
    let args = args(&disk, durability);
    let mut world = World::new(disk, args, std::slice::from_ref(&start))?;
    world.keeps = durability == Power;
    if !env.is_empty() {
        // A loss can make clients hang, which also detects the mistake.
        world.timeout /= 4;
    }
    (load.many)(&mut world, rng)?;
    while some_acks(&mut world, rng) {
        world.cut()?;
        world.start(&start)?;
        world.check_acks();
        if world.seen.lost > 0 {
            // The mistake is detected.
            return Ok(world.seen.clone());
        }
    }
    world.cut()?;
    world.start(&start)?;
    Ok(world.finish())
}

/// Kills a process, lets the next one read what it has left, and then cuts the power. Leaves out
/// either step at random.
fn mixed(rng: &mut Rng, load: Load, kind: Kind) -> Result<Seen, Stop> {
    needs_root()?;
    let disk = Disk::new(kind).map_err(Stop::Cannot)?;
    let args = args(&disk, Power);
    let mut world = World::new(disk, args, &[Start::default()])?;
    (load.many)(&mut world, rng)?;
    while some_acks(&mut world, rng) {
        if rng.below(2) == 0 {
            world.kill(0);
            world.start(&Start::default())?;
            // Cuts the power at once, or after clients were told what is stored.
            if rng.below(2) == 0 {
                world.check_acks();
            }
        }
        if rng.below(2) == 0 {
            world.cut()?;
            world.start(&Start::default())?;
        }
        world.check_acks();
    }
    world.cut()?;
    world.start(&Start::default())?;
    Ok(world.finish())
}

/// A process dies, or a step fails, at the first step, then at the second one, and so on. On ext4
/// and XFS the power is cut when the process has died.
fn at_each_step(rng: &mut Rng, load: Load, action: &str, kind: Kind) -> Result<Seen, Stop> {
    if kind != Kind::Plain {
        needs_root()?;
    }
    let mut crossed = BTreeSet::new();
    let mut all = Seen::default();
    for step in 1.. {
        let fault = format!("{action}@{step}");
        let (mut seen, said) = at_step(rng, load, &fault, kind)?;
        let name = said.iter().find_map(|line| step_of(line));
        for what in &mut seen.wrong {
            *what = format!("{fault}, {}: {what}", name.unwrap_or("no step"));
        }
        all.add(seen);
        let Some(name) = name else {
            break;
        };
        crossed.insert(name.to_owned());
        if all.wrong.len() > 5 {
            break;
        }
    }
    for step in load.steps {
        if !crossed.contains(*step) {
            all.wrong.push(format!("step {step} was never crossed"));
        }
    }
    Ok(all)
}

/// A process dies at a random step. The next process dies while it recovers: at its first step,
/// then at its second one, and so on.
fn killed_twice(rng: &mut Rng, load: Load) -> Result<Seen, Stop> {
    let mut all = Seen::default();
    for second in 1..=20 {
        // A step after those of the start.
        let faults = [
            format!("kill@{}", 20 + rng.below(75)),
            format!("kill@{second}"),
        ];
        let disk = Disk::new(Kind::Plain)?;
        let args = args(&disk, Power);
        let mut world = World::new(disk, args, &[])?;
        for start in load.small {
            start(&mut world, rng)?;
        }
        for fault in &faults {
            let faulty = Start {
                env: vec![("TOWER_RESUMABLE_FAULT".into(), fault.clone())],
                ..Start::default()
            };
            match world.start(&faulty) {
                Ok(()) => {
                    world.until(|world| world.clients_are_done() || world.servers[0].has_died());
                    world.kill(0);
                }
                Err(error) if step_of(&error).is_some() => world.seen.crashes += 1,
                Err(error) => return Err(error.into()),
            }
        }
        world.start(&Start::default())?;
        world.check_acks();
        let mut seen = world.finish();
        for what in &mut seen.wrong {
            *what = format!("{faults:?}: {what}");
        }
        all.add(seen);
    }
    Ok(all)
}

/// The name in `fault: ACTION at step N: NAME`.
fn step_of(line: &str) -> Option<&str> {
    let (_, step) = line.split_once(" at step ")?;
    step.split_once(": ")?.1.split(';').next()
}

fn at_step(
    rng: &mut Rng,
    load: Load,
    fault: &str,
    kind: Kind,
) -> Result<(Seen, Vec<String>), Stop> {
    let faulty = Start {
        env: vec![("TOWER_RESUMABLE_FAULT".into(), fault.into())],
        ..Start::default()
    };
    let disk = Disk::new(kind).map_err(Stop::Cannot)?;
    let args = args(&disk, Power);
    let mut world = World::new(disk, args, &[])?;
    let mut said = Vec::new();
    if let Err(error) = world.start(&faulty) {
        if step_of(&error).is_none() {
            return Err(error.into());
        }
        // The server has died before it listens.
        said.push(error);
        match kind {
            Kind::Plain => world.seen.crashes += 1,
            _ => world.cut()?,
        }
        world.start(&Start::default())?;
    }
    // One client after the other, so that no step is left out.
    for start in load.small {
        start(&mut world, rng)?;
        world.until(|world| world.clients_are_done() || world.servers[0].has_died());
    }
    let has_died = world.servers[0].has_died();
    if kind != Kind::Plain {
        // Its output is in the pipe, which the power cut does not affect.
        world.servers[0].freeze();
        world.disk.cut()?;
    }
    said.extend(world.kill(0));
    if kind != Kind::Plain {
        world.disk.boot()?;
    }
    if !has_died && !world.clients_are_done() {
        world
            .seen
            .wrong
            .push("clients need another process to finish".into());
    }
    world.start(&Start::default())?;
    world.check_acks();
    Ok((world.finish(), said))
}

/// Some system calls of the server fail.
fn traced(rng: &mut Rng, load: Load, inject: &str) -> Result<Seen, Stop> {
    super::disk::run("strace", &["-V"], &[]).map_err(Stop::Cannot)?;
    let calls = inject.split(':').next().unwrap_or_default();
    let disk = Disk::new(Kind::Plain)?;
    let args = args(&disk, Power);
    let trace = disk.outside().join("trace");
    let words = [
        "strace".to_owned(),
        "-f".into(),
        "-qq".into(),
        "-o".into(),
        trace.display().to_string(),
        "-e".into(),
        format!("trace={calls}"),
        "-e".into(),
        format!("inject={inject}"),
    ];
    let mut world = World::new(disk, args, &[])?;
    let start = Start {
        wrapper: words.to_vec(),
        ..Start::default()
    };
    // The first calls belong to the start of the server, and each of them may fail.
    let mut starts = (0..20).map(|_| world.start(&start));
    starts
        .find(Result::is_ok)
        .unwrap_or(Err("the server does not start".into()))?;
    (load.many)(&mut world, rng)?;
    if !world.until(World::clients_are_done) {
        world.seen.wrong.push("clients need another process".into());
    }
    world.kill(0);
    let trace = std::fs::read_to_string(trace).unwrap_or_default();
    if !trace.contains("(INJECTED)") {
        world.seen.wrong.push("no call has failed".into());
    }
    world.start(&Start::default())?;
    world.check_acks();
    Ok(world.finish())
}

/// The disk has space for some of the uploads, and later for all.
fn full(rng: &mut Rng, load: Load, reserve: bool) -> Result<Seen, Stop> {
    needs_root()?;
    let disk = Disk::new(Kind::Small(2000)).map_err(Stop::Cannot)?;
    let args = server::Args {
        reserve,
        ..args(&disk, Power)
    };
    // The default reserve is 5 %.
    let reserved = if reserve { 2000 * 1024 / 20 } else { 0 };
    let mut world = World::new(disk, args, &[Start::default()])?;
    (load.large)(&mut world, rng)?;
    // The disk is full when the next chunk of a client does not fit.
    let is_full = |room| room < reserved + CHUNK;
    let is_full = world.until(|world| world.disk.room().is_ok_and(is_full));
    world.check_acks();
    let before = world.acks();
    world.kill(0);
    world.start(&Start::default())?;
    world.check_acks();
    if !is_full || before == 0 || world.clients_are_done() {
        world.seen.wrong.push("the disk was never full".into());
    }
    world.disk.grow(64_000)?;
    Ok(world.finish())
}

/// The server answers 200 before the application has the file, and is then killed.
fn answered_first(rng: &mut Rng) -> Result<Seen, Stop> {
    let disk = Disk::new(Kind::Plain)?;
    let args = server::Args {
        answers_first: true,
        ..args(&disk, Power)
    };
    let mut world = World::new(disk, args, &[Start::default()])?;
    for _ in 0..4 {
        let content = rng.bytes(100);
        world.upload(content, CHUNK, 0)?;
    }
    world.until(|world| world.acks() > 0);
    world.kill(0);
    world.start(&Start::default())?;
    Ok(world.finish())
}

fn needs_root() -> Result<(), Stop> {
    match std::fs::metadata("/proc/self").map(|process| process.uid()) {
        Ok(0) => Ok(()),
        _ => Err(Stop::Cannot(
            "only root can mount; the simulated disk of `cargo test` does the same".into(),
        )),
    }
}
