//! Uploads that have a URL, of tus 1.0 and of the IETF draft, and the requests for them.

use base64::{Engine as _, prelude::BASE64_STANDARD};

use crate::{
    common,
    wire::Answer,
    world::{ATTACKER, DELIVERED, Delivery, NEIGHBOUR, World, is_harmless},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Tus,
    Draft,
}

pub const BOTH: [Protocol; 2] = [Protocol::Tus, Protocol::Draft];

/// The bytes of each file, and how many of them are stored when an attack begins.
pub const LEN: usize = 25;
pub const STORED: usize = 10;

/// The media types of appended bytes.
const TUS_TYPE: &str = "application/offset+octet-stream";
const DRAFT_TYPE: &str = "application/partial-upload";

/// One request. Each part of it can be changed.
#[derive(Clone, Debug)]
pub struct Ask {
    pub method: String,
    target: String,
    headers: Vec<(String, Vec<u8>)>,
    pub body: Vec<u8>,
    /// Header lines and bytes in place of the ones that declare the length of the body.
    framed: Option<(String, Vec<u8>)>,
}

impl Ask {
    pub fn new(user: &str, method: &str, target: &str) -> Self {
        Self {
            method: method.into(),
            target: target.into(),
            headers: vec![("x-user".into(), user.into())],
            body: Vec::new(),
            framed: None,
        }
    }

    /// Adds a header.
    pub fn with(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.headers.push((name.into(), value.as_ref().to_vec()));
        self
    }

    pub fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(known, _)| known != name);
        self
    }

    /// The same request with another method.
    pub fn by(mut self, method: &str) -> Self {
        self.method = method.into();
        self
    }

    /// Replaces a header.
    pub fn set(self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.without(name).with(name, value)
    }

    pub fn body(mut self, body: &[u8]) -> Self {
        self.body = body.to_vec();
        self
    }

    /// Sends the body in one chunk of unknown length, with these trailers.
    pub fn chunked(mut self, trailers: &str) -> Self {
        let mut framed = Vec::new();
        if !self.body.is_empty() {
            framed.extend(format!("{:x}\r\n", self.body.len()).into_bytes());
            framed.extend(&self.body);
            framed.extend(b"\r\n");
        }
        framed.extend(format!("0\r\n{trailers}\r\n").into_bytes());
        self.framed = Some(("transfer-encoding: chunked\r\n".into(), framed));
        self
    }

    pub fn head(&self) -> Vec<u8> {
        let mut head = format!("{} {} HTTP/1.1\r\nhost: x\r\n", self.method, self.target);
        // The answer to `HEAD` has a length and no body.
        head += "connection: close\r\n";
        match &self.framed {
            Some((lines, _)) => head += lines,
            None => head += &format!("content-length: {}\r\n", self.body.len()),
        }
        let mut head = head.into_bytes();
        for (name, value) in &self.headers {
            head.extend([name.as_bytes(), b": ", value, b"\r\n"].concat());
        }
        head.extend(b"\r\n");
        head
    }

    pub fn bytes(&self) -> Vec<u8> {
        let body = self.framed.as_ref().map_or(&self.body, |(_, bytes)| bytes);
        [&self.head()[..], body].concat()
    }
}

impl Protocol {
    /// A request that creates an upload of [`LEN`] bytes, without any of them.
    pub fn create(self, user: &str) -> Ask {
        let ask = Ask::new(user, "POST", "/upload").with("upload-length", LEN.to_string());
        match self {
            Self::Tus => ask.with("tus-resumable", "1.0.0"),
            Self::Draft => ask.with("upload-complete", "?0"),
        }
    }

    /// A request for the upload with this URL.
    pub fn ask(self, user: &str, method: &str, url: &str) -> Ask {
        let ask = Ask::new(user, method, url);
        match self {
            Self::Tus => ask.with("tus-resumable", "1.0.0"),
            Self::Draft => ask,
        }
    }

    pub fn append(self, user: &str, url: &str, offset: usize, body: &[u8], ends: bool) -> Ask {
        let ask = self.ask(user, "PATCH", url).body(body);
        let ask = ask.with("upload-offset", offset.to_string());
        match self {
            Self::Tus => ask.with("content-type", TUS_TYPE),
            Self::Draft => ask
                .with("content-type", DRAFT_TYPE)
                .with("upload-complete", if ends { "?1" } else { "?0" }),
        }
    }

    /// The status of the answer to a `HEAD`.
    pub fn looked(self) -> u16 {
        match self {
            Self::Tus => 200,
            Self::Draft => 204,
        }
    }

    /// Asserts that an answer is of this protocol.
    pub fn is_spoken(self, answer: &Answer) {
        match self {
            Self::Tus => assert_eq!(answer.header("tus-resumable"), Some("1.0.0"), "{answer:?}"),
            Self::Draft => {
                let told = answer
                    .header("upload-complete")
                    .or(answer.header("upload-incomplete"));
                assert!(told.is_some(), "{answer:?}");
            }
        }
    }
}

/// An upload whose first bytes are stored.
#[derive(Clone, Debug)]
pub struct Upload {
    pub protocol: Protocol,
    pub user: String,
    pub url: String,
    pub content: Vec<u8>,
    pub stored: usize,
}

impl Upload {
    /// Creates an upload of the file and stores its first [`STORED`] bytes.
    pub async fn begin(world: &World, protocol: Protocol, user: &str) -> Self {
        let creation = protocol.create(user);
        Self::begin_as(world, protocol, user, creation).await
    }

    pub async fn begin_as(world: &World, protocol: Protocol, user: &str, creation: Ask) -> Self {
        let mut upload = Self {
            protocol,
            user: user.into(),
            url: created(world, protocol, user, &creation).await,
            content: content_of(user),
            stored: 0,
        };
        upload.store(world, STORED).await;
        upload
    }

    pub fn token(&self) -> &str {
        self.url.split_once("upload=").unwrap().1
    }

    pub fn append(&self, offset: usize, body: &[u8]) -> Ask {
        let ends = offset + body.len() == self.content.len();
        let (protocol, user) = (self.protocol, &*self.user);
        protocol.append(user, &self.url, offset, body, ends)
    }

    pub fn ask(&self, method: &str) -> Ask {
        self.protocol.ask(&self.user, method, &self.url)
    }

    /// Stores the bytes up to `end`.
    pub async fn store(&mut self, world: &World, end: usize) {
        let ask = self.append(self.stored, &self.content[self.stored..end]);
        let answer = world.quiet_bytes(ask.bytes()).await;
        assert!([200, 204].contains(&answer.status), "{self:?} {answer:?}");
        self.stored = end;
    }

    /// Asserts that what was stored is still there, and nothing else.
    pub async fn is_as_before(&self, world: &World, when: &str) {
        let answer = world.quiet_bytes(self.ask("HEAD").bytes()).await;
        let told = answer.header("upload-offset");
        assert_eq!(
            (answer.status, told),
            (self.protocol.looked(), Some(&*self.stored.to_string())),
            "after {when}: {answer:?}"
        );
    }

    /// Sends the rest, and checks that the file was delivered once.
    pub async fn finish(mut self, world: &World) {
        self.store(world, self.content.len()).await;
        let delivery = world.delivery_at(self.token());
        assert!(delivery.content == self.content, "other bytes: {self:?}");
        assert_eq!(delivery.upload.scope().as_str(), self.user);
        is_harmless_file(world, &delivery);
    }

    pub async fn discard(self, world: &World) {
        let answer = world.quiet_bytes(self.ask("DELETE").bytes()).await;
        assert_eq!(answer.status, 204, "{answer:?}");
    }
}

/// Creates an upload and returns its URL.
pub async fn created(world: &World, protocol: Protocol, user: &str, creation: &Ask) -> String {
    world.watch(user);
    let answer = world.quiet_bytes(creation.bytes()).await;
    assert_eq!(answer.status, 201, "{creation:?} {answer:?}");
    protocol.is_spoken(&answer);
    answer.header("location").unwrap().to_owned()
}

/// Different users have different bytes.
pub fn content_of(user: &str) -> Vec<u8> {
    let seed = user.bytes().fold(0, |sum: u8, byte| sum ^ byte);
    let content = common::File::new("x", LEN).content;
    content.iter().map(|byte| byte ^ seed).collect()
}

pub fn base64(text: impl AsRef<[u8]>) -> String {
    BASE64_STANDARD.encode(text)
}

/// Asserts that the name of a delivered file is safe.
pub fn is_harmless_file(world: &World, delivery: &Delivery) {
    let upload = &delivery.upload;
    assert!(is_harmless(&upload.safe_file_name()), "{upload:?}");
    if let Some(path) = upload.path() {
        assert!(path.starts_with(world.root.join("files")), "{path:?}");
        let name = path.file_name().and_then(|name| name.to_str()).unwrap();
        assert!(is_harmless(name), "{name:?}");
    }
}

/// An attack, what it is, and the status that it has to get.
pub type Attack = (String, Ask, u16);

/// Sends attacks that have to be refused, while an upload of the attacker and one of a neighbour
/// are stored in part. After each attack, nothing may have changed. Then finishes both.
pub async fn refused(
    world: &World,
    protocol: Protocol,
    attacks: impl FnOnce(&Upload, &Upload) -> Vec<Attack>,
) {
    let own = Upload::begin(world, protocol, ATTACKER).await;
    let neighbour = Upload::begin(world, protocol, NEIGHBOUR).await;
    let attacks = attacks(&own, &neighbour);
    refused_beside(world, &[&own], attacks).await;
    neighbour.is_as_before(world, "all attacks").await;
    own.finish(world).await;
    neighbour.finish(world).await;
}

/// Sends attacks that have to be refused. After each, nothing of the attacker's uploads, nor the
/// number of files, of deliveries and of requests that passed, may have changed.
pub async fn refused_beside(world: &World, own: &[&Upload], attacks: Vec<Attack>) {
    let state = async || {
        let counts = (world.deliveries().len(), world.passed().len());
        (world.all_of(ATTACKER).await, counts)
    };
    let before = state().await;
    for (label, ask, status) in attacks {
        let answer = world.attack_bytes(ask.bytes()).await;
        assert_eq!(answer.status, status, "{label}: {ask:?} {answer:?}");
        if ask.method != "HEAD" {
            assert_ne!(answer.code(), "", "{label}: {answer:?}");
        }
        let protocol = own.first().map(|upload| upload.protocol);
        if let Some(protocol) = protocol {
            protocol.is_spoken(&answer);
        }
        assert_eq!(state().await, before, "after {label}");
        for upload in own {
            upload.is_as_before(world, &label).await;
        }
    }
}

/// Sends a request that has to complete a file, and returns what was delivered.
pub async fn taken(world: &World, ask: &Ask, status: u16) -> Delivery {
    let before = world.deliveries().len();
    let answer = world.attack_bytes(ask.bytes()).await;
    assert_eq!(answer.status, status, "{ask:?} {answer:?}");
    assert!(["", DELIVERED].contains(&&*answer.text()), "{answer:?}");
    let deliveries = world.deliveries();
    assert_eq!(deliveries.len(), before + 1, "{ask:?}");
    deliveries[before].clone()
}
