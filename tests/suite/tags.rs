//! Tagging as a user meets it: schemes of tags, sentences beyond the limit, semantic roles, and runs that learn one answer.

use crate::command::{json, json_lines, text};
use crate::place::Place;

/// Sentences that differ enough to be learned from, in BIOES.
fn bioes(sentences: usize) -> String {
    let sentence = |index: usize| format!("Noor\tS-person\nsang\tO\nin\tO\nOld\tB-location\nHobart{index}\tE-location\n\n");
    (0..sentences).map(sentence).collect()
}

#[test]
fn tags_are_learned_as_iob2_and_written_as_the_data_have_them() {
    let place = Place::new("bert-tagging");
    place.write("train.conll", bioes(12));
    place.write("iob1.txt", bioes(12).replace("S-", "I-").replace("B-", "I-").replace("E-", "I-"));
    let log = place.run("train --model model --task tagging --data train.conll --validation iob1.txt --output out --max-steps 8").ok();
    assert!(log.contains("tags: BIOES, learned as IOB2") && log.contains("tags: IOB1, learned as IOB2"), "{log}");
    assert!(log.contains("answers in the training data: O 40.0 %"), "{log}");
    let adapter = json(&place.path("out/ptune.json"));
    assert_eq!(adapter["labels"].as_array().unwrap().iter().filter(|label| label.as_str().unwrap().starts_with(['S', 'E'])).count(), 0);
    assert_eq!(adapter["tag_scheme"], "bioes");
    let eval = |data: &str| place.run(&format!("eval --model model --adapter out --data {data} --json")).ok();
    assert_eq!(eval("train.conll"), eval("iob1.txt"));
    let predict = |more: &str| {
        place.run(&format!("predict --model model --adapter out --input iob1.txt --output p.jsonl --quiet {more}")).ok();
        json_lines(&place.path("p.jsonl")).iter().map(|line| line["tags"].to_string()).collect::<Vec<_>>()
    };
    let (own, learned) = (predict("--tag-scheme data"), predict(""));
    assert_eq!(own, predict("--tag-scheme bioes"));
    assert!(learned.iter().zip(&own).all(|(learned, own)| learned.matches("-").count() == own.matches("-").count()));
    let train = "train --model model --task tagging --data train.conll --output other";
    place.refuses(1, &format!("{train} --tag-scheme iob2"), &["train.conll, line 1, word 1", "S-person", "IOB2"]);
    place.refuses(2, "predict --model model --adapter out --input iob1.txt --output q.jsonl --tag-scheme x", &["bilou or data"]);
}

#[test]
fn long_sentences_are_split_or_say_where_they_were_cut() {
    let place = Place::new("bert-tagging");
    let predict = |more: &str| {
        let line =
            format!("predict --model model --adapter adapter --task tagging --max-length 12 --input data.jsonl --output p.jsonl {more}");
        place.run(&line).ok();
        json_lines(&place.path("p.jsonl"))
    };
    let (split, cut) = (predict(""), predict("--long-sentences truncate"));
    assert!(split.iter().all(|line| line.get("truncated_at").is_none()));
    let read = cut[1]["truncated_at"].as_u64().unwrap() as usize;
    let (tags, whole) = (cut[1]["tags"].as_array().unwrap(), split[1]["tags"].as_array().unwrap());
    assert_eq!(tags.len(), whole.len());
    assert!(read < tags.len() && tags[read..].iter().all(|tag| tag == "O"));
}

#[test]
fn roles_by_name_from_columns_and_lines() {
    let place = Place::new("bert-tagging");
    std::fs::create_dir(place.path("srl")).unwrap();
    let lines = "1 Noor sang songs ||| B-A0 B-V B-A1\n2 He will sail ||| B-A0 B-AM-MOD B-V\n".repeat(6);
    let columns = "Noor - (A0*)\nsang sing (V*)\nsongs - (A1*)\n\nHe - (A0*)\nwill - (AM-MOD*)\nsail sail (V*)\n\n".repeat(6);
    place.write("srl/conll05.train.txt", &lines);
    place.write("srl/conll05.devel.txt", &columns);
    place.write("srl/conll05.test.brown.txt", &lines);
    let log = place.run("train --model model --task srl/conll05 --data srl --output out --max-steps 4").ok();
    assert!(log.contains("validation data: 12 examples") && log.contains("answers in the training data: B-A0 33.3 %"), "{log}");
    let table = place.run("eval --model model --adapter out --data srl --split test_brown").ok();
    for role in ["role ", "A0 ", "A1 ", "AM-MOD ", "V "] {
        assert!(table.lines().any(|line| line.starts_with(role)), "{role}: {table}");
    }
    let scores = |data: &str| place.run(&format!("eval --model model --adapter out --data {data} --json")).ok();
    assert_eq!(scores("srl/conll05.devel.txt"), scores("srl/conll05.train.txt"));
    // Of no use without a predicate: the sentence is not what the adapter was trained on.
    place.write("plain.txt", "1 Noor sang songs |||\n");
    place.run("predict --model model --adapter out --input plain.txt --output p.jsonl --quiet").ok();
    assert_eq!(json_lines(&place.path("p.jsonl"))[0]["tags"].as_array().unwrap().len(), 3);
}

#[test]
fn a_run_that_learned_one_answer_says_so() {
    let place = Place::new("bert-tagging");
    let sentences = "Noor\tB-person\nsang\tO\nin\tO\nthe\tO\nrain\tO\n\n".repeat(12);
    place.write("train.txt", &sentences);
    let train = "train --model model --task tagging --data train.txt --max-steps 1 --learning-rate 1e-9 --prefix-length 2";
    let run = place.run(&format!("{train} --output blind"));
    assert!(run.stderr.contains("the model learned little else"), "{}", run.stderr);
    assert!(json(&place.path("blind/train_results.json"))["warnings"][0].as_str().unwrap().contains("0.5004"));
}

/// Columns are called by any name, that of another task's column too.
#[test]
fn a_column_may_be_called_as_another_task_s() {
    let place = Place::new("bert-tagging");
    place.write("d.jsonl", "{\"text\": [\"a\", \"b\"], \"label\": [\"O\", \"B-person\"]}\n".repeat(4));
    let named = "--text-column text --label-column label";
    place.train(&format!("--task tagging --data d.jsonl {named} --output out"));
    let eval = "eval --model model --adapter out --data d.jsonl --json";
    place.refuses(1, eval, &["d.jsonl, line 1", "\"tokens\"", "columns found: text, label", "--text-column"]);
    place.run(&format!("{eval} {named}")).ok();
    let place = Place::new("llama-causal-lm");
    place.write("d.jsonl", "{\"text\": \"a\", \"label\": \"b\"}\n".repeat(4));
    place.refuses(1, "train --model model --task causal-lm --data d.jsonl --output out", &["\"prompt\"", "--text-column"]);
    place.train(&format!("--task causal-lm --data d.jsonl {named} --output out"));

    // A run of an older version has the names of a classification's columns, and none where it goes on.
    let place = Place::new("bert-tagging");
    place.train("--task tagging --data data.jsonl --output out");
    let config = text(&place.path("out/config.toml"));
    assert!(!config.contains("-column"), "{config}");
    let old = "text-column = \"text\"\ntext-pair-column = \"text_pair\"\nlabel-column = \"label\"\nchoices-column = \"choices\"\n";
    place.write("out/config.toml", format!("{old}{config}"));
    std::fs::remove_file(place.path("out/train_results.json")).unwrap();
    assert!(place.run("train --output out --resume").ok().contains("resuming after step 2 of 2"));
    place.run("train --config out/config.toml --output again --quiet").ok();
}
