//! How results look: tables, plans, reports.

pub mod plan;
pub mod report;

use std::time::Duration;

/// Columns of text, each as wide as its widest cell; the last one is not padded.
pub fn table(rows: &[Vec<String>]) -> Vec<String> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter()
            .filter_map(|r| r.get(column))
            .map(|c| c.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    rows.iter()
        .map(|row| {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                line.push_str(cell);
                if column + 1 < row.len() {
                    let pad = widths.get(column).copied().unwrap_or(0) + 2 - cell.chars().count();
                    line.extend(std::iter::repeat_n(' ', pad));
                }
            }
            line.trim_end().to_owned()
        })
        .collect()
}

/// Bytes for people, in powers of 1000 as disks and networks count.
pub fn bytes(count: u64) -> String {
    if count < 1000 {
        return format!("{count} B");
    }
    let mut value = count as f64;
    let mut unit = "B";
    for next in ["kB", "MB", "GB", "TB", "PB"] {
        if value < 999.5 {
            break;
        }
        value /= 1000.0;
        unit = next;
    }
    if value < 9.95 {
        format!("{value:.1} {unit}")
    } else {
        format!("{value:.0} {unit}")
    }
}

/// A duration for people.
pub fn duration_ms(ms: u64) -> String {
    match Duration::from_millis(ms).as_secs() {
        0 => format!("{ms} ms"),
        1..=99 => format!("{:.1} s", ms as f64 / 1000.0),
        s @ 100..=5999 => format!("{} min {} s", s / 60, s % 60),
        s => format!("{} h {} min", s / 3600, s / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        let seen: Vec<String> = [0, 999, 1000, 9_960, 99_000, 999_600, 123_456_789]
            .into_iter()
            .map(bytes)
            .collect();
        assert_eq!(
            seen,
            ["0 B", "999 B", "1.0 kB", "10 kB", "99 kB", "1.0 MB", "123 MB"]
        );
        let seen: Vec<String> = [7, 1500, 125_000, 7_260_000]
            .into_iter()
            .map(duration_ms)
            .collect();
        assert_eq!(seen, ["7 ms", "1.5 s", "2 min 5 s", "2 h 1 min"]);
    }

    #[test]
    fn columns_line_up() {
        let rows = [
            vec!["a".to_owned(), "b".to_owned()],
            vec!["ccc".to_owned(), String::new()],
        ];
        assert_eq!(table(&rows), ["a    b", "ccc"]);
    }
}
