//! Runs servers behind a balancer for other clients, such as a browser. Servers that are killed are
//! started again.

use std::time::Duration;

use super::{
    engine::Error,
    rows::Case,
    world::{Setup, World},
};

/// Runs until its standard input ends. Prints the address of the balancer and the process ids of
/// the servers to standard error, and a line for each event of the application to standard output.
pub async fn run(case: &Case) -> Result<(), Error> {
    let setup = Setup {
        lease: Duration::from_secs(3),
        pause: Duration::from_millis(200),
        ..Setup::default()
    };
    let mut world = World::new(&case.engine, &case.tools, setup, super::server::now()).await?;
    for server in 0..3 {
        eprintln!(
            "server {server} is process {}",
            world.pid(server).unwrap_or(0)
        );
    }
    eprintln!("listening on http://{}", world.address);
    let mut end = std::pin::pin!(tokio::task::spawn_blocking(|| {
        let _ = std::io::Read::read(&mut std::io::stdin(), &mut [0]);
    }));
    let mut printed = 0;
    loop {
        tokio::select! {
            _ = &mut end => return Ok(()),
            () = tokio::time::sleep(Duration::from_millis(20)) => {}
        }
        for server in 0..3 {
            if world.has_died(server) {
                world.kill(server).await;
                world.start(server).await?;
                eprintln!(
                    "server {server} is process {}",
                    world.pid(server).unwrap_or(0)
                );
            }
        }
        for event in world.events_from(&mut printed) {
            println!("{event}");
        }
    }
}
