//! Markdown: its structure is CommonMark's, so it takes the way through HTML and both formats
//! share one account of headings, lists and tables.

use pulldown_cmark::{Options, Parser, html::push_html};

use super::{Document, html, one_line};

pub(super) fn read(text: &str) -> Document {
    let (front, body) = front_matter(text);
    let options = Options::ENABLE_TABLES
        | Options::ENABLE_DEFINITION_LIST
        | Options::ENABLE_FOOTNOTES
        | Options::ENABLE_STRIKETHROUGH;
    let mut page = String::new();
    push_html(&mut page, Parser::new_ext(body, options));
    let mut document = html::read(&page);
    if let Some(title) = front.lines().find_map(|l| l.strip_prefix("title:")) {
        document.title = one_line(title.trim().trim_matches(['"', '\'']));
    }
    document
}

/// YAML between `---` lines at the very start, and what follows.
fn front_matter(text: &str) -> (&str, &str) {
    let Some(rest) = text.strip_prefix("---\n") else { return ("", text) };
    match rest.split_once("\n---\n") {
        // A rule followed by text that merely has another rule is no front matter.
        Some((front, body))
            if front.lines().all(|l| l.contains(':') || l.starts_with([' ', '-', '#'])) =>
        {
            (front, body)
        }
        _ => ("", text),
    }
}
