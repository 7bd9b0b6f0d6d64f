//! A strict client of the IETF draft: it checks each requirement of servers that it can see.
//!
//! It speaks the newest interop version, or an older one, over a socket of its own. `e2e/ietf` uses
//! it too.

use std::{io, net::SocketAddr, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{sleep, timeout},
};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// How often a request without an answer is sent again.
const TRIES: usize = 400;

/// A response, interim or final.
#[derive(Clone, Debug)]
pub struct Message {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Message {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    pub fn offset(&self) -> Option<u64> {
        self.header("upload-offset")?.parse().ok()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// What came in answer to a request.
#[derive(Clone, Debug, Default)]
pub struct Heard {
    pub interims: Vec<Message>,
    /// `None` if the connection has ended before.
    pub answer: Option<Message>,
}

impl Heard {
    /// The `Location` of the interim responses.
    pub fn location(&self) -> Option<String> {
        let mut interims = self.interims.iter();
        interims.find_map(|it| Some(it.header("location")?.to_owned()))
    }

    #[track_caller]
    pub fn answer(&self) -> &Message {
        self.answer.as_ref().expect("a final response")
    }
}

/// A connection for one request.
pub struct Exchange {
    socket: TcpStream,
    read: Vec<u8>,
    pub heard: Heard,
    has_ended: bool,
}

impl Exchange {
    /// Connects and sends the head of a request. `len` is that of its content.
    pub async fn begin(
        addr: SocketAddr,
        method: &str,
        target: &str,
        headers: &[(String, String)],
        len: Option<usize>,
    ) -> io::Result<Self> {
        let mut head = format!("{method} {target} HTTP/1.1\r\nhost: {addr}\r\nconnection: close");
        for (name, value) in headers {
            head += &format!("\r\n{name}: {value}");
        }
        if let Some(len) = len {
            head += &format!("\r\ncontent-length: {len}");
        }
        head += "\r\n\r\n";
        let mut socket = TcpStream::connect(addr).await?;
        socket.set_nodelay(true)?;
        socket.write_all(head.as_bytes()).await?;
        Ok(Self {
            socket,
            read: Vec::new(),
            heard: Heard::default(),
            has_ended: false,
        })
    }

    pub async fn send(&mut self, content: &[u8]) -> io::Result<()> {
        self.socket.write_all(content).await
    }

    /// Waits for an interim response with the status 104, or the end.
    pub async fn until_announced(&mut self) -> io::Result<()> {
        while !self.heard.interims.iter().any(|it| it.status == 104)
            && self.heard.answer.is_none()
            && !self.has_ended
        {
            self.hear().await?;
        }
        Ok(())
    }

    /// Waits for an interim response that tells an offset, or the end.
    pub async fn until_progress(&mut self) -> io::Result<()> {
        while !self.heard.interims.iter().any(|it| it.offset().is_some())
            && self.heard.answer.is_none()
            && !self.has_ended
        {
            self.hear().await?;
        }
        Ok(())
    }

    /// Waits for the final response, or the end of the connection.
    pub async fn finish(mut self) -> io::Result<Heard> {
        while !self.has_ended {
            self.hear().await?;
        }
        Ok(self.heard)
    }

    /// Ends the connection in the middle of the request.
    pub fn cut(self, resets: bool) -> Heard {
        if resets {
            // Fails only if the connection has ended.
            let _ = self.socket.set_zero_linger();
        }
        self.heard
    }

    async fn hear(&mut self) -> io::Result<()> {
        let mut piece = [0; 16 << 10];
        let read = timeout(PATIENCE, self.socket.read(&mut piece));
        let read = read.await.map_err(|_| io::ErrorKind::TimedOut)?;
        match read {
            Ok(0) => self.has_ended = true,
            Ok(len) => self.read.extend_from_slice(&piece[..len]),
            // The server has closed without reading all of the request.
            Err(_) if self.heard.answer.is_some() => self.has_ended = true,
            Err(error) => return Err(error),
        }
        self.parse();
        Ok(())
    }

    fn parse(&mut self) {
        if let Some(answer) = &mut self.heard.answer {
            answer.body.append(&mut self.read);
            return;
        }
        let is_end = |window: &[u8]| window == b"\r\n\r\n";
        while let Some(end) = self.read.windows(4).position(is_end) {
            let head: Vec<u8> = self.read.drain(..end + 4).collect();
            let message = parse_head(&head);
            if (100..200).contains(&message.status) {
                self.heard.interims.push(message);
            } else {
                self.heard.answer = Some(message);
                return self.parse();
            }
        }
    }
}

fn parse_head(head: &[u8]) -> Message {
    let head = std::str::from_utf8(head).expect("a head is text");
    let mut lines = head.trim_end().split("\r\n");
    let line = lines.next().unwrap_or_default();
    let status = line.strip_prefix("HTTP/1.1 ").expect("a status line");
    let mut headers = HeaderMap::new();
    for line in lines {
        let (name, value) = line.split_once(':').expect("a header");
        headers.append(
            name.parse::<HeaderName>().expect("a name"),
            HeaderValue::from_str(value.trim()).expect("a value"),
        );
    }
    Message {
        status: status[..3].parse().expect("a status"),
        headers,
        body: Vec::new(),
    }
}

/// The client. A broken requirement is a panic.
#[derive(Clone, Debug)]
pub struct Draft {
    pub addr: SocketAddr,
    /// The path of the resource to which files are uploaded.
    pub target: String,
    /// The interop version.
    pub version: Option<u8>,
    /// Headers of creations.
    pub headers: Vec<(String, String)>,
}

/// How an upload has ended.
#[derive(Debug)]
pub struct Uploaded {
    pub answer: Message,
    /// How many times it was resumed.
    pub resumed: usize,
    /// The bytes that were sent again.
    pub again: u64,
}

impl Draft {
    pub fn new(addr: SocketAddr, target: &str, version: Option<u8>) -> Self {
        Self {
            addr,
            target: target.to_owned(),
            version,
            headers: Vec::new(),
        }
    }

    fn inverts(&self) -> bool {
        self.version == Some(3)
    }

    fn number(&self) -> u8 {
        self.version.unwrap_or(8)
    }

    /// The header that says whether the upload is complete.
    pub fn complete(&self, is_complete: bool) -> (String, String) {
        let name = if self.inverts() {
            "upload-incomplete"
        } else {
            "upload-complete"
        };
        let value = if is_complete != self.inverts() {
            "?1"
        } else {
            "?0"
        };
        (name.to_owned(), value.to_owned())
    }

    fn with_version(&self, mut headers: Vec<(String, String)>) -> Vec<(String, String)> {
        if let Some(version) = self.version {
            headers.push(("upload-draft-interop-version".into(), version.to_string()));
        }
        headers
    }

    /// The headers of a request that creates an upload.
    pub fn creating(&self, is_complete: bool, length: Option<usize>) -> Vec<(String, String)> {
        let mut headers = self.headers.clone();
        headers.push(self.complete(is_complete));
        if let Some(length) = length.filter(|_| self.number() >= 6) {
            headers.push(("upload-length".into(), length.to_string()));
        }
        self.with_version(headers)
    }

    /// The headers of a request that appends.
    pub fn appending(&self, offset: u64, is_complete: bool) -> Vec<(String, String)> {
        let mut headers = vec![
            ("upload-offset".into(), offset.to_string()),
            self.complete(is_complete),
        ];
        if self.number() >= 6 {
            headers.push(("content-type".into(), "application/partial-upload".into()));
        }
        self.with_version(headers)
    }

    /// Sends a request and waits for its answer.
    pub async fn ask(
        &self,
        method: &str,
        target: &str,
        headers: Vec<(String, String)>,
        content: Option<&[u8]>,
    ) -> io::Result<Heard> {
        let len = content.map(<[u8]>::len);
        let mut exchange = Exchange::begin(self.addr, method, target, &headers, len).await?;
        // The server may answer without reading the content.
        let _ = exchange.send(content.unwrap_or_default()).await;
        let heard = exchange.finish().await?;
        self.check(method, &heard);
        Ok(heard)
    }

    pub async fn head(&self, url: &str) -> io::Result<Message> {
        let heard = self
            .ask("HEAD", url, self.with_version(Vec::new()), None)
            .await?;
        heard
            .answer
            .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    pub async fn delete(&self, url: &str) -> io::Result<Message> {
        let heard = self
            .ask("DELETE", url, self.with_version(Vec::new()), None)
            .await?;
        heard
            .answer
            .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    /// What holds for the responses to each request.
    fn check(&self, method: &str, heard: &Heard) {
        let creates = method == "POST";
        let mut told = 0;
        for interim in &heard.interims {
            assert!([100, 104].contains(&interim.status), "{interim:?}");
            if interim.status == 100 {
                continue;
            }
            let version = self.version.expect("104 for a client without a version");
            let echoed = interim.header("upload-draft-interop-version");
            assert_eq!(echoed, Some(&*version.to_string()), "{interim:?}");
            let (location, offset) = (interim.header("location"), interim.offset());
            assert!(location.is_some() != offset.is_some(), "{interim:?}");
            assert!(creates || location.is_none(), "{interim:?}");
            if location.is_some() && self.number() >= 6 {
                self.check_limit(interim);
            }
            if let Some(offset) = offset {
                assert!(offset > told, "progress goes on: {interim:?}");
                told = offset;
            }
        }
        let Some(answer) = &heard.answer else {
            return;
        };
        assert!(![301, 302].contains(&answer.status), "{answer:?}");
        if self.inverts() {
            assert!(answer.header("upload-complete").is_none(), "{answer:?}");
        } else {
            assert!(answer.header("upload-incomplete").is_none(), "{answer:?}");
        }
        let is_final = self.is_final(answer);
        if creates && answer.status < 300 && is_final == Some(false) {
            let location = answer.header("location");
            assert!(location.is_some(), "{answer:?}");
            let announced = heard.location();
            assert!(
                announced.is_none() || announced.as_deref() == location,
                "{heard:?}"
            );
            if self.number() >= 6 {
                self.check_limit(answer);
            }
        }
        if answer.status == 409 && is_final == Some(false) {
            assert!(answer.offset().is_some(), "{answer:?}");
        }
        let told_at_the_end = answer.offset().filter(|_| answer.status < 300);
        assert!(
            told_at_the_end.is_none_or(|offset| offset >= told),
            "{heard:?}"
        );
    }

    fn check_limit(&self, message: &Message) {
        let limit = message.header("upload-limit").expect("a limit");
        for member in limit.split(", ") {
            let (key, value) = member.split_once('=').expect("a dictionary");
            let keys = ["max-size", "min-size", "max-append-size", "min-append-size"];
            let age = if self.number() == 6 {
                "expires"
            } else {
                "max-age"
            };
            assert!(keys.contains(&key) || key == age, "{limit}");
            assert!(
                value
                    .parse::<u64>()
                    .is_ok_and(|it| it < 1_000_000_000_000_000)
            );
        }
    }

    /// Whether an answer says that the upload is over.
    pub fn is_final(&self, answer: &Message) -> Option<bool> {
        let (name, _) = self.complete(true);
        match answer.header(&name)? {
            "?1" => Some(!self.inverts()),
            "?0" => Some(self.inverts()),
            other => panic!("{name}: {other}"),
        }
    }

    /// Asks until the server says how many bytes it has. `sent` is how many it can have, and
    /// `before` how many it had.
    async fn offset(&self, url: &str, sent: u64, before: u64, length: u64) -> Message {
        for _ in 0..TRIES {
            match self.head(url).await {
                Ok(answer) if answer.status < 300 => {
                    let offset = answer.offset().expect("an offset");
                    assert!(offset <= sent, "{offset} of {sent}");
                    assert!(
                        offset >= before,
                        "the offset went from {before} to {offset}"
                    );
                    assert!(self.is_final(&answer).is_some(), "{answer:?}");
                    let declared = answer.header("upload-length");
                    assert_eq!(declared, Some(&*length.to_string()), "{answer:?}");
                    assert_eq!(answer.header("cache-control"), Some("no-store"));
                    if self.number() >= 6 {
                        self.check_limit(&answer);
                    }
                    return answer;
                }
                Ok(answer) => assert!(answer.status >= 500, "{answer:?}"),
                Err(_) => {}
            }
            sleep(Duration::from_millis(25)).await;
        }
        panic!("no offset of {url}");
    }

    /// Uploads a file in one request, as URLSession does, and resumes it after each cut. `cuts` are
    /// positions in the file, and say whether the connection is reset.
    pub async fn upload(&self, content: &[u8], cuts: &[(usize, bool)]) -> Uploaded {
        let length = content.len() as u64;
        let mut cuts = cuts.iter().copied().peekable();
        let headers = self.creating(true, Some(content.len()));
        let mut exchange = Exchange::begin(
            self.addr,
            "POST",
            &self.target,
            &headers,
            Some(content.len()),
        )
        .await
        .unwrap();
        exchange.until_announced().await.unwrap();
        let url = exchange.heard.location().expect("a location in 104");
        let (mut at, mut resumed, mut again) = (0, 0, 0);
        let mut stored = 0;
        let mut method = "POST";
        for _ in 0..TRIES {
            while cuts.next_if(|(cut, _)| *cut < at).is_some() {}
            let cut = cuts.next();
            let end = cut.map_or(content.len(), |(cut, _)| cut);
            // It fails if the server has ended the request.
            let is_sent = exchange.send(&content[at..end]).await.is_ok();
            let heard = match cut {
                Some((_, resets)) => exchange.cut(resets),
                None => exchange.finish().await.unwrap_or_default(),
            };
            self.check(method, &heard);
            let progress = heard.interims.iter().filter_map(Message::offset).max();
            stored = stored.max(progress.unwrap_or_default());
            if let Some(answer) = heard.answer.filter(|_| is_sent || cut.is_none()) {
                if self.is_final(&answer) == Some(true) {
                    assert!(answer.offset().is_none_or(|it| it == length), "{answer:?}");
                    return Uploaded {
                        answer,
                        resumed,
                        again,
                    };
                }
                // The server may have read the request that was cut after the question about the
                // offset: then it has more bytes.
                let is_late = answer.status == 409 && answer.offset() > Some(stored);
                assert!(answer.status >= 500 || is_late, "{answer:?}");
                sleep(Duration::from_millis(25)).await;
            }
            let told = self.offset(&url, end as u64, stored, length).await;
            stored = told.offset().unwrap_or_default();
            again += end as u64 - stored;
            at = stored as usize;
            resumed += 1;
            let headers = self.appending(stored, true);
            let rest = content.len() - at;
            method = "PATCH";
            let mut begun = Err(io::ErrorKind::NotConnected.into());
            for _ in 0..TRIES {
                begun = Exchange::begin(self.addr, method, &url, &headers, Some(rest)).await;
                if begun.is_ok() {
                    break;
                }
                sleep(Duration::from_millis(25)).await;
            }
            exchange = begun.unwrap();
        }
        panic!("{url} does not end");
    }
}
