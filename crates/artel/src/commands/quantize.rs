//! `artel quantize`: the model as one GGUF file of fewer bits, and what that costs.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use kernel::quant::Format;
use kernel::{Pool, Precision};
use model::{Export, Importance, Joined, Mix, Model, Quantise, Source, StoredTensor};
use serde_json::{Value, json};

use super::chat::model_folder;
use super::export::Parts;
use crate::Setup;
use crate::failure::Hint;
use crate::progress::Progress;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// A GGUF file, a model's folder, or the name of a model under models/
    model: PathBuf,
    /// What to store matrices as: q4_k_m, q8_0, …; a wrong one lists all
    #[arg(long = "type", value_name = "TYPE", value_parser = mix)]
    mix: Mix,
    /// The new GGUF file
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
    /// A text like those the model will read, or a GGUF file of llama-imatrix: columns that are
    /// used more lose less
    #[arg(long, value_name = "FILE")]
    imatrix: Option<PathBuf>,
    /// A text on which the new model is compared with the old
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Most tokens of either text that are used
    #[arg(long, value_name = "N", default_value_t = 50_000)]
    tokens: usize,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

fn mix(name: &str) -> Result<Mix, String> {
    let known = || Mix::ALL.map(|mix| mix.name).join(", ");
    let lower = name.to_ascii_lowercase();
    Mix::named(&lower).ok_or_else(|| format!("known are {}", known()))
}

pub(crate) fn run(args: &Args, setup: &Setup) -> Result<()> {
    let from = original(args, setup)?;
    ensure!(!args.to.exists(), "{} exists; name a new file", args.to.display());
    let parent = match args.to.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
    let text = args.text.as_deref().map(read_text).transpose()?;
    let draft = tempfile::Builder::new()
        .prefix(".artel-quantize-")
        .tempdir_in(parent)
        .with_context(|| format!("make a folder in {}", parent.display()))?;
    let pool = setup.pool();
    let file = as_gguf(&from, draft.path())?;
    let importance = match &args.imatrix {
        Some(path) => Some(importance(path, &file, args.tokens, &pool)?),
        None => None,
    };
    let quantise = Quantise { mix: args.mix, importance: importance.as_ref() };
    // Compared before it gets its name, so that what is there is whole and can be read.
    let written = draft.path().join("quantised.gguf");
    let progress = Progress::new("quantize", "tensors");
    let tensors = quantise.write(&pool, &file, &written, &mut |done, total| {
        progress.set(done as u64, total as u64, "");
    })?;
    drop(progress);
    let distance = match &text {
        Some(text) => Some(compare(&from, &written, text, args.tokens, &pool)?),
        None => None,
    };
    fs::rename(&written, &args.to).with_context(|| format!("make {}", args.to.display()))?;
    let bytes = fs::metadata(&args.to).map_or(0, |file| file.len());
    let report = Report { mix: args.mix, tensors: &tensors, bytes, distance };
    match args.json {
        true => println!("{}", report.json(&args.to)),
        false => report.print(&args.to, args.imatrix.is_some()),
    }
    Ok(())
}

/// Where the model is: a path, or a name under models/.
fn original(args: &Args, setup: &Setup) -> Result<PathBuf> {
    if args.model.exists() {
        return Ok(args.model.clone());
    }
    let name = args.model.to_str().filter(|name| !name.contains(['/', '\\', '.']));
    let Some(name) = name else {
        return Err(anyhow!("there is no file or folder {}", args.model.display()));
    };
    let config = setup.config().context(Hint::new("name a file, or give -C FOLDER"))?;
    model_folder(&config, Some(name))
}

/// The model as a GGUF file: its own, or one written into `folder` without loss.
fn as_gguf(from: &Path, folder: &Path) -> Result<PathBuf> {
    if Joined::read(from)?.is_none()
        && let Some(file) = Source::open(from)?.gguf_file()
    {
        return Ok(file.to_owned());
    }
    let parts = Parts::open(from)?;
    let (tokenizer, template) = (parts.base.tokenizer()?, parts.base.template()?);
    let name = from.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
    let embedding = parts.config.tensors().swap_remove(0);
    let format = match parts.tensor(&embedding)?.format {
        // Experts are trained in f32.
        format @ (Format::F16 | Format::Bf16) if parts.experts.is_empty() => format,
        _ => Format::F32,
    };
    let export = Export {
        name: &name,
        config: &parts.config,
        tokenizer: &tokenizer,
        template: &template,
        format,
    };
    let file = folder.join("original.gguf");
    let progress = Progress::new("quantize", "");
    progress.say("writing the model as GGUF");
    export.write_gguf(&file, &mut |info| parts.tensor(info))?;
    Ok(file)
}

/// The importance of the model's columns, from a file of such, or over a text.
fn importance(path: &Path, file: &Path, most: usize, pool: &Pool) -> Result<Importance> {
    let mut magic = [0; 4];
    let mut opened = fs::File::open(path).with_context(|| format!("read {}", path.display()))?;
    if opened.read_exact(&mut magic).is_ok() && &magic == b"GGUF" {
        return Ok(Importance::read(path)?);
    }
    let text = read_text(path)?;
    let progress = Progress::new("importance", "tokens");
    progress.say("loading the model");
    let model = Model::load(file, Precision::best())?;
    let mut tokens = model.tokenizer.encode_plain(&text)?;
    tokens.truncate(most);
    ensure!(!tokens.is_empty(), "{} has no text", path.display());
    let total = tokens.len() as u64;
    let begin = eval::beginning(&model);
    let found = Importance::collect(&model.decoder, pool, &tokens, begin, &mut |done| {
        progress.set(done as u64, total, "");
    });
    Ok(found)
}

fn read_text(path: &Path) -> Result<String> {
    let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    match String::from_utf8(bytes) {
        Ok(text) => Ok(text),
        Err(_) => bail!("{} is not text in UTF-8", path.display()),
    }
}

fn compare(from: &Path, to: &Path, text: &str, most: usize, pool: &Pool) -> Result<eval::Distance> {
    let progress = Progress::new("compare", "windows");
    progress.say("loading both models");
    let original = Model::load(from, Precision::F32)?;
    let quantised = Model::load(to, Precision::F32).context(
        "the file that was written cannot be read again: this is a bug, please report it",
    )?;
    let tell = |at: eval::Progress| progress.set(at.done as u64, at.total as u64, "");
    let tokens = original.tokenizer.encode_plain(text)?;
    let kept = original.tokenizer.decode(&tokens[..tokens.len().min(most)]);
    Ok(eval::distance(&original, &quantised, pool, &kept, &tell)?)
}

struct Report<'a> {
    mix: Mix,
    tensors: &'a [StoredTensor],
    bytes: u64,
    distance: Option<eval::Distance>,
}

impl Report<'_> {
    fn bits_per_weight(&self) -> f64 {
        let (bytes, values) = self.tensors.iter().fold((0, 0), |(bytes, values), tensor| {
            (bytes + tensor.bytes(), values + tensor.values())
        });
        8.0 * bytes as f64 / values.max(1) as f64
    }

    /// How many tensors there are of each format.
    fn formats(&self) -> BTreeMap<&'static str, usize> {
        let mut counts = BTreeMap::new();
        for tensor in self.tensors {
            *counts.entry(tensor.format.name()).or_default() += 1;
        }
        counts
    }

    fn fell_back(&self) -> Vec<&StoredTensor> {
        self.tensors.iter().filter(|tensor| tensor.fell_back).collect()
    }

    fn json(&self, to: &Path) -> Value {
        let distance = self.distance.map(|found| {
            json!({
                "tokens": found.tokens,
                "divergence": found.divergence.value,
                "divergence_standard_error": found.divergence.standard_error,
                "divergence_p99": found.divergence_p99,
                "original_perplexity": found.original_perplexity,
                "perplexity": found.perplexity,
                "same_best": found.same_best,
            })
        });
        json!({
            "file": to,
            "type": self.mix.name,
            "bytes": self.bytes,
            "bits_per_weight": self.bits_per_weight(),
            "tensors": self.formats(),
            "fell_back": self.fell_back().len(),
            "comparison": distance,
        })
    }

    fn print(&self, to: &Path, weighed: bool) {
        println!("{}", to.display());
        let formats: Vec<String> =
            self.formats().iter().map(|(name, count)| format!("{count} {name}")).collect();
        println!(
            "{}: {:.1} MB, {:.2} bits per weight; tensors: {}{}",
            self.mix.name,
            self.bytes as f64 / 1e6,
            self.bits_per_weight(),
            formats.join(", "),
            if weighed { "; weighed by importance" } else { "" },
        );
        if let [first, ..] = self.fell_back()[..] {
            let cols = first.shape.last().copied().unwrap_or(0);
            println!(
                "{} tensors have rows that do not fill the type's blocks and got another: {} has \
                 {cols} columns, {}",
                self.fell_back().len(),
                first.name,
                first.format,
            );
        }
        let Some(found) = self.distance else {
            println!("not compared with the original: give a text with --text");
            return;
        };
        println!(
            "against the original on {} tokens: KL {:.5} ± {:.5} nats (99 of 100 below {:.4}), \
             perplexity {:.3} after {:.3}, {:.1} % the same likeliest token",
            found.tokens,
            found.divergence.value,
            found.divergence.standard_error,
            found.divergence_p99,
            found.perplexity,
            found.original_perplexity,
            100.0 * found.same_best,
        );
    }
}
