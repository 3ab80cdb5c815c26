//! Tests of repositories.

#[cfg(test)]
mod common;
#[cfg(test)]
mod crash;
#[cfg(test)]
mod live;
#[cfg(test)]
mod peers;
#[cfg(test)]
mod points;
#[cfg(test)]
mod world;
