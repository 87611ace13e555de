//! Which rules match: all of them in one pass.
//!
//! Pure. A [`Matcher`] owns one automaton for the names of devices and one for
//! each variable that conditions ask for. Each is run over its text once,
//! however many rules there are, and tells the rules to look at; only these are
//! looked at. The automata's states are made as they are needed, and kept up to
//! a limit; nothing is allocated once they are there.
#![forbid(unsafe_code)]

use regex_automata::hybrid::dfa::{Cache, DFA};
use regex_automata::util::start;
use regex_automata::{Anchored, MatchKind};

use super::ere::{self, Ere};
pub use super::ere::{Scope, TooLarge};
use super::parse;
use super::rule::{Device, Numbers, Origin, Rule};

/// The memory that an automaton may use for its states, in bytes.
const STATES_MAX: usize = 4 * 1024 * 1024;
/// The memory that all automata may use before they have matched anything, in bytes.
const AUTOMATA_MAX: usize = 64 * 1024 * 1024;

/// Many regular expressions in one automaton.
#[derive(Debug)]
pub struct Set {
    dfa: DFA,
    cache: Cache,
}

impl Set {
    /// Makes the automaton.
    ///
    /// # Errors
    /// They may be too large.
    pub fn new<'a>(
        expressions: impl IntoIterator<Item = &'a Ere>,
        scope: Scope,
    ) -> Result<Self, TooLarge> {
        let expressions: Vec<&Ere> = expressions.into_iter().collect();
        let nfa = ere::automaton(&expressions, scope)?;
        let dfa = DFA::builder()
            .configure(
                DFA::config()
                    .match_kind(MatchKind::All)
                    .cache_capacity(STATES_MAX)
                    .skip_cache_capacity_check(true),
            )
            .build_from_nfa(nfa)
            .map_err(|_| TooLarge(0))?;
        let cache = dfa.create_cache();
        Ok(Self { dfa, cache })
    }

    /// Tells the index of each expression that matches, perhaps more than once.
    pub fn matches(&mut self, text: &[u8], mut found: impl FnMut(usize)) {
        // Only an automaton that may give up has errors; this one may not.
        let Self { dfa, cache } = self;
        let start = start::Config::new().anchored(Anchored::Yes);
        let Ok(mut state) = dfa.start_state(cache, &start) else { return };
        let mut tell = |dfa: &DFA, cache: &Cache, state| {
            for index in 0..dfa.match_len(cache, state) {
                found(dfa.match_pattern(cache, state, index).as_usize());
            }
        };
        for &byte in text {
            let Ok(next) = dfa.next_state(cache, state, byte) else { return };
            state = next;
            if state.is_match() {
                tell(dfa, cache, state);
            } else if state.is_dead() {
                return;
            }
        }
        let Ok(state) = dfa.next_eoi_state(cache, state) else { return };
        if state.is_match() {
            tell(dfa, cache, state);
        }
    }

    /// The memory that it uses now, in bytes, with that of the expressions.
    fn memory_of_all(&self) -> usize {
        size_of::<Self>() + self.dfa.get_nfa().memory_usage() + self.memory()
    }

    /// The memory that it uses now, in bytes.
    pub fn memory(&self) -> usize {
        self.dfa.memory_usage() + self.cache.memory_usage()
    }
}

/// Bits, one for each rule or condition.
#[derive(Debug, Default)]
struct Bits(Vec<u64>);

impl Bits {
    fn new(count: usize) -> Self {
        Self(vec![0; count.div_ceil(64)])
    }

    fn insert(&mut self, index: usize) {
        self.0[index / 64] |= 1 << (index % 64);
    }

    fn contains(&self, index: usize) -> bool {
        self.0[index / 64] >> (index % 64) & 1 == 1
    }

    /// The first from `index` on.
    fn next(&self, index: usize) -> Option<usize> {
        let first = index / 64;
        let mut word = self.0.get(first)? & u64::MAX << (index % 64);
        let mut at = first;
        while word == 0 {
            at += 1;
            word = *self.0.get(at)?;
        }
        Some(at * 64 + word.trailing_zeros() as usize)
    }
}

/// A variable that conditions ask for.
#[derive(Debug)]
struct Variable {
    key: Box<[u8]>,
    /// The conditions that are more than that it is there.
    set: Option<Set>,
    /// The condition of each expression in the set.
    of_set: Vec<usize>,
    /// The conditions that it is there.
    present: Vec<usize>,
    /// The event that it was last seen in: of equal keys the first counts.
    seen: u64,
}

/// Finds the rules that match.
#[derive(Debug)]
pub struct Matcher {
    names: Option<Set>,
    /// The rule of each expression in the set of names.
    of_names: Vec<usize>,
    /// Sorted by key.
    variables: Vec<Variable>,
    /// A bit for each key, as of [`key_bit`].
    keys: u64,
    /// For each condition, the rules to look at when it holds.
    of_conditions: Vec<Vec<usize>>,
    /// Device numbers and their rule, sorted by major number.
    numbers: Vec<(Numbers, usize)>,
    /// The rules that are always to be looked at.
    always: Bits,
    /// For each rule, its conditions.
    conditions: Vec<Box<[usize]>>,

    candidates: Bits,
    holding: Bits,
    event: u64,
}

impl Matcher {
    /// Makes the automata for the rules.
    ///
    /// # Errors
    /// They may be too large.
    pub fn new(rules: &[Rule]) -> Result<Self, parse::Error> {
        // Equal conditions are one.
        let mut known: Vec<(&[u8], &Ere, usize)> = Vec::new();
        let mut ids = std::collections::HashMap::new();
        let mut matcher = Self {
            names: None,
            of_names: Vec::new(),
            variables: Vec::new(),
            keys: 0,
            of_conditions: Vec::new(),
            numbers: Vec::new(),
            always: Bits::new(rules.len()),
            conditions: Vec::with_capacity(rules.len()),
            candidates: Bits::new(rules.len()),
            holding: Bits::default(),
            event: 0,
        };
        let mut room = AUTOMATA_MAX;
        let mut make = |expressions: Vec<&Ere>, scope| {
            let largest = (0..expressions.len()).max_by_key(|&index| expressions[index].size());
            let set = Set::new(expressions, scope)?;
            // There is one for each variable.
            match room.checked_sub(set.memory_of_all()) {
                Some(rest) => room = rest,
                None => return Err(TooLarge(largest.unwrap_or_default())),
            }
            Ok(set)
        };
        let (mut names, mut uses) = (Vec::new(), Vec::new());
        for (index, rule) in rules.iter().enumerate() {
            let conditions: Box<[usize]> = rule
                .all_conditions()
                .map(|condition| {
                    let text = (&condition.variable[..], &condition.text[..]);
                    *ids.entry(text).or_insert_with(|| {
                        known.push((&condition.variable, &condition.ere, index));
                        matcher.of_conditions.push(Vec::new());
                        known.len() - 1
                    })
                })
                .collect();
            uses.resize(known.len(), 0_usize);
            conditions.iter().for_each(|&id| uses[id] += 1);
            matcher.conditions.push(conditions);
        }
        for (index, rule) in rules.iter().enumerate() {
            let conditions = &matcher.conditions[index];
            match &rule.device {
                Device::Numbers(numbers) => matcher.numbers.push((numbers.clone(), index)),
                Device::Name(ere) if !ere.matches_all() => {
                    names.push(ere);
                    matcher.of_names.push(index);
                }
                Device::Name(_) | Device::Variable(_) => {
                    // The condition that most likely tells the rule apart.
                    let telling = |&&id: &&usize| !known[id].1.matches_anywhere_in_all();
                    let telling = conditions.iter().rev().filter(telling);
                    let rarest = telling.min_by_key(|&&id| uses[id]);
                    match rarest.or(conditions.first()) {
                        Some(&id) => matcher.of_conditions[id].push(index),
                        None => matcher.always.insert(index),
                    }
                }
            }
        }
        matcher.numbers.sort_unstable_by_key(|(numbers, _)| numbers.major);
        if !names.is_empty() {
            let of_names = &matcher.of_names;
            let names = make(names, Scope::Whole);
            matcher.names = Some(names.map_err(|TooLarge(at)| too_large(&rules[of_names[at]]))?);
        }
        matcher.holding = Bits::new(known.len());

        let mut by_key: Vec<usize> = (0..known.len()).collect();
        by_key.sort_unstable_by_key(|&id| (known[id].0, id));
        for mine in by_key.chunk_by(|&a, &b| known[a].0 == known[b].0) {
            let key = known[mine[0]].0;
            matcher.keys |= key_bit(key);
            let (present, of_set): (Vec<usize>, Vec<usize>) =
                mine.iter().partition(|&&id| known[id].1.matches_anywhere_in_all());
            let set = match &of_set[..] {
                [] => None,
                ids => {
                    let set = ids.iter().map(|&id| known[id].1).collect();
                    let set = make(set, Scope::Anywhere);
                    Some(set.map_err(|TooLarge(at)| too_large(&rules[known[ids[at]].2]))?)
                }
            };
            matcher.variables.push(Variable { key: key.into(), set, of_set, present, seen: 0 });
        }
        Ok(matcher)
    }

    /// Forgets the event before.
    pub fn begin(&mut self) {
        self.event += 1;
        self.candidates.0.copy_from_slice(&self.always.0);
        self.holding.0.fill(0);
    }

    /// Takes a variable of the event; of equal keys the first counts.
    pub fn variable<'e>(&mut self, key: &[u8], value: impl FnOnce() -> &'e [u8]) {
        if self.keys & key_bit(key) == 0 {
            return;
        }
        let Ok(index) = self.variables.binary_search_by(|variable| (*variable.key).cmp(key)) else {
            return;
        };
        let variable = &mut self.variables[index];
        if std::mem::replace(&mut variable.seen, self.event) == self.event {
            return;
        }
        let (holding, candidates) = (&mut self.holding, &mut self.candidates);
        let mut holds = |id: usize| {
            holding.insert(id);
            self.of_conditions[id].iter().for_each(|&rule| candidates.insert(rule));
        };
        variable.present.iter().for_each(|&id| holds(id));
        if let Some(set) = &mut variable.set {
            set.matches(value(), |index| holds(variable.of_set[index]));
        }
    }

    /// Takes the name of the device.
    pub fn name(&mut self, name: &[u8]) {
        if let Some(names) = &mut self.names {
            names.matches(name, |index| self.candidates.insert(self.of_names[index]));
        }
    }

    /// Takes the numbers of the device.
    pub fn numbers(&mut self, major: u32, minor: u32) {
        let first = self.numbers.partition_point(|(numbers, _)| numbers.major < major);
        let same_major = self.numbers[first..].iter().take_while(|(n, _)| n.major == major);
        for (_, rule) in same_major.filter(|(numbers, _)| numbers.minor.contains(&minor)) {
            self.candidates.insert(*rule);
        }
    }

    /// The first rule from `index` on that matches.
    pub fn next(&self, mut index: usize) -> Option<usize> {
        loop {
            let rule = self.candidates.next(index)?;
            if self.conditions[rule].iter().all(|&id| self.holding.contains(id)) {
                return Some(rule);
            }
            index = rule + 1;
        }
    }

    /// The memory that the automata use now, in bytes.
    pub fn memory(&self) -> usize {
        let sets = self.variables.iter().filter_map(|variable| variable.set.as_ref());
        sets.chain(&self.names).map(Set::memory).sum()
    }
}

/// The mistake that the expressions are too large, most of all that of this rule.
fn too_large(rule: &Rule) -> parse::Error {
    let Origin { file, line, text } = &rule.origin;
    let message = "the regular expressions are too large, all together; \
                   this is the largest of them";
    parse::Error::new((file.clone(), *line, 1), text, message.into())
}

/// A cheap first look at a key: most keys of an event are asked for by no rule.
fn key_bit(key: &[u8]) -> u64 {
    let first = key.first().copied().unwrap_or_default();
    let last = key.last().copied().unwrap_or_default();
    1 << ((usize::from(first) + usize::from(last) * 5 + key.len() * 11) % 64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn eres(patterns: &[&str]) -> Vec<Ere> {
        patterns.iter().map(|pattern| Ere::parse(pattern.as_bytes()).unwrap()).collect()
    }

    fn found(set: &mut Set, text: &str) -> Vec<usize> {
        let mut found = Vec::new();
        set.matches(text.as_bytes(), |index| found.push(index));
        found.sort_unstable();
        found.dedup();
        found
    }

    #[test]
    fn all_that_match_are_found() {
        let eres = eres(&["a.*", "b", "ab|b", "", "^ab$", "(a|b)*", "a$b"]);
        let mut whole = Set::new(&eres, Scope::Whole).unwrap();
        assert_eq!(found(&mut whole, "ab"), [0, 2, 4, 5]);
        assert_eq!(found(&mut whole, "b"), [1, 2, 5]);
        assert_eq!(found(&mut whole, ""), [3, 5]);
        assert!(found(&mut whole, "x").is_empty());
        let mut anywhere = Set::new(&eres, Scope::Anywhere).unwrap();
        assert_eq!(found(&mut anywhere, "xab"), [0, 1, 2, 3, 5]);
        assert_eq!(found(&mut anywhere, "\0\n\u{ff}"), [3, 5]);
    }

    #[test]
    fn memory_is_limited_whatever_is_matched() {
        let eres = eres(&["[a-p]*a.{12}", "[0-9a-f]+x", "(ab|ba|[c-z])*b.{9}"]);
        let mut set = Set::new(&eres, Scope::Anywhere).unwrap();
        let mut scratch = ere::Scratch::default();
        let mut seed = 1;
        for round in 0..4_000 {
            let text: String = (0..40)
                .map(|_| ["a", "b", "c", "1", "x"][usize::try_from(random(&mut seed, 5)).unwrap()])
                .collect();
            let found = found(&mut set, &text);
            if round % 100 == 0 {
                let expected: Vec<usize> = (0..eres.len())
                    .filter(|&i| eres[i].captures_within(text.as_bytes(), &mut scratch).is_some())
                    .collect();
                assert_eq!(found, expected, "{text}");
            }
        }
        assert!(set.memory() < 3 * STATES_MAX, "{}", set.memory());
        assert!(set.cache.clear_count() > 0);
    }

    /// That they are all for add tells no two of them apart.
    #[test]
    fn rules_are_looked_at_for_their_rarest_condition() {
        for order in ["SUBSYSTEM=s{};ACTION=add;.*", "ACTION=add;SUBSYSTEM=s{};.*"] {
            let text: String =
                (0..500).map(|n| order.replace("{}", &format!("{n:03}")) + " 0:0 600\n").collect();
            let sources = [parse::Source { name: "f", text: text.as_bytes() }];
            let rules = parse::parse(&sources, &crate::account::Accounts::default()).unwrap();
            let mut matcher = Matcher::new(&rules).unwrap();
            matcher.begin();
            matcher.variable(b"ACTION", || b"add");
            matcher.variable(b"SUBSYSTEM", || b"s007");
            matcher.name(b"x");
            assert_eq!(matcher.next(0), Some(7));
            let candidates: u32 = matcher.candidates.0.iter().map(|word| word.count_ones()).sum();
            assert_eq!(candidates, 1, "{order}");
        }
    }

    fn random(seed: &mut u64, below: u64) -> u64 {
        *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (*seed >> 33) % below
    }

    /// The devices of machines are varied, and so are generated rules.
    #[test]
    fn states_of_many_expressions_fit() {
        let mut seed = 1;
        let mut modalias = || {
            let mut hex = || format!("{:04X}", random(&mut seed, 1 << 16));
            format!("usb:v{}p{}d{}dc00dsc00dp00ic{}", hex(), hex(), hex(), &hex()[2..])
        };
        let patterns: Vec<String> = (0..500)
            .map(|n| match (n % 4, &modalias()) {
                (0, text) => format!("{}.*", &text[..14]),
                (1, text) => format!("^usb:v....{}d.*dc", &text[9..14]),
                (2, _) => format!("p[0-9A-F]*d.*dp.*{n:03}"),
                (_, text) => format!("(v|x){}p", &text[5..9]),
            })
            .collect();
        let patterns: Vec<&str> = patterns.iter().map(String::as_str).collect();
        let mut set = Set::new(&eres(&patterns), Scope::Anywhere).unwrap();
        for _ in 0..2_000 {
            found(&mut set, &modalias());
        }
        assert_eq!(set.cache.clear_count(), 0);
        assert!(set.memory() < STATES_MAX, "{}", set.memory());
    }

    proptest::proptest! {
        #[test]
        fn all_at_once_are_found_as_one_by_one(
            patterns in proptest::collection::vec(
                r"(\^|[.]\*)?([abc]|[.]|[.]\*|a{1,5}b|\(ab?\|b+\)|\[bc\]|\\[<b]|[bc]\{1,2\}|(\(\^a\)\?)){0,5}([$]|[.]\*)?",
                1..60,
            ),
            texts in proptest::collection::vec("[abc ]{0,12}", 1..5),
            whole: bool,
        ) {
            let scope = if whole { Scope::Whole } else { Scope::Anywhere };
            let patterns: Vec<&str> = patterns.iter().map(String::as_str).collect();
            let eres = eres(&patterns);
            let mut set = Set::new(&eres, scope).unwrap();
            let mut scratch = ere::Scratch::default();
            for text in texts {
                let mut matches = |ere: &Ere| match scope {
                    Scope::Whole => ere.captures_whole(text.as_bytes(), &mut scratch).is_some(),
                    Scope::Anywhere => ere.captures_within(text.as_bytes(), &mut scratch).is_some(),
                };
                let expected: Vec<usize> = (0..eres.len()).filter(|&i| matches(&eres[i])).collect();
                proptest::prop_assert_eq!(found(&mut set, &text), expected, "{}", text);
            }
        }
    }

    #[test]
    fn what_is_too_large_all_together_is_told() {
        let mut eres = eres(&["[ab]{9000}"; 500]);
        eres[3] = Ere::parse(b"[ab]{9001}").unwrap();
        assert_eq!(Set::new(&eres, Scope::Whole).unwrap_err(), TooLarge(3));
    }

    /// Each variable has an automaton of its own.
    #[test]
    fn what_is_too_large_for_many_variables_is_told() {
        let text = |variables: usize| -> String {
            (0..variables).map(|n| format!("V{n}=[acegikmoqsuwy]{{9000}};x 0:0 600\n")).collect()
        };
        let matcher = |variables| {
            let text = text(variables);
            let sources = [parse::Source { name: "f", text: text.as_bytes() }];
            let rules = parse::parse(&sources, &crate::account::Accounts::default()).unwrap();
            Matcher::new(&rules).map(drop).map_err(|error| error.message)
        };
        assert_eq!(matcher(4), Ok(()));
        let told = matcher(60).unwrap_err();
        assert!(told.contains("too large, all together"), "{told}");
    }
}
