//! The check of a directory or a bucket.

use shoal_protocol::{
    message::{BlobKind, Hint},
    reference::Tag,
};

use super::{Checked, Findings, Found, first_blob};
use crate::origin::{body, storage::Storage};

/// Whether there is something that can be read.
pub(super) async fn layout(findings: &mut Findings<'_>, storage: &Storage) -> bool {
    let tried = async {
        let layout = storage.layout().await?;
        Ok(Found::new((), format!("it holds {layout}")))
    };
    findings.step(Checked::Layout, tried).await.is_some()
}

/// Whether the image is there: its tag, and one byte of a blob.
pub(super) async fn image(findings: &mut Findings<'_>, storage: &Storage, hint: &Hint, tag: &Tag) {
    let tried = async {
        let digest = storage.resolve_tag(hint, tag).await?;
        Ok(Found::new(digest, format!("{tag} names {digest}")))
    };
    let Some(digest) = findings.step(Checked::Tag, tried).await else {
        return;
    };
    let tried = async {
        let read = |digest| async move {
            let kind = BlobKind::Manifest;
            storage.read(hint, &digest, kind, 0, None).await
        };
        let blob = first_blob(digest, read).await?;
        let body = storage
            .read(hint, &blob, BlobKind::Blob, 0, Some(1))
            .await?;
        body::gather(body.stream, &format!("reading a byte of {blob}")).await?;
        Ok(Found::new(
            (),
            format!("a byte of {} was read", blob.short()),
        ))
    };
    findings.step(Checked::Blob, tried).await;
}
