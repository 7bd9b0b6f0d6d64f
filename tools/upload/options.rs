//! The command line.

use std::{ffi::OsString, fmt, fs, path::PathBuf, str::FromStr};

use http::{HeaderMap, HeaderName, Uri, header};

use crate::{Error, Fields, random};

pub const USAGE: &str = "\
Usage: upload [OPTIONS] URL FILE...

      --chunk-size BYTES    size of a chunk, also 512K, 1M, 2G [default: 1M]
      --force-chunk-size    send the rest as the last chunk, instead of within the last full one
      --parallel N          number of connections [default: 3]
      --octet               send the chunk as the body, its parameters only in the query
      --base64              send the chunk as a data URL in a text field
      --no-test             send all chunks without a probe for each
      --shuffle             send the chunks in random order
      --seed N              seed of the random order
      --last-alone          hold the last chunk back until all others are answered
      --duplicate PERCENT   send that share of the chunks twice, at the same time
      --identifier ID       [default: size and path, as Resumable.js makes it]
      --name NAME           [default: the name of the file]
      --relative-path PATH  [default: the name]
      --header 'K: V'       send this header too, may be repeated
      --field K=V           send this parameter too, may be repeated
      --retries N           how often a request is sent again [default: 100]
      --pause MS            time between two tries [default: 200, doubled up to 5000]
      --acks FILE           append a line 'identifier offset length' for each stored chunk
      --quiet               no progress bar, no notes";

#[derive(Default)]
pub struct Options {
    pub url: Uri,
    pub files: Vec<PathBuf>,
    pub chunk_size: u64,
    pub force_chunk_size: bool,
    pub parallel: usize,
    pub octet: bool,
    pub base64: bool,
    pub no_test: bool,
    pub shuffle: bool,
    pub seed: u64,
    pub last_alone: bool,
    pub duplicate: u64,
    pub identifier: Option<String>,
    pub name: Option<String>,
    pub relative_path: Option<String>,
    pub headers: HeaderMap,
    pub fields: Fields,
    pub retries: u32,
    pub pause: Option<u64>,
    pub acks: Option<fs::File>,
    pub quiet: bool,
}

impl Options {
    pub fn parse(mut words: impl Iterator<Item = OsString>) -> Result<Self, Error> {
        let mut options = Self {
            chunk_size: 1 << 20,
            parallel: 3,
            seed: random(),
            retries: 100,
            ..Self::default()
        };
        let mut plain = Vec::new();
        while let Some(word) = words.next() {
            match word.to_str() {
                Some(option) if option.starts_with("--") => options.set(option, &mut words)?,
                _ => plain.push(word),
            }
        }
        let mut plain = plain.into_iter();
        let url = plain.next().ok_or("there is no URL")?;
        options.url = parsed("URL", &url.to_string_lossy())?;
        options.files = plain.map(PathBuf::from).collect();
        options.check()?;
        if let (Some(host), false) = (options.url.host(), options.headers.contains_key("host")) {
            let port = options.url.port().map(|port| format!(":{port}"));
            let host = format!("{host}{}", port.unwrap_or_default()).parse()?;
            options.headers.insert(header::HOST, host);
        }
        Ok(options)
    }

    fn set(
        &mut self,
        option: &str,
        words: &mut dyn Iterator<Item = OsString>,
    ) -> Result<(), Error> {
        let mut value = || match words.next().map(OsString::into_string) {
            Some(Ok(value)) => Ok(value),
            Some(Err(_)) => Err(format!("{option} needs a value in UTF-8")),
            None => Err(format!("{option} needs a value")),
        };
        match option {
            "--chunk-size" => self.chunk_size = bytes(option, &value()?)?,
            "--force-chunk-size" => self.force_chunk_size = true,
            "--parallel" => self.parallel = parsed(option, &value()?)?,
            "--octet" => self.octet = true,
            "--base64" => self.base64 = true,
            "--no-test" => self.no_test = true,
            "--shuffle" => self.shuffle = true,
            "--seed" => self.seed = parsed(option, &value()?)?,
            "--last-alone" => self.last_alone = true,
            "--duplicate" => self.duplicate = parsed(option, &value()?)?,
            "--identifier" => self.identifier = Some(value()?),
            "--name" => self.name = Some(value()?),
            "--relative-path" => self.relative_path = Some(value()?),
            "--header" => {
                let line = value()?;
                let (name, value) = line.split_once(':').ok_or("--header needs 'K: V'")?;
                let name: HeaderName = parsed(option, name.trim())?;
                self.headers.append(name, parsed(option, value.trim())?);
            }
            "--field" => {
                let field = value()?;
                let (name, value) = field.split_once('=').ok_or("--field needs K=V")?;
                self.fields.push((name.into(), value.into()));
            }
            "--retries" => self.retries = parsed(option, &value()?)?,
            "--pause" => self.pause = Some(parsed(option, &value()?)?),
            "--acks" => {
                let path = value()?;
                let file = fs::OpenOptions::new().append(true).create(true).open(&path);
                self.acks = Some(file.map_err(|error| format!("--acks {path}: {error}"))?);
            }
            "--quiet" => self.quiet = true,
            _ => return Err(format!("there is no option {option}").into()),
        }
        Ok(())
    }

    fn check(&self) -> Result<(), &'static str> {
        let named = [&self.identifier, &self.name, &self.relative_path];
        let complaints = [
            (
                self.url.scheme_str() != Some("http"),
                "the URL must start with http://",
            ),
            (self.files.is_empty(), "there is no FILE"),
            (self.chunk_size == 0, "--chunk-size must not be 0"),
            (self.parallel == 0, "--parallel must not be 0"),
            (self.duplicate > 100, "--duplicate is at most 100"),
            (
                self.octet && self.base64,
                "--octet and --base64 exclude each other",
            ),
            (
                self.files.len() > 1 && named.iter().any(|option| option.is_some()),
                "--identifier, --name and --relative-path are for one FILE",
            ),
        ];
        match complaints.iter().find(|(wrong, _)| *wrong) {
            Some((_, complaint)) => Err(complaint),
            None => Ok(()),
        }
    }
}

fn bytes(option: &str, text: &str) -> Result<u64, Error> {
    let shift = match text.as_bytes().last() {
        Some(b'K') => 10,
        Some(b'M') => 20,
        Some(b'G') => 30,
        _ => 0,
    };
    let number: u64 = parsed(option, text.trim_end_matches(['K', 'M', 'G']))?;
    let bytes = number.checked_mul(1 << shift);
    bytes.ok_or_else(|| format!("{option} {text}: too large").into())
}

fn parsed<T: FromStr<Err: fmt::Display>>(option: &str, text: &str) -> Result<T, Error> {
    let value = text.parse();
    value.map_err(|error| format!("{option} {text}: {error}").into())
}
