//! A URL as a QR code (ISO/IEC 18004) in half blocks: two modules in a character, one above the other.

use std::fmt::{self, Write};

use qrcode::{Color, EcLevel, QrCode};

/// The light margin that the standard asks for, in modules, and one that phones still read.
const MARGINS: [usize; 2] = [4, 2];

/// Black on white, whatever the terminal's own colours are.
const BLACK_ON_WHITE: &str = "\x1b[30;107m";
const RESET: &str = "\x1b[0m";

/// Writes the code of `url` in lines that fit `columns`. Without colours light modules are drawn, which a phone reads
/// from a dark terminal, and most from a light one.
///
/// # Errors
/// Those of `out`.
pub(crate) fn write(out: &mut impl Write, url: &str, columns: Option<usize>, colour: bool) -> fmt::Result {
    let Ok(code) = QrCode::with_error_correction_level(url, EcLevel::L) else {
        return writeln!(out, "  (this URL is too long for a QR code)");
    };
    let width = code.width();
    // The last column stays free, because some terminals wrap as soon as it is filled.
    let fits = |margin: &usize| columns.is_none_or(|columns| width + 2 * margin < columns);
    let Some(margin) = MARGINS.into_iter().find(fits) else {
        let needed = width + 2 * MARGINS[1] + 1;
        return writeln!(out, "  (a QR code of this URL takes a terminal of {needed} columns)");
    };
    let colors = code.to_colors();
    let is_dark = |x: usize, y: usize| {
        let inside = (margin..margin + width).contains(&x) && (margin..margin + width).contains(&y);
        inside && colors.get((y - margin) * width + x - margin) == Some(&Color::Dark)
    };
    let whole = width + 2 * margin;
    for y in (0..whole).step_by(2) {
        if colour {
            out.write_str(BLACK_ON_WHITE)?;
        }
        for x in 0..whole {
            // What lies below the last row is as light as the margin, or as nothing where light is what is drawn.
            let (upper, lower) = (is_dark(x, y), if y + 1 < whole { is_dark(x, y + 1) } else { !colour });
            out.write_char(match (upper == colour, lower == colour) {
                (true, true) => '█',
                (true, false) => '▀',
                (false, true) => '▄',
                (false, false) => ' ',
            })?;
        }
        out.write_str(if colour { RESET } else { "" })?;
        out.write_char('\n')?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;

    const URL: &str = "https://hooks.relay.example.com";

    fn drawn(columns: Option<usize>, colour: bool) -> String {
        let mut text = String::new();
        write(&mut text, URL, columns, colour).unwrap();
        text
    }

    /// The modules that a camera sees, dark ones as `true`.
    fn seen(text: &str, colour: bool) -> Vec<Vec<bool>> {
        let mut rows = Vec::new();
        for line in text.replace(BLACK_ON_WHITE, "").replace(RESET, "").lines() {
            let ink = |filled: &[char]| line.chars().map(|c| filled.contains(&c) == colour).collect::<Vec<_>>();
            rows.extend([ink(&['█', '▀']), ink(&['█', '▄'])]);
        }
        rows
    }

    #[test]
    fn a_camera_sees_the_code_in_its_margin() {
        let code = QrCode::with_error_correction_level(URL, EcLevel::L).unwrap();
        let expected: Vec<bool> = code.to_colors().iter().map(|color| *color == Color::Dark).collect();
        for colour in [false, true] {
            let rows = seen(&drawn(None, colour), colour);
            let inside = |row: &Vec<bool>| row[4..row.len() - 4].to_vec();
            assert_eq!(rows[4..4 + code.width()].iter().flat_map(inside).collect::<Vec<_>>(), expected);
            let margin = rows[..4].iter().flatten().chain(rows.iter().flat_map(|row| &row[..4]));
            assert!(margin.take(4 * rows[0].len()).all(|dark| !dark));
        }
    }

    #[test]
    fn it_fits_or_says_what_it_needs() {
        let width = |text: &str| text.lines().map(|line| line.chars().count()).max().unwrap();
        assert_eq!((width(&drawn(Some(80), false)), width(&drawn(Some(33), false))), (33, 29));
        assert_eq!(width(&drawn(Some(30), false)), 29);
        assert!(drawn(Some(29), false).contains("30 columns"), "{}", drawn(Some(29), false));
        let mut text = String::new();
        write(&mut text, &"x".repeat(10_000), None, false).unwrap();
        assert_eq!(text, "  (this URL is too long for a QR code)\n");
    }
}
