//! The medians as bars, plain SVG: a group for each piece of work, in columns.

use std::fmt::Write as _;

use super::contender::Contender;
use super::report::{Report, Row, median, number};
use super::work::Kind;

/// Measures in pixels.
const COLUMNS: usize = 4;
const COLUMN: usize = 410;
const MARGIN: usize = 16;
const LINE: usize = 15;
const BAR: usize = 13;
/// Room for the names of contenders.
const NAMES: usize = 92;
/// Room for the longest bar, which leaves some for its number.
const LONGEST: f64 = 240.0;

/// Draws the medians of all rows but those that would only crowd the chart.
pub(super) fn draw(report: &Report) -> String {
    let mut blocks: Vec<Block> = Vec::new();
    for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Beside) {
        let shown = |row: &&Row| !row.name.ends_with("p99") && !row.name.ends_with("flood");
        for (index, row) in report.rows(kind).filter(shown).enumerate() {
            let mut block = Block::default();
            if index == 0 {
                let better = if kind.is_rate() { "more is better" } else { "less is better" };
                block.height += LINE / 2;
                block.text("font-weight=\"bold\"", &format!("{} ({better})", kind.title()));
            }
            block.group(row);
            blocks.push(block);
        }
    }

    let mut head = Block::default();
    report.heading().lines().for_each(|line| head.text("fill=\"#555\"", line));
    let total: usize = blocks.iter().map(|block| block.height).sum();
    let mut body = head.at(MARGIN, MARGIN);
    let (mut column, mut y, mut lowest) = (0, 0, 0);
    for block in blocks {
        // A column ends where the share of what is above it is reached.
        if y >= total / COLUMNS && column + 1 < COLUMNS {
            (column, y) = (column + 1, 0);
        }
        body += &block.at(MARGIN + column * COLUMN, MARGIN + head.height + y);
        y += block.height;
        lowest = lowest.max(y);
    }
    let (width, height) = (2 * MARGIN + COLUMNS * COLUMN, 2 * MARGIN + head.height + lowest);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n{body}</svg>\n"
    )
}

/// A piece of the chart that grows downwards.
#[derive(Default)]
struct Block {
    body: String,
    height: usize,
}

impl Block {
    fn at(&self, x: usize, y: usize) -> String {
        format!("<g transform=\"translate({x} {y})\">\n{}</g>\n", self.body)
    }

    fn text(&mut self, attributes: &str, text: &str) {
        self.height += LINE;
        let y = self.height - 4;
        let text = text.replace('&', "&amp;").replace('<', "&lt;");
        let _ = writeln!(self.body, "<text y=\"{y}\" {attributes}>{text}</text>");
    }

    fn group(&mut self, row: &Row) {
        self.height += LINE / 3;
        self.text("", &row.name);
        let most = row.contenders().map(|(_, samples)| median(samples)).fold(f64::MIN_POSITIVE, f64::max);
        for (contender, samples) in row.contenders() {
            let value = median(samples);
            let width = (value / most * LONGEST).max(1.0);
            let (y, base) = (self.height, self.height + BAR - 3);
            let _ = write!(
                self.body,
                "<text x=\"{}\" y=\"{base}\" text-anchor=\"end\">{}</text>\n\
                 <rect x=\"{NAMES}\" y=\"{y}\" width=\"{width:.0}\" height=\"{}\" fill=\"{}\"/>\n\
                 <text x=\"{:.0}\" y=\"{base}\">{}</text>\n",
                NAMES - 6,
                contender.name(),
                BAR - 2,
                color(contender),
                NAMES as f64 + width + 5.0,
                number(value),
            );
            self.height += BAR;
        }
    }
}

fn color(contender: Contender) -> &'static str {
    if contender.is_usernet() {
        "#c2410c"
    } else if contender.is_peer() {
        "#9aa5b1"
    } else {
        "#dfe3e8"
    }
}
