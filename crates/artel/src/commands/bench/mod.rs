//! `artel bench`: what this machine does, each figure beside what it is held against, measured in
//! turn in one run. The last line is the ratio.

mod bandwidth;
mod decode;
mod expert;
mod gemm;
mod grouped;
mod lookup;
mod prefill;
mod subject;
mod train;
mod turn;

use anyhow::Result;
use clap::Subcommand;

use crate::Setup;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Writing an answer: tokens one after the other
    Decode(decode::Args),
    /// Reading a prompt: tokens at once
    Prefill(prefill::Args),
    /// Bytes of weights read while writing, against the memory's read bandwidth
    Bandwidth(bandwidth::Args),
    /// Matrix products, packing included, against the peak of multiply-adds
    Gemm(gemm::Args),
    /// The feed-forward of many experts, against a dense one of equal FLOPs
    Grouped(grouped::Args),
    /// Writing with drafts looked up in the text (`serve.lookup`), against writing without
    Lookup(lookup::Args),
    /// The second turn's first token, with the first answer read again and without
    Turn(turn::Args),
    /// Steps of training a whole model, against the peak of multiply-adds
    Train(train::Args),
    /// Steps of training a department's expert, against the peak of multiply-adds
    Expert(expert::Args),
    /// A step of training a whole model on all threads, against one
    Threads(train::ThreadsArgs),
}

pub(crate) fn run(args: &Args, setup: &Setup) -> Result<()> {
    match &args.what {
        What::Decode(args) => decode::run(args, setup),
        What::Prefill(args) => prefill::run(args, setup),
        What::Bandwidth(args) => bandwidth::run(args, setup),
        What::Gemm(args) => gemm::run(args, setup),
        What::Grouped(args) => grouped::run(args, setup),
        What::Lookup(args) => lookup::run(args, setup),
        What::Turn(args) => turn::run(args, setup),
        What::Train(args) => train::run(args, setup),
        What::Expert(args) => expert::run(args, setup),
        What::Threads(args) => train::threads(args, setup),
    }
}

/// The middle of the values, which are many enough that a disturbed one does not count.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
