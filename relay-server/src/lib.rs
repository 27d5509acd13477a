//! TODO

pub mod store;
