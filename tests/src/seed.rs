//! Randomness that can be repeated.

/// A generator seeded from `EVERTWIN_SEED` if that is set. The seed is printed, and shown when the test fails.
///
/// # Panics
/// If `EVERTWIN_SEED` is not a number.
#[must_use]
pub fn generator() -> fastrand::Rng {
    let seed = match std::env::var("EVERTWIN_SEED") {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("EVERTWIN_SEED={text} is not a number")),
        Err(_) => fastrand::u64(..),
    };
    println!("EVERTWIN_SEED={seed}");
    fastrand::Rng::with_seed(seed)
}
