//! Rows for people, in text.

use super::{Figures, Part, Row, Unit};

/// Prints a row with everything that belongs to it, as soon as it is there.
pub fn print_row(row: &Row) {
    println!("{}: {}", row.name, row.what);
    if let Some(failure) = &row.failure {
        println!("    FAILED: {failure}");
    }
    if let Some(measured) = &row.measured {
        println!("    measured  {}", line(measured));
    }
    if let Some(floor) = &row.floor {
        println!("    floor     {}  ({})", line(floor), floor.name);
    }
    if let Some(ratio) = row.ratio() {
        println!("    ratio     {}", Unit::Ratio.show(ratio));
    }
    for part in &row.parts {
        println!("    {:<40} {}", part.name, line(part));
    }
    for line in &row.detail {
        println!("    {line}");
    }
    for demand in &row.demands {
        let measured = demand.unit.show(demand.measured);
        println!("    {}: {measured}: {}", demand.target(), demand.verdict());
    }
}

/// Prints what all rows came to.
pub fn print_table(rows: &[Row]) {
    println!(
        "\n{:<24} {:>24} {:>11} {:>8}  target",
        "row", "measured p50 / p99", "floor", "ratio"
    );
    for row in rows {
        let p50 = |part: &Option<Part>| {
            let part = part.as_ref();
            part.map_or_else(String::new, |part| part.unit.show(part.figures.p50))
        };
        let p99 = row
            .measured
            .as_ref()
            .filter(|part| part.figures.count > 1)
            .map_or_else(String::new, |part| {
                format!(" / {}", part.unit.show(part.figures.p99))
            });
        let ratio = row.ratio().map(|ratio| Unit::Ratio.show(ratio));
        let begin = format!(
            "{:<24} {:>24} {:>11} {:>8}",
            row.name,
            p50(&row.measured) + &p99,
            p50(&row.floor),
            ratio.unwrap_or_default()
        );
        if row.demands.is_empty() {
            println!("{begin}  {}", row.verdict());
        }
        for (number, demand) in row.demands.iter().enumerate() {
            let begin = if number == 0 { &begin } else { "" };
            let measured = demand.unit.show(demand.measured);
            println!(
                "{begin:<70}  {}: {measured} {}",
                demand.target(),
                demand.verdict()
            );
        }
    }
}

fn line(part: &Part) -> String {
    let Figures {
        p50,
        p99,
        max,
        count,
        rounds_p50,
    } = part.figures;
    let show = |figure| part.unit.show(figure);
    if count <= 1 {
        return show(p50);
    }
    let spread = rounds_p50.map_or_else(String::new, |(least, largest)| {
        format!("  rounds {} to {}", show(least), show(largest))
    });
    format!(
        "p50 {:>9}  p99 {:>9}  max {:>9}  n={count}{spread}",
        show(p50),
        show(p99),
        show(max)
    )
}
