//! Writing a layout, so that one that is not whole never looks as if it were.
//!
//! Blobs get their names when their digest has matched, and `index.json`, without which there is no
//! layout, comes last. An archive has its own name only once it is complete; one that goes to standard
//! output ends without the two blocks that end a tar where something fails.

use std::{
    collections::BTreeSet,
    fs,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    pin::Pin,
};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use shoal_node::store::Hasher;
use shoal_protocol::digest::Digest;
use tokio::{
    fs::File,
    io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufWriter},
};

use super::{Descriptor, IMAGE_NAME, Index, MARK, REF_NAME, blob_path};

/// The unit of a tar archive.
const BLOCK: u64 = 512;

/// Bytes gathered for one write to an archive.
const WRITE_BYTES: usize = 1 << 20;

/// A layout that is being written.
pub(crate) struct Writer {
    output: Output,
    written: BTreeSet<Digest>,
    index: Index,
}

enum Output {
    Directory(PathBuf),
    Archive {
        out: Pin<Box<dyn AsyncWrite + Send>>,
        /// Its name until it is complete, and then; none on standard output.
        names: Option<(PathBuf, PathBuf)>,
    },
}

impl Writer {
    /// An archive on standard output for `-`, in a file for a name that ends in `.tar`, else a
    /// directory, which is new, or has a layout that is added to.
    pub(crate) async fn create(path: &Path) -> anyhow::Result<Self> {
        let mut index = Index::default();
        let output = if path == Path::new("-") {
            let out = File::from_std(std::io::stdout().as_fd().try_clone_to_owned()?.into());
            Output::Archive {
                out: Box::pin(BufWriter::with_capacity(WRITE_BYTES, out)),
                names: None,
            }
        } else if path.extension().is_some_and(|extension| extension == "tar") {
            let unfinished = path.with_added_extension("partial");
            let file = File::create(&unfinished).await;
            let file = file.with_context(|| format!("cannot write {}", unfinished.display()))?;
            Output::Archive {
                out: Box::pin(BufWriter::with_capacity(WRITE_BYTES, file)),
                names: Some((unfinished, path.to_owned())),
            }
        } else {
            index = open_directory(path)
                .with_context(|| format!("cannot write to {}", path.display()))?;
            Output::Directory(path.to_owned())
        };
        let mut writer = Self {
            output,
            written: BTreeSet::new(),
            index,
        };
        writer.file("oci-layout", MARK.as_bytes()).await?;
        Ok(writer)
    }

    /// Whether it is one file.
    pub(crate) fn is_archive(&self) -> bool {
        matches!(self.output, Output::Archive { .. })
    }

    /// Whether a blob need not be written: it was, or a directory has it, which is read to make sure.
    pub(crate) async fn has(&self, digest: &Digest) -> bool {
        if self.written.contains(digest) {
            return true;
        }
        match &self.output {
            Output::Archive { .. } => false,
            Output::Directory(dir) => hash_of(&dir.join(blob_path(digest)), digest)
                .await
                .is_some_and(|found| found == *digest),
        }
    }

    /// Writes a blob of `size` bytes, and checks them.
    ///
    /// # Errors
    /// Where they are not as many, or not those that the digest names; file-system errors.
    pub(crate) async fn blob(
        &mut self,
        digest: &Digest,
        size: u64,
        mut pieces: impl Stream<Item = anyhow::Result<Bytes>> + Unpin,
        mut advance: impl FnMut(u64),
    ) -> anyhow::Result<()> {
        let name = blob_path(digest);
        let (mut hasher, mut came) = (Hasher::new(digest.algorithm()), 0);
        let mut part = match &mut self.output {
            Output::Directory(dir) => {
                let path = dir.join(&name);
                Some((File::create(partial(&path)).await?, path))
            }
            Output::Archive { out, .. } => {
                out.write_all(header(&name, size)?.as_bytes()).await?;
                None
            }
        };
        while let Some(piece) = pieces.next().await {
            let piece = piece?;
            came += piece.len() as u64;
            if came > size {
                break;
            }
            hasher.update(&piece);
            match (&mut part, &mut self.output) {
                (Some((file, _)), _) => file.write_all(&piece).await?,
                (None, Output::Archive { out, .. }) => out.write_all(&piece).await?,
                (None, Output::Directory(_)) => {}
            }
            advance(piece.len() as u64);
        }
        if came != size || hasher.finish() != *digest {
            bail!("{digest}: the daemon gave {came} bytes that are not its {size}; export again");
        }
        match (part, &mut self.output) {
            (Some((mut file, path)), _) => {
                file.flush().await?;
                file.sync_all().await?;
                fs::rename(partial(&path), path)?;
            }
            (None, Output::Archive { out, .. }) => pad(out, size).await?,
            (None, Output::Directory(_)) => {}
        }
        self.written.insert(*digest);
        Ok(())
    }

    /// Notes that a manifest is an image of this name, with this tag if it has one.
    pub(crate) fn name(&mut self, mut manifest: Descriptor, name: &str, tag: Option<&str>) {
        let names = &mut manifest.annotations;
        names.insert(IMAGE_NAME.to_owned(), name.to_owned());
        names.extend(tag.map(|tag| (REF_NAME.to_owned(), tag.to_owned())));
        self.index.manifests.retain(|known| {
            known
                .annotations
                .get(IMAGE_NAME)
                .is_none_or(|of| of != name)
        });
        self.index.manifests.push(manifest);
    }

    /// Writes another file.
    pub(crate) async fn file(&mut self, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
        match &mut self.output {
            Output::Directory(dir) => {
                let path = dir.join(name);
                let mut file = File::create(partial(&path)).await?;
                file.write_all(bytes).await?;
                file.flush().await?;
                file.sync_all().await?;
                fs::rename(partial(&path), path)?;
            }
            Output::Archive { out, .. } => {
                let size = bytes.len() as u64;
                out.write_all(header(name, size)?.as_bytes()).await?;
                out.write_all(bytes).await?;
                pad(out, size).await?;
            }
        }
        Ok(())
    }

    /// Makes it a layout. Of images with one tag, each is told from the others by its full name.
    pub(crate) async fn finish(mut self) -> anyhow::Result<()> {
        let tags: Vec<Option<String>> = self
            .index
            .manifests
            .iter()
            .map(|manifest| manifest.annotations.get(REF_NAME).cloned())
            .collect();
        for manifest in &mut self.index.manifests {
            let names = &mut manifest.annotations;
            let tag = names.get(REF_NAME).cloned();
            let twice = tags.iter().filter(|other| **other == tag).count() > 1;
            if let (true, Some(_), Some(full)) = (twice, tag, names.get(IMAGE_NAME).cloned()) {
                names.insert(REF_NAME.to_owned(), full);
            }
        }
        let index = serde_json::to_vec(&self.index)?;
        self.file("index.json", &index).await?;
        if let Output::Archive { out, names } = &mut self.output {
            out.write_all(&[0; 2 * BLOCK as usize]).await?;
            out.flush().await?;
            out.shutdown().await?;
            if let Some((unfinished, path)) = names {
                fs::File::open(&*unfinished)?.sync_all()?;
                fs::rename(&*unfinished, &*path)
                    .with_context(|| format!("cannot write {}", path.display()))?;
                *names = None;
            }
        }
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Output::Archive {
            names: Some((unfinished, _)),
            ..
        } = &self.output
        {
            // What is left is named as what it is.
            let _ = fs::remove_file(unfinished);
        }
    }
}

/// The layout that a directory has; makes it, where it is not there.
fn open_directory(dir: &Path) -> anyhow::Result<Index> {
    let index = dir.join("index.json");
    let known = if let Ok(bytes) = fs::read(&index) {
        serde_json::from_slice(&bytes).context("index.json is not one of a layout")?
    } else {
        // What an export that was interrupted has left is gone on with.
        let ours = [
            "oci-layout",
            "oci-layout.partial",
            "index.json.partial",
            "blobs",
        ];
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        let mut names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        if let Some(name) = names.find(|name| !ours.contains(&name.as_str())) {
            bail!(
                "it has `{name}` and is no image layout; name an empty directory, or a file that \
                 ends in .tar"
            );
        }
        Index::default()
    };
    for algorithm in ["sha256", "sha512"] {
        fs::create_dir_all(dir.join("blobs").join(algorithm))?;
    }
    Ok(known)
}

fn partial(path: &Path) -> PathBuf {
    path.with_added_extension("partial")
}

async fn hash_of(path: &Path, digest: &Digest) -> Option<Digest> {
    let mut file = File::open(path).await.ok()?;
    let mut hasher = Hasher::new(digest.algorithm());
    let mut buffer = vec![0; WRITE_BYTES];
    loop {
        match file.read(&mut buffer).await.ok()? {
            0 => return Some(hasher.finish()),
            count => hasher.update(&buffer[..count]),
        }
    }
}

fn header(name: &str, size: u64) -> anyhow::Result<tar::Header> {
    let mut header = tar::Header::new_gnu();
    header.set_path(name)?;
    header.set_mode(0o644);
    header.set_size(size);
    header.set_cksum();
    Ok(header)
}

async fn pad(out: &mut Pin<Box<dyn AsyncWrite + Send>>, size: u64) -> anyhow::Result<()> {
    let short = size.next_multiple_of(BLOCK) - size;
    out.write_all(&[0; BLOCK as usize][..short as usize])
        .await?;
    Ok(())
}
