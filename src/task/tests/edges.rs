//! Texts at the edges: emoji, words without end, answers at and across the ends of windows, nothing at all.

use super::*;

fn question(context: &str, answers: &[(&str, usize)]) -> Example {
    let answers = answers.iter().map(|(text, start)| Answer { text: text.to_string(), start: *start }).collect();
    let content = Content::Question { id: "1".into(), question: "where".into(), context: context.into(), answers: Some(answers) };
    Example::new(content, "q.json, question 1".into())
}

/// The answer that a model gives which is sure of the targets: of every window its own.
fn answered(bundle: &Bundle, example: &Example) -> (usize, String) {
    let examples = std::slice::from_ref(example);
    let encoding = bundle.task.encode(examples, &bundle.tokenizer, &bundle.limits).unwrap();
    let logits: Vec<Vec<f32>> = (0..encoding.set.features.len())
        .map(|feature| {
            let mut logits = vec![0.0; 2 * encoding.set.rows(feature)];
            for (column, &target) in encoding.set.features[feature].targets.iter().enumerate() {
                logits[2 * target as usize + column] = 5.0;
            }
            logits
        })
        .collect();
    let inside = encoding.set.features.iter().filter(|feature| feature.targets != [0, 0]).count();
    let task = bundle.task.clone().with_no_answer(true);
    let predictions = task.predict(examples, &encoding, &logits);
    match &predictions[0].outcome {
        Outcome::Text(text) => (inside, text.clone()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn answers_are_cut_out_of_texts_with_characters_of_any_width() {
    let bundle = Bundle::open("bert-qa", TaskKind::Qa);
    for context in ["\u{1f600}\u{1f600} in Hobart \u{1f600}.", "\u{65e5}\u{672c} Hobart", "e\u{301}\u{feff} Hobart\r\n", "\t\u{a0}Hobart"] {
        let start = context.chars().collect::<Vec<_>>().windows(6).position(|part| part.iter().collect::<String>() == "Hobart").unwrap();
        assert_eq!(answered(&bundle, &question(context, &[("Hobart", start)])), (1, "Hobart".to_string()), "{context:?}");
    }
}

#[test]
fn an_answer_is_found_in_the_windows_that_hold_all_of_it_and_in_no_other() {
    let mut bundle = Bundle::open("bert-qa", TaskKind::Qa);
    bundle.limits = Limits { max_length: 24, doc_stride: 8 };
    let context = (0..60).map(|index| format!("{}", index % 10)).collect::<Vec<_>>().join(" ");
    // Every word is a token, and windows share eight of them: up to nine words are inside of some window, most are not
    // when they are longer than a window.
    let mut found = [0; 2];
    for first in 0..50 {
        for (index, words) in [3usize, 30].into_iter().enumerate() {
            let Some(answer) = context.get(2 * first..2 * first + 2 * words - 1) else { continue };
            let (windows, text) = answered(&bundle, &question(&context, &[(answer, 2 * first)]));
            assert!(windows <= 3 && (windows == 0) == text.is_empty() && (text.is_empty() || text == answer), "{first}, {words}: {text}");
            found[index] += usize::from(windows > 0);
        }
    }
    assert_eq!(found, [50, 0]);
}

/// Also where the answer is empty, or begins or ends between tokens or in the blanks around the text.
#[test]
fn any_answer_within_the_context_has_targets_in_order() {
    let mut bundle = Bundle::open("bert-qa", TaskKind::Qa);
    bundle.limits = Limits { max_length: 20, doc_stride: 4 };
    let context = "  ab, \u{1f600}cd  efghijklmnop-qr\n s tu v w x y z 1 2 3 4 5 6 7  ";
    let characters: Vec<char> = context.chars().collect();
    for start in 0..=characters.len() {
        for end in start..=characters.len() {
            let answer: String = characters[start..end].iter().collect();
            let examples = [question(context, &[(&answer, start)])];
            let encoding = bundle.task.encode(&examples, &bundle.tokenizer, &bundle.limits).unwrap();
            for feature in &encoding.set.features {
                assert!(feature.targets[0] <= feature.targets[1], "{start}..{end}: {:?}", feature.targets);
            }
        }
    }
}

#[test]
fn a_word_without_end_and_no_words_at_all_are_read() {
    let qa = Bundle::open("bert-qa", TaskKind::Qa);
    let long = "x".repeat(20_000);
    assert_eq!(answered(&qa, &question("", &[])).1, "");
    assert_eq!(answered(&qa, &question(&long, &[])).1, "");
    assert_eq!(answered(&qa, &question(&format!("{long} Hobart"), &[("Hobart", 20_001)])).1, "Hobart");

    let bundle = Bundle::open("bert-classification", TaskKind::Classification);
    for text in ["", " ", "\u{1f600}", "\u{200d}", &long, &"a ".repeat(20_000), &"\u{1f468}\u{200d}\u{1f469} ".repeat(3000)] {
        for pair in [None, Some(String::new()), Some(long.clone())] {
            let content = Content::Text { text: text.to_string(), pair, label: None };
            let encoding = bundle.task.encode(&[Example::new(content, "t".into())], &bundle.tokenizer, &bundle.limits).unwrap();
            assert!((2..=bundle.limits.max_length).contains(&encoding.set.longest_sequence()));
        }
    }
}
