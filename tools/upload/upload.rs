//! The upload of one file: its chunks, the workers that send them, and retries.

use std::{
    cell::{Cell, RefCell},
    fs,
    io::Write,
    path::Path,
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures_util::future::{try_join, try_join_all};
use http::Method;
use tokio::time::sleep;

use crate::{
    Error,
    connection::{Answer, Failure, Link},
    options::Options,
};

/// The upload of one file. All workers run in one task, so cells are enough.
pub struct Upload<'a> {
    pub options: &'a Options,
    pub path: &'a Path,
    pub size: u64,
    pub chunks: u64,
    pub identifier: String,
    pub name: String,
    pub relative_path: String,
    pub count: Count,
    /// The answer to report. An answer to a chunk replaces an answer to a probe. The answer to the
    /// finished file stays, even if the answer to an earlier chunk arrives later.
    pub last_answer: RefCell<Option<Answer>>,
}

#[derive(Default)]
pub struct Count {
    pub settled_bytes: Cell<u64>,
    pub sent: Cell<u64>,
    pub skipped: Cell<u64>,
    pub duplicates: Cell<u64>,
    pub retries: Cell<u64>,
}

#[derive(Clone, Copy)]
pub struct Chunk {
    pub number: u64,
    pub offset: u64,
    pub length: u64,
    pub twice: bool,
}

impl<'a> Upload<'a> {
    pub fn new(options: &'a Options, path: &'a Path) -> Result<Self, Error> {
        let metadata = fs::metadata(path)?;
        if !metadata.is_file() {
            return Err("not a file".into());
        }
        let size = metadata.len();
        let file_name = || {
            path.file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into()
        };
        let name: String = options.name.clone().unwrap_or_else(file_name);
        let relative_path = options.relative_path.clone().unwrap_or(name.clone());
        let identifier = options.identifier.clone().unwrap_or_else(|| {
            let kept = |c: &char| c.is_ascii_alphanumeric() || "_-".contains(*c);
            let path: String = relative_path.chars().filter(kept).collect();
            format!("{size}-{path}")
        });
        let chunks = if options.force_chunk_size {
            size.div_ceil(options.chunk_size)
        } else {
            size / options.chunk_size
        };
        Ok(Self {
            options,
            path,
            size,
            chunks: chunks.max(1),
            identifier,
            name,
            relative_path,
            count: Count::default(),
            last_answer: RefCell::default(),
        })
    }

    pub async fn run(&self) -> Result<(), Failure> {
        let mut numbers: Vec<u64> = (1..=self.chunks).collect();
        if self.options.shuffle {
            self.note(&format!("--seed {}", self.options.seed));
            shuffle(&mut numbers, self.options.seed);
        }
        // Spreads the duplicates evenly.
        let duplicates = |position: u64| position * self.options.duplicate / 100;
        let mut chunks: Vec<Chunk> = (0..)
            .zip(numbers)
            .map(|(at, number)| self.chunk(number, duplicates(at) < duplicates(at + 1)))
            .collect();
        let together = chunks.len() - usize::from(self.options.last_alone);
        let alone = chunks.split_off(together);
        self.work(chunks).await?;
        self.work(alone).await
    }

    fn chunk(&self, number: u64, twice: bool) -> Chunk {
        let offset = (number - 1) * self.options.chunk_size;
        Chunk {
            number,
            offset,
            length: if number == self.chunks {
                self.size - offset
            } else {
                self.options.chunk_size
            },
            twice,
        }
    }

    async fn work(&self, chunks: Vec<Chunk>) -> Result<(), Failure> {
        let workers = self.options.parallel.min(chunks.len());
        let queue = RefCell::new(chunks.into_iter());
        let worker = |_| async {
            let (mut link, mut second) = (Link::default(), Link::default());
            loop {
                let Some(chunk) = queue.borrow_mut().next() else {
                    return Ok(());
                };
                self.settle(chunk, &mut link, &mut second).await?;
            }
        };
        try_join_all((0..workers).map(worker)).await.map(drop)
    }

    /// Sends a probe for a chunk, and then the chunk if it is not stored.
    async fn settle(
        &self,
        chunk: Chunk,
        link: &mut Link,
        second: &mut Link,
    ) -> Result<(), Failure> {
        if !self.options.no_test {
            let answer = self.request(Method::GET, chunk, link).await?;
            if answer.is_success() {
                if self.count.sent.get() == 0 {
                    self.last_answer.replace(Some(answer));
                }
                add(&self.count.skipped, 1);
                add(&self.count.settled_bytes, chunk.length);
                return Ok(());
            }
        }
        if chunk.twice {
            try_join(self.send(chunk, link), self.send(chunk, second)).await?;
            add(&self.count.duplicates, 1);
        } else {
            self.send(chunk, link).await?;
        }
        add(&self.count.sent, 1);
        add(&self.count.settled_bytes, chunk.length);
        Ok(())
    }

    async fn send(&self, chunk: Chunk, link: &mut Link) -> Result<(), Failure> {
        let answer = self.request(Method::POST, chunk, link).await?;
        if let Some(mut acks) = self.options.acks.as_ref() {
            let line = format!("{} {} {}\n", self.identifier, chunk.offset, chunk.length);
            // One unbuffered write: the line is complete even if this process is killed now.
            acks.write_all(line.as_bytes())
                .map_err(|error| Failure::Local(format!("--acks: {error}")))?;
        }
        let mut last = self.last_answer.borrow_mut();
        if last.as_ref().is_none_or(Answer::is_progress) || !answer.is_progress() {
            *last = Some(answer);
        }
        Ok(())
    }

    /// Sends a request until its answer is final: any answer to a probe, success for a chunk.
    async fn request(
        &self,
        method: Method,
        chunk: Chunk,
        link: &mut Link,
    ) -> Result<Answer, Failure> {
        let probe = method == Method::GET;
        let mut pauses = [200, 400, 800, 1600, 3200].into_iter();
        for tries in 0.. {
            let sent = Arc::new(OnceLock::new());
            let request = if probe {
                self.probe_request(chunk)
            } else {
                self.chunk_request(chunk, sent.clone()).await
            };
            let request = request.map_err(|error| Failure::Local(error.to_string()))?;
            let failure = match link.exchange(&self.options.url, request, &sent).await {
                Ok(answer) if probe || answer.is_success() => return Ok(answer),
                Ok(answer) => Failure::Refused(answer),
                Err(failure) => failure,
            };
            if !failure.is_retryable() || tries == self.options.retries {
                return Err(failure);
            }
            if tries == 0 {
                self.note(&format!("chunk {}: {failure}, trying again", chunk.number));
            }
            add(&self.count.retries, 1);
            let pause = self.options.pause.or(pauses.next());
            sleep(Duration::from_millis(pause.unwrap_or(5000))).await;
        }
        unreachable!("the number of tries is limited")
    }
}

fn add(cell: &Cell<u64>, more: u64) {
    cell.set(cell.get() + more);
}

/// Shuffles with Fisher-Yates and SplitMix64: a seed gives the same order on every machine.
fn shuffle(items: &mut [u64], mut seed: u64) {
    for end in (1..items.len()).rev() {
        seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let at = (mixed ^ (mixed >> 31)) % (end as u64 + 1);
        items.swap(end, at as usize);
    }
}
