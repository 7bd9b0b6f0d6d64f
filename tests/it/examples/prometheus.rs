//! `examples/prometheus.rs`: the metrics count what has happened, and the dashboard uses them.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

const DASHBOARD: &str = include_str!("../../../examples/prometheus/dashboard.json");

/// The values of a scrape, by name and labels.
struct Scrape(BTreeMap<String, f64>, String);

impl Scrape {
    fn of(server: &Server) -> Self {
        let answer = request(&server.address, "GET /metrics", "", b"");
        let (head, text) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        let samples = text
            .lines()
            .filter(|line| !line.starts_with('#') && !line.is_empty());
        let samples = samples.map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name.to_owned(), value.parse().unwrap())
        });
        Self(samples.collect(), text.to_owned())
    }

    #[track_caller]
    fn assert(&self, name: &str, value: f64) {
        assert_eq!(self.0.get(name), Some(&value), "{name} in\n{}", self.1);
    }

    /// The names without labels.
    fn names(&self) -> BTreeSet<&str> {
        let names = self.0.keys().map(|name| name.split('{').next().unwrap());
        names.collect()
    }
}

fn send(server: &Server, name: &str, number: u64, total: u64) -> String {
    let line = format!("POST /upload?{}", chunk(name, number, total));
    request(&server.address, &line, RAW, b"0123456789")
}

#[track_caller]
fn stored(answer: &str) {
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[test]
fn metrics_count_what_has_happened() {
    let dir = tempfile::tempdir().unwrap();
    let uploads = dir.path().join("uploads");
    let server = Server::start("prometheus", "127.0.0.1:0", &uploads);
    stored(&send(&server, "resumed.bin", 1, 20));
    Scrape::of(&server).assert("resumable_uploads_started_total", 1.0);
    server.kill();

    let server = Server::start("prometheus", "127.0.0.1:0", &uploads);
    let empty = Scrape::of(&server);
    empty.assert("resumable_uploads_started_total", 0.0);
    empty.assert("resumable_store_errors_total{kind=\"storage\"}", 0.0);
    stored(&send(&server, "resumed.bin", 2, 20));
    // The first chunk comes twice.
    for number in [1, 1, 2] {
        stored(&send(&server, "duplicate.bin", number, 20));
    }
    assert!(send(&server, "rejected.exe", 1, 10).starts_with("HTTP/1.1 415"));
    stored(&send(&server, "unfinished.bin", 1, 30));
    stored(&send(&server, "cancelled.bin", 1, 30));
    let cancel = format!("DELETE /upload?{}", chunk("cancelled.bin", 1, 30));
    assert!(request(&server.address, &cancel, "", b"").starts_with("HTTP/1.1 2"));
    let invalid = "POST /upload?resumableIdentifier=1-a";
    assert!(request(&server.address, invalid, RAW, b"").starts_with("HTTP/1.1 400"));
    std::fs::write(uploads.join("maintenance"), "").unwrap();
    assert!(send(&server, "failed.bin", 1, 10).starts_with("HTTP/1.1 503"));

    let scrape = Scrape::of(&server);
    for (name, value) in [
        ("resumable_uploads_started_total", 5.0),
        ("resumable_uploads_resumed_total", 1.0),
        ("resumable_uploads_completed_total", 4.0),
        ("resumable_uploads_delivered_total", 2.0),
        ("resumable_uploads_cancelled_total", 1.0),
        (
            "resumable_uploads_rejected_total{kind=\"application\",status=\"415\"}",
            1.0,
        ),
        (
            "resumable_requests_refused_total{kind=\"missing_field\"}",
            1.0,
        ),
        ("resumable_chunks_stored_total", 8.0),
        ("resumable_received_bytes_total", 80.0),
        ("resumable_duplicate_bytes_total", 10.0),
        ("resumable_chunk_seconds_count", 8.0),
        ("resumable_deliveries_started_total", 4.0),
        ("resumable_deliveries_failed_total", 1.0),
        ("resumable_deliveries_retried_total", 0.0),
        ("resumable_delivery_seconds_count", 4.0),
        ("resumable_last_byte_to_answer_seconds_count", 3.0),
        // `unfinished.bin` and `failed.bin`.
        ("resumable_unfinished_uploads", 2.0),
        ("resumable_unfinished_bytes", 40.0),
        ("resumable_deliveries_pending", 1.0),
        ("resumable_deliveries_running", 0.0),
        ("resumable_set_aside_uploads", 0.0),
    ] {
        scrape.assert(name, value);
    }

    // The failed delivery is repeated.
    std::fs::remove_file(uploads.join("maintenance")).unwrap();
    while !send(&server, "failed.bin", 1, 10).starts_with("HTTP/1.1 200") {
        thread::yield_now();
    }
    let scrape = Scrape::of(&server);
    scrape.assert("resumable_uploads_delivered_total", 3.0);
    scrape.assert("resumable_deliveries_retried_total", 1.0);
    scrape.assert("resumable_deliveries_pending", 0.0);

    // The store fails.
    for folder in ["partial", "files"] {
        let folder = uploads.join(folder);
        std::fs::remove_dir_all(&folder).unwrap();
        std::fs::write(&folder, "something else").unwrap();
    }
    assert!(send(&server, "store.bin", 1, 10).starts_with("HTTP/1.1 5"));
    let scrape = Scrape::of(&server);
    let errors = scrape
        .0
        .iter()
        .filter(|(name, _)| name.starts_with("resumable_store_errors"));
    assert!(
        errors.map(|(_, value)| value).sum::<f64>() >= 1.0,
        "{}",
        scrape.1
    );

    has_help_and_bounded_labels(&scrape);
    the_dashboard_uses(&scrape.names());
}

fn has_help_and_bounded_labels(scrape: &Scrape) {
    for line in scrape.1.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let name = rest.split(' ').next().unwrap();
            assert!(
                scrape.1.contains(&format!("# HELP {name} ")),
                "no HELP for {name}"
            );
        }
    }
    for name in scrape.0.keys() {
        let labels = name.split_once('{').map_or("", |(_, labels)| labels);
        for label in labels
            .trim_end_matches('}')
            .split(',')
            .filter(|label| !label.is_empty())
        {
            let (key, value) = label.split_once('=').unwrap();
            assert!(["kind", "status", "what", "le"].contains(&key), "{name}");
            assert!(value.len() < 32, "{name}");
        }
    }
}

/// All metrics are in the dashboard, and no others.
fn the_dashboard_uses(names: &BTreeSet<&str>) {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = DASHBOARD.split(|c| !is_name(c));
    let used: BTreeSet<_> = words
        .filter(|word| word.starts_with("resumable_"))
        .collect();
    assert_eq!(&used, names);
    serde_json::from_str::<Value>(DASHBOARD).unwrap();
}
