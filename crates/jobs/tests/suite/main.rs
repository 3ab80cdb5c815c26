//! Jobs on real devices and files.

#[cfg(test)]
mod chain;
#[cfg(test)]
mod copy;
