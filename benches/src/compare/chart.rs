//! The medians as bars, plain SVG.

use std::fmt::Write as _;

use super::report::{Report, Row, median, number};
use super::work::Kind;

/// Measures in pixels.
const WIDTH: usize = 760;
const LEFT: usize = 110;
const BAR: usize = 14;
const GAP: usize = 10;
/// Room for the longest bar, which leaves some for its number.
const LONGEST: f64 = 540.0;

/// Draws every row as a group of bars, one a contender, the longest as wide as there is room for.
pub(super) fn draw(report: &Report) -> String {
    let mut body = String::new();
    let mut y = GAP;
    for line in report.heading().lines() {
        text(&mut body, GAP, &mut y, "#555", line);
    }
    for kind in Kind::ALL {
        for (index, row) in report.rows(kind).enumerate() {
            if index == 0 {
                y += GAP;
                text(
                    &mut body,
                    GAP,
                    &mut y,
                    "#000",
                    &format!("<tspan font-weight=\"bold\">{}</tspan>", kind.title()),
                );
            }
            group(&mut body, &mut y, row);
        }
    }
    y += GAP;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {y}\" width=\"{WIDTH}\" height=\"{y}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n{body}</svg>\n"
    )
}

fn group(body: &mut String, y: &mut usize, row: &Row) {
    *y += GAP / 2;
    text(body, GAP, y, "#000", &row.name);
    let most = row.contenders().map(|(_, samples)| median(samples)).fold(f64::MIN_POSITIVE, f64::max);
    for (contender, samples) in row.contenders() {
        let value = median(samples);
        let width = (value / most * LONGEST).max(1.0);
        let color = if contender.is_peer() {
            "#9aa5b1"
        } else if contender.is_network() {
            "#c2410c"
        } else {
            "#dfe3e8"
        };
        let middle = *y + BAR - 4;
        let _ = write!(
            body,
            "<text x=\"{}\" y=\"{middle}\" text-anchor=\"end\">{}</text>\n\
             <rect x=\"{LEFT}\" y=\"{}\" width=\"{width:.0}\" height=\"{}\" fill=\"{color}\"/>\n\
             <text x=\"{:.0}\" y=\"{middle}\">{}</text>\n",
            LEFT - 6,
            contender.name(),
            *y,
            BAR - 2,
            width + 114.0,
            number(value),
        );
        *y += BAR;
    }
}

fn text(body: &mut String, x: usize, y: &mut usize, color: &str, text: &str) {
    *y += BAR;
    let _ = writeln!(body, "<text x=\"{x}\" y=\"{}\" fill=\"{color}\">{text}</text>", *y - 3);
}
