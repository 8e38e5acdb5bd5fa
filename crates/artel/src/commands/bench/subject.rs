use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use kernel::logits::largest;
use kernel::{Pool, Precision};
use model::{ExpertSet, Input, KvCache, KvFormat, Model, Purpose};

use crate::config::KvType;

/// What is measured, the same in all benchmarks of a model.
#[derive(clap::Args)]
pub(super) struct SubjectArgs {
    /// The model: a GGUF file, or a model's folder
    model: PathBuf,
    /// Multiply the exact values of the weights, as `artel eval` does, instead of rounding
    /// activations to 8 bits
    #[arg(long)]
    exact: bool,
    /// How keys and values are kept
    #[arg(long, value_enum, default_value = "f16")]
    kv_type: KvType,
    /// Keep weights in so many units of 2^20 bytes: experts beyond are read from a file, as `artel
    /// serve` does [default: all in memory]
    #[arg(long, value_name = "MB")]
    memory_mb: Option<u64>,
}

/// A model that reads and writes.
pub(super) struct Subject {
    pub(super) model: Model,
    pool: Pool,
    kv_format: KvFormat,
}

impl SubjectArgs {
    pub(super) fn load(&self, pool: Pool) -> Result<Subject> {
        let purpose = if self.exact { Purpose::Inference } else { Purpose::Generation };
        let memory = self.memory_mb.map_or(u64::MAX, |mb| mb << 20);
        let model = Model::load_within(purpose, &self.model, Precision::best(), memory)?;
        Ok(Subject { model, pool, kv_format: self.kv_type.format() })
    }
}

impl Subject {
    pub(super) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Keys and values of no tokens yet.
    pub(super) fn cache(&self) -> KvCache {
        KvCache::in_format(self.model.config(), self.kv_format)
    }

    /// Tokens of some text, always the same: what they are does not change the work.
    pub(super) fn prompt(&self, count: usize) -> Result<Vec<u32>> {
        let config = self.model.config();
        if count == 0 || count >= config.context {
            bail!("a prompt of {count} tokens: it must have 1 to {}", config.context - 1);
        }
        let text = "The pump of line three was taken out of service for its yearly inspection. ";
        let tokens = self.model.tokenizer.encode(text)?;
        Ok(config.bos.into_iter().chain(tokens.iter().copied().cycle()).take(count).collect())
    }

    /// Reads the prompt with an empty cache; gives the likeliest next token.
    pub(super) fn read(&self, prompt: &[u32], cache: &mut KvCache) -> u32 {
        cache.truncate(0);
        self.step(prompt, cache)
    }

    /// Writes the likeliest tokens, `count` of them after `first`, each as long as it takes.
    pub(super) fn write(
        &self,
        first: u32,
        count: usize,
        cache: &mut KvCache,
    ) -> (Vec<u32>, Vec<Duration>) {
        let mut tokens = vec![first];
        let mut times = Vec::with_capacity(count);
        for at in 0..count {
            let start = Instant::now();
            tokens.push(self.step(&tokens[at..], cache));
            times.push(start.elapsed());
        }
        (tokens, times)
    }

    fn step(&self, tokens: &[u32], cache: &mut KvCache) -> u32 {
        let decoder = &self.model.decoder;
        let input = Input { tokens, cache, experts: ExpertSet::all(decoder.experts()) };
        let rows = decoder.forward(&self.pool, &mut [input]).rows;
        let logits = decoder.logits(&self.pool, &rows[rows.len() - self.model.config().hidden..]);
        let (likeliest, _) = largest(&logits).expect("the model's logits are numbers");
        likeliest as u32
    }

    /// One line about what is measured, for stderr.
    pub(super) fn describe(&self, path: &Path) -> String {
        format!(
            "{}: {:.1} MB of weights, {:.1} of them in a file, {} threads, {} products",
            path.display(),
            self.model.decoder.bytes() as f64 / 1e6,
            self.model.decoder.bytes_in_file() as f64 / 1e6,
            self.pool.threads(),
            self.model.decoder.product_name(),
        )
    }
}

impl SubjectArgs {
    pub(super) fn path(&self) -> &Path {
        &self.model
    }
}
