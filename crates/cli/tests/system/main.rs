//! The whole system: the real binary, in an empty directory, with real peers as its clients.
//!
//! Nothing here waits for ever: peers run under a time limit, and a server lives for a limited
//! time, so that whoever waits for it gets an error.

#[cfg(test)]
mod bitmaps;
#[cfg(test)]
mod external;
#[cfg(test)]
mod full;
#[cfg(test)]
mod held;
#[cfg(test)]
mod history;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod kill;
#[cfg(test)]
mod lab;
#[cfg(test)]
mod live;
#[cfg(test)]
mod mount;
#[cfg(test)]
mod neighbours;
#[cfg(test)]
mod origin;
#[cfg(test)]
mod peers;
#[cfg(test)]
mod raw;
#[cfg(test)]
mod terminate;
#[cfg(test)]
mod trim;
#[cfg(test)]
mod writer;
