//! Creates an upload of which all bytes have arrived: its journal is written once, and has its name
//! only when the upload is sealed and claimed. So no other request sees it before.

use std::{io, path::PathBuf, sync::Arc};

use super::{CLAIM, Claim, Created, Entry, Event, GROWTH, Seal, State, data_path, ofd};
use crate::{
    model::{
        ranges::{Crc, Joined as _},
        state::to_unix_millis,
        upload::Upload,
    },
    store::{StoreError, disk, disk::Disk, file::blocks::Gathered, random_id},
};

impl Entry {
    /// Creates an upload that is sealed and claimed. `None` if another request was faster. The
    /// final name of its file is what `name` returns for the id of the upload.
    ///
    /// The bytes and the journal are durable, but not their names.
    pub(in crate::store::file) fn create_whole(
        journal_path: PathBuf,
        upload: &Arc<Upload>,
        bytes: &Gathered,
        name: impl FnOnce(&str) -> Result<String, StoreError>,
        durable: bool,
        disk: &Disk,
    ) -> Result<Option<(Claim, Seal)>, StoreError> {
        let created = Created::new(random_id()?, Arc::clone(upload), false);
        let data_path = data_path(&journal_path, &created.id);
        let temporary = journal_path.with_extension(format!("{}.new", created.id));
        let path = name(&created.id)?;
        let mut may_be_seen = false;
        let create = || {
            let data = disk.create(&data_path)?;
            // Until the journal has its name, a sweep takes it for an orphan. It removes none that
            // is locked.
            if !ofd::try_lock(&data, CLAIM)? || !disk::has_name(&data, &data_path)? {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            let mut crc = Crc::EMPTY;
            for (at, piece) in bytes.pieces() {
                disk.write_all_at("write-data", &data, piece, at)?;
                crc = crc.join(&Crc::of(piece), piece.len() as u64);
            }
            // The journal must not say that the file is complete before the file is durable.
            disk.sync("sync-data", &data)?;
            let seal = Seal {
                path,
                crc32: crc.0,
                upload: Arc::clone(upload),
            };
            let stored = Event::Stored {
                offset: 0,
                len: bytes.end(),
                crc: crc.0,
                synced: true,
                boot: disk.boot().unwrap_or_default(),
            };
            let time = to_unix_millis(disk.now());
            let mut state = State {
                touched: time,
                claimed: true,
                ..State::default()
            };
            let mut records = Vec::new();
            for event in [
                Event::Created(created.clone()),
                stored,
                Event::Sealed(seal.clone()),
            ] {
                records.extend(event.encode(&mut state.chain, time)?);
                state.apply(super::journal::Entry { event, time });
            }
            state.end = records.len() as u64;
            state.len = state.end.next_multiple_of(GROWTH);
            records.resize(state.len as usize, 0);
            let journal = disk.create(&temporary)?;
            // No other process has it open.
            let locked = ofd::try_lock(&journal, CLAIM)?;
            disk.write_all_at("write-journal", &journal, &records, 0)?;
            disk.sync("sync-journal", &journal)?;
            match disk.rename_new(&temporary, &journal_path) {
                // A sweep has removed it as an orphan.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(io::ErrorKind::AlreadyExists.into());
                }
                // Another request relies on the data if the journal has its name.
                Err(error) => match disk::has_name(&journal, &journal_path) {
                    Ok(true) => {}
                    Ok(false) => return Err(error),
                    Err(_) => {
                        may_be_seen = true;
                        return Err(error);
                    }
                },
                Ok(()) => {}
            }
            Ok(((journal, Some(data)), state, locked, seal))
        };
        let created_files: io::Result<_> = create();
        let (files, state, locked, seal) = match created_files {
            Ok(created) => created,
            // If it is an orphan, a sweep removes it.
            Err(error) if may_be_seen => return Err(error.into()),
            Err(error) => {
                disk.remove_if_there(&temporary)?;
                disk.remove_if_there(&data_path)?;
                return match error.kind() {
                    io::ErrorKind::AlreadyExists => Ok(None),
                    _ => Err(error.into()),
                };
            }
        };
        let disk = disk.clone();
        let entry = Arc::new(Self::new(
            journal_path,
            created,
            files,
            state,
            durable,
            disk,
        ));
        Ok(Some((Claim { entry, locked }, seal)))
    }
}
