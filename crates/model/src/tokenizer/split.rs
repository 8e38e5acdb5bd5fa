//! How text is cut into the words within which tokens are merged.
//!
//! **Source**: llama.cpp `llama-vocab.cpp`, for what the names mean; the models' own
//! `tokenizer.json`, for the patterns.

use serde_json::{Value, json};

/// One way to cut, as files of either layout name or describe it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Split {
    /// Values of `tokenizer.ggml.pre`; the first is written.
    names: &'static [&'static str],
    /// What is cut out one after the other.
    steps: &'static [Step],
    /// Whether GPT-2's pattern follows, the bytes' own.
    gpt2: bool,
    /// Whether a word that is a token is taken as it is, though no merges lead there.
    pub(super) ignore_merges: bool,
    /// Whether characters are composed before (NFC).
    pub(super) composes: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Step {
    Pattern(&'static str),
    /// Every digit on its own.
    Digits,
}

use Step::{Digits, Pattern};

const LLAMA3: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
const QWEN2: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
const GPT4O: &str = "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
const TEKKEN: &str = "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
const DEEPSEEK3: &str = "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
/// The letters of alphabets that have cases.
const DEEPSEEK_LETTERS: &str = "\\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\u{1f7d}ᾀ-ᾴᾶ-ᾼ\u{1fbe}ῂ-ῄῆ-ῌῐ-\u{1fd3}ῖ-\u{1fdb}ῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u{2126}ℨ\u{212a}-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+";
const DEEPSEEK_CJK: &str = "[一-龥ࠀ-一가-퟿]+";

static SPLITS: [Split; 10] = [
    Split {
        names: &[
            "gpt-2",
            "default",
            "phi-2",
            "mpt",
            "olmo",
            "jais",
            "jina-es",
            "jina-de",
            "jina-v2-es",
            "jina-v2-de",
            "exaone4",
            "mellum",
            "gigachat",
            "trillion",
            "granite-docling",
        ],
        steps: &[],
        gpt2: true,
        ignore_merges: false,
        composes: false,
    },
    Split {
        names: &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"],
        steps: &[Digits],
        gpt2: true,
        ignore_merges: false,
        composes: false,
    },
    Split {
        names: &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "smaug-bpe",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
        ],
        steps: &[Pattern(LLAMA3)],
        gpt2: false,
        ignore_merges: true,
        composes: false,
    },
    Split {
        names: &["chatglm-bpe", "glm4", "dbrx"],
        steps: &[Pattern(LLAMA3)],
        gpt2: false,
        ignore_merges: false,
        composes: false,
    },
    Split {
        names: &["qwen2", "deepseek-r1-qwen", "megrez", "kormo"],
        steps: &[Pattern(QWEN2)],
        gpt2: false,
        ignore_merges: false,
        composes: true,
    },
    Split {
        names: &["deepseek-llm"],
        steps: &[
            Pattern("[\\r\\n]"),
            Pattern(DEEPSEEK_LETTERS),
            Pattern("\\s?[!-/:-~！-／：-～‘-‟　-。]+"),
            Pattern("\\s+$"),
            Pattern(DEEPSEEK_CJK),
            Pattern("\\p{N}+"),
        ],
        gpt2: false,
        ignore_merges: false,
        composes: false,
    },
    Split {
        names: &["deepseek-coder"],
        steps: &[
            Pattern("[\\r\\n]"),
            Pattern("\\s?\\p{L}+"),
            Pattern("\\s?\\p{P}+"),
            Pattern(DEEPSEEK_CJK),
            Digits,
        ],
        gpt2: false,
        ignore_merges: false,
        composes: false,
    },
    Split {
        names: &["deepseek-v3", "hunyuan-dense"],
        steps: &[Pattern("\\p{N}{1,3}"), Pattern("[一-龥぀-ゟ゠-ヿ]+"), Pattern(DEEPSEEK3)],
        gpt2: false,
        ignore_merges: false,
        composes: false,
    },
    Split {
        names: &["gpt-4o", "llama4"],
        steps: &[Pattern(GPT4O)],
        gpt2: false,
        ignore_merges: false,
        composes: false,
    },
    Split {
        names: &["tekken"],
        steps: &[Pattern(TEKKEN)],
        gpt2: false,
        ignore_merges: true,
        composes: false,
    },
];

impl Split {
    /// By the value of `tokenizer.ggml.pre`.
    pub(super) fn named(name: &str) -> Option<&'static Split> {
        SPLITS.iter().find(|split| split.names.contains(&name))
    }

    pub(super) fn name(&self) -> &'static str {
        self.names[0]
    }

    /// As `tokenizer.json` says it.
    pub(super) fn pre_tokenizer(&self) -> Value {
        let bytes = json!({
            "type": "ByteLevel",
            "add_prefix_space": false,
            "trim_offsets": true,
            "use_regex": self.gpt2,
        });
        if self.steps.is_empty() {
            return bytes;
        }
        let steps = self.steps.iter().map(|step| match step {
            Digits => json!({ "type": "Digits", "individual_digits": true }),
            Pattern(pattern) => json!({
                "type": "Split",
                "pattern": { "Regex": pattern },
                "behavior": "Isolated",
                "invert": false,
            }),
        });
        let all: Vec<Value> = steps.chain([bytes]).collect();
        json!({ "type": "Sequence", "pretokenizers": all })
    }

    /// That of a `tokenizer.json`.
    pub(super) fn of(tokenizer: &Value) -> Option<&'static Split> {
        let mut found = tokenizer["pre_tokenizer"].clone();
        settle(&mut found);
        let ignores = tokenizer["model"]["ignore_merges"].as_bool().unwrap_or(false);
        let alike = || SPLITS.iter().filter(|split| split.pre_tokenizer() == found);
        // Where two differ in nothing else.
        alike().find(|split| split.ignore_merges == ignores).or(alike().next())
    }
}

/// Spells one way what `tokenizer.json` files spell several ways.
fn settle(value: &mut Value) {
    match value {
        Value::Array(list) => list.iter_mut().for_each(settle),
        Value::Object(object) => {
            if object.get("type").is_some_and(|t| t == "ByteLevel") {
                // Offsets are not used here, and GPT-2's pattern is the default.
                object.insert("trim_offsets".into(), true.into());
                object.entry("use_regex").or_insert(true.into());
            }
            object.values_mut().for_each(settle);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use tokenizers::pre_tokenizers::PreTokenizerWrapper;
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

    use super::*;

    #[test]
    fn splits_words_as_named() {
        let cases = [
            ("gpt-2", "I|'m|Ġ1234|Ġok|ĊĊĠ|Ġx"),
            ("smollm", "I|'m|Ġ|1|2|3|4|Ġok|ĊĊĠ|Ġx"),
            ("llama-bpe", "I|'m|Ġ|123|4|Ġok|ĊĊ|Ġ|Ġx"),
            ("chatglm-bpe", "I|'m|Ġ|123|4|Ġok|ĊĊ|Ġ|Ġx"),
            ("qwen2", "I|'m|Ġ|1|2|3|4|Ġok|ĊĊ|Ġ|Ġx"),
        ];
        for (name, expected) in cases {
            let split = Split::named(name).unwrap();
            let json = split.pre_tokenizer();
            let splitter: PreTokenizerWrapper = serde_json::from_value(json).unwrap();
            let mut text = PreTokenizedString::from("I'm 1234 ok\n\n  x");
            splitter.pre_tokenize(&mut text).unwrap();
            let splits = text.get_splits(OffsetReferential::Original, OffsetType::Byte);
            let words: Vec<&str> = splits.iter().map(|(word, _, _)| *word).collect();
            assert_eq!(words.join("|"), expected, "{name}");
        }
    }

    #[test]
    fn every_split_is_found_again() {
        for split in &SPLITS {
            let model = json!({ "ignore_merges": split.ignore_merges });
            let json = json!({ "pre_tokenizer": split.pre_tokenizer(), "model": model });
            assert_eq!(Split::of(&json), Some(split));
        }
        assert_eq!(Split::of(&json!({ "pre_tokenizer": null })), None);
    }
}
