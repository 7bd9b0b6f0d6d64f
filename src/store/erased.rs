//! [`Store`] without its type, so that no store type reaches the type of the layer.

use super::{
    Append, BoxFuture, Capabilities, ChunkBody, Claim, Claimed, Content, Expiry, Filter, Observer,
    Page, Sealed, Store, StoreError, Swept, Usage,
};
use crate::model::{
    state::{Progress, Record, Status},
    upload::{Upload, UploadId},
};

type Result<'a, T> = BoxFuture<'a, std::result::Result<T, StoreError>>;

/// Dyn-compatible mirror of [`Store`].
pub(crate) trait DynStore: Send + Sync {
    fn write_and_claim<'a>(
        &'a self,
        upload: &'a Upload,
        offset: u64,
        body: &'a mut ChunkBody<'_>,
    ) -> Result<'a, (Progress, Option<Box<dyn DynClaim>>)>;
    fn status<'a>(&'a self, id: &'a UploadId) -> Result<'a, Option<Status>>;
    fn claim<'a>(&'a self, upload: &'a Upload) -> Result<'a, Claimed<Box<dyn DynClaim>>>;
    fn remove<'a>(&'a self, id: &'a UploadId) -> Result<'a, bool>;
    fn forget_rejection<'a>(&'a self, id: &'a UploadId) -> Result<'a, bool>;
    fn forget<'a>(&'a self, id: &'a UploadId) -> Result<'a, bool>;
    fn list<'a>(&'a self, filter: &'a Filter, after: Option<&'a UploadId>) -> Result<'a, Page>;
    fn usage(&self) -> Result<'_, Vec<Usage>>;
    fn sweep<'a>(&'a self, expiry: &'a Expiry) -> Result<'a, Swept>;
    fn spool<'a>(&'a self, body: &'a mut ChunkBody<'_>) -> Result<'a, Content>;
    fn capabilities(&self) -> Capabilities;
    fn create<'a>(&'a self, upload: &'a Upload) -> Result<'a, Status>;
    fn interrupt<'a>(&'a self, id: &'a UploadId) -> Result<'a, Option<Status>>;
    fn append<'a>(
        &'a self,
        upload: &'a Upload,
        append: Append,
        body: &'a mut ChunkBody<'_>,
    ) -> Result<'a, Progress>;
    fn concat<'a>(&'a self, upload: &'a Upload, parts: &'a [UploadId]) -> Result<'a, Progress>;
    fn observe(&self, observer: Observer);
}

impl<T: Store> DynStore for T {
    fn write_and_claim<'a>(
        &'a self,
        upload: &'a Upload,
        offset: u64,
        body: &'a mut ChunkBody<'_>,
    ) -> Result<'a, (Progress, Option<Box<dyn DynClaim>>)> {
        // The block makes the future. One that got it would have a second place for it.
        Box::pin(async move {
            let (progress, claim) = Store::write_and_claim(self, upload, offset, body).await?;
            Ok((progress, claim.map(|claim| Box::new(claim) as _)))
        })
    }

    fn status<'a>(&'a self, id: &'a UploadId) -> Result<'a, Option<Status>> {
        Box::pin(Store::status(self, id))
    }

    fn claim<'a>(&'a self, upload: &'a Upload) -> Result<'a, Claimed<Box<dyn DynClaim>>> {
        Box::pin(async move {
            let claimed = Store::claim(self, upload).await?;
            Ok(claimed.map(|claim| Box::new(claim) as Box<dyn DynClaim>))
        })
    }

    fn remove<'a>(&'a self, id: &'a UploadId) -> Result<'a, bool> {
        Box::pin(Store::remove(self, id))
    }

    fn forget_rejection<'a>(&'a self, id: &'a UploadId) -> Result<'a, bool> {
        Box::pin(Store::forget_rejection(self, id))
    }

    fn forget<'a>(&'a self, id: &'a UploadId) -> Result<'a, bool> {
        Box::pin(Store::forget(self, id))
    }

    fn list<'a>(&'a self, filter: &'a Filter, after: Option<&'a UploadId>) -> Result<'a, Page> {
        Box::pin(Store::list(self, filter, after))
    }

    fn usage(&self) -> Result<'_, Vec<Usage>> {
        Box::pin(Store::usage(self))
    }

    fn sweep<'a>(&'a self, expiry: &'a Expiry) -> Result<'a, Swept> {
        Box::pin(Store::sweep(self, expiry))
    }

    fn spool<'a>(&'a self, body: &'a mut ChunkBody<'_>) -> Result<'a, Content> {
        Box::pin(Store::spool(self, body))
    }

    fn capabilities(&self) -> Capabilities {
        Store::capabilities(self)
    }

    fn create<'a>(&'a self, upload: &'a Upload) -> Result<'a, Status> {
        Box::pin(Store::create(self, upload))
    }

    fn interrupt<'a>(&'a self, id: &'a UploadId) -> Result<'a, Option<Status>> {
        Box::pin(Store::interrupt(self, id))
    }

    fn append<'a>(
        &'a self,
        upload: &'a Upload,
        append: Append,
        body: &'a mut ChunkBody<'_>,
    ) -> Result<'a, Progress> {
        Box::pin(Store::append(self, upload, append, body))
    }

    fn concat<'a>(&'a self, upload: &'a Upload, parts: &'a [UploadId]) -> Result<'a, Progress> {
        Box::pin(Store::concat(self, upload, parts))
    }

    fn observe(&self, observer: Observer) {
        Store::observe(self, observer);
    }
}

/// Dyn-compatible mirror of [`Claim`].
pub(crate) trait DynClaim: Send + Sync {
    fn sealed(&self) -> &Sealed;
    fn settle<'a>(&'a mut self, record: &'a Record) -> Result<'a, ()>;
    fn release(self: Box<Self>) -> BoxFuture<'static, ()>;
}

impl<T: Claim> DynClaim for T {
    fn sealed(&self) -> &Sealed {
        Claim::sealed(self)
    }

    fn settle<'a>(&'a mut self, record: &'a Record) -> Result<'a, ()> {
        Box::pin(Claim::settle(self, record))
    }

    fn release(self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(Claim::release(*self))
    }
}
