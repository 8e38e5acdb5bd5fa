use std::path::Path;

use kernel::{Router, Scores};
use serde::{Deserialize, Serialize};

use super::{MAX_WIDTH, within, wrong};
use crate::Error;

/// Experts of the model's own, of which a router chooses some for each token.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Routing {
    pub experts: usize,
    /// Experts of each token.
    pub top_k: usize,
    /// Width of each expert's feed-forward.
    pub width: usize,
    /// Whether an expert's score is the sigmoid of its logit, chosen with a bias that keeps the
    /// balance; otherwise scores are the softmax over all experts.
    pub sigmoid: bool,
    /// Whether the weights of a token's experts add up to one, before they are scaled.
    pub normalise: bool,
    /// What all weights are multiplied by.
    pub scale: f32,
    /// Groups of experts, of which a token's best are taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<Groups>,
    /// So many layers, the first, have one feed-forward for all tokens instead, …
    #[serde(default)]
    pub dense_layers: usize,
    /// … of this width.
    #[serde(default)]
    pub dense_width: usize,
}

/// Experts in groups of equal size: a token's experts all belong to its best groups.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Groups {
    pub count: usize,
    /// Groups of each token.
    pub top_k: usize,
}

const MAX_ROUTED: usize = 1 << 12;

impl Routing {
    /// With the scale that everything joins the residual with, besides the router's own.
    pub(crate) fn router(&self, residual: f32) -> Router {
        Router {
            experts: self.experts,
            top_k: self.top_k,
            scores: if self.sigmoid { Scores::Sigmoid } else { Scores::Softmax },
            normalise: self.normalise,
            scale: self.scale * residual,
            groups: self.groups.map(|g| kernel::Groups { count: g.count, top_k: g.top_k }),
        }
    }

    pub(super) fn check(&self, path: &Path) -> Result<(), Error> {
        within(path, "the number of routed experts", self.experts, MAX_ROUTED)?;
        within(path, "the expert width", self.width, MAX_WIDTH)?;
        if !(1..=self.experts).contains(&self.top_k) {
            let expected = format!("must be 1 to the {} experts", self.experts);
            return Err(wrong(path, "the number of experts per token", self.top_k, &expected));
        }
        // The kernels pair neighbours.
        if self.width == 0 || !self.width.is_multiple_of(2) {
            return Err(wrong(path, "the expert width", self.width, "must be even, at least 2"));
        }
        if !(self.scale.is_finite() && self.scale > 0.0) {
            return Err(wrong(path, "the experts' scale", self.scale, "must be above 0"));
        }
        if let Some(Groups { count, top_k }) = self.groups {
            if count == 0 || !self.experts.is_multiple_of(count) {
                let expected = format!("must divide the {} experts", self.experts);
                return Err(wrong(path, "the number of groups of experts", count, &expected));
            }
            // With fewer experts than are to be chosen some would be of other groups.
            if !(1..=count).contains(&top_k) || self.top_k > self.experts / count * top_k {
                let expected = format!("must be 1 to {count}, and have {} experts", self.top_k);
                return Err(wrong(path, "the number of groups per token", top_k, &expected));
            }
        }
        within(path, "the feed-forward width of the first layers", self.dense_width, MAX_WIDTH)?;
        if self.dense_layers > 0 && (self.dense_width == 0 || !self.dense_width.is_multiple_of(2)) {
            let key = "the feed-forward width of the first layers";
            return Err(wrong(path, key, self.dense_width, "must be even, at least 2"));
        }
        Ok(())
    }
}
