//! Servers, a balancer, clients, and the checks of what they have done.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::PathBuf,
    process::Stdio,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use object_store::ObjectStoreExt as _;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    sync::Notify,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tower_resumable::store::{Expiry, Store as _};

use super::{
    engine::{Engine, Error},
    proxy::{Counts, Faults, Proxy},
    rng::Rng,
    server::{self, hex, now},
    urls::{Kind, Settings, Task},
};

/// How long a round waits for anything before it fails.
const TIMEOUT: Duration = Duration::from_secs(90);

/// The other programs and files that the tests use.
#[derive(Clone, Debug)]
pub struct Tools {
    /// The command-line client.
    pub client: PathBuf,
    /// The configuration of the balancer, with the ports of the example.
    pub nginx: PathBuf,
}

/// The results of one round, or of all rounds of a row.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub servers: usize,
    pub rounds: u64,
    pub faults: u64,
    pub uploads: u64,
    /// Chunks that clients sent again, as deliberate duplicates or because they had no answer.
    pub repeats: u64,
    pub completions: u64,
    /// Second deliveries that no crash explains.
    pub doubled: u64,
    /// Second deliveries after the process of the first one had died.
    pub doubled_by_crash: u64,
    /// Files with wrong bytes, in the application or in the bucket.
    pub bad: u64,
    /// Objects after the sweep that are not delivered files.
    pub leftovers: u64,
    /// Multipart uploads that are never completed or aborted, because their server died or lost the
    /// store before it had recorded their id. The lifecycle rule of a bucket removes them.
    pub multipart: u64,
    pub wrong: Vec<String>,
}

impl Seen {
    pub fn add(&mut self, more: Self) {
        self.servers = self.servers.max(more.servers);
        self.rounds += more.rounds;
        self.faults += more.faults;
        self.uploads += more.uploads;
        self.repeats += more.repeats;
        self.completions += more.completions;
        self.doubled += more.doubled;
        self.doubled_by_crash += more.doubled_by_crash;
        self.bad += more.bad;
        self.leftovers += more.leftovers;
        self.multipart += more.multipart;
        self.wrong.extend(more.wrong);
    }

    pub fn is_clean(&self) -> bool {
        self.completions == self.uploads
            && self.doubled + self.bad + self.leftovers == 0
            && self.wrong.is_empty()
    }
}

/// The settings of the servers of a round.
#[derive(Clone, Debug)]
pub struct Setup {
    pub servers: usize,
    pub lease: Duration,
    /// How long the application waits before it reads the file.
    pub pause: Duration,
    pub sweep: Duration,
    /// Whether the application reads the file.
    pub reads: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            servers: 3,
            lease: Duration::from_secs(30),
            pause: Duration::from_millis(20),
            sweep: Duration::from_secs(1),
            reads: true,
        }
    }
}

type Events = Arc<Mutex<Vec<Value>>>;

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

pub struct World {
    engine: Engine,
    tools: Tools,
    setup: Setup,
    dir: tempfile::TempDir,
    prefix: String,
    servers: Vec<Server>,
    nginx: Child,
    /// The address of the balancer.
    pub address: SocketAddr,
    events: Events,
    news: Arc<Notify>,
    /// When each process was killed, by its number.
    deaths: BTreeMap<u64, u64>,
    uploads: Vec<Upload>,
    /// Uploads that have a URL.
    tasks: Vec<Task>,
    /// The SHA-256 of the delivered files, by the ids of their deliveries.
    files: BTreeMap<String, String>,
    /// Whether there were faults after which a multipart upload can be unknown to all servers.
    pub may_leave_parts: bool,
    pub seen: Seen,
}

/// An address in the list of the balancer, and the process that listens there.
struct Server {
    address: SocketAddr,
    proxy: Proxy,
    process: Option<Process>,
}

struct Process {
    child: Child,
    /// The number of the process in its round.
    number: u64,
    reader: JoinHandle<()>,
    said: Arc<Mutex<Vec<String>>>,
}

struct Upload {
    identifier: String,
    content: Vec<u8>,
    acks: PathBuf,
    client: Child,
}

impl World {
    pub async fn new(
        engine: &Engine,
        tools: &Tools,
        setup: Setup,
        seed: u64,
    ) -> Result<Self, Error> {
        let dir = tempfile::tempdir()?;
        let prefix = format!("{seed:016x}");
        let mut servers = Vec::new();
        for number in 0..setup.servers {
            servers.push(Server {
                address: free_address(seed)?,
                proxy: Proxy::start(vec![engine.gateway(number)], seed + number as u64).await?,
                process: None,
            });
        }
        let addresses: Vec<_> = servers.iter().map(|server| server.address).collect();
        let address = free_address(seed)?;
        let nginx = balance(tools, dir.path(), address, &addresses).await?;
        let mut world = Self {
            engine: engine.clone(),
            tools: tools.clone(),
            dir,
            prefix,
            servers,
            nginx,
            address,
            events: Events::default(),
            news: Arc::default(),
            deaths: BTreeMap::new(),
            uploads: Vec::new(),
            tasks: Vec::new(),
            files: BTreeMap::new(),
            may_leave_parts: false,
            seen: Seen {
                servers: setup.servers,
                rounds: 1,
                ..Seen::default()
            },
            setup,
        };
        for number in 0..world.servers.len() {
            world.start(number).await?;
        }
        Ok(world)
    }

    pub fn proxy(&self, server: usize) -> &Proxy {
        &self.servers[server].proxy
    }

    /// Sets the same faults for all servers.
    pub fn set(&self, faults: &Faults) {
        for server in &self.servers {
            server.proxy.set(faults.clone());
        }
    }

    /// Starts the server with this number. It must not be running.
    pub async fn start(&mut self, server: usize) -> Result<(), Error> {
        let number = self.deaths.len() as u64 + self.running() as u64;
        let options = server::Options {
            listen: self.servers[server].address,
            endpoint: self.servers[server].proxy.address,
            engine: self.engine.name.clone(),
            bucket: self.engine.bucket.clone(),
            prefix: self.prefix.clone(),
            lease: self.setup.lease,
            pause: self.setup.pause,
            sweep: self.setup.sweep,
            reads: self.setup.reads,
        };
        let process = Process::start(&options, number, &self.events, &self.news).await?;
        self.servers[server].process = Some(process);
        Ok(())
    }

    fn running(&self) -> usize {
        let processes = self
            .servers
            .iter()
            .filter(|server| server.process.is_some());
        processes.count()
    }

    /// The process id of a server.
    pub fn pid(&self, server: usize) -> Option<u32> {
        self.servers[server].process.as_ref()?.child.id()
    }

    /// Whether the process has ended without a call of `kill`.
    pub fn has_died(&mut self, server: usize) -> bool {
        let process = self.servers[server].process.as_mut();
        process.is_some_and(|process| !matches!(process.child.try_wait(), Ok(None)))
    }

    /// Returns the events of the applications after the first `seen` ones.
    pub fn events_from(&self, seen: &mut usize) -> Vec<Value> {
        let events = lock(&self.events);
        let new = events[*seen..].to_vec();
        *seen = events.len();
        new
    }

    /// Sends SIGKILL to a server.
    pub async fn kill(&mut self, server: usize) {
        if let Some(mut process) = self.servers[server].process.take() {
            // `kill` waits for the end of the process.
            let _ = process.child.kill().await;
            let _ = process.reader.await;
            self.deaths.insert(process.number, now());
            self.may_leave_parts = true;
        }
    }

    /// Starts a client. `words` are additional options.
    pub async fn upload(
        &mut self,
        content: Vec<u8>,
        chunk: u64,
        seed: u64,
        words: &[&str],
    ) -> Result<(), Error> {
        let identifier = format!("file-{}", self.uploads.len());
        let source = self.dir.path().join(&identifier);
        tokio::fs::write(&source, &content).await?;
        let acks = self.dir.path().join(format!("{identifier}.acks"));
        let client = Command::new(&self.tools.client)
            .args(["--quiet", "--pause", "50", "--parallel", "4", "--shuffle"])
            .args(["--seed", &seed.to_string(), "--identifier", &identifier])
            .args(["--chunk-size", &chunk.to_string()])
            // More tries than the time limit allows.
            .args(["--retries", "3000"])
            .args(words)
            .arg("--acks")
            .arg(&acks)
            .arg(format!("http://{}/upload", self.address))
            .arg(source)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        self.seen.uploads += 1;
        self.uploads.push(Upload {
            identifier,
            content,
            acks,
            client,
        });
        Ok(())
    }

    /// Uploads to a URL, in requests of at most `step` bytes, each to another server. They do not
    /// go through the balancer, which would hide from the client whether the server reads the body.
    pub fn append(&mut self, kind: Kind, content: Vec<u8>, step: u64, is_wild: bool, seed: u64) {
        let settings = Settings {
            kind,
            step,
            piece: step as usize / 8,
            pause: Duration::from_millis(2),
            is_wild,
            path: "/upload".into(),
            headers: String::new(),
            seed,
        };
        let servers = self.servers.iter().map(|server| server.address);
        let servers = Arc::new(Mutex::new(servers.collect()));
        self.tasks.push(Task::start(content, settings, servers));
        self.seen.uploads += 1;
    }

    /// The number of acknowledged chunks, and of pieces that were appended.
    pub fn acks(&self) -> usize {
        let lines = |upload: &Upload| {
            let text = std::fs::read(&upload.acks).unwrap_or_default();
            text.iter().filter(|byte| **byte == b'\n').count()
        };
        let pieces = self.tasks.iter().map(|task| task.state().noted);
        self.uploads.iter().map(lines).chain(pieces).sum()
    }

    pub fn clients_are_done(&mut self) -> bool {
        let mut clients = self.uploads.iter_mut().map(|upload| &mut upload.client);
        clients.all(|client| !matches!(client.try_wait(), Ok(None)))
            && self.tasks.iter().all(Task::has_ended)
    }

    /// Waits until some more chunks are acknowledged. Returns whether a client is still uploading.
    pub async fn some_acks(&mut self, rng: &mut Rng, most: u64) -> bool {
        let enough = self.acks() + 1 + rng.below(most) as usize;
        let start = std::time::Instant::now();
        while self.acks() < enough && !self.clients_are_done() && start.elapsed() < TIMEOUT {
            sleep(Duration::from_millis(2)).await;
        }
        !self.clients_are_done()
    }

    /// Waits for the next event of this name after the first `seen` ones. Returns the server that
    /// has reported it. Skips events of processes that were killed.
    pub async fn next(&mut self, event: &str, seen: &mut usize) -> Option<usize> {
        loop {
            let news = Arc::clone(&self.news);
            let news = news.notified();
            let found = {
                let events = lock(&self.events);
                let found = (*seen..events.len()).find(|i| events[*i]["event"] == event);
                found.map(|at| {
                    *seen = at + 1;
                    events[at]["process"].as_u64()
                })
            };
            if let Some(number) = found {
                let is_it = |server: &Server| {
                    let process = server.process.as_ref();
                    process.map(|process| process.number) == number
                };
                if let Some(server) = self.servers.iter().position(is_it) {
                    return Some(server);
                }
                continue;
            }
            if self.clients_are_done() {
                return None;
            }
            let _ = timeout(Duration::from_millis(20), news).await;
        }
    }

    /// Kills the clients. Uploads that are complete are delivered nevertheless, and are counted.
    /// The others have to leave nothing in the bucket.
    pub async fn abandon_uploads(&mut self) {
        for mut upload in std::mem::take(&mut self.uploads) {
            let _ = upload.client.kill().await;
        }
        // Running deliveries have to end first.
        sleep(self.setup.pause + Duration::from_secs(1)).await;
        for event in lock(&self.events).iter() {
            if let (Some(id), Some(sha256)) = (event["id"].as_str(), event["sha256"].as_str()) {
                self.files.insert(id.to_owned(), sha256.to_owned());
            }
        }
        self.seen.uploads = self.files.len() as u64;
        self.seen.completions = self.seen.uploads;
    }

    /// Waits for the only client. Returns its output, or an error if it has failed.
    pub async fn answer_of_client(&mut self) -> Result<Value, Error> {
        let upload = self.uploads.pop().ok_or("no upload")?;
        let output = timeout(TIMEOUT, upload.client.wait_with_output()).await??;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into());
        }
        self.check_deliveries(&upload.identifier, &upload.content);
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Returns the requests of all servers since the last call.
    pub fn take_counts(&self) -> Counts {
        let mut all = Counts::new();
        for server in &self.servers {
            for (kind, count) in server.proxy.take_counts() {
                let sum = all.entry(kind).or_default();
                sum.requests += count.requests;
                sum.up += count.up;
                sum.down += count.down;
            }
        }
        all
    }

    /// Waits for all clients, then checks their results, the deliveries, and the bucket.
    pub async fn finish(mut self) -> Seen {
        for upload in std::mem::take(&mut self.uploads) {
            self.check_client(upload).await;
        }
        for task in std::mem::take(&mut self.tasks) {
            self.check_task(task).await;
        }
        for server in 0..self.servers.len() {
            self.seen.faults += self.servers[server].proxy.faults();
            let process = self.servers[server].process.as_ref();
            if let Some(said) = process.map(|process| lock(&process.said).join("; ")) {
                if said.contains("panicked") {
                    self.seen.wrong.push(format!("server {server}: {said}"));
                }
            }
            let before = self.may_leave_parts;
            self.kill(server).await;
            self.may_leave_parts = before;
        }
        let _ = self.nginx.kill().await;
        if let Err(error) = self.check_bucket().await {
            self.seen.wrong.push(format!("the bucket: {error}"));
        }
        self.seen
    }

    async fn check_client(&mut self, mut upload: Upload) {
        let seen = &mut self.seen;
        let name = &upload.identifier;
        let ended = timeout(TIMEOUT, async {
            let status = upload.client.wait().await;
            let mut texts = [String::new(), String::new()];
            use tokio::io::AsyncReadExt as _;
            if let Some(out) = &mut upload.client.stdout {
                let _ = out.read_to_string(&mut texts[0]).await;
            }
            if let Some(err) = &mut upload.client.stderr {
                let _ = err.read_to_string(&mut texts[1]).await;
            }
            (status, texts)
        })
        .await;
        match ended {
            Ok((Ok(status), [out, _])) if status.success() => {
                let said: Value = serde_json::from_str(&out).unwrap_or_default();
                seen.repeats += said["duplicates"].as_u64().unwrap_or(0);
                seen.repeats += said["retries"].as_u64().unwrap_or(0);
            }
            Ok((status, texts)) => seen.wrong.push(format!("{name}: {status:?}: {texts:?}")),
            Err(_) => {
                let servers = self.servers.iter().map(|server| {
                    let process = server.process.as_ref();
                    process.map(|process| lock(&process.said).clone())
                });
                let servers: Vec<_> = servers.collect();
                seen.wrong.push(format!(
                    "{name}: the client has not ended; output of the servers {servers:?}"
                ));
            }
        }
        self.check_deliveries(&upload.identifier, &upload.content);
    }

    async fn check_task(&mut self, task: Task) {
        let start = std::time::Instant::now();
        while !task.has_ended() && start.elapsed() < TIMEOUT {
            sleep(Duration::from_millis(10)).await;
        }
        let state = task.state();
        let name = state.token.unwrap_or_default();
        if !state.has_ended {
            self.seen
                .wrong
                .push(format!("{name}: the client has not ended"));
        }
        self.seen.repeats += state.repeats;
        self.seen.wrong.extend(state.wrong);
        self.check_deliveries(&name, &task.content);
    }

    fn check_deliveries(&mut self, name: &str, content: &[u8]) {
        let seen = &mut self.seen;
        let digest = hex(&Sha256::digest(content));
        let events = lock(&self.events);
        let ours = events.iter().filter(|event| event["identifier"] == *name);
        let mut calls: Vec<&Value> = ours.clone().filter(|e| e["event"] == "called").collect();
        // In the order in which the deliveries began. Lines may arrive in another order.
        calls.sort_by_key(|call| call["time"].as_u64());
        for pair in calls.windows(2) {
            // A second delivery is correct only if the process of the first one was dead, or if the
            // application has failed: its gateway may have died while it read the file.
            let (first, second) = (pair[0], pair[1]);
            let is_of_first = |event: &Value| {
                ["id", "attempt"].map(|name| &event[name])
                    == ["id", "attempt"].map(|name| &first[name])
            };
            if ours
                .clone()
                .any(|event| event["event"] == "failed" && is_of_first(event))
            {
                continue;
            }
            let death = first["process"].as_u64().and_then(|n| self.deaths.get(&n));
            if death.copied() < second["time"].as_u64() && death.is_some() {
                seen.doubled_by_crash += 1;
            } else {
                seen.doubled += 1;
                seen.wrong.push(format!("delivered twice: {calls:?}"));
            }
            if first["id"] != second["id"]
                || first["attempt"].as_u64() >= second["attempt"].as_u64()
            {
                let what = format!("another id, or no higher attempt: {calls:?}");
                seen.wrong.push(what);
            }
        }
        let mut reads = ours.filter(|event| event["event"] == "read").peekable();
        seen.completions += u64::from(reads.peek().is_some());
        let bad = reads.filter(|read| read["sha256"] != *digest).count();
        if bad > 0 {
            seen.bad += bad as u64;
            seen.wrong.push(format!("{name}: wrong bytes: {calls:?}"));
        }
        // `check_bucket` compares the bytes in the bucket at the end.
        if let Some(id) = calls.first().and_then(|call| call["id"].as_str()) {
            self.files.insert(id.to_owned(), digest);
        }
    }

    /// Sweeps everything. Only delivered files may remain.
    async fn check_bucket(&mut self) -> Result<(), Error> {
        let store = server::store(
            self.engine.kind,
            self.engine.gateways[0],
            &self.engine.bucket,
            &self.prefix,
            self.setup.lease,
        )
        .await?;
        // Records of uploads with a URL are kept for a day. The clock of the store may differ from the
        // clock of this machine.
        let end = SystemTime::now() + Duration::from_secs(2 * 24 * 3600);
        let mut all = Expiry::default();
        all.abandoned_before = Some(end);
        all.undelivered_before = Some(end);
        all.records_before = end;
        let files = format!("{}/files/", self.prefix);
        // The claim of a killed server lasts until its lease ends.
        let deadline = std::time::Instant::now() + self.setup.lease + Duration::from_secs(5);
        let left = loop {
            store.sweep(&all).await?;
            let found = self.engine.list(&self.prefix).await?;
            let left = found
                .into_iter()
                .filter(|(key, _)| match key.strip_prefix(&files) {
                    Some(id) => !self.files.contains_key(id),
                    None => true,
                });
            let left: Vec<_> = left.collect();
            if left.is_empty() || std::time::Instant::now() > deadline {
                break left;
            }
            sleep(Duration::from_millis(300)).await;
        };
        if !left.is_empty() {
            self.seen.leftovers += left.len() as u64;
            self.seen
                .wrong
                .push(format!("left in the bucket: {left:?}"));
        }
        let multipart = self.engine.multipart_uploads(&self.prefix).await?;
        if !multipart.is_empty() {
            self.seen.multipart += multipart.len() as u64;
            if !self.may_leave_parts {
                self.seen
                    .wrong
                    .push(format!("neither completed nor aborted: {multipart:?}"));
            }
        }
        let bucket = self.engine.direct()?;
        for (id, digest) in &self.files {
            let path = format!("{files}{id}").into();
            let content = match bucket.get(&path).await {
                Ok(found) => Some(found.bytes().await?),
                Err(object_store::Error::NotFound { .. }) => None,
                Err(error) => return Err(error.into()),
            };
            let Some(content) = content else {
                self.seen.bad += 1;
                self.seen.wrong.push(format!("not in the bucket: {id}"));
                continue;
            };
            if hex(&Sha256::digest(&content)) != *digest {
                self.seen.bad += 1;
                self.seen
                    .wrong
                    .push(format!("wrong bytes in the bucket: {id}"));
            }
            // Frees space for the next row.
            bucket.delete(&path).await?;
        }
        Ok(())
    }
}

impl Process {
    async fn start(
        options: &server::Options,
        number: u64,
        events: &Events,
        news: &Arc<Notify>,
    ) -> Result<Self, Error> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("server")
            .arg(options.to_word())
            // Never written to. When this process ends the pipe ends, and then the server too.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let mut lines = BufReader::new(child.stderr.take().ok_or("no stderr")?).lines();
        let said = Arc::<Mutex<Vec<String>>>::default();
        loop {
            match lines.next_line().await? {
                Some(line) if line.starts_with("listening on ") => break,
                Some(line) => lock(&said).push(line),
                None => return Err(format!("the server has ended: {:?}", lock(&said)).into()),
            }
        }
        let all = Arc::clone(&said);
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                lock(&all).push(line);
            }
        });
        let mut lines = BufReader::new(child.stdout.take().ok_or("no stdout")?).lines();
        let (events, news) = (Arc::clone(events), Arc::clone(news));
        let reader = tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                if let Ok(mut event) = serde_json::from_str::<Value>(&line) {
                    event["process"] = number.into();
                    lock(&events).push(event);
                    news.notify_waiters();
                }
            }
        });
        Ok(Self {
            child,
            number,
            reader,
            said,
        })
    }
}

/// Starts nginx with the configuration of the example.
pub async fn balance(
    tools: &Tools,
    dir: &std::path::Path,
    address: SocketAddr,
    servers: &[SocketAddr],
) -> Result<Child, Error> {
    let site = std::fs::read_to_string(&tools.nginx)?;
    let mut lines = Vec::new();
    for line in site.lines() {
        match line.trim_start() {
            // Replaces the first of the two servers of the example by all servers of the round.
            rest if rest.starts_with("server 127.0.0.1:3001") => {
                let line =
                    |server: &SocketAddr| line.replace("127.0.0.1:3001", &server.to_string());
                lines.extend(servers.iter().map(line));
            }
            rest if rest.starts_with("server 127.0.0.1:") => {}
            rest if rest.starts_with("listen ") => lines.push(format!("listen {address};")),
            _ => lines.push(line.to_owned()),
        }
    }
    let at = dir.display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("{name}_temp_path {at}/{name};\n"))
        .concat();
    let all = format!(
        "daemon off; master_process off; pid {at}/nginx.pid; error_log {at}/nginx.log;\n\
         events {{ worker_connections 1024; }}\n\
         http {{ access_log off;\n{temporary}{}\n}}\n",
        lines.join("\n")
    );
    let path = dir.join("nginx.conf");
    std::fs::write(&path, all)?;
    let mut nginx = Command::new("nginx")
        .arg("-p")
        .arg(dir)
        .arg("-e")
        .arg(dir.join("nginx.log"))
        .arg("-c")
        .arg(path)
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    while tokio::net::TcpStream::connect(address).await.is_err() {
        if let Some(status) = nginx.try_wait()? {
            let log = std::fs::read_to_string(dir.join("nginx.log")).unwrap_or_default();
            return Err(format!("nginx ends with {status}: {log}").into());
        }
        sleep(Duration::from_millis(10)).await;
    }
    Ok(nginx)
}

/// An address that a server can use again after it was killed: its port is not in the range from
/// which the system assigns ports.
pub fn free_address(seed: u64) -> Result<SocketAddr, Error> {
    let mut rng = Rng::new(seed ^ now());
    for _ in 0..100 {
        let port = 20_000 + rng.below(12_000) as u16;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if TcpListener::bind(address).is_ok() {
            return Ok(address);
        }
    }
    Err("no free port".into())
}
