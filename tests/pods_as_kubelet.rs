//! Services that composed and then stopped a host's boot, or changed on the way: read as kubelet reads them, or refused
//! with file and line.
#![allow(clippy::unwrap_used)] // a failed unwrap is a failed test

use std::fs;
use std::path::Path;

use rackstep::release::manifest::pod::{PodReader as _, PodText};
use rackstep::release::manifest::{Service, service};
use rackstep::release::tree::podcheck::PodCheck;
use serde_json::Value;

const SERVICE: &str = "name: web\nimages:\n  web: {source: 'registry:quay.io/x/web:1'}\n  init: {source: 'registry:quay.io/x/init:1'}\npods: [pod.yaml]\n";
const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n  hostNetwork: true\n  containers:\n  - name: web\n    image: web\n";

fn reader() -> PodCheck {
    PodCheck::new(Path::new(env!("CARGO_MANIFEST_DIR")))
}

fn read(pod: &str) -> Result<Value, String> {
    let pod = PodText { file: "pod.yaml".to_owned(), bytes: pod.as_bytes().to_vec() };
    reader().read(&[pod]).map(|mut pods| pods.remove(0)).map_err(|error| error.to_string())
}

/// Loads a service of `service` and `pod`, and checks it as lock and compose do.
fn load(service_text: &str, pod: &str, config: &[(&str, &str)]) -> Result<Service, String> {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("service.yaml"), service_text).unwrap();
    fs::write(dir.path().join("pod.yaml"), pod).unwrap();
    for (name, content) in config {
        fs::create_dir_all(dir.path().join("config")).unwrap();
        fs::write(dir.path().join("config").join(name), content).unwrap();
    }
    let told = |error: rackstep::model::place::InputError| {
        error.to_string().replace(&format!("{}/", dir.path().display()), "")
    };
    let service = Service::load(dir.path(), &reader()).map_err(told)?;
    service::check_together(std::slice::from_ref(&service)).map_err(told)?;
    Ok(service)
}

#[test]
fn yaml_is_read_as_kubelet_reads_it() {
    let volume = |text: &str| format!("{POD}  volumes:\n  - {text}\n");
    let table = [
        ("octal", volume("{name: i, downwardAPI: {defaultMode: 0644, items: [{path: name, mode: 0400, fieldRef: {fieldPath: metadata.name}}]}}"), "/spec/volumes/0/downwardAPI/defaultMode", Value::from(420)),
        ("octal, new spelling", volume("{name: i, downwardAPI: {defaultMode: 0o644, items: []}}"), "/spec/volumes/0/downwardAPI/defaultMode", Value::from(420)),
        ("words", format!("{POD}    tty: yes\n    securityContext: {{privileged: on, readOnlyRootFilesystem: no}}\n"), "/spec/containers/0/securityContext/privileged", Value::from(true)),
        ("words, off", format!("{POD}    stdin: Off\n"), "/spec/containers/0/stdin", Value::from(false)),
        ("byte order mark", format!("\u{feff}{POD}"), "/metadata/name", Value::from("web")),
        ("anchors", format!("{POD}    args: &a [x]\n    command: *a\n"), "/spec/containers/0/command/0", Value::from("x")),
        ("merge keys", POD.replace("  containers:\n  - name: web\n", "  containers:\n  - <<: {tty: true}\n    name: web\n"), "/spec/containers/0/tty", Value::from(true)),
        ("a number that is a name", POD.replace("{name: web}", "{name: \"0644\"}"), "/metadata/name", Value::from("0644")),
        ("JSON", serde_json::json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "j"}, "spec": {"containers": [{"name": "a", "image": "b"}]}}).to_string(), "/metadata/name", Value::from("j")),
    ];
    for (what, pod, pointer, expected) in table {
        let value = read(&pod).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(value.pointer(pointer), Some(&expected), "{what}");
        // What a release stores is JSON: once more through kubelet's reader it is the same.
        assert_eq!(read(&value.to_string()).unwrap(), value, "{what}");
    }
}

#[test]
fn pods_that_no_host_can_run_are_refused_with_file_and_line() {
    let volume = |text: &str| format!("{POD}  volumes:\n  - {text}\n");
    let table = [
        (
            "init containers alone",
            POD.replace("containers:", "initContainers:"),
            "pod.yaml:4:1: spec.containers: Required value",
        ),
        (
            "containers null",
            POD.replace(
                "  containers:\n  - name: web\n    image: web\n",
                "  initContainers: [{name: a, image: init}]\n  containers: ~\n",
            ),
            "pod.yaml:7:1: spec.containers: Required value",
        ),
        (
            "ConfigMap",
            volume("{name: c, configMap: {name: web}}"),
            "pod.yaml:10:1: static pods may not reference configmaps",
        ),
        (
            "Secret",
            format!("{POD}    env: [{{name: P, valueFrom: {{secretKeyRef: {{name: s, key: k}}}}}}]\n"),
            "pod.yaml:9:1: static pods may not reference secrets",
        ),
        (
            "claim",
            volume("{name: c, persistentVolumeClaim: {claimName: web}}"),
            "pod.yaml:10:1: static pods may not reference persistentvolumeclaims",
        ),
        (
            "service account",
            format!("{POD}  serviceAccountName: web\n"),
            "pod.yaml:9:1: static pods may not reference serviceaccounts",
        ),
        (
            "image volume",
            volume("{name: c, image: {reference: quay.io/x/data:1, pullPolicy: Never}}"),
            "pod.yaml:10:34: pod web: volume \"c\" is an image",
        ),
        (
            "unknown field",
            POD.replace("    image: web\n", "    image: web\n    ttty: true\n"),
            "pod.yaml:9:1: unknown field \"spec.containers[0].ttty\"",
        ),
        ("a field twice", format!("{POD}    image: init\n"), "pod.yaml:9:1: yaml: unmarshal errors"),
        (
            "a word for a string",
            format!("{POD}    env: [{{name: P, value: yes}}]\n"),
            "pod.yaml:9:1: json: cannot unmarshal bool",
        ),
        (
            "a volume that is not there",
            format!("{POD}    volumeMounts: [{{name: x, mountPath: /x}}]\n"),
            "pod.yaml:9:1: spec.containers[0].volumeMounts[0].name: Not found",
        ),
        (
            "two containers of one name",
            format!("{POD}  - {{name: web, image: web}}\n"),
            "pod.yaml:9:1: spec.containers[1].name: Duplicate value",
        ),
        (
            "hostPath with ..",
            volume("{name: c, hostPath: {path: /run/../etc}}"),
            "pod.yaml:10:1: spec.volumes[0].hostPath.path: Invalid value",
        ),
        (
            "a name that leaves",
            POD.replace("{name: web}", "{name: ../web}"),
            "pod.yaml:3:1: metadata.name: Invalid value",
        ),
        ("two documents", format!("{POD}---\n{POD}"), "pod.yaml: more than one YAML document"),
        (
            "a claim on devices",
            format!("{POD}  resourceClaims: [{{name: a, resourceClaimName: b}}]\n"),
            "pod.yaml:9:1: static pods may not reference resourceclaims",
        ),
        ("another kind", POD.replace("kind: Pod", "kind: ConfigMap"), "pod.yaml:4:1: "),
        ("nothing", String::new(), "pod.yaml: "),
    ];
    for (what, pod, expected) in table {
        let told = load(SERVICE, &pod, &[]).map(drop).unwrap_err();
        assert!(told.starts_with(expected), "{what}: {told}\nexpected {expected}");
    }
}

#[test]
fn services_that_would_stop_a_boot_are_refused_with_file_and_line() {
    let with = |text: &str| format!("{SERVICE}{text}");
    let config = |content: &'static str| vec![("web.conf", content)];
    let table = [
        (
            with("config: config\nsecrets: {db-password: {generate: password}}\n"),
            config("a\npassword = ${secret:db_password}\n"),
            "config/web.conf:2:1: ${secret:db_password}: no service of the release declares",
        ),
        (
            with("config: config\n"),
            config("bind = ${host:adress}\n"),
            "config/web.conf:1:1: ${host:adress}: a host knows its name and its address",
        ),
        (
            with("volumes: {data: {policy: sometimes}}\n"),
            vec![],
            "service.yaml:6:26: volumes.data.policy: unknown variant `sometimes`",
        ),
        (
            with("volumes: {data: {policy: keep, mode: rwx}}\n"),
            vec![],
            "service.yaml:6:11: volume data: mode \"rwx\"",
        ),
        (
            with("volumes: {data: {policy: keep, owner: 'nobody:nogroup'}}\n"),
            vec![],
            "service.yaml:6:11: volume data: owner \"nobody:nogroup\"",
        ),
        (with("volumes: {'../x': {policy: keep}}\n"), vec![], "service.yaml:6:12: volume ../x: not a name"),
        (
            with("secrets: {'../x': {generate: password}}\n"),
            vec![],
            "service.yaml:6:12: \"../x\" is not a name of a secret",
        ),
        (
            with("secrets: {x: {generate: words}}\n"),
            vec![],
            "service.yaml:6:25: secrets.x.generate: unknown variant",
        ),
        (
            SERVICE.replace("name: web\n", "name: ../web\n"),
            vec![],
            "service.yaml:1:7: \"../web\" is not a name of a service",
        ),
        (
            SERVICE.replace("[pod.yaml]", "[../pod.yaml]"),
            vec![],
            "service.yaml:5:8: \"../pod.yaml\" leaves the service's directory",
        ),
        (
            SERVICE.replace("[pod.yaml]", "[pod.yaml, pod.yaml]"),
            vec![],
            "service.yaml:5:1: pod web is defined twice",
        ),
        (with("config: /etc\n"), vec![], "service.yaml:6:9: \"/etc\" leaves the service's directory"),
        (
            with("phases:\n- {id: sync, kind: expand, image: web, command: [x], needs: [pod/databse]}\n"),
            vec![],
            "service.yaml:7:62: phase sync needs pod/databse, which no service of the release has",
        ),
        (
            with("phases:\n- {id: sync, kind: expand, image: web, command: [x], needs: [phase/nope]}\n"),
            vec![],
            "service.yaml:7:62: phase sync needs phase/nope, which",
        ),
        (
            with("phases:\n- {id: ../sync, kind: expand, image: web, command: [x]}\n"),
            vec![],
            "service.yaml:7:8: phase ../sync: not a name of a phase",
        ),
    ];
    for (service, config, expected) in table {
        let told = load(&service, POD, &config).map(drop).unwrap_err();
        assert!(told.starts_with(expected), "{told}\nexpected {expected}");
    }
    // A service with a byte order mark is one.
    load(&format!("\u{feff}{SERVICE}"), POD, &[]).unwrap();
}
