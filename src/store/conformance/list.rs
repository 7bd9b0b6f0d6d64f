//! What a store lists.

use super::{Suite, complete, described_as, later, receiving, record, upload_of};
use crate::{
    model::upload::{Scope, Upload, UploadId},
    store::{Claim, Filter, Listed, Page, Progress, Store, Usage, random_id},
};

impl<S: Store + Clone> Suite<S> {
    /// All pages from the first one after `after`, which have to be in order.
    pub(super) async fn list(&self, filter: &Filter, after: Option<UploadId>) -> Vec<Listed> {
        let (mut after, mut all) = (after, Vec::new());
        loop {
            let page = self.store.list(filter, after.as_ref()).await;
            let page = page.expect("`list` fails");
            assert!(page.uploads.len() <= Page::MAX, "a page is too long");
            let mut last = after;
            for listed in page.uploads {
                let id = listed.upload.id;
                assert!(
                    last < Some(id),
                    "`list` is not ordered by id, or returns an upload twice"
                );
                last = Some(id);
                all.push(listed);
            }
            let Some(next) = page.next else { return all };
            assert!(
                after < Some(next) && last <= Some(next),
                "the next page of a list begins before the end of this one"
            );
            after = Some(next);
        }
    }

    /// What a list says of these uploads. It may have others.
    pub(super) async fn list_of(&self, filter: &Filter, uploads: &[&Upload]) -> Vec<Listed> {
        let mut listed = self.list(filter, None).await;
        listed.retain(|listed| has(uploads, listed.upload.id));
        listed
    }

    /// An upload is listed from its first byte until it is settled or removed: as its first request
    /// described it, or as it was sealed.
    pub(super) async fn lists(&self) {
        let mut several = Several::new(self).await;
        several.assert_listed(self, &Filter::default()).await;
        several.end(self).await;
        let listed = self.list_of(&Filter::default(), &several.all()).await;
        assert_eq!(listed, [], "`list` returns removed uploads");
    }

    /// The pages that follow an id have exactly the uploads with greater ids, whether there is an
    /// upload of that id or not.
    pub(super) async fn lists_in_order(&self) {
        let mut several = Several::new(self).await;
        let scope = several.scope();
        let ids = several.expected.iter().map(|(upload, _)| upload.id);
        let mut ids: Vec<_> = ids.collect();
        ids.sort();
        let mut ends: Vec<_> = several.all().iter().map(|upload| upload.id).collect();
        ends.extend([
            UploadId::from_bytes([0; 32]),
            UploadId::from_bytes([255; 32]),
        ]);
        for filter in [Filter::default(), Filter::default().with_scope(scope)] {
            for after in &ends {
                let mut found = self.list(&filter, Some(*after)).await;
                found.retain(|listed| has(&several.all(), listed.upload.id));
                let found: Vec<_> = found.iter().map(|listed| listed.upload.id).collect();
                let expected: Vec<_> = ids.iter().filter(|id| *id > after).copied().collect();
                assert_eq!(
                    found, expected,
                    "`list` does not return the uploads after {after}"
                );
            }
        }
        several.end(self).await;
    }

    /// The two filters can be combined.
    pub(super) async fn lists_with_filter(&self) {
        let mut several = Several::new(self).await;
        let mut others = Several::new(self).await;
        for complete in [true, false] {
            for scope in [None, Some(several.scope())] {
                let filter = Filter { scope, complete };
                several.assert_listed(self, &filter).await;
            }
            let filter = Filter {
                scope: Some(others.scope()),
                complete,
            };
            let listed = self.list_of(&filter, &several.all()).await;
            assert_eq!(listed, [], "`list` returns uploads of another scope");
        }
        let filter = Filter::default().with_scope(several.receiving().scope.as_str()[1..].into());
        let listed = self.list(&filter, None).await;
        assert_eq!(
            listed,
            [],
            "`list` returns uploads of a scope that has none"
        );
        several.end(self).await;
        others.end(self).await;
    }

    /// The bytes are the declared length, whatever has arrived.
    pub(super) async fn usage(&self) {
        let mut several = Several::new(self).await;
        let usage = self.store.usage().await.expect("`usage` fails");
        for (upload, progress) in &several.expected {
            let counted: Vec<_> = usage.iter().filter(|usage| usage.id == upload.id).collect();
            let expected = Usage::from(&Listed::new(upload.clone(), *progress));
            assert_eq!(
                counted,
                [&expected],
                "`usage` does not count an upload once, as it is: {upload:?}"
            );
        }
        let settled: Vec<_> = usage
            .iter()
            .filter(|usage| has(&several.all(), usage.id))
            .filter(|usage| {
                let mut expected = several.expected.iter();
                expected.all(|(upload, _)| upload.id != usage.id)
            })
            .collect();
        assert_eq!(settled, [] as [&Usage; 0], "`usage` counts what is settled");
        several.end(self).await;
        let usage = self.store.usage().await.expect("`usage` fails");
        let removed = usage.iter().find(|usage| has(&several.all(), usage.id));
        assert_eq!(removed, None, "`usage` counts a removed upload");
    }
}

fn has(uploads: &[&Upload], id: UploadId) -> bool {
    uploads.iter().any(|upload| upload.id == id)
}

/// Uploads of a scope of their own, in all states.
struct Several<C> {
    /// The unsettled uploads, as they have to be listed.
    expected: Vec<(Upload, Progress)>,
    /// Those that are settled, also with a record that has expired.
    settled: Vec<Upload>,
    claims: Vec<C>,
}

impl<C: Claim> Several<C> {
    async fn new<S: Store<Claim = C> + Clone>(suite: &Suite<S>) -> Self {
        let scope = Scope::new(random_id().expect("the system has random bytes"));
        let new = |length| upload_of(&scope, Some(length));
        let (receiving_upload, created, empty) = (new(3), new(3), new(0));
        suite.write(&receiving_upload, 0, b"ab").await;
        suite.create(&created).await;
        suite.write(&empty, 0, b"").await;
        let mut several = Self {
            expected: vec![
                (receiving_upload, receiving(2)),
                (created, receiving(0)),
                (empty, complete(0)),
            ],
            settled: Vec::new(),
            claims: Vec::new(),
        };
        for state in [
            "complete",
            "claimed",
            "released",
            "delivered",
            "rejected",
            "expired",
        ] {
            let upload = new(3);
            suite.write(&upload, 2, b"c").await;
            // The request that completes the upload describes it in another way.
            suite.write(&described_as(&upload, "last"), 0, b"ab").await;
            if state == "complete" {
                several.expected.push((upload, complete(3)));
                continue;
            }
            let sealed = described_as(&upload, "sealed");
            let claim = suite.claim(&sealed).await;
            let expires = match state {
                "expired" => std::time::SystemTime::now(),
                _ => later(),
            };
            match state {
                "claimed" => several.claims.push(claim),
                "released" => claim.release().await,
                _ => {
                    let record = record(state != "rejected", expires);
                    suite.settle(claim, &record).await;
                    several.settled.push(sealed);
                    continue;
                }
            }
            several.expected.push((sealed, complete(3)));
        }
        several
    }

    fn scope(&self) -> Scope {
        self.receiving().scope.clone()
    }

    fn receiving(&self) -> &Upload {
        let (upload, _) = &self.expected[0];
        upload
    }

    fn all(&self) -> Vec<&Upload> {
        let unsettled = self.expected.iter().map(|(upload, _)| upload);
        unsettled.chain(&self.settled).collect()
    }

    /// Asserts that a list has exactly those of these uploads that `filter` is for.
    async fn assert_listed<S: Store + Clone>(&self, suite: &Suite<S>, filter: &Filter) {
        let listed = suite.list_of(filter, &self.all()).await;
        let mut expected: Vec<_> = self
            .expected
            .iter()
            .filter(|(_, progress)| progress.complete || !filter.complete)
            .map(|(upload, progress)| Listed::new(upload.clone(), *progress))
            .collect();
        expected.sort_by_key(|listed| listed.upload.id);
        for upload in &expected {
            assert!(
                listed.contains(upload),
                "`list` does not return an upload as it is: {upload:?} is not in {listed:?}"
            );
        }
        let others: Vec<_> = listed.iter().filter(|l| !expected.contains(l)).collect();
        assert!(
            others.is_empty(),
            "`list` returns what is settled, or what the filter excludes: {others:?}"
        );
        assert_eq!(
            listed.len(),
            expected.len(),
            "`list` returns an upload twice"
        );
    }

    /// Gives the claims back, and removes what is not settled.
    async fn end<S: Store<Claim = C> + Clone>(&mut self, suite: &Suite<S>) {
        for claim in self.claims.drain(..) {
            claim.release().await;
        }
        for (upload, _) in &self.expected {
            assert!(
                suite.remove(upload).await,
                "`remove` does not remove an upload that is not claimed"
            );
        }
    }
}
