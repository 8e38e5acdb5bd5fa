use axum::http::HeaderMap;
use axum::http::header::{AUTHORIZATION, HOST, ORIGIN};
use model::ExpertSet;

use crate::api_error::ApiError;
use crate::{Error, Options};

/// Who may ask, and with which experts.
pub(crate) enum Keys {
    /// Everybody, with every expert. Where `loopback`, only under the name of this machine.
    Open {
        all: ExpertSet,
        loopback: bool,
    },
    Secrets(Vec<(blake3::Hash, ExpertSet)>),
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
            secrets.push((hash, experts));
        }
        Ok(Keys::Secrets(secrets))
    }

    /// The experts that a request with these headers may use.
    pub(crate) fn permitted(&self, headers: &HeaderMap) -> Result<ExpertSet, ApiError> {
        let secrets = match self {
            Keys::Open { all, loopback } => {
                if *loopback && !is_local(headers) {
                    return Err(ApiError::host());
                }
                return Ok(*all);
            }
            Keys::Secrets(secrets) => secrets,
        };
        let header = headers.get(AUTHORIZATION).ok_or_else(|| {
            ApiError::unauthorised("no API key: send the header `Authorization: Bearer KEY`")
        })?;
        let (scheme, secret) =
            header.to_str().ok().and_then(|header| header.split_once(' ')).ok_or_else(|| {
                ApiError::unauthorised("the Authorization header is no Bearer key")
            })?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(ApiError::unauthorised("the Authorization header is no Bearer key"));
        }
        let hash = blake3::hash(secret.trim().as_bytes());
        // Hashes compare in constant time, and all are compared: time tells nothing of the keys.
        let mut found = None;
        for (known, experts) in secrets {
            if *known == hash {
                found = Some(*experts);
            }
        }
        found.ok_or_else(|| ApiError::unauthorised("this API key is not known"))
    }
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
