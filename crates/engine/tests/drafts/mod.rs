//! With drafts everything is as without.

use engine::{Completion, Engine, Finish, Limits, Request, Sampling};
use kernel::Pool;
use model::ExpertSet;

use crate::{check_answers, everything, request, settled, tiny};

fn start(lookup: usize) -> Engine {
    Engine::start(tiny::model(), Pool::new(2), Limits { lookup, ..Limits::default() })
}

/// All that a request may learn of, and how it ended.
pub(crate) fn all(completion: &Completion) -> impl PartialEq + std::fmt::Debug + use<> {
    let top = completion.tokens.iter().flat_map(|token| token.top.clone());
    let top: Vec<(u32, u32)> = top.map(|(id, logprob)| (id, logprob.to_bits())).collect();
    (everything(completion), top, completion.reason, completion.completion_tokens)
}

/// Requests of every kind, many of whose answers repeat themselves or the prompt.
fn requests(engine: &Engine) -> Vec<Request> {
    let cool = |seed| Sampling { temperature: 0.3, seed, ..Sampling::default() };
    let base = Request { max_tokens: 90, ..request("ab ab ab the pump the pump") };
    let sampled = |sampling: Sampling| Request { sampling, logprobs: Some(2), ..base.clone() };
    let mut requests = vec![
        base.clone(),
        sampled(Sampling::greedy()),
        sampled(Sampling { seed: 5, ..Sampling::default() }),
        sampled(Sampling { repetition_penalty: 1.1, ..cool(1) }),
        sampled(Sampling { frequency_penalty: 0.5, presence_penalty: 0.2, ..cool(2) }),
        sampled(Sampling { top_k: 3, top_p: 0.9, min_p: 0.05, ..cool(3) }),
        sampled(Sampling { logit_bias: vec![(97, 4.0), (98, 4.0)], ..cool(4) }),
        // The end of the text is likely, and stands in the prompt behind what is written.
        Request {
            prompt: [97, 98, 257].repeat(6),
            ..sampled(Sampling {
                logit_bias: vec![(97, 30.0), (98, 30.0), (257, 28.0)],
                ..Sampling::default()
            })
        },
        Request { echo: true, logprobs: Some(1), ..base.clone() },
    ];
    // One prompt and several answers.
    requests.extend((0..4).map(|seed| sampled(cool(seed))));
    requests.extend((1..9).map(|max_tokens| Request { max_tokens, ..base.clone() }));
    requests.extend((0..4).map(|index| Request {
        experts: [ExpertSet::single(0), ExpertSet::single(1), ExpertSet::all(2), ExpertSet::NONE]
            [index],
        ..base.clone()
    }));
    for grammar in ["start: (\"abc\" | \"abd\"){20}", "start: /(one, two, )+/ \"end\""] {
        for seed in 0..3 {
            let constraint = Some(engine.constraint(grammar).unwrap());
            let sampling = Sampling { seed, ..Sampling::default() };
            requests.push(Request { constraint, sampling, ..base.clone() });
        }
    }
    let text = start(0).generate(base.clone()).unwrap().text;
    for from in [20, 33, 47] {
        let stop: String = text.chars().skip(from).take(4).collect();
        requests.push(Request { stop: vec![stop], ..base.clone() });
    }
    requests
}

#[test]
fn answers_are_the_same_with_drafts_and_without() {
    let plain = start(0);
    let requests = requests(&plain);
    let expected: Vec<Completion> =
        requests.iter().map(|request| plain.generate(request.clone()).unwrap()).collect();
    let ends = |reason| expected.iter().filter(|completion| completion.reason == reason).count();
    assert!(ends(Finish::Length) > 9 && ends(Finish::StopString(0)) == 3 && ends(Finish::Stop) > 3);
    assert_eq!(plain.load().drafted_tokens, 0);
    for lookup in [1, 3, 16] {
        let engine = start(lookup);
        let load = check_answers(&engine, &requests, &expected, &lookup.to_string());
        let (drafted, right) = (load.drafted_tokens, load.accepted_tokens);
        assert!(right > 100 && right < drafted, "{lookup}: {right} of {drafted} were right");
        // Written are the tokens and the marks of their ends.
        let written: u64 = 2 * expected.iter().map(|c| c.completion_tokens as u64).sum::<u64>();
        assert!(load.written_tokens >= written);
    }
}

#[test]
fn drafts_save_steps() {
    // "a" alone may be written, so all drafts but the first are right.
    let engine = start(16);
    let sampling = Sampling { logit_bias: vec![(97, 100.0)], ..Sampling::greedy() };
    let request = Request { sampling, max_tokens: 200, ..request("the") };
    let completion = engine.generate(request).unwrap();
    assert_eq!(completion.text, "a".repeat(200));
    let load = settled(&engine);
    assert_eq!(load.accepted_tokens, load.drafted_tokens);
    // Four steps until drafts are as long as they become.
    assert!(load.drafts < 20 && load.accepted_tokens > 180, "{load:?}");
}
