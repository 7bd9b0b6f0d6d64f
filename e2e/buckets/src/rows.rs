//! The rows of the table. Each names a fault and applies it to the servers or to the object store.

use std::{
    collections::BTreeSet,
    pin::Pin,
    time::{Duration, Instant},
};

use super::{
    engine::{Engine, Error},
    proxy::{Faults, Kill},
    rng::Rng,
    urls::Kind,
    world::{Seen, Setup, Tools, World},
};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// How the store keeps chunks, which depends on their size.
#[derive(Clone, Copy, PartialEq)]
pub enum Layout {
    /// Each small chunk is an object. The store assembles them at the end.
    Objects,
    /// Each chunk of at least 5 MiB is a part of the finished object.
    Parts,
}

impl Layout {
    pub fn chunk(self) -> u64 {
        match self {
            Self::Objects => 64 * KIB,
            Self::Parts => 5 * MIB,
        }
    }

    /// Makes a file that takes some seconds to upload.
    fn file(self, rng: &mut Rng) -> Vec<u8> {
        let len = match self {
            Self::Objects => MIB / 2 + rng.below(MIB),
            Self::Parts => 11 * MIB + rng.below(20 * MIB),
        };
        rng.bytes(len)
    }
}

/// What the clients of a row upload.
#[derive(Clone, Copy, PartialEq)]
pub enum Load {
    Chunks,
    /// Uploads that have a URL: of tus, of the IETF draft, and of parts.
    Urls,
}

/// The parameters of a round.
#[derive(Clone)]
pub struct Case {
    pub engine: Engine,
    pub tools: Tools,
    pub layout: Layout,
    pub load: Load,
    pub seed: u64,
}

impl Case {
    fn urls(self) -> Self {
        let load = Load::Urls;
        Self { load, ..self }
    }
}

type Round = Pin<Box<dyn Future<Output = Result<Seen, Error>>>>;

/// The name of a row, its number of rounds in a short run, and the function that runs one round.
type Row = (&'static str, u64, fn(Case) -> Round);

#[rustfmt::skip]
const ROWS: &[Row] = &[
    ("no fault", 1, |case| Box::pin(no_fault(case, 3, "0"))),
    ("duplicates, 60 %", 1, |case| Box::pin(no_fault(case, 4, "60"))),
    ("kill -9 in mid-chunk", 1, |case| Box::pin(killed(case))),
    ("kill -9 before the delivery", 1, |case| Box::pin(killed_at(case, "called"))),
    ("kill -9 after the delivery", 1, |case| Box::pin(killed_at(case, "read"))),
    ("kill -9 at each request", 1, |case| Box::pin(at_each_request(case))),
    ("a gateway killed", 1, |case| Box::pin(without_gateway(case))),
    ("the store slow", 1, |case| {
        let slow = Duration::from_millis(150);
        Box::pin(with_faults(case, Faults { slow, ..Faults::default() }))
    }),
    ("the store busy (503)", 1, |case| {
        Box::pin(with_faults(case, Faults { busy: 20, ..Faults::default() }))
    }),
    ("answers lost", 2, |case| {
        Box::pin(with_faults(case, Faults { lost: 10, ..Faults::default() }))
    }),
    ("abandoned by the clients", 1, |case| Box::pin(abandoned(case))),
    // Each request goes to another server than the one before, and may end that one.
    ("URLs, take-over", 1, |case| Box::pin(no_fault(case.urls(), 3, "0"))),
    ("URLs, kill -9 in mid-PATCH", 1, |case| Box::pin(killed(case.urls()))),
    ("URLs, before the delivery", 1, |case| Box::pin(killed_at(case.urls(), "called"))),
    ("URLs, after the delivery", 1, |case| Box::pin(killed_at(case.urls(), "read"))),
    ("URLs, at each request", 1, |case| Box::pin(at_each_request(case.urls()))),
    ("URLs, the store busy (503)", 1, |case| {
        Box::pin(with_faults(case.urls(), Faults { busy: 20, ..Faults::default() }))
    }),
    ("URLs, answers lost", 1, |case| {
        Box::pin(with_faults(case.urls(), Faults { lost: 10, ..Faults::default() }))
    }),
];

/// Runs the rows and prints the table. Returns whether every row is as expected.
pub async fn all(case: &Case, rounds: u64, only: &[String]) -> bool {
    println!(
        "\n{:7} {:8}{:29}{:>7}{:>7}{:>7}{:>8}{:>8}{:>12}{:>8}{:>9}{:>5}{:>6}{:>6}{:>7}",
        "engine",
        "layout",
        "",
        "servers",
        "rounds",
        "faults",
        "uploads",
        "repeats",
        "finished",
        "doubled",
        "by crash",
        "bad",
        "left",
        "open",
        "s"
    );
    let mut good = true;
    for layout in [Layout::Objects, Layout::Parts] {
        let name = match layout {
            Layout::Objects => "objects",
            Layout::Parts => "parts",
        };
        for row in ROWS {
            let all = format!("{name} {}", row.0);
            if only.is_empty() || only.iter().any(|only| all.contains(only)) {
                let case = Case {
                    layout,
                    ..case.clone()
                };
                good &= run(row, name, &case, rounds).await;
            }
        }
    }
    good
}

async fn run((name, times, round): &Row, layout: &str, case: &Case, rounds: u64) -> bool {
    let (mut seen, start) = (Seen::default(), Instant::now());
    for number in 0..times * rounds {
        let case = Case {
            seed: Rng::new(case.seed ^ number << 32 ^ hash(layout) ^ hash(name)).next(),
            ..case.clone()
        };
        match round(case).await {
            Ok(more) => seen.add(more),
            Err(error) => {
                seen.rounds += 1;
                seen.wrong.push(error.to_string());
            }
        }
    }
    let good = seen.is_clean();
    println!(
        "{:7} {layout:8}{name:29}{:>7}{:>7}{:>7}{:>8}{:>8}{:>12}{:>8}{:>9}{:>5}{:>6}{:>6}\
         {:>7.1}  {}",
        case.engine.name,
        seen.servers,
        seen.rounds,
        seen.faults,
        seen.uploads,
        seen.repeats,
        seen.completions,
        seen.doubled,
        seen.doubled_by_crash,
        seen.bad,
        seen.leftovers,
        seen.multipart,
        start.elapsed().as_secs_f64(),
        if good { "" } else { "WRONG" }
    );
    seen.wrong.iter().for_each(|what| println!("    {what}"));
    good
}

/// Gives each row different random choices and different keys.
fn hash(name: &str) -> u64 {
    name.bytes().fold(0, |sum, byte| {
        sum.wrapping_mul(31).wrapping_add(byte.into())
    })
}

/// Starts clients. Those that send chunks have four connections, and send them in random order.
async fn upload_many(
    world: &mut World,
    case: &Case,
    rng: &mut Rng,
    clients: u64,
    duplicates: &str,
) -> Result<(), Error> {
    if case.load == Load::Urls {
        for number in 0..6 {
            let kind = [Kind::Tus, Kind::Draft, Kind::Concat][number % 3];
            let content = case.layout.file(rng);
            // Some end, or let stall, some of their requests.
            world.append(
                kind,
                content,
                4 * case.layout.chunk(),
                number < 3,
                rng.next(),
            );
        }
        return Ok(());
    }
    for number in 0..clients {
        let mut chunk = case.layout.chunk();
        let content = match number {
            // Larger than one step of the assembly, with chunks that belong to two steps.
            0 if case.layout == Layout::Objects => {
                chunk = 300_000;
                rng.bytes(9 * MIB - 1)
            }
            1 => Vec::new(),
            2 => rng.bytes(chunk / 2),
            _ => case.layout.file(rng),
        };
        let seed = rng.next();
        let words = ["--duplicate", duplicates];
        world.upload(content, chunk, seed, &words).await?;
    }
    Ok(())
}

async fn no_fault(case: Case, servers: usize, duplicates: &str) -> Result<Seen, Error> {
    let mut rng = Rng::new(case.seed);
    let mut setup = Setup {
        servers,
        ..Setup::default()
    };
    if case.load == Load::Urls {
        // The last append that stalls may still have its lease when the servers end.
        setup.lease = LEASE;
    }
    let mut world = World::new(&case.engine, &case.tools, setup, case.seed).await?;
    upload_many(&mut world, &case, &mut rng, 5, duplicates).await?;
    Ok(world.finish().await)
}

/// Short, because an upload that a dead server had claimed is delivered after the lease has ended.
const LEASE: Duration = Duration::from_secs(3);

async fn killed(case: Case) -> Result<Seen, Error> {
    let mut rng = Rng::new(case.seed);
    let setup = Setup {
        lease: LEASE,
        ..Setup::default()
    };
    let mut world = World::new(&case.engine, &case.tools, setup, case.seed).await?;
    upload_many(&mut world, &case, &mut rng, 5, "40").await?;
    let many = match case.layout {
        Layout::Objects => 40,
        Layout::Parts => 5,
    };
    while world.some_acks(&mut rng, many).await {
        let server = rng.below(3) as usize;
        world.kill(server).await;
        world.seen.faults += 1;
        tokio::time::sleep(Duration::from_millis(rng.below(200))).await;
        world.start(server).await?;
    }
    Ok(world.finish().await)
}

/// Kills the process whenever the application reports that it was called, or that it has read the
/// file.
async fn killed_at(case: Case, event: &str) -> Result<Seen, Error> {
    let mut rng = Rng::new(case.seed);
    let setup = Setup {
        lease: LEASE,
        pause: Duration::from_millis(100),
        ..Setup::default()
    };
    let mut world = World::new(&case.engine, &case.tools, setup, case.seed).await?;
    upload_many(&mut world, &case, &mut rng, 4, "40").await?;
    let mut seen = 0;
    while world.seen.faults < 4 {
        let Some(server) = world.next(event, &mut seen).await else {
            break;
        };
        world.kill(server).await;
        world.seen.faults += 1;
        world.start(server).await?;
    }
    Ok(world.finish().await)
}

/// Kills a server before or just after the store has executed a request: first at its first
/// request, then at the second one, and so on, until there is no request with that number.
async fn at_each_request(case: Case) -> Result<Seen, Error> {
    let (mut all, mut next, mut kinds) = (Seen::default(), 1, BTreeSet::new());
    loop {
        // Some rounds run at the same time, because they wait for leases most of the time.
        const TOGETHER: u64 = 4;
        let rounds = (next..next + TOGETHER).map(|number| {
            // Another round, or another seed, covers the other half.
            let after = (case.seed ^ number) % 2 == 0;
            let case = Case {
                seed: case.seed.wrapping_add(number),
                ..case.clone()
            };
            tokio::spawn(async move { at_request(case, number, after).await })
        });
        let rounds: Vec<_> = rounds.collect();
        next += TOGETHER;
        let mut more = false;
        for round in rounds {
            let (seen, kind) = round.await??;
            more |= kind.is_some();
            kinds.extend(kind);
            all.add(seen);
        }
        if !more {
            break;
        }
        if next > 400 {
            all.wrong.push("there is no last request".into());
            break;
        }
    }
    // The order of the requests varies, but they must not all be of a few kinds.
    if kinds.len() < 8 {
        all.wrong
            .push(format!("killed at few kinds of requests: {kinds:?}"));
    }
    Ok(all)
}

async fn at_request(case: Case, at: u64, after: bool) -> Result<(Seen, Option<String>), Error> {
    let mut rng = Rng::new(case.seed);
    let setup = Setup {
        servers: 2,
        lease: Duration::from_secs(2),
        sweep: Duration::ZERO,
        pause: Duration::ZERO,
        ..Setup::default()
    };
    let mut world = World::new(&case.engine, &case.tools, setup, case.seed).await?;
    world.proxy(0).set(Faults {
        kill: Some(Kill { at, after }),
        ..Faults::default()
    });
    let chunk = case.layout.chunk();
    let content = rng.bytes(2 * chunk + 5);
    match case.load {
        Load::Chunks => {
            let words = ["--duplicate", "50"];
            world.upload(content, chunk, rng.next(), &words).await?;
        }
        Load::Urls => {
            let kind = [Kind::Tus, Kind::Draft, Kind::Concat][(at % 3) as usize];
            world.append(kind, content, 2 * chunk, false, rng.next());
        }
    }
    let mut kind = None;
    while !world.clients_are_done() && kind.is_none() {
        tokio::select! {
            () = world.proxy(0).kill_requested() => {
                world.kill(0).await;
                kind = world.proxy(0).confirm_kill();
                world.proxy(0).set(Faults::default());
                world.seen.faults += 1;
                world.start(0).await?;
            }
            () = tokio::time::sleep(Duration::from_millis(10)) => {}
        }
    }
    let mut seen = world.finish().await;
    for what in &mut seen.wrong {
        *what = format!("{}: {what}", kind.as_deref().unwrap_or("no kill"));
    }
    Ok((seen, kind))
}

/// Kills one of the two gateways, and starts it again after clients have noticed.
async fn without_gateway(case: Case) -> Result<Seen, Error> {
    let mut rng = Rng::new(case.seed);
    let setup = Setup {
        servers: 4,
        ..Setup::default()
    };
    let mut world = World::new(&case.engine, &case.tools, setup, case.seed).await?;
    upload_many(&mut world, &case, &mut rng, 5, "40").await?;
    world.some_acks(&mut rng, 8).await;
    let killed = case.engine.kill_gateway().await?;
    if !killed {
        // There is only one gateway: make it unreachable for half of the servers.
        for server in [1, 3] {
            world.proxy(server).set(Faults {
                down: true,
                ..Faults::default()
            });
        }
    }
    world.seen.faults += 1;
    world.may_leave_parts = true;
    tokio::time::sleep(Duration::from_secs(2)).await;
    if killed {
        case.engine.restart_gateway().await?;
    } else {
        world.set(&Faults::default());
    }
    Ok(world.finish().await)
}

async fn with_faults(case: Case, faults: Faults) -> Result<Seen, Error> {
    let mut rng = Rng::new(case.seed);
    let setup = Setup {
        lease: Duration::from_secs(10),
        ..Setup::default()
    };
    let mut world = World::new(&case.engine, &case.tools, setup, case.seed).await?;
    world.may_leave_parts = faults.busy + faults.lost > 0;
    world.set(&faults);
    upload_many(&mut world, &case, &mut rng, 4, "40").await?;
    Ok(world.finish().await)
}

/// Clients are killed for good. The sweep has to remove everything that they have left.
async fn abandoned(case: Case) -> Result<Seen, Error> {
    let mut rng = Rng::new(case.seed);
    let mut world = World::new(&case.engine, &case.tools, Setup::default(), case.seed).await?;
    upload_many(&mut world, &case, &mut rng, 5, "40").await?;
    world.some_acks(&mut rng, 8).await;
    world.abandon_uploads().await;
    world.seen.faults += 1;
    Ok(world.finish().await)
}
