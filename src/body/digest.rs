//! Digests that a client declares, checked while the bytes arrive.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use base64::{
    Engine as _,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use bytes::Bytes;
use http::{HeaderMap, Method, header, request::Parts};
use http_body::{Body, Frame};
use sha2::digest::DynDigest;

use super::Source;
use crate::{
    error::{Error, Reason},
    model::{BoxError, hex},
};

/// The digests of a message as it is sent (RFC 9530 §2), and of the representation that it stands
/// for (§3). Without content codings, which uploads do not have, they are the same.
const CONTENT_DIGEST: &str = "content-digest";
const REPR_DIGEST: &str = "repr-digest";

/// The checksum of tus 1.0, in a header or after the body.
const UPLOAD_CHECKSUM: &str = "upload-checksum";

/// The algorithms of [`UPLOAD_CHECKSUM`] by their names there.
const CHECKSUM_ALGORITHMS: &[(&str, DigestAlgorithm)] = &[
    ("sha1", DigestAlgorithm::Sha1),
    ("sha256", DigestAlgorithm::Sha256),
    ("sha512", DigestAlgorithm::Sha512),
    ("crc32", DigestAlgorithm::Crc32),
    #[cfg(feature = "digests")]
    ("md5", DigestAlgorithm::Md5),
];

/// The names of these algorithms, as a list.
pub(crate) const CHECKSUMS: &str = if cfg!(feature = "digests") {
    "sha1,sha256,sha512,crc32,md5"
} else {
    "sha1,sha256,sha512,crc32"
};

/// Algorithm of a digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DigestAlgorithm {
    /// SHA-256.
    Sha256,
    /// SHA-512.
    Sha512,
    /// CRC-32, as in zlib and PNG. Detects accidents, not attacks.
    Crc32,
    /// MD5, which many clients have. Detects accidents, not attacks. Needs the feature `digests`.
    #[cfg(feature = "digests")]
    Md5,
    /// SHA-1. Detects accidents, not attacks.
    // Without a feature: tus 1.0 demands it of servers that check checksums.
    Sha1,
    /// CRC-32C (Castagnoli). Detects accidents, not attacks. Needs the feature `digests`.
    #[cfg(feature = "digests")]
    Crc32c,
}

/// The expected digests of bytes that have not arrived yet.
pub(crate) struct Expected {
    /// The name of the field or header.
    name: String,
    each: Vec<(Hasher, Vec<u8>)>,
    /// One of each algorithm, until the trailer says which one counts.
    awaited: Vec<(&'static str, Hasher)>,
}

enum Hasher {
    Dyn(Box<dyn DynDigest + Send + Sync>),
    Crc32(crc32fast::Hasher),
    #[cfg(feature = "digests")]
    Crc32c(u32),
}

impl Expected {
    /// The digests of the message, that a request declares of its body. `None` if there is none
    /// that can be checked.
    pub(crate) fn of_message(parts: &Parts) -> Result<Option<Self>, Error> {
        Self::of_headers(&parts.headers, &[CONTENT_DIGEST])
    }

    /// The digests in a `Repr-Digest`.
    pub(crate) fn of_representation(headers: &HeaderMap) -> Result<Option<Self>, Error> {
        Self::of_headers(headers, &[REPR_DIGEST])
    }

    /// The digests that a request declares of its body. `None` if there is none that can be
    /// checked.
    pub(crate) fn of_content(parts: &Parts) -> Result<Option<Self>, Error> {
        // The representation digest of a part covers the whole file.
        let is_part = parts.method == Method::PATCH;
        let is_part = is_part || parts.headers.contains_key(header::CONTENT_RANGE);
        let names = if is_part {
            &[CONTENT_DIGEST][..]
        } else {
            &[CONTENT_DIGEST, REPR_DIGEST]
        };
        Self::of_headers(&parts.headers, names)
    }

    fn of_headers(headers: &HeaderMap, names: &[&str]) -> Result<Option<Self>, Error> {
        let mut found = None;
        for name in names {
            let each = Self::of_header(headers, name)?;
            if !each.is_empty() {
                let expected = found.get_or_insert(Self {
                    name: (*name).to_owned(),
                    each: Vec::new(),
                    awaited: Vec::new(),
                });
                expected.each.extend(each);
            }
        }
        Ok(found)
    }

    fn of_header(headers: &HeaderMap, header: &str) -> Result<Vec<(Hasher, Vec<u8>)>, Error> {
        let mut each = Vec::new();
        for value in headers.get_all(header) {
            let members = value.to_str().map_err(|_| invalid(header))?;
            for member in members.split(',') {
                let member = member.split(';').next().unwrap_or_default();
                let (name, digest) = member.split_once('=').ok_or_else(|| invalid(header))?;
                let algorithm = match name.trim() {
                    "sha-256" => DigestAlgorithm::Sha256,
                    "sha-512" => DigestAlgorithm::Sha512,
                    // RFC 9530 requires that other algorithms are ignored.
                    _ => continue,
                };
                let digest = digest.trim().strip_prefix(':');
                let digest = digest.and_then(|digest| digest.strip_suffix(':'));
                let digest = digest.and_then(decode_base64);
                let digest = digest.filter(|digest| digest.len() == algorithm.len());
                each.push((
                    Hasher::new(algorithm),
                    digest.ok_or_else(|| invalid(header))?,
                ));
            }
        }
        Ok(each)
    }

    /// The digest in a field: hexadecimal or base64.
    pub(crate) fn of_field(
        name: &str,
        algorithm: DigestAlgorithm,
        value: &str,
    ) -> Result<Self, Error> {
        let value = value.trim();
        let digest = hex::decode(value).filter(|digest| digest.len() == algorithm.len());
        let digest = digest.or_else(|| decode_base64(value));
        let digest = digest.filter(|digest| digest.len() == algorithm.len());
        Ok(Self {
            name: name.to_owned(),
            each: vec![(Hasher::new(algorithm), digest.ok_or_else(|| invalid(name))?)],
            awaited: Vec::new(),
        })
    }

    /// The checksum in a header of tus, such as `sha1 Kq5sNclPz7QV2+lfQIuc6R7oRu0=`.
    pub(crate) fn of_checksum(value: &str) -> Result<Self, Error> {
        let (name, digest) = value.trim().split_once(' ').unwrap_or((value, ""));
        let known = CHECKSUM_ALGORITHMS.iter().find(|(known, _)| *known == name);
        let (_, algorithm) = known.ok_or_else(|| Reason::InvalidField {
            name: UPLOAD_CHECKSUM.to_owned(),
            problem: "has an unknown algorithm",
        })?;
        let digest = decode_base64(digest.trim());
        let digest = digest.filter(|digest| digest.len() == algorithm.len());
        let digest = digest.ok_or_else(|| invalid(UPLOAD_CHECKSUM))?;
        Ok(Self {
            name: UPLOAD_CHECKSUM.to_owned(),
            each: vec![(Hasher::new(*algorithm), digest)],
            awaited: Vec::new(),
        })
    }

    /// A checksum of tus that follows the body. Only it says which algorithm it is of.
    pub(crate) fn that_follows() -> Self {
        let algorithms = CHECKSUM_ALGORITHMS.iter();
        let awaited = algorithms.map(|(name, algorithm)| (*name, Hasher::new(*algorithm)));
        Self {
            name: UPLOAD_CHECKSUM.to_owned(),
            each: Vec::new(),
            awaited: awaited.collect(),
        }
    }

    /// Expects both.
    pub(crate) fn and(mut self, other: Self) -> Self {
        self.each.extend(other.each);
        self.awaited.extend(other.awaited);
        self
    }

    /// Takes the checksum that follows the body.
    pub(crate) fn trailers(&mut self, trailers: &HeaderMap) -> Result<(), Error> {
        let Some(value) = trailers.get(UPLOAD_CHECKSUM) else {
            return Ok(());
        };
        if self.awaited.is_empty() {
            return Ok(());
        }
        // The error of the conversion says no more than that it is not text.
        let value = value.to_str().map_err(|_| invalid(UPLOAD_CHECKSUM))?;
        // Checks the algorithm and the length.
        let declared = Self::of_checksum(value)?.each.pop();
        let algorithm = value.trim().split(' ').next();
        let mut awaited = std::mem::take(&mut self.awaited).into_iter();
        let hasher = awaited.find(|(name, _)| Some(*name) == algorithm);
        if let (Some((_, hasher)), Some((_, digest))) = (hasher, declared) {
            self.each.push((hasher, digest));
        }
        Ok(())
    }

    /// The expected CRC-32, if no other digest is expected.
    pub(crate) fn crc32(&self) -> Option<u32> {
        match &self.each[..] {
            [(Hasher::Crc32(_), crc)] => crc.as_slice().try_into().ok().map(u32::from_be_bytes),
            _ => None,
        }
    }

    /// The error for bytes with another digest.
    pub(crate) fn mismatch(&self) -> Error {
        let name = self.name.clone();
        Reason::DigestMismatch { name }.into()
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.each
            .iter_mut()
            .for_each(|(hasher, _)| hasher.update(bytes));
        self.awaited
            .iter_mut()
            .for_each(|(_, hasher)| hasher.update(bytes));
    }

    /// Compares the digests.
    pub(crate) fn finish(self) -> Result<(), Error> {
        let mismatch = self.mismatch();
        if !self.awaited.is_empty() {
            let name = self.name;
            return Err(Reason::MissingField { name }.into());
        }
        let mut each = self.each.into_iter();
        if each.all(|(hasher, digest)| hasher.finish() == digest) {
            Ok(())
        } else {
            Err(mismatch)
        }
    }
}

/// A chunk that fails at its end if it does not have the expected digest.
pub(crate) struct Verified<'a> {
    chunk: Source<'a>,
    expected: Option<Expected>,
}

impl<'a> Verified<'a> {
    pub(crate) fn new(chunk: Source<'a>, expected: Option<Expected>) -> Self {
        Self { chunk, expected }
    }
}

impl Body for Verified<'_> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let frame = ready!(this.chunk.as_mut().poll_frame(cx));
        Poll::Ready(match &frame {
            Some(Ok(frame_data)) => {
                if let (Some(expected), Some(data)) = (&mut this.expected, frame_data.data_ref()) {
                    expected.update(data);
                }
                frame
            }
            Some(Err(_)) => frame,
            None => {
                let checked = this.expected.take().map_or(Ok(()), Expected::finish);
                checked.err().map(|error| Err(error.into()))
            }
        })
    }
}

impl DigestAlgorithm {
    /// Bytes of a digest.
    fn len(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha512 => 64,
            Self::Crc32 => 4,
            #[cfg(feature = "digests")]
            Self::Md5 => 16,
            Self::Sha1 => 20,
            #[cfg(feature = "digests")]
            Self::Crc32c => 4,
        }
    }
}

impl Hasher {
    fn new(algorithm: DigestAlgorithm) -> Self {
        match algorithm {
            DigestAlgorithm::Sha256 => Self::Dyn(Box::new(sha2::Sha256::default())),
            DigestAlgorithm::Sha512 => Self::Dyn(Box::new(sha2::Sha512::default())),
            DigestAlgorithm::Crc32 => Self::Crc32(crc32fast::Hasher::new()),
            #[cfg(feature = "digests")]
            DigestAlgorithm::Md5 => Self::Dyn(Box::new(md5::Md5::default())),
            DigestAlgorithm::Sha1 => Self::Dyn(Box::new(sha1::Sha1::default())),
            #[cfg(feature = "digests")]
            DigestAlgorithm::Crc32c => Self::Crc32c(0),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Dyn(hasher) => hasher.update(bytes),
            Self::Crc32(hasher) => hasher.update(bytes),
            #[cfg(feature = "digests")]
            Self::Crc32c(crc) => *crc = crc32c::crc32c_append(*crc, bytes),
        }
    }

    fn finish(self) -> Vec<u8> {
        match self {
            Self::Dyn(hasher) => hasher.finalize().into_vec(),
            Self::Crc32(hasher) => hasher.finalize().to_be_bytes().to_vec(),
            #[cfg(feature = "digests")]
            Self::Crc32c(crc) => crc.to_be_bytes().to_vec(),
        }
    }
}

fn decode_base64(text: &str) -> Option<Vec<u8>> {
    const LENIENT: GeneralPurpose = GeneralPurpose::new(
        &STANDARD,
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
    );
    LENIENT.decode(text).ok()
}

fn invalid(name: &str) -> Error {
    let problem = "is not a digest of its kind";
    let name = name.into();
    Reason::InvalidField { name, problem }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(expected: Result<Expected, Error>) -> Result<(), &'static str> {
        let checked = expected.and_then(|mut expected| {
            // The check value of CRCs is that of these bytes.
            expected.update(b"1234");
            expected.update(b"56789");
            expected.finish()
        });
        checked.map_err(|error| error.kind().as_str())
    }

    #[test]
    fn content_digests() {
        const SHA_256: &str = "sha-256=:FeKw08M4keuw8e9gnsQZQgwg4yDOlMZfvIwzEkSOsiU=:";
        const OTHER: &str = "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:";
        let sha_512 = "sha-512=:2eZ2LdHI6vbWGzxhkvxAjU1tXxF20MKRabwk5xw/J0rSf81YEbMT\
                       1oH35V7ALXPUmclUVba1u1A6z1dPuo/+hQ==:";
        let both = format!("md5=:x:, {SHA_256} , {sha_512};q=1");
        let one_wrong = format!("{OTHER},{sha_512}");
        for (values, expected) in [
            (&[SHA_256][..], Some(Ok(()))),
            (&[sha_512], Some(Ok(()))),
            (&[&both], Some(Ok(()))),
            (&[SHA_256, sha_512], Some(Ok(()))),
            (&[OTHER], Some(Err("digest_mismatch"))),
            (&[&one_wrong], Some(Err("digest_mismatch"))),
            (&[SHA_256, OTHER], Some(Err("digest_mismatch"))),
            (&["sha-256=:AAAA:"], Some(Err("invalid_field"))),
            (
                &["sha-256=FeKw08M4keuw8e9gnsQZQgwg4yDOlMZfvIwzEkSOsiU="],
                Some(Err("invalid_field")),
            ),
            (&["sha-256"], Some(Err("invalid_field"))),
            (&["md5=:x:"], None),
            (&[], None),
        ] {
            let read = |method: Method, header: &str| {
                let mut request = http::Request::builder().method(method);
                for value in values {
                    request = request.header(header, *value);
                }
                let parts = request.body(()).unwrap().into_parts().0;
                Expected::of_content(&parts).transpose().map(check)
            };
            assert_eq!(read(Method::PATCH, CONTENT_DIGEST), expected, "{values:?}");
            assert_eq!(read(Method::POST, CONTENT_DIGEST), expected, "{values:?}");
            assert_eq!(read(Method::POST, REPR_DIGEST), expected, "{values:?}");
            assert_eq!(read(Method::PATCH, REPR_DIGEST), None, "{values:?}");
        }
    }

    #[test]
    fn checksums() {
        let digest = "98O8HYCOBHMq32eZZczDTKeuNEE=";
        let sha1 = &format!("sha1 {digest}")[..];
        for (value, expected) in [
            (sha1, Ok(())),
            (" sha1  98O8HYCOBHMq32eZZczDTKeuNEE ", Ok(())),
            (
                "sha256 FeKw08M4keuw8e9gnsQZQgwg4yDOlMZfvIwzEkSOsiU=",
                Ok(()),
            ),
            ("crc32 y/Q5Jg==", Ok(())),
            #[cfg(feature = "digests")]
            ("md5 JfnnlDI7RTiF9RgfG2JNCw==", Ok(())),
            ("sha1 2jmj7l5rSw0yVb/vlWAYkK/YBwk=", Err("digest_mismatch")),
            ("SHA1 98O8HYCOBHMq32eZZczDTKeuNEE=", Err("invalid_field")),
            ("sha3 98O8HYCOBHMq32eZZczDTKeuNEE=", Err("invalid_field")),
            ("sha1 y/Q5Jg==", Err("invalid_field")),
            ("sha1 ?", Err("invalid_field")),
            ("sha1", Err("invalid_field")),
            ("", Err("invalid_field")),
        ] {
            assert_eq!(check(Expected::of_checksum(value)), expected, "{value}");
            let mut expectation = Expected::that_follows();
            expectation.update(b"123456789");
            let mut trailers = HeaderMap::new();
            trailers.insert("upload-checksum", value.parse().unwrap());
            let checked = expectation.trailers(&trailers);
            let checked = checked.and_then(|()| expectation.finish());
            assert_eq!(
                checked.map_err(|error| error.kind().as_str()),
                expected,
                "{value}"
            );
        }
        assert_eq!(check(Ok(Expected::that_follows())), Err("missing_field"));
        let both = Expected::of_checksum(sha1).map(|sha1| sha1.and(Expected::that_follows()));
        assert_eq!(check(both), Err("missing_field"));
        for (name, _) in CHECKSUM_ALGORITHMS {
            assert!(CHECKSUMS.split(',').any(|announced| announced == *name));
        }
        assert_eq!(CHECKSUMS.split(',').count(), CHECKSUM_ALGORITHMS.len());
    }

    #[test]
    fn fields() {
        use DigestAlgorithm::*;
        let rows = vec![
            (Crc32, "cbf43926", Ok(())),
            (Crc32, "CBF43926", Ok(())),
            (Crc32, "y/Q5Jg==", Ok(())),
            (Crc32, " y/Q5Jg", Ok(())),
            (Crc32, "00000000", Err("digest_mismatch")),
            (Crc32, "+bf43926", Err("invalid_field")),
            (Crc32, "cbf4392", Err("invalid_field")),
            (Crc32, "", Err("invalid_field")),
            (
                Sha256,
                "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225",
                Ok(()),
            ),
            (Sha512, "cbf43926", Err("invalid_field")),
            #[cfg(feature = "digests")]
            (Md5, "25f9e794323b453885f5181f1b624d0b", Ok(())),
            (Sha1, "f7c3bc1d808e04732adf679965ccc34ca7ae3441", Ok(())),
            #[cfg(feature = "digests")]
            (Crc32c, "e3069283", Ok(())),
        ];
        for (algorithm, value, expected) in rows {
            let got = check(Expected::of_field("digest", algorithm, value));
            assert_eq!(got, expected, "{algorithm:?} {value}");
        }
    }
}
