//! Pushing to a registry, blob by blob and manifest by manifest.

use super::image::Image;
use super::raw;
use super::registry::Registry;

/// Puts a blob into `repository`, under this digest.
pub(crate) fn blob(registry: &Registry, repository: &str, digest: &str, bytes: &[u8]) {
    let address = registry.address();
    let begin = format!("/v2/{repository}/blobs/uploads/");
    let begun = raw::ask(&address, "POST", &begin, &["Content-Length: 0"], b"");
    let location = begun.header("location").expect("an upload has a place");
    let target = location
        .split_once(&address)
        .map_or(location, |(_, path)| path);
    let target = format!("{target}&digest={digest}");
    let length = if bytes.is_empty() {
        &["Content-Length: 0"][..]
    } else {
        &[]
    };
    put(&address, &target, length, bytes);
}

fn put(address: &str, target: &str, headers: &[&str], body: &[u8]) {
    let put = raw::ask(address, "PUT", target, headers, body);
    assert_eq!(
        put.status,
        201,
        "{} {}",
        put.head,
        String::from_utf8_lossy(&put.body)
    );
}

/// Puts a manifest into `repository` under a tag or a digest.
pub(crate) fn manifest(registry: &Registry, repository: &str, name: &str, kind: &str, json: &str) {
    let target = format!("/v2/{repository}/manifests/{name}");
    let kind = format!("Content-Type: {kind}");
    put(&registry.address(), &target, &[&kind], json.as_bytes());
}

/// Puts an image's blobs into `repository`, and its manifest under `tag`.
pub(crate) fn image(registry: &Registry, repository: &str, tag: &str, image: &Image) {
    for each in &image.blobs {
        let bytes = each.content.read(0, each.size() as usize);
        blob(registry, repository, &each.digest, &bytes);
    }
    self::tag(registry, repository, tag, image);
}

/// Has `tag` name an image that the repository holds.
pub(crate) fn tag(registry: &Registry, repository: &str, tag: &str, image: &Image) {
    let json = image
        .manifest
        .content
        .read(0, image.manifest.size() as usize);
    let json = String::from_utf8(json).expect("it is JSON");
    manifest(registry, repository, tag, Image::media_type(), &json);
}
