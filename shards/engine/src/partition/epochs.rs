//! Leader epochs and the offset at which each began.

use rustmq_protocol::{LeaderEpoch, Offset};

use crate::limits::EPOCHS_MAX;

/// The leader epochs of one partition's log, oldest first.
///
/// Invariants: epochs and offsets rise strictly. Only epochs in which a record was appended are
/// held; an epoch that wrote nothing leaves no trace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Epochs {
    starts: Vec<(LeaderEpoch, Offset)>,
}

impl Epochs {
    /// The epochs of a checkpoint. Pairs that do not rise are left out.
    pub fn from_pairs(pairs: impl IntoIterator<Item = (LeaderEpoch, Offset)>) -> Self {
        let mut epochs = Self::default();
        for (epoch, start) in pairs {
            epochs.begin(epoch, start);
        }
        epochs
    }

    /// `epoch` begins at `start`. An epoch that is not newer than the last one changes nothing; an
    /// epoch that begins where the last one began replaces it, because that one wrote nothing.
    pub fn begin(&mut self, epoch: LeaderEpoch, start: Offset) {
        match self.starts.last_mut() {
            Some((last, _)) if epoch <= *last => return,
            Some((last, at)) if start <= *at => {
                *last = epoch;
                return;
            }
            _ => self.starts.push((epoch, start)),
        }
        if EPOCHS_MAX < self.starts.len() {
            self.starts.remove(1);
        }
    }

    /// The newest epoch that wrote a record.
    pub fn latest(&self) -> Option<LeaderEpoch> {
        self.starts.last().map(|(epoch, _)| *epoch)
    }

    /// The log now starts at `log_start`: epochs that ended before it are forgotten.
    pub fn advance_start(&mut self, log_start: Offset) {
        let ended = self.starts.iter().skip(1).take_while(|(_, start)| *start <= log_start).count();
        self.starts.drain(..ended);
    }

    /// Epoch and first offset of each epoch, oldest first.
    pub fn pairs(&self) -> &[(LeaderEpoch, Offset)] {
        &self.starts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epochs(pairs: &[(u32, u64)]) -> Epochs {
        Epochs::from_pairs(pairs.iter().map(|(e, o)| (LeaderEpoch(*e), Offset(*o))))
    }

    #[test]
    fn an_epoch_that_wrote_nothing_is_replaced() {
        assert_eq!(epochs(&[(1, 0), (2, 0), (3, 7)]), epochs(&[(2, 0), (3, 7)]));
    }

    #[test]
    fn an_older_epoch_changes_nothing() {
        assert_eq!(epochs(&[(3, 0), (2, 9)]).pairs(), &[(LeaderEpoch(3), Offset(0))]);
    }

    #[test]
    fn epochs_that_ended_before_the_log_start_are_forgotten() {
        let mut held = epochs(&[(1, 0), (2, 10), (3, 20)]);
        held.advance_start(Offset(10));
        assert_eq!(held, epochs(&[(2, 10), (3, 20)]));
        held.advance_start(Offset(15));
        assert_eq!(held, epochs(&[(2, 10), (3, 20)]));
    }

    #[test]
    fn epochs_are_bounded_and_keep_the_first_and_the_newest() {
        let mut held = Epochs::default();
        for n in 1..=(EPOCHS_MAX as u32 + 40) {
            held.begin(LeaderEpoch(n), Offset(u64::from(n)));
        }
        assert_eq!(held.pairs().len(), EPOCHS_MAX);
        assert_eq!(held.pairs()[0], (LeaderEpoch(1), Offset(1)));
        assert_eq!(held.latest(), Some(LeaderEpoch(EPOCHS_MAX as u32 + 40)));
    }
}
