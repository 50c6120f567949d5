//! Container images out of real registries and a real dockerd. Needs docker-registry, skopeo and openssl; the test of
//! dockerd needs root and docker.io.

#![allow(clippy::unwrap_used)]

#[macro_use]
#[path = "support/dockerd.rs"]
mod dockerd;
#[path = "support/http.rs"]
mod http;
#[path = "support/registry.rs"]
mod registry;
#[path = "support/tiny_image.rs"]
mod tiny_image;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use http::{Request, Server, answer};
use rackstep::docker::StoreKind;
use rackstep::formats::image::store::{ImageStore, Verdict};
use rackstep::formats::image::{Limits, Ownership};
use rackstep::model::{Digest, ImageRef, PinnedImage};
use rackstep::release::manifest::Origin;
use rackstep::release::manifest::service::WantedImage;
use rackstep::release::tree::cache::Cache;
use rackstep::release::tree::images::{Images, cached_store};
use rackstep::rim::registry::{RegistryError, RegistryImage, Settings};
use rackstep::rim::tls;
use registry::Registry;
use serde_json::{Value, json};
use tiny_image::{TinyImages, chain_of, layer, noise};

/// A tiny image of two layers, and an archive of it.
struct Tiny {
    dir: tempfile::TempDir,
    image: PinnedImage,
}

impl Tiny {
    fn new(seed: u8) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut images = TinyImages::default();
        let base = layer(&[("etc/base", b"base")]);
        let image = images.add("tiny", &[base, layer(&[("opt/noise", &noise(seed, 600_000))])], &["/x"]);
        let mut file = fs::File::create(dir.path().join("tiny.tar")).unwrap();
        images.write_archive(&image, &mut file).unwrap();
        Self { dir, image }
    }

    /// In skopeo's words.
    fn archive(&self) -> String {
        format!("docker-archive:{}", self.dir.path().join("tiny.tar").display())
    }

    /// The same with zstd layers. By way of a layout: on its way to a registry skopeo takes what that has already,
    /// however it is compressed.
    fn zstd_layout(&self) -> String {
        let layout = format!("oci:{}:zstd", self.dir.path().join("zstd").display());
        let copy =
            ["copy", "-q", "--insecure-policy", "--dest-compress-format", "zstd", &self.archive(), &layout];
        assert!(Command::new("skopeo").args(copy).status().unwrap().success());
        layout
    }
}

/// Describes `name` and pulls it into a new store.
fn pull(name: &str, settings: &Settings) -> Result<PinnedImage, String> {
    let limits = Limits::default();
    let image: ImageRef = name.parse().unwrap();
    let mut source =
        RegistryImage::open(&image, false, settings, &limits).map_err(|error| chain_of(&error))?;
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::new(dir.path().join("images"));
    let pinned =
        store.add(&mut source, name, Ownership::Ignore, &limits).map_err(|error| chain_of(&error))?;
    assert_eq!(store.verify(&pinned).unwrap(), Verdict::Good);
    Ok(pinned)
}

/// Puts a document under a tag.
fn put_manifest(registry: &Registry, repository: &str, tag: &str, media_type: &str, document: &Value) {
    let url = format!("http://{}/v2/{repository}/manifests/{tag}", registry.host);
    let client = tls::blocking_client().build().unwrap();
    let request = client.put(url).header("Content-Type", media_type).body(document.to_string());
    let answer = request.send().unwrap();
    assert!(answer.status().is_success(), "{}", answer.text().unwrap());
}

/// The descriptor of an image that is there.
fn descriptor(pinned: &PinnedImage, registry: &Registry, media_type: &str, architecture: &str) -> Value {
    let url = format!("http://{}/v2/a/tiny/manifests/{}", registry.host, pinned.manifest);
    let client = tls::blocking_client().build().unwrap();
    let bytes = client.get(url).header("Accept", media_type).send().unwrap().bytes().unwrap();
    assert_eq!(Digest::of(&bytes), pinned.manifest);
    json!({ "mediaType": media_type, "digest": pinned.manifest, "size": bytes.len(),
            "platform": { "os": "linux", "architecture": architecture } })
}

const OCI: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER: &str = "application/vnd.docker.distribution.manifest.v2+json";

#[test]
fn images_by_tag_by_digest_and_through_an_index() {
    let registry = Registry::start();
    let (tiny, other) = (Tiny::new(1), Tiny::new(2));
    registry.push(&tiny.archive(), "a/tiny:gzip", &["--format", "v2s2"]);
    // skopeo turns the config into OCI's form: another image of the same layers.
    registry.push(&tiny.archive(), "a/tiny:oci", &["--format", "oci"]);
    registry.push(&other.archive(), "a/tiny:other", &["--format", "v2s2"]);
    // Last: skopeo would take its blobs for those of other images, whose form cannot name them.
    registry.push(&tiny.zstd_layout(), "a/tiny:zstd", &["--preserve-digests"]);
    let name = |rest: &str| format!("{}/a/tiny{rest}", registry.host);
    let none = Settings::default();

    let gzip = pull(&name(":gzip"), &none).unwrap();
    let oci = pull(&name(":oci"), &none).unwrap();
    let zstd = pull(&name(":zstd"), &none).unwrap();
    assert_eq!((gzip.config, zstd.config), (tiny.image.config, oci.config));
    for pinned in [&gzip, &oci, &zstd] {
        assert_eq!(pinned.layers, tiny.image.layers);
    }
    assert_ne!(oci.manifest, zstd.manifest);
    let by_digest = pull(&name(&format!("@{}", gzip.manifest)), &none).unwrap();
    let by_both = pull(&name(&format!(":other@{}", gzip.manifest)), &none).unwrap();
    assert_eq!(
        (by_digest.manifest, by_both.manifest),
        (gzip.manifest, gzip.manifest),
        "a digest beats a tag"
    );

    // An index in each family of media types; the other platform comes first.
    let foreign = pull(&name(":other"), &none).unwrap();
    for (tag, media_type, image, kind) in [
        ("index", "application/vnd.oci.image.index.v1+json", &zstd, OCI),
        ("list", "application/vnd.docker.distribution.manifest.list.v2+json", &gzip, DOCKER),
    ] {
        let manifests =
            [descriptor(&foreign, &registry, DOCKER, "arm64"), descriptor(image, &registry, kind, "amd64")];
        let index = json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": manifests });
        put_manifest(&registry, "a/tiny", tag, media_type, &index);
        let pinned = pull(&name(&format!(":{tag}")), &none).unwrap();
        assert_eq!((pinned.manifest, pinned.config), (image.manifest, image.config), "{tag}");
        let digest = Digest::of(index.to_string().as_bytes());
        assert_eq!(pull(&name(&format!("@{digest}")), &none).unwrap().manifest, image.manifest, "{tag}");
    }
    let manifests = [descriptor(&foreign, &registry, DOCKER, "arm64")];
    let index = json!({ "schemaVersion": 2, "manifests": manifests });
    put_manifest(&registry, "a/tiny", "arm", "application/vnd.oci.image.index.v1+json", &index);
    let error = pull(&name(":arm"), &none).unwrap_err();
    assert!(error.ends_with(r#"is not for linux/amd64, only for ["linux/arm64"]"#), "{error}");

    let error = pull(&name(":absent"), &none).unwrap_err();
    assert_eq!(error, format!("manifest absent of {} is not in the registry", name(":absent")));
}

/// bcrypt of "secret".
const HTPASSWD: &str = "tester:$2b$04$e1wbfc5F4Svy7IDBx4H3uerhYpYzMPWTUhmpuzAt0mXAR5ScBQAfW\n";

/// A docker config with one login.
fn docker_config(dir: &Path, host: &str, login: &str) -> Settings {
    let config = json!({ "auths": { host: { "auth": STANDARD.encode(login) } } });
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    Settings { docker_config: Some(dir.to_owned()), certs: None }
}

#[test]
fn a_password_from_the_docker_config() {
    let dir = tempfile::tempdir().unwrap();
    let htpasswd = dir.path().join("htpasswd");
    fs::write(&htpasswd, HTPASSWD).unwrap();
    let auth = format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", htpasswd.display());
    let registry = Registry::start_with(&auth, "");
    let tiny = Tiny::new(3);
    registry.push(&tiny.archive(), "a/tiny:1", &["--dest-creds", "tester:secret"]);
    let name = format!("{}/a/tiny:1", registry.host);

    let settings = docker_config(dir.path(), &registry.host, "tester:secret");
    assert_eq!(pull(&name, &settings).unwrap().config, tiny.image.config);
    let settings = docker_config(dir.path(), &registry.host, "tester:guess");
    let error = pull(&name, &settings).unwrap_err();
    assert!(error.ends_with("does not let us pull a/tiny: the credentials of the docker config are refused"));
    let settings = docker_config(dir.path(), "quay.io", "tester:secret");
    let error = pull(&name, &settings).unwrap_err();
    assert!(error.ends_with("does not let us pull a/tiny: the docker config has no credentials for it"));
}

fn openssl(arguments: &[&str], dir: &Path) {
    let output = Command::new("openssl").args(arguments).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Makes an authority `ca.pem`, and `key.pem` with a certificate `cert.pem` of it for 127.0.0.1.
fn make_certificates(dir: &Path) {
    let request = "req -x509 -newkey rsa:2048 -nodes -days 2";
    let authority = "-keyout ca-key.pem -out ca.pem -subj /CN=authority";
    let leaf = "-keyout key.pem -out cert.pem -subj /CN=test -CA ca.pem -CAkey ca-key.pem -addext subjectAltName=IP:127.0.0.1 -addext basicConstraints=critical,CA:FALSE";
    for rest in [authority, leaf] {
        openssl(&format!("{request} {rest}").split(' ').collect::<Vec<_>>(), dir);
    }
}

/// A server of tokens, as a registry's token authentication wants them, for `tester` with `secret` or a refresh token.
fn token_server(dir: PathBuf) -> Server {
    Server::start(move |request| {
        let body = String::from_utf8_lossy(&request.body).into_owned();
        let basic = format!("Basic {}", STANDARD.encode("tester:secret"));
        let by_password = request.header("authorization") == Some(&basic);
        let by_token = body.contains("grant_type=refresh_token") && body.contains("refresh_token=lasting");
        if !by_password && !by_token {
            return answer("401 Unauthorized", &[], b"{}");
        }
        let parameters = format!("{}&{body}", request.target());
        let scope = parameters.split(['?', '&']).find_map(|pair| pair.strip_prefix("scope=")).unwrap();
        let scope = scope.replace("%3A", ":").replace("%2F", "/").replace("%2C", ",");
        let [kind, repository, actions] = scope.split(':').collect::<Vec<_>>()[..] else { panic!("{scope}") };
        let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
        let certificate = fs::read_to_string(dir.join("cert.pem")).unwrap();
        let certificate: String = certificate.lines().filter(|line| !line.starts_with('-')).collect();
        let header = json!({ "typ": "JWT", "alg": "RS256", "x5c": [certificate] });
        let claims = json!({
            "iss": "tokens", "sub": "tester", "aud": "registry", "exp": now + 600, "nbf": now - 60, "iat": now,
            "jti": "1", "access": [{
                "type": kind, "name": repository, "actions": actions.split(',').collect::<Vec<_>>(),
            }],
        });
        let encode = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", encode(header), encode(claims));
        // Several may ask at once.
        let work = tempfile::tempdir_in(&dir).unwrap();
        fs::write(work.path().join("signed"), &signed).unwrap();
        openssl(
            &"dgst -sha256 -sign ../key.pem -out signature signed".split(' ').collect::<Vec<_>>(),
            work.path(),
        );
        let signature = URL_SAFE_NO_PAD.encode(fs::read(work.path().join("signature")).unwrap());
        let field = if by_token { "access_token" } else { "token" };
        let body = json!({ field: format!("{signed}.{signature}"), "expires_in": 600 }).to_string();
        answer("200 OK", &[("Content-Type", "application/json")], body.as_bytes())
    })
}

#[test]
fn a_token_for_a_password_or_for_an_identity() {
    let dir = tempfile::tempdir().unwrap();
    make_certificates(dir.path());
    let tokens = token_server(dir.path().to_owned());
    let auth = format!(
        "auth:\n  token:\n    realm: http://{}/token\n    service: registry\n    issuer: tokens\n    rootcertbundle: {}\n",
        tokens.address,
        dir.path().join("ca.pem").display()
    );
    let registry = Registry::start_with(&auth, "");
    let tiny = Tiny::new(4);
    registry.push(&tiny.archive(), "a/tiny:1", &["--dest-creds", "tester:secret"]);
    let name = format!("{}/a/tiny:1", registry.host);
    tokens.take_asked();

    let settings = docker_config(dir.path(), &registry.host, "tester:secret");
    assert_eq!(pull(&name, &settings).unwrap().config, tiny.image.config);
    let asked = tokens.take_asked();
    assert_eq!(asked.len(), 1, "one token serves for the whole pull: {asked:?}");
    assert_eq!(asked[0].target(), "/token?service=registry&scope=repository%3Aa%2Ftiny%3Apull");

    let config = json!({ "auths": { &registry.host: { "auth": "", "identitytoken": "lasting" } } });
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    assert_eq!(pull(&name, &settings).unwrap().config, tiny.image.config);
    assert!(tokens.take_asked()[0].line.starts_with("POST /token"));

    let error = pull(&name, &Settings::default()).unwrap_err();
    assert!(error.ends_with("the docker config has no credentials for it"), "{error}");
}

#[test]
fn tls_by_an_authority_of_dockers() {
    let dir = tempfile::tempdir().unwrap();
    make_certificates(dir.path());
    let path = |name: &str| dir.path().join(name).display().to_string();
    let tls = format!("  tls:\n    certificate: {}\n    key: {}\n", path("cert.pem"), path("key.pem"));
    let registry = Registry::start_with("", &tls);
    let tiny = Tiny::new(5);
    registry.push(&tiny.archive(), "a/tiny:1", &[]);
    let name = format!("{}/a/tiny:1", registry.host);
    let error = pull(&name, &Settings::default()).unwrap_err();
    assert!(error.starts_with("https://") && error.contains("UnknownIssuer"), "{error}");
    let certs = dir.path().join("certs.d");
    fs::create_dir_all(certs.join(&registry.host)).unwrap();
    fs::copy(path("ca.pem"), certs.join(&registry.host).join("ca.crt")).unwrap();
    let settings = Settings { docker_config: None, certs: Some(certs) };
    assert_eq!(pull(&name, &settings).unwrap().config, tiny.image.config);
}

/// True for the request of a blob.
fn is_blob(request: &Request, blob: &str) -> bool {
    request.target().ends_with(&format!("/blobs/{blob}"))
}

/// The digest of the last layer's blob.
fn last_blob(registry: &Registry, name: &str) -> String {
    let url = format!("http://{}/v2/{name}", registry.host);
    let client = tls::blocking_client().build().unwrap();
    let manifest: Value = client.get(url).header("Accept", DOCKER).send().unwrap().json().unwrap();
    manifest["layers"].as_array().unwrap().last().unwrap()["digest"].as_str().unwrap().to_owned()
}

#[test]
fn a_blob_that_lies_is_refused_by_name() {
    let registry = Registry::start();
    let tiny = Tiny::new(6);
    registry.push(&tiny.archive(), "a/tiny:1", &["--format", "v2s2"]);
    let blob = last_blob(&registry, "a/tiny/manifests/1");
    // In the middle, in the last byte, and a byte too many: each is noticed by another check.
    for fault in ["middle", "end", "more"] {
        let lying = blob.clone();
        let proxy = Server::before(registry.host.clone(), move |request, head, mut body| {
            if is_blob(request, &lying) {
                let at = if fault == "middle" { body.len() / 2 } else { body.len() - 1 };
                body[at] ^= 1;
                if fault == "more" {
                    body[at] ^= 1;
                    body.push(0);
                    return answer("200 OK", &[], &body);
                }
            }
            [head, body].concat()
        });
        let error = pull(&format!("{}/a/tiny:1", proxy.address), &Settings::default()).unwrap_err();
        assert!(error.contains(&format!("layer blob {blob} of {}/a/tiny:1", proxy.address)), "{error}");
    }
    // The config and the manifest as well.
    for (target, what) in [("blobs", "config"), ("manifests", "manifest")] {
        let config = tiny.image.config;
        let proxy = Server::before(registry.host.clone(), move |request, head, mut body| {
            if request.target().ends_with(&config.to_string())
                || request.target().contains("manifests/sha256")
            {
                let at = body.iter().rposition(|byte| *byte == b'"').unwrap() - 1;
                body[at] ^= 1;
            }
            [head, body].concat()
        });
        let manifest = pull(&format!("{}/a/tiny:1", registry.host), &Settings::default()).unwrap().manifest;
        let rest = if target == "blobs" { ":1".to_owned() } else { format!("@{manifest}") };
        let error = pull(&format!("{}/a/tiny{rest}", proxy.address), &Settings::default()).unwrap_err();
        assert!(error.starts_with(&format!("{what} of {}", proxy.address)), "{error}");
        assert!(error.contains("has digest"), "{error}");
    }
}

#[test]
fn a_cut_download_goes_on_where_it_was_cut() {
    let registry = Registry::start();
    let tiny = Tiny::new(7);
    registry.push(&tiny.archive(), "a/tiny:1", &["--format", "v2s2"]);
    let blob = last_blob(&registry, "a/tiny/manifests/1");
    for knows_ranges in [true, false] {
        let (cut, cuts) = (blob.clone(), Arc::new(AtomicUsize::new(0)));
        let proxy = Server::before(registry.host.clone(), move |request, head, body| {
            let head = if knows_ranges || !is_blob(request, &cut) {
                head
            } else {
                String::from_utf8(head).unwrap().replace("206 Partial Content", "200 OK").into_bytes()
            };
            if is_blob(request, &cut) && cuts.fetch_add(1, Ordering::SeqCst) < 2 {
                return [&head, &body[..200_000]].concat();
            }
            [head, body].concat()
        });
        let name = format!("{}/a/tiny:1", proxy.address);
        if !knows_ranges {
            // It answers 200 with a part: the digest tells.
            let error = pull(&name, &Settings::default()).unwrap_err();
            assert!(error.contains(&blob), "{error}");
            continue;
        }
        assert_eq!(pull(&name, &Settings::default()).unwrap().config, tiny.image.config);
        let asked = proxy.take_asked();
        let ranges: Vec<_> =
            asked.iter().filter(|r| is_blob(r, &blob)).map(|request| request.header("range")).collect();
        assert_eq!(ranges, [None, Some("bytes=200000-"), Some("bytes=400000-")]);
    }
    // A server that begins again from the start.
    let (cut, cuts) = (blob.clone(), Arc::new(AtomicUsize::new(0)));
    let direct = Server::before(registry.host.clone(), |_, head, body| [head, body].concat());
    let upstream = direct.address.to_string();
    let proxy = Server::start(move |request| {
        let mut request = request.clone();
        request.headers.retain(|(name, _)| !name.eq_ignore_ascii_case("range"));
        let (head, body) = http::ask(&upstream, &request).unwrap();
        if is_blob(&request, &cut) && cuts.fetch_add(1, Ordering::SeqCst) < 2 {
            return [&head, &body[..200_000]].concat();
        }
        [head, body].concat()
    });
    let name = format!("{}/a/tiny:1", proxy.address);
    assert_eq!(pull(&name, &Settings::default()).unwrap().config, tiny.image.config);
    // One that always cuts is given up.
    let cut = blob.clone();
    let proxy = Server::before(registry.host.clone(), move |request, head, body| {
        if is_blob(request, &cut) { [&head, &body[..10]].concat() } else { [head, body].concat() }
    });
    let error = pull(&format!("{}/a/tiny:1", proxy.address), &Settings::default()).unwrap_err();
    assert!(error.contains(&blob) && error.contains("cut after"), "{error}");
    assert_eq!(proxy.take_asked().iter().filter(|request| is_blob(request, &blob)).count(), 3);
}

#[test]
fn the_oldest_manifests_are_refused() {
    let server = Server::start(|request| match request.target() {
        "/v2/a/old/manifests/1" => answer(
            "200 OK",
            &[("Content-Type", "application/vnd.docker.distribution.manifest.v1+prettyjws")],
            br#"{"schemaVersion":1,"name":"a/old","tag":"1","fsLayers":[],"history":[]}"#,
        ),
        _ => answer("404 Not Found", &[], b""),
    });
    let image: ImageRef = format!("{}/a/old:1", server.address).parse().unwrap();
    let error = RegistryImage::open(&image, false, &Settings::default(), &Limits::default()).err().unwrap();
    assert!(matches!(error, RegistryError::Schema1 { .. }), "{error}");
}

#[test]
fn a_lock_pulls_no_layer_and_a_compose_each_once() {
    let registry = Registry::start();
    let tiny = Tiny::new(8);
    registry.push(&tiny.archive(), "a/tiny:1", &["--format", "oci"]);
    let proxy = Server::before(registry.host.clone(), |_, head, body| [head, body].concat());
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(Some(dir.path())).unwrap();
    let mut images = Images::new(&cache, None);
    images.registries = Settings::default();
    let image: ImageRef = format!("{}/a/tiny:1", proxy.address).parse().unwrap();
    let origin = Origin::Registry { image, insecure: false };
    let wanted = WantedImage { reference: origin.reference(), origin };
    let blobs = || proxy.take_asked().iter().filter(|request| request.target().contains("/blobs/")).count();

    let locked = images.resolve("tiny", &wanted).unwrap();
    assert_eq!(blobs(), 1, "the config alone");
    let diff_ids: Vec<Digest> = tiny.image.layers.iter().map(|layer| layer.diff_id).collect();
    assert!(locked.layers.iter().map(|layer| layer.diff_id).eq(diff_ids));

    // The tag moves on; what is locked comes all the same, and by its digest.
    registry.push(&Tiny::new(9).archive(), "a/tiny:1", &["--format", "oci"]);
    let pinned = images.ensure("tiny", &wanted, &locked).unwrap();
    assert_eq!((pinned.manifest, &pinned.layers), (locked.manifest, &tiny.image.layers));
    assert_eq!(blobs(), 3, "the config and two layers");
    assert_eq!(images.ensure("tiny", &wanted, &locked).unwrap(), pinned);
    assert_eq!(proxy.take_asked().len(), 0, "the store has it");
    let moved = images.resolve("tiny", &wanted).unwrap();
    assert_ne!(moved.config, locked.config);
    let again = images.ensure("tiny", &wanted, &moved).unwrap();
    assert_eq!(again.layers[0], pinned.layers[0]);
    assert_eq!(blobs(), 3, "two configs, and the layer that is new");

    // The same image by another manifest: nothing is pulled but descriptions, and the store has the right one.
    registry.push(&tiny.zstd_layout(), "a/tiny:zstd", &["--preserve-digests"]);
    let image: ImageRef = format!("{}/a/tiny:zstd", proxy.address).parse().unwrap();
    let origin = Origin::Registry { image, insecure: false };
    let zstd = WantedImage { reference: origin.reference(), origin };
    let locked_zstd = images.resolve("tiny", &zstd).unwrap();
    let pinned_zstd = images.ensure("tiny", &zstd, &locked_zstd).unwrap();
    assert_eq!(blobs(), 2, "the config, twice");
    assert_eq!((pinned_zstd.config, pinned_zstd.manifest), (locked.config, locked_zstd.manifest));
    assert_eq!(cached_store(&cache).verify(&pinned_zstd).unwrap(), Verdict::Good);
}

on_both_stores! { an_image_of_dockerd_keeps_its_id }

fn an_image_of_dockerd_keeps_its_id(kind: StoreKind) {
    let daemon = dockerd::Dockerd::start_with(kind);
    let (tiny, other) = (Tiny::new(10), Tiny::new(11));
    let load = |tiny: &Tiny, name: &str| {
        let path = tiny.dir.path().join("tiny.tar");
        let loaded = daemon.client(&["load", "-q", "-i", path.to_str().unwrap()]).unwrap();
        let id: Digest = loaded.rsplit(' ').next().unwrap().parse().unwrap();
        daemon.client(&["tag", &id.to_string(), name]).unwrap();
        id
    };
    let id = load(&tiny, "tiny:1");
    assert_eq!(id == tiny.image.config, kind == StoreKind::Classic);
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(Some(dir.path())).unwrap();
    let mut images = Images::new(&cache, None);
    images.docker_url = Some(daemon.url());
    let origin = Origin::Docker("tiny:1".to_owned());
    let wanted = WantedImage { reference: origin.reference(), origin };
    let locked = images.resolve("tiny", &wanted).unwrap();
    assert_eq!((locked.reference.as_str(), locked.config), ("docker-daemon:tiny:1", tiny.image.config));
    let pinned = locked.pinned(|_| panic!("all sizes are known"));
    assert_eq!(pinned.layers, tiny.image.layers);
    assert_eq!(cached_store(&cache).verify(&pinned).unwrap(), Verdict::Good);

    // The name moves on: a cache that has lost the image gets the locked one again, by its Id.
    load(&other, "tiny:1");
    let second = tempfile::tempdir().unwrap();
    let cache = Cache::open(Some(second.path())).unwrap();
    let mut images = Images::new(&cache, None);
    images.docker_url = Some(daemon.url());
    assert_eq!(images.ensure("tiny", &wanted, &locked).unwrap(), pinned);
    let moved = images.resolve("tiny", &wanted).unwrap();
    assert_eq!(moved.config, other.image.config);

    // Only what the store lacks stays of a save.
    let store = cached_store(&cache);
    let saved = tempfile::tempdir().unwrap();
    let has = |diff_id: Digest| store.layer_dir(diff_id).is_dir();
    daemon.connect().save(id, saved.path(), &has).unwrap();
    let layers = walkdir::WalkDir::new(saved.path()).into_iter().map(Result::unwrap);
    let bytes: u64 = layers.filter(|e| e.file_type().is_file()).map(|e| e.metadata().unwrap().len()).sum();
    assert!(bytes < 50_000, "{bytes}");

    daemon.client(&["rmi", "-f", &id.to_string()]).unwrap();
    let third = tempfile::tempdir().unwrap();
    let cache = Cache::open(Some(third.path())).unwrap();
    let mut images = Images::new(&cache, None);
    images.docker_url = Some(daemon.url());
    let error = chain_of(&images.ensure("tiny", &wanted, &locked).unwrap_err());
    assert!(error.starts_with("taking image tiny from docker") && error.contains("o such image"), "{error}");
}
