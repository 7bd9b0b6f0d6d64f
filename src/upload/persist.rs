//! Copies or moves finished files, once, even if an attempt is repeated.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
    sync::Arc,
};

use crate::store::{
    Sealed,
    export::{self, blocking},
};

/// See [`CompletedUpload::copy_to`](super::CompletedUpload::copy_to).
pub(super) async fn copy(sealed: &Arc<Sealed>, to: &Path) -> io::Result<()> {
    if is_done(sealed, to).await? {
        return Ok(());
    }
    let like = sealed.stored.path().map(Path::to_owned);
    export::copy(sealed.content(), like, to).await
}

/// See [`CompletedUpload::persist`](super::CompletedUpload::persist).
pub(super) async fn move_to(sealed: &Arc<Sealed>, to: &Path) -> io::Result<()> {
    if is_done(sealed, to).await? {
        // The earlier attempt may have copied the file, and ended before it had deleted it.
        return sealed.stored.delete().await;
    }
    sealed.stored.move_to(to).await
}

/// Whether an earlier attempt has put the file there. An error if there is something else.
async fn is_done(sealed: &Arc<Sealed>, to: &Path) -> io::Result<bool> {
    let (sealed, to) = (Arc::clone(sealed), to.to_owned());
    blocking(move || {
        if to.symlink_metadata().is_err() {
            return Ok(false);
        }
        if sealed.attempt > 1 && has_content(&sealed, &to).unwrap_or(false) {
            return export::sync_name(&to).map(|()| true);
        }
        Err(io::ErrorKind::AlreadyExists.into())
    })
    .await
}

/// Whether the file at `path` has the bytes of the upload.
fn has_content(sealed: &Sealed, path: &Path) -> io::Result<bool> {
    let mut file = File::open(path)?;
    if file.metadata()?.len() != sealed.size() {
        return Ok(false);
    }
    let mut hasher = crc32fast::Hasher::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(Some(hasher.finalize()) == sealed.crc32),
            read => hasher.update(&buffer[..read]),
        }
    }
}
