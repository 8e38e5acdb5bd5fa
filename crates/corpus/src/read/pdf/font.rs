//! Fonts of a PDF: which characters a string's bytes are, and how wide.
//!
//! Source: ISO 32000-1, §9.6 to 9.10.

use std::collections::HashMap;

use lopdf::{Dictionary, Document, Object};

use crate::read::MAX_UNPACKED_BYTES;

/// Ranges of a character map may claim to cover billions of codes.
const MAX_CODES: usize = 1 << 17;

pub(super) struct Font {
    pub(super) bold: bool,
    pub(super) mono: bool,
    /// Codes are two bytes long.
    wide: bool,
    characters: HashMap<u32, String>,
    widths: HashMap<u32, f32>,
    default_width: f32,
}

/// One code of a string.
pub(super) struct Glyph<'a> {
    /// Empty where the font does not tell.
    pub(super) text: &'a str,
    /// In text space units at size 1.
    pub(super) width: f32,
    /// The one-byte code 32, to which word spacing applies.
    pub(super) is_space: bool,
}

impl Font {
    pub(super) fn new(document: &Document, font: &Dictionary) -> Self {
        let wide = name(document, font, b"Subtype").as_deref() == Some("Type0");
        let base = name(document, font, b"BaseFont").unwrap_or_default();
        let lower = base.to_ascii_lowercase();
        let descendant = descendant(document, font);
        let descriptor = dictionary(document, descendant.unwrap_or(font), b"FontDescriptor");
        let flags = descriptor.and_then(|d| integer(document, d, b"Flags")).unwrap_or(0);
        let weight = descriptor.and_then(|d| number(document, d, b"FontWeight")).unwrap_or(400.0);
        let mono =
            ["mono", "courier", "consol", "typewriter", "cmtt"].iter().any(|m| lower.contains(m));
        let bold = ["bold", "black", "heavy", "semibold"].iter().any(|b| lower.contains(b));
        let mut characters = match wide {
            true => HashMap::new(),
            false => simple_characters(document, font),
        };
        if let Ok(stream) = font.get_deref(b"ToUnicode", document).and_then(Object::as_stream)
            && let Ok(map) = stream.get_plain_content_with_limit(MAX_UNPACKED_BYTES)
        {
            characters.extend(character_map(&map));
        }
        let (widths, default_width) = match descendant {
            Some(descendant) if wide => wide_widths(document, descendant),
            _ => simple_widths(document, font, descriptor, &lower, &characters),
        };
        Font {
            bold: bold || weight >= 600.0 || flags & (1 << 18) != 0,
            mono: mono || flags & 1 != 0,
            wide,
            characters,
            widths,
            default_width,
        }
    }

    pub(super) fn glyphs<'a>(&'a self, bytes: &'a [u8]) -> impl Iterator<Item = Glyph<'a>> {
        let length = if self.wide { 2 } else { 1 };
        bytes.chunks(length).map(move |code| {
            let code = code.iter().fold(0, |code, byte| code << 8 | u32::from(*byte));
            Glyph {
                text: self.characters.get(&code).map_or("", String::as_str),
                width: self.widths.get(&code).copied().unwrap_or(self.default_width),
                is_space: code == 32 && length == 1,
            }
        })
    }
}

pub(super) fn dictionary<'a>(
    document: &'a Document,
    of: &'a Dictionary,
    key: &[u8],
) -> Option<&'a Dictionary> {
    match of.get_deref(key, document).ok()? {
        Object::Dictionary(dictionary) => Some(dictionary),
        Object::Stream(stream) => Some(&stream.dict),
        _ => None,
    }
}

fn name(document: &Document, of: &Dictionary, key: &[u8]) -> Option<String> {
    let name = of.get_deref(key, document).and_then(Object::as_name).ok()?;
    Some(String::from_utf8_lossy(name).into_owned())
}

fn number(document: &Document, of: &Dictionary, key: &[u8]) -> Option<f32> {
    of.get_deref(key, document).and_then(Object::as_float).ok()
}

fn integer(document: &Document, of: &Dictionary, key: &[u8]) -> Option<i64> {
    of.get_deref(key, document).and_then(Object::as_i64).ok()
}

fn array<'a>(document: &'a Document, of: &'a Dictionary, key: &[u8]) -> Option<&'a Vec<Object>> {
    of.get_deref(key, document).and_then(Object::as_array).ok()
}

fn descendant<'a>(document: &'a Document, font: &'a Dictionary) -> Option<&'a Dictionary> {
    let first = array(document, font, b"DescendantFonts")?.first()?;
    document.dereference(first).ok()?.1.as_dict().ok()
}

/// The characters that the encoding of a one-byte font names.
fn simple_characters(document: &Document, font: &Dictionary) -> HashMap<u32, String> {
    let mut base = None;
    let mut differences = None;
    match font.get_deref(b"Encoding", document) {
        Ok(Object::Name(name)) => base = Some(name.clone()),
        Ok(Object::Dictionary(encoding)) => {
            base = name(document, encoding, b"BaseEncoding").map(String::into_bytes);
            differences = array(document, encoding, b"Differences");
        }
        _ => {}
    }
    let known = base.filter(|name| name.ends_with(b"Encoding"));
    let encoding = Object::Name(known.unwrap_or_else(|| b"StandardEncoding".to_vec()));
    let mut characters: HashMap<u32, String> = (0..=255)
        .filter_map(|code| Some((u32::from(code), decode(document, encoding.clone(), code)?)))
        .collect();
    let mut code = 0;
    for entry in differences.into_iter().flatten() {
        match entry {
            Object::Integer(start) => code = u32::try_from(*start).unwrap_or(0),
            Object::Name(glyph) => {
                characters.insert(code, glyph_character(document, glyph));
                code = code.saturating_add(1);
            }
            _ => {}
        }
    }
    characters
}

/// What `code` is in an encoding. The tables are lopdf's, which gives them out through fonts only.
fn decode(document: &Document, encoding: Object, code: u8) -> Option<String> {
    let mut font = Dictionary::new();
    font.set("Type", Object::Name(b"Font".to_vec()));
    font.set("Encoding", encoding);
    let encoding = font.get_font_encoding(document).ok()?;
    encoding.bytes_to_string(&[code]).ok().filter(|text| !text.is_empty())
}

/// The character of a glyph's name: of the Adobe glyph list, or `uni20AC`, `u1F600`, `a.alt`.
fn glyph_character(document: &Document, glyph: &[u8]) -> String {
    let name = String::from_utf8_lossy(glyph);
    let stem = name.split('.').next().unwrap_or_default();
    let number =
        stem.strip_prefix("uni").or(stem.strip_prefix('u')).filter(|digits| digits.len() >= 4);
    if let Some(code) = number.and_then(|digits| u32::from_str_radix(digits, 16).ok()) {
        return char::from_u32(code).map(String::from).unwrap_or_default();
    }
    let ligature = match stem {
        "f_f" => Some("ff"),
        "f_i" => Some("fi"),
        "f_l" => Some("fl"),
        "f_f_i" => Some("ffi"),
        "f_f_l" => Some("ffl"),
        _ => None,
    };
    if let Some(ligature) = ligature {
        return ligature.into();
    }
    let mut encoding = Dictionary::new();
    let entries = vec![Object::Integer(1), Object::Name(stem.as_bytes().to_vec())];
    encoding.set("Differences", Object::Array(entries));
    decode(document, Object::Dictionary(encoding), 1).unwrap_or_default()
}

/// A `ToUnicode` map: code → text.
fn character_map(map: &[u8]) -> HashMap<u32, String> {
    let mut characters = HashMap::new();
    let tokens = tokens(map);
    let mut at = 0;
    while at < tokens.len() {
        let ranges = match tokens[at] {
            Token::Word(b"beginbfchar") => false,
            Token::Word(b"beginbfrange") => true,
            _ => {
                at += 1;
                continue;
            }
        };
        at += 1;
        while let Some(Token::Hex(low)) = tokens.get(at) {
            if characters.len() > MAX_CODES {
                return characters;
            }
            let low = code(low);
            match (ranges, tokens.get(at + 1), tokens.get(at + 2)) {
                (false, Some(Token::Hex(text)), _) => {
                    characters.insert(low, utf16(text));
                    at += 2;
                }
                (true, Some(Token::Hex(high)), Some(Token::Hex(text))) => {
                    range(&mut characters, low, code(high), text);
                    at += 3;
                }
                (true, Some(Token::Hex(_)), Some(Token::Word(b"["))) => {
                    at += 3;
                    let mut next = low;
                    while let Some(Token::Hex(text)) = tokens.get(at) {
                        characters.insert(next, utf16(text));
                        next = next.saturating_add(1);
                        at += 1;
                    }
                    at += 1;
                }
                _ => at += 1,
            }
        }
    }
    characters
}

fn range(characters: &mut HashMap<u32, String>, low: u32, high: u32, text: &[u8]) {
    let first = utf16(text);
    let Some(last) = first.chars().last() else { return };
    let stem = &first[..first.len() - last.len_utf8()];
    for (step, code) in (low..=high).take(MAX_CODES).enumerate() {
        if let Some(character) = char::from_u32(last as u32 + step as u32) {
            characters.insert(code, format!("{stem}{character}"));
        }
    }
}

enum Token<'a> {
    Hex(Vec<u8>),
    Word(&'a [u8]),
}

fn tokens(map: &[u8]) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let mut at = 0;
    while at < map.len() {
        let rest = &map[at..];
        match rest[0] {
            b'<' if rest.get(1) != Some(&b'<') => {
                let end = rest.iter().position(|&b| b == b'>').unwrap_or(rest.len());
                tokens.push(Token::Hex(hex(&rest[1..end])));
                at += end + 1;
            }
            b'[' | b']' => {
                tokens.push(Token::Word(&rest[..1]));
                at += 1;
            }
            byte if byte.is_ascii_alphanumeric() => {
                let end =
                    rest.iter().position(|b| !b.is_ascii_alphanumeric()).unwrap_or(rest.len());
                tokens.push(Token::Word(&rest[..end]));
                at += end;
            }
            b'%' => at += rest.iter().position(|&b| b == b'\n' || b == b'\r').unwrap_or(rest.len()),
            _ => at += 1,
        }
    }
    tokens
}

fn hex(digits: &[u8]) -> Vec<u8> {
    let values: Vec<u8> =
        digits.iter().filter_map(|&d| char::from(d).to_digit(16)).map(|d| d as u8).collect();
    values.chunks(2).map(|pair| pair[0] << 4 | pair.get(1).unwrap_or(&0)).collect()
}

fn code(bytes: &[u8]) -> u32 {
    bytes.iter().take(4).fold(0, |code, byte| code << 8 | u32::from(*byte))
}

fn utf16(bytes: &[u8]) -> String {
    let units = bytes.chunks(2).map(|pair| match pair {
        [high, low] => u16::from(*high) << 8 | u16::from(*low),
        single => u16::from(single[0]),
    });
    char::decode_utf16(units).flatten().collect()
}

fn wide_widths(document: &Document, font: &Dictionary) -> (HashMap<u32, f32>, f32) {
    let mut widths = HashMap::new();
    let entries = array(document, font, b"W").cloned().unwrap_or_default();
    let entries: Vec<&Object> =
        entries.iter().filter_map(|e| Some(document.dereference(e).ok()?.1)).collect();
    let mut at = 0;
    while let Some(first) = entries.get(at).and_then(|e| e.as_i64().ok()) {
        let first = u32::try_from(first).unwrap_or(0);
        if let Some(Ok(list)) = entries.get(at + 1).map(|e| e.as_array()) {
            for (step, width) in list.iter().enumerate() {
                widths.insert(
                    first.saturating_add(step as u32),
                    width.as_float().unwrap_or(0.0) / 1000.0,
                );
            }
            at += 2;
            continue;
        }
        let last = entries.get(at + 1).and_then(|e| e.as_i64().ok()).unwrap_or(0);
        let width = entries.get(at + 2).and_then(|e| e.as_float().ok()).unwrap_or(0.0);
        for code in (first..=u32::try_from(last).unwrap_or(0)).take(MAX_CODES) {
            widths.insert(code, width / 1000.0);
        }
        at += 3;
    }
    (widths, number(document, font, b"DW").unwrap_or(1000.0) / 1000.0)
}

fn simple_widths(
    document: &Document,
    font: &Dictionary,
    descriptor: Option<&Dictionary>,
    base: &str,
    characters: &HashMap<u32, String>,
) -> (HashMap<u32, f32>, f32) {
    // A Type 3 font has a matrix of its own instead of 1000 units.
    let matrix = array(document, font, b"FontMatrix").and_then(|m| m.first()?.as_float().ok());
    let unit = matrix.unwrap_or(0.001).abs();
    let missing =
        descriptor.and_then(|d| number(document, d, b"MissingWidth")).unwrap_or(0.0) * unit;
    let first =
        integer(document, font, b"FirstChar").and_then(|f| u32::try_from(f).ok()).unwrap_or(0);
    let stated = array(document, font, b"Widths").map(|stated| {
        let width = |object| document.dereference(object).ok()?.1.as_float().ok();
        let numbered = stated.iter().take(256).enumerate();
        numbered
            .filter_map(|(i, w)| Some((first + i as u32, width(w)? * unit)))
            .collect::<HashMap<_, _>>()
    });
    if let Some(widths) = stated.filter(|widths| !widths.is_empty()) {
        return (widths, missing);
    }
    // One of the 14 fonts that every reader has.
    let widths = characters.iter().filter_map(|(code, text)| {
        let character = text.chars().next()?;
        Some((*code, standard_width(base, character)))
    });
    (widths.collect(), 0.5)
}

/// Advance widths of Helvetica and Times for the printable ASCII characters, in thousandths.
/// Source: the Adobe font metrics of the 14 standard fonts.
const HELVETICA: [u16; 95] = [
    278, 278, 355, 556, 556, 889, 667, 191, 333, 333, 389, 584, 278, 333, 278, 278, 556, 556, 556,
    556, 556, 556, 556, 556, 556, 556, 278, 278, 584, 584, 584, 556, 1015, 667, 667, 722, 722, 667,
    611, 778, 722, 278, 500, 667, 556, 833, 722, 778, 667, 778, 722, 667, 611, 722, 667, 944, 667,
    667, 611, 278, 278, 278, 469, 556, 333, 556, 556, 500, 556, 556, 278, 556, 556, 222, 222, 500,
    222, 833, 556, 556, 556, 556, 333, 500, 278, 556, 500, 722, 500, 500, 500, 334, 260, 334, 584,
];
const TIMES: [u16; 95] = [
    250, 333, 408, 500, 500, 833, 778, 180, 333, 333, 500, 564, 250, 333, 250, 278, 500, 500, 500,
    500, 500, 500, 500, 500, 500, 500, 278, 278, 564, 564, 564, 444, 921, 722, 667, 667, 722, 611,
    556, 722, 722, 333, 389, 722, 611, 889, 722, 722, 556, 722, 667, 556, 611, 722, 722, 944, 722,
    722, 611, 333, 278, 333, 469, 500, 333, 444, 500, 444, 500, 444, 333, 500, 500, 278, 278, 500,
    278, 778, 500, 500, 500, 500, 333, 389, 278, 500, 500, 722, 500, 500, 444, 480, 200, 480, 541,
];

/// Bold cuts are about a twentieth wider, which the gaps between words tolerate.
fn standard_width(base: &str, character: char) -> f32 {
    let table = match base {
        base if base.contains("courier") => return 0.6,
        base if base.contains("times") => &TIMES,
        _ => &HELVETICA,
    };
    let index = (character as usize).checked_sub(32);
    let width = index.and_then(|index| table.get(index)).copied().unwrap_or(556);
    f32::from(width) / 1000.0 * if base.contains("bold") { 1.05 } else { 1.0 }
}
