//! `artel serve`: the model over HTTP.

use std::sync::Arc;

use anyhow::{Context, Result};
use engine::Engine;
use serve::{Key, Options};

use super::chat::{load, model_folder};
use super::eval::expert_names;
use crate::Setup;
use crate::config::Config;
use crate::failure::Hint;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// A model under models/ [default: the joined one]
    #[arg(long)]
    model: Option<String>,
    /// Address and port [default: `listen` of artel.toml, or 127.0.0.1:8080]; port 0 takes a free one
    #[arg(long)]
    listen: Option<std::net::SocketAddr>,
    /// Serve without keys on an address that other machines reach
    #[arg(long)]
    open: bool,
}

pub(crate) fn run(args: &Args, setup: &Setup) -> Result<()> {
    let config = setup.config()?;
    let folder = model_folder(&config, args.model.as_deref())?;
    let model = load(&folder)?;
    let names = expert_names(&model);
    let options = Options {
        listen: args.listen.unwrap_or(config.serve.listen),
        keys: keys(&config, &names),
        open: args.open,
        model_name: model.name.clone(),
        limits: serve::Limits::default(),
    };
    let engine = Engine::start(Arc::new(model), setup.pool(), engine::Limits::default());
    let ready = |address: &str| {
        println!("{address}");
        let experts = if names.is_empty() { "no experts".into() } else { names.join(", ") };
        eprintln!("serving {} ({experts}); the chat page is at {address}", folder.display());
    };
    serve::serve(engine, options, ready).context(Hint::new(
        "`artel key new NAME --experts …` makes a key; `--listen` another address",
    ))
}

/// The keys of artel.toml. An expert that is no longer in the model is left out of a key: a
/// withdrawal must not stop the server for everybody else.
fn keys(config: &Config, names: &[String]) -> Vec<Key> {
    let key = |key: &crate::config::Key| {
        let known = |expert: &&String| *expert == "*" || names.contains(expert);
        for expert in key.experts.iter().filter(|expert| !known(expert)) {
            eprintln!("key {:?}: expert {expert:?} is not in this model", key.name);
        }
        let experts = key.experts.iter().filter(known).cloned().collect();
        Key { name: key.name.clone(), hash: key.hash.clone(), experts }
    };
    config.serve.keys.iter().map(key).collect()
}
