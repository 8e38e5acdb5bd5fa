//! From the words of a page to its lines and tables in reading order.

use super::content::{Page, Rule, Word};
use crate::read::pipe_table;

/// A line of text of one column.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) words: Vec<Word>,
    pub(super) x0: f32,
    pub(super) x1: f32,
    pub(super) y: f32,
    /// Of most of its characters.
    pub(super) size: f32,
    /// The right edge of the column it stands in.
    pub(super) right: f32,
}

#[derive(Clone, Debug)]
pub(super) enum Element {
    Line(Line),
    /// A table as Markdown.
    Table(String),
}

impl Line {
    fn new(mut words: Vec<Word>) -> Self {
        words.sort_by(|a, b| a.x0.total_cmp(&b.x0));
        // Bold without a bold font is the same word drawn twice.
        words.dedup_by(|b, a| a.text == b.text && (a.x0 - b.x0).abs() < 0.2 * a.size);
        let x0 = words.first().map_or(0.0, |w| w.x0);
        let x1 = words.iter().map(|w| w.x1).fold(x0, f32::max);
        let main = words.iter().max_by_key(|w| w.text.len());
        let (y, size) = main.map_or((0.0, 0.0), |w| (w.y, w.size));
        Line { words, x0, x1, y, size, right: x1 }
    }

    pub(super) fn text(&self) -> String {
        text_of(&self.words, self.y, self.size)
    }

    pub(super) fn is(&self, property: fn(&Word) -> bool) -> bool {
        self.words.iter().all(property)
    }
}

/// Words in a row, with raised ones marked as powers.
fn text_of(words: &[Word], y: f32, size: f32) -> String {
    let mut text = String::new();
    let mut end = f32::NEG_INFINITY;
    for word in words {
        let raised = word.size < 0.85 * size && word.y > y + 0.15 * size;
        let small = word.size < 0.85 * size && (word.y - y).abs() > 0.05 * size;
        let close = small && word.x0 - end < 0.2 * size;
        if !text.is_empty() && !close {
            text.push(' ');
        }
        if raised
            && close
            && word.text.starts_with(|c: char| c.is_ascii_digit() || "-−".contains(c))
        {
            text.push('^');
        }
        text.push_str(&word.text);
        end = word.x1;
    }
    text
}

/// The lines and tables of a page, in reading order.
pub(super) fn elements(page: Page) -> Vec<Element> {
    let (tables, words) = ruled_tables(page.words, &page.rules);
    let mut elements = Vec::new();
    let mut rest = lines(words);
    for (markdown, top) in tables {
        // Tables stand across the page: what is above them is read first.
        let below = rest.iter().position(|line| line.y < top).unwrap_or(rest.len());
        let after = rest.split_off(below);
        flow(rest, &mut elements);
        elements.push(Element::Table(markdown));
        rest = after;
    }
    flow(rest, &mut elements);
    elements
}

/// Words as lines, from the top to the bottom of the page.
fn lines(mut words: Vec<Word>) -> Vec<Line> {
    words.sort_by(|a, b| b.y.total_cmp(&a.y));
    let mut groups: Vec<Vec<Word>> = Vec::new();
    for word in words {
        // Words on one baseline follow each other; a raised one comes before its line.
        let near = groups.iter_mut().rev().take(4).find(|group| {
            group.iter().any(|other| {
                let size = other.size.max(word.size);
                let beside = word.x0 > other.x1 - 0.5 * size || word.x1 < other.x0 + 0.5 * size;
                let script = word.size.min(other.size) < 0.85 * size
                    && (word.x0 - other.x1).abs().min((other.x0 - word.x1).abs()) < 0.3 * size;
                let tolerance = if script { 0.5 } else { 0.25 };
                (other.y - word.y).abs() < tolerance * size && (beside || other.text == word.text)
            })
        });
        match near {
            Some(group) => group.push(word),
            None => groups.push(vec![word]),
        }
    }
    join_scripts(&mut groups);
    let mut lines: Vec<Line> = groups.into_iter().map(Line::new).collect();
    lines.sort_by(|a, b| b.y.total_cmp(&a.y));
    lines
}

/// Raised and lowered words, which are lines of their own by their baseline, go to the line whose
/// words they touch.
fn join_scripts(groups: &mut Vec<Vec<Word>>) {
    let mut index = 0;
    while index < groups.len() {
        let neighbours =
            [index.wrapping_sub(1), index + 1].into_iter().filter(|n| *n < groups.len());
        let touches = |script: &Word, line: &[Word]| {
            line.iter().any(|word| {
                let near =
                    (script.x0 - word.x1).abs().min((word.x0 - script.x1).abs()) < 0.3 * word.size;
                script.size < 0.85 * word.size
                    && (script.y - word.y).abs() < 0.6 * word.size
                    && near
            })
        };
        let target =
            neighbours.into_iter().find(|n| groups[index].iter().all(|w| touches(w, &groups[*n])));
        match target {
            Some(target) => {
                let words = std::mem::take(&mut groups[index]);
                groups[target].extend(words);
                groups.remove(index);
            }
            None => index += 1,
        }
    }
}

/// Splits lines by the page's columns, finds the tables that have no rules, and appends both.
fn flow(lines: Vec<Line>, elements: &mut Vec<Element>) {
    let Some(gutter) = gutter(&lines) else { return column(lines, elements) };
    let (mut left, mut right) = (Vec::new(), Vec::new());
    for line in lines {
        if crosses(&line, gutter) {
            column(std::mem::take(&mut left), elements);
            column(std::mem::take(&mut right), elements);
            column(vec![line], elements);
            continue;
        }
        let (before, after): (Vec<Word>, Vec<Word>) =
            line.words.into_iter().partition(|w| w.x1 <= gutter);
        left.extend((!before.is_empty()).then(|| Line::new(before)));
        right.extend((!after.is_empty()).then(|| Line::new(after)));
    }
    column(left, elements);
    column(right, elements);
}

/// Lines on each side that make two columns of text.
const COLUMN_LINES: usize = 10;

fn crosses(line: &Line, x: f32) -> bool {
    let before =
        line.words.iter().filter(|w| w.x0 < x).map(|w| w.x1).fold(f32::NEG_INFINITY, f32::max);
    let after = line.words.iter().filter(|w| w.x0 >= x).map(|w| w.x0).fold(f32::INFINITY, f32::min);
    before > x || after - before < 0.8 * line.size
}

/// Where two columns of text part: few lines cross it, and on both sides lines are filled.
fn gutter(lines: &[Line]) -> Option<f32> {
    let left = lines.iter().map(|l| l.x0).fold(f32::INFINITY, f32::min);
    let right = lines.iter().map(|l| l.x1).fold(f32::NEG_INFINITY, f32::max);
    let width = right - left;
    if lines.len() < COLUMN_LINES || width <= 0.0 {
        return None;
    }
    let candidates = (0..40).map(|step| left + width * (0.35 + 0.3 * step as f32 / 40.0));
    let crossing = |x: f32| lines.iter().filter(|line| crosses(line, x)).count();
    let x = candidates
        .min_by_key(|&x| (crossing(x), ((x - left - width / 2.0).abs() * 100.0) as u64))?;
    if crossing(x) * 3 > lines.len() {
        return None;
    }
    // Text fills its column; the cells of a table do not.
    let filled = |side: &dyn Fn(&Word) -> bool, column: f32| {
        let full = lines.iter().filter(|line| !crosses(line, x)).filter(|line| {
            let words: Vec<&Word> = line.words.iter().filter(|w| side(w)).collect();
            let (Some(first), Some(last)) = (words.first(), words.last()) else { return false };
            words.len() >= 4 && last.x1 - first.x0 > 0.75 * column
        });
        full.count() >= COLUMN_LINES
    };
    (filled(&|w| w.x1 <= x, x - left) && filled(&|w| w.x0 >= x, right - x)).then_some(x)
}

/// Appends the lines of one column, with tables among them.
fn column(lines: Vec<Line>, elements: &mut Vec<Element>) {
    let right = lines.iter().map(|l| l.x1).fold(0.0, f32::max);
    let mut at = 0;
    while at < lines.len() {
        if let Some((length, markdown)) = aligned_table(&lines[at..]) {
            elements.push(Element::Table(markdown));
            at += length;
            continue;
        }
        elements.push(Element::Line(Line { right, ..lines[at].clone() }));
        at += 1;
    }
}

/// A gap between words that may part columns, in font sizes.
const COLUMN_GAP: f32 = 1.0;
/// Columns of a table at most.
const MAX_COLUMNS: usize = 30;

/// Words of a line, parted at wide gaps.
fn segments(line: &Line) -> Vec<Vec<Word>> {
    let mut segments: Vec<Vec<Word>> = Vec::new();
    for word in &line.words {
        match segments.last_mut() {
            Some(segment) if word.x0 - segment[segment.len() - 1].x1 < COLUMN_GAP * line.size => {
                segment.push(word.clone());
            }
            _ => segments.push(vec![word.clone()]),
        }
    }
    segments
}

fn extent(words: &[Word]) -> (f32, f32) {
    (words[0].x0, words.iter().map(|w| w.x1).fold(words[0].x0, f32::max))
}

/// The table that begins with the first line, if one does: how many lines, and its Markdown. Its
/// lines have gaps at the same places, and its columns have a common edge.
fn aligned_table(lines: &[Line]) -> Option<(usize, String)> {
    let mut rows: Vec<Vec<Vec<Word>>> = Vec::new();
    let mut columns: Vec<(f32, f32)> = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let segments = segments(line);
        let far = index > 0 && lines[index - 1].y - line.y > 3.0 * line.size;
        let mono = line.is(|w| w.mono);
        let marker = segments.len() > 1 && is_marker(&segments[0]);
        let entry = super::structure::is_entry(&line.text());
        if far
            || mono
            || marker
            || entry
            || (segments.len() < 2 && (index == 0 || columns.len() < 2))
        {
            break;
        }
        let mut merged = columns.clone();
        for segment in &segments {
            merge(&mut merged, extent(segment));
        }
        // A line that bridges columns is no row; the first lines may still set up the columns.
        if merged.len() < columns.len() || merged.len() < 2 || merged.len() > MAX_COLUMNS {
            break;
        }
        // So is a single piece of text left of, or right of, all columns but the first.
        if segments.len() == 1
            && (merged.len() > columns.len() || is_sentence_start(lines, index, &columns))
        {
            break;
        }
        columns = merged;
        rows.push(segments);
    }
    while rows.last().is_some_and(|row| row.len() < 2) {
        rows.pop();
    }
    let full = rows.iter().filter(|row| row.len() >= 2).count();
    let enough = if columns.len() > 2 { full >= 2 } else { full >= 3 };
    if !enough || 2 * full < rows.len() || !columns[1..].iter().all(|c| has_edge(&rows, *c)) {
        return None;
    }
    let count = rows.len();
    Some((count, pipe_table(&cells(&rows, &columns, &lines[..count]))))
}

fn is_marker(words: &[Word]) -> bool {
    let text: String = words.iter().map(|w| w.text.as_str()).collect();
    crate::read::text::item(&format!("{text} x")).is_some()
        || text.chars().all(|c| !c.is_alphanumeric())
}

/// A full line at the left edge after a table is the text that goes on.
fn is_sentence_start(lines: &[Line], index: usize, columns: &[(f32, f32)]) -> bool {
    let line = &lines[index];
    line.x0 < columns[0].0 + 0.5 * line.size && line.x1 > columns[0].1 + line.size
}

/// Adds an extent to disjoint ordered ones; those it touches become one.
fn merge(columns: &mut Vec<(f32, f32)>, (x0, x1): (f32, f32)) {
    let (mut low, mut high) = (x0, x1);
    columns.retain(|&(a, b)| {
        let apart = b < low || a > high;
        if !apart {
            (low, high) = (low.min(a), high.max(b));
        }
        apart
    });
    columns.push((low, high));
    columns.sort_by(|a, b| a.0.total_cmp(&b.0));
}

/// Whether most cells of a column share their left or right edge, or their middle.
fn has_edge(rows: &[Vec<Vec<Word>>], column: (f32, f32)) -> bool {
    let inside: Vec<(f32, f32)> = rows
        .iter()
        .filter_map(|row| {
            row.iter().map(|s| extent(s)).find(|e| e.0 >= column.0 && e.1 <= column.1)
        })
        .collect();
    let common = |of: fn(&(f32, f32)) -> f32| {
        let values: Vec<f32> = inside.iter().map(of).collect();
        let agreeing =
            values.iter().map(|v| values.iter().filter(|o| (*o - v).abs() < 2.0).count());
        agreeing.max().unwrap_or(0) * 3 >= values.len() * 2
    };
    common(|e| e.0) || common(|e| e.1) || common(|e| (e.0 + e.1) / 2.0)
}

/// Lines as rows of cells. Where some lines stand closer than others, the close ones belong to one
/// row; otherwise a line without text in the first column goes on with the row above.
fn cells(rows: &[Vec<Vec<Word>>], columns: &[(f32, f32)], lines: &[Line]) -> Vec<Vec<String>> {
    let gaps: Vec<f32> = lines.windows(2).map(|pair| pair[0].y - pair[1].y).collect();
    let least = gaps.iter().copied().fold(f32::INFINITY, f32::min);
    let most = gaps.iter().copied().fold(0.0, f32::max);
    let spaced = most > 1.35 * least;
    let mut table: Vec<Vec<String>> = Vec::new();
    for (index, row) in rows.iter().enumerate() {
        let mut line = vec![String::new(); columns.len()];
        for segment in row {
            let middle = (extent(segment).0 + extent(segment).1) / 2.0;
            let column = columns.iter().position(|c| middle <= c.1).unwrap_or(columns.len() - 1);
            let text = text_of(segment, lines[index].y, lines[index].size);
            line[column] = format!("{} {text}", line[column]).trim().to_owned();
        }
        let close =
            index > 0 && spaced && gaps[index - 1] < 1.15 * least && row.len() < columns.len();
        let goes_on = index > 0 && line[0].is_empty();
        match table.last_mut() {
            Some(above) if goes_on || close => {
                for (cell, more) in above.iter_mut().zip(line) {
                    *cell = format!("{cell} {more}").trim().to_owned();
                }
            }
            _ => table.push(line),
        }
    }
    table
}

/// Rules nearer than this are one, in points.
const SAME: f32 = 3.0;
/// Rules on a page beyond which it is a drawing.
const MAX_RULES: usize = 4000;

/// The tables drawn with horizontal and vertical rules, from top to bottom, and the other words.
fn ruled_tables(words: Vec<Word>, rules: &[Rule]) -> (Vec<(String, f32)>, Vec<Word>) {
    let mut tables = Vec::new();
    let mut words = words;
    if rules.len() > MAX_RULES {
        return (tables, words);
    }
    for rules in groups(rules) {
        let vertical: Vec<&Rule> =
            rules.iter().filter(|r| r.x1 - r.x0 < SAME && r.y1 - r.y0 > SAME).collect();
        let horizontal: Vec<&Rule> =
            rules.iter().filter(|r| r.y1 - r.y0 < SAME && r.x1 - r.x0 > SAME).collect();
        let xs = distinct(vertical.iter().map(|r| (r.x0 + r.x1) / 2.0));
        let ys = distinct(horizontal.iter().map(|r| (r.y0 + r.y1) / 2.0));
        if xs.len() < 3 || ys.len() < 3 || xs.len() > MAX_COLUMNS + 1 {
            continue;
        }
        let within = |w: &Word| {
            let middle = (w.x0 + w.x1) / 2.0;
            middle > xs[0]
                && middle < xs[xs.len() - 1]
                && w.y > ys[0] - 1.0
                && w.y < ys[ys.len() - 1]
        };
        let (inside, outside): (Vec<Word>, Vec<Word>) = words.into_iter().partition(within);
        words = outside;
        let mut cells = vec![vec![Vec::new(); xs.len() - 1]; ys.len() - 1];
        for word in inside {
            let middle = (word.x0 + word.x1) / 2.0;
            let column = xs.iter().rposition(|x| *x < middle).unwrap_or(0).min(xs.len() - 2);
            // The baseline is a little above the cell's lower rule.
            let row = ys
                .iter()
                .rposition(|y| *y < word.y + 0.3 * word.size)
                .unwrap_or(0)
                .min(ys.len() - 2);
            cells[ys.len() - 2 - row][column].push(word);
        }
        let mut rows: Vec<Vec<String>> = cells
            .into_iter()
            .map(|row| row.into_iter().map(cell_text).collect::<Vec<String>>())
            .filter(|row| row.iter().any(|cell| !cell.is_empty()))
            .collect();
        drop_empty_columns(&mut rows);
        if !rows.is_empty() {
            tables.push((as_markdown(&rows), ys[ys.len() - 1]));
        }
    }
    tables.sort_by(|a, b| b.1.total_cmp(&a.1));
    (tables, words)
}

fn cell_text(words: Vec<Word>) -> String {
    let lines: Vec<String> = lines(words).iter().map(Line::text).collect();
    super::structure::join(lines.iter().map(String::as_str))
}

fn drop_empty_columns(rows: &mut [Vec<String>]) {
    let columns = rows.first().map_or(0, Vec::len);
    for column in (0..columns).rev() {
        if rows.iter().all(|row| row[column].is_empty()) {
            rows.iter_mut().for_each(|row| drop(row.remove(column)));
        }
    }
}

/// A frame with one column is a box around text.
fn as_markdown(rows: &[Vec<String>]) -> String {
    if rows[0].len() > 1 { pipe_table(rows) } else { rows.concat().join("\n\n") }
}

/// Rules that touch each other, directly or through others.
fn groups(rules: &[Rule]) -> Vec<Vec<Rule>> {
    let mut groups: Vec<(Rule, Vec<Rule>)> = Vec::new();
    for rule in rules.iter().filter(|r| r.x1 - r.x0 < SAME || r.y1 - r.y0 < SAME) {
        let mut joined = (*rule, vec![*rule]);
        let mut index = 0;
        while index < groups.len() {
            let (a, b) = (&joined.0, &groups[index].0);
            let apart = a.x1 + SAME < b.x0
                || b.x1 + SAME < a.x0
                || a.y1 + SAME < b.y0
                || b.y1 + SAME < a.y0;
            if apart {
                index += 1;
                continue;
            }
            let (other, members) = groups.swap_remove(index);
            joined.0 = Rule {
                x0: joined.0.x0.min(other.x0),
                y0: joined.0.y0.min(other.y0),
                x1: joined.0.x1.max(other.x1),
                y1: joined.0.y1.max(other.y1),
            };
            joined.1.extend(members);
            // A larger box may touch groups that were passed over.
            index = 0;
        }
        groups.push(joined);
    }
    groups.into_iter().map(|(_, members)| members).collect()
}

fn distinct(values: impl Iterator<Item = f32>) -> Vec<f32> {
    let mut values: Vec<f32> = values.collect();
    values.sort_by(f32::total_cmp);
    values.dedup_by(|b, a| *b - *a < SAME);
    values
}
