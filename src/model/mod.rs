//! Pure nouns: values that every other module speaks in. No I/O, no clock, no engine.

pub mod causes;
pub mod cluster;
pub mod commit;
pub mod deployment;
pub mod digest;
pub mod history;
pub mod host;
pub mod identity;
pub mod image_ref;
pub mod imaging;
pub mod journal;
pub mod kernel_argument;
pub mod kernel_arguments;
pub mod machine;
pub mod newest;
pub mod object;
pub mod package;
pub mod phase;
pub mod pins;
pub mod place;
pub mod progress;
pub mod rack;
pub mod release;
pub mod secret;
pub mod size;
pub mod status;
pub mod text;
pub mod trial;
pub mod vagrant;
pub mod volume;

pub use commit::{Commit, DeploymentId, Ref};
pub use deployment::Deployment;
pub use digest::Digest;
pub use host::HostConfig;
pub use image_ref::ImageRef;
pub use journal::{PhaseJournal, PhaseRecord};
pub use object::{ObjectKind, ObjectName};
pub use package::{Archive, NotAPackage, Package, PackageRequest, Pin, is_debian_name};
pub use phase::{Phase, PhaseKind, PhaseSet};
pub use pins::{PinSet, PinnedImage, PinnedLayer, ReleasePins};
pub use progress::Progress;
pub use release::ReleaseInfo;
pub use secret::{Secret, SecretKind, SecretSet};
pub use text::printable;
pub use volume::{Volume, VolumePolicy, VolumeSet};

/// Where a release keeps its own files, below the root of the tree.
pub const RELEASE_DIR: &str = "usr/lib/rackstep";

/// File in [`RELEASE_DIR`]: the kernel arguments that a release brings, a JSON list.
pub const KERNEL_ARGUMENTS: &str = "kernel-arguments.json";
