//! Facts of pipe tables.

use std::collections::{BTreeMap, HashSet};

use super::{Attribute, Content, Fact, Scope, Subject, clean_key, clean_value};
use crate::english;
use crate::markdown::Row;
use crate::restate::header::{self, Header};

/// Subjects that are listed together under one value.
const LONGEST_LISTING: usize = 8;

pub(super) fn extract(scope: &Scope, header: &[String], rows: &[Row], facts: &mut Vec<Fact>) {
    let rows = fill_down(header.len(), rows);
    if header.len() < 2 || rows.is_empty() {
        return;
    }
    if header::is_property(&header[0]) && header.len() <= 3 {
        return properties(scope, header, &rows, facts);
    }
    let Some(key) = key_column(header, &rows) else { return };
    let columns = columns(header, &key);
    for (index, row) in rows.iter().enumerate() {
        let Some(subject) = subject(header, &key, row) else { continue };
        let fields = fields(header, &columns, row);
        for (column, attribute, value) in &fields {
            let same = rows.iter().filter(|other| other.cells[*column] == row.cells[*column]);
            let kind = header::kind(&header[*column]);
            let only = columns.iter().filter(|&&c| header::kind(&header[c]) == kind).count() == 1;
            let content = Content::Attribute(Attribute {
                subject: subject.clone(),
                attribute: attribute.clone(),
                value: value.clone(),
                identifies: same.count() == 1 && !english::is_bare_number(value),
                only_of_kind: only,
            });
            facts.push(Fact { scope: scope.clone(), evidence: row.source.clone(), content });
        }
        if fields.len() > 1 {
            let unique_pairs = unique_pairs(&rows, index, &fields);
            let fields =
                fields.into_iter().map(|(_, attribute, value)| (attribute, value)).collect();
            let content = Content::Record { subject, fields, unique_pairs };
            facts.push(Fact { scope: scope.clone(), evidence: row.source.clone(), content });
        }
    }
    listings(scope, header, &key, &columns, &rows, facts);
}

/// The column whose cells name the rows, and the one that tells equal names apart.
struct Key {
    column: usize,
    qualifier: Option<usize>,
    /// A running number that says nothing.
    ordinal: bool,
}

fn key_column(header: &[String], rows: &[Row]) -> Option<Key> {
    let unique = |column: usize| {
        let cells: HashSet<&str> = rows.iter().map(|row| row.cells[column].as_str()).collect();
        cells.len() == rows.len() && !cells.contains("")
    };
    let ordinal = rows
        .iter()
        .enumerate()
        .all(|(index, row)| row.cells[0].trim_end_matches('.') == (index + 1).to_string())
        && header::is_ordinal(&header[0]);
    let first = usize::from(ordinal && header.len() > 2);
    let plain = |column| Some(Key { column, qualifier: None, ordinal: first == 1 });
    if unique(first) {
        return plain(first);
    }
    let codes = |column: usize| rows.iter().all(|row| english::is_code(&row.cells[column]));
    if let Some(column) = (first + 1..header.len()).find(|&c| unique(c) && codes(c)) {
        return plain(column);
    }
    let pairs: HashSet<(&str, &str)> = rows
        .iter()
        .map(|r| (r.cells[first].as_str(), r.cells.get(first + 1).map_or("", |c| c)))
        .collect();
    if header.len() > first + 2 && pairs.len() == rows.len() {
        return Some(Key { column: first + 1, qualifier: Some(first), ordinal: first == 1 });
    }
    None
}

fn columns(header: &[String], key: &Key) -> Vec<usize> {
    let taken = |c: usize| c == key.column || Some(c) == key.qualifier || key.ordinal && c == 0;
    (0..header.len())
        .filter(|&c| !taken(c) && !header[c].trim().is_empty() && !header::is_unit(&header[c]))
        .collect()
}

fn subject(header: &[String], key: &Key, row: &Row) -> Option<Subject> {
    let name = clean_key(&row.cells[key.column])?;
    let noun = header::noun(&header[key.column]);
    if noun.is_empty() && english::is_bare_number(&name) {
        return None;
    }
    let qualifier = match key.qualifier {
        None => None,
        Some(column) => {
            let value = clean_key(&row.cells[column])?;
            let noun = header::noun(&header[column]);
            let names_itself = noun.is_empty() || value.to_lowercase().contains(&noun);
            Some(if names_itself { value } else { format!("{noun} {value}") })
        }
    };
    Some(Subject { noun, key: name, qualifier })
}

/// Column, attribute and value of each usable cell of a row.
fn fields(header: &[String], columns: &[usize], row: &Row) -> Vec<(usize, String, String)> {
    let mut fields = Vec::new();
    for &column in columns {
        let Some(mut value) = clean_value(&row.cells[column]) else { continue };
        let Header { phrase, unit } = header::read(&header[column]);
        let unit = unit.or_else(|| {
            header.get(column + 1).filter(|next| header::is_unit(next))?;
            clean_value(&row.cells[column + 1])
        });
        if let Some(unit) = unit.filter(|_| ends_with_digit(&value)) {
            value = format!("{value} {unit}");
        }
        fields.push((column, phrase, value));
    }
    fields
}

fn ends_with_digit(value: &str) -> bool {
    value.ends_with(|c: char| c.is_ascii_digit())
        && value.starts_with(|c: char| c.is_ascii_digit() || "+-−~<>≤≥±".contains(c))
}

fn unique_pairs(
    rows: &[Row],
    index: usize,
    fields: &[(usize, String, String)],
) -> Vec<(usize, usize)> {
    let mut pairs = Vec::new();
    for a in 0..fields.len() {
        for b in a + 1..fields.len() {
            let (column_a, column_b) = (fields[a].0, fields[b].0);
            let cells = |row: &Row| (row.cells[column_a].clone(), row.cells[column_b].clone());
            let own = cells(&rows[index]);
            let short = english::word_count(&own.0) + english::word_count(&own.1) <= 14;
            if short && rows.iter().filter(|row| cells(row) == own).count() == 1 {
                pairs.push((a, b));
            }
        }
    }
    pairs
}

/// `Parameter | Value` tables: the rows are attributes of what the section is about.
fn properties(scope: &Scope, header: &[String], rows: &[Row], facts: &mut Vec<Fact>) {
    let Some(topic) = scope.section.clone().or_else(|| clean_key(&scope.title)) else { return };
    for row in rows {
        let (Some(name), Some(mut value)) = (clean_key(&row.cells[0]), clean_value(&row.cells[1]))
        else {
            continue;
        };
        let Header { phrase, unit } = header::read(&name);
        let column = header.get(2).filter(|h| header::is_unit(h));
        let unit = unit.or_else(|| column.and_then(|_| clean_value(&row.cells[2])));
        if let Some(unit) = unit.filter(|_| ends_with_digit(&value)) {
            value = format!("{value} {unit}");
        }
        let same = rows.iter().filter(|other| other.cells[1] == row.cells[1]).count();
        let content = Content::Property(Attribute {
            subject: Subject { noun: String::new(), key: topic.clone(), qualifier: None },
            attribute: phrase,
            value,
            identifies: same == 1,
            only_of_kind: rows
                .iter()
                .filter(|r| header::kind(&r.cells[0]) == header::kind(&name))
                .count()
                == 1
                && same == 1,
        });
        facts.push(Fact { scope: scope.clone(), evidence: row.source.clone(), content });
    }
}

/// Values that several rows share: all parts from one supplier.
fn listings(
    scope: &Scope,
    header: &[String],
    key: &Key,
    columns: &[usize],
    rows: &[Row],
    facts: &mut Vec<Fact>,
) {
    let noun = header::noun(&header[key.column]);
    if noun.is_empty() || key.qualifier.is_some() {
        return;
    }
    for &column in columns {
        let mut groups: BTreeMap<String, Vec<&Row>> = BTreeMap::new();
        for row in rows {
            if let Some((_, _, value)) = fields(header, &[column], row).pop() {
                groups.entry(value).or_default().push(row);
            }
        }
        for (value, group) in groups {
            let keys: Vec<String> =
                group.iter().filter_map(|row| clean_key(&row.cells[key.column])).collect();
            if keys.len() < 2 || keys.len() > LONGEST_LISTING || keys.len() == rows.len() {
                continue;
            }
            let sources: Vec<&str> = group.iter().map(|row| row.source.as_str()).collect();
            let attribute = header::read(&header[column]).phrase;
            let content = Content::Listing { noun: noun.clone(), attribute, value, keys };
            facts.push(Fact { scope: scope.clone(), evidence: sources.join("\n"), content });
        }
    }
}

/// Rows of the header's width; an empty first cell repeats the one above it.
fn fill_down(width: usize, rows: &[Row]) -> Vec<Row> {
    let mut filled: Vec<Row> = Vec::new();
    for row in rows {
        let mut row = row.clone();
        row.cells.resize(width, String::new());
        if let (Some(first), Some(above)) = (row.cells.first(), filled.last())
            && first.is_empty()
        {
            row.cells[0] = above.cells[0].clone();
        }
        if row.cells.iter().any(|cell| !cell.is_empty()) {
            filled.push(row);
        }
    }
    filled
}
