//! A step of training a dense model with Burn on its CPU backend: `train-burn FOLDER STEPS`.
//!
//! The folder has `model.safetensors` (f32, names as transformers has them for llama) and `batches.jsonl`
//! (a step a line: sequences of token ids). Printed are the losses, and tokens a second by the median of
//! all steps but the first two. Products that share their input are one product.

use std::fs;
use std::path::Path;
use std::time::Instant;

use burn::grad_clipping::GradientClippingConfig;
use burn::module::{Module, Param};
use burn::nn::loss::CrossEntropyLossConfig;
use burn::nn::{Embedding, Linear, RmsNorm, RmsNormConfig};
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::activation::silu;
use burn::tensor::module::attention;
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{Device, Int, Tensor, TensorData};
use serde_json::Value;

const HIDDEN: usize = 384;
const LAYERS: usize = 6;
const HEADS: usize = 6;
const HEAD_DIM: usize = HIDDEN / HEADS;
const WIDTH: usize = 1024;
const VOCAB: usize = 8192;
const RATE: f64 = 1e-3;

#[derive(Module, Debug)]
struct Layer {
    attention_norm: RmsNorm,
    qkv: Linear,
    out: Linear,
    norm: RmsNorm,
    gate_up: Linear,
    down: Linear,
}

#[derive(Module, Debug)]
struct Model {
    embedding: Embedding,
    layers: Vec<Layer>,
    norm: RmsNorm,
    head: Linear,
}

/// Cosines and sines of the positions, `[1, 1, tokens, HEAD_DIM]`.
struct Rotary {
    cos: Tensor<4>,
    sin: Tensor<4>,
}

impl Rotary {
    fn new(tokens: usize, device: &Device) -> Self {
        let half = HEAD_DIM / 2;
        let angle = |at: usize| {
            let (token, dim) = (at / HEAD_DIM, at % HEAD_DIM % half);
            token as f64 * 10_000f64.powf(-(dim as f64) / half as f64)
        };
        let table = |of: fn(f64) -> f64| {
            let values: Vec<f32> = (0..tokens * HEAD_DIM).map(|at| of(angle(at)) as f32).collect();
            Tensor::from_data(TensorData::new(values, [1, 1, tokens, HEAD_DIM]), device)
        };
        Rotary { cos: table(f64::cos), sin: table(f64::sin) }
    }

    /// **Shapes**: x `[sequences, heads, tokens, HEAD_DIM]`.
    fn turn(&self, x: Tensor<4>) -> Tensor<4> {
        let [first, second] = x.clone().chunk(2, 3).try_into().expect("two halves");
        x * self.cos.clone() + Tensor::cat(vec![-second, first], 3) * self.sin.clone()
    }
}

impl Layer {
    /// **Shapes**: x `[sequences, tokens, HIDDEN]`.
    fn forward(&self, x: Tensor<3>, rotary: &Rotary) -> Tensor<3> {
        let [sequences, tokens, _] = x.dims();
        let qkv = self.qkv.forward(self.attention_norm.forward(x.clone()));
        let [q, k, v] = qkv
            .chunk(3, 2)
            .into_iter()
            .map(|part| part.reshape([sequences, tokens, HEADS, HEAD_DIM]).swap_dims(1, 2))
            .collect::<Vec<_>>()
            .try_into()
            .expect("three parts");
        let causal = AttentionModuleOptions { is_causal: true, ..Default::default() };
        let attended = attention(rotary.turn(q), rotary.turn(k), v, None, None, causal);
        let attended = attended.swap_dims(1, 2).reshape([sequences, tokens, HIDDEN]);
        let x = x + self.out.forward(attended);
        let gate_up = self.gate_up.forward(self.norm.forward(x.clone()));
        let [gate, up] = gate_up.chunk(2, 2).try_into().expect("two halves");
        x + self.down.forward(silu(gate) * up)
    }
}

impl Model {
    /// Mean loss in nats of each token but the first of a sequence.
    fn loss(&self, batch: Tensor<2, Int>, rotary: &Rotary, device: &Device) -> Tensor<1> {
        let [sequences, tokens] = batch.dims();
        let mut x = self.embedding.forward(batch.clone());
        for layer in &self.layers {
            x = layer.forward(x, rotary);
        }
        let rows = sequences * (tokens - 1);
        let x = x.narrow(1, 0, tokens - 1).reshape([rows, HIDDEN]);
        let logits = self.head.forward(self.norm.forward(x));
        let labels = batch.narrow(1, 1, tokens - 1).reshape([rows]);
        CrossEntropyLossConfig::new().init(device).forward(logits, labels)
    }
}

/// The tensors of a safetensors file, all f32.
struct Weights {
    header: Value,
    bytes: Vec<u8>,
}

impl Weights {
    fn read(path: &Path) -> Self {
        let mut bytes = fs::read(path).expect("the model's weights can be read");
        let length = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
        let header = serde_json::from_slice(&bytes[8..8 + length]).expect("a header in JSON");
        bytes.drain(..8 + length);
        Weights { header, bytes }
    }

    fn values(&self, name: &str) -> Vec<f32> {
        let offset =
            |at: usize| self.header[name]["data_offsets"][at].as_u64().expect(name) as usize;
        let bytes = &self.bytes[offset(0)..offset(1)];
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("4 bytes"))).collect()
    }

    /// Matrices `[outputs, inputs]` beside one another, as Burn has them: `[inputs, outputs]`.
    fn linear(&self, names: &[String], inputs: usize, device: &Device) -> Linear {
        let values: Vec<f32> = names.iter().flat_map(|name| self.values(name)).collect();
        let outputs = values.len() / inputs;
        let turned = (0..values.len()).map(|at| values[at % outputs * inputs + at / outputs]);
        let data = TensorData::new(turned.collect::<Vec<f32>>(), [inputs, outputs]);
        Linear { weight: Param::from_tensor(Tensor::from_data(data, device)), bias: None }
    }

    fn model(&self, device: &Device) -> Model {
        // The file's norms are all ones.
        let norm = || RmsNormConfig::new(HIDDEN).with_epsilon(1e-5).init(device);
        let layer = |index: usize| {
            let linear = |parts: &[&str], inputs| {
                let name = |part: &&str| format!("model.layers.{index}.{part}_proj.weight");
                self.linear(&parts.iter().map(name).collect::<Vec<_>>(), inputs, device)
            };
            Layer {
                attention_norm: norm(),
                qkv: linear(&["self_attn.q", "self_attn.k", "self_attn.v"], HIDDEN),
                out: linear(&["self_attn.o"], HIDDEN),
                norm: norm(),
                gate_up: linear(&["mlp.gate", "mlp.up"], HIDDEN),
                down: linear(&["mlp.down"], WIDTH),
            }
        };
        let embedding = TensorData::new(self.values("model.embed_tokens.weight"), [VOCAB, HIDDEN]);
        Model {
            embedding: Embedding {
                weight: Param::from_tensor(Tensor::from_data(embedding, device)),
            },
            layers: (0..LAYERS).map(layer).collect(),
            norm: norm(),
            head: self.linear(&["lm_head.weight".into()], HIDDEN, device),
        }
    }
}

/// A step a line: sequences of as many token ids each.
fn batches(path: &Path) -> Vec<Vec<Vec<i32>>> {
    let text = fs::read_to_string(path).expect("the batches can be read");
    text.lines().map(|line| serde_json::from_str(line).expect("sequences of token ids")).collect()
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, folder, steps] = &arguments[..] else { panic!("train-burn FOLDER STEPS") };
    let (folder, steps) = (Path::new(folder), steps.parse::<usize>().expect("a number of steps"));
    let device = Device::flex().autodiff();
    let mut model = Weights::read(&folder.join("model.safetensors")).model(&device);
    let batches = batches(&folder.join("batches.jsonl"));
    let (sequences, tokens) = (batches[0].len(), batches[0][0].len());
    let rotary = Rotary::new(tokens, &device);
    let mut optimizer = AdamWConfig::new()
        .with_beta_1(0.9)
        .with_beta_2(0.95)
        .with_epsilon(1e-8)
        .with_weight_decay(0.1)
        .with_grad_clipping(Some(GradientClippingConfig::Norm(1.0)))
        .init();
    let (mut losses, mut times) = (Vec::new(), Vec::new());
    for batch in batches.iter().cycle().take(steps) {
        let start = Instant::now();
        let batch = TensorData::new(batch.concat(), [sequences, tokens]);
        let loss = model.loss(Tensor::from_data(batch, &device), &rotary, &device);
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        model = optimizer.step(RATE, model, gradients);
        losses.push(format!("{:.4}", loss.into_scalar::<f32>()));
        times.push(start.elapsed().as_secs_f64());
    }
    times.drain(..2);
    times.sort_by(f64::total_cmp);
    println!("losses {}", losses.join(" "));
    println!("train {:.1} tokens/s", (sequences * tokens) as f64 / times[times.len() / 2]);
}
