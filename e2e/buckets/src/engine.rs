//! The object store under test, which `run` has started.

use std::{
    error::Error as StdError, fmt, net::SocketAddr, path::PathBuf, process::Stdio, time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream::BoxStream};
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use object_store::{
    BackoffConfig, ClientOptions, CopyOptions, GetOptions, GetResult, ListResult, MultipartId,
    MultipartUpload, ObjectMeta, ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload,
    PutResult, RetryConfig,
    aws::{AmazonS3Builder, AwsAuthorizer, AwsCredential},
    azure::{AzureAccessKey, AzureAuthorizer, AzureCredential, MicrosoftAzureBuilder},
    client::HttpRequestBody,
    gcp::GoogleCloudStorageBuilder,
    multipart::{MultipartStore, PartId},
    path::Path,
};
use tokio::{net::TcpStream, process::Command};

pub type Error = Box<dyn StdError + Send + Sync>;

const REGION: &str = "us-east-1";
const KEY: &str = "test";
const SECRET: &str = "testsecret";

/// The account that Azurite has without configuration.
const AZURE_ACCOUNT: &str = "devstoreaccount1";
const AZURE_KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/\
                         KBHBeksoGMGw==";

/// The protocol of an engine.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    S3,
    Azure,
    Google,
}

impl Kind {
    /// The protocol of the engine with this name.
    pub fn of(engine: &str) -> Self {
        match engine {
            "azurite" => Self::Azure,
            "fake-gcs-server" | "gcp-storage-emulator" => Self::Google,
            _ => Self::S3,
        }
    }

    /// The client of the servers and of the checks. It has the usual settings, but fewer retries.
    pub fn client(self, endpoint: SocketAddr, bucket: &str) -> Result<Client, Error> {
        let retry = RetryConfig {
            backoff: BackoffConfig {
                init_backoff: Duration::from_millis(20),
                ..BackoffConfig::default()
            },
            max_retries: 2,
            retry_timeout: Duration::from_secs(10),
        };
        let engine: Box<dyn FullStore> = match self {
            Self::S3 => Box::new(
                AmazonS3Builder::new()
                    .with_endpoint(format!("http://{endpoint}"))
                    .with_allow_http(true)
                    .with_region(REGION)
                    .with_bucket_name(bucket)
                    .with_access_key_id(KEY)
                    .with_secret_access_key(SECRET)
                    .with_retry(retry)
                    .build()?,
            ),
            Self::Azure => Box::new(
                MicrosoftAzureBuilder::new()
                    .with_endpoint(format!("http://{endpoint}/{AZURE_ACCOUNT}"))
                    .with_allow_http(true)
                    .with_account(AZURE_ACCOUNT)
                    .with_access_key(AZURE_KEY)
                    .with_container_name(bucket)
                    .with_retry(retry)
                    .build()?,
            ),
            Self::Google => Box::new(
                GoogleCloudStorageBuilder::new()
                    .with_base_url(&format!("http://{endpoint}"))
                    .with_client_options(ClientOptions::new().with_allow_http(true))
                    .with_bearer_token(SECRET)
                    .with_bucket_name(bucket)
                    .with_retry(retry)
                    .build()?,
            ),
        };
        Ok(Client {
            engine,
            ignores_conditions: false,
        })
    }
}

#[derive(Clone, Debug)]
pub struct Engine {
    pub name: String,
    pub kind: Kind,
    pub gateways: Vec<SocketAddr>,
    pub bucket: String,
    /// The folder of Ceph. Its gateways can be killed.
    ceph: Option<PathBuf>,
    /// The script that starts a gateway again.
    script: Option<PathBuf>,
}

impl Engine {
    /// Creates a bucket. `endpoints` has the addresses of the gateways, one per line.
    pub async fn new(
        name: &str,
        endpoints: &str,
        ceph: Option<(PathBuf, PathBuf)>,
    ) -> Result<Self, Error> {
        let gateways = endpoints
            .split_whitespace()
            .map(|url| url.trim_start_matches("http://").parse())
            .collect::<Result<Vec<SocketAddr>, _>>()?;
        let (ceph, script) = ceph.unzip();
        let engine = Self {
            name: name.into(),
            kind: Kind::of(name),
            gateways,
            bucket: format!("bucket-{}", std::process::id()),
            ceph,
            script,
        };
        let name = &engine.bucket;
        let (method, path, body) = match engine.kind {
            Kind::S3 => (Method::PUT, format!("/{name}"), String::new()),
            Kind::Azure => {
                let path = format!("/{AZURE_ACCOUNT}/{name}?restype=container");
                (Method::PUT, path, String::new())
            }
            Kind::Google => {
                let path = "/storage/v1/b?project=test".into();
                (Method::POST, path, format!(r#"{{"name":"{name}"}}"#))
            }
        };
        match engine.request(method, &path, body).await? {
            (StatusCode::OK | StatusCode::CREATED, _) => Ok(engine),
            (status, body) => Err(format!("no bucket: {status}: {body}").into()),
        }
    }

    /// The gateway that the server with this number uses.
    pub fn gateway(&self, server: usize) -> SocketAddr {
        self.gateways[server % self.gateways.len()]
    }

    /// A client that uses no proxy.
    pub fn direct(&self) -> Result<Client, Error> {
        self.kind.client(self.gateways[0], &self.bucket)
    }

    /// The environment variables that configure an S3 client.
    pub fn environment(&self) -> [(&'static str, String); 6] {
        [
            ("AWS_ENDPOINT", format!("http://{}", self.gateways[0])),
            ("AWS_ALLOW_HTTP", "true".into()),
            ("AWS_REGION", REGION.into()),
            ("AWS_BUCKET_NAME", self.bucket.clone()),
            ("AWS_ACCESS_KEY_ID", KEY.into()),
            ("AWS_SECRET_ACCESS_KEY", SECRET.into()),
        ]
    }

    /// All keys below a prefix, with their sizes.
    pub async fn list(&self, prefix: &str) -> Result<Vec<(String, u64)>, Error> {
        let store = self.direct()?;
        let mut found = Vec::new();
        let mut list = store.list(Some(&prefix.into()));
        while let Some(object) = list.next().await {
            let object = object?;
            found.push((object.location.to_string(), object.size));
        }
        Ok(found)
    }

    /// The keys of the multipart uploads below a prefix that are neither completed nor aborted.
    pub async fn multipart_uploads(&self, prefix: &str) -> Result<Vec<String>, Error> {
        // Azure has none: it keeps blocks, and drops those that are not committed after a week.
        if self.kind != Kind::S3 {
            return Ok(Vec::new());
        }
        // The first thousand. There are few in this bucket.
        let path = format!("/{}?uploads", self.bucket);
        let (status, body) = self.request(Method::GET, &path, String::new()).await?;
        if status != StatusCode::OK {
            return Err(format!("cannot list multipart uploads: {status}: {body}").into());
        }
        let keys = body.split("<Key>").skip(1);
        let keys = keys.filter_map(|rest| Some(rest.split_once("</Key>")?.0.to_owned()));
        Ok(keys.filter(|key| key.starts_with(prefix)).collect())
    }

    /// Kills the second gateway. Returns false if the object store has only one.
    pub async fn kill_gateway(&self) -> Result<bool, Error> {
        let Some(ceph) = &self.ceph else {
            return Ok(false);
        };
        let pid = std::fs::read_to_string(ceph.join("run/client.rgw.b.pid"))?;
        Command::new("kill")
            .args(["-9", pid.trim()])
            .status()
            .await?;
        Ok(true)
    }

    pub async fn restart_gateway(&self) -> Result<(), Error> {
        let (Some(ceph), Some(script)) = (&self.ceph, &self.script) else {
            return Ok(());
        };
        let status = Command::new(script)
            .arg("gateway")
            .arg(ceph)
            .arg("b")
            .stdin(Stdio::null())
            .status()
            .await?;
        if status.success() {
            Ok(())
        } else {
            Err("the gateway does not start again".into())
        }
    }

    /// Sends a request for which the crate `object_store` has no method.
    async fn request(
        &self,
        method: Method,
        path: &str,
        body: String,
    ) -> Result<(StatusCode, String), Error> {
        let host = self.gateways[0];
        let mut request = Request::builder()
            .method(method)
            .uri(format!("http://{host}{path}"))
            .body(HttpRequestBody::empty())?;
        match self.kind {
            Kind::S3 => {
                let credential = AwsCredential {
                    key_id: KEY.into(),
                    secret_key: SECRET.into(),
                    token: None,
                };
                AwsAuthorizer::new(&credential, "s3", REGION).try_authorize(&mut request, None)?;
            }
            Kind::Azure => {
                let key = AzureCredential::AccessKey(AzureAccessKey::try_new(AZURE_KEY)?);
                AzureAuthorizer::new(&key, AZURE_ACCOUNT).try_authorize(&mut request)?;
            }
            // The emulators accept every client.
            Kind::Google => {}
        }
        *request.uri_mut() = path.parse()?;
        request
            .headers_mut()
            .insert(header::HOST, host.to_string().parse()?);
        let request = request.map(|_| Full::new(Bytes::from(body)));
        let stream = TokioIo::new(TcpStream::connect(host).await?);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
        tokio::spawn(connection);
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let body = answer.into_body().collect().await?.to_bytes();
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }
}

/// What `BucketStore` needs of an engine.
trait FullStore: ObjectStore + MultipartStore {}

impl<T: ObjectStore + MultipartStore> FullStore for T {}

/// A client of one of the engines.
#[derive(Debug)]
pub struct Client {
    engine: Box<dyn FullStore>,
    /// As some engines do it.
    ignores_conditions: bool,
}

impl Client {
    /// Lets the client behave as if the engine ignored `If-None-Match`.
    pub fn ignoring_conditions(self) -> Self {
        Self {
            ignores_conditions: true,
            ..self
        }
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.engine.fmt(f)
    }
}

#[async_trait]
impl ObjectStore for Client {
    async fn put_opts(
        &self,
        path: &Path,
        payload: PutPayload,
        mut options: PutOptions,
    ) -> object_store::Result<PutResult> {
        if self.ignores_conditions {
            options.mode = PutMode::Overwrite;
        }
        self.engine.put_opts(path, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.engine.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        self.engine.get_opts(path, options).await
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        self.engine.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.engine.list(prefix)
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.engine.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.engine.list_with_delimiter(prefix).await
    }

    async fn copy_opts(
        &self,
        from: &Path,
        to: &Path,
        options: CopyOptions,
    ) -> object_store::Result<()> {
        self.engine.copy_opts(from, to, options).await
    }
}

#[async_trait]
impl MultipartStore for Client {
    async fn create_multipart(&self, path: &Path) -> object_store::Result<MultipartId> {
        self.engine.create_multipart(path).await
    }

    async fn put_part(
        &self,
        path: &Path,
        id: &MultipartId,
        index: usize,
        payload: PutPayload,
    ) -> object_store::Result<PartId> {
        self.engine.put_part(path, id, index, payload).await
    }

    async fn complete_multipart(
        &self,
        path: &Path,
        id: &MultipartId,
        parts: Vec<PartId>,
    ) -> object_store::Result<PutResult> {
        self.engine.complete_multipart(path, id, parts).await
    }

    async fn abort_multipart(&self, path: &Path, id: &MultipartId) -> object_store::Result<()> {
        self.engine.abort_multipart(path, id).await
    }
}
