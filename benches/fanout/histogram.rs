//! Latencies, counted in buckets that are at most 1/64 of their value wide.

use super::Result;

/// Buckets of one power of two, less those of the one below.
const STEPS: u64 = 64;
/// Up to where the buckets are one unit wide.
const EXACT: u64 = 2 * STEPS;
/// Powers of two above that, of a `u64`.
const BUCKETS: usize = (EXACT + (64 - 7) * STEPS) as usize;

#[derive(Clone, Debug)]
pub struct Histogram(Vec<u64>);

impl Default for Histogram {
    fn default() -> Self {
        Self(vec![0; BUCKETS])
    }
}

impl Histogram {
    pub fn record(&mut self, value: u64) {
        self.0[bucket(value)] += 1;
    }

    pub fn count(&self) -> u64 {
        self.0.iter().sum()
    }

    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.0.iter_mut().zip(&other.0) {
            *mine += theirs;
        }
    }

    /// The value that a part of all values does not pass, as the top of its bucket. `None` where there are no values.
    pub fn quantile(&self, part: f64) -> Option<u64> {
        let rank = (self.count() as f64 * part).ceil().max(1.0) as u64;
        let mut below = 0;
        self.0
            .iter()
            .position(|count| {
                below += count;
                below >= rank
            })
            .map(top)
    }

    /// For another process: `bucket:count` of those that are not empty.
    pub fn to_text(&self) -> String {
        let filled = self.0.iter().enumerate().filter(|(_, count)| **count > 0);
        filled.map(|(bucket, count)| format!("{bucket}:{count}")).collect::<Vec<_>>().join(",")
    }

    pub fn of_text(text: &str) -> Result<Self> {
        let mut histogram = Self::default();
        for filled in text.split(',').filter(|filled| !filled.is_empty()) {
            let (bucket, count) = filled.split_once(':').ok_or("a bucket has a count")?;
            *histogram.0.get_mut(bucket.parse::<usize>()?).ok_or("such a bucket exists")? = count.parse()?;
        }
        Ok(histogram)
    }
}

fn bucket(value: u64) -> usize {
    let power = u64::from(value.max(1).ilog2());
    match value {
        0..EXACT => value as usize,
        // Between 64 and 128 steps of a size that doubles with each power.
        _ => (EXACT + (power - 7) * STEPS + (value >> (power - 6)) - STEPS) as usize,
    }
}

/// The highest value of a bucket.
fn top(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    match bucket.checked_sub(EXACT) {
        None => bucket,
        Some(above) => {
            let (power, step) = (above / STEPS + 7, above % STEPS + STEPS);
            ((step + 1) << (power - 6)).wrapping_sub(1)
        }
    }
}
