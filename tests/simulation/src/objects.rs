//! The object storage: one for all, slow now and then, and sometimes away.

use crate::stats::Count;
use crate::world::World;
use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use std::fmt;
use std::sync::Arc;

/// A host's way to the object storage.
pub(crate) struct SimObjects {
    world: World,
    inner: Arc<InMemory>,
}

impl SimObjects {
    /// A way to this storage.
    pub(crate) fn new(world: World, inner: Arc<InMemory>) -> Self {
        Self { world, inner }
    }

    /// The way there. `Err`: it isn't reached, and nothing happens.
    async fn reach(&self) -> Result<()> {
        let (pause, away) = {
            let inner = &mut *self.world.lock();
            let away = inner.chance(inner.knobs.objects_away);
            let slow = inner.chance(inner.knobs.objects_slow);
            if away {
                inner.count(Count::ObjectsAway);
            }
            if slow {
                inner.count(Count::ObjectsSlow);
            }
            (if slow { inner.ms(200, 1500) } else { inner.ms(0, 15) }, away)
        };
        tokio::time::sleep(pause).await;
        if away { Err(Error::Generic { store: "simulated", source: "away".into() }) } else { Ok(()) }
    }
}

impl fmt::Display for SimObjects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("simulated")
    }
}

impl fmt::Debug for SimObjects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("simulated")
    }
}

#[async_trait]
impl ObjectStore for SimObjects {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.reach().await?;
        self.inner.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.reach().await?;
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
