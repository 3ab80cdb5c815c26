//! Every tool on random pools. The peers spend their time waiting, so many pools are under way at
//! once.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use super::{Metadata, delta, dump, ls, pools, restore, rmap};
use testkit::rng::Rng;

/// Pools in the default run.
const POOLS: u64 = 500;
/// Pools under way at once.
const THREADS: usize = 16;

#[test]
fn generated_pools_are_what_the_thin_tools_say() {
    let pools = if std::env::var_os("FIRN_LONG").is_some() { 20 * POOLS } else { POOLS };
    let next = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= pools {
                        return;
                    }
                    compare(seed);
                }
            });
        }
    });
}

fn compare(seed: u64) {
    let what = format!("pool {seed}");
    let metadata = Metadata::new(pools::generate(seed));
    let mut rng = Rng::new(!seed);
    dump::compare(&metadata, &what);
    restore::compare(&metadata, &what);
    delta::compare(&metadata, &mut rng, &what);
    ls::compare(&metadata, &what);
    rmap::compare(&metadata, &mut rng, &what);
}
