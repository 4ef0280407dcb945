//! lib
pub mod kernel;
