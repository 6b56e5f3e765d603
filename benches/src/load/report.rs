//! One table of everything, for people or for programs.

use std::fmt::Write;

use serde_json::{Map, Value, json};

use super::cases::Case;
use super::goals::{self, Goal};
use super::machine::{Cores, Machine};
use super::mtu::{Mtu, Sender};
use super::rounds::{Results, Series, Spread};
use super::sample::Figure;

/// The columns of the text; the rest stands below it.
const COLUMNS: [Figure; 6] = [
    Figure::RecordsPerS,
    Figure::MbPerS,
    Figure::P50Us,
    Figure::P99Us,
    Figure::P999Us,
    Figure::MaxUs,
];

/// What only some cases have.
const NOTES: [Figure; 12] = [
    Figure::BatchesPerFlush,
    Figure::BrokerCpuUs,
    Figure::ClientCpuUs,
    Figure::BrokerNsPerByte,
    Figure::DiskBytesPerByte,
    Figure::WrittenBytesPerByte,
    Figure::WritesPerBlock,
    Figure::FlushesPerBlock,
    Figure::MemoryKib,
    Figure::ShardCpuPercent,
    Figure::ShardCpuUs,
    Figure::LateP99Us,
];

/// How a run was made.
#[derive(Debug, Clone)]
pub struct Run {
    /// Where.
    pub machine: Machine,
    /// On which cores.
    pub cores: Cores,
    /// Rounds.
    pub rounds: u32,
    /// Seconds of each case in each round.
    pub seconds: f64,
    /// The part of the processors that others may use in a round that counts.
    pub foreign_max: f64,
}

/// The text: machine, table, notes.
pub fn text(run: &Run, results: &Results) -> String {
    let mut out = run.machine.to_string();
    let core =
        |core: Option<usize>| core.map_or_else(|| "not pinned".to_owned(), |core| core.to_string());
    let _ = writeln!(
        out,
        "cores      client {}, shard {}",
        core(run.cores.client),
        core(run.cores.server)
    );
    let _ = writeln!(
        out,
        "datagrams  up to {} bytes, but for cases named loopback: {} bytes, and {} of quinn",
        Mtu::Internet.largest(Sender::ByHand),
        Mtu::Loopback.largest(Sender::ByHand),
        Mtu::Loopback.largest(Sender::Quinn)
    );
    let _ = writeln!(
        out,
        "rounds     {} of {} s for each case, interleaved; thrown away above {:.0} % foreign load\n",
        run.rounds,
        run.seconds,
        run.foreign_max * 100.0
    );
    let mut rows = vec![header()];
    rows.extend(results.0.iter().map(|(case, series)| row(*case, series)));
    table(&mut out, &rows);
    let _ = writeln!(out);
    for (case, series) in &results.0 {
        let notes: Vec<String> = NOTES
            .iter()
            .filter_map(|figure| Some((figure, series.spread(*figure)?)))
            .map(|(figure, spread)| format!("{} {}", figure.name(), spread_text(&spread)))
            .collect();
        if !notes.is_empty() {
            let _ = writeln!(out, "{}: {}", case.name, notes.join("; "));
        }
    }
    let _ = writeln!(out);
    let mut rows = vec![GOAL_COLUMNS.map(str::to_owned).to_vec()];
    rows.extend(goals::GOALS.iter().filter_map(|goal| goal_row(goal, results)));
    table(&mut out, &rows);
    out
}

const GOAL_COLUMNS: [&str; 5] = ["#", "what", "held against", "goal", "measured"];

/// A goal over all rounds that have what it needs.
fn goal_row(goal: &Goal, results: &Results) -> Option<Vec<String>> {
    let ratio = goal.ratio(results)?;
    let verdict = if goal.is_reached(ratio.median) { "reached" } else { "gap" };
    let cells = [goal.number, goal.what, goal.reference].map(str::to_owned);
    let measured = format!("{} {verdict}", spread_text(&ratio));
    Some([cells.as_slice(), &[goal.bound.to_string(), measured]].concat())
}

/// The same for programs: every figure of every case as median, min and max.
pub fn json(run: &Run, results: &Results) -> Value {
    let mut cases = Map::new();
    for (case, series) in &results.0 {
        let mut figures = Map::new();
        for figure in COLUMNS.iter().chain(&NOTES).chain(&[Figure::RequestsPerS]) {
            if let Some(spread) = series.spread(*figure) {
                let value = json!({"median": spread.median, "min": spread.min, "max": spread.max});
                figures.insert(figure.name().to_owned(), value);
            }
        }
        let value = json!({
            "rounds": series.clean(),
            "thrown_away": series.thrown_away,
            "figures": figures,
        });
        cases.insert(case.name.to_owned(), value);
    }
    let goals: Vec<Value> = goals::GOALS
        .iter()
        .filter_map(|goal| Some((goal, goal.ratio(results)?)))
        .map(|(goal, Spread { median, min, max })| {
            json!({
                "number": goal.number,
                "what": goal.what,
                "reference": goal.reference,
                "goal": goal.bound.to_string(),
                "ratio": {"median": median, "min": min, "max": max},
                "reached": goal.is_reached(median),
            })
        })
        .collect();
    json!({
        "goals": goals,
        "machine": run.machine.json(),
        "cores": {"client": run.cores.client, "shard": run.cores.server},
        "rounds": run.rounds,
        "seconds": run.seconds,
        "foreign_max": run.foreign_max,
        "cases": cases,
    })
}

fn header() -> Vec<String> {
    let mut header = vec!["case".to_owned()];
    header.extend(COLUMNS.iter().map(|figure| figure.name().to_owned()));
    header.push("rounds (thrown away)".to_owned());
    header
}

fn row(case: Case, series: &Series) -> Vec<String> {
    let mut row = vec![case.name.to_owned()];
    row.extend(COLUMNS.iter().map(|figure| {
        series.spread(*figure).map_or_else(|| "-".to_owned(), |spread| spread_text(&spread))
    }));
    row.push(format!("{} ({})", series.clean(), series.thrown_away));
    row
}

fn spread_text(spread: &Spread) -> String {
    let Spread { median, min, max } = spread;
    format!("{} [{}-{}]", number(*median), number(*min), number(*max))
}

/// Three digits that matter.
fn number(value: f64) -> String {
    match value.abs() {
        size if size < 10.0 => format!("{value:.2}"),
        size if size < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// Columns as wide as their widest cell, in the shape of Markdown.
fn table(out: &mut String, rows: &[Vec<String>]) {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(String::len).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for (index, row) in rows.iter().enumerate() {
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(out, "| {cell:<width$} ");
        }
        out.push_str("|\n");
        if index == 0 {
            for width in &widths {
                let _ = write!(out, "|{:-<1$}", "", width + 2);
            }
            out.push_str("|\n");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_lines_up_and_numbers_keep_three_digits() {
        let mut out = String::new();
        let cells = |one: &str, two: &str| vec![one.to_owned(), two.to_owned()];
        table(&mut out, &[cells("a", "bb"), cells("ccc", "d")]);
        assert_eq!(out, "| a   | bb |\n|-----|----|\n| ccc | d  |\n");
        assert_eq!(
            (number(1.234), number(12.34), number(1234.5)),
            ("1.23".to_owned(), "12.3".to_owned(), "1234".to_owned())
        );
    }
}
