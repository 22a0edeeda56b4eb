//! The metrics as Prometheus reads them.

use std::collections::{BTreeMap, HashMap};

/// One scrape: the series of each name.
#[derive(Debug)]
pub struct Metrics(HashMap<String, Vec<Series>>);

/// Labels, and a value.
type Series = (BTreeMap<String, String>, f64);

impl Metrics {
    /// Reads the text format.
    pub fn parse(text: &str) -> Self {
        let mut metrics: HashMap<_, Vec<_>> = HashMap::new();
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (series, value) = line.rsplit_once(' ').expect("a value");
            let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
            let labels = labels.strip_suffix('}').expect("labels end");
            // No label here has a comma or a quote in its value.
            let labels = labels.split(',').filter(|label| !label.is_empty()).map(|label| {
                let (name, value) = label.split_once('=').expect("a label");
                (name.to_owned(), value.trim_matches('"').to_owned())
            });
            metrics.entry(name.to_owned()).or_default().push((labels.collect(), value.parse().expect("a number")));
        }
        Self(metrics)
    }

    /// The sum over all series of the name that have these labels; 0 when there is none.
    pub fn get(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let has = |series: &BTreeMap<String, String>| {
            labels.iter().all(|(name, value)| series.get(*name).is_some_and(|found| found == value))
        };
        self.0.get(name).into_iter().flatten().filter(|(series, _)| has(series)).map(|(_, value)| value).sum()
    }
}
