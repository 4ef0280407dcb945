// SPDX-License-Identifier: Apache-2.0
//! What a scrape says.

/// A scrape of `/metrics`.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// The text as it came.
    pub text: String,
}

impl Metrics {
    /// The sum of the series of this name that have all of these labels; 0 if there is none.
    ///
    /// A whole number: what is counted here has no fractions.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let wanted: Vec<String> = labels
            .iter()
            .map(|(label, value)| format!("{label}=\"{value}\""))
            .collect();
        let series = self.text.lines().filter(|line| !line.starts_with('#'));
        let values = series.filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let (found, labels) = series.split_once('{').unwrap_or((series, ""));
            let matches = found == name && wanted.iter().all(|label| labels.contains(label.as_str()));
            let whole = value.split('.').next()?;
            matches.then(|| whole.parse::<u64>().ok())?
        });
        values.sum()
    }
}
