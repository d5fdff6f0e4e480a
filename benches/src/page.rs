//! The report as one page that needs nothing else.

use crate::host::Host;
use crate::plot::escape;
use crate::report::{Demand, Figures, Part, Row, Unit};

const STYLE: &str = "
:root { color-scheme: light dark; --text: #1c2024; --back: #fff; --line: #d5dae0; --good: #23733f; --bad: #b3322e; }
@media (prefers-color-scheme: dark) { :root { --text: #dfe3e8; --back: #16191d; --line: #3a4149; --good: #6cc88d; --bad: #f0837d; } }
body { font: 14px/1.45 system-ui, sans-serif; color: var(--text); background: var(--back); max-width: 1100px; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .25em .7em .25em 0; border-bottom: 1px solid var(--line); }
td.number { white-space: nowrap; font-variant-numeric: tabular-nums; }
.good { color: var(--good); } .bad { color: var(--bad); font-weight: 600; }
pre { overflow-x: auto; border: 1px solid var(--line); padding: .6em; }
svg { max-width: 100%; height: auto; font: 12px system-ui, sans-serif; display: block; margin: 1em 0; }
svg text { fill: var(--text); } svg .title { font-weight: 600; font-size: 14px; } svg .grid { stroke: var(--line); }
";

/// The page's text.
#[must_use]
pub fn html(host: &Host, rows: &[Row]) -> String {
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Evertwin: benchmarks</title><style>{STYLE}</style></head><body>\n\
         <h1>Evertwin: benchmarks</h1>\n"
    );
    let reached = rows.iter().filter(|row| row.reached()).count();
    page.push_str(&format!(
        "<p>{} rows, {reached} reached. Floors are measured in the same run.</p>\n",
        rows.len()
    ));
    page += &facts(host);
    page += &table(rows);
    for row in rows {
        page += &section(row);
    }
    page + "</body></html>\n"
}

fn facts(host: &Host) -> String {
    let lines = host
        .lines()
        .into_iter()
        .map(|(name, value)| format!("<tr><th>{name}</th><td>{}</td></tr>\n", escape(&value)));
    format!(
        "<h2>Host</h2><table>\n{}</table>\n",
        lines.collect::<String>()
    )
}

fn table(rows: &[Row]) -> String {
    let mut text = String::from(
        "<h2>Rows</h2><table>\n<tr><th>row</th><th>measured, p50</th><th>p99</th><th>floor, p50</th><th>ratio</th><th>demanded: measured</th><th></th></tr>\n",
    );
    for row in rows {
        let figure = |part: &Option<Part>, of: fn(&Figures) -> f64| {
            let part = part.as_ref();
            part.map_or_else(String::new, |part| part.unit.show(of(&part.figures)))
        };
        let ratio = row.ratio().map(|ratio| Unit::Ratio.show(ratio));
        let demands: String = row.demands.iter().map(demand).collect();
        text.push_str(&format!(
            "<tr><td><a href=\"#{0}\">{0}</a><br>{1}</td><td class=\"number\">{2}</td><td class=\"number\">{3}</td>\
             <td class=\"number\">{4}</td><td class=\"number\">{5}</td><td>{demands}</td><td class=\"{6}\">{7}</td></tr>\n",
            escape(&row.name),
            escape(&row.what),
            figure(&row.measured, |figures| figures.p50),
            figure(&row.measured, |figures| figures.p99),
            figure(&row.floor, |figures| figures.p50),
            ratio.unwrap_or_default(),
            class(row.reached()),
            row.verdict()
        ));
    }
    text + "</table>\n"
}

fn demand(demand: &Demand) -> String {
    format!(
        "<div class=\"{}\">{}: {}</div>",
        class(demand.reached),
        escape(&demand.target()),
        demand.unit.show(demand.measured)
    )
}

fn class(reached: bool) -> &'static str {
    if reached { "good" } else { "bad" }
}

fn section(row: &Row) -> String {
    let mut text = format!(
        "<h2 id=\"{0}\">{0}: {1}</h2>\n",
        escape(&row.name),
        escape(&row.what)
    );
    if let Some(failure) = &row.failure {
        text.push_str(&format!(
            "<p class=\"bad\">failed: {}</p>\n",
            escape(failure)
        ));
    }
    text += "<table>\n<tr><th></th><th>p50</th><th>p99</th><th>max</th><th>samples</th><th>p50 of rounds</th></tr>\n";
    let own = row.measured.iter().map(|part| ("measured", part));
    let floor = row.floor.iter().map(|part| ("floor", part));
    let parts = row.parts.iter().map(|part| ("", part));
    for (kind, part) in own.chain(floor).chain(parts) {
        text += &part_line(kind, part);
    }
    text += "</table>\n";
    for line in &row.detail {
        text.push_str(&format!("<p>{}</p>\n", escape(line)));
    }
    row.plots.iter().for_each(|plot| text += &plot.to_svg());
    if !row.commands.is_empty() {
        let commands = escape(&row.commands.join("\n"));
        text.push_str(&format!(
            "<details><summary>Commands</summary><pre>{commands}</pre></details>\n"
        ));
    }
    text
}

fn part_line(kind: &str, part: &Part) -> String {
    let show = |figure| part.unit.show(figure);
    let Figures {
        p50,
        p99,
        max,
        count,
        rounds_p50,
    } = part.figures;
    let rounds = rounds_p50.map(|(least, largest)| format!("{} to {}", show(least), show(largest)));
    let name = if kind.is_empty() {
        escape(&part.name)
    } else {
        format!("{kind}: {}", escape(&part.name))
    };
    format!(
        "<tr><td>{name}</td><td class=\"number\">{}</td><td class=\"number\">{}</td><td class=\"number\">{}</td><td>{count}</td><td>{}</td></tr>\n",
        show(p50),
        show(p99),
        show(max),
        rounds.unwrap_or_default()
    )
}
