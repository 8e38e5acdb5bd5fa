/// Which tokens go through which expert: the rows of grouped products, expert by expert.
///
/// Every token keeps all its experts, whatever their load, and no row is padding.
pub struct Routes {
    tokens: usize,
    /// The token of each row, rising within an expert.
    pub(crate) rows: Vec<u32>,
    /// What each row's output is multiplied by.
    pub(crate) gates: Vec<f32>,
    /// Where each expert's rows begin, and the end of the last.
    pub(crate) starts: Vec<usize>,
    /// The row's place in `[tokens, top_k]`.
    pub(crate) places: Vec<u32>,
}

impl Routes {
    /// **Shapes**: chosen, gates `[tokens, top_k]`: the experts of each token, and their weights.
    ///
    /// # Panics
    /// If an expert is not below `experts`, or a length does not fit.
    pub fn new(experts: usize, top_k: usize, chosen: &[u32], gates: &[f32]) -> Self {
        assert!(chosen.len() == gates.len() && chosen.len().is_multiple_of(top_k.max(1)));
        let mut starts = vec![0; experts + 1];
        for &expert in chosen {
            assert!((expert as usize) < experts, "expert {expert} of {experts}");
            starts[expert as usize + 1] += 1;
        }
        for expert in 0..experts {
            starts[expert + 1] += starts[expert];
        }
        let mut next = starts.clone();
        let mut places = vec![0; chosen.len()];
        for (place, &expert) in chosen.iter().enumerate() {
            places[next[expert as usize]] = place as u32;
            next[expert as usize] += 1;
        }
        let rows = places.iter().map(|&place| place / top_k as u32).collect();
        let gates = places.iter().map(|&place| gates[place as usize]).collect();
        Routes { tokens: chosen.len() / top_k.max(1), rows, gates, starts, places }
    }

    /// All tokens through one expert, unweighted: a dense feed-forward.
    pub fn dense(tokens: usize) -> Self {
        let rows: Vec<u32> = (0..tokens as u32).collect();
        Routes {
            tokens,
            places: rows.clone(),
            rows,
            gates: vec![1.0; tokens],
            starts: vec![0, tokens],
        }
    }

    /// The same, every output multiplied by `gate`.
    pub fn weighted(mut self, gate: f32) -> Self {
        self.gates.iter_mut().for_each(|weight| *weight *= gate);
        self
    }

    pub fn tokens(&self) -> usize {
        self.tokens
    }

    pub fn experts(&self) -> usize {
        self.starts.len() - 1
    }

    /// Rows of each expert.
    pub fn load(&self) -> impl Iterator<Item = usize> {
        self.starts.windows(2).map(|ends| ends[1] - ends[0])
    }

    /// The sum of each expert's gates.
    pub fn gates(&self) -> impl Iterator<Item = f64> {
        let sum = |gates: &[f32]| gates.iter().map(|&gate| f64::from(gate)).sum();
        self.starts.windows(2).map(move |ends| sum(&self.gates[ends[0]..ends[1]]))
    }

    /// The rows of an expert whose tokens lie in `tokens`.
    pub(crate) fn within(
        &self,
        expert: usize,
        tokens: std::ops::Range<usize>,
    ) -> std::ops::Range<usize> {
        let (start, end) = (self.starts[expert], self.starts[expert + 1]);
        let rows = &self.rows[start..end];
        let find = |token: usize| start + rows.partition_point(|&row| (row as usize) < token);
        find(tokens.start)..find(tokens.end)
    }

    /// Blocks of at most `size` rows, each of one expert: (expert, rows). Those of the last quarter
    /// of all rows are of at most `last`, so that threads which take them in turn end together.
    pub(crate) fn blocks(&self, size: usize, last: usize) -> Vec<(usize, std::ops::Range<usize>)> {
        let mut blocks = Vec::new();
        for (expert, ends) in self.starts.windows(2).enumerate() {
            let mut from = ends[0];
            while from < ends[1] {
                let size = if 4 * from < 3 * self.rows.len() { size } else { last };
                let to = ends[1].min(from + size);
                blocks.push((expert, from..to));
                from = to;
            }
        }
        blocks
    }
}
