//! Tags last seen, one small file each.

use std::{fs, path::PathBuf, sync::Mutex};

use shoal_protocol::{
    message::{TagKey, TagRecord},
    wire,
};

use super::{
    error::StoreError,
    layout::{make_dir, names, replace},
    lock,
};

/// The directory of tags. What a tag's name is made of may not stand in a file name, so a file is
/// called by the hash of its key and holds the key beside the record.
#[derive(Debug)]
pub(super) struct Tags {
    dir: PathBuf,
    /// One writer at a time: they share the name of the file that is not yet in place.
    writing: Mutex<()>,
}

impl Tags {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            writing: Mutex::new(()),
        }
    }

    pub(super) fn put(&self, key: &TagKey, record: &TagRecord) -> Result<(), StoreError> {
        let path = self.path(key);
        if let Some(parent) = path.parent() {
            make_dir(parent)?;
        }
        let _turn = lock(&self.writing);
        replace(&path, &wire::encode(&(key, record)))
    }

    pub(super) fn get(&self, key: &TagKey) -> Option<TagRecord> {
        let bytes = fs::read(self.path(key)).ok()?;
        let (known, record): (TagKey, TagRecord) = wire::decode(&bytes).ok()?;
        (known == *key).then_some(record)
    }

    /// How many tags there are.
    pub(super) fn count(&self) -> Result<usize, StoreError> {
        let prefixes = names(&self.dir)?.into_iter();
        prefixes
            .map(|prefix| Ok(names(&self.dir.join(prefix))?.len()))
            .sum()
    }

    fn path(&self, key: &TagKey) -> PathBuf {
        let name = blake3::hash(&wire::encode(key)).to_hex();
        self.dir.join(&name[..2]).join(name.as_str())
    }
}
