use kernel::quant::Format;
use model::Source;

use crate::{copy, fixtures, message};

const NAME: &str = "model.layers.0.self_attn.q_proj.weight";

#[test]
fn refuses_wrong_shapes_and_missing_tensors() {
    let folder = fixtures().join("granitemoeshared");
    let source = Source::open(&folder).unwrap();
    let experts = "model.layers.0.block_sparse_moe.input_linear.weight";
    assert_eq!(source.matrix(experts, 3 * 32, 32).unwrap().rows, 96);
    let messages = [
        message(source.matrix(NAME, 32, 31), &folder),
        message(source.matrix(experts, 3, 32), &folder),
        message(source.matrix(experts, 2 * 32, 32), &folder),
        message(source.vector(NAME, 1024), &folder),
        message(source.vector("model.norm.weight", 31), &folder),
        message(source.matrix("model.layers.9.self_attn.q_proj.weight", 32, 32), &fixtures()),
    ];
    insta::assert_snapshot!(messages.join("\n"));
}

/// Opens the fixture after its `model.safetensors` was changed.
fn changed(change: impl Fn(String) -> String) -> String {
    let folder = copy("llama");
    let path = folder.path().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header = change(String::from_utf8(bytes[8..8 + length].to_vec()).unwrap());
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(&bytes[8 + length..]);
    std::fs::write(&path, out).unwrap();
    let opened = Source::open(folder.path());
    message(opened.and_then(|s| s.matrix(NAME, 32, 32)), folder.path())
}

/// The data offsets of the tensor `NAME`, as the header has them.
fn offsets(header: &str) -> String {
    let json: serde_json::Value = serde_json::from_str(header).unwrap();
    json[NAME]["data_offsets"].to_string()
}

#[test]
fn refuses_impossible_headers() {
    let messages = [
        changed(|h| h.replace(&offsets(&h), "[0,18446744073709551615]")),
        changed(|h| h.replace(&offsets(&h), "[4096,0]")),
        changed(|h| h.replace(&offsets(&h), "[0,4096]")),
        changed(|h| h.replacen("[32,32]", "[32,33]", 1)),
        changed(|h| h.replacen("[32,32]", "[4294967296,4294967296]", 1)),
        changed(|h| h.replacen("\"F32\"", "\"F33\"", 1)),
        changed(|h| h.replace("\"F32\"", "\"I32\"")),
        changed(|_| "{".into()),
    ];
    insta::assert_snapshot!(messages.join("\n"));
}

#[test]
fn refuses_truncated_files() {
    let whole = std::fs::read(fixtures().join("llama/model.safetensors")).unwrap();
    let mut messages = vec![];
    for eighth in 0..8 {
        let folder = copy("llama");
        let part = &whole[..whole.len() * eighth / 8];
        std::fs::write(folder.path().join("model.safetensors"), part).unwrap();
        messages.push(message(Source::open(folder.path()), folder.path()));
    }
    let mut absurd = whole;
    absurd[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let folder = copy("llama");
    std::fs::write(folder.path().join("model.safetensors"), absurd).unwrap();
    messages.push(message(Source::open(folder.path()), folder.path()));
    insta::assert_snapshot!(messages.join("\n"));
}

/// Cuts the fixture into two files with an index, which says where `NAME` is.
fn sharded(place: &str) -> tempfile::TempDir {
    let folder = copy("llama");
    let source = Source::open(folder.path()).unwrap();
    let mut shards = [vec![], vec![]];
    let mut map = serde_json::Map::new();
    for (index, info) in source.config().unwrap().tensors().into_iter().enumerate() {
        let (rows, cols) = info.rows_cols();
        let matrix = source.matrix(&info.name, rows, cols).unwrap();
        assert_eq!(matrix.format, Format::F32);
        map.insert(info.name.clone(), format!("model-{}.safetensors", index % 2).into());
        shards[index % 2].push((info.name, info.shape, matrix.bytes));
    }
    if !place.is_empty() {
        map.insert(NAME.into(), place.into());
    }
    for (index, tensors) in shards.iter().enumerate() {
        let views = tensors.iter().map(|(name, shape, bytes)| {
            let dtype = safetensors::tensor::Dtype::F32;
            let view = safetensors::tensor::TensorView::new(dtype, shape.clone(), bytes);
            (name.as_str(), view.unwrap())
        });
        let bytes = safetensors::serialize(views, None).unwrap();
        std::fs::write(folder.path().join(format!("model-{index}.safetensors")), bytes).unwrap();
    }
    std::fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    let index = serde_json::json!({ "metadata": {}, "weight_map": map });
    let path = folder.path().join("model.safetensors.index.json");
    std::fs::write(path, index.to_string()).unwrap();
    folder
}

#[test]
fn reads_several_files_by_their_index() {
    let folder = sharded("");
    let whole = Source::open(&fixtures().join("llama")).unwrap();
    let parts = Source::open(folder.path()).unwrap();
    for info in whole.config().unwrap().tensors() {
        let (rows, cols) = info.rows_cols();
        let get = |s: &Source| s.matrix(&info.name, rows, cols).unwrap();
        assert_eq!(get(&whole), get(&parts), "{}", info.name);
    }
}

#[test]
fn refuses_an_index_that_leaves_the_folder_or_names_no_file() {
    let outside = sharded("../other/model.safetensors");
    let missing = sharded("model-9.safetensors");
    let messages = [
        message(Source::open(outside.path()), outside.path()),
        message(Source::open(missing.path()), missing.path()),
    ];
    insta::assert_snapshot!(messages.join("\n"));
}
