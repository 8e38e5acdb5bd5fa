//! The built binary on companies in temporary folders: what it says of mistakes, the whole path on
//! a tiny model, and what a kill leaves behind.

// The helpers of tests may unwrap as the tests do.
#![allow(clippy::unwrap_used)]

mod company;
mod kill;
mod messages;
mod path;
mod quantize;
mod serve;
mod tune;
