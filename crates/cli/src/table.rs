//! Columns as docker's commands align them: at least ten wide, three blanks apart, the last one ragged.

const LEAST_WIDTH: usize = 10;
const GAP: usize = 3;

/// Lays rows out below a header. Cells are taken to be clean of control characters.
pub fn layout(header: &[&str], rows: &[Vec<String>]) -> String {
    let header: Vec<String> = header.iter().map(|cell| (*cell).to_owned()).collect();
    let all = || std::iter::once(&header).chain(rows);
    let width = |column: usize| {
        let widest = all().map(|row| row[column].chars().count()).max().unwrap_or(0);
        (widest + GAP).max(LEAST_WIDTH)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    all().map(|row| one_row(row, &widths)).collect()
}

fn one_row(row: &[String], widths: &[usize]) -> String {
    let last = row.len() - 1;
    let cells = row.iter().zip(widths).enumerate();
    let text: String = cells
        .map(|(column, (cell, width))| if column == last { cell.clone() } else { format!("{cell:width$}") })
        .collect();
    text + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_as_dockers_do() {
        let rows = vec![vec!["busybox".to_owned(), "latest".to_owned(), "4.43MB".to_owned()]];
        let expected = "REPOSITORY   TAG       SIZE\nbusybox      latest    4.43MB\n";
        assert_eq!(layout(&["REPOSITORY", "TAG", "SIZE"], &rows), expected);
    }
}
