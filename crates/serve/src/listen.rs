//! Connections: how many there may be, how slow they may be, TLS, and how they end.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Sleep, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::app::App;
use crate::{Error, Limits, routes};

/// Time in which the two sides must agree on how to encrypt.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// After a failed attempt to accept a connection: the files that a process may open are used up.
const RECOVERY: Duration = Duration::from_millis(100);

/// Where the server's certificate is, PEM files both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// The certificate, and those between it and the one that clients know.
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Tls {
    /// # Errors
    /// Files that cannot be read, or that do not belong together; names them.
    pub(crate) fn acceptor(&self) -> Result<TlsAcceptor, Error> {
        let error = |path: &Path, problem: String| Error::Tls { path: path.to_owned(), problem };
        let chain: Vec<CertificateDer> = CertificateDer::pem_file_iter(&self.certificate)
            .and_then(Iterator::collect)
            .map_err(|problem| error(&self.certificate, problem.to_string()))?;
        if chain.is_empty() {
            return Err(error(&self.certificate, "it holds no certificate".to_owned()));
        }
        let key = PrivateKeyDer::from_pem_file(&self.key)
            .map_err(|problem| error(&self.key, problem.to_string()))?;
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|config| config.with_no_client_auth().with_single_cert(chain, key))
            .map_err(|problem| error(&self.certificate, problem.to_string()))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

/// Answers connections until `stop` completes; then lets running requests finish, within the time
/// that the limits give them.
pub(crate) async fn run(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    app: App,
    stop: impl Future<Output = ()>,
) {
    let limits = app.limits;
    let router = routes::router(app.clone());
    let places = Arc::new(Semaphore::new(limits.connections));
    let (stopping, stopped) = watch::channel(false);
    let mut open = JoinSet::new();
    let mut stop = std::pin::pin!(stop);
    loop {
        let (stream, place) = tokio::select! {
            () = &mut stop => break,
            // Those that have ended leave the set.
            Some(_) = open.join_next() => continue,
            accepted = accept(&listener, &places) => accepted,
        };
        let client = Client { router: router.clone(), limits, stopped: stopped.clone() };
        let tls = tls.clone();
        open.spawn(async move {
            client.serve(stream, tls).await;
            drop(place);
        });
    }
    drop(listener);
    app.drain();
    stopping.send_replace(true);
    let all = async { while open.join_next().await.is_some() {} };
    if timeout(limits.drain, all).await.is_err() {
        let drain = limits.drain;
        tracing::warn!(?drain, "requests were still running when the time to drain was over");
    }
}

/// The next connection, when there is a place for it.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> (TcpStream, OwnedSemaphorePermit) {
    let place = Arc::clone(places).acquire_owned().await.expect("nobody closes it");
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return (stream, place),
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                sleep(RECOVERY).await;
            }
        }
    }
}

/// What one connection needs.
struct Client {
    router: Router,
    limits: Limits,
    stopped: watch::Receiver<bool>,
}

impl Client {
    async fn serve(self, stream: TcpStream, tls: Option<TlsAcceptor>) {
        // Tokens are small and should leave at once; where that cannot be set they still leave.
        let _ = stream.set_nodelay(true);
        let stream = Impatient { stream, limit: self.limits.write_time, stalled: None };
        match tls {
            None => self.talk(stream).await,
            // Who does not speak TLS gets no answer.
            Some(tls) => {
                if let Ok(Ok(stream)) = timeout(HANDSHAKE, tls.accept(stream)).await {
                    self.talk(stream).await;
                }
            }
        }
    }

    async fn talk(mut self, stream: impl AsyncRead + AsyncWrite + Unpin) {
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.head_time)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(self.router));
        let mut connection = std::pin::pin!(connection);
        let told = async {
            // Only fails where the server has ended already.
            drop(self.stopped.wait_for(|stopped| *stopped).await);
        };
        let result = tokio::select! {
            result = connection.as_mut() => result,
            () = told => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = result {
            tracing::debug!(%error, "a connection broke off");
        }
    }
}

/// A connection that ends when its other side takes nothing for too long. Otherwise who stops
/// reading keeps a place for ever.
struct Impatient {
    stream: TcpStream,
    limit: Duration,
    /// Ends when the other side has taken nothing for that long; none while it takes.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Impatient {
    fn watch<T>(
        &mut self,
        context: &mut Context,
        done: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if done.is_ready() {
            self.stalled = None;
            return done;
        }
        let limit = self.limit;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(limit)));
        ready!(stalled.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Impatient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context,
        buffer: &mut ReadBuf,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Impatient {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watch(context, done)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context,
        parts: &[io::IoSlice],
    ) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.watch(context, done)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
