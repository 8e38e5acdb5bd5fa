//! Low-rank adapters: beside a matrix `W` stands `(alpha / rank) · B · A`.
//!
//! **Source**: Hu et al. 2021, arXiv 2106.09685, section 4; names and files as PEFT has them.

use std::path::Path;

use kernel::{Left, Output, Packed, Pool, Precision, matmul};
use model::{Config, NamedTensors, Source, TensorInfo, Weights};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Options;
use super::file::{read_json, write_json};
use crate::Error;
use crate::options::refuse;

/// The folder of an adapter, beside the model that has it merged.
pub const ADAPTER_FOLDER: &str = "adapter";
const CONFIG_FILE: &str = "adapter_config.json";
const TENSOR_FILE: &str = "adapter_model.safetensors";

/// What an adapter stands beside if nothing else is asked for.
const USUAL: [&str; 7] =
    ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// Where an adapter stands, and the weights there without it.
pub(crate) struct Adapter {
    scale: f32,
    targets: Vec<Target>,
}

struct Target {
    /// Of [`Config::tensors`].
    tensor: usize,
    rows: usize,
    cols: usize,
    /// `[rows, cols]`
    base: Vec<f32>,
}

/// `adapter_config.json`, as far as it matters here.
#[derive(Debug, Serialize, Deserialize)]
struct AdapterConfig {
    peft_type: String,
    #[serde(default)]
    task_type: Option<String>,
    #[serde(default)]
    base_model_name_or_path: Option<String>,
    r: usize,
    lora_alpha: f32,
    target_modules: Vec<String>,
    #[serde(default)]
    lora_dropout: f32,
    #[serde(default)]
    bias: Option<String>,
    #[serde(default)]
    fan_in_fan_out: bool,
    #[serde(default)]
    inference_mode: bool,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
}

/// What would make an adapter another one than its matrices and its scale say.
const UNREAD: [&str; 9] = [
    "rank_pattern",
    "alpha_pattern",
    "layers_to_transform",
    "layer_replication",
    "exclude_modules",
    "modules_to_save",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
];

/// The matrices that the options name, as indices of [`Config::tensors`], which these are.
///
/// # Errors
/// [`Error::Option`] if a name is that of no matrix of the model.
pub(crate) fn targets_of(tensors: &[TensorInfo], options: &Options) -> Result<Vec<usize>, Error> {
    let mut known: Vec<&str> = tensors.iter().filter_map(module).collect();
    known.sort_unstable();
    known.dedup();
    if let Some(name) = options.targets.iter().find(|name| !known.contains(&name.as_str())) {
        let expected = format!("the model's matrices are {}", known.join(", "));
        return refuse("targets", name.clone(), &expected);
    }
    let wanted = |name: &str| match options.targets.is_empty() {
        true => USUAL.contains(&name),
        false => options.targets.iter().any(|target| target == name),
    };
    let each = tensors.iter().enumerate();
    Ok(each.filter(|(_, info)| module(info).is_some_and(wanted)).map(|(index, _)| index).collect())
}

/// The last part of the name of a layer's matrix that an adapter can stand beside.
fn module(info: &TensorInfo) -> Option<&str> {
    let inside = info.name.starts_with("model.layers.") && !info.name.contains(".experts.");
    let name = info.name.strip_suffix(".weight")?.rsplit('.').next()?;
    // Routers, and experts that are stacked, are no linear layers elsewhere.
    (inside && info.shape.len() == 2 && name != "gate" && name != "layer").then_some(name)
}

/// The names and shapes of an adapter's matrices: A and B of each target.
pub(crate) fn shapes(tensors: &[TensorInfo], targets: &[usize], rank: usize) -> Vec<TensorInfo> {
    let mut shapes = Vec::with_capacity(2 * targets.len());
    for &target in targets {
        let info = &tensors[target];
        let (rows, cols) = info.rows_cols();
        let module = info.name.trim_end_matches(".weight");
        for (part, shape) in [("A", vec![rank, cols]), ("B", vec![rows, rank])] {
            let name = format!("base_model.model.{module}.lora_{part}.weight");
            shapes.push(TensorInfo { name, shape });
        }
    }
    shapes
}

/// A new adapter: A uniform up to (inputs)^-½, as PEFT begins, and B zero.
pub(crate) fn initial(shapes: Vec<TensorInfo>, seed: u64) -> NamedTensors {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut adapter = NamedTensors::zeros(shapes);
    for (info, values) in adapter.0.iter_mut().step_by(2) {
        let limit = 1.0 / (info.shape[1] as f32).sqrt();
        values.iter_mut().for_each(|value| *value = rng.random_range(-limit..limit));
    }
    adapter
}

impl Adapter {
    /// An adapter beside these tensors of `weights`, which are without it yet.
    pub(crate) fn new(weights: &Weights, config: &Config, targets: &[usize], scale: f32) -> Self {
        let tensors = weights.tensors(config);
        let target = |&tensor: &usize| {
            let (info, values) = &tensors[tensor];
            let (rows, cols) = info.rows_cols();
            Target { tensor, rows, cols, base: values.to_vec() }
        };
        Adapter { scale, targets: targets.iter().map(target).collect() }
    }

    /// The gradients of A and B, given those of all weights.
    pub(crate) fn gradients(
        &self,
        pool: &Pool,
        config: &Config,
        own: &NamedTensors,
        whole: &Weights,
    ) -> NamedTensors {
        let whole = whole.tensors(config);
        let mut gradients = NamedTensors::zeros(own.0.iter().map(|(info, _)| info.clone()));
        let pairs = own.0.chunks_exact(2).zip(gradients.0.chunks_exact_mut(2));
        for (target, (own, out)) in self.targets.iter().zip(pairs) {
            let Target { rows, cols, .. } = *target;
            let ([(info, a), (_, b)], [(_, d_a), (_, d_b)]) = (own, out) else {
                unreachable!("pairs of A and B")
            };
            let (rank, d) = (info.shape[0], whole[target.tensor].1);
            let by_columns = Packed::columns(pool, Precision::F32, d, rows, cols);
            matmul(pool, d_a, Left::Transposed(b), &by_columns, Output::Replace);
            let a = Packed::rows(pool, Precision::F32, a, rank, cols);
            matmul(pool, d_b, Left::Rows(d), &a, Output::Replace);
            for value in d_a.iter_mut().chain(d_b) {
                *value *= self.scale;
            }
        }
        gradients
    }

    /// Sets the targets among `weights` to those without the adapter and with it.
    pub(crate) fn merge(
        &self,
        pool: &Pool,
        config: &Config,
        own: &NamedTensors,
        weights: &mut Weights,
    ) {
        let mut tensors = weights.tensors_mut(config);
        for (target, own) in self.targets.iter().zip(own.0.chunks_exact(2)) {
            let values = &mut *tensors[target.tensor].1;
            values.copy_from_slice(&target.base);
            add(pool, values, own, target.cols, self.scale);
        }
    }
}

/// Writes an adapter as PEFT does; `base` is the name of the model that it stands beside.
///
/// # Errors
/// What writing to the folder gives.
pub(crate) fn write(
    folder: &Path,
    own: &NamedTensors,
    options: &Options,
    base: &str,
) -> Result<(), Error> {
    let create = |source| Error::Io { action: "create", path: folder.into(), source };
    std::fs::create_dir_all(folder).map_err(create)?;
    own.write_file(&folder.join(TENSOR_FILE))?;
    let modules = own.0.iter().filter_map(|(info, _)| info.name.split('.').rev().nth(2));
    let mut target_modules: Vec<String> = modules.map(String::from).collect();
    target_modules.sort_unstable();
    target_modules.dedup();
    let config = AdapterConfig {
        peft_type: "LORA".into(),
        task_type: Some("CAUSAL_LM".into()),
        base_model_name_or_path: Some(base.into()),
        r: options.rank,
        lora_alpha: options.alpha,
        target_modules,
        lora_dropout: 0.0,
        bias: Some("none".into()),
        fan_in_fan_out: false,
        inference_mode: true,
        use_rslora: false,
        use_dora: false,
    };
    write_json(&folder.join(CONFIG_FILE), &config)
}

/// Whether an adapter as it was written, put beside its base, gives the model as it was written, bit for
/// bit; one matrix at a time.
///
/// # Errors
/// [`Error::Adapter`] if it is none, or of a kind that is not read here; [`Error::Option`] if it
/// stands beside matrices that the model has not; [`Error::Model`] if its tensors, or the models', are
/// not those of such an adapter.
pub fn replay(pool: &Pool, folder: &Path, base: &Source, model: &Source) -> Result<bool, Error> {
    let config = base.trainable_config()?;
    let found = read_config(folder)?;
    let (targets, own) = tensors_of(folder, &config, &found)?;
    let tensors = config.tensors();
    for (&target, own) in targets.iter().zip(own.0.chunks_exact(2)) {
        let info = &tensors[target];
        let (rows, cols) = info.rows_cols();
        let mut values = base.matrix(&info.name, rows, cols)?.to_f32();
        add(pool, &mut values, own, cols, found.scale());
        if values != model.matrix(&info.name, rows, cols)?.to_f32() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Adds `scale · B · A` to a matrix.
fn add(pool: &Pool, values: &mut [f32], own: &[(TensorInfo, Vec<f32>)], cols: usize, scale: f32) {
    let [(info, a), (_, b)] = own else { unreachable!("pairs of A and B") };
    let scaled: Vec<f32> = a.iter().map(|value| value * scale).collect();
    let a = Packed::columns(pool, Precision::F32, &scaled, info.shape[0], cols);
    matmul(pool, values, Left::Rows(b), &a, Output::Add);
}

/// What an adapter says of itself, as PEFT or [`write`] has written it.
fn read_config(folder: &Path) -> Result<AdapterConfig, Error> {
    let path = folder.join(CONFIG_FILE);
    let refused = |problem: &str| Error::Adapter { path: path.clone(), problem: problem.into() };
    let whole: Value = read_json(&path)?;
    let empty = |value: &Value| match value {
        Value::Null => true,
        Value::Object(entries) => entries.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    };
    if let Some(key) = UNREAD.iter().find(|key| !empty(&whole[**key])) {
        return Err(refused(&format!("{key} is {}, which is not read", whole[*key])));
    }
    let found: AdapterConfig =
        serde_json::from_value(whole).map_err(|e| refused(&format!("is no LoRA adapter: {e}")))?;
    if found.peft_type != "LORA" || found.use_dora || found.fan_in_fan_out {
        return Err(refused("only LoRA is read, without DoRA and fan_in_fan_out"));
    }
    if found.bias.as_deref().unwrap_or("none") != "none" {
        return Err(refused("biases are not read; train with bias none"));
    }
    Ok(found)
}

impl AdapterConfig {
    /// What the product is multiplied by.
    fn scale(&self) -> f32 {
        let rank = self.r as f32;
        self.lora_alpha / if self.use_rslora { rank.sqrt() } else { rank }
    }
}

/// What an adapter stands beside, and its matrices.
fn tensors_of(
    folder: &Path,
    config: &Config,
    found: &AdapterConfig,
) -> Result<(Vec<usize>, NamedTensors), Error> {
    let targets = found.target_modules.clone();
    let options = Options { rank: found.r, alpha: found.lora_alpha, targets, ..Options::default() };
    options.check()?;
    let tensors = config.tensors();
    let targets = targets_of(&tensors, &options)?;
    let shapes = shapes(&tensors, &targets, options.rank);
    Ok((targets, NamedTensors::read_file(&folder.join(TENSOR_FILE), shapes)?))
}

impl Options {
    /// What an adapter's product is multiplied by.
    pub(crate) fn scale(&self) -> f32 {
        self.alpha / self.rank as f32
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use model::{Batch, Decoder, Keep, Purpose};

    use super::*;
    use crate::head::{Head, RowGoal, labels};
    use crate::sample::Sample;

    fn fixture() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/lora")
    }

    fn base() -> (Config, Weights) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures/llama");
        let source = Source::open(&path).unwrap();
        let config = source.config().unwrap();
        let weights = Weights::read(&source, &config).unwrap();
        (config, weights)
    }

    fn floats(name: &str, shape: &[usize]) -> Vec<f32> {
        let info = TensorInfo { name: name.into(), shape: shape.to_vec() };
        let path = fixture().join("reference.safetensors");
        NamedTensors::read_file(&path, [info]).unwrap().0.swap_remove(0).1
    }

    /// See `tests/reference/lora.py`.
    #[test]
    fn an_adapter_of_peft_gives_its_logits_and_gradients() {
        let (config, mut weights) = base();
        let pool = Pool::new(2);
        let found = read_config(&fixture()).unwrap();
        let (targets, own) = tensors_of(&fixture(), &config, &found).unwrap();
        let adapter = Adapter::new(&weights, &config, &targets, found.scale());
        adapter.merge(&pool, &config, &own, &mut weights);
        let purpose = Purpose::WholeTraining;
        let decoder = Decoder::of_weights(&pool, &config, Precision::F32, purpose, &weights);
        let tokens: Vec<u32> =
            floats("tokens", &[40]).into_iter().map(|token| token as u32).collect();
        let samples = [&tokens[..23], &tokens[23..]].map(|tokens| Sample {
            tokens: tokens.to_vec(),
            weights: vec![1.0; tokens.len()],
            softened: false,
            passes: 1,
        });
        let batch = Batch::of(samples.iter().map(|sample| sample.tokens.as_slice()));
        let tape =
            decoder.train_forward(&pool, &batch, decoder.train_stem(&pool, &batch), Keep::All);
        let logits = decoder.logits(&pool, &tape.hidden);
        let expected = floats("logits", &[40, config.vocab]);
        let worst = logits.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 1e-3, "logits differ by {worst}");

        let goal = |label: crate::head::Label| RowGoal {
            row: label.row,
            target: Some((label.target, 1.0 / 38.0)),
            base: None,
        };
        let goals: Vec<RowGoal> =
            labels(&samples[0], 0, 1).chain(labels(&samples[1], 23, 1)).map(goal).collect();
        let mut gradients = Weights::zeros(&config);
        let head = Head::new(&pool, &decoder, &tape.hidden);
        let (losses, d) = head.losses(&goals, Some((&mut gradients, Output::Replace)));
        let loss = losses.iter().map(|loss| loss.cross_entropy).sum::<f32>() / 38.0;
        assert!((loss - floats("loss", &[1])[0]).abs() < 1e-4, "{loss}");
        let mode = Output::Replace;
        decoder.train_backward_whole(&pool, &batch, tape, [&d, &[]], &mut gradients, mode);
        for (info, found) in adapter.gradients(&pool, &config, &own, &gradients).0 {
            let expected = floats(&info.name, &info.shape);
            let norm =
                |values: &mut dyn Iterator<Item = f32>| values.map(|v| v * v).sum::<f32>().sqrt();
            let off = norm(&mut found.iter().zip(&expected).map(|(a, b)| a - b));
            let relative = off / norm(&mut expected.iter().copied());
            assert!(relative < 1e-3, "{}: off by {relative} of its norm", info.name);
        }
    }

    #[test]
    fn adapters_that_would_be_misread_are_refused() {
        let text = std::fs::read_to_string(fixture().join(CONFIG_FILE)).unwrap();
        let refused = |from: &str, to: &str| {
            let folder = tempfile::tempdir().unwrap();
            assert!(text.contains(from), "{from}");
            std::fs::write(folder.path().join(CONFIG_FILE), text.replace(from, to)).unwrap();
            let tensors = fixture().join(TENSOR_FILE);
            std::fs::copy(tensors, folder.path().join(TENSOR_FILE)).unwrap();
            let found = read_config(folder.path());
            let error = found.and_then(|found| tensors_of(folder.path(), &base().0, &found));
            let error = error.unwrap_err();
            error.to_string().replace(&*folder.path().to_string_lossy(), "[FOLDER]")
        };
        insta::assert_snapshot!(refused("\"peft_type\": \"LORA\"", "\"peft_type\": \"IA3\""), @"[FOLDER]/adapter_config.json: only LoRA is read, without DoRA and fan_in_fan_out");
        insta::assert_snapshot!(refused("\"rank_pattern\": {}", "\"rank_pattern\": {\"q_proj\": 8}"), @r#"[FOLDER]/adapter_config.json: rank_pattern is {"q_proj":8}, which is not read"#);
        insta::assert_snapshot!(refused("\"r\": 3", "\"r\": 4"), @"[FOLDER]/adapter_model.safetensors: tensor base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight has the shape [3, 32], but [4, 32] follows from the model's configuration");
        insta::assert_snapshot!(refused("\"v_proj\"", "\"c_attn\""), @"option targets is c_attn; the model's matrices are down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj");
    }
}
