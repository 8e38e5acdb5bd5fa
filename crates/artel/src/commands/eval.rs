//! `artel eval`: what the experts know, and what the base forgot.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use eval::{HeldOutText, Question, Subject, Writing};
use kernel::{Pool, Precision};
use model::{ExpertSet, Model};
use serde_json::{Value, json};
use store::{Draft, Kind};

use crate::Setup;
use crate::config::{Department, check_name};
use crate::progress::Progress;
use crate::stages::{Stage, Stages};

const REPORT: &str = "report.json";
const PAGE: &str = "report.html";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Another model under models/ to compare with the base: a tuned one, for instance [default: the
    /// joined one]
    #[arg(long)]
    model: Option<String>,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args, setup: &Setup) -> Result<()> {
    let config = setup.config()?;
    let stages = Stages::new(&config, setup);
    let stage = match args.model.as_deref() {
        Some(name) if name != config.name => {
            check_name("--model", name)?;
            ensure!(
                name != config.base_name(),
                "{name} is the base, which others are compared with"
            );
            Stage::EvalModel(name.into())
        }
        _ => Stage::Eval,
    };
    let done = stages.perform(&stage)?;
    super::run::tell(&stages, &stage, &done);
    let (_, name) = stages.target(&stage);
    if args.json {
        println!("{}", read_report(&stages, &name)?.json().trim_end());
        return Ok(());
    }
    print_table(&stages, &name)
}

/// The finished report.
pub(crate) fn read_report(stages: &Stages, name: &str) -> Result<eval::Report> {
    let artifact = stages.workspace.open(Kind::Report, name)?;
    let path = artifact.path.join(REPORT);
    let text =
        std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is no report", path.display()))
}

pub(crate) fn print_table(stages: &Stages, name: &str) -> Result<()> {
    println!("{}", read_report(stages, name)?.table().trim_end());
    let page = stages.workspace.path(Kind::Report, name).join(PAGE);
    eprintln!("The whole report: {}", page.display());
    Ok(())
}

/// The departments that are measured: those in the model, and those withdrawn from it, to see that
/// they are gone. One that was never read is left out.
pub(crate) fn measured<'a>(stages: &'a Stages) -> impl Iterator<Item = &'a Department> {
    stages.config.departments.iter().filter(|department| {
        !department.withdrawn || stages.workspace.open(Kind::Collection, &department.name).is_ok()
    })
}

pub(crate) fn recipe_config(stages: &Stages) -> Value {
    let names: Vec<&str> = measured(stages).map(|d| d.name.as_str()).collect();
    let eval = &stages.config.eval;
    json!({
        "departments": names,
        "held_out_words": eval.held_out_words.unwrap_or(20_000),
        "base_texts": eval.base_texts.unwrap_or(Writing::default().texts),
        "base_tokens": eval.base_tokens.unwrap_or(Writing::default().max_tokens),
    })
}

/// What is measured on, of one department.
struct Sheet<'a> {
    department: &'a Department,
    questions: Vec<Question>,
    held_out: Vec<HeldOutText>,
}

pub(crate) fn stage(stages: &Stages, draft: &mut Draft) -> Result<BTreeMap<String, u64>> {
    super::train::check_left_out(stages)?;
    let sheets = sheets(stages, draft)?;
    let progress = Progress::new("eval", "");
    progress.say("loading the models");
    let pool = stages.pool();
    let name = &stages.config.name;
    let joined = Model::load(&stages.workspace.path(Kind::Model, name), Precision::best())?;
    drop(progress);
    check_base(stages, &joined, &pool, &sheets)?;
    let names = expert_names(&joined);
    let after = Subject { model: &joined, pool: &pool, experts: ExpertSet::all(names.len()) };
    let title = format!("{name} with {}", names.join(", "));
    report(stages, draft, [after.base(), after], &sheets, (name, title))
}

/// Any other model beside the base.
pub(crate) fn stage_of_model(
    stages: &Stages,
    name: &str,
    draft: &mut Draft,
) -> Result<BTreeMap<String, u64>> {
    if name == stages.target(&Stage::Tune).1 {
        super::tune::check_left_out(stages)?;
    }
    let sheets = sheets(stages, draft)?;
    let progress = Progress::new("eval", "");
    progress.say("loading the models");
    let pool = stages.pool();
    let base = Model::load(&stages.base(), Precision::best())?;
    let model = Model::load(&stages.workspace.path(Kind::Model, name), Precision::best())?;
    drop(progress);
    ensure!(
        base.config().vocab == model.config().vocab,
        "{name} has {} tokens and the base {}: their texts cannot be compared token by token",
        model.config().vocab,
        base.config().vocab
    );
    let subject = |model| Subject { model, pool: &pool, experts: ExpertSet::NONE };
    report(stages, draft, [subject(&base), subject(&model)], &sheets, (name, name.into()))
}

fn sheets<'a>(stages: &'a Stages, draft: &Draft) -> Result<Vec<Sheet<'a>>> {
    let words = size(draft, "held_out_words");
    measured(stages).map(|department| sheet(stages, department, words)).collect()
}

fn size(draft: &Draft, key: &str) -> usize {
    draft.recipe().config[key].as_u64().unwrap_or(0) as usize
}

/// Measures both and writes the report; `(title, after)` are its title and what the model is.
fn report(
    stages: &Stages,
    draft: &Draft,
    subjects: [Subject; 2],
    sheets: &[Sheet],
    (title, after): (&str, String),
) -> Result<BTreeMap<String, u64>> {
    let mut departments = Vec::new();
    for sheet in sheets {
        departments.push(measure(draft, subjects, sheet, sheets)?);
    }
    let writing = Writing {
        texts: size(draft, "base_texts"),
        max_tokens: size(draft, "base_tokens"),
        seed: stages.config.seed,
    };
    let forgetting = forgetting(draft, subjects, writing)?;
    let report = eval::Report {
        title: title.into(),
        before: stages.config.base_name(),
        after,
        departments,
        forgetting: Some(forgetting),
    };
    for (file, text) in [(REPORT, report.json()), (PAGE, report.html())] {
        let path = draft.path(file);
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    let questions: usize = sheets.iter().map(|sheet| sheet.questions.len()).sum();
    Ok(BTreeMap::from([
        ("departments".into(), sheets.len() as u64),
        ("questions".into(), questions as u64),
    ]))
}

fn sheet<'a>(stages: &Stages, department: &'a Department, words: usize) -> Result<Sheet<'a>> {
    let questions = match &department.questions {
        Some(file) => eval::read_questions(file)?,
        None => Vec::new(),
    };
    let path = stages.workspace.path(Kind::Collection, &department.name);
    let held_out = held_out(&corpus::Collection::open(&path)?, words);
    Ok(Sheet { department, questions, held_out })
}

/// The held-out chunks, joined by document, up to `words` in all.
fn held_out(collection: &corpus::Collection, words: usize) -> Vec<HeldOutText> {
    let mut texts: Vec<HeldOutText> = Vec::new();
    let mut used = 0;
    for chunk in collection.chunks.iter().filter(|chunk| chunk.held_out) {
        if used >= words {
            break;
        }
        used += chunk.text.split_whitespace().count();
        let document = collection.documents.iter().find(|d| d.id == chunk.document);
        let name = document.map_or(&chunk.document, |d| &d.path);
        match texts.last_mut() {
            Some(last) if last.document == *name => last.text += &format!("\n\n{}", chunk.text),
            _ => texts.push(HeldOutText { document: name.clone(), text: chunk.text.clone() }),
        }
    }
    texts
}

/// The names of a model's experts, in their order.
pub(crate) fn expert_names(model: &Model) -> Vec<String> {
    model.config().experts.as_ref().map_or_else(Vec::new, |experts| experts.names.clone())
}

/// That the joined model without experts gives the base's numbers, bit for bit.
fn check_base(stages: &Stages, joined: &Model, pool: &Pool, sheets: &[Sheet]) -> Result<()> {
    let progress = Progress::new("eval", "");
    progress.say("comparing the model without experts with the base");
    let base = Model::load(&stages.base(), Precision::best())?;
    let questions = sheets.iter().filter_map(|sheet| sheet.questions.first());
    let held_out = sheets.iter().filter_map(|sheet| sheet.held_out.first());
    let texts = questions.map(|q| &q.question).chain(held_out.map(|text| &text.text));
    for text in texts {
        let mut tokens = base.tokenizer.encode_plain(text)?;
        tokens.truncate(256.min(base.config().context));
        let score = |model| {
            engine::Scorer { model, pool }
                .tokens(&tokens, ExpertSet::NONE)
                .with_context(|| format!("scoring {text:?}"))
        };
        let bits = |scores: Vec<f32>| scores.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        ensure!(
            bits(score(&base)?) == bits(score(joined)?),
            "the joined model without experts differs from the base on {text:?}: \
             join again, and report this as a bug"
        );
    }
    Ok(())
}

fn measure(
    draft: &Draft,
    [base, after]: [Subject; 2],
    sheet: &Sheet,
    sheets: &[Sheet],
) -> Result<eval::Department> {
    let name = &sheet.department.name;
    let choices = |what: &str, subject: Subject, of: &Sheet| {
        let asked = &of.department.name;
        let progress = Progress::new(format!("eval {asked} {what}"), "questions");
        let path = draft.path(&format!("choices-{asked}-{}.jsonl", what.replace(' ', "-")));
        eval::resume_choices(&path, subject, &of.questions, &|at| {
            progress.set(at.done as u64, at.total as u64, "");
        })
    };
    let bits = |what: &str, subject: Subject| {
        let progress = Progress::new(format!("eval {name} {what}"), "documents");
        let path = draft.path(&format!("bits-{name}-{what}.jsonl"));
        eval::resume_perplexity(&path, subject, &sheet.held_out, &|at| {
            progress.set(at.done as u64, at.total as u64, "");
        })
    };
    let before = choices("before", base, sheet)?;
    let mut department =
        eval::Department::new(name, &sheet.questions, &before, &choices("after", after, sheet)?)?;
    if !sheet.held_out.is_empty() {
        let (before, after) = (bits("before", base)?, bits("after", after)?);
        department.bits_per_byte = Some(eval::compare_bits(&before, &after)?);
    }
    let names = expert_names(after.model);
    if let Some(index) = names.iter().position(|expert| expert == name) {
        let alone = Subject { experts: ExpertSet::single(index), ..after };
        let (mut own, mut foreign) = (Vec::new(), Vec::new());
        for other in sheets.iter().filter(|other| other.department.name != *name) {
            own.extend(choices("before", base, other)?);
            foreign.extend(choices(&format!("with {name}"), alone, other)?);
        }
        if !own.is_empty() {
            department.others = Some(eval::compare(&own, &foreign, eval::Rule::Calibrated)?);
        }
    }
    if !names.is_empty() {
        let shares = eval::gate_shares(after, &sheet.held_out)?;
        let each = names.into_iter().zip(shares);
        department.gates = each.map(|(expert, share)| eval::GateShare { expert, share }).collect();
    }
    Ok(department)
}

fn forgetting(draft: &Draft, subjects: [Subject; 2], writing: Writing) -> Result<eval::Forgetting> {
    let progress = Progress::new("eval: the base writes", "texts");
    let show = |at: eval::Progress| progress.set(at.done as u64, at.total as u64, "");
    let texts =
        eval::write_base_texts(&draft.path("base-texts.jsonl"), subjects[0], writing, &show)?;
    let progress = Progress::new("eval forgetting", "texts");
    let show = |at: eval::Progress| progress.set(at.done as u64, at.total as u64, "");
    Ok(eval::forgetting(subjects, &texts, &show)?)
}
