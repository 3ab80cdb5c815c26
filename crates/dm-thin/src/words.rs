//! Words of messages and table lines, as device mapper divides them.

/// The words of `text`, divided by blanks; a backslash takes the meaning out of the character
/// behind it.
pub(crate) fn split(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        if character.is_ascii_whitespace() || character == '\x0b' {
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

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn divides_by_blanks_but_not_by_escaped_ones() {
        assert_eq!(split("  0 128\tthin \n"), ["0", "128", "thin"]);
        assert_eq!(split(r"/dev/my\ disk a\\b c\"), ["/dev/my disk", r"a\b", r"c\"]);
        assert!(split(" \t ").is_empty());
    }
}
