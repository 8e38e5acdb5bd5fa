//! `artel export`: the model in a layout that other engines load.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use kernel::quant::Format;
use kernel::{Matrix, Pool, Precision};
use model::{
    Config, Error, ExpertSet, ExpertWeights, ExpertsConfig, Export, Family, Joined, Message, Model,
    Source, TensorInfo,
};
use store::{Kind, Manifest};

use super::chat::model_folder;
use super::eval::expert_names;
use crate::Setup;
use crate::failure::Hint;
use crate::progress::Progress;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The new folder [default: exports/MODEL-FORMAT in the company's folder]
    #[arg(long)]
    to: Option<PathBuf>,
    /// The layout of transformers, or one file for GGUF engines
    #[arg(long, value_enum, default_value_t = Layout::Hf)]
    format: Layout,
    /// How numbers are stored
    #[arg(long, value_enum, default_value_t = Dtype::F16)]
    dtype: Dtype,
    /// A model under models/ [default: the joined one]
    #[arg(long)]
    model: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum Layout {
    Hf,
    Gguf,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum Dtype {
    F32,
    F16,
    Bf16,
    /// GGUF only
    Q8_0,
}

impl Dtype {
    fn format(self) -> Format {
        match self {
            Dtype::F32 => Format::F32,
            Dtype::F16 => Format::F16,
            Dtype::Bf16 => Format::Bf16,
            Dtype::Q8_0 => Format::Q8_0,
        }
    }

    /// How far the mean |Δ log p| of a replay may go, nats per token: the rounding of the weights
    /// to 24, 11 and 8 bits, and what other orders of summation add to it.
    fn tolerance(self) -> f32 {
        match self {
            Dtype::F32 => 2e-3,
            Dtype::F16 => 1e-2,
            Dtype::Bf16 | Dtype::Q8_0 => 1e-1,
        }
    }
}

pub(crate) fn run(args: &Args, setup: &Setup) -> Result<()> {
    ensure!(
        args.format == Layout::Gguf || args.dtype != Dtype::Q8_0,
        "--dtype q8-0 goes with --format gguf only"
    );
    let config = setup.config()?;
    let folder = model_folder(&config, args.model.as_deref())?;
    let name = folder.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
    let layout = if args.format == Layout::Hf { "hf" } else { "gguf" };
    let to = args.to.clone().unwrap_or_else(|| {
        config.root.join(Kind::Export.folder()).join(format!("{name}-{layout}"))
    });
    let empty = fs::read_dir(&to).is_ok_and(|mut entries| entries.next().is_none());
    ensure!(empty || !to.exists(), "{} exists and is not empty", to.display());
    let parent = match to.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    };
    fs::create_dir_all(&parent).with_context(|| format!("make {}", parent.display()))?;
    // Written beside its place and renamed after the replay: what is there is whole and checked.
    let draft = tempfile::Builder::new()
        .prefix(".artel-export-")
        .tempdir_in(&parent)
        .with_context(|| format!("make a folder in {}", parent.display()))?;
    let progress = Progress::new("export", "");
    progress.say("writing");
    let written = write(&folder, &name, draft.path(), args)?;
    fs::write(draft.path().join("README.md"), card(&folder, &name)?)
        .with_context(|| format!("write into {}", draft.path().display()))?;
    progress.say("replaying prompts through the exported model");
    let pool = setup.pool();
    let difference = replay(&folder, &written, args.dtype.tolerance(), &pool)?;
    drop(progress);
    fs::rename(draft.path(), &to).with_context(|| format!("make {}", to.display()))?;
    // Renamed away: there is nothing left to remove.
    let _ = draft.keep();
    println!("{}", to.display());
    eprintln!("replayed: the same tokens, mean difference {difference:.5} nats per token");
    Ok(())
}

/// Writes the model of `folder` into `to`; what is returned can be loaded.
fn write(folder: &Path, name: &str, to: &Path, args: &Args) -> Result<PathBuf> {
    let parts = Parts::open(folder)?;
    let (tokenizer, template) = (parts.base.tokenizer()?, parts.base.template()?);
    let export = Export {
        name,
        config: &parts.config,
        tokenizer: &tokenizer,
        template: &template,
        format: args.dtype.format(),
    };
    let mut tensors = |info: &TensorInfo| parts.tensor(info);
    match args.format {
        Layout::Hf => {
            export.write_huggingface(to, &mut tensors)?;
            Ok(to.into())
        }
        Layout::Gguf => {
            let file = to.join(format!("{name}.gguf"));
            export.write_gguf(&file, &mut tensors)?;
            Ok(file)
        }
    }
}

/// A model on disk as one list of tensors: the base's, and the experts' beside them.
pub(crate) struct Parts {
    /// Of the whole.
    pub(crate) config: Config,
    pub(crate) base: Source,
    /// Empty where `base` is all there is.
    pub(crate) experts: Vec<ExpertWeights>,
}

impl Parts {
    pub(crate) fn open(folder: &Path) -> Result<Self> {
        let Some(joined) = Joined::read(folder)? else {
            let base = Source::open(folder)?;
            return Ok(Parts { config: base.config()?, base, experts: Vec::new() });
        };
        let base = Source::open(&folder.join(&joined.base))?;
        let mut config = base.config()?;
        if config.family != Family::Llama || config.experts.is_some() {
            let family = config.family;
            return Err(anyhow!(
                "experts beside a {family:?} model: no layout of other programs holds them"
            )
            .context(Hint::new("`artel serve` and `artel chat` use the model as it is")));
        }
        let (names, experts): (Vec<_>, Vec<_>) = joined.read_experts(folder)?.into_iter().unzip();
        if let Some(width) = experts.iter().map(|expert: &ExpertWeights| expert.width).max() {
            config.family = Family::GraniteMoeShared;
            config.experts = Some(ExpertsConfig { width, names });
        }
        Ok(Parts { config, base, experts })
    }

    /// One tensor, a vector as one row.
    pub(crate) fn tensor(&self, info: &TensorInfo) -> Result<Matrix, Error> {
        let name = info.name.as_str();
        let (rows, cols) = info.rows_cols();
        if self.experts.is_empty() {
            return self.stored(name, info.shape.len(), rows, cols);
        }
        let Some((layer, part)) = expert_part(name) else {
            return self.stored(name, info.shape.len(), rows, cols);
        };
        let mlp = |part: &str| format!("model.layers.{layer}.mlp.{part}.weight");
        let values = match part {
            "shared_mlp.input_linear" => {
                let mut values = self.base.matrix(&mlp("gate_proj"), rows / 2, cols)?.to_f32();
                values.extend(self.base.matrix(&mlp("up_proj"), rows / 2, cols)?.to_f32());
                values
            }
            "shared_mlp.output_linear" => {
                return self.base.matrix(&mlp("down_proj"), rows, cols);
            }
            _ => self.experts_tensor(layer, part, rows * cols),
        };
        Ok(Matrix::from_f32(rows, cols, values))
    }

    fn stored(&self, name: &str, axes: usize, rows: usize, cols: usize) -> Result<Matrix, Error> {
        match axes {
            1 => Ok(Matrix::from_f32(rows, cols, self.base.vector(name, cols)?)),
            _ => self.base.matrix(name, rows, cols),
        }
    }

    /// One tensor of all experts, the null expert's zeros last. An expert narrower than the widest
    /// is filled up with zeros, which add nothing.
    fn experts_tensor(&self, layer: usize, part: &str, len: usize) -> Vec<f32> {
        let hidden = self.config.hidden;
        let width = self.config.experts.as_ref().map_or(0, |experts| experts.width);
        let mut values = vec![0.0; len];
        for (index, expert) in self.experts.iter().enumerate() {
            let Some(own) = expert.layers.get(layer).filter(|layer| !layer.is_empty()) else {
                continue;
            };
            match part {
                "router.layer" => copy(&mut values, index * hidden, &own.router),
                "input_linear" => {
                    let (gate, up) = own.gate_up.split_at(expert.width * hidden);
                    copy(&mut values, 2 * index * width * hidden, gate);
                    copy(&mut values, (2 * index + 1) * width * hidden, up);
                }
                _ => {
                    for (row, own) in own.down.chunks(expert.width).enumerate() {
                        copy(&mut values, (index * hidden + row) * width, own);
                    }
                }
            }
        }
        values
    }
}

fn copy(values: &mut [f32], at: usize, from: &[f32]) {
    values[at..at + from.len()].copy_from_slice(from);
}

/// Layer and part of a tensor that a joined model has and its base has not.
fn expert_part(name: &str) -> Option<(usize, &str)> {
    let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let part = rest.strip_suffix(".weight")?;
    let part = part
        .strip_prefix("block_sparse_moe.")
        .or_else(|| part.starts_with("shared_mlp.").then_some(part))?;
    Some((layer.parse().ok()?, part))
}

/// What conversations are replayed.
const PROMPTS: [&str; 4] = [
    "What is the capital of France?",
    "List three tools that a mechanic uses, one per line.",
    "Was bedeutet die Störung 17 — und wer hilft?",
    "```\nfn main() { println!(\"{}\", 6 * 7); }\n```",
];

/// Scores prompts with both models and gives the mean |Δ log p| per token.
fn replay(original: &Path, exported: &Path, tolerance: f32, pool: &Pool) -> Result<f32> {
    let before = Model::load(original, Precision::F32)?;
    let after = Model::load(exported, Precision::F32)
        .context("the exported model cannot be read again: this is a bug, please report it")?;
    let experts = ExpertSet::all(expert_names(&before).len());
    ensure!(expert_names(&before) == expert_names(&after), "the export lost the experts' names");
    let (mut sum, mut count) = (0.0, 0usize);
    for prompt in PROMPTS {
        let message = Message { role: "user".into(), content: prompt.into() };
        let tokens = engine::chat_prompt(&before, std::slice::from_ref(&message))?;
        if tokens != engine::chat_prompt(&after, &[message])? {
            bail!("the exported tokenizer or chat template gives other tokens for {prompt:?}");
        }
        let score = |model| engine::Scorer { model, pool }.tokens(&tokens, experts);
        let (before, after) = (score(&before)?, score(&after)?);
        sum += before.iter().zip(&after).map(|(a, b)| (a - b).abs()).sum::<f32>();
        count += before.len();
    }
    let mean = sum / count.max(1) as f32;
    ensure!(
        mean <= tolerance,
        "the exported model differs by {mean} nats per token; at most {tolerance} is rounding"
    );
    Ok(mean)
}

/// The model card: what it is made from.
fn card(folder: &Path, name: &str) -> Result<String> {
    let manifest = Manifest::read(folder).map_err(|error| {
        anyhow::Error::new(error).context(Hint::new("`artel join` makes it again"))
    })?;
    let inputs: String = manifest
        .recipe
        .inputs
        .iter()
        .map(|(name, hash)| format!("- {name} ({})\n", hash.short()))
        .collect();
    let base = manifest.recipe.inputs.keys().find_map(|name| name.strip_prefix("models/"));
    Ok(format!(
        "---\ntags: [artel, mixture-of-experts]\nbase_model: {}\n---\n\n# {name}\n\n\
         Made by Artel {} from:\n\n{inputs}\nThe documents behind the experts are internal: mind who \
         gets this file. The base model's licence applies too.\n",
        base.unwrap_or(name),
        manifest.tool_version
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_expert_tensors() {
        for (name, expected) in [
            ("model.layers.3.block_sparse_moe.router.layer.weight", Some((3, "router.layer"))),
            (
                "model.layers.0.shared_mlp.output_linear.weight",
                Some((0, "shared_mlp.output_linear")),
            ),
            ("model.layers.0.self_attn.q_proj.weight", None),
            ("model.embed_tokens.weight", None),
        ] {
            assert_eq!(expert_part(name), expected);
        }
    }
}
