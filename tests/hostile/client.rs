//! Requests as real clients send them, with changes that a test makes.

use std::fmt::Write as _;

use crate::common::{self, BOUNDARY};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    Resumable,
    Flow,
    Dropzone,
}

/// Where the fields are, and how the bytes are transported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Query and form.
    Both,
    Form,
    /// Query, and the bytes are the body.
    Octets,
}

/// The meaning of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Identifier,
    Total,
    /// The number of the chunk, or its offset.
    Position,
    Size,
    Len,
    Name,
    Path,
    Type,
    Count,
}

use Role::*;

/// The clients and transports that all names and numbers are tried with.
pub const ALL: [(Client, Way); 6] = [
    (Client::Resumable, Way::Both),
    (Client::Resumable, Way::Form),
    (Client::Flow, Way::Octets),
    (Client::Flow, Way::Form),
    (Client::Dropzone, Way::Form),
    (Client::Resumable, Way::Octets),
];

impl Client {
    /// Empty if the client has no such field.
    pub fn field(self, role: Role) -> &'static str {
        let names = match self {
            Self::Resumable => [
                "resumableIdentifier",
                "resumableTotalSize",
                "resumableChunkNumber",
                "resumableChunkSize",
                "resumableCurrentChunkSize",
                "resumableFilename",
                "resumableRelativePath",
                "resumableType",
                "resumableTotalChunks",
            ],
            Self::Flow => [
                "flowIdentifier",
                "flowTotalSize",
                "flowChunkNumber",
                "flowChunkSize",
                "flowCurrentChunkSize",
                "flowFilename",
                "flowRelativePath",
                "",
                "flowTotalChunks",
            ],
            Self::Dropzone => [
                "dzuuid",
                "dztotalfilesize",
                "dzchunkbyteoffset",
                "dzchunksize",
                "",
                "",
                "",
                "",
                "dztotalchunkcount",
            ],
        };
        names[role as usize]
    }

    pub fn has(self, role: Role) -> bool {
        !self.field(role).is_empty() || (self == Self::Dropzone && role == Name)
    }

    /// The status of a final refusal for this client.
    pub fn refusal(self) -> u16 {
        match self {
            Self::Flow => 415,
            _ => 400,
        }
    }

    fn status_field(self) -> &'static str {
        match self {
            Self::Resumable => "resumableStatus",
            Self::Flow => "flowStatus",
            Self::Dropzone => "dzstatus",
        }
    }
}

/// One file that a client uploads.
#[derive(Clone)]
pub struct File {
    pub client: Client,
    pub way: Way,
    pub user: String,
    pub identifier: String,
    pub name: String,
    pub path: Option<String>,
    pub content: Vec<u8>,
    pub chunk_size: usize,
}

impl std::fmt::Debug for File {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            client,
            way,
            user,
            name,
            ..
        } = self;
        write!(f, "{name:?} of {user} from {client:?} by {way:?}")
    }
}

impl File {
    /// A file of 25 bytes of this user, in chunks of ten. Different users have different bytes
    /// under one name.
    pub fn new(client: Client, way: Way, user: &str, nth: usize) -> Self {
        let mut file = Self {
            client,
            way,
            user: user.into(),
            identifier: format!("25-f{nth}txt"),
            name: format!("f{nth}.txt"),
            path: None,
            content: Vec::new(),
            chunk_size: 10,
        };
        file.fill(25);
        file
    }

    pub fn fill(&mut self, len: usize) {
        let seed = self.user.bytes().chain(self.identifier.bytes());
        let seed = seed.fold(len, |sum, byte| sum.wrapping_mul(31) ^ usize::from(byte));
        self.content = common::File::new(&self.name, len).content;
        for byte in &mut self.content {
            *byte ^= seed as u8;
        }
    }

    pub fn sized(mut self, len: usize, chunk_size: usize) -> Self {
        self.chunk_size = chunk_size;
        self.fill(len);
        self
    }

    /// The begin and the end of each chunk, as this client divides a file.
    pub fn layout(&self) -> Vec<std::ops::Range<usize>> {
        let (total, size) = (self.content.len(), self.chunk_size);
        let count = match self.client {
            Client::Dropzone => total.div_ceil(size).max(1),
            _ => (total / size).max(1),
        };
        let end = |n| {
            if n + 1 == count {
                total
            } else {
                (n + 1) * size
            }
        };
        (0..count).map(|n| n * size..end(n)).collect()
    }

    pub fn chunks(&self) -> usize {
        self.layout().len()
    }

    /// Chunk `number`, counted from 1.
    pub fn chunk(&self, number: usize) -> Chunk {
        self.range(self.layout()[number - 1].clone())
    }

    /// Any piece of the file that begins at a multiple of the chunk size.
    pub fn range(&self, range: std::ops::Range<usize>) -> Chunk {
        let position = match self.client {
            Client::Dropzone => range.start,
            _ => range.start / self.chunk_size + 1,
        };
        let path = self.path.clone().unwrap_or_else(|| self.name.clone());
        let fields = [
            (Position, position.to_string()),
            (Size, self.chunk_size.to_string()),
            (Len, range.len().to_string()),
            (Total, self.content.len().to_string()),
            (Type, "text/plain".to_owned()),
            (Identifier, self.identifier.clone()),
            (Name, self.name.clone()),
            (Path, path),
            (Count, self.chunks().to_string()),
        ];
        let fields = fields.map(|(role, value)| (self.client.field(role).to_owned(), value));
        let fields: Vec<_> = fields.into_iter().filter(|(n, _)| !n.is_empty()).collect();
        let part_name = match self.client {
            Client::Dropzone => self.name.clone(),
            _ => "blob".into(),
        };
        Chunk {
            client: self.client,
            way: self.way,
            user: self.user.clone(),
            query: if self.way == Way::Form {
                Vec::new()
            } else {
                fields.clone()
            },
            form: fields,
            raw_query: String::new(),
            head: Vec::new(),
            file: part("file", &part_name, &self.content[range.clone()]),
            part_name,
            content: self.content[range].to_vec(),
            after: Vec::new(),
            end: format!("--{BOUNDARY}--\r\n").into_bytes(),
            content_type: format!("multipart/form-data; boundary={BOUNDARY}"),
            headers: String::new(),
        }
    }

    fn asking(&self, method: &str, field: &str) -> String {
        let mut fields = self.chunk(1).form;
        if !field.is_empty() {
            fields.push((field.into(), "1".into()));
        }
        format!(
            "{method} /upload?{} HTTP/1.1\r\nhost: x\r\nx-user: {}\r\n\r\n",
            query(&fields),
            self.user
        )
    }

    pub fn probe(&self) -> String {
        self.asking("GET", "")
    }

    pub fn status(&self) -> String {
        self.asking("GET", self.client.status_field())
    }

    pub fn cancel(&self) -> String {
        self.asking("DELETE", "")
    }
}

/// One request. Each part of it can be changed.
#[derive(Clone)]
pub struct Chunk {
    pub client: Client,
    pub way: Way,
    pub user: String,
    pub query: Vec<(String, String)>,
    pub form: Vec<(String, String)>,
    /// Appended to the query, unescaped.
    pub raw_query: String,
    /// Bytes before the first part.
    pub head: Vec<u8>,
    part_name: String,
    content: Vec<u8>,
    /// The part with the file.
    pub file: Vec<u8>,
    /// Parts after it.
    pub after: Vec<u8>,
    /// The last boundary, and the bytes after it.
    pub end: Vec<u8>,
    pub content_type: String,
    /// More header lines, each with its end.
    pub headers: String,
}

impl std::fmt::Debug for Chunk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} by {:?}: {:?}", self.client, self.way, self.form)
    }
}

impl Chunk {
    /// Sets a field to another value, in the query and in the form.
    pub fn set(mut self, role: Role, value: &str) -> Self {
        let name = self.client.field(role);
        if self.client == Client::Dropzone && role == Name {
            self.part_name = value.into();
            self.file = part("file", &self.part_name, &self.content);
        }
        for (_, old) in self.fields().filter(|(n, _)| n == name) {
            *old = value.into();
        }
        self
    }

    pub fn without(mut self, role: Role) -> Self {
        let name = self.client.field(role);
        self.query.retain(|(n, _)| n != name);
        self.form.retain(|(n, _)| n != name);
        self
    }

    /// Adds a field at the end of the query and the form.
    pub fn with(mut self, name: &str, value: &str) -> Self {
        if self.way != Way::Form {
            self.query.push((name.into(), value.into()));
        }
        self.form.push((name.into(), value.into()));
        self
    }

    pub fn content(mut self, content: &[u8]) -> Self {
        self.content = content.to_vec();
        self.file = part("file", &self.part_name, content);
        self
    }

    fn fields(&mut self) -> impl Iterator<Item = &mut (String, String)> {
        self.query.iter_mut().chain(&mut self.form)
    }

    /// The texts of this request that an answer must not repeat.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        let values = self.query.iter().chain(&self.form).map(|(_, v)| v.as_str());
        values
            .chain([self.part_name.as_str()])
            .filter(|value| value.len() > 3 && !value.bytes().all(|b| b.is_ascii_digit()))
    }

    pub fn body(&self) -> Vec<u8> {
        if self.way == Way::Octets {
            return self.content.clone();
        }
        let fields = text_parts(&self.form);
        let parts = [&self.head, &fields, &self.file, &self.after, &self.end];
        parts.map(Vec::as_slice).concat()
    }

    /// The head, without the header that declares the length of the body.
    pub fn request_head(&self, length: &str) -> String {
        let content_type = match self.way {
            Way::Octets => "application/octet-stream",
            _ => &self.content_type,
        };
        format!(
            "POST /upload?{}{} HTTP/1.1\r\nhost: x\r\nx-user: {}\r\ncontent-type: {content_type}\r\n\
             {}{length}\r\n\r\n",
            query(&self.query),
            self.raw_query,
            self.user,
            self.headers,
        )
    }

    pub fn bytes(&self) -> Vec<u8> {
        let body = self.body();
        let length = format!("content-length: {}", body.len());
        [self.request_head(&length).as_bytes(), &body].concat()
    }
}

fn query(fields: &[(String, String)]) -> String {
    let pairs = fields.iter().map(|(name, value)| {
        let encode =
            |text: &str| -> String { form_urlencoded::byte_serialize(text.as_bytes()).collect() };
        format!("{}={}", encode(name), encode(value))
    });
    pairs.collect::<Vec<_>>().join("&")
}

pub fn text_parts(fields: &[(String, String)]) -> Vec<u8> {
    let mut text = String::new();
    for (name, value) in fields {
        write!(
            text,
            "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n"
        )
        .unwrap();
    }
    text.into_bytes()
}

pub fn text_part(name: &str, value: &str) -> Vec<u8> {
    text_parts(&[(name.into(), value.into())])
}

/// A file part. Browsers escape three characters in its name.
pub fn part(field: &str, file_name: &str, content: &[u8]) -> Vec<u8> {
    let name = file_name
        .replace('"', "%22")
        .replace('\r', "%0D")
        .replace('\n', "%0A");
    raw_part(
        &format!(
            "Content-Disposition: form-data; name=\"{field}\"; filename=\"{name}\"\r\n\
             Content-Type: application/octet-stream"
        ),
        content,
    )
}

/// A part with these header lines.
pub fn raw_part(head: &str, content: &[u8]) -> Vec<u8> {
    let head = format!("--{BOUNDARY}\r\n{head}\r\n\r\n");
    [head.as_bytes(), content, b"\r\n"].concat()
}
