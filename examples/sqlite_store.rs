//! Shows a complete [`Store`]: an SQLite database that holds the uploads and the content of the
//! files. Run the conformance suite on it with `cargo run --example sqlite_store`.
//!
//! The database is in a temporary folder. With a path as its argument, the example creates it
//! there; there must be no file with this name.
//!
//! * The table `uploads` has a row for each upload, and `pieces` has the bytes of the files. A
//!   random id names a file, and is the id of its deliveries. When the record of a delivered upload
//!   expires, its row is deleted. The pieces stay, because they belong to the application.
//! * A transaction stores a chunk when its last byte has arrived. It skips the bytes that are
//!   stored already, so concurrent chunks need no locks. Until then the pieces of the chunk are in
//!   the temporary table `arriving`.
//! * When an upload is removed, a trigger deletes its rows in `arriving`. Its chunks then fail.
//! * A claim is a column. SQLite locks the database, so one process at a time has it open. A claim
//!   that exists when the database is opened belongs to a process that has ended, and is cleared.

use std::{
    io,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::BytesMut;
use futures_util::stream;
use http_body::Frame;
use http_body_util::StreamBody;
use rusqlite::{
    Connection, ErrorCode, OptionalExtension as _, Transaction, TransactionBehavior, params,
};
use serde::de::DeserializeOwned;
use tower_resumable::{
    BoxError, Content, ResumableLayer, Upload, UploadId,
    store::{
        BoxFuture, ChunkBody, Claim, Claimed, Expiry, Filter, Listed, Page, Progress, RangeSet,
        Record, Sealed, State, Status, Store, StoreError, Stored, Swept, conformance,
    },
};

#[tokio::main]
#[allow(dead_code)] // The tests include this file.
async fn main() -> Result<(), BoxError> {
    let dir = tempfile::tempdir()?;
    let path = std::env::args_os().nth(1).map(Into::into);
    let path = path.unwrap_or_else(|| dir.path().join("uploads.db"));
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
        id       BLOB PRIMARY KEY CHECK (length(id) = 32),
        file     TEXT NOT NULL UNIQUE,
        upload   TEXT NOT NULL,
        ranges   TEXT NOT NULL,
        complete INTEGER NOT NULL,
        attempts INTEGER NOT NULL DEFAULT 0,
        claimed  INTEGER NOT NULL DEFAULT FALSE,
        record   TEXT,  -- not null: settled
        expires  INTEGER,
        touched  INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS pieces (
        file TEXT NOT NULL, offset INTEGER NOT NULL, bytes BLOB NOT NULL, UNIQUE (file, offset)
    );
    CREATE TEMPORARY TABLE arriving (
        chunk INTEGER NOT NULL, id BLOB NOT NULL, file TEXT NOT NULL,
        offset INTEGER NOT NULL, bytes BLOB NOT NULL
    );
    CREATE INDEX temp.arriving_chunk ON arriving (chunk);
    CREATE TEMPORARY TRIGGER removed AFTER DELETE ON main.uploads BEGIN
        DELETE FROM arriving WHERE file = old.file;
        DELETE FROM pieces WHERE file = old.file AND old.record IS NULL;
    END;
    UPDATE uploads SET claimed = FALSE;
";

/// The size of a piece, in bytes. A request keeps up to this much in memory.
const PIECE: usize = 1 << 20;
/// The largest integer that SQLite can store.
const MAX_LENGTH: u64 = i64::MAX as u64;
const MAX_RANGES: usize = 10_000;

/// Keeps uploads in an SQLite database. Clones share the database.
#[derive(Clone, Debug)]
pub struct SqliteStore(Arc<Mutex<Connection>>);

impl SqliteStore {
    /// Opens the database at `path`, or creates it.
    ///
    /// # Errors
    ///
    /// Fails if another store has the database open, and on every other error of SQLite.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        let connection = Connection::open(path).map_err(StoreError::new)?;
        connection.execute_batch(SCHEMA).map_err(StoreError::new)?;
        Ok(Self(Arc::new(Mutex::new(connection))))
    }

    /// Runs a transaction on a thread for blocking work.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, BoxError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let store = self.clone();
        let output = tokio::task::spawn_blocking(move || store.run_blocking(work)).await;
        output
            .unwrap_or_else(|panic| Err(panic.into()))
            .map_err(failed)
    }

    /// Runs a transaction. If `work` fails nothing changes.
    fn run_blocking<T>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, BoxError>,
    ) -> Result<T, BoxError> {
        // After a panic the transaction was rolled back.
        let mut connection = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let output = work(&tx)?;
        tx.commit()?;
        Ok(output)
    }

    /// Receives the bytes of a chunk and stores them.
    async fn receive(
        &self,
        chunk: Chunk,
        mut offset: u64,
        body: &mut ChunkBody<'_>,
    ) -> Result<Progress, StoreError> {
        let mut bytes = BytesMut::new();
        while let Some(more) = body.next().await {
            bytes.extend_from_slice(&more?);
            check_end(offset, bytes.len() as u64, chunk.max_end)?;
            if bytes.len() >= PIECE {
                let (chunk, piece, at) = (chunk.clone(), bytes.split(), offset);
                offset += piece.len() as u64;
                self.run(move |tx| chunk.wait(tx, at, &piece)).await?;
            }
        }
        self.run(move |tx| chunk.store(tx, offset, &bytes)).await
    }
}

fn failed(error: BoxError) -> StoreError {
    let error = match error.downcast() {
        Ok(error) => return *error,
        Err(error) => error,
    };
    let sqlite = error.downcast_ref::<rusqlite::Error>();
    match sqlite.and_then(rusqlite::Error::sqlite_error_code) {
        Some(ErrorCode::DiskFull) => StoreError::Full(error),
        _ => StoreError::Failed(error),
    }
}

impl Store for SqliteStore {
    type Claim = SqliteClaim;

    async fn create(&self, upload: &Upload) -> Result<Status, StoreError> {
        let upload = upload.clone();
        let create = self.run(move |tx| {
            let mut row = Row::find_or_new(tx, &upload)?;
            row.save(tx)?;
            Ok(row.status)
        });
        create.await
    }

    async fn write(
        &self,
        upload: &Upload,
        offset: u64,
        body: &mut ChunkBody<'_>,
    ) -> Result<Progress, StoreError> {
        let upload = upload.clone();
        let chunk = self.run(move |tx| Chunk::begin(tx, upload)).await?;
        let number = chunk.number;
        let received = self.receive(chunk, offset, body).await;
        let end = "DELETE FROM arriving WHERE chunk = ?1";
        // If this fails, the chunk is stored nevertheless. The table ends with the connection.
        let _ = self.run(move |tx| Ok(tx.execute(end, [number])?)).await;
        received
    }

    async fn status(&self, id: &UploadId) -> Result<Option<Status>, StoreError> {
        let id = *id;
        let status = self.run(move |tx| {
            // A probe keeps an upload from being swept. One update a minute is enough.
            tx.execute(
                "UPDATE uploads SET touched = ?2 WHERE id = ?1 AND touched < ?2 - 60000",
                params![id.as_bytes(), now()],
            )?;
            Ok(Row::find(tx, &id)?.map(|row| row.status))
        });
        status.await
    }

    async fn claim(&self, upload: &Upload) -> Result<Claimed<SqliteClaim>, StoreError> {
        let (store, mut upload) = (self.clone(), upload.clone());
        let claim = self.run(move |tx| {
            let Some(row) = Row::find(tx, &upload.id)? else {
                return Ok(Claimed::Incomplete);
            };
            match row.status.state {
                State::Receiving(_) => return Ok(Claimed::Incomplete),
                State::Settled(record) => return Ok(Claimed::Settled(record)),
                State::Complete => upload.length = row.status.upload.length,
            }
            let mut statement = tx.prepare(
                "UPDATE uploads SET upload = iif(attempts = 0, ?2, upload), touched = ?3,
                 claimed = TRUE, attempts = attempts + 1
                 WHERE file = ?1 AND NOT claimed RETURNING upload, attempts",
            )?;
            let upload = serde_json::to_string(&upload)?;
            let mut claimed = statement.query(params![row.file, upload, now()])?;
            let Some(claimed) = claimed.next()? else {
                return Ok(Claimed::Busy);
            };
            let upload: Upload = json(claimed, "upload")?;
            let attempt = claimed.get("attempts")?;
            let (file, live) = (row.file, true);
            let stored = SqliteFile {
                store: store.clone(),
                name: file.clone(),
            };
            let sealed = Sealed::new(file, upload, attempt, stored);
            Ok(Claimed::Won(SqliteClaim {
                store,
                sealed,
                live,
            }))
        });
        claim.await
    }

    async fn remove(&self, id: &UploadId) -> Result<bool, StoreError> {
        let id = *id;
        let sql = "DELETE FROM uploads WHERE id = ?1 AND record IS NULL AND NOT claimed";
        let removed = self.run(move |tx| Ok(tx.execute(sql, [id.as_bytes()])?));
        Ok(removed.await? > 0)
    }

    async fn forget_rejection(&self, id: &UploadId) -> Result<bool, StoreError> {
        let id = *id;
        let removed = self.run(move |tx| {
            let Some(row) = Row::find(tx, &id)? else {
                return Ok(0);
            };
            match row.status.state {
                State::Settled(record) if !record.delivered => {
                    Ok(tx.execute("DELETE FROM uploads WHERE id = ?1", [id.as_bytes()])?)
                }
                _ => Ok(0),
            }
        });
        Ok(removed.await? > 0)
    }

    async fn list(&self, filter: &Filter, after: Option<&UploadId>) -> Result<Page, StoreError> {
        let (filter, after) = (filter.clone(), after.copied());
        let page = self.run(move |tx| {
            let mut statement = tx.prepare(
                "SELECT * FROM uploads WHERE record IS NULL AND (?1 IS NULL OR id > ?1)
                 ORDER BY id LIMIT ?2",
            )?;
            let after = after.as_ref().map(UploadId::as_bytes);
            let mut rows = statement.query(params![after, Page::MAX])?;
            let (mut uploads, mut seen, mut last) = (Vec::new(), 0, None);
            while let Some(row) = rows.next()? {
                (seen, last) = (seen + 1, Some(UploadId::from_bytes(row.get("id")?)));
                // A row that cannot be read is skipped, so that it does not hide the others.
                if let Ok(Row { status, .. }) = Row::read(row) {
                    let progress = status.progress();
                    if filter.accepts(&status.upload, progress) {
                        uploads.push(Listed::new(status.upload, progress));
                    }
                }
            }
            Ok(Page::new(uploads, last.filter(|_| seen == Page::MAX)))
        });
        page.await
    }

    async fn sweep(&self, expiry: &Expiry) -> Result<Swept, StoreError> {
        let expiry = *expiry;
        let sweep = self.run(move |tx| {
            let remove = |complete: bool, before: Option<SystemTime>| {
                let sql = "DELETE FROM uploads WHERE complete = ?1 AND touched < ?2
                    AND record IS NULL AND NOT claimed AND file NOT IN (SELECT file FROM arriving)";
                tx.execute(sql, params![complete, before.map(millis)])
            };
            let mut swept = Swept::default();
            swept.abandoned = remove(false, expiry.abandoned_before)? as u64;
            swept.undelivered = remove(true, expiry.undelivered_before)? as u64;
            let before = millis(expiry.records_before);
            swept.records = tx.execute("DELETE FROM uploads WHERE expires < ?1", [before])? as u64;
            Ok(swept)
        });
        sweep.await
    }
}

/// A row of `uploads`.
struct Row {
    file: String,
    status: Status,
}

impl Row {
    /// The row of an upload, unless its record has expired.
    fn find(tx: &Transaction<'_>, id: &UploadId) -> Result<Option<Self>, BoxError> {
        let sql = "SELECT * FROM uploads WHERE id = ?1 AND (expires IS NULL OR expires > ?2)";
        let mut statement = tx.prepare(sql)?;
        let mut rows = statement.query(params![id.as_bytes(), now()])?;
        rows.next()?.map(Self::read).transpose()
    }

    /// The row of an upload. If there is none, returns a new row that is not saved yet.
    fn find_or_new(tx: &Transaction<'_>, upload: &Upload) -> Result<Self, BoxError> {
        if let Some(row) = Self::find(tx, &upload.id)? {
            if row.status.upload.contradicts(upload) {
                return Err(StoreError::Conflict.into());
            }
            return Ok(row);
        }
        if upload.length.is_some_and(|length| length > MAX_LENGTH) {
            return Err(StoreError::TooLarge { limit: MAX_LENGTH }.into());
        }
        let id = upload.id.as_bytes();
        // If there is a row, its record has expired.
        tx.execute("DELETE FROM uploads WHERE id = ?1", [id])?;
        // Chunks that arrive before there is a row write to the same file.
        let sql = "SELECT coalesce((SELECT file FROM arriving WHERE id = ?1),
            lower(hex(randomblob(16))))";
        let file = tx.query_row(sql, [id], |row| row.get(0))?;
        let state = State::Receiving(RangeSet::default());
        let status = Status::new(upload.clone(), state).with_delivery(&file);
        Ok(Self { file, status })
    }

    fn read(row: &rusqlite::Row<'_>) -> Result<Self, BoxError> {
        let state = if let Some(record) = json(row, "record")? {
            State::Settled(record)
        } else if row.get("complete")? {
            State::Complete
        } else {
            let mut ranges = RangeSet::default();
            for (start, end) in json::<Vec<(u64, u64)>>(row, "ranges")? {
                ranges.insert(start, end.saturating_sub(start));
            }
            State::Receiving(ranges)
        };
        let file: String = row.get("file")?;
        let status = Status::new(json(row, "upload")?, state).with_delivery(&file);
        Ok(Self { file, status })
    }

    /// Stores the bytes that are missing, and compares the others.
    fn add(&mut self, tx: &Transaction<'_>, offset: u64, bytes: &[u8]) -> Result<(), BoxError> {
        let end = offset.saturating_add(bytes.len() as u64).min(MAX_LENGTH);
        let sql = "SELECT offset, bytes FROM pieces WHERE file = ?1 AND offset < ?2
            AND offset + length(bytes) > ?3";
        let mut statement = tx.prepare(sql)?;
        let mut pieces = statement.query(params![self.file, end, offset.min(MAX_LENGTH)])?;
        while let Some(piece) = pieces.next()? {
            let (at, stored): (u64, Vec<u8>) = (piece.get(0)?, piece.get(1)?);
            let (start, end) = (at.max(offset), end.min(at + stored.len() as u64));
            let part =
                |bytes: &[u8], at| bytes[(start - at) as usize..(end - at) as usize].to_vec();
            if part(bytes, offset) != part(&stored, at) {
                return Err(StoreError::Conflict.into());
            }
        }
        if let State::Receiving(ranges) = &mut self.status.state {
            let len = bytes.len() as u64;
            let max_end = self.status.upload.length.unwrap_or(MAX_LENGTH);
            check_end(offset, len, max_end)?;
            for gap in ranges.gaps(offset, len) {
                let bytes = &bytes[(gap.start - offset) as usize..(gap.end - offset) as usize];
                let sql = "INSERT INTO pieces VALUES (?1, ?2, ?3)";
                tx.execute(sql, params![self.file, gap.start, bytes])?;
            }
            ranges.insert(offset, len);
        }
        Ok(())
    }

    /// Saves the ranges of an upload that is not complete yet.
    fn save(&mut self, tx: &Transaction<'_>) -> Result<(), BoxError> {
        let Status { upload, state, .. } = &mut self.status;
        let State::Receiving(ranges) = state else {
            return Ok(());
        };
        if ranges.len() > MAX_RANGES {
            return Err(StoreError::TooManyRanges.into());
        }
        let complete = upload.length.is_some_and(|length| ranges.covers(0, length));
        let pairs: Vec<_> = ranges
            .iter()
            .map(|range| (range.start, range.end))
            .collect();
        let (id, pairs) = (upload.id.as_bytes(), serde_json::to_string(&pairs)?);
        let sql = "INSERT INTO uploads (id, file, upload, ranges, complete, touched)
            VALUES (?1, ?2, ?3, ?4, ?5, ?6)
            ON CONFLICT DO UPDATE SET ranges = ?4, complete = ?5, touched = ?6";
        let json = serde_json::to_string(upload)?;
        tx.execute(sql, params![id, self.file, json, pairs, complete, now()])?;
        if complete {
            *state = State::Complete;
        }
        if upload.is_empty_file() {
            // A file has at least one piece.
            tx.execute("INSERT INTO pieces VALUES (?1, 0, x'')", [&self.file])?;
        }
        Ok(())
    }
}

fn check_end(offset: u64, len: u64, max_end: u64) -> Result<(), StoreError> {
    let end = offset.checked_add(len).filter(|end| *end <= max_end);
    end.map(drop).ok_or(StoreError::OutOfBounds)
}

/// A chunk while its bytes arrive. It has rows in `arriving` until its upload is removed.
#[derive(Clone)]
struct Chunk {
    number: i64,
    upload: Upload,
    max_end: u64,
}

impl Chunk {
    fn begin(tx: &Transaction<'_>, upload: Upload) -> Result<Self, BoxError> {
        let row = Row::find_or_new(tx, &upload)?;
        let max_end = match row.status.state {
            State::Receiving(_) => row.status.upload.length.unwrap_or(MAX_LENGTH),
            // `store` drops the bytes.
            State::Complete | State::Settled(_) => MAX_LENGTH,
        };
        let sql = "INSERT INTO arriving VALUES (random(), ?1, ?2, 0, x'') RETURNING chunk";
        let values = params![upload.id.as_bytes(), row.file];
        let number = tx.query_row(sql, values, |row| row.get(0))?;
        Ok(Self {
            number,
            upload,
            max_end,
        })
    }

    /// Keeps a piece until the chunk is whole.
    fn wait(&self, tx: &Transaction<'_>, offset: u64, bytes: &[u8]) -> Result<(), BoxError> {
        let sql = "INSERT INTO arriving SELECT chunk, id, file, ?2, ?3 FROM arriving
            WHERE chunk = ?1 LIMIT 1";
        tx.execute(sql, params![self.number, offset, bytes])?;
        Ok(())
    }

    /// Stores the pieces that wait in `arriving`, and then this one.
    fn store(&self, tx: &Transaction<'_>, offset: u64, bytes: &[u8]) -> Result<Progress, BoxError> {
        let mut row = Row::find_or_new(tx, &self.upload)?;
        let mut statement = tx.prepare("SELECT offset, bytes FROM arriving WHERE chunk = ?1")?;
        let mut pieces = statement.query([self.number])?;
        let mut removed = true;
        while let Some(piece) = pieces.next()? {
            row.add(tx, piece.get(0)?, &piece.get::<_, Vec<u8>>(1)?)?;
            removed = false;
        }
        if removed {
            return Err(StoreError::Superseded.into());
        }
        row.add(tx, offset, bytes)?;
        row.save(tx)?;
        Ok(row.status.progress())
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
        let settle = self.store.run(move |tx| {
            let sql = "UPDATE uploads SET record = ?2, expires = ?3
                WHERE file = ?1 AND record IS NULL";
            let json = serde_json::to_string(&record)?;
            if tx.execute(sql, params![file, json, millis(record.expires)])? == 0 {
                return Err(StoreError::Superseded.into());
            }
            if !record.delivered {
                delete_pieces(tx, &file)?;
            }
            Ok(())
        });
        settle.await?;
        self.live = false;
        Ok(())
    }

    async fn release(mut self) {
        let file = self.sealed.id.clone();
        let released = self.store.run(move |tx| release(tx, &file)).await;
        // If this has failed, `drop` tries it again.
        self.live = released.is_err();
    }
}

impl Drop for SqliteClaim {
    fn drop(&mut self) {
        if self.live {
            let (store, file) = (self.store.clone(), self.sealed.id.clone());
            // A thread, because there may be no runtime. If this fails, the claim is cleared when
            // the database is opened again.
            let release = move || store.run_blocking(|tx| release(tx, &file));
            let _ = std::thread::Builder::new().spawn(release);
        }
    }
}

fn release(tx: &Transaction<'_>, file: &str) -> Result<(), BoxError> {
    tx.execute("UPDATE uploads SET claimed = FALSE WHERE file = ?1", [file])?;
    Ok(())
}

/// The pieces of a finished file.
#[derive(Clone, Debug)]
struct SqliteFile {
    store: SqliteStore,
    name: String,
}

impl Stored for SqliteFile {
    fn read(&self) -> Content {
        let pieces = stream::try_unfold((self.clone(), -1), async |(file, after)| {
            let name = file.name.clone();
            let piece = file.store.run(move |tx| {
                let sql = "SELECT bytes, offset FROM pieces WHERE file = ?1 AND offset > ?2
                    ORDER BY offset LIMIT 1";
                let piece = tx.query_row(sql, params![name, after], |row| {
                    Ok((row.get::<_, Vec<u8>>(0)?, row.get(1)?))
                });
                Ok(piece.optional()?)
            });
            match piece.await.map_err(io::Error::other)? {
                Some((bytes, offset)) => Ok(Some((Frame::data(bytes.into()), (file, offset)))),
                None if after < 0 => Err(io::ErrorKind::NotFound.into()),
                None => Ok(None),
            }
        });
        Content::new(StreamBody::new(pieces))
    }

    fn delete(&self) -> BoxFuture<'_, io::Result<()>> {
        let name = self.name.clone();
        Box::pin(async move {
            let deleted = self.store.run(move |tx| delete_pieces(tx, &name));
            deleted.await.map_err(io::Error::other)
        })
    }
}

fn delete_pieces(tx: &Transaction<'_>, file: &str) -> Result<(), BoxError> {
    tx.execute("DELETE FROM pieces WHERE file = ?1", [file])?;
    Ok(())
}

/// Parses a column of JSON. NULL is read as `null`.
fn json<T: DeserializeOwned>(row: &rusqlite::Row<'_>, column: &str) -> Result<T, BoxError> {
    let text: Option<String> = row.get(column)?;
    Ok(serde_json::from_str(text.as_deref().unwrap_or("null"))?)
}

fn now() -> i64 {
    millis(SystemTime::now())
}

/// Milliseconds since 1970.
fn millis(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
