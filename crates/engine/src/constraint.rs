//! Answers that a grammar describes: which tokens may come next.

use std::fmt;
use std::sync::{Arc, OnceLock};

use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, SimpleVob, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use model::Model;

use crate::Error;

/// Most bytes of a grammar.
const MAX_GRAMMAR: usize = 256 << 10;
/// States that the lexer of one grammar may take, of 1 to 2 kB each.
const MAX_LEXER_STATES: usize = 20_000;
/// The trie of tokens holds no longer ones; nobody misses them.
const LONGEST_TOKEN: usize = 1000;

/// The grammars of one model: what they share is made when the first comes.
#[derive(Default)]
pub(crate) struct Grammars(OnceLock<Result<Arc<ParserFactory>, String>>);

/// What the text of an answer must be. Clones go their own ways.
pub struct Constraint {
    matcher: Matcher,
    /// The tokens that may come next, once they are computed.
    allowed: Option<Result<SimpleVob, String>>,
}

impl Grammars {
    /// Reads a grammar, in the dialect of Lark that `llguidance` reads.
    ///
    /// # Errors
    /// A grammar that is too long, wrong, or takes too much work; a model without an end token.
    pub(crate) fn constraint(&self, model: &Model, grammar: &str) -> Result<Constraint, Error> {
        let error = |problem: String| Error::Grammar { problem };
        if grammar.len() > MAX_GRAMMAR {
            let found = grammar.len();
            return Err(error(format!("{found} bytes long, the limit is {MAX_GRAMMAR}")));
        }
        let factory = self.0.get_or_init(|| factory(model).map(Arc::new));
        let factory = factory.as_ref().map_err(|problem| error(problem.clone()))?;
        let parser = factory.create_parser(TopLevelGrammar::from_lark(grammar.to_owned()));
        let mut matcher = Matcher::new(parser);
        match matcher.get_error() {
            Some(problem) => Err(error(first_line(&problem))),
            // Whatever is wrong shows before the request waits for its turn.
            None => {
                let allowed = matcher.compute_mask().map_err(|p| error(first_line(&p.to_string())));
                Ok(Constraint { matcher, allowed: Some(Ok(allowed?)) })
            }
        }
    }
}

/// The rest of a message shows the grammar and what was written so far.
fn first_line(problem: &str) -> String {
    problem.lines().next().unwrap_or_default().trim_end_matches(':').to_owned()
}

fn factory(model: &Model) -> Result<ParserFactory, String> {
    let (config, tokenizer) = (model.config(), &model.tokenizer);
    let Some(&end) = config.eos.first() else {
        return Err("the model has no token that ends a text".to_owned());
    };
    let vocab = u32::try_from(config.vocab).map_err(|error| error.to_string())?;
    let word = |id: u32| {
        let bytes = tokenizer.token_bytes(id);
        match tokenizer.is_special(id) {
            _ if bytes.len() > LONGEST_TOKEN => Vec::new(),
            // A mark is no text: no grammar of text allows it.
            true => [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes.as_slice()].concat(),
            false => bytes,
        }
    };
    let words: Vec<Vec<u8>> = (0..vocab).map(word).collect();
    let trie = TokTrie::from(&TokRxInfo::new(vocab, end), &words).with_eos_tokens(&config.eos);
    let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
    let mut factory = ParserFactory::new_simple(&environment).map_err(|error| error.to_string())?;
    factory.quiet();
    let limits = ParserLimits {
        max_lexer_states: MAX_LEXER_STATES,
        verbose_errors: false,
        ..ParserLimits::default()
    };
    *factory.limits_mut() = limits;
    Ok(factory)
}

impl Constraint {
    pub(crate) fn is_ready(&self) -> bool {
        self.allowed.is_some()
    }

    /// Computes which tokens may come next, unless that is known. Takes up to some milliseconds,
    /// so it is done beside the forward pass.
    pub(crate) fn prepare(&mut self) {
        if self.allowed.is_none() {
            let allowed = self.matcher.compute_mask_or_eos();
            self.allowed = Some(allowed.map_err(|problem| first_line(&problem.to_string())));
        }
    }

    /// Forbids in `logits` `[vocab]` the tokens that may not come next.
    ///
    /// # Errors
    /// The grammar took too much work.
    pub(crate) fn apply(&mut self, logits: &mut [f32]) -> Result<(), String> {
        self.prepare();
        let allowed = self.allowed.as_ref().expect("it was prepared").as_ref();
        let allowed = allowed.map_err(Clone::clone)?;
        for (id, logit) in (0u32..).zip(logits) {
            if !allowed.is_allowed(id) {
                *logit = f32::NEG_INFINITY;
            }
        }
        Ok(())
    }

    /// Goes on behind a token; true where nothing may follow.
    ///
    /// # Errors
    /// The token was not allowed, or the grammar took too much work.
    pub(crate) fn take(&mut self, token: u32) -> Result<bool, String> {
        self.allowed = None;
        self.matcher.consume_token(token).map_err(|problem| first_line(&problem.to_string()))?;
        Ok(self.matcher.is_stopped())
    }
}

impl Clone for Constraint {
    fn clone(&self) -> Self {
        Constraint { matcher: self.matcher.deep_clone(), allowed: self.allowed.clone() }
    }
}

impl fmt::Debug for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("Constraint").finish_non_exhaustive()
    }
}
