//! Copies or moves finished files, once, even if an attempt is repeated.

use std::{io, path::Path};

use bytes::{Buf as _, Bytes};

use crate::store::{
    Sealed,
    content::Content,
    export::{self, blocking},
};

/// See [`CompletedUpload::copy_to`](super::CompletedUpload::copy_to).
pub(super) async fn copy(sealed: &Sealed, to: &Path) -> io::Result<()> {
    if is_done(sealed, to).await? {
        return Ok(());
    }
    let like = sealed.stored.path().map(Path::to_owned);
    export::copy(sealed.content(), like, to).await
}

/// See [`CompletedUpload::persist`](super::CompletedUpload::persist).
pub(super) async fn move_to(sealed: &Sealed, to: &Path) -> io::Result<()> {
    if is_done(sealed, to).await? {
        // The earlier attempt may have copied the file, and ended before it had deleted it.
        return sealed.stored.delete().await;
    }
    sealed.stored.move_to(to).await
}

/// Whether an earlier attempt has put the file there. An error if there is something else.
async fn is_done(sealed: &Sealed, to: &Path) -> io::Result<bool> {
    let path = to.to_owned();
    let there = blocking(move || Ok(path.symlink_metadata().ok())).await?;
    let Some(there) = there else {
        return Ok(false);
    };
    // What cannot be read is something else. Opening a pipe would wait for a writer.
    if sealed.attempt > 1 && there.is_file() && has_content(sealed, to).await.unwrap_or(false) {
        let path = to.to_owned();
        return blocking(move || export::sync_name(&path))
            .await
            .map(|()| true);
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// Whether the file at `path` has the bytes of the upload.
async fn has_content(sealed: &Sealed, path: &Path) -> io::Result<bool> {
    let there = || Content::open(path).with_exact_len(sealed.size());
    match is_equal(sealed.content(), there()).await {
        // An earlier attempt has moved the file.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut hasher = crc32fast::Hasher::new();
            let mut there = there();
            while let Some(piece) = there.next().await {
                hasher.update(&piece?);
            }
            Ok(Some(hasher.finalize()) == sealed.crc32)
        }
        result => result,
    }
}

async fn is_equal(mut one: Content, mut other: Content) -> io::Result<bool> {
    let (mut left, mut right) = (Bytes::new(), Bytes::new());
    loop {
        for (rest, content) in [(&mut left, &mut one), (&mut right, &mut other)] {
            if rest.is_empty() {
                *rest = content.next().await.transpose()?.unwrap_or_default();
            }
        }
        let len = left.len().min(right.len());
        if len == 0 {
            return Ok(left.is_empty() && right.is_empty());
        }
        if left[..len] != right[..len] {
            return Ok(false);
        }
        left.advance(len);
        right.advance(len);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::{
        model::upload::{Scope, Upload, UploadId},
        store::{BoxFuture, Stored},
    };

    /// A file of a store that has no checksums.
    #[derive(Debug)]
    struct Row(Bytes);

    impl Stored for Row {
        fn read(&self) -> Content {
            self.0.clone().into()
        }

        fn delete(&self) -> BoxFuture<'_, io::Result<()>> {
            Box::pin(async { Ok(()) })
        }
    }

    fn sealed(attempt: u32, bytes: Vec<u8>) -> Sealed {
        let scope = Scope::default();
        let upload = Upload::new(
            UploadId::new(&scope, ["a"]),
            scope,
            Some(bytes.len() as u64),
        );
        Sealed::new("id".into(), upload, attempt, Row(bytes.into()))
    }

    /// Two texts with the same length and the same CRC-32.
    fn collision() -> [Vec<u8>; 2] {
        let mut seen = HashMap::new();
        for number in 0u64.. {
            let text = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
            if let Some(other) = seen.insert(crc32fast::hash(&text), text) {
                return [text.to_vec(), other.to_vec()];
            }
        }
        unreachable!()
    }

    #[tokio::test]
    async fn a_later_attempt_compares_the_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let [mine, other] = collision();
        for (name, checksum) in [("with", Some(crc32fast::hash(&mine))), ("without", None)] {
            let of_attempt = |attempt| {
                let mut sealed = sealed(attempt, mine.clone());
                sealed.crc32 = checksum;
                sealed
            };
            let to = dir.path().join(name);
            copy(&of_attempt(1), &to).await.unwrap();
            let error = copy(&of_attempt(1), &to).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
            copy(&of_attempt(2), &to).await.unwrap();
            move_to(&of_attempt(2), &to).await.unwrap();
            for content in [&other[..], &other[1..], b"", &mine.repeat(2)] {
                std::fs::write(&to, content).unwrap();
                let error = copy(&of_attempt(2), &to).await.unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
                assert_eq!(std::fs::read(&to).unwrap(), content);
            }
        }
    }
}
