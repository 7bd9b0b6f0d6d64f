//! Counts the requests to the object store, and measures the time from the last chunk to its
//! answer.

use std::time::Duration;

use super::{
    engine::Error,
    proxy::{Count, Counts},
    rng::Rng,
    rows::{Case, Layout},
    world::{Setup, World},
};

const MIB: u64 = 1 << 20;

/// Prints the table of requests and the table of times.
pub async fn all(case: &Case) -> Result<(), Error> {
    println!(
        "\nRequests to the store, {}: one server, no duplicates, no probes,\n\
         and an application that does not read the file",
        case.engine.name
    );
    for (layout, chunk, file) in [
        (Layout::Objects, 64 << 10, 16 * MIB),
        (Layout::Objects, MIB, 64 * MIB),
        (Layout::Parts, 5 * MIB, 60 * MIB),
        (Layout::Parts, 8 * MIB, 128 * MIB),
    ] {
        let (chunks, before, after, _) = measure(case, chunk, file).await?;
        let name = match layout {
            Layout::Objects => "objects",
            Layout::Parts => "parts",
        };
        println!(
            "\n{name}, {chunks} chunks of {} KiB, {} MiB",
            chunk >> 10,
            file / MIB
        );
        print(&before, &after, chunks, file);
    }
    println!(
        "\n{:9}{:>12}{:>12}{:>14}{:>18}",
        "layout", "chunk KiB", "file MiB", "last answer", "requests for it"
    );
    for (name, chunk, files) in [
        ("parts", 8 * MIB, &[16, 64, 256][..]),
        ("objects", MIB, &[16, 64][..]),
        ("objects", 64 << 10, &[4, 16][..]),
    ] {
        for file in files {
            let (_, _, after, ms) = measure(case, chunk, file * MIB).await?;
            let requests: u64 = after.values().map(|count| count.requests).sum();
            println!(
                "{name:9}{:>12}{file:>12}{:>11.1} ms{requests:>18}",
                chunk >> 10,
                ms
            );
        }
    }
    Ok(())
}

/// Returns the number of chunks, the requests before the last chunk, the requests for it, and the
/// milliseconds until its answer.
async fn measure(case: &Case, chunk: u64, file: u64) -> Result<(u64, Counts, Counts, f64), Error> {
    let mut rng = Rng::new(case.seed ^ chunk ^ file);
    let setup = Setup {
        servers: 1,
        pause: Duration::ZERO,
        sweep: Duration::ZERO,
        reads: false,
        ..Setup::default()
    };
    let mut world = World::new(&case.engine, &case.tools, setup, rng.next()).await?;
    // The requests of the start are not counted.
    world.take_counts();
    let chunks = file / chunk;
    let content = rng.bytes(file);
    let words = ["--no-test", "--last-alone"];
    world.upload(content, chunk, rng.next(), &words).await?;
    while world.acks() < chunks as usize - 1 && !world.clients_are_done() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let before = world.take_counts();
    let answer = world.answer_of_client().await?;
    let after = world.take_counts();
    let seen = world.finish().await;
    if !seen.wrong.is_empty() {
        return Err(seen.wrong.join("; ").into());
    }
    let ms = answer["last_chunk_ms"].as_f64().ok_or("no time")?;
    Ok((chunks, before, after, ms))
}

fn print(before: &Counts, after: &Counts, chunks: u64, file: u64) {
    println!(
        "  {:20}{:>16}{:>18}{:>12}{:>14}",
        "", "before the last", "from the last on", "per chunk", "per GiB"
    );
    let kinds: std::collections::BTreeSet<_> = before.keys().chain(after.keys()).collect();
    let of = |counts: &Counts, kind: &str| counts.get(kind).copied().unwrap_or_default();
    let per_gib = |n: u64| n as f64 * (1 << 30) as f64 / file as f64;
    let mut sum = (Count::default(), Count::default());
    for kind in kinds {
        let (first, last) = (of(before, kind), of(after, kind));
        for (sum, count) in [(&mut sum.0, first), (&mut sum.1, last)] {
            sum.requests += count.requests;
            sum.up += count.up;
            sum.down += count.down;
        }
        let all = first.requests + last.requests;
        println!(
            "  {kind:20}{:>16}{:>18}{:>12.2}{:>14.0}",
            first.requests,
            last.requests,
            first.requests as f64 / (chunks - 1).max(1) as f64,
            per_gib(all)
        );
    }
    let (first, last) = sum;
    println!(
        "  {:20}{:>16}{:>18}{:>12.2}{:>14.0}",
        "all",
        first.requests,
        last.requests,
        first.requests as f64 / (chunks - 1).max(1) as f64,
        per_gib(first.requests + last.requests)
    );
    println!(
        "  bytes to the store {:.2}, from it {:.2} times the file",
        (first.up + last.up) as f64 / file as f64,
        (first.down + last.down) as f64 / file as f64
    );
}
