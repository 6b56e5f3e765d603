//! A mean that follows what is measured.

/// What is added counts for an eighth.
const WEIGHT: u64 = 8;

/// The running mean of times in nanoseconds; the first is the mean at first.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RunningMean(Option<u64>);

impl RunningMean {
    /// This was measured.
    pub(crate) fn add(&mut self, ns: u64) {
        self.0 = Some(match self.0 {
            None => ns,
            Some(mean) => mean - mean / WEIGHT + ns / WEIGHT,
        });
    }

    /// The mean, once anything was measured.
    pub(crate) fn ns(self) -> Option<u64> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_begins_with_the_first_and_follows_the_others() {
        let mut mean = RunningMean::default();
        assert_eq!(mean.ns(), None);
        mean.add(800);
        assert_eq!(mean.ns(), Some(800));
        mean.add(1_600);
        assert_eq!(mean.ns(), Some(900));
        (0..100).for_each(|_| mean.add(1_600));
        assert!((1_500..=1_600).contains(&mean.ns().unwrap()));
    }
}
