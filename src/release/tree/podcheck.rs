//! Calls kubelet's own reader of pods, `scripts/go/podcheck`.
//!
//! 1. Found: built by the project's script where that is at hand, else beside this program, else on the path; 2. asked once
//!    for all pods of a service; 3. its answer is either what kubelet makes of a pod, or faults with their lines.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use base64::Engine as _;
use serde::Deserialize;
use serde_json::{Value, json};

use super::binaries::find_script;
use crate::model::causes::in_one_line;
use crate::model::place::InputError;
use crate::release::manifest::pod::{PodReader, PodText, error_at};
use crate::rim::command::run_text;

/// The program's name beside ours or on the path.
const PROGRAM: &str = "rackstep-podcheck";
/// The script that builds it, and what the script calls it.
const SCRIPT: &str = "scripts/build-go-binaries.sh";
const SCRIPT_NAME: &str = "podcheck";

/// kubelet's reader, found when it is first needed.
#[derive(Debug, Default)]
pub struct PodCheck {
    near: PathBuf,
    program: OnceLock<Result<PathBuf, String>>,
}

#[derive(Debug, Deserialize)]
struct Answer {
    #[serde(default)]
    pod: Option<Value>,
    #[serde(default)]
    faults: Vec<Fault>,
}

#[derive(Debug, Deserialize)]
struct Fault {
    line: usize,
    message: String,
}

impl PodCheck {
    /// A reader whose script is looked for in `near` and above, then in the working directory and above.
    pub fn new(near: &Path) -> Self {
        Self { near: near.to_owned(), program: OnceLock::new() }
    }

    fn program(&self) -> Result<&Path, String> {
        let found = self.program.get_or_init(|| find(&self.near));
        found.as_deref().map_err(Clone::clone)
    }
}

fn find(near: &Path) -> Result<PathBuf, String> {
    let near = if near.as_os_str().is_empty() { Path::new(".") } else { near };
    if let Some(script) = [near, Path::new(".")].iter().find_map(|from| find_script(from, SCRIPT).ok()) {
        let told = run_text(Command::new(&script).arg(SCRIPT_NAME))
            .map_err(|error| format!("kubelet's reader could not be built: {}", in_one_line(&error)))?;
        let path = told.lines().last().and_then(|line| line.split_whitespace().nth(1)).unwrap_or_default();
        return Ok(PathBuf::from(path));
    }
    // What the script has built stays in its cache.
    let cache = |name: &str, below: &str| std::env::var_os(name).map(|base| PathBuf::from(base).join(below));
    let bin = cache("XDG_CACHE_HOME", "rackstep/bin").or_else(|| cache("HOME", ".cache/rackstep/bin"));
    let built = bin.and_then(|bin| newest(&bin));
    let beside = std::env::current_exe().ok().and_then(|path| Some(path.parent()?.join(PROGRAM)));
    let on_path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&on_path).map(|dir| dir.join(PROGRAM));
    beside.into_iter().chain(on_path).chain(built).find(|path| path.is_file()).ok_or_else(|| {
        format!(
            "kubelet's reader {PROGRAM} is neither beside rackstep nor on the path: build it with {SCRIPT} {SCRIPT_NAME}"
        )
    })
}

/// The reader in the script's cache that was built last.
fn newest(bin: &Path) -> Option<PathBuf> {
    let built = std::fs::read_dir(bin).ok()?.filter_map(Result::ok);
    let readers = built.filter(|entry| entry.file_name().to_string_lossy().starts_with("podcheck-"));
    let modified = |path: &PathBuf| path.metadata().and_then(|found| found.modified()).ok();
    readers.map(|entry| entry.path().join(SCRIPT_NAME)).max_by_key(modified)
}

impl PodReader for PodCheck {
    fn read(&self, pods: &[PodText]) -> Result<Vec<Value>, InputError> {
        let file = pods.first().map(|pod| pod.file.as_str()).unwrap_or_default();
        let failed = |message: String| InputError::of_file(file, message);
        let program = self.program().map_err(failed)?;
        let answers =
            ask(program, pods).map_err(|message| failed(format!("{}: {message}", program.display())))?;
        if answers.len() != pods.len() {
            return Err(failed(format!("{} answered for {} pods", program.display(), answers.len())));
        }
        pods.iter().zip(answers).map(|(pod, answer)| value_of(pod, answer)).collect()
    }
}

fn ask(program: &Path, pods: &[PodText]) -> Result<Vec<Answer>, String> {
    let base64 = base64::engine::general_purpose::STANDARD;
    let question: Vec<Value> =
        pods.iter().map(|pod| json!({"name": pod.file, "text": base64.encode(&pod.bytes)})).collect();
    let told = |error: std::io::Error| error.to_string();
    let mut child = Command::new(program)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(told)?;
    // The program reads the whole question before it answers, so that neither side waits for the other.
    if let Some(mut input) = child.stdin.take() {
        input.write_all(json!(question).to_string().as_bytes()).map_err(told)?;
    }
    let output = child.wait_with_output().map_err(told)?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
    }
    serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())
}

fn value_of(pod: &PodText, answer: Answer) -> Result<Value, InputError> {
    let mut faults = answer.faults.into_iter();
    let Some(first) = faults.next() else {
        return answer.pod.ok_or_else(|| InputError::of_file(&pod.file, "kubelet reads nothing in it"));
    };
    let rest: String = faults.map(|fault| format!("\n  line {}: {}", fault.line, fault.message)).collect();
    Err(error_at(&pod.file, first.line, format!("{}{rest}", first.message)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(answer: Value) -> Result<Value, String> {
        let pod = PodText { file: "web/pod.yaml".to_owned(), bytes: Vec::new() };
        let answer = serde_json::from_value(answer).unwrap();
        value_of(&pod, answer).map_err(|error| error.to_string())
    }

    #[test]
    fn answers_become_pods_or_errors_with_lines() {
        assert_eq!(told(json!({"pod": {"kind": "Pod"}})).unwrap()["kind"], "Pod");
        let faults = json!({"faults": [{"line": 4, "message": "a"}, {"line": 7, "message": "b"}]});
        assert_eq!(told(faults).unwrap_err(), "web/pod.yaml:4:1: a\n  line 7: b");
        assert_eq!(told(json!({"faults": [{"line": 0, "message": "a"}]})).unwrap_err(), "web/pod.yaml: a");
        assert_eq!(told(json!({})).unwrap_err(), "web/pod.yaml: kubelet reads nothing in it");
    }
}
