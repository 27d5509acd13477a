//! TODO
pub mod address;
pub mod rewrite;
pub mod dial;
pub mod terminal;
