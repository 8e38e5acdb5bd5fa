//! `artel serve`: the model over HTTP.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use engine::{Answers, Engine, Limits};
use model::Model;
use serve::{Key, Options, Tls};
use store::{Kind, Workspace};

use super::chat::{load, model_folder};
use super::eval::expert_names;
use crate::Setup;
use crate::config::Serve;
use crate::failure::Hint;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// A model under models/, or the path of a GGUF file or a model's folder, which needs no
    /// artel.toml [default: the joined one]
    #[arg(long)]
    model: Option<String>,
    /// Address and port [default: `listen` of artel.toml, or 127.0.0.1:8080]; port 0 takes a free one
    #[arg(long)]
    listen: Option<std::net::SocketAddr>,
    /// PEM file of a certificate, for HTTPS [default: `tls_certificate` of artel.toml]
    #[arg(long, requires = "tls_key")]
    tls_certificate: Option<PathBuf>,
    /// PEM file of the certificate's private key [default: `tls_key` of artel.toml]
    #[arg(long, requires = "tls_certificate")]
    tls_key: Option<PathBuf>,
    /// Serve without keys on an address that other machines reach
    #[arg(long)]
    open: bool,
}

pub(crate) fn run(args: &Args, setup: &Setup) -> Result<()> {
    let (path, config, root) = subject(args, setup)?;
    let model = load(&path, &config)?;
    let names = expert_names(&model);
    let limits = Limits {
        running: config.running,
        lookup: config.lookup,
        mtp: config.mtp,
        answers: Answers::ReadAgain,
        kv_bytes: config.kv_mb << 20,
        kv_format: config.kv_type.format(),
        ..Limits::default()
    };
    eprintln!("{}", memory(&model, limits));
    let sources = root.map(|root| sources(&root, &names)).unwrap_or_default();
    let options = Options {
        listen: args.listen.unwrap_or(config.listen),
        keys: keys(&config, &names),
        open: args.open,
        model_name: model.name.clone(),
        sources,
        limits: requests(&config),
        tls: tls(args, &config, setup),
        audit_log: config.audit_log.map(|log| setup.folder_or(".").join(log)),
    };
    let engine = Engine::start(Arc::new(model), setup.pool(), limits);
    let ready = |address: &str| {
        println!("{address}");
        let experts = if names.is_empty() { "no experts".into() } else { names.join(", ") };
        eprintln!("serving {} ({experts}); the chat page is at {address}", path.display());
    };
    serve::serve(engine, options, ready).context(Hint::new(
        "`artel key new NAME --experts …` makes a key; `--listen` another address",
    ))
}

/// What to serve, how, and the company's folder where there is one.
fn subject(args: &Args, setup: &Setup) -> Result<(PathBuf, Serve, Option<PathBuf>)> {
    let named = args.model.as_deref().map(Path::new);
    if let Some(path) = named.filter(|path| path.components().count() > 1) {
        return Ok((path.to_owned(), Serve::default(), None));
    }
    let config = setup.config()?;
    let folder = model_folder(&config, args.model.as_deref())?;
    Ok((folder, config.serve, Some(config.root)))
}

/// The documents of the experts' collections, without those that are held out. A collection that
/// is no longer there shows none: the model answers without it.
fn sources(root: &Path, names: &[String]) -> BTreeMap<String, Vec<String>> {
    let workspace = Workspace::at(root);
    let documents = |name: &String| {
        let artifact = workspace.open(Kind::Collection, name).ok()?;
        let collection = corpus::Collection::open(&artifact.path).ok()?;
        let used = collection.documents.iter().filter(|d| d.dropped.is_none() && !d.held_out);
        let named = used.map(|document| match document.title.is_empty() {
            true => document.path.clone(),
            false => format!("{} ({})", document.title, document.path),
        });
        Some((name.clone(), named.collect()))
    };
    names.iter().filter_map(documents).collect()
}

fn requests(config: &Serve) -> serve::Limits {
    serve::Limits {
        body_bytes: config.body_mb << 20,
        body_time: Duration::from_secs(config.body_seconds),
        answer_time: Duration::from_secs(config.answer_seconds),
        drain: Duration::from_secs(config.drain_seconds),
        ..serve::Limits::default()
    }
}

/// The certificate of the flags, or else of artel.toml, whose paths are relative to its folder.
fn tls(args: &Args, config: &Serve, setup: &Setup) -> Option<Tls> {
    if let (Some(certificate), Some(key)) = (&args.tls_certificate, &args.tls_key) {
        return Some(Tls { certificate: certificate.clone(), key: key.clone() });
    }
    let folder = setup.folder_or(".");
    let (certificate, key) = (config.tls_certificate.as_ref()?, config.tls_key.as_ref()?);
    Some(Tls { certificate: folder.join(certificate), key: folder.join(key) })
}

/// What the server will hold, at most.
fn memory(model: &Model, limits: Limits) -> String {
    const MB: f64 = 1e6;
    let in_file = match model.decoder.bytes_in_file() {
        0 => String::new(),
        bytes => format!(" (experts of {:.0} MB in a file)", bytes as f64 / MB),
    };
    format!(
        "memory: {:.0} MB of weights{in_file}, up to {:.0} MB of keys and values ({} tokens in {})",
        model.decoder.bytes() as f64 / MB,
        limits.kv_bytes as f64 / MB,
        limits.kv_tokens(model.config()),
        limits.kv_format.name(),
    )
}

/// The keys of artel.toml. An expert that is no longer in the model is left out of a key: a
/// withdrawal must not stop the server for everybody else.
fn keys(config: &Serve, names: &[String]) -> Vec<Key> {
    let key = |key: &crate::config::Key| {
        let known = |expert: &&String| *expert == "*" || names.contains(expert);
        for expert in key.experts.iter().filter(|expert| !known(expert)) {
            eprintln!("key {:?}: expert {expert:?} is not in this model", key.name);
        }
        let experts = key.experts.iter().filter(known).cloned().collect();
        Key {
            name: key.name.clone(),
            hash: key.hash.clone(),
            experts,
            requests_per_minute: key.requests_per_minute,
            tokens_per_minute: key.tokens_per_minute,
        }
    };
    config.keys.iter().map(key).collect()
}
