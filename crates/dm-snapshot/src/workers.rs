//! Doing many independent things at once, on threads of their own, through memory of their own.

use std::cell::RefCell;
use std::sync::atomic::{AtomicUsize, Ordering};

use block_io::AlignedBuf;
use block_types::Result;

/// Copied or written at once, and the size of a thread's memory for it.
pub(crate) const PIECE: u64 = 1 << 20;

thread_local! {
    static SCRATCH: RefCell<AlignedBuf> = RefCell::new(AlignedBuf::zeroed(PIECE as usize));
}

/// Calls `work` with this thread's memory, [`PIECE`] bytes of anything.
pub(crate) fn with_scratch<R>(work: impl FnOnce(&mut AlignedBuf) -> R) -> R {
    SCRATCH.with_borrow_mut(|scratch| work(scratch))
}

/// Calls `work` with every one of `items`, on at most `workers` threads; with one of them, in
/// order.
///
/// # Errors
/// The first failure of a thread; that thread ends there, others do not.
pub(crate) fn for_each<T: Sync>(
    workers: usize,
    items: &[T],
    work: impl Fn(&T) -> Result<()> + Sync,
) -> Result<()> {
    let workers = workers.min(items.len());
    if workers < 2 {
        return items.iter().try_for_each(work);
    }
    let next = AtomicUsize::new(0);
    let run = || {
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            work(item)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..workers).map(|_| scope.spawn(run)).collect();
        let mine = run();
        let joined = others
            .into_iter()
            .map(|other| other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        joined.fold(mine, Result::and)
    })
}

#[cfg(test)]
mod tests {
    use super::for_each;
    use block_types::{Error, ErrorKind};
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn every_item_is_done_once_and_a_failure_is_told() {
        let items: Vec<u64> = (0..100).collect();
        for workers in [1, 7, 1000] {
            let sum = AtomicU64::new(0);
            let add = |item: &u64| {
                sum.fetch_add(*item, Ordering::SeqCst);
                Ok(())
            };
            for_each(workers, &items, add).expect("done");
            assert_eq!(sum.into_inner(), 4950);
            let fail = |item: &u64| match item {
                42 => Err(Error::new(ErrorKind::Io, "item", "failed")),
                _ => Ok(()),
            };
            assert!(for_each(workers, &items, fail).is_err());
        }
    }
}
