//! The rows of the table: what is done to the servers.

use std::{collections::BTreeSet, os::unix::fs::MetadataExt as _, time::Instant};

use tower_resumable::store::Durability::{self, Power, Process};

use super::{
    disk::{Disk, Kind},
    races, server,
    world::{CHUNK, Seen, Start, Stop, World},
};

/// One row: its name, how many rounds a short run has, and what is done in one. Mistakes on purpose
/// have so many rounds to be found.
type Row = (&'static str, u64, fn(&mut Chance) -> Result<Seen, Stop>);

#[rustfmt::skip]
const ROWS: &[Row] = &[
    ("no fault", 1, |chance| calm(chance)),
    ("kill -9", 3, |chance| killed(chance, Power, 1)),
    ("kill -9, Process", 2, |chance| killed(chance, Process, 1)),
    ("kill -9 in turn, two servers", 3, |chance| killed(chance, Power, 2)),
    ("kill -9 at each step", 1, |chance| at_each_step(chance, "kill", Kind::Plain)),
    ("power cut at each step, ext4", 1, |chance| at_each_step(chance, "kill", Kind::Ext4)),
    ("power cut at each step, xfs", 1, |chance| at_each_step(chance, "kill", Kind::Xfs)),
    ("kill -9, and in the recovery", 2, |chance| killed_twice(chance)),
    ("error at each step", 1, |chance| at_each_step(chance, "eio", Kind::Plain)),
    ("no room at each step", 1, |chance| at_each_step(chance, "enospc", Kind::Plain)),
    ("power cut, ext4", 3, |chance| cut(chance, Kind::Ext4, Power, &[])),
    ("power cut, xfs", 3, |chance| cut(chance, Kind::Xfs, Power, &[])),
    ("kill -9 or power cut, ext4", 2, |chance| mixed(chance, Kind::Ext4)),
    ("kill -9 or power cut, xfs", 2, |chance| mixed(chance, Kind::Xfs)),
    ("power cut, ext4, Process", 2, |chance| cut(chance, Kind::Ext4, Process, &[])),
    ("failing syncs (strace)", 1, |chance| traced(chance, "fsync,fdatasync:error=EIO:when=3+7")),
    ("failing writes (strace)", 1, |chance| traced(chance, "pwrite64:error=ENOSPC:when=3+7")),
    ("failing renames (strace)", 1, |chance| traced(chance, "renameat2:error=EIO:when=1+3")),
    ("full disk", 1, |chance| full(chance, false)),
    ("full disk, but for the reserve", 1, |chance| full(chance, true)),
    ("races of the last chunks", 1, races::row),
];

/// Mistakes on purpose: a row that does not find them proves nothing. Folders that are not synced
/// are found on ext4, most of the time: a sync of an upload's journal, which has its size
/// beforehand, does not write the rename of its file. XFS does write it; the simulated disk in
/// `src/store/file/crash.rs` does not.
#[rustfmt::skip]
const CONTROLS: &[Row] = &[
    ("no syncs at all (eatmydata)", 5, |chance| {
        cut(chance, Kind::Ext4, Power, &[("LD_PRELOAD", "libeatmydata.so")])
    }),
    ("data not synced", 5, |chance| {
        cut(chance, Kind::Ext4, Power, &[("TOWER_RESUMABLE_FAULT", "skip@sync-data")])
    }),
    ("records not synced", 5, |chance| {
        cut(chance, Kind::Ext4, Power, &[("TOWER_RESUMABLE_FAULT", "skip@sync-journal")])
    }),
    ("folders not synced", 30, |chance| {
        cut(chance, Kind::Ext4, Power, &[("TOWER_RESUMABLE_FAULT", "skip@sync-dir")])
    }),
    ("answers before the hand-over", 5, too_early),
];

/// Runs the rows and prints the table; whether each is as it must be.
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
    println!("\nmistakes on purpose, which must be found:");
    for row in CONTROLS.iter().filter(wanted) {
        let is_found = |seen: &Seen| seen.lost + seen.corrupt + seen.missing > 0;
        good &= run(row, 1, seed, is_found, is_found, "red, as it must be");
    }
    good
}

fn run(
    row: &Row,
    rounds: u64,
    seed: u64,
    is_good: fn(&Seen) -> bool,
    is_enough: fn(&Seen) -> bool,
    praise: &str,
) -> bool {
    let (name, times, round) = row;
    let (mut seen, start) = (Seen::default(), Instant::now());
    for number in 0..times * rounds {
        if is_enough(&seen) {
            break;
        }
        match round(&mut Chance(seed.wrapping_add(number << 32))) {
            Ok(more) => seen.add(more),
            Err(Stop::Cannot(why)) => {
                println!("{name:32}skipped: {why}");
                // Without the means to do it there is nothing to say; with them there is.
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
        if good { praise } else { "WRONG" }
    );
    if !good {
        seen.wrong.iter().for_each(|what| println!("    {what}"));
    }
    good
}

/// SplitMix64.
pub struct Chance(u64);

impl Chance {
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

/// Eight clients with three connections each.
fn upload_many(world: &mut World, chance: &mut Chance) -> Result<(), String> {
    for number in 0..8 {
        let len = match number {
            0 => 0,
            1 => 1 + chance.below(CHUNK),
            _ => chance.below(60 * CHUNK),
        };
        let content = chance.bytes(len);
        world.upload(
            content,
            10_000 + chance.below(50_001),
            chance.below(1 << 32),
        )?;
    }
    Ok(())
}

fn calm(chance: &mut Chance) -> Result<Seen, Stop> {
    let disk = Disk::new(Kind::Plain)?;
    let args = args(&disk, Power);
    let mut world = World::new(disk, args, &[Start::default()])?;
    upload_many(&mut world, chance)?;
    Ok(world.finish())
}

/// Waits until some more chunks were acknowledged; whether the clients are still at work.
fn some_acks(world: &mut World, chance: &mut Chance) -> bool {
    let enough = world.acks() as u64 + 1 + chance.below(25);
    let goes_on = world.until(|world| world.acks() as u64 >= enough || world.clients_are_done());
    goes_on && !world.clients_are_done()
}

fn killed(chance: &mut Chance, durability: Durability, servers: usize) -> Result<Seen, Stop> {
    let disk = Disk::new(Kind::Plain)?;
    let args = args(&disk, durability);
    let mut world = World::new(disk, args, &vec![Start::default(); servers])?;
    upload_many(&mut world, chance)?;
    while some_acks(&mut world, chance) {
        world.kill(0);
        world.start(&Start::default())?;
        world.check_acks();
    }
    // Once more: the records and the files are there, too.
    world.kill(0);
    world.start(&Start::default())?;
    Ok(world.finish())
}

fn cut(
    chance: &mut Chance,
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
        // What is lost lets clients hang, which is as good as any other loss.
        world.patience /= 4;
    }
    upload_many(&mut world, chance)?;
    while some_acks(&mut world, chance) {
        world.cut()?;
        world.start(&start)?;
        world.check_acks();
        if world.seen.lost > 0 {
            // Enough is known.
            return Ok(world.seen.clone());
        }
    }
    world.cut()?;
    world.start(&start)?;
    Ok(world.finish())
}

/// One or the other: what a process left behind when it was killed is seen by the next one, and
/// then the power is cut.
fn mixed(chance: &mut Chance, kind: Kind) -> Result<Seen, Stop> {
    needs_root()?;
    let disk = Disk::new(kind).map_err(Stop::Cannot)?;
    let args = args(&disk, Power);
    let mut world = World::new(disk, args, &[Start::default()])?;
    upload_many(&mut world, chance)?;
    while some_acks(&mut world, chance) {
        if chance.below(2) == 0 {
            world.kill(0);
            world.start(&Start::default())?;
            // At once, or when others have trusted what is there.
            if chance.below(2) == 0 {
                world.check_acks();
            }
        }
        if chance.below(2) == 0 {
            world.cut()?;
            world.start(&Start::default())?;
        }
        world.check_acks();
    }
    world.cut()?;
    world.start(&Start::default())?;
    Ok(world.finish())
}

/// A process dies, or a step fails, at the first step, at the second one, and so on. Where power
/// can be cut, it is when the process has died.
fn at_each_step(chance: &mut Chance, action: &str, kind: Kind) -> Result<Seen, Stop> {
    const STEPS: [&str; 13] = [
        "claim",
        "create",
        "create-dir",
        "deliver",
        "delivered",
        "rename",
        "set-len",
        "settle",
        "sync-data",
        "sync-dir",
        "sync-journal",
        "write-data",
        "write-journal",
    ];
    if kind != Kind::Plain {
        needs_root()?;
    }
    let mut crossed = BTreeSet::new();
    let mut all = Seen::default();
    for step in 1.. {
        let fault = format!("{action}@{step}");
        let (mut seen, said) = at_step(chance, &fault, kind)?;
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
    for step in STEPS {
        if !crossed.contains(step) {
            all.wrong.push(format!("step {step} was never crossed"));
        }
    }
    Ok(all)
}

/// A process dies at a step, and so does the next one, while clients find out what is there: at
/// each of its first steps.
fn killed_twice(chance: &mut Chance) -> Result<Seen, Stop> {
    let mut all = Seen::default();
    for second in 1..=20 {
        // Behind those of the start.
        let faults = [
            format!("kill@{}", 10 + chance.below(75)),
            format!("kill@{second}"),
        ];
        let disk = Disk::new(Kind::Plain)?;
        let args = args(&disk, Power);
        let mut world = World::new(disk, args, &[])?;
        for len in [0, 2 * CHUNK + 5, CHUNK] {
            let content = chance.bytes(len);
            world.upload_alone(content)?;
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

fn at_step(chance: &mut Chance, fault: &str, kind: Kind) -> Result<(Seen, Vec<String>), Stop> {
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
        // It does not get as far as to listen.
        said.push(error);
        match kind {
            Kind::Plain => world.seen.crashes += 1,
            _ => world.cut()?,
        }
        world.start(&Start::default())?;
    }
    // One request after the other: the steps then come in the same order each time, and none is
    // left out.
    for len in [0, 2 * CHUNK + 5, CHUNK] {
        let content = chance.bytes(len);
        world.upload_alone(content)?;
        world.until(|world| world.clients_are_done() || world.servers[0].has_died());
    }
    let has_died = world.servers[0].has_died();
    if kind != Kind::Plain {
        // The pipe has what it said, also when the power is gone.
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

/// System calls of the server fail, now and then.
fn traced(chance: &mut Chance, inject: &str) -> Result<Seen, Stop> {
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
    // The first calls are those of its own start, each of which may fail.
    let mut starts = (0..20).map(|_| world.start(&start));
    starts
        .find(Result::is_ok)
        .unwrap_or(Err("it does not start".into()))?;
    upload_many(&mut world, chance)?;
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

/// There is room for some of the uploads only, and then for all.
fn full(chance: &mut Chance, reserve: bool) -> Result<Seen, Stop> {
    needs_root()?;
    let disk = Disk::new(Kind::Small(2000)).map_err(Stop::Cannot)?;
    let args = server::Args {
        reserve,
        ..args(&disk, Power)
    };
    // 5 %.
    let reserved = if reserve { 2000 * 1024 / 20 } else { 0 };
    let mut world = World::new(disk, args, &[Start::default()])?;
    for _ in 0..8 {
        let content = chance.bytes(30 * CHUNK);
        world.upload(content, CHUNK, chance.below(1 << 32))?;
    }
    // What is left is less than what one of the clients still wants to send.
    let is_full = |room| room < reserved + CHUNK;
    let is_full = world.until(|world| world.disk.room().is_ok_and(is_full));
    world.check_acks();
    let before = world.acks();
    world.kill(0);
    world.start(&Start::default())?;
    world.check_acks();
    if !is_full || before == 0 || world.clients_are_done() {
        world.seen.wrong.push("it was never full".into());
    }
    world.disk.grow(64_000)?;
    Ok(world.finish())
}

/// The server says 200 before the application has the file, and is killed.
fn too_early(chance: &mut Chance) -> Result<Seen, Stop> {
    let disk = Disk::new(Kind::Plain)?;
    let args = server::Args {
        answers_first: true,
        ..args(&disk, Power)
    };
    let mut world = World::new(disk, args, &[Start::default()])?;
    for _ in 0..4 {
        let content = chance.bytes(100);
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
