//! A journal that was cut, or whose bytes have changed.

use std::{
    ops::Range,
    path::{Path, PathBuf},
};

use http::Request;
use tower_resumable::{FileStore, ResumableLayer, store::Filter};

use super::{
    Input,
    machine::dialect,
    server::{Answer, Inner, Script, Server, block_on, folder},
};

const TOTAL: u64 = 30;

/// The state of the upload when its journal is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Parts,
    /// All bytes are stored, and one delivery has failed.
    Failed,
    Delivered,
    Refused,
}

/// Any content of a journal is opened without a panic. The store reports no missing bytes as
/// stored, delivers only the bytes that were sent, and the neighbour is not affected.
pub fn journal(data: &[u8]) {
    let mut input = Input::new(data);
    let stages = [
        Stage::Parts,
        Stage::Failed,
        Stage::Delivered,
        Stage::Refused,
    ];
    let stage = *input.pick(&stages);
    block_on(async {
        let root = folder();
        let stored = prepare(root.path(), stage).await;
        let path = journal_path(root.path());
        let mut journal = std::fs::read(&path).unwrap();
        let is_forged = damage(&mut journal, &mut input);
        std::fs::write(&path, &journal).unwrap();
        let version = journal.get(3).filter(|_| journal.starts_with(b"TRJ"));
        let is_other = |byte: &u8| byte.is_ascii_digit() && (byte ^ b'1').count_ones() >= 2;
        let is_foreign = version.is_some_and(is_other);

        let server = server(root.path());
        let status = server.send(get("a", "&status")).await;
        status.check();
        if status.status == 200 && !is_forged {
            let json = status.json();
            for range in json["ranges"].as_array().unwrap() {
                let (start, end) = (range[0].as_u64().unwrap(), range[1].as_u64().unwrap());
                assert!(
                    stored.iter().any(|s| s.start <= start && end <= s.end),
                    "{json}"
                );
            }
        }
        for at in (0..TOTAL).step_by(10) {
            let probe = server.send(get("a", &format!("&from={at}&len=10"))).await;
            probe.check();
            let has = stored.iter().any(|s| s.start <= at && at + 10 <= s.end);
            assert!(
                probe.status != 200 || has || is_forged,
                "the chunk at {at} is not stored"
            );
        }

        // An unreadable upload does not hide the others.
        let uploads = server.layer.uploads();
        let complete = uploads.list(&Filter::complete(), None).await.unwrap();
        let mut complete = complete.uploads.iter();
        assert!(complete.all(|listed| listed.upload.identifier != "b"));
        uploads.sweep().await.unwrap();
        let list = Request::get("/upload?unfinished").body(Script::default());
        let list = server.send(list.unwrap()).await.json();
        let list = list["uploads"].as_array().unwrap();
        let neighbour = list.iter().find(|upload| upload["identifier"] == "b");
        assert_eq!(neighbour.unwrap()["received"], 10);

        // The damaged upload can be sent again.
        let mut last = 0;
        for at in [20, 0, 10] {
            let answer = server.send(chunk("a", at)).await;
            answer.check();
            last = answer.status;
        }
        let deliveries = server.inner.take();
        if !is_forged {
            assert!(deliveries.iter().all(|delivery| delivery.is(&content("a"))));
            let taken = deliveries.iter().filter(|delivery| delivery.answer == 200);
            assert!(taken.count() <= 1, "{deliveries:?}");
            let expected: &[u16] = match stage {
                _ if is_foreign => &[503],
                Stage::Refused => &[200, 400],
                _ => &[200],
            };
            assert!(expected.contains(&last), "{last}");
        }

        for at in [10, 20] {
            assert_eq!(server.send(chunk("b", at)).await.status, 200);
        }
        let deliveries = server.inner.take();
        assert_eq!(deliveries.len(), 1);
        assert!(deliveries[0].is(&content("b")));
    });
}

/// Two uploads: the neighbour `b` with its first chunk, and `a`. Returns the stored ranges of `a`.
async fn prepare(root: &Path, stage: Stage) -> Vec<Range<u64>> {
    let server = server(root);
    assert_ok(&server.send(chunk("b", 0)).await);
    let answer = match stage {
        Stage::Parts | Stage::Delivered => 200,
        Stage::Failed => 500,
        Stage::Refused => 422,
    };
    server.inner.answer_with(answer);
    for at in [0, 20] {
        assert_ok(&server.send(chunk("a", at)).await);
    }
    if stage == Stage::Parts {
        return vec![0..10, 20..30];
    }
    let last = server.send(chunk("a", 10)).await;
    assert_eq!(last.status == 200, answer == 200);
    std::iter::once(0..TOTAL).collect()
}

fn server(root: &Path) -> Server {
    let layer = ResumableLayer::new(FileStore::open(root).unwrap())
        .with_protocol(dialect())
        .with_list_parameter("unfinished");
    Server::new(layer, Inner::default())
}

/// Damages the journal. Returns whether it is forged: its checksums are valid, but its content is
/// not what the store has written.
fn damage(journal: &mut Vec<u8>, input: &mut Input<'_>) -> bool {
    let used = journal.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    let kind = input.below(6);
    match kind {
        0 => journal.truncate(input.below(used + 1)),
        1 | 5 => {
            for _ in 0..input.below(8) + 1 {
                // The last records are short, and the most important ones.
                let from = if input.bool() {
                    used.saturating_sub(4 * 64)
                } else {
                    0
                };
                let at = from + input.below(used - from);
                journal[at] ^= 1 << (input.u8() % 8);
            }
        }
        2 => {
            let at = input.below(used);
            for (place, byte) in journal[at..].iter_mut().zip(input.bytes(512)) {
                *place = *byte;
            }
        }
        // A slot is copied over another one.
        3 => {
            let (from, to) = (input.below(used / 64) * 64, input.below(used / 64 + 4) * 64);
            journal.copy_within(from..from + 64, to);
        }
        _ => *journal = input.bytes(4096).to_vec(),
    }
    if kind == 5 {
        seal(journal);
    }
    kind == 5
}

/// Corrects the checksums of the records.
fn seal(journal: &mut [u8]) {
    let (mut at, mut chain) = (0, 0);
    while at + 64 <= journal.len() && journal[at..].starts_with(b"TRJ1") {
        let len = u64::from_le_bytes(journal[at + 16..at + 24].try_into().unwrap());
        let payload = match journal[at + 4] {
            1 | 3 | 5 => usize::try_from(len).unwrap_or(usize::MAX),
            _ => 0,
        };
        if let Some(payload) = (at + 64)
            .checked_add(payload)
            .and_then(|end| journal.get(at + 64..end))
        {
            let crc = crc32fast::hash(payload);
            if !payload.is_empty() {
                journal[at + 24..at + 28].copy_from_slice(&crc.to_le_bytes());
            }
        }
        let mut hasher = crc32fast::Hasher::new_with_initial(chain);
        hasher.update(&journal[at..at + 60]);
        chain = hasher.finalize();
        journal[at + 60..at + 64].copy_from_slice(&chain.to_le_bytes());
        at = at.saturating_add(64 + payload).next_multiple_of(64);
    }
}

/// The path of the journal of `a`.
fn journal_path(root: &Path) -> PathBuf {
    let mut found = None;
    for dir in std::fs::read_dir(root.join("partial")).unwrap() {
        let dir = dir.unwrap().path();
        let files = dir.is_dir().then(|| std::fs::read_dir(dir).unwrap());
        for path in files.into_iter().flatten().map(|file| file.unwrap().path()) {
            let is_journal = path.extension().is_some_and(|ext| ext == "journal");
            let contains = |text: &[u8]| {
                let content = std::fs::read(&path).unwrap();
                content.windows(text.len()).any(|part| part == text)
            };
            if is_journal && contains(b"\"identifier\":\"a\"") {
                found = Some(path);
            }
        }
    }
    found.expect("a journal")
}

fn content(identifier: &str) -> Vec<u8> {
    let salt = identifier.as_bytes()[0];
    (0..TOTAL as u8)
        .map(|at| at.wrapping_mul(37) ^ salt)
        .collect()
}

fn chunk(identifier: &str, at: u64) -> Request<Script> {
    let bytes = &content(identifier)[at as usize..at as usize + 10];
    Request::post(uri(identifier, &format!("&from={at}")))
        .header("content-type", "application/octet-stream")
        .body(Script::whole(bytes))
        .unwrap()
}

fn get(identifier: &str, more: &str) -> Request<Script> {
    let request = Request::get(uri(identifier, more));
    request.body(Script::default()).unwrap()
}

fn uri(identifier: &str, more: &str) -> String {
    format!("/upload?id={identifier}&total={TOTAL}&name=a.bin{more}")
}

fn assert_ok(answer: &Answer) {
    assert_eq!(answer.status, 200, "{answer:?}");
}
