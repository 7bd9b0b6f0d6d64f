use std::{fmt, net::IpAddr, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Response, request::Parts};
use tower_layer::Layer;

use crate::{
    config::{Config, Digests},
    delivery::Delivery,
    engine::Engine,
    error::Error,
    events::{Event, Events},
    hooks::{Admission, Refusal},
    limits::{LONGEST, Limits},
    model::upload::{Scope, Upload},
    protocol::{
        Protocol,
        chunked::{ClientOptions, Field, IdentityRule},
    },
    retention::Retention,
    route::Route,
    service::Resumable,
    store::{Store, StoreEvent},
    uploads::Uploads,
};

/// Layer that applies [`Resumable`], which receives uploads and delivers complete files.
///
/// It has no type parameter for the store. All settings have safe defaults. Clones share their
/// uploads and have their own settings.
///
/// # Order of layers
///
/// The layer answers most requests itself. So a layer that changes all answers, such as
/// tower-http's `CorsLayer`, or that all requests have to pass, such as authentication, goes
/// outside of it: with `Router::layer`, it is added later. Behind it, a `CorsLayer` only sees the
/// requests of complete files, and a browser refuses the other answers.
///
/// A layer that changes request bodies, such as `RequestDecompressionLayer`, goes outside too: a
/// body in a coding is refused. A `CompressionLayer` can be on either side. Behind the layer it
/// only compresses the answers to whole files in one request: other answers are recorded and
/// repeated to requests with other headers, so the inner service gets those requests without
/// `Accept-Encoding` and `Range`.
///
/// ```
/// use std::time::Duration;
/// use tower_resumable::{Delivery, Limits, MemoryStore, ResumableLayer};
///
/// let layer = ResumableLayer::new(MemoryStore::default())
///     .with_path("/files/upload")
///     .with_limits(Limits::default().with_file_size(10 << 30))
///     .with_delivery(Delivery::default().with_timeout(Duration::from_secs(20)));
/// # let _ = layer;
/// ```
#[derive(Clone)]
#[must_use]
pub struct ResumableLayer {
    engine: Engine,
}

impl ResumableLayer {
    /// Creates a layer that keeps uploads in `store` and answers on the path `/upload`.
    pub fn new(store: impl Store) -> Self {
        Self {
            engine: Engine::new(Arc::new(store)),
        }
    }

    /// Sets the path that the layer answers on. Default: `/upload`.
    ///
    /// It has to equal the path that the layer sees: inside an axum `nest`, that is the path
    /// without the prefix. It is compared as the client sends it, that is percent-encoded.
    ///
    /// # Panics
    ///
    /// If no request can have this path: it does not begin with `/`, it has a query or a fragment,
    /// or it has a character that clients encode, such as a space, a letter that is not ASCII, or
    /// the braces of a pattern. A router panics for such a route, too.
    #[track_caller]
    pub fn with_path(self, path: impl Into<String>) -> Self {
        let route = Route::of_path(path.into());
        self.with(|config| config.route = route)
    }

    /// Answers the requests for which `matcher` returns `true`, instead of those with a certain
    /// path.
    ///
    /// ```
    /// use tower_resumable::{MemoryStore, ResumableLayer};
    ///
    /// let layer = ResumableLayer::new(MemoryStore::default())
    ///     .with_matcher(|parts| parts.uri.path().ends_with("/upload"));
    /// # let _ = layer;
    /// ```
    pub fn with_matcher(self, matcher: impl Fn(&Parts) -> bool + Send + Sync + 'static) -> Self {
        self.with(|config| config.route = Route::Matcher(Arc::new(matcher)))
    }

    /// Adds a protocol, or replaces the one of the same name.
    ///
    /// By default the layer understands [Resumable.js](crate::Dialect::resumable_js),
    /// [flow.js](crate::Dialect::flow_js), [Dropzone](crate::Dialect::dropzone),
    /// [Fine Uploader](crate::Dialect::fine_uploader), [whole files](Protocol::plain),
    /// [tus 1.0](Protocol::tus) and the [IETF draft](Protocol::ietf_draft).
    ///
    /// ```
    /// use tower_resumable::{Dialect, MemoryStore, ResumableLayer};
    ///
    /// let layer = ResumableLayer::new(MemoryStore::default())
    ///     .with_protocol(Dialect::resumable_js().with_namespace("up_"))
    ///     .with_protocol(Dialect::simple_uploader());
    /// # let _ = layer;
    /// ```
    pub fn with_protocol(self, protocol: impl Into<Protocol>) -> Self {
        self.with(|config| config.protocols.add(protocol.into()))
    }

    /// Sets the protocols, and removes all others.
    ///
    /// ```
    /// use tower_resumable::{Dialect, MemoryStore, Protocol, ResumableLayer};
    ///
    /// let layer = ResumableLayer::new(MemoryStore::default())
    ///     .with_protocols([Dialect::dropzone().into(), Protocol::plain()]);
    /// # let _ = layer;
    /// ```
    pub fn with_protocols(self, protocols: impl IntoIterator<Item = Protocol>) -> Self {
        self.with(|config| config.protocols.only(protocols))
    }

    /// Sets the URL of the path of the layer, as clients see it. Default: none.
    ///
    /// A layer gives each upload of [tus](Protocol::tus) and of the
    /// [IETF draft](Protocol::ietf_draft) a URL. By default that is a path, the one
    /// of the request that created the upload, which clients resolve against its URL. That is
    /// wrong behind a proxy that removes a prefix from paths, and some clients, such as aiotus,
    /// need an absolute URL. The layer does not guess one from `Host` or `Forwarded`.
    ///
    /// All paths of the layer get this URL, so it fits one path.
    ///
    /// ```
    /// use http::Request;
    /// use tower::{Layer, ServiceExt, service_fn};
    /// use tower_resumable::{MemoryStore, ResumableLayer};
    /// # use http::Response;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let inner = service_fn(async |_: Request<String>| {
    /// #     Ok::<_, std::io::Error>(Response::new(String::new()))
    /// # });
    /// let service = ResumableLayer::new(MemoryStore::default())
    ///     .with_public_url("https://example.com/api/upload")
    ///     .layer(inner);
    /// let create = Request::post("/upload")
    ///     .header("tus-resumable", "1.0.0")
    ///     .header("upload-length", "5")
    ///     .body(String::new())?;
    /// let response = service.oneshot(create).await?;
    /// assert_eq!(response.status(), 201);
    /// let location = response.headers()["location"].to_str()?;
    /// assert!(location.starts_with("https://example.com/api/upload?upload="));
    /// # Ok(())
    /// # }
    /// ```
    pub fn with_public_url(self, url: impl Into<String>) -> Self {
        self.with(|config| config.protocols.urls_mut().public = Some(url.into()))
    }

    /// Sets whether the URL of an upload is `<path>/<token>` instead of `<path>?upload=<token>`.
    /// Default: `false`.
    ///
    /// The layer then answers on these paths too. So it has to see them: apply it around the whole
    /// router, or to a route with a wildcard as well. A [matcher](Self::with_matcher) has to accept
    /// both.
    pub fn with_upload_paths(self, in_path: bool) -> Self {
        self.with(|config| config.protocols.urls_mut().in_path = in_path)
    }

    /// Sets whether clients of [tus](Protocol::tus) get the body of the inner service's answer.
    /// Default: `false`.
    ///
    /// Then the answer to the last `PATCH` is 200 instead of 204. Some clients, such as those for
    /// Go and .NET, accept 204 only. Without this, a page gets the body with a `GET` request for
    /// the URL of the upload.
    pub fn with_answer_bodies(self, answer_bodies: bool) -> Self {
        self.with(|config| config.protocols.urls_mut().answer_bodies = answer_bodies)
    }

    /// Sets what makes two chunks belong to the same upload. Default: [`IdentityRule::Full`].
    ///
    /// The [scope](Self::with_scope) and the path of the request are always part of it: the same
    /// file at two paths is two uploads. So all requests about an upload need the same path. A
    /// client that asks at another path, such as the `testTarget` of Resumable.js, finds nothing
    /// stored there. Inside an axum `nest`, the path with the prefix counts; that needs the feature
    /// `axum`. Behind another router that removes a prefix from the path, distinguish the targets
    /// by the scope or by [fields](Self::with_identity_fields).
    ///
    /// A request that declares another length than the upload was created with is refused for
    /// good, with [`ErrorKind::Conflict`](crate::ErrorKind::Conflict).
    pub fn with_identity(self, rule: IdentityRule) -> Self {
        self.with(|config| config.protocols.chunked_mut().identity = rule)
    }

    /// Sets fields of the application that identify an upload, in addition to its path and the
    /// [rule](Self::with_identity). Default: none.
    ///
    /// Without them, a file that a client sends to two albums is one upload if the album is only
    /// named in a field: the second album never gets it. A request without such a field, or with an
    /// empty one, is about the upload without it. So the client has to send the fields in all its
    /// requests: tests, chunks, status requests and removals.
    ///
    /// In a form the fields should come before the file, or be in the query. If one of them has
    /// not arrived when the file does, the file is spooled until the form ends.
    ///
    /// ```
    /// use tower::{Layer, ServiceExt, service_fn};
    /// use tower_resumable::{Field, MemoryStore, ResumableLayer};
    /// # use http::{Request, Response};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let inner = service_fn(async |_: Request<String>| {
    /// #     Ok::<_, std::io::Error>(Response::new("stored".to_owned()))
    /// # });
    /// let fields = [Field::query_or_form("album"), Field::header("x-tenant")];
    /// let service = ResumableLayer::new(MemoryStore::default())
    ///     .with_identity_fields(fields)
    ///     .layer(inner);
    /// let file = "resumableIdentifier=5-a&resumableTotalSize=5\
    ///             &resumableChunkNumber=1&resumableChunkSize=5";
    /// let chunk = Request::post(format!("/upload?{file}&album=1")).body("hello".to_owned())?;
    /// assert_eq!(service.clone().oneshot(chunk).await?.status(), 200);
    /// // The other album does not have it.
    /// let test = Request::get(format!("/upload?{file}&album=2")).body(String::new())?;
    /// assert_eq!(service.oneshot(test).await?.status(), 204);
    /// # Ok(())
    /// # }
    /// ```
    pub fn with_identity_fields<F: Into<Field>>(self, fields: impl IntoIterator<Item = F>) -> Self {
        let fields = fields.into_iter().map(Into::into);
        let fields: Vec<Field> = fields.filter(|field| !field.is_none()).collect();
        self.with(|config| config.protocols.chunked_mut().identity_fields = fields)
    }

    /// Sets the query parameter that asks for a list. A `GET` request with this parameter is
    /// answered with the unfinished uploads of its [scope](Self::with_scope) at its path: names,
    /// lengths, and how many bytes are stored. For an upload that has a URL it has the members
    /// `url`, where the client goes on, and `part`: whether it is a part of a file that is
    /// concatenated later.
    ///
    /// An answer lists at most 2,000 uploads. If more follow, it has the member `next`, whose value
    /// is the parameter `after` of the next request: `GET /upload?unfinished&after=…`. Within an
    /// answer the uploads are sorted by name.
    ///
    /// Default: none, because without scopes the list contains the uploads of all users, and who
    /// knows the URL of an upload can change it.
    ///
    /// ```
    /// use http_body_util::BodyExt;
    /// use tower::{Layer, ServiceExt, service_fn};
    /// use tower_resumable::{MemoryStore, ResumableLayer};
    /// # use http::{Request, Response};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let inner = service_fn(async |_: Request<String>| {
    /// #     Ok::<_, std::io::Error>(Response::new(String::new()))
    /// # });
    /// let layer = ResumableLayer::new(MemoryStore::default()).with_list_parameter("unfinished");
    /// let service = layer.layer(inner);
    /// let chunk = "/upload?resumableIdentifier=9-a&resumableTotalSize=9\
    ///              &resumableChunkNumber=1&resumableChunkSize=5";
    /// let chunk = Request::post(chunk).body("hello".to_owned())?;
    /// service.clone().oneshot(chunk).await?;
    ///
    /// let list = Request::get("/upload?unfinished").body(String::new())?;
    /// let list = service.oneshot(list).await?.into_body().collect().await?.to_bytes();
    /// let list: serde_json::Value = serde_json::from_slice(&list)?;
    /// assert_eq!(list["uploads"][0]["identifier"], "9-a");
    /// assert_eq!(list["uploads"][0]["received"], 5);
    /// # Ok(())
    /// # }
    /// ```
    pub fn with_list_parameter(self, name: impl Into<String>) -> Self {
        self.with(|config| config.protocols.chunked_mut().list_parameter = Some(name.into()))
    }

    /// Sets the hook that names the owner of each upload, from what outer layers know of the
    /// request.
    ///
    /// Uploads of different scopes can neither see nor change each other, even if all their fields
    /// are equal. The hook is called before a byte of the body is read. A refusal is the answer to
    /// the request. Default: all requests share one scope.
    ///
    /// ```
    /// use http::StatusCode;
    /// use tower_resumable::{MemoryStore, Refusal, ResumableLayer, Scope};
    ///
    /// #[derive(Clone)]
    /// struct User(String);
    ///
    /// let layer = ResumableLayer::new(MemoryStore::default()).with_scope(|parts| {
    ///     match parts.extensions.get::<User>() {
    ///         Some(user) => Ok(Scope::new(&user.0)),
    ///         None => Err(Refusal::new(StatusCode::UNAUTHORIZED, "sign in first")),
    ///     }
    /// });
    /// # let _ = layer;
    /// ```
    pub fn with_scope(
        self,
        scope: impl Fn(&Parts) -> Result<Scope, Refusal> + Send + Sync + 'static,
    ) -> Self {
        self.with(|config| config.hooks.scope = Some(Arc::new(scope)))
    }

    /// Sets the hook that names the peer of each request. The bodies of one peer that are read at
    /// once are [limited](Limits::with_bodies_per_peer), so that one peer cannot take the places
    /// for all bodies. An IPv6 address stands for its network of 64 bits. `None` means that the
    /// request is not counted for any peer. Default: no request is.
    ///
    /// Use it if there are no [scopes](Self::with_scope), or if anyone can get many. It is called
    /// before a byte of the body is read. Behind a proxy, the peer has to be what the proxy says,
    /// or all clients are one peer.
    ///
    /// ```
    /// use std::net::SocketAddr;
    /// use axum::extract::ConnectInfo;
    /// use tower_resumable::{MemoryStore, ResumableLayer};
    ///
    /// let layer = ResumableLayer::new(MemoryStore::default()).with_peer(|parts| {
    ///     let connection = parts.extensions.get::<ConnectInfo<SocketAddr>>()?;
    ///     Some(connection.0.ip())
    /// });
    /// # let _ = layer;
    /// ```
    pub fn with_peer(
        self,
        peer: impl Fn(&Parts) -> Option<IpAddr> + Send + Sync + 'static,
    ) -> Self {
        self.with(|config| config.hooks.peer = Some(Arc::new(peer)))
    }

    /// Sets the hook that admits or refuses each upload request, with all that the request
    /// declares. It is called once more before a file is delivered. Default: all requests are
    /// admitted.
    ///
    /// The hook copies what it needs of the request and answers asynchronously. A refused request
    /// stores nothing and learns nothing about stored uploads. A refusal [before the
    /// delivery](crate::Purpose::Deliver) means the same as an answer of the inner service with its
    /// status: see [`Verdict`](crate::Verdict). Late duplicates of a delivered file are
    /// admitted like all other chunks. [`Uploads::deliver`] does not call the hook.
    ///
    /// ```
    /// use http::StatusCode;
    /// use tower::{Layer, ServiceExt, service_fn};
    /// use tower_resumable::{MemoryStore, Refusal, ResumableLayer};
    /// # use http::{Request, Response};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let inner = service_fn(async |_: Request<String>| {
    /// #     Ok::<_, std::io::Error>(Response::new(String::new()))
    /// # });
    /// # async fn free_bytes(_user: String) -> u64 { 5 }
    /// let layer = ResumableLayer::new(MemoryStore::default()).with_admission(|request| {
    ///     let user = request.scope().to_string();
    ///     let length = request.upload().and_then(|upload| upload.length).unwrap_or(0);
    ///     async move {
    ///         if length > free_bytes(user).await {
    ///             return Err(Refusal::new(StatusCode::INSUFFICIENT_STORAGE, "no room for that"));
    ///         }
    ///         Ok(())
    ///     }
    /// });
    /// let test = "/upload?resumableIdentifier=9-a&resumableTotalSize=9\
    ///             &resumableChunkNumber=1&resumableChunkSize=9";
    /// let response = layer.layer(inner).oneshot(Request::get(test).body(String::new())?).await?;
    /// assert_eq!(response.status(), 503); // 507 is retryable
    /// assert_eq!(response.headers()["x-resumable-status"], "507");
    /// # Ok(())
    /// # }
    /// ```
    pub fn with_admission<A>(
        self,
        admission: impl Fn(&Admission<'_>) -> A + Send + Sync + 'static,
    ) -> Self
    where
        A: Future<Output = Result<(), Refusal>> + Send + 'static,
    {
        let boxed = move |asked: &Admission<'_>| Box::pin(admission(asked)) as Pin<Box<_>>;
        self.with(|config| config.hooks.admission = Some(Arc::new(boxed)))
    }

    /// Sets the hook that checks the first bytes of each file, up to 8 KiB. It is called when they
    /// arrive, and once more before the file is delivered, because the first chunk can be shorter
    /// or can arrive last. Default: none.
    ///
    /// A file that the hook refuses for good is removed. The hook runs on the async threads, so it
    /// must not block. The first bytes say what a file claims to be, not what it is: if the content
    /// has to be safe, let the inner service check the whole file.
    ///
    /// ```
    /// use http::StatusCode;
    /// use tower::{Layer, ServiceExt, service_fn};
    /// use tower_resumable::{MemoryStore, Refusal, ResumableLayer};
    /// # use http::{Request, Response};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let inner = service_fn(async |_: Request<String>| {
    /// #     Ok::<_, std::io::Error>(Response::new(String::new()))
    /// # });
    /// let layer = ResumableLayer::new(MemoryStore::default()).with_sniff(|head, _upload| {
    ///     if infer::is_image(head) || infer::is_video(head) {
    ///         return Ok(());
    ///     }
    ///     Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "pictures only"))
    /// });
    /// let chunk = "/upload?resumableIdentifier=9-a&resumableTotalSize=9\
    ///              &resumableChunkNumber=1&resumableChunkSize=9&resumableType=image%2Fpng";
    /// let program = Request::post(chunk).body("\x7fELF\x02\x01\x01\0\0".to_owned())?;
    /// let response = layer.layer(inner).oneshot(program).await?;
    /// assert_eq!(response.headers()["x-resumable-status"], "415");
    /// # Ok(())
    /// # }
    /// ```
    pub fn with_sniff(
        self,
        sniff: impl Fn(&[u8], &Upload) -> Result<(), Refusal> + Send + Sync + 'static,
    ) -> Self {
        self.with(|config| config.hooks.sniff = Some(Arc::new(sniff)))
    }

    /// Sets the most that clients can make the layer do. Default: see [`Limits`].
    pub fn with_limits(self, limits: Limits) -> Self {
        self.with(|config| {
            config.protocols.urls_mut().limits = limits.clone();
            config.limits = limits;
        })
    }

    /// Sets how complete uploads are delivered. Default: see [`Delivery`].
    pub fn with_delivery(self, delivery: Delivery) -> Self {
        self.with(|config| config.delivery = delivery)
    }

    /// Sets how long uploads are kept that are not delivered. Default: see [`Retention`].
    ///
    /// Nothing is removed unless the application calls [`Uploads::sweep`] or spawns
    /// [`Uploads::sweep_every`].
    pub fn with_retention(self, retention: Retention) -> Self {
        self.with(|config| config.retention = retention)
    }

    /// Sets the fields in which clients declare digests of chunks and files. Default: none.
    pub fn with_digests(self, digests: Digests) -> Self {
        self.with(|config| {
            let field = digests
                .chunk
                .as_ref()
                .map(|(field, _)| Field::from(field.as_str()));
            config.protocols.chunked_mut().digest_field = field;
            config.digests = digests;
        })
    }

    /// Sets how long a response that tells the client to try again is held back. Default: 250 ms.
    /// At most one year.
    ///
    /// The delay protects the server: Resumable.js tries again at once, up to a hundred times.
    ///
    /// After a failed delivery, the inner service is not called again for that upload during a
    /// pause. The pause is this delay after the first failure, twice as long after the second one,
    /// then four and eight times as long. After the fifth failure it is two seconds, and then it
    /// doubles up to an hour. Responses to requests during the pause are held back until its end,
    /// but no longer than eight times the delay. `Retry-After` says what is left of it.
    pub fn with_hold_back(self, delay: Duration) -> Self {
        self.with(|config| config.hold_back = delay.min(LONGEST))
    }

    /// Sets the hook that changes or replaces the responses of the layer to errors. Default: none.
    ///
    /// The status decides what the client does: Resumable.js stops at 400, 404, 415, 500 and 501,
    /// and tries again at all others.
    pub fn with_error_response(
        self,
        change: impl Fn(&Error, Response<Bytes>) -> Response<Bytes> + Send + Sync + 'static,
    ) -> Self {
        self.with(|config| config.error_response = Some(Arc::new(change)))
    }

    /// Sets the hook that receives [events](Event): what the operator has to know, and what no
    /// client is told. Default: none.
    ///
    /// The hook is called on the thread where the event happens, so it must not block: the request
    /// that causes the event waits for it, and so do others on the same thread. If it panics or is
    /// slow, that harms no upload. The events of the store go to the last layer that sets a hook.
    ///
    /// With the feature `tracing`, all events are events of the crate `tracing`, too, with or
    /// without a hook: see [`Event`].
    ///
    /// ```
    /// use tower_resumable::{MemoryStore, ResumableLayer};
    ///
    /// let layer = ResumableLayer::new(MemoryStore::default())
    ///     .with_events(|event| eprintln!("{event}"));
    /// # let _ = layer;
    /// ```
    pub fn with_events(self, hook: impl Fn(&Event<'_>) + Send + Sync + 'static) -> Self {
        let events = Events::new(hook);
        let of_store = events.clone();
        let observer = move |event: &StoreEvent<'_>| of_store.emit(&Event::Store(event));
        self.engine.store.observe(Arc::new(observer));
        self.with(|config| config.events = events)
    }

    /// Returns the operator's handle to the uploads of this layer.
    ///
    /// The handle has the settings that the layer has at this moment: call it after all `with_*`
    /// methods.
    pub fn uploads(&self) -> Uploads {
        Uploads::new(self.engine.clone())
    }

    /// Returns options for upload clients that fit this layer: path, limits, field names and
    /// retries.
    pub fn client_options(&self) -> ClientOptions {
        let Config {
            route,
            limits,
            protocols,
            ..
        } = &*self.engine.config;
        ClientOptions::new(route.path(), limits, protocols)
    }

    fn with(mut self, change: impl FnOnce(&mut Config)) -> Self {
        change(Arc::make_mut(&mut self.engine.config));
        self
    }
}

impl fmt::Debug for ResumableLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResumableLayer")
            .field("config", &self.engine.config)
            .finish_non_exhaustive()
    }
}

// No bounds on `S`: they would surface as an inference error far away. All of them are on
// `impl Service`.
impl<S> Layer<S> for ResumableLayer {
    type Service = Resumable<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Resumable::new(inner, self.engine.clone())
    }
}
