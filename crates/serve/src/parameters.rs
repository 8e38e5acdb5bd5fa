use engine::Sampling;
use model::ExpertSet;
use serde_json::{Value, json};

use crate::api_error::ApiError;
use crate::app::Shared;
use crate::fields::{Fields, wrong};
use crate::format::Format;
use crate::ids;
use crate::keys::Caller;

/// Most tokens to report beside each token.
pub(crate) const MOST_LOGPROBS: i64 = 20;
/// Most stop strings of a request; OpenAI allows 4.
const MOST_STOPS: usize = 16;

/// Fields that common clients send and that change nothing here: they concern accounts, billing
/// and storage of OpenAI's own service.
pub(crate) const IGNORED: [&str; 6] =
    ["user", "store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key"];

/// What both kinds of completions have in common.
pub(crate) struct Parameters {
    pub(crate) sampling: Sampling,
    /// None where the request does not say.
    pub(crate) max_tokens: Option<usize>,
    pub(crate) stop: Vec<String>,
    /// Choices for each prompt.
    pub(crate) n: usize,
    pub(crate) stream: Stream,
    /// The experts to use: those asked for, or all that are permitted.
    pub(crate) experts: ExpertSet,
    /// Report the gate weights of each token.
    pub(crate) token_experts: bool,
    /// What the text of the answer must be.
    pub(crate) format: Format,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stream {
    No,
    Yes,
    /// With the counts of tokens in a last chunk.
    WithUsage,
}

impl Parameters {
    pub(crate) fn read(
        fields: &mut Fields,
        app: &Shared,
        caller: &Caller,
    ) -> Result<Self, ApiError> {
        check_model(fields, app)?;
        fields.ignore(&IGNORED);
        let most_n = i64::try_from(app.limits.choices).unwrap_or(i64::MAX);
        let n = fields.integer("n", 1..=most_n)?.unwrap_or(1);
        Ok(Parameters {
            sampling: sampling(fields)?,
            max_tokens: max_tokens(fields)?,
            stop: stop(fields)?,
            n: usize::try_from(n).expect("checked to be positive"),
            stream: stream(fields)?,
            experts: experts(fields, app.expert_names(), caller.permitted)?,
            token_experts: token_experts(fields)?,
            format: Format::read(fields)?,
        })
    }

    /// For a single answer: the model, experts, temperature and top_p. The rest is the caller's.
    pub(crate) fn of_one(
        fields: &mut Fields,
        app: &Shared,
        caller: &Caller,
    ) -> Result<Self, ApiError> {
        check_model(fields, app)?;
        let neutral = Sampling::default();
        let sampling = Sampling {
            temperature: fields.number("temperature")?.unwrap_or(neutral.temperature),
            top_p: fields.number("top_p")?.unwrap_or(neutral.top_p),
            seed: seed(fields)?,
            ..neutral
        };
        Ok(Parameters {
            sampling,
            max_tokens: None,
            stop: Vec::new(),
            n: 1,
            stream: Stream::No,
            experts: experts(fields, app.expert_names(), caller.permitted)?,
            token_experts: false,
            format: Format::Free,
        })
    }
}

/// Refuses a request for another model.
pub(crate) fn check_model(fields: &mut Fields, app: &Shared) -> Result<(), ApiError> {
    match fields.text("model")? {
        Some(model) if model != app.model_name => {
            Err(ApiError::model_not_found(&model, &app.model_name))
        }
        _ => Ok(()),
    }
}

/// The ranges are the engine's to check.
fn sampling(fields: &mut Fields) -> Result<Sampling, ApiError> {
    let neutral = Sampling::default();
    let mut number = |name, neutral| Ok(fields.number(name)?.unwrap_or(neutral));
    Ok(Sampling {
        temperature: number("temperature", neutral.temperature)?,
        top_p: number("top_p", neutral.top_p)?,
        min_p: number("min_p", neutral.min_p)?,
        frequency_penalty: number("frequency_penalty", neutral.frequency_penalty)?,
        presence_penalty: number("presence_penalty", neutral.presence_penalty)?,
        repetition_penalty: number("repetition_penalty", neutral.repetition_penalty)?,
        top_k: top_k(fields)?,
        logit_bias: logit_bias(fields)?,
        seed: seed(fields)?,
    })
}

/// 0 for all; vLLM's -1 means all, too.
pub(crate) fn top_k(fields: &mut Fields) -> Result<usize, ApiError> {
    Ok(usize::try_from(fields.integer("top_k", -1..=i64::MAX)?.unwrap_or(0)).unwrap_or(0))
}

fn seed(fields: &mut Fields) -> Result<u64, ApiError> {
    let seed = fields.integer("seed", i64::MIN..=i64::MAX)?;
    Ok(seed.map_or_else(ids::unique, i64::cast_unsigned))
}

fn logit_bias(fields: &mut Fields) -> Result<Vec<(u32, f32)>, ApiError> {
    let Some(value) = fields.value("logit_bias") else { return Ok(Vec::new()) };
    let Value::Object(biases) = value else {
        return Err(wrong("logit_bias", "an object of token ids and numbers", &value));
    };
    let mut pairs = Vec::with_capacity(biases.len());
    for (token, bias) in biases {
        let Ok(id) = token.parse() else {
            let message = format!("logit_bias: {token:?} is not a token id");
            return Err(ApiError::invalid("logit_bias", message));
        };
        let Some(bias) = bias.as_f64() else {
            return Err(wrong(&format!("logit_bias.{token}"), "a number", &bias));
        };
        pairs.push((id, bias as f32));
    }
    Ok(pairs)
}

fn max_tokens(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    let old = fields.integer("max_tokens", 0..=i64::MAX)?;
    let new = fields.integer("max_completion_tokens", 0..=i64::MAX)?;
    if let (Some(old), Some(new)) = (old, new)
        && old != new
    {
        let message = format!("max_tokens is {old}, but max_completion_tokens is {new}: give one");
        return Err(ApiError::invalid("max_tokens", message));
    }
    Ok(new.or(old).and_then(|tokens| usize::try_from(tokens).ok()))
}

fn stop(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    let stop = match fields.value("stop") {
        None => Vec::new(),
        Some(Value::String(stop)) => vec![stop],
        Some(Value::Array(items)) => {
            let texts = items.into_iter().map(|item| match item {
                Value::String(stop) => Ok(stop),
                other => Err(wrong("stop", "a string or a list of strings", &other)),
            });
            texts.collect::<Result<_, _>>()?
        }
        Some(other) => return Err(wrong("stop", "a string or a list of strings", &other)),
    };
    if stop.len() > MOST_STOPS {
        let message = format!("stop has {} strings, allowed are {MOST_STOPS}", stop.len());
        return Err(ApiError::invalid("stop", message));
    }
    Ok(stop)
}

pub(crate) fn stream(fields: &mut Fields) -> Result<Stream, ApiError> {
    let stream = fields.flag("stream")?;
    let Some(options) = fields.value("stream_options") else {
        return Ok(if stream { Stream::Yes } else { Stream::No });
    };
    if !stream {
        return Err(ApiError::invalid("stream_options", "stream_options needs stream: true"));
    }
    let mut options = Fields::of("stream_options", options)?;
    let usage = options.flag("include_usage")?;
    options.unsupported(&[("include_obfuscation", &[json!(false)])])?;
    options.finish()?;
    Ok(if usage { Stream::WithUsage } else { Stream::Yes })
}

fn experts(
    fields: &mut Fields,
    names: &[String],
    permitted: ExpertSet,
) -> Result<ExpertSet, ApiError> {
    let Some(asked) = fields.texts("experts")? else { return Ok(permitted) };
    let mut experts = ExpertSet::NONE;
    for name in &asked {
        let Some(index) = names.iter().position(|known| known == name) else {
            let message = format!("the model has no expert {name:?}");
            return Err(ApiError::invalid("experts", message).with_code("unknown_expert"));
        };
        if !permitted.contains(index) {
            return Err(ApiError::forbidden(name));
        }
        experts = experts.with(index);
    }
    Ok(experts)
}

fn token_experts(fields: &mut Fields) -> Result<bool, ApiError> {
    let Some(value) = fields.value("artel") else { return Ok(false) };
    let mut artel = Fields::of("artel", value)?;
    let flag = artel.flag("token_experts")?;
    artel.finish()?;
    Ok(flag)
}
