//! Column files and propositions: a sample of each format, what is wrong with broken ones, and that no file makes a
//! reader panic.

use super::*;
use crate::data::{Content, Label, TagScheme, scheme_of, to_iob2};

/// CoNLL-2003: four columns, IOB1 tags in the last, documents begun by a line of their own.
const CONLL03: &str = "-DOCSTART- -X- O O\n\nNora NNP I-NP I-PER\nLund NNP I-NP I-PER\nOslo NNP I-NP B-PER\nsang VBD I-VP O\nin IN I-PP O\n\
                       Turku NNP I-NP I-LOC\n. . O O\n\n-DOCSTART- -X- O O\n\n# # I-NP O\n7 CD I-NP O\n";
/// OntoNotes as the released data have it: a number, the word, other columns, the tag.
const ONTONOTES: &str = "1\tNora\tNNP\tB-PERSON\n2\tLund\tNNP\tI-PERSON\n3\t10\tCD\tB-CARDINAL\n\n1\tNo\tUH\tO\n";
/// CoNLL-2005: words, part of speech, syntax, names, predicates, and a column for the arguments of each.
const CONLL05: &str = "The   DT  (S1(S(NP*  *       -    (A0*    *\n\
                       ship  NN  *)         *       -    *)      (A0*)\n\
                       left  VBD (VP*       *       leave (V*)   *\n\
                       to    TO  (S(VP*     *       -    (AM-PNC* *\n\
                       see   VB  (VP*       *       see  *       (V*)\n\
                       Oslo  NNP (NP*)))))  (LOC*)  -    *)      (A1*)\n\n\
                       Yes   UH  (S1(INTJ*)) *      -\n\n\
                       It    PRP (S1(S(NP*) *       -    (A1*)\n\
                       sank  VBD (VP*)))    *       sink (V*)\n";
/// CoNLL-2012: document, part, number, word, ..., predicates, arguments, and a last column that has nothing to do with them.
const CONLL12: &str = "#begin document (nw/0); part 000\n\
                       nw/0 0 0 They PRP (TOP(S(NP*) - - - - * (ARG0*) * (1)\n\
                       nw/0 0 1 gave VBD (VP* give 01 1 - * (V*) * -\n\
                       nw/0 0 2 up RP (PRT*) - - - - * (C-V*) * -\n\
                       nw/0 0 3 singing VBG (NP*)))) sing 01 1 - * (ARG1*) (V*) -\n\n\
                       #end document\n";
const LINES: &str = "1 They gave up ||| B-ARG0 B-V B-C-V\n0 Sing , Nora ! ||| B-V O B-ARG0 O\n";

fn read(content: &[u8], columns: &Columns) -> Result<Vec<Example>> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("data.txt");
    std::fs::write(&path, content)?;
    read_examples(&path, TaskKind::Tagging, columns)
}

/// Words, tags and predicates, in a short spelling.
fn short(examples: &[Example]) -> Vec<String> {
    let example = |example: &Example| {
        let Content::Words { words, tags, predicate } = &example.content else { panic!() };
        let tags: Vec<&str> =
            tags.iter().flatten().map(|tag| if let Label::Name(name) = tag { name.as_str() } else { panic!("{tag:?}") }).collect();
        let predicate = predicate.map_or(String::new(), |predicate| format!("{predicate} "));
        format!("{predicate}{} | {}", words.join(" "), tags.join(" "))
    };
    examples.iter().map(example).collect()
}

#[track_caller]
fn check(content: &str, expected: &[&str]) {
    let unix = read(content.as_bytes(), &Columns::default()).unwrap();
    assert_eq!(short(&unix), expected);
    // The same under Windows, and without the last line's end.
    let windows = format!("\u{feff}{}", content.trim_end().replace('\n', "\r\n"));
    assert_eq!(short(&read(windows.as_bytes(), &Columns::default()).unwrap()), expected);
}

#[track_caller]
fn check_error(content: &str, expected: &str) {
    let message = format!("{:#}", read(content.as_bytes(), &Columns::default()).unwrap_err());
    assert!(message.contains(expected) && !message.contains('\n'), "{message}");
}

#[test]
fn columns_of_one_tag() {
    check(CONLL03, &["Nora Lund Oslo sang in Turku . | I-PER I-PER B-PER O O I-LOC O", "# 7 | O O"]);
    check(ONTONOTES, &["Nora Lund 10 | B-PERSON I-PERSON B-CARDINAL", "No | O"]);
    check("a b O\nc d B-x", &["a c | O B-x"]);
    // A blank that is not one of ASCII is a word; comments of CoNLL-U are not.
    check("# text = x y\n\u{a0}\tO\n\u{200d}\tB-x\n", &["\u{a0} \u{200d} | O B-x"]);
    let columns = Columns { word: Some(1), tag: Some(0), ..Columns::default() };
    assert_eq!(short(&read(b"O Oslo\nB-x Turku\n", &columns).unwrap()), ["Oslo Turku | O B-x"]);
    let chunks = Columns { tag: Some(2), ..Columns::default() };
    assert_eq!(short(&read(CONLL03.as_bytes(), &chunks).unwrap())[1], "# 7 | I-NP I-NP");
}

#[test]
fn a_proposition_a_predicate() {
    let first =
        ["2 The ship left to see Oslo | B-A0 I-A0 B-V B-AM-PNC I-AM-PNC I-AM-PNC", "4 The ship left to see Oslo | O B-A0 O O B-V B-A1"];
    check(CONLL05, &[first[0], first[1], "1 It sank | B-A1 B-V"]);
    check(CONLL12, &["1 They gave up singing | B-ARG0 B-V B-C-V B-ARG1", "3 They gave up singing | O O O B-V"]);
    check(LINES, &["1 They gave up | B-ARG0 B-V B-C-V", "0 Sing , Nora ! | B-V O B-ARG0 O"]);
    check(
        "Nora B-A0 O\nsaw B-V O\nhim B-A1 B-A0\nsing I-A1 B-V\n",
        &["1 Nora saw him sing | B-A0 B-V B-A1 I-A1", "3 Nora saw him sing | O O B-A0 B-V"],
    );
    check("2 Nora will sing |||\n", &["2 Nora will sing | "]);
    // What a column is told to be, it is.
    let names = Columns { tag: Some(1), ..Columns::default() };
    assert_eq!(short(&read(CONLL05.as_bytes(), &names).unwrap())[1], "Yes | UH");
    let places: Vec<String> = read(CONLL05.as_bytes(), &Columns::default()).unwrap().into_iter().map(|example| example.place).collect();
    assert!(places[1].ends_with("data.txt, line 1, column 6") && places[2].ends_with("line 10, column 5"), "{places:?}");
}

#[test]
fn broken_ones_say_where() {
    check_error(&LINES.replace("0 Sing", "Sing"), "line 2: \"Sing\" is not an index");
    check_error(&LINES.replace("0 Sing", "4 Sing"), "line 2: the predicate's index is 4 (from 0), but there are 4 words");
    check_error(&LINES.replace(" O\n", "\n"), "line 2: 4 words but 3 tags");
    check_error(&format!("{LINES}\n0 a b\n"), "line 4: no |||");
    check_error(&format!("{LINES}0 a |||\n"), "line 3: no tags");
    check_error(&CONLL05.replace("(AM-PNC*", "(AM-PNC(A1*"), "line 4, column 5");
    check_error(&CONLL05.replace("see  *  ", "see  (A1*"), "line 5, column 5: A1 begins inside of AM-PNC");
    check_error(&CONLL05.replace("(A1*)\nsank", "*)\nsank"), "line 10, column 5: \"*)\" ends a span, but none is open");
    check_error(
        &CONLL05.replace("(A1*)\nsank", "(V*\nsank").replace("sink (V*)", "sink *"),
        "line 11, column 5: the sentence ends within V",
    );
    check_error(&CONLL05.replace("sink (V*)", "sink *"), "line 10, column 5: no span is V");
    check_error(&CONLL05.replace("sink (V*)", "sink"), "line 11: 5 columns, but the sentence began with 6");
    check_error("a b c\nd e\n", "line 2: 2 columns");
    check_error("a\tO\n\tO\n", "line 2: an empty word");
    check_error("a\tO\nb\t\n", "line 2: an empty tag");
    let columns = Columns { word: Some(3), ..Columns::default() };
    assert!(format!("{:#}", read(b"a O\n", &columns).unwrap_err()).contains("no column 3"));
}

#[test]
fn predicates_in_json() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("d.jsonl");
    let read = |line: &str| {
        std::fs::write(&path, line).unwrap();
        read_examples(&path, TaskKind::Tagging, &Columns::default())
    };
    let line = "{\"tokens\": [\"Sing\", \"!\"], \"tags\": [\"B-V\", \"O\"], \"predicate\": 0}";
    assert_eq!(short(&read(line).unwrap()), ["0 Sing ! | B-V O"]);
    for wrong in ["2", "-1", "\"Sing\"", "0.5"] {
        let message = format!("{:#}", read(&line.replace(": 0}", &format!(": {wrong}}}"))).unwrap_err());
        assert!(message.contains("line 1: \"predicate\" must be the index of one of the 2 tokens"), "{message}");
    }
}

#[test]
fn no_file_makes_a_reader_panic() {
    let schemes = [TagScheme::Iob1, TagScheme::Iob2, TagScheme::Bioes, TagScheme::Bilou];
    let (mut good, mut bad) = (0, 0);
    for sample in [CONLL03, ONTONOTES, CONLL05, CONLL12, LINES] {
        for round in 0..1000 {
            let content = mutated(sample.as_bytes(), round as u64);
            match read(&content, &Columns::default()) {
                Ok(mut examples) => {
                    good += 1;
                    for example in &examples {
                        let Content::Words { words, tags, predicate } = &example.content else { panic!() };
                        assert!(!words.is_empty() && tags.as_ref().is_none_or(|tags| tags.len() == words.len()));
                        assert!(predicate.is_none_or(|predicate| predicate < words.len()));
                    }
                    let scheme = scheme_of(&examples).unwrap_or(schemes[round % 4]);
                    let _ = to_iob2(&mut examples, scheme);
                }
                Err(error) => {
                    bad += 1;
                    assert!(format!("{error:#}").contains("data.txt"), "{error:#}");
                }
            }
        }
    }
    assert!(good > 500 && bad > 500, "{good} read, {bad} refused");
}
