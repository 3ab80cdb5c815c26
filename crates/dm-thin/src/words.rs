//! Words of messages and table lines, as device mapper divides them.

/// The words of `text`, divided by blanks; a backslash takes the meaning out of the character
/// behind it.
pub(crate) fn split(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        if is_blank(character) {
            words.extend(word.take());
            continue;
        }
        let meant = match character {
            // At the very end it stands for itself.
            '\\' => characters.next().unwrap_or(character),
            _ => character,
        };
        word.get_or_insert_default().push(meant);
    }
    words.extend(word);
    words
}

/// A word whose blanks and backslashes stand for themselves.
pub(crate) fn escaped(word: &str) -> String {
    let mut escaped = String::new();
    for character in word.chars() {
        if is_blank(character) || character == '\\' {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}

/// What C's `isspace` takes for a blank: the vertical tab too.
fn is_blank(character: char) -> bool {
    character.is_ascii_whitespace() || character == '\x0b'
}

#[cfg(test)]
mod tests {
    use super::{escaped, split};

    #[test]
    fn an_escaped_word_is_one_word() {
        for word in ["a b", "a\x0bb", r"a\b\", "\t"] {
            assert_eq!(split(&escaped(word)), [word]);
        }
    }

    #[test]
    fn divides_by_blanks_but_not_by_escaped_ones() {
        assert_eq!(split("  0 128\tthin \n"), ["0", "128", "thin"]);
        assert_eq!(split(r"/dev/my\ disk a\\b c\"), ["/dev/my disk", r"a\b", r"c\"]);
        assert!(split(" \t ").is_empty());
    }
}
