//! SECURITY.md: the modules and the tests that it names are there.

use std::fs;
use std::path::Path;

const SOURCE: &str = env!("CARGO_MANIFEST_DIR");

/// What is in backquotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// Whether a file that a test's modules name has a test of that name.
fn is_test(name: &str) -> bool {
    let (modules, name) = name.rsplit_once("::").unwrap();
    let path = modules.replace("::", "/");
    let files = [
        format!("tests/it/{path}.rs"),
        format!("src/{path}.rs"),
        format!("src/{path}/tests.rs"),
        format!("src/{path}/mod.rs"),
    ];
    files.iter().any(|file| {
        let text = fs::read_to_string(Path::new(SOURCE).join(file)).unwrap_or_default();
        let function = format!("fn {name}(");
        let tested = |place: usize| text[..place].trim_end().ends_with("#[test]");
        text.match_indices(&function).any(|(place, _)| tested(place))
    })
}

#[test]
fn what_it_names_is_there() {
    let text = include_str!("../../SECURITY.md");
    let rows: Vec<Vec<&str>> = text
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| ---"))
        .map(|line| line.trim_matches('|').split(" | ").collect())
        .skip(1)
        .collect();
    assert!(rows.len() > 15, "{rows:?}");
    for row in rows {
        let [what, _, places, tests] = row[..] else { panic!("{row:?}") };
        for place in quoted(places) {
            let found = [format!("src/{place}"), place.to_owned()];
            assert!(found.iter().any(|f| Path::new(SOURCE).join(f).exists()), "{what}: {place}");
        }
        let mut names = quoted(tests).filter(|name| name.contains("::")).peekable();
        assert!(names.peek().is_some(), "{what}: no test");
        for name in names {
            assert!(is_test(name), "{what}: there is no test {name}");
        }
    }
}
