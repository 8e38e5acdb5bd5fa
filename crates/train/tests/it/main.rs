//! Training on the tiny checkpoint of the model crate.

// The helpers of tests may unwrap as the tests do.
#![allow(clippy::unwrap_used)]

mod expert;
mod scratch;
mod tune;
