//! Random bytes from the kernel.

use std::io;

/// Fills `bytes` from the kernel's generator, waiting for it to be seeded early after boot.
pub fn fill_random(bytes: &mut [u8]) -> io::Result<()> {
    #[cfg(feature = "sim")]
    if let Some(world) = crate::sim::entered() {
        world.choice().fill(bytes);
        return Ok(());
    }
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        // SAFETY: writes at most `rest.len()` bytes to `rest`.
        let count = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match usize::try_from(count) {
            Ok(count) => filled += count,
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_fills_differ() {
        let (mut first, mut second) = ([0; 1000], [0; 1000]);
        fill_random(&mut first).expect("getrandom works");
        fill_random(&mut second).expect("getrandom works");
        assert_ne!(first, second);
        fill_random(&mut []).expect("nothing to fill is fine");
    }
}
