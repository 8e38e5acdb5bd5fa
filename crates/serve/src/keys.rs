use std::sync::Arc;
use std::time::Instant;

use axum::http::HeaderMap;
use axum::http::header::{AUTHORIZATION, HOST, ORIGIN};
use model::ExpertSet;

use crate::allowance::Allowance;
use crate::api_error::ApiError;
use crate::visit::Visit;
use crate::{Error, Options};

/// Who may ask, and with which experts.
pub(crate) enum Keys {
    /// Everybody, with every expert. Where `loopback`, only under the name of this machine.
    Open {
        all: ExpertSet,
        loopback: bool,
    },
    Secrets(Vec<Arc<Secret>>),
}

pub(crate) struct Secret {
    name: String,
    hash: blake3::Hash,
    experts: ExpertSet,
    allowance: Allowance,
}

/// Who asks, and in which request.
#[derive(Clone)]
pub(crate) struct Caller {
    /// None where there are no keys.
    pub(crate) secret: Option<Arc<Secret>>,
    /// The experts that may be used.
    pub(crate) permitted: ExpertSet,
    pub(crate) visit: Visit,
}

impl Caller {
    /// Takes a request from the key's allowance.
    pub(crate) fn use_request(&self) -> Result<(), ApiError> {
        let Some(secret) = &self.secret else { return Ok(()) };
        secret.allowance.take_request(Instant::now()).map_err(ApiError::used_up)
    }

    /// Takes tokens from the key's allowance.
    pub(crate) fn use_tokens(&self, tokens: usize) {
        if let Some(secret) = &self.secret {
            secret.allowance.take_tokens(tokens, Instant::now());
        }
    }
}

impl Keys {
    pub(crate) fn new(options: &Options, names: &[String]) -> Result<Self, Error> {
        let all = ExpertSet::all(names.len());
        if options.keys.is_empty() {
            return Ok(Keys::Open { all, loopback: !options.open });
        }
        let mut secrets = Vec::with_capacity(options.keys.len());
        for key in &options.keys {
            let hash = blake3::Hash::from_hex(&key.hash)
                .map_err(|_| Error::KeyHash { key: key.name.clone() })?;
            let mut experts = ExpertSet::NONE;
            for expert in &key.experts {
                if expert == "*" {
                    experts = all;
                    continue;
                }
                let index = names.iter().position(|name| name == expert);
                experts = experts.with(index.ok_or_else(|| Error::KeyExpert {
                    key: key.name.clone(),
                    expert: expert.clone(),
                    known: if names.is_empty() { "none".into() } else { names.join(", ") },
                })?);
            }
            let limits = (key.requests_per_minute, key.tokens_per_minute);
            let allowance = Allowance::new(limits.0, limits.1, Instant::now());
            secrets.push(Arc::new(Secret { name: key.name.clone(), hash, experts, allowance }));
        }
        Ok(Keys::Secrets(secrets))
    }

    /// Who sends a request with these headers.
    pub(crate) fn caller(&self, headers: &HeaderMap, visit: Visit) -> Result<Caller, ApiError> {
        let secrets = match self {
            Keys::Open { all, loopback } => {
                if *loopback && !is_local(headers) {
                    return Err(ApiError::host());
                }
                return Ok(Caller { secret: None, permitted: *all, visit });
            }
            Keys::Secrets(secrets) => secrets,
        };
        let hash = blake3::hash(sent_secret(headers)?.as_bytes());
        // Hashes compare in constant time, and all are compared: time tells nothing of the keys.
        let mut found = None;
        for secret in secrets {
            if secret.hash == hash {
                found = Some(secret);
            }
        }
        let found = found.ok_or_else(|| ApiError::unauthorised("this API key is not known"))?;
        visit.note(|outcome| outcome.key = Some(found.name.clone()));
        Ok(Caller { secret: Some(Arc::clone(found)), permitted: found.experts, visit })
    }
}

/// The secret, as clients of OpenAI or of Anthropic send it.
fn sent_secret(headers: &HeaderMap) -> Result<&str, ApiError> {
    let no_bearer = || ApiError::unauthorised("the Authorization header is no Bearer key");
    if let Some(header) = headers.get(AUTHORIZATION) {
        let header = header.to_str().map_err(|_| no_bearer())?;
        let (scheme, secret) = header.split_once(' ').ok_or_else(no_bearer)?;
        return match scheme.eq_ignore_ascii_case("bearer") {
            true => Ok(secret.trim()),
            false => Err(no_bearer()),
        };
    }
    let header = headers.get("x-api-key").and_then(|header| header.to_str().ok());
    header.map(str::trim).ok_or_else(|| {
        ApiError::unauthorised("no API key: send the header `Authorization: Bearer KEY`")
    })
}

/// Whether the request was addressed to this machine by name, and comes from no page elsewhere. A
/// web page can make its own name resolve to 127.0.0.1 and would then read the answers (DNS
/// rebinding), or send requests from the browser of who visits it.
fn is_local(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let origin = text(ORIGIN).map(|origin| origin.split_once("://").map_or("", |(_, host)| host));
    [text(HOST), origin].into_iter().flatten().all(names_this_machine)
}

fn names_this_machine(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost")
        || name.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_names() {
        let check = |host: &str, expected| {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, host.parse().unwrap());
            assert_eq!(is_local(&headers), expected, "{host}");
            let mut headers = HeaderMap::new();
            headers.insert(ORIGIN, format!("http://{host}").parse().unwrap());
            assert_eq!(is_local(&headers), expected, "origin {host}");
        };
        check("localhost:8080", true);
        check("127.0.0.1", true);
        check("[::1]:8080", true);
        check("[::1]", true);
        check("evil.example:8080", false);
        check("127.0.0.1.evil.example", false);
        let mut headers = HeaderMap::new();
        headers.insert(ORIGIN, "null".parse().unwrap());
        assert!(!is_local(&headers));
    }
}
