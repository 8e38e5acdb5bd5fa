//! Paired differences with standard errors clustered by document.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use crate::{DocumentScore, Error, Outcome, Rule};

/// A 95 % confidence interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    pub low: f64,
    pub high: f64,
}

/// A mean with its uncertainty.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    pub value: f64,
    /// Cluster-robust.
    pub standard_error: f64,
    /// None with fewer than two clusters: nothing then tells chance from effect.
    pub interval: Option<Interval>,
    pub clusters: usize,
}

/// Correct answers, with the Wilson interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Proportion {
    pub correct: usize,
    pub total: usize,
    pub value: f64,
    pub interval: Interval,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Better,
    Worse,
    /// The interval of the difference includes 0.
    NotShown,
}

impl Verdict {
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Better => "better",
            Verdict::Worse => "worse",
            Verdict::NotShown => "not shown",
        }
    }
}

/// Which way of a difference is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    HigherIsBetter,
    LowerIsBetter,
}

/// One set of questions before and after.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    pub rule: Rule,
    pub before: Proportion,
    pub after: Proportion,
    /// Accuracy after − before, paired by question, clustered by document.
    pub difference: Estimate,
    /// Questions wrong before and right after.
    pub gained: usize,
    /// Questions right before and wrong after.
    pub lost: usize,
    pub verdict: Verdict,
}

/// The bits per byte of held-out documents before and after.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Change {
    pub bytes: usize,
    pub before: f64,
    pub after: f64,
    /// Bits per byte after − before, each document a cluster.
    pub difference: Estimate,
    pub verdict: Verdict,
}

/// The sum of a quantity over the units of one cluster, and the sum of their weights: number of
/// questions, bytes, or tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Share {
    pub sum: f64,
    pub weight: f64,
}

/// As many clusters of equal sign reject chance at 5 %, two-sided: 2 · 2⁻⁶ = 3.1 %. With fewer
/// clusters that all agree exactly, the standard error is 0 and means nothing.
const AGREEING_CLUSTERS: usize = 6;

/// `Σ sum / Σ weight` with its cluster-robust standard error and the interval of Student's t with
/// `clusters − 1` degrees of freedom.
///
/// **Source**: arXiv 2411.00640, clustered standard errors, with the factor G/(G−1) of the
/// few-cluster correction CR1; for units of unequal weight the same of the linearised ratio. With
/// one unit a cluster it is the usual standard error of the mean.
pub fn ratio(clusters: &[Share]) -> Estimate {
    let count = clusters.len();
    let weight: f64 = clusters.iter().map(|c| c.weight).sum();
    let value =
        if weight > 0.0 { clusters.iter().map(|c| c.sum).sum::<f64>() / weight } else { 0.0 };
    if count < 2 || weight <= 0.0 {
        return Estimate { value, standard_error: 0.0, interval: None, clusters: count };
    }
    let residuals: f64 = clusters.iter().map(|c| (c.sum - value * c.weight).powi(2)).sum();
    let groups = count as f64;
    let standard_error = (residuals * groups / (groups - 1.0)).sqrt() / weight;
    let reach = student_quantile(count - 1) * standard_error;
    let interval = Some(Interval { low: value - reach, high: value + reach });
    Estimate { value, standard_error, interval, clusters: count }
}

impl Estimate {
    /// Better or worse only where the interval lies on one side of 0.
    pub fn verdict(&self, direction: Direction) -> Verdict {
        let Some(interval) = self.interval else { return Verdict::NotShown };
        // Sums of equal differences leave rounding errors of this relative size.
        let agree = self.standard_error <= 1e-9 * self.value.abs();
        if agree && self.clusters < AGREEING_CLUSTERS {
            return Verdict::NotShown;
        }
        match direction {
            Direction::HigherIsBetter if interval.low > 0.0 => Verdict::Better,
            Direction::HigherIsBetter if interval.high < 0.0 => Verdict::Worse,
            Direction::LowerIsBetter if interval.high < 0.0 => Verdict::Better,
            Direction::LowerIsBetter if interval.low > 0.0 => Verdict::Worse,
            _ => Verdict::NotShown,
        }
    }
}

/// Compares the outcomes of the same questions, in any order.
///
/// # Errors
/// [`Error::Unpaired`] if they are not of the same questions.
pub fn compare(before: &[Outcome], after: &[Outcome], rule: Rule) -> Result<Comparison, Error> {
    let unpaired = |reason: String| Error::Unpaired { reason };
    if before.len() != after.len() {
        return Err(unpaired(format!("{} outcomes before, {} after", before.len(), after.len())));
    }
    let after_by_id: HashMap<&str, &Outcome> = after.iter().map(|o| (o.id.as_str(), o)).collect();
    let mut clusters: BTreeMap<&str, Share> = BTreeMap::new();
    let mut counts = [[0usize; 2]; 2];
    for earlier in before {
        let later = after_by_id
            .get(earlier.id.as_str())
            .ok_or_else(|| unpaired(format!("question {:?} has no outcome after", earlier.id)))?;
        if later.answer != earlier.answer || later.document != earlier.document {
            return Err(unpaired(format!("question {:?} was changed in between", earlier.id)));
        }
        let (was, is) = (earlier.correct(rule), later.correct(rule));
        counts[usize::from(was)][usize::from(is)] += 1;
        let cluster = clusters.entry(&earlier.document).or_default();
        cluster.sum += f64::from(i8::from(is) - i8::from(was));
        cluster.weight += 1.0;
    }
    let difference = ratio(&clusters.into_values().collect::<Vec<_>>());
    Ok(Comparison {
        rule,
        before: wilson(counts[1][0] + counts[1][1], before.len()),
        after: wilson(counts[0][1] + counts[1][1], before.len()),
        difference,
        gained: counts[0][1],
        lost: counts[1][0],
        verdict: difference.verdict(Direction::HigherIsBetter),
    })
}

/// Compares the bits per byte of the same documents, in the same order.
///
/// # Errors
/// [`Error::Unpaired`] if they are not the same documents with the same bytes.
pub fn compare_bits(before: &[DocumentScore], after: &[DocumentScore]) -> Result<Change, Error> {
    let unpaired = |reason: String| Error::Unpaired { reason };
    if before.len() != after.len() {
        return Err(unpaired(format!("{} documents before, {} after", before.len(), after.len())));
    }
    let mut clusters = Vec::with_capacity(before.len());
    for (earlier, later) in before.iter().zip(after) {
        if earlier.document != later.document || earlier.bytes != later.bytes {
            return Err(unpaired(format!(
                "document {:?} ({} bytes) before, {:?} ({} bytes) after",
                earlier.document, earlier.bytes, later.document, later.bytes
            )));
        }
        clusters.push(Share { sum: later.bits() - earlier.bits(), weight: later.bytes as f64 });
    }
    let bytes = before.iter().map(|d| d.bytes).sum::<usize>();
    let per_byte = |scores: &[DocumentScore]| {
        scores.iter().map(DocumentScore::bits).sum::<f64>() / bytes.max(1) as f64
    };
    let difference = ratio(&clusters);
    Ok(Change {
        bytes,
        before: per_byte(before),
        after: per_byte(after),
        difference,
        verdict: difference.verdict(Direction::LowerIsBetter),
    })
}

/// The Wilson score interval of a proportion at 95 %.
pub fn wilson(correct: usize, total: usize) -> Proportion {
    if total == 0 {
        let interval = Interval { low: 0.0, high: 1.0 };
        return Proportion { correct, total, value: 0.0, interval };
    }
    let z = 1.959_963_984_540_054_f64;
    let n = total as f64;
    let p = correct as f64 / n;
    let scale = 1.0 + z * z / n;
    let centre = (p + z * z / (2.0 * n)) / scale;
    let reach = z / scale * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt();
    let interval = Interval { low: (centre - reach).max(0.0), high: (centre + reach).min(1.0) };
    Proportion { correct, total, value: p, interval }
}

/// The 97.5 % quantile of Student's t distribution: what a two-sided 95 % interval is made with.
pub fn student_quantile(degrees: usize) -> f64 {
    let degrees = degrees.max(1) as f64;
    let (mut low, mut high) = (1.0, 13.0);
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        // P(|T| > t) = I_x(ν/2, 1/2) with x = ν / (ν + t²).
        let outside = incomplete_beta(degrees / (degrees + middle * middle), degrees / 2.0, 0.5);
        if outside > 0.05 { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}

/// The regularised incomplete beta function I_x(a, b).
///
/// **Source**: NIST DLMF 8.17.22, the continued fraction, evaluated by the modified Lentz method.
fn incomplete_beta(x: f64, a: f64, b: f64) -> f64 {
    // The fraction converges fast below the mean; above it the complement does.
    if x > (a + 1.0) / (a + b + 2.0) {
        return 1.0 - incomplete_beta(1.0 - x, b, a);
    }
    let front = (a * x.ln() + b * (1.0 - x).ln() - ln_beta(a, b)).exp() / a;
    let tiny = 1e-300;
    let (mut c, mut d) = (1.0, 1.0 - (a + b) * x / (a + 1.0));
    d = 1.0 / if d.abs() < tiny { tiny } else { d };
    let mut fraction = d;
    for m in 1..500 {
        let m = f64::from(m);
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        let mut step = 1.0;
        for coefficient in [even, odd] {
            d = 1.0 + coefficient * d;
            d = 1.0 / if d.abs() < tiny { tiny } else { d };
            c = 1.0 + coefficient / c;
            c = if c.abs() < tiny { tiny } else { c };
            step = c * d;
            fraction *= step;
        }
        if (step - 1.0).abs() < 1e-14 {
            break;
        }
    }
    front * fraction
}

fn ln_beta(a: f64, b: f64) -> f64 {
    ln_gamma(a) + ln_gamma(b) - ln_gamma(a + b)
}

/// ln Γ(x) for x > 0: shifted upwards, then Stirling's series (NIST DLMF 5.11.1).
fn ln_gamma(x: f64) -> f64 {
    let mut x = x;
    let mut shift = 0.0;
    while x < 10.0 {
        shift -= x.ln();
        x += 1.0;
    }
    let r = 1.0 / (x * x);
    let series =
        (1.0 / 12.0 - r * (1.0 / 360.0 - r * (1.0 / 1260.0 - r * (1.0 / 1680.0 - r / 1188.0)))) / x;
    shift + (x - 0.5) * x.ln() - x + 0.5 * (2.0 * std::f64::consts::PI).ln() + series
}

#[cfg(test)]
#[path = "stats_tests.rs"]
mod tests;
