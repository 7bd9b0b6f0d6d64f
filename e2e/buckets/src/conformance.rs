//! The conformance suite on a real object store, and the self-test with and without conditional
//! requests.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tower_resumable::{BucketStore, store::conformance};

use super::{
    engine::{Engine, Error},
    proxy::Proxy,
};

/// Runs the suite. Each request goes to the next gateway. Panics if a check fails.
pub async fn all(engine: &Engine) -> Result<(), Error> {
    let proxy = Proxy::start(engine.gateways.clone(), 0).await?;
    let client = engine.kind.client(proxy.address, &engine.bucket)?;
    let say = |what: &str, start: Instant| {
        let requests: u64 = proxy
            .take_counts()
            .values()
            .map(|count| count.requests)
            .sum();
        let seconds = start.elapsed().as_secs_f64();
        println!(
            "{}: {what}, {requests} requests, {seconds:.1} s",
            engine.name
        );
    };
    let start = Instant::now();
    let builder = BucketStore::builder(Arc::new(client)).with_prefix("conformance");
    let store = builder.open().await?;
    say("the self-test has passed", start);
    let start = Instant::now();
    // Other programs use the disk too, so it can be slow.
    conformance::check_with_patience(&store, Duration::from_secs(30)).await;
    say("the conformance suite has passed", start);
    let unconditional = engine.direct()?.ignoring_conditions();
    match BucketStore::builder(Arc::new(unconditional))
        .with_prefix("unconditional")
        .open()
        .await
    {
        Ok(_) => Err("the self-test accepts a store that ignores conditions".into()),
        Err(error) => {
            let text = with_causes(&error);
            println!("{}, conditions ignored: refused: {text}", engine.name);
            if text.contains("If-None-Match") {
                Ok(())
            } else {
                Err("the refusal does not name its cause".into())
            }
        }
    }
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text += &format!(": {error}");
        source = error.source();
    }
    text
}
