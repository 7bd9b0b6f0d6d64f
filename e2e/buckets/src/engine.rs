//! The object store under test, which `run` has started.

use std::{
    error::Error as StdError, net::SocketAddr, path::PathBuf, process::Stdio, time::Duration,
};

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use object_store::{
    BackoffConfig, ObjectStore as _, RetryConfig,
    aws::{AmazonS3, AmazonS3Builder, AwsAuthorizer, AwsCredential},
    client::HttpRequestBody,
};
use tokio::{net::TcpStream, process::Command};

pub type Error = Box<dyn StdError + Send + Sync>;

const REGION: &str = "us-east-1";
const KEY: &str = "test";
const SECRET: &str = "testsecret";

#[derive(Clone, Debug)]
pub struct Engine {
    pub name: String,
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
            gateways,
            bucket: format!("bucket-{}", std::process::id()),
            ceph,
            script,
        };
        let bucket = format!("/{}", engine.bucket);
        match engine.request(Method::PUT, &bucket).await? {
            (StatusCode::OK, _) => Ok(engine),
            (status, body) => Err(format!("no bucket: {status}: {body}").into()),
        }
    }

    /// The gateway that the server with this number uses.
    pub fn gateway(&self, server: usize) -> SocketAddr {
        self.gateways[server % self.gateways.len()]
    }

    /// A client that uses no proxy.
    pub fn direct(&self) -> Result<AmazonS3, Error> {
        client(self.gateways[0], &self.bucket)
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
        // The first thousand. There are few in this bucket.
        let path = format!("/{}?uploads", self.bucket);
        let (status, body) = self.request(Method::GET, &path).await?;
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
    async fn request(&self, method: Method, path: &str) -> Result<(StatusCode, String), Error> {
        let host = self.gateways[0];
        let mut request = Request::builder()
            .method(method)
            .uri(format!("http://{host}{path}"))
            .body(HttpRequestBody::empty())?;
        let credential = AwsCredential {
            key_id: KEY.into(),
            secret_key: SECRET.into(),
            token: None,
        };
        AwsAuthorizer::new(&credential, "s3", REGION).try_authorize(&mut request, None)?;
        *request.uri_mut() = path.parse()?;
        request
            .headers_mut()
            .insert(header::HOST, host.to_string().parse()?);
        let request = request.map(|_| Full::new(Bytes::new()));
        let stream = TokioIo::new(TcpStream::connect(host).await?);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
        tokio::spawn(connection);
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let body = answer.into_body().collect().await?.to_bytes();
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }
}

/// The client of the servers and of the checks. It has the usual settings, but fewer retries.
pub fn client(endpoint: SocketAddr, bucket: &str) -> Result<AmazonS3, Error> {
    let retry = RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(20),
            ..BackoffConfig::default()
        },
        max_retries: 2,
        retry_timeout: Duration::from_secs(10),
    };
    let client = AmazonS3Builder::new()
        .with_endpoint(format!("http://{endpoint}"))
        .with_allow_http(true)
        .with_region(REGION)
        .with_bucket_name(bucket)
        .with_access_key_id(KEY)
        .with_secret_access_key(SECRET)
        .with_retry(retry)
        .build()?;
    Ok(client)
}
