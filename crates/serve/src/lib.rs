//! An OpenAI-compatible server for one model, with keys that carry permissions for its experts,
//! and a page to chat with it.
//!
//! `POST /v1/chat/completions`, `/v1/completions`, `/v1/responses`, `/v1/messages` (Anthropic's) and
//! `/v1/embeddings` take the parameters that [`parameters`] and its neighbours read; every other
//! field is refused by name. `/openapi.json` describes them. Beyond them there are `experts`
//! (names of the experts to use, never more than the key permits) and
//! `artel: {"token_experts": true}` (gate weights of each token). Answers carry an `artel` object
//! with the mean gate weight of each expert.

mod app;
mod generation;
mod listen;
mod routes;

mod allowance;
mod keys;
mod metrics;
mod visit;

mod chat;
mod completions;
mod embeddings;
mod messages;
mod responses;
mod tokens;

mod fields;
mod parameters;

mod conversation;
mod format;
mod pieces;
mod thinking;
mod tools;

mod choice;
mod reply;
mod stream;

mod api_error;
mod ids;
mod openapi;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use axum::Router;
use engine::Engine;
use tokio::net::TcpListener;

use app::App;
pub use listen::Tls;

/// How to serve.
#[derive(Clone, Debug)]
pub struct Options {
    pub listen: SocketAddr,
    /// Who may ask, and with which experts. Without keys everybody who reaches the address may use
    /// every expert; that needs a loopback address, or `open`.
    pub keys: Vec<Key>,
    /// Serve without keys on an address that other machines reach.
    pub open: bool,
    /// The name by which requests ask for the model.
    pub model_name: String,
    /// The documents from which an expert has learned, by its name, as readers should see them.
    /// They show to whoever may use the expert.
    pub sources: BTreeMap<String, Vec<String>>,
    pub limits: Limits,
    /// Speak HTTPS with this certificate; HTTP where there is none.
    pub tls: Option<Tls>,
    /// A file to which a line is added for each request, without prompts and answers.
    pub audit_log: Option<PathBuf>,
}

/// A secret with which requests come, known by its hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    pub name: String,
    /// BLAKE3 of the secret, hexadecimal.
    pub hash: String,
    /// Names of the experts it permits; `*` permits all.
    pub experts: Vec<String>,
    /// Requests in a minute; more are refused.
    pub requests_per_minute: Option<u32>,
    /// Tokens of prompts and answers in a minute; when they are used up, requests are refused.
    pub tokens_per_minute: Option<u32>,
}

/// Bounds on single requests; [`engine::Limits`] bound what runs at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once; more wait until one ends.
    pub connections: usize,
    /// Time in which a request's head must arrive; so long a connection may also rest between two.
    pub head_time: Duration,
    /// Time in which a client must take something of what is sent.
    pub write_time: Duration,
    /// Bytes of a request body.
    pub body_bytes: usize,
    /// Time in which a request body must arrive.
    pub body_time: Duration,
    /// Time in which an answer must be complete, waiting included.
    pub answer_time: Duration,
    /// Prompts × `n` of one request.
    pub choices: usize,
    /// Tokens of an answer where the request does not say; OpenAI's 16 for `/v1/completions`.
    pub answer_tokens: usize,
    /// Tokens that may wait for a client who reads slower than the model writes.
    pub unread_tokens: usize,
    /// Time that running requests have to finish when the server is told to stop.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections: 1024,
            head_time: Duration::from_secs(60),
            write_time: Duration::from_secs(60),
            body_bytes: 4 << 20,
            body_time: Duration::from_secs(30),
            answer_time: Duration::from_secs(600),
            choices: 128,
            answer_tokens: 2048,
            unread_tokens: 4096,
            drain: Duration::from_secs(30),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "{listen} can be reached from other machines, and no key is configured: \
         add a key, listen on 127.0.0.1, or open the server explicitly"
    )]
    Open { listen: SocketAddr },
    #[error("key {key:?}: its hash is not 64 hexadecimal digits of BLAKE3")]
    KeyHash { key: String },
    #[error("key {key:?} permits expert {expert:?}, which the model does not have; it has {known}")]
    KeyExpert { key: String, expert: String, known: String },
    #[error("the audit log {} cannot be opened: {source}", path.display())]
    AuditLog { path: PathBuf, source: std::io::Error },
    #[error("TLS: {}: {problem}", path.display())]
    Tls { path: PathBuf, problem: String },
    #[error("cannot listen on {listen}: {source}")]
    Listen { listen: SocketAddr, source: std::io::Error },
    #[error("the server failed: {0}")]
    Run(#[from] std::io::Error),
}

/// Serves until SIGTERM or Ctrl-C, then lets running requests finish. Blocks. `ready` gets the
/// server's address once it accepts connections.
///
/// # Errors
/// Options that contradict each other or the model, or an address that cannot be listened on.
pub fn serve(engine: Engine, options: Options, ready: impl FnOnce(&str)) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let listen = options.listen;
        let app = App::new(engine, &options)?;
        let listener =
            TcpListener::bind(listen).await.map_err(|source| Error::Listen { listen, source })?;
        let tls = options.tls.as_ref().map(Tls::acceptor).transpose()?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let stop = stop_signal()?;
        ready(&format!("{scheme}://{}", listener.local_addr()?));
        listen::run(listener, tls, app, stop).await;
        Ok(())
    })
}

/// The server's routes, without a socket.
///
/// # Errors
/// Options that contradict each other or the model.
pub fn router(engine: Engine, options: &Options) -> Result<Router, Error> {
    Ok(routes::router(App::new(engine, options)?))
}

/// Completes on SIGTERM or Ctrl-C.
fn stop_signal() -> Result<impl Future<Output = ()> + Send + 'static, Error> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping: running requests may finish");
    })
}

#[cfg(test)]
#[path = "../../engine/tests/tiny/mod.rs"]
mod tiny;

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn what_runs_is_finished_when_the_server_is_told_to_stop() {
        let pool = kernel::Pool::new(1);
        let engine = Engine::start(tiny::model(), pool, engine::Limits::default());
        let options = Options {
            listen: "127.0.0.1:0".parse().unwrap(),
            keys: Vec::new(),
            open: false,
            model_name: "tiny".into(),
            sources: BTreeMap::new(),
            limits: Limits::default(),
            tls: None,
            audit_log: None,
        };
        let app = App::new(engine, &options).unwrap();
        let listener = TcpListener::bind(options.listen).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let server = tokio::spawn(listen::run(listener, None, app, async move {
            stopped.await.unwrap();
        }));
        let client = std::thread::spawn(move || {
            let body = r#"{"prompt": "abc", "max_tokens": 300, "stream": true, "logit_bias": {"257": -100}}"#;
            let mut stream = TcpStream::connect(address).unwrap();
            let length = body.len();
            let head = format!(
                "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}"
            );
            stream.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).unwrap();
            let mut first = [0];
            stream.read_exact(&mut first).unwrap();
            stop.send(()).unwrap();
            let mut rest = String::new();
            stream.read_to_string(&mut rest).unwrap();
            rest
        });
        server.await.unwrap();
        let answer = client.join().unwrap();
        assert!(answer.starts_with("TTP/1.1 200") && answer.contains("[DONE]"), "{answer}");
        assert!(TcpStream::connect(address).is_err(), "the server still listens");
    }
}
