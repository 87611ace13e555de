//! Regular expressions, as two C libraries have them.

use plugd::rules::ere::{Captures, Problem, Scratch};
use plugd::rules::matcher::{Scope, Set};

use super::*;

fn groups_text(captures: Option<Captures>, groups: usize) -> String {
    let Some(captures) = captures else { return "nomatch".into() };
    let texts: Vec<String> = captures[..groups.min(captures.len())]
        .iter()
        .map(|group| group.map_or("-".into(), |(start, end)| format!("{start}-{end}")))
        .collect();
    texts.join(",")
}

#[test]
fn expressions_are_those_of_both_c_libraries() {
    let Some(corpus) = corpus() else { return };
    let mut scratch = Scratch::default();
    let (mut checked, mut wrong) = (0, Vec::new());
    for table in ["nasty", "generated", "fowler", "env-pairs"] {
        for line in lines(&read(&corpus.join(format!("ere/{table}.tsv")))).skip(1) {
            let [pattern, input, expected, agree, ..] = &columns(line)[..] else { panic!() };
            let expected = String::from_utf8(expected.clone()).unwrap();
            let ere = Ere::parse(pattern);
            if let Ok(ere) = &ere {
                // The automaton, and the search for groups.
                let mut matched = false;
                Set::new([ere], Scope::Anywhere).unwrap().matches(input, |_| matched = true);
                let found = ere.captures_within(input, &mut scratch);
                assert_eq!(matched, found.is_some(), "{}", line.escape_ascii());
            }
            if *agree != b"=" {
                continue;
            }
            checked += 1;
            let groups = expected.split(',').count();
            let ours = match &ere {
                Ok(ere) => groups_text(ere.captures_within(input, &mut scratch), groups),
                Err(_) => "error".into(),
            };
            if ours == expected || ours == "error" && expected.starts_with("error ") {
                continue;
            }
            // They have back-references, and these differ; here they are an error.
            let refers = matches!(ere, Err(e) if matches!(e.problem, Problem::BackReference(_)));
            if !refers {
                wrong.push(format!("{table}: {} ours {ours}", line.escape_ascii()));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {checked}:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn device_names_match_as_they_do_in_both_c_libraries() {
    let Some(corpus) = corpus() else { return };
    let table = |name: &str| read(&corpus.join("ere").join(name));
    let rows: Vec<Vec<Vec<u8>>> = lines(&table("dev-matches.tsv")).map(columns).collect();
    let names: Vec<Vec<u8>> = lines(&table("dev-names.txt")).map(unescape).collect();
    let mut scratch = Scratch::default();
    for (index, pattern) in lines(&table("dev-patterns.txt")).map(unescape).enumerate() {
        let index = index.to_string().into_bytes();
        let mine: Vec<_> = rows.iter().filter(|row| row[0] == index).collect();
        let ere = match Ere::parse(&pattern) {
            Ok(ere) => ere,
            Err(error) => {
                let expected = String::from_utf8_lossy(&mine[0][1]).into_owned();
                assert!(expected.starts_with("error"), "{pattern:?}: {error:?}");
                continue;
            }
        };
        let mut whole = Set::new([&ere], Scope::Whole).unwrap();
        for (index, name) in names.iter().enumerate() {
            let index = index.to_string().into_bytes();
            let expected = mine.iter().find(|row| row[1] == index).map(|row| &row[2]);
            let expected = expected.map(|groups| String::from_utf8(groups.clone()).unwrap());
            let expected = expected.unwrap_or("nomatch".into());
            let count = expected.split(',').count();
            let context = format!("{} on {}", pattern.escape_ascii(), name.escape_ascii());
            let found = ere.captures_within(name, &mut scratch);
            assert_eq!(groups_text(found, count), expected, "{context}");
            let is_whole = expected.split(',').next() == Some(&format!("0-{}", name.len()));
            let mut matched = false;
            whole.matches(name, |_| matched = true);
            assert_eq!(matched, is_whole, "{context}");
            let found = ere.captures_whole(name, &mut scratch);
            assert_eq!(found.is_some(), is_whole, "{context}");
            if is_whole {
                assert_eq!(groups_text(found, count), expected, "{context}");
            }
        }
    }
}
