//! TODO
pub mod address;
pub mod rewrite;
