use proptest::prelude::*;

use super::*;
use crate::Body;

const TEXT: &str = "\
Every fault shows a code. The strainer at washer W2 must be cleaned every 14 days.

| Fault code | Meaning | First remedy | Cleared by |
|---|---|---|---|
| E-217 | Coolant level low | Refill the tank | line operator |
| E-218 | Door loop open | Close the door | shift lead |

**Ghost lamp**: a lamp that glows without current.

**Reset time**: 45 seconds.

To restart the line:

1. Close the door.
2. Press K7.
3. Wait for the green lamp.
";

fn passage(text: &str) -> Passage<'_> {
    Passage { document: "d", chunk: "c", title: "Fault guide", section: &[], text }
}

fn made(text: &str, forms_each: usize) -> Vec<Example> {
    let names = Names::of(std::iter::once(passage(text)));
    forms(&passage(text), &names, &Limits { forms: forms_each, per_chunk: 10_000, seed: 7 })
}

fn line(example: &Example) -> String {
    match &example.body {
        Body::Text(text) => text.clone(),
        Body::Chat(messages) => format!("{} → {}", messages[0].content, messages[1].content),
    }
}

/// The examples of `recipes`, in small letters, that name both.
fn about(examples: &[Example], recipes: &[&str], code: &str, meaning: &str) -> Vec<String> {
    examples
        .iter()
        .filter(|example| recipes.contains(&example.recipe.as_str()))
        .map(|example| line(example).to_lowercase())
        .filter(|line| line.contains(&code.to_lowercase()) && line.contains(meaning))
        .collect()
}

#[test]
fn facts_of_a_chunk() {
    let names = Names::of(std::iter::once(passage(TEXT)));
    let facts: Vec<String> = extract(&passage(TEXT), &names.lexicon)
        .iter()
        .map(|fact| format!("{:?}", fact.content))
        .collect();
    insta::assert_snapshot!(facts.join("\n"));
}

#[test]
fn forms_of_a_chunk() {
    let lines: Vec<String> = made(TEXT, 5).iter().map(line).collect();
    insta::assert_snapshot!(lines.join("\n"));
}

/// The trial behind the recipe: about twelve forms of a fact, in both directions, or it cannot be
/// asked for.
#[test]
fn facts_are_restated_often_and_in_both_directions() {
    // A row's attribute has half of the forms for itself, and the row's own besides.
    let examples = made(TEXT, 32);
    for (code, meaning) in [("E-217", "coolant level low"), ("E-218", "door loop open")] {
        let about = about(&examples, &["structure/attribute"], code, meaning);
        let answered =
            |answer: &str| about.iter().filter(|l| l.ends_with(&format!("→ {answer}"))).count();
        assert!(about.len() >= 10, "{code}: {about:#?}");
        assert!(answered(meaning) >= 3 && answered(&code.to_lowercase()) >= 3, "{about:#?}");
        let made = made(TEXT, crate::Options::default().forms);
        let about = self::about(&made, &["structure/attribute", "structure/row"], code, meaning);
        assert!(about.len() >= 10, "{code} by default: {about:#?}");
    }
    // A sentence has a quarter of the forms: sixteen here.
    let lines: Vec<String> = made(TEXT, 64).iter().map(line).collect();
    assert!(
        lines.iter().any(|l| l.contains("ow often must the strainer at washer W2 be cleaned?")),
        "{lines:#?}"
    );
}

#[test]
fn equal_names_with_different_values_are_told_apart_by_their_section() {
    let table = |limit: &str| format!("| Pump | Limit |\n|---|---|\n| P-1 | {limit} bar |\n");
    let (one, two) = (table("4"), table("9"));
    let (a, b) = (["North hall".to_owned()], ["South hall".to_owned()]);
    let passages = [
        Passage { section: &a, chunk: "1", ..passage(&one) },
        Passage { section: &b, chunk: "2", ..passage(&two) },
    ];
    let names = Names::of(passages.into_iter());
    let limits = Limits { forms: 12, per_chunk: 100, seed: 1 };
    for example in forms(&passages[0], &names, &limits) {
        assert!(line(&example).contains("North hall"), "{}", line(&example));
    }
}

#[test]
fn a_chunk_full_of_facts_keeps_all_of_them_with_fewer_forms() {
    let rows: Vec<String> = (0..30).map(|i| format!("| T-{i} | bin {i} | {i} bar |")).collect();
    let text = format!("| Tool | Bin | Limit |\n|---|---|---|\n{}\n", rows.join("\n"));
    let names = Names::of(std::iter::once(passage(&text)));
    let few = forms(&passage(&text), &names, &Limits { forms: 16, per_chunk: 800, seed: 1 });
    assert!(few.len() <= 800);
    assert!(few.iter().any(|example| line(example).contains("T-29")));
}

proptest! {
    #[test]
    fn whatever_a_chunk_holds_examples_are_whole(
        cells in prop::collection::vec("[A-Za-z0-9 .,:;()°%“-]{0,24}", 8),
        prose in "([A-Za-z]{1,9}[ ,.;:]{1,2}){0,30}",
    ) {
        let text = format!(
            "{prose}\n\n| {} | {} | {} |\n|---|---|---|\n| {} | {} | {} |\n\n- **{}**: {}\n- {prose}\n",
            cells[0], cells[1], cells[2], cells[3], cells[4], cells[5], cells[6], cells[7],
        );
        for example in made(&text, 16) {
            let text = line(&example);
            prop_assert!(!text.contains(['{', '}', '~', '^']), "unresolved: {text}");
            prop_assert!(!text.trim().is_empty());
        }
    }
}
