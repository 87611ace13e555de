//! Any expression on any text: the automata and the search for groups agree on
//! what matches, and the groups are where groups can be.
//!
//! The input is the expression, a NUL, and the text.
//! `cargo +nightly fuzz run ere -- -dict=fuzz/mdev_conf.dict` finds more, sooner.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use plugd::rules::ere::{Captures, Ere, Scratch};
use plugd::rules::matcher::{Scope, Set};

/// A longer expression, or its counts, would only be slow.
const LONGEST: usize = 256;
/// The time is proportional to it.
const LONGEST_TEXT: usize = 4096;

/// They begin with any byte, many also with another one.
static OTHERS: LazyLock<Vec<Ere>> = LazyLock::new(|| {
    let bytes =
        (0..=u8::MAX).map(|byte| Ere::parse(format!("[{}].*x", char::from(byte)).as_bytes()));
    bytes.flatten().collect()
});

fuzz_target!(|input: &[u8]| {
    let nul = input.iter().position(|&b| b == 0).unwrap_or(input.len());
    let (pattern, text) = (&input[..nul], input.get(nul + 1..).unwrap_or_default());
    if pattern.len() > LONGEST || text.len() > LONGEST_TEXT {
        return;
    }
    let ere = match Ere::parse(pattern) {
        Ok(ere) => ere,
        Err(error) => {
            assert!(error.at <= pattern.len(), "{error:?}");
            assert!(!error.problem.to_string().is_empty());
            return;
        }
    };
    let mut scratch = Scratch::default();
    let within = ere.captures_within(text, &mut scratch);
    let whole = ere.captures_whole(text, &mut scratch);
    assert_eq!(is_found(&ere, Scope::Anywhere, text), within.is_some());
    assert_eq!(is_found(&ere, Scope::Whole, text), whole.is_some());
    check_groups(within.as_ref(), text);
    check_groups(whole.as_ref(), text);
    if whole.is_some() {
        // It begins leftmost and nothing is longer.
        assert_eq!(within, whole);
    }
    if ere.matches_all() {
        assert!(whole.is_some());
    }
    if ere.matches_anywhere_in_all() {
        assert!(within.is_some());
    }
    check_doubled(pattern, text, within, &mut scratch);
});

/// What the automaton says.
fn is_found(ere: &Ere, scope: Scope, text: &[u8]) -> bool {
    let mut set = Set::new([ere], scope).expect("one expression is never too large");
    let mut count = 0;
    set.matches(text, |index| {
        assert_eq!(index, 0);
        count += 1;
    });
    // The states are there now.
    let mut again = 0;
    set.matches(text, |_| again += 1);
    assert_eq!(count, again);
    // Others that begin like it change nothing.
    let mut many = Set::new(OTHERS.iter().chain([ere]), scope).expect("the others are small");
    let mut among = 0;
    many.matches(text, |index| among += u32::from(index == OTHERS.len()));
    assert_eq!(count > 0, among > 0);
    count > 0
}

fn check_groups(captures: Option<&Captures>, text: &[u8]) {
    let Some(captures) = captures else { return };
    let (start, end) = captures[0].expect("a match is somewhere");
    assert!(start <= end && end <= text.len());
    for (group_start, group_end) in captures.iter().flatten() {
        assert!(start <= *group_start && group_start <= group_end && *group_end <= end);
    }
}

/// Either of two equal expressions matches what one does.
fn check_doubled(pattern: &[u8], text: &[u8], once: Option<Captures>, scratch: &mut Scratch) {
    let doubled = [pattern, b"|", pattern].concat();
    // It may be too large now.
    let Ok(ere) = Ere::parse(&doubled) else { return };
    let twice = ere.captures_within(text, scratch);
    let span = |captures: Option<Captures>| captures.map(|captures| captures[0]);
    assert_eq!(span(twice), span(once));
}
