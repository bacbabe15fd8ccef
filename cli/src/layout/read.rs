//! Reading a layout, from a directory or from a tar archive that lies on disk.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use shoal_protocol::{digest::Digest, limits::MANIFEST_BYTES_MAX};

use super::{Index, blob_path};

/// A layout.
pub(crate) struct Reader {
    path: PathBuf,
    /// In an archive, where each file's bytes begin, and how many there are.
    archive: Option<BTreeMap<String, (u64, u64)>>,
    pub(crate) index: Index,
}

impl Reader {
    /// Opens a layout.
    ///
    /// # Errors
    /// Where the path has none, or an archive is cut short; the text says what can be done.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        let archive = if fs::metadata(path)?.is_dir() {
            None
        } else {
            Some(list(path)?)
        };
        let mut reader = Self {
            path: path.to_owned(),
            archive,
            index: Index::default(),
        };
        let Some(index) = reader.small("index.json")? else {
            if reader.find("manifest.json")?.is_some() {
                let shown = path.display();
                bail!(
                    "it is an archive in docker's old form; `skopeo copy docker-archive:{shown} \
                     oci-archive:NEW.tar:UPSTREAM/REPOSITORY:TAG` makes an image layout of it"
                );
            }
            bail!(
                "it has no index.json, so it is no OCI image layout, or not all of one; make one with \
                 `shoal export`, `skopeo copy … oci-archive:FILE:TAG` or `docker save` (25 or newer)"
            );
        };
        if reader.find("oci-layout")?.is_none() {
            bail!("it has no file `oci-layout`, so it is no OCI image layout");
        }
        reader.index = serde_json::from_slice(&index).context("cannot read its index.json")?;
        Ok(reader)
    }

    /// The size of a blob in bytes, where the layout has it.
    pub(crate) fn size(&self, digest: &Digest) -> anyhow::Result<Option<u64>> {
        Ok(self.find(&blob_path(digest))?.map(|(_, _, size)| size))
    }

    /// A manifest's bytes, where the layout has it.
    pub(crate) fn manifest(&self, digest: &Digest) -> anyhow::Result<Option<Vec<u8>>> {
        self.small(&blob_path(digest))
    }

    /// A file that stands where a blob begins.
    pub(crate) fn blob(&self, digest: &Digest) -> anyhow::Result<File> {
        let name = blob_path(digest);
        let (path, start, _) = self
            .find(&name)?
            .with_context(|| format!("{} has no {name}", self.path.display()))?;
        let mut file =
            File::open(&path).with_context(|| format!("cannot read {}", path.display()))?;
        file.seek(SeekFrom::Start(start))?;
        Ok(file)
    }

    /// Which file has these bytes, from where, and how many they are.
    fn find(&self, name: &str) -> anyhow::Result<Option<(PathBuf, u64, u64)>> {
        if let Some(entries) = &self.archive {
            let entry = entries.get(name).copied();
            return Ok(entry.map(|(start, size)| (self.path.clone(), start, size)));
        }
        let path = self.path.join(name);
        match fs::metadata(&path) {
            Ok(data) => Ok(Some((path, 0, data.len()))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot look at {}", path.display())),
        }
    }

    fn small(&self, name: &str) -> anyhow::Result<Option<Vec<u8>>> {
        let Some((path, start, size)) = self.find(name)? else {
            return Ok(None);
        };
        if size > MANIFEST_BYTES_MAX {
            bail!("{name} has {size} bytes, too many for what it should be");
        }
        let mut file =
            File::open(&path).with_context(|| format!("cannot read {}", path.display()))?;
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        file.take(size).read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }
}

/// The files in an archive. Their bytes are passed over.
fn list(path: &Path) -> anyhow::Result<BTreeMap<String, (u64, u64)>> {
    let mut file = File::open(path)?;
    let mut magic = Vec::new();
    file.by_ref().take(6).read_to_end(&mut magic)?;
    let packed = [
        (&[0x1f, 0x8b][..], "gunzip"),
        (&[0x28, 0xb5, 0x2f, 0xfd], "unzstd"),
        (&[0xfd, b'7', b'z', b'X', b'Z'], "unxz"),
        (b"BZh", "bunzip2"),
    ];
    if let Some((_, tool)) = packed.iter().find(|(start, _)| magic.starts_with(start)) {
        bail!("it is compressed; unpack it with {tool} and import the tar");
    }
    file.rewind()?;
    let length = file.metadata()?.len();
    let mut archive = tar::Archive::new(file);
    let mut entries = BTreeMap::new();
    for entry in archive
        .entries_with_seek()
        .context("it is no tar archive")?
    {
        let entry = entry.context("it is no tar archive, or is damaged or cut short")?;
        let (start, size) = (entry.raw_file_position(), entry.size());
        if start.checked_add(size).is_none_or(|end| end > length) {
            bail!(
                "it is cut short: it has {length} bytes, and `{}` in it goes beyond",
                entry.path()?.display()
            );
        }
        if entry.header().entry_type().is_file() {
            let name = entry.path()?.to_string_lossy().into_owned();
            let name = name.strip_prefix("./").unwrap_or(&name).to_owned();
            entries.insert(name, (start, size));
        }
    }
    Ok(entries)
}
