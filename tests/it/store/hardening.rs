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
        BodyError, ChunkBody, Claim as _, Claimed, Expiry, FileStoreBuilder, Filter, Record, State,
        Store, StoreError,
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
        // Two journals, the data of two uploads, and the name of a finished file.
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
        // It has the mode of the umask.
        set_mode(dir.path(), 0o700);
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

    /// Who owns a folder can replace what is in it, and who owns a folder above it can replace it.
    /// Needs root.
    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn folders_of_other_users_are_refused() {
        use std::os::unix::fs::chown;
        let other = Some(65_534);
        for name in ["above", "above/root", "partial", "files", "partial/07"] {
            let dir = tempfile::tempdir().unwrap();
            let root = dir.path().join("above/root");
            let changed = if name.starts_with("above") {
                dir.path().join(name)
            } else {
                root.join(name)
            };
            std::fs::create_dir_all(&changed).unwrap();
            std::fs::create_dir_all(&root).unwrap();
            if chown(&changed, other, None).is_err() {
                return;
            }
            let why = refusal(FileStore::builder(&root));
            let expected = format!("{} belongs to the user 65534", changed.display());
            assert!(why.contains(&expected), "{why}");
            assert!(why.contains("with_unchecked_permissions"), "{why}");
            let builder = FileStore::builder(&root).with_unchecked_permissions();
            finish(&builder.open().unwrap()).await;
            chown(&changed, Some(0), None).unwrap();
            set_mode(&changed, 0o755);
            FileStore::open(&root).unwrap();
        }
        // Also a folder that another user creates while the store is open.
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("partial")).unwrap();
        set_mode(&root.path().join("partial"), 0o1777);
        let naming = |_: &tower_resumable::Upload| Some("user/file".into());
        let builder = FileStore::builder(root.path()).with_naming(naming);
        let store = builder.open().unwrap();
        for name in ["partial/07", "files/user"] {
            let dir = root.path().join(name);
            std::fs::create_dir(&dir).unwrap();
            chown(&dir, other, None).unwrap();
            let error = match write(&store, &upload(1), 0, b"x").await {
                Err(error) => error,
                Ok(_) => store.claim(&upload(1)).await.unwrap_err(),
            };
            let why = error.source().unwrap().to_string();
            assert!(why.contains(&format!("{} belongs", dir.display())), "{why}");
            std::fs::remove_dir(&dir).unwrap();
        }
        deliver(&store, &upload(1)).await;
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
pub mod free_space {
    use super::*;

    /// More free space than any disk has.
    const ALL: u64 = u64::MAX;

    const TWO_TO_62: u64 = 1 << 62;

    /// Bodies that arrive at the same time do not get the same room, and give it back.
    #[tokio::test]
    async fn bodies_reserve_what_they_declare() {
        let root = tempfile::tempdir().unwrap();
        let free = free(root.path());
        let open = |reserve| {
            let builder = FileStore::builder(root.path());
            builder.with_free_space_reserve(reserve).open().unwrap()
        };
        for number in 0..16 {
            let upload = upload_named(number, free);
            write(&open(0), &upload, 0, b"x").await.unwrap();
        }
        let store = open(free - free / 2);
        // A chunk, or a part that waits for its place. It declares an eighth of the disk, sends
        // little, and then nothing. Returns its task, unless it was refused.
        let begin = async |number: u8| {
            let (sender, mut waits) = tokio::sync::mpsc::channel(1);
            let first = futures_util::stream::iter([Ok(Bytes::from(vec![7; 1 << 20]))]);
            let rest = futures_util::stream::poll_fn(move |_| {
                let _ = sender.try_send(());
                std::task::Poll::Pending
            });
            let pieces = futures_util::StreamExt::chain(first, rest);
            let (store, len) = (store.clone(), free / 8);
            let mut task = tokio::spawn(async move {
                if number % 2 == 0 {
                    let upload = upload_named(number, free);
                    return write_pieces(&store, &upload, 1, len as usize, pieces)
                        .await
                        .map(drop);
                }
                let pieces = futures_util::TryStreamExt::map_ok(pieces, http_body::Frame::data);
                let source = std::pin::pin!(http_body_util::StreamBody::new(pieces));
                let mut body = ChunkBody::new(source, Some(len), 0);
                store.spool(&mut body).await.map(drop)
            });
            tokio::select! {
                Some(()) = waits.recv() => Some(task),
                ended = &mut task => {
                    assert_full(ended.unwrap());
                    None
                }
            }
        };
        // Not the same uploads again: a chunk of an upload that is open reserves a moment later.
        for numbers in [0..8, 8..16] {
            let mut begun = Vec::new();
            for number in numbers {
                begun.extend(begin(number).await);
            }
            // Other programs use and free some space meanwhile.
            assert!((2..=5).contains(&begun.len()), "{}", begun.len());
            for task in begun {
                task.abort();
                let _ = task.await;
            }
        }
    }

    #[tokio::test]
    async fn a_part_that_waits_for_its_place_needs_room_unless_it_is_short() {
        let root = tempfile::tempdir().unwrap();
        let builder = FileStore::builder(root.path()).with_free_space_reserve(ALL);
        let store = builder.open().unwrap();
        for (len, is_short) in [(3, true), (300_000, false)] {
            for declared in [Some(len), None] {
                let bytes = vec![7; len as usize];
                let source = http_body_util::Full::from(bytes.clone());
                let source = std::pin::pin!(source);
                let source = http_body_util::BodyExt::map_err(source, |e| match e {});
                let source = std::pin::pin!(source);
                let mut body = ChunkBody::new(source, declared, len);
                let spooled = store.spool(&mut body).await;
                if is_short {
                    let spooled = http_body_util::BodyExt::collect(spooled.unwrap()).await;
                    assert_eq!(spooled.unwrap().to_bytes(), bytes);
                } else {
                    assert_full(spooled);
                }
            }
        }
    }

    #[tokio::test]
    async fn settings_do_not_overflow() {
        let root = tempfile::tempdir().unwrap();
        let store = FileStore::builder(root.path())
            .with_stall_timeout(Duration::MAX)
            .with_max_ranges(usize::MAX)
            .with_free_space_reserve(0)
            .open()
            .unwrap();
        finish(&store).await;
    }

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
        for length in [1 << 62, (1 << 62) + 1, u64::MAX] {
            let written = write(&store, &upload(length), 0, b"x").await;
            // Longer than the store can ever keep, which no free space changes.
            if length > 1 << 62 {
                let is_final = matches!(written, Err(StoreError::TooLarge { limit: TWO_TO_62 }));
                assert!(is_final, "{written:?}");
            } else {
                assert_full(written);
            }
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

    /// Free bytes of the disk.
    pub fn free(dir: &Path) -> u64 {
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

    /// Each folder below the root is created again when it is needed.
    #[cfg(unix)]
    #[tokio::test]
    async fn a_missing_folder_is_created_again() {
        for (name, is_kept) in [("files", true), ("partial", false), ("partial/07", false)] {
            let root = tempfile::tempdir().unwrap();
            let store = FileStore::open(root.path()).unwrap();
            write(&store, &upload(20), 0, b"0123456789").await.unwrap();
            std::fs::remove_dir_all(root.path().join(name)).unwrap();
            let page = store.list(&Filter::default(), None).await.unwrap();
            assert_eq!(page.uploads.len(), usize::from(is_kept), "{name}");
            store.sweep(&Expiry::default()).await.unwrap();
            finish(&store).await;
            std::fs::remove_dir_all(root.path().join(name)).unwrap();
            let source = std::pin::pin!(http_body_util::Full::from("abc"));
            let source = std::pin::pin!(http_body_util::BodyExt::map_err(source, |e| match e {}));
            store
                .spool(&mut ChunkBody::new(source, None, 3))
                .await
                .unwrap();
            // The file of a delivery that has not ended is given its name again.
            if name == "files" {
                deliver(&store, &upload(20)).await;
            }
        }
    }

    /// No name below it can be used, so trying others would not end.
    #[tokio::test]
    async fn a_file_in_place_of_the_finished_files_is_an_error() {
        use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
        for is_named in [false, true] {
            let root = tempfile::tempdir().unwrap();
            let finished = root.path().join("files");
            let mut builder = FileStore::builder(root.path());
            if is_named {
                let number = AtomicU32::new(0);
                // Each time another one.
                let name = move || format!("{}/a", number.fetch_add(1, Relaxed));
                builder = builder.with_naming(move |_| Some(name().into()));
            }
            let store = builder.open().unwrap();
            write(&store, &upload(3), 0, b"abc").await.unwrap();
            std::fs::remove_dir(&finished).unwrap();
            std::fs::write(&finished, "").unwrap();
            let (other, id) = (store.clone(), upload(3));
            let claim = tokio::spawn(async move { other.claim(&id).await.map(drop) });
            let claimed = tokio::time::timeout(Duration::from_secs(60), claim).await;
            let journal = journal(root.path()).metadata().unwrap().len();
            // So that a claim that does not end does so now.
            std::fs::remove_file(&finished).unwrap();
            assert_fails(claimed.expect("it does not end").unwrap());
            assert_eq!(journal, 4096);
            let path = deliver(&store, &upload(3)).await;
            assert_eq!(std::fs::read(path).unwrap(), b"abc");
        }
    }

    /// An attempt creates the folders before the file gets its name, which can fail.
    #[tokio::test]
    async fn no_empty_folder_of_a_removed_upload_stays() {
        for is_swept in [false, true] {
            let root = tempfile::tempdir().unwrap();
            let store = FileStore::builder(root.path())
                .with_naming(|_| Some("a/b/c.txt".into()))
                .open()
                .unwrap();
            write(&store, &upload(3), 0, b"abc").await.unwrap();
            let Claimed::Won(claim) = store.claim(&upload(3)).await.unwrap() else {
                panic!("no claim")
            };
            // As after an attempt whose last step has failed.
            std::fs::remove_file(claim.sealed().stored.path().unwrap()).unwrap();
            drop(claim);
            if is_swept {
                let swept = store.sweep(&everything()).await.unwrap();
                assert_eq!(swept.undelivered, 1);
            } else {
                assert!(store.remove(&upload(3).id).await.unwrap());
            }
            let left = std::fs::read_dir(root.path().join("files")).unwrap();
            assert_eq!(left.count(), 0);
        }
    }

    /// A process that dies while it opens the store or spools a body leaves a file next to the
    /// folders of uploads. A file that was in place of such a folder is set aside there.
    #[tokio::test]
    async fn stray_files_are_swept() {
        let root = tempfile::tempdir().unwrap();
        let store = FileStore::open(root.path()).unwrap();
        let partial = root.path().join("partial");
        let (id, zeros) = ("0123456789abcdef0123456789abcdef", "0".repeat(64));
        for (name, is_stray) in [
            (format!("{id}.tmp"), true),
            (format!("{zeros}.{id}.broken"), true),
            (format!("07.{id}.broken"), true),
            ("notes.tmp".into(), false),
            ("notes.txt".into(), false),
            (format!("{id}.txt"), false),
        ] {
            let path = partial.join(&name);
            std::fs::write(&path, "").unwrap();
            // It is kept for as long as an abandoned upload.
            let mut young = everything();
            young.abandoned_before = Some(SystemTime::now() - Duration::from_secs(3600));
            store.sweep(&young).await.unwrap();
            assert!(path.exists(), "{name}");
            store.sweep(&everything()).await.unwrap();
            assert_eq!(!path.exists(), is_stray, "{name}");
        }
    }

    /// The operator can read what failed, and on which path.
    #[cfg(unix)]
    #[tokio::test]
    async fn errors_name_what_failed_and_where() {
        let root = tempfile::tempdir().unwrap();
        let naming = |upload: &tower_resumable::Upload| {
            let name = upload.identifier.clone() + "/";
            Some(name.repeat(3000).into())
        };
        let builder = FileStore::builder(root.path()).with_naming(naming);
        let store = builder.open().unwrap();
        let shard = root.path().join("partial/07");
        std::os::unix::fs::symlink(root.path(), &shard).unwrap();
        let error = write(&store, &upload(20), 0, b"x").await.unwrap_err();
        let why = error.source().unwrap().to_string();
        assert!(why.contains(shard.to_str().unwrap()), "{why}");
        assert!(why.contains("is a symbolic link"), "{why}");
        std::fs::remove_file(&shard).unwrap();

        // A path that is too long never becomes shorter.
        write(&store, &upload(1), 0, b"x").await.unwrap();
        let error = store.claim(&upload(1)).await.unwrap_err();
        assert!(matches!(error, StoreError::Impossible(_)), "{error:?}");
        let why = error.source().unwrap().to_string();
        assert!(why.contains("i/i/i"), "{why}");

        // Nor does a file in place of a folder open.
        let file = root.path().join("file");
        std::fs::write(&file, "").unwrap();
        let why = refusal(FileStore::builder(&file));
        assert!(why.starts_with("could not"), "{why}");
        assert!(why.contains(file.to_str().unwrap()), "{why}");
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

/// Other file systems and mounts. Needs root.
#[cfg(target_os = "linux")]
mod mounts {
    use super::*;

    /// Runs an ignored test of this module in a folder with these mounts.
    fn run(mounts: &str, test: &str) {
        let dir = tempfile::tempdir().unwrap();
        let output = std::process::Command::new("unshare")
            .args(["--mount", "sh", "-c"])
            .arg(format!("{mounts} && exec \"$0\" --exact --ignored \"$1\""))
            .arg(std::env::current_exe().unwrap())
            .arg(format!("store::hardening::mounts::{test}"))
            .current_dir(dir.path())
            .output();
        let said = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        // Without root there are no mounts.
        let said = said.unwrap_or_default();
        assert!(
            !said.contains("running 1 test") || said.contains("1 passed"),
            "{said}"
        );
    }

    fn here() -> PathBuf {
        std::env::current_dir().unwrap()
    }

    const TMPFS: &str = "mkdir root && mount -t tmpfs -o mode=700";

    #[test]
    fn folders_below_different_mounts_are_refused() {
        run(
            "mkdir -p partial files a b && mount --bind a partial && mount --bind b files",
            "two_mounts_of_one_file_system",
        );
        run(
            "mkdir -p mount/files && mount --bind mount mount",
            "a_mount_above_the_finished_files",
        );
    }

    #[test]
    #[ignore = "needs its mounts"]
    fn two_mounts_of_one_file_system() {
        let why = refusal(FileStore::builder(here()));
        assert!(why.contains("below different mounts"), "{why}");
        assert!(
            why.contains(&format!("{}/files/", here().display())),
            "{why}"
        );
        for name in ["partial", "files"] {
            assert_eq!(std::fs::read_dir(name).unwrap().count(), 0);
        }
    }

    #[test]
    #[ignore = "needs its mounts"]
    fn a_mount_above_the_finished_files() {
        let builder = FileStore::builder(here()).with_finished_dir(here().join("mount/files"));
        let why = refusal(builder);
        assert!(why.contains("below different mounts"), "{why}");
    }

    #[test]
    fn a_read_only_file_system_is_refused() {
        run(&format!("{TMPFS},ro none root"), "read_only");
        run(
            &format!(
                "{TMPFS} none root && mkdir root/partial root/files && mount -o remount,ro root"
            ),
            "read_only",
        );
    }

    #[test]
    #[ignore = "needs its mounts"]
    fn read_only() {
        let why = refusal(FileStore::builder(here().join("root")));
        assert!(why.starts_with("could not create"), "{why}");
        assert!(
            why.contains(&format!("{}/root/partial", here().display())),
            "{why}"
        );
        assert!(
            why.contains("Read-only") && why.contains("mount the"),
            "{why}"
        );
    }

    #[test]
    fn a_file_system_without_inodes_is_refused() {
        for inodes in 1..5 {
            run(
                &format!("{TMPFS},nr_inodes={inodes} none root"),
                "no_inodes",
            );
        }
    }

    #[test]
    #[ignore = "needs its mounts"]
    fn no_inodes() {
        let why = refusal(FileStore::builder(here().join("root")));
        assert!(why.starts_with("could not create"), "{why}");
        assert!(why.contains("no free inodes"), "{why}");
    }

    /// It can still deliver, and sweep.
    #[test]
    fn a_full_file_system_is_opened() {
        run(
            &format!("{TMPFS},size=64k none root && (head -c 1m /dev/zero > root/all || true)"),
            "no_bytes",
        );
    }

    #[tokio::test]
    #[ignore = "needs its mounts"]
    async fn no_bytes() {
        let builder = FileStore::builder(here().join("root")).with_free_space_reserve(0);
        let store = builder.open().unwrap();
        assert_full(write(&store, &upload(20), 0, b"x").await);
        std::fs::remove_file("root/all").unwrap();
        finish(&store).await;
    }

    /// Also if the journal would need another block to say that the upload is removed.
    #[test]
    fn an_upload_is_removed_from_a_full_file_system() {
        run(&format!("{TMPFS},size=1m none root"), "no_block");
    }

    #[tokio::test]
    #[ignore = "needs its mounts"]
    async fn no_block() {
        let builder = FileStore::builder(here().join("root")).with_free_space_reserve(0);
        let store = builder.open().unwrap();
        for is_swept in [false, true] {
            let upload = upload(1000);
            let is_filled = || std::fs::read(journal(&here().join("root"))).unwrap()[4032] != 0;
            let mut chunks = 0;
            while chunks == 0 || !is_filled() {
                write(&store, &upload, chunks, b"x").await.unwrap();
                chunks += 1;
            }
            let mut file = std::fs::File::create("root/all").unwrap();
            while std::io::Write::write_all(&mut file, &[7; 4096]).is_ok() {}
            assert_full(write(&store, &upload, chunks, b"x").await);
            if is_swept {
                let swept = store.sweep(&everything()).await.unwrap();
                assert_eq!(swept.abandoned, 1);
            } else {
                assert!(store.remove(&upload.id).await.unwrap());
            }
            assert_eq!(files(&here().join("root/partial")), Vec::<PathBuf>::new());
            std::fs::remove_file("root/all").unwrap();
        }
        finish(&store).await;
    }

    /// What is created below the mount point would be hidden when it is mounted again.
    #[test]
    fn a_file_system_that_is_not_mounted_is_an_error() {
        let disk = "mkdir disk root && mount -t tmpfs none disk && mkdir -m 700 disk/a";
        run(&format!("{disk} && mount --bind disk/a root"), "unmounted");
        run(
            &format!(
                "{disk} && mkdir root/partial root/files disk/a/partial disk/a/files \
                      && mount --bind disk/a root"
            ),
            "unmounted",
        );
    }

    #[tokio::test]
    #[ignore = "needs its mounts"]
    async fn unmounted() {
        let mount = |words: &[&str]| {
            let mut command = std::process::Command::new(words[0]);
            assert!(command.args(&words[1..]).status().unwrap().success());
        };
        let root = here().join("root");
        let store = FileStore::open(&root).unwrap();
        write(&store, &upload(20), 0, b"0123456789").await.unwrap();
        // Another process, which has nothing open.
        let other = FileStore::open(&root).unwrap();
        mount(&["umount", "--lazy", "root"]);
        for store in [&other, &store] {
            let failed = store.status(&upload(20).id).await.unwrap_err();
            let why = failed.source().unwrap().to_string();
            assert!(why.contains("is not mounted"), "{why}");
            assert_fails(write(store, &upload(20), 10, b"abcdefghij").await);
            assert_fails(store.create(&upload(20)).await);
            if !root.join("partial").exists() {
                assert_fails(store.list(&Filter::default(), None).await.map(drop));
                assert_fails(store.sweep(&everything()).await);
            }
        }
        assert_eq!(files(&root), Vec::<PathBuf>::new());
        mount(&["mount", "--bind", "disk/a", "root"]);
        assert!(write(&store, &upload(20), 10, b"abcdefghij").await.unwrap());
        finish(&store).await;
    }

    #[test]
    fn a_name_below_another_mount_is_an_error_with_its_path() {
        run(
            "mkdir -p files/other && mount -t tmpfs -o mode=700 none files/other",
            "naming_below_another_mount",
        );
    }

    #[tokio::test]
    #[ignore = "needs its mounts"]
    async fn naming_below_another_mount() {
        let builder = FileStore::builder(here()).with_naming(|_| Some("other/file".into()));
        let store = builder.open().unwrap();
        write(&store, &upload(1), 0, b"x").await.unwrap();
        for _ in 0..2 {
            let error = store.claim(&upload(1)).await.unwrap_err();
            assert!(matches!(error, StoreError::Impossible(_)), "{error:?}");
            let why = error.source().unwrap().to_string();
            assert!(
                why.contains(&format!("{}/files/other/file", here().display())),
                "{why}"
            );
        }
        // With another naming the same upload is delivered.
        let store = FileStore::open(here()).unwrap();
        let path = deliver(&store, &upload(1)).await;
        assert_eq!(std::fs::read(path).unwrap(), b"x");
    }

    #[test]
    fn bodies_that_come_together_leave_the_reserve() {
        run(&format!("{TMPFS},size=24m none root"), "small_disk");
    }

    #[tokio::test]
    #[ignore = "needs its mounts"]
    async fn small_disk() {
        const MIB: usize = 1 << 20;
        let builder = FileStore::builder(here().join("root"));
        let store = builder
            .with_free_space_reserve(5 * MIB as u64)
            .open()
            .unwrap();
        let mut bodies = tokio::task::JoinSet::new();
        for number in 0..6 {
            let store = store.clone();
            bodies.spawn(async move {
                let upload = upload_named(number, 8 * MIB as u64);
                let pieces = futures_util::stream::unfold(0, async |sent: usize| {
                    tokio::task::yield_now().await;
                    (sent < 32).then(|| (Ok(Bytes::from(vec![7; MIB / 4])), sent + 1))
                });
                write_pieces(&store, &upload, 0, 8 * MIB, pieces).await
            });
        }
        let mut stored = 0;
        for result in bodies.join_all().await {
            match result {
                Ok(is_complete) => stored += u32::from(is_complete),
                full => assert_full(full),
            }
        }
        assert_eq!(stored, 2);
    }
}
