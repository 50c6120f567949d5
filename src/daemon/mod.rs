//! (written by its first module)
