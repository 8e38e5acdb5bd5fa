//! Serves a model: `cargo run --release -p serve --example serve_model -- MODEL [LISTEN]`.

use std::path::PathBuf;
use std::sync::Arc;

use engine::Engine;
use kernel::{Pool, Precision};
use model::{Model, Purpose};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let path: PathBuf = arguments.next().ok_or("usage: serve_model MODEL [LISTEN]")?.into();
    let listen = arguments.next().unwrap_or_else(|| "127.0.0.1:8080".into());
    let model = Model::load_for(Purpose::Generation, &path, Precision::best())?;
    let options = serve::Options {
        listen: listen.parse()?,
        keys: Vec::new(),
        open: false,
        model_name: model.name.clone(),
        limits: serve::Limits::default(),
        audit_log: None,
    };
    let engine = Engine::start(Arc::new(model), Pool::machine(), engine::Limits::default());
    serve::serve(engine, options, |url| println!("{url}"))?;
    Ok(())
}
