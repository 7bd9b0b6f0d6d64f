//! Uploads of users who sign in with a bearer token: each sees only his own, and has a quota.
//!
//! `cargo run --example auth`, then
//! `cargo run --example upload -- --header 'authorization: Bearer alices-token' http://127.0.0.1:3000/upload FILE`.

mod common;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{
    Extension, Router,
    extract::Request,
    http::{StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::any,
};
use tower_resumable::{Admission, CompletedUpload, Limits, Purpose, Refusal, Scope};

/// Who has signed in; put into the request by the layer outside.
#[derive(Clone)]
struct User(&'static str);

/// What each user has stored so far, in bytes. In real life it is in the database.
#[derive(Clone, Default)]
struct Quotas(Arc<Mutex<HashMap<String, u64>>>);

const QUOTA: u64 = 100 << 20;

#[tokio::main]
async fn main() -> Result<(), common::Error> {
    let args = common::Args::parse()?;
    let quotas = Quotas::default();
    let asked = quotas.clone();
    let uploads = args
        .layer()?
        // Uploads of different users cannot see each other.
        .with_scope(|parts| match parts.extensions.get::<User>() {
            Some(user) => Ok(Scope::new(user.0)),
            None => Err(Refusal::new(StatusCode::UNAUTHORIZED, "sign in first")),
        })
        .with_limits(Limits::default().file_size(QUOTA).uploads_per_scope(10))
        .with_admission(move |request| asked.clone().check(request));
    let app = Router::new()
        .route("/upload", any(finished))
        .layer(Extension(quotas))
        .layer(uploads)
        // Outside of the uploads: it runs before.
        .layer(middleware::from_fn(sign_in));
    let listener = args.bind().await?;
    axum::serve(listener, app).await?;
    Ok(())
}

async fn sign_in(mut request: Request, next: Next) -> Response {
    let token = request.headers().get(header::AUTHORIZATION);
    let user = match token.map(|token| token.as_bytes()) {
        Some(b"Bearer alices-token") => User("alice"),
        Some(b"Bearer bobs-token") => User("bob"),
        // Resumable.js gives up on it if its `permanentErrors` has 401, as the layer's options do.
        _ => return StatusCode::UNAUTHORIZED.into_response(),
    };
    request.extensions_mut().insert(user);
    next.run(request).await
}

impl Quotas {
    fn used(&self, user: &str) -> u64 {
        let quotas = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        quotas.get(user).copied().unwrap_or_default()
    }

    /// Asked about each request: before the first byte is stored, and before the file is handed over.
    fn check(
        self,
        request: &Admission<'_>,
    ) -> impl Future<Output = Result<(), Refusal>> + Send + use<> {
        let user = request.scope().to_owned();
        let size = request.upload().map_or(0, |upload| upload.total);
        let stores = matches!(request.purpose(), Purpose::Chunk | Purpose::Deliver);
        async move {
            match stores && self.used(&user) + size > QUOTA {
                true => Err(Refusal::new(StatusCode::FORBIDDEN, "your quota is used up")),
                false => Ok(()),
            }
        }
    }
}

async fn finished(Extension(quotas): Extension<Quotas>, upload: CompletedUpload) -> String {
    if let Err(error) = common::report(&upload) {
        eprintln!("cannot print: {error}");
    }
    let mut quotas = quotas.0.lock().unwrap_or_else(PoisonError::into_inner);
    *quotas.entry(upload.scope().to_owned()).or_default() += upload.size();
    format!("{} belongs to {}", upload.safe_file_name(), upload.scope())
}
