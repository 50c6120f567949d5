//! stub
use crate::model::Commit;
#[derive(Debug)] pub struct VerifiedPins;
#[derive(Debug, thiserror::Error)] #[error("x")] pub struct WrongRelease;
impl VerifiedPins { pub fn require_for(&self, _c: Commit, _p: &[u8]) -> Result<(), WrongRelease> { Ok(()) } }
