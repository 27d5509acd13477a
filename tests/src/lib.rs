//! The harness: what a test starts and calls.

pub mod tools;
