//! TODO
pub mod address;
