use proptest::prelude::*;

use super::*;
use crate::rules::matcher::{Scope, Set};

fn found(pattern: &str, text: &str) -> String {
    let ere = Ere::parse(pattern.as_bytes()).unwrap_or_else(|e| panic!("{pattern}: {e:?}"));
    let Some(captures) = ere.captures_within(text.as_bytes(), &mut Scratch::default()) else {
        return "none".into();
    };
    let last = captures.iter().rposition(Option::is_some).unwrap();
    let texts = captures[..=last].iter().map(|group| match *group {
        Some((start, end)) => text[start..end].to_owned(),
        None => "-".to_owned(),
    });
    texts.collect::<Vec<_>>().join(",")
}

fn error(pattern: &str) -> (usize, Problem) {
    let error = Ere::parse(pattern.as_bytes()).expect_err(pattern);
    (error.at, error.problem)
}

#[test]
fn the_longest_of_the_leftmost_matches_is_found() {
    for (pattern, text, expected) in [
        ("ab|abcd", "xabcd", "abcd"),
        ("a*", "baa", ""),
        ("x*", "", ""),
        ("(ab|cd)(e|ef)", "abef", "abef,ab,ef"),
        ("b|a|ab", "ab", "ab"),
        ("a", "b", "none"),
        ("a$b", "a$b", "none"),
        ("^a|b", "ba", "b"),
    ] {
        assert_eq!(found(pattern, text), expected, "{pattern} on {text}");
    }
}

#[test]
fn groups_are_where_both_c_libraries_have_them() {
    for (pattern, text, expected) in [
        ("sd([a-z]+)([0-9]+)", "sdab12", "sdab12,ab,12"),
        ("(a|ab)(c|bcd)(d*)", "abcd", "abcd,a,bcd,"),
        ("(a*)(ab)*(b*)", "abb", "abb,a,-,bb"),
        ("(a?)((ab)?)", "ab", "ab,,ab,ab"),
        ("(a*)*", "b", ","),
        ("(a*)*", "aaa", "aaa,aaa"),
        ("(a*){2}", "aaa", "aaa,"),
        ("(|a)+", "aaa", "aaa,a"),
        ("(aa|aaa)*", "aaaaa", "aaaaa,aaa"),
        ("((a)|b){2}", "ba", "ba,a,a"),
        ("(.*/)?([^/]*)", "a/b/c", "a/b/c,a/b/,c"),
        ("(a)(b)(c)(d)(e)(f)(g)(h)(i)(j)", "abcdefghij", "abcdefghij,a,b,c,d,e,f,g,h,i"),
        ("()", "x", ","),
    ] {
        assert_eq!(found(pattern, text), expected, "{pattern} on {text}");
    }
}

#[test]
fn brackets_are_those_of_posix() {
    for (pattern, text, expected) in [
        ("[]a]+", "b]a]", "]a]"),
        ("[^]a]", "]ab", "b"),
        ("[a-]+", "b-a", "-a"),
        ("[+--]+", "a,-+", ",-+"),
        (r"[\.]", r"\", r"\"),
        ("[[:digit:][:upper:]_]+", "aA1_b", "A1_"),
        ("[[.-.]a]+", "b-a", "-a"),
        ("[[=a=]]", "ba", "a"),
        ("[[.].]]", "]", "]"),
        ("[[.a.]-c]+", "dabc", "abc"),
        ("[[]", "[", "["),
        ("[:alpha:]", "zp", "p"),
    ] {
        assert_eq!(found(pattern, text), expected, "{pattern} on {text}");
    }
    let class = |name: &str| {
        let ere = Ere::parse(format!("[[:{name}:]]").as_bytes()).unwrap();
        let mut set = Set::new([&ere], Scope::Whole).unwrap();
        (0..=u8::MAX)
            .filter(|&byte| {
                let mut found = false;
                set.matches(&[byte], |_| found = true);
                found
            })
            .count()
    };
    let names = ["alnum", "alpha", "blank", "cntrl", "digit", "graph"];
    assert_eq!(names.map(class), [62, 52, 2, 33, 10, 94]);
    let names = ["lower", "print", "punct", "space", "upper", "xdigit"];
    assert_eq!(names.map(class), [26, 95, 32, 6, 26, 22]);
}

#[test]
fn escapes_are_those_that_the_c_libraries_agree_on() {
    for (pattern, text, expected) in [
        (r"\.\*\[\(\)\{\}\+\?\|\^\$\\", r".*[(){}+?|^$\", r".*[(){}+?|^$\"),
        (r"\w+\W\w+", "+a_1 b+", "a_1 b"),
        (r"\s\S", "a b", " b"),
        (r"\bb\B", "ab bb", "b"),
        (r"\<a|b\>", "xa b", "b"),
        (r"\/\:\-", "/:-", "/:-"),
        ("a)", "a)", "a)"),
        ("a}", "a}", "a}"),
    ] {
        assert_eq!(found(pattern, text), expected, "{pattern} on {text}");
    }
}

#[test]
fn what_is_wrong_is_told_and_where() {
    for (pattern, at, problem) in [
        ("*a", 0, Problem::NothingToRepeat(b'*')),
        ("a|+", 2, Problem::NothingToRepeat(b'+')),
        ("a(?b)", 2, Problem::NothingToRepeat(b'?')),
        ("^*", 1, Problem::NothingToRepeat(b'*')),
        ("{1}", 0, Problem::NothingToRepeat(b'{')),
        ("a(b(c)", 1, Problem::OpenGroup),
        ("ab[c", 2, Problem::OpenBracket),
        ("[]", 0, Problem::OpenBracket),
        ("a[[:alpha", 2, Problem::OpenClass(b':')),
        ("[[.a]", 1, Problem::OpenClass(b'.')),
        ("[a[:word:]]", 2, Problem::UnknownClass),
        ("[[.space.]]", 1, Problem::UnknownCollation),
        ("[[==]]", 1, Problem::OpenClass(b'=')),
        ("[xz-a]", 2, Problem::BadRange),
        ("[a-c-e]", 1, Problem::BadRange),
        ("[[:alpha:]-z]", 1, Problem::BadRange),
        ("a{", 1, Problem::BadCount),
        ("a{}", 1, Problem::BadCount),
        ("a{,}", 1, Problem::BadCount),
        ("a{1x}", 1, Problem::BadCount),
        ("a{2,1}", 1, Problem::CountsReversed),
        ("a{1,99999}", 4, Problem::CountTooLarge),
        ("a{99999999999999999999}", 2, Problem::CountTooLarge),
        (r"ab\", 2, Problem::TrailingBackslash),
        (r"(a)\1", 3, Problem::BackReference(b'1')),
        (r"x\d", 1, Problem::AmbiguousEscape(b'd')),
        ("((a{200}){200}){200}", 0, Problem::TooLarge),
    ] {
        assert_eq!(error(pattern), (at, problem), "{pattern}");
        assert!(!problem.to_string().is_empty());
    }
    assert_eq!(error(&"(".repeat(100_000)), (DEEPEST, Problem::TooDeep));
    assert_eq!(error(&format!("a{}", "{1}".repeat(100_000))).1, Problem::TooDeep);
    assert!(Ere::parse(format!("a{}", "*+?".repeat(100_000)).as_bytes()).is_ok());
}

#[test]
fn what_matches_everything_is_known() {
    let ere = |pattern: &str| Ere::parse(pattern.as_bytes()).unwrap();
    for pattern in [".*", "(.*)", "^.*$", "a|.*", "^(.*)"] {
        assert!(ere(pattern).matches_all(), "{pattern}");
    }
    for pattern in [".+", "a.*", ".*a", "[^a]*", "^^.*", "", ".{0,5}"] {
        assert!(!ere(pattern).matches_all(), "{pattern}");
    }
    for pattern in [".*", "", "a*", "a|b*", "(a?)(b{0,2})", "()"] {
        assert!(ere(pattern).matches_anywhere_in_all(), "{pattern}");
    }
    for pattern in ["a", "^", "$", "a|b", "a+", r"\b"] {
        assert!(!ere(pattern).matches_anywhere_in_all(), "{pattern}");
    }
}

#[test]
fn a_hostile_expression_takes_no_long_time() {
    let text = "a".repeat(2000);
    for pattern in ["(a*)*b", "((a|aa)*)*(a|b)*c", "(a?){30}a{30}", "(.*)(.*)(.*)(.*)(.*)x?"] {
        found(pattern, &text);
    }
    let deep = format!("{}a{}", "(".repeat(DEEPEST), ")*".repeat(DEEPEST));
    assert!(found(&deep, "aaa").starts_with("aaa,aaa"));
    let long = "a".repeat(4000);
    assert_eq!(found(&format!("{long}(a*)b?"), &format!("{long}aa")), format!("{long}aa,aa"));
    found(&"a*".repeat(4000), &text);
}

/// The steps and not the time are counted, which is what it may be on a busy machine.
#[test]
fn groups_are_found_in_time_proportional_to_the_length() {
    let mut seed = 1u64;
    let letters: Vec<u8> = (0..64 * 1024)
        .map(|_| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            b"ab"[(seed >> 33) as usize % 2]
        })
        .collect();
    for pattern in [
        "(([a-z]|[0-9])*)",
        "(a|b)*a(a|b){15}c",
        "(.*)b(.*)c",
        "((((a)*)*b)*c?)*",
        "((a*)*(b*)*)*c",
        "((a|ab)(b|ba)?|b)*c",
        "(a?b?){2,5}(.)*",
        "(()|a|\\b)*((b)|.)*",
    ] {
        let ere = Ere::parse(pattern.as_bytes()).unwrap();
        let mut scratch = Scratch::default();
        let mut steps = |length: usize| {
            let text = [&letters[letters.len() - length + 1..], b"c"].concat();
            let before = scratch.taken;
            let whole = ere.captures_whole(&text, &mut scratch);
            assert!(whole.is_some(), "{pattern}");
            assert_eq!(ere.captures_within(&text, &mut scratch), whole);
            scratch.taken - before
        };
        let one = steps(1024);
        for times in [2, 4, 64] {
            let steps = steps(times * 1024);
            // Of a long text the way back is made twice.
            assert!(steps < one * times as u64 * 2, "{pattern}: {one}, {times}: {steps}");
        }
        let memory = 8 * (scratch.rows.capacity() + scratch.kept.capacity());
        assert!(memory < 1024 * 1024, "{pattern}: {memory}");
    }
}

#[test]
fn groups_of_long_texts_are_those_of_short_ones() {
    // Of which the way back is made in one block and in many.
    let ere = Ere::parse(b"(x|(a|b)*)(a(b)?(c)){1,2}(.*)").unwrap();
    let tail = b"abcacd";
    for length in [10, 1_000, 20_000, 20_001, 65_530] {
        let text = [&vec![b'b'; length][..], tail].concat();
        let captures = ere.captures_whole(&text, &mut Scratch::default()).unwrap();
        let at = |from: usize, to: usize| Some((length + from, length + to));
        let expected = [
            Some((0, length + 6)),
            Some((0, length)),
            Some((length - 1, length)),
            at(3, 5),
            at(1, 2),
            at(4, 5),
            at(5, 6),
        ];
        assert_eq!(captures[..7], expected, "{length}");
    }
}

/// Expressions that are mostly well-formed.
fn expressions() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        5 => "[ab]",
        1 => Just(".".to_owned()),
        1 => Just("[^a]".to_owned()),
        1 => Just("()".to_owned()),
        1 => Just("^".to_owned()),
        1 => Just("$".to_owned()),
        1 => Just(r"\b".to_owned()),
    ];
    leaf.prop_recursive(4, 20, 4, |inner| {
        prop_oneof![
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("{a}{b}")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a}|{b})")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("{a}|{b}")),
            (inner, "[*+?]|[{][0-2](,[2-4]?)?[}]").prop_map(|(a, times)| format!("({a}){times}")),
        ]
    })
}

proptest! {
    #[test]
    fn no_expression_is_too_much(pattern: Vec<u8>, text: Vec<u8>) {
        match Ere::parse(&pattern) {
            Ok(ere) => {
                let mut found = false;
                Set::new([&ere], Scope::Anywhere).unwrap().matches(&text, |_| found = true);
                let captures = ere.captures_within(&text, &mut Scratch::default());
                prop_assert_eq!(captures.is_some(), found);
            }
            Err(error) => prop_assert!(error.at <= pattern.len()),
        }
    }

    #[test]
    fn nothing_of_the_syntax_is_too_much(
        pattern in r"([ab\\*+?|()^$.,0-9{}\[\]:=-]|\[:alpha:\]){0,20}",
        text in "[ab:0-9-]{0,10}",
    ) {
        match Ere::parse(pattern.as_bytes()) {
            Ok(ere) => {
                _ = ere.captures_within(text.as_bytes(), &mut Scratch::default());
                Set::new([&ere], Scope::Whole).unwrap().matches(text.as_bytes(), |_| {});
            }
            Err(error) => prop_assert!(error.at <= pattern.len()),
        }
    }

    #[test]
    fn groups_and_automata_agree(pattern in expressions(), text in "[abc ]{0,12}") {
        let text = text.as_bytes();
        let Ok(ere) = Ere::parse(pattern.as_bytes()) else { return Ok(()) };
        let mut scratch = Scratch::default();
        let matches = |scope| {
            let mut found = false;
            Set::new([&ere], scope).unwrap().matches(text, |_| found = true);
            found
        };
        let whole = ere.captures_whole(text, &mut scratch);
        prop_assert_eq!(whole.is_some(), matches(Scope::Whole));
        let within = ere.captures_within(text, &mut scratch);
        prop_assert_eq!(within.is_some(), matches(Scope::Anywhere));
        if whole.is_some() {
            prop_assert_eq!(within, whole);
        }
        for captures in [whole, within].into_iter().flatten() {
            let (start, end) = captures[0].unwrap();
            for (group_start, group_end) in captures.into_iter().flatten() {
                prop_assert!(start <= group_start && group_start <= group_end && group_end <= end);
            }
        }
        if let Some(captures) = within {
            // Nothing that begins before it matches, and nothing longer.
            let (start, end) = captures[0].unwrap();
            for other in 0..=start {
                for until in other..=text.len() {
                    let better = other < start || until > end;
                    let matches = |scratch| groups::matches_between(&ere, text, other, until, scratch);
                    prop_assert!(!(better && matches(&mut scratch)));
                }
            }
        }
        if ere.matches_all() {
            prop_assert!(whole.is_some());
        }
        if ere.matches_anywhere_in_all() {
            prop_assert!(within.is_some());
        }
    }
}
