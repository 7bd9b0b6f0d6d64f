//! Output: progress and notes on standard error, one line of JSON on standard output.

use std::{
    convert::Infallible,
    future::pending,
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

use serde_json::json;
use tokio::time::sleep;

use crate::{connection::Answer, upload::Upload};

impl Upload<'_> {
    pub async fn draw_progress(&self) -> Infallible {
        if self.options.quiet || !io::stderr().is_terminal() {
            return pending().await;
        }
        let start = Instant::now();
        loop {
            sleep(Duration::from_millis(200)).await;
            let done = self.count.settled_bytes.get() as f64;
            let percent = 100.0 * done / self.size.max(1) as f64;
            let speed = done / start.elapsed().as_secs_f64() / f64::from(1 << 20);
            let bar = "#".repeat((percent * 0.3) as usize);
            let _ = write!(
                io::stderr(),
                "\r\x1b[K[{bar:.<30}] {percent:3.0} %, {speed:.1} MiB/s"
            );
        }
    }

    pub fn clear_progress(&self) {
        if !self.options.quiet && io::stderr().is_terminal() {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }

    pub fn note(&self, text: &str) {
        self.clear_progress();
        if !self.options.quiet {
            let _ = writeln!(io::stderr(), "{}: {text}", self.path.display());
        }
    }

    pub fn report(&self, answer: Option<Answer>) -> io::Result<()> {
        let posted = answer.as_ref().filter(|_| self.count.sent.get() > 0);
        let line = json!({
            "file": self.path.to_string_lossy(),
            "identifier": self.identifier,
            "size": self.size,
            "chunks": self.chunks,
            "sent": self.count.sent.get(),
            "skipped": self.count.skipped.get(),
            "retries": self.count.retries.get(),
            "duplicates": self.count.duplicates.get(),
            "last_chunk_ms": posted.map(|answer| answer.waited.as_secs_f64() * 1e3),
            "status": answer.as_ref().map(|answer| answer.status.as_u16()),
            "answer": answer.as_ref().map(|answer| String::from_utf8_lossy(&answer.body)),
        });
        let mut out = io::stdout().lock();
        writeln!(out, "{line}")?;
        out.flush()
    }
}
