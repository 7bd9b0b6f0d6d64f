use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use sha2::{Digest as _, Sha256};

use super::hex::{self, Hex};

/// The path that is not part of the ids of its uploads, because version 1 of the format began
/// without paths.
pub(crate) const UNNAMED_PATH: &str = "/upload";

/// Name of an upload: a SHA-256 hash of its [scope](Scope) and of what identifies it in the
/// protocol of its client.
///
/// Stores derive the names of files and objects from it. No text of a client is ever a path, a file
/// name or an object key.
///
/// ```
/// use tower_resumable::{Scope, UploadId};
///
/// let id = UploadId::new(&Scope::new("alice"), [b"file-7"]);
/// assert_ne!(id, UploadId::new(&Scope::new("bob"), [b"file-7"]));
/// assert_eq!(UploadId::from_hex(&id.to_string()), Some(id));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UploadId([u8; 32]);

impl UploadId {
    /// Returns the id of the upload of `scope` that these values identify.
    ///
    /// The order of the values and their boundaries matter: `["ab", "c"]` and `["a", "bc"]` have
    /// different ids.
    pub fn new<T: AsRef<[u8]>>(scope: &Scope, identity: impl IntoIterator<Item = T>) -> Self {
        let mut hash = Sha256::new();
        let mut add = |bytes: &[u8]| {
            // The length comes first, so that no two lists of values give the same bytes.
            hash.update((bytes.len() as u64).to_be_bytes());
            hash.update(bytes);
        };
        add(b"tower-resumable 1");
        add(scope.as_str().as_bytes());
        identity.into_iter().for_each(|value| add(value.as_ref()));
        Self(hash.finalize().into())
    }

    /// The id with these bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes of the id.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Parses what [`Display`](fmt::Display) writes: 64 lower-case hexadecimal digits. `None` for
    /// any other text.
    pub fn from_hex(hex: &str) -> Option<Self> {
        hex::decode_exact(hex).map(Self)
    }
}

impl fmt::Display for UploadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Hex(&self.0).fmt(f)
    }
}

impl fmt::Debug for UploadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UploadId({self})")
    }
}

impl Serialize for UploadId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for UploadId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::from_hex(&text).ok_or_else(|| D::Error::custom("not an upload id"))
    }
}

/// Owner of an upload: a user, a tenant or a session, by any name that the application has for it.
///
/// Uploads of different scopes can neither see nor change each other. The scope is hashed into the
/// [`UploadId`] and is never a path. The default scope is the empty string.
///
/// ```
/// use tower_resumable::Scope;
///
/// assert_eq!(Scope::new("user-7"), Scope::from("user-7"));
/// assert_eq!(Scope::default().as_str(), "");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Scope(String);

impl Scope {
    /// The scope with this name.
    pub fn new(name: impl Into<String>) -> Self {
        Self(name.into())
    }

    /// The name of the scope.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<String> for Scope {
    fn from(name: String) -> Self {
        Self(name)
    }
}

impl From<&str> for Scope {
    fn from(name: &str) -> Self {
        Self(name.to_owned())
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What an upload is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Role {
    /// A file of its own, which is delivered when it is complete.
    #[default]
    Whole,
    /// A part of a file that is concatenated later. It is never delivered.
    Part,
}

/// One file that is being uploaded, as its client describes it.
///
/// All texts come from the client: do not trust them.
///
/// ```
/// use tower_resumable::{Scope, Upload, UploadId};
///
/// let scope = Scope::new("alice");
/// let mut upload = Upload::new(UploadId::new(&scope, ["7"]), scope, Some(10));
/// upload.file_name = Some("a.txt".into());
/// assert!(!upload.is_empty_file());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Upload {
    /// The id of the upload.
    pub id: UploadId,
    /// The owner.
    pub scope: Scope,
    /// The path of the request that began the upload. `None` if it was begun by a version that did
    /// not store paths, at the path `/upload`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_path: Option<String>,
    /// The client's name for the upload. If the layer has made a URL for the upload, it is the
    /// random token in that URL.
    pub identifier: String,
    /// Length of the whole file in bytes. `None` until the client declares it.
    pub length: Option<u64>,
    /// What the upload is for.
    #[serde(default)]
    pub role: Role,
    /// Length of each chunk but the last in bytes, if the client declares it. A store may choose
    /// its layout by it, but chunks need not have this length.
    #[serde(default)]
    pub chunk_size: Option<u64>,
    /// The name of the file.
    pub file_name: Option<String>,
    /// The path of the file inside the folder that the user has chosen.
    pub relative_path: Option<String>,
    /// The media type of the file.
    pub content_type: Option<String>,
    /// The application's own form and query fields.
    pub fields: Vec<(String, String)>,
    /// The request that created the upload, if the layer has made a URL for it: the inner service
    /// gets a request with this method and URI.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creation: Option<Creation>,
}

/// The request that created an upload which has a URL, as clients of tus 1.0 use them.
///
/// It is stored with the upload, because later requests have another method, URI and headers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Creation {
    /// The method.
    pub method: String,
    /// The path and the query.
    pub uri: String,
    /// The header `Upload-Metadata`, as it was sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<String>,
    /// The tokens of the uploads that this one is made of, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<String>,
    /// The length of the file in bytes, if the client has declared it and says by itself when the
    /// upload is complete, as clients of the IETF draft do. Then the [length](Upload::length) of
    /// the upload is not known before. It can come with an [append](crate::store::Store::append).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<u64>,
    /// The headers that describe the file, of a client of the IETF draft: the inner service gets
    /// them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<(String, String)>,
}

impl Upload {
    /// Creates an upload with these values. All others are empty. `length` is in bytes.
    pub fn new(id: UploadId, scope: Scope, length: Option<u64>) -> Self {
        Self {
            id,
            scope,
            request_path: None,
            identifier: String::new(),
            length,
            role: Role::Whole,
            chunk_size: None,
            file_name: None,
            relative_path: None,
            content_type: None,
            fields: Vec::new(),
            creation: None,
        }
    }

    /// The length that the client has declared, although it says by itself when the upload is
    /// complete.
    pub(crate) fn declared(&self) -> Option<u64> {
        self.creation.as_ref()?.length
    }

    /// Notes such a length. The first one stays.
    pub(crate) fn declare(&mut self, length: Option<u64>) {
        if let Some(creation) = &mut self.creation {
            creation.length = creation.length.or(length);
        }
    }

    /// Whether the upload was begun at this path.
    pub(crate) fn is_at(&self, path: &str) -> bool {
        self.request_path.as_deref().unwrap_or(UNNAMED_PATH) == path
    }

    /// Whether the file is known to be empty.
    pub fn is_empty_file(&self) -> bool {
        self.length == Some(0)
    }

    /// Whether both declare a length, and not the same one. Then a request for `other` contradicts
    /// the upload that exists.
    pub fn contradicts(&self, other: &Upload) -> bool {
        self.length.zip(other.length).is_some_and(|(a, b)| a != b)
    }

    /// The value of the first of the application's fields with this name.
    pub fn field(&self, name: &str) -> Option<&str> {
        let mut fields = self.fields.iter();
        let (_, value) = fields.find(|(field, _)| field == name)?;
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn different_identities_have_different_ids() {
        let id = |scope: &str, identity: &[&str]| UploadId::new(&Scope::new(scope), identity);
        let ids = [
            id("", &["a"]),
            id("u", &["a"]),
            id("", &["b"]),
            id("", &["a", ""]),
            id("", &["a", "b"]),
            id("", &["ab"]),
            id("a", &[]),
            id("", &[]),
        ];
        for (i, id) in ids.iter().enumerate() {
            assert!(!ids[..i].contains(id), "id {i} is not new");
        }
        assert_eq!(id("u", &["a", "b"]), id("u", &["a", "b"]));
    }

    /// What version 1 writes is read by all later versions.
    #[test]
    fn uploads_are_written_as_json() {
        let scope = Scope::new("s");
        let mut upload = Upload::new(UploadId::from_bytes([7; 32]), scope, Some(u64::MAX));
        upload.identifier = "i\n\"".into();
        upload.file_name = Some("日本".into());
        upload.fields = vec![("a".into(), "b".into())];
        let id = "07".repeat(32);
        let text = format!(
            "{{\"id\":\"{id}\",\"scope\":\"s\",\"identifier\":\"i\\n\\\"\",\
             \"length\":18446744073709551615,\"role\":\"whole\",\"chunk_size\":null,\
             \"file_name\":\"日本\",\"relative_path\":null,\"content_type\":null,\
             \"fields\":[[\"a\",\"b\"]]}}"
        );
        assert_eq!(serde_json::to_string(&upload).unwrap(), text);
        assert_eq!(serde_json::from_str::<Upload>(&text).unwrap(), upload);
        let with_path = text.replace("\"identifier\"", "\"request_path\":\"/a\",\"identifier\"");
        upload.request_path = Some("/a".into());
        assert_eq!(serde_json::to_string(&upload).unwrap(), with_path);
        assert_eq!(serde_json::from_str::<Upload>(&with_path).unwrap(), upload);
        for broken in [
            text.replace(&id, "07"),
            text.replace("whole", "hole"),
            text.replace("\"s\"", "1"),
        ] {
            assert!(serde_json::from_str::<Upload>(&broken).is_err(), "{broken}");
        }
    }
}
