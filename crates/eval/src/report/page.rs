use super::plot::{Axis, Mark, Row, dots};
use super::table::{points, range, unchanged};
use super::{Answer, Department, Report, percent};
use crate::{Comparison, Interval, Proportion, Rule, Verdict};

const STYLE: &str = include_str!("style.css");

pub(super) fn render(report: &Report) -> String {
    let title = escape(&report.title);
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n\
         <p><span class=\"key before\">●</span> {} <span class=\"key after\">●</span> {}</p>\n",
        escape(&report.before),
        escape(&report.after)
    );
    page.push_str(&summary(report));
    page.push_str(&accuracies(report));
    page.push_str(&documents(report));
    page.push_str(&others(report));
    page.push_str(&forgetting(report));
    page.push_str(&gates(report));
    page.push_str(&answers(report));
    page.push_str(
        "<p class=\"note\">Intervals are 95 %. Accuracies: Wilson. Differences: paired, standard errors \
         clustered by document, Student's t. “Better” is said only where the interval excludes 0.</p>\n\
         </main>\n</body>\n</html>\n",
    );
    page
}

/// Makes text safe inside elements and quoted attributes.
pub(super) fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            other => safe.push(other),
        }
    }
    safe
}

fn summary(report: &Report) -> String {
    let mut rows = String::new();
    for department in &report.departments {
        let name = escape(&department.name);
        if let Some(c) = &department.calibrated {
            rows.push_str(&row(
                &name,
                "questions right",
                &percent(c.before.value),
                &percent(c.after.value),
                &points(&c.difference),
                c.verdict,
            ));
        }
        if let Some(c) = &department.per_token {
            rows.push_str(&row(
                &name,
                "the same, uncalibrated",
                &percent(c.before.value),
                &percent(c.after.value),
                &points(&c.difference),
                c.verdict,
            ));
        }
        if let Some(c) = &department.bits_per_byte {
            let difference = format!("{:+.3} {}", c.difference.value, range(&c.difference, 3, 1.0));
            rows.push_str(&row(
                &name,
                "bits per byte",
                &format!("{:.3}", c.before),
                &format!("{:.3}", c.after),
                &difference,
                c.verdict,
            ));
        }
    }
    if rows.is_empty() {
        return String::new();
    }
    format!(
        "<table>\n<thead><tr><th>Department</th><th>Measure</th><th>Before</th><th>After</th>\
         <th>Difference</th><th>Verdict</th></tr></thead>\n<tbody>\n{rows}</tbody>\n</table>\n"
    )
}

fn row(
    name: &str,
    measure: &str,
    before: &str,
    after: &str,
    difference: &str,
    verdict: Verdict,
) -> String {
    let class = match verdict {
        Verdict::Better => "good",
        Verdict::Worse => "bad",
        Verdict::NotShown => "open",
    };
    format!(
        "<tr><td>{name}</td><td>{measure}</td><td>{before}</td><td>{after}</td><td>{difference}</td>\
         <td class=\"{class}\">{}</td></tr>\n",
        verdict.name()
    )
}

fn accuracies(report: &Report) -> String {
    let rows = report
        .departments
        .iter()
        .filter_map(|department| Some(pair(&department.name, department.calibrated.as_ref()?)))
        .collect::<Vec<_>>();
    let axis = Axis { low: 0.0, high: 1.0, label: "questions answered right", tick: whole_percent };
    figure("Questions", &axis, &rows)
}

fn pair(name: &str, comparison: &Comparison) -> Row {
    let mark = |class, proportion: &Proportion| Mark {
        class,
        value: proportion.value,
        interval: Some(proportion.interval),
        title: format!(
            "{class}: {} of {}, {}",
            proportion.correct,
            proportion.total,
            percent(proportion.value)
        ),
    };
    Row {
        label: name.into(),
        marks: vec![mark("before", &comparison.before), mark("after", &comparison.after)],
    }
}

fn documents(report: &Report) -> String {
    let mut rows = Vec::new();
    for department in &report.departments {
        let Some(change) = &department.bits_per_byte else { continue };
        let mark = |class, value: f64, interval| Mark {
            class,
            value,
            interval,
            title: format!("{class}: {value:.3} bits per byte"),
        };
        // The interval is that of the difference, laid around the value before.
        let shifted = change
            .difference
            .interval
            .map(|i| Interval { low: change.before + i.low, high: change.before + i.high });
        rows.push(Row {
            label: department.name.clone(),
            marks: vec![mark("before", change.before, None), mark("after", change.after, shifted)],
        });
    }
    let axis =
        Axis::fitting(0.0, &rows, "bits per byte of held-out documents (lower is better)", |v| {
            format!("{v:.2}")
        });
    figure("Held-out documents", &axis, &rows)
}

fn others(report: &Report) -> String {
    let mut items = String::new();
    for department in &report.departments {
        let Some(comparison) = &department.others else { continue };
        items.push_str(&format!(
            "<li>With the expert of {} alone: {} → {} of {} right, {} ({})</li>\n",
            escape(&department.name),
            comparison.before.correct,
            comparison.after.correct,
            comparison.before.total,
            points(&comparison.difference),
            unchanged(comparison)
        ));
    }
    if items.is_empty() {
        return items;
    }
    format!("<h2>Questions of other departments</h2>\n<ul>\n{items}</ul>\n")
}

fn forgetting(report: &Report) -> String {
    let Some(forgetting) = &report.forgetting else { return String::new() };
    let value = forgetting.divergence.value;
    let rows = [Row {
        label: report.after.clone(),
        marks: vec![Mark {
            class: "after",
            value,
            interval: forgetting.divergence.interval,
            title: format!("{value:.4} nats per token on {} tokens", forgetting.tokens),
        }],
    }];
    let axis = Axis::fitting(
        0.0,
        &rows,
        "KL(base ‖ model), nats per token, on texts the base wrote",
        |v| format!("{v:.3}"),
    );
    figure("Forgetting", &axis, &rows)
}

fn gates(report: &Report) -> String {
    let mut rows = Vec::new();
    for department in report.departments.iter().filter(|d| !d.gates.is_empty()) {
        for gate in &department.gates {
            rows.push(Row {
                label: format!("{}: {}", department.name, gate.expert),
                marks: vec![Mark {
                    class: "gate",
                    value: gate.share,
                    interval: None,
                    title: format!("{:.3}", gate.share),
                }],
            });
        }
    }
    let axis = Axis {
        low: 0.0,
        high: 1.0,
        label: "mean gate weight of the expert on the department's documents",
        tick: whole_percent,
    };
    figure("Gates", &axis, &rows)
}

fn figure(title: &str, axis: &Axis, rows: &[Row]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    format!("<h2>{title}</h2>\n<figure>\n{}</figure>\n", dots(title, axis, rows))
}

fn whole_percent(value: f64) -> String {
    format!("{:.0} %", 100.0 * value)
}

fn answers(report: &Report) -> String {
    let mut html = String::new();
    for Department { name, answers, .. } in &report.departments {
        if answers.is_empty() {
            continue;
        }
        html.push_str(&format!(
            "<details>\n<summary>{}: every question</summary>\n<table>\n<thead><tr><th>Question</th>\
             <th>Right answer</th><th>Before</th><th>After</th></tr></thead>\n<tbody>\n",
            escape(name)
        ));
        for answer in answers {
            html.push_str(&answer_row(answer));
        }
        html.push_str("</tbody>\n</table>\n</details>\n");
    }
    html
}

fn answer_row(answer: &Answer) -> String {
    let choices = &answer.question.choices;
    let shown = |index: usize| escape(choices.get(index).map_or("?", String::as_str));
    let cell = |outcome: &crate::Outcome| {
        let class = if outcome.correct(Rule::Calibrated) { "good" } else { "bad" };
        format!("<td class=\"{class}\">{}</td>", shown(outcome.chosen(Rule::Calibrated)))
    };
    format!(
        "<tr><td>{}<br><small>{}</small></td><td>{}</td>{}{}</tr>\n",
        escape(&answer.question.question),
        escape(&answer.question.document),
        shown(answer.question.answer),
        cell(&answer.before),
        cell(&answer.after)
    )
}
