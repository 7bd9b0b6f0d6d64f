//! A client of uploads that have a URL, for the crash tests and the tests with buckets. It speaks
//! tus 1.0 and the IETF draft.
//!
//! It checks what it is told: an offset stays, and no request adds bytes once a newer one was told
//! the offset.

use std::{
    io::{self, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long to wait before a request is sent again.
const PAUSE: Duration = Duration::from_millis(20);

/// More tries than the time limits of the tests allow, but a finite number.
const TRIES: usize = 5000;

/// What a client uploads, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Tus,
    Draft,
    /// Parts of tus, which become one file.
    Concat,
}

#[derive(Clone, Debug)]
pub struct Settings {
    pub kind: Kind,
    /// The most bytes of a request.
    pub step: u64,
    /// The bytes that are sent at once, and the pause after them.
    pub piece: usize,
    pub pause: Duration,
    /// Whether the client cuts some requests, and lets others stall while it goes on.
    pub is_wild: bool,
    pub path: String,
    /// Lines that each request has.
    pub headers: String,
    pub seed: u64,
}

/// A client in a thread of its own.
pub struct Task {
    pub content: Vec<u8>,
    state: Arc<Mutex<State>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// What a client has seen.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// The token of the file, once it is known.
    pub token: Option<String>,
    /// The number of pieces that were sent, and of answers.
    pub noted: usize,
    /// The number of requests that were sent again.
    pub repeats: u64,
    /// The bytes that were told to be stored.
    pub told: u64,
    /// The bytes that were told to be stored, and were not there later.
    pub lost: u64,
    pub wrong: Vec<String>,
    pub has_ended: bool,
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Task {
    /// Starts a client. It sends its requests to these addresses in turn.
    pub fn start(
        content: Vec<u8>,
        settings: Settings,
        addresses: Arc<Mutex<Vec<SocketAddr>>>,
    ) -> Self {
        let (state, stop) = (Arc::default(), Arc::default());
        let mut client = Client {
            rng: settings.seed,
            settings,
            addresses,
            turn: 0,
            state: Arc::clone(&state),
            stop: Arc::clone(&stop),
            stalled: Vec::new(),
        };
        let bytes = content.clone();
        let thread = thread::spawn(move || {
            if let Err(what) = client.upload(&bytes) {
                lock(&client.state).wrong.push(what);
            }
            lock(&client.state).has_ended = true;
        });
        Self {
            content,
            state,
            stop,
            thread: Some(thread),
        }
    }

    pub fn state(&self) -> State {
        lock(&self.state).clone()
    }

    pub fn has_ended(&self) -> bool {
        lock(&self.state).has_ended
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Client {
    settings: Settings,
    addresses: Arc<Mutex<Vec<SocketAddr>>>,
    /// The number of connections.
    turn: usize,
    rng: u64,
    state: Arc<Mutex<State>>,
    stop: Arc<AtomicBool>,
    /// Requests that the server reads, and what is left of their bodies.
    stalled: Vec<(TcpStream, Vec<u8>)>,
}

/// An upload, as far as its client knows it.
struct Known<'a> {
    url: String,
    bytes: &'a [u8],
    /// The last offset that was told.
    told: u64,
    /// Whether no request was begun since.
    is_sure: bool,
    /// Up to where bytes were sent.
    sent: u64,
}

#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        let found = lines.find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value)
    }

    fn offset(&self) -> Option<u64> {
        self.header("upload-offset")?.parse().ok()
    }

    /// Whether the layer has answered, and not something in front of it.
    fn is_of_layer(&self) -> bool {
        let names = ["tus-resumable", "upload-complete"];
        names.iter().any(|name| self.header(name).is_some())
    }
}

impl Client {
    fn upload(&mut self, content: &[u8]) -> Result<(), String> {
        if self.settings.kind == Kind::Concat {
            return self.concat(content);
        }
        let url = match self.settings.kind {
            Kind::Draft => self.create("upload-complete: ?0\r\n")?,
            _ => self.create(&format!(
                "tus-resumable: 1.0.0\r\nupload-length: {}\r\n",
                content.len()
            ))?,
        };
        lock(&self.state).token = token_of(&url);
        self.fill(url, content, 0)
    }

    fn concat(&mut self, content: &[u8]) -> Result<(), String> {
        let mut urls = Vec::new();
        for part in content.chunks(content.len().div_ceil(3).max(1)) {
            let url = self.create(&format!(
                "tus-resumable: 1.0.0\r\nupload-concat: partial\r\nupload-length: {}\r\n",
                part.len()
            ))?;
            self.fill(url.clone(), part, 0)?;
            urls.push(url);
        }
        let headers = format!(
            "tus-resumable: 1.0.0\r\nupload-concat: final;{}\r\n",
            urls.join(" ")
        );
        let url = self.create(&headers)?;
        lock(&self.state).token = token_of(&url);
        // Its bytes are those of the parts.
        self.fill(url.clone(), content, content.len() as u64)?;
        // The same request finds the same upload.
        let again = self.create(&headers)?;
        if again != url {
            return Err(format!("{again} instead of {url}"));
        }
        Ok(())
    }

    /// Creates an upload and returns its URL. An upload whose answer was lost is never complete.
    fn create(&mut self, headers: &str) -> Result<String, String> {
        let path = self.settings.path.clone();
        for _ in 0..TRIES {
            match self.ask("POST", &path, headers) {
                Ok(answer) if answer.status == 201 => {
                    let url = answer.header("location").map(ToOwned::to_owned);
                    return url.ok_or_else(|| format!("no URL: {answer:?}"));
                }
                Ok(answer) if answer.status != 423 && answer.status < 500 => {
                    return Err(format!("POST {headers:?}: {answer:?}"));
                }
                _ => self.rest()?,
            }
        }
        Err(format!("POST {headers:?} never succeeds"))
    }

    /// Appends bytes until all are stored, and the file is delivered unless it is a part. `sent` of
    /// them were sent before.
    fn fill(&mut self, url: String, bytes: &[u8], sent: u64) -> Result<(), String> {
        let mut known = Known {
            url,
            bytes,
            told: 0,
            is_sure: false,
            sent,
        };
        for _ in 0..TRIES {
            if !known.is_sure || self.below(2) == 0 {
                match self.look(&mut known)? {
                    Some(true) => return Ok(()),
                    Some(false) => {}
                    None => {
                        self.rest()?;
                        continue;
                    }
                }
                self.go_on_with_stalled(&mut known)?;
            }
            if self.append(&mut known)? {
                return Ok(());
            }
            if !known.is_sure {
                self.rest()?;
            }
        }
        Err(format!("{} never ends", known.url))
    }

    /// Asks for the offset. Returns whether the upload has ended, or `None` if there is no answer.
    fn look(&mut self, known: &mut Known<'_>) -> Result<Option<bool>, String> {
        let is_tus = self.settings.kind != Kind::Draft;
        let headers = if is_tus {
            "tus-resumable: 1.0.0\r\n"
        } else {
            ""
        };
        let Ok(answer) = self.ask("HEAD", &known.url, headers) else {
            return Ok(None);
        };
        if [200, 204].contains(&answer.status) {
            let offset = answer
                .offset()
                .ok_or_else(|| format!("no offset: {answer:?}"))?;
            self.tell(known, offset, "HEAD")?;
            let is_whole = offset == known.bytes.len() as u64;
            let is_over = answer.header("upload-complete") == Some("?1");
            return Ok(Some(is_whole && (is_tus || is_over)));
        }
        // tus-js-client would begin anew.
        let is_unwanted = is_tus && answer.status >= 500 && answer.is_of_layer();
        if is_unwanted || answer.status < 500 && answer.status != 423 {
            return Err(format!("HEAD {}: {answer:?}", known.url));
        }
        Ok(None)
    }

    /// Notes an offset that was told.
    fn tell(&mut self, known: &mut Known<'_>, offset: u64, by: &str) -> Result<(), String> {
        let mut state = lock(&self.state);
        if offset > known.sent || known.is_sure && offset > known.told {
            let (told, sent) = (known.told, known.sent);
            return Err(format!(
                "{by} {}: offset {offset} after {told}, {sent} bytes were sent",
                known.url
            ));
        }
        if offset < known.told {
            let what = format!("{by} {}: offset {offset} after {}", known.url, known.told);
            state.lost += known.told - offset;
            state.wrong.push(what);
        } else {
            state.told += offset - known.told;
        }
        known.told = offset;
        known.is_sure = true;
        Ok(())
    }

    /// Sends the rest of the requests that stalled, which must not change the offset.
    fn go_on_with_stalled(&mut self, known: &mut Known<'_>) -> Result<(), String> {
        if self.stalled.is_empty() {
            return Ok(());
        }
        for (mut socket, rest) in std::mem::take(&mut self.stalled) {
            // The server may have closed the connection, or may be dead.
            let _ = socket.write_all(&rest);
            if let Ok(answer) = read_answer(&mut socket) {
                if answer.status < 400 {
                    return Err(format!("an ended request: {answer:?}"));
                }
            }
        }
        for _ in 0..TRIES {
            if self.look(known)?.is_some() {
                return Ok(());
            }
            self.rest()?;
        }
        Err(format!("no offset of {}", known.url))
    }

    /// Appends some bytes. Returns whether the upload has ended.
    fn append(&mut self, known: &mut Known<'_>) -> Result<bool, String> {
        let len = known.bytes.len() as u64;
        let left = len - known.told;
        let step = match self.below(4) {
            0 => left,
            _ => left.min(1 + self.below(self.settings.step)),
        };
        let end = known.told + step;
        let headers = match self.settings.kind {
            Kind::Draft => {
                let complete = if end == len { "?1" } else { "?0" };
                format!(
                    "content-type: application/partial-upload\r\nupload-complete: {complete}\r\n"
                )
            }
            _ => "tus-resumable: 1.0.0\r\ncontent-type: application/offset+octet-stream\r\n".into(),
        };
        let was_sure = std::mem::replace(&mut known.is_sure, false);
        let Ok(answer) = self.patch(known, end, &headers) else {
            return Ok(false);
        };
        let Some(answer) = answer else {
            // The client has ended it.
            return Ok(false);
        };
        match answer.status {
            // Also the answer of the application.
            200..300 => {
                known.is_sure = false;
                let told = answer.offset();
                if told.is_some_and(|told| told != end) {
                    return Err(format!("PATCH {} up to {end}: {answer:?}", known.url));
                }
                self.tell(known, end, "PATCH")?;
                let is_tus = self.settings.kind != Kind::Draft;
                let is_over = answer.header("upload-complete") == Some("?1");
                if !is_tus && end == len && !is_over {
                    return Err(format!("not the final answer: {answer:?}"));
                }
                Ok(end == len)
            }
            409 => {
                let stored = answer.offset();
                let stored = stored.ok_or_else(|| format!("no offset: {answer:?}"))?;
                known.is_sure = was_sure;
                self.tell(known, stored, "409 of PATCH")?;
                Ok(false)
            }
            423 => Ok(false),
            500.. => Ok(false),
            _ => Err(format!("PATCH {} up to {end}: {answer:?}", known.url)),
        }
    }

    /// Sends the bytes up to `end`. `None` if the client does not wait for the answer.
    fn patch(
        &mut self,
        known: &mut Known<'_>,
        end: u64,
        headers: &str,
    ) -> io::Result<Option<Answer>> {
        let body = &known.bytes[known.told as usize..end as usize];
        // The server reads the body once it has said so. A request after that is a newer one.
        let expects = if body.is_empty() {
            ""
        } else {
            "expect: 100-continue\r\n"
        };
        let headers = format!(
            "{headers}upload-offset: {}\r\ncontent-length: {}\r\n{expects}",
            known.told,
            body.len()
        );
        let mut socket = self.begin("PATCH", &known.url, &headers)?;
        if !body.is_empty() {
            let answer = read_head(&mut socket)?;
            if answer.status != 100 {
                return Ok(Some(answer));
            }
        }
        known.sent = known.sent.max(end);
        let fate = if self.settings.is_wild && !body.is_empty() {
            self.below(6)
        } else {
            6
        };
        let now = match fate {
            0 | 1 => self.below(body.len() as u64) as usize,
            _ => body.len(),
        };
        for piece in body[..now].chunks(self.settings.piece) {
            if socket.write_all(piece).is_err() {
                // Perhaps the server has answered.
                break;
            }
            lock(&self.state).noted += 1;
            thread::sleep(self.settings.pause);
        }
        match fate {
            0 => {
                let _ = socket.shutdown(Shutdown::Both);
                Ok(None)
            }
            1 => {
                self.stalled.push((socket, body[now..].to_vec()));
                Ok(None)
            }
            _ => {
                let answer = read_answer(&mut socket)?;
                lock(&self.state).noted += 1;
                Ok(Some(answer))
            }
        }
    }

    fn ask(&mut self, method: &str, target: &str, headers: &str) -> io::Result<Answer> {
        let headers = format!("{headers}content-length: 0\r\n");
        let mut socket = self.begin(method, target, &headers)?;
        let answer = read_answer(&mut socket)?;
        lock(&self.state).noted += 1;
        Ok(answer)
    }

    fn begin(&mut self, method: &str, target: &str, headers: &str) -> io::Result<TcpStream> {
        self.turn += 1;
        let address = {
            let addresses = lock(&self.addresses);
            let turn = self.turn % addresses.len().max(1);
            addresses.get(turn).copied()
        };
        let address = address.ok_or(io::ErrorKind::NotConnected)?;
        let mut socket = TcpStream::connect(address)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        let head = format!(
            "{method} {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{}{headers}\r\n",
            self.settings.headers
        );
        socket.write_all(head.as_bytes())?;
        Ok(socket)
    }

    /// Waits before the next try.
    fn rest(&mut self) -> Result<(), String> {
        lock(&self.state).repeats += 1;
        thread::sleep(PAUSE);
        if self.stop.load(Relaxed) {
            return Err("stopped".into());
        }
        Ok(())
    }

    /// A SplitMix64 generator.
    fn below(&mut self, end: u64) -> u64 {
        self.rng = self.rng.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.rng ^ (self.rng >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end.max(1)
    }
}

fn token_of(url: &str) -> Option<String> {
    url.split_once("upload=").map(|(_, token)| token.to_owned())
}

/// Reads the head of a response, byte for byte: its body may be of no interest.
fn read_head(socket: &mut TcpStream) -> io::Result<Answer> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        socket.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let status = head.get(9..12).and_then(|status| status.parse().ok());
    let status = status.ok_or(io::ErrorKind::InvalidData)?;
    Ok(Answer { status, head })
}

fn read_answer(socket: &mut TcpStream) -> io::Result<Answer> {
    loop {
        let answer = read_head(socket)?;
        if answer.status >= 200 {
            return Ok(answer);
        }
    }
}
