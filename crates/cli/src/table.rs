//! Tables for people: columns aligned, no lines, so that `awk` likes them too.

/// A table of text. Its first row is the heading.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
    /// The columns whose text ends at the right.
    right: &'static [usize],
}

impl Table {
    /// A table with these headings; the columns `right` are figures.
    pub(crate) fn new(headings: &[&str], right: &'static [usize]) -> Self {
        let headings = headings.iter().map(|&heading| heading.to_owned()).collect();
        Self { rows: vec![headings], right }
    }

    /// Adds a row, with a text per column.
    pub(crate) fn add(&mut self, row: impl IntoIterator<Item = String>) {
        self.rows.push(row.into_iter().collect());
    }

    /// The table as text, a line feed after every row.
    pub(crate) fn render(&self) -> String {
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.rows[0].len()).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| {
                if self.right.contains(&column) {
                    format!("{cell:>width$}")
                } else {
                    format!("{cell:<width$}")
                }
            });
            let line = cells.collect::<Vec<_>>().join("  ");
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// A moment in RFC 3339 as people want it: to the second.
pub(crate) fn moment(at: Option<&str>) -> String {
    match at.map(|at| (at, at.split_once('.'))) {
        None => "unknown".to_owned(),
        Some((_, Some((seconds, fraction)))) if fraction.ends_with('Z') => format!("{seconds}Z"),
        Some((at, _)) => at.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::{Table, moment};

    #[test]
    fn moments_are_told_to_the_second() {
        assert_eq!(moment(Some("2026-07-01T10:11:12.345Z")), "2026-07-01T10:11:12Z");
        assert_eq!(moment(Some("2026-07-01T10:11:12Z")), "2026-07-01T10:11:12Z");
        assert_eq!(moment(None), "unknown");
    }

    #[test]
    fn columns_align() {
        let mut table = Table::new(&["NAME", "SIZE", "NOTE"], &[1]);
        table.add(["db".into(), "20 GiB".into(), String::new()]);
        table.add(["web-1".into(), "1 B".into(), "new".into()]);
        assert_eq!(table.render(), "NAME     SIZE  NOTE\ndb     20 GiB\nweb-1     1 B  new\n");
    }
}
