use super::{Report, percent};
use crate::{Comparison, Estimate, Interval, Verdict};

pub(super) fn render(report: &Report) -> String {
    let mut text = format!("{}: {} → {}\n", report.title, report.before, report.after);
    section(
        &mut text,
        "Questions (calibrated likelihood)",
        questions(report, |d| d.calibrated.as_ref()),
    );
    section(
        &mut text,
        "Questions (likelihood per token)",
        questions(report, |d| d.per_token.as_ref()),
    );
    section(&mut text, "Held-out documents (bits per byte, lower is better)", documents(report));
    section(&mut text, "Questions of other departments", others(report));
    section(&mut text, "Gate share on held-out documents", gates(report));
    if let Some(forgetting) = &report.forgetting {
        let divergence = &forgetting.divergence;
        text.push_str(&format!(
            "\nForgetting: {:.4}{} nats per token, KL(base ‖ model) on {} tokens of {} texts the base wrote\n",
            divergence.value,
            divergence.interval.map_or_else(String::new, |i| format!(" [{:.4}, {:.4}]", i.low, i.high)),
            forgetting.tokens,
            forgetting.texts
        ));
    }
    text.push_str("\nIntervals: 95 %, differences paired and clustered by document. \"not shown\": the interval includes 0.\n");
    text
}

fn section(text: &mut String, title: &str, rows: Vec<Vec<String>>) {
    // The first row is the heading: alone it says nothing.
    if rows.len() < 2 {
        return;
    }
    text.push_str(&format!("\n{title}\n"));
    let columns = rows[0].len();
    let width = |column: usize| {
        rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in &rows {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let padding = " ".repeat(width - cell.chars().count());
            // Names and verdicts stand left, figures right.
            let cell = if column == 0 || column + 1 == columns {
                format!("{cell}{padding}")
            } else {
                format!("{padding}{cell}")
            };
            line.push_str(if column == 0 { "  " } else { "   " });
            line.push_str(&cell);
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
}

fn heading(cells: &[&str]) -> Vec<String> {
    cells.iter().map(|&cell| cell.into()).collect()
}

fn questions<'a>(
    report: &'a Report,
    of: impl Fn(&'a super::Department) -> Option<&'a Comparison>,
) -> Vec<Vec<String>> {
    let mut rows = vec![heading(&[
        "department",
        "questions",
        "documents",
        "before",
        "after",
        "difference",
        "verdict",
    ])];
    for department in &report.departments {
        let Some(comparison) = of(department) else { continue };
        rows.push(vec![
            department.name.clone(),
            comparison.before.total.to_string(),
            comparison.difference.clusters.to_string(),
            percent(comparison.before.value),
            percent(comparison.after.value),
            points(&comparison.difference),
            comparison.verdict.name().into(),
        ]);
    }
    rows
}

fn documents(report: &Report) -> Vec<Vec<String>> {
    let mut rows = vec![heading(&[
        "department",
        "documents",
        "kilobytes",
        "before",
        "after",
        "difference",
        "verdict",
    ])];
    for department in &report.departments {
        let Some(change) = &department.bits_per_byte else { continue };
        rows.push(vec![
            department.name.clone(),
            change.difference.clusters.to_string(),
            format!("{:.1}", change.bytes as f64 / 1000.0),
            format!("{:.3}", change.before),
            format!("{:.3}", change.after),
            format!("{:+.3} {}", change.difference.value, range(&change.difference, 3, 1.0)),
            change.verdict.name().into(),
        ]);
    }
    rows
}

fn others(report: &Report) -> Vec<Vec<String>> {
    let mut rows = vec![heading(&[
        "with the expert",
        "questions",
        "before",
        "after",
        "difference",
        "verdict",
    ])];
    for department in &report.departments {
        let Some(comparison) = &department.others else { continue };
        rows.push(vec![
            department.name.clone(),
            comparison.before.total.to_string(),
            percent(comparison.before.value),
            percent(comparison.after.value),
            points(&comparison.difference),
            unchanged(comparison).into(),
        ]);
    }
    rows
}

fn gates(report: &Report) -> Vec<Vec<String>> {
    let mut experts: Vec<&str> = Vec::new();
    for gate in report.departments.iter().flat_map(|d| &d.gates) {
        if !experts.contains(&gate.expert.as_str()) {
            experts.push(&gate.expert);
        }
    }
    // An empty last column keeps the figures in right-aligned ones.
    let mut rows = vec![heading(&[&["documents of"], &experts[..], &[""]].concat())];
    for department in report.departments.iter().filter(|d| !d.gates.is_empty()) {
        let share = |expert: &&str| {
            let gate = department.gates.iter().find(|gate| gate.expert == *expert);
            gate.map_or_else(String::new, |gate| format!("{:.3}", gate.share))
        };
        let mut row = vec![department.name.clone()];
        row.extend(experts.iter().map(share));
        row.push(String::new());
        rows.push(row);
    }
    rows
}

/// Other departments' questions shall stay as they are.
pub(super) fn unchanged(comparison: &Comparison) -> &'static str {
    if comparison.gained + comparison.lost == 0 {
        return "unchanged";
    }
    match comparison.verdict {
        Verdict::NotShown => "no change shown",
        verdict => verdict.name(),
    }
}

/// A difference of accuracies in points of a percent.
pub(super) fn points(difference: &Estimate) -> String {
    format!("{:+.1} {}", 100.0 * difference.value, range(difference, 1, 100.0))
}

pub(super) fn range(estimate: &Estimate, decimals: usize, scale: f64) -> String {
    match estimate.interval {
        Some(Interval { low, high }) => {
            format!("[{:+.decimals$}, {:+.decimals$}]", scale * low, scale * high)
        }
        None => "[one document: no interval]".into(),
    }
}
