//! TODO
pub mod address;
pub mod rewrite;
pub mod dial;
pub mod terminal;
pub mod config;
pub mod cli;
pub mod names;
pub mod demo;
