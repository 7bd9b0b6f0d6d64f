//! Servers, clients, and the checks of what they have done.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{
    disk::{Disk, run},
    server,
    urls::{Kind, Settings, Task},
};

/// The bytes of a chunk, where the size does not matter.
pub const CHUNK: u64 = 20_000;

/// How long a round waits for anything before it fails.
const TIMEOUT: Duration = Duration::from_secs(20);

/// How long to wait between two looks at other processes.
const LOOK: Duration = Duration::from_millis(1);

type Shared<T> = Arc<Mutex<T>>;

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A server process in a separate process group.
pub struct Server {
    process: Child,
    /// The number of the server in its round, from 0.
    number: u64,
    pub address: SocketAddr,
    /// The lines of its standard error.
    errors: Shared<Vec<String>>,
    readers: Vec<thread::JoinHandle<()>>,
}

/// How to start a server.
#[derive(Clone, Default)]
pub struct Start {
    /// Program and arguments before those of the server.
    pub wrapper: Vec<String>,
    pub env: Vec<(String, String)>,
}

impl Server {
    pub fn start(
        args: &server::Args,
        start: &Start,
        number: u64,
        sink: &Shared<Vec<Value>>,
    ) -> Result<Self, String> {
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        let mut words = start.wrapper.clone();
        words.push(program.display().to_string());
        words.extend(args.to_words());
        let mut process = Command::new(&words[0])
            .args(&words[1..])
            .envs(start.env.iter().cloned())
            .process_group(0)
            // Never written to. When this process ends the pipe ends, and then the server too.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{}: {error}", words[0]))?;
        let (stdout, stderr) = (process.stdout.take(), process.stderr.take());
        let mut stderr = BufReader::new(stderr.ok_or("no stderr")?);
        let errors = Shared::<Vec<String>>::default();
        let address = loop {
            let mut line = String::new();
            if stderr.read_line(&mut line).unwrap_or(0) == 0 {
                let _ = process.wait();
                return Err(format!(
                    "the server has ended: {}",
                    lock(&errors).join("; ")
                ));
            }
            match line.trim().strip_prefix("listening on ") {
                Some(address) => break address.parse().map_err(|_| line.clone())?,
                None => lock(&errors).push(line.trim().to_owned()),
            }
        };
        let readers = vec![
            {
                let errors = Arc::clone(&errors);
                thread::spawn(move || {
                    for line in stderr.lines().map_while(Result::ok) {
                        if line.starts_with("store: ") {
                            eprintln!("{line}");
                        }
                        lock(&errors).push(line);
                    }
                })
            },
            {
                let (sink, stdout) = (Arc::clone(sink), stdout.ok_or("no stdout")?);
                thread::spawn(move || {
                    for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                        if let Ok(mut delivery) = serde_json::from_str::<Value>(&line) {
                            delivery["server"] = number.into();
                            lock(&sink).push(delivery);
                        }
                    }
                })
            },
        ];
        Ok(Self {
            process,
            number,
            address,
            errors,
            readers,
        })
    }

    pub fn has_died(&mut self) -> bool {
        matches!(self.process.try_wait(), Ok(Some(_)))
    }

    fn signal(&self, signal: &str) {
        let group = format!("-{}", self.process.id());
        let _ = run("kill", &[signal, "--", &group], &[]);
    }

    /// Stops the process at once, as a power cut does.
    pub fn freeze(&self) {
        self.signal("-STOP");
    }

    /// Sends SIGKILL. Returns the lines that the server has printed to standard error.
    pub fn kill(mut self) -> Vec<String> {
        self.signal("-KILL");
        let _ = self.process.wait();
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
        std::mem::take(&mut *lock(&self.errors))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.signal("-KILL");
        let _ = self.process.wait();
    }
}

/// A TCP proxy with one address for all clients. The servers behind it receive connections in turn.
pub struct Proxy {
    pub address: SocketAddr,
    behind: Shared<Vec<SocketAddr>>,
}

impl Proxy {
    pub fn start() -> Result<Self, String> {
        let listener = TcpListener::bind("127.0.0.1:0").map_err(|error| error.to_string())?;
        let address = listener.local_addr().map_err(|error| error.to_string())?;
        let behind = Shared::<Vec<SocketAddr>>::default();
        let servers = Arc::clone(&behind);
        thread::spawn(move || {
            for (turn, client) in listener.incoming().flatten().enumerate() {
                // The proxy was dropped: its round has ended.
                if Arc::strong_count(&servers) == 1 {
                    return;
                }
                let server = {
                    let servers = lock(&servers);
                    servers.get(turn % servers.len().max(1)).copied()
                };
                // Without a server the connection is closed.
                if let Some(Ok(server)) = server.map(TcpStream::connect) {
                    join(client, server);
                }
            }
        });
        Ok(Self { address, behind })
    }

    pub fn set(&self, servers: &[SocketAddr]) {
        *lock(&self.behind) = servers.to_vec();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.behind = Shared::default();
        // Wakes the thread, which then ends.
        let _ = TcpStream::connect(self.address);
    }
}

fn join(client: TcpStream, server: TcpStream) {
    let (Ok(client2), Ok(server2)) = (client.try_clone(), server.try_clone()) else {
        return;
    };
    for (mut from, mut to) in [(client, server), (server2, client2)] {
        thread::spawn(move || {
            let _ = std::io::copy(&mut from, &mut to);
            // When one side has ended, end the other.
            let _ = from.shutdown(std::net::Shutdown::Both);
            let _ = to.shutdown(std::net::Shutdown::Both);
        });
    }
}

/// A file and the client process that uploads it.
pub struct Upload {
    pub identifier: String,
    pub content: Vec<u8>,
    /// The bytes of a chunk.
    chunk: u64,
    acks: PathBuf,
    /// The folder of the store.
    store: PathBuf,
    client: Child,
}

impl Upload {
    /// Starts a client. `words` are additional options.
    pub fn start(
        disk: &Disk,
        identifier: String,
        content: Vec<u8>,
        chunk: u64,
        to: SocketAddr,
        words: &[&str],
    ) -> Result<Self, String> {
        let source = disk.outside().join(&identifier);
        std::fs::write(&source, &content).map_err(|error| error.to_string())?;
        let client = Self::client(disk, &identifier, chunk, to, words)?;
        let acks = disk.outside().join(format!("{identifier}.acks"));
        Ok(Self {
            identifier,
            content,
            chunk,
            acks,
            store: disk.store(),
            client,
        })
    }

    fn client(
        disk: &Disk,
        identifier: &str,
        chunk: u64,
        to: SocketAddr,
        words: &[&str],
    ) -> Result<Child, String> {
        let source = disk.outside().join(identifier);
        let acks = disk.outside().join(format!("{identifier}.acks"));
        let test = std::env::current_exe().map_err(|error| error.to_string())?;
        let profile = test.ancestors().nth(2).ok_or("no folder")?;
        Command::new(profile.join("examples/upload"))
            .args(["--quiet", "--pause", "20"])
            .args(words)
            // More tries than the time limit allows, but a finite number: if this process is
            // killed, the client ends too.
            .args(["--retries", "3000", "--identifier", identifier])
            .args(["--chunk-size", &chunk.to_string()])
            .arg("--header")
            .arg(format!("{}: {}", server::STORE, disk.store().display()))
            .arg("--acks")
            .arg(&acks)
            .arg(format!("http://{to}/upload"))
            .arg(source)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("the client: {error}"))
    }

    /// The ranges that were acknowledged.
    pub fn acks(&self) -> Vec<(u64, u64)> {
        let text = std::fs::read_to_string(&self.acks).unwrap_or_default();
        let range = |line: &str| {
            let mut words = line.split(' ').skip(1).map(|word| word.parse().ok());
            Some((words.next()??, words.next()??))
        };
        // A line without its end is not written completely yet.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().filter_map(range).collect()
    }

    /// The number of bytes that were acknowledged and are not stored now.
    pub fn lost(&self, server: SocketAddr) -> Result<u64, String> {
        let acks = self.acks();
        if acks.is_empty() {
            return Ok(0);
        }
        let status = self.status(server)?;
        if matches!(status["state"].as_str(), Some("complete" | "delivered")) {
            return Ok(0);
        }
        let pairs = status["ranges"].as_array().cloned().unwrap_or_default();
        let ranges = pairs
            .iter()
            .filter_map(|pair| Some(pair[0].as_u64()?..pair[1].as_u64()?));
        let ranges: Vec<_> = ranges.collect();
        let is_there = |(offset, len): &(u64, u64)| {
            let inside =
                |range: &std::ops::Range<u64>| range.start <= *offset && offset + len <= range.end;
            status["state"] == "receiving" && ranges.iter().any(inside)
        };
        let lost = acks.iter().filter(|ack| !is_there(ack));
        // A lost upload counts as one byte even if it is empty.
        Ok(lost.map(|(_, len)| (*len).max(1)).sum())
    }

    fn status(&self, server: SocketAddr) -> Result<Value, String> {
        let (name, total, chunk) = (&self.identifier, self.content.len(), self.chunk);
        let query = format!(
            "resumableStatus=1&resumableIdentifier={name}&resumableFilename={name}\
             &resumableRelativePath={name}&resumableTotalSize={total}\
             &resumableChunkNumber=1&resumableChunkSize={chunk}"
        );
        let answer =
            get(server, &query, &self.store).map_err(|error| format!("no status: {error}"))?;
        let body = answer.split("\r\n\r\n").nth(1).unwrap_or_default();
        let status = serde_json::from_str::<Value>(body).ok();
        status
            .filter(|status| status["state"].is_string())
            .ok_or_else(|| format!("no status: {answer:?}"))
    }
}

fn get(server: SocketAddr, query: &str, store: &Path) -> std::io::Result<String> {
    let mut connection = TcpStream::connect(server)?;
    connection.set_read_timeout(Some(TIMEOUT))?;
    let (name, store) = (server::STORE, store.display());
    let head = format!(
        "GET /upload?{query} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{name}: {store}\r\n\r\n"
    );
    connection.write_all(head.as_bytes())?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    Ok(answer)
}

impl Drop for Upload {
    fn drop(&mut self) {
        let _ = self.client.kill();
        let _ = self.client.wait();
    }
}

/// Why a round was stopped.
pub enum Stop {
    /// This machine cannot run it. That is not a failure of the crate.
    Cannot(String),
    /// Something failed that must not fail, such as a server that does not start again after a
    /// crash. Every error is converted to this variant.
    Failed(String),
}

impl From<String> for Stop {
    fn from(what: String) -> Self {
        Self::Failed(what)
    }
}

/// The results of a row of the table.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub rounds: u64,
    pub crashes: u64,
    pub uploads: u64,
    pub acked: u64,
    pub lost: u64,
    pub corrupt: u64,
    pub missing: u64,
    /// Second deliveries that no crash explains.
    pub doubled: u64,
    /// Second deliveries after the process of the first one had died.
    pub doubled_by_crash: u64,
    /// Descriptions of everything that is wrong.
    pub wrong: Vec<String>,
    /// Whether a round was stopped. Its numbers are then incomplete, so the row is wrong even if it
    /// expects a deliberate mistake.
    pub failed: bool,
}

impl Seen {
    pub fn add(&mut self, other: Self) {
        self.rounds += other.rounds;
        self.crashes += other.crashes;
        self.uploads += other.uploads;
        self.acked += other.acked;
        self.lost += other.lost;
        self.corrupt += other.corrupt;
        self.missing += other.missing;
        self.doubled += other.doubled;
        self.doubled_by_crash += other.doubled_by_crash;
        self.wrong.extend(other.wrong);
        self.failed |= other.failed;
    }

    pub fn is_clean(&self) -> bool {
        self.lost + self.corrupt + self.missing + self.doubled == 0 && self.wrong.is_empty()
    }
}

/// One round with its disk, servers, proxy and clients.
pub struct World {
    args: server::Args,
    pub servers: Vec<Server>,
    proxy: Proxy,
    sink: Shared<Vec<Value>>,
    pub uploads: Vec<Upload>,
    /// Uploads that have a URL.
    pub tasks: Vec<Task>,
    pub seen: Seen,
    /// Whether acknowledged chunks have to survive each crash.
    pub keeps: bool,
    /// How long to wait for anything.
    pub timeout: Duration,
    /// The number of servers that were started.
    started: u64,
    /// When each server was killed, by its number.
    deaths: BTreeMap<u64, u64>,
    /// The last field, because the disk can be unmounted only after the servers have ended.
    pub disk: Disk,
}

impl World {
    pub fn new(disk: Disk, args: server::Args, starts: &[Start]) -> Result<Self, String> {
        let mut world = Self {
            disk,
            args,
            servers: Vec::new(),
            proxy: Proxy::start()?,
            sink: Shared::default(),
            uploads: Vec::new(),
            tasks: Vec::new(),
            seen: Seen::default(),
            keeps: true,
            timeout: TIMEOUT,
            started: 0,
            deaths: BTreeMap::new(),
        };
        world.seen.rounds = 1;
        for start in starts {
            world.start(start)?;
        }
        Ok(world)
    }

    pub fn start(&mut self, start: &Start) -> Result<(), String> {
        let number = self.started;
        self.started += 1;
        self.servers
            .push(Server::start(&self.args, start, number, &self.sink)?);
        let addresses: Vec<_> = self.servers.iter().map(|server| server.address).collect();
        self.proxy.set(&addresses);
        Ok(())
    }

    /// Uploads chunks in random order over three connections, and some of them twice.
    pub fn upload(&mut self, content: Vec<u8>, chunk: u64, seed: u64) -> Result<(), String> {
        let order = seed.to_string();
        let words = ["--shuffle", "--duplicate", "20", "--seed", &order];
        self.upload_with(content, chunk, &words)
    }

    /// Uploads one chunk after the other.
    pub fn upload_alone(&mut self, content: Vec<u8>) -> Result<(), String> {
        self.upload_with(content, CHUNK, &["--parallel", "1"])
    }

    fn upload_with(&mut self, content: Vec<u8>, chunk: u64, words: &[&str]) -> Result<(), String> {
        let identifier = format!("upload-{}", self.uploads.len());
        let upload = Upload::start(
            &self.disk,
            identifier,
            content,
            chunk,
            self.proxy.address,
            words,
        )?;
        self.uploads.push(upload);
        self.seen.uploads += 1;
        Ok(())
    }

    /// Uploads to a URL, in requests of at most `step` bytes.
    pub fn append(&mut self, kind: Kind, content: Vec<u8>, step: u64, is_wild: bool, seed: u64) {
        let settings = Settings {
            kind,
            step,
            piece: 32 << 10,
            pause: Duration::from_millis(2),
            is_wild,
            path: "/upload".into(),
            headers: format!("{}: {}\r\n", server::STORE, self.disk.store().display()),
            seed,
        };
        let to = Arc::new(Mutex::new(vec![self.proxy.address]));
        self.tasks.push(Task::start(content, settings, to));
        self.seen.uploads += 1;
    }

    /// The number of acknowledged chunks, and of pieces that were appended.
    pub fn acks(&self) -> usize {
        let chunks = self.uploads.iter().map(|upload| upload.acks().len());
        let pieces = self.tasks.iter().map(|task| task.state().noted);
        chunks.chain(pieces).sum()
    }

    pub fn clients_are_done(&mut self) -> bool {
        let mut clients = self.uploads.iter_mut().map(|upload| &mut upload.client);
        clients.all(|client| matches!(client.try_wait(), Ok(Some(_))))
            && self.tasks.iter().all(Task::has_ended)
    }

    /// Waits until a condition holds. Returns false if the time limit has passed.
    pub fn until(&mut self, mut is_so: impl FnMut(&mut Self) -> bool) -> bool {
        let deadline = Instant::now() + self.timeout;
        while !is_so(self) {
            if Instant::now() > deadline {
                return false;
            }
            thread::sleep(LOOK);
        }
        true
    }

    /// Kills a server. Returns the lines that it has printed to standard error.
    pub fn kill(&mut self, number: usize) -> Vec<String> {
        let server = self.servers.remove(number);
        let left: Vec<_> = self.servers.iter().map(|server| server.address).collect();
        self.proxy.set(&left);
        self.seen.crashes += 1;
        self.deaths.insert(server.number, server::now());
        server.kill()
    }

    /// Cuts the power and mounts the disk again.
    pub fn cut(&mut self) -> Result<(), String> {
        // A server on a dead disk could still answer. A machine without power does not.
        for server in &self.servers {
            self.deaths.insert(server.number, server::now());
            server.freeze();
        }
        self.disk.cut()?;
        self.proxy.set(&[]);
        for server in self.servers.drain(..) {
            server.kill();
        }
        self.seen.crashes += 1;
        self.disk.boot()
    }

    /// Counts the bytes that were acknowledged and are not stored any more.
    pub fn check_acks(&mut self) {
        let Some(server) = self.servers.first().map(|server| server.address) else {
            return;
        };
        for upload in &self.uploads {
            match upload.lost(server) {
                Ok(lost) if self.keeps && lost > 0 => {
                    self.seen.lost += lost;
                    let status = upload.status(server);
                    let what =
                        format!("{}: {:?}, but {status:?}", upload.identifier, upload.acks());
                    self.seen.wrong.push(what);
                }
                Ok(_) => {}
                Err(error) => self.seen.wrong.push(error),
            }
        }
    }

    /// Waits for the clients, then checks their results and the deliveries.
    pub fn finish(mut self) -> Seen {
        if !self.until(Self::clients_are_done) {
            self.seen.wrong.push("a client hangs".into());
        }
        if !self.keeps {
            // Acknowledged chunks may be lost. The users find no finished file and upload again.
            for upload in &mut self.uploads {
                let to = self.proxy.address;
                match Upload::client(&self.disk, &upload.identifier, upload.chunk, to, &[]) {
                    Ok(client) => upload.client = client,
                    Err(error) => self.seen.wrong.push(error),
                }
            }
            self.until(Self::clients_are_done);
        }
        let server = self.servers.first();
        for upload in &mut self.uploads {
            match upload.client.try_wait() {
                Ok(Some(status)) if status.success() => {}
                ended => {
                    // Everything that helps to find the cause.
                    let status = server.map(|server| upload.status(server.address));
                    let said = server.map(|server| lock(&server.errors).clone());
                    let behind = lock(&self.proxy.behind).clone();
                    let what = format!(
                        "{}: the client ended with {ended:?}; acknowledged {:?}; \
                         status {status:?}; \
                         servers {behind:?}; output of the server {said:?}",
                        upload.identifier,
                        upload.acks(),
                    );
                    self.seen.wrong.push(what);
                }
            }
        }
        self.check_acks();
        for server in self.servers.drain(..) {
            server.kill();
        }
        let mut deliveries = BTreeMap::<String, Vec<Value>>::new();
        for delivery in lock(&self.sink).drain(..) {
            let identifier = delivery["identifier"].as_str().unwrap_or_default();
            let list = deliveries.entry(identifier.to_owned()).or_default();
            list.push(delivery);
        }
        for upload in std::mem::take(&mut self.uploads) {
            self.seen.acked += upload.acks().iter().map(|(_, len)| len).sum::<u64>();
            let list = deliveries.remove(&upload.identifier).unwrap_or_default();
            self.check_deliveries(list, &upload.content);
        }
        for task in std::mem::take(&mut self.tasks) {
            let state = task.state();
            self.seen.acked += state.told;
            self.seen.lost += state.lost;
            self.seen.wrong.extend(state.wrong);
            let list = state.token.and_then(|token| deliveries.remove(&token));
            self.check_deliveries(list.unwrap_or_default(), &task.content);
        }
        for (identifier, list) in deliveries {
            self.seen
                .wrong
                .push(format!("{identifier} is no upload of a client: {list:?}"));
        }
        std::mem::take(&mut self.seen)
    }

    /// Checks the deliveries of one upload.
    fn check_deliveries(&mut self, mut list: Vec<Value>, content: &[u8]) {
        let seen = &mut self.seen;
        // In the order in which the deliveries began. Lines may arrive in another order.
        list.sort_by_key(|delivery| delivery["time"].as_u64());
        // The second delivery of a file may have given it another name.
        let Some(path) = list.last().map(|last| last["path"].as_str()) else {
            seen.missing += 1;
            return;
        };
        for pair in list.windows(2) {
            // A second delivery is correct only if the process of the first one was dead.
            let (first, second) = (&pair[0], &pair[1]);
            let death = first["server"].as_u64().and_then(|n| self.deaths.get(&n));
            if death.copied() < second["time"].as_u64()
                && death.is_some()
                && first["server"] != second["server"]
            {
                seen.doubled_by_crash += 1;
            } else {
                seen.doubled += 1;
                seen.wrong.push(format!("delivered twice: {list:?}"));
            }
            if first["id"] != second["id"]
                || first["attempt"].as_u64() >= second["attempt"].as_u64()
            {
                seen.wrong
                    .push(format!("another id, or no higher attempt: {list:?}"));
            }
        }
        let is_whole = list.iter().all(|delivery| delivery["whole"] == true);
        let found = std::fs::read(path.unwrap_or_default());
        if !is_whole || found.as_deref().ok() != Some(content) {
            let len = found.map(|found| found.len());
            seen.wrong
                .push(format!("wrong bytes, length {len:?}: {list:?}"));
            seen.corrupt += 1;
        }
    }
}
