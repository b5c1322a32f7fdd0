//! Line charts as SVG. The text of a file depends on the numbers alone: no fonts of the machine, no times.

use anyhow::{Result, anyhow};
use plotters::prelude::*;
use plotters::style::RGBColor;

/// One panel.
pub struct Chart {
    pub title: String,
    pub x_label: String,
    pub y_label: String,
    pub series: Vec<Series>,
}

/// A named line; points in ascending x.
pub struct Series {
    pub name: String,
    pub points: Vec<(f64, f64)>,
    /// Whether each point gets a dot.
    pub dots: bool,
}

const WIDTH: u32 = 900;
const HEIGHT: u32 = 360;
/// Told apart also by those who do not see red and green as different.
const COLORS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(213, 94, 0),
];

/// The panels one below the other; charts without a point are left out. None where nothing is left.
pub fn to_svg(charts: &[Chart]) -> Result<Option<String>> {
    let charts: Vec<&Chart> = charts.iter().filter(|chart| chart.series.iter().any(|series| !series.points.is_empty())).collect();
    if charts.is_empty() {
        return Ok(None);
    }
    let mut text = String::new();
    let root = SVGBackend::with_string(&mut text, (WIDTH, HEIGHT * charts.len() as u32)).into_drawing_area();
    let failed = |error: &dyn std::fmt::Display| anyhow!("cannot draw a chart: {error}");
    root.fill(&WHITE).map_err(|error| failed(&error))?;
    for (area, chart) in root.split_evenly((charts.len(), 1)).iter().zip(charts) {
        draw(area, chart).map_err(|error| failed(&error))?;
    }
    root.present().map_err(|error| failed(&error))?;
    drop(root);
    Ok(Some(text))
}

/// A bar of parts, from the left.
pub struct Bar {
    pub name: String,
    pub parts: Vec<f64>,
}

/// Height of a bar with its gap, and room for names at its left.
const BAR: u32 = 30;
const NAMES: u32 = 330;

/// Bars of parts, one below the other, with their sums behind them; `kinds` name the parts.
pub fn stacked_bars(title: &str, kinds: &[&str], bars: &[Bar]) -> Result<String> {
    let mut text = String::new();
    let root = SVGBackend::with_string(&mut text, (WIDTH, 80 + BAR * bars.len() as u32)).into_drawing_area();
    let largest = bars.iter().map(|bar| bar.parts.iter().sum::<f64>()).fold(f64::MIN_POSITIVE, f64::max);
    let scale = f64::from(WIDTH - NAMES - 80) / largest;
    let draw = || -> Result<(), DrawingAreaErrorKind<_>> {
        root.fill(&WHITE)?;
        root.draw(&Text::new(title, (12, 10), ("sans-serif", 18)))?;
        let mut x = 12;
        for (kind, color) in kinds.iter().zip(COLORS) {
            root.draw(&Rectangle::new([(x, 42), (x + 12, 54)], color.filled()))?;
            root.draw(&Text::new(kind.to_string(), (x + 18, 42), ("sans-serif", 13)))?;
            x += 32 + 8 * kind.len() as i32;
        }
        for (index, bar) in bars.iter().enumerate() {
            let y = 70 + (BAR * index as u32) as i32;
            root.draw(&Text::new(bar.name.clone(), (12, y + 4), ("sans-serif", 13)))?;
            let (mut sum, left) = (0.0, |sum: f64| NAMES as i32 + (sum * scale).round() as i32);
            for (part, color) in bar.parts.iter().zip(COLORS) {
                root.draw(&Rectangle::new([(left(sum), y), (left(sum + part), y + BAR as i32 - 8)], color.filled()))?;
                sum += part;
            }
            root.draw(&Text::new(format!("{sum:.1}"), (left(sum) + 6, y + 4), ("sans-serif", 13)))?;
        }
        root.present()
    };
    draw().map_err(|error| anyhow!("cannot draw a chart: {error}"))?;
    drop(root);
    Ok(text)
}

/// What an area's drawing may fail with.
type Failed = Box<dyn std::error::Error>;

fn draw<'a>(area: &DrawingArea<SVGBackend<'a>, plotters::coord::Shift>, chart: &Chart) -> Result<(), Failed>
where
    SVGBackend<'a>: DrawingBackend,
{
    let points = || chart.series.iter().flat_map(|series| series.points.iter());
    let (x, y) = (range(points().map(|point| point.0)), range(points().map(|point| point.1)));
    let text = |error: DrawingAreaErrorKind<_>| -> Failed { describe(error).into() };
    let mut context = ChartBuilder::on(area)
        .caption(&chart.title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(64)
        .build_cartesian_2d(x.0..x.1, y.0..y.1)
        .map_err(text)?;
    let label = |value: &f64| format_number(*value);
    context
        .configure_mesh()
        .x_desc(&chart.x_label)
        .y_desc(&chart.y_label)
        .light_line_style(WHITE)
        .x_label_formatter(&label)
        .y_label_formatter(&label)
        .draw()
        .map_err(text)?;
    for (index, series) in chart.series.iter().enumerate() {
        let color = COLORS[index % COLORS.len()];
        let drawn = context.draw_series(LineSeries::new(series.points.iter().copied(), color.stroke_width(2))).map_err(text)?;
        drawn.label(&series.name).legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
        if series.dots {
            context.draw_series(series.points.iter().map(|&point| Circle::new(point, 3, color.filled()))).map_err(text)?;
        }
    }
    context
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK)
        .draw()
        .map_err(text)?;
    Ok(())
}

fn describe<E: std::error::Error + Send + Sync>(error: DrawingAreaErrorKind<E>) -> String {
    error.to_string()
}

/// Ends of an axis: a little beyond the values, and never of length 0.
fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values
        .filter(|value| value.is_finite())
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
    match high - low {
        span if span > 0.0 => (low - 0.03 * span, high + 0.03 * span),
        0.0 => (low - 0.5 * low.abs().max(1e-3), high + 0.5 * high.abs().max(1e-3)),
        _ => (0.0, 1.0),
    }
}

/// Enough digits for an axis.
fn format_number(value: f64) -> String {
    let size = value.abs();
    if size >= 1e5 || (size > 0.0 && size < 1e-3) {
        return format!("{value:.1e}");
    }
    let text = format!("{value:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: Vec<(f64, f64)>) -> Chart {
        let series = vec![Series { name: "loss <of> training".into(), points, dots: true }];
        Chart { title: "Loss".into(), x_label: "step".into(), y_label: "loss".into(), series }
    }

    #[test]
    fn a_chart_is_the_same_text_every_time() {
        let draw = || to_svg(&[chart(vec![(1.0, 0.5), (2.0, 0.25)]), chart(vec![(1.0, 3.0)])]).unwrap().unwrap();
        let text = draw();
        assert_eq!(text, draw());
        assert!(text.starts_with("<svg") && text.trim_end().ends_with("</svg>"));
        assert!(text.contains("loss &lt;of&gt; training") && !text.contains("NaN"));
        assert_eq!(text.matches("<circle").count(), 3);
    }

    #[test]
    fn bars_are_as_long_as_their_parts() {
        let bars = [("one", vec![1.0, 2.0]), ("two", vec![4.0, 0.0])].map(|(name, parts)| Bar { name: name.into(), parts });
        let text = stacked_bars("Memory", &["a", "b"], &bars).unwrap();
        assert_eq!(text, stacked_bars("Memory", &["a", "b"], &bars).unwrap());
        // The background, two of the legend, two of each bar; sums behind them.
        assert_eq!(text.matches("<rect").count(), 7);
        assert!(text.contains("3.0") && text.contains("4.0"));
    }

    #[test]
    fn nothing_to_draw_is_no_chart() {
        assert!(to_svg(&[chart(Vec::new())]).unwrap().is_none());
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!([0.5, 12.0, 0.0, 0.00012, 250000.0].map(format_number), ["0.5", "12", "0", "1.2e-4", "2.5e5"]);
    }
}
