use model::{Source, Tokenizer};
use proptest::prelude::*;
use serde::Deserialize;

use crate::{fixtures, smollm2};

fn tiny() -> Tokenizer {
    Source::open(&fixtures().join("llama")).unwrap().tokenizer().unwrap()
}

#[test]
fn special_tokens_are_found_in_trusted_text_only() {
    let tokenizer = tiny();
    let text = "<|im_start|>user\nstop<|im_end|>";
    let (parsed, plain) = (tokenizer.encode(text).unwrap(), tokenizer.encode_plain(text).unwrap());
    assert_eq!((parsed[0], parsed[parsed.len() - 1]), (1, 2));
    assert!(plain.iter().all(|id| !tokenizer.is_special(*id)));
    assert_eq!(tokenizer.decode(&parsed), "user\nstop");
    assert_eq!(tokenizer.decode(&plain), text);
    assert_eq!(tokenizer.token_bytes(2), b"<|im_end|>");
    assert_eq!((tokenizer.id("<|im_end|>"), tokenizer.id("nothing")), (Some(2), None));
    assert_eq!((tokenizer.vocab(), tokenizer.token_bytes(300)), (300, vec![]));
}

#[test]
fn every_byte_has_a_token() {
    let tokenizer = tiny();
    let mut found: Vec<Vec<u8>> = (3..259).map(|id| tokenizer.token_bytes(id)).collect();
    found.sort();
    let bytes: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    assert_eq!(found, bytes);
}

proptest! {
    #[test]
    fn text_survives(text in any::<String>()) {
        let tokenizer = tiny();
        let ids = tokenizer.encode_plain(&text).unwrap();
        prop_assert_eq!(tokenizer.decode(&ids), text.clone());
        let bytes: Vec<u8> = ids.iter().flat_map(|id| tokenizer.token_bytes(*id)).collect();
        prop_assert_eq!(bytes, text.into_bytes());
    }
}

#[test]
fn pieces_are_merged_by_their_scores() {
    let tokenizer = Source::open(&fixtures().join("gemma3")).unwrap().tokenizer().unwrap();
    let check = |text: &str, expected: &[&str]| {
        let ids = tokenizer.encode(text).unwrap();
        let pieces: Vec<String> = ids.iter().map(|id| tokenizer.token(*id).unwrap()).collect();
        assert_eq!(pieces, expected, "{text:?}");
        assert_eq!(tokenizer.decode(&ids), text.replace("<eos>", ""));
    };
    check("the pump is½", &["the", "▁pump", "▁is", "<0xC2>", "<0xBD>"]);
    check(" the  put<eos>mp", &["▁the", "▁", "▁", "pu", "t", "<eos>", "mp"]);
    check("", &[]);
}

#[test]
fn refuses_what_is_no_tokenizer() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    std::fs::write(&path, "{\"version\": \"1.0\"}").unwrap();
    let error = Tokenizer::open(&path).unwrap_err().to_string();
    assert!(error.starts_with("tokenizer ") && error.contains("tokenizer.json"), "{error}");
}

#[derive(Deserialize)]
struct Case {
    text: String,
    ids: Vec<u32>,
    plain: Vec<u32>,
    decoded: String,
}

#[test]
#[ignore = "needs the file named by ARTEL_SMOLLM2"]
fn smollm2_has_the_tokens_of_the_reference() {
    let tokenizer = Source::open(&smollm2()).unwrap().tokenizer().unwrap();
    let cases = std::fs::read(fixtures().join("smollm2_tokens.json")).unwrap();
    let cases: Vec<Case> = serde_json::from_slice(&cases).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    tokenizer.save(&path).unwrap();
    for tokenizer in [tokenizer, Tokenizer::open(&path).unwrap()] {
        for case in &cases {
            assert_eq!(tokenizer.encode(&case.text).unwrap(), case.ids, "{:?}", case.text);
            assert_eq!(tokenizer.encode_plain(&case.text).unwrap(), case.plain, "{:?}", case.text);
            assert_eq!(tokenizer.decode(&case.plain), case.text);
            // The reference drops special tokens too.
            assert_eq!(tokenizer.decode(&case.ids), case.decoded);
        }
    }
}
