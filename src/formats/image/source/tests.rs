//! Layouts and archives by hand: several images, several platforms, links, and lies.

use std::error::Error as _;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::*;

/// A directory that becomes a layout or an archive.
struct Made(tempfile::TempDir);

/// An empty layer: two zero blocks.
const LAYER: &[u8] = &[0; 1024];

impl Made {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    /// Adds a blob and describes it.
    fn blob(&self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = Digest::of(bytes);
        self.write(&format!("blobs/sha256/{}", digest.hex()), bytes);
        json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() })
    }

    /// Adds an image of one layer, told apart by its author, and describes its manifest.
    fn image(&self, author: &str, architecture: &str) -> Value {
        let config = self.blob(CONFIG, &config(author, architecture));
        let layer = self.blob(TAR, LAYER);
        let manifest =
            json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer] });
        self.blob(MANIFEST, manifest.to_string().as_bytes())
    }

    fn index(&self, manifests: &[Value]) {
        let index = json!({ "schemaVersion": 2, "manifests": manifests });
        self.write("index.json", index.to_string().as_bytes());
        self.write("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
    }

    /// The author of the image that is chosen, or the error.
    fn chosen(&self, name: Option<&str>) -> Result<String, String> {
        let describe = |error: SourceError| match error.source() {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        };
        let text = |error| describe(error).replace(&self.path().display().to_string(), "PATH");
        let mut image = open(self.path(), name, &Limits::default()).map_err(text)?;
        let described = image.describe().unwrap();
        let mut layer = Vec::new();
        image.open_layer(0).unwrap().read_to_end(&mut layer).unwrap();
        assert_eq!((layer.as_slice(), described.diff_ids), (LAYER, vec![Digest::of(LAYER)]));
        assert!(matches!(image.open_layer(1), Err(SourceError::NoLayer { index: 1, .. })));
        let config: Value = serde_json::from_slice(&described.config).unwrap();
        Ok(config["author"].as_str().unwrap().to_owned())
    }
}

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const TAR: &str = "application/vnd.oci.image.layer.v1.tar";

fn config(author: &str, architecture: &str) -> Vec<u8> {
    let rootfs = json!({ "type": "layers", "diff_ids": [Digest::of(LAYER)] });
    json!({ "author": author, "architecture": architecture, "os": "linux", "rootfs": rootfs })
        .to_string()
        .into_bytes()
}

fn named(mut descriptor: Value, name: &str) -> Value {
    descriptor["annotations"] = json!({ "org.opencontainers.image.ref.name": name });
    descriptor
}

fn on(mut descriptor: Value, os: &str, architecture: &str) -> Value {
    descriptor["platform"] = json!({ "os": os, "architecture": architecture });
    descriptor
}

#[test]
fn a_layout_of_several_images() {
    let made = Made::new();
    made.index(&[named(made.image("one", "amd64"), "a:1"), named(made.image("two", "amd64"), "a:2")]);
    assert_eq!(made.chosen(Some("a:1")).as_deref(), Ok("one"));
    assert_eq!(made.chosen(Some("a:2")).as_deref(), Ok("two"));
    assert_eq!(made.chosen(None).unwrap_err(), r#"PATH holds ["a:1", "a:2"]: name one"#);
    assert_eq!(made.chosen(Some("b")).unwrap_err(), r#"PATH holds ["a:1", "a:2"]: no image "b""#);
    made.index(&[]);
    assert_eq!(made.chosen(None).unwrap_err(), "PATH holds []: name one");
}

#[test]
fn the_platform_is_chosen_from_an_index() {
    for media_type in [INDEX, DOCKER_LIST] {
        let made = Made::new();
        let arm = on(made.image("arm", "arm64"), "linux", "arm64");
        let ours = on(made.image("ours", "amd64"), "linux", "amd64");
        let attestation = on(made.image("attestation", "amd64"), "unknown", "unknown");
        let list = |manifests: &[&Value]| {
            let index = json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": manifests });
            made.blob(media_type, index.to_string().as_bytes())
        };
        let nested = list(&[&arm, &ours, &attestation]);
        made.index(&[named(nested, "a")]);
        assert_eq!(made.chosen(Some("a")).as_deref(), Ok("ours"), "{media_type}");
        made.index(&[arm.clone(), ours]);
        assert_eq!(made.chosen(None).as_deref(), Ok("ours"), "flat");
        let foreign = list(&[&arm]);
        made.index(&[foreign]);
        let error = made.chosen(None).unwrap_err();
        assert_eq!(error, r#"PATH has no image for linux/amd64, only for ["linux/arm64"]"#);
    }
    // An index that does not say: the config does.
    let made = Made::new();
    made.index(&[made.image("arm", "arm64")]);
    let error = made.chosen(None).unwrap_err();
    assert!(error.ends_with("image is for linux/arm64, expected linux/amd64"), "{error}");
}

#[test]
fn a_docker_archive_with_linked_layers() {
    let made = Made::new();
    let config = config("docker", "amd64");
    let name = format!("{}.json", Digest::of(&config).hex());
    made.write(&name, &config);
    made.write("base/layer.tar", LAYER);
    fs::create_dir(made.path().join("top")).unwrap();
    // As `docker save` before version 25 writes a layer that it has written already.
    std::os::unix::fs::symlink("../base/layer.tar", made.path().join("top/layer.tar")).unwrap();
    let manifest = |config: &str, layer: &str| {
        json!([{ "Config": config, "RepoTags": ["a:1"], "Layers": [layer] }]).to_string().into_bytes()
    };
    made.write("manifest.json", &manifest(&name, "top/layer.tar"));
    assert_eq!(made.chosen(None).as_deref(), Ok("docker"), "directory");
    let packed = Made::new();
    let tar = packed.path().join("archive.tar");
    let mut builder = tar::Builder::new(fs::File::create(&tar).unwrap());
    builder.follow_symlinks(false);
    builder.append_dir_all(".", made.path()).unwrap();
    builder.finish().unwrap();
    let mut image = open(&tar, Some("a:1"), &Limits::default()).unwrap();
    assert_eq!(image.describe().unwrap().manifest, None);
    let mut layer = Vec::new();
    image.open_layer(0).unwrap().read_to_end(&mut layer).unwrap();
    assert_eq!(layer, LAYER);
    drop(image);

    made.write("manifest.json", &manifest("../../../../etc/hostname", "base/layer.tar"));
    let error = made.chosen(None).unwrap_err();
    assert_eq!(error, r#"reading PATH: file "../../../../etc/hostname" is missing"#);
    made.write(&name, b"{}");
    made.write("manifest.json", &manifest(&name, "base/layer.tar"));
    let error = made.chosen(None).unwrap_err();
    assert!(error.starts_with(&format!("{name} of PATH has digest sha256:44136fa")), "{error}");
    made.write("manifest.json", b"[{}");
    assert!(made.chosen(None).unwrap_err().starts_with("reading manifest.json of PATH"));
    fs::remove_file(made.path().join("manifest.json")).unwrap();
    assert_eq!(made.chosen(None).unwrap_err(), "PATH is neither an OCI layout nor a docker archive");
}

#[test]
fn links_in_a_circle_lead_nowhere() {
    let dir = Made::new();
    std::os::unix::fs::symlink("b", dir.path().join("a")).unwrap();
    std::os::unix::fs::symlink("a", dir.path().join("b")).unwrap();
    std::os::unix::fs::symlink("../../../../etc/hostname", dir.path().join("c")).unwrap();
    let packed = Made::new();
    let tar = packed.path().join("archive.tar");
    let mut builder = tar::Builder::new(fs::File::create(&tar).unwrap());
    builder.follow_symlinks(false);
    builder.append_dir_all(".", dir.path()).unwrap();
    builder.finish().unwrap();
    let bundle = Bundle::open(&tar).unwrap();
    for name in ["a", "b", "c", "d", "../a", ""] {
        assert!(!bundle.contains(name), "{name}");
        assert!(matches!(bundle.read(name), Err(BundleError::Missing(_))), "{name}");
    }
}

#[test]
fn descriptions_that_do_not_fit_in_memory_are_refused() {
    let made = Made::new();
    made.index(&[made.image("one", "amd64")]);
    let limits = Limits { description_bytes: 10, ..Limits::default() };
    let error = open(made.path(), None, &limits).err().unwrap();
    let cause = error.source().unwrap().to_string();
    assert!(
        cause.starts_with(r#"file "index.json" has "#) && cause.ends_with("more than the limit of 10"),
        "{cause}"
    );
}

/// The layer of a `docker save` archive, unpacked by `make` from the plain tar.
fn layer_of_archive(make: impl Fn(&Path, &Path)) -> Vec<u8> {
    let made = Made::new();
    let config = config("docker", "amd64");
    let name = format!("{}.json", Digest::of(&config).hex());
    made.write(&name, &config);
    made.write("a/layer.tar", LAYER);
    let manifest = json!([{ "Config": name, "RepoTags": ["site-agent:latest"], "Layers": ["a/layer.tar"] }]);
    made.write("manifest.json", manifest.to_string().as_bytes());
    let out = tempfile::tempdir().unwrap();
    let (plain, packed) = (out.path().join("plain.tar"), out.path().join("packed"));
    let mut builder = tar::Builder::new(fs::File::create(&plain).unwrap());
    builder.append_dir_all(".", made.path()).unwrap();
    builder.finish().unwrap();
    make(&plain, &packed);
    // By a name as `docker images` shows it, and as people shorten it.
    for asked in ["site-agent:latest", "site-agent", "docker.io/library/site-agent:latest"] {
        open(&packed, Some(asked), &Limits::default()).unwrap_or_else(|error| panic!("{asked}: {error}"));
    }
    let mut image = open(&packed, None, &Limits::default()).unwrap();
    let mut layer = Vec::new();
    image.open_layer(0).unwrap().read_to_end(&mut layer).unwrap();
    layer
}

#[test]
fn compressed_archives_are_taken_as_docker_load_takes_them() {
    let by = |program: &'static str| {
        move |plain: &Path, packed: &Path| {
            let output = std::process::Command::new(program).arg("-c").arg(plain).output().unwrap();
            assert!(output.status.success(), "{program}");
            fs::write(packed, output.stdout).unwrap();
        }
    };
    for program in ["cat", "gzip", "xz", "zstd"] {
        if program == "cat" {
            let copy = |plain: &Path, packed: &Path| assert!(fs::copy(plain, packed).is_ok());
            assert_eq!(layer_of_archive(copy), LAYER, "{program}");
        } else {
            assert_eq!(layer_of_archive(by(program)), LAYER, "{program}");
        }
    }
}

#[test]
fn one_image_under_two_tags_is_one_image() {
    let made = Made::new();
    let image = made.image("one", "amd64");
    made.index(&[named(image.clone(), "a:1"), named(image, "a:2")]);
    for name in [None, Some("a:1"), Some("a:2")] {
        assert_eq!(made.chosen(name).as_deref(), Ok("one"), "{name:?}");
    }
}

#[test]
fn signatures_and_attestations_beside_an_image_are_passed_over() {
    let made = Made::new();
    let signature = |kind: &str| {
        let config = made.blob(CONFIG, &config("signature", "amd64"));
        let layer = made.blob(kind, b"{}");
        let manifest =
            json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer] });
        made.blob(MANIFEST, manifest.to_string().as_bytes())
    };
    let cosign = signature("application/vnd.dev.cosign.simplesigning.v1+json");
    let attestation = signature("application/vnd.in-toto+json");
    made.index(&[cosign, made.image("ours", "amd64"), attestation]);
    assert_eq!(made.chosen(None).as_deref(), Ok("ours"));
}

#[test]
fn the_variant_for_every_processor_wins_whatever_the_order() {
    let made = Made::new();
    let variant = |name: &str, variant: Option<&str>| {
        let mut descriptor = on(made.image(name, "amd64"), "linux", "amd64");
        if let Some(variant) = variant {
            descriptor["platform"]["variant"] = variant.into();
        }
        descriptor
    };
    let (v2, v3) = (variant("v2", Some("v2")), variant("v3", Some("v3")));
    let base = variant("base", None);
    made.index(&[v3.clone(), base.clone(), v2.clone()]);
    assert_eq!(made.chosen(None).as_deref(), Ok("base"));
    made.index(&[v3, v2]);
    assert_eq!(made.chosen(None).as_deref(), Ok("v2"));
}

#[test]
fn docker_25_names_an_image_as_people_do() {
    let made = Made::new();
    let mut image = named(made.image("one", "amd64"), "1");
    image["annotations"]["io.containerd.image.name"] = "docker.io/library/site-agent:1".into();
    let mut other = named(made.image("two", "amd64"), "latest");
    other["annotations"]["io.containerd.image.name"] = "docker.io/library/alpine:latest".into();
    made.index(&[image, other]);
    for (asked, got) in [("site-agent:1", "one"), ("1", "one"), ("alpine", "two"), ("alpine:latest", "two")] {
        assert_eq!(made.chosen(Some(asked)).as_deref(), Ok(got), "{asked}");
    }
    assert!(made.chosen(Some("site-agent")).is_err(), "latest is another tag");
}

#[test]
fn an_image_without_layers_may_say_null() {
    let config = br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":null}}"#;
    assert_eq!(crate::formats::image::spec::parse_config(config).unwrap().rootfs.diff_ids, []);
}

#[test]
fn a_zstd_layer_may_begin_with_a_skippable_frame() {
    let mut blob = vec![0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0];
    blob.extend(b"abcd");
    blob.extend(zstd::encode_all(LAYER, 1).unwrap());
    let mut tar = Vec::new();
    decompress(blob.as_slice()).unwrap().read_to_end(&mut tar).unwrap();
    assert_eq!(tar, LAYER);
}

#[test]
fn a_fifo_in_the_place_of_a_blob_is_refused_and_nothing_hangs() {
    let made = Made::new();
    let image = made.image("one", "amd64");
    made.index(std::slice::from_ref(&image));
    let blob = made.path().join("blobs/sha256").join(&image["digest"].as_str().unwrap()[7..]);
    fs::remove_file(&blob).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, &blob, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let error = made.chosen(None).unwrap_err();
    assert!(error.starts_with("reading PATH: file"), "{error}");
}
