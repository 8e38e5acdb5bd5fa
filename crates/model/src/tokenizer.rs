//! Text to tokens and back.

mod gguf;
mod pieces;
mod split;
mod train;

use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tokenizers::Tokenizer as Inner;

use crate::source::read_text;
use crate::{ChatTemplate, Error};

pub(crate) use gguf::{Kind, from_gguf, vocabulary};

/// A tokenizer: always the one that its model was trained with.
#[derive(Clone)]
pub struct Tokenizer {
    /// Finds special tokens in the text.
    parsing: Inner,
    /// Takes them for text like any other.
    plain: Inner,
    alphabet: Alphabet,
    /// Special tokens, sorted.
    special: Vec<u32>,
    vocab: usize,
    /// The `tokenizer.json` that this is, kept so that it can be written again unchanged.
    json: String,
    path: PathBuf,
}

/// How the text of a vocabulary entry stands for bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Alphabet {
    /// Each of 256 characters is a byte (GPT-2).
    Bytes,
    /// UTF-8 with `▁` for a space, and `<0x41>` for a byte (SentencePiece).
    Pieces,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// When it cannot be read or is not one.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Self::from_json(path, read_text(path)?)
    }

    /// A tokenizer from the content of a `tokenizer.json`; `path` is named in errors.
    ///
    /// # Errors
    /// When the content is not one.
    pub fn from_json(path: &Path, json: String) -> Result<Self, Error> {
        let problem = |problem: String| Error::Tokenizer { path: path.into(), problem };
        // The library panics on some files that are no tokenizer, instead of saying so.
        let mut parsing = catch_unwind(|| Inner::from_bytes(&json))
            .map_err(|_| problem("one of its parts is of no known kind; fetch it again".into()))?
            .map_err(|error| problem(error.to_string()))?;
        // Padding and truncation belong to the training runs that left them in the file.
        parsing.with_padding(None);
        parsing.with_truncation(None).map_err(|error| problem(error.to_string()))?;
        let mut special: Vec<u32> = parsing
            .get_added_tokens_decoder()
            .into_iter()
            .filter(|(_, token)| token.special)
            .map(|(id, _)| id)
            .collect();
        special.sort_unstable();
        let mut plain = parsing.clone();
        plain.set_encode_special_tokens(true);
        let value: Value = serde_json::from_str(&json)
            .map_err(|source| Error::Json { path: path.into(), source })?;
        let alphabet = if mentions(&value["decoder"], "ByteLevel") {
            Alphabet::Bytes
        } else {
            Alphabet::Pieces
        };
        let vocab = parsing.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);
        Ok(Tokenizer { parsing, plain, alphabet, special, vocab, json, path: path.into() })
    }

    /// The tokens of `text`. Special tokens written in it are recognised; none are added.
    ///
    /// # Errors
    /// When the vocabulary cannot express the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, Error> {
        self.run(&self.parsing, text)
    }

    /// The tokens of `text`, in which the names of special tokens are ordinary characters.
    ///
    /// For content from outside: no text can then end a turn or begin another.
    ///
    /// # Errors
    /// When the vocabulary cannot express the text.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>, Error> {
        let ids = self.run(&self.plain, text)?;
        // Not even a vocabulary made for it may merge plain characters into a special token.
        let reached = ids.iter().find(|id| self.is_special(**id));
        match reached {
            None => Ok(ids),
            Some(id) => Err(self.problem(format!("plain text became the special token {id}"))),
        }
    }

    fn run(&self, inner: &Inner, text: &str) -> Result<Vec<u32>, Error> {
        let encoding = inner.encode_fast(text, false);
        Ok(encoding.map_err(|error| self.problem(error.to_string()))?.get_ids().to_vec())
    }

    fn problem(&self, problem: String) -> Error {
        Error::Tokenizer { path: self.path.clone(), problem }
    }

    /// The text of the tokens without special ones; bytes that are not UTF-8 become `�`.
    pub fn decode(&self, ids: &[u32]) -> String {
        if self.alphabet == Alphabet::Pieces
            && let Ok(text) = self.parsing.decode(ids, true)
        {
            // These decoders also drop the space before the first word.
            return text;
        }
        let bytes: Vec<u8> = ids
            .iter()
            .filter(|id| !self.is_special(**id))
            .flat_map(|id| self.token_bytes(*id))
            .collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The bytes that a token stands for, a special token's name included; none if there is no
    /// such token. Concatenated over tokens they give the text.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        let Some(token) = self.token(id) else { return vec![] };
        let added = self.parsing.get_added_vocabulary().get_added_tokens_decoder();
        if added.contains_key(&id) {
            return token.into_bytes();
        }
        match self.alphabet {
            Alphabet::Bytes => token.chars().flat_map(byte_of).collect(),
            Alphabet::Pieces => match piece_byte(&token) {
                Some(byte) => vec![byte],
                None => token.replace('▁', " ").into_bytes(),
            },
        }
    }

    /// One more than the largest id.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// The id of a vocabulary entry, in the vocabulary's own spelling.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.parsing.token_to_id(token)
    }

    /// The vocabulary entry of an id, in the vocabulary's own spelling.
    pub fn token(&self, id: u32) -> Option<String> {
        self.parsing.id_to_token(id)
    }

    /// Whether the token is a mark rather than text.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.binary_search(&id).is_ok()
    }

    /// The marks, in their own spelling.
    pub fn special_tokens(&self) -> impl Iterator<Item = String> {
        self.special.iter().filter_map(|id| self.token(*id))
    }

    /// The content of the `tokenizer.json` that this is.
    pub fn json(&self) -> &str {
        &self.json
    }

    /// Writes `tokenizer.json`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        let io = |source| Error::Io { action: "write", path: path.into(), source };
        std::fs::write(path, &self.json).map_err(io)
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokenizer({}, {} tokens)", self.path.display(), self.vocab())
    }
}

/// Whether an object of this `type` is anywhere in the value.
fn mentions(value: &Value, kind: &str) -> bool {
    match value {
        Value::Array(list) => list.iter().any(|v| mentions(v, kind)),
        Value::Object(object) => {
            object.get("type").is_some_and(|t| t == kind)
                || object.values().any(|v| mentions(v, kind))
        }
        _ => false,
    }
}

/// The byte that a character of the byte-level alphabet stands for; other characters stand for
/// themselves.
///
/// Source: GPT-2 `encoder.py`, `bytes_to_unicode`: printable bytes are themselves, the others
/// follow one another from U+0100 on.
fn byte_of(character: char) -> Vec<u8> {
    let code = u32::from(character);
    let byte = match code {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => code as u8,
        0x100..=0x120 => (code - 0x100) as u8,
        0x121..=0x142 => (code - 0x121 + 0x7f) as u8,
        0x143 => 0xad,
        _ => return character.to_string().into_bytes(),
    };
    vec![byte]
}

fn piece_byte(token: &str) -> Option<u8> {
    u8::from_str_radix(token.strip_prefix("<0x")?.strip_suffix('>')?, 16).ok()
}

/// `tokenizer_config.json`, with which transformers loads the tokenizer and the template.
pub(crate) fn huggingface_config(
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    context: usize,
) -> Value {
    let known = |name: &str| tokenizer.id(name).map(|_| name.to_owned());
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": known(template.bos()),
        "eos_token": known(template.eos()),
        "add_bos_token": false,
        "add_eos_token": false,
        "clean_up_tokenization_spaces": false,
        "model_max_length": context,
        "chat_template": template.source(),
    })
}
