//! The bar on a terminal's stderr. Where stderr is no terminal there is none.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// Between two drawings: a bar is for eyes.
const DRAW_INTERVAL: Duration = Duration::from_millis(100);

/// Bytes of a file that were read.
pub(crate) fn of_bytes(bytes: u64) -> ProgressBar {
    bar(bytes, "{bar:30} {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left")
}

/// Time of a run that has passed.
pub(crate) fn of_time(time: Duration) -> ProgressBar {
    let ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    bar(ms, "{bar:30} {elapsed}  {msg}")
}

fn bar(length: u64, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).expect("the templates above are right");
    let bar = ProgressBar::new(length).with_style(style);
    bar.enable_steady_tick(DRAW_INTERVAL);
    bar
}
