//! A model of a few thousand random weights, with two experts and one token for each byte.

use std::fs;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use kernel::{Pool, Precision};
use model::{ExpertLayer, ExpertWeights, Model};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value, json};

pub(crate) const CONTEXT: usize = 700;
/// 256 bytes, and the marks where a message begins and ends.
pub(crate) const VOCAB: usize = 258;
const HIDDEN: usize = 32;
const INTERMEDIATE: usize = 48;
const LAYERS: usize = 2;
const EXPERT_WIDTH: usize = 16;

const TEMPLATE: &str = "{% for message in messages %}<|im_start|>{{ message['role'] }}\n\
    {{ message['content'] }}<|im_end|>\n{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// The model with the experts `maintenance` and `purchasing`.
pub(crate) fn model() -> Arc<Model> {
    static MODEL: OnceLock<Arc<Model>> = OnceLock::new();
    Arc::clone(MODEL.get_or_init(|| Arc::new(build())))
}

fn build() -> Model {
    let folder = tempfile::tempdir().unwrap();
    let mut random = ChaCha8Rng::seed_from_u64(7);
    write_config(folder.path());
    write_tokenizer(folder.path());
    write_weights(folder.path(), &mut random);
    let mut model = Model::load(folder.path(), Precision::F32).unwrap();
    model.name = "tiny".to_owned();
    let experts = [expert(&mut random), expert(&mut random)];
    let named = [("maintenance", &experts[0]), ("purchasing", &experts[1])];
    model.decoder.attach(&Pool::new(1), &named);
    model
}

fn expert(random: &mut ChaCha8Rng) -> ExpertWeights {
    let layers = (0..LAYERS)
        .map(|_| ExpertLayer {
            router: values(random, HIDDEN, 0.5),
            gate_up: values(random, 2 * EXPERT_WIDTH * HIDDEN, 0.4),
            down: values(random, HIDDEN * EXPERT_WIDTH, 0.4),
        })
        .collect();
    ExpertWeights { width: EXPERT_WIDTH, hidden: HIDDEN, layers }
}

fn values(random: &mut ChaCha8Rng, count: usize, scale: f32) -> Vec<f32> {
    (0..count).map(|_| random.random_range(-scale..scale)).collect()
}

fn write(path: &Path, value: &Value) {
    fs::write(path, value.to_string()).unwrap();
}

fn write_config(folder: &Path) {
    let config = json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu",
        "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": true, "bos_token_id": 256, "eos_token_id": 257,
    });
    write(&folder.join("config.json"), &config);
}

fn write_tokenizer(folder: &Path) {
    // GPT-2's characters for bytes: printable ones stand for themselves.
    let printable = |byte: u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let mut next = 256;
    let mut vocab = Map::new();
    for byte in 0..256 {
        let code = if printable(byte) {
            byte
        } else {
            next += 1;
            next - 1
        };
        vocab.insert(char::from_u32(code).unwrap().to_string(), json!(byte));
    }
    let mark = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true})
    };
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": [mark(256, "<|im_start|>"), mark(257, "<|im_end|>")],
        "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null,
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
            "byte_fallback": false, "ignore_merges": false, "vocab": vocab, "merges": []},
    });
    write(&folder.join("tokenizer.json"), &tokenizer);
    let config = json!({
        "chat_template": TEMPLATE, "bos_token": "<|im_start|>", "eos_token": "<|im_end|>",
    });
    write(&folder.join("tokenizer_config.json"), &config);
}

fn write_weights(folder: &Path, random: &mut ChaCha8Rng) {
    let mut header = Map::new();
    let mut bytes = Vec::new();
    let mut put = |name: String, shape: &[usize], values: Vec<f32>| {
        assert_eq!(values.len(), shape.iter().product::<usize>());
        let begin = bytes.len();
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        let offsets = [begin, bytes.len()];
        header.insert(name, json!({"dtype": "F32", "shape": shape, "data_offsets": offsets}));
    };
    let mut embedding = values(random, VOCAB * HIDDEN, 0.5);
    for (token, row) in embedding.chunks_mut(HIDDEN).enumerate() {
        // Letters are likely, so that the text is mostly readable.
        let scale = if (97..123).contains(&token) { 2.0 } else { 0.2 };
        row.iter_mut().for_each(|value| *value *= scale);
    }
    put("model.embed_tokens.weight".into(), &[VOCAB, HIDDEN], embedding);
    put("model.norm.weight".into(), &[HIDDEN], vec![1.0; HIDDEN]);
    for layer in 0..LAYERS {
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            put(format!("model.layers.{layer}.{norm}.weight"), &[HIDDEN], vec![1.0; HIDDEN]);
        }
        for (name, rows, cols) in [
            ("self_attn.q_proj", HIDDEN, HIDDEN),
            ("self_attn.k_proj", HIDDEN / 2, HIDDEN),
            ("self_attn.v_proj", HIDDEN / 2, HIDDEN),
            ("self_attn.o_proj", HIDDEN, HIDDEN),
            ("mlp.gate_proj", INTERMEDIATE, HIDDEN),
            ("mlp.up_proj", INTERMEDIATE, HIDDEN),
            ("mlp.down_proj", HIDDEN, INTERMEDIATE),
        ] {
            let weights = values(random, rows * cols, 0.4);
            put(format!("model.layers.{layer}.{name}.weight"), &[rows, cols], weights);
        }
    }
    let header = Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(bytes);
    fs::write(folder.join("model.safetensors"), file).unwrap();
}
