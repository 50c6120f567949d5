//! A service's pod: read as kubelet reads it, checked, and pinned.
//!
//! 1. A [`PodReader`] turns the file into what kubelet makes of it; 2. what a host of ours cannot run is refused with
//!    file and line; 3. [`Pod::render`] puts pinned Ids in place of image names.
//!
//! YAML has two readings of `0644` and of `on`, and Rust's readers take the other one. So the reader that counts is
//! kubelet's own, and what it read is what a release stores, as JSON, which has one reading.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Origin;
use crate::model::PinnedImage;
use crate::model::place::{InputError, Place, SourceText};

/// Reads pods as kubelet does.
pub trait PodReader {
    /// What kubelet makes of each file, in order. The error names file and line.
    fn read(&self, pods: &[PodText]) -> Result<Vec<Value>, InputError>;
}

/// A pod's file as it stands on the disk, byte order mark and all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodText {
    /// The file as it was named.
    pub file: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

impl PodText {
    fn source(&self) -> SourceText {
        SourceText::new(&self.file, String::from_utf8_lossy(&self.bytes))
    }
}

/// One pod, checked but not yet pinned.
#[derive(Debug, Clone)]
pub(super) struct Pod {
    pub(super) name: String,
    value: Value,
    source: SourceText,
}

impl Pod {
    /// Checks what kubelet reads in `text`.
    pub(super) fn parse(
        text: &PodText,
        value: Value,
        images: &BTreeMap<String, Origin>,
    ) -> Result<Self, InputError> {
        let source = text.source();
        let wrong = |message: String| Err(InputError::of_file(&source.file, message));
        if value["kind"] != "Pod" || value["apiVersion"] != "v1" {
            return wrong("not a Pod of apiVersion v1".to_owned());
        }
        let Some(name) = value["metadata"]["name"].as_str().map(str::to_owned) else {
            return wrong("metadata.name is missing".to_owned());
        };
        if name.contains('/') || name.starts_with('.') {
            return wrong(format!("pod {name:?}: not a name of a pod"));
        }
        if value["spec"]["hostNetwork"] != true {
            return wrong(format!(
                "pod {name}: hostNetwork must be true: a host has no other network for pods"
            ));
        }
        let pod = Self { name, value, source };
        pod.check_images(images)?;
        pod.check_volumes()?;
        Ok(pod)
    }

    fn check_images(&self, images: &BTreeMap<String, Origin>) -> Result<(), InputError> {
        let name = &self.name;
        let mut containers = 0;
        for container in
            ["initContainers", "containers"].iter().filter_map(|key| self.value["spec"][key].as_array())
        {
            for container in container {
                containers += 1;
                let image = container["image"].as_str().unwrap_or_default();
                if !images.contains_key(image) {
                    let known = images.keys().cloned().collect::<Vec<_>>().join(", ");
                    return Err(InputError {
                        place: self.source.place("spec", image),
                        message: format!(
                            "pod {name}: image {image:?} is not among the service's images ({known})"
                        ),
                    });
                }
                if let Some(policy) =
                    container["imagePullPolicy"].as_str().filter(|policy| *policy != "Never")
                {
                    let message = "imagePullPolicy must be Never: a host pulls no image";
                    return Err(self.source.error("spec", policy, format!("pod {name}: {message}")));
                }
            }
        }
        if containers == 0 {
            return Err(InputError::of_file(&self.source.file, format!("pod {name}: has no container")));
        }
        Ok(())
    }

    fn check_volumes(&self) -> Result<(), InputError> {
        let volumes = self.value["spec"]["volumes"].as_array();
        let image = volumes.into_iter().flatten().find(|volume| volume.get("image").is_some());
        let Some(volume) = image else { return Ok(()) };
        let message = format!(
            "pod {}: volume {} is an image, which a host would have to pull: copy its files into a container image",
            self.name, volume["name"]
        );
        let reference = volume["image"]["reference"].as_str().unwrap_or("image");
        Err(self.source.error("spec", reference, message))
    }

    /// The pod with its images by config digest, as JSON.
    pub(super) fn render(&self, pins: &BTreeMap<String, PinnedImage>) -> Result<String, InputError> {
        let mut value = self.value.clone();
        for key in ["initContainers", "containers"] {
            let Some(containers) = value["spec"].get_mut(key).and_then(Value::as_array_mut) else { continue };
            for container in containers {
                let image = container["image"].as_str().unwrap_or_default().to_owned();
                let Some(pinned) = pins.get(&image) else {
                    return Err(self.source.error(
                        "spec",
                        &image,
                        format!("pod {}: image {image} is not pinned", self.name),
                    ));
                };
                container["image"] = Value::String(pinned.config.to_string());
                container["imagePullPolicy"] = Value::String("Never".to_owned());
            }
        }
        Ok(format!("{value:#}\n"))
    }
}

/// Reads pods with the YAML reader of this program: for tests and fuzzing, which have no kubelet at hand.
#[derive(Debug, Clone, Copy)]
pub struct PlainReader;

impl PodReader for PlainReader {
    fn read(&self, pods: &[PodText]) -> Result<Vec<Value>, InputError> {
        pods.iter().map(|pod| pod.source().parse()).collect()
    }
}

/// An error at `line` of `file`; line 0 means the file as a whole.
pub(crate) fn error_at(file: &str, line: usize, message: String) -> InputError {
    let position = (line > 0).then_some((line, 1));
    InputError { place: Place { file: file.to_owned(), position }, message }
}
