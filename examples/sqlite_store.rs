//! A store in an SQLite database, which holds the content of the files too.
//!
//! `cargo run --example sqlite_store` runs the conformance suite on it, in a temporary folder. With
//! a path as its argument it creates the database there: it has to be a new one.
//!
//! * `uploads` has a row for each upload, `pieces` has the bytes of the files. A random id names the
//!   pieces of a file and is the idempotency key of its deliveries. When the record of a delivered
//!   upload expires its row is deleted, but its pieces stay: they belong to the application.
//! * A chunk is stored by one transaction after its last byte has arrived. The transaction drops
//!   what is stored already, so concurrent chunks need no lock. Until then the pieces of a long chunk
//!   are in the temporary table `waiting`. With [`Keep::Prefix`] each piece has its own transaction.
//! * The temporary table `writing` says which files are written to. A trigger deletes its rows for an
//!   upload that is removed, which is how its chunks notice.
//! * A claim is a column. Only one process can have the database open, because SQLite locks it. So a
//!   claim that is there when the database is opened belongs to a dead process, and is cleared.

use std::{
    io,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::{Bytes, BytesMut};
use futures_util::{TryStreamExt as _, stream};
use http_body::Frame;
use http_body_util::StreamBody;
use rusqlite::{
    Connection, ErrorCode, OptionalExtension as _, Transaction, TransactionBehavior, params,
};
use serde::de::DeserializeOwned;
use tokio::{runtime::Handle, task::spawn_blocking};
use tower_resumable::{
    Content, ResumableLayer, Upload, UploadId,
    store::{
        BoxFuture, ChunkBody, Claim, Claimed, Expiry, Filter, Keep, Listed, Page, Progress,
        RangeSet, Record, Sealed, State, Status, Store, StoreError, Stored, Swept, conformance,
    },
};

#[tokio::main]
#[allow(dead_code)] // The tests include this file.
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let path = match std::env::args_os().nth(1) {
        Some(path) => path.into(),
        None => dir.path().join("uploads.db"),
    };
    conformance::check(&SqliteStore::open(&path)?).await;

    let layer = ResumableLayer::new(SqliteStore::open(&path)?);
    println!("{layer:?}");
    Ok(())
}

const SCHEMA: &str = "
    PRAGMA locking_mode = EXCLUSIVE;
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = FULL;
    CREATE TABLE IF NOT EXISTS uploads (
        id       BLOB PRIMARY KEY,
        file     TEXT NOT NULL UNIQUE,
        upload   TEXT NOT NULL,
        ranges   TEXT NOT NULL,
        complete INTEGER NOT NULL,
        attempts INTEGER NOT NULL DEFAULT 0,      -- more than 0: sealed
        claimed  INTEGER NOT NULL DEFAULT FALSE,
        record   TEXT,                            -- not null: settled
        expires  INTEGER,
        touched  INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS pieces (
        file TEXT NOT NULL, offset INTEGER NOT NULL, bytes BLOB NOT NULL, UNIQUE (file, offset)
    );
    CREATE TEMPORARY TABLE writing (
        chunk INTEGER PRIMARY KEY AUTOINCREMENT, id BLOB NOT NULL, file TEXT NOT NULL
    );
    CREATE TEMPORARY TABLE waiting (
        chunk INTEGER NOT NULL, offset INTEGER NOT NULL, bytes BLOB NOT NULL
    );
    CREATE TEMPORARY TRIGGER removed AFTER DELETE ON main.uploads BEGIN
        DELETE FROM writing WHERE file = old.file;
    END;
    UPDATE uploads SET claimed = FALSE;
";

/// Bytes of a piece. A request has this much in memory.
const PIECE: usize = 1 << 20;
/// The largest integer of SQLite.
const MAX_LENGTH: u64 = i64::MAX as u64;
const MAX_RANGES: usize = 10_000;

/// Keeps uploads in an SQLite database. Clones share it.
#[derive(Clone, Debug)]
pub struct SqliteStore {
    connection: Arc<Mutex<Connection>>,
}

impl SqliteStore {
    /// Opens the database at `path`, or creates it.
    ///
    /// # Errors
    ///
    /// If another store has the database open, and errors of SQLite.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        let connection = Connection::open(path).map_err(Failed::from)?;
        connection.execute_batch(SCHEMA).map_err(Failed::from)?;
        let connection = Arc::new(Mutex::new(connection));
        Ok(Self { connection })
    }

    /// Runs a transaction. If `work` fails nothing changes.
    fn transact<T>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, Failed>,
    ) -> Result<T, Failed> {
        // A panic has rolled its transaction back.
        let connection = self.connection.lock();
        let mut connection = connection.unwrap_or_else(PoisonError::into_inner);
        let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let output = work(&tx)?;
        tx.commit()?;
        Ok(output)
    }

    /// Runs a transaction on a thread for blocking work.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, Failed> + Send + 'static,
    ) -> Result<T, StoreError> {
        let store = self.clone();
        let output = spawn_blocking(move || store.transact(work)).await;
        Ok(output.map_err(StoreError::new)??)
    }

    /// Receives the bytes of a chunk and stores them.
    async fn receive(
        &self,
        chunk: &Arc<Chunk>,
        mut offset: u64,
        body: &mut ChunkBody<'_>,
        keep: Keep,
    ) -> Result<Progress, StoreError> {
        let mut bytes = BytesMut::new();
        let ended = loop {
            match body.next().await {
                Some(Ok(more)) => bytes.extend_from_slice(&more),
                Some(Err(error)) => break Err(error.into()),
                None => break Ok(()),
            }
            chunk.check_end(offset, bytes.len() as u64)?;
            if bytes.len() >= PIECE {
                let (chunk, piece, start) = (chunk.clone(), bytes.split(), offset);
                offset += piece.len() as u64;
                self.run(move |tx| match keep {
                    Keep::Whole => chunk.wait(tx, start, &piece),
                    Keep::Prefix => chunk.store(tx, start, &piece).map(drop),
                })
                .await?;
            }
        };
        if let (Err(_), true) = (&ended, keep == Keep::Whole || bytes.is_empty()) {
            return ended.map(|()| unreachable!());
        }
        let chunk = chunk.clone();
        let progress = self.run(move |tx| chunk.store(tx, offset, &bytes)).await?;
        ended.map(|()| progress)
    }
}

impl Store for SqliteStore {
    type Claim = SqliteClaim;

    async fn create(&self, upload: &Upload) -> Result<Status, StoreError> {
        let upload = upload.clone();
        self.run(move |tx| {
            let mut row = Row::find_or_new(tx, &upload)?;
            row.save(tx)?;
            Ok(row.status())
        })
        .await
    }

    async fn write(
        &self,
        upload: &Upload,
        offset: u64,
        body: &mut ChunkBody<'_>,
        keep: Keep,
    ) -> Result<Progress, StoreError> {
        let (upload, len) = (upload.clone(), body.exact_len().unwrap_or_default());
        let begun = self.run(move |tx| Chunk::begin(tx, upload, offset, len));
        match begun.await? {
            Begun::Chunk(chunk) => {
                let chunk = Arc::new(chunk);
                let result = self.receive(&chunk, offset, body, keep).await;
                self.run(move |tx| chunk.end(tx)).await?;
                result
            }
            Begun::Complete(progress) => {
                while let Some(bytes) = body.next().await {
                    bytes?;
                }
                Ok(progress)
            }
        }
    }

    async fn status(&self, id: &UploadId) -> Result<Option<Status>, StoreError> {
        let id = *id;
        self.run(move |tx| {
            // An upload that is asked for is not abandoned. Its age in minutes is enough.
            let now = now();
            let sql = "UPDATE uploads SET touched = ?2 WHERE id = ?1 AND touched < ?2 - 60000";
            tx.execute(sql, params![id.as_bytes(), now])?;
            Ok(Row::find(tx, &id)?.map(Row::status))
        })
        .await
    }

    async fn claim(&self, upload: &Upload) -> Result<Claimed<SqliteClaim>, StoreError> {
        let (store, upload) = (self.clone(), upload.clone());
        self.run(move |tx| {
            let Some(mut row) = Row::find(tx, &upload.id)? else {
                return Ok(Claimed::Incomplete);
            };
            if let Some(record) = row.record {
                return Ok(Claimed::Settled(record));
            }
            if !row.complete {
                return Ok(Claimed::Incomplete);
            }
            if row.claimed {
                return Ok(Claimed::Busy);
            }
            if row.attempts == 0 {
                let length = row.upload.length;
                row.upload = upload;
                row.upload.length = length;
                if row.upload.is_empty_file() {
                    // A file without a piece does not exist.
                    insert_piece(tx, &row.file, 0, &[])?;
                }
            }
            row.attempts = row.attempts.saturating_add(1);
            let upload = serde_json::to_string(&row.upload)?;
            let sql = "UPDATE uploads SET upload = ?2, attempts = ?3, claimed = TRUE, touched = ?4
                WHERE file = ?1";
            tx.execute(sql, params![row.file, upload, row.attempts, now()])?;
            let stored = SqliteFile {
                store: store.clone(),
                file: row.file.clone(),
            };
            let sealed = Sealed::new(row.file, row.upload, row.attempts, stored);
            let live = true;
            Ok(Claimed::Won(SqliteClaim { store, sealed, live }))
        })
        .await
    }

    async fn remove(&self, id: &UploadId) -> Result<bool, StoreError> {
        let id = *id;
        self.run(move |tx| {
            let sql = "DELETE FROM uploads WHERE id = ?1 AND record IS NULL AND NOT claimed
                RETURNING file";
            let file = tx.query_row(sql, [id.as_bytes()], |row| row.get::<_, String>(0));
            let file = file.optional()?;
            if let Some(file) = &file {
                delete_pieces(tx, file)?;
            }
            Ok(file.is_some())
        })
        .await
    }

    async fn list(&self, filter: &Filter, after: Option<&UploadId>) -> Result<Page, StoreError> {
        let (filter, after) = (filter.clone(), after.copied());
        self.run(move |tx| {
            let sql = "SELECT * FROM uploads WHERE record IS NULL AND (?1 IS NULL OR id > ?1)
                ORDER BY id LIMIT ?2";
            let mut statement = tx.prepare(sql)?;
            let after = after.as_ref().map(UploadId::as_bytes);
            let mut rows = statement.query(params![after, Page::MAX as i64])?;
            let (mut uploads, mut seen, mut last) = (Vec::new(), 0, None);
            while let Some(row) = rows.next()? {
                seen += 1;
                last = Some(UploadId::from_bytes(row.get("id")?));
                // A row that cannot be read is passed over.
                let Ok(status) = Row::read(row).map(Row::status) else {
                    continue;
                };
                let progress = status.progress();
                if filter.accepts(&status.upload, progress) {
                    uploads.push(Listed::new(status.upload, progress));
                }
            }
            Ok(Page::new(uploads, last.filter(|_| seen == Page::MAX)))
        })
        .await
    }

    async fn sweep(&self, expiry: &Expiry) -> Result<Swept, StoreError> {
        let expiry = *expiry;
        self.run(move |tx| {
            let remove = |complete: bool, before: Option<SystemTime>| -> Result<u64, Failed> {
                let sql = "DELETE FROM uploads WHERE complete = ?1 AND touched < ?2
                    AND record IS NULL AND NOT claimed AND file NOT IN (SELECT file FROM writing)
                    RETURNING file";
                let mut statement = tx.prepare(sql)?;
                let before = before.map(millis);
                let files = statement.query_map(params![complete, before], |row| row.get(0))?;
                let files: Vec<String> = files.collect::<Result<_, _>>()?;
                files.iter().try_for_each(|file| delete_pieces(tx, file))?;
                Ok(files.len() as u64)
            };
            let mut swept = Swept::default();
            swept.abandoned = remove(false, expiry.abandoned_before)?;
            swept.undelivered = remove(true, expiry.undelivered_before)?;
            let before = millis(expiry.records_before);
            swept.records = tx.execute("DELETE FROM uploads WHERE expires < ?1", [before])? as u64;
            Ok(swept)
        })
        .await
    }
}

/// A row of `uploads`.
struct Row {
    file: String,
    upload: Upload,
    ranges: RangeSet,
    complete: bool,
    attempts: u32,
    claimed: bool,
    record: Option<Record>,
}

impl Row {
    /// The row of an upload, unless its record has expired.
    fn find(tx: &Transaction<'_>, id: &UploadId) -> Result<Option<Self>, Failed> {
        let sql = "SELECT * FROM uploads WHERE id = ?1 AND (expires IS NULL OR expires > ?2)";
        let mut statement = tx.prepare(sql)?;
        let mut rows = statement.query(params![id.as_bytes(), now()])?;
        rows.next()?.map(Self::read).transpose()
    }

    /// The row of an upload. If it is absent: a new one, which is not saved.
    fn find_or_new(tx: &Transaction<'_>, upload: &Upload) -> Result<Self, Failed> {
        if let Some(row) = Self::find(tx, &upload.id)? {
            return Ok(row);
        }
        if upload.length.is_some_and(|length| length > MAX_LENGTH) {
            return Err(StoreError::TooLarge { limit: MAX_LENGTH }.into());
        }
        // Only an expired record can be there.
        tx.execute("DELETE FROM uploads WHERE id = ?1", [upload.id.as_bytes()])?;
        // First chunks that arrive at the same time have the same file.
        let sql = "SELECT coalesce(
            (SELECT file FROM writing WHERE id = ?1), lower(hex(randomblob(16))))";
        Ok(Self {
            file: tx.query_row(sql, [upload.id.as_bytes()], |row| row.get(0))?,
            upload: upload.clone(),
            ranges: RangeSet::default(),
            complete: false,
            attempts: 0,
            claimed: false,
            record: None,
        })
    }

    fn read(row: &rusqlite::Row<'_>) -> Result<Self, Failed> {
        fn json<T: DeserializeOwned>(row: &rusqlite::Row<'_>, column: &str) -> Result<T, Failed> {
            let text: Option<String> = row.get(column)?;
            Ok(serde_json::from_str(text.as_deref().unwrap_or("null"))?)
        }
        let mut ranges = RangeSet::default();
        for (start, end) in json::<Vec<(u64, u64)>>(row, "ranges")? {
            ranges.insert(start, end.saturating_sub(start));
        }
        Ok(Self {
            file: row.get("file")?,
            upload: json(row, "upload")?,
            ranges,
            complete: row.get("complete")?,
            attempts: row.get("attempts")?,
            claimed: row.get("claimed")?,
            record: json(row, "record")?,
        })
    }

    /// Saves what is new, or what a chunk has changed.
    fn save(&mut self, tx: &Transaction<'_>) -> Result<(), Failed> {
        let length = self.upload.length;
        self.complete = length.is_some_and(|length| self.ranges.covers(0, length));
        let ranges: Vec<_> = self.ranges.iter().map(|range| (range.start, range.end)).collect();
        let (id, ranges) = (self.upload.id.as_bytes(), serde_json::to_string(&ranges)?);
        let upload = serde_json::to_string(&self.upload)?;
        let sql = "INSERT INTO uploads (id, file, upload, ranges, complete, touched)
            VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT (id)
            DO UPDATE SET ranges = ?4, complete = ?5, touched = ?6";
        let values = params![id, self.file, upload, ranges, self.complete, now()];
        tx.execute(sql, values)?;
        Ok(())
    }

    fn status(self) -> Status {
        let state = match self.record {
            Some(record) => State::Settled(record),
            None if self.complete => State::Complete,
            None => State::Receiving(self.ranges),
        };
        Status::new(self.upload, state)
    }
}

/// A chunk that arrives: a row of `writing`.
struct Chunk {
    number: i64,
    upload: Upload,
    /// Where the upload ends.
    max_end: u64,
}

enum Begun {
    Chunk(Chunk),
    /// There is nothing to store.
    Complete(Progress),
}

impl Chunk {
    fn begin(
        tx: &Transaction<'_>,
        upload: Upload,
        offset: u64,
        len: u64,
    ) -> Result<Begun, Failed> {
        let row = Row::find_or_new(tx, &upload)?;
        let max_end = row.upload.length.unwrap_or(MAX_LENGTH);
        let (number, complete) = (0, row.complete);
        let mut chunk = Self { number, upload, max_end };
        chunk.check_end(offset, len)?;
        if complete {
            return Ok(Begun::Complete(row.status().progress()));
        }
        let sql = "INSERT INTO writing (id, file) VALUES (?1, ?2)";
        tx.execute(sql, params![chunk.upload.id.as_bytes(), row.file])?;
        chunk.number = tx.last_insert_rowid();
        Ok(Begun::Chunk(chunk))
    }

    fn check_end(&self, offset: u64, len: u64) -> Result<(), StoreError> {
        let end = offset.checked_add(len);
        if end.is_some_and(|end| end <= self.max_end) {
            Ok(())
        } else {
            Err(StoreError::OutOfBounds)
        }
    }

    /// Keeps a piece until the chunk is whole.
    fn wait(&self, tx: &Transaction<'_>, offset: u64, bytes: &[u8]) -> Result<(), Failed> {
        let sql = "INSERT INTO waiting (chunk, offset, bytes) VALUES (?1, ?2, ?3)";
        tx.execute(sql, params![self.number, offset as i64, bytes])?;
        Ok(())
    }

    /// Stores a piece, after those that wait.
    fn store(&self, tx: &Transaction<'_>, offset: u64, bytes: &[u8]) -> Result<Progress, Failed> {
        let mut row = Row::find_or_new(tx, &self.upload)?;
        let sql = "SELECT EXISTS (SELECT 1 FROM writing WHERE chunk = ?1)";
        if !tx.query_row(sql, [self.number], |row| row.get::<_, bool>(0))? {
            return Err(StoreError::Superseded.into());
        }
        let mut statement = tx.prepare("SELECT * FROM waiting WHERE chunk = ?1")?;
        let mut waiting = statement.query([self.number])?;
        while let Some(piece) = waiting.next()? {
            let offset: i64 = piece.get("offset")?;
            row.add(tx, offset as u64, &piece.get::<_, Vec<u8>>("bytes")?)?;
        }
        row.add(tx, offset, bytes)?;
        if row.ranges.len() > MAX_RANGES {
            return Err(StoreError::TooManyRanges.into());
        }
        row.save(tx)?;
        Ok(row.status().progress())
    }

    fn end(&self, tx: &Transaction<'_>) -> Result<(), Failed> {
        tx.execute("DELETE FROM waiting WHERE chunk = ?1", [self.number])?;
        tx.execute("DELETE FROM writing WHERE chunk = ?1", [self.number])?;
        Ok(())
    }
}

impl Row {
    /// Stores what of these bytes is not stored.
    fn add(&mut self, tx: &Transaction<'_>, offset: u64, bytes: &[u8]) -> Result<(), Failed> {
        for gap in self.ranges.gaps(offset, bytes.len() as u64) {
            let (from, to) = (gap.start - offset, gap.end - offset);
            insert_piece(tx, &self.file, gap.start, &bytes[from as usize..to as usize])?;
        }
        self.ranges.insert(offset, bytes.len() as u64);
        Ok(())
    }
}

/// The right to deliver an upload of an [`SqliteStore`].
#[derive(Debug)]
pub struct SqliteClaim {
    store: SqliteStore,
    sealed: Sealed,
    live: bool,
}

impl Claim for SqliteClaim {
    fn sealed(&self) -> &Sealed {
        &self.sealed
    }

    async fn settle(&mut self, record: &Record) -> Result<(), StoreError> {
        let (file, record) = (self.sealed.id.clone(), record.clone());
        let settled = self.store.run(move |tx| {
            let text = serde_json::to_string(&record)?;
            let sql = "UPDATE uploads SET record = ?2, expires = ?3, claimed = FALSE
                WHERE file = ?1 AND record IS NULL";
            if tx.execute(sql, params![file, text, millis(record.expires)])? == 0 {
                return Err(StoreError::Superseded.into());
            }
            if !record.delivered {
                delete_pieces(tx, &file)?;
            }
            Ok(())
        });
        settled.await?;
        self.live = false;
        Ok(())
    }

    async fn release(mut self) {
        let file = self.sealed.id.clone();
        let released = self.store.run(move |tx| give_back(tx, &file));
        // If this fails, dropping the claim tries it again.
        self.live = released.await.is_err();
    }
}

impl Drop for SqliteClaim {
    fn drop(&mut self) {
        if self.live {
            let (store, file) = (self.store.clone(), self.sealed.id.clone());
            // If this fails, the claim ends when the database is opened again.
            let give_back = move || drop(store.transact(|tx| give_back(tx, &file)));
            match Handle::try_current() {
                Ok(runtime) => drop(runtime.spawn_blocking(give_back)),
                Err(_) => give_back(),
            }
        }
    }
}

fn give_back(tx: &Transaction<'_>, file: &str) -> Result<(), Failed> {
    tx.execute("UPDATE uploads SET claimed = FALSE WHERE file = ?1", [file])?;
    Ok(())
}

/// The pieces of a finished file.
#[derive(Clone, Debug)]
struct SqliteFile {
    store: SqliteStore,
    file: String,
}

impl SqliteFile {
    /// The piece behind the one at `offset`, and its own offset.
    async fn piece_after(&self, offset: i64) -> io::Result<Option<(Bytes, i64)>> {
        let file = self.file.clone();
        let piece = self.store.run(move |tx| {
            let sql = "SELECT bytes, offset FROM pieces WHERE file = ?1 AND offset > ?2
                ORDER BY offset LIMIT 1";
            let mut statement = tx.prepare(sql)?;
            let piece = statement.query_row(params![file, offset], |row| {
                Ok((row.get::<_, Vec<u8>>(0)?.into(), row.get(1)?))
            });
            Ok(piece.optional()?)
        });
        match piece.await {
            Ok(None) if offset < 0 => Err(io::ErrorKind::NotFound.into()),
            piece => piece.map_err(io::Error::other),
        }
    }
}

impl Stored for SqliteFile {
    fn read(&self) -> Content {
        let file = self.clone();
        let pieces = stream::try_unfold(-1, move |offset| {
            let file = file.clone();
            async move { file.piece_after(offset).await }
        });
        Content::new(StreamBody::new(pieces.map_ok(Frame::data)))
    }

    fn delete(&self) -> BoxFuture<'_, io::Result<()>> {
        let file = self.file.clone();
        let deleted = self.store.run(move |tx| delete_pieces(tx, &file));
        Box::pin(async { deleted.await.map_err(io::Error::other) })
    }
}

fn insert_piece(tx: &Transaction<'_>, file: &str, at: u64, bytes: &[u8]) -> Result<(), Failed> {
    let sql = "INSERT INTO pieces (file, offset, bytes) VALUES (?1, ?2, ?3)";
    tx.execute(sql, params![file, at as i64, bytes])?;
    Ok(())
}

fn delete_pieces(tx: &Transaction<'_>, file: &str) -> Result<(), Failed> {
    tx.execute("DELETE FROM pieces WHERE file = ?1", [file])?;
    Ok(())
}

fn now() -> i64 {
    millis(SystemTime::now())
}

/// Milliseconds since 1970.
fn millis(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Why a transaction failed. `?` makes it of every error.
struct Failed(StoreError);

impl From<rusqlite::Error> for Failed {
    fn from(error: rusqlite::Error) -> Self {
        Self(match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => StoreError::Full(error.into()),
            _ => StoreError::new(error),
        })
    }
}

impl From<serde_json::Error> for Failed {
    fn from(error: serde_json::Error) -> Self {
        Self(StoreError::new(error))
    }
}

impl From<StoreError> for Failed {
    fn from(error: StoreError) -> Self {
        Self(error)
    }
}

impl From<Failed> for StoreError {
    fn from(failed: Failed) -> Self {
        failed.0
    }
}
