//! The matrix as a table for people and as a document for machines.

use comfy_table::{Table, presets::ASCII_MARKDOWN};
use serde_json::{Value, json};

use super::{
    Matrix,
    cell::{Cell, Column, Ending},
};
use crate::proxy::Event;

/// A row a test, a column a mode. In parentheses: passed without anything having failed over, which proves nothing.
pub fn table(matrix: &Matrix) -> Table {
    let columns = columns(&matrix.cells);
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN);
    let heads = columns.iter().map(Column::to_string);
    table.set_header(std::iter::once("test".to_owned()).chain(heads));
    let mut tests: Vec<&str> = Vec::new();
    for cell in &matrix.cells {
        if !tests.contains(&cell.test.as_str()) {
            tests.push(&cell.test);
        }
    }
    for test in tests {
        let entry = |column: &Column| {
            let cell = matrix.cells.iter().find(|cell| cell.test == test && cell.column == *column);
            cell.map(in_short).unwrap_or_default()
        };
        table.add_row(std::iter::once(test.to_owned()).chain(columns.iter().map(entry)));
    }
    table
}

/// One cell in a line.
pub fn in_short(cell: &Cell) -> String {
    let word = cell.ending.word();
    let word =
        if cell.ending == Ending::Pass && !cell.proves() { format!("({word})") } else { word.to_owned() };
    format!("{word} {:.1} s [{}]", cell.took.as_secs_f64(), cell.path)
}

/// All that is known.
pub fn document(matrix: &Matrix) -> Value {
    let cells = matrix.cells.iter().map(|cell| {
        json!({
            "test": cell.test,
            "column": cell.column.to_string(),
            "ending": cell.ending.word(),
            "failed_over": cell.path.shows(cell.column.mode),
            "returns": cell.path.returns(),
            "seconds": cell.took.as_secs_f64(),
            "path": cell.path.0.iter().map(Event::to_string).collect::<Vec<_>>(),
            "reason": cell.reason,
        })
    });
    let promises = matrix.promises.iter().map(|promise| {
        json!({ "promise": promise.text, "held": promise.held(), "seen": promise.seen, "broken": promise.broken })
    });
    json!({
        "smbd": matrix.smbd,
        "cells": cells.collect::<Vec<_>>(),
        "promises": promises.collect::<Vec<_>>(),
    })
}

/// The columns that there are, in the order in which they were first met.
fn columns(cells: &[Cell]) -> Vec<Column> {
    let mut columns = Vec::new();
    for cell in cells {
        if !columns.contains(&cell.column) {
            columns.push(cell.column);
        }
    }
    columns
}
