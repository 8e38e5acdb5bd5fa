use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use engine::Load;

use crate::app::Shared;
use crate::visit::Outcome;

/// Upper bounds of the histograms' buckets, in seconds.
const BOUNDS: [f64; 14] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];

/// What was answered since the start, for `/metrics`.
#[derive(Default)]
pub(crate) struct Metrics(Mutex<Counts>);

#[derive(Default)]
struct Counts {
    /// By endpoint and status.
    requests: BTreeMap<(String, u16), u64>,
    prompt_tokens: u64,
    completion_tokens: u64,
    cancelled: u64,
    first_token: Histogram,
    /// From one token to the next, mean of each answer.
    per_token: Histogram,
    whole: Histogram,
}

#[derive(Default)]
struct Histogram {
    buckets: [u64; BOUNDS.len()],
    count: u64,
    sum: f64,
}

impl Histogram {
    fn add(&mut self, time: Duration) {
        let seconds = time.as_secs_f64();
        self.count += 1;
        self.sum += seconds;
        if let Some(at) = BOUNDS.iter().position(|bound| seconds <= *bound) {
            self.buckets[at] += 1;
        }
    }

    fn write(&self, text: &mut String, name: &str, help: &str) {
        head(text, name, "histogram", help);
        let mut sum = 0;
        for (bound, count) in BOUNDS.iter().zip(self.buckets) {
            sum += count;
            line(text, &format!("{name}_bucket{{le=\"{bound}\"}}"), sum);
        }
        line(text, &format!("{name}_bucket{{le=\"+Inf\"}}"), self.count);
        line(text, &format!("{name}_sum"), self.sum);
        line(text, &format!("{name}_count"), self.count);
    }
}

impl Metrics {
    pub(crate) fn add(&self, outcome: &Outcome) {
        // Whatever panicked, the counts are still counts.
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let place = (outcome.endpoint.clone(), outcome.status);
        *counts.requests.entry(place).or_default() += 1;
        counts.prompt_tokens += outcome.prompt_tokens as u64;
        counts.completion_tokens += outcome.completion_tokens as u64;
        counts.cancelled += u64::from(outcome.cancelled);
        let Some(first) = outcome.first_token else { return };
        counts.first_token.add(first);
        counts.whole.add(outcome.time);
        if let Ok(later @ 1..) = u32::try_from(outcome.completion_tokens.saturating_sub(1)) {
            counts.per_token.add((outcome.time - first) / later);
        }
    }
}

/// The page for Prometheus: `artel_…`, and the names that gateways of vLLM read.
pub(crate) fn page(app: &Shared) -> String {
    let load = app.engine.load();
    let config = app.model().config();
    let limits = app.engine.limits();
    let page = limits.page_bytes(config);
    let limit = limits.kv_bytes.max(1);
    let counts = app.metrics.0.lock().unwrap_or_else(PoisonError::into_inner);
    let mut text = String::new();
    let model = format!("{{model_name={}}}", quoted(&app.model_name));
    let mut value = |name: &str, kind: &str, help: &str, value: f64| {
        head(&mut text, name, kind, help);
        let labels = if name.starts_with("vllm:") { model.as_str() } else { "" };
        line(&mut text, &format!("{name}{labels}"), value);
    };
    for (name, help, number) in gauges(app, &load) {
        value(name, "gauge", help, number);
    }
    for (name, help, number) in counters(&counts, &load) {
        value(name, "counter", help, number as f64);
    }
    head(&mut text, "vllm:cache_config_info", "gauge", "Size of the memory for keys and values");
    let blocks = limit / page;
    let size = model::Page::TOKENS;
    let info =
        format!("vllm:cache_config_info{{block_size=\"{size}\",num_gpu_blocks=\"{blocks}\"}}");
    line(&mut text, &info, 1);
    head(&mut text, "artel_requests_total", "counter", "Requests by endpoint and status");
    for ((endpoint, status), count) in &counts.requests {
        let labels = format!("{{endpoint={},status=\"{status}\"}}", quoted(endpoint));
        line(&mut text, &format!("artel_requests_total{labels}"), count);
    }
    for (histogram, name, help) in [
        (&counts.first_token, "time_to_first_token_seconds", "Time to an answer's first token"),
        (&counts.per_token, "time_per_output_token_seconds", "Time from one token to the next"),
        (&counts.whole, "request_seconds", "Time to an answer's end"),
    ] {
        histogram.write(&mut text, &format!("artel_{name}"), help);
    }
    text
}

/// Names, what they say, and values.
fn gauges(app: &Shared, load: &Load) -> Vec<(&'static str, &'static str, f64)> {
    let limit = app.engine.limits().kv_bytes.max(1) as f64;
    let (running, waiting) = (load.running as f64, load.queued as f64);
    vec![
        ("artel_requests_running", "Requests in the batch", running),
        ("artel_requests_waiting", "Requests that wait for a place in the batch", waiting),
        (
            "artel_kv_running_bytes",
            "Memory set aside for keys and values of running requests",
            load.running_bytes as f64,
        ),
        (
            "artel_kv_prefix_bytes",
            "Memory of prompts that were read, for those that begin alike",
            load.prefix_bytes as f64,
        ),
        ("artel_kv_limit_bytes", "Most memory for keys and values", limit),
        (
            "artel_weights_bytes",
            "Memory of the model's weights",
            app.model().decoder.bytes() as f64,
        ),
        ("vllm:num_requests_running", "Requests in the batch", running),
        ("vllm:num_requests_waiting", "Requests that wait for a place in the batch", waiting),
        (
            "vllm:kv_cache_usage_perc",
            "Share of the memory for keys and values that is set aside, 0 to 1",
            load.running_bytes as f64 / limit,
        ),
    ]
}

/// As [`gauges`].
fn counters(counts: &Counts, load: &Load) -> Vec<(&'static str, &'static str, u64)> {
    vec![
        ("artel_prompt_tokens_total", "Prompt tokens of the answers", counts.prompt_tokens),
        ("artel_generation_tokens_total", "Tokens of the answers", counts.completion_tokens),
        ("artel_read_tokens_total", "Prompt tokens that were read", load.read_tokens),
        (
            "artel_reused_tokens_total",
            "Prompt tokens that were kept from earlier prompts",
            load.reused_tokens,
        ),
        (
            "artel_drafted_tokens_total",
            "Tokens drafted from what followed the same tokens before",
            load.drafted_tokens,
        ),
        (
            "artel_accepted_tokens_total",
            "Drafted tokens that were right, and so were written at once",
            load.accepted_tokens,
        ),
        ("artel_cancelled_total", "Answers whose client left before their end", counts.cancelled),
        ("vllm:prompt_tokens_total", "Prompt tokens of the answers", counts.prompt_tokens),
        ("vllm:generation_tokens_total", "Tokens of the answers", counts.completion_tokens),
        (
            "vllm:prefix_cache_queries_total",
            "Prompt tokens that were looked up",
            load.read_tokens + load.reused_tokens,
        ),
        (
            "vllm:prefix_cache_hits_total",
            "Prompt tokens that were kept from earlier prompts",
            load.reused_tokens,
        ),
        ("vllm:spec_decode_num_drafts_total", "Drafts", load.drafts),
        ("vllm:spec_decode_num_draft_tokens_total", "Tokens drafted", load.drafted_tokens),
        (
            "vllm:spec_decode_num_accepted_tokens_total",
            "Drafted tokens that were right",
            load.accepted_tokens,
        ),
    ]
}

fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    writeln!(text, "# HELP {name} {help}.\n# TYPE {name} {kind}").expect("strings take any text");
}

fn line(text: &mut String, name: &str, value: impl std::fmt::Display) {
    writeln!(text, "{name} {value}").expect("strings take any text");
}

/// A label's value.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_hold_all_that_took_no_longer() {
        let mut histogram = Histogram::default();
        for milliseconds in [4, 5, 6, 700_000] {
            histogram.add(Duration::from_millis(milliseconds));
        }
        let mut text = String::new();
        histogram.write(&mut text, "x", "X");
        for line in ["x_bucket{le=\"0.005\"} 2", "x_bucket{le=\"0.01\"} 3", "x_count 4"] {
            assert!(text.contains(line), "{text}");
        }
        assert!(text.contains("x_bucket{le=\"300\"} 3\nx_bucket{le=\"+Inf\"} 4"), "{text}");
    }
}
