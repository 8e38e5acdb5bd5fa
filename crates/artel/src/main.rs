//! `artel`: a company's documents become its own mixture-of-experts model.

mod commands;
mod config;
mod failure;
mod progress;
mod stages;
mod withdrawal;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use commands::{
    bench, chat, demo, eval, export, forget, ingest, join, key, new, pull, quantize, run, serve,
    status, synth, train, tune,
};

/// Turns a company's own documents into its own Mixture-of-Experts language model.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    setup: Setup,
    #[command(subcommand)]
    command: Command,
}

/// What every command takes.
#[derive(clap::Args)]
pub(crate) struct Setup {
    /// The company's folder, where artel.toml is [default: the current folder]
    #[arg(long, short = 'C', global = true, value_name = "FOLDER")]
    folder: Option<PathBuf>,
    /// Threads to compute with [default: one per core]
    #[arg(long, global = true, value_name = "N")]
    threads: Option<std::num::NonZeroUsize>,
}

#[derive(Subcommand)]
enum Command {
    /// Show the whole path on the bundled example company, in the folder ./demo
    Demo(demo::Args),
    /// Make a company's folder
    New(new::Args),
    /// Fetch a base model
    Pull(pull::Args),
    /// Read documents into collections
    Ingest(ingest::Args),
    /// Make training examples from collections
    Synth(synth::Args),
    /// Train experts
    Train(train::Args),
    /// Tune the base itself on all departments' documents and examples, as [tune] in artel.toml says
    Tune(tune::Args),
    /// Join the experts into one model
    Join(join::Args),
    /// Withdraw a department from the joined model
    Forget(forget::Args),
    /// Measure what the experts know and what the base forgot
    Eval(eval::Args),
    /// Do every stage that is not up to date
    Run(run::Args),
    /// Show the stages and their state
    Status(status::Args),
    /// Write the model for other engines
    Export(export::Args),
    /// Write the model as a GGUF file of fewer bits, and say what that costs
    Quantize(quantize::Args),
    /// Serve the model over HTTP
    Serve(serve::Args),
    /// Talk to the model in the terminal
    Chat(chat::Args),
    /// Make an API key
    Key(key::Args),
    /// Measure this machine: both sides in one run, in turn
    Bench(bench::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.command {
        Command::Serve(_) => kernel::give_back_freed_memory(),
        _ => kernel::keep_freed_memory(),
    }
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("ARTEL_LOG")
                .unwrap_or_else(|_| "warn".into()),
        )
        .with_target(false)
        .without_time()
        .init();
    match cli.command.run(&cli.setup) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprint!("{}", failure::report(&error));
            ExitCode::FAILURE
        }
    }
}

impl Command {
    fn run(&self, setup: &Setup) -> Result<()> {
        match self {
            Command::Demo(args) => demo::run(args, setup),
            Command::New(args) => new::run(args, setup),
            Command::Pull(args) => pull::run(args, setup),
            Command::Ingest(args) => ingest::run(args, setup),
            Command::Synth(args) => synth::run(args, setup),
            Command::Train(args) => train::run(args, setup),
            Command::Tune(args) => tune::run(args, setup),
            Command::Join(args) => join::run(args, setup),
            Command::Forget(args) => forget::run(args, setup),
            Command::Eval(args) => eval::run(args, setup),
            Command::Run(args) => run::run(args, setup),
            Command::Status(args) => status::run(args, setup),
            Command::Export(args) => export::run(args, setup),
            Command::Quantize(args) => quantize::run(args, setup),
            Command::Serve(args) => serve::run(args, setup),
            Command::Chat(args) => chat::run(args, setup),
            Command::Key(args) => key::run(args),
            Command::Bench(args) => bench::run(args, setup),
        }
    }
}

impl Setup {
    fn folder_or(&self, default: &str) -> PathBuf {
        self.folder.clone().unwrap_or_else(|| default.into())
    }

    fn config(&self) -> Result<config::Config> {
        config::Config::read(self.folder.as_deref().unwrap_or(Path::new(".")))
    }

    fn pool(&self) -> kernel::Pool {
        match self.threads {
            Some(threads) => kernel::Pool::new(threads.get()),
            None => kernel::Pool::machine(),
        }
    }
}
