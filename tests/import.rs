//! `rackstep import` on inputs of each kind: what is written, what is told, what is refused, and that no field is lost.
#![allow(clippy::unwrap_used)] // a failed unwrap is a failed test

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use proptest::prelude::*;
use rackstep::release::import::plan::{Form, Text, Wishes, import};
use rackstep::release::manifest::Service;
use rackstep::release::tree::podcheck::PodCheck;
use serde_json::Value;

fn inputs() -> PathBuf {
    Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").unwrap()).join("tests/import")
}

fn rackstep(arguments: &[&str], output: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_rackstep"))
        .arg("import")
        .args(arguments)
        .arg("--output")
        .arg(output)
        .current_dir(inputs())
        .output()
        .unwrap()
}

/// Every file below `root`, with its path as a heading.
fn listing(root: &Path) -> String {
    let mut text = String::new();
    for entry in walkdir::WalkDir::new(root).sort_by_file_name() {
        let entry = entry.unwrap();
        if entry.file_type().is_file() {
            let path = entry.path().strip_prefix(root).unwrap().display();
            text += &format!("==== {path}\n{}", fs::read_to_string(entry.path()).unwrap());
        }
    }
    text
}

/// `RACKSTEP_BLESS=1` writes the golden files anew.
#[test]
fn every_kind_gives_what_the_golden_files_say() {
    let table: [(&str, &[&str]); 5] = [
        ("openstack-helm", &["kubernetes", "openstack-helm/keystone.yaml"]),
        ("kolla-2014", &["kubernetes", "kolla-2014"]),
        ("compose", &["compose", "compose/docker-compose.yml"]),
        ("kolla", &["kolla", "kolla/etc-kolla", "--inspect", "kolla/containers.json"]),
        ("quadlets", &["kolla", "quadlets"]),
    ];
    for (name, arguments) in table {
        let output = tempfile::tempdir().unwrap();
        let told = rackstep(arguments, output.path());
        let shown =
            String::from_utf8(told.stdout).unwrap().replace(&output.path().display().to_string(), "OUT");
        assert!(told.status.success(), "{name}: {shown}{}", String::from_utf8_lossy(&told.stderr));
        let text = format!("{shown}{}", listing(output.path()));
        let golden = inputs().join(format!("{name}.golden"));
        if std::env::var_os("RACKSTEP_BLESS").is_some() {
            fs::write(&golden, &text).unwrap();
        }
        assert_eq!(text, fs::read_to_string(&golden).unwrap(), "{name}");
        for secret in ["never-written-anywhere", "hush-hush", "aHVzaC1odXNo", "Aeph8uth6Xae", "oow5Ohgh0aiz"]
        {
            assert!(!text.contains(secret), "{name}: {secret}");
        }
        for entry in fs::read_dir(output.path()).unwrap() {
            // Our own parser is the judge.
            Service::load(&entry.unwrap().path(), &PodCheck::new(Path::new(".")))
                .unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }
}

/// Imports texts and tells exit code, report as JSON and stderr.
fn try_import(form: &str, texts: &[(&str, &str)], more: &[&str]) -> (i32, Value, String, Vec<String>) {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in texts {
        fs::write(directory.path().join(name), text).unwrap();
    }
    let told = Command::new(env!("CARGO_BIN_EXE_rackstep"))
        .args(["import", form, texts[0].0, "--json", "--output", "out"])
        .args(more)
        .current_dir(directory.path())
        .output()
        .unwrap();
    let written = fs::read_dir(directory.path().join("out")).into_iter().flatten();
    let written = written.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    let report = serde_json::from_slice(&told.stdout).unwrap_or(Value::Null);
    (told.status.code().unwrap(), report, String::from_utf8(told.stderr).unwrap(), written)
}

const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: NAME}\nspec:\n  hostNetwork: true\n  containers:\n    - name: main\n      image: example.org/a:1\n";

#[test]
fn what_would_change_behaviour_is_refused_with_its_line_and_nothing_is_written() {
    let pod = |more: &str| format!("{}{more}", POD.replace("NAME", "a"));
    let job = "---\napiVersion: batch/v1\nkind: Job\nmetadata: {name: b, labels: {app: b}}\nspec:\n  template:\n    spec:\n      initContainers:\n        - name: init\n          image: x/kubernetes-entrypoint:1\n          env: [{name: DEPENDENCY_JOBS, value: c}]\n      containers: [{name: b, image: 'example.org/a:1', command: [b]}]\n";
    let circle =
        format!("{}{job}{}", pod(""), job.replace("name: b", "name: c").replace("value: c", "value: b"));
    let table: Vec<(&str, String, usize, &str)> = vec![
        (
            "kubernetes",
            pod("      livenessProbe: {httpGett: {port: 1}}\n"),
            9,
            "Kubernetes knows no such field",
        ),
        ("kubernetes", pod("      volumeDevices: []\n"), 9, "no such field"),
        ("kubernetes", pod("  runtimeClassName: kata\n"), 9, "a pod without an API server has no such field"),
        (
            "kubernetes",
            pod("  volumes:\n    - {name: v, nfs: {server: s, path: /p}}\n"),
            10,
            "a host mounts no nfs",
        ),
        (
            "kubernetes",
            pod("  volumes:\n    - {name: v, persistentVolumeClaim: {claimName: data}}\n"),
            10,
            "--volume data=snapshot|keep|disposable",
        ),
        (
            "kubernetes",
            pod("      env: [{name: A, valueFrom: {secretKeyRef: {name: s, key: k}}}]\n"),
            9,
            "Secret s with key k is not in the input",
        ),
        (
            "kubernetes",
            "apiVersion: policy/v1\nkind: PodDisruptionBudget\nmetadata: {name: p}\n".to_owned(),
            1,
            "not among the kinds that are imported",
        ),
        ("kubernetes", circle, 10, "needs itself: b → c → b"),
        (
            "kubernetes",
            format!(
                "{0}      ports: [{{containerPort: 80}}]\n---\n{1}      ports: [{{containerPort: 80}}]\n",
                POD.replace("NAME", "a"),
                POD.replace("NAME", "b")
            ),
            11,
            "port 80/TCP is also that of Pod/a",
        ),
        (
            "compose",
            "services:\n  a:\n    image: a:1\n    ulimits: {nofile: 1}\n".to_owned(),
            4,
            "a pod has no such field",
        ),
        (
            "compose",
            "services:\n  a:\n    image: a:1\n    ports: ['80:8080']\n".to_owned(),
            4,
            "nothing forwards",
        ),
        ("compose", "services:\n  a:\n    image: a:${TAG}\n".to_owned(), 3, "`docker compose config`"),
    ];
    for (form, text, line, expected) in table {
        let (code, report, _, written) = try_import(form, &[("in.yaml", &text)], &[]);
        assert_eq!(code, 3, "{text}{report:#}");
        assert!(written.is_empty(), "{written:?}");
        let found = report["refused"]
            .as_array()
            .unwrap()
            .iter()
            .any(|entry| entry["line"] == line && entry["detail"].as_str().unwrap().contains(expected));
        assert!(found, "{expected} at {line} in {:#}", report["refused"]);
    }
}

#[test]
fn bad_input_templates_and_existing_files() {
    for (text, expected) in [
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: 3}\n", "in.yaml:1:1: Pod/a: "),
        ("a: 1\n", "not an object of Kubernetes"),
        (
            "kind: Pod\nimage: {{ .Values.image }}\n",
            "in.yaml:2:1: a template that is not rendered ({{): `helm template",
        ),
        (
            "{% if a %}\nkind: Pod\n",
            "in.yaml:1:1: a template that is not rendered ({%): `kolla-ansible genconfig`",
        ),
    ] {
        let (code, _, told, written) = try_import("kubernetes", &[("in.yaml", text)], &[]);
        assert_eq!((code, written.len()), (2, 0), "{told}");
        assert!(told.contains(expected) && told.contains("state: nothing written"), "{told}");
    }
    let directory = tempfile::tempdir().unwrap();
    let input = directory.path().join("in.yaml");
    fs::write(&input, POD.replace("NAME", "a")).unwrap();
    let path = input.display().to_string();
    let output = directory.path().join("out");
    assert!(rackstep(&["kubernetes", &path, "--dry-run"], &output).status.success());
    assert!(!output.exists());
    assert!(rackstep(&["kubernetes", &path], &output).status.success());
    fs::write(output.join("a/mine"), "kept").unwrap();
    let again = rackstep(&["kubernetes", &path], &output);
    assert_eq!(again.status.code(), Some(3), "{}", String::from_utf8_lossy(&again.stderr));
    assert!(output.join("a/mine").exists());
    assert!(rackstep(&["kubernetes", &path, "--force"], &output).status.success());
    assert!(!output.join("a/mine").exists());
    // A refusal that a person accepts is a warning, and the rest is written.
    let (code, report, _, written) = try_import(
        "compose",
        &[("in.yaml", "services:\n  a:\n    image: a:1\n    ulimits: {nofile: 1}\n")],
        &["--accept", "ulimits"],
    );
    assert_eq!((code, written), (0, vec!["a".to_owned()]));
    assert!(report["warned"].to_string().contains("accepted: "));
}

/// Fields of every scalar and every empty branch, as an independent reader sees them.
fn leaves(value: &Value, field: &str, found: &mut Vec<String>) {
    match value {
        Value::Array(items) if !items.is_empty() => {
            for (number, item) in items.iter().enumerate() {
                leaves(item, &format!("{field}[{number}]"), found);
            }
        }
        Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                let field = match (field.is_empty(), key.contains(['.', '/'])) {
                    (_, true) => format!("{field}[{key}]"),
                    (true, false) => key.clone(),
                    (false, false) => format!("{field}.{key}"),
                };
                leaves(value, &field, found);
            }
        }
        _ => found.push(field.to_owned()),
    }
}

fn documents(text: &str) -> Vec<Value> {
    let documents = serde_yaml_ng::Deserializer::from_str(text).map(|document| {
        let mut value: serde_yaml_ng::Value = serde::Deserialize::deserialize(document).unwrap();
        value.apply_merge().unwrap();
        serde_json::to_value(value).unwrap()
    });
    documents.filter(|value| !value.is_null()).collect()
}

/// Object and field of every leaf, and how often the report names each.
fn assert_all_told(form: Form, text: &str) {
    let mut expected: Vec<(String, String)> = Vec::new();
    for document in documents(text) {
        let mut add = |object: String, value: &Value| {
            let mut fields = Vec::new();
            leaves(value, "", &mut fields);
            expected.extend(fields.into_iter().map(|field| (object.clone(), field)));
        };
        if form == Form::Kubernetes {
            let name = document["metadata"]["name"].as_str().or(document["id"].as_str()).unwrap();
            add(format!("{}/{name}", document["kind"].as_str().unwrap()), &document);
        } else {
            let mut rest = document.clone();
            if let Some(services) = rest.as_object_mut().unwrap().remove("services") {
                for (name, service) in services.as_object().unwrap() {
                    add(format!("service/{name}"), service);
                }
            }
            if rest.as_object().is_some_and(|rest| !rest.is_empty()) {
                add(String::new(), &rest);
            }
        }
    }
    let texts = [Text { file: "in".into(), path: "in".into(), content: text.as_bytes().to_vec() }];
    let Ok(imported) = import(form, &texts, Wishes::default(), &|_| None) else { return };
    let mut told: BTreeMap<(String, String), usize> = BTreeMap::new();
    let report = imported.report;
    for entry in report.translated.iter().chain(&report.warned).chain(&report.refused) {
        // Matters of whole objects have no field.
        if !entry.field.is_empty() {
            *told.entry((entry.object.clone(), entry.field.clone())).or_default() += 1;
        }
    }
    for leaf in expected {
        assert_eq!(told.remove(&leaf), Some(1), "{leaf:?} in\n{text}");
    }
    assert!(told.is_empty(), "told and not there: {told:?}");
}

#[test]
fn every_leaf_of_the_inputs_is_told_once() {
    for (form, path) in [
        (Form::Kubernetes, "openstack-helm/keystone.yaml"),
        (Form::Kubernetes, "kolla-2014/keystone-mariadb.yaml"),
        (Form::Compose, "compose/docker-compose.yml"),
    ] {
        assert_all_told(form, &fs::read_to_string(inputs().join(path)).unwrap());
    }
}

fn any_value() -> impl Strategy<Value = Value> {
    let scalar = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (0..70_000_i64).prop_map(Value::from),
        "[a-z/:$ -]{0,12}".prop_map(Value::from),
    ];
    scalar.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map(field_name(), inner, 0..3)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// Names that the translators know, and names that nobody does.
fn field_name() -> impl Strategy<Value = String> {
    const KNOWN: [&str; 30] = [
        "env",
        "name",
        "value",
        "volumes",
        "volumes_from",
        "ports",
        "command",
        "securityContext",
        "initContainers",
        "containers",
        "nodeSelector",
        "configMap",
        "secret",
        "items",
        "key",
        "path",
        "healthcheck",
        "test",
        "depends_on",
        "environment",
        "deploy",
        "resources",
        "limits",
        "user",
        "devices",
        "restart",
        "labels",
        "template",
        "replicas",
        "persistentVolumeClaim",
    ];
    prop_oneof![prop::sample::select(KNOWN.as_slice()).prop_map(str::to_owned), "[a-z]{1,6}(\\.[a-z]{1,3})?"]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_field_is_dropped_in_silence(name in field_name(), value in any_value(), place in 0..4_usize) {
        let kubernetes = serde_json::json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"},
            "spec": {"selector": {}, "template": {"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "a", "image": "a:1"}]}}}});
        let paths = ["", "/spec", "/spec/template/spec", "/spec/template/spec/containers/0"];
        let mut document = kubernetes;
        let target = document.pointer_mut(paths[place]).unwrap().as_object_mut().unwrap();
        if !["name", "template", "metadata", "containers"].contains(&name.as_str()) {
            target.insert(name.clone(), value.clone());
        }
        assert_all_told(Form::Kubernetes, &document.to_string());
        let mut document = serde_json::json!({"services": {"a": {"image": "a:1"}, "b": {"image": "b:1"}}});
        let target = document.pointer_mut(["/services/a", "/services/b", "/services/a", "/services/b"][place]).unwrap();
        target[&name] = value;
        assert_all_told(Form::Compose, &document.to_string());
    }
}
