//! Tasks by name through whole commands: official files in, official scores and submissions out.

use crate::command::{json, json_lines, text};
use crate::place::Place;

const CB: [&str; 3] = [
    "{\"premise\": \"a b c\", \"hypothesis\": \"a\", \"label\": \"entailment\", \"idx\": 0}\n\
     {\"premise\": \"a b\", \"hypothesis\": \"c\", \"label\": \"neutral\", \"idx\": 1}\n\
     {\"premise\": \"b b\", \"hypothesis\": \"a\", \"label\": \"contradiction\", \"idx\": 2}\n",
    "{\"premise\": \"a b d\", \"hypothesis\": \"a\", \"label\": \"entailment\", \"idx\": 5}\n",
    "{\"premise\": \"a b d\", \"hypothesis\": \"e\", \"idx\": 8}\n{\"premise\": \"c\", \"hypothesis\": \"e\", \"idx\": 9}",
];

/// A folder with the official files.
fn place() -> Place {
    let place = Place::new("bert-classification");
    std::fs::create_dir(place.path("CB")).unwrap();
    for (name, contents) in ["train", "val", "test"].into_iter().zip(CB) {
        place.write(&format!("CB/{name}.jsonl"), contents);
    }
    place
}

#[test]
fn a_folder_of_official_files_is_trained_on_scored_and_answered() {
    let place = place();
    place.train("--task superglue/cb --data CB --output cb --max-length 32");
    let config = text(&place.path("cb/config.toml"));
    for line in ["task = \"superglue/cb\"", "data = \"CB/train.jsonl\"", "validation = \"CB/val.jsonl\"", "metric = \"accuracy\""] {
        assert!(config.contains(line), "{line} is not in {config}");
    }
    let metadata = json(&place.path("cb/ptune.json"));
    assert_eq!(metadata["named_task"], "superglue/cb");
    assert_eq!(metadata["task"], "classification");
    assert_eq!(metadata["labels"], serde_json::json!(["entailment", "contradiction", "neutral"]));

    let scores = place.run("eval --model model --adapter cb --data CB --json").ok();
    for name in ["\"accuracy\"", "\"macro_f1\"", "\"mean\"", "\"examples\":1"] {
        assert!(scores.contains(name), "{name} is not in {scores}");
    }
    place.run("predict --model model --adapter cb --input CB --output out.jsonl --submission CB.jsonl --quiet").ok();
    let (lines, submission) = (json_lines(&place.path("out.jsonl")), json_lines(&place.path("CB.jsonl")));
    assert_eq!(submission.iter().map(|line| line["idx"].as_i64().unwrap()).collect::<Vec<_>>(), [8, 9]);
    assert!(lines.iter().zip(&submission).all(|(line, answer)| line["prediction"] == answer["label"]));

    // The same adapter on data of one's own, and a run that goes on.
    place.write("own.jsonl", "{\"text\": \"a b d\", \"text_pair\": \"e\"}\n");
    place.run("predict --model model --adapter cb --task classification --input own.jsonl --output own-out.jsonl --quiet").ok();
    assert_eq!(json_lines(&place.path("own-out.jsonl"))[0], lines[0]);
    place.run("train --output cb --resume --data CB --quiet").ok();
}

#[test]
fn the_template_is_recorded_and_used() {
    let place = place();
    let line = "{\"word\": \"b\", \"sentence1\": \"a b\", \"sentence2\": \"b c\", \"idx\": 1, \"label\": true}\n";
    place.write("wic.jsonl", format!("{line}{}", line.replace("true", "false")));
    place.train("--task superglue/wic --template 1 --data wic.jsonl --output wic");
    assert_eq!(json(&place.path("wic/ptune.json"))["template"], 1);
    let ids = |more: &str| {
        place.run(&format!("predict --model model --adapter wic --output ids.jsonl --with input_ids --quiet {more}")).ok();
        json_lines(&place.path("ids.jsonl"))[0]["input_ids"].clone()
    };
    place.write("pair.jsonl", "{\"text\": \"b: a b\", \"text_pair\": \"b: b c\"}\n");
    assert_eq!(ids("--input wic.jsonl"), ids("--input pair.jsonl --task classification"));
}

#[test]
fn what_a_name_cannot_do_is_refused() {
    let place = place();
    let train = |flags: &str| format!("train --model model --output out {flags}");
    place.refuses(2, &train("--task cb --data CB"), &["superglue/cb"]);
    place.refuses(2, &train("--task superglue/nothing --data CB"), &["ptune tasks"]);
    place.refuses(2, &train("--task classification --data CB"), &["--data CB", "ptune tasks"]);
    place.refuses(1, &train("--task glue/cola --data CB"), &["CB", "train.tsv"]);
    place.refuses(2, &train("--task superglue/cb --template 1 --data CB"), &["--template 1", "superglue/cb has 1"]);
    place.refuses(2, &train("--task classification --template 0 --data data.jsonl"), &["--template 0"]);
    place.refuses(2, &train("--task superglue/cb --data CB --null-threshold 1"), &["--null-threshold 1"]);
    place.refuses(2, &train("--task squad/v2 --data CB/train.jsonl --null-threshold tune"), &["--validation"]);
    std::fs::rename(place.path("CB/val.jsonl"), place.path("CB/dev.jsonl")).unwrap();
    place.refuses(1, &train("--task superglue/cb --data CB"), &["val.jsonl", "--validation"]);
    let adapter = "--model model --adapter adapter";
    place.refuses(2, &format!("eval {adapter} --task superglue/cb --data CB --split dev"), &["--split dev", "validation"]);
    place.refuses(2, &format!("predict {adapter} --task classification --input data.jsonl --output o --submission s"), &["--submission"]);
    place.refuses(2, &format!("predict {adapter} --task classification --input data.jsonl --output o --n-best 3"), &["--n-best"]);
    place.refuses(2, &format!("predict {adapter} --input data.jsonl --output o --null-odds o"), &["--null-odds o"]);
    place.refuses(2, "tasks nothing", &["nothing"]);
}

#[test]
fn questions_get_ranked_answers_and_a_tuned_threshold() {
    let place = Place::new("bert-qa");
    place.train(
        "--task squad/v2 --data data.jsonl --validation data.jsonl --null-threshold tune --max-length 48 --doc-stride 8 --output qa",
    );
    let threshold = json(&place.path("qa/ptune.json"))["null_threshold"].as_f64().unwrap();
    let answers = "--input data.jsonl --output out.jsonl --n-best 3 --null-odds odds.json --submission answers.json --quiet";
    place.run(&format!("predict --model model --adapter qa {answers}")).ok();
    let (odds, submission) = (json(&place.path("odds.json")), json(&place.path("answers.json")));
    for line in json_lines(&place.path("out.jsonl")) {
        let id = line["id"].as_str().unwrap();
        let refused = odds[id].as_f64().unwrap() > threshold;
        assert_eq!(line["prediction_text"] == "", refused, "{line}");
        assert_eq!(submission[id], line["prediction_text"]);
        let ranked = line["n_best"].as_array().unwrap();
        let sum: f64 = ranked.iter().map(|answer| answer["probability"].as_f64().unwrap()).sum();
        assert!(ranked.len() <= 3 && (sum - 1.0).abs() < 1e-9, "{line}");
        assert!(ranked.iter().any(|answer| answer["text"] == ""), "{line}");
    }
    // Never answered, and always.
    for (threshold, empty) in [("-1e9", true), ("1e9", false)] {
        place
            .run(&format!("predict --model model --adapter qa --null-threshold {threshold} --input data.jsonl --output out.jsonl --quiet"))
            .ok();
        assert!(json_lines(&place.path("out.jsonl")).iter().all(|line| (line["prediction_text"] == "") == empty));
    }
}

#[test]
fn answers_that_stand_elsewhere_are_told_and_ids_are_not_lost() {
    let place = Place::new("bert-qa");
    let line = |id: usize, start: usize| {
        let answers = format!("{{\"text\": [\"b c\"], \"answer_start\": [{start}]}}");
        format!("{{\"id\": \"{id}\", \"context\": \"ä b c d\", \"question\": \"e\", \"answers\": {answers}}}\n")
    };
    place.write("d.jsonl", [line(1, 2), line(2, 3), line(3, 0), line(4, 2)].concat());
    let train = "train --model model --task qa --data d.jsonl --max-steps 1 --quiet --output";
    let run = place.run(&format!("{train} out"));
    assert!(run.stderr.contains(": 2 of 4, the first in d.jsonl, line 2: found \" c \", expected \"b c\"; offsets"), "{run:#?}");
    run.ok();
    place.write("d.jsonl", [line(1, 2), line(2, 2), line(1, 2)].concat());
    assert_eq!(place.run(&format!("{train} twice")).stderr, "");
    for file in ["--null-odds odds.json", "--task squad/v1 --submission answers.json"] {
        let predict = format!("predict --model model --adapter out --input d.jsonl --output p.jsonl {file}");
        place.refuses(1, &predict, &["d.jsonl, line 3", "\"1\"", "d.jsonl, line 1", "ids"]);
    }
}

#[test]
fn names_are_listed() {
    let place = Place::new("bert-classification");
    let table = place.run("tasks").ok();
    assert!(table.lines().any(|line| line.starts_with("superglue/multirc ") && line.contains("f1a*")), "{table}");
    let list: serde_json::Value = serde_json::from_str(&place.run("tasks glue/mnli --json").ok()).unwrap();
    assert_eq!(list[0]["labels"][1], "neutral");
}
