//! Checks of a complete file before it is delivered.

use std::io;

use http::{HeaderName, HeaderValue, request::Parts};

use crate::{
    body::{digest::Expected, sniff::head_len},
    config::Config,
    delivery::Verdict,
    error::{Error, Reason},
    hooks::{Purpose, Refusal},
    model::upload::Upload,
    store::{Sealed, export::blocking},
};

/// On whose behalf an upload is delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    /// The client. The application is asked whether it admits the delivery.
    Request,
    /// The operator, for this upload: even if it was set aside.
    Operator,
    /// The operator, for all uploads.
    Background,
}

/// Why a file is not delivered.
pub(crate) enum Failure {
    /// For now: the delivery has failed, and counts as an attempt.
    Failed(Error),
    /// For now: the application refused the request.
    Refused(Error),
    /// For good: the file is removed.
    Rejected(Error),
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Failed(error) | Failure::Refused(error) | Failure::Rejected(error) => error,
        }
    }
}

/// Whether a file may be delivered: asks the application, and compares the digest.
///
/// The future borrows nothing of `head`.
pub(crate) fn verify<'a>(
    config: &'a Config,
    by: By,
    head: &Parts,
    sealed: &'a Sealed,
) -> impl Future<Output = Result<(), Failure>> + Send + use<'a> {
    let upload = &sealed.upload;
    let hooks = &config.hooks;
    let admitted = (by == By::Request)
        .then(|| hooks.admit(Purpose::Deliver, head, &upload.scope, Some(upload)));
    async move {
        if let Some(admitted) = admitted {
            admitted
                .await
                .map_err(|refusal| not_admitted(config, refusal))?;
        }
        match content(config, sealed).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) if error.is_retryable() => Err(Failure::Refused(error)),
            Ok(Err(error)) => Err(Failure::Rejected(error)),
            // An earlier attempt has checked the file, and the inner service has moved it.
            Err(error) if sealed.attempt > 1 && error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(Failure::Failed(Error::new(Reason::DeliveryFailed, error))),
        }
    }
}

/// A refusal of the admission hook means the same as such an answer of the inner service.
fn not_admitted(config: &Config, refusal: Refusal) -> Failure {
    let verdict = (config.delivery.verdict)(refusal.status());
    let error = Error::from(refusal);
    if verdict == Verdict::Rejected && !error.is_retryable() {
        Failure::Rejected(error)
    } else {
        Failure::Refused(error)
    }
}

async fn content(config: &Config, sealed: &Sealed) -> io::Result<Result<(), Error>> {
    if let Some(sniff) = &config.hooks.sniff {
        if let Err(refusal) = sniff(&first_bytes(sealed).await?, &sealed.upload) {
            return Ok(Err(refusal.into()));
        }
    }
    match representation(&sealed.upload) {
        Ok(None) => {}
        Ok(Some(expected)) => {
            if !digest(expected, sealed).await? {
                let name = "repr-digest".to_owned();
                return Ok(Err(Reason::FileDigestMismatch { name }.into()));
            }
        }
        Err(error) => return Ok(Err(error)),
    }
    let Some((name, algorithm)) = &config.digests.file else {
        return Ok(Ok(()));
    };
    let Some(value) = sealed.upload.field(name) else {
        return Ok(Ok(()));
    };
    let expected = match Expected::of_field(name, *algorithm, value) {
        Ok(expected) => expected,
        Err(error) => return Ok(Err(error)),
    };
    let matches = digest(expected, sealed).await?;
    let mismatch = || Reason::FileDigestMismatch { name: name.clone() };
    Ok(if matches {
        Ok(())
    } else {
        Err(mismatch().into())
    })
}

/// The digests that the creating request has declared of the whole file.
fn representation(upload: &Upload) -> Result<Option<Expected>, Error> {
    let headers = upload.creation.iter().flat_map(|it| &it.headers);
    let headers = headers.filter_map(|(name, value)| {
        let name = name.parse::<HeaderName>().ok()?;
        Some((name, HeaderValue::from_bytes(value.as_bytes()).ok()?))
    });
    Expected::of_representation(&headers.collect())
}

/// Whether the file has this digest. It is read, unless the store knows the digest.
async fn digest(mut expected: Expected, sealed: &Sealed) -> io::Result<bool> {
    if let (Some(expected), Some(crc32)) = (expected.crc32(), sealed.crc32) {
        return Ok(expected == crc32);
    }
    let mut content = sealed.content();
    while let Some(piece) = content.next().await {
        let piece = piece?;
        // A thread for blocking work must not wait for the content: that may need another one.
        expected = blocking(move || {
            expected.update(&piece);
            Ok(expected)
        })
        .await?;
    }
    Ok(expected.finish().is_ok())
}

async fn first_bytes(sealed: &Sealed) -> io::Result<Vec<u8>> {
    let len = head_len(sealed.upload.length);
    let (mut head, mut content) = (Vec::with_capacity(len), sealed.content());
    while head.len() < len {
        let Some(piece) = content.next().await.transpose()? else {
            break;
        };
        head.extend_from_slice(&piece[..piece.len().min(len - head.len())]);
    }
    Ok(head)
}
