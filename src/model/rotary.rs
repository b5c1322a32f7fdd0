//! Rotary positions: the angles by which queries and keys are turned, from the settings of a `config.json` of
//! transformers 4 (`rope_theta`, `rope_scaling`) or 5 (`rope_parameters`). Kinds of scaling are those of transformers'
//! `modeling_rope_utils`; the sources of the formulas: RoFormer (Su et al. 2021), position interpolation (Chen et al.
//! 2023), YaRN (Peng et al. 2023), Llama 3.1's release.

use super::Config;
use anyhow::Result;
use std::f64::consts::TAU;

/// Dims i and i + D/2 of a head are turned by `frequencies[i]` radians a position.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotary {
    /// Positions that the model is made for.
    pub limit: usize,
    /// D/2 of them.
    pub frequencies: Vec<f64>,
    /// What cosines and sines are multiplied by.
    pub factor: f64,
}

impl Rotary {
    /// Cosines, then sines, of a position.
    pub fn angles(&self, position: usize) -> impl Iterator<Item = f64> + '_ {
        let angle = move |frequency: &f64| position as f64 * frequency;
        let cosines = self.frequencies.iter().map(move |frequency| self.factor * angle(frequency).cos());
        cosines.chain(self.frequencies.iter().map(move |frequency| self.factor * angle(frequency).sin()))
    }

    /// Of heads of `head_dim` dims. Errors: a kind of scaling that is not supported, and settings that it needs.
    pub fn read(config: &Config, head_dim: usize) -> Result<Rotary> {
        let table = config.size("max_position_embeddings")?;
        let (parameters, scaling) = (config.section("rope_parameters")?, config.section("rope_scaling")?);
        let settings = parameters.as_ref().or(scaling.as_ref());
        if parameters.as_ref().is_some_and(Config::has_sections) {
            return Err(config.wrong("rope_parameters", "settings that differ from layer to layer are not supported"));
        }
        for place in [Some(config), settings].into_iter().flatten() {
            if place.positive_number("partial_rotary_factor")?.is_some_and(|share| share != 1.0) {
                return Err(place.wrong("partial_rotary_factor", "only heads that are rotated as a whole are supported"));
            }
        }
        let given = match &parameters {
            Some(parameters) => parameters.positive_number("rope_theta")?,
            None => None,
        };
        let theta = given.or(config.positive_number("rope_theta")?).unwrap_or(10_000.0);
        let power = |i: usize| theta.powf(2.0 * i as f64 / head_dim as f64);
        let rotary = Rotary { limit: table, frequencies: (0..head_dim / 2).map(|i| 1.0 / power(i)).collect(), factor: 1.0 };
        let Some(settings) = settings else { return Ok(rotary) };
        let field = if settings.get("rope_type").is_some() { "rope_type" } else { "type" };
        match settings.text(field)?.unwrap_or("default") {
            // Dynamic scaling begins behind max_position_embeddings, and nothing is longer here.
            "default" | "dynamic" => Ok(rotary),
            "linear" => {
                let factor = settings.required_number("factor")?;
                Ok(Rotary { frequencies: rotary.frequencies.iter().map(|frequency| frequency / factor).collect(), ..rotary })
            }
            "llama3" => rotary.llama3(settings),
            "yarn" => rotary.yarn(settings, theta),
            _ => {
                Err(settings.wrong(field, "this scaling of positions is not supported (supported: default, linear, dynamic, llama3, yarn)"))
            }
        }
    }

    /// Long waves are slowed by `factor`, short ones are kept, those between go over from one to the other.
    fn llama3(self, settings: &Config) -> Result<Rotary> {
        let factor = settings.required_number("factor")?;
        let [low, high] = [settings.required_number("low_freq_factor")?, settings.required_number("high_freq_factor")?];
        if high <= low {
            return Err(settings.wrong("high_freq_factor", format_args!("it must be above low_freq_factor {low}")));
        }
        let original = settings.size("original_max_position_embeddings")? as f64;
        let slowed = |&frequency: &f64| {
            let turns = original * frequency / TAU;
            let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
            (1.0 - kept) * frequency / factor + kept * frequency
        };
        Ok(Rotary { frequencies: self.frequencies.iter().map(slowed).collect(), ..self })
    }

    /// As `llama3`, but along the index of a pair of dims, between those that turn `beta_fast` and `beta_slow` times.
    fn yarn(self, settings: &Config, theta: f64) -> Result<Rotary> {
        let factor = settings.required_number("factor")?;
        let fast = settings.positive_number("beta_fast")?.unwrap_or(32.0);
        let slow = settings.positive_number("beta_slow")?.unwrap_or(1.0);
        let original = settings.positive("original_max_position_embeddings")?.unwrap_or(self.limit);
        let dims = 2.0 * self.frequencies.len() as f64;
        let pair_of = |turns: f64| dims * (original as f64 / (turns * TAU)).ln() / (2.0 * theta.ln());
        let (mut first, mut last) = (pair_of(fast), pair_of(slow));
        if settings.flag_or("truncate", true)? {
            (first, last) = (first.floor(), last.ceil());
        }
        (first, last) = (first.max(0.0), last.min(dims - 1.0));
        if first == last {
            last += 0.001;
        }
        let slowed = |(i, &frequency): (usize, &f64)| {
            let kept = 1.0 - ((i as f64 - first) / (last - first)).clamp(0.0, 1.0);
            (1.0 - kept) * frequency / factor + kept * frequency
        };
        let grown = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
        let attention =
            match (settings.positive_number("attention_factor")?, settings.number("mscale")?, settings.number("mscale_all_dim")?) {
                (Some(given), ..) => given,
                (None, Some(one), Some(all)) if one != 0.0 && all != 0.0 => grown(one) / grown(all),
                _ => grown(1.0),
            };
        Ok(Rotary {
            limit: self.limit.max((original as f64 * factor) as usize),
            frequencies: self.frequencies.iter().enumerate().map(slowed).collect(),
            factor: attention,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn read(fields: &str) -> Result<Rotary> {
        let text = format!(r#"{{"max_position_embeddings": 4096, {fields}}}"#);
        Rotary::read(&Config::parse(Path::new("config.json"), text.as_bytes()).unwrap(), 8)
    }

    fn close(found: &[f64], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        assert!(found.iter().zip(expected).all(|(a, b)| (a / b - 1.0).abs() < 1e-12), "{found:?}, not {expected:?}");
    }

    #[test]
    fn both_generations_of_transformers() {
        let old = read(r#""rope_theta": 500000.0, "rope_scaling": null"#).unwrap();
        assert_eq!(old, read(r#""rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"}"#).unwrap());
        close(&old.frequencies, &[1.0, 500000f64.powf(-0.25), 500000f64.powf(-0.5), 500000f64.powf(-0.75)]);
        assert_eq!((old.limit, old.factor), (4096, 1.0));
        close(&read(r#""torch_dtype": "float16""#).unwrap().frequencies, &[1.0, 0.1, 0.01, 0.001]);
        let angles: Vec<f64> = read(r#""rope_theta": 10000"#).unwrap().angles(3).collect();
        close(&angles, &[3f64.cos(), 0.3f64.cos(), 0.03f64.cos(), 0.003f64.cos(), 3f64.sin(), 0.3f64.sin(), 0.03f64.sin(), 0.003f64.sin()]);
        let linear = read(r#""rope_scaling": {"type": "linear", "factor": 4.0}"#).unwrap();
        close(&linear.frequencies, &[0.25, 0.025, 0.0025, 0.00025]);
        assert_eq!(read(r#""rope_scaling": {"rope_type": "dynamic", "factor": 2.0}"#).unwrap(), read(r#""rope_theta": 1e4"#).unwrap());
    }

    /// Numbers of waves over 8192 positions: 1303.8, 130.4, 13.04 and 1.304.
    #[test]
    fn llama3_slows_long_waves() {
        let settings = r#""rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0"#;
        let found = read(&format!(r#""rope_parameters": {{{settings}, "original_max_position_embeddings": 8192}}"#)).unwrap();
        let kept = (8192.0 * 0.001 / TAU - 1.0) / 3.0;
        close(&found.frequencies, &[1.0, 0.1, 0.01, (1.0 - kept) * 0.001 / 8.0 + kept * 0.001]);
        let longest = read(&format!(r#""rope_parameters": {{{settings}, "original_max_position_embeddings": 4096}}"#)).unwrap();
        close(&longest.frequencies, &[1.0, 0.1, 0.01, 0.001 / 8.0]);
    }

    /// A ramp over the pairs from floor(1.309) = 1 to ceil(2.814) = 3, by 4096 positions.
    #[test]
    fn yarn_slows_later_pairs() {
        let found = read(r#""rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}"#).unwrap();
        close(&found.frequencies, &[1.0, 0.1, 0.5 * 0.01 / 4.0 + 0.5 * 0.01, 0.001 / 4.0]);
        assert!((found.factor - (0.1 * 4f64.ln() + 1.0)).abs() < 1e-15);
        assert_eq!(found.limit, 16384);
        let given = read(r#""rope_scaling": {"type": "yarn", "factor": 4.0, "attention_factor": 1.5}"#).unwrap();
        assert_eq!((given.factor, given.limit), (1.5, 16384));
    }

    #[test]
    fn what_is_not_supported_is_named() {
        for (fields, parts) in [
            (r#""rope_scaling": {"rope_type": "longrope", "factor": 2.0}"#, ["rope_scaling.rope_type", "longrope"]),
            (r#""rope_scaling": {"type": "su"}"#, ["rope_scaling.type", "su"]),
            (r#""rope_scaling": {"type": "linear"}"#, ["rope_scaling.factor", "missing"]),
            (r#""rope_scaling": "linear""#, ["rope_scaling", "object"]),
            (r#""rope_parameters": {"rope_theta": 0}"#, ["rope_parameters.rope_theta", "greater than 0"]),
            (r#""rope_parameters": {"full_attention": {"rope_theta": 10000}}"#, ["rope_parameters", "from layer to layer"]),
            (r#""partial_rotary_factor": 0.5"#, ["partial_rotary_factor", "0.5"]),
        ] {
            let message = format!("{:#}", read(fields).expect_err(fields));
            assert!(parts.iter().all(|part| message.contains(part)), "{message}");
        }
    }
}
