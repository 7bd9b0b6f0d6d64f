//! Runs the rows and prints the table.

use std::{any::Any, sync::Arc, time::Instant};

use tokio::{sync::Semaphore, task::JoinHandle};

use crate::{
    rows,
    world::{Case, Kind, Report, World},
};

/// How many rows run at the same time.
const AT_ONCE: usize = 8;

/// Runs the rows and prints a line for each. Returns whether all rows passed.
pub async fn print(only: Option<&str>) -> bool {
    let wanted = |case: &&'static Case| {
        let name = format!("{} {}", case.id, case.name);
        only.is_none_or(|only| name.contains(only))
    };
    println!(
        "{:72}{:>9}  {:20}{:>7}{:>9}{:>8}{:>7}",
        "case", "requests", "status", "stored", "outside", "harmed", "s"
    );
    let cases: Vec<_> = rows::all().filter(wanted).collect();
    let permits = Arc::new(Semaphore::new(AT_ONCE));
    let running = cases.iter().filter(|case| !case.alone);
    let mut running: Vec<JoinHandle<Report>> = running
        .map(|case| {
            let (case, permits) = (*case, Arc::clone(&permits));
            tokio::spawn(async move {
                let _permit = permits.acquire().await;
                run(case).await
            })
        })
        .collect();
    running.reverse();
    let (mut passed, mut failed) = (0, 0);
    // The rows that have to run alone come last.
    for alone in [false, true] {
        for case in cases.iter().filter(|case| case.alone == alone) {
            let report = if alone {
                run(case).await
            } else {
                running.pop().unwrap().await.unwrap()
            };
            if line(case, &report) {
                passed += 1;
            } else {
                failed += 1;
            }
        }
    }
    println!("{passed} passed, {failed} failed");
    failed == 0
}

fn line(case: &Case, report: &Report) -> bool {
    let good =
        report.wrong.is_empty() && report.left + (report.outside + report.harmed) as u64 == 0;
    let statuses = report.statuses.iter().map(|status| match status {
        0 => "closed".to_owned(),
        status => status.to_string(),
    });
    println!(
        "{:72}{:>9}  {:20}{:>7}{:>9}{:>8}{:>7.1}  {}",
        format!("{:>3} {}", case.id, case.name),
        report.requests,
        statuses.collect::<Vec<_>>().join(" "),
        report.left,
        report.outside,
        report.harmed,
        report.took.as_secs_f64(),
        if good { "ok" } else { "WRONG" }
    );
    report.wrong.iter().for_each(|what| println!("    {what}"));
    good
}

async fn run(case: &'static Case) -> Report {
    let (mut report, start) = (Report::default(), Instant::now());
    for kind in case.kinds {
        run_on(case, *kind, &mut report).await;
    }
    report.took = start.elapsed();
    report
}

async fn run_on(case: &'static Case, kind: Kind, report: &mut Report) {
    let made = tokio::spawn(World::new(case, kind)).await;
    let world = match made {
        Ok(world) => Arc::new(world),
        Err(error) => {
            report.wrong.push(format!("{kind:?}: {}", text(error)));
            return;
        }
    };
    let attacked = Arc::clone(&world);
    if let Err(error) = tokio::spawn(async move { (case.run)(&attacked).await }).await {
        report.wrong.push(format!("{kind:?}: {}", text(error)));
    }
    let closing = tokio::spawn(async move {
        let mut report = Report::default();
        let closed = std::panic::AssertUnwindSafe(world.close(&mut report));
        let closed = futures_util::FutureExt::catch_unwind(closed).await;
        (report, closed.err().map(message))
    });
    match closing.await {
        Ok((closed, wrong)) => {
            report.requests += closed.requests;
            report.statuses.extend(closed.statuses);
            report.left += closed.left;
            report.outside += closed.outside;
            report.harmed += closed.harmed;
            report
                .wrong
                .extend(wrong.map(|w| format!("{kind:?}, afterwards: {w}")));
        }
        Err(error) => report.wrong.push(format!("{kind:?}: {}", text(error))),
    }
}

fn text(error: tokio::task::JoinError) -> String {
    match error.try_into_panic() {
        Ok(panic) => message(panic),
        Err(error) => error.to_string(),
    }
}

fn message(panic: Box<dyn Any + Send>) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
    text.unwrap_or_else(|| "a panic without a message".into())
}
