use std::fmt;
use std::thread::sleep;
use std::time::Duration;

use model::Message;
use serde_json::{Value, json};

use crate::{Error, Sampling};

/// Seeds that every server takes: some hold them in 32 bits, with a sign.
const SEEDS: u64 = 1 << 31;
/// Attempts at one chat before giving up.
const ATTEMPTS: usize = 5;
/// Waits between attempts double from the first to the longest.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// A chat may take this long: large teachers on CPUs are slow.
const TIMEOUT: Duration = Duration::from_secs(600);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Most bytes of an answer that are read.
const ANSWER_BYTES: u64 = 16 << 20;

/// A server that speaks OpenAI's chat completions.
#[derive(Clone)]
pub struct Endpoint {
    url: String,
    model: String,
    api_key: Option<String>,
    agent: ureq::Agent,
    first_wait: Duration,
}

// The key stays out of logs.
impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("Endpoint").field("url", &self.url).field("model", &self.model).finish()
    }
}

/// Why an attempt failed, and whether another may help.
enum Failure {
    /// Worth another attempt, after the wait the server asked for.
    Passing {
        problem: String,
        wait: Option<Duration>,
    },
    Final(Error),
}

impl Endpoint {
    /// `base_url` ends where `/chat/completions` begins, as in `http://gateway:8000/v1`.
    /// Proxies in the environment are not used, redirects are not followed.
    ///
    /// # Errors
    /// The address is not `http(s)://…`, or holds a password, which errors would show.
    pub fn new(base_url: &str, model: &str, api_key: Option<String>) -> Result<Self, Error> {
        let refuse = |problem| {
            // Whatever stands before an @ may be a password.
            let url = base_url.rsplit('@').next().unwrap_or_default().to_owned();
            Err(Error::EndpointUrl { url, problem })
        };
        let rest = base_url.strip_prefix("http://").or_else(|| base_url.strip_prefix("https://"));
        match rest.map(|rest| rest.split('/').next().unwrap_or_default()) {
            None => return refuse("it must start with http:// or https://"),
            Some("") => return refuse("it names no host"),
            Some(host) if host.contains('@') => {
                return refuse("a user or password in it would show in messages: use the API key");
            }
            Some(_) => {}
        }
        let agent = ureq::Agent::config_builder()
            .proxy(None)
            .max_redirects(0)
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_global(Some(TIMEOUT))
            .build()
            .new_agent();
        Ok(Endpoint {
            url: format!("{}/chat/completions", base_url.trim_end_matches('/')),
            model: model.to_owned(),
            api_key,
            agent,
            first_wait: FIRST_WAIT,
        })
    }

    /// The model's name at the endpoint.
    pub fn model(&self) -> &str {
        &self.model
    }

    pub(crate) fn chat(
        &self,
        messages: &[Message],
        sampling: &Sampling,
        max_tokens: usize,
    ) -> Result<String, Error> {
        let body = self.body(messages, sampling, max_tokens);
        let mut wait = self.first_wait;
        let mut last = String::new();
        for attempt in 1..=ATTEMPTS {
            match self.attempt(&body) {
                Ok(text) => return Ok(text),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Passing { problem, wait: asked }) => {
                    tracing::warn!(url = self.url, attempt, problem, "no answer from the teacher");
                    last = problem;
                    if attempt < ATTEMPTS {
                        sleep(asked.unwrap_or(wait).min(LONGEST_WAIT));
                        wait *= 2;
                    }
                }
            }
        }
        Err(Error::Endpoint { url: self.url.clone(), attempts: ATTEMPTS, problem: last })
    }

    fn body(&self, messages: &[Message], sampling: &Sampling, max_tokens: usize) -> Value {
        let mut body = json!({
            "model": self.model,
            "messages": messages,
            "max_tokens": max_tokens,
            "temperature": sampling.temperature,
            "seed": sampling.seed % SEEDS,
        });
        // Parameters beyond these are sent only when used: not every server knows them.
        let neutral = Sampling::default();
        let mut put = |name: &str, used: bool, value: Value| {
            if used {
                body[name] = value;
            }
        };
        put("top_p", sampling.top_p != neutral.top_p, sampling.top_p.into());
        put("top_k", sampling.top_k != neutral.top_k, sampling.top_k.into());
        put("min_p", sampling.min_p != neutral.min_p, sampling.min_p.into());
        let frequency = sampling.frequency_penalty;
        put("frequency_penalty", frequency != neutral.frequency_penalty, frequency.into());
        let presence = sampling.presence_penalty;
        put("presence_penalty", presence != neutral.presence_penalty, presence.into());
        let repetition = sampling.repetition_penalty;
        put("repetition_penalty", repetition != neutral.repetition_penalty, repetition.into());
        let bias = sampling.logit_bias.iter().map(|(id, bias)| (id.to_string(), json!(bias)));
        put("logit_bias", !sampling.logit_bias.is_empty(), Value::Object(bias.collect()));
        body
    }

    fn attempt(&self, body: &Value) -> Result<String, Failure> {
        let mut request = self.agent.post(&self.url);
        if let Some(key) = &self.api_key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let mut response = request.send_json(body).map_err(|error| self.failure(error))?;
        let status = response.status().as_u16();
        let wait = response
            .headers()
            .get("retry-after")
            .and_then(|value| value.to_str().ok()?.trim().parse().ok())
            .map(Duration::from_secs);
        let text = response
            .body_mut()
            .with_config()
            .limit(ANSWER_BYTES)
            .read_to_string()
            .map_err(|error| self.failure(error))?;
        match status {
            200..=299 => self.content(&text).map_err(Failure::Final),
            408 | 429 | 500.. => {
                let problem = format!("status {status}: {}", self.message(&text));
                Err(Failure::Passing { problem, wait })
            }
            _ => Err(Failure::Final(Error::EndpointStatus {
                url: self.url.clone(),
                status,
                message: self.message(&text),
            })),
        }
    }

    fn content(&self, text: &str) -> Result<String, Error> {
        let refuse = |problem| Error::EndpointAnswer { url: self.url.clone(), problem };
        let answer: Value =
            serde_json::from_str(text).map_err(|error| refuse(format!("not JSON: {error}")))?;
        let content = &answer["choices"][0]["message"]["content"];
        match content.as_str() {
            Some(content) => Ok(content.to_owned()),
            None => Err(refuse(format!("no text in choices[0].message: {}", self.message(text)))),
        }
    }

    fn failure(&self, error: ureq::Error) -> Failure {
        use ureq::Error as E;
        let passing = matches!(
            error,
            E::Io(_) | E::Timeout(_) | E::HostNotFound | E::ConnectionFailed | E::Protocol(_)
        );
        let problem = self.redact(&error.to_string());
        if passing {
            return Failure::Passing { problem, wait: None };
        }
        Failure::Final(Error::Endpoint { url: self.url.clone(), attempts: 1, problem })
    }

    /// What the server says of an error, on one line, shortened.
    fn message(&self, text: &str) -> String {
        let parsed: Option<Value> = serde_json::from_str(text).ok();
        let said = parsed.as_ref().and_then(|value| {
            let error = value.get("error")?;
            error.get("message").unwrap_or(error).as_str()
        });
        let line: Vec<&str> = said.unwrap_or(text).split_whitespace().collect();
        let line = self.redact(&line.join(" "));
        match line.char_indices().nth(300) {
            Some((end, _)) => format!("{} …", &line[..end]),
            None if line.is_empty() => "(no message)".to_owned(),
            None => line,
        }
    }

    /// Servers like to repeat a key they do not know.
    fn redact(&self, text: &str) -> String {
        match &self.api_key {
            Some(key) if !key.is_empty() => text.replace(key.as_str(), "[API key]"),
            _ => text.to_owned(),
        }
    }
}
