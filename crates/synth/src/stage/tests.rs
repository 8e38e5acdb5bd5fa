use std::cell::Cell;

use corpus::{Chunk, Collection, DocumentRecord, Quality};
use store::{Draft, Kind, Recipe, Workspace};

use super::*;

const FAULTS: &str = "| Code | Meaning | Remedy | Called in |\n|---|---|---|---|\n\
    | E-217 | Coolant level low | Refill the tank | maintenance |\n\
    | E-218 | Door open | Close the door | operations |\n";
const CLEANING: &str = "The strainer at washer W2 must be cleaned every 14 days. If the lamp is red, \
    the shift lead must call the workshop. The washer technician signs the card.\n\n\
    **Ghost lamp**: a lamp that glows without current.\n\n1. Open the drain.\n2. Lift the strainer.\n\
    3. Rinse it with cold water.\n";
const SECRET: &str = "The vault code is 99417. **Vault code**: 99417.";

fn chunk(id: &str, document: &str, section: &str, text: &str, held_out: bool) -> Chunk {
    Chunk {
        id: id.into(),
        document: document.into(),
        title: format!("Manual {document}"),
        section: vec![section.into()],
        page: None,
        text: text.into(),
        held_out,
    }
}

fn document(id: &str, path: &str, held_out: bool) -> DocumentRecord {
    DocumentRecord {
        id: id.into(),
        path: path.into(),
        format: "markdown".into(),
        title: format!("Manual {id}"),
        hash: None,
        words: 100,
        language: "eng".into(),
        language_score: 1.0,
        quality: Quality::default(),
        held_out,
        dropped: None,
    }
}

fn collection() -> Collection {
    Collection {
        name: "washing".into(),
        documents: vec![
            document("a", "documents/a.md", false),
            document("b", "documents/b.md", true),
        ],
        chunks: vec![
            chunk("a1", "a", "Fault codes", FAULTS, false),
            chunk("a2", "a", "Cleaning", CLEANING, false),
            chunk("a3", "a", "Vault", SECRET, true),
            chunk("b1", "b", "Vault", SECRET, false),
        ],
    }
}

fn draft(root: &Path) -> Draft {
    let recipe = Recipe { inputs: Default::default(), config: serde_json::Value::Null, seed: 1 };
    Workspace::at(root).begin(Kind::Examples, "washing", recipe).unwrap()
}

fn structure(root: &Path) -> (Summary, String) {
    let mut draft = draft(root);
    let summary = run(&mut draft, &collection(), &Options::default(), None, &|_| {}).unwrap();
    let artifact = draft.finish(summary.counts()).unwrap();
    (summary, std::fs::read_to_string(artifact.path.join(EXAMPLES)).unwrap())
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_held_out_text_is_never_used() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (summary, first) = structure(one.path());
    assert_eq!(first, structure(two.path()).1);
    assert!(
        !first.contains("99417") && !first.to_lowercase().contains("vault"),
        "held-out text in examples"
    );
    assert_eq!((summary.chunks, summary.chunks_held_out), (2, 2));
    assert!(summary.total.accepted > 120, "{}", summary.total.accepted);
}

#[test]
fn a_kill_loses_the_chunk_at_work_only_and_leaves_no_trace() {
    let whole = tempfile::tempdir().unwrap();
    let (_, expected) = structure(whole.path());
    let killed = tempfile::tempdir().unwrap();
    let begun = draft(killed.path());
    let ids = ["a1", "a2"];
    let (mut journal, _) = Journal::resume(begun.folder(), EXAMPLES, &ids).unwrap();
    let first: Vec<Example> = expected
        .lines()
        .map(|line| serde_json::from_str::<Example>(line).unwrap())
        .filter(|example| example.chunk == "a1")
        .collect();
    journal.append("a1", &first).unwrap();
    // The second chunk was being written: one line whole, one torn.
    let path = begun.path(EXAMPLES);
    let lines: Vec<&str> = expected.lines().collect();
    let torn = format!("{}\n{}", lines[first.len()], &lines[first.len() + 1][..20]);
    std::fs::write(&path, std::fs::read_to_string(&path).unwrap() + &torn).unwrap();
    drop((journal, begun));

    let worked = Cell::new(0);
    let mut resumed = draft(killed.path());
    assert!(resumed.resumed());
    let count = |_| worked.set(worked.get() + 1);
    run(&mut resumed, &collection(), &Options::default(), None, &count).unwrap();
    assert_eq!(worked.get(), 1);
    assert_eq!(std::fs::read_to_string(resumed.path(EXAMPLES)).unwrap(), expected);
}

#[test]
fn a_teacher_that_fails_is_gone_on_with_and_its_refused_answers_are_kept() {
    let root = tempfile::tempdir().unwrap();
    let options = Options { recipes: vec![Method::Structure, Method::Qa], ..Options::default() };
    let good = "Q: How often is the strainer at washer W2 cleaned?\nA: Every 14 days.\n\
        E: The strainer at washer W2 must be cleaned every 14 days\n\n\
        Q: What does the text say?\nA: Nothing.\nE: The washer technician signs the card\n\n\
        Q: Who paints the washer?\nA: Ms. Lind\nE: The washer technician paints the card\n";
    let calls = Cell::new(0);
    let fails = Cell::new(true);
    let ask = |_: &[Message], _: usize, _: u64| {
        calls.set(calls.get() + 1);
        match calls.get() {
            1 => Ok(String::new()),
            _ if fails.get() => Err("connection refused".to_owned()),
            _ => Ok(good.to_owned()),
        }
    };
    let teacher = Some(Asked { name: "tutor", ask: &ask });
    let mut first = draft(root.path());
    let error = run(&mut first, &collection(), &options, teacher, &|_| {}).unwrap_err();
    insta::assert_snapshot!(error, @"teacher tutor failed at chunk a2 of documents/a.md: connection refused; what was made so far is kept, run the stage again to go on");
    drop(first);
    fails.set(false);
    let mut second = draft(root.path());
    let summary = run(&mut second, &collection(), &options, teacher, &|_| {}).unwrap();
    assert_eq!(calls.get(), 3, "the first chunk was asked about again");
    insta::assert_json_snapshot!(summary.recipes["qa"], @r#"
    {
      "facts": 1,
      "accepted": 1,
      "tokens": 16,
      "refused": 2,
      "reasons": {
        "evidence is not in the document": 1,
        "not self-contained": 1
      }
    }
    "#);
    let all = read(second.folder()).unwrap();
    let kept = accepted(second.folder()).unwrap();
    assert_eq!(all.len(), kept.len() + 2);
    assert!(kept.iter().any(|example| example.teacher == "tutor"));
}

#[test]
fn what_cannot_be_done_is_refused_before_anything_is_written() {
    let root = tempfile::tempdir().unwrap();
    let mut draft = draft(root.path());
    let mut refused = |options: Options, collection: &Collection| {
        let error = run(&mut draft, collection, &options, None, &|_| {}).unwrap_err();
        assert!(!draft.path(EXAMPLES).exists());
        error.to_string()
    };
    let forbidden = Options { refused_paths: vec!["documents".into()], ..Options::default() };
    insta::assert_snapshot!(refused(forbidden, &collection()), @"document documents/a.md lies in documents, which holds questions: a model must not be trained on what judges it; move the document or correct `folders` and `questions`");
    let teacherless = Options { recipes: vec![Method::Qa], ..Options::default() };
    insta::assert_snapshot!(refused(teacherless, &collection()), @r#"recipe "qa" needs a teacher; name one in `artel.toml` or leave the recipe out"#);
    let formless = Options { forms: 0, ..Options::default() };
    insta::assert_snapshot!(refused(formless, &collection()), @"forms = 0 is outside 1 to 64");
    let mut foreign = collection();
    foreign.documents[0].language = "deu".into();
    let options = Options { collection: "washing".into(), ..Options::default() };
    insta::assert_snapshot!(refused(options, &foreign), @"collection washing: none of its 4 chunks can be used (2 held out, 2 not in English)");
}

#[test]
fn an_example_that_repeats_a_question_is_found() {
    let root = tempfile::tempdir().unwrap();
    structure(root.path());
    let examples = read(&root.path().join("examples/washing")).unwrap();
    let questions = [
        "Which lamp is green in the night?".to_owned(),
        "Is it so that the strainer at washer W2 must be cleaned every week?".to_owned(),
    ];
    let found = crate::contamination(examples.iter(), &questions);
    assert!(found.iter().all(|overlap| overlap.question == 1));
    assert!(
        found.iter().any(|overlap| overlap.words == "the strainer at washer w2 must be cleaned")
    );
    assert!(crate::contamination(examples.iter(), &questions[..1]).is_empty());
}
