//! Lists as a person reads them. What stands in them may be a stranger's.

use std::io::{self, Write};

use crate::log::harmless;

/// Writes rows below titles, each column as wide as it has to be; nothing where there are no rows. What stands in them is
/// ASCII but for the last column, so that bytes are columns.
pub(crate) fn write<const N: usize>(out: &mut impl Write, titles: [&str; N], rows: &[[String; N]]) -> io::Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let rows: Vec<_> = rows.iter().map(|row| row.each_ref().map(|cell| harmless(cell))).collect();
    let mut widths = titles.map(str::len);
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.len().max(*width);
        }
    }
    let mut write_row = |cells: [&str; N]| {
        let row: String = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}  ")).collect();
        writeln!(out, "{}", row.trim_end())
    };
    write_row(titles)?;
    rows.iter().try_for_each(|row| write_row(row.each_ref().map(String::as_str)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut out = Vec::new();
        let row = |one: &str, other: &str| [one.to_owned(), other.to_owned()];
        write(&mut out, ["ONE", "OTHER"], &[row("a", "b"), row("longer", "")]).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "ONE     OTHER\na       b\nlonger\n");
    }
}
