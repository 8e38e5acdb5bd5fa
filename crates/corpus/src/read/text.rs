//! Plain text, and the encoding of every format that is text.

use std::path::Path;

use encoding_rs::{Encoding, UTF_8, WINDOWS_1252};

use super::{BlockKind, Document, Outline, Unusable};

/// Bytes looked at for a declaration of the encoding.
const HEAD: usize = 1024;

/// Decodes by byte order mark, as UTF-8, by an HTML `charset`, or as Windows-1252 (which holds
/// Latin-1), the first that fits.
pub(super) fn decode(path: &Path, bytes: &[u8]) -> Result<String, Unusable> {
    let encoding = match Encoding::for_bom(bytes) {
        Some((encoding, _)) => encoding,
        None if is_binary(bytes) => {
            let extension = path.extension().unwrap_or_default().to_string_lossy().into_owned();
            return Err(Unusable::Binary { extension });
        }
        None if std::str::from_utf8(bytes).is_ok() => UTF_8,
        None => declared(bytes).unwrap_or(WINDOWS_1252),
    };
    Ok(encoding.decode(bytes).0.replace("\r\n", "\n").replace(['\r', '\u{c}'], "\n"))
}

/// Text has no NUL and hardly any control character.
fn is_binary(bytes: &[u8]) -> bool {
    let control = |&&b: &&u8| b < 0x20 && !matches!(b, b'\t' | b'\n' | b'\r' | 0x0c | 0x1b);
    bytes.contains(&0) || bytes.iter().filter(control).count() * 50 > bytes.len()
}

fn declared(bytes: &[u8]) -> Option<&'static Encoding> {
    let head = String::from_utf8_lossy(&bytes[..bytes.len().min(HEAD)]).to_ascii_lowercase();
    let label = head.split("charset=").nth(1)?.trim_start_matches(['"', '\'']);
    let end = label.find(|c: char| !c.is_ascii_alphanumeric() && !"-_".contains(c));
    Encoding::for_label(&label.as_bytes()[..end.unwrap_or(label.len())])
}

/// Paragraphs are what blank lines part. Lines that were wrapped are joined; lists, lines of terms
/// and aligned text keep their lines.
pub(super) fn read(text: &str) -> Document {
    let mut outline = Outline::default();
    let width = width(text);
    let mut paragraph: Vec<&str> = Vec::new();
    for line in text.lines().chain([""]) {
        if !line.trim().is_empty() {
            paragraph.push(line.trim_end());
        } else if !paragraph.is_empty() {
            add(&mut outline, &paragraph, width);
            paragraph.clear();
        }
    }
    outline.finish()
}

/// The length that nearly all lines keep to: where text was wrapped, if it was.
fn width(text: &str) -> usize {
    let mut lengths: Vec<usize> = text
        .lines()
        .filter(|l| !l.trim().is_empty())
        .map(|l| l.trim_end().chars().count())
        .collect();
    lengths.sort_unstable();
    lengths.get(lengths.len() * 19 / 20).copied().unwrap_or(0)
}

fn add(outline: &mut Outline, lines: &[&str], width: usize) {
    if lines.len() == 2 && underlined(lines[0], lines[1]) {
        let level = if lines[1].trim().starts_with('=') { 1 } else { 2 };
        return outline.heading(level, lines[0]);
    }
    // The first heading is the document's, which stands above all others.
    if is_capitals(lines[0]) && lines.get(1).is_none_or(|second| !is_capitals(second)) {
        outline.heading(if outline.is_empty() { 1 } else { 2 }, lines[0]);
        if lines.len() > 1 {
            add(outline, &lines[1..], width);
        }
        return;
    }
    if item(lines[0]).is_some() {
        return outline.add(BlockKind::List, list(lines));
    }
    let aligned = lines.iter().any(|l| l.starts_with('\t') || l.trim().contains("   "));
    if aligned && lines.len() > 1 {
        return outline.add(BlockKind::Code, super::fenced(&lines.join("\n")));
    }
    if is_wrapped(lines, width) {
        let text: Vec<&str> = lines.iter().map(|l| l.trim()).collect();
        return outline.add(BlockKind::Paragraph, text.join(" "));
    }
    let entries: Option<Vec<String>> = lines.iter().map(|line| entry(line.trim())).collect();
    match entries {
        Some(entries) => outline.add(BlockKind::Definitions, entries.join("\n\n")),
        None => {
            let text: Vec<&str> = lines.iter().map(|l| l.trim()).collect();
            outline.add(BlockKind::Paragraph, text.join("\n"));
        }
    }
}

/// A line was wrapped if the first word of the next had no room in it.
fn is_wrapped(lines: &[&str], width: usize) -> bool {
    let length = |text: &str| text.chars().count();
    let width = lines.iter().map(|line| length(line)).fold(width, usize::max);
    lines.windows(2).all(|pair| {
        let next = pair[1].split_whitespace().next().unwrap_or_default();
        length(pair[0]) + 1 + length(next) > width
    })
}

/// `Term: text` or `Term - text`, as a definition.
fn entry(line: &str) -> Option<String> {
    let split = [": ", " - ", " – ", " — "].iter().filter_map(|mark| line.split_once(mark));
    let (term, text) = split.min_by_key(|(term, _)| term.len())?;
    let named =
        (1..=6).contains(&term.split_whitespace().count()) && !term.contains(['.', ';', ',']);
    named.then(|| format!("**{}**: {}", term.trim(), text.trim()))
}

/// A short line without small letters.
fn is_capitals(line: &str) -> bool {
    let letters = line.chars().filter(|c| c.is_alphabetic()).count();
    let words = line.split_whitespace().count();
    letters >= 4
        && words <= 12
        && !line.contains(char::is_lowercase)
        && !line.contains("  ")
        && 2 * letters > line.chars().count()
}

fn underlined(line: &str, rule: &str) -> bool {
    let rule = rule.trim();
    let bare = |mark: char| rule.len() >= 3 && rule.chars().all(|c| c == mark);
    (bare('=') || bare('-')) && rule.len() * 2 >= line.trim().chars().count()
}

/// The marker and the rest of a line that begins a list item: `- x`, `* x`, `• x`, `1. x`, `1) x`.
pub(super) fn item(line: &str) -> Option<(String, &str)> {
    let line = line.trim_start();
    if let Some(rest) = line.strip_prefix(['-', '*', '•', '–', '▪', '◦', '·', '‣', '●', '■', '□'])
    {
        let text = rest.trim_start();
        return (text.len() < rest.len() && !text.is_empty()).then(|| ("-".into(), text));
    }
    let digits = line.bytes().take_while(u8::is_ascii_digit).count();
    let rest = line[digits..].strip_prefix(['.', ')'])?;
    let text = rest.trim_start();
    let number = (1..=3).contains(&digits) && text.len() < rest.len() && !text.is_empty();
    number.then(|| (format!("{}.", &line[..digits]), text))
}

fn list(lines: &[&str]) -> String {
    let mut text = String::new();
    let outermost = lines[0].len() - lines[0].trim_start().len();
    for line in lines {
        let indent = line.len() - line.trim_start().len();
        match item(line) {
            Some((marker, rest)) => {
                let nested = if indent > outermost { "  " } else { "" };
                text.push_str(&format!("\n{nested}{marker} {rest}"));
            }
            None => text.push_str(&format!(" {}", line.trim())),
        }
    }
    text.trim().to_owned()
}
