use std::path::Path;

use kernel::quant::Format;
use model::{Family, Source};
use proptest::prelude::*;

use crate::write::export;
use crate::{fixtures, message, smollm2};

/// The bytes of a small GGUF file.
fn small() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("small.gguf");
    let source = Source::open(&fixtures().join("llama")).unwrap();
    export(&source, Format::Q8_0, &path).unwrap();
    std::fs::read(path).unwrap()
}

/// Opens bytes as a GGUF file, with its tokenizer and template.
fn open(bytes: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("broken.gguf");
    std::fs::write(&path, bytes).unwrap();
    let opened = Source::open(&path).and_then(|source| {
        source.tokenizer()?;
        source.template()
    });
    message(opened, folder.path())
}

fn at(bytes: &[u8], text: &str) -> usize {
    bytes.windows(text.len()).position(|w| w == text.as_bytes()).unwrap()
}

/// Where the value of a metadata key begins.
fn value_at(bytes: &[u8], key: &str) -> usize {
    at(bytes, key) + key.len() + 4
}

/// The bytes with others written over them.
fn with(bytes: &[u8], at: usize, new: &[u8]) -> Vec<u8> {
    let mut out = bytes.to_vec();
    out[at..at + new.len()].copy_from_slice(new);
    out
}

#[test]
fn refuses_broken_headers() {
    let good = small();
    assert_eq!(open(&good), "no error");
    let max = u64::MAX.to_le_bytes();
    let tokens = value_at(&good, "tokenizer.ggml.tokens");
    // A tensor's name is followed by the count of its dimensions, these, its type and its offset.
    let tensor = at(&good, "blk.0.attn_q.weight") + "blk.0.attn_q.weight".len();
    let messages = [
        open(b""),
        open(b"GGML"),
        open(&with(&good, 4, &1u32.to_le_bytes())),
        open(&with(&good, 4, &3u32.to_be_bytes())),
        open(&with(&good, 8, &max)),
        open(&with(&good, 16, &max)),
        open(&with(&good, 24, &max)),
        open(&with(&good, value_at(&good, "general.type") - 4, &99u32.to_le_bytes())),
        open(&with(&good, value_at(&good, "general.type"), &max)),
        open(&with(&good, value_at(&good, "general.alignment"), &7u32.to_le_bytes())),
        open(&with(&good, value_at(&good, "general.alignment"), &0u32.to_le_bytes())),
        open(&with(&good, value_at(&good, "general.alignment"), &(1u32 << 31).to_le_bytes())),
        open(&with(&good, tokens, &9u32.to_le_bytes())),
        open(&with(&good, tokens + 4, &max)),
        open(&with(&good, tensor, &5u32.to_le_bytes())),
        open(&with(&good, tensor + 4, &max)),
        open(&with(&good, tensor + 4, &33u64.to_le_bytes())),
        open(&with(&good, tensor + 20, &22u32.to_le_bytes())),
        open(&with(&good, tensor + 20, &12u32.to_le_bytes())),
        open(&with(&good, tensor + 24, &1u64.to_le_bytes())),
        open(&with(&good, tensor + 24, &(1u64 << 40).to_le_bytes())),
        open(&with(&good, tensor + 24, &(u64::MAX - 31).to_le_bytes())),
    ];
    insta::assert_snapshot!(messages.join("\n"));
}

#[test]
fn refuses_truncated_files() {
    let good = small();
    let messages: Vec<String> = (0..8).map(|i| open(&good[..good.len() * i / 8])).collect();
    // Tensors are checked in no fixed order, so only the kind of the error is.
    for text in &messages {
        let whole = text.contains("the file ends after") || text.contains("end beyond the file's");
        assert!(whole && text.starts_with("broken.gguf: "), "{text}");
    }
}

#[test]
fn refuses_metadata_it_cannot_honour() {
    let good = small();
    let text = |key: &str, new: &str| open(&with(&good, value_at(&good, key) + 8, new.as_bytes()));
    let number = |key: &str, new: u32| open(&with(&good, value_at(&good, key), &new.to_le_bytes()));
    let rename = |key: &str, new: &str| open(&with(&good, at(&good, key), new.as_bytes()));
    let messages = [
        text("general.architecture", "mamba"),
        rename("llama.embedding_length", "llama.embedding_lengte"),
        number("llama.block_count", u32::MAX),
        number("llama.embedding_length", 0),
        number("llama.attention.head_count_kv", 3),
        number("llama.rope.dimension_count", 4),
        number("llama.rope.freq_base", f32::NAN.to_bits()),
        number("tokenizer.ggml.bos_token_id", 300),
        text("tokenizer.ggml.model", "llam"),
        text("tokenizer.ggml.pre", "smolla"),
        rename("tokenizer.ggml.merges", "tokenizer.ggml.mergez"),
        rename("tokenizer.ggml.token_type", "tokenizer.ggml.tokens_typ"),
        // The token "!" becomes another "\"".
        open(&with(&good, at(&good, "<|im_end|>") + "<|im_end|>".len() + 8, b"\"")),
        text("tokenizer.chat_template", "{% fox"),
    ];
    insta::assert_snapshot!(messages.join("\n"));
}

proptest! {
    /// Whatever a file says, reading it gives a model or an error.
    #[test]
    fn never_panics(changes in prop::collection::vec((0usize..16_000, any::<u8>()), 1..6), cut in 0usize..64) {
        thread_local!(static GOOD: Vec<u8> = small());
        let mut bytes = GOOD.with(Clone::clone);
        for (at, byte) in changes {
            bytes[at] = byte;
        }
        // Most cases keep their whole length.
        let length = if cut < 8 { bytes.len() * cut / 8 } else { bytes.len() };
        open(&bytes[..length]);
    }
}

#[test]
#[ignore = "needs the file named by ARTEL_SMOLLM2"]
fn reads_smollm2() {
    let path = smollm2();
    let source = Source::open(&path).unwrap();
    let config = source.config().unwrap();
    assert_eq!((config.family, config.vocab, config.hidden), (Family::Llama, 49152, 576));
    assert_eq!((config.layers, config.heads, config.kv_heads), (30, 9, 3));
    assert_eq!((config.bos, config.eos.as_slice()), (Some(1), [2].as_slice()));
    assert!(config.tied_embeddings);
    for info in config.tensors() {
        let (rows, cols) = info.rows_cols();
        assert!(source.matrix(&info.name, rows, cols).is_ok(), "{}", info.name);
    }
    let message = model::Message { role: "user".into(), content: "Hi".into() };
    assert_eq!(
        source.template().unwrap().render(&[message], true).unwrap(),
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face\
         <|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    );
    let folder = Path::new(&path).parent().unwrap();
    assert!(Source::open(folder).is_ok(), "a folder with one GGUF file is a model");
}
