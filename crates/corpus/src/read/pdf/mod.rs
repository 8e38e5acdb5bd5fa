//! PDF: words by their places on the page, put together to lines, paragraphs and tables. Sections
//! come from the bookmarks where there are any, else from the look of the lines.

mod content;
mod font;
mod layout;
mod structure;

use std::collections::{BTreeMap, HashMap, HashSet};

use lopdf::{LoadOptions, ObjectId};

use self::content::{Fonts, Page, Word};
use super::{Document, MAX_UNPACKED_BYTES, Unusable};

const FORMAT: &str = "PDF";
/// Pages of one file.
const MAX_PAGES: usize = 50_000;
/// Words of one file, all pages together; about 2 GiB of memory.
const MAX_WORDS: usize = 20_000_000;

/// A heading as the file's outline has it.
struct Bookmark {
    level: usize,
    title: String,
    key: String,
    page: u32,
}

pub(super) fn read(bytes: &[u8]) -> Result<Document, Unusable> {
    let options = LoadOptions::with_max_decompressed_size(MAX_UNPACKED_BYTES);
    let document = match lopdf::Document::load_mem_with_options(bytes, options) {
        Ok(document) => document,
        Err(error) => return Err(unusable(bytes, &error)),
    };
    // A file encrypted with an empty password opens; others keep their strings.
    if document.is_encrypted() && document.encryption_state.is_none() {
        return Err(Unusable::Encrypted { format: FORMAT });
    }
    let ids: Vec<ObjectId> = document.get_pages().into_values().collect();
    if ids.is_empty() {
        return Err(Unusable::Broken { format: FORMAT, detail: "it has no pages".into() });
    }
    if ids.len() > MAX_PAGES {
        let limit = MAX_PAGES as u64;
        return Err(Unusable::TooLarge { what: "the document".into(), limit, unit: "pages" });
    }
    let mut fonts = Fonts::default();
    let mut pages = Vec::with_capacity(ids.len());
    let mut words = 0;
    for id in &ids {
        let page = content::page(&document, *id, &mut fonts)?;
        words += page.words.len();
        if words > MAX_WORDS {
            let limit = MAX_WORDS as u64;
            return Err(Unusable::TooLarge { what: "the document".into(), limit, unit: "words" });
        }
        pages.push(page);
    }
    if words == 0 {
        let unmapped: usize = pages.iter().map(|page| page.unmapped).sum();
        let detail = match unmapped {
            0 => "its pages are images; recognise their text (OCR) first".to_owned(),
            _ => format!("its fonts do not say which characters the {unmapped} glyphs are"),
        };
        return Err(Unusable::NoText { detail });
    }
    pages.iter_mut().flat_map(|page| &mut page.words).for_each(clean);
    drop_furniture(&mut pages);
    let bookmarks = bookmarks(&document);
    let title = information(&document, b"Title");
    let elements = pages.into_iter().map(layout::elements).collect();
    Ok(structure::document(elements, &bookmarks, &title))
}

fn unusable(bytes: &[u8], error: &lopdf::Error) -> Unusable {
    use lopdf::Error::{Decompress, Decryption, InvalidPassword, UnsupportedSecurityHandler};
    match error {
        Decryption(_) | InvalidPassword | UnsupportedSecurityHandler(_) => {
            Unusable::Encrypted { format: FORMAT }
        }
        Decompress(lopdf::DecompressError::MemoryLimitExceeded { limit }) => {
            let what = "a stream".to_owned();
            Unusable::TooLarge { what, limit: *limit as u64, unit: "bytes when unpacked" }
        }
        _ if !bytes[..bytes.len().min(1024)].windows(5).any(|w| w == b"%PDF-") => {
            Unusable::Broken { format: FORMAT, detail: "it does not begin with %PDF-".into() }
        }
        error => {
            let cause = std::error::Error::source(error).map(|cause| format!(": {cause}"));
            Unusable::Broken {
                format: FORMAT,
                detail: format!("{error}{}", cause.unwrap_or_default()),
            }
        }
    }
}

/// An entry of the document's information dictionary, as text.
fn information(document: &lopdf::Document, key: &[u8]) -> String {
    let entry = font::dictionary(document, &document.trailer, b"Info")
        .and_then(|info| info.get_deref(key, document).ok());
    let text = entry.and_then(|entry| lopdf::decode_text_string(entry).ok()).unwrap_or_default();
    // What word processors put there by themselves is no title.
    let automatic =
        text.starts_with("Microsoft Word") || text.to_lowercase().starts_with("untitled");
    if automatic { String::new() } else { text }
}

fn bookmarks(document: &lopdf::Document) -> Vec<Bookmark> {
    let Ok(toc) = document.get_toc() else { return Vec::new() };
    let entries = toc.toc.into_iter().map(|entry| Bookmark {
        level: entry.level,
        key: structure::key(&entry.title),
        title: super::one_line(&entry.title),
        page: entry.page as u32,
    });
    let mut bookmarks: Vec<Bookmark> = entries.filter(|b| !b.title.is_empty()).collect();
    // They may stand in another order than their pages; the headings are met page by page.
    bookmarks.sort_by_key(|bookmark| bookmark.page);
    bookmarks
}

/// Ligatures and the private characters of symbol fonts become letters and bullets.
fn clean(word: &mut Word) {
    let ligature = |c: char| ('\u{fb00}'..='\u{fb06}').contains(&c);
    let private = |c: char| ('\u{e000}'..='\u{f8ff}').contains(&c);
    if !word.text.contains(|c: char| ligature(c) || private(c) || c.is_control()) {
        return;
    }
    let mut text = String::new();
    for character in word.text.chars() {
        match character {
            '\u{fb00}' => text.push_str("ff"),
            '\u{fb01}' => text.push_str("fi"),
            '\u{fb02}' => text.push_str("fl"),
            '\u{fb03}' => text.push_str("ffi"),
            '\u{fb04}' => text.push_str("ffl"),
            '\u{fb05}' | '\u{fb06}' => text.push_str("st"),
            c if private(c) => text.push('•'),
            c if c.is_control() => {}
            c => text.push(c),
        }
    }
    word.text = text;
}

/// The outer part of a page, at the top and at the bottom, where running text may stand.
const MARGIN: f32 = 0.09;
/// Pages that must share a line for it to be running text, in a document with as many.
const MIN_REPEATS: usize = 3;

/// Removes headers, footers and page numbers: lines near the edge that come again at the same
/// height, numbers aside, on several pages.
fn drop_furniture(pages: &mut [Page]) {
    let mut repeats: HashMap<(i32, String), HashSet<usize>> = HashMap::new();
    let mut numbers: HashMap<i32, usize> = HashMap::new();
    for (index, page) in pages.iter().enumerate() {
        for (y, text) in margin_lines(page) {
            if text.chars().all(|c| !c.is_alphabetic()) || is_roman(&text) {
                *numbers.entry(y).or_default() += 1;
            }
            // Heights are rounded; a neighbour catches what falls on the other side.
            for height in y - 1..=y + 1 {
                repeats.entry((height, text.clone())).or_default().insert(index);
            }
        }
    }
    // In a short document all pages have to share it.
    let enough = (pages.len() / 100).clamp(MIN_REPEATS, 20).min(pages.len()).max(2);
    for page in pages {
        let dropped: Vec<i32> = margin_lines(page)
            .into_iter()
            .filter(|(y, text)| {
                let number = text.chars().all(|c| !c.is_alphabetic()) || is_roman(text);
                let same = repeats.get(&(*y, text.clone())).map_or(0, HashSet::len);
                same >= enough || (number && numbers.get(y).is_some_and(|n| *n >= enough))
            })
            .map(|(y, _)| y)
            .collect();
        let height = page.height;
        page.words.retain(|word| {
            !(in_margin(word, height) && dropped.contains(&(word.y.round() as i32)))
        });
    }
}

fn in_margin(word: &Word, height: f32) -> bool {
    word.y < MARGIN * height || word.y > (1.0 - MARGIN) * height
}

/// The lines near the edges: their height in whole points, and their text with `#` for numbers.
fn margin_lines(page: &Page) -> Vec<(i32, String)> {
    let mut lines: BTreeMap<i32, Vec<&Word>> = BTreeMap::new();
    for word in page.words.iter().filter(|word| in_margin(word, page.height)) {
        lines.entry(word.y.round() as i32).or_default().push(word);
    }
    let text = |mut words: Vec<&Word>| {
        words.sort_by(|a, b| a.x0.total_cmp(&b.x0));
        let mut text = String::new();
        let number =
            |word: &Word| if is_roman(&word.text) { "1".into() } else { word.text.clone() };
        for character in words.iter().flat_map(|w| number(w).chars().collect::<Vec<_>>()) {
            match character {
                c if c.is_ascii_digit() => {
                    if !text.ends_with('#') {
                        text.push('#');
                    }
                }
                c => text.push(c),
            }
        }
        text
    };
    lines.into_iter().map(|(y, words)| (y, text(words))).collect()
}

/// A page's number in front matter.
fn is_roman(text: &str) -> bool {
    text.len() <= 7 && text.bytes().all(|b| b"ivxlcIVXLC".contains(&b))
}
