//! Values of options that have a syntax of their own. Each is read from a flag's text and from a TOML value alike, and
//! written back in one canonical form.

use crate::usage;
use anyhow::Result;
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;
use std::marker::PhantomData;
use std::path::PathBuf;
use std::str::FromStr;

/// A TOML value that is a number or text, as it is written.
#[derive(Clone, Serialize)]
#[serde(untagged)]
pub enum Scalar {
    Integer(i64),
    Number(f64),
    Text(String),
}

/// Reads a value from a number or a text; the text says what is wanted.
struct Spelled<T>(&'static str, PhantomData<T>);

impl<T: FromStr<Err = String>> Visitor<'_> for Spelled<T> {
    type Value = T;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str(self.0)
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<T, E> {
        self.visit_str(&value.to_string())
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<T, E> {
        self.visit_str(&value.to_string())
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<T, E> {
        self.visit_str(&value.to_string())
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }
}

/// Reads and writes a type as a number or a text through its text.
macro_rules! scalar {
    ($name:ident, $wanted:literal) => {
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any(Spelled($wanted, PhantomData))
            }
        }

        impl From<$name> for Scalar {
            fn from(value: $name) -> Scalar {
                let text = value.to_string();
                match text.parse() {
                    Ok(integer) => Scalar::Integer(integer),
                    Err(_) => text.parse().map(Scalar::Number).unwrap_or(Scalar::Text(text)),
                }
            }
        }
    };
}

/// Above which odds a question is left unanswered.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(into = "Scalar")]
pub enum NullThreshold {
    Fixed(f32),
    /// That with the best F1 on the validation data.
    Tuned,
}

scalar!(NullThreshold, "a number or tune");

impl NullThreshold {
    pub fn fixed(self) -> Option<f32> {
        match self {
            NullThreshold::Fixed(value) => Some(value),
            NullThreshold::Tuned => None,
        }
    }
}

impl FromStr for NullThreshold {
    type Err = String;

    fn from_str(text: &str) -> Result<NullThreshold, String> {
        if text == "tune" {
            return Ok(NullThreshold::Tuned);
        }
        let value = text.parse().ok().filter(|value: &f32| value.is_finite());
        value.map(NullThreshold::Fixed).ok_or_else(|| "give a finite number, or tune".to_string())
    }
}

impl fmt::Display for NullThreshold {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NullThreshold::Fixed(value) => write!(formatter, "{value}"),
            NullThreshold::Tuned => formatter.write_str("tune"),
        }
    }
}

/// No model has more layers; keeps a mistyped range from asking for gigabytes.
const MOST_LAYERS: usize = 10_000;

/// Layers counted from 1: `17-24` or `1,3,5-8`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(into = "Scalar")]
pub struct LayerSet(Vec<usize>);

scalar!(LayerSet, "layers such as 17-24 or 1,3,5-8");

impl LayerSet {
    /// From indices counted from 0, in ascending order.
    pub fn from_indices(indices: &[usize]) -> LayerSet {
        LayerSet(indices.iter().map(|index| index + 1).collect())
    }

    /// Indices counted from 0, ascending; a usage error where the model has fewer layers.
    pub fn indices(&self, layers: usize) -> Result<Vec<usize>> {
        if let Some(beyond) = self.0.iter().find(|&&layer| layer > layers) {
            usage!("--prefix-layers {self}: layer {beyond} does not exist, the model has layers 1-{layers}");
        }
        Ok(self.0.iter().map(|layer| layer - 1).collect())
    }
}

impl FromStr for LayerSet {
    type Err = String;

    fn from_str(text: &str) -> Result<LayerSet, String> {
        let number = |part: &str| match part.trim().parse::<usize>() {
            Ok(0) => Err("layers are counted from 1".to_string()),
            Ok(layer) if layer > MOST_LAYERS => Err(format!("layer {layer} is beyond any model")),
            Ok(layer) => Ok(layer),
            Err(_) => Err(format!("`{}` is not a layer; write for example 17-24 or 1,3,5-8", part.trim())),
        };
        let mut layers = Vec::new();
        for part in text.split(',') {
            let (first, last) = match part.split_once('-') {
                Some((first, last)) => (number(first)?, number(last)?),
                None => (number(part)?, number(part)?),
            };
            if last < first {
                return Err(format!("the range {first}-{last} runs backwards"));
            }
            layers.extend(first..=last);
        }
        layers.sort_unstable();
        layers.dedup();
        Ok(LayerSet(layers))
    }
}

impl fmt::Display for LayerSet {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, run) in self.0.chunk_by(|a, b| a + 1 == *b).enumerate() {
            let comma = if index > 0 { "," } else { "" };
            match run {
                [single] => write!(formatter, "{comma}{single}")?,
                [first, .., last] => write!(formatter, "{comma}{first}-{last}")?,
                [] => {}
            }
        }
        Ok(())
    }
}

/// How a prefix starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum PrefixStart {
    /// N(0, 0.02).
    Normal,
    Zero,
    /// As the keys and values that the model computes for this text.
    Text(String),
    /// For the text of this file.
    File(PathBuf),
}

impl PrefixStart {
    pub fn is_text(&self) -> bool {
        matches!(self, PrefixStart::Text(_) | PrefixStart::File(_))
    }
}

impl FromStr for PrefixStart {
    type Err = String;

    fn from_str(text: &str) -> Result<PrefixStart, String> {
        Ok(match (text, text.split_once(':')) {
            ("normal", _) => PrefixStart::Normal,
            ("zero", _) => PrefixStart::Zero,
            (_, Some(("text", text))) => PrefixStart::Text(text.to_string()),
            (_, Some(("file", path))) => PrefixStart::File(path.into()),
            _ => return Err(format!("`{text}` is no start of a prefix; write normal, zero, text:\"...\" or file:PATH")),
        })
    }
}

impl fmt::Display for PrefixStart {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PrefixStart::Normal => formatter.write_str("normal"),
            PrefixStart::Zero => formatter.write_str("zero"),
            PrefixStart::Text(text) => write!(formatter, "text:{text}"),
            PrefixStart::File(path) => write!(formatter, "file:{}", path.display()),
        }
    }
}

/// Labels and the words that stand for them in a cloze, in order: a JSON object of strings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LabelWords {
    pub labels: Vec<String>,
    pub words: Vec<String>,
}

impl FromStr for LabelWords {
    type Err = String;

    fn from_str(text: &str) -> Result<LabelWords, String> {
        let example = r#"write for example '{"yes": " Yes", "no": " No"}'"#;
        let object: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(text).map_err(|error| format!("not a JSON object ({error}); {example}"))?;
        let mut pairs = LabelWords { labels: Vec::new(), words: Vec::new() };
        for (label, word) in object {
            let serde_json::Value::String(word) = word else {
                return Err(format!("the word of the label {label:?} is {word}, not a string; {example}"));
            };
            pairs.labels.push(label);
            pairs.words.push(word);
        }
        if pairs.labels.len() < 2 {
            return Err(format!("at least two labels are needed; {example}"));
        }
        Ok(pairs)
    }
}

impl fmt::Display for LabelWords {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pairs = self.labels.iter().zip(&self.words).map(|(label, word)| (label.clone(), serde_json::Value::from(word.clone())));
        write!(formatter, "{}", serde_json::Value::Object(pairs.collect()))
    }
}

/// Reads and writes a type as a string of its own syntax.
macro_rules! spelled {
    ($name:ident) => {
        impl TryFrom<String> for $name {
            type Error = String;

            fn try_from(text: String) -> Result<Self, String> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.to_string()
            }
        }
    };
}

spelled!(PrefixStart);
spelled!(LabelWords);

/// Warm-up: a number of steps, or a share of all steps (a value below 1).
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(into = "Scalar")]
pub enum Warmup {
    Steps(u64),
    Ratio(f64),
}

scalar!(Warmup, "a whole number of steps or a ratio below 1");

impl Warmup {
    /// Steps of warm-up in a run of `total` steps; a ratio rounds up, as transformers does.
    pub fn steps(self, total: u64) -> u64 {
        match self {
            Warmup::Steps(steps) => steps,
            Warmup::Ratio(ratio) => (total as f64 * ratio).ceil() as u64,
        }
    }
}

impl FromStr for Warmup {
    type Err = String;

    fn from_str(text: &str) -> Result<Warmup, String> {
        if let Ok(steps) = text.parse() {
            return Ok(Warmup::Steps(steps));
        }
        match text.parse::<f64>() {
            Ok(ratio) if ratio > 0.0 && ratio < 1.0 => Ok(Warmup::Ratio(ratio)),
            _ => Err(format!("`{text}` is neither a whole number of steps nor a ratio between 0 and 1")),
        }
    }
}

impl fmt::Display for Warmup {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Warmup::Steps(steps) => write!(formatter, "{steps}"),
            Warmup::Ratio(ratio) => write!(formatter, "{ratio}"),
        }
    }
}

/// How often something happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(into = "Scalar")]
pub enum Every {
    Epoch,
    Steps(u64),
}

scalar!(Every, "epoch or a whole number of steps");

impl Every {
    /// Whether it happens after `done` of `total` steps. The end of the last epoch is the run's last step, also where
    /// a number of steps cuts that epoch short.
    pub fn is_due(self, done: u64, steps_per_epoch: u64, total: u64) -> bool {
        done == total
            || match self {
                Every::Epoch => done.is_multiple_of(steps_per_epoch),
                Every::Steps(steps) => done.is_multiple_of(steps),
            }
    }
}

impl FromStr for Every {
    type Err = String;

    fn from_str(text: &str) -> Result<Every, String> {
        match (text, text.parse()) {
            ("epoch", _) => Ok(Every::Epoch),
            (_, Ok(steps)) if steps > 0 => Ok(Every::Steps(steps)),
            _ => Err(format!("`{text}` is neither `epoch` nor a number of steps of at least 1")),
        }
    }
}

impl fmt::Display for Every {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Every::Epoch => formatter.write_str("epoch"),
            Every::Steps(steps) => write!(formatter, "{steps}"),
        }
    }
}

/// Steps counted from 1, both ends included: `5:8`, or `5` alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(into = "Scalar")]
pub struct StepRange {
    pub first: u64,
    pub last: u64,
}

scalar!(StepRange, "steps such as 5:8");

impl FromStr for StepRange {
    type Err = String;

    fn from_str(text: &str) -> Result<StepRange, String> {
        let (first, last) = text.split_once(':').unwrap_or((text, text));
        match (first.trim().parse(), last.trim().parse()) {
            (Ok(first), Ok(last)) if 0 < first && first <= last => Ok(StepRange { first, last }),
            _ => Err(format!("`{text}` is no range of steps; write for example 5:8, counted from 1")),
        }
    }
}

impl fmt::Display for StepRange {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { write!(formatter, "{}", self.first) } else { write!(formatter, "{}:{}", self.first, self.last) }
    }
}

/// A number of bytes: `24GiB`, `80GB`, `500 MiB`, or a plain number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(into = "Scalar")]
pub struct ByteSize(pub usize);

scalar!(ByteSize, "an amount of memory such as 24GiB");

/// Units of bytes, the longer names first.
const UNITS: [(&str, f64); 9] = [
    ("KiB", 1024.0),
    ("MiB", 1048576.0),
    ("GiB", 1073741824.0),
    ("TiB", 1099511627776.0),
    ("kB", 1e3),
    ("MB", 1e6),
    ("GB", 1e9),
    ("TB", 1e12),
    ("B", 1.0),
];

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<ByteSize, String> {
        let lower = text.trim().to_ascii_lowercase();
        let unit = UNITS.iter().find_map(|(name, size)| Some((lower.strip_suffix(&name.to_ascii_lowercase())?, *size)));
        let (number, size) = unit.unwrap_or((&lower, 1.0));
        match number.trim().parse::<f64>() {
            Ok(number) if number.is_finite() && number > 0.0 && number * size <= (1u64 << 53) as f64 => {
                Ok(ByteSize((number * size) as usize))
            }
            _ => Err(format!("`{text}` is no amount of memory; write for example 24GiB, 80GB or 500MiB")),
        }
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.0)
    }
}

/// What computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(into = "Scalar")]
pub enum Device {
    /// The best that this build and this machine have.
    Auto,
    Cpu,
    Cuda(usize),
    /// A GPU's kernels on the host: for tests.
    #[cfg(feature = "emulation")]
    Emulated,
}

scalar!(Device, "auto, cpu, cuda or cuda:N");

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Device, String> {
        let index = |text: &str| text.parse().map(Device::Cuda).map_err(|_| format!("`{text}` is not a device number"));
        match text {
            "auto" => Ok(Device::Auto),
            "cpu" => Ok(Device::Cpu),
            "cuda" => Ok(Device::Cuda(0)),
            #[cfg(feature = "emulation")]
            "emulated" => Ok(Device::Emulated),
            _ => match text.strip_prefix("cuda:") {
                Some(number) => index(number),
                None => Err(format!("`{text}` is not a device; choose auto, cpu, cuda or cuda:N")),
            },
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Auto => formatter.write_str("auto"),
            Device::Cpu => formatter.write_str("cpu"),
            Device::Cuda(index) => write!(formatter, "cuda:{index}"),
            #[cfg(feature = "emulation")]
            Device::Emulated => formatter.write_str("emulated"),
        }
    }
}

/// Where the first token's position is counted from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Offset {
    /// Behind the prefix, as the paper's code and PEFT do.
    Shifted,
    /// As without a prefix.
    Unshifted,
}

/// What is trained beside the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// Keys and values in front of every layer's own (P-Tuning v2).
    Prefix,
    /// Embeddings in front of the input (Lester et al.).
    Prompt,
    /// Nothing: the head alone.
    Head,
}

impl Method {
    /// As the option spells it.
    pub fn name(self) -> &'static str {
        match self {
            Method::Prefix => "prefix",
            Method::Prompt => "prompt",
            Method::Head => "head",
        }
    }
}

/// Order of the training data in an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum DataOrder {
    Shuffled,
    Sequential,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layer_sets() {
        let set: LayerSet = "5-8, 3,1,7".parse().unwrap();
        assert_eq!(set.to_string(), "1,3,5-8");
        assert_eq!(set.indices(8).unwrap(), [0, 2, 4, 5, 6, 7]);
        assert!(set.indices(7).unwrap_err().to_string().contains("layer 8 does not exist"));
        assert_eq!(LayerSet::from_indices(&[16, 17, 18]).to_string(), "17-19");
        for wrong in ["", "0", "8-5", "a", "1-", "1,,2", "1-99999999"] {
            assert!(wrong.parse::<LayerSet>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in
            [("24GiB", 24usize << 30), ("80 GB", 80_000_000_000), ("1.5mib", 3 << 19), ("7", 7), ("12B", 12), ("2TiB", 2 << 40)]
        {
            assert_eq!(text.parse::<ByteSize>().unwrap().0, bytes);
        }
        for wrong in ["", "GiB", "-1GiB", "0", "1e300", "3 PiB", "nan"] {
            assert!(wrong.parse::<ByteSize>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn warmup_is_steps_or_a_ratio() {
        assert_eq!("10".parse(), Ok(Warmup::Steps(10)));
        assert_eq!("1".parse(), Ok(Warmup::Steps(1)));
        assert_eq!("0.1".parse(), Ok(Warmup::Ratio(0.1)));
        assert_eq!(Warmup::Ratio(0.06).steps(101), 7);
        for wrong in ["1.5", "-1", "nan", "0.0", "x"] {
            assert!(wrong.parse::<Warmup>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_also_means_the_last_step() {
        let due = |every: Every| (1..=7).filter(|&done| every.is_due(done, 3, 7)).collect::<Vec<_>>();
        assert_eq!(due(Every::Epoch), [3, 6, 7]);
        assert_eq!(due(Every::Steps(2)), [2, 4, 6, 7]);
        assert!("0".parse::<Every>().is_err());
    }

    #[test]
    fn step_ranges() {
        assert_eq!("3:5".parse(), Ok(StepRange { first: 3, last: 5 }));
        assert_eq!("7".parse::<StepRange>().unwrap().to_string(), "7");
        assert_eq!("3:5".parse::<StepRange>().unwrap().to_string(), "3:5");
        for wrong in ["", "0", "0:3", "5:3", "a:b", "3:", "3-5"] {
            assert!(wrong.parse::<StepRange>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn devices() {
        assert_eq!("cuda:1".parse(), Ok(Device::Cuda(1)));
        assert_eq!(Device::Cuda(0).to_string(), "cuda:0");
        assert!("gpu".parse::<Device>().is_err() && "cuda:x".parse::<Device>().is_err());
    }

    #[test]
    fn values_survive_toml() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        struct All {
            layers: LayerSet,
            single: LayerSet,
            steps: Warmup,
            ratio: Warmup,
            epoch: Every,
            every: Every,
            device: Device,
        }
        let text = "layers = '17-24'\nsingle = 3\nsteps = 10\nratio = 0.1\nepoch = 'epoch'\nevery = '50'\ndevice = 'cuda:1'";
        let all: All = toml::from_str(text).unwrap();
        assert_eq!((all.every, all.ratio), (Every::Steps(50), Warmup::Ratio(0.1)));
        assert_eq!(toml::from_str::<All>(&toml::to_string(&all).unwrap()).unwrap(), all);
    }

    #[test]
    fn starts_of_a_prefix() {
        for text in ["normal", "zero", "text:Classify: x", "file:a/b:c.txt", "text:"] {
            assert_eq!(text.parse::<PrefixStart>().unwrap().to_string(), text);
        }
        assert_eq!("text:a: b".parse(), Ok(PrefixStart::Text("a: b".into())));
        assert!("texts:a".parse::<PrefixStart>().unwrap_err().contains("file:PATH"));
    }

    #[test]
    fn words_of_labels_keep_their_order() {
        let words: LabelWords = r#"{"no": " No", "yes": " \"Yes\""}"#.parse().unwrap();
        assert_eq!((words.labels.join(","), words.words.join(",")), ("no,yes".into(), r#" No, "Yes""#.into()));
        assert_eq!(words.to_string().parse(), Ok(words.clone()));
        let table: toml::Table = toml::from_str(&format!("verbalizer = {}", toml::Value::String(words.to_string()))).unwrap();
        assert_eq!(table["verbalizer"].clone().try_into::<LabelWords>().unwrap(), words);
        for (text, part) in [("yes", "not a JSON object"), (r#"{"yes": 1}"#, "not a string"), (r#"{"yes": " Yes"}"#, "at least two labels")]
        {
            assert!(text.parse::<LabelWords>().unwrap_err().contains(part), "{text}");
        }
    }
}
