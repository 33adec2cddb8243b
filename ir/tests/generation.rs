//! What follows a decode step.

use weft_ir::generation::{Carry, EMPTY, End, Rows, Rules, advance, carry, goes_on};
use weft_ir::graph::Input;
use weft_ir::plan::{Advance, BufferKind};

const RULES: Rules<'_> = Rules { stop_tokens: &[2, 9], context: 8 };

#[test]
fn the_first_rule_that_holds_ends_a_row() {
    assert_eq!(RULES.end(5, 3, 4), None);
    assert_eq!(RULES.end(-1, 3, 4), Some(End::NotNumbers));
    assert_eq!(RULES.end(9, 7, 1), Some(End::StopToken));
    assert_eq!(RULES.end(5, 7, 1), Some(End::Length));
    assert_eq!(RULES.end(5, 7, 2), Some(End::ContextFull));
    assert_eq!(RULES.end(5, 6, 2), None);
    assert_eq!(Rules { stop_tokens: &[], ..RULES }.end(9, 0, 2), None);
}

#[test]
fn rows_that_end_become_padding_and_the_others_go_on() {
    let (mut ids, mut positions, mut slots) = ([1, 2, 3, 0, 4], [3, 6, 7, 0, 1], [3, 14, 23, -1, 33]);
    let mut remaining = [9, 2, 9, 0, 3];
    let mut rows =
        Rows { token_ids: &mut ids, positions: &mut positions, slots: &mut slots, remaining: &mut remaining };
    // Goes on; goes on to its last; the context is full; padding, whatever was drawn for it; cancelled.
    let stream = advance(&mut rows, &[5, 6, 7, 8, 4], &[0, 0, 0, 0, -1], &RULES);
    assert_eq!(stream, [5, 6, 7, EMPTY, 4]);
    assert_eq!((ids, positions), ([5, 6, 0, 0, 0], [4, 7, 0, 0, 0]));
    assert_eq!((slots, remaining), ([4, 15, -1, -1, -1], [8, 1, 0, 0, 0]));
    assert!(goes_on(&remaining) && !goes_on(&[0, 0]));
}

/// What the advance changes is what inputs say they do between steps.
#[test]
fn the_advance_changes_the_inputs_that_move() {
    let changed = |input: &Input| Advance::writes().contains(&BufferKind::Input(*input));
    for input in Input::ALL {
        let moves = matches!(carry(input), Carry::Token | Carry::Counts);
        assert_eq!(changed(&input), moves, "{}", input.name());
    }
}
