//! A long array of which only the parts that are used take memory.

use std::sync::OnceLock;

/// `len` elements in pages of `N`, each page made when one of its elements is first wanted. Shared
/// between threads: elements are atomics or locks.
#[derive(Debug)]
pub(super) struct Pages<T, const N: usize> {
    pages: Vec<OnceLock<Box<[T]>>>,
    len: u64,
}

impl<T: Default, const N: usize> Pages<T, N> {
    /// `len` elements, none of them in memory.
    pub(super) fn new(len: u64) -> Self {
        let pages = usize::try_from(len.div_ceil(N as u64)).expect("the array fits memory");
        Self { pages: (0..pages).map(|_| OnceLock::new()).collect(), len }
    }

    /// How many elements there are.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// The element at `index`, if there is one and its page was ever wanted.
    pub(super) fn get(&self, index: u64) -> Option<&T> {
        let (page, place) = split::<N>(index)?;
        self.pages.get(page)?.get()?.get(place)
    }

    /// The element at `index`; `None` past the end.
    pub(super) fn want(&self, index: u64) -> Option<&T> {
        if index >= self.len {
            return None;
        }
        let (page, place) = split::<N>(index)?;
        let page = self.pages[page].get_or_init(|| (0..N).map(|_| T::default()).collect());
        Some(&page[place])
    }

    /// The page with this number, if it was ever wanted: `N` elements, the last page also those
    /// behind the end.
    pub(super) fn page(&self, number: usize) -> Option<&[T]> {
        self.pages.get(number)?.get().map(|page| &**page)
    }

    /// The elements that are in memory, with their indices, ascending.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        let firsts = (0..).step_by(N);
        let pages = firsts.zip(&self.pages).filter_map(|(first, page)| Some((first, page.get()?)));
        pages.flat_map(|(first, page): (u64, _)| (first..).zip(page.iter()))
    }
}

/// The page of an element and its place there; `None` for an index that no array reaches.
fn split<const N: usize>(index: u64) -> Option<(usize, usize)> {
    let index = usize::try_from(index).ok()?;
    Some((index / N, index % N))
}

#[cfg(test)]
mod tests {
    use super::Pages;
    use std::sync::atomic::{AtomicU8, Ordering};

    #[test]
    fn pages_come_when_they_are_wanted() {
        let pages = Pages::<AtomicU8, 10>::new(25);
        assert!(pages.get(24).is_none() && pages.want(25).is_none());
        assert!(pages.want(u64::MAX).is_none() && pages.get(u64::MAX).is_none());
        pages.want(24).expect("inside").store(7, Ordering::Relaxed);
        pages.want(3).expect("inside").store(1, Ordering::Relaxed);
        assert!(pages.page(1).is_none() && pages.page(3).is_none());
        let set = pages.iter().filter(|(_, value)| value.load(Ordering::Relaxed) != 0);
        assert_eq!(set.map(|(index, _)| index).collect::<Vec<_>>(), [3, 24]);
    }
}
