//! The commands, one file each.

pub(crate) mod background;
pub(crate) mod bench;
pub(crate) mod chat;
pub(crate) mod demo;
pub(crate) mod eval;
pub(crate) mod export;
pub(crate) mod forget;
pub(crate) mod ingest;
pub(crate) mod join;
pub(crate) mod key;
pub(crate) mod new;
pub(crate) mod pull;
pub(crate) mod quantize;
pub(crate) mod run;
pub(crate) mod scratch;
pub(crate) mod serve;
pub(crate) mod status;
pub(crate) mod synth;
pub(crate) mod train;
pub(crate) mod tune;
mod whole;
