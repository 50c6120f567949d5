//! Packs: a release on the wire, see `docs/formats.md`.
