//! The documents say what the code says.

use rustmq_protocol::*;

const WIRE: &str = include_str!("../../docs/formats/wire.md");

#[test]
fn every_error_code_stands_in_the_document_as_in_the_code() {
    let yes = |answer| if answer { "yes" } else { "no" };
    for code in ErrorCode::ALL {
        let row = format!(
            "| {} | `{}` | {} | {} | {} |",
            *code as u16,
            code.name(),
            yes(code.is_retriable()),
            yes(code.is_definite()),
            code.meaning()
        );
        assert!(WIRE.lines().any(|line| line == row), "missing: {row}");
    }
    let rows = WIRE.matches("` | yes | ").count() + WIRE.matches("` | no | ").count();
    assert_eq!(rows, ErrorCode::ALL.len(), "no row for a code that is not there");
}

#[test]
fn every_kind_stands_in_the_document_as_in_the_code() {
    for kind in RequestKind::ALL {
        let row = format!("| {} | {kind:?} |", *kind as u16);
        assert!(WIRE.lines().any(|line| line.starts_with(&row)), "missing: {row}");
    }
}
