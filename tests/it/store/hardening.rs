//! A `FileStore` whose folders are changed by others: links, modes, full disks, and missing
//! folders.

use std::{
    error::Error as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use tower_resumable::{
    FileStore, UploadId,
    store::{
        BodyError, Claim as _, Claimed, Expiry, FileStoreBuilder, Filter, Record, State, Store,
        StoreError,
    },
};

use super::{BoxError, deliver, files, upload, upload_named, write, write_pieces};

/// The path of the journal of [`upload`].
fn journal(root: &Path) -> PathBuf {
    let name = UploadId::from_bytes([7; 32]).to_string();
    root.join("partial/07").join(format!("{name}.journal"))
}

/// The one data file.
fn data(root: &Path) -> PathBuf {
    let is_data = |path: &PathBuf| path.extension().is_some_and(|e| e == "data");
    files(&root.join("partial"))
        .into_iter()
        .find(is_data)
        .unwrap()
}

/// Asserts that the error is retryable.
fn assert_fails<T: std::fmt::Debug>(result: Result<T, StoreError>) {
    assert!(matches!(result, Err(StoreError::Failed(_))), "{result:?}");
}

fn assert_full<T: std::fmt::Debug>(result: Result<T, StoreError>) {
    assert!(matches!(result, Err(StoreError::Full(_))), "{result:?}");
}

/// The message for the operator.
fn refusal(builder: FileStoreBuilder) -> String {
    builder.open().unwrap_err().source().unwrap().to_string()
}

/// Finishes [`upload`] of 20 bytes, from the beginning.
async fn finish(store: &FileStore) -> PathBuf {
    write(store, &upload(20), 0, b"0123456789").await.unwrap();
    assert!(write(store, &upload(20), 10, b"abcdefghij").await.unwrap());
    let path = deliver(store, &upload(20)).await;
    assert_eq!(std::fs::read(&path).unwrap(), b"0123456789abcdefghij");
    path
}

fn everything() -> Expiry {
    let later = SystemTime::now() + Duration::from_secs(10_000);
    let mut expiry = Expiry::default();
    expiry.abandoned_before = Some(later);
    expiry.undelivered_before = Some(later);
    expiry.records_before = later;
    expiry
}

#[cfg(unix)]
mod links {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A folder outside of the store, with a file.
    struct Outside(tempfile::TempDir);

    impl Outside {
        fn new() -> Self {
            let outside = Self(tempfile::tempdir().unwrap());
            std::fs::write(outside.file(), "mine").unwrap();
            outside
        }

        fn dir(&self) -> &Path {
            self.0.path()
        }

        fn file(&self) -> PathBuf {
            self.dir().join("file")
        }

        #[track_caller]
        fn assert_untouched(&self) {
            assert_eq!(files(self.dir()), [self.file()]);
            assert_eq!(std::fs::read(self.file()).unwrap(), b"mine");
        }
    }

    /// Each method fails while the link is there, and works when it is gone.
    async fn assert_not_followed(store: FileStore, link: &Path, outside: &Outside) {
        assert_fails(write(&store, &upload(20), 0, b"0123456789").await);
        assert_fails(write(&store, &upload(20), 10, b"0123456789").await);
        assert_fails(store.status(&upload(20).id).await);
        assert_fails(store.claim(&upload(20)).await);
        assert_fails(store.remove(&upload(20).id).await);
        outside.assert_untouched();
        assert!(link.symlink_metadata().unwrap().is_symlink());
        std::fs::remove_file(link).unwrap();
        finish(&store).await;
        outside.assert_untouched();
    }

    #[tokio::test]
    async fn a_link_in_place_of_a_journal_is_not_followed() {
        for target in ["file", "nothing", ""] {
            let (root, outside) = (tempfile::tempdir().unwrap(), Outside::new());
            let store = FileStore::open(root.path()).unwrap();
            let link = journal(root.path());
            std::fs::create_dir(link.parent().unwrap()).unwrap();
            symlink(outside.dir().join(target), &link).unwrap();
            assert_not_followed(store, &link, &outside).await;
        }
    }

    /// Not even a link to a valid journal is followed.
    #[tokio::test]
    async fn a_link_to_a_valid_journal_is_not_followed() {
        let (root, outside) = (tempfile::tempdir().unwrap(), Outside::new());
        let store = FileStore::open(root.path()).unwrap();
        write(&store, &upload(20), 0, b"0123456789").await.unwrap();
        let (link, moved) = (journal(root.path()), root.path().join("moved"));
        std::fs::rename(&link, &moved).unwrap();
        symlink(&moved, &link).unwrap();
        let before = std::fs::read(&moved).unwrap();
        // A store that has the journal open, and a store that has not.
        assert_fails(write(&store, &upload(20), 10, b"0123456789").await);
        assert_not_followed(FileStore::open(root.path()).unwrap(), &link, &outside).await;
        assert_eq!(std::fs::read(&moved).unwrap(), before);
    }

    #[tokio::test]
    async fn a_link_in_place_of_the_data_is_not_followed() {
        for target in ["file", ""] {
            let (root, outside) = (tempfile::tempdir().unwrap(), Outside::new());
            let store = FileStore::open(root.path()).unwrap();
            write(&store, &upload(20), 0, b"0123456789").await.unwrap();
            drop(store);
            let link = data(root.path());
            std::fs::remove_file(&link).unwrap();
            symlink(outside.dir().join(target), &link).unwrap();
            assert_not_followed(FileStore::open(root.path()).unwrap(), &link, &outside).await;
        }
    }

    /// The store notices that the bytes are gone, and asks for them again.
    #[tokio::test]
    async fn a_link_in_place_of_open_data_is_not_followed() {
        for target in ["file", "nothing"] {
            let (root, outside) = (tempfile::tempdir().unwrap(), Outside::new());
            let store = FileStore::open(root.path()).unwrap();
            write(&store, &upload(20), 0, b"0123456789").await.unwrap();
            let link = data(root.path());
            std::fs::remove_file(&link).unwrap();
            symlink(outside.dir().join(target), &link).unwrap();
            let status = store.status(&upload(20).id).await;
            assert!(matches!(status, Ok(None)), "{status:?}");
            finish(&store).await;
            outside.assert_untouched();
        }
    }

    #[tokio::test]
    async fn a_link_in_place_of_a_folder_of_uploads_is_not_followed() {
        let (root, outside) = (tempfile::tempdir().unwrap(), Outside::new());
        let store = FileStore::open(root.path()).unwrap();
        let link = journal(root.path()).parent().unwrap().to_owned();
        symlink(outside.dir(), &link).unwrap();
        assert_not_followed(store, &link, &outside).await;
    }

    /// A sweep removes nothing behind a link.
    #[tokio::test]
    async fn a_sweep_does_not_follow_links() {
        let (root, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        write(&FileStore::open(other.path()).unwrap(), &upload(2), 0, b"x")
            .await
            .unwrap();
        let shard = journal(other.path()).parent().unwrap().to_owned();
        let key = UploadId::from_bytes([7; 32]);
        std::fs::write(shard.join(format!("{key}.0123.data")), "x").unwrap();
        let store = FileStore::open(root.path()).unwrap();
        symlink(&shard, root.path().join("partial/07")).unwrap();
        let before = files(&shard);
        assert_eq!(before.len(), 3);
        // One valid upload is swept nevertheless.
        let good = upload_named(8, 2);
        write(&store, &good, 0, b"x").await.unwrap();
        let journal = |dir: &Path, key: u8| {
            let name = UploadId::from_bytes([key; 32]).to_string();
            dir.join(format!("partial/{key:02x}/{name}.journal"))
        };
        let link = journal(root.path(), 9);
        std::fs::create_dir(link.parent().unwrap()).unwrap();
        symlink(&before[0], link).unwrap();
        assert_eq!(store.sweep(&everything()).await.unwrap().abandoned, 1);
        let page = store.list(&Filter::complete(), None).await.unwrap();
        assert!(page.uploads.is_empty());
        assert_eq!(files(&shard), before);
    }

    #[tokio::test]
    async fn a_link_at_the_name_of_a_finished_file_is_not_followed() {
        let (root, outside) = (tempfile::tempdir().unwrap(), Outside::new());
        let named = |name: &'static str| {
            let builder = FileStore::builder(root.path());
            builder
                .with_naming(move |_| Some(name.into()))
                .open()
                .unwrap()
        };
        drop(named(""));
        // At the name of a file: the file gets another name.
        symlink(outside.file(), root.path().join("files/file")).unwrap();
        symlink(outside.dir().join("new"), root.path().join("files/new")).unwrap();
        for (name, found) in [("file", "files/file (1)"), ("new", "files/new (1)")] {
            let path = finish(&named(name)).await;
            assert_eq!(path, root.path().join(found));
            assert!(named(name).remove(&upload(20).id).await.unwrap());
            outside.assert_untouched();
        }
        // At the name of a folder, at any depth.
        for (link, name) in [("dir", "dir/a/b"), ("real/dir", "real/dir/b")] {
            let link = root.path().join("files").join(link);
            std::fs::create_dir_all(link.parent().unwrap()).unwrap();
            symlink(outside.dir(), &link).unwrap();
            let store = named(name);
            write(&store, &upload(3), 0, b"abc").await.unwrap();
            for _ in 0..2 {
                assert_fails(store.claim(&upload(3)).await);
            }
            outside.assert_untouched();
            std::fs::remove_file(&link).unwrap();
            let path = deliver(&store, &upload(3)).await;
            assert_eq!(path, root.path().join("files").join(name));
            assert_eq!(std::fs::read(path).unwrap(), b"abc");
            assert!(store.remove(&upload(3).id).await.unwrap());
            outside.assert_untouched();
        }
    }

    #[tokio::test]
    async fn a_link_in_place_of_a_finished_file_is_not_followed() {
        let (root, outside) = (tempfile::tempdir().unwrap(), Outside::new());
        let store = FileStore::open(root.path()).unwrap();
        let path = finish(&store).await;
        std::fs::remove_file(&path).unwrap();
        symlink(outside.file(), &path).unwrap();
        // The next attempt does not get the link's target, and the link is not removed.
        assert_ne!(deliver(&store, &upload(20)).await, path);
        assert!(store.remove(&upload(20).id).await.unwrap());
        assert!(path.symlink_metadata().unwrap().is_symlink());
        outside.assert_untouched();
    }

    #[tokio::test]
    async fn a_root_that_is_a_link_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        std::fs::create_dir(&real).unwrap();
        symlink(&real, &link).unwrap();
        let builders: [fn(&Path, &Path) -> FileStoreBuilder; 5] = [
            |_, link| FileStore::builder(link),
            |_, link| FileStore::builder(link.join("")),
            |_, link| FileStore::builder(link.join(".")),
            |real, link| FileStore::builder(real).with_partial_dir(link),
            |real, link| FileStore::builder(real).with_finished_dir(link.join("")),
        ];
        for builder in builders {
            let why = refusal(builder(&real, &link));
            assert!(why.contains("link is a symbolic link"), "{why}");
            assert!(why.contains("canonical"), "{why}");
            assert_eq!(std::fs::read_dir(&real).unwrap().count(), 0, "{why}");
        }
        FileStore::open(link.canonicalize().unwrap()).unwrap();
        // Links above the root are allowed: on macOS, `/tmp` and `/var` are links.
        FileStore::open(link.join("below")).unwrap();

        for name in ["partial", "files"] {
            let root = tempfile::tempdir().unwrap();
            symlink(&real, root.path().join(name)).unwrap();
            let why = refusal(FileStore::builder(root.path()));
            assert!(why.contains(&format!("{name} is a symbolic link")), "{why}");
        }
        // A link whose target does not exist.
        symlink(dir.path().join("nothing"), dir.path().join("dangling")).unwrap();
        let why = refusal(FileStore::builder(dir.path().join("dangling")));
        assert!(why.contains("is a symbolic link"), "{why}");
        assert!(!dir.path().join("nothing").exists());
    }

    /// A pipe without a writer blocks no request.
    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn pipes_block_no_request() {
        let root = tempfile::tempdir().unwrap();
        let store = FileStore::open(root.path()).unwrap();
        let pipe = journal(root.path());
        std::fs::create_dir(pipe.parent().unwrap()).unwrap();
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.unwrap().success());
        let write = async { write(&store, &upload(20), 0, b"0123456789").await };
        let write = tokio::time::timeout(Duration::from_secs(20), write).await;
        assert_fails(write.expect("it should not block"));

        std::fs::remove_file(&pipe).unwrap();
        let path = finish(&store).await;
        std::fs::remove_file(&path).unwrap();
        let made = std::process::Command::new("mkfifo").arg(&path).status();
        assert!(made.unwrap().success());
        let upload = upload(20);
        let deliver = deliver(&store, &upload);
        let deliver = tokio::time::timeout(Duration::from_secs(20), deliver).await;
        assert_ne!(deliver.expect("it should not block"), path);
    }
}

#[cfg(unix)]
mod permissions {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().mode() & 0o7777
    }

    fn set_mode(path: &Path, mode: u32) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    /// The modes of all files and folders of a store with one unfinished and one finished upload.
    async fn modes(root: &Path, builder: FileStoreBuilder) -> (Vec<u32>, Vec<u32>) {
        let store = builder.open().unwrap();
        let path = finish(&store).await;
        let other = upload_named(8, 2);
        write(&store, &other, 0, b"x").await.unwrap();
        let files = files(root);
        // Two journals, the data of one upload, and a finished file.
        assert_eq!(files.len(), 5, "{files:?}");
        let mut dirs: Vec<_> = files
            .iter()
            .flat_map(|file| file.ancestors().skip(1))
            .take_while(|dir| dir.starts_with(root))
            .collect();
        let partial = root.join("partial");
        dirs.extend([root, path.parent().unwrap(), &partial]);
        let modes = |paths: Vec<&Path>| {
            let mut modes: Vec<_> = paths.into_iter().map(mode).collect();
            modes.sort_unstable();
            modes.dedup();
            modes
        };
        let files = files.iter().map(PathBuf::as_path).collect();
        (modes(files), modes(dirs))
    }

    #[tokio::test]
    async fn files_and_folders_are_private() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        let (files, dirs) = modes(&root, FileStore::builder(&root)).await;
        assert_eq!((&files[..], &dirs[..]), (&[0o600][..], &[0o700][..]));
    }

    /// The next test also runs this one, in a process with another umask.
    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn modes_respect_the_umask() {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let umask = status.lines().find_map(|line| line.strip_prefix("Umask:"));
        let umask = u32::from_str_radix(umask.unwrap().trim(), 8).unwrap();
        let dir = tempfile::tempdir().unwrap();
        for (file_mode, dir_mode) in [(0o640, 0o750), (0o664, 0o775), (0o666, 0o755)] {
            let root = dir.path().join(format!("{file_mode:o}"));
            let builder = FileStore::builder(&root);
            let builder = builder.with_file_mode(file_mode).with_dir_mode(dir_mode);
            let (files, dirs) = modes(&root, builder).await;
            assert_eq!(files, [file_mode & !umask], "umask {umask:o}");
            assert_eq!(dirs, [dir_mode & !umask], "umask {umask:o}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn modes_respect_another_umask() {
        for umask in ["0000", "0027"] {
            let output = std::process::Command::new("sh")
                .arg("-c")
                .arg(format!("umask {umask}; exec \"$0\" --exact \"$1\""))
                .arg(std::env::current_exe().unwrap())
                .arg("store::hardening::permissions::modes_respect_the_umask")
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(said.contains("1 passed"), "umask {umask}: {said}");
        }
    }

    #[tokio::test]
    async fn modes_are_kept_on_another_file_system() {
        use std::sync::{Arc, Mutex};
        use tower::{Layer as _, ServiceExt as _};
        use tower_resumable::{CompletedUpload, ResumableLayer};

        let (dir, Ok(other)) = (
            tempfile::tempdir().unwrap(),
            tempfile::tempdir_in("/dev/shm"),
        ) else {
            return;
        };
        let store = FileStore::builder(dir.path()).with_file_mode(0o644);
        let moved = Arc::new(Mutex::new(None));
        let (to, seen) = (other.path().join("moved"), Arc::clone(&moved));
        let inner = tower::service_fn(move |request: http::Request<axum::body::Body>| {
            let (to, seen) = (to.clone(), Arc::clone(&seen));
            async move {
                let upload = request.extensions().get::<CompletedUpload>().unwrap();
                let before = mode(upload.path().unwrap());
                upload.persist(&to).await.unwrap();
                *seen.lock().unwrap() = Some((before, mode(&to)));
                Ok::<_, std::convert::Infallible>(http::Response::new(axum::body::Body::empty()))
            }
        });
        let layer = ResumableLayer::new(store.open().unwrap());
        let query = "resumableChunkNumber=1&resumableChunkSize=3&resumableCurrentChunkSize=3&\
                     resumableTotalSize=3&resumableIdentifier=3-a&resumableFilename=a";
        let request = http::Request::post(format!("/upload?{query}"))
            .header("content-type", "application/octet-stream")
            .body(axum::body::Body::from("abc"))
            .unwrap();
        let response = layer.layer(inner).oneshot(request).await.unwrap();
        assert_eq!(response.status(), 200);
        let (before, after) = moved.lock().unwrap().unwrap();
        assert_eq!(before, after);
        assert_eq!(before & 0o600, 0o600);
    }

    #[tokio::test]
    async fn unsuitable_modes_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let builder = || FileStore::builder(dir.path());
        for (builder, what) in [
            (builder().with_file_mode(0o400), "the file mode is 0o400"),
            (builder().with_file_mode(0o4600), "the file mode is 0o4600"),
            (builder().with_dir_mode(0o600), "the dir mode is 0o600"),
            (builder().with_dir_mode(0o777), "the dir mode is 0o777"),
        ] {
            let why = refusal(builder);
            assert!(why.contains(what), "{why}");
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn folders_writable_by_all_users_are_refused() {
        for name in ["", "partial", "files"] {
            let root = tempfile::tempdir().unwrap();
            let dir = root.path().join(name);
            std::fs::create_dir_all(&dir).unwrap();
            set_mode(&dir, 0o777);
            let why = refusal(FileStore::builder(root.path()));
            assert!(why.contains("all users") && why.contains("0700"), "{why}");
            for mode in [0o1777, 0o770, 0o755] {
                set_mode(&dir, mode);
                FileStore::open(root.path()).unwrap();
            }
        }
        // The mode of a folder that is not used does not matter.
        let (root, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        set_mode(root.path(), 0o777);
        FileStore::builder(root.path())
            .with_partial_dir(other.path().join("partial"))
            .with_finished_dir(other.path().join("files"))
            .open()
            .unwrap();
    }
}

#[cfg(target_os = "linux")]
mod free_space {
    use super::*;

    /// More free space than any disk has.
    const ALL: u64 = u64::MAX;

    #[tokio::test]
    async fn the_reserve_is_kept_free() {
        let root = tempfile::tempdir().unwrap();
        let open = |reserve| {
            let builder = FileStore::builder(root.path());
            builder.with_free_space_reserve(reserve).open().unwrap()
        };
        let partial = root.path().join("partial");
        // Nothing of a new upload is stored, not even of one without bytes.
        for length in [20, 0] {
            let bytes = &b"0123456789"[..length.min(10)];
            assert_full(write(&open(ALL), &upload(length as u64), 0, bytes).await);
            assert_eq!(std::fs::read_dir(&partial).unwrap().count(), 0);
        }
        // An existing upload does not change.
        write(&open(0), &upload(20), 0, b"0123456789")
            .await
            .unwrap();
        let before = files(&partial);
        let store = open(ALL);
        assert_full(write(&store, &upload(20), 5, b"56789abcde").await);
        match store.status(&upload(20).id).await.unwrap().unwrap().state {
            State::Receiving(ranges) => {
                assert!(ranges.covers(0, 10) && ranges.total() == 10, "{ranges:?}");
            }
            state => panic!("{state:?}"),
        }
        assert_eq!(files(&partial), before);
        // A chunk that needs no space is accepted.
        assert!(!write(&store, &upload(20), 0, b"0123456789").await.unwrap());
        assert!(
            write(&open(1), &upload(20), 10, b"abcdefghij")
                .await
                .unwrap()
        );
        // A complete file can be delivered, which frees space.
        let path = deliver(&store, &upload(20)).await;
        assert_eq!(std::fs::read(path).unwrap(), b"0123456789abcdefghij");
    }

    /// The chunk is refused before most of it has arrived.
    #[tokio::test]
    async fn a_chunk_of_declared_length_is_refused_early() {
        use futures_util::StreamExt as _;
        let root = tempfile::tempdir().unwrap();
        let free = free(root.path());
        let open = |reserve| {
            let builder = FileStore::builder(root.path());
            builder.with_free_space_reserve(reserve).open().unwrap()
        };
        write(&open(0), &upload(free), 0, b"x").await.unwrap();
        let store = open(free - free / 4);
        for (len, fits) in [(free / 16, true), (free / 2, false)] {
            // More than the store buffers in memory.
            let first = futures_util::stream::iter([Ok(Bytes::from(vec![7; 4 << 20]))]);
            let cut = futures_util::stream::iter([Err(BoxError::from("cut"))]);
            let pieces = first.chain(cut);
            match write_pieces(&store, &upload(free), 1, len as usize, pieces).await {
                Err(StoreError::Body(BodyError::Failed(_))) if fits => {}
                Err(StoreError::Full(_)) if !fits => {}
                result => panic!("{len} of {free}: {result:?}"),
            }
        }
    }

    /// A file that cannot fit is refused before it fills the disk.
    #[tokio::test]
    async fn a_file_that_cannot_fit_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let store = FileStore::open(root.path()).unwrap();
        for length in [1 << 62, u64::MAX] {
            assert_full(write(&store, &upload(length), 0, b"x").await);
            let partial = root.path().join("partial");
            assert_eq!(std::fs::read_dir(partial).unwrap().count(), 0);
            let status = store.status(&upload(length).id).await;
            assert!(matches!(status, Ok(None)), "{status:?}");
        }
        write(&store, &upload(20), 0, b"x").await.unwrap();
    }

    /// No space is allocated for bytes that a client only declares.
    #[tokio::test]
    async fn declared_sizes_are_not_allocated() {
        use std::os::unix::fs::MetadataExt as _;
        let root = tempfile::tempdir().unwrap();
        let builder = FileStore::builder(root.path());
        let store = builder.with_free_space_reserve(0).open().unwrap();
        write(&store, &upload(10 << 40), 0, &[7; 100_000])
            .await
            .unwrap();
        let data = std::fs::metadata(data(root.path())).unwrap();
        assert_eq!(data.len(), 100_000);
        let taken: u64 = files(root.path())
            .iter()
            .map(|path| std::fs::metadata(path).unwrap().blocks() * 512)
            .sum();
        assert!(taken < 200_000, "{taken} bytes");
        assert!(store.remove(&upload(10 << 40).id).await.unwrap());
        assert_eq!(files(root.path()), Vec::<PathBuf>::new());
    }

    fn free(dir: &Path) -> u64 {
        let output = std::process::Command::new("df")
            .args(["--output=avail", "--block-size=1"])
            .arg(dir)
            .output()
            .unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        said.lines().nth(1).unwrap().trim().parse().unwrap()
    }
}

mod missing {
    use super::*;

    /// Nothing is reported as stored, nothing panics, and the store works when the root is back.
    #[cfg(unix)]
    #[tokio::test]
    async fn a_missing_root_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        let store = FileStore::open(&root).unwrap();
        let complete = upload_named(8, 1);
        write(&store, &upload(20), 0, b"0123456789").await.unwrap();
        write(&store, &complete, 0, b"x").await.unwrap();
        let Claimed::Won(mut claim) = store.claim(&complete).await.unwrap() else {
            panic!("no claim");
        };
        std::fs::remove_dir_all(&root).unwrap();

        let new = upload_named(9, 20);
        for upload in [&upload(20), &new] {
            assert_fails(write(&store, upload, 0, b"0123456789").await);
            assert_fails(write(&store, upload, 10, b"0123456789").await);
            assert!(!store.remove(&upload.id).await.unwrap());
            let status = store.status(&upload.id).await;
            assert!(matches!(status, Ok(None)), "{status:?}");
        }
        let record = Record::new(true, http::StatusCode::OK, 1, SystemTime::now());
        let settled = claim.settle(&record).await;
        assert!(
            matches!(settled, Err(StoreError::Superseded)),
            "{settled:?}"
        );
        drop(claim);
        let claim = store.claim(&complete).await;
        assert!(matches!(claim, Ok(Claimed::Incomplete)), "{claim:?}");
        assert_fails(store.list(&Filter::default(), None).await);
        assert_fails(store.usage().await);
        assert_fails(store.sweep(&everything()).await);
        // The folder may be the mount point of a disk that is not mounted: the store does not
        // create it.
        assert!(!root.exists());

        FileStore::open(&root).unwrap();
        let page = store.list(&Filter::default(), None).await.unwrap();
        assert!(page.uploads.is_empty());
        finish(&store).await;
    }

    #[tokio::test]
    async fn a_missing_folder_of_finished_files_is_reported() {
        let root = tempfile::tempdir().unwrap();
        let store = FileStore::open(root.path()).unwrap();
        write(&store, &upload(1), 0, b"x").await.unwrap();
        std::fs::remove_dir_all(root.path().join("files")).unwrap();
        for _ in 0..2 {
            assert_fails(store.claim(&upload(1)).await);
        }
        FileStore::open(root.path()).unwrap();
        let path = deliver(&store, &upload(1)).await;
        assert_eq!(std::fs::read(path).unwrap(), b"x");
    }

    /// A file of an upload was deleted by hand.
    #[cfg(unix)]
    #[tokio::test]
    async fn an_upload_with_a_missing_file_begins_again() {
        for which in [journal, data] {
            for complete in [false, true] {
                let root = tempfile::tempdir().unwrap();
                let store = FileStore::open(root.path()).unwrap();
                write(&store, &upload(20), 0, b"0123456789").await.unwrap();
                if complete {
                    write(&store, &upload(20), 10, b"abcdefghij").await.unwrap();
                }
                std::fs::remove_file(which(root.path())).unwrap();
                let claim = store.claim(&upload(20)).await;
                assert!(matches!(claim, Ok(Claimed::Incomplete)), "{claim:?}");
                let status = store.status(&upload(20).id).await;
                assert!(matches!(status, Ok(None)), "{status:?}");
                finish(&store).await;
                store.sweep(&everything()).await.unwrap();
                let left = files(&root.path().join("partial"));
                assert_eq!(left, Vec::<PathBuf>::new());
            }
        }
    }
}
