/// The text of a sequence while its tokens arrive: withholds what may still change.
///
/// Withheld are bytes of an incomplete character, and text that may be the beginning of a stop
/// string. So what was released is always a prefix of the final text.
pub(crate) struct TextStream {
    stop: Vec<String>,
    /// The beginning of a character.
    bytes: Vec<u8>,
    withheld: String,
}

/// Text that is certain now.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Released {
    Text(String),
    /// The stop string with this index follows the text: nothing more comes.
    Stopped(String, usize),
}

impl TextStream {
    pub(crate) fn new(stop: Vec<String>) -> Self {
        TextStream { stop, bytes: Vec::new(), withheld: String::new() }
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) -> Released {
        self.bytes.extend_from_slice(bytes);
        let complete = complete_len(&self.bytes);
        let text: Vec<u8> = self.bytes.drain(..complete).collect();
        self.withheld.push_str(&String::from_utf8_lossy(&text));
        self.release()
    }

    /// Whatever is withheld, as no more tokens come.
    pub(crate) fn finish(mut self) -> Released {
        let rest = std::mem::take(&mut self.bytes);
        self.withheld.push_str(&String::from_utf8_lossy(&rest));
        match self.release() {
            Released::Text(text) => Released::Text(text + &self.withheld),
            stopped @ Released::Stopped(..) => stopped,
        }
    }

    fn release(&mut self) -> Released {
        let places = self.stop.iter().enumerate();
        let places = places.filter_map(|(i, stop)| Some((self.withheld.find(stop.as_str())?, i)));
        if let Some((first, index)) = places.min() {
            self.withheld.truncate(first);
            return Released::Stopped(std::mem::take(&mut self.withheld), index);
        }
        let keep = self.stop.iter().map(|stop| begun(&self.withheld, stop)).max().unwrap_or(0);
        let kept = self.withheld.split_off(self.withheld.len() - keep);
        Released::Text(std::mem::replace(&mut self.withheld, kept))
    }
}

/// The length of the longest end of `text` with which `stop` begins.
fn begun(text: &str, stop: &str) -> usize {
    let longest = text.len().min(stop.len() - 1);
    let mut lengths = (1..=longest).rev();
    lengths.find(|&len| stop.as_bytes()[..len] == text.as_bytes()[text.len() - len..]).unwrap_or(0)
}

/// How many of the bytes are no beginning of a character that further bytes could complete.
fn complete_len(bytes: &[u8]) -> usize {
    let mut start = 0;
    loop {
        match std::str::from_utf8(&bytes[start..]) {
            Ok(_) => return bytes.len(),
            Err(error) => match error.error_len() {
                Some(invalid) => start += error.valid_up_to() + invalid,
                None => return start + error.valid_up_to(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What is released after each part, and at the end; `|` marks the stop, one more for each stop
    /// string before the one that came up.
    fn check(stop: &[&str], parts: &[&[u8]], expected: &[&str]) {
        let mut stream = TextStream::new(stop.iter().map(|stop| stop.to_string()).collect());
        let mut released = Vec::new();
        for part in parts {
            match stream.push(part) {
                Released::Text(text) => released.push(text),
                Released::Stopped(text, index) => {
                    released.push(text + "|" + &"|".repeat(index));
                    assert_eq!(released, expected);
                    return;
                }
            }
        }
        match stream.finish() {
            Released::Text(text) => released.push(text),
            Released::Stopped(text, index) => released.push(text + "|" + &"|".repeat(index)),
        }
        assert_eq!(released, expected);
    }

    #[test]
    fn stop_strings_across_tokens() {
        check(&["\n\n"], &[b"one\n", b"\ntwo"], &["one", "|"]);
        check(&["\n\n"], &[b"one\n", b"two"], &["one", "\ntwo", ""]);
        check(&["END"], &[b"the E", b"N", b"D."], &["the ", "", "|"]);
        check(&["END"], &[b"the E", b"N"], &["the ", "", "EN"]);
        check(&["abc", "b"], &[b"xa", b"b"], &["x", "a||"]);
        check(&["aab"], &[b"aa", b"ab"], &["", "a|"]);
        check(&["b", "ab"], &[b"ab"], &["||"]);
        check(&[], &[b"all", b" of it"], &["all", " of it", ""]);
    }

    #[test]
    fn characters_across_tokens() {
        let euro = "€".as_bytes();
        check(&[], &[&euro[..1], &euro[1..2], &euro[2..]], &["", "", "€", ""]);
        check(&[], &[&euro[..2], b"x"], &["", "\u{fffd}x", ""]);
        check(&[], &[&euro[..2]], &["", "\u{fffd}"]);
        check(&["€"], &[b"5 ", &euro[..2], &euro[2..]], &["5 ", "", "|"]);
    }

    proptest! {
        #[test]
        fn released_text_is_the_text_before_the_first_stop(
            text in "[ab€]{0,20}", stop in "[ab€]{1,3}", cuts in prop::collection::vec(1usize..4, 0..60)
        ) {
            let mut stream = TextStream::new(vec![stop.clone()]);
            let mut released = String::new();
            let mut rest = text.as_bytes();
            let mut stopped = false;
            for cut in cuts.into_iter().chain([usize::MAX]) {
                let (part, later) = rest.split_at(cut.min(rest.len()));
                rest = later;
                match stream.push(part) {
                    Released::Text(text) => released += &text,
                    Released::Stopped(text, _) => {
                        released += &text;
                        stopped = true;
                        break;
                    }
                }
            }
            if !stopped {
                match stream.finish() {
                    Released::Text(text) | Released::Stopped(text, _) => released += &text,
                }
            }
            let expected = text.split(stop.as_str()).next().unwrap_or_default();
            prop_assert_eq!(released, expected);
            prop_assert_eq!(stopped, text.contains(&stop));
        }
    }
}
