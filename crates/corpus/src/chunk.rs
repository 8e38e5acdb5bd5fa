//! Chunks: what one example or one training sequence is made from.

use store::Hash;

use crate::Chunk;
use crate::read::{Block, BlockKind};

/// A chunk's usual size at most, in words. A table row, a list item or a definition that is longer
/// stays in one piece.
pub const MAX_CHUNK_WORDS: usize = 1000;

/// Words, without the marks of Markdown.
pub(crate) fn words(text: &str) -> usize {
    text.split_whitespace().filter(|w| w.contains(char::is_alphanumeric)).count()
}

/// Cuts a document's blocks: a chunk is of one section and holds `limit` words at most.
pub(crate) fn chunks(document: &str, title: &str, blocks: &[Block], limit: usize) -> Vec<Chunk> {
    let mut chunks: Vec<Chunk> = Vec::new();
    let mut size = 0;
    let mut section: Option<&[String]> = None;
    for block in blocks {
        for piece in pieces(block, limit) {
            let length = words(&piece);
            match chunks.last_mut() {
                Some(chunk) if section == Some(&block.section) && size + length <= limit => {
                    chunk.text.push_str("\n\n");
                    chunk.text.push_str(&piece);
                    size += length;
                }
                _ => {
                    chunks.push(Chunk {
                        id: id(document, chunks.len()),
                        document: document.into(),
                        title: title.into(),
                        section: block.section.clone(),
                        page: block.page,
                        text: piece,
                        held_out: false,
                    });
                    size = length;
                    section = Some(&block.section);
                }
            }
        }
    }
    chunks
}

fn id(document: &str, index: usize) -> String {
    Hash::of(format!("{document}/{index}").as_bytes()).short().into()
}

/// A block in pieces of at most `limit` words, each Markdown of the same kind.
fn pieces(block: &Block, limit: usize) -> Vec<String> {
    let text = &block.text;
    if words(text) <= limit {
        return vec![text.clone()];
    }
    match block.kind {
        BlockKind::Table => {
            let mut lines = text.lines();
            let header: Vec<&str> = lines.by_ref().take(2).collect();
            let header = header.join("\n");
            let room = limit.saturating_sub(words(&header)).max(1);
            let parts = pack(lines, room, "\n").into_iter();
            parts.map(|rows| format!("{header}\n{rows}")).collect()
        }
        BlockKind::List => {
            let items = items(text);
            pack(items.iter().map(String::as_str), limit, "\n")
        }
        BlockKind::Definitions => pack(text.split("\n\n"), limit, "\n\n"),
        BlockKind::Code => {
            let mut lines: Vec<&str> = text.lines().collect();
            let fence = lines.remove(0);
            lines.pop();
            let parts = pack(lines.into_iter(), limit, "\n").into_iter();
            parts.map(|code| format!("{fence}\n{code}\n{fence}")).collect()
        }
        BlockKind::Paragraph => {
            let sentences = sentences(text).into_iter().flat_map(|sentence| {
                let all: Vec<&str> = sentence.split_whitespace().collect();
                match words(sentence) > limit {
                    true => all.chunks(limit.max(1)).map(|part| part.join(" ")).collect(),
                    false => vec![sentence.to_owned()],
                }
            });
            let sentences: Vec<String> = sentences.collect();
            pack(sentences.iter().map(String::as_str), limit, " ")
        }
    }
}

/// Joins parts as long as they stay within `limit` words.
fn pack<'a>(parts: impl Iterator<Item = &'a str>, limit: usize, separator: &str) -> Vec<String> {
    let mut packed: Vec<String> = Vec::new();
    let mut size = 0;
    for part in parts {
        let length = words(part);
        match packed.last_mut() {
            Some(last) if size + length <= limit => {
                last.push_str(separator);
                last.push_str(part);
                size += length;
            }
            _ => {
                packed.push(part.into());
                size = length;
            }
        }
    }
    packed
}

/// A list's outermost items: they begin at the start of a line, what belongs to them is indented.
fn items(text: &str) -> Vec<String> {
    let mut items: Vec<String> = Vec::new();
    for line in text.lines() {
        match items.last_mut() {
            Some(item) if line.starts_with(' ') || line.is_empty() => {
                item.push('\n');
                item.push_str(line);
            }
            _ => items.push(line.into()),
        }
    }
    items
}

/// Sentences, cut after a full stop, question or exclamation mark that white space follows.
fn sentences(text: &str) -> Vec<&str> {
    let mut sentences = Vec::new();
    let mut start = 0;
    let mut ended = false;
    for (at, character) in text.char_indices() {
        if ended && character.is_whitespace() {
            sentences.push(text[start..at].trim());
            start = at;
        }
        ended =
            matches!(character, '.' | '?' | '!' | '。') || (ended && ")\"”’".contains(character));
    }
    sentences.push(text[start..].trim());
    sentences.retain(|sentence| !sentence.is_empty());
    sentences
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn block(kind: BlockKind, section: &str, text: &str) -> Block {
        Block { kind, section: vec![section.into()], page: Some(3), text: text.into() }
    }

    fn check(blocks: &[Block], limit: usize, expected: &[&str]) {
        let chunks = chunks("doc", "Title", blocks, limit);
        let texts: Vec<&str> = chunks.iter().map(|c| c.text.as_str()).collect();
        assert_eq!(texts, expected);
    }

    #[test]
    fn a_section_is_a_chunk_and_is_cut_where_it_is_too_long() {
        use BlockKind::{Code, Definitions, List, Paragraph, Table};
        let two = [
            block(Paragraph, "A", "One two."),
            block(Paragraph, "A", "Three."),
            block(Paragraph, "B", "Four."),
        ];
        check(&two, 10, &["One two.\n\nThree.", "Four."]);
        check(&two, 2, &["One two.", "Three.", "Four."]);
        let table = "| a | b |\n| --- | --- |\n| 1 | 2 |\n| 3 | 4 |";
        check(
            &[block(Table, "A", table)],
            4,
            &["| a | b |\n| --- | --- |\n| 1 | 2 |", "| a | b |\n| --- | --- |\n| 3 | 4 |"],
        );
        check(
            &[block(List, "A", "- one two\n  three\n- four")],
            2,
            &["- one two\n  three", "- four"],
        );
        check(
            &[block(Definitions, "A", "**T**: one two\n\n**U**: three")],
            3,
            &["**T**: one two", "**U**: three"],
        );
        check(&[block(Code, "A", "```\na b\nc\n```")], 2, &["```\na b\n```", "```\nc\n```"]);
        check(
            &[block(Paragraph, "A", "One two. Three four five six.")],
            3,
            &["One two.", "Three four five", "six."],
        );
    }

    #[test]
    fn ids_differ_and_stay() {
        let blocks = [block(BlockKind::Paragraph, "A", "x"), block(BlockKind::Paragraph, "B", "y")];
        let first = chunks("doc", "", &blocks, 10);
        assert_ne!(first[0].id, first[1].id);
        assert_eq!(first[0].id, chunks("doc", "", &blocks, 10)[0].id);
        assert_ne!(first[0].id, chunks("other", "", &blocks, 10)[0].id);
    }

    proptest! {
        #[test]
        fn no_word_is_lost_and_none_moves(
            paragraphs in prop::collection::vec(("[A-C]", "([a-z]{1,6}[.,]? ){0,40}"), 0..12),
            limit in 1usize..30,
        ) {
            let blocks: Vec<Block> =
                paragraphs.iter().map(|(s, text)| block(BlockKind::Paragraph, s, text)).collect();
            let chunks = chunks("doc", "", &blocks, limit);
            let before: Vec<&str> = blocks.iter().flat_map(|b| b.text.split_whitespace()).collect();
            let after: Vec<&str> = chunks.iter().flat_map(|c| c.text.split_whitespace()).collect();
            prop_assert_eq!(before, after);
            for chunk in &chunks {
                prop_assert!(words(&chunk.text) <= limit);
            }
        }

        #[test]
        fn no_row_and_no_item_is_lost(rows in prop::collection::vec("[a-z]{1,5}( [a-z]{1,5}){0,8}", 1..30), limit in 3usize..20) {
            let list: Vec<String> = rows.iter().map(|row| format!("- {row}")).collect();
            let cut = chunks("doc", "", &[block(BlockKind::List, "A", &list.join("\n"))], limit);
            let after: Vec<&str> = cut.iter().flat_map(|c| c.text.lines()).collect();
            prop_assert_eq!(&list, &after);
            let table: Vec<Vec<String>> =
                [vec!["head".to_owned()]].into_iter().chain(rows.iter().map(|r| vec![r.clone()])).collect();
            let cut = chunks("doc", "", &[block(BlockKind::Table, "A", &crate::read::pipe_table(&table))], limit);
            let lines: Vec<&str> =
                cut.iter().flat_map(|c| c.text.lines().skip(2)).map(|l| l.trim_matches(['|', ' '])).collect();
            prop_assert_eq!(&rows, &lines);
            prop_assert!(cut.iter().all(|c| c.text.starts_with("| head |\n| --- |\n")));
        }
    }
}
