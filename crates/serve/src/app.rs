use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use engine::Engine;
use model::{ExpertSet, Model};

use crate::keys::Keys;
use crate::metrics::Metrics;
use crate::visit::AuditLog;
use crate::{Error, Limits, Options, ids};

/// What every request handler sees; clones share it.
#[derive(Clone)]
pub(crate) struct App(Arc<Shared>);

pub(crate) struct Shared {
    pub(crate) engine: Engine,
    pub(crate) keys: Keys,
    pub(crate) model_name: String,
    pub(crate) sources: BTreeMap<String, Vec<String>>,
    pub(crate) limits: Limits,
    pub(crate) metrics: Metrics,
    pub(crate) audit: Option<AuditLog>,
    /// Seconds since 1970.
    pub(crate) started: u64,
    draining: AtomicBool,
}

impl Deref for App {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl App {
    pub(crate) fn new(engine: Engine, options: &Options) -> Result<Self, Error> {
        if options.keys.is_empty() && !options.open && !options.listen.ip().is_loopback() {
            return Err(Error::Open { listen: options.listen });
        }
        let keys = Keys::new(options, expert_names(engine.model()))?;
        let audit = options.audit_log.as_deref().map(|path| {
            let error = |source| Error::AuditLog { path: path.into(), source };
            AuditLog::open(path).map_err(error)
        });
        Ok(App(Arc::new(Shared {
            engine,
            keys,
            model_name: options.model_name.clone(),
            sources: options.sources.clone(),
            limits: options.limits,
            metrics: Metrics::default(),
            audit: audit.transpose()?,
            started: ids::now(),
            draining: AtomicBool::new(false),
        })))
    }
}

impl Shared {
    pub(crate) fn model(&self) -> &Model {
        self.engine.model()
    }

    pub(crate) fn expert_names(&self) -> &[String] {
        expert_names(self.model())
    }

    /// The names of these experts.
    pub(crate) fn names_of(&self, experts: ExpertSet) -> impl Iterator<Item = &String> {
        let names = self.expert_names().iter().enumerate();
        names.filter(move |(index, _)| experts.contains(*index)).map(|(_, name)| name)
    }

    /// From now on new requests are refused.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }
}

fn expert_names(model: &Model) -> &[String] {
    model.config().experts.as_ref().map_or(&[], |experts| &experts.names)
}
