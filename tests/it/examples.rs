//! The examples as real processes: each server receives an upload of the command-line client, also
//! if the server is killed during the upload.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

mod progress;
mod prometheus;
#[cfg(unix)]
mod shutdown;
mod slow_handler;

/// One of the examples, which `cargo test` builds too.
fn example(name: &str) -> Command {
    let test = std::env::current_exe().unwrap();
    let profile = test.ancestors().nth(2).unwrap();
    let program = profile
        .join("examples")
        .join(name)
        .with_extension(std::env::consts::EXE_EXTENSION);
    assert!(
        program.exists(),
        "no {}: run `cargo build --examples`",
        program.display()
    );
    Command::new(program)
}

/// A server example. It is killed when this is dropped.
struct Server {
    process: Child,
    address: String,
    /// The lines of its log. A thread reads them, because a server whose log is full stops.
    log: mpsc::Receiver<String>,
}

impl Server {
    fn start(name: &str, listen: &str, dir: &Path) -> Self {
        Self::run(example(name), listen, dir)
    }

    fn run(mut command: Command, listen: &str, dir: &Path) -> Self {
        let name = format!("{command:?}");
        let mut process = command
            .args(["--listen", listen, "--dir"])
            .arg(dir)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let (sender, log) = mpsc::channel();
        // It ends with the log. If the test has ended, nothing receives the rest.
        thread::spawn(move || {
            lines
                .map_while(Result::ok)
                .try_for_each(|line| sender.send(line))
        });
        let line = log.recv().unwrap_or_default();
        let address = line.strip_prefix("listening on http://");
        let address = address
            .unwrap_or_else(|| panic!("{name} printed {line:?}"))
            .to_owned();
        Self {
            process,
            address,
            log,
        }
    }

    /// Kills the server, and returns its deliveries.
    fn kill(mut self) -> Vec<Value> {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        self.deliveries()
    }

    /// Asks the server to end, and returns its deliveries.
    #[cfg(unix)]
    fn terminate(self) -> Vec<Value> {
        self.ask_to_end();
        self.end()
    }

    #[cfg(unix)]
    fn ask_to_end(&self) {
        let pid = self.process.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-TERM", &pid])
                .status()
                .unwrap()
                .success()
        );
    }

    /// Waits until the server has ended, and returns its deliveries.
    #[cfg(unix)]
    fn end(mut self) -> Vec<Value> {
        let status = self.process.wait().unwrap();
        assert!(status.success(), "{status}");
        self.deliveries()
    }

    /// The deliveries of a server that has ended.
    fn deliveries(&mut self) -> Vec<Value> {
        let mut lines = String::new();
        self.process
            .stdout
            .take()
            .unwrap()
            .read_to_string(&mut lines)
            .unwrap();
        lines
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn source(dir: &Path, len: usize) -> PathBuf {
    let mut x = 7u32;
    let content = std::iter::repeat_with(|| {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (x >> 24) as u8
    });
    let path = dir.join("source.bin");
    std::fs::write(&path, content.take(len).collect::<Vec<_>>()).unwrap();
    path
}

fn upload(address: &str, source: &Path, options: &[&str]) -> Command {
    let mut command = example("upload");
    command
        .arg("--quiet")
        .args(options)
        .arg(format!("http://{address}/upload"))
        .arg(source);
    command.stdout(Stdio::piped());
    command
}

fn check(deliveries: &[Value], source: &Path) {
    let [delivery] = deliveries else {
        panic!("{deliveries:?}")
    };
    assert_eq!(delivery["file_name"], "source.bin");
    assert_eq!(delivery["attempt"], 1);
    let path = delivery["path"].as_str().unwrap();
    assert!(
        std::fs::read(path).unwrap() == std::fs::read(source).unwrap(),
        "other bytes"
    );
}

#[test]
fn every_server_receives_an_upload_of_the_client() {
    for name in ["axum", "hyper", "tonic"] {
        for options in [
            &["--chunk-size", "100000", "--duplicate", "40", "--shuffle"][..],
            &[
                "--chunk-size",
                "64K",
                "--octet",
                "--force-chunk-size",
                "--parallel",
                "8",
            ],
            &["--chunk-size", "300K", "--base64"],
        ] {
            let dir = tempfile::tempdir().unwrap();
            let source = source(dir.path(), 1_000_003);
            let server = Server::start(name, "127.0.0.1:0", &dir.path().join("uploads"));
            let output = upload(&server.address, &source, options).output().unwrap();
            assert!(output.status.success(), "{name} {options:?}: {output:?}");
            let line: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert!(
                line["answer"].as_str().unwrap().contains("source.bin"),
                "{line}"
            );
            check(&server.kill(), &source);
        }
    }
}

#[test]
fn uploads_of_authenticated_users() {
    let dir = tempfile::tempdir().unwrap();
    let source = source(dir.path(), 1_000_003);
    let server = Server::start("auth", "127.0.0.1:0", &dir.path().join("uploads"));
    let send = |token: &str| {
        let header = format!("authorization: Bearer {token}");
        let options = ["--header", &header, "--retries", "0"];
        upload(&server.address, &source, &options).output().unwrap()
    };
    assert!(!send("unknown-token").status.success());
    let mut deliveries = Vec::new();
    for user in ["alice", "bob"] {
        let output = send(&format!("{user}s-token"));
        assert!(output.status.success(), "{output:?}");
        let line: Value = serde_json::from_slice(&output.stdout).unwrap();
        let answer = format!("source.bin belongs to {user}");
        assert_eq!(line["answer"], answer);
        // The other user has sent the same file, and no chunk of it was skipped.
        assert_eq!(line["skipped"], 0, "{line}");
    }
    deliveries.extend(server.kill());
    let [of_alice, of_bob] = &deliveries[..] else {
        panic!("{deliveries:?}")
    };
    assert_ne!(of_alice["path"], of_bob["path"]);
    for delivery in &deliveries {
        check(std::slice::from_ref(delivery), &source);
    }
}

/// The server is killed repeatedly. The client retries, and sends no acknowledged chunk again.
#[test]
fn a_killed_server_resumes() {
    let dir = tempfile::tempdir().unwrap();
    let source = source(dir.path(), 6_000_000);
    let uploads = dir.path().join("uploads");
    let acks = dir.path().join("acks");
    let mut server = Server::start("axum", "127.0.0.1:0", &uploads);
    let address = server.address.clone();
    let options = ["--chunk-size", "50000", "--acks", acks.to_str().unwrap()];
    let mut client = upload(&address, &source, &options).spawn().unwrap();
    let acked = || {
        std::fs::read_to_string(&acks)
            .unwrap_or_default()
            .lines()
            .count()
    };
    let mut deliveries = Vec::new();
    for enough in [20, 50, 90] {
        while acked() < enough && client.try_wait().unwrap().is_none() {
            thread::yield_now();
        }
        deliveries.extend(server.kill());
        server = Server::start("axum", &address, &uploads);
    }
    let output = client.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    deliveries.extend(server.kill());
    check(&deliveries, &source);

    // No acknowledged chunk was sent again.
    let acks = std::fs::read_to_string(&acks).unwrap();
    let mut lines: Vec<_> = acks.lines().collect();
    lines.sort_unstable();
    let all = lines.len();
    lines.dedup();
    assert_eq!(lines.len(), all, "some chunks were acknowledged twice");
}

/// A client that is killed continues where it stopped.
#[test]
fn a_killed_client_resumes() {
    let dir = tempfile::tempdir().unwrap();
    let source = source(dir.path(), 3_000_000);
    let acks = dir.path().join("acks");
    let server = Server::start("axum", "127.0.0.1:0", &dir.path().join("uploads"));
    let options = ["--chunk-size", "20000", "--acks", acks.to_str().unwrap()];
    let client = || upload(&server.address, &source, &options);
    let mut first = client().spawn().unwrap();
    let acked = || {
        std::fs::read_to_string(&acks)
            .unwrap_or_default()
            .lines()
            .count()
    };
    while acked() < 20 && first.try_wait().unwrap().is_none() {
        thread::yield_now();
    }
    first.kill().unwrap();
    first.wait().unwrap();
    let before = acked();
    let output = client().output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let line: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(
        line["skipped"].as_u64().unwrap() >= before as u64,
        "{before} acks, then {line}"
    );
    check(&server.kill(), &source);
}

/// One chunk of ten bytes, which is the whole file, over a connection of its own.
#[cfg(unix)]
fn send(address: &str, method: &str, query: &str, body: &[u8]) -> TcpStream {
    let mut socket = TcpStream::connect(address).unwrap();
    let fields = "resumableChunkNumber=1&resumableChunkSize=10&resumableTotalSize=10\
                  &resumableIdentifier=10-a&resumableFilename=source.bin";
    let head = format!(
        "{method} /upload?{fields}{query} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
         content-type: application/octet-stream\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    socket.write_all(&[head.as_bytes(), body].concat()).unwrap();
    socket
}

/// The query of a chunk of ten bytes.
fn chunk(name: &str, number: u64, total: u64) -> String {
    format!(
        "resumableChunkNumber={number}&resumableChunkSize=10&resumableTotalSize={total}\
         &resumableIdentifier={name}&resumableFilename={name}"
    )
}

/// A request with the lines `head` of its head, over a connection of its own, and its answer.
fn request(address: &str, line: &str, head: &str, body: &[u8]) -> String {
    let mut socket = TcpStream::connect(address).unwrap();
    let head = format!(
        "{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{head}content-length: {}\r\n\r\n",
        body.len()
    );
    socket.write_all(&[head.as_bytes(), body].concat()).unwrap();
    answer(socket)
}

/// The JSON of an answer with the status 200.
fn json(answer: &str) -> Value {
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
}

fn answer(mut socket: TcpStream) -> String {
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    answer
}

/// The delivery has begun, and its client has gone. The server ends after the delivery.
#[cfg(unix)]
#[test]
fn a_server_that_is_asked_to_end_ends_its_deliveries() {
    for name in ["axum", "hyper", "tonic"] {
        let dir = tempfile::tempdir().unwrap();
        let uploads = dir.path().join("uploads");
        let mut command = example(name);
        command.args(["--work", "2000"]);
        let server = Server::run(command, "127.0.0.1:0", &uploads);
        let client = send(&server.address, "POST", "", b"0123456789");
        while !answer(send(&server.address, "GET", "&resumableStatus", b""))
            .contains("\"state\":\"complete\"")
        {
            thread::yield_now();
        }
        drop(client);
        let deliveries = server.terminate();
        assert_eq!(deliveries.len(), 1, "{name}: {deliveries:?}");
        assert_eq!(deliveries[0]["attempt"], 1);
        // It is recorded, so it is not delivered again.
        let server = Server::start(name, "127.0.0.1:0", &uploads);
        let answer = answer(send(&server.address, "POST", "", b"0123456789"));
        assert!(answer.starts_with("HTTP/1.1 200"), "{name}: {answer}");
        assert!(server.terminate().is_empty(), "{name}");
    }
}

/// There are more connections than the process may have open files.
#[cfg(unix)]
#[test]
fn a_server_without_free_descriptors_goes_on() {
    for name in ["axum", "hyper", "tonic"] {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        let limited = "ulimit -n 40; exec \"$0\" \"$@\"";
        command
            .args(["-c", limited])
            .arg(example(name).get_program());
        let server = Server::run(command, "127.0.0.1:0", &dir.path().join("uploads"));
        let connect = |_| TcpStream::connect(&server.address).unwrap();
        let held: Vec<_> = (0..60).map(connect).collect();
        if name != "axum" {
            let line = server.log.recv().unwrap();
            assert!(line.contains("Too many open files"), "{name}: {line}");
        }
        drop(held);
        let answer = answer(send(&server.address, "POST", "", b"0123456789"));
        assert!(answer.starts_with("HTTP/1.1 200"), "{name}: {answer}");
        assert_eq!(server.kill().len(), 1, "{name}");
    }
}

/// A folder of the store is gone at run time. The log says which call failed, and why.
#[cfg(unix)]
#[test]
fn a_broken_store_is_in_the_log() {
    for name in ["axum", "hyper", "tonic"] {
        let dir = tempfile::tempdir().unwrap();
        let uploads = dir.path().join("uploads");
        let server = Server::start(name, "127.0.0.1:0", &uploads);
        for folder in ["partial", "files"] {
            let folder = uploads.join(folder);
            std::fs::remove_dir_all(&folder).unwrap();
            std::fs::write(&folder, "something else").unwrap();
        }
        let answer = answer(send(&server.address, "POST", "", b"0123456789"));
        assert!(answer.starts_with("HTTP/1.1 5"), "{name}: {answer}");
        let mut lines = server.log.iter();
        let line = lines.find(|line| line.starts_with("the store failed"));
        let line = line.unwrap_or_else(|| panic!("{name} has ended"));
        let partial = uploads.join("partial");
        assert!(line.contains(partial.to_str().unwrap()), "{name}: {line}");
        assert!(line.contains("not a directory"), "{name}: {line}");
    }
}

/// Three uploads were being delivered when the server was killed. One of them is damaged. The next
/// server delivers the others, and its log says why this one is passed over.
#[test]
fn a_server_delivers_what_is_complete_when_it_starts() {
    let dir = tempfile::tempdir().unwrap();
    let uploads = dir.path().join("uploads");
    let mut command = example("axum");
    command.args(["--work", "600000"]);
    let server = Server::run(command, "127.0.0.1:0", &uploads);
    let names = ["a.bin", "b.bin", "c.bin"];
    let mut waiting = Vec::new();
    let mut journals = Vec::new();
    for name in names {
        let before = files(&uploads.join("partial"), "journal");
        waiting.push(start(&server.address, name));
        wait_until_complete(&server.address, name);
        let mut after = files(&uploads.join("partial"), "journal");
        after.retain(|path| !before.contains(path));
        journals.extend(after);
    }
    assert!(server.kill().is_empty());
    assert_eq!(journals.len(), 3, "{journals:?}");
    std::fs::write(&journals[1], "damaged").unwrap();

    let server = Server::start("axum", "127.0.0.1:0", &uploads);
    let mut delivered = Vec::new();
    while delivered.len() < 2 {
        delivered = json(&request(&server.address, "GET /files", "", b""))
            .as_array()
            .unwrap()
            .clone();
        thread::yield_now();
    }
    let mut found: Vec<_> = delivered.iter().map(|file| &file["file_name"]).collect();
    found.sort_by_key(|name| name.to_string());
    assert_eq!(found, ["a.bin", "c.bin"]);
    let damaged = journals[1].file_stem().unwrap().to_str().unwrap();
    let set_aside = format!("the store set aside upload {damaged}, which is now ");
    let line = server.log.iter().find(|line| line.starts_with(&set_aside));
    let line = line.expect("a line about the damaged upload");
    assert!(line.ends_with("the journal is damaged"), "{line}");
    // Its client sends it again.
    let sent = request(
        &server.address,
        &format!("POST /upload?{}", chunk("b.bin", 1, 10)),
        RAW,
        b"0123456789",
    );
    assert!(sent.starts_with("HTTP/1.1 200"), "{sent}");
    assert_eq!(server.kill().len(), 3);
}

const RAW: &str = "content-type: application/octet-stream\r\n";

/// Sends all ten bytes of a file. Its handler goes on.
fn start(address: &str, name: &str) -> TcpStream {
    let mut socket = TcpStream::connect(address).unwrap();
    let head = format!(
        "POST /upload?{} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{RAW}\
         content-length: 10\r\n\r\n0123456789",
        chunk(name, 1, 10)
    );
    socket.write_all(head.as_bytes()).unwrap();
    socket
}

fn wait_until_complete(address: &str, name: &str) {
    let line = format!("GET /upload?{}&resumableStatus", chunk(name, 1, 10));
    while !request(address, &line, "", b"").contains("\"state\":\"complete\"") {
        thread::yield_now();
    }
}

/// The files below `dir` with this extension.
fn files(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|end| end == extension) {
            found.push(path);
        }
    }
    found
}

impl Server {
    /// KiB of memory.
    fn memory(&self) -> u64 {
        let status = format!("/proc/{}/status", self.process.id());
        let status = std::fs::read_to_string(status).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        line.unwrap()
            .split_whitespace()
            .nth(1)
            .unwrap()
            .parse()
            .unwrap()
    }

    fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.process.id()))
            .unwrap()
            .count()
    }

    /// Waits until the server has as many open files, and all connections are idle.
    fn wait_for_files(&self, is_right: impl Fn(usize) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !is_right(self.open_files()) {
            assert!(
                Instant::now() < deadline,
                "{} open files",
                self.open_files()
            );
            thread::yield_now();
        }
    }
}

/// 10,000 stalled clients take less than 300 MB, also if others have been there before, and an
/// allocator that can give memory back gives it back when they leave.
///
/// glibc gives back only what is free at the end of its heap. So the second half needs jemalloc.
///
/// ```sh
/// apt-get install libjemalloc2
/// cargo build --release --examples
/// cargo test --release --test it stalled_clients -- --ignored --nocapture
/// ```
#[test]
#[ignore = "thousands of connections; Linux only"]
fn stalled_clients_take_little_memory() {
    const CLIENTS: usize = 10_000;
    const THREADS: usize = 8;
    // Both ends of the connections need files.
    if std::env::var_os("STALLED_AGAIN").is_none() {
        let again = Command::new("sh")
            .args(["-c", "ulimit -n \"$(ulimit -Hn)\"; exec \"$0\" \"$@\""])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "--ignored", "--nocapture"])
            .arg("examples::stalled_clients_take_little_memory")
            .env("STALLED_AGAIN", "1")
            .status();
        assert!(again.unwrap().success());
        return;
    }
    let forms = |n: usize| {
        let fields = [
            ("resumableChunkNumber", "1".to_owned()),
            ("resumableChunkSize", "1000000".to_owned()),
            ("resumableTotalSize", "2000000".to_owned()),
            ("resumableIdentifier", format!("id-{n}")),
            ("resumableFilename", format!("{n}.bin")),
            ("resumableRelativePath", format!("{n}.bin")),
        ];
        let fields = fields.map(|(name, value)| {
            format!("--X\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
        });
        format!(
            "POST /upload HTTP/1.1\r\nhost: x\r\ncontent-length: 1001000\r\n\
             content-type: multipart/form-data; boundary=X\r\n\r\n{}--X\r\n\
             Content-Disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\nbytes",
            fields.concat()
        )
    };
    let raw = |n: usize| {
        format!(
            "POST /upload?resumableChunkNumber=1&resumableChunkSize=1000000\
             &resumableTotalSize=2000000&resumableIdentifier=id-{n} HTTP/1.1\r\nhost: x\r\n\
             content-length: 1000000\r\ncontent-type: application/octet-stream\r\n\r\nbytes"
        )
    };
    let each = |first| (first..CLIENTS).step_by(THREADS);
    let kinds = [
        ("raw", &raw as &(dyn Fn(usize) -> String + Sync)),
        ("forms", &forms),
    ];
    for (kind, request) in kinds {
        for allocator in ["", "libjemalloc.so.2"] {
            let dir = tempfile::tempdir().unwrap();
            let mut command = example("hyper");
            command
                .args(["--bodies", "20000"])
                .env("LD_PRELOAD", allocator)
                .env("MALLOC_CONF", "background_thread:true,dirty_decay_ms:1000");
            let server = Server::run(command, "127.0.0.1:0", dir.path());
            let (before, files) = (server.memory(), server.open_files());
            for wave in 1..=2 {
                let open = |n| {
                    let mut socket = TcpStream::connect(&server.address).unwrap();
                    socket.write_all(request(n).as_bytes()).unwrap();
                    socket
                };
                // Together, because the first ones end after 30 seconds.
                let sockets: Vec<_> = thread::scope(|scope| {
                    let threads: Vec<_> = (0..THREADS)
                        .map(|first| scope.spawn(move || each(first).map(open).collect::<Vec<_>>()))
                        .collect();
                    let sockets = threads.into_iter().map(|thread| thread.join().unwrap());
                    sockets.flatten().collect()
                });
                server.wait_for_files(|open| open >= CLIENTS);
                let during = server.memory();
                drop(sockets);
                server.wait_for_files(|open| open < files + 50);
                let each = (during - before) as f64 / CLIENTS as f64;
                println!(
                    "{kind}, wave {wave} {allocator}: {before} KiB, {during} with {CLIENTS}: \
                     {each:.1} each"
                );
                assert!(each < 300e6 / 1024.0 / 10e3, "{kind}: {each:.1} KiB each");
            }
            let deadline = Instant::now() + Duration::from_secs(60);
            // Threads that are idle end after ten seconds.
            while !allocator.is_empty() && server.memory() > before + (20 << 10) {
                assert!(Instant::now() < deadline, "{} KiB stay", server.memory());
                thread::yield_now();
            }
            println!("{kind} {allocator}: {} KiB afterwards", server.memory());
        }
    }
}
