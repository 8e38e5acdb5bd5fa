//! From the lines of all pages to headings, paragraphs, lists and code.

use std::collections::{HashMap, HashSet};

use super::Bookmark;
use super::layout::{Element, Line};
use crate::read::{BlockKind, Document, Outline, fenced, text::item};

/// Lines further apart than this many font sizes do not belong to one paragraph.
const PARAGRAPH_GAP: f32 = 1.75;
/// A heading has fewer words than this.
const HEADING_WORDS: usize = 16;

pub(super) fn document(pages: Vec<Vec<Element>>, bookmarks: &[Bookmark], title: &str) -> Document {
    let style = Style::of(&pages);
    let mut builder = Builder {
        outline: Outline::default(),
        style,
        bookmarks,
        next: 0,
        open: Open::default(),
        contents: false,
    };
    builder.outline.set_title(title);
    for (index, elements) in pages.into_iter().enumerate() {
        builder.page(index as u32 + 1, &elements);
    }
    builder.close();
    builder.outline.finish()
}

/// What is usual in the document.
struct Style {
    body: f32,
    /// Sizes of headings, the largest first; empty where bookmarks tell the headings.
    headings: Vec<f32>,
    /// Words that occur with a hyphen inside a line.
    hyphenated: HashSet<String>,
}

impl Style {
    fn of(pages: &[Vec<Element>]) -> Self {
        let lines = || {
            pages.iter().flatten().filter_map(|e| match e {
                Element::Line(line) => Some(line),
                Element::Table(_) => None,
            })
        };
        let mut sizes: HashMap<u32, usize> = HashMap::new();
        let mut hyphenated = HashSet::new();
        for line in lines() {
            for word in &line.words {
                *sizes.entry(rounded(word.size)).or_default() += word.text.chars().count();
            }
            for word in line.words.iter().rev().skip(1).filter(|w| w.text.contains('-')) {
                hyphenated.insert(bare(&word.text));
            }
        }
        let body = sizes
            .iter()
            .max_by_key(|(size, count)| (**count, **size))
            .map_or(20, |(size, _)| *size);
        let mut headings: Vec<u32> = lines()
            .filter(|line| {
                rounded(line.size) * 100 > body * 112 && line.words.len() < HEADING_WORDS
            })
            .map(|line| rounded(line.size))
            .collect();
        headings.sort_unstable_by(|a, b| b.cmp(a));
        headings.dedup();
        Style {
            body: body as f32 / 2.0,
            headings: headings.into_iter().map(|size| size as f32 / 2.0).collect(),
            hyphenated,
        }
    }
}

/// Half points.
fn rounded(size: f32) -> u32 {
    (size * 2.0).round() as u32
}

fn bare(word: &str) -> String {
    word.trim_matches(|c: char| !c.is_alphanumeric()).to_lowercase()
}

/// The block that is being collected.
#[derive(Default)]
struct Open {
    kind: Option<BlockKind>,
    lines: Vec<Line>,
    /// A list's items: how far in they stand, their marker, their lines.
    items: Vec<(f32, String, Vec<String>)>,
}

struct Builder<'a> {
    outline: Outline,
    style: Style,
    bookmarks: &'a [Bookmark],
    /// The first bookmark whose heading was not met yet.
    next: usize,
    open: Open,
    /// In a table of contents, whose entries are not text.
    contents: bool,
}

impl Builder<'_> {
    fn page(&mut self, page: u32, elements: &[Element]) {
        // Headings of earlier pages that were not found as lines.
        while self.bookmarks.get(self.next).is_some_and(|bookmark| bookmark.page < page) {
            self.bookmark(self.next, None);
        }
        let mut fresh = true;
        let mut at = 0;
        while at < elements.len() {
            let used = match &elements[at] {
                Element::Table(markdown) => {
                    if !self.contents {
                        self.table(page, markdown);
                    }
                    1
                }
                Element::Line(line) => match self.heading(page, &elements[at..]) {
                    Some(used) => used,
                    None => {
                        self.line(page, line, fresh);
                        1
                    }
                },
            };
            at += used;
            fresh = false;
        }
    }

    fn table(&mut self, page: u32, markdown: &str) {
        self.close();
        // A long table has its header again on each page.
        if self.outline.continue_table(markdown) {
            return;
        }
        self.outline.set_page(page);
        let kind = if markdown.starts_with('|') { BlockKind::Table } else { BlockKind::Paragraph };
        self.outline.add(kind, markdown.to_owned());
    }

    /// Enters a section, and those before it that were passed over.
    fn bookmark(&mut self, index: usize, seen: Option<&str>) {
        self.close();
        for (at, bookmark) in self.bookmarks.iter().enumerate().take(index + 1).skip(self.next) {
            // The line has the number, where the bookmark has not.
            let text = if at == index { seen.unwrap_or(&bookmark.title) } else { &bookmark.title };
            self.outline.heading(bookmark.level, text);
        }
        self.next = index + 1;
        let title = self.bookmarks[index].title.to_lowercase();
        self.contents = is_contents(&title);
    }

    /// If the elements begin with a heading, enters its section and says how many lines it has.
    fn heading(&mut self, page: u32, elements: &[Element]) -> Option<usize> {
        let on_page =
            self.bookmarks.iter().enumerate().skip(self.next).take_while(|(_, b)| b.page == page);
        let mut text = String::new();
        for (used, element) in elements.iter().take(3).enumerate() {
            let Element::Line(line) = element else { break };
            text.push_str(&line.text());
            let key = key(&text);
            let found = on_page.clone().find(|(_, bookmark)| is_title(&key, &bookmark.key));
            if let Some((index, _)) = found {
                self.bookmark(index, Some(&text));
                return Some(used + 1);
            }
            if !on_page.clone().any(|(_, b)| !key.is_empty() && starts_title(&key, &b.key)) {
                break;
            }
            text.push(' ');
        }
        if self.bookmarks.is_empty() { self.heading_by_look(elements) } else { None }
    }

    /// Without bookmarks: larger than the text, or bold and alone or numbered.
    fn heading_by_look(&mut self, elements: &[Element]) -> Option<usize> {
        let Element::Line(first) = &elements[0] else { return None };
        let large = rounded(first.size) as f32 > self.style.body * 2.0 * 1.12;
        let bold = first.is(|w| w.bold);
        let text = first.text();
        let depth = number_depth(&text);
        let ends = text.ends_with(['.', ':', ',', ';']) && depth == 0;
        let starts = text.starts_with(|c: char| c.is_uppercase() || c.is_ascii_digit());
        let plain = first.words.len() < HEADING_WORDS
            && !ends
            && starts
            && text.contains(char::is_alphabetic);
        if !plain || !(large || (bold && first.size >= self.style.body * 0.98)) {
            return None;
        }
        let mut lines = vec![first];
        for element in elements.iter().skip(1).take(2) {
            let Element::Line(line) = element else { break };
            let previous = lines[lines.len() - 1];
            let same = rounded(line.size) == rounded(first.size) && line.is(|w| w.bold) == bold;
            if !same || previous.y - line.y > 1.5 * line.size || number_depth(&line.text()) > 0 {
                break;
            }
            lines.push(line);
        }
        // Several bold lines of usual size are emphasised text.
        if !large && lines.len() > 1 {
            return None;
        }
        let rank = self.style.headings.iter().position(|s| rounded(*s) == rounded(first.size));
        let level = match (depth, rank) {
            (0, Some(rank)) => rank + 1,
            (0, None) => self.style.headings.len() + 1,
            (depth, _) => depth + usize::from(self.style.headings.len() > 1),
        };
        let texts: Vec<String> = lines.iter().map(|line| line.text()).collect();
        let used = lines.len();
        let text = join(texts.iter().map(String::as_str));
        self.close();
        self.contents = is_contents(&text.to_lowercase());
        self.outline.heading(level, &text);
        Some(used)
    }

    fn line(&mut self, page: u32, line: &Line, fresh: bool) {
        let text = line.text();
        if is_entry(&text)
            || is_continuation(&text)
            || (self.contents && text.ends_with(|c: char| c.is_ascii_digit()))
        {
            return;
        }
        // A list of contents has its heading in large type, often without a bookmark.
        if line.size > self.style.body * 1.12 && is_contents(&text.to_lowercase()) {
            self.close();
            self.contents = true;
            return;
        }
        let mono = line.is(|w| w.mono);
        let marker = item(&text).filter(|_| !mono);
        let continues = self.continues(line, &text, mono, fresh);
        if let Some((marker, rest)) = marker {
            // The next item of a list, or the first of one.
            if self.open.kind != Some(BlockKind::List) || !(fresh || self.near(line, 4.0)) {
                self.start(page, BlockKind::List);
            }
            self.open.items.push((line.x0, marker, vec![rest.to_owned()]));
        } else if continues {
            if let Some((.., lines)) = self.open.items.last_mut() {
                lines.push(text);
            }
        } else {
            self.start(page, if mono { BlockKind::Code } else { BlockKind::Paragraph });
        }
        self.open.lines.push(line.clone());
    }

    fn start(&mut self, page: u32, kind: BlockKind) {
        self.close();
        self.outline.set_page(page);
        self.open.kind = Some(kind);
    }

    fn near(&self, line: &Line, sizes: f32) -> bool {
        self.open.lines.last().is_some_and(|last| {
            let gap = last.y - line.y;
            gap > -0.5 * line.size && gap < sizes * line.size
        })
    }

    /// Whether the line goes on with the open block.
    fn continues(&self, line: &Line, text: &str, mono: bool, fresh: bool) -> bool {
        let (Some(kind), Some(last)) = (self.open.kind, self.open.lines.last()) else {
            return false;
        };
        let jump = fresh || last.y < line.y - 0.5 * line.size;
        if kind == BlockKind::Code || mono {
            return kind == BlockKind::Code && mono && (jump || self.near(line, 4.0));
        }
        let before = last.text();
        let ended = before.ends_with(['.', ':', '!', '?', '。']);
        if (rounded(last.size) as f32 - rounded(line.size) as f32).abs() > 2.0 {
            return false;
        }
        if jump {
            // Over a page's or column's end only an unfinished sentence goes on.
            let lower = text.starts_with(|c: char| c.is_lowercase());
            let full = before.ends_with(['-', ',']) || last.x1 > last.right - 3.0 * last.size;
            return !ended && (lower || (full && kind == BlockKind::Paragraph));
        }
        if !self.near(line, PARAGRAPH_GAP) {
            return false;
        }
        if let Some((indent, ..)) = self.open.items.last() {
            return line.x0 > *indent + 0.3 * line.size || !ended;
        }
        let short = last.x1 < last.right - 0.25 * (last.right - last.x0);
        let first = self.open.lines.len() == 1;
        let indented =
            line.x0 > last.x0 + line.size && !first && line.x0 > self.open.lines[1].x0 + line.size;
        !(ended && (short || indented))
    }

    fn close(&mut self) {
        let open = std::mem::take(&mut self.open);
        let text = match open.kind {
            None => return,
            Some(BlockKind::Code) => fenced(&code(&open.lines)),
            Some(BlockKind::List) => list(&open.items, &self.style.hyphenated),
            Some(_) => paragraph(&open.lines, &self.style.hyphenated),
        };
        self.outline.add(open.kind.unwrap_or(BlockKind::Paragraph), text);
    }
}

fn is_contents(title: &str) -> bool {
    // An index is one too: words and the pages where they stand.
    [
        "contents",
        "table of contents",
        "inhaltsverzeichnis",
        "inhalt",
        "list of figures",
        "list of tables",
        "index",
        "stichwortverzeichnis",
    ]
    .contains(&title.trim_start_matches(|c: char| !c.is_alphabetic()))
}

/// An entry of a table of contents: dots that lead to a page's number.
pub(super) fn is_entry(text: &str) -> bool {
    let number = text.trim_end_matches(|c: char| c.is_ascii_digit());
    let dots = number.len() - number.trim_end_matches(['.', ' ', '·', '…']).len();
    number.len() < text.len() && dots >= 5 && number.trim_end().ends_with(['.', '·', '…'])
}

/// "Table 3.4: (continued)" above the next part of a table.
fn is_continuation(text: &str) -> bool {
    text.starts_with("Tab") && (text.ends_with("(continued)") || text.ends_with("(Fortsetzung)"))
}

/// Letters and digits only, in lower case: what two spellings of a heading share.
pub(super) fn key(text: &str) -> String {
    text.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

/// Whether a line is a heading: its title, with or without a number or the word "chapter" first.
fn is_title(line: &str, title: &str) -> bool {
    if title.is_empty() {
        return false;
    }
    let lead = line.strip_suffix(title);
    lead.is_some_and(is_lead)
}

fn is_lead(lead: &str) -> bool {
    let word = lead.trim_end_matches(|c: char| c.is_ascii_digit());
    matches!(word, "" | "chapter" | "kapitel" | "section" | "part" | "appendix" | "teil" | "anhang")
        || word.len() == 1
}

/// Whether a line may be the beginning of a heading of several lines.
fn starts_title(line: &str, title: &str) -> bool {
    title.starts_with(line)
        || is_lead(line)
        || line.char_indices().any(|(at, _)| {
            at > 0 && at < 12 && is_lead(&line[..at]) && title.starts_with(&line[at..])
        })
}

/// `3` for "11.2.3. Arc Move", 0 without a number.
fn number_depth(text: &str) -> usize {
    let number = text.split_whitespace().next().unwrap_or_default().trim_end_matches('.');
    let parts: Vec<&str> = number.split('.').collect();
    let numeric = |part: &&str| {
        !part.is_empty() && part.len() <= 3 && part.bytes().all(|b| b.is_ascii_digit())
    };
    let rest = text.split_whitespace().nth(1).is_some_and(|w| w.starts_with(char::is_alphabetic));
    if rest && parts.iter().all(numeric) { parts.len() } else { 0 }
}

/// Lines as running text; a word that was hyphenated at a line's end is put together again.
pub(super) fn join<'a>(lines: impl Iterator<Item = &'a str>) -> String {
    join_lines(lines, &HashSet::new())
}

fn join_lines<'a>(lines: impl Iterator<Item = &'a str>, hyphenated: &HashSet<String>) -> String {
    let mut text = String::new();
    for line in lines {
        let lower = line.starts_with(|c: char| c.is_lowercase());
        let stem = text.strip_suffix(['-', '\u{ad}', '‐']);
        let letter = stem.is_some_and(|stem| stem.ends_with(char::is_alphabetic));
        if text.is_empty() {
            text.push_str(line);
        } else if letter && lower {
            let head = stem.unwrap_or_default();
            let start = head.rfind(' ').map_or(0, |at| at + 1);
            let end = line.find(' ').unwrap_or(line.len());
            let whole = bare(&format!("{}-{}", &head[start..], &line[..end]));
            let kept = hyphenated.contains(&whole);
            let length = head.len();
            if kept {
                text = text.trim_end_matches(['\u{ad}', '‐']).to_owned();
            } else {
                text.truncate(length);
            }
            text.push_str(line);
        } else {
            text.push(' ');
            text.push_str(line);
        }
    }
    text.replace('\u{ad}', "")
}

/// A paragraph. Bold words at its beginning that something else follows are a term.
fn paragraph(lines: &[Line], hyphenated: &HashSet<String>) -> String {
    let mut texts: Vec<String> = lines.iter().map(Line::text).collect();
    if let Some(first) = lines.first() {
        let bold = first.words.iter().take_while(|w| w.bold).count();
        let more = bold < first.words.len() || (lines.len() > 1 && !lines[1].words[0].bold);
        if bold > 0 && bold <= 8 && more {
            let term: Vec<&str> = first.words[..bold].iter().map(|w| w.text.as_str()).collect();
            let term = term.join(" ");
            let rest: Vec<&str> = first.words[bold..].iter().map(|w| w.text.as_str()).collect();
            let capital =
                rest.first().map_or(lines.len() > 1, |w| w.starts_with(char::is_uppercase));
            let colon =
                term.ends_with(':') || (capital && !term.ends_with(['.', '-', '–', '!', '?', ',']));
            let mark = if colon { ":" } else { "" };
            texts[0] = format!("**{}**{mark} {}", term.trim_end_matches(':'), rest.join(" "))
                .trim_end()
                .to_owned();
        }
    }
    join_lines(texts.iter().map(String::as_str), hyphenated)
}

fn list(items: &[(f32, String, Vec<String>)], hyphenated: &HashSet<String>) -> String {
    let mut indents: Vec<f32> = Vec::new();
    let mut lines = Vec::new();
    for (x, marker, texts) in items {
        indents.retain(|indent| *indent < x + 3.0);
        if indents.last().is_none_or(|last| *last < x - 3.0) {
            indents.push(*x);
        }
        let text = join_lines(texts.iter().map(String::as_str), hyphenated);
        lines.push(format!("{}{marker} {text}", "   ".repeat(indents.len() - 1)));
    }
    lines.join("\n")
}

/// Monospaced lines with the spaces that their places on the page stand for.
fn code(lines: &[Line]) -> String {
    let left = lines.iter().map(|l| l.x0).fold(f32::INFINITY, f32::min);
    let mut text = String::new();
    let mut last: Option<&Line> = None;
    for line in lines {
        if let Some(last) = last
            && last.y - line.y > 2.0 * line.size
        {
            text.push('\n');
        }
        last = Some(line);
        // Monospaced letters are 0.6 font sizes wide in nearly every font.
        let wide = line.words.iter().max_by_key(|w| w.text.len());
        let width =
            wide.map_or(0.6 * line.size, |w| (w.x1 - w.x0) / w.text.chars().count().max(1) as f32);
        let mut written = 0;
        for word in &line.words {
            let column = ((word.x0 - left) / width.max(0.1)).round().clamp(0.0, 400.0) as usize;
            let spaces = column.saturating_sub(written).max(usize::from(written > 0));
            text.push_str(&" ".repeat(spaces));
            text.push_str(&word.text);
            written += spaces + word.text.chars().count();
        }
        text.push('\n');
    }
    text
}
