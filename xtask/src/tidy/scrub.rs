//! Rust source with its comments and literals blanked, so that a rule on code looks at code alone.

use std::iter::repeat_n;

/// `source` with every comment, string and character literal replaced by blanks. Line breaks stay,
/// so that line numbers hold.
pub(super) fn scrub(source: &str) -> String {
    let mut code = String::with_capacity(source.len());
    let mut rest = source;
    while !rest.is_empty() {
        let (hidden, kept) = match literal_len(rest, code.chars().next_back()) {
            Some(len) => (len, 0),
            None => (0, rest.chars().next().map_or(0, char::len_utf8)),
        };
        code.extend(rest[..hidden].chars().map(|c| if c == '\n' { c } else { ' ' }));
        code.push_str(&rest[hidden..hidden + kept]);
        rest = &rest[hidden + kept..];
    }
    code
}

/// The bytes of the comment or literal that `rest` begins with, if it begins with one. `before` is
/// the character in front: a letter there makes an `r` the end of a name, not of a raw string.
fn literal_len(rest: &str, before: Option<char>) -> Option<usize> {
    let in_name = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    match rest.as_bytes() {
        [b'/', b'/', ..] => Some(rest.find('\n').unwrap_or(rest.len())),
        [b'/', b'*', ..] => Some(block_comment_len(rest)),
        [b'"', ..] => Some(string_len(rest)),
        [b'r', ..] | [b'b' | b'c', b'r', ..] if !in_name => raw_string_len(rest),
        [b'\'', ..] => char_len(rest),
        _ => None,
    }
}

/// Block comments nest.
fn block_comment_len(rest: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < rest.len() {
        match &rest.as_bytes()[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

fn string_len(rest: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in rest.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// `r"..."`, `br#"..."#` and so on; `None` for a name that begins like one, and for `r#name`.
fn raw_string_len(rest: &str) -> Option<usize> {
    let prefix = rest.find('r')? + 1;
    let hashes = rest[prefix..].bytes().take_while(|&byte| byte == b'#').count();
    let body = prefix + hashes;
    if rest.as_bytes().get(body) != Some(&b'"') {
        return None;
    }
    let end: String = std::iter::once('"').chain(repeat_n('#', hashes)).collect();
    let len = rest[body + 1..].find(&end);
    Some(len.map_or(rest.len(), |len| body + 1 + len + end.len()))
}

/// A character literal; `None` for a lifetime.
fn char_len(rest: &str) -> Option<usize> {
    let mut characters = rest.char_indices().skip(1);
    let (_, first) = characters.next()?;
    if first == '\\' {
        characters.next()?;
        return characters.find(|(_, c)| *c == '\'').map(|(at, _)| at + 1);
    }
    let (at, second) = characters.next()?;
    (second == '\'').then_some(at + 1)
}

#[cfg(test)]
mod tests {
    use super::scrub;

    #[test]
    fn hides_comments_and_literals() {
        for (source, code) in [
            ("a // b\nc", "a     \nc"),
            ("a /* b /* c */ d */ e", "a                   e"),
            (r#"f("x \" y") + g"#, "f(        ) + g"),
            ("r#\"a \" b\"# + r#type", "           + r#type"),
            ("br\"x\" for b\"y\"", "      for b   "),
            ("'x' '\\'' '\\u{41}' &'a str", "                  &'a str"),
            ("\"a\nb\"", "  \n  "),
            ("var\"x\"", "var   "),
        ] {
            assert_eq!(scrub(source), code, "{source}");
        }
    }

    #[test]
    fn ends_with_what_is_never_closed() {
        for source in ["\"open", "/* open", "r#\"open", "'", "'\\"] {
            assert_eq!(scrub(source).len(), source.len(), "{source}");
        }
    }
}
