//! Mounted layers and Docker's records of them, read and mended.
//!
//! 1. Layers whose files in the release were bad, or that are not mounted, are mounted (anew); Docker may run;
//! 2. records are written while Docker is down: somebody stops it, or is told to.

use std::collections::BTreeSet;

use super::files::FilesReport;
use super::{PinnedDeployment, VerifyHostError};
use crate::docker::records::RecordFault;
use crate::host::records::{CheckedOut, RecordPlaces, check_records, mount_layers, write_records};
use crate::model::causes::in_one_line;
use crate::model::{Digest, RELEASE_DIR};

/// What became of mounts and records.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MendedRecords {
    /// Layers that were mounted.
    pub mounted: usize,
    /// Records of layers that were written.
    pub written: usize,
}

/// What is wrong with mounts and records, each named.
pub fn verify_records(
    releases: &[CheckedOut],
    places: &RecordPlaces,
) -> Result<Vec<RecordFault>, VerifyHostError> {
    check_records(releases, places).map_err(records_error)
}

/// Images that stand on a layer whose files in the release are bad: no mount and no record can help them.
pub fn bad_image_files(pinned: &[PinnedDeployment], files: &FilesReport) -> Vec<RecordFault> {
    let mut faults = Vec::new();
    for (layer, path) in bad_layer_files(files) {
        for (_, image) in pinned.iter().flat_map(|pinned| pinned.pins.images()) {
            if image.layers.iter().any(|of_image| of_image.diff_id == layer) {
                let problem = format!("{path} is damaged or lost");
                faults.push(RecordFault { image: image.config, layer: Some(layer), problem });
            }
        }
    }
    faults
}

/// Layers that have bad objects.
pub fn bad_layers(files: &FilesReport) -> BTreeSet<Digest> {
    bad_layer_files(files).into_iter().map(|(layer, _)| layer).collect()
}

fn bad_layer_files(files: &FilesReport) -> Vec<(Digest, String)> {
    let prefix = format!("/{RELEASE_DIR}/images/layers/");
    let parse = |path: &str| {
        let (layer, file) = path.strip_prefix(&prefix)?.split_once('/')?;
        Some((Digest::parse_hex(layer).ok()?, file.to_owned()))
    };
    files.bad.iter().filter_map(|bad| parse(&bad.path)).collect()
}

/// Mounts what is not mounted, and `anew` those whose files were mended.
pub fn repair_mounts(
    releases: &[CheckedOut],
    places: &RecordPlaces,
    anew: &BTreeSet<Digest>,
) -> Result<MendedRecords, VerifyHostError> {
    let (mounted, failed) = mount_layers(releases, places, anew).map_err(records_error)?;
    for (layer, error) in &failed {
        tracing::warn!(%layer, "not mounted: {}", in_one_line(error));
    }
    Ok(MendedRecords { mounted, written: 0 })
}

/// Writes the records; Docker must be down.
pub fn repair_records(
    releases: &[CheckedOut],
    places: &RecordPlaces,
) -> Result<MendedRecords, VerifyHostError> {
    let done = write_records(releases, places).map_err(records_error)?;
    for (chain, why) in &done.recorded.failed {
        tracing::warn!(%chain, "no record of this layer: {why}");
    }
    Ok(MendedRecords { mounted: done.mounted, written: done.recorded.written })
}

fn records_error(error: crate::host::records::RecordsError) -> VerifyHostError {
    VerifyHostError::Records(Box::new(error))
}
