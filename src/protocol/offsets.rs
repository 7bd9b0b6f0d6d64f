//! What tus 1.0 and the IETF draft share: uploads that have a URL with a token in it, and to which
//! bytes are appended at an offset.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, header, request::Parts};

use crate::{
    error::{Error, Reason},
    limits::{Limits, PARTS_OF_UPLOAD, PATH_BYTES, QUERY_BYTES},
    model::{
        hex::{self, Hex},
        state::Record,
        upload::{Creation, Role, Scope, Upload, UploadId},
    },
};

pub(super) const UPLOAD_OFFSET: HeaderName = HeaderName::from_static("upload-offset");
pub(super) const UPLOAD_LENGTH: HeaderName = HeaderName::from_static("upload-length");
pub(super) const UPLOAD_METADATA: HeaderName = HeaderName::from_static("upload-metadata");
pub(super) const UPLOAD_CHECKSUM: HeaderName = HeaderName::from_static("upload-checksum");
pub(super) const UPLOAD_CONCAT: HeaderName = HeaderName::from_static("upload-concat");
pub(super) const UPLOAD_EXPIRES: HeaderName = HeaderName::from_static("upload-expires");
pub(super) const UPLOAD_DEFER_LENGTH: HeaderName = HeaderName::from_static("upload-defer-length");
pub(super) const TUS_RESUMABLE: HeaderName = HeaderName::from_static("tus-resumable");
pub(super) const UPLOAD_LIMIT: HeaderName = HeaderName::from_static("upload-limit");
const METHOD_OVERRIDE: HeaderName = HeaderName::from_static("x-http-method-override");

/// The headers that describe the body of an answer.
pub(super) const CONTENT: [HeaderName; 8] = [
    header::CONTENT_TYPE,
    header::CONTENT_LENGTH,
    header::CONTENT_ENCODING,
    header::CONTENT_LANGUAGE,
    header::CONTENT_DISPOSITION,
    header::CONTENT_RANGE,
    header::ETAG,
    header::TRANSFER_ENCODING,
];

/// The largest integer of a structured field (RFC 8941 §3.3.1).
pub(super) const MAX_INTEGER: u64 = 999_999_999_999_999;

/// The query parameter with the token.
const PARAMETER: &str = "upload";

/// The settings of uploads that have URLs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Urls {
    /// The URL of the path as clients see it.
    pub(crate) public: Option<String>,
    /// Whether the token is the last segment of the path.
    pub(crate) in_path: bool,
    /// Whether tus clients get the body of the inner service's answer.
    pub(crate) answer_bodies: bool,
    /// Whether the store can append.
    pub(crate) appends: bool,
    /// Whether the store can concatenate.
    pub(crate) concats: bool,
    /// Whether the IETF draft is spoken.
    pub(crate) ietf: bool,
    /// What clients are told of the limits of the layer.
    pub(crate) limits: Limits,
}

impl Urls {
    /// The URL of an upload for its client. `None` if it is not a valid header.
    pub(super) fn location(&self, upload: &Upload) -> Option<HeaderValue> {
        let path = upload.request_path.as_deref().unwrap_or_default();
        let token = &upload.identifier;
        let base = match &self.public {
            Some(public) if self.in_path => public.trim_end_matches('/').to_owned(),
            Some(public) => public.clone(),
            // Otherwise it would name another host.
            None if path.starts_with("//") => format!("/.{path}"),
            None => path.to_owned(),
        };
        let url = if self.in_path {
            format!("{base}/{token}")
        } else {
            let separator = if base.contains('?') { '&' } else { '?' };
            format!("{base}{separator}{PARAMETER}={token}")
        };
        HeaderValue::try_from(url).ok()
    }

    /// The token in the URL of a request.
    pub(super) fn token(&self, head: &Parts) -> Option<Token> {
        let in_query = || {
            let text = in_query(head.uri.query()?)?;
            let in_path = false;
            Some(Token { text, in_path })
        };
        let in_path = || {
            let (_, text) = self.split(head.uri.path())?;
            let (text, in_path) = (text.to_owned(), true);
            Some(Token { text, in_path })
        };
        in_query().or_else(in_path)
    }

    /// Splits the path of an upload into that of its creation and the token.
    pub(crate) fn split<'a>(&self, path: &'a str) -> Option<(&'a str, &'a str)> {
        let (base, token) = path.rsplit_once('/')?;
        (self.in_path && is_token(token)).then_some((base, token))
    }

    /// The token in a URL that a client has made of a `Location`: absolute or relative.
    pub(super) fn token_in(&self, url: &str) -> Option<String> {
        let url = url.split('#').next().unwrap_or_default();
        let (path, query) = url.split_once('?').unwrap_or((url, ""));
        let in_path = || {
            let last = path.rsplit('/').next()?;
            (self.in_path && is_token(last)).then(|| last.to_owned())
        };
        in_query(query).or_else(in_path)
    }
}

/// The token in a query. `None` if there are several.
fn in_query(query: &str) -> Option<String> {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let mut tokens = pairs.filter_map(|(name, value)| (name == PARAMETER).then_some(value));
    let token = tokens.next().filter(|token| is_token(token))?;
    tokens.next().is_none().then(|| token.to_owned())
}

fn is_token(text: &str) -> bool {
    hex::decode_exact::<16>(text).is_some()
}

/// A token with marks for what a request about the upload may not say: `HEAD` and `DELETE` requests
/// of both protocols need no header, and a store that fails does not tell who has made an upload.
fn marked(token: &str, is_of_draft: bool, has_metadata: bool) -> String {
    let (first, rest) = token.split_at_checked(1).unwrap_or_default();
    let digit = u8::from_str_radix(first, 16).unwrap_or_default() & !(OF_DRAFT | WITH_METADATA);
    let marks = u8::from(is_of_draft) * OF_DRAFT + u8::from(has_metadata) * WITH_METADATA;
    format!("{:x}{rest}", digit | marks)
}

/// Marks in the first digit of a token.
const OF_DRAFT: u8 = 8;
const WITH_METADATA: u8 = 4;

/// The token in the URL of an upload: 126 random bits and two marks, in hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) text: String,
    /// Whether it is the last segment of the path.
    in_path: bool,
}

impl Token {
    /// Whether the IETF draft has made the upload, and not tus.
    pub(super) fn is_of_draft(&self) -> bool {
        self.has(OF_DRAFT)
    }

    /// Whether the client takes an upload for complete once all its bytes are stored, and begins
    /// anew after an error that is not 423. Of those that speak the draft, only tus-js-client sends
    /// `Upload-Metadata`.
    pub(super) fn believes_offsets(&self) -> bool {
        self.has(WITH_METADATA)
    }

    fn has(&self, mark: u8) -> bool {
        let digit = self
            .text
            .chars()
            .next()
            .and_then(|first| first.to_digit(16));
        digit.is_some_and(|digit| digit & u32::from(mark) != 0)
    }

    /// The path of the request that created the upload, from the path of a request for the upload.
    fn created_at<'a>(&self, path: &'a str) -> &'a str {
        let base = path.strip_suffix(&*self.text);
        let base = base.filter(|_| self.in_path);
        base.and_then(|base| base.strip_suffix('/')).unwrap_or(path)
    }

    /// The upload that a request for this path names.
    pub(crate) fn upload(&self, scope: Scope, path: &str) -> Upload {
        named(&self.text, scope, self.created_at(path))
    }
}

/// The upload with this token. Without the token no other request can name it, and another scope or
/// path has no such upload.
pub(crate) fn named(token: &str, scope: Scope, path: &str) -> Upload {
    // An identity of a chunk client begins with its identifier, or with an empty value and a path.
    let id = UploadId::new(&scope, ["", "url", path, token]);
    let mut upload = Upload::new(id, scope, None);
    upload.request_path = Some(path.to_owned());
    upload.identifier = token.to_owned();
    upload
}

/// A request about an upload that has a URL.
pub(crate) enum UrlCommand {
    /// Create an upload, and append the body if there is `data`.
    Create { new: New, data: Option<Data> },
    /// Create an upload with this token, of the uploads with those tokens.
    Concat { new: New, token: String },
    /// Append the body.
    Append {
        token: Token,
        offset: u64,
        /// The length of the file, if the request declares it.
        length: Option<u64>,
        data: Data,
    },
    /// Say how many bytes are stored.
    Look(Token),
    /// Repeat the recorded answer of the inner service.
    Recall(Token),
    /// Remove the upload.
    Discard(Token),
}

/// What a request declares of the bytes in its body.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Data {
    /// The value of `Upload-Checksum`.
    pub(crate) checksum: Option<String>,
    /// Whether `Upload-Checksum` follows the body.
    pub(crate) checksum_follows: bool,
    /// Whether the file ends with the body, if the client says so. `None` if the file ends at its
    /// length, as in tus.
    pub(crate) ends: Option<bool>,
}

/// A new upload, as the request that creates it describes it.
#[derive(Debug, Default)]
pub(crate) struct New {
    /// Whether the client speaks the IETF draft.
    pub(crate) is_of_draft: bool,
    pub(crate) length: Option<u64>,
    pub(crate) role: Role,
    pub(crate) file_name: Option<String>,
    pub(crate) relative_path: Option<String>,
    pub(crate) content_type: Option<String>,
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) creation: Creation,
}

impl New {
    /// The upload with this token, which gets a mark, at the path of the request as its client has
    /// sent it.
    pub(crate) fn upload(self, token: &str, scope: Scope, path: &str) -> Result<Upload, Error> {
        if path.len() > PATH_BYTES {
            return Err(invalid("path", "is too long"));
        }
        let has_metadata = self.creation.metadata.is_some();
        let token = marked(token, self.is_of_draft, has_metadata);
        let mut upload = named(&token, scope, path);
        upload.length = self.length;
        upload.role = self.role;
        upload.file_name = self.file_name;
        upload.relative_path = self.relative_path;
        upload.content_type = self.content_type;
        upload.fields = self.fields;
        upload.creation = Some(self.creation);
        Ok(upload)
    }
}

/// The path and the query of the request that creates an upload.
pub(super) fn creation_uri(head: &Parts) -> Result<String, Error> {
    if head
        .uri
        .query()
        .is_some_and(|query| query.len() > QUERY_BYTES)
    {
        return Err(Reason::TooManyFields.into());
    }
    let uri = head.uri.path_and_query().map(|uri| uri.as_str());
    Ok(uri.unwrap_or("/").to_owned())
}

/// The method that the client means. `None` if it overrides the method with several, or with what
/// is none.
pub(super) fn meant_method(head: &Parts) -> Option<Method> {
    let mut methods = head.headers.get_all(&METHOD_OVERRIDE).iter();
    match (methods.next(), methods.next()) {
        (Some(method), None) if head.method == Method::POST => {
            Method::from_bytes(method.as_bytes()).ok()
        }
        (Some(_), Some(_)) if head.method == Method::POST => None,
        _ => Some(head.method.clone()),
    }
}

/// The role of an upload with this `Upload-Concat`, which is not that of a final one.
pub(super) fn role(urls: &Urls, concat: Option<&str>) -> Result<Role, Error> {
    match concat {
        None => Ok(Role::Whole),
        Some("partial") if urls.concats => Ok(Role::Part),
        Some("partial") => Err(Reason::Unsupported.into()),
        Some(_) => Err(invalid(UPLOAD_CONCAT, "is neither `partial` nor `final`")),
    }
}

/// Describes an upload that is made of those with these URLs.
pub(super) fn concat(urls: &Urls, mut new: New, list: &str) -> Result<UrlCommand, Error> {
    if !urls.concats {
        return Err(Reason::Unsupported.into());
    }
    let list = list.split(' ').filter(|url| !url.is_empty());
    let tokens = list.map(|url| {
        let token = urls.token_in(url);
        token.ok_or_else(|| invalid(UPLOAD_CONCAT, "has a URL that is not one of an upload"))
    });
    let parts = tokens.collect::<Result<Vec<_>, _>>()?;
    if parts.is_empty() || parts.len() > PARTS_OF_UPLOAD {
        return Err(invalid(UPLOAD_CONCAT, "has no part, or too many"));
    }
    // A request that is sent again names the same upload. Only the owner knows the tokens.
    let metadata = new.creation.metadata.as_deref();
    let all = parts.iter().map(String::as_str);
    let all = ["final"].into_iter().chain(all).chain(metadata);
    let hash = UploadId::new(&Scope::default(), all);
    let token = Hex(&hash.as_bytes()[..16]).to_string();
    new.creation.parts = parts;
    Ok(UrlCommand::Concat { new, token })
}

/// The limits of a layer, as the IETF draft tells them.
pub(super) fn upload_limit(limits: &Limits) -> String {
    let members = [
        ("max-size", limits.file_size),
        ("max-append-size", limits.append_size),
    ];
    let members = members.into_iter().filter(|(_, size)| *size <= MAX_INTEGER);
    let members: Vec<_> = members.map(|(key, size)| format!("{key}={size}")).collect();
    if members.is_empty() {
        // The header must not be empty.
        "min-size=0".to_owned()
    } else {
        members.join(", ")
    }
}

/// The recorded answer of the inner service.
pub(super) fn repeated(record: &Record) -> Response<Bytes> {
    let mut response = Response::new(record.body.clone().unwrap_or_default());
    *response.status_mut() = record.status;
    let headers = response.headers_mut();
    headers.clone_from(&record.headers);
    if record.body.is_none() {
        // It was too long to be recorded.
        for name in CONTENT {
            headers.remove(name);
        }
    }
    response
}

/// How many bytes of an upload are stored.
#[derive(Clone, Copy)]
pub(crate) struct Held<'a> {
    pub(crate) upload: &'a Upload,
    /// `None` for an upload whose parts are not complete.
    pub(crate) offset: Option<u64>,
    /// When the upload is removed if no request for it comes before.
    pub(crate) expires: Option<SystemTime>,
}

/// The value of a header that may be sent once.
pub(super) fn single<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
) -> Result<Option<&'a str>, Error> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        let name = name.as_str().to_owned();
        return Err(Reason::ConflictingField { name }.into());
    }
    let value = value.to_str().map_err(|_| invalid(name, "is not text"))?;
    Ok(Some(value.trim()))
}

/// The number in a header: digits only, without leading zeros.
pub(super) fn number(headers: &HeaderMap, name: &HeaderName) -> Result<Option<u64>, Error> {
    let Some(value) = single(headers, name)? else {
        return Ok(None);
    };
    let is_plain =
        value == "0" || value.bytes().all(|byte| byte.is_ascii_digit()) && !value.starts_with('0');
    let number = value.parse().ok().filter(|_| is_plain);
    match number {
        Some(number) => Ok(Some(number)),
        None => Err(invalid(name, "is not a number of bytes")),
    }
}

pub(super) fn invalid(name: impl AsRef<str>, problem: &'static str) -> Error {
    let name = name.as_ref().to_owned();
    Reason::InvalidField { name, problem }.into()
}

pub(super) fn missing(name: &HeaderName) -> Error {
    let name = name.as_str().to_owned();
    Reason::MissingField { name }.into()
}

/// A time in the format of HTTP (RFC 9110 §5.6.7), such as `Sun, 06 Nov 1994 08:49:37 GMT`. `None`
/// before 1970 and after 9999.
pub(super) fn http_date(time: SystemTime) -> Option<HeaderValue> {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [(&str, u64); 12] = [
        ("Jan", 31),
        ("Feb", 28),
        ("Mar", 31),
        ("Apr", 30),
        ("May", 31),
        ("Jun", 30),
        ("Jul", 31),
        ("Aug", 31),
        ("Sep", 30),
        ("Oct", 31),
        ("Nov", 30),
        ("Dec", 31),
    ];
    const END: Duration = Duration::from_secs(253_402_300_800);
    let since = time.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    let seconds = Some(since).filter(|since| *since < END)?.as_secs();
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    let is_leap = |year: u64| year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let (mut year, mut day) = (1970, days);
    while day >= 365 + u64::from(is_leap(year)) {
        day -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let mut month = 0;
    for (index, (_, length)) in MONTHS.iter().enumerate() {
        let length = length + u64::from(index == 1 && is_leap(year));
        if day < length {
            month = index;
            break;
        }
        day -= length;
    }
    let date = format!(
        "{}, {:02} {} {year} {:02}:{:02}:{:02} GMT",
        DAYS[(days % 7) as usize],
        day + 1,
        MONTHS[month].0,
        of_day / 3600,
        of_day / 60 % 60,
        of_day % 60,
    );
    HeaderValue::try_from(date).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "0123456789abcdef0123456789abcdef";
    const OTHER: &str = "ffffffffffffffffffffffffffffffff";

    fn head(uri: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = http::Request::builder().uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn numbers_are_digits_only() {
        for (values, expected) in [
            (&["0"][..], Ok(Some(0))),
            (&["25"], Ok(Some(25))),
            (&["18446744073709551615"], Ok(Some(u64::MAX))),
            (&["9223372036854775808"], Ok(Some(1 << 63))),
            (&[], Ok(None)),
            (&["+5"], Err("invalid_field")),
            (&["-5"], Err("invalid_field")),
            (&["05"], Err("invalid_field")),
            (&["00"], Err("invalid_field")),
            (&["5.0"], Err("invalid_field")),
            (&["5e3"], Err("invalid_field")),
            (&["0x5"], Err("invalid_field")),
            (&["5, 5"], Err("invalid_field")),
            (&[""], Err("invalid_field")),
            (&["18446744073709551616"], Err("invalid_field")),
            (&["5", "5"], Err("conflicting_field")),
            (&["5", "6"], Err("conflicting_field")),
        ] {
            let values: Vec<_> = values
                .iter()
                .map(|value| ("upload-offset", *value))
                .collect();
            let number = number(&head("/", &values).headers, &UPLOAD_OFFSET);
            let number = number.map_err(|error| error.kind().as_str());
            assert_eq!(number, expected, "{values:?}");
        }
        let mut headers = HeaderMap::new();
        headers.insert(UPLOAD_OFFSET, HeaderValue::from_bytes(b"\xb2").unwrap());
        assert!(number(&headers, &UPLOAD_OFFSET).is_err());
    }

    #[test]
    fn tokens_are_in_the_query_or_the_path() {
        let query = Urls::default();
        let path = Urls {
            in_path: true,
            ..Urls::default()
        };
        let upper = TOKEN.to_uppercase();
        for (uri, in_query, in_path) in [
            (format!("/files?upload={TOKEN}"), true, true),
            (format!("/files?a=b&upload={TOKEN}&c"), true, true),
            (format!("/files/{TOKEN}"), false, true),
            (format!("/files/{TOKEN}/"), false, false),
            (format!("/files?upload={upper}"), false, false),
            (format!("/files?upload={TOKEN}0"), false, false),
            (format!("/files?uploads={TOKEN}"), false, false),
            (
                format!("/files?upload={TOKEN}&upload={OTHER}"),
                false,
                false,
            ),
            (
                format!("/files?upload={OTHER}0&upload={TOKEN}"),
                false,
                false,
            ),
            ("/files?upload=".to_owned(), false, false),
            ("/files?upload".to_owned(), false, false),
            ("/files".to_owned(), false, false),
        ] {
            for (urls, expected) in [(&query, in_query), (&path, in_path)] {
                let token = urls.token(&head(&uri, &[]));
                assert_eq!(token.is_some(), expected, "{uri} {urls:?}");
                let absolute = format!("http://other.example{uri}#f");
                assert_eq!(urls.token_in(&absolute).is_some(), expected, "{absolute}");
            }
        }
        assert_eq!(
            query.token_in(&format!("?upload={TOKEN}")).as_deref(),
            Some(TOKEN)
        );
        assert_eq!(path.token_in(TOKEN).as_deref(), Some(TOKEN));
    }

    #[test]
    fn a_location_leads_to_its_upload() {
        let scope = || Scope::new("alice");
        for (public, in_path, path, expected) in [
            (None, false, "/files", format!("/files?upload={TOKEN}")),
            (None, true, "/files", format!("/files/{TOKEN}")),
            (None, false, "/", format!("/?upload={TOKEN}")),
            (
                None,
                false,
                "//evil.example/x",
                format!("/.//evil.example/x?upload={TOKEN}"),
            ),
            (
                Some("https://h/files"),
                false,
                "/f",
                format!("https://h/files?upload={TOKEN}"),
            ),
            (
                Some("https://h/files?a"),
                false,
                "/f",
                format!("https://h/files?a&upload={TOKEN}"),
            ),
            (
                Some("https://h/files/"),
                true,
                "/f",
                format!("https://h/files/{TOKEN}"),
            ),
        ] {
            let urls = Urls {
                public: public.map(str::to_owned),
                in_path,
                ..Urls::default()
            };
            let upload = named(TOKEN, scope(), path);
            let location = urls.location(&upload).unwrap();
            assert_eq!(location, expected);
            if public.is_none() {
                let asked = if in_path {
                    format!("{path}/{TOKEN}")
                } else {
                    path.to_owned()
                };
                let token = urls
                    .token(&head(&format!("{asked}?upload={TOKEN}"), &[]))
                    .unwrap();
                assert_eq!(token.upload(scope(), path).id, upload.id);
                if let Some(token) = urls.token(&head(&asked, &[])) {
                    assert_eq!(token.upload(scope(), &asked).id, upload.id);
                }
            }
        }
        let id = |token: &str, scope: &str, path: &str| named(token, scope.into(), path).id;
        let ids = [
            id(TOKEN, "alice", "/files"),
            id(TOKEN, "bob", "/files"),
            id(OTHER, "alice", "/files"),
            id(TOKEN, "alice", "/other"),
            // Of a chunk client.
            UploadId::new(&Scope::new("alice"), [TOKEN]),
        ];
        for (i, id) in ids.iter().enumerate() {
            assert!(!ids[..i].contains(id), "id {i} is not new");
        }
    }

    #[test]
    fn dates_are_those_of_http() {
        for (seconds, expected) in [
            (0, Some("Thu, 01 Jan 1970 00:00:00 GMT")),
            (784_111_777, Some("Sun, 06 Nov 1994 08:49:37 GMT")),
            (951_782_400, Some("Tue, 29 Feb 2000 00:00:00 GMT")),
            (1_709_251_199, Some("Thu, 29 Feb 2024 23:59:59 GMT")),
            (4_107_542_400, Some("Mon, 01 Mar 2100 00:00:00 GMT")),
            (253_402_300_799, Some("Fri, 31 Dec 9999 23:59:59 GMT")),
            (253_402_300_800, None),
        ] {
            let date = http_date(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
            let date = date.map(|date| date.to_str().unwrap().to_owned());
            assert_eq!(date.as_deref(), expected);
        }
        assert_eq!(
            http_date(SystemTime::UNIX_EPOCH - Duration::from_secs(1)),
            None
        );
    }
}
