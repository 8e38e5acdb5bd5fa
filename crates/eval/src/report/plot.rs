//! Plots as inline SVG: points with intervals on one axis, coloured by the page's style.

use std::fmt::Write;

use super::page::escape;
use crate::Interval;

/// One line of a plot: its label and its marks.
pub(super) struct Row {
    pub label: String,
    pub marks: Vec<Mark>,
}

pub(super) struct Mark {
    /// The style class: `before`, `after` or `gate`.
    pub class: &'static str,
    pub value: f64,
    pub interval: Option<Interval>,
    /// Shown when pointed at.
    pub title: String,
}

/// The axis of a plot.
pub(super) struct Axis {
    pub low: f64,
    pub high: f64,
    pub label: &'static str,
    /// Writes a tick.
    pub tick: fn(f64) -> String,
}

const LABEL_WIDTH: f64 = 170.0;
const PLOT_WIDTH: f64 = 520.0;
const MARK_HEIGHT: f64 = 16.0;
const ROW_GAP: f64 = 12.0;
const TOP: f64 = 8.0;
const AXIS_HEIGHT: f64 = 44.0;
/// A label longer than this would run into the plot.
const LABEL_CHARACTERS: usize = 24;

impl Axis {
    /// An axis from `low` that just holds every mark and interval.
    pub(super) fn fitting(
        low: f64,
        rows: &[Row],
        label: &'static str,
        tick: fn(f64) -> String,
    ) -> Axis {
        let marks = rows.iter().flat_map(|row| &row.marks);
        let highest =
            marks.map(|m| m.interval.map_or(m.value, |i| i.high.max(m.value))).fold(low, f64::max);
        let high = if highest > low { low + 1.05 * (highest - low) } else { low + 1.0 };
        Axis { low, high, label, tick }
    }

    fn x(&self, value: f64) -> f64 {
        let part = ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0);
        LABEL_WIDTH + PLOT_WIDTH * part
    }
}

/// Draws `rows` over `axis`.
pub(super) fn dots(title: &str, axis: &Axis, rows: &[Row]) -> String {
    let heights: f64 = rows.iter().map(|row| MARK_HEIGHT * row.marks.len() as f64 + ROW_GAP).sum();
    let (width, bottom) = (LABEL_WIDTH + PLOT_WIDTH + 30.0, TOP + heights);
    let mut svg = format!(
        "<svg viewBox=\"0 0 {width:.0} {:.0}\" role=\"img\" aria-label=\"{}\">\n",
        bottom + AXIS_HEIGHT,
        escape(title)
    );
    for step in 0..=4 {
        let value = axis.low + (axis.high - axis.low) * f64::from(step) / 4.0;
        let x = axis.x(value);
        push(
            &mut svg,
            format_args!(
                "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{bottom:.1}\"/>\
             <text class=\"tick\" x=\"{x:.1}\" y=\"{:.1}\">{}</text>\n",
                bottom + 16.0,
                escape(&(axis.tick)(value))
            ),
        );
    }
    let mut y = TOP + ROW_GAP / 2.0;
    for row in rows {
        let middle = y + MARK_HEIGHT * row.marks.len() as f64 / 2.0;
        push(
            &mut svg,
            format_args!(
                "<text class=\"label\" x=\"{:.0}\" y=\"{:.1}\">{}</text>\n",
                LABEL_WIDTH - 12.0,
                middle + 4.0,
                escape(&shortened(&row.label))
            ),
        );
        for mark in &row.marks {
            draw(&mut svg, axis, mark, y + MARK_HEIGHT / 2.0);
            y += MARK_HEIGHT;
        }
        y += ROW_GAP;
    }
    push(
        &mut svg,
        format_args!(
            "<text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\">{}</text>\n</svg>\n",
            LABEL_WIDTH + PLOT_WIDTH / 2.0,
            bottom + 36.0,
            escape(axis.label)
        ),
    );
    svg
}

fn draw(svg: &mut String, axis: &Axis, mark: &Mark, y: f64) {
    push(svg, format_args!("<g class=\"{}\"><title>{}</title>", mark.class, escape(&mark.title)));
    if let Some(interval) = mark.interval {
        push(
            svg,
            format_args!(
                "<line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>",
                axis.x(interval.low),
                axis.x(interval.high)
            ),
        );
    }
    push(
        svg,
        format_args!("<circle cx=\"{:.1}\" cy=\"{y:.1}\" r=\"4.5\"/></g>\n", axis.x(mark.value)),
    );
}

fn push(svg: &mut String, text: std::fmt::Arguments) {
    svg.write_fmt(text).expect("writing to a string does not fail");
}

fn shortened(label: &str) -> String {
    if label.chars().count() <= LABEL_CHARACTERS {
        return label.into();
    }
    label.chars().take(LABEL_CHARACTERS - 1).chain(['…']).collect()
}
