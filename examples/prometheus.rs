//! Shows metrics for Prometheus: the events and the counts of the layer, at `/metrics`. Start the
//! server with the first command, upload a file with the second one, and look at the metrics with
//! the third one. `examples/prometheus/dashboard.json` is a dashboard for Grafana.
//!
//! ```sh
//! cargo run --example prometheus
//! cargo run --example upload -- http://127.0.0.1:3000/upload FILE
//! curl http://127.0.0.1:3000/metrics
//! ```
//!
//! Labels are kinds of errors and HTTP statuses, so there is a bounded number of time series. Ids
//! and names of files belong into the log.
//!
//! The application rejects files whose name ends in `.exe`, and fails while there is a file
//! `maintenance` in the folder of the uploads.

use std::{
    env,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use axum::{
    Json, Router,
    body::Body,
    extract::State,
    http::{Request, StatusCode, header},
    response::IntoResponse,
    routing::{any, get},
    serve::ListenerExt as _,
};
use metrics::{
    Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tower_resumable::{
    BoxError, CompletedUpload, Event, EventLevel, FileStore, ResumableLayer, Uploads, Verdict,
};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let recorder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &BUCKETS)?
        .build_recorder();
    let scrape = recorder.handle();
    metrics::set_global_recorder(recorder)?;
    describe();

    let dir = PathBuf::from(option("--dir").unwrap_or("uploads".into()));
    let layer = ResumableLayer::new(FileStore::open(&dir)?).with_events(|event| {
        // Not a line for each chunk.
        if event.level() >= EventLevel::Info {
            eprintln!("{event}");
        }
        count(event);
    });
    let uploads = layer.uploads();
    let (rendered, counted) = (scrape.clone(), uploads.clone());
    let app = Router::new()
        .route("/upload", any(finished))
        .route(
            "/metrics",
            get(async move || {
                set_gauges(&counted);
                let format = "text/plain; version=0.0.4; charset=utf-8";
                ([(header::CONTENT_TYPE, format)], rendered.render())
            }),
        )
        .with_state(dir.into());
    let address = option("--listen").unwrap_or("127.0.0.1:3000".into());
    let listener = TcpListener::bind(address).await?;
    eprintln!("listening on http://{}", listener.local_addr()?);
    // Moves the values of the histograms into their buckets, also if nothing scrapes them.
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_secs(5)).await;
            scrape.run_upkeep();
        }
    });
    // Deliver the uploads that were complete when the last process ended, and those whose delivery
    // fails.
    let deliveries = tokio::spawn(uploads.deliver_every(
        Duration::from_secs(60),
        app.clone(),
        |_| Request::post("/upload").body(Body::empty()),
    ));
    // Remove abandoned uploads after a week, which is the default retention.
    tokio::spawn(uploads.sweep_every(Duration::from_secs(3600)));
    // Otherwise HTTP/2 stalls: a small frame would wait for the acknowledgement of the one before.
    let listener = listener.tap_io(|connection| {
        if let Err(error) = connection.set_nodelay(true) {
            eprintln!("TCP_NODELAY: {error}");
        }
    });
    let server = axum::serve(listener, app.layer(layer)).with_graceful_shutdown(shutdown());
    // Clients that are slow to end their requests are not waited for without limit.
    tokio::select! {
        ended = server => ended?,
        () = async { shutdown().await; tokio::time::sleep(GRACE).await } => {}
    }
    deliveries.abort();
    // The deliveries whose clients have gone.
    if tokio::time::timeout(GRACE, uploads.drain()).await.is_err() {
        eprintln!("some uploads are delivered again after the next start");
    }
    Ok(())
}

/// Upper bounds of the buckets of all histograms, in seconds.
const BUCKETS: [f64; 12] = [
    0.001, 0.005, 0.02, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0,
];

/// Counters without labels. They exist from the start: an alert cannot see that an absent one
/// grows.
const COUNTERS: [(&str, &str); 14] = [
    (
        "resumable_uploads_started_total",
        "Uploads of which the first bytes were stored.",
    ),
    (
        "resumable_uploads_resumed_total",
        "Times that a client came back to an unfinished upload.",
    ),
    (
        "resumable_uploads_completed_total",
        "Uploads of which all bytes were stored.",
    ),
    (
        "resumable_uploads_delivered_total",
        "Uploads that the application took.",
    ),
    (
        "resumable_uploads_cancelled_total",
        "Uploads that their clients removed.",
    ),
    (
        "resumable_uploads_set_aside_total",
        "Uploads whose delivery failed too often.",
    ),
    ("resumable_chunks_stored_total", "Chunks that were stored."),
    (
        "resumable_received_bytes_total",
        "Bytes of chunks that were stored.",
    ),
    (
        "resumable_duplicate_bytes_total",
        "Received bytes that were stored already.",
    ),
    (
        "resumable_deliveries_started_total",
        "Calls of the application with a file.",
    ),
    (
        "resumable_deliveries_retried_total",
        "Calls with a file that it was called with before.",
    ),
    (
        "resumable_deliveries_failed_total",
        "Calls that failed. The upload is delivered again.",
    ),
    ("resumable_sweeps_total", "Sweeps that removed something."),
    ("resumable_sweeps_failed_total", "Sweeps that failed."),
];

/// Writes the HELP texts, and makes the counters that alerts may ask for.
fn describe() {
    for (name, help) in COUNTERS {
        describe_counter!(name, help);
        counter!(name).absolute(0);
    }
    for (name, label, values, help) in [
        (
            "resumable_uploads_rejected_total",
            "kind",
            &["application"][..],
            "Files that were rejected and removed, by the kind of the error, or by the status of \
             the application.",
        ),
        (
            "resumable_requests_refused_total",
            "kind",
            &["busy", "too_many_uploads", "quota_exceeded"],
            "Requests that ended with an error of the client, a limit or a hook, by the kind of \
             the error.",
        ),
        (
            "resumable_store_errors_total",
            "kind",
            &["storage", "storage_full"],
            "Calls of the store that failed, by the kind of the error, and other faults of the \
             store, by the name of the event.",
        ),
        (
            "resumable_swept_total",
            "what",
            &["abandoned", "undelivered", "records"],
            "What sweeps removed: abandoned and undelivered uploads, and expired records.",
        ),
    ] {
        describe_counter!(name, help);
        for value in values {
            counter!(name, label => *value).absolute(0);
        }
    }
    for (name, unit, help) in [
        (
            "resumable_unfinished_uploads",
            Unit::Count,
            "Uploads that are not settled.",
        ),
        (
            "resumable_unfinished_bytes",
            Unit::Bytes,
            "The declared bytes of these uploads.",
        ),
        (
            "resumable_requests_running",
            Unit::Count,
            "Upload requests and deliveries that run.",
        ),
        (
            "resumable_deliveries_running",
            Unit::Count,
            "Deliveries that run.",
        ),
        (
            "resumable_deliveries_pending",
            Unit::Count,
            "Uploads that wait for another delivery.",
        ),
        (
            "resumable_set_aside_uploads",
            Unit::Count,
            "Uploads that this process has set aside.",
        ),
    ] {
        describe_gauge!(name, unit, help);
    }
    for (name, help) in [
        (
            "resumable_chunk_seconds",
            "The time to receive and to store a chunk.",
        ),
        (
            "resumable_delivery_seconds",
            "The time of a delivery, with hooks and digests.",
        ),
        (
            "resumable_last_byte_to_answer_seconds",
            "The time from the last byte of a file to the answer of the application.",
        ),
    ] {
        describe_histogram!(name, Unit::Seconds, help);
    }
}

/// Adds an event to the metrics.
fn count(event: &Event<'_>) {
    match event {
        Event::Created { .. } => counter!("resumable_uploads_started_total").increment(1),
        Event::Resumed { .. } => counter!("resumable_uploads_resumed_total").increment(1),
        Event::Completed { .. } => counter!("resumable_uploads_completed_total").increment(1),
        Event::Stored {
            bytes,
            duplicate,
            elapsed,
            ..
        } => {
            counter!("resumable_chunks_stored_total").increment(1);
            counter!("resumable_received_bytes_total").increment(*bytes);
            counter!("resumable_duplicate_bytes_total").increment(*duplicate);
            histogram!("resumable_chunk_seconds").record(*elapsed);
        }
        Event::Refused { error, .. }
        | Event::TakenOver { error, .. }
        | Event::Interrupted { error, .. } => {
            let kind = error.kind().as_str();
            counter!("resumable_requests_refused_total", "kind" => kind).increment(1);
        }
        Event::DeliveryStarted { attempt, .. } => {
            counter!("resumable_deliveries_started_total").increment(1);
            if *attempt > 1 {
                counter!("resumable_deliveries_retried_total").increment(1);
            }
        }
        Event::DeliveryEnded {
            verdict,
            elapsed,
            since_last_byte,
            ..
        } => {
            if *verdict == Verdict::Delivered {
                counter!("resumable_uploads_delivered_total").increment(1);
            }
            histogram!("resumable_delivery_seconds").record(*elapsed);
            if let Some(time) = since_last_byte {
                histogram!("resumable_last_byte_to_answer_seconds").record(*time);
            }
        }
        Event::DeliveryFailed { elapsed, .. } => {
            counter!("resumable_deliveries_failed_total").increment(1);
            histogram!("resumable_delivery_seconds").record(*elapsed);
        }
        Event::SetAside { .. } => counter!("resumable_uploads_set_aside_total").increment(1),
        Event::FileRemoved { status, error, .. } => match (status, error) {
            (Some(status), _) => rejected("application", status.as_str()),
            (None, Some(error)) => rejected(error.kind().as_str(), ""),
            (None, None) => counter!("resumable_uploads_cancelled_total").increment(1),
        },
        Event::StoreFailed { error, .. } => store_error(error.kind().as_str()),
        Event::Store(_) => store_error(event.name()),
        Event::Swept(swept) => {
            counter!("resumable_sweeps_total").increment(1);
            for (what, number) in [
                ("abandoned", swept.abandoned),
                ("undelivered", swept.undelivered),
                ("records", swept.records),
            ] {
                counter!("resumable_swept_total", "what" => what).increment(number);
            }
        }
        Event::SweepFailed { .. } => counter!("resumable_sweeps_failed_total").increment(1),
        // Later versions of the crate have more events.
        _ => {}
    }
}

/// An empty status is as no label for Prometheus.
fn rejected(kind: &'static str, status: &str) {
    let status = status.to_owned();
    let labels = [("kind", kind.to_owned()), ("status", status)];
    counter!("resumable_uploads_rejected_total", &labels).increment(1);
}

fn store_error(kind: &'static str) {
    counter!("resumable_store_errors_total", "kind" => kind).increment(1);
}

/// Sets what is known when the metrics are read.
fn set_gauges(uploads: &Uploads) {
    let counts = uploads.counts();
    // Not known before the first upload. No value is better than a wrong one.
    if let Some(number) = counts.unfinished_uploads {
        gauge!("resumable_unfinished_uploads").set(number as f64);
    }
    if let Some(bytes) = counts.unfinished_bytes {
        gauge!("resumable_unfinished_bytes").set(bytes as f64);
    }
    gauge!("resumable_requests_running").set(counts.running as f64);
    gauge!("resumable_deliveries_running").set(counts.deliveries as f64);
    gauge!("resumable_deliveries_pending").set(counts.waiting as f64);
    gauge!("resumable_set_aside_uploads").set(counts.set_aside as f64);
}

async fn finished(State(dir): State<Arc<Path>>, upload: CompletedUpload) -> impl IntoResponse {
    if dir.join("maintenance").exists() {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let file_name = upload.safe_file_name();
    if file_name.ends_with(".exe") {
        return (StatusCode::UNSUPPORTED_MEDIA_TYPE, "no programs").into_response();
    }
    println!("{}", line(&upload));
    Json(json!({ "id": upload.id(), "file_name": file_name, "size": upload.size() }))
        .into_response()
}

fn line(upload: &CompletedUpload) -> Value {
    json!({
        "id": upload.id(),
        "path": upload.path(),
        "size": upload.size(),
        "file_name": upload.file_name(),
        "attempt": upload.attempt(),
    })
}

/// How long requests and deliveries that are running may take after the signal to end.
const GRACE: Duration = Duration::from_secs(30);

/// Waits for Ctrl-C or SIGTERM.
async fn shutdown() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        // Without a handler the signal ends the process at once.
        let Ok(mut terminate) = signal(SignalKind::terminate()) else {
            return std::future::pending().await;
        };
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
    }
    #[cfg(not(unix))]
    let _ = tokio::signal::ctrl_c().await;
}

/// The value of a command line option: `--listen ADDRESS` or `--dir DIR`.
fn option(name: &str) -> Option<String> {
    env::args().skip_while(|word| word != name).nth(1)
}
