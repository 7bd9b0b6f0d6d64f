//! Changes of the store's environment: planted links, clock jumps, and removed folders.

use std::time::{Duration, SystemTime};

use tower_resumable::Retention;

use super::case;
use crate::{
    client::{Client, File, Way},
    process,
    world::{Case, World},
};

pub const CASES: &[Case] = &[
    case!(
        "T8",
        "files kept open by 200 finished and 200 unfinished uploads",
        open_files
    )
    .files()
    .alone(),
    case!(
        "15",
        "a link in place of a journal, and in place of a folder",
        links
    )
    .files(),
    case!("79", "the clock jumps by a day, back and forth", clock).files(),
    case!("80", "the store's folder is removed", no_folder)
        .files()
        .hits_all(),
];

#[cfg(unix)]
async fn links(world: &World) {
    use std::os::unix::fs::symlink;

    let file = world.file(Client::Resumable, Way::Both);
    let before = world.partial_files();
    world.begin(&file).await;
    let mut journal = world.partial_files();
    journal
        .retain(|path| !before.contains(path) && path.extension().is_some_and(|e| e == "journal"));
    let journal = journal.pop_first().unwrap();
    assert_eq!(world.attack_bytes(file.cancel()).await.status, 204);
    assert!(!journal.exists());
    // A link to an existing file, and a link to a missing one, which must not be created. The store
    // may replace the link or leave it. The target of the link is not changed.
    let canary = world.canary();
    for target in [canary.clone(), canary.with_extension("new")] {
        symlink(&target, &journal).unwrap();
        let answer = world.attack(&file.chunk(1)).await;
        if answer.status == 503 {
            std::fs::remove_file(&journal).unwrap();
        }
        world.attack_bytes(file.cancel()).await;
        assert!(!journal.exists());
    }
    let folder = journal.parent().unwrap();
    let elsewhere = folder.with_extension("elsewhere");
    std::fs::rename(folder, &elsewhere).unwrap();
    symlink(canary.parent().unwrap(), folder).unwrap();
    let answer = world.attack(&file.chunk(1)).await;
    assert_eq!(
        answer.status, 503,
        "a link in place of a folder: {answer:?}"
    );
    std::fs::remove_file(folder).unwrap();
    std::fs::rename(&elsewhere, folder).unwrap();
    world.accepted(&file, |chunk| chunk).await;
}

#[cfg(not(unix))]
async fn links(_: &World) {}

async fn open_files(world: &World) {
    let before = process::open_files();
    for nth in 0..200 {
        let whole = world.file(Client::Resumable, Way::Octets).sized(1, 10);
        world.accepted(&whole, |chunk| chunk).await;
        let begun = File::new(
            Client::Resumable,
            Way::Octets,
            &format!("user {}", nth / 50),
            nth,
        );
        world.begin(&begun).await;
    }
    // On most systems a process may have 1,024 open files, and each connection counts as one.
    let open = process::open_files().saturating_sub(before);
    assert!(open <= 520, "{open} files are open");
    for nth in 0..200 {
        let begun = File::new(
            Client::Resumable,
            Way::Octets,
            &format!("user {}", nth / 50),
            nth,
        );
        assert_eq!(world.attack_bytes(begun.cancel()).await.status, 204);
    }
}

async fn clock(world: &World) {
    let day = Duration::from_secs(24 * 60 * 60);
    let now = SystemTime::now();
    for time in [now + day, now - day] {
        let file = world.file(Client::Resumable, Way::Both);
        world.begin(&file).await;
        let journals = world.partial_files();
        for path in journals {
            let file = std::fs::File::options().append(true).open(path).unwrap();
            file.set_modified(time).unwrap();
        }
        // By the monotonic clock of the process, the upload is younger than an hour.
        let retention = Retention::default().with_abandoned(day / 24);
        let layer = world.layer.clone().with_retention(retention);
        layer.uploads().sweep().await.unwrap();
        world.finish(&file).await;
    }
}

async fn no_folder(world: &World) {
    let file = world.file(Client::Resumable, Way::Both);
    world.begin(&file).await;
    std::fs::remove_dir_all(&world.root).unwrap();
    let other = world.file(Client::Resumable, Way::Both);
    for chunk in [file.chunk(2), other.chunk(1), file.chunk(1)] {
        let answer = world.attack(&chunk).await;
        assert_eq!(answer.status, 503, "{answer:?}");
    }
    assert_eq!(world.deliveries().len(), 0);
    // When the folder is back, uploads are accepted again.
    std::fs::create_dir_all(world.root.join("partial")).unwrap();
    std::fs::create_dir_all(world.root.join("files")).unwrap();
    let third = world.file(Client::Resumable, Way::Both);
    world.accepted(&third, |chunk| chunk).await;
}
