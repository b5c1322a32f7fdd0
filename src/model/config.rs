//! Reading a Hugging Face JSON configuration: typed getters whose errors name the file, the field and the remedy.

use crate::error::require_directory;
use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// No dimension of a transformer is larger; a greater number is a damaged file.
const LARGEST: u64 = 1 << 24;

/// The fields of a `config.json` (or another flat JSON object). A field that is null counts as absent, as it does in
/// files of transformers 4 and 5.
pub struct Config {
    file: PathBuf,
    /// What stands before a field's name in messages: the section's, and a dot.
    place: String,
    fields: Map<String, Value>,
}

/// Whether a model of Hugging Face's hub may be called so: a name, or an owner and a name.
fn is_hub_name(name: &str) -> bool {
    let part =
        |part: &str| !part.is_empty() && !part.starts_with('.') && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    name.split('/').count() <= 2 && name.split('/').all(part)
}

impl Config {
    /// Reads `config.json` of a model directory.
    pub fn of_model(directory: &Path) -> Result<Config> {
        let wanted = "give a Hugging Face model directory (config.json, model.safetensors)";
        let name = directory.to_str().filter(|name| is_hub_name(name) && !directory.exists());
        let hub = name.map_or(String::new(), |name| format!("; of a model of the hub get one by: hf download {name} --local-dir DIR"));
        require_directory(directory, &format!("{wanted}{hub}"))?;
        let file = directory.join("config.json");
        if !file.exists() {
            bail!("{}: there is no config.json; give a Hugging Face model directory", directory.display());
        }
        Config::read(&file)
    }

    pub fn read(file: &Path) -> Result<Config> {
        let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        Config::parse(file, &bytes)
    }

    /// `file` is for the messages only.
    pub fn parse(file: &Path, bytes: &[u8]) -> Result<Config> {
        let value: Value = serde_json::from_slice(bytes).with_context(|| format!("{}: not valid JSON", file.display()))?;
        let Value::Object(fields) = value else { bail!("{}: expected a JSON object", file.display()) };
        Ok(Config { file: file.to_owned(), place: String::new(), fields })
    }

    /// All fields, as they were read.
    pub fn fields(&self) -> &Map<String, Value> {
        &self.fields
    }

    pub fn file(&self) -> &Path {
        &self.file
    }

    pub fn get(&self, field: &str) -> Option<&Value> {
        self.fields.get(field).filter(|value| !value.is_null())
    }

    /// "FILE: field F is VALUE; PROBLEM".
    pub fn wrong(&self, field: &str, problem: impl std::fmt::Display) -> anyhow::Error {
        let (file, place) = (self.file.display(), &self.place);
        match self.get(field) {
            Some(value) => anyhow!("{file}: field {place}{field} is {value}; {problem}"),
            None => anyhow!("{file}: field {place}{field} is missing; {problem}"),
        }
    }

    /// The fields of an object.
    pub fn section(&self, field: &str) -> Result<Option<Config>> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::Object(fields)) => {
                Ok(Some(Config { file: self.file.clone(), place: format!("{}{field}.", self.place), fields: fields.clone() }))
            }
            Some(_) => Err(self.wrong(field, "it must be an object")),
        }
    }

    /// Whether any of the fields is an object itself.
    pub fn has_sections(&self) -> bool {
        self.fields.values().any(Value::is_object)
    }

    pub fn text(&self, field: &str) -> Result<Option<&str>> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(field, "it must be a string")),
        }
    }

    /// Absent: false.
    pub fn flag(&self, field: &str) -> Result<bool> {
        self.flag_or(field, false)
    }

    pub fn flag_or(&self, field: &str, absent: bool) -> Result<bool> {
        match self.get(field) {
            None => Ok(absent),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => Err(self.wrong(field, "it must be true or false")),
        }
    }

    /// An integer from 0.
    pub fn count(&self, field: &str) -> Result<Option<usize>> {
        match self.get(field) {
            None => Ok(None),
            Some(value) => match value.as_u64() {
                Some(number) if number <= LARGEST => Ok(Some(number as usize)),
                _ => Err(self.wrong(field, format_args!("it must be an integer from 0 to {LARGEST}"))),
            },
        }
    }

    /// An integer from 1.
    pub fn positive(&self, field: &str) -> Result<Option<usize>> {
        match self.count(field)? {
            Some(0) => Err(self.wrong(field, "it must be at least 1")),
            found => Ok(found),
        }
    }

    /// An integer from 1 that the file must give.
    pub fn size(&self, field: &str) -> Result<usize> {
        self.positive(field)?.ok_or_else(|| self.wrong(field, "it must be a positive integer"))
    }

    pub fn number(&self, field: &str) -> Result<Option<f64>> {
        match self.get(field) {
            None => Ok(None),
            Some(value) => value.as_f64().map(Some).ok_or_else(|| self.wrong(field, "it must be a number")),
        }
    }

    /// A dropout rate: from 0, below 1.
    pub fn rate(&self, field: &str) -> Result<Option<f64>> {
        match self.number(field)? {
            Some(rate) if !(0.0..1.0).contains(&rate) => Err(self.wrong(field, "a rate is from 0 to below 1")),
            found => Ok(found),
        }
    }

    /// A number greater than 0.
    pub fn positive_number(&self, field: &str) -> Result<Option<f64>> {
        match self.number(field)? {
            Some(number) if number <= 0.0 => Err(self.wrong(field, "it must be greater than 0")),
            found => Ok(found),
        }
    }

    /// A number greater than 0 that the file must give.
    pub fn required_number(&self, field: &str) -> Result<f64> {
        self.positive_number(field)?.ok_or_else(|| self.wrong(field, "it must be a number greater than 0"))
    }

    /// The names of `id2label` in the order of their ids; None where there are none: absent, ids with gaps, or the
    /// LABEL_0, LABEL_1 .. that transformers fills in.
    pub fn labels(&self) -> Result<Option<Vec<String>>> {
        let Some(value) = self.get("id2label") else { return Ok(None) };
        let names = value.as_object().ok_or_else(|| self.wrong("id2label", "it must be an object of id: name"))?;
        let mut labels = Vec::with_capacity(names.len());
        for id in 0..names.len() {
            match names.get(&id.to_string()) {
                Some(Value::String(name)) => labels.push(name.clone()),
                Some(_) => return Err(self.wrong("id2label", "label names must be strings")),
                None => return Ok(None),
            }
        }
        if let Some(twice) = labels.iter().enumerate().find(|(index, name)| labels[..*index].contains(name)) {
            return Err(self.wrong("id2label", format_args!("the name {} stands for two ids", twice.1)));
        }
        let generic = labels.iter().enumerate().all(|(id, name)| *name == format!("LABEL_{id}"));
        Ok((!generic).then_some(labels))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        Config::parse(Path::new("model/config.json"), text.as_bytes()).unwrap()
    }

    fn message<T>(result: Result<T>) -> String {
        format!("{:#}", result.err().expect("an error"))
    }

    #[test]
    fn errors_name_file_and_field() {
        let text = r#"{"a": "x", "b": -1, "c": 0, "d": 1.5, "e": 3.0, "f": null, "g": 1e30, "h": 99999999999}"#;
        let config = config(text);
        assert!(message(config.size("a")).starts_with("model/config.json: field a is \"x\"; "));
        for field in ["b", "c", "d", "e", "f", "g", "h", "absent"] {
            assert!(message(config.size(field)).contains(&format!("field {field} is ")), "{field}");
        }
        assert_eq!(config.count("c").unwrap(), Some(0));
        assert_eq!(config.count("f").unwrap(), None);
        assert_eq!(config.rate("c").unwrap(), Some(0.0));
        assert!(message(config.rate("d")).contains("below 1"));
        assert!(message(config.rate("b")).contains("field b"));
        assert!(message(config.positive_number("c")).contains("greater than 0"));
        assert!(message(config.text("b")).contains("string"));
        assert!(message(config.flag("a")).contains("true or false"));
    }

    #[test]
    fn broken_json_has_its_line() {
        let broken = Config::parse(Path::new("config.json"), b"{\n\"a\": 1,\n\"b\" 2}");
        assert!(message(broken).contains("line 3"));
        assert!(message(Config::parse(Path::new("config.json"), b"[1]")).contains("object"));
        assert!(message(Config::parse(Path::new("config.json"), b"{\"a\": \"\xff\"}")).contains("config.json: not valid JSON"));
    }

    #[test]
    fn labels_only_where_they_are_names() {
        let labels = |text: &str| config(text).labels();
        assert_eq!(labels("{}").unwrap(), None);
        assert_eq!(labels(r#"{"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}"#).unwrap(), None);
        assert_eq!(labels(r#"{"id2label": {"0": "a", "2": "b"}}"#).unwrap(), None);
        assert_eq!(labels(r#"{"id2label": {"1": "yes", "0": "no"}}"#).unwrap(), Some(vec!["no".to_string(), "yes".to_string()]));
        assert!(message(labels(r#"{"id2label": {"0": "a", "1": "a"}}"#)).contains("two ids"));
        assert!(message(labels(r#"{"id2label": ["a"]}"#)).contains("id2label"));
    }
}
